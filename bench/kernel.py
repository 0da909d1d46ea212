"""The kernel in memory: lines, rules and weights are there, and rows come out; nothing is read or written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import polars as pl
from duckdb import DuckDBPyConnection

from bench import duck
from bench.compare import check_near, check_same
from bench.data import KernelCase, kernel_case
from bench.measure import Answer, Case, SizeName, Target, Variant, Watch
from bench.row_loop import Ladders, charges
from engine import allocate, frames, lake, money
from engine.frames import BILLING

SIZES = {"full": (1_000_000, 1_000), "quick": (100_000, 100), "tiny": (500, 20)}
"""Lines, and weight groups of 20 identities each."""
IDENTITIES = 20
SAMPLE_LINES = 20_000
AT_ONCE = 2
ROW = ["line_id", "identity_id"]
_T = TypeVar("_T")


def prepare(folder: Path, size: SizeName) -> None:
    """The case, and what its rows should be: the library's answer, checked line by line and against a row loop."""
    lines, groups = SIZES[size]
    case = kernel_case(lines=lines, identities=IDENTITIES, groups=groups, days=1)
    for name, frame in case._asdict().items():
        frame.write_parquet(folder / f"{name}.parquet")
    found = allocate.fan_out(allocate.split(case.lines, allocate.plan(*case)))
    allocate.check_line_sums(case.lines, found)
    allocate.whole(found).select(*ROW, "amount").write_parquet(folder / "expected.parquet")
    sample = _python(folder, Watch())
    check(folder, "plain Python, sample", sample)


def _case(folder: Path) -> KernelCase:
    return KernelCase(*(pl.read_parquet(folder / f"{name}.parquet") for name in KernelCase._fields))


def _worked(case: KernelCase, done: Callable[[pl.DataFrame], _T]) -> list[_T]:
    """All that happens to a day's lines between read and written: CHARGEBACK in chunks, each line's sum checked.

    Two chunks at a time, as the pipeline does days. What `done` makes of each is kept.
    """
    lines = frames.encoded(case.lines)
    decided = allocate.encoded(allocate.plan(lines, case.rules, case.weights), lines)

    def work(start: int, chunk: allocate.Split) -> _T:
        found = allocate.fan_out(chunk, calculation_id="bench")
        allocate.check_line_sums(lines.slice(start, _lines(chunk)), found)
        return done(allocate.whole(found))

    chunks = list(allocate.chunks(allocate.split(lines, decided), lake.ROW_GROUP_ROWS))
    starts = accumulate(map(_lines, chunks), initial=0)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, starts, chunks))


def _lines(chunk: allocate.Split) -> int:
    return int(chunk.rows["_lead"].sum())


def _prorata(folder: Path, watch: Watch) -> Answer:
    case = _case(folder)
    with watch.timed():
        rows = sum(_worked(case, lambda chunk: chunk.height))
    return Answer(rows, lambda: pl.concat(_worked(case, lambda chunk: chunk.select(*ROW, "amount"))))


def _prorata_kept(folder: Path, watch: Watch) -> Answer:
    case = _case(folder)
    with watch.timed():
        kept = pl.concat(_worked(case, lambda chunk: chunk))
    return Answer(kept.height, lambda: kept)


def _prorata_sums(folder: Path, watch: Watch) -> Answer:
    case = _case(folder)
    with watch.timed():
        needed = case.lines.select(*BILLING.key, "amount", "rule_id", "weight_scope")
        lines = frames.encoded(needed, ["rule_id", "weight_scope"])
        decided = allocate.encoded(allocate.plan(lines, case.rules, case.weights), lines)
        chunks = allocate.chunks(allocate.split(lines, decided), lake.ROW_GROUP_ROWS)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sums = _added(pl.concat(pool.map(_summed, chunks)))
    return Answer(int(sums["rows"].sum()), lambda: sums)


def _summed(chunk: allocate.Split) -> pl.DataFrame:
    rows = allocate.fan_out(chunk, columns=["identity_id", "amount"]).varied
    return _added(rows.with_columns(rows=pl.lit(1, pl.Int64)))


def _added(rows: pl.DataFrame) -> pl.DataFrame:
    added = rows.group_by("identity_id").agg(money.to_units(pl.col("amount")).sum(), pl.col("rows").sum())
    return added.with_columns(money.to_amount(pl.col("amount")))


def _kept(view: str) -> Callable[[Path, Watch], Answer]:
    def run(folder: Path, watch: Watch) -> Answer:
        connection = _duckdb(folder, view)
        with watch.timed():
            connection.execute(f"CREATE TEMP TABLE kept AS FROM {view}")
        rows = duck.frame(connection, "SELECT count(*) FROM kept").item()
        return Answer(rows, lambda: duck.frame(connection, "SELECT line_id, identity_id, amount FROM kept"))

    return run


