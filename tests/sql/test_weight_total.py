"""The checks of amounts and weights, against exact fractions, over all sizes: apportionment recomputes every amount,
weight_total compares it in floating point and looks at how weights fit together."""

from __future__ import annotations

import random
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from engine import warehouse
from engine.frames import BILLING, CHARGEBACK
from engine.money import to_amount, to_units
from engine.sqlfiles import read_sql
from tests.sql.lakes import ALL_DAYS, offenders, shared_lines, stored

UNIT = 10**12
LIMIT = 2**62


def weighed(digits: random.Random, total: int) -> list[int]:
    """Up to seven positive weights that total at most `total`."""
    count = digits.randint(1, min(7, total))
    cuts = (
        sorted(digits.sample(range(1, total), count - 1))
        if total < 10_000
        else sorted({digits.randint(1, total - 1) for _ in range(count - 1)})
    )
    return [after - before for before, after in zip([0, *cuts], [*cuts, total], strict=True)]


def random_lines(count: int) -> list[tuple[int, list[int]]]:
    digits = random.Random(20240101)
    lines = []
    for _ in range(count):
        units = digits.choice((-1, 1)) * digits.randint(1, 10 ** digits.randint(1, 30))
        total = digits.randint(1, 10 ** digits.randint(1, 18))
        lines.append((units, weighed(digits, total)))
    return lines


EDGES: list[tuple[int, list[int]]] = [
    (1, [1]),
    (-1, [1, 1, 1]),
    (999_999 * UNIT, [1, 2, 3]),
    (999_999 * UNIT + 1, [1, 2, 3]),
    (-999_999 * UNIT - 1, [7, 5]),
    (10**38 - 1, [1, 1, 1]),
    (10**38 - 1, [LIMIT // 2, LIMIT // 2 - 1]),
    (-(10**38) + 1, [LIMIT - 2, 1]),
    (999_999 * UNIT - 1, [LIMIT // 3, LIMIT // 3, LIMIT // 3]),
    (100 * UNIT, [2**31 - 2, 1]),
    (100 * UNIT, [2**31 - 1, 1]),
    (-3 * UNIT, [2**30, 2**30, 2**30]),
    (7, [LIMIT - 8, 1, 1, 1, 1, 1, 1, 1]),
]


@pytest.fixture(scope="module")
def lines() -> list[tuple[int, list[int]]]:
    return [*EDGES, *random_lines(1500)]


def test_amounts_of_every_size_are_right(tmp_path: Path, lines: list[tuple[int, list[int]]]) -> None:
    billing, chargeback = shared_lines(lines)
    assert chargeback.height > 4000
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, chargeback))
    for check in ("apportionment", "weight_total", "line_sum"):
        assert offenders(root, check).rows() == []


def test_of_right_amounts_only_those_that_lack_rows_are_looked_at(
    tmp_path: Path, lines: list[tuple[int, list[int]]]
) -> None:
    """Whatever floating point rounds; else the check would find the same, but read again what is in order.

    Every weight is 0 from when the parts are known, so that the check complains of each row that it looks at.
    """
    billing, chargeback = shared_lines(lines)
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, chargeback))
    with warehouse.open_lake(root) as connection:
        for doubtful in ("parts", "doubts"):
            connection.execute(read_sql("warehouse", doubtful), {"tenant_id": "acme"})
        connection.execute(
            "CREATE TEMP VIEW chargeback AS SELECT * REPLACE (0::BIGINT AS weight) FROM memory.main.chargeback"
        )
        values = {"tenant_id": "acme", **ALL_DAYS}
        looked_at = connection.sql(read_sql("checks", "weight_total"), params=values).pl()
    rows = dict(chargeback.group_by("line_id").len().rows())
    lacking = {number for number, (_, weights) in enumerate(lines, start=1) if rows.get(number, 0) < len(weights)}
    assert set(looked_at["line_id"]) == lacking & rows.keys()


@pytest.mark.parametrize("shift", [1, -1])
def test_a_unit_more_or_less_is_found_wherever_it_is(
    tmp_path: Path, lines: list[tuple[int, list[int]]], shift: int
) -> None:
    billing, chargeback = shared_lines(lines)
    # The largest amounts have no room for a unit more.
    wrong = pl.int_range(pl.len()) % 3 == 0
    moved = (to_units(pl.col("amount")).abs() < 10**37) & wrong
    damaged = chargeback.with_columns(
        amount=pl.when(moved).then(to_amount(to_units(pl.col("amount")) + shift)).otherwise(pl.col("amount"))
    )
    expected = chargeback.filter(moved).select("line_id", "identity_id")
    found = offenders(stored(tmp_path, (BILLING, billing), (CHARGEBACK, damaged)), "apportionment")
    assert found.select("line_id", "identity_id").rows() == expected.rows()
    assert found.select(to_units(pl.col("amount")) - to_units(pl.col("expected"))).unique().rows() == [(shift,)]


