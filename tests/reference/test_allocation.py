"""The reference itself, against results worked out by hand, and proof that it shares nothing with the product."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.reference import allocation as reference
from tests.reference.allocation import (
    EMPTY_KEY,
    UNALLOCATED,
    ZERO_KEY_TOTAL,
    canonical_tag_key,
    glob,
    half_even,
    integer_weights,
    normal,
    parse_units,
    shares_of,
    window_of,
)

USD = 10**12
Row = dict[str, Any]


def line(cost: str, owner: str = "", **changes: Any) -> Row:
    plain = {
        "date": "2025-09-01",
        "billing_period": "2025-09",
        "account": "111",
        "service": "AmazonEC2",
        "usage_type": "NatGateway-Bytes",
        "operation": "",
        "region": "eu-west-1",
        "line_item_type": "Usage",
        "resource": "",
        "tags": {"Team": owner},
        "currency": "USD",
        "invoice": "",
        "cost": cost,
    }
    return {**plain, **changes}


def tenant(*ladder: Row, **changes: Any) -> Row:
    pool = {"name": "nat", "match": {"usage_type": "*NatGateway*"}, "ladder": list(ladder)}
    return {"owner": {"tags": "team"}, "operator": "platform", "pools": [pool], **changes}


def key(identity: str, value: str, window: str = "2025-09-01", name: str = "gb") -> Row:
    return {"identity": identity, "window": window, "key": name, "value": value}


def untagged(lines: list[Row], rules: Row, keys: list[Row] | None = None) -> list[tuple[str, int]]:
    """Who bears the lines without an owner, and how many units."""
    charges = reference.allocate(lines, rules, keys or []).charges
    return [(charge.identity_id, charge.units) for charge in charges if charge.rule_id != "direct"]


LAST = {"basis": "unallocated"}


@pytest.mark.parametrize("module", ["allocation.py", "kernel.py"])
def test_it_imports_nothing_of_the_product(module: str) -> None:
    tree = ast.parse((Path(__file__).parent / module).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    known = {"__future__", "collections", "collections.abc", "fractions", "typing", "unicodedata"}
    assert imported - known <= {"tests.reference.allocation"}


@pytest.mark.parametrize(
    ("value", "expected"), [("1/2", 0), ("3/2", 2), ("5/2", 2), ("-1/2", 0), ("-3/2", -2), ("7/10", 1), ("-7/10", -1)]
)
def test_ties_go_to_the_even_number(value: str, expected: int) -> None:
    assert half_even(Fraction(value)) == expected


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("1.5", 1500000000000),
        ("4e-07", 400000),
        ("0.0000000000005", 0),
        ("0.0000000000015", 2),
        ("-2.0000000000025", -2000000000002),
    ],
)
def test_costs_are_counted_in_units(text: str, units: int) -> None:
    assert parse_units(text) == units


@pytest.mark.parametrize(
    ("units", "weights", "shares"),
    [
        # Running shares of 100 by thirds: 33 1/3, 66 2/3, 100; their floors grow by 33, 33, 34.
        (100, [1, 1, 1], [33, 33, 34]),
        (-100, [1, 1, 1], [-33, -33, -34]),
        # 10 by 1:2:4: 1 3/7, 4 2/7, 10.
        (10, [1, 2, 4], [1, 3, 6]),
        (2, [1, 1, 1], [0, 1, 1]),
        (7, [0, 3, 0], [0, 7, 0]),
        (0, [1, 2], [0, 0]),
    ],
)
def test_an_amount_is_split_by_floors_of_running_shares(units: int, weights: list[int], shares: list[int]) -> None:
    assert shares_of(units, weights) == shares


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Payments\t", "payments"),
        ("Data \u00a0\n Platform", "data platform"),
        ("E\u0301QUIPE", "\u00e9quipe"),
        ("   ", ""),
    ],
)
def test_spellings_of_a_name(text: str, expected: str) -> None:
    assert normal(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CostCenter", "cost_center"),
        ("cost-center", "cost_center"),
        ("cost__center_", "cost_center"),
        ("Team", "team"),
        ("APP", "a_p_p"),
        ("--", "--"),
    ],
)
def test_spellings_of_a_tag_key(text: str, expected: str) -> None:
    assert canonical_tag_key(text) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*NatGateway*", "EUC1-NatGateway-Hours", True),
        ("*NatGateway*", "natgateway", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]", "a", False),
        ("*", "", True),
        ("a.c", "abc", False),
    ],
)
def test_globs(pattern: str, text: str, fits: bool) -> None:
    assert glob(pattern, text) is fits


@pytest.mark.parametrize(
    ("match", "window"),
    [
        ({"line_item_type": ["Tax", "RIFee"]}, "month"),
        ({"line_item_type": ["Tax", "Usage"]}, "day"),
        ({"line_item_type": "Fee", "service": "AmazonEC2"}, "month"),
        ({"service": "AWSSupport*"}, "month"),
        ({"service": ["AWSSupportBusiness", "AmazonEC2"]}, "day"),
        ({"account": "1"}, "day"),
    ],
)
def test_default_windows(match: Row, window: str) -> None:
    assert window_of({"match": match}) == window


def test_whole_values_are_weights_as_they_are_and_others_in_units() -> None:
    assert integer_weights({"a": 2 * USD, "b": 3 * USD}) == ({"a": 2, "b": 3}, 0)
    assert integer_weights({"a": 2 * USD, "b": USD // 2}) == ({"a": 2 * USD, "b": USD // 2}, 0)


def test_weights_are_shifted_by_the_fewest_bits_that_bring_the_total_below_the_limit() -> None:
    assert integer_weights({"a": 2**61 * USD, "b": 2**61 * USD - USD}) == ({"a": 2**61, "b": 2**61 - 1}, 0)
    assert integer_weights({"a": 2**61 * USD, "b": 2**61 * USD}) == ({"a": 2**60, "b": 2**60}, 1)
    assert integer_weights({"a": 2**63 * USD, "b": USD}) == ({"a": 2**61, "b": 0}, 2)


def test_lines_of_one_day_and_key_are_pooled_after_each_is_rounded() -> None:
    pooled = reference.pooled([line("0.0000000000015"), line("0.0000000000015"), line("1", date="2025-09-02")])
    assert sorted(pooled.values()) == [4, USD]


def test_the_first_tag_that_names_anybody_is_the_owner() -> None:
    rules = tenant(
        LAST, owner={"tags": ["Team", "CostCenter"], "aliases": {"Pay": "Payments", "shared": "Unallocated"}}
    )
    owners = [
        ({"team": " PAY", "cost_center": "search"}, "payments"),
        ({"team": "  ", "cost-center": "Search"}, "search"),
        ({"team": "UNALLOCATED", "cost-center": "Search"}, "search"),
        ({"team": "Shared", "cost-center": ""}, UNALLOCATED),
        ({}, UNALLOCATED),
    ]
    for tags, owner in owners:
        assert reference.allocate([line("1", tags=tags)], rules, []).charges[0].identity_id == owner, tags


def test_usage_splits_by_the_key_of_the_day_and_falls_when_it_is_empty_or_zero() -> None:
    rules = tenant({"basis": "usage", "key": "gb"}, {"basis": "fixed", "percentages": {"search": "100"}}, LAST)
    assert untagged([line("10")], rules, [key("payments", "1"), key("search", "3")]) == [
        ("payments", 25 * USD // 10),
        ("search", 75 * USD // 10),
    ]
    assert untagged([line("10")], rules, [key("payments", "1", "2025-09-02")]) == [("search", 10 * USD)]
    assert untagged([line("10")], rules, [key("payments", "0")]) == [("search", 10 * USD)]


@pytest.mark.parametrize(("keys", "reason"), [([], EMPTY_KEY), ([key("payments", "0")], ZERO_KEY_TOTAL)])
def test_what_no_rung_could_place_says_why_the_first_did_not(keys: list[Row], reason: str) -> None:
    found = reference.allocate([line("1")], tenant({"basis": "usage", "key": "gb"}, {"basis": "even"}, LAST), keys)
    charge = found.charges[0]
    assert (charge.identity_id, charge.allocation_method, charge.allocation_detail, charge.rung) == (
        UNALLOCATED, "unallocated", reason, 2,
    )  # fmt: skip
    assert [(empty.rung, empty.metric, empty.reason) for empty in found.empty_keys] == [
        (0, "gb", reason),
        (1, "owners", EMPTY_KEY),
    ]


def test_a_dated_key_sums_over_the_month_and_a_key_by_period_holds_on_every_day() -> None:
    dated = [key("payments", "1", "2025-09-01"), key("search", "4", "2025-09-30"), key("search", "4", "2025-10-01")]
    monthly = tenant({"basis": "usage", "key": "gb"}, LAST)
    monthly["pools"][0]["window"] = "month"
    assert untagged([line("5")], monthly, dated) == [("payments", USD), ("search", 4 * USD)]
    daily = tenant({"basis": "usage", "key": "gb"}, LAST)
    assert untagged([line("5")], daily, [key("payments", "3", "2025-09")]) == [("payments", 5 * USD)]


def test_even_is_everybody_with_direct_cost_that_day_but_the_operator() -> None:
    owned = [
        line("-1", "search"),
        line("9", "Mobile", currency="EUR"),
        line("5", "platform"),
        line("1", "a", date="2025-09-02"),
    ]
    assert untagged([line("3"), *owned], tenant({"basis": "even"}, LAST)) == [
        ("mobile", 15 * USD // 10),
        ("search", 15 * USD // 10),
    ]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("service_account", [("payments", 6 * USD)]),
        # 1 : 2 of 6
        ("account", [("payments", 2 * USD), ("search", 4 * USD)]),
        # 1 : 3 : 2 of 6; the mobile team's refund of 7 leaves it below zero, EUR is another matter.
        ("all", [("guests", 3 * USD), ("payments", USD), ("search", 2 * USD)]),
    ],
)
def test_cost_is_net_direct_cost_of_the_scope_in_the_currency(scope: str, expected: list[tuple[str, int]]) -> None:
    owned = [
        line("1", "payments"),
        line("2", "search", service="AmazonS3"),
        line("3", "guests", account="222"),
        line("2", "mobile"),
        line("-7", "mobile", line_item_type="Refund"),
        line("50", "search", currency="EUR"),
        line("50", "platform"),
    ]
    assert untagged([line("6"), *owned], tenant({"basis": "cost", "scope": scope}, LAST)) == expected


def test_weighted_deals_an_empty_keys_weight_to_the_others_and_records_it() -> None:
    rules = tenant({"basis": "weighted", "keys": {"gb": "0.5", "hours": "0.25", "runs": "0.25"}}, LAST)
    keys = [key("payments", "1"), key("search", "1"), key("search", "7", name="hours"), key("search", "0", name="runs")]
    found = reference.allocate([line("9")], rules, keys)
    # gb has 2/3 of the points, hours 1/3: payments 1/3, search 2/3, but for the rounding of 2**60 / 3.
    points = 2**60 * 2 // 3 // 2
    assert [(charge.identity_id, charge.weight, charge.weight_total) for charge in found.charges] == [
        ("payments", points, 2**60),
        ("search", 2**60 - points, 2**60),
    ]
    assert [(empty.rung, empty.metric, empty.reason) for empty in found.empty_keys] == [(0, "runs", ZERO_KEY_TOTAL)]
    assert found.charges[0].ideal == 3 * USD
    assert abs(found.charges[0].units - 3 * USD) <= 1


def test_parts_have_ladders_of_their_own() -> None:
    parts = [{"share": "0.7", "ladder": "named"}, {"share": "0.3", "ladder": [{"basis": "operator"}]}]
    rules = tenant(ladders={"named": [{"basis": "fixed", "percentages": {"a": "50", "b": "50"}}, LAST]})
    rules["pools"] = [{"name": "p", "match": {"region": "eu-*"}, "parts": parts}]
    found = reference.allocate([line("10")], rules, []).charges
    assert [(charge.part, charge.identity_id, charge.units, charge.allocation_method) for charge in found] == [
        (0, "a", 35 * USD // 10, "fixed"),
        (0, "b", 35 * USD // 10, "fixed"),
        (1, "platform", 3 * USD, "operator"),
    ]


def test_a_resource_rung_charges_the_resource_and_without_one_nobody() -> None:
    rules = tenant({"basis": "resource"})
    found = reference.allocate([line("1", resource="i-1"), line("2")], rules, []).charges
    assert [(charge.identity_id, charge.allocation_method, charge.allocation_detail) for charge in found] == [
        ("i-1", "to_resource", "nat"),
        (UNALLOCATED, "unallocated", "nat"),
    ]


def test_tax_follows_what_was_taxed_in_the_month() -> None:
    owned = [
        line("3", "payments", date="2025-09-20"),
        line("1", "search", date="2025-09-21"),
        line("9", "a", account="222"),
    ]
    tax = line("8", line_item_type="Tax", usage_type="")
    found = reference.allocate([tax, *owned], tenant(LAST), []).charges
    assert [(charge.identity_id, charge.units, charge.rule_id) for charge in found if charge.rule_id != "direct"] == [
        ("payments", 6 * USD, "pool:tax"),
        ("search", 2 * USD, "pool:tax"),
    ]


def test_no_row_of_nothing_but_one_for_a_line_of_nothing() -> None:
    rules = tenant({"basis": "fixed", "percentages": {"a": "0", "b": "50", "c": "50"}}, LAST)
    assert untagged([line("0")], rules) == [("b", 0)]
    assert untagged([line("0.000000000001")], rules) == [("c", 1)]


def test_what_no_pool_matches_is_untagged() -> None:
    charge = reference.allocate([line("1", usage_type="BoxUsage")], tenant(LAST), []).charges[0]
    assert (charge.identity_id, charge.rule_id, charge.allocation_detail) == (UNALLOCATED, "untagged", "untagged")
