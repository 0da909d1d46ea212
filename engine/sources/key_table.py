"""Key tables: what usage keys say of identities, from the user's CSV or Parquet files, becomes USAGE.

A key table has the columns identity, key and value, and date (YYYY-MM-DD) or period (YYYY-MM) or both, of which each
row fills one. A key is dated or by period throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from engine.errors import ContractError, SourceError, fault, shown
from engine.frames import USAGE, shape
from engine.money import parse_amount, rounding_residue
from engine.sources.csv_text import (
    FAULTS_SHOWN,
    RECORD,
    check_width,
    collect,
    column,
    header,
    limited,
    line_places,
    place,
    scan,
)

_NEEDED = ("identity", "key", "value")
_WINDOWS = ("date", "period")
_COLUMNS = (*_NEEDED, *_WINDOWS)
_EXPECTED_COLUMNS = "identity, key, value, and date or period"
_TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum, pl.Null)

_DATE = r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}$"
_PERIOD = r"^[12][0-9]{3}-(?:0[1-9]|1[0-2])$"

Places = Callable[[Sequence[int]], dict[int, str]]
"""How messages name rows: row numbers from 0 -> `file:line` or `file: row N`."""


def read_key_table(path: Path, tenant_id: str) -> pl.DataFrame:
    """A key table -> USAGE, by key columns: metric is the key, principal the identity as written, resource_id ''.

    Rows of one key may repeat: they are samples. Raises SourceError if the file cannot be read, ContractError with one
    fault for each wrong column or row (of many the first are shown, the rest is counted).
    """
    path = path.absolute()
    rows, places = _rows(path)
    return _usage(rows, tenant_id, path, places)


def first_row(path: Path, identities: Sequence[str]) -> str:
    """How a message names the first row of any of these identities; the file is read again for it."""
    path = path.absolute()
    rows, places = _rows(path)
    found = rows.filter(pl.col("identity").str.strip_chars().is_in(identities))[RECORD].head(1)
    return next(iter(places(found.to_list()).values()), place(path))


def _rows(path: Path) -> tuple[pl.DataFrame, Places]:
    """The texts of a key table, with RECORD, and how its rows are named."""
    if path.suffix == ".parquet":
        return _parquet_rows(path), lambda numbers: _row_places(path, numbers)
    if path.name.endswith((".csv", ".csv.gz")):
        return _csv_rows(path), lambda numbers: line_places(path, numbers)
    raise SourceError(
        fault(place(path), "neither CSV nor Parquet by its name", "a name that ends in .csv, .csv.gz or .parquet")
    )


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise ContractError unless the columns are those of a key table."""
    where = place(path)
    faults = [fault(where, f"column {name} is missing", _EXPECTED_COLUMNS) for name in _NEEDED if name not in names]
    if not set(_WINDOWS) & set(names):
        faults.append(fault(where, "columns date and period are both missing", _EXPECTED_COLUMNS))
    for name in dict.fromkeys(names):
        if name not in _COLUMNS:
            faults.append(fault(where, f"unknown column {shown(name)}", _EXPECTED_COLUMNS))
        elif names.count(name) > 1:
            faults.append(fault(where, f"column {name} stands {names.count(name)} times", "it once"))
    if faults:
        raise ContractError(faults)


def _csv_rows(path: Path) -> pl.DataFrame:
    """The texts of a CSV file, with RECORD."""
    names = header(path)
    _check_columns(path, names)
    positions = {name: pl.col(column(position)) for position, name in enumerate(names)}
    rows = collect(scan(path, len(names), record=True).select(RECORD, **positions), path, len(names))
    check_width(path, len(names))
    return rows


def _parquet_rows(path: Path) -> pl.DataFrame:
    """The values of a Parquet file as texts, with RECORD; null becomes ''."""
    try:
        frame = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise SourceError(fault(place(path), f"not readable as Parquet ({reason})", "a whole Parquet file")) from error
    _check_columns(path, frame.columns)
    faults = [
        fault(f"{place(path)}: column {name}", f"dtype {dtype}", expected)
        for name, dtype in frame.schema.items()
        if (expected := _wrong_dtype(name, dtype))
    ]
    if faults:
        raise ContractError(faults)
    # A float becomes the shortest text that reads back as the same float: no digits that nobody wrote.
    return frame.select(pl.all().cast(pl.String).fill_null("")).with_row_index(RECORD)


def _wrong_dtype(name: str, dtype: pl.DataType) -> str:
    """What was expected, if a column of this dtype cannot be read; else ''."""
    if dtype in _TEXT_TYPES:
        return ""
    if name == "value":
        return "" if dtype.is_numeric() else "numbers or text"
    if name == "date":
        return "" if dtype == pl.Date else "dates or text"
    return "text"


