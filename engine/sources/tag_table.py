"""Tag tables: what a user's CSV files say of identities and resources beside the provider, becomes TAGS.

A tag table has the columns identity, key and value. An entity has a key once, over all files together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from engine import teams
from engine.errors import ContractError, fault, shown
from engine.frames import TAGS, empty, shape
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

_COLUMNS = ("identity", "key", "value")
_EXPECTED_COLUMNS = "identity, key, value"
_VALUE_LETTERS = 500
_KEY = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"

_WRONG: tuple[tuple[str, pl.Expr, str], ...] = (
    ("identity", pl.col("identity") == "", "an id that is not blank"),
    ("key", ~pl.col("key").str.contains(_KEY), "a name of letters, digits, _ and -, of at most 63"),
    ("value", pl.col("value") == "", "a text that is not blank"),
    (
        "value",
        (pl.col("value").str.len_chars() > _VALUE_LETTERS) | pl.col("value").str.contains(r"\p{Cc}"),
        f"a text of at most {_VALUE_LETTERS} letters, without control characters",
    ),
    (
        "value",
        (pl.col("key") == teams.KEY) & teams.is_reserved(pl.col("value")),
        "a team whose name is not reserved",
    ),
)
"""What may be wrong with a row: the column, when, and what was expected."""


def read_tag_tables(paths: Sequence[Path], tenant_id: str) -> pl.DataFrame:
    """The tag tables of a tenant -> TAGS, by id and key; blanks around texts do not count.

    Raises SourceError if a file cannot be read, ContractError with one fault for each wrong column, value or row that
    says again what another says (of many the first are shown, the rest is counted).
    """
    if not paths:
        return empty(TAGS)
    files = [path.absolute() for path in paths]
    rows = pl.concat([_read(path, number) for number, path in enumerate(files)])
    _check_once(rows, files)
    tags = rows.lazy().select(tenant_id=pl.lit(tenant_id), id="identity", key="key", value="value")
    return shape(tags.sort(TAGS.key), TAGS).collect()


def _read(path: Path, number: int) -> pl.DataFrame:
    """The texts of one file, with RECORD and `file`, its number."""
    names = header(path)
    _check_columns(path, names)
    # In one order, so that files whose columns stand in another can be put together.
    texts = {name: pl.col(column(position)).str.strip_chars() for position, name in enumerate(names)}
    rows = collect(
        scan(path, len(names), record=True).select(RECORD, **{name: texts[name] for name in _COLUMNS}), path, len(names)
    )
    check_width(path, len(names))
    _check_values(rows, path)
    return rows.with_columns(file=pl.lit(number))


def _check_columns(path: Path, names: Sequence[str]) -> None:
    where = place(path)
    faults = [fault(where, f"column {name} is missing", _EXPECTED_COLUMNS) for name in _COLUMNS if name not in names]
    for name in dict.fromkeys(names):
        if name not in _COLUMNS:
            faults.append(fault(where, f"unknown column {shown(name)}", _EXPECTED_COLUMNS))
        elif names.count(name) > 1:
            faults.append(fault(where, f"column {name} stands {names.count(name)} times", "it once"))
    if faults:
        raise ContractError(faults)


def _check_values(rows: pl.DataFrame, path: Path) -> None:
    flags = {f"wrong_{number}": condition for number, (_, condition, _) in enumerate(_WRONG)}
    wrong = rows.with_columns(**flags).filter(pl.any_horizontal(*flags))
    if wrong.is_empty():
        return
    examples = wrong.head(FAULTS_SHOWN)
    named = line_places(path, examples[RECORD].to_list())
    total = wrong.select(pl.sum_horizontal(pl.col(*flags).sum())).item()
    raise ContractError(limited(_value_faults(examples, named), total))


def _value_faults(rows: pl.DataFrame, named: dict[int, str]) -> Iterator[str]:
    # Only wrong rows come here, and of these only as many as a message shows.
    for row in rows.iter_rows(named=True):
        for number, (name, _, expected) in enumerate(_WRONG):
            if row[f"wrong_{number}"]:
                yield fault(f"{named[row[RECORD]]}: column {name}", f"value {shown(row[name])}", expected)


def _check_once(rows: pl.DataFrame, paths: Sequence[Path]) -> None:
    """Raise ContractError with one fault for each row whose identity and key stand in an earlier row or file."""
    first = pl.struct("file", RECORD).first().over("identity", "key")
    again = rows.with_columns(first=first).filter(pl.struct("file", RECORD) != pl.col("first"))
    if again.is_empty():
        return
    examples = again.head(FAULTS_SHOWN).select("file", RECORD, "first", "identity", "key")
    named = {
        (number, record): where
        for number, path in enumerate(paths)
        for record, where in line_places(path, _records_of(examples, number)).items()
    }
    faults = [
        fault(
            named[number, record],
            f"key {shown(key)} of {shown(identity)} stands in {named[first['file'], first[RECORD]]} already",
            "every key of an identity once",
        )
        for number, record, first, identity, key in examples.iter_rows()
    ]
    raise ContractError(limited(faults, again.height))


def _records_of(examples: pl.DataFrame, number: int) -> list[int]:
    """The records of one file that messages name."""
    firsts = examples.select(pl.col("first").struct.unnest())
    both = pl.concat([examples.select("file", RECORD), firsts])
    return both.filter(pl.col("file") == number)[RECORD].unique().to_list()
