"""The kernel: winning rungs, parts, fan-out, chunks, and the check of its sums."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import allocate as kernel
from engine import money
from engine.allocate import allocate, check_line_sums, chunks, empty_keys, fan_out, plan, rungs_asked, split, whole
from engine.errors import ContractError, LedgerError
from engine.frames import CHARGEBACK, MEASURES, Blocks, check_ordered, check_rows, decoded, encoded, starts
from engine.money import UNITS_MAX, apportion_units, format_units
from tests.unit.cases import HOSTILE, LAST, amounts, billing, in_blocks, ladder_rows, weight_rows

RULES = ladder_rows({}, {**LAST, "rung": 1})
"""Usage, then unallocated."""
TO_RESOURCE = {
    "basis": "resource",
    "payer": "",
    "cost_type": "shared",
    "allocation_method": "to_resource",
    "allocation_detail": "p",
}
OPERATOR = {
    "basis": "operator",
    "payer": "platform",
    "cost_type": "operator",
    "allocation_method": "operator",
    "allocation_detail": "p",
}


def lines(*given: dict[str, Any]) -> pl.DataFrame:
    """Lines of rule `r` in scope `s`."""
    return billing(*({"rule_id": "r", "weight_scope": "s"} | line for line in given))


def weighed(*weights: int) -> pl.DataFrame:
    """Identities a, b, … with these weights."""
    return weight_rows(*(("l@s", 0, chr(ord("a") + place), weight) for place, weight in enumerate(weights)))


def found(given: pl.DataFrame, rules: pl.DataFrame, weights: pl.DataFrame, **options: Any) -> pl.DataFrame:
    rows = allocate(given, rules, weights, **options).collect()
    blocks = in_blocks(check_rows(rows, CHARGEBACK), CHARGEBACK)
    check_ordered(blocks, CHARGEBACK)
    check_line_sums(given, blocks, options.get("measures", ("amount",)))
    return rows


def told(rows: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return (
        rows.select(columns).with_columns(pl.col(pl.Decimal).cast(pl.String).str.strip_suffix(".000000000000")).rows()
    )


# ------------------------------------------------------------------------------------------------ rungs and labels


def test_a_row_tells_the_whole_of_its_making() -> None:
    line = {
        "line_id": 7, "amount": "-10", "env_id": "e", "resource_id": "i", "product_category": "c", "product_type": "t",
        "line_item_type": "Usage", "region": "eu", "operation": "o", "sub_account_id": "1", "invoice_id": "n",
    }  # fmt: skip
    rows = found(lines(line), RULES, weighed(1, 0, 2), calculation_id="c0ffee")
    carried = {name: value for name, value in line.items() if name != "amount"}
    common = {
        "tenant_id": "acme", "charge_date": dt.date(2025, 9, 1), **carried, "ecosystem": "aws",
        "billing_period": "2025-09", "currency": "USD", "part": 0, "cost_type": "usage",
        "allocation_method": "usage_ratio", "allocation_detail": "p", "rule_id": "r", "rule_version": "v", "rung": 0,
        "part_amount": Decimal(-10), "weight_total": 3, "calculation_id": "c0ffee",
        "effective_amount": None, "list_amount": None, "contracted_amount": None,
    }  # fmt: skip
    assert rows.to_dicts() == [
        {name: row[name] for name in CHARGEBACK.columns}
        for row in (
            {**common, "identity_id": "a", "amount": Decimal("-3.333333333333"), "weight_before": 0, "weight": 1},
            {**common, "identity_id": "c", "amount": Decimal("-6.666666666667"), "weight_before": 1, "weight": 2},
        )
    ]


@pytest.mark.parametrize(
    ("weights", "rows"),
    [
        ([("l@s", 0, "a", 1), ("l@s", 1, "b", 1)], [("a", 0, "p")]),
        ([("l@s", 0, "a", 0), ("l@s", 1, "b", 1)], [("b", 1, "q")]),
        ([("l@s", 1, "b", 1)], [("b", 1, "q")]),
        ([("l@s", 0, "a", 0), ("l@s", 1, "b", 0)], [("UNALLOCATED", 2, "zero_key_total")]),
        ([("l@s", 0, "a", 0)], [("UNALLOCATED", 2, "zero_key_total")]),
        ([("l@s", 1, "b", 0)], [("UNALLOCATED", 2, "empty_key")]),
        ([("l@other", 0, "a", 1), ("m@s", 0, "a", 1)], [("UNALLOCATED", 2, "empty_key")]),
        ([], [("UNALLOCATED", 2, "empty_key")]),
    ],
)
def test_the_first_rung_with_weight_holds_and_the_last_says_why_the_first_did_not(weights: Any, rows: Any) -> None:
    rules = ladder_rows({}, {"rung": 1, "allocation_detail": "q"}, {**LAST, "rung": 2})
    assert told(found(lines({}), rules, weight_rows(*weights)), "identity_id", "rung", "allocation_detail") == rows


def test_weights_of_a_last_rung_are_not_asked_for() -> None:
    weights = weight_rows(("l@s", 1, "a", 5))
    assert told(found(lines({}), RULES, weights), "identity_id", "weight", "weight_total") == [("UNALLOCATED", 1, 1)]


def test_the_operator_and_the_resource_bear_what_is_left() -> None:
    given = lines({"resource_id": "i-9"}, {"resource_id": ""}, {"resource_id": "A"})
    rows = found(given, ladder_rows(OPERATOR), weighed())
    assert told(rows, "identity_id", "allocation_method") == [("platform", "operator")] * 3
    rows = found(given, ladder_rows(TO_RESOURCE), weighed())
    assert told(rows, "identity_id", "allocation_method", "allocation_detail") == [
        ("i-9", "to_resource", "p"), ("UNALLOCATED", "unallocated", "p"), ("A", "to_resource", "p"),
    ]  # fmt: skip


def test_a_resource_called_like_an_identity_is_in_the_order_of_the_key() -> None:
    rules = ladder_rows({"share": 1}, {**LAST, "rung": 1}, {**TO_RESOURCE, "part": 1, "share": 1, "ladder": "m"})
    rows = found(lines({"amount": "3", "resource_id": "a"}, {"amount": "3", "resource_id": ""}), rules, weighed(1, 1))
    assert told(rows, "line_id", "part", "identity_id") == [
        (0, 0, "a"), (0, 0, "b"), (0, 1, "a"), (1, 0, "a"), (1, 0, "b"), (1, 1, "UNALLOCATED"),
    ]  # fmt: skip


def test_rungs_that_did_not_hold_are_told_with_their_reason() -> None:
    rules = ladder_rows({"metric": "k"}, {"rung": 1, "basis": "even", "metric": "owners"}, {**LAST, "rung": 2})
    asked = rungs_asked(
        lines({}, {"weight_scope": "t"}, {"weight_scope": "u"}),
        rules,
        weight_rows(("l@s", 0, "a", 0), ("l@t", 0, "a", 1)),
    )
    assert empty_keys(asked).rows() == [
        ("r", 0, 0, "s", "usage", "k", "zero_key_total"),
        ("r", 0, 1, "s", "even", "owners", "empty_key"),
        ("r", 0, 0, "u", "usage", "k", "empty_key"),
        ("r", 0, 1, "u", "even", "owners", "empty_key"),
    ]


# ------------------------------------------------------------------------------------------------ parts


def test_parts_are_apportioned_before_their_payers() -> None:
    rules = ladder_rows(
        {"share": 7}, {**LAST, "share": 7, "rung": 1}, {**OPERATOR, "share": 3, "part": 1, "ladder": "m"}
    )  # fmt: skip
    rows = found(lines({"amount": "0.000000000003"}), rules, weighed(1, 1))
    shares = apportion_units(3, [7, 3])
    assert shares == [2, 1]
    assert told(rows, "part", "identity_id", "amount", "part_amount") == [
        (0, "a", "0.000000000001", "0.000000000002"),
        (0, "b", "0.000000000001", "0.000000000002"),
        (1, "platform", "0.000000000001", "0.000000000001"),
    ]


def test_parts_go_down_their_ladders_each_by_itself() -> None:
    rules = ladder_rows(
        {"share": 1}, {**LAST, "share": 1, "rung": 1},
        {"share": 1, "part": 1, "ladder": "m"}, {**LAST, "share": 1, "part": 1, "ladder": "m", "rung": 1},
    )  # fmt: skip
    rows = found(lines({"amount": "2"}), rules, weight_rows(("l@s", 0, "a", 0), ("m@s", 0, "b", 1)))
    assert told(rows, "part", "identity_id", "allocation_detail") == [
        (0, "UNALLOCATED", "zero_key_total"),
        (1, "b", "p"),
    ]


def test_two_parts_of_one_payer_are_two_rows() -> None:
    rules = ladder_rows({**OPERATOR, "share": 1}, {**OPERATOR, "share": 2, "part": 1, "ladder": "m"})
    assert told(found(lines({"amount": "3"}), rules, weighed()), "part", "identity_id", "amount") == [
        (0, "platform", "1"), (1, "platform", "2"),
    ]  # fmt: skip


def test_rules_of_one_and_of_many_parts_stand_side_by_side() -> None:
    rules = pl.concat(
        [
            ladder_rows({**OPERATOR, "share": 999, "rule_id": "q"}),
            ladder_rows({**OPERATOR, "share": 1}, {**LAST, "share": 9, "part": 1, "ladder": "m"}),
        ]
    )
    given = lines({"amount": "10"}, {"amount": "10", "rule_id": "q"})
    assert told(found(given, rules, weighed()), "line_id", "part", "amount") == [(0, 0, "1"), (0, 1, "9"), (1, 0, "10")]


# ------------------------------------------------------------------------------------------------ zero and null


def test_rows_of_nothing_are_left_out_but_one_of_a_line_of_nothing() -> None:
    rules = ladder_rows({"share": 1}, {**LAST, "rung": 1}, {**OPERATOR, "share": 1, "part": 1, "ladder": "m"})
    given = lines({"amount": "0"}, {"amount": "0.000000000001"}, {"amount": "4"})
    assert told(found(given, rules, weighed(0, 1, 1)), "line_id", "part", "identity_id", "amount") == [
        (0, 0, "b", "0"),
        (1, 1, "platform", "0.000000000001"),
        (2, 0, "b", "1"), (2, 0, "c", "1"), (2, 1, "platform", "2"),
    ]  # fmt: skip


def test_all_measures_are_split_each_exactly_and_null_stays_null() -> None:
    given = lines(
        {"amount": "0", "effective_amount": "1", "list_amount": None, "contracted_amount": "-1"},
        {"amount": "1", "effective_amount": None, "list_amount": "0", "contracted_amount": None},
        {"amount": "0", "effective_amount": "0", "list_amount": None, "contracted_amount": "0"},
    )
    rows = found(given, RULES, weighed(1, 2), measures=MEASURES)
    assert told(rows, "line_id", "identity_id", *MEASURES, "part_amount") == [
        (0, "a", "0", "0.333333333333", None, "-0.333333333333", "0"),
        (0, "b", "0", "0.666666666667", None, "-0.666666666667", "0"),
        (1, "a", "0.333333333333", None, "0", None, "1"),
        (1, "b", "0.666666666667", None, "0", None, "1"),
        (2, "a", "0", "0", None, "0", "0"),
    ]


def test_measures_that_are_not_asked_for_come_out_null() -> None:
    given = lines({"effective_amount": "1", "list_amount": "2"})
    rows = found(given, RULES, weighed(1), measures=("amount", "list_amount"))
    assert told(rows, *MEASURES) == [("1", None, "2", None)]


def test_a_measure_may_stand_for_the_amount() -> None:
    rows = allocate(
        lines({"amount": "9", "effective_amount": "3"}), RULES, weighed(1, 2), measures=("effective_amount",)
    )
    assert told(rows.collect(), "amount", "effective_amount", "part_amount") == [(None, "1", "3"), (None, "2", "3")]


def test_no_lines_give_no_rows_of_the_right_shape() -> None:
    rows = found(lines({}).clear(), RULES, weighed(1))
    assert rows.schema == pl.DataFrame(schema=CHARGEBACK.schema).schema


def test_lines_that_are_not_asked_after_do_not_matter() -> None:
    """Weights and rules of others may stand in the tables."""
    more = weight_rows(("l@s", 0, "a", 1), ("x@y", 0, "z", 9), ("l@s", 1, "q", 9))
    rules = pl.concat([RULES, ladder_rows({**LAST, "rule_id": "other"})])
    assert told(found(lines({}), rules, more), "identity_id") == [("a",)]


# ------------------------------------------------------------------------------------------------ numbers

BOUNDARY_AMOUNTS = [2**63 - 2, 2**63 - 1, 2**63, 2**63 + 1, UNITS_MAX, 1, 0]
BOUNDARY_WEIGHTS = [[2**31 - 2], [2**31 - 1], [2**31], [2**31 - 2, 1], [2**31 - 1, 1], [1, 2**31 - 1, 2**31],
                    [2**62 - 1], [2**62 - 2, 1], [1, 2**62 - 2], [2**61, 2**61 - 1]]  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weights", BOUNDARY_WEIGHTS, ids=str)
def test_shares_are_exact_on_both_sides_of_every_limit(weights: list[int], sign: int) -> None:
    """Whatever integers the kernel computes with: each amount alone, since the largest decides for all."""
    for units in BOUNDARY_AMOUNTS:
        rows = found(lines({"amount": format_units(sign * units)}), RULES, weighed(*weights))
        expected = [share for share in apportion_units(sign * units, weights) if share] or [0]
        assert [Decimal(format_units(share)) for share in expected] == rows["amount"].to_list()


def test_large_and_small_lines_are_split_alike_together_and_alone() -> None:
    given = lines(*({"amount": format_units(units)} for units in BOUNDARY_AMOUNTS))
    together = found(given, RULES, weighed(1, 2, 3))
    alone = pl.concat(found(given.filter(line_id=number), RULES, weighed(1, 2, 3)) for number in given["line_id"])
    assert_frame_equal(together, alone)


@pytest.mark.parametrize("shares", [[1, 1], [1, 10**12], [2**62 - 2, 1], [2**61, 2**61 - 1], [3, 5, 7]], ids=str)
def test_parts_of_every_share_are_exact(shares: list[int]) -> None:
    rules = ladder_rows(
        *({**OPERATOR, "share": share, "part": part, "ladder": f"m{part}"} for part, share in enumerate(shares))
    )
    for units in BOUNDARY_AMOUNTS[:-1]:
        rows = found(lines({"amount": format_units(-units)}), rules, weighed())
        expected = [Decimal(format_units(share)) for share in apportion_units(-units, shares) if share]
        assert rows["amount"].to_list() == expected == rows["part_amount"].to_list()


# ------------------------------------------------------------------------------------------------ encodings, chunks


def mixed() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Two dozen lines of five rules with hostile texts, among them one of many parts and one to the resource."""
    rules = pl.concat(
        [
            RULES,
            ladder_rows(
                {"share": 1, "rule_id": "q"},
                {**LAST, "rung": 1, "rule_id": "q"},
                {**TO_RESOURCE, "share": 2, "part": 1, "ladder": "m", "rule_id": "q"},
            ),
            ladder_rows({**OPERATOR, "rule_id": "op"}),
            ladder_rows({**TO_RESOURCE, "rule_id": "res"}),
        ]
    )
    given = lines(
        *(
            {
                "amount": f"{number - 9}.{number}",
                "rule_id": rule_id,
                "weight_scope": text,
                "resource_id": text,
                "region": text,
            }
            for number, (rule_id, text) in enumerate(
                (rule_id, text) for rule_id in ("r", "q", "op", "res") for text in HOSTILE
            )
        )
    )
    weights = weight_rows(
        *(
            (f"l@{text}", 0, name, place + len(name))
            for place, text in enumerate(HOSTILE)
            for name in HOSTILE[place:]
            if name
        )
    )
    return given, rules, weights


