"""What every basis weighs, by hand."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest

from engine import names
from engine.config import AwsTenant
from engine.errors import ContractError
from engine.frames import USAGE, WEIGHTS, check_rows
from engine.identities import key_principals, with_owner
from engine.money import UNITS, UNITS_MAX, WEIGHT_TOTAL_LIMIT
from engine.rules import match, resolve
from engine.weights import (
    POINTS,
    Known,
    classes,
    direct_cost,
    direct_cost_in_windows,
    groups,
    quantised,
    usage_in_windows,
    weigh,
)
from tests.unit.cases import PERIOD, billing, pool, rows, tenant

SECOND = {"charge_date": dt.date(2025, 9, 2)}
DAYS = ["2025-09-01", "2025-09-02"]
LIMIT = WEIGHT_TOTAL_LIMIT


def usage(*values: tuple[str, str, str, str]) -> pl.DataFrame:
    """USAGE from window, key, identity, value."""
    return rows(
        USAGE,
        *({"tenant_id": "acme", "window": window, "metric": key, "principal": identity, "value": value}
          for window, key, identity, value in values),
    )  # fmt: skip


class Found:
    """The weights of some lines, by weight group and rung."""

    def __init__(self, given: AwsTenant, lines: pl.DataFrame, samples: pl.DataFrame | None = None) -> None:
        rules = resolve(given)
        matched = match(with_owner(lines.lazy(), given.owner), rules).collect()
        cost = direct_cost_in_windows(direct_cost(matched.lazy(), names.operator(given)))
        values = usage_in_windows(
            key_principals(usage() if samples is None else samples, given, where="keys"), PERIOD, DAYS
        )
        self.wanted = groups(classes(matched), rules)
        found = weigh(self.wanted, rules, Known(cost, values))
        self.frame = check_rows(found.weights, WEIGHTS)
        self.empty_keys = found.empty_keys.rows()

    def of(self, group: str, rung: int = 0) -> dict[str, int]:
        return dict(self.frame.filter(weight_group=group, rung=rung).select("identity_id", "weight").rows())


def owned(team: str, amount: str = "1", **fields: Any) -> dict[str, Any]:
    return {"tags": {"team": team}, "amount": amount, **fields}


def with_rung(rung: dict[str, Any], **fields: Any) -> AwsTenant:
    """A tenant whose shared lines (of region `shared`) weigh by this rung, by day unless a window is given."""
    window = {"window": fields.pop("window")} if "window" in fields else {}
    rungs = [rung, {"basis": "unallocated"}]
    return tenant(pools=[pool(ladder=rungs, match={"region": "shared"}, **window)], **fields)


SHARED = {"region": "shared"}
DAY_GROUP, MONTH_GROUP = "pool:p@2025-09-01", "pool:p@2025-09"

# ------------------------------------------------------------------------------------------------ bases


def test_direct_is_one_group_per_owner_over_all_days() -> None:
    found = Found(tenant(), billing(owned("a"), owned("a", **SECOND), owned("B")))
    directs = found.frame.filter(pl.col("weight_group").str.contains("direct@"))
    assert directs.select("identity_id", "rung", "weight").rows() == [("a", 0, 1), ("b", 0, 1)]


def test_untagged_lines_weigh_nothing() -> None:
    assert Found(tenant(), billing({})).frame.height == 0


def test_even_weighs_everybody_with_a_direct_line_of_the_window_alike() -> None:
    lines = billing(
        SHARED, owned("a", "5"), owned("b", "-7"), owned("c", "0"), owned("d", currency="EUR"), owned("e", **SECOND),
        owned("a"), owned("platform"),
    )  # fmt: skip
    even = {"basis": "even"}
    assert Found(with_rung(even, operator="platform"), lines).of(DAY_GROUP) == dict.fromkeys("abcd", 1)
    assert Found(with_rung(even, operator="platform", window="month"), lines).of(MONTH_GROUP) == dict.fromkeys(
        "abcde", 1
    )
    assert Found(with_rung(even), lines).of(DAY_GROUP) == dict.fromkeys([*"abcd", "platform"], 1)


def test_the_operator_never_weighs_under_any_of_its_names() -> None:
    lines = billing(SHARED, owned("a"), owned("Ops "), owned("platform"))
    owner = {"tags": ["team"], "aliases": {"ops": "Platform"}}
    for operator in ("Platform", "ops"):
        for rung in ({"basis": "even"}, {"basis": "cost", "scope": "all"}):
            group = DAY_GROUP if rung["basis"] == "even" else f'{DAY_GROUP} {{"currency":"USD"}}'
            assert Found(with_rung(rung, operator=operator, owner=owner), lines).of(group) == {"a": 1}


@pytest.mark.parametrize(
    ("scope", "group", "weights"),
    [
        ("service_account", '{"sub_account_id":"1","product_category":"S","currency":"USD"}', {"a": 3, "b": 0}),
        ("account", '{"sub_account_id":"1","currency":"USD"}', {"a": 3, "b": 0, "c": 11}),
        ("all", '{"currency":"USD"}', {"a": 20, "b": 0, "c": 11}),
    ],
)
def test_cost_weighs_by_net_direct_cost_of_the_scope_and_currency(
    scope: str, group: str, weights: dict[str, int]
) -> None:
    here = {"sub_account_id": "1", "product_category": "S"}
    lines = billing(
        SHARED | here,
        owned("a", "5", **here), owned("a", "-2", **here),
        owned("b", "4", **here), owned("b", "-4.5", **here),
        owned("c", "11", **here | {"product_category": "T"}),
        owned("a", "17", **here | {"sub_account_id": "2"}),
        owned("a", "1000", **here, currency="EUR"),
        owned("d", "1000", **here, currency="EUR"),
        owned("a", "1000", **here | SECOND),
    )  # fmt: skip
    rung = {"basis": "cost", "scope": scope}
    # -0.5 nets to nothing, and what weighs nothing does not make the others' weights fractions.
    assert Found(with_rung(rung), lines).of(f"{DAY_GROUP} {group}") == weights


def test_cost_of_a_month_nets_over_its_days() -> None:
    lines = billing(SHARED, owned("a", "5"), owned("a", "-5", **SECOND), owned("b", "1", **SECOND))
    found = Found(with_rung({"basis": "cost", "scope": "all"}, window="month"), lines)
    assert found.of(f'{MONTH_GROUP} {{"currency":"USD"}}') == {"a": 0, "b": 1}


def test_fixed_weighs_by_percentages_under_the_identities_names() -> None:
    percentages = {" Payments": "33.5", "srch": "66.5", "zero": "0"}
    owner = {"tags": ["team"], "aliases": {"srch": "Search"}}
    found = Found(with_rung({"basis": "fixed", "percentages": percentages}, owner=owner), billing(SHARED))
    assert found.of(DAY_GROUP) == {"payments": 335 * 10**11, "search": 665 * 10**11, "zero": 0}


def test_whole_percentages_are_whole_weights() -> None:
    found = Found(with_rung({"basis": "fixed", "percentages": {"a": "6e1", "b": "40.000"}}), billing(SHARED))
    assert found.of(DAY_GROUP) == {"a": 60, "b": 40}


def test_usage_weighs_by_the_keys_values_of_the_day() -> None:
    samples = usage(
        ("2025-09-01", "gb", "a", "2"), ("2025-09-01", "gb", "A ", "3"), ("2025-09-01", "gb", "b", "0"),
        ("2025-09-01", "other", "c", "9"), ("2025-09-02", "gb", "d", "9"), ("2025-10-01", "gb", "e", "9"),
    )  # fmt: skip
    given = with_rung({"basis": "usage", "key": "gb"}, keys=["k.csv"])
    assert Found(given, billing(SHARED), samples).of(DAY_GROUP) == {"a": 5, "b": 0}


def test_usage_of_a_month_sums_its_days_and_no_others() -> None:
    samples = usage(
        ("2025-09-01", "gb", "a", "2"), ("2025-09-30", "gb", "a", "0.5"), ("2025-09-15", "gb", "b", "1"),
        ("2025-10-01", "gb", "a", "9"), ("2025-08-31", "gb", "c", "9"),
    )  # fmt: skip
    given = with_rung({"basis": "usage", "key": "gb"}, keys=["k.csv"], window="month")
    assert Found(given, billing(SHARED), samples).of(MONTH_GROUP) == {"a": 25 * 10**11, "b": UNITS}


@pytest.mark.parametrize(("window", "group"), [("day", DAY_GROUP), ("month", MONTH_GROUP)])
def test_usage_by_period_weighs_alike_on_each_day_and_in_the_month(window: str, group: str) -> None:
    samples = usage(("2025-09", "gb", "a", "2"), ("2025-10", "gb", "a", "9"), ("2025-09", "gb", "a", "1"))
    given = with_rung({"basis": "usage", "key": "gb"}, keys=["k.csv"], window=window)
    assert Found(given, billing(SHARED), samples).of(group) == {"a": 3}


def test_a_day_outside_the_month_takes_values_of_that_day_by_day_and_of_its_bill_by_period() -> None:
    """A line of 31 August in September's bill."""
    samples = usage(("2025-08-31", "gb", "a", "2"), ("2025-08", "fee", "b", "9"), ("2025-09", "fee", "c", "1"))
    late = usage_in_windows(samples, PERIOD, ["2025-08-31"]).select("window", "metric", "identity_id", "units").rows()
    assert late == [
        ("2025-08-31", "fee", "c", UNITS),
        ("2025-08-31", "gb", "a", 2 * UNITS),
        ("2025-09", "fee", "c", UNITS),
    ]


