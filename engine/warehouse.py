"""DuckDB over the lake: views, checks, reports. Everything it says comes from a file in `sql/`.

A connection is a DuckDB in memory in which the views of `sql/views` exist. The same files work in any DuckDB session
after one `SET VARIABLE lake = '...'`; `views_script` prints both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

import duckdb
import polars as pl

from engine.errors import LedgerError, StoreError, fault
from engine.frames import LINE_AS_ROWS
from engine.sqlfiles import names, read_sql

VIEWS = (
    "billing",
    "chargeback",
    "empty_keys",
    "identities",
    "resources",
    "tags",
    "teams",
    "lake_files",
    "payers",
    "chargeback_named",
    "chargeback_daily",
    "chargeback_monthly",
    "unallocated",
    "chargeback_star",
    "chargeback_dimensions",
    "chargeback_facts",
)
"""The views in the order in which they can be made: one may read those before it."""
CHECKED = ("billing", "chargeback", "identities", "lake_files")
"""The views that checks read: to make all takes a third of the time in which a small run is checked."""

SLICE_ROWS = 20_000_000
"""About how many rows one query of a check reads, so that it fits in memory, whatever the run changed."""
_FETCHED_ROWS = 10_000
_LOG_CHECK = "files_vs_log"
"""The one check that looks at files and not at rows."""
_THOROUGH = frozenset({"apportionment"})
"""Checks that do again what a run has just done, and take as long: only `prorata check` makes them."""
_EMPTY_FILE = "tenant_id=_/**/*.parquet"
"""The file without rows that every table has, so that a glob finds one."""
_READABLE = "a lake that can be read"
_SET_FILES = {
    "billing": "SET VARIABLE billing_files = $files",
    "chargeback": "SET VARIABLE chargeback_files = $files",
    "empty_keys": "SET VARIABLE empty_keys_files = $files",
    "identities": "SET VARIABLE identities_files = $files",
    "resources": "SET VARIABLE resources_files = $files",
    "tags": "SET VARIABLE tags_files = $files",
    "teams": "SET VARIABLE teams_files = $files",
}
"""Table -> what tells its view which of the table's files to read."""


_Files = Mapping[str, list[str] | None]
"""Table -> globs below the table's folder; None: all that is there."""


class Finding(NamedTuple):
    """A check that is not met: how many rows offend, and one of them as text."""

    check: str
    rows: int
    example: str


class _Values(NamedTuple):
    """The parameters of a check."""

    tenant_id: str
    from_period: str
    to_period: str
    from_date: date
    to_date: date