def test_any_order_of_lines_rules_and_weights_gives_the_same_rows() -> None:
    given, rules, weights = mixed()
    expected = found(given, rules, weights)
    for seed in range(3):
        shuffled = (frame.sample(fraction=1, shuffle=True, seed=seed) for frame in (given, rules, weights))
        assert_frame_equal(allocate(*shuffled).collect(), expected)


def test_encoded_text_gives_the_same_rows() -> None:
    given, rules, weights = mixed()
    plain = found(given, rules, weights, calculation_id="c")
    codes = encoded(given.sort("line_id"))
    decided = kernel.encoded(plan(given, rules, weights), codes)
    blocks = fan_out(split(codes, decided), calculation_id="c")
    rows = whole(blocks)
    assert all(
        isinstance(dtype, pl.Enum) for name, dtype in rows.schema.items() if CHARGEBACK.schema[name] == pl.String
    )
    check_ordered(blocks, CHARGEBACK)
    check_line_sums(codes, blocks)
    assert_frame_equal(decoded(rows.lazy()).collect(), plain)


def test_allocate_takes_encoded_lines_as_they_come() -> None:
    """As its documentation says."""
    given, rules, weights = mixed()
    rows = allocate(encoded(given), rules, weights, calculation_id="c")
    assert_frame_equal(decoded(rows.lazy()).collect(), found(given, rules, weights, calculation_id="c"))


