"""A Confluent Cloud tenant from its API and a Prometheus to the lake: first run, second run, and one line revised.

The API is the tests' double in a process of its own, Prometheus a real one; both on this machine, and both started
before the clock is. Nobody is waited for out of politeness.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from bench.compare import check_same
from bench.measure import CHECKOUT, Answer, Case, SizeName, Target, Variant, Watch
from engine import lake, pipeline, work
from engine.frames import CHARGEBACK
from engine.money import AMOUNT, UNITS
from tests.doubles.bundled import CLUSTERS, bundled
from tests.doubles.confluent_cloud import COSTS_PAGE_SIZE_MAX, LISTINGS, STATEMENTS_PAGE_SIZE_MAX
from tests.doubles.confluent_metrics import DEFAULT_NAN, REQUEST_BYTES, Metrics
from tests.doubles.organization import Organization
from tests.doubles.prometheus import Row, back_fill, serving


class Size(NamedTuple):
    """Days, principals of each of the three clusters, and minutes between samples."""

    days: int
    principals: int
    step_minutes: int


SIZES = {"full": Size(40, 500, 60), "quick": Size(40, 100, 240), "tiny": Size(3, 5, 360)}
FIRST = date(2025, 9, 1)
TENANT = "streaming"
DAYS_PER_QUERY = 31
QUESTIONS = 5
"""A stretch of days is asked for bytes in, bytes out, the samples of both, and Flink's CFUs: each for all resources."""
MEASURED = ("KAFKA_NETWORK_WRITE", "lkc-test1")
"""A product and a cluster whose every row is expected, on the days on which all its principals are measured."""
MEASURED_DAYS = 3
KEY = ["what", "day", "identity_id"]
SCHEMA = {"what": pl.String(), "day": pl.String(), "identity_id": pl.String(), "amount": AMOUNT}


