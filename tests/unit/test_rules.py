"""Rules of a tenant over the rulebook, and which rule each line gets."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import rules
from engine.config import AwsTenant, Rung
from engine.frames import BILLING, RULES, check_rows
from engine.rules import LABELS, SCOPES, Rules, match, metric, resolve
from tests.unit.cases import HOSTILE, PERIOD, billing, pool, tenant

EVEN = [{"basis": "even"}, {"basis": "unallocated"}]
COST = {scope: [{"basis": "cost", "scope": scope}, {"basis": "unallocated"}] for scope in SCOPES}


def rows_of(given: Rules, rule_id: str, *columns: str) -> list[tuple[Any, ...]]:
    return given.frame.filter(rule_id=rule_id).select(columns).rows()


def versions(given: AwsTenant) -> dict[str, str]:
    frame = resolve(given).frame.select("rule_id", "version").unique()
    assert frame["rule_id"].is_unique().all(), "one version per rule"
    return dict(frame.rows())


# ------------------------------------------------------------------------------------------------ resolve


def test_a_tenant_without_pools_has_what_every_tenant_has() -> None:
    frame = resolve(tenant()).frame
    check_rows(frame, RULES)
    assert frame.select("rule_id", "part", "rung", "share", "basis", "metric", "payer").rows() == [
        ("direct", 0, 0, 10**12, "direct", "", ""),
        ("direct", 0, 1, 10**12, "unallocated", "", "UNALLOCATED"),
        ("untagged", 0, 0, 10**12, "unallocated", "", "UNALLOCATED"),
        ("pool:tax", 0, 0, 10**12, "cost", "service_account", ""),
        ("pool:tax", 0, 1, 10**12, "cost", "account", ""),
        ("pool:tax", 0, 2, 10**12, "cost", "all", ""),
        ("pool:tax", 0, 3, 10**12, "unallocated", "", "UNALLOCATED"),
    ]


def test_the_rulebooks_pools_come_last() -> None:
    names = [pool_.rule_id for pool_ in resolve(tenant(pools=[pool("z"), pool("a")])).pools]
    assert names == ["pool:z", "pool:a", "pool:tax"]


def test_a_pool_of_the_rulebooks_name_takes_its_place_in_the_tenants_order() -> None:
    given = resolve(tenant(pools=[pool("tax", match={"line_item_type": "Tax"}), pool("z")]))
    assert [pool_.rule_id for pool_ in given.pools] == ["pool:tax", "pool:z"]
    assert rows_of(given, "pool:tax", "basis") == [("unallocated",)]


def test_a_ladder_of_the_rulebooks_name_serves_the_rulebooks_pool() -> None:
    assert rows_of(resolve(tenant(ladders={"tax_default": EVEN})), "pool:tax", "basis") == [("even",), ("unallocated",)]


def test_parts_keep_their_order_and_exact_shares() -> None:
    parts = [
        {"share": "0.10", "ladder": "own"},
        {"share": "0.000000000001", "ladder": EVEN},
        {"share": "0.899999999999", "ladder": EVEN},
    ]
    given = resolve(tenant(ladders={"own": EVEN}, pools=[{"name": "p", "match": {}, "parts": parts}]))
    assert given.frame.filter(rule_id="pool:p", rung=0).select("part", "share", "ladder").rows() == [
        (0, 10**11, "own"),
        (1, 1, "pool:p:1"),
        (2, 899_999_999_999, "pool:p:2"),
    ]
    assert given.pools[0].parts[0].share == Decimal("0.1")


@pytest.mark.parametrize(
    ("rung", "labels"),
    [
        ({"basis": "even"}, ("owners", "", "shared", "even_split", "p")),
        ({"basis": "cost", "scope": "account"}, ("account", "", "shared", "cost_ratio", "p")),
        ({"basis": "fixed", "percentages": {"a": "100"}}, ("", "", "shared", "fixed", "p")),
        ({"basis": "usage", "key": "gb"}, ("gb", "", "usage", "usage_ratio", "p")),
        ({"basis": "weighted", "keys": {"b": "1e0", "a": "0.50"}}, ("a 0.50, b 1", "", "shared", "weighted", "p")),
    ],
)
def test_a_rung_has_the_labels_of_its_basis(rung: dict[str, Any], labels: tuple[str, ...]) -> None:
    given = resolve(tenant(operator="Platform", pools=[pool(ladder=[rung, {"basis": "unallocated"}])]))
    columns = ("metric", "payer", "cost_type", "allocation_method", "allocation_detail")
    assert rows_of(given, "pool:p", *columns) == [labels, ("", "UNALLOCATED", "shared", "unallocated", "")]


@pytest.mark.parametrize(
    ("basis", "labels"),
    [
        ("operator", ("platform", "operator", "operator", "p")),
        ("resource", ("", "shared", "to_resource", "p")),
        ("unallocated", ("UNALLOCATED", "shared", "unallocated", "p")),
    ],
)
def test_a_last_rung_alone_says_its_pool(basis: str, labels: tuple[str, ...]) -> None:
    given = resolve(tenant(operator=" Platform ", pools=[pool(ladder=[{"basis": basis}])]))
    assert rows_of(given, "pool:p", "payer", "cost_type", "allocation_method", "allocation_detail") == [labels]


@pytest.mark.parametrize(("basis", "detail"), [("operator", "p"), ("resource", "p"), ("unallocated", "")])
def test_only_unallocated_after_other_rungs_leaves_its_reason_open(basis: str, detail: str) -> None:
    given = resolve(tenant(operator="o", pools=[pool(ladder=[{"basis": "even"}, {"basis": basis}])]))
    assert rows_of(given, "pool:p", "allocation_detail") == [("p",), (detail,)]


def test_the_operator_may_be_an_alias() -> None:
    given = tenant(
        operator="ops",
        owner={"tags": ["t"], "aliases": {"OPS": "Platform"}},
        pools=[pool(ladder=[{"basis": "operator"}])],
    )
    assert rows_of(resolve(given), "pool:p", "payer") == [("platform",)]


def test_every_basis_has_labels() -> None:
    assert set(LABELS) == {
        "direct",
        "even",
        "cost",
        "fixed",
        "usage",
        "weighted",
        "operator",
        "resource",
        "unallocated",
    }
    assert metric(Rung(basis="resource")) == ""


# ------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    "condition",
    [
        {"line_item_type": "Tax"},
        {"line_item_type": ["Tax", "Fee", "RIFee", "SavingsPlanRecurringFee", "SavingsPlanUpfrontFee"]},
        {"service": "AWSSupportBusiness"},
        {"service": ["AWSSupport*", "AWSSupport?x"]},
        {"service": "AWSSupportEnterprise", "line_item_type": "Usage"},
        {"line_item_type": "Fee", "account": "1"},
    ],
)
def test_what_is_charged_once_a_month_has_window_month(condition: dict[str, Any]) -> None:
    assert resolve(tenant(pools=[pool(match=condition)])).pools[0].window == "month"


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"line_item_type": ["Tax", "Usage"]},
        {"line_item_type": "*Fee"},
        {"line_item_type": "tax"},
        {"service": "AWSSuppor*"},
        {"service": ["AWSSupportBusiness", "AmazonEC2"]},
        {"usage_type": "Tax"},
        {"account": "Tax"},
        {"tag": {"line_item_type": "Tax"}},
    ],
)
def test_all_else_has_window_day(condition: dict[str, Any]) -> None:
    assert resolve(tenant(pools=[pool(match=condition)])).pools[0].window == "day"


@pytest.mark.parametrize("window", ["day", "month"])
def test_a_window_that_is_said_holds(window: str) -> None:
    given = resolve(tenant(pools=[pool(match={"line_item_type": "Tax"}, window=window), pool("q", window=window)]))
    assert [pool_.window for pool_ in given.pools[:2]] == [window, window]
    assert given.windows() == {window, "month"}


# ------------------------------------------------------------------------------------------------ versions

FULL: dict[str, Any] = {
    "operator": "platform",
    "keys": ["k.csv"],
    "ladders": {"own": [{"basis": "usage", "key": "gb"}, {"basis": "cost", "scope": "all"}, {"basis": "operator"}]},
}


def full(**changes: Any) -> dict[str, str]:
    fields = {"name": "p", "match": {"service": ["a", "b"], "tag": {"app": "x"}}, "window": "day", "ladder": "own"}
    tenants = {key: changes.pop(key) for key in list(changes) if key in FULL}
    return versions(tenant(**(FULL | tenants), pools=[fields | changes]))


def test_a_version_is_12_hex_digits_and_stable() -> None:
    found = full()
    assert all(len(version) == 12 and int(version, 16) >= 0 for version in found.values())
    assert found == full()


@pytest.mark.parametrize(
    "change",
    [
        {"match": {"service": ["a", "c"], "tag": {"app": "x"}}},
        {"match": {"service": ["a", "b"], "tag": {"app": "y"}}},
        {"match": {"service": ["a", "b"]}},
        {"match": {"usage_type": ["a", "b"], "tag": {"app": "x"}}},
        {"window": "month"},
        {"ladder": [{"basis": "usage", "key": "gb"}, {"basis": "operator"}]},
        {"ladder": None, "parts": [{"share": "0.5", "ladder": "own"}, {"share": "0.5", "ladder": "own"}]},
        {"operator": "others"},
        {"ladders": {"own": [{"basis": "usage", "key": "tb"}, COST["all"][0], {"basis": "operator"}]}},
        {"ladders": {"own": [{"basis": "usage", "key": "gb"}, COST["account"][0], {"basis": "operator"}]}},
        {"ladders": {"own": [COST["all"][0], {"basis": "usage", "key": "gb"}, {"basis": "operator"}]}},
        {"ladders": {"own": [{"basis": "usage", "key": "gb"}, COST["all"][0], {"basis": "unallocated"}]}},
        {"ladders": {"own": [{"basis": "fixed", "percentages": {"a": "40", "b": "60"}}, {"basis": "operator"}]}},
        {"ladders": {"own": [{"basis": "fixed", "percentages": {"a": "60", "b": "40"}}, {"basis": "operator"}]}},
        {"ladders": {"own": [{"basis": "weighted", "keys": {"a": "1", "b": "2"}}, {"basis": "operator"}]}},
    ],
)  # fmt: skip
def test_a_version_changes_with_what_makes_the_amounts(change: dict[str, Any]) -> None:
    assert full(**change)["pool:p"] != full()["pool:p"]


def test_a_version_does_not_change_with_what_makes_no_difference() -> None:
    same = {
        "percentages in another order": (
            [{"basis": "fixed", "percentages": {"a": "40", "b": "60"}}, {"basis": "operator"}],
            [{"basis": "fixed", "percentages": {"b": "60", "a": "40"}}, {"basis": "operator"}],
        ),
        "more zeros": (
            [{"basis": "fixed", "percentages": {"a": "40", "b": "60"}}, {"basis": "operator"}],
            [{"basis": "fixed", "percentages": {"a": "40.0", "b": "6e1"}}, {"basis": "operator"}],
        ),
        "names spelled otherwise": (
            [{"basis": "fixed", "percentages": {"a": "40", "b": "60"}}, {"basis": "operator"}],
            [{"basis": "fixed", "percentages": {" A": "40", "B": "60"}}, {"basis": "operator"}],
        ),
    }
    differ = [name for name, (one, other) in same.items() if full(ladders={"own": one}) != full(ladders={"own": other})]
    assert differ == []


def test_shares_with_more_zeros_are_the_same_version() -> None:
    def of(share: str) -> str:
        parts = [{"share": share, "ladder": "own"}, {"share": "0.5", "ladder": "own"}]
        return full(ladder=None, parts=parts)["pool:p"]

    assert of("0.5") == of("0.500")


def test_a_version_does_not_change_with_other_pools_or_the_ladders_name() -> None:
    given = full()
    own = FULL["ladders"]["own"]
    more = versions(
        tenant(
            **FULL,
            pools=[
                pool("first"),
                {"name": "p", "match": {"service": ["a", "b"], "tag": {"app": "x"}}, "window": "day", "ladder": own},
            ],
        )
    )
    assert {name: more[name] for name in given} == given


# ------------------------------------------------------------------------------------------------ match


def matched(lines: pl.DataFrame, given: AwsTenant) -> pl.DataFrame:
    """Lines with an owner column (else nobody's) matched by the tenant's rules."""
    owned = lines if "owner" in lines.columns else lines.with_columns(owner=pl.lit(""))
    return match(owned.lazy(), resolve(given)).collect()


def rule_ids(lines: pl.DataFrame, *pools: dict[str, Any]) -> list[str]:
    return matched(lines, tenant(pools=list(pools)))["rule_id"].to_list()


def test_rows_come_back_as_they_came() -> None:
    lines = billing(*({"product_category": service, "owner": owner} for service in "bab" for owner in ("", "x")))
    found = matched(
        lines, tenant(pools=[pool(match={"service": "a", "tag": {"q": "*"}}), pool("b", match={"service": "b"})])
    )
    assert_frame_equal(found.select(lines.columns), lines)
    assert found.columns == [*lines.columns, "rule_id", "window", "weight_scope"]


def test_no_lines_are_no_rows() -> None:
    found = matched(billing().select(BILLING.columns), tenant(pools=[pool()]))
    assert found.height == 0
    assert found.schema["rule_id"] == pl.String


def test_an_owner_goes_before_every_pool_and_the_first_pool_that_fits_wins() -> None:
    lines = billing(
        {"owner": "x", "region": "a"},
        {"owner": "", "region": "a"},
        {"owner": "", "region": "b"},
        {"owner": "", "region": "c"},
    )
    assert rule_ids(lines, pool("one", match={"region": "a"}), pool("two", match={"region": ["a", "b"]})) == [
        "direct", "pool:one", "pool:two", "untagged",
    ]  # fmt: skip


def test_a_pool_without_conditions_takes_the_rest_but_no_owned_line() -> None:
    lines = billing({"owner": "x"}, {"owner": ""}, {"owner": "", "line_item_type": "Tax"})
    assert rule_ids(lines, pool()) == ["direct", "pool:p", "pool:p"]


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("service", "product_category"),
        ("usage_type", "product_type"),
        ("line_item_type", "line_item_type"),
        ("account", "sub_account_id"),
        ("region", "region"),
    ],
)
def test_a_condition_looks_at_its_own_column(field: str, column: str) -> None:
    lines = billing(*({other: "x"} for other in rules.MATCH_COLUMNS.values()))
    expected = ["pool:p" if other == column else "untagged" for other in rules.MATCH_COLUMNS.values()]
    assert rule_ids(lines, pool(match={field: "x"})) == expected


def test_all_conditions_must_hold() -> None:
    lines = billing({"region": "a", "product_category": "s"}, {"region": "a"}, {"product_category": "s"})
    assert rule_ids(lines, pool(match={"region": "a", "service": "s"})) == ["pool:p", "untagged", "untagged"]


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("a", ["a"], ["A", "ab", "", "a ", " a", "a\n"]),
        ("a*", ["a", "ab", "a\nb", "a\n", "a" * 1000], ["ba", "A", "", "\na"]),
        ("*a", ["a", "\n\na"], ["ab", "a\n"]),
        ("*", ["", "x", "\n", "\x00"], []),
        ("?", ["x", "\n", "\u00e9", "\U0001d518", "*"], ["", "xy", "e\u0301"]),
        ("a?c", ["abc", "a\nc", "a?c"], ["ac", "abbc"]),
        ("*.*", ["a.b", "."], ["ab", ""]),
        ("a.c*", ["a.c"], ["abc"]),
        ("[ab]*", ["[ab]", "[ab]c"], ["a", "b"]),
        ("(a|b)*", ["(a|b)"], ["a"]),
        ("^a$*", ["^a$"], ["a"]),
        ("a\\*", ["a\\", "a\\b"], ["a*", "a"]),
        ("a\\d", ["a\\d"], ["a1"]),
        ("a+b*", ["a+b"], ["aab"]),
        ("a{2}*", ["a{2}"], ["aa"]),
        ("#x *", ["#x y"], ["#x"]),
        ("caf\u00e9*", ["caf\u00e9s"], ["cafe\u0301s", "cafes"]),
        ("*NatGateway*", ["EU-NatGateway-Bytes", "NatGateway"], ["natgateway", "Nat Gateway"]),
        ("(?i)a*", ["(?i)ab"], ["AB", "ab"]),
        ("~&-*", ["~&-x"], ["~&x"]),
    ],
)  # fmt: skip
def test_a_pattern_fits_whole_texts_and_nothing_in_it_is_special(
    pattern: str, fitting: list[str], other: list[str]
) -> None:
    for field in ("usage_type", "tag"):
        texts = [text for text in [*fitting, *other] if field != "tag" or text]
        lines = billing(*({"product_type": text, "tags": {"k": text} if text else {}} for text in texts))
        found = rule_ids(lines, pool(match={"tag": {"k": pattern}} if field == "tag" else {field: pattern}))
        assert found == ["pool:p" if text in fitting else "untagged" for text in texts]


def test_one_pattern_of_several_is_enough() -> None:
    lines = billing(*({"region": text} for text in ["a", "b1", "c", "bb", "xay"]))
    assert rule_ids(lines, pool(match={"region": ["a", "b?", "*y"]})) == [
        "pool:p",
        "pool:p",
        "untagged",
        "pool:p",
        "pool:p",
    ]


def test_every_hostile_text_can_be_matched_as_itself() -> None:
    texts = [text for text in HOSTILE if text]
    lines = billing(*({"region": text} for text in texts))
    pools = [pool(f"p{number}", match={"region": text}) for number, text in enumerate(texts)]
    assert rule_ids(lines, *pools) == [f"pool:p{number}" for number in range(len(texts))]


def test_tags_match_under_every_spelling_of_their_key() -> None:
    lines = billing({"tags": {"cost_center": "x"}}, {"tags": {"cost_center": "y"}}, {"tags": {"other": "x"}}, {})
    for key in ("CostCenter", "cost-center", "cost_center"):
        assert rule_ids(lines, pool(match={"tag": {key: "x"}})) == ["pool:p", "untagged", "untagged", "untagged"]


def test_tags_must_all_fit_and_an_absent_tag_fits_nothing() -> None:
    lines = billing({"tags": {"a": "1", "b": "2"}}, {"tags": {"a": "1"}}, {})
    assert rule_ids(lines, pool(match={"tag": {"a": "*", "b": ["2", "3"]}})) == ["pool:p", "untagged", "untagged"]
    assert rule_ids(lines, pool(match={"tag": {"b": "*"}})) == ["pool:p", "untagged", "untagged"]


def test_hundreds_of_pools_are_tried_in_order() -> None:
    pools = [pool(f"p{number}", match={"region": f"r{number}"}) for number in range(400)]
    lines = billing(*({"region": f"r{number}"} for number in (0, 1, 399, 400)))
    assert rule_ids(lines, *pools, pool("all")) == ["pool:p0", "pool:p1", "pool:p399", "pool:all"]


def test_the_window_is_the_day_or_the_period_and_an_owner_needs_none() -> None:
    late = {"charge_date": dt.date(2025, 8, 31), "owner": ""}
    lines = billing(late, late | {"region": "m"}, late | {"owner": "x"})
    found = matched(lines, tenant(pools=[pool("m", match={"region": "m"}, window="month"), pool("d")]))
    assert found["window"].to_list() == ["2025-08-31", PERIOD, ""]


# ------------------------------------------------------------------------------------------------ weight scopes


def test_a_scope_is_the_owner_or_the_window() -> None:
    lines = billing({"owner": "pay"}, {"owner": ""}, {"owner": "", "region": "m"})
    found = matched(lines, tenant(pools=[pool("m", match={"region": "m"}, window="month"), pool("d", EVEN)]))
    assert found["weight_scope"].to_list() == ["pay", "2025-09-01", PERIOD]


@pytest.mark.parametrize(("scope", "columns"), list(SCOPES.items()))
def test_lines_share_a_scope_if_and_only_if_they_agree_in_its_columns(scope: str, columns: tuple[str, ...]) -> None:
    decisive = [*columns, "currency"]
    named = {"sub_account_id", "product_category", "currency"}
    lines = billing(*({**dict.fromkeys(named, "x"), name: text} for name in sorted(named) for text in HOSTILE))
    found = matched(lines, tenant(pools=[pool(ladder=COST[scope])]))
    keys = [str(row) for row in found.select(decisive).rows()]
    assert found["weight_scope"].n_unique() == len(set(keys))
    assert found.with_columns(key=pl.Series(keys)).select("weight_scope", "key").unique().height == len(set(keys))


def test_texts_that_imitate_a_scope_do_not_reach_it() -> None:
    """Account, service and currency stand beside each other in one text; no value of one may spill into the next."""
    pairs = [(one, other) for one in HOSTILE for other in HOSTILE]
    lines = billing(*({"sub_account_id": one, "product_category": other} for one, other in pairs))
    found = matched(lines, tenant(pools=[pool(ladder=COST["service_account"])]))
    assert found["weight_scope"].n_unique() == len(set(pairs))


def test_the_finest_cost_scope_of_a_pool_counts() -> None:
    parts = [{"share": "0.5", "ladder": COST["all"]}, {"share": "0.5", "ladder": COST["account"]}]
    lines = billing({"sub_account_id": "1"}, {"sub_account_id": "2"}, {"sub_account_id": "1", "product_category": "s"})
    found = matched(lines, tenant(pools=[{"name": "p", "match": {}, "parts": parts}]))
    assert found["weight_scope"].to_list() == [
        '2025-09-01 {"sub_account_id":"1","currency":"USD"}',
        '2025-09-01 {"sub_account_id":"2","currency":"USD"}',
        '2025-09-01 {"sub_account_id":"1","currency":"USD"}',
    ]


def test_pools_of_other_windows_and_scopes_never_share_a_group() -> None:
    pools = [
        pool(f"{window}-{name}", ladder, match={"region": f"{window}-{name}"}, window=window)
        for window in ("day", "month")
        for name, ladder in [("even", "own"), *((scope, COST[scope]) for scope in SCOPES)]
    ]
    lines = billing(*({"region": given["name"]} for given in pools))
    found = matched(lines, tenant(ladders={"own": EVEN}, pools=pools))
    assert found["rule_id"].to_list() == [f"pool:{given['name']}" for given in pools]
    assert found["weight_scope"].n_unique() == len(pools)
