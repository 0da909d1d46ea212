"""Results are compared before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from bench.measure import WrongResultError


def check_same(found: pl.DataFrame, expected: pl.DataFrame, key: Sequence[str]) -> None:
    """WrongResultError unless both hold the same rows, to the last digit. Columns are those of `expected`."""
    mine = found.select(expected.columns).cast(expected.schema).sort(key)
    theirs = expected.sort(key)
    if mine.height != theirs.height:
        raise WrongResultError(f"{mine.height} rows; expected {theirs.height}")
    if not mine.equals(theirs):
        differs = pl.any_horizontal(mine[name].ne_missing(theirs[name]) for name in theirs.columns)
        wrong = mine.filter(differs)
        raise WrongResultError(f"{wrong.height} rows differ, the first: {wrong.row(0, named=True)}")


def check_near(
    found: pl.DataFrame, expected: pl.DataFrame, key: Sequence[str], value: str, tolerance: float = 1e-9
) -> None:
    """WrongResultError unless both have the same keys, and values within the tolerance, of 1 or of larger values."""
    mine, theirs = found.select(*key, value).sort(key), expected.select(*key, value).sort(key)
    if mine.height != theirs.height:
        raise WrongResultError(f"{mine.height} rows; expected {theirs.height}")
    check_same(mine.select(key), theirs.select(key), key)
    exact = theirs[value].cast(pl.Float64)
    off = (mine[value].cast(pl.Float64) - exact).abs() / pl.select(pl.max_horizontal(exact.abs(), 1.0)).to_series()
    wrong = mine.filter(~(off <= tolerance).fill_null(value=False))
    if wrong.height:
        raise WrongResultError(f"{wrong.height} rows are off, the first: {wrong.row(0, named=True)}")