def open_lake(
    root: Path, *, views: Sequence[str] = VIEWS, memory_limit: str = "1GB", threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory with views over the lake of a root folder; StoreError if there is no such lake.

    Larger results than `memory_limit` are spilled to `<root>/tmp`. Without `threads` there is one per core.
    """
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(root / "tmp"),
        # A host without a network must not wait for one; what prorata needs comes with DuckDB.
        "autoinstall_known_extensions": False,
        # Checks look at what lies on the disk, not at what a cache remembers of it.
        "enable_external_file_cache": False,
    }
    if threads is not None:
        settings["threads"] = threads
    with _store_errors(str(root / "lake"), "a lake that prorata made"):
        connection = duckdb.connect(":memory:", config=settings)
        connection.execute("SET VARIABLE lake = $lake", {"lake": _lake_glob(root)})
        # Making a view reads the footers of its files: neither their number nor a bad one should matter here.
        _read_only(connection, {table: [_EMPTY_FILE] for table in _SET_FILES})
        for view in views:
            connection.execute(read_sql("views", view))
        _read_only(connection, dict.fromkeys(_SET_FILES))
    return connection


def use_all_cores(connection: duckdb.DuckDBPyConnection) -> None:
    """Take back what `open_lake` was told of threads."""
    connection.execute("RESET threads")


def views_script(root: Path) -> str:
    """SQL that makes the views in any DuckDB session."""
    quoted = _lake_glob(root).replace("'", "''")
    return "\n".join([f"SET VARIABLE lake = '{quoted}';\n", *(read_sql("views", view) for view in VIEWS)])


def report(connection: duckdb.DuckDBPyConnection, name: str, **parameters: str | date | None) -> pl.DataFrame:
    """The rows of a report in `sql/reports`; StoreError if there is none of that name or the lake cannot be read.

    Parameters: `tenant_id` (None: all), `from_date`, `to_date` (exclusive; None: open).
    """
    with _store_errors(f"report {name}", _READABLE):
        found: pl.DataFrame = connection.sql(read_sql("reports", name), params=parameters).pl()
    return found


def check(
    connection: duckdb.DuckDBPyConnection,
    tenant_id: str,
    periods: tuple[str, str],
    dates: tuple[date, date],
    file_log: pl.DataFrame,
    waiting: Iterable[tuple[str, str]] = (),
) -> None:
    """What a run checks; LedgerError that names every check that is not met, how many rows offend, and one of them.

    `waiting`: see `run_checks`.
    """
    findings = run_checks(connection, tenant_id, periods, dates, file_log, waiting, thorough=False)
    if findings:
        raise LedgerError(
            fault(
                f"tenant {tenant_id}: check {finding.check}",
                f"{finding.rows} row(s), for example {finding.example}",
                "none",
            )
            for finding in findings
        )


def run_checks(
    connection: duckdb.DuckDBPyConnection,
    tenant_id: str,
    periods: tuple[str, str],
    dates: tuple[date, date],
    file_log: pl.DataFrame,
    waiting: Iterable[tuple[str, str]] = (),
    *,
    thorough: bool = True,
    slice_rows: int = SLICE_ROWS,
) -> list[Finding]:
    """The findings of every check in `sql/checks` over a tenant's billing periods and days (both ends included).

    Not `thorough`: without those that calculate everything again.

    `file_log` says what the state wrote: table_name, billing_period, charge_date, rows. StoreError if the lake cannot
    be read. Only the days' files are read, about `slice_rows` rows at a time; every row in them is checked, whatever
    day it says. `waiting`: (billing period, day) of days whose chargeback is still to be calculated from their billing.
    Their files are counted only: that they do not add up yet is no fault of the ledger.
    """
    asked = _Values(tenant_id, *periods, *dates)
    left_out = {_LOG_CHECK} if thorough else {_LOG_CHECK, *_THOROUGH}
    row_checks = [name for name in names("checks") if name not in left_out]
    with _store_errors("the lake's files", _READABLE), connection.cursor() as cursor:
        lake, files = _own_files(connection, tenant_id)
        _see(cursor, lake, files)
        cursor.register("file_log", file_log)
        findings = [_finding(cursor, _LOG_CHECK, asked)]
        day_files = cursor.sql(read_sql("warehouse", "day_files"), params=asked._asdict()).pl()
        left = [_day_file(tenant_id, *key) for key in waiting]
        day_files = day_files.filter(~pl.col("file").is_in(left))
        for part in _slices(day_files, slice_rows):
            _see(cursor, lake, {**files, **part})
            findings += _row_findings(cursor, row_checks, tenant_id)
    return _merged([finding for finding in findings if finding.rows])


def add_up(connection: duckdb.DuckDBPyConnection, tenant_id: str, days: Iterable[tuple[str, str]]) -> bool:
    """Whether the rows of some days, (billing period, day) each, meet every check that a run makes of rows.

    Of the lake only the files of these days are read; StoreError if they cannot be.
    """
    row_checks = [name for name in names("checks") if name not in {_LOG_CHECK, *_THOROUGH}]
    with _store_errors("the lake's files", _READABLE), connection.cursor() as cursor:
        lake, files = _own_files(connection, tenant_id)
        day_files = [_day_file(tenant_id, *key) for key in days]
        _see(cursor, lake, {**files, "billing": day_files, "chargeback": day_files})
        return not any(finding.rows for finding in _row_findings(cursor, row_checks, tenant_id))


def _own_files(connection: duckdb.DuckDBPyConnection, tenant_id: str) -> tuple[str, dict[str, list[str]]]:
    """The lake, and which files of it are a tenant's, or the empty one where it has none."""
    lake, *own = connection.sql(read_sql("warehouse", "own_files"), params={"tenant_id": tenant_id}).pl().row(0)
    tables = "billing", "chargeback", "identities"
    glob = f"tenant_id={tenant_id}/**/*.parquet"
    return lake, {table: [glob if has else _EMPTY_FILE] for table, has in zip(tables, own, strict=True)}


def _day_file(tenant_id: str, period: str, day: str) -> str:
    """The file of a day, below the table's folder."""
    return f"tenant_id={tenant_id}/month={period}/{day}.parquet"


def _row_findings(cursor: duckdb.DuckDBPyConnection, checks: Iterable[str], tenant_id: str) -> list[Finding]:
    """What checks find in the files that the views read, in every row, whatever day it says.

    A check that has nothing to look at is met. Only the thorough ones look at all rows.
    """
    every_row = _Values(tenant_id, "", "~", date.min, date.max)
    for table in ("parts", "doubts"):
        cursor.execute(read_sql("warehouse", table), {"tenant_id": tenant_id})
    in_doubt = {name for (name,) in cursor.execute(read_sql("warehouse", "checks_in_doubt")).fetchall()}
    return [_finding(cursor, name, every_row) for name in checks if name in in_doubt | _THOROUGH]


def _see(cursor: duckdb.DuckDBPyConnection, lake: str, files: _Files) -> None:
    """Let the views read a lake, and these files only."""
    cursor.execute("SET VARIABLE lake = $lake", {"lake": lake})
    _read_only(cursor, files)


def _read_only(connection: duckdb.DuckDBPyConnection, files: _Files) -> None:
    """Let the views of tables read these files only."""
    for table, globs in files.items():
        connection.execute(_SET_FILES[table], {"files": globs})


def _slices(day_files: pl.DataFrame, slice_rows: int) -> Iterator[dict[str, list[str]]]:
    """Files by table, for whole days and about `slice_rows` rows: a day's lines and rows stay together."""
    is_line = pl.col("table_name") == "billing"
    days = (
        day_files.group_by("charge_date")
        .agg(size=(pl.col("rows") * pl.when(is_line).then(LINE_AS_ROWS).otherwise(1)).sum())
        .sort("charge_date")
        .select("charge_date", slice=(pl.col("size").cum_sum() - 1) // slice_rows)
    )
    for part in day_files.join(days, on="charge_date").sort("slice", "file").partition_by("slice", maintain_order=True):
        yield {
            table: part.filter(pl.col("table_name") == table)["file"].to_list() or [_EMPTY_FILE]
            for table in ("billing", "chargeback")
        }


def _finding(cursor: duckdb.DuckDBPyConnection, check_name: str, values: _Values) -> Finding:
    """What a check finds in the files that the views read; no rows if it is met."""
    with _store_errors(f"check {check_name}", _READABLE):
        cursor.execute(read_sql("checks", check_name), values._asdict())
        columns = [column[0] for column in cursor.description]
        rows = cursor.fetchmany(_FETCHED_ROWS)
        example = ", ".join(f"{column}={value}" for column, value in zip(columns, rows[0], strict=True)) if rows else ""
        count = 0
        while rows:
            count += len(rows)
            rows = cursor.fetchmany(_FETCHED_ROWS)
    return Finding(check_name, count, example)


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding per check: the counts of all slices, the example of the first."""
    by_check: dict[str, Finding] = {}
    for finding in findings:
        first = by_check.setdefault(finding.check, finding._replace(rows=0))
        by_check[finding.check] = first._replace(rows=first.rows + finding.rows)
    return [by_check[name] for name in sorted(by_check)]


def _lake_glob(root: Path) -> str:
    """The path of the lake as a glob that matches nothing else."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(root.absolute() / "lake"))


@contextmanager
def _store_errors(where: str, expected: str) -> Iterator[None]:
    """Errors of DuckDB as a StoreError of one line."""
    try:
        yield
    except duckdb.Error as error:
        raise StoreError(fault(where, str(error).splitlines()[0], expected)) from error
