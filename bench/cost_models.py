"""A year of Kafka clusters without a bill: asked for, made from a cost model, and allocated to their principals.

The clusters are tenants of one run, side by side as the command does them. Their Prometheus is a stand-in in a process
of its own (`stand_in.py`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from bench import stand_in
from bench.compare import check_same
from bench.data import START
from bench.measure import CHECKOUT, Answer, Case, SizeName, Target, Variant, Watch
from engine import money, pipeline
from engine.money import AMOUNT, UNITS
from engine.work import Clock, Hooks, Request, Summary

SIZES = {"full": (365, 3, 300), "quick": (62, 2, 100), "tiny": (3, 2, 4)}
"""Days, clusters, principals."""
DAYS_PER_QUERY = 31
BROKERS = 6
RATES = {
    "compute_hourly_rate": "0.37",
    "storage_per_gib_hourly": "0.000137",
    "network_ingress_per_gib": "0.011",
    "network_egress_per_gib": "0.019",
}
KEY = ["tenant_id", "charge_date", "identity_id"]


def prepare(folder: Path, size: SizeName) -> None:
    """Configuration; a root whose days were asked for and made; and what everybody pays, in plain arithmetic."""
    (folder / "size").write_text(json.dumps(SIZES[size]), encoding="ascii")
    with _served(folder):
        _run(folder, "prepared", "run")
    _expected(folder).write_parquet(folder / "expected.parquet")


def _size(folder: Path) -> tuple[int, int, int]:
    days, clusters, principals = json.loads((folder / "size").read_text(encoding="ascii"))
    return days, clusters, principals


@contextmanager
def _served(folder: Path) -> Iterator[None]:
    """A stand-in for Prometheus that the configuration of the folder names, until the context ends."""
    days, clusters, principals = _size(folder)
    command = [sys.executable, "-m", "bench.stand_in", str(principals)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        tenants = [_tenant(f"c{number}", url, days) for number in range(clusters)]
        for root in ("prepared", "root"):
            config = {"root": root, "tenants": tenants}
            (folder / f"{root}.yaml").write_text(json.dumps(config), encoding="utf-8")
        yield
        process.communicate("")


def _tenant(name: str, url: str, days: int) -> dict[str, object]:
    return {
        "id": name,
        "ecosystem": "self_managed_kafka",
        "metrics": {"url": url, "requests_per_second": "100000", "days_per_query": str(DAYS_PER_QUERY)},
        "source": {
            "kind": "cost_model",
            "cluster_id": name,
            "broker_count": str(BROKERS),
            "rates": RATES,
            "selector": f'cluster="{name}"',
        },
        "lookback_days": str(days),
        "retention_days": str(days),
        "cutoff_days": "0",
        "emitters": [],
    }


def _run(folder: Path, root: str, command: str) -> list[Summary]:
    """A command over all tenants, side by side, on the day after the last."""
    config = pipeline.configured(folder / f"{root}.yaml")
    end = START + timedelta(days=_size(folder)[0])
    hooks = Hooks(
        lambda: f"{end}T00:00:00Z",
        lambda _: None,
        lambda *_: None,
        threading.Event(),
        clock=Clock(time.time, time.monotonic),
    )
    request = Request(command, force=command == "recalculate")
    with ThreadPoolExecutor(config.max_parallel_tenants) as pool:
        runs = [
            pool.submit(pipeline.run_tenant, config, one, request, hooks, f"{command}-{one.id}")
            for one in config.tenants
        ]
        found = [one.result() for one in runs]
    assert not [fault for one in found for fault in one.faults]
    return found


def _recalculated(folder: Path, watch: Watch) -> Answer:
    """`prorata recalculate`: landed answers and rates to lines, lines to charges; nobody is asked."""
    root = folder / "root"
    shutil.copytree(folder / "prepared", root)
    config = json.loads((folder / "prepared.yaml").read_text(encoding="utf-8"))
    (folder / "root.yaml").write_text(json.dumps({**config, "root": "root"}), encoding="utf-8")
    with watch.timed():
        summaries = _run(folder, "root", "recalculate")
    assert {one.requests for one in summaries} == {0}
    return _answer(root, summaries)


def _from_nothing(folder: Path, watch: Watch) -> Answer:
    """`prorata run` in an empty root: asked over HTTP and landed too."""
    with _served(folder), watch.timed():
        summaries = _run(folder, "root", "run")
    days, clusters, _ = _size(folder)
    # 7 questions and 3 counts for each stretch of days, what the server is, and whether it answers at all.
    assert sum(one.requests for one in summaries) == clusters * (2 + 10 * -(-days // DAYS_PER_QUERY))
    return _answer(folder / "root", summaries)


def _answer(root: Path, summaries: list[Summary]) -> Answer:
    rows = sum(one.rows_written for one in summaries)
    files = pl.scan_parquet(root / "lake" / "chargeback" / "**" / "*.parquet", hive_partitioning=False)
    charged = files.group_by(KEY).agg(pl.col("amount").sum()).sort(KEY).collect()
    shutil.rmtree(root)
    return Answer(rows, lambda: charged)


def _expected(folder: Path) -> pl.DataFrame:
    """What each principal pays on each day, line by line in whole numbers."""
    days, clusters, principals = _size(folder)
    names = [stand_in.name_of(number) for number in range(principals)]
    found = [
        (f"c{cluster}", day, name, units)
        for cluster in range(clusters)
        for day in (START + timedelta(days=number) for number in range(days))
        for name, units in zip(names, _charged(cluster, day, principals), strict=True)
    ]
    schema = {"tenant_id": pl.String, "charge_date": pl.Date, "identity_id": pl.String, "amount": pl.Int128}
    frame = pl.DataFrame(found, schema=schema, orient="row")
    return frame.with_columns(pl.col("amount").reinterpret(dtype=AMOUNT)).sort(KEY)


def _charged(cluster: int, day: date, principals: int) -> list[int]:
    """Units that each of the principals pays: compute and storage alike, in and out by bytes."""
    number = (day - date(1970, 1, 1)).days
    prices = [int(rate.partition(".")[2].ljust(12, "0")) for rate in RATES.values()]
    moved = [24 * stand_in.hourly(cluster, number, kind) for kind in range(3)]
    lines = [BROKERS * 24 * prices[0], *(_rounded(moved[kind] * prices[kind + 1], 2**30) for kind in range(3))]
    alike = [1] * principals
    weights = [
        alike,
        alike,
        *([stand_in.daily(cluster, number, one, kind) for one in range(principals)] for kind in (1, 2)),
    ]
    parts = [money.apportion_units(line, of) for line, of in zip(lines, weights, strict=True)]
    return [sum(shares) for shares in zip(*parts, strict=True)]


def _rounded(number: int, by: int) -> int:
    down, rest = divmod(number, by)
    return down + (rest * 2 > by or (rest * 2 == by and down % 2 == 1))


def check(folder: Path, _variant: str, answer: Answer) -> None:
    """What everybody pays on every day, exact."""
    check_same(answer.found(), pl.read_parquet(folder / "expected.parquet"), KEY)


assert UNITS == 10**12
CASE = Case(
    "cost_models",
    "Cost models: 365 days x 3 clusters x 300 principals",
    "rows",
    prepare,
    {
        "prorata recalculate": Variant(_recalculated, rounds=3),
        "prorata run, asking a stand-in": Variant(_from_nothing, "prorata recalculate", rounds=3),
    },
    check,
    (
        Target("a year in under a minute", "prorata recalculate", "seconds", at_most=60.0),
        Target("peak memory under 1 GB", "prorata recalculate", "peak", at_most=1000),
    ),
)
