"""From billing in the lake to chargeback in the lake, through all that `prorata recalculate` does on the way.

The tenant is one of a shared platform: hardly a line has an owner, usage types fall into pools, and each pool is split
by a usage key of its own; one pool in ten has no values for its key and falls to the next rung.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from bench import duck
from bench.compare import check_near, check_same
from bench.data import START, mixed
from bench.measure import Answer, Case, SizeName, Target, Variant, Watch, WrongResultError
from bench.row_loop import Ladders, charges
from engine import digests, frames, lake, pipeline, rules, state
from engine.config import Config
from engine.frames import BILLING, CHARGEBACK
from engine.money import AMOUNT, UNITS

SIZES = {"full": (50_000, 20, 50), "quick": (10_000, 4, 50), "tiny": (100, 2, 10)}
"""Lines a day, days (the data have twice as many), pools."""
IDENTITIES = 20
TENANT = "bulk"
SAMPLE_LINES = 10_000
AT_ONCE = 2
ROW = ["charge_date", "line_id", "identity_id"]


def prepare(folder: Path, size: SizeName) -> None:
    """Configuration, key table and billing; and the digests of the chargeback, from exact SQL."""
    lines, days, pools = SIZES[size]
    dates = [START + timedelta(days=number) for number in range(2 * days)]
    (folder / "days").write_text(str(days), encoding="ascii")
    _keys(dates, pools).write_parquet(folder / "keys.parquet")
    (folder / "prorata.yaml").write_text(_configuration(pools), encoding="utf-8")
    tenant = _configured(folder).tenants[0]
    resolved = rules.resolve(tenant)
    resolved.frame.write_parquet(folder / "rules.parquet")
    patterns = [(pool.rule_id, pattern) for pool in resolved.pools for pattern in pool.match.usage_type or ()]
    pl.DataFrame(patterns, schema=["rule_id", "pattern"], orient="row").write_parquet(folder / "pools.parquet")
    _store_billing(folder / "stored", [_billing(day, lines, pools) for day in dates])
    _expect(folder, dates[:days])


def _configured(folder: Path) -> Config:
    return pipeline.configured(folder / "prorata.yaml")


def _configuration(pools: int) -> str:
    """The tenant's YAML, which is JSON too. Every other pool goes by a glob."""
    ladder = [{"basis": "even"}, {"basis": "unallocated"}]
    listed = [
        {
            "name": f"pool_{number:02d}",
            "match": {"usage_type": _usage_type(number) if number % 2 else f"*{_usage_type(number)[3:]}"},
            "ladder": [{"basis": "usage", "key": f"bytes_{number:02d}"}, *ladder],
        }
        for number in range(pools)
    ]
    tenant = {
        "id": TENANT,
        "ecosystem": "aws",
        "source": {"kind": "aws_cur", "path": "cur"},
        "owner": {"tags": ["team"], "identities": [_identity(number) for number in range(IDENTITIES)]},
        "keys": ["keys.parquet"],
        "pools": listed,
        "emitters": [],
    }
    return json.dumps({"root": "root", "tenants": [tenant]}, indent=1)


def _usage_type(number: int) -> str:
    return f"USE1-Shared{number:02d}-Bytes"


def _identity(number: int) -> str:
    return f"team-{number:02d}"