def _streamed(view: str) -> Callable[[Path, Watch], Answer]:
    def run(folder: Path, watch: Watch) -> Answer:
        connection, rows = _duckdb(folder, view), 0
        with watch.timed():
            for batch in connection.sql(f"FROM {view}").to_arrow_reader(lake.ROW_GROUP_ROWS):
                rows += batch.num_rows
        return Answer(rows, lambda: duck.frame(connection, f"SELECT line_id, identity_id, amount FROM {view}"))

    return run


def _sums(view: str) -> Callable[[Path, Watch], Answer]:
    def run(folder: Path, watch: Watch) -> Answer:
        connection = _duckdb(folder, view)
        query = f"SELECT identity_id, sum(amount) AS amount, count(*) AS rows FROM {view} GROUP BY identity_id"
        with watch.timed():
            sums = duck.frame(connection, query)
        return Answer(int(sums["rows"].sum()), lambda: sums)

    return run


def _duckdb(folder: Path, view: str) -> DuckDBPyConnection:
    connection = duck.connected()
    duck.store(connection, **_case(folder)._asdict())
    duck.define(connection, "shares", view)
    return connection


def _python(folder: Path, watch: Watch) -> Answer:
    case = _case(folder)
    # A loop over rows is what the kernel is compared with here.
    lines, rules, weights = (frame.to_dicts() for frame in (case.lines.head(SAMPLE_LINES), case.rules, case.weights))
    with watch.timed():
        rows = list(charges(lines, Ladders(rules, weights)))
    return Answer(len(rows), lambda: _sample_frame(rows))


def _sample_frame(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    places = {"line_id": 2, "identity_id": 4, "amount": 17}
    columns = {name: [row[place] for row in rows] for name, place in places.items()}
    schema = {"line_id": pl.Int64, "identity_id": pl.String, "amount": pl.Int128}
    return pl.DataFrame(columns, schema=schema).with_columns(money.to_amount(pl.col("amount")))


def check(folder: Path, variant: str, answer: Answer) -> None:
    """Rows against the expected ones, sums against theirs; exact, but for what is in floats."""
    expected = pl.read_parquet(folder / "expected.parquet")
    found = answer.found()
    if "Python" in variant:
        lines = pl.read_parquet(folder / "lines.parquet").head(SAMPLE_LINES)
        expected = expected.join(lines.select("line_id"), on="line_id", how="semi")
    if "sums" in variant:
        expected = (
            expected.group_by("identity_id")
            .agg(money.to_units(pl.col("amount")).sum())
            .with_columns(money.to_amount(pl.col("amount")))
        )
    key = [name for name in ROW if name in expected.columns]
    if "float" in variant:
        check_near(found, expected, key, "amount")
    else:
        check_same(found, expected, key)


CASE = Case(
    "kernel",
    "Kernel in memory: 1 M lines x 20 identities = 20 M rows, by usage, else evenly",
    "rows",
    prepare,
    {
        "prorata": Variant(_prorata, repeats=2),
        "prorata, rows kept": Variant(_prorata_kept),
        "prorata, sums only": Variant(_prorata_sums, repeats=2),
        "DuckDB float": Variant(_streamed("float_rows"), "prorata"),
        "DuckDB float, rows kept": Variant(_kept("float_rows"), "prorata, rows kept", rounds=3),
        "DuckDB float, sums only": Variant(_sums("float_rows"), "prorata, sums only", repeats=2),
        "DuckDB exact": Variant(_streamed("exact_rows"), "prorata", rounds=2),
        "DuckDB exact, rows kept": Variant(_kept("exact_rows"), "prorata, rows kept", rounds=1),
        "DuckDB exact, sums only": Variant(_sums("exact_rows"), "prorata, sums only", rounds=2),
        "plain Python, sample": Variant(_python, "prorata", rounds=3),
    },
    check,
    (
        Target("at least 15 M rows/s, every line exact", "prorata", "rate", at_least=15e6),
        Target("at most 1.2x the time of DuckDB in floats", "prorata", "seconds", "DuckDB float", at_most=1.2),
        Target(
            "the same, if all rows are kept", "prorata, rows kept", "seconds", "DuckDB float, rows kept", at_most=1.2
        ),
        Target("at least 3x faster than exact DuckDB", "prorata", "seconds", "DuckDB exact", at_most=1 / 3),
    ),
)