def test_a_month_whose_name_starts_like_another_is_another() -> None:
    samples = usage(("2025-1", "gb", "a", "1"), ("2025-10", "gb", "a", "1"), ("2025-10-01", "q", "a", "1"))
    found = usage_in_windows(samples, "2025-1", [])
    assert found["units"].sum() == UNITS


def test_key_tables_that_could_not_sum_exactly_are_refused() -> None:
    samples = usage(*[("2025-09-01", "gb", "a", "60000000000000000000000000")] * 2)
    with pytest.raises(ContractError, match=r"\Akey tables: 2 amounts of up to '6"):
        usage_in_windows(samples, PERIOD, DAYS)


def test_direct_cost_that_could_not_sum_exactly_is_refused() -> None:
    lines = billing(*[owned("a", "60000000000000000000000000")] * 2)
    with pytest.raises(ContractError, match=r"\Adirect cost: 2 amounts"):
        Found(tenant(), lines)


def test_one_amount_of_the_largest_kind_still_sums() -> None:
    lines = billing(owned("a", "99999999999999999999999999.999999999999"), SHARED)
    weights = Found(with_rung({"basis": "cost", "scope": "all"}), lines).of(f'{DAY_GROUP} {{"currency":"USD"}}')
    assert weights == {"a": UNITS_MAX >> 65}
    assert 2**61 <= weights["a"] < LIMIT


