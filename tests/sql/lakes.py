"""Small lakes made by hand: tables written as text, stored as Parquet where a lake has them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path

import polars as pl

from engine import lake, warehouse
from engine.frames import BILLING, CHARGEBACK, LAKE_TABLES, Table, shape
from engine.money import UNITS, to_amount
from engine.sqlfiles import read_sql

ALL_DAYS = {"from_period": "0000-00", "to_period": "9999-99", "from_date": date.min, "to_date": date.max}


def table(of: Table, text: str, **constants: str) -> pl.DataFrame:
    """A frame from lines of `a | b`, the first of which names columns. '-' is null; what is not named is '' or null."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    rows = pl.DataFrame(lines[1:], schema=dict.fromkeys(lines[0], pl.String), orient="row")
    given = rows.with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    texts = {name for name, dtype in of.schema.items() if dtype == pl.String}
    missing = [name for name in of.schema if name not in given.columns]
    return shape(
        given.with_columns(pl.lit("" if name in texts else None, pl.String).alias(name) for name in missing)
        .select(
            _typed(pl.when(pl.col(name) != "-").then(pl.col(name)), dtype).alias(name)
            for name, dtype in of.schema.items()
        )
        .lazy(),
        of,
    ).collect()


def _typed(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return column.str.to_date() if dtype == pl.Date else column.cast(dtype)


def text(frame: pl.DataFrame) -> str:
    """A frame as lines of `a | b`; amounts without trailing zeros."""
    return "\n".join([" | ".join(frame.columns), *(" | ".join(map(_cell, row)) for row in frame.rows())])


def _cell(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}".rstrip("0").rstrip(".")
    return "-" if value is None else str(value)


def stored(root: Path, *tables: tuple[Table, pl.DataFrame]) -> Path:
    """Write tables where a lake has them, and an empty file of each of its tables; the root."""
    for of in LAKE_TABLES:
        month = "month=_" if "charge_date" in of.schema else ""
        folder = root / "lake" / of.name / "tenant_id=_" / month
        folder.mkdir(parents=True)
        pl.DataFrame(schema=of.schema).write_parquet(folder / "empty.parquet")
    for of, rows in tables:
        for path, part in _files(root, of, rows):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_parquet(path)
    return root


def _files(root: Path, of: Table, rows: pl.DataFrame) -> Iterator[tuple[Path, pl.DataFrame]]:
    if "charge_date" not in of.schema:
        for (tenant,), part in rows.partition_by("tenant_id", as_dict=True).items():
            yield root / "lake" / of.name / f"tenant_id={tenant}" / "current.parquet", part
        return
    for (tenant, period, day), part in rows.partition_by(
        "tenant_id", "billing_period", "charge_date", as_dict=True, maintain_order=True
    ).items():
        yield lake.Place(of, tenant, period, day).path(root), part


def split(units: int, weights: list[int]) -> list[int]:
    """The shares of an amount: floors of exact prefix shares, so that they sum to it."""
    total, ends = sum(weights), [0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    floors = [floor(Fraction(abs(units) * end, total)) for end in ends]
    sign = -1 if units < 0 else 1
    return [sign * (after - before) for before, after in pairwise(floors)]


def shared_lines(lines: list[tuple[int, list[int]]], *, day: str = "2024-01-01") -> tuple[pl.DataFrame, pl.DataFrame]:
    """BILLING and CHARGEBACK of lines (units, weights of payers), as the kernel would store them: 0 has no row.

    The lines are numbered from 1, the payers p000, p001, ...
    """
    labels = {"tenant_id": "acme", "charge_date": day, "billing_period": day[:7], "currency": "USD"}
    billing = [(number, units) for number, (units, _) in enumerate(lines, start=1)]
    rows = [
        (number, f"p{payer:03}", share, units, sum(weights[:payer]), weights[payer], sum(weights))
        for number, (units, weights) in enumerate(lines, start=1)
        for payer, share in enumerate(split(units, weights))
        if share
    ]
    fact = ["line_id", "identity_id", "_amount", "_part_amount", "weight_before", "weight", "weight_total"]
    wide = {"_amount": pl.Int128, "_part_amount": pl.Int128}
    lines_frame = pl.DataFrame(billing, schema={"line_id": pl.Int64, "_amount": pl.Int128}, orient="row")
    rows_frame = pl.DataFrame(rows, schema={name: wide.get(name) for name in fact}, orient="row")
    return (
        _completed(lines_frame, BILLING, labels),
        _completed(rows_frame, CHARGEBACK, {**labels, "part": "0", "rung": "0", "cost_type": "usage"}),
    )


def _completed(rows: pl.DataFrame, of: Table, constants: dict[str, str]) -> pl.DataFrame:
    amounts = {name.removeprefix("_"): to_amount(pl.col(name)) for name in rows.columns if name.startswith("_")}
    blanks = {name: "" for name, dtype in of.schema.items() if dtype == pl.String}
    given = rows.with_columns(**amounts)
    return given.with_columns(
        _typed(pl.lit({**blanks, **constants}.get(name), pl.String), dtype).alias(name)
        for name, dtype in of.schema.items()
        if name not in given.columns
    ).select(of.columns)


def amount(units: int) -> str:
    """Units as a decimal text with all decimals."""
    sign = "-" if units < 0 else ""
    return f"{sign}{abs(units) // UNITS}.{abs(units) % UNITS:012}"


def offenders(root: Path, check: str) -> pl.DataFrame:
    """The rows that a check finds in the whole of acme's lake, as an analyst would run it."""
    with warehouse.open_lake(root) as connection:
        values = {"tenant_id": "acme", **ALL_DAYS}
        for doubtful in ("parts", "doubts"):
            connection.execute(read_sql("warehouse", doubtful), {"tenant_id": "acme"})
        found: pl.DataFrame = connection.sql(read_sql("checks", check), params=values).pl()
    return found


def queried(root: Path, query: str) -> pl.DataFrame:
    """The rows of a query over the views."""
    with warehouse.open_lake(root) as connection:
        found: pl.DataFrame = connection.sql(query).pl()
    return found
