"""Who owns a line, who may weigh, and the tables of identities and resources."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import names
from engine.config import AwsTenant, Owner
from engine.errors import ContractError
from engine.frames import IDENTITIES, RESOURCES, USAGE, check_rows
from engine.identities import identities, key_principals, known_identities, resolved, resources, with_owner
from tests.unit.cases import HOSTILE, billing, rows, tenant

NO_OWNERS = pl.DataFrame(schema={"owner": pl.String, "first_seen_at": pl.Date, "last_seen_at": pl.Date})


def owner(**fields: Any) -> Owner:
    return Owner.model_validate({"tags": ["team"]} | fields)


def owners(lines: pl.DataFrame, **fields: Any) -> list[str]:
    return with_owner(lines.lazy(), owner(**fields)).collect()["owner"].to_list()


def names_of(texts: list[str | None], **fields: Any) -> list[str]:
    return pl.select(resolved(pl.Series(texts, dtype=pl.String), owner(**fields))).to_series().to_list()


# ------------------------------------------------------------------------------------------------ names


def test_spellings_of_one_name_are_one_identity() -> None:
    spellings = ["payments", "Payments ", " PAYMENTS", "pay\u00adments", "payments\u200b"]
    assert names_of(spellings[:3]) == ["payments"] * 3
    assert len(set(names_of(spellings))) == 3, "what is not a blank is part of the name"


def test_an_unknown_name_is_kept_as_it_is_spelled_best() -> None:
    assert names_of(["Data  Platform", "../x", "=cmd()", "\x00"], identities=["payments"]) == [
        "data platform",
        "../x",
        "=cmd()",
        "\x00",
    ]


def test_aliases_are_found_under_every_spelling_and_lead_to_the_normal_one() -> None:
    aliases = {"Pay": "Payments", "p\u0065\u0301": "\u00c9quipe", "data  platform": "DP"}
    found = names_of(["pay", " PAY ", "P\u00c9", "p\u00e9", "Data\u00a0Platform", "other"], aliases=aliases)
    assert found == ["payments", "payments", "\u00e9quipe", "\u00e9quipe", "dp", "other"]


@pytest.mark.parametrize(
    "text", [None, "", " ", "\t\n", "\u00a0\u2003\u3000", "UNALLOCATED", "unallocated", " UnAllocated\n"]
)
def test_a_blank_and_the_word_for_nobody_name_nobody(text: str | None) -> None:
    assert names_of([text]) == [""]


@pytest.mark.parametrize("target", ["UNALLOCATED", " Unallocated "])
def test_an_alias_for_nobody_names_nobody(target: str) -> None:
    """Its lines count as untagged; they are not charged to somebody called `unallocated`."""
    assert names_of(["shared"], aliases={"shared": target}) == [""]


def test_names_of_the_configuration_and_of_tags_are_resolved_alike() -> None:
    fields = {"aliases": {"Pay ": "Payments", "E\u0301": "x"}, "identities": ["search"]}
    texts = ["pay", "PAY", "payments", "\u00e9", "\u0130", "\u039f\u03a3", "Search ", "q  q"]
    assert [names.identity(owner(**fields), text) for text in texts] == names_of(texts, **fields)


def test_no_operator_is_nobody() -> None:
    assert names.operator(tenant()) == ""
    assert names.operator(tenant(operator=" Platform\u00a0Team ")) == "platform team"


# ------------------------------------------------------------------------------------------------ owners


def test_rows_come_back_as_they_came() -> None:
    lines = billing({"tags": {"team": "b"}}, {}, {"tags": {"team": "A"}}, {"tags": {"x": "y"}}, {"tags": {"team": "b"}})
    found = with_owner(lines.lazy(), owner()).collect()
    assert_frame_equal(found.drop("owner"), lines)
    assert found.columns[-1] == "owner"
    assert found["owner"].to_list() == ["b", "", "a", "", "b"]


def test_the_first_tag_that_names_somebody_names_the_owner() -> None:
    lines = billing(
        {"tags": {"team": "a", "owner": "b"}},
        {"tags": {"team": " ", "owner": "b"}},
        {"tags": {"owner": "b"}},
        {"tags": {"team": "unallocated", "owner": "b"}},
        {"tags": {"team": "unallocated", "owner": "\u00a0"}},
        {},
    )
    assert owners(lines, tags=["team", "owner"]) == ["a", "b", "b", "b", "", ""]
    assert owners(lines, tags=["owner", "team"]) == ["b", "b", "b", "b", "", ""]
    assert owners(lines, tags=["owner"]) == ["b", "b", "b", "b", "", ""]


@pytest.mark.parametrize("tag", ["CostCenter", "cost-center", "cost_center", "Cost Center"])
def test_an_owner_tag_is_found_under_every_spelling_of_its_key(tag: str) -> None:
    assert owners(billing({"tags": {"cost_center": "a"}}), tags=[tag, "CostCenter"]) == ["a"]


def test_hostile_values_are_names_like_others() -> None:
    lines = billing(*({"tags": {"team": text}} for text in HOSTILE))
    assert owners(lines) == [names.identity(owner(), text) for text in HOSTILE]


def test_an_operators_tag_names_the_operator() -> None:
    assert owners(billing({"tags": {"team": "Platform"}})) == ["platform"]


# ------------------------------------------------------------------------------------------------ key tables


def usage(*principals: str) -> pl.DataFrame:
    plain = {"tenant_id": "acme", "window": "2025-09", "metric": "gb", "value": "1"}
    return rows(USAGE, *(plain | {"principal": principal} for principal in principals))


def test_principals_become_identities() -> None:
    given = tenant(owner={"tags": ["team"], "aliases": {"Pay": "payments"}}, operator="platform")
    found = key_principals(usage("PAY", "Search ", "unknown"), given, where="k.csv")
    assert found.columns == USAGE.columns
    assert found["principal"].to_list() == ["payments", "search", "unknown"]


@pytest.mark.parametrize(
    "principal", ["Platform", " platform ", "ops", "UNALLOCATED", "unallocated ", " ", "\u00a0", ""]
)
def test_who_may_not_weigh_is_refused_as_written(principal: str) -> None:
    given = tenant(owner={"tags": ["team"], "aliases": {"ops": "platform"}}, operator="platform")
    with pytest.raises(ContractError) as caught:
        key_principals(usage("a", principal, principal), given, where="k.csv")
    assert caught.value.faults == [
        (
            f"k.csv: column identity: 2 row(s) of {principal!r};"
            " expected an identity that may bear shared cost (neither the operator nor UNALLOCATED)"
        )
    ]


def test_many_of_those_are_shown_by_example_in_one_short_line() -> None:
    """However many spellings there are, and however long."""
    barred = [f"{' ' * number}platform{' ' * 500}\n" for number in range(100)]
    with pytest.raises(ContractError) as caught:
        key_principals(usage(*barred), tenant(operator="platform"), where="k.csv")
    (line,) = caught.value.faults
    assert "\n" not in line
    assert len(line) < 2500


def test_a_tenant_without_an_operator_bars_nobody_but_nobody() -> None:
    assert key_principals(usage("platform"), tenant(), where="k.csv").height == 1
    with pytest.raises(ContractError):
        key_principals(usage(""), tenant(), where="k.csv")


def test_no_usage_is_no_usage() -> None:
    assert key_principals(usage(), tenant(operator="o"), where="k.csv").equals(usage())


# ------------------------------------------------------------------------------------------------ IDENTITIES


def full_tenant() -> AwsTenant:
    aliases = {"pay": "payments", "srch": "Search"}
    return tenant(
        operator="Platform", owner={"tags": ["team"], "identities": ["Search", "mobile "], "aliases": aliases}
    )


def test_known_identities_are_sorted_and_once() -> None:
    assert known_identities(full_tenant()) == ["mobile", "payments", "search"]
    assert known_identities(tenant()) == []


def test_identities_are_those_of_the_configuration_and_of_tags() -> None:
    first, last = dt.datetime(2025, 9, 1), dt.datetime(2025, 9, 30)
    seen = pl.DataFrame(
        {"owner": ["search", "zebra", "platform"], "first_seen_at": [first] * 3, "last_seen_at": [last] * 3},
        schema=NO_OWNERS.schema,
    )
    found = identities(full_tenant(), seen)
    check_rows(found, IDENTITIES)
    assert found.select("id", "type", "first_seen_at", "last_seen_at").rows() == [
        ("UNALLOCATED", "system", None, None),
        ("mobile", "owner", None, None),
        ("payments", "owner", None, None),
        ("platform", "operator", first, last),
        ("search", "owner", first, last),
        ("zebra", "unknown_owner", first, last),
    ]
    assert set(found["tenant_id"]) == {"acme"}


def test_identities_do_not_depend_on_the_order_of_what_was_seen() -> None:
    day = dt.date(2025, 9, 1)
    seen = pl.DataFrame({"owner": ["c", "a", "b"], "first_seen_at": [day] * 3, "last_seen_at": [day] * 3})
    assert identities(tenant(), seen).equals(identities(tenant(), seen.reverse()))


def test_a_tenant_of_which_nothing_is_known_has_nobody() -> None:
    assert identities(tenant(), NO_OWNERS)["id"].to_list() == ["UNALLOCATED"]


@pytest.mark.parametrize("fields", [{"aliases": {"shared": "UNALLOCATED"}}, {"identities": ["a", " Unallocated"]}])
def test_nobody_has_no_identity_of_their_own(fields: dict[str, Any]) -> None:
    found = identities(tenant(owner={"tags": ["team"]} | fields), NO_OWNERS)
    assert found.filter(pl.col("id").str.to_lowercase() == "unallocated").select("id", "type").rows() == [
        ("UNALLOCATED", "system")
    ]


def test_an_operator_who_is_also_an_owner_is_the_operator() -> None:
    found = identities(
        tenant(operator="pay", owner={"tags": ["t"], "identities": ["payments"], "aliases": {"pay": "payments"}}),
        NO_OWNERS,
    )
    assert found.select("id", "type").rows() == [("UNALLOCATED", "system"), ("payments", "operator")]


# ------------------------------------------------------------------------------------------------ RESOURCES


def test_resources_are_one_row_each_with_their_days() -> None:
    lines = billing(
        {"resource_id": "i-2", "product_category": "B", "sub_account_id": "2", "charge_date": dt.date(2025, 9, 3)},
        {"resource_id": "i-1", "product_category": "A", "sub_account_id": "1"},
        {"resource_id": "", "product_category": "A"},
        {"resource_id": "i-2", "product_category": "A", "sub_account_id": "3", "charge_date": dt.date(2025, 9, 2)},
    )
    found = resources(lines.lazy())
    check_rows(found, RESOURCES)
    assert found.select("id", "type", "scope", "first_seen_at", "last_seen_at").rows() == [
        ("i-1", "A", "1", dt.datetime(2025, 9, 1), dt.datetime(2025, 9, 1)),
        ("i-2", "A", "2", dt.datetime(2025, 9, 2), dt.datetime(2025, 9, 3)),
    ]
    assert resources(lines.reverse().lazy()).equals(found)


def test_lines_without_resources_have_none() -> None:
    assert resources(billing({}).lazy()).height == 0
    assert resources(billing().select(billing({}).columns).lazy()).height == 0