def test_blocks_begin_where_a_part_does() -> None:
    given, rules, weights = mixed()
    codes = encoded(given.sort("line_id"))
    blocks = fan_out(split(codes, kernel.encoded(plan(given, rules, weights), codes)), calculation_id="c")
    rows, key = whole(blocks), ["tenant_id", "charge_date", "line_id", "part"]
    assert blocks.steady.select(key).equals(rows.select(key).unique(maintain_order=True))
    assert blocks.starts.equals(starts(rows, key))
    assert rows.height > 2 * blocks.starts.len()


def test_blocks_are_rows() -> None:
    """What is told of blocks: some of it the same of all, some null, some null in part; neighbours may say the same."""
    rows = found(*mixed()).head(6).drop("invoice_id")
    told = rows.select("region", "currency", "product_type", "list_amount", "contracted_amount").head(3)
    told = told.with_columns(
        region=pl.Series(["b", "b", "a"], dtype=pl.Enum(["a", "b"])),
        list_amount=pl.Series([None, 1, None], dtype=CHARGEBACK.schema["list_amount"]),
        contracted_amount=pl.Series([1, None, None], dtype=CHARGEBACK.schema["list_amount"]),
    )
    starts = pl.Series([0, 1, 4], dtype=pl.get_index_type())
    blocks = Blocks(rows.drop(told.columns), told, starts, frozenset({"currency"}))
    expected = rows.with_columns(told[[0, 1, 1, 1, 2, 2]].get_columns())
    assert_frame_equal(whole(blocks), expected)
    nothing = Blocks(blocks.varied.clear(), told.clear(), blocks.starts.clear())
    assert_frame_equal(whole(nothing), expected.clear())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 50, 100, 10**9])
