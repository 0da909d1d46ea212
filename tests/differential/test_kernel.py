"""The kernel, hand-written exact SQL and a plain-Python walk give the same rows, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import allocate as kernel
from engine import frames
from engine.allocate import allocate
from engine.frames import BILLING, CHARGEBACK, MEASURES
from tests.differential.kernel_cases import (
    CARRIED,
    LAST_BASES,
    NARROW,
    WEIGHING_BASES,
    WIDE,
    KernelInput,
    Limits,
    frame,
    kernel_cases,
)
from tests.reference import kernel as reference

SQL = Path(__file__).parent / "sql"
BATCHES = {
    "all": (2, WIDE),
    "all again": (3, WIDE),
    "narrow": (5, NARROW),
    "narrow amounts": (7, Limits(NARROW.units, WIDE.weight_total)),
    "narrow weights": (11, Limits(WIDE.units, NARROW.weight_total)),
}
CASES = 1000
"""Per batch: thousands in all, of each of which every line is compared."""


@pytest.fixture(scope="module", params=BATCHES.values(), ids=list(BATCHES))
def cases(request: pytest.FixtureRequest) -> KernelInput:
    seed, limits = request.param
    return kernel_cases(seed, CASES, limits)


@pytest.fixture(scope="module")
def rows(cases: KernelInput) -> pl.DataFrame:
    """What the kernel makes of the cases."""
    found = allocate(*cases.frames(), measures=MEASURES, calculation_id="c").collect()
    return found.cast({column: pl.String for column, dtype in CHARGEBACK.schema.items() if dtype == pl.String})


@pytest.fixture(scope="module")
def expected(cases: KernelInput) -> reference.Outcome:
    return reference.allocate(cases.lines, cases.rules, cases.weights)


def sql_rows(lines: pl.DataFrame, rules: pl.DataFrame, weights: pl.DataFrame) -> pl.DataFrame:
    with duckdb.connect() as connection:
        connection.execute("set threads = 2")
        connection.execute((SQL / "money.sql").read_text(encoding="utf-8"))
        for name, table in {"billing_lines": lines, "rules": rules, "weights": weights}.items():
            connection.register(name, table)
        query = (SQL / "chargeback.sql").read_text(encoding="utf-8")
        found: pl.DataFrame = connection.sql(query, params={"calculation_id": "c"}).pl()
        return found


def reference_rows(outcome: reference.Outcome) -> pl.DataFrame:
    """Charges of the plain-Python walk as CHARGEBACK."""
    carried = ("tenant_id", "charge_date", "line_id", "resource_id", "currency", "rule_id", *CARRIED)
    amounts = [*MEASURES, "part_amount"]
    rows: list[dict[str, Any]] = [
        {**charge, **{column: charge["line"][column] for column in carried}, "calculation_id": "c"}
        for charge in outcome.charges
    ]
    units = frame(rows, {**CHARGEBACK.schema, **dict.fromkeys(amounts, pl.Int128())})
    return units.with_columns(pl.col(amounts).reinterpret(dtype=pl.Decimal(38, 12))).sort(CHARGEBACK.key)


def test_kernel_gives_the_rows_of_exact_sql(cases: KernelInput, rows: pl.DataFrame) -> None:
    assert_frame_equal(rows, sql_rows(*cases.frames()))


def test_kernel_gives_the_rows_of_the_plain_walk(rows: pl.DataFrame, expected: reference.Outcome) -> None:
    assert_frame_equal(rows, reference_rows(expected))


def test_one_measure_gives_the_rows_of_exact_sql_without_the_others(cases: KernelInput) -> None:
    lines, rules, weights = cases.frames()
    alone = lines.with_columns(pl.lit(None, lines.schema[measure]).alias(measure) for measure in MEASURES[1:])
    found = allocate(lines, rules, weights, calculation_id="c").collect()
    assert_frame_equal(found, sql_rows(alone, rules, weights), categorical_as_str=True)


def test_codes_instead_of_texts_and_slices_instead_of_all_give_the_same_rows(
    cases: KernelInput, rows: pl.DataFrame
) -> None:
    """The way a run takes: text encoded, the fan-out in slices of some lines."""
    lines, rules, weights = cases.frames()
    codes = frames.encoded(lines.sort(BILLING.key))
    decided = kernel.encoded(kernel.plan(codes, rules, weights), codes)
    split = kernel.split(codes, decided, measures=MEASURES)
    slices = [
        frames.decoded(kernel.whole(kernel.fan_out(slice_, measures=MEASURES, calculation_id="c")).lazy()).collect()
        for slice_ in kernel.chunks(split, 1000)
    ]
    assert len(slices) > 10
    assert_frame_equal(pl.concat(slices), rows)


def test_every_row_lies_within_one_unit_per_level_of_its_exact_share(expected: reference.Outcome) -> None:
    # Two levels: the parts of a line, the identities of a part. The rows are the kernel's, as the test above shows.
    assert all(abs(charge["amount"] - charge["exact_amount"]) < 2 for charge in expected.charges)


def test_every_line_is_there_and_sums_exactly(cases: KernelInput, rows: pl.DataFrame) -> None:
    sums: dict[int, list[int]] = {}
    for line_id, amount in rows.select("line_id", pl.col("amount").reinterpret(dtype=pl.Int128)).iter_rows():
        sums.setdefault(line_id, []).append(amount)
    # Summed in Python: near 1e38 a sum of 128 bits may wrap.
    assert {line_id: sum(amounts) for line_id, amounts in sums.items()} == {
        line["line_id"]: line["amount"] for line in cases.lines
    }


def test_a_batch_draws_every_kind_of_amount_weight_and_share(cases: KernelInput) -> None:
    amounts = ("unit", "tiny", "everyday", "digits", "huge", "largest")
    weights = ("missing", "one zero", "all zero", "one", "few", "some zero", "largest", "near the largest", "many")
    wanted = [
        "amount zero",
        *(f"amount {kind}{sign}" for kind in amounts for sign in ("", " negative")),
        *(f"weights {kind}" for kind in weights),
        *(f"parts {kind}" for kind in ("whole", "two", "thirds", "odd", "lopsided", "largest")),
        "line with resource",
        "line without resource",
        "measure null",
    ]
    assert {kind: cases.drawn[kind] for kind in wanted if cases.drawn[kind] < 30} == {}


def test_a_batch_reaches_every_outcome_of_every_basis(expected: reference.Outcome) -> None:
    wanted = [(basis, outcome) for basis in WEIGHING_BASES for outcome in ("held", "empty_key", "zero_key_total")]
    wanted += [
        (basis, outcome) for basis in LAST_BASES for outcome in ("took the rest", "took the rest without resource")
    ]
    assert {pair: expected.rungs[pair] for pair in wanted if expected.rungs[pair] < 20} == {}