# ------------------------------------------------------------------------------------------------ weighted

BOTH = {"basis": "weighted", "keys": {"hours": "0.5", "gb": "0.5"}}


def weighted(rung: dict[str, Any], *samples: tuple[str, str, str]) -> Found:
    values = usage(*(("2025-09-01", *sample) for sample in samples))
    return Found(with_rung(rung, keys=["k.csv"]), billing(SHARED), values)


def test_weighted_keys_deal_2_to_the_60_points() -> None:
    found = weighted(BOTH, ("hours", "a", "1"), ("hours", "b", "3"), ("gb", "b", "0.25"), ("gb", "c", "0.75"))
    assert found.of(DAY_GROUP) == {"a": POINTS // 8, "b": POINTS // 2, "c": POINTS * 3 // 8}
    assert found.empty_keys == []


@pytest.mark.parametrize(
    "samples",
    [
        [
            ("hours", "a", "1"),
            ("hours", "b", "1"),
            ("hours", "c", "1"),
            ("gb", "a", "7"),
            ("gb", "q", "0.000000000001"),
        ],
        [("hours", name, "0.1") for name in "abcdefg"],
        [("hours", "a", "99999999999999999999999"), ("hours", "b", "0.000000000001"), ("gb", "b", "1")],
    ],
)
def test_points_total_exactly_whatever_is_dealt(samples: list[tuple[str, str, str]]) -> None:
    for ratios in (
        {"hours": "0.5", "gb": "0.5"},
        {"hours": "1", "gb": "2"},
        {"hours": "999999", "gb": "0.000000000001"},
    ):
        found = weighted({"basis": "weighted", "keys": ratios}, *samples)
        assert sum(found.of(DAY_GROUP).values()) == POINTS


def test_thirds_of_points_telescope_over_the_keys_by_name() -> None:
    found = weighted(
        {"basis": "weighted", "keys": {"z": "1", "m": "1", "a": "1"}}, ("z", "z", "1"), ("m", "m", "1"), ("a", "a", "1")
    )
    third = POINTS // 3
    assert found.of(DAY_GROUP) == {"a": third, "m": third, "z": POINTS - 2 * third}


def test_an_empty_keys_weight_goes_to_the_others_and_is_recorded() -> None:
    found = weighted(BOTH, ("hours", "a", "1"), ("hours", "b", "1"))
    assert found.of(DAY_GROUP) == {"a": POINTS // 2, "b": POINTS // 2}
    assert found.empty_keys == [(DAY_GROUP, 0, "gb", "empty_key")]


def test_a_key_of_zeros_gives_its_weight_away_and_keeps_its_candidates() -> None:
    found = weighted(BOTH, ("hours", "a", "1"), ("gb", "b", "0"))
    assert found.of(DAY_GROUP) == {"a": POINTS, "b": 0}
    assert found.empty_keys == [(DAY_GROUP, 0, "gb", "zero_key_total")]


def test_no_key_at_all_is_no_candidate() -> None:
    found = weighted(BOTH)
    assert found.of(DAY_GROUP) == {}
    assert sorted(found.empty_keys) == [(DAY_GROUP, 0, "gb", "empty_key"), (DAY_GROUP, 0, "hours", "empty_key")]


def test_keys_of_zeros_are_candidates_without_weight() -> None:
    found = weighted(BOTH, ("hours", "a", "0"), ("gb", "b", "0"))
    assert found.of(DAY_GROUP) == {"a": 0, "b": 0}
    assert {reason for *_, reason in found.empty_keys} == {"zero_key_total"}


def test_one_key_of_a_weighted_rung_weighs_like_usage() -> None:
    found = weighted({"basis": "weighted", "keys": {"gb": "0.3"}}, ("gb", "a", "1"), ("gb", "b", "3"))
    assert found.of(DAY_GROUP) == {"a": POINTS // 4, "b": POINTS * 3 // 4}


def test_ratios_weigh_in_full_precision() -> None:
    ratios = {"a": "0.000000000001", "b": "0.999999999999"}
    found = weighted({"basis": "weighted", "keys": ratios}, ("a", "x", "1"), ("b", "y", "1")).of(DAY_GROUP)
    assert found["x"] == POINTS // 10**12
    assert found["x"] + found["y"] == POINTS


def test_rungs_and_groups_do_not_mix() -> None:
    ladder = [BOTH, {"basis": "usage", "key": "gb"}, {"basis": "even"}, {"basis": "unallocated"}]
    given = tenant(pools=[pool(ladder=ladder, match={"region": "shared"})], keys=["k.csv"])
    samples = usage(("2025-09-01", "gb", "a", "1"), ("2025-09-02", "gb", "b", "5"), ("2025-09-02", "hours", "c", "1"))
    found = Found(given, billing(SHARED, SHARED | SECOND, owned("z")), samples)
    other = "pool:p@2025-09-02"
    assert [found.of(DAY_GROUP, rung) for rung in range(4)] == [{"a": POINTS}, {"a": 1}, {"z": 1}, {}]
    assert [found.of(other, rung) for rung in range(4)] == [{"b": POINTS // 2, "c": POINTS // 2}, {"b": 5}, {}, {}]
    assert found.empty_keys == [(DAY_GROUP, 0, "hours", "empty_key")]


def test_pools_share_the_groups_of_a_ladder_they_have_in_common() -> None:
    own = {"own": [{"basis": "even"}, {"basis": "unallocated"}]}
    pools = [pool("p", "own", match={"region": "shared"}), pool("q", "own")]
    found = Found(tenant(ladders=own, pools=pools), billing(SHARED, {}, owned("a")))
    assert found.of("own@2025-09-01") == {"a": 1}
    assert found.wanted.filter(ladder="own").height == 1


def test_the_order_of_lines_and_samples_changes_nothing() -> None:
    given = tenant(
        keys=["k.csv"],
        pools=[
            pool("p", [BOTH, {"basis": "even"}, {"basis": "unallocated"}], match={"region": "shared"}),
            pool("q", [{"basis": "cost", "scope": "account"}, {"basis": "unallocated"}], window="month"),
        ],
    )
    samples = usage(
        *(("2025-09-01", key, name, value) for key in ("gb", "hours") for name, value in zip("cab", "135", strict=True))
    )
    lines = billing(
        *(owned(name, value) for name, value in zip("bcdab", "24681", strict=True)), SHARED, {}, SHARED | SECOND
    )
    one, other = Found(given, lines, samples), Found(given, lines.reverse(), samples.reverse())
    assert one.frame.equals(other.frame)
    assert sorted(one.empty_keys) == sorted(other.empty_keys)


def test_no_lines_ask_for_no_weights() -> None:
    found = Found(tenant(pools=[pool(ladder=[{"basis": "even"}, {"basis": "unallocated"}])]), billing({}).clear())
    assert found.wanted.height == 0
    assert found.frame.height == 0


# ------------------------------------------------------------------------------------------------ quantised


def weights_of(*units: int) -> list[int]:
    frame = pl.DataFrame(
        {"weight_group": "g", "identity_id": [f"i{place:02d}" for place in range(len(units))], "units": units},
        schema={"weight_group": pl.String, "identity_id": pl.String, "units": pl.Int128},
    ).with_columns(rung=pl.lit(0, pl.Int16))
    found = quantised(frame)
    assert found.columns == WEIGHTS.columns
    return found.sort("identity_id")["weight"].to_list()


def test_whole_values_are_taken_as_they_are() -> None:
    assert weights_of(3 * UNITS, 0, 5 * UNITS) == [3, 0, 5]
    assert weights_of(0, 0) == [0, 0]
    assert weights_of() == []


def test_one_fraction_makes_all_count_in_units() -> None:
    assert weights_of(3 * UNITS, 1, 5 * UNITS) == [3 * UNITS, 1, 5 * UNITS]


@pytest.mark.parametrize("scale", [1, UNITS], ids=["fractions", "whole"])
@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ([LIMIT - 1], [LIMIT - 1]),
        ([LIMIT], [LIMIT // 2]),
        ([LIMIT + 1], [LIMIT // 2]),
        ([LIMIT - 3, 1, 1], [LIMIT - 3, 1, 1]),
        ([LIMIT - 2, 1, 1], [LIMIT // 2 - 1, 0, 0]),
        ([LIMIT // 2, LIMIT // 2], [LIMIT // 4, LIMIT // 4]),
        ([LIMIT * 2 - 1], [LIMIT - 1]),
        ([LIMIT * 2], [LIMIT // 2]),
        ([7 * 2**70, 2**70], [7 * 2**58, 2**58]),
    ],
)
def test_totals_from_2_to_the_62_on_are_shifted_by_the_fewest_bits(
    values: list[int], weights: list[int], scale: int
) -> None:
    assert weights_of(*(value * scale for value in values)) == weights


@pytest.mark.parametrize("bits", range(119, 127))
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_largest_totals_are_shifted_below_the_limit(bits: int, step: int) -> None:
    value = 2**bits + step
    shift = value.bit_length() - 62
    assert weights_of(value) == [value >> shift]
    assert weights_of(value // 2, value - value // 2) == [(value // 2) >> shift, (value - value // 2) >> shift]


def test_the_largest_decimal_is_shifted_below_the_limit() -> None:
    (weight,) = weights_of(UNITS_MAX)
    assert LIMIT // 2 <= weight < LIMIT


def test_groups_are_quantised_each_by_itself() -> None:
    frame = pl.DataFrame(
        {"weight_group": ["g", "g", "h", "h"], "rung": [0, 0, 0, 1], "identity_id": ["a", "b", "a", "a"],
         "units": [1, UNITS, 7 * UNITS, LIMIT]},
        schema={"weight_group": pl.String, "rung": pl.Int16, "identity_id": pl.String, "units": pl.Int128},
    )  # fmt: skip
    assert quantised(frame).sort("weight_group", "rung", "identity_id")["weight"].to_list() == [1, UNITS, 7, LIMIT // 2]
