"""Who was there on a day and who may be charged, by hand; the spec tables have the products themselves."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine.errors import ContractError
from engine.frames import IDENTITIES, RESOURCES, USAGE
from engine.identities import OWNER_TYPES, SENTINELS, Candidates, alive, alive_on, alive_seconds, candidates
from engine.money import UNITS
from tests.unit.cases import HOSTILE, rows

DAY = dt.date(2025, 9, 1)
START = dt.datetime(2025, 9, 1)
SECOND = dt.timedelta(seconds=1)
TICK = dt.timedelta(microseconds=1)


def entity(name: str = "x", **fields: Any) -> dict[str, Any]:
    return {"id": name, "valid_from": None, "valid_to": None, **fields}


def resources(*given: dict[str, Any]) -> pl.DataFrame:
    return rows(RESOURCES, *(entity() | row for row in given))


def identities(*given: dict[str, Any]) -> pl.DataFrame:
    return rows(IDENTITIES, *(entity() | row for row in given))


def usage(*given: tuple[str, str, str, str]) -> pl.DataFrame:
    """USAGE of the day from resource, metric, principal, value."""
    return rows(
        USAGE,
        *(
            {"window": str(DAY), "resource_id": resource, "metric": metric, "principal": name, "value": value}
            for resource, metric, name, value in given
        ),
    )


def key(name: str, owner: str, scope: str = "lkc-1") -> dict[str, Any]:
    return {"id": name, "type": "api_key", "owner": owner, "scope": scope}


def found(
    *,
    asked: tuple[str, ...] = ("lkc-1",),
    there: pl.DataFrame | None = None,
    known: pl.DataFrame | None = None,
    values: pl.DataFrame | None = None,
    operator: str = "",
) -> Candidates:
    """Without windows: what is asked is one day."""
    seen = candidates(
        pl.DataFrame({"resource_id": asked}, schema={"resource_id": pl.String}).with_columns(window=pl.lit(str(DAY))),
        alive_on(resources() if there is None else there, [DAY]),
        alive_on(identities() if known is None else known, [DAY]),
        usage() if values is None else values,
        operator,
    )
    assert all(frame["window"].is_in([str(DAY)]).all() for frame in seen)
    return Candidates(*(frame.drop("window") for frame in seen))


# ------------------------------------------------------------------------------------------------ alive


@pytest.mark.parametrize(
    ("fields", "is_there"),
    [
        ({}, True),
        ({"created_at": START + dt.timedelta(days=1) - TICK}, True),
        ({"created_at": START + dt.timedelta(days=1)}, False),
        ({"deleted_at": START}, True),
        ({"deleted_at": START - TICK}, False),
        ({"created_at": START - SECOND, "deleted_at": START + SECOND}, True),
        ({"valid_from": DAY}, True),
        ({"valid_from": DAY + dt.timedelta(days=1)}, False),
        ({"valid_to": DAY}, False),
        ({"valid_to": DAY + dt.timedelta(days=1)}, True),
        ({"first_seen_at": START + dt.timedelta(days=9), "last_seen_at": START - dt.timedelta(days=9)}, True),
    ],
)
@pytest.mark.parametrize("make", [resources, identities])
def test_a_day_has_what_was_there_in_it(make: Any, fields: dict[str, Any], is_there: bool) -> None:
    assert (alive(make(entity(**fields)), DAY).height == 1) is is_there


def test_a_day_has_one_interval_of_each() -> None:
    given = identities(
        entity("b", valid_to=DAY, owner="before"),
        entity("b", valid_from=DAY, owner="after"),
        entity("a", owner="always"),
        entity("c", owner="open"),
        entity("c", valid_from=DAY - dt.timedelta(days=1), owner="later one"),
    )
    expected = [("a", "always"), ("b", "after"), ("c", "later one")]
    assert alive(given, DAY).select("id", "owner").rows() == expected
    assert alive(given.reverse(), DAY).select("id", "owner").rows() == expected
    assert alive(given, DAY - dt.timedelta(days=1)).filter(id="b")["owner"].to_list() == ["before"]


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 86_400),
        ({"created_at": START - SECOND}, 86_400),
        ({"created_at": START}, 86_400),
        ({"created_at": START + SECOND}, 86_399),
        ({"created_at": START + TICK}, 86_400),
        ({"created_at": START + dt.timedelta(hours=12)}, 43_200),
        ({"deleted_at": START}, 0),
        ({"deleted_at": START + SECOND - TICK}, 0),
        ({"deleted_at": START + SECOND}, 1),
        ({"deleted_at": START + dt.timedelta(days=1)}, 86_400),
        ({"deleted_at": START + dt.timedelta(days=7)}, 86_400),
        ({"created_at": START + SECOND, "deleted_at": START + 3 * SECOND}, 2),
        ({"created_at": START + 3 * SECOND, "deleted_at": START + SECOND}, 0),
    ],
)
def test_seconds_of_the_day_count_from_creation_to_deletion(fields: dict[str, Any], seconds: int) -> None:
    assert alive_seconds(resources(entity(**fields)).with_columns(window=pl.lit(str(DAY)))).rows() == [
        (str(DAY), "x", seconds)
    ]


# ------------------------------------------------------------------------------------------------ usage


def test_keys_of_one_owner_are_one_candidate() -> None:
    known = identities(entity("sa-1", type="service_account"), key("K1", "sa-1"), key("K2", "sa-1"))
    values = usage(
        ("lkc-1", "bytes_in", "K1", "1"),
        ("lkc-1", "bytes_in", "K2", "2.5"),
        ("lkc-1", "bytes_in", "sa-1", "3"),
        ("lkc-1", "bytes_in", "sa-1", "4"),
        ("lkc-1", "bytes_out", "K1", "5"),
    )
    assert found(known=known, values=values).resource_usage.rows() == [
        ("lkc-1", "bytes_in", "sa-1", 21 * UNITS // 2),
        ("lkc-1", "bytes_out", "sa-1", 5 * UNITS),
    ]


def test_values_below_zero_count_for_nothing_and_their_names_are_seen() -> None:
    values = usage(("lkc-1", "bytes_in", "a", "-7"), ("lkc-1", "bytes_in", "b", "0"), ("lkc-1", "bytes_in", "b", "2"))
    assert found(values=values).resource_usage.rows() == [
        ("lkc-1", "bytes_in", "a", 0),
        ("lkc-1", "bytes_in", "b", 2 * UNITS),
    ]


def test_only_resources_that_were_asked_for_are_looked_at() -> None:
    values = usage(("lkc-1", "bytes_in", "a", "1"), ("lkc-2", "bytes_in", "b", "1"), ("", "bytes_in", "c", "1"))
    assert found(asked=("lkc-2", ""), values=values).resource_usage["identity_id"].to_list() == ["b"]


@pytest.mark.parametrize(
    "kind", ["service_account", "user", "identity_pool", "principal", "identity_provider", "system"]
)
def test_only_owners_weigh(kind: str) -> None:
    seen = found(known=identities(entity("who", type=kind)), values=usage(("lkc-1", "bytes_in", "who", "1")))
    assert (seen.resource_usage.height == 1) is (kind in OWNER_TYPES)
    assert ("period_owners", "who") in seen.tenant_owners.rows() or kind not in OWNER_TYPES
    assert (("period_accounts", "who") in seen.tenant_owners.rows()) is (kind in OWNER_TYPES and kind != "principal")


def test_names_that_the_inventory_does_not_know_stay_as_they_are() -> None:
    names = [name for name in HOSTILE if name]
    values = usage(*(("lkc-1", "bytes_in", name, "1") for name in HOSTILE))
    assert sorted(found(values=values).resource_usage["identity_id"]) == sorted(names)


def test_a_sentinel_weighs_whatever_the_inventory_calls_it() -> None:
    known = identities(*(entity(name, type="system") for name in [*SENTINELS, "UNALLOCATED"]))
    values = usage(*(("lkc-1", "bytes_in", name, "1") for name in [*SENTINELS, "UNALLOCATED"]))
    assert set(found(known=known, values=values).resource_usage["identity_id"]) == SENTINELS


def test_the_operator_is_nowhere() -> None:
    known = identities(entity("ops", type="user"), key("K1", "ops"), key("K2", "u-1"))
    values = usage(
        ("lkc-1", "bytes_in", "ops", "1"), ("lkc-1", "bytes_in", "K1", "1"), ("lkc-1", "bytes_in", "K2", "1")
    )
    seen = found(known=known, values=values, operator="ops")
    assert set(seen.resource_usage["identity_id"]) == {"u-1"}
    assert set(seen.resource_owners["identity_id"]) == {"u-1"}
    assert seen.tenant_owners.height == 0


def test_a_sum_that_might_not_be_exact_is_refused() -> None:
    largest = "99999999999999999999999999.999999999999"
    with pytest.raises(ContractError, match="usage"):
        found(values=usage(("lkc-1", "bytes_in", "a", largest), ("lkc-1", "bytes_in", "a", largest)))


# ------------------------------------------------------------------------------------------------ owners


def owners(**given: Any) -> list[tuple[str, str]]:
    return found(**given).resource_owners.rows()


def test_a_key_makes_its_owner_active_on_what_it_is_for() -> None:
    known = identities(
        key("K1", "sa-1"), key("K2", "sa-1"), key("K3", "u-1", "lsrc-1"), key("K4", "x", ""), key("K5", "")
    )
    assert owners(asked=("lkc-1", "lsrc-1", "lkc-2", ""), known=known) == [("lkc-1", "sa-1"), ("lsrc-1", "u-1")]


def test_a_resource_with_one_owner_has_no_other() -> None:
    known = identities(key("K1", "sa-1", "lksqlc-1"), key("K2", "sa-1", "lcc-1"), key("K3", "sa-1", "lcc-2"))
    there = resources(
        entity("lksqlc-1", type="ksqldb", owner="u-1"), entity("lcc-1", type="connector", owner="api_key:K404")
    )
    assert owners(asked=("lksqlc-1", "lcc-1", "lcc-2"), there=there, known=known) == [
        ("lcc-1", "connector_api_key_not_found"),
        ("lcc-2", "connector_credentials_unknown"),
        ("lksqlc-1", "u-1"),
    ]


def test_a_connectors_key_may_be_any_text() -> None:
    there = resources(
        *(entity(f"lcc-{n}", type="connector", owner=f"api_key:{text}") for n, text in enumerate(HOSTILE))
    )
    asked = tuple(f"lcc-{number}" for number in range(len(HOSTILE)))
    seen = owners(asked=asked, there=there)
    assert {owner for _, owner in seen} == {"connector_api_key_not_found"}
    assert len(seen) == len(HOSTILE)


def test_a_key_that_is_no_key_names_nobody() -> None:
    there = resources(entity("lcc-1", type="connector", owner="api_key:sa-1"))
    known = identities(entity("sa-1", type="service_account", owner="somebody"))
    assert owners(asked=("lcc-1",), there=there, known=known) == [("lcc-1", "connector_api_key_not_found")]


def test_the_order_of_rows_has_no_effect() -> None:
    known = identities(*(key(f"K{n}", f"sa-{n % 7}", f"lkc-{n % 3}") for n in range(40)))
    values = usage(*((f"lkc-{n % 3}", "bytes_in", f"K{n % 11}", str(n)) for n in range(60)))
    one = found(asked=("lkc-0", "lkc-1", "lkc-2"), known=known, values=values)
    other = found(asked=("lkc-2", "lkc-1", "lkc-0"), known=known.reverse(), values=values.reverse())
    for left, right in zip(one, other, strict=True):
        assert_frame_equal(left, right)
