"""The rows of a query over the lake, written as a table for people, as CSV, JSON or Parquet.

Decimals are plain and have all their digits. CSV is safe for spreadsheets: a text that one would run as a formula gets
an apostrophe in front.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import duckdb

from engine import sqlfiles, warehouse
from engine.errors import StoreError, UsageError, fault, shown
from engine.text import aligned, printable, spreadsheet_cell

ROWS_IN_TABLE = 1000
"""A table for people ends after so many rows."""
_NUMBERS = (
    "DECIMAL", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT",
    "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE",
)  # fmt: skip


class Rows(NamedTuple):
    """The rows of a query as they come, with the names and types of their columns."""

    names: list[str]
    types: list[str]
    rows: Iterator[tuple[Any, ...]]


class Query(NamedTuple):
    """SQL over the views, the values of its parameters, and the name of the report if it is one of ours."""

    sql: str
    parameters: Mapping[str, str | date | None] = {}
    report: str = ""


def write_query(root: Path, query: Query, form: str, target: TextIO) -> bool:
    """Run a query over the views and write its rows as `table`, `csv` or `json`; whether all of them were written.

    Of a statement that has no rows, such as SET, nothing is written (`[]` as json).
    Raises UsageError, in DuckDB's words, if the query is wrong; StoreError if there is no lake, or a report cannot be
    made of it.
    """
    with warehouse.open_lake(root) as lake, _one_line_errors(query):
        last = _prepared(lake, query.sql)
        return FORMS[form](_rows(last, lake.execute(last, dict(query.parameters))), target)


def write_parquet(root: Path, query: Query, output: Path) -> None:
    """Run a query over the views and write its rows as a Parquet file; errors as in `write_query`."""
    with warehouse.open_lake(root) as lake, _one_line_errors(query), replaced(output) as part:
        relation = lake.sql(_prepared(lake, query.sql), params=dict(query.parameters))
        if relation is None:
            raise UsageError(_NO_ROWS)
        relation.write_parquet(str(part))


def report(name: str, tenant_id: str | None, first: date | None, end: date | None) -> Query:
    """A report of `sql/reports` over the days from `first` to before `end`; UsageError if there is no such report."""
    known = sqlfiles.names("reports")
    if name not in known:
        seen = f"unknown report {shown(name)}" if name else "is missing"
        raise UsageError(fault("NAME", seen, f"one of {', '.join(known)}"))
    return Query(sqlfiles.read_sql("reports", name), {"tenant_id": tenant_id, "from_date": first, "to_date": end}, name)


_NO_ROWS = fault("query", "a statement without rows", "a query, such as SELECT count(*) FROM chargeback")


_TOLD = {("Success", "BOOLEAN"), ("Count", "BIGINT")}
"""Name and type of the one column in which DuckDB tells of a statement that has no rows."""
_MAY_HAVE_NONE = {duckdb.StatementType.PRAGMA, duckdb.StatementType.CALL, duckdb.StatementType.EXECUTE}
"""Kinds of statements of which DuckDB says, before it runs them, that they have rows, although some have none."""


def _prepared(lake: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Run all statements but the last, which is returned.

    UsageError if one of them has rows: DuckDB gives those of the last, so nobody would see them. Where that is known
    without running it, nothing is run.
    """
    statements = lake.extract_statements(sql)
    if not statements:
        raise UsageError(_NO_ROWS)
    *before, last = statements
    for number, one in enumerate(before, start=1):
        if one.expected_result_type == [duckdb.ExpectedResultType.QUERY_RESULT] and one.type not in _MAY_HAVE_NONE:
            raise _has_rows(number, len(statements))
    for number, one in enumerate(before, start=1):
        columns = lake.execute(one).description or []
        if not _TOLD.issuperset((name, str(kind)) for name, kind, *_ in columns):
            raise _has_rows(number, len(statements))
    return last


