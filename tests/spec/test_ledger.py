"""The bill of data/fixtures/aws/ledger comes out as worked out on paper, from both header dialects."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from engine import decide, pipeline
from engine.frames import tag_key
from engine.sources import aws_cur

FIXTURES = Path(__file__).parents[2] / "data" / "fixtures" / "aws"
LEDGER, SNAKE = FIXTURES / "ledger", FIXTURES / "ledger_snake"
COLUMNS = (
    "billing_period", "charge_date", "product_category", "product_type", "line_item_type", "sub_account_id",
    "resource_id", "part", "identity_id", "amount", "currency", "cost_type", "allocation_method", "allocation_detail",
    "rule_id", "rung",
)  # fmt: skip
"""The columns of expected.txt."""


def expected_rows() -> list[tuple[str, ...]]:
    text = (LEDGER / "expected.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return sorted(tuple(cell.strip() for cell in line.split("|")) for line in lines)


def loads(folder: Path) -> list[aws_cur.Load]:
    return [aws_cur.load(assembly, "ledger") for assembly in aws_cur.discover(folder / "cur", None)]


def chargeback(folder: Path) -> pl.DataFrame:
    given = pipeline.inputs(pipeline.configured(LEDGER / "prorata.yaml").tenants[0])
    return pl.concat(decide.allocate_period(load.billing, given).chargeback for load in loads(folder))


@pytest.mark.parametrize("folder", [LEDGER, SNAKE], ids=["slash", "snake"])
def test_chargeback_is_what_was_worked_out_by_hand(folder: Path) -> None:
    found = chargeback(folder).select(pl.col(COLUMNS).cast(pl.String))
    assert sorted(found.rows()) == expected_rows()


def test_dialects_give_the_same_rows_and_ids() -> None:
    assert chargeback(LEDGER).equals(chargeback(SNAKE))


def test_billed_and_residue() -> None:
    october, november = loads(LEDGER)
    assert october.amounts == {"USD": Decimal("11.617283945066")}
    assert november.amounts == {
        "EUR": Decimal(11),
        "GBP": Decimal("0.5"),
        "USD": Decimal("266.090000400001"),
    }
    assert october.residue == Decimal("-0.0000000000009999999")
    assert november.residue == 0
    assert (october.days_outside_period, november.days_outside_period) == (0, 1)


def test_snake_differs_in_nothing_but_the_header() -> None:
    files = sorted(file.relative_to(LEDGER) for file in LEDGER.glob("cur/**/*.*"))
    assert files == sorted(file.relative_to(SNAKE) for file in SNAKE.glob("cur/**/*.*"))
    for file in files:
        slash, snake = ((folder / file).read_text(encoding="utf-8") for folder in (LEDGER, SNAKE))
        if file.suffix == ".csv":
            (names, _, slash), (spelled, _, snake) = slash.partition("\n"), snake.partition("\n")
            assert [tag_key(name) for name in next(csv.reader([names]))] == next(csv.reader([spelled]))
        assert slash == snake