def _row_places(path: Path, numbers: Sequence[int]) -> dict[int, str]:
    return {number: f"{place(path)}: row {number + 1}" for number in numbers}


def _usage(rows: pl.DataFrame, tenant_id: str, path: Path, places: Places) -> pl.DataFrame:
    """Texts of key table rows -> USAGE, or ContractError with what is wrong with them."""
    texts = {name: pl.col(name) if name in rows.columns else pl.lit("") for name in _COLUMNS}
    told = rows.select(
        RECORD,
        "value",
        identity=texts["identity"].str.strip_chars(),
        key=texts["key"].str.strip_chars(),
        date=texts["date"],
        period=texts["period"],
        number=parse_amount(texts["value"]),
    )
    _check_rows(told, places)
    _check_kinds(told, path, places)
    usage = told.select(
        tenant_id=pl.lit(tenant_id),
        window=pl.when(pl.col("date") != "").then("date").otherwise("period"),
        resource_id=pl.lit(""),
        metric="key",
        principal="identity",
        value="number",
    ).sort(*USAGE.key, "value")
    return shape(usage.lazy(), USAGE).collect()


_DAY = pl.col("date").str.to_date("%Y-%m-%d", strict=False)
_WRONG: tuple[tuple[str, pl.Expr, str], ...] = (
    ("identity", pl.col("identity") == "", "a name that is not blank"),
    ("key", pl.col("key") == "", "a name that is not blank"),
    ("value", pl.col("number").is_null(), "a decimal number of at most 26 digits before the point"),
    (
        "value",
        (pl.col("number") == 0) & (rounding_residue(pl.col("value")).fill_null(0) != 0),
        "0, or a number that twelve decimals tell from 0",
    ),
    ("value", pl.col("number") < 0, "a number that is not negative"),
    (
        "date",
        (pl.col("date") != "") & ~(pl.col("date").str.contains(_DATE) & _DAY.is_not_null()),
        "a date (YYYY-MM-DD)",
    ),
    ("period", (pl.col("period") != "") & ~pl.col("period").str.contains(_PERIOD), "a month (YYYY-MM)"),
)
"""What may be wrong with a row: the column, when, and what was expected."""
_WINDOWS_FILLED = (pl.col("date") != "").cast(pl.UInt8) + (pl.col("period") != "").cast(pl.UInt8)


def _check_rows(told: pl.DataFrame, places: Places) -> None:
    """Raise ContractError with one fault for each wrong value, or row that fills both or none of date and period."""
    flags = {f"wrong_{number}": condition.fill_null(value=False) for number, (_, condition, _) in enumerate(_WRONG)}
    flagged = told.with_columns(**flags, windows=_WINDOWS_FILLED)
    wrong = flagged.filter(pl.any_horizontal(*flags, pl.col("windows") != 1))
    if wrong.is_empty():
        return
    shown_rows = wrong.head(FAULTS_SHOWN)
    named = places(shown_rows[RECORD].to_list())
    faults = list(_row_faults(shown_rows, named))
    total = wrong.select(pl.sum_horizontal(pl.col(*flags).sum()) + (pl.col("windows") != 1).sum()).item()
    raise ContractError(limited(faults, total))


def _row_faults(rows: pl.DataFrame, named: dict[int, str]) -> Iterator[str]:
    # Only wrong rows come here, and of these only as many as a message shows.
    for row in rows.iter_rows(named=True):
        where = named[row[RECORD]]
        for number, (name, _, expected) in enumerate(_WRONG):
            if row[f"wrong_{number}"]:
                yield fault(f"{where}: column {name}", f"value {shown(row[name])}", expected)
        if row["windows"] != 1:
            seen = f"date {shown(row['date'])} and period {shown(row['period'])}"
            yield fault(where, seen, "one of the two and the other empty")


def _check_kinds(told: pl.DataFrame, path: Path, places: Places) -> None:
    """Raise ContractError with one fault for each key that is dated in some rows and by period in others."""
    mixed = (
        told.lazy()
        .group_by("key")
        .agg(
            pl.col(RECORD).filter(pl.col("date") != "").min().alias("dated"),
            pl.col(RECORD).filter(pl.col("period") != "").min().alias("by_period"),
        )
        .drop_nulls()
        .sort("key")
        .collect()
    )
    examples = mixed.head(FAULTS_SHOWN)
    named = places([*examples["dated"], *examples["by_period"]])
    faults = [
        fault(
            f"{place(path)}: key {shown(key)}",
            f"dated at {named[dated]}, by period at {named[by_period]}",
            "dates or periods throughout",
        )
        for key, dated, by_period in examples.iter_rows()
    ]
    if faults:
        raise ContractError(limited(faults, mixed.height))
