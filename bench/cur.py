"""A Cost and Usage Report, csv.gz, becomes BILLING: hourly lines of 195 columns pool to one line a day."""

from __future__ import annotations

import csv
import gzip
import resource
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import polars as pl

from bench import duck
from bench.compare import check_same
from bench.data import write_cur
from bench.measure import Answer, Case, SizeName, Target, Variant, Watch, WrongResultError
from engine.money import AMOUNT
from engine.sources import aws_cur

SIZES = {"full": (1_050, 30, 8), "quick": (350, 10, 4), "tiny": (20, 2, 2)}
"""Resources (24 lines a day each), days, files."""
COLUMNS = 195
LABELS = {
    "sub_account_id": "lineItem/UsageAccountId",
    "product_category": "lineItem/ProductCode",
    "product_type": "lineItem/UsageType",
    "operation": "lineItem/Operation",
    "region": "product/region",
    "line_item_type": "lineItem/LineItemType",
    "resource_id": "lineItem/ResourceId",
    "invoice_id": "bill/InvoiceId",
    "currency": "lineItem/CurrencyCode",
    "unit": "pricing/unit",
    "app": "resourceTags/user:app",
    "environment": "resourceTags/user:environment",
    "team": "resourceTags/user:team",
    "cost_center": "resourceTags/user:CostCenter",
    "version": "resourceTags/user:version",
    "cluster": "resourceTags/user:kubernetes.io/cluster",
}
"""What all variants pool by, besides the day."""
TIME, COST, QUANTITY = "lineItem/UsageStartDate", "lineItem/UnblendedCost", "lineItem/UsageAmount"
KEY = ["charge_date", "resource_id", "product_type", "sub_account_id"]
CHUNK_BYTES = 1 << 20


def prepare(folder: Path, size: SizeName) -> None:
    """The report, and what it should become: pooled line by line, in decimals, by Python."""
    resources, days, files = SIZES[size]
    lines = write_cur(folder / "cur", resources=resources, days=days, files=files, columns=COLUMNS)
    (folder / "lines").write_text(str(lines), encoding="ascii")
    _pooled(_files(folder))[0].write_parquet(folder / "expected.parquet")


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "cur").rglob("*.csv.gz"))


def _lines(folder: Path) -> int:
    return int((folder / "lines").read_text(encoding="ascii"))


def _prorata(folder: Path, watch: Watch) -> Answer:
    with watch.timed():
        (assembly,) = aws_cur.discover(folder / "cur", None)
        loaded = aws_cur.load(assembly, "bench")
    columns = [*KEY, "amount", "quantity"]
    return Answer(
        loaded.lines, lambda: loaded.billing.with_columns(pl.col("charge_date").cast(pl.String)).select(columns)
    )


def _gzip(folder: Path, watch: Watch, at_once: int) -> Answer:
    def unpack(file: Path) -> None:
        subprocess.run(["gzip", "-dc", file], stdout=subprocess.DEVNULL, check=True)

    with watch.timed(), ThreadPoolExecutor(at_once) as pool:
        list(pool.map(unpack, _files(folder)))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return Answer(_lines(folder), lambda: sum(_unpacked_size(file) for file in _files(folder)), peak)


def _unpacked_size(file: Path) -> int:
    return len(subprocess.run(["gzip", "-dc", file], stdout=subprocess.PIPE, check=True).stdout)


def _one_gzip(folder: Path, watch: Watch) -> Answer:
    return _gzip(folder, watch, at_once=1)


def _two_gzips(folder: Path, watch: Watch) -> Answer:
    return _gzip(folder, watch, at_once=2)


def _zlib(folder: Path, watch: Watch) -> Answer:
    size = 0
    with watch.timed():
        for file in _files(folder):
            with gzip.open(file) as unpacked:
                while chunk := unpacked.read(CHUNK_BYTES):
                    size += len(chunk)
    return Answer(_lines(folder), lambda: size)