def prepare(folder: Path, name: SizeName) -> None:
    """The blocks of Prometheus, what is expected, and a store in which a first run has been."""
    size = SIZES[name]
    (folder / "size").write_text(name, encoding="ascii")
    back_fill(_samples(size), folder / "prometheus")
    organization = bundled(FIRST, size.days, principals=size.principals)
    revised = bundled(FIRST, size.days, principals=size.principals)
    (record,) = revised.find(_revised(size), "KAFKA_STORAGE", "lkc-prod1")
    revised.revise(record["id"], amount=record["amount"] + 1)
    # A day with a sample that is no number is asked for again.
    metrics = 1 + QUESTIONS * -(-size.days // DAYS_PER_QUERY) + (size.days > DEFAULT_NAN[2])
    expected = {
        "first run": _expected(organization, size, requests=_least(organization, size) + metrics, days=size.days),
        "second run": _expected(organization, size, requests=_least(organization, size), days=0),
        "a revised line": _expected(revised, size, requests=_least(organization, size), days=1),
    }
    for variant, rows in expected.items():
        rows.write_parquet(folder / f"{variant}.parquet")
    with _servers(folder, size) as urls:
        _run(folder, folder / "stored", urls, Watch())


def _samples(size: Size) -> Iterator[Row]:
    metrics = Metrics(FIRST, size.days, size.step_minutes, size.principals)
    return (Row(one.name, one.labels, one.milliseconds, one.value) for one in metrics.samples())


def _size(folder: Path) -> Size:
    return SIZES[(folder / "size").read_text(encoding="ascii")]


def _revised(size: Size) -> date:
    """The day of which a line is revised: one without anything that is booked on another."""
    return FIRST + timedelta(days=size.days - 1)


def _end(size: Size) -> date:
    return FIRST + timedelta(days=size.days)


def _months(size: Size) -> list[tuple[date, date]]:
    """The months of the days, cut to them: what costs are asked for at once."""
    firsts = sorted({FIRST, *(day.replace(day=1) for day in _dates(size) if day.day == 1)})
    return list(zip(firsts, [*firsts[1:], _end(size)], strict=True))


def _dates(size: Size) -> list[date]:
    return [FIRST + timedelta(days=number) for number in range(size.days)]


def _least(organization: Organization, size: Size) -> int:
    """How many requests costs and inventory take at least: each page of each list, and an empty list has one."""
    pages = [_pages(len(organization.records(*month)), COSTS_PAGE_SIZE_MAX) for month in _months(size)]
    for listing in LISTINGS:
        within: dict[tuple[str, ...], int] = defaultdict(int)
        parents = "environments" if listing.by_environment else "identity_providers" if "(" in listing.path else ""
        within |= {(one,): 0 for one in organization.ids(parents)} if parents else {(): 0}
        for entity in organization.inventory[listing.kind].values():
            within[entity.within] += 1
        pages += [_pages(count, listing.page_size_max) for count in within.values()]
    # Connectors come a cluster at a time, statements for each region and environment that has a pool.
    pages += [1 for _ in organization.ids("clusters")]
    statements: dict[tuple[str, ...], int] = defaultdict(int)
    for entity in organization.inventory["flink_statements"].values():
        statements[entity.within] += 1
    pages += [_pages(count, STATEMENTS_PAGE_SIZE_MAX) for count in statements.values()]
    return sum(pages)


def _pages(entries: int, page_size: int) -> int:
    return max(1, -(-entries // page_size))


def _expected(organization: Organization, size: Size, *, requests: int, days: int) -> pl.DataFrame:
    """What the lake and the run have to say: totals by month, rows of one product, requests, days calculated."""
    totals = [("total", f"{month[0]:%Y-%m}", "", organization.total(*month)) for month in _months(size)]
    counts = [("requests", "", "", Decimal(requests)), ("days", "", "", Decimal(days))]
    rows = [*totals, *counts, *_measured(organization, size)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _measured(organization: Organization, size: Size) -> Iterator[tuple[str, str, str, Decimal]]:
    """Lines split by what their principals sent, in plain whole numbers, with nothing of prorata's."""
    used = Metrics(FIRST, size.days, size.step_minutes, size.principals).by_resource()
    product, cluster = MEASURED
    for day in _dates(size)[:MEASURED_DAYS]:
        weights = sorted(used[day, REQUEST_BYTES, cluster].items())
        shares: dict[str, int] = defaultdict(int)
        for amount in _lines(organization, day, product, cluster):
            for identity, share in _apportioned(amount, weights):
                shares[identity] += share
        yield from ((product, str(day), identity, Decimal(share) / UNITS) for identity, share in shares.items())


def _lines(organization: Organization, day: date, product: str, cluster: str) -> list[int]:
    """The amounts of lines in units of 1e-12, their tiers summed."""
    lines: dict[str, Decimal] = defaultdict(Decimal)
    for record in organization.find(day, product, cluster):
        lines[str(record["network_access_type"])] += record["amount"]
    return [int(amount * UNITS) for amount in lines.values()]


def _apportioned(amount: int, weights: Sequence[tuple[str, Decimal]]) -> Iterator[tuple[str, int]]:
    total, before = sum(int(value) for _, value in weights), 0
    for identity, value in weights:
        after = before + int(value)
        yield identity, amount * after // total - amount * before // total
        before = after


class _Urls(NamedTuple):
    told: Mapping[str, Any]
    metrics: str


@contextmanager
def _servers(folder: Path, size: Size, *more: str) -> Iterator[_Urls]:
    """The double in a process of its own, so that its memory is not counted, and Prometheus."""
    options = [f"--first={FIRST}", f"--days={size.days}", f"--principals={size.principals}", *more]
    command = [sys.executable, "-m", "tests.doubles", *options]
    with ExitStack() as stack:
        metrics = stack.enter_context(serving(folder / "prometheus" / "blocks"))
        double = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        stack.callback(double.wait)
        stack.callback(double.terminate)
        assert double.stdout is not None
        stack.callback(double.stdout.close)
        yield _Urls(json.loads(double.stdout.readline()), metrics)


def _configuration(urls: _Urls, size: Size) -> tuple[str, dict[str, str]]:
    """The tenant's YAML, which is JSON too; and the variables that it names."""
    told, environment = urls.told, {}

    def keys(name: str, given: Mapping[str, str]) -> dict[str, str]:
        environment.update({f"{name}_{part.upper()}": given[part] for part in ("api_key", "api_secret")})
        return {part: f"${{{name}_{part.upper()}}}" for part in ("api_key", "api_secret")}

    flink = {region: keys(f"FLINK{n}", given) for n, (region, given) in enumerate(told["flink"]["keys"].items())}
    fast = {"requests_per_second": "100000"}
    source = {"kind": "confluent_cloud", "url": told["url"], **keys("CLOUD", told), **fast}
    tenant = {
        "id": TENANT,
        "ecosystem": "confluent_cloud",
        "source": {**source, "flink": {"url": told["flink"]["url"], "keys": flink}},
        "metrics": {"url": urls.metrics, "scrape_seconds": str(size.step_minutes * 60), **fast},
        "lookback_days": str(size.days),
        "cutoff_days": "0",
    }
    return json.dumps({"root": "root", "tenants": [tenant]}), environment


def _run(folder: Path, root: Path, urls: _Urls, watch: Watch) -> work.Summary:
    """`prorata run` on the day after the last, in this process."""
    size = _size(folder)
    text, environment = _configuration(urls, size)
    file = folder / "prorata.yaml"
    file.write_text(text, encoding="utf-8")
    config = pipeline.configured(file).model_copy(update={"root": root})
    clock = work.Clock(time.time, time.monotonic)
    hooks = work.Hooks(
        lambda: f"{_end(size)}T00:00:00Z", lambda _: None, lambda *_: None, threading.Event(), environment, clock
    )
    with watch.timed():
        return pipeline.run_tenant(config, config.tenants[0], work.Request("run"), hooks, f"bench {time.time_ns()}")


def _first(folder: Path, watch: Watch) -> Answer:
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    with _servers(folder, _size(folder)) as urls:
        return _answered(folder, root, _run(folder, root, urls, watch))


def _second(folder: Path, watch: Watch) -> Answer:
    return _again(folder, watch)


def _one_line(folder: Path, watch: Watch) -> Answer:
    return _again(folder, watch, f"--revised={_revised(_size(folder))}")


def _again(folder: Path, watch: Watch, *more: str) -> Answer:
    """A run in a store in which there was one."""
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder / "stored", root)
    with _servers(folder, _size(folder), *more) as urls:
        return _answered(folder, root, _run(folder, root, urls, watch))


def _answered(folder: Path, root: Path, done: work.Summary) -> Answer:
    # All days are looked at, and whatever has not changed is left alone.
    return Answer(_size(folder).days, lambda: _found(root, done))


def _found(root: Path, done: work.Summary) -> pl.DataFrame:
    rows = lake.scan(root, CHARGEBACK, TENANT)
    totals = rows.group_by(day="billing_period").agg(pl.col("amount").sum())
    product, cluster = MEASURED
    until = FIRST + timedelta(days=MEASURED_DAYS)
    one = rows.filter(
        pl.col("product_type") == product, pl.col("resource_id") == cluster, pl.col("charge_date") < until
    )
    shares = one.group_by("charge_date", "identity_id").agg(pl.col("amount").sum())
    counts = [("requests", "", "", Decimal(done.requests)), ("days", "", "", Decimal(done.days_calculated))]
    columns = list(SCHEMA)
    return pl.concat(
        [
            totals.with_columns(what=pl.lit("total"), identity_id=pl.lit("")).select(columns).collect(),
            pl.DataFrame(counts, schema=SCHEMA, orient="row"),
            shares.with_columns(what=pl.lit(product), day=pl.col("charge_date").dt.to_string("%Y-%m-%d"))
            .select(columns)
            .collect(),
        ]
    )


def check(folder: Path, variant: str, answer: Answer) -> None:
    """Totals, all rows of a product, requests and days are as expected, to the last digit."""
    check_same(answer.found(), pl.read_parquet(folder / f"{variant}.parquet"), KEY)


CASE = Case(
    "gather",
    f"From the API to the lake: 40 days x {len(CLUSTERS)} clusters x 500 principals",
    "",
    prepare,
    {
        "first run": Variant(_first, rounds=3),
        "second run": Variant(_second, rounds=3),
        "a revised line": Variant(_one_line, rounds=3),
    },
    check,
    (Target("peak memory of a first run under 1 GB", "first run", "peak", at_most=1000),),
)
