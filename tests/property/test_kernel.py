"""What must hold of the kernel for every input."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from engine.allocate import allocate
from engine.frames import CHARGEBACK, MEASURES
from tests.differential.kernel_cases import KernelInput, Row
from tests.property.strategies import DETERMINED, kernel_inputs
from tests.reference import kernel as reference

AMOUNTS = [*MEASURES, "part_amount"]


def rows_of(given_: KernelInput) -> list[dict[str, Any]]:
    """The kernel's rows, amounts in units of 1e-12."""
    rows = allocate(*given_.frames(), measures=MEASURES).collect()
    return rows.with_columns(pl.col(AMOUNTS).reinterpret(dtype=pl.Int128)).to_dicts()


def with_lines(given_: KernelInput, lines: list[Row]) -> KernelInput:
    return given_._replace(lines=lines)


@DETERMINED
@given(kernel_inputs())
def test_every_measure_of_every_line_sums_exactly(given_: KernelInput) -> None:
    sums: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in rows_of(given_):
        for measure in MEASURES:
            sums[row["line_id"], measure].append(row[measure])
    for line in given_.lines:
        for measure in MEASURES:
            found = sums[line["line_id"], measure]
            if line[measure] is None:
                assert set(found) == {None}
            else:
                assert sum(found) == line[measure]


@DETERMINED
@given(kernel_inputs())
def test_rows_of_a_part_sum_to_its_part_amount_and_parts_to_the_line(given_: KernelInput) -> None:
    parts: dict[tuple[int, int], set[int]] = defaultdict(set)
    sums: dict[tuple[int, int], int] = defaultdict(int)
    for row in rows_of(given_):
        key = row["line_id"], row["part"]
        parts[key].add(row["part_amount"])
        sums[key] += row["amount"]
    assert {key: {total} for key, total in sums.items()} == parts


@DETERMINED
@given(kernel_inputs())
def test_a_refund_cancels_its_charge_for_every_identity(given_: KernelInput) -> None:
    def negated(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
        return {name: -value if name in columns and value is not None else value for name, value in row.items()}

    refunds = [negated(line, list(MEASURES)) for line in given_.lines]
    assert rows_of(with_lines(given_, refunds)) == [negated(row, AMOUNTS) for row in rows_of(given_)]


@DETERMINED
@given(kernel_inputs())
def test_every_row_lies_within_one_unit_per_level_of_its_exact_share(given_: KernelInput) -> None:
    shares: dict[int, int] = {rule["part"]: rule["share"] for rule in given_.rules}
    levels = 1 if len(shares) == 1 else 2
    amounts = {line["line_id"]: line["amount"] for line in given_.lines}
    for row in rows_of(given_):
        part = Fraction(amounts[row["line_id"]] * shares[row["part"]], sum(shares.values()))
        assert abs(row["amount"] - part * Fraction(row["weight"], row["weight_total"])) < levels


@DETERMINED
@given(kernel_inputs(), st.integers(0, 2**32))
def test_the_order_of_lines_rules_and_weights_has_no_effect(given_: KernelInput, seed: int) -> None:
    shuffle = random.Random(seed).shuffle
    shuffled = KernelInput([*given_.lines], [*given_.rules], [*given_.weights], given_.drawn)
    for rows in shuffled[:3]:
        shuffle(rows)
    assert rows_of(shuffled) == rows_of(given_)


@DETERMINED
@given(kernel_inputs(largest_weight_total=2**40), st.integers(2, 2**21))
def test_the_scale_of_weights_has_no_effect_on_amounts(given_: KernelInput, factor: int) -> None:
    weights = [{**row, "weight": row["weight"] * factor} for row in given_.weights]
    scaled = rows_of(given_._replace(weights=weights))
    lineage = ("weight_before", "weight")
    expected = [
        {
            **row,
            **{name: row[name] * factor for name in (*lineage, "weight_total") if row["allocation_method"] in WEIGHED},
        }
        for row in rows_of(given_)
    ]
    assert scaled == expected


WEIGHED = ("direct", "usage_ratio", "even_split", "cost_ratio", "fixed", "weighted")


@DETERMINED
@given(kernel_inputs())
def test_a_line_is_split_alike_alone_and_among_others(given_: KernelInput) -> None:
    alone = [row for line in given_.lines for row in rows_of(with_lines(given_, [line]))]
    together = rows_of(given_)
    key = CHARGEBACK.key
    assert sorted(alone, key=lambda row: tuple(row[name] for name in key)) == together


@DETERMINED
@given(kernel_inputs())
def test_rows_come_in_the_order_of_the_key_and_are_unique(given_: KernelInput) -> None:
    keys = [tuple(row[name] for name in CHARGEBACK.key) for row in rows_of(given_)]
    assert keys == sorted(set(keys))


@DETERMINED
@given(kernel_inputs())
def test_only_lines_of_nothing_keep_a_row_of_nothing(given_: KernelInput) -> None:
    rows = rows_of(given_)
    for line in given_.lines:
        own = [row for row in rows if row["line_id"] == line["line_id"]]
        nothing = [row for row in own if not any(row[measure] for measure in MEASURES)]
        assert own
        assert not nothing or (len(own) == 1 and not any(line[measure] for measure in MEASURES))


@DETERMINED
@given(kernel_inputs())
def test_zero_weights_only_tell_the_reason(given_: KernelInput) -> None:
    """A candidate of weight zero gets no row, and changes no amount of others."""
    without = [row for row in given_.weights if row["weight"]]

    def decided(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "allocation_detail": ""} for row in rows]

    assert decided(rows_of(given_._replace(weights=without))) == decided(rows_of(given_))
    assert all(row["weight"] > 0 for row in rows_of(given_))


@DETERMINED
@given(kernel_inputs())
def test_the_plain_walk_agrees(given_: KernelInput) -> None:
    expected = reference.allocate(given_.lines, given_.rules, given_.weights).charges
    found = rows_of(given_)
    compared = [*AMOUNTS, "part", "identity_id", "allocation_detail", "allocation_method", "rung", "weight_before"]
    order = ("charge_date", "line_id", "part", "identity_id")
    walked = [{**charge, **{name: charge["line"][name] for name in ("charge_date", "line_id")}} for charge in expected]
    walked.sort(key=lambda charge: tuple(charge[name] for name in order))
    assert [[row[name] for name in compared] for row in found] == [[row[name] for name in compared] for row in walked]


def test_no_lines_give_no_rows() -> None:
    nothing = KernelInput([], [], [], Counter())
    assert_frame_equal(allocate(*nothing.frames()).collect(), pl.DataFrame(schema=CHARGEBACK.schema))