def _duckdb(folder: Path, watch: Watch) -> Answer:
    labels = ", ".join(f"coalesce(\"{name}\", '') AS {ours}" for ours, name in LABELS.items())
    query = f"""
        SELECT
            {labels}, left("{TIME}", 10) AS charge_date,
            sum("{COST}"::DECIMAL(38, 12)) AS amount, sum("{QUANTITY}"::DECIMAL(38, 12)) AS quantity,
            count(*) AS lines
        FROM read_csv($files, all_varchar = true, header = true, delim = ',', quote = '"', escape = '"')
        GROUP BY ALL
    """
    connection = duck.connected()
    with watch.timed():
        pooled = connection.sql(query, params={"files": [str(file) for file in _files(folder)]}).pl()
    return Answer(int(pooled["lines"].sum()), lambda: pooled.select(*KEY, "amount", "quantity"))


def _polars(folder: Path, watch: Watch) -> Answer:
    labels = [pl.col(name).fill_null("").alias(ours) for ours, name in LABELS.items()]
    day = pl.col(TIME).str.slice(0, 10).alias("charge_date")
    with watch.timed():
        whole = pl.concat(pl.read_csv(file, infer_schema=False) for file in _files(folder))
        pooled = whole.group_by(day, *labels).agg(
            amount=pl.col(COST).cast(AMOUNT).sum(), quantity=pl.col(QUANTITY).cast(AMOUNT).sum(), lines=pl.len()
        )
    return Answer(int(pooled["lines"].sum()), lambda: pooled.select(*KEY, "amount", "quantity"))


def _python(folder: Path, watch: Watch) -> Answer:
    with watch.timed():
        pooled, lines = _pooled(_files(folder)[:1])
    return Answer(lines, lambda: pooled)


def _pooled(files: Iterable[Path]) -> tuple[pl.DataFrame, int]:
    """Line by line: sums per day and label, and the number of lines."""
    sums: dict[tuple[str, ...], list[Decimal]] = {}
    lines = 0
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
            rows = csv.reader(text)
            names = next(rows)
            labels = [names.index(name) for name in LABELS.values()]
            time, cost, quantity = names.index(TIME), names.index(COST), names.index(QUANTITY)
            for row in rows:
                total = sums.setdefault((row[time][:10], *(row[label] for label in labels)), [Decimal(0), Decimal(0)])
                total[0] += Decimal(row[cost])
                total[1] += Decimal(row[quantity])
                lines += 1
    return _frame(sums), lines


def _frame(sums: dict[tuple[str, ...], list[Decimal]]) -> pl.DataFrame:
    def column(number: int) -> Sequence[str]:
        return [key[number] for key in sums]

    texts = {name: column(number) for number, name in enumerate(["charge_date", *LABELS]) if name in KEY}
    amounts = {"amount": [total[0] for total in sums.values()], "quantity": [total[1] for total in sums.values()]}
    return pl.DataFrame({**texts, **amounts}, schema_overrides={"amount": AMOUNT, "quantity": AMOUNT})


def check(folder: Path, variant: str, answer: Answer) -> None:
    """Every pooled line, to the last digit (of a sample, those of its file); of what only unpacks, the bytes."""
    found, files = answer.found(), _files(folder)
    if isinstance(found, int):
        # A gzip file ends with the length of what it holds.
        expected_size = sum(int.from_bytes(file.read_bytes()[-4:], "little") for file in files)
        if found != expected_size:
            raise WrongResultError(f"{found} bytes; expected {expected_size}")
        return
    expected = _pooled(files[:1])[0] if "sample" in variant else pl.read_parquet(folder / "expected.parquet")
    check_same(found, expected, KEY)


CASE = Case(
    "cur",
    "Report to billing: 756,000 lines of 195 columns in 8 csv.gz",
    "lines",
    prepare,
    {
        "prorata": Variant(_prorata),
        "gzip -dc, one after another": Variant(_one_gzip, "prorata"),
        "gzip -dc, two at a time": Variant(_two_gzips, "prorata"),
        "Python zlib, one after another": Variant(_zlib, "prorata", rounds=3),
        "DuckDB exact": Variant(_duckdb, "prorata"),
        "Polars, all columns": Variant(_polars, "prorata", rounds=3),
        "plain Python, sample": Variant(_python, "prorata", rounds=3),
    },
    check,
    (
        Target("at least 400,000 lines/s", "prorata", "rate", at_least=400_000),
        Target("under 500 MB", "prorata", "peak", at_most=500),
    ),
)
