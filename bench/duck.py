"""The SQL baselines: DuckDB as it comes, all cores and all memory, with the views of bench/sql."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl


def connected(*views: str) -> duckdb.DuckDBPyConnection:
    """A connection in memory; see `define`."""
    connection = duckdb.connect()
    # Nobody asks for an order; keeping one would cost DuckDB time and memory.
    connection.execute("SET preserve_insertion_order = false")
    define(connection, *views)
    return connection


def define(connection: duckdb.DuckDBPyConnection, *views: str) -> None:
    """Run files of bench/sql, and first what they have in common."""
    for view in ("units", *views):
        connection.execute((Path(__file__).parent / "sql" / f"{view}.sql").read_text(encoding="utf-8"))


def store(connection: duckdb.DuckDBPyConnection, **frames: pl.DataFrame) -> None:
    """Frames as DuckDB's own tables, so that queries start from what DuckDB likes best."""
    for name, frame in frames.items():
        connection.register("incoming", frame)
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM incoming")
        connection.unregister("incoming")


def frame(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame:
    """A query's result."""
    found = connection.sql(query).pl()
    assert isinstance(found, pl.DataFrame)
    return found


def literal(path: Path) -> str:
    """A path as a SQL string: COPY takes no parameter for it."""
    return "'" + str(path).replace("'", "''") + "'"