def _keys(dates: Sequence[date], pools: int) -> pl.DataFrame:
    """From 1e6 to 1e10 bytes a day for every identity, as many in each power of ten; a pool in ten has none."""
    weighed = [number for number in range(pools) if number % 10 != 9]
    rows = (
        pl.DataFrame({"date": [str(day) for day in dates]})
        .join(pl.DataFrame({"key": [f"bytes_{number:02d}" for number in weighed]}), how="cross")
        .join(pl.DataFrame({"identity": [_identity(number) for number in range(IDENTITIES)]}), how="cross")
        .with_row_index("_number")
    )
    luck = mixed(rows["_number"].cast(pl.UInt64), 1)
    value = 10 ** (luck % 4) * (10**6 + luck // 2**8 % (9 * 10**6))
    return rows.select("identity", "date", "key", value=value.cast(pl.Int64))


def _billing(day: date, lines: int, pools: int) -> pl.DataFrame:
    """One day's lines: the first IDENTITIES have owners, one each; of the others one in twenty is a credit."""
    numbers = pl.int_range(0, lines, dtype=pl.UInt64, eager=True) + day.toordinal() * 2**32
    luck, more = mixed(numbers, 2), mixed(numbers, 3)
    accounts = pl.Series([f"{210987654321 + number}" for number in range(7)])
    pick = (luck // 2**32 % 5_000).cast(pl.UInt32)
    tag = pl.concat_str(pl.lit('{"app":"app-'), (pl.col("_pick") % 113).cast(pl.String), pl.lit('"}'))
    team = pl.concat_str(pl.lit('{"team":"team-'), pl.col("_place").cast(pl.String).str.zfill(2), pl.lit('"}'))
    sign = pl.when(luck % 20 == 0).then(-1).otherwise(1).cast(pl.Int128)
    text = {
        "tenant_id": TENANT, "ecosystem": "aws", "billing_period": f"{day:%Y-%m}", "line_item_type": "Usage",
        "operation": "Transfer", "invoice_id": "", "unit": "GB", "currency": "USD",
    }  # fmt: skip
    return (
        pl.DataFrame({"line_id": mixed(numbers, 4).reinterpret(signed=True), "_pick": pick})
        .with_row_index("_place")
        .with_columns(
            charge_date=pl.lit(day),
            resource_id=pl.concat_str(pl.lit("arn:aws:kafka:us-east-1:cluster/"), pl.col("_pick").cast(pl.String)),
            sub_account_id=accounts[pick % 7],
            env_id=accounts[pick % 7],
            product_category=pl.Series(["AmazonMSK", "AmazonEC2", "AmazonS3", "AWSLambda", "AmazonVPC"])[pick % 5],
            product_type=pl.Series([_usage_type(number) for number in range(pools)])[(more % pools).cast(pl.UInt32)],
            region=pl.Series(["us-east-1", "eu-west-1", "ap-south-1"])[pick % 3],
            tags=pl.when(pl.col("_place") < IDENTITIES).then(team).otherwise(tag),
            amount=((mixed(numbers, 5) % (50 * UNITS)).cast(pl.Int128) * sign).reinterpret(dtype=AMOUNT),
            quantity=(more % (1_000 * UNITS)).cast(pl.Int128).reinterpret(dtype=AMOUNT),
            **{name: pl.lit(value) for name, value in text.items()},
            **{name: pl.lit(None, AMOUNT) for name in ("effective_amount", "list_amount", "contracted_amount")},
        )
        .select(BILLING.columns)
        .sort(BILLING.key)
    )


def _store_billing(root: Path, days: Sequence[pl.DataFrame]) -> None:
    """Days of billing as gathering leaves them: in the lake, and in the state."""
    lake.create(root, TENANT)
    with state.open_state(root) as store:
        for billing in days:
            place = _place(BILLING, billing["charge_date"][0])
            written = lake.write(place.temporary(root), BILLING, [frames.encoded(billing)])
            lake.publish(root, place, written)
            key = (place.billing_period, str(place.charge_date))
            day = state.BillingDay("aws", TENANT, *key, written.digest, written.rows, written.size)
            state.upsert_billing_days(store, [day])


def _place(table: frames.Table, day: date) -> lake.Place:
    return lake.Place(table, TENANT, f"{day:%Y-%m}", day)


def _days(folder: Path) -> list[date]:
    """The days that all variants do."""
    return [START + timedelta(days=number) for number in range(int((folder / "days").read_text(encoding="ascii")))]


def _expect(folder: Path, dates: Sequence[date]) -> None:
    """`digests.parquet`: charge_date, digest of the chargeback that exact SQL makes; and its rows."""
    found = []
    (folder / "expected").mkdir()
    for day in dates:
        rows = duck.frame(_duckdb(folder, [day], "exact_rows"), "FROM exact_rows")
        found.append((day, _digest(rows)))
        rows.sort(CHARGEBACK.key).write_parquet(folder / "expected" / f"{day}.parquet")
    pl.DataFrame(found, schema=["charge_date", "digest"], orient="row").write_parquet(folder / "digests.parquet")


def _digest(rows: pl.DataFrame) -> str:
    schema = {name: dtype for name, dtype in CHARGEBACK.schema.items() if name in rows.columns}
    return digests.digest(rows.cast(schema).sort(CHARGEBACK.key), CHARGEBACK)  # type: ignore[arg-type]  # a dict of dtypes


def _duckdb(folder: Path, days: Sequence[date], *views: str) -> DuckDBPyConnection:
    """A connection that knows the views over the billing of some days."""
    connection = duck.connected()
    files = ", ".join(duck.literal(_place(BILLING, day).path(folder / "stored")) for day in days)
    connection.execute(f"CREATE TEMP VIEW billing AS FROM read_parquet([{files}], hive_partitioning = false)")
    for name in ("keys", "rules", "pools"):
        connection.execute(f"CREATE TEMP VIEW {name} AS FROM {duck.literal(folder / f'{name}.parquet')}")
    duck.define(connection, "aws_lines", "shares", *views)
    return connection


def _root(folder: Path, days: Sequence[date]) -> Path:
    """A store with the billing of some days, and chargeback of an older state of affairs, which goes to history."""
    root = _fresh(folder / "root")
    lake.create(root, TENANT)
    with state.open_state(folder / "stored") as template, state.open_state(root) as store:
        stored = state.days(template, TENANT)
        for day in days:
            place = _place(BILLING, day)
            place.path(root).parent.mkdir(parents=True, exist_ok=True)
            os.link(place.path(folder / "stored"), place.path(root))
            known = stored[place.billing_period, str(day)]
            kept = {name: getattr(known, name) for name in state.BillingDay._fields}
            state.upsert_billing_days(store, [state.BillingDay(**kept)])
            older = _place(CHARGEBACK, day)
            written = lake.write(older.temporary(root), CHARGEBACK, [frames.empty(CHARGEBACK)])
            lake.publish(root, older, written)
    return root


def _fresh(folder: Path) -> Path:
    """An empty folder; and a disk that has nothing left to write for what ran before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    return folder


def _recalculated(folder: Path, watch: Watch, days: Sequence[date]) -> Answer:
    config = _configured(folder)
    root = _root(folder, days)
    hooks = pipeline.Hooks(lambda: "2025-11-01T00:00:00Z", lambda _: None, lambda *_: None, threading.Event())
    request = pipeline.Request("recalculate", force=True)
    with watch.timed():
        summary = pipeline.run_tenant(
            config.model_copy(update={"root": root}), config.tenants[0], request, hooks, "bench"
        )
    return Answer(summary.rows_written, lambda: _stored_digests(root, days))


def _stored_digests(root: Path, days: Sequence[date]) -> pl.DataFrame:
    """What the state says, once the last day's file has been read to see that it is so."""
    with state.open_state(root, write=False) as store:
        known = state.days(store, TENANT)
    found = {day: known[f"{day:%Y-%m}", str(day)].output_digest for day in days}
    if _digest(lake.read(root, _place(CHARGEBACK, days[-1]))) != found[days[-1]]:
        raise WrongResultError(f"{days[-1]}: the file is not what the state says")
    return pl.DataFrame(list(found.items()), schema=["charge_date", "digest"], orient="row")


def _prorata(folder: Path, watch: Watch) -> Answer:
    return _recalculated(folder, watch, _days(folder))


def _prorata_half(folder: Path, watch: Watch) -> Answer:
    days = _days(folder)
    return _recalculated(folder, watch, days[: len(days) // 2])


def _prorata_twice(folder: Path, watch: Watch) -> Answer:
    days = _days(folder)
    return _recalculated(folder, watch, [*days, *(day + timedelta(days=len(days)) for day in days)])


def _ready(folder: Path) -> Iterator[list[tuple[date, pl.DataFrame]]]:
    """The rows in memory, as many days at once as prorata has."""
    days = _days(folder)
    for start in range(0, len(days), AT_ONCE):
        chosen = days[start : start + AT_ONCE]
        yield [(day, pl.read_parquet(folder / "expected" / f"{day}.parquet")) for day in chosen]


def _written(
    folder: Path,
    watch: Watch,
    ready: Callable[[pl.DataFrame], pl.DataFrame],
    write: Callable[[Path, pl.DataFrame], None],
) -> Answer:
    """Rows that are there in memory, day by day into files; only the writing is timed."""
    target, rows = _fresh(folder / "root"), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for days in _ready(folder):
            named = [(target / f"{day}.parquet", ready(frame)) for day, frame in days]
            with watch.timed():
                list(pool.map(lambda item: write(*item), named))
            rows += sum(frame.height for _, frame in named)
    return Answer(rows, lambda: pl.scan_parquet(target / "*.parquet"))


def _floor(compression: Literal["zstd", "snappy"]) -> Callable[[Path, Watch], Answer]:
    def write(path: Path, rows: pl.DataFrame) -> None:
        rows.write_parquet(path, compression=compression, row_group_size=lake.ROW_GROUP_ROWS)

    return lambda folder, watch: _written(folder, watch, lambda frame: frame, write)


def _own_writer(folder: Path, watch: Watch) -> Answer:
    def write(path: Path, rows: pl.DataFrame) -> None:
        lake.write(path, CHARGEBACK, rows.iter_slices(lake.ROW_GROUP_ROWS))

    return _written(folder, watch, frames.encoded, write)


def _copied(view: str, compression: str = "zstd") -> Callable[[Path, Watch], Answer]:
    def run(folder: Path, watch: Watch) -> Answer:
        target = _fresh(folder / "root") / "chargeback.parquet"
        options = f"FORMAT parquet, COMPRESSION {compression}, ROW_GROUP_SIZE {lake.ROW_GROUP_ROWS}"
        with watch.timed():
            connection = _duckdb(folder, _days(folder), view)
            connection.execute(f"COPY (FROM {view}) TO {duck.literal(target)} ({options})")
        return Answer(pq.read_metadata(target).num_rows, lambda: pl.scan_parquet(target))

    return run


def _python(folder: Path, watch: Watch) -> Answer:
    """The first lines of the first day: read, matched, split and written row by row."""
    day, target = _days(folder)[0], _fresh(folder / "root") / "chargeback.parquet"
    connection = _duckdb(folder, [day])
    # A loop over rows is what prorata is compared with here.
    ladders = Ladders(
        pl.read_parquet(folder / "rules.parquet").to_dicts(), duck.frame(connection, "FROM weights").to_dicts()
    )
    pools = pl.read_parquet(folder / "pools.parquet").rows()
    with watch.timed():
        stored = pq.read_table(_place(BILLING, day).path(folder / "stored"), partitioning=None)
        lines = [_matched(line, pools) for line in stored.slice(0, SAMPLE_LINES).to_pylist()]
        rows = list(charges(lines, ladders))
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names=_PYTHON_COLUMNS), target)
    return Answer(len(rows), lambda: _python_rows(target))


_PYTHON_COLUMNS = [
    name for name in CHARGEBACK.columns if name not in {*frames.MEASURES[1:], "calculation_id"}
]  # fmt: skip


def _python_rows(file: Path) -> pl.LazyFrame:
    units = pl.col("amount", "part_amount").cast(pl.Int128).reinterpret(dtype=AMOUNT)
    return pl.scan_parquet(file).with_columns(units)


def _matched(line: dict[str, object], pools: Sequence[tuple[str, str]]) -> dict[str, object]:
    owner = json.loads(str(line["tags"])).get("team", "").strip().lower()
    if owner:
        return {**line, "rule_id": "direct", "weight_scope": owner}
    usage_type = str(line["product_type"])
    rule = next((rule for rule, pattern in pools if fnmatchcase(usage_type, pattern)), "untagged")
    return {**line, "rule_id": rule, "weight_scope": str(line["charge_date"])}


def check(folder: Path, variant: str, answer: Answer) -> None:
    """Check prorata by the digests of every day; the others by their rows, day by day, exact where they are exact."""
    found = answer.found()
    if isinstance(found, pl.DataFrame):
        known = pl.read_parquet(folder / "digests.parquet")
        expected = known.join(found, on="charge_date", how="semi")
        if not expected.height:
            raise WrongResultError("no day that is expected")
        check_same(found.join(known, on="charge_date", how="semi"), expected, ["charge_date"])
        return
    for day in _days(folder)[: 1 if "sample" in variant else None]:
        rows = found.filter(pl.col("charge_date") == day).collect()
        expected = pl.read_parquet(folder / "expected" / f"{day}.parquet")
        if "sample" in variant:
            expected = expected.join(rows.select("line_id").unique(), on="line_id", how="semi")
        if "float" in variant:
            check_near(rows, expected, ROW, "amount")
        else:
            check_same(rows, expected.select(name for name in rows.columns if name != "calculation_id"), list(ROW))


CASE = Case(
    "lake",
    "Lake to lake: 1 M lines x 20 identities = 20 M rows, 50 pools by usage, else evenly",
    "rows",
    prepare,
    {
        "prorata": Variant(_prorata),
        "prorata, half the days": Variant(_prorata_half, rounds=2),
        "prorata, twice the days": Variant(_prorata_twice, rounds=2),
        "floor: Polars writes the rows": Variant(_floor("zstd"), "prorata"),
        "floor: Polars writes the rows, snappy": Variant(_floor("snappy"), "prorata"),
        "prorata's writer writes the rows": Variant(_own_writer, "prorata"),
        "DuckDB COPY, float": Variant(_copied("float_rows"), "prorata"),
        "DuckDB COPY, float, snappy": Variant(_copied("float_rows", "snappy"), "prorata"),
        "DuckDB COPY, exact": Variant(_copied("exact_rows"), "prorata", rounds=1),
        "plain Python, sample": Variant(_python, "prorata", rounds=2),
    },
    check,
    (
        Target("at least 5 M rows/s", "prorata", "rate", at_least=5e6),
        Target(
            "at most 1.8x the time of writing the rows from memory",
            "prorata",
            "seconds",
            "floor: Polars writes the rows",
            at_most=1.8,
        ),
        Target("faster than DuckDB COPY in floats", "prorata", "seconds", "DuckDB COPY, float", at_most=1.0),
        Target("peak memory under 1.5 GB at 20 M rows", "prorata", "peak", at_most=1500),
        Target("peak flat: twice the days within 10 %", "prorata, twice the days", "peak", "prorata", at_most=1.1),
    ),
)