def test_chunks_together_are_the_whole(size: int) -> None:
    given, rules, weights = mixed()
    given = given.sort("line_id")
    parts = split(given, plan(given, rules, weights))
    offset, pieces = 0, []
    for chunk in chunks(parts, size):
        blocks = fan_out(chunk)
        count = chunk.rows["_lead"].sum()
        check_line_sums(given.slice(offset, count), blocks)
        offset += count
        pieces.append(whole(blocks))
    assert offset == given.height
    assert_frame_equal(pl.concat(pieces), whole(fan_out(parts)))
    most = max(row["_fan"] for row in parts.rows.group_by("line_id").agg(pl.col("_fan").sum()).to_dicts())
    assert all(chunk.rows["_fan"].sum() <= size + most for chunk in chunks(parts, size))


def test_chunks_of_no_lines_are_none() -> None:
    given = lines({}).clear()
    assert list(chunks(split(given, plan(given, RULES, weighed(1))), 10)) == []


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given, rules, weights: (given.with_columns(rule_id=pl.lit("x\n")), rules, weights),
         r"table rules: no row for 1 rule\(s\) of lines: 'x\\n'; expected every line's rule"),
        (lambda given, rules, weights: (given, rules.filter(rung=0), weights.clear()),
         r"table rules: 1 rule\(s\) whose ladder may take nothing: 'r'; expected a last rung of resource, operator,"),
        (lambda given, rules, weights: (given, rules, weights.with_columns(weight=-pl.col("weight"))),
         r"table weights: 2 negative weight\(s\); expected none"),
        (lambda given, rules, weights: (given, rules, pl.concat([weights, weights.head(1)])),
         r"table weights: 2 rows share a key, for example .*; expected unique \(weight_group, rung, identity_id\)"),
        (lambda given, rules, weights: (given, rules, weights.with_columns(weight=pl.lit(2**61, pl.Int64))),
         r"table weights: 1 total\(s\) too large, for example 'l@s'; expected below 2\*\*62"),
        (lambda given, rules, weights: (given, rules, weights.with_columns(weight=pl.lit(2**63 - 1, pl.Int64))),
         r"table weights: 1 total\(s\) too large"),
        (lambda given, rules, weights: (given, rules, weights.drop("weight")),
         r"table weights: 1 missing column\(s\): weight"),
        (lambda given, rules, weights: (given, rules.with_columns(share=pl.lit(0.5)), weights),
         r"table rules, column share: dtype Float64; expected Int64"),
        (lambda given, rules, weights: (given.drop("currency"), rules, weights), r"missing column\(s\): currency"),
        (lambda given, rules, weights: (given.drop("rule_id"), rules, weights), r"missing column\(s\): rule_id"),
        (lambda given, rules, weights: (given.with_columns(amount=pl.lit(1.5)), rules, weights),
         r"column amount: dtype Float64; expected"),
        (lambda given, rules, weights: (given.with_columns(weight_scope=pl.lit(None, pl.String)), rules, weights),
         r"column weight_scope: 1 null"),
        (lambda given, rules, weights: (given.with_columns(amount=amounts(None)), rules, weights),
         r"column amount: 1 null"),
        (lambda given, rules, weights: (given, rules, weights[:1].with_columns(identity_id=pl.lit(None, pl.String))),
         r"column identity_id: 1 null"),
    ],
    ids=["unknown rule", "endless ladder", "negative weight", "repeated weight", "total 2**62", "total beyond 2**63",
         "missing column", "share a float", "line without currency", "line without rule", "amount a float",
         "scope null", "amount null", "identity null"],
)  # fmt: skip
def test_what_would_lose_or_invent_money_is_refused(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        allocate(*change(lines({"amount": "10"}), RULES, weighed(1, 2))).collect()


@pytest.mark.parametrize(
    "shares", [[0, 0], [1, -1], [2, -1], [-1], [2**62], [2**63 - 1, 2**63 - 1], [2**61, 2**61]], ids=str
)
def test_shares_of_parts_that_do_not_add_up_are_refused(shares: list[int]) -> None:
    """A share is at least 1 and a rule's shares total less than 2**62, or amounts would leak or wrap."""
    rules = ladder_rows(
        *({**OPERATOR, "share": share, "part": part, "ladder": f"m{part}"} for part, share in enumerate(shares))
    )
    with pytest.raises(ContractError, match="table rules"):
        allocate(lines({"amount": format_units(UNITS_MAX)}), rules, weighed()).collect()


def test_a_rung_that_stands_twice_is_refused() -> None:
    with pytest.raises(ContractError, match="table rules: 2 rows share a key"):
        allocate(lines({}), ladder_rows(OPERATOR, {**OPERATOR, "payer": "another"}), weighed()).collect()


@pytest.mark.parametrize("measures", [(), ("quantity",), ("amount", "amount"), ("cost",)])
def test_only_measures_can_be_split(measures: tuple[str, ...]) -> None:
    with pytest.raises((ContractError, ValueError)):
        allocate(lines({}), RULES, weighed(1), measures=measures).collect()


def test_the_same_line_twice_is_not_charged_twice_unseen() -> None:
    given = lines({"line_id": 1}, {"line_id": 1})
    with pytest.raises((ContractError, LedgerError)):
        check_ordered(in_blocks(allocate(given, RULES, weighed(1)).collect(), CHARGEBACK), CHARGEBACK)


# ------------------------------------------------------------------------------------------------ the check of sums


def check_sums(given: pl.DataFrame, rows: pl.DataFrame, measures: Sequence[str] = ("amount",)) -> None:
    check_line_sums(given, in_blocks(rows, CHARGEBACK), measures)


def three() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Three lines and their six rows."""
    given = lines(*({"amount": str(number), "effective_amount": "1"} for number in (3, 6, 9)))
    return given, found(given, RULES, weighed(1, 2), measures=("amount", "effective_amount"))


def changed(rows: pl.DataFrame, places: dict[int, str], column: str = "amount") -> pl.DataFrame:
    """Rows with other amounts in these places."""
    numbered = pl.int_range(pl.len())
    value = pl.col(column)
    for place, text in places.items():
        value = pl.when(numbered == place).then(pl.lit(text).cast(rows.schema[column])).otherwise(value)
    return rows.with_columns(value.alias(column))


def moved(rows: pl.DataFrame, place: int, line_id: int) -> pl.DataFrame:
    return rows.with_columns(
        line_id=pl.when(pl.int_range(pl.len()) == place).then(pl.lit(line_id, pl.Int64)).otherwise(pl.col("line_id"))
    )


def test_rows_that_sum_pass() -> None:
    given, rows = three()
    check_sums(given, rows, ("amount", "effective_amount"))
    check_sums(encoded(given), rows)
    check_sums(given.clear(), rows.clear())


@pytest.mark.parametrize(
    ("spoil", "line_id"),
    [
        (lambda rows: changed(rows, {0: "1.000000000001"}), 0),
        (lambda rows: changed(rows, {5: "0"}), 2),
        (lambda rows: changed(rows, {2: "-2"}), 1),
        (lambda rows: rows.slice(1), 0),
        (lambda rows: rows.slice(0, 5), 2),
        (lambda rows: rows.filter(pl.col("line_id") != 1), 1),
        (lambda rows: rows.clear(), 0),
        (lambda rows: pl.concat([rows.head(1), rows]), 0),
        (lambda rows: moved(rows, 1, 1), 0),
        (lambda rows: moved(rows, 2, 0), 0),
        (lambda rows: moved(rows, 5, 99), 2),
        (lambda rows: changed(rows, {0: "0", 2: "3"}), 0),
        (lambda rows: changed(rows, {1: "3", 4: "2"}), 0),
        (lambda rows: changed(rows, {2: "5", 5: "3"}), 1),
    ],
    ids=["a unit more", "a row of nothing", "a sign", "no first row", "no last row", "no line", "no rows",
         "a row twice", "moved on", "moved back", "moved away", "errors of two lines", "errors far apart",
         "errors of the last"],
)  # fmt: skip
def test_every_error_trips_and_names_its_first_line(
    spoil: Callable[[pl.DataFrame], pl.DataFrame], line_id: int
) -> None:
    given, rows = three()
    with pytest.raises(LedgerError, match=rf"\Atable chargeback, line {line_id} of 2025-09-01: [^\n]*\Z"):
        check_sums(given, spoil(rows))


@pytest.mark.parametrize(
    "amount", ["3", "9223372.036854775807", "27670116.110564327424", "-99999999999999999999999999"]
)
@pytest.mark.parametrize("error", [1, 2**63, 2**64, -(2**64), 2**65])
def test_sums_are_exact_beyond_64_bits(amount: str, error: int) -> None:
    """An error of 2**64 units would be none in sums that wrap."""
    given = lines({"amount": "1"}, {"amount": amount}, {"amount": "1"})
    rows = found(given, RULES, weighed(1, 2))
    check_sums(given, rows)
    wrong = money.to_amount(money.to_units(pl.col("amount")) + pl.lit(error, pl.Int128))
    spoiled = rows.with_columns(amount=pl.when(pl.int_range(pl.len()) == 2).then(wrong).otherwise(pl.col("amount")))
    with pytest.raises(LedgerError, match="line 1"):
        check_sums(given, spoiled)


def test_an_error_in_any_measure_trips() -> None:
    given, rows = three()
    spoiled = changed(rows, {0: "0.5"}, "effective_amount")
    check_sums(given, spoiled)
    with pytest.raises(LedgerError, match="line 0"):
        check_sums(given, spoiled, ("amount", "effective_amount"))


def test_lines_in_another_order_trip_also_if_they_are_worth_nothing() -> None:
    given = lines(*[{"amount": "0"}] * 3)
    rows = found(given, RULES, weighed(1))
    with pytest.raises(LedgerError):
        check_sums(given, rows.reverse())
    with pytest.raises(LedgerError):
        check_sums(given, pl.concat([rows, rows.slice(1, 1)]))


def test_a_line_beyond_those_there_are_trips() -> None:
    given, rows = three()
    with pytest.raises(LedgerError, match="line 2"):
        check_sums(given.head(2), rows)


def test_lines_of_two_days_with_one_id_are_two_lines() -> None:
    given = lines({"line_id": 5, "amount": "3"}, {"line_id": 5, "amount": "3", "charge_date": dt.date(2025, 9, 2)})
    rows = found(given, RULES, weighed(1))
    with pytest.raises(LedgerError, match="line 5 of 2025-09-01"):
        check_sums(given, changed(rows, {0: "2", 1: "4"}))


def test_lines_of_two_tenants_with_one_id_are_two_lines() -> None:
    given = lines({"line_id": 5, "amount": "3"}, {"line_id": 5, "amount": "3", "tenant_id": "other"})
    rows = found(given, RULES, weighed(1))
    with pytest.raises(LedgerError, match="line 5 of 2025-09-01"):
        check_sums(given, changed(rows, {0: "2", 1: "4"}))