@pytest.mark.parametrize("shift", [1, -1])
def test_floating_point_finds_what_is_off_by_more_than_it_rounds(
    tmp_path: Path, lines: list[tuple[int, list[int]]], shift: int
) -> None:
    """By three units and a 2e14th of the part's amount."""
    billing, chargeback = shared_lines(lines)
    moved = (to_units(pl.col("part_amount")).abs() < 10**37) & (pl.int_range(pl.len()) % 3 == 0)
    off = shift * (3 + to_units(pl.col("part_amount")).abs() // (2 * 10**14))
    damaged = chargeback.with_columns(
        amount=pl.when(moved).then(to_amount(to_units(pl.col("amount")) + off)).otherwise(pl.col("amount"))
    )
    expected = chargeback.filter(moved).select("line_id", "identity_id")
    found = offenders(stored(tmp_path, (BILLING, billing), (CHARGEBACK, damaged)), "weight_total")
    assert found.select("line_id", "identity_id").rows() == expected.rows()
    assert found["problem"].unique().to_list() == ["amount"]


# Three lines with rows for all their payers, between two others whose small ones have none.
FIVE: list[tuple[int, list[int]]] = [
    (2, [1, 1, 1, 1]),
    (60, [1, 2, 3]),
    (-100, [10, 20, 30, 40]),
    (90, [3, 3, 3]),
    (3, [5, 1, 1, 5]),
]
SECOND = pl.col("line_id") == 3


def row(line: int, payer: str) -> pl.Expr:
    return (pl.col("line_id") == line) & (pl.col("identity_id") == payer)


def with_value(column: str, value: int | Decimal | None, where: pl.Expr) -> pl.Expr:
    replaced = (
        pl.lit(value, CHARGEBACK.schema[column]) if value is None else pl.lit(value).cast(CHARGEBACK.schema[column])
    )
    return pl.when(where).then(replaced).otherwise(pl.col(column)).alias(column)


DAMAGES: dict[str, tuple[list[pl.Expr], pl.Expr | None, set[tuple[int, str, str]]]] = {
    "nothing": ([], None, set()),
    "the first payer is gone": ([], row(2, "p000"), {(2, "p001", "gap")}),
    "the second payer is gone": ([], row(2, "p001"), {(2, "p002", "gap")}),
    "the last payer is gone": ([], row(2, "p002"), {(2, "p001", "gap")}),
    "the last payer of the last line with all rows is gone": ([], row(4, "p002"), {(4, "p001", "gap")}),
    "a payer of a line that lacks rows is gone": ([], row(5, "p000"), set()),
    "a weight of 0": ([with_value("weight", 0, row(3, "p001"))], None, {(3, "p001", "weight"), (3, "p002", "gap")}),
    "a negative weight": (
        [with_value("weight", -20, row(3, "p001"))],
        None,
        {(3, "p001", "weight"), (3, "p002", "gap")},
    ),
    "a negative beginning": (
        [with_value("weight_before", -1, row(3, "p000"))],
        None,
        {(3, "p000", "weight"), (3, "p001", "gap")},
    ),
    "weights beyond their total": (
        [with_value("weight", 41, row(3, "p003"))],
        None,
        {(3, "p003", "weight"), (3, "p002", "gap")},
    ),
    "numbers that overflow": (
        [with_value("weight", 2**63 - 1, row(3, "p003")), with_value("weight_before", 2**63 - 1, row(3, "p003"))],
        None,
        {(3, "p003", "weight"), (3, "p002", "gap")},
    ),
    "numbers that overflow the other way": (
        [with_value("weight", -(2**63), row(3, "p003")), with_value("weight_total", -(2**63), row(3, "p003"))],
        None,
        {(3, "p003", "weight"), (3, "p002", "gap")},
    ),
    "a total of 0": ([with_value("weight_total", 0, SECOND)], None, {(3, f"p00{n}", "weight") for n in range(4)}),
    "a total that is too large": (
        [with_value("weight_total", LIMIT, SECOND)],
        None,
        {(3, f"p00{n}", "weight") for n in range(4)},
    ),
    "the largest total": (
        [with_value("weight_total", 2**63 - 1, SECOND)],
        None,
        {(3, f"p00{n}", "weight") for n in range(4)},
    ),
    "a null weight": ([with_value("weight", None, row(3, "p000"))], None, {(3, "p000", "weight"), (3, "p001", "gap")}),
    "a null total": (
        [with_value("weight_total", None, row(3, "p000"))],
        None,
        {(3, "p000", "weight"), (3, "p001", "gap")},
    ),
    "a null beginning": (
        [with_value("weight_before", None, row(3, "p000"))],
        None,
        {(3, "p000", "weight"), (3, "p001", "gap")},
    ),
    "a null part amount": (
        [with_value("part_amount", None, row(3, "p000"))],
        None,
        {(3, "p000", "weight")},
    ),
    "a null amount": ([with_value("amount", None, row(3, "p000"))], None, {(3, "p000", "amount")}),
    "a row with another total that gives the same amount": (
        [with_value("weight_total", 101, row(3, "p003"))],
        None,
        {(3, f"p00{n}", "weight_total") for n in range(4)},
    ),
    "a row with another part amount": (
        [with_value("part_amount", Decimal("-0.000000000101"), row(3, "p000"))],
        None,
        {(3, f"p00{n}", "part_amount") for n in range(4)},
    ),
    "a payer's interval within another's": (
        [with_value("weight_before", 20, row(3, "p002"))],
        None,
        {(3, "p002", "overlap"), (3, "p003", "gap")},
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("arrangement", ["in order", "reversed", "in two bills"])
def test_what_does_not_fit_together_is_found_however_the_rows_lie(tmp_path: Path, name: str, arrangement: str) -> None:
    """Days in order are judged by looking at each row's successor, others by sorting: the same findings."""
    changes, gone, expected = DAMAGES[name]
    billing, chargeback = shared_lines(FIVE)
    damaged = chargeback.with_columns(changes).filter(~gone if gone is not None else True)
    if arrangement == "reversed":
        damaged = damaged.reverse()
    if arrangement == "in two bills":
        late = pl.col("line_id").is_in([1, 3])
        damaged = damaged.with_columns(billing_period=pl.when(late).then(pl.lit("2024-02")).otherwise("billing_period"))
    found = offenders(stored(tmp_path, (BILLING, billing), (CHARGEBACK, damaged)), "weight_total")
    assert set(found.select("line_id", "identity_id", "problem").rows()) == expected
    assert found.height == len(expected)


@pytest.mark.parametrize("units", [[0], [100, -100]])
@pytest.mark.parametrize("before", [None, 0])
def test_rows_without_a_weight_beside_others_that_fit_are_found(
    tmp_path: Path, units: list[int], before: int | None
) -> None:
    billing, chargeback = shared_lines([(60, [1, 2, 3])])
    more = [
        chargeback.head(1).with_columns(
            identity_id=pl.lit(f"q{number}"),
            amount=to_amount(pl.lit(one, pl.Int128)),
            weight=pl.lit(None, pl.Int64),
            weight_before=pl.lit(before, pl.Int64),
        )
        for number, one in enumerate(units)
    ]
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, pl.concat([chargeback, *more])))
    found = offenders(root, "weight_total").select("identity_id", "problem").rows()
    assert found == [(f"q{number}", "weight") for number in range(len(units))]


def test_a_duplicate_in_another_file_overlaps(tmp_path: Path) -> None:
    billing, chargeback = shared_lines(FIVE)
    again = chargeback.filter(row(2, "p001")).with_columns(billing_period=pl.lit("2024-02"))
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, pl.concat([chargeback, again])))
    found = offenders(root, "weight_total").select("line_id", "identity_id", "problem").rows()
    assert found == [(2, "p001", "overlap")]
    (twice,) = offenders(root, "duplicate_key").rows(named=True)
    assert (twice["table_name"], twice["line_id"], twice["identity_id"], twice["rows"]) == ("chargeback", 2, "p001", 2)


def test_the_first_row_of_all_is_looked_at_too(tmp_path: Path) -> None:
    billing, chargeback = shared_lines([(60, [1, 2, 3])])
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, chargeback.slice(1)))
    assert offenders(root, "weight_total").select("identity_id", "problem").rows() == [("p001", "gap")]


def test_the_first_row_of_a_later_day_is_looked_at_too(tmp_path: Path) -> None:
    billing, chargeback = shared_lines([(60, [1, 2, 3])])
    _, next_day = shared_lines([(60, [1, 2, 3])], day="2024-01-02")
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, pl.concat([chargeback, next_day.slice(1)])))
    found = offenders(root, "weight_total").select("charge_date", "identity_id", "problem").rows()
    assert found == [(date(2024, 1, 2), "p001", "gap")]