def _has_rows(number: int, count: int) -> UsageError:
    seen = f"statement {number} of {count} has rows, too"
    return UsageError(fault("query", seen, "one query, the last, and before it only what prepares it"))


@contextmanager
def _one_line_errors(query: Query) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        said = printable(" ".join(str(error).strip().split("\n\n")[0].split()))
        if query.report:
            raise StoreError(fault(f"report {query.report}", said, "a lake that can be read")) from error
        raise UsageError(fault("query", said, "a query over the views")) from error


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `output` when the block ends well; StoreError if it cannot."""
    part = output.with_name(f"{output.name}.part")
    try:
        yield part
        part.replace(output)
    except OSError as error:
        place, reason = error.filename or output, error.strerror or error
        seen = f"cannot be written ({reason})"
        raise StoreError(fault(str(place), seen, "a path that this user may write")) from error
    finally:
        part.unlink(missing_ok=True)


def _rows(statement: duckdb.Statement, result: Any) -> Rows:
    """The rows of a statement that was run; no columns either if it only says that it was done."""
    if result is None or result.description is None:
        raise UsageError(_NO_ROWS)
    names = [str(column[0]) for column in result.description]
    types = [str(column[1]) for column in result.description]
    for name, kind in zip(names, types, strict=True):
        if "WITH TIME ZONE" in kind:
            # DuckDB's client would need a library of time zones for it.
            where = f"query: column {shown(name)}"
            raise UsageError(fault(where, "a time with a time zone", "a cast to TIMESTAMP or VARCHAR"))
    if statement.type != duckdb.StatementType.SELECT and _TOLD.issuperset(zip(names, types, strict=True)):
        told = result.fetchall()
        return Rows(names, types, iter(told)) if told else Rows([], [], iter(()))
    return Rows(names, types, _fetched(result))


def _fetched(result: Any) -> Iterator[tuple[Any, ...]]:
    while rows := result.fetchmany(ROWS_IN_TABLE):
        yield from rows


def _write_table(result: Rows, target: TextIO) -> bool:
    numeric = [index for index, kind in enumerate(result.types) if kind.startswith(_NUMBERS)]
    rows = [[_cell(value) for value in row] for row in islice(result.rows, ROWS_IN_TABLE)]
    if result.names:
        target.writelines(f"{line}\n" for line in aligned([result.names, *rows], right=numeric))
    return next(result.rows, None) is None


def _write_csv(result: Rows, target: TextIO) -> bool:
    writer = csv.writer(target, lineterminator="\n")
    if result.names:
        writer.writerow(map(spreadsheet_cell, result.names))
    for row in result.rows:
        writer.writerow(_csv_cell(value) for value in row)
    return True


def _csv_cell(value: Any) -> str:
    is_number = isinstance(value, int | float | Decimal)
    return _cell(value) if is_number else spreadsheet_cell(_cell(value))


def _write_json(result: Rows, target: TextIO) -> bool:
    before = "["
    for row in result.rows:
        record = {name: _json_value(value) for name, value in zip(result.names, row, strict=True)}
        target.write(f"{before}\n{json.dumps(record, ensure_ascii=False)}")
        before = ","
    target.write("[]\n" if before == "[" else "\n]\n")
    return True


FORMS: dict[str, Callable[[Rows, TextIO], bool]] = {"table": _write_table, "csv": _write_csv, "json": _write_json}
"""How rows are written as text."""


def _cell(value: Any) -> str:
    """A value as text."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case Decimal():
            return f"{value:f}"
        case bytes():
            return value.hex()
        case list() | dict() | tuple():
            return json.dumps(_json_value(value), ensure_ascii=False)
        case _:
            return str(value)


def _json_value(value: Any) -> Any:
    """A value as JSON has it; a decimal, and what else JSON has no exact form for, is text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if abs(value) < float("inf") else str(value)
        case list() | tuple():
            return [_json_value(one) for one in value]
        case dict():
            return {str(key): _json_value(one) for key, one in value.items()}
        case _:
            return _cell(value)
