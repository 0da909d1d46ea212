"""A tenant-year of Confluent Cloud through `prorata recalculate`: lines of Kafka clusters over principals who use them.

Billing, usage, entities and state are what gathering leaves, made by the functions that it ends in; nobody is asked.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from bench import duck
from bench.compare import check_same
from bench.data import START, mixed
from bench.measure import Answer, Case, SizeName, Target, Variant, Watch, WrongResultError
from engine import entities, frames, gather_state, lake, pipeline, state, work
from engine.config import Config
from engine.frames import BILLING, CHARGEBACK, IDENTITIES, RESOURCES, USAGE
from engine.money import AMOUNT, UNITS
from engine.sources.secrets import Secrets


class Size(NamedTuple):
    """Lines a day, days, principals, clusters."""

    lines: int
    days: int
    principals: int
    clusters: int


SIZES = {"full": Size(1_000, 365, 200, 50), "quick": Size(1_000, 36, 200, 50), "tiny": Size(20, 4, 10, 2)}
TENANT = "streaming"
PRODUCTS = ("KAFKA_NETWORK_WRITE", "KAFKA_NETWORK_READ", "KAFKA_STORAGE", "KAFKA_BASE", "KAFKA_PARTITION")
"""Two by usage, three evenly over all who use the cluster: a row for each line and principal."""
METRICS = ("bytes_in", "bytes_out")
SAMPLED = 3
"""Days whose every row is compared; the others by their sums."""
ROW = ["charge_date", "line_id", "identity_id"]
AT = "2026-12-01T00:00:00Z"


def prepare(folder: Path, name: SizeName) -> None:
    """Configuration and a store with everything but the chargeback; and what is expected, from exact SQL."""
    size = SIZES[name]
    (folder / "size").write_text(name, encoding="ascii")
    (folder / "prorata.yaml").write_text(_configuration(), encoding="utf-8")
    root = folder / "stored"
    lake.create(root, TENANT)
    with state.open_state(root) as store:
        asked = _work(_configured(folder), root, store)
        _store_entities(store, size)
        for day in _dates(size.days):
            _store_day(asked, day, size)
    _expect(folder, _dates(size.days))


def _configured(folder: Path) -> Config:
    return pipeline.configured(folder / "prorata.yaml")


def _configuration() -> str:
    """The tenant's YAML, which is JSON too."""
    tenant = {
        "id": TENANT,
        "ecosystem": "confluent_cloud",
        "source": {"kind": "confluent_cloud", "api_key": "${NOBODY}", "api_secret": "${NOBODY}"},
        "metrics": {"url": "http://127.0.0.1:9"},
        "emitters": [],
    }
    return json.dumps({"root": "root", "tenants": [tenant]}, indent=1)


def _work(config: Config, root: Path, store: state.State) -> work.Work:
    hooks = work.Hooks(lambda: AT, lambda _: None, lambda *_: None, threading.Event())
    return work.Work(root, config.tenants[0], work.Request("run"), hooks, store, 1, [], [], [], set(), Secrets())


def _dates(days: int) -> list[date]:
    return [START + timedelta(days=number) for number in range(days)]


def _cluster(number: int) -> str:
    return f"lkc-{number:05d}"


def _principal(number: int) -> str:
    return f"sa-{number:06d}"


def _store_entities(store: state.State, size: Size) -> None:
    """One environment, its clusters, and principals who have a key for each of a few clusters."""
    created = datetime(2025, 1, 1)  # noqa: DTZ001  # times are naive UTC throughout
    resources = [("env-1", "environment", ""), *((_cluster(n), "kafka_cluster", "env-1") for n in range(size.clusters))]
    snapshot = frames.from_rows(
        frames.RESOURCE_SNAPSHOT,
        *(
            {"id": one, "type": kind, "display_name": one, "parent": parent, "scope": parent, "created_at": created}
            for one, kind, parent in resources
        ),
    )
    accounts = [
        {"id": _principal(n), "type": "service_account", "display_name": _principal(n), "created_at": created}
        for n in range(size.principals)
    ]
    keys = [
        {
            "id": f"KEY{n:06d}{place}",
            "type": "api_key",
            "owner": _principal(n),
            "scope": _cluster((n + place) % size.clusters),
            "created_at": created,
        }
        for n in range(size.principals)
        for place in range(3)
    ]
    identities = frames.from_rows(frames.IDENTITY_SNAPSHOT, *accounts, *keys)
    for kind, table, seen in ((entities.RESOURCE, RESOURCES, snapshot), (entities.IDENTITY, IDENTITIES, identities)):
        gathered = entities.Seen(seen, created, frozenset(kind.types))
        found = entities.fold(kind, frames.empty(table), gathered, {}, tenant_id=TENANT, threshold=-1)
        gather_state.replace_entities(store, table, TENANT, found.intervals)


def _store_day(asked: work.Work, day: date, size: Size) -> None:
    """One day as gathering leaves it, in the lake and in the state."""
    key = (f"{day:%Y-%m}", str(day))
    billed = work.publish_billing(asked, key, _billing(day, size))
    used = work.publish_usage(asked, str(day), _usage(day, size))
    assert used is not None
    clusters = tuple(_cluster(number) for number in range(size.clusters))
    rows = size.clusters * size.principals
    fetches = dict.fromkeys(clusters, 1)
    fetched = [
        gather_state.DayMetric(str(day), metric, "fetched", clusters, billed.billing_digest, 1, rows, fetches=fetches)
        for metric in METRICS
    ]
    with asked.store.transaction():
        state.upsert_billing_days(asked.store, [billed])
        gather_state.save_usage_days(asked.store, TENANT, [used])
        gather_state.save_day_metrics(asked.store, TENANT, fetched)


def _billing(day: date, size: Size) -> pl.DataFrame:
    """One day's lines: for each cluster its products; one line in twenty is a credit."""
    numbers = pl.int_range(0, size.lines, dtype=pl.UInt64, eager=True) + day.toordinal() * 2**32
    place = pl.int_range(0, size.lines, eager=True)
    sign = pl.when(mixed(numbers, 2) % 20 == 0).then(-1).otherwise(1).cast(pl.Int128)
    amount = ((mixed(numbers, 5) % (50 * UNITS)).cast(pl.Int128) * sign).reinterpret(dtype=AMOUNT)
    text = {
        "tenant_id": TENANT, "ecosystem": "confluent_cloud", "billing_period": f"{day:%Y-%m}", "env_id": "env-1",
        "product_category": "KAFKA", "line_item_type": "", "region": "", "sub_account_id": "", "invoice_id": "",
        "unit": "GB", "currency": "USD", "tags": '{"description":"what it was for"}',
    }  # fmt: skip
    return (
        pl.DataFrame({"line_id": mixed(numbers, 4).reinterpret(signed=True)})
        .with_columns(
            charge_date=pl.lit(day),
            resource_id=pl.Series([_cluster(number) for number in range(size.clusters)])[place % size.clusters],
            product_type=pl.Series(PRODUCTS)[place // size.clusters % len(PRODUCTS)],
            operation=pl.concat_str(pl.lit("ACCESS_"), (place // size.clusters // len(PRODUCTS)).cast(pl.String)),
            amount=amount,
            list_amount=amount,
            quantity=(mixed(numbers, 3) % (1_000 * UNITS)).cast(pl.Int128).reinterpret(dtype=AMOUNT),
            **{name: pl.lit(value) for name, value in text.items()},
            **{name: pl.lit(None, AMOUNT) for name in ("effective_amount", "contracted_amount")},
        )
        .select(BILLING.columns)
        .sort(BILLING.key)
    )


def _usage(day: date, size: Size) -> pl.DataFrame:
    """From 1e6 to 1e10 bytes a day of every principal on every cluster, as many in each power of ten."""
    rows = (
        pl.DataFrame({"resource_id": [_cluster(number) for number in range(size.clusters)]})
        .join(pl.DataFrame({"metric": METRICS}), how="cross")
        .join(pl.DataFrame({"principal": [_principal(number) for number in range(size.principals)]}), how="cross")
        .with_row_index("_number")
    )
    luck = mixed(rows["_number"].cast(pl.UInt64) + day.toordinal() * 2**32, 1)
    value = 10 ** (luck % 4) * (10**6 + luck // 2**8 % (9 * 10**6))
    return rows.with_columns(
        tenant_id=pl.lit(TENANT), window=pl.lit(str(day)), value=value.cast(pl.Int128).cast(AMOUNT)
    ).select(USAGE.columns)


def _expect(folder: Path, dates: Sequence[date]) -> None:
    """`rows.parquet`: all rows of some days. `sums.parquet`: what each day was billed."""
    stored = folder / "stored"
    billing = lake.scan(stored, BILLING, TENANT)
    billing.group_by("charge_date").agg(pl.col("amount").sum()).sort("charge_date").collect().write_parquet(
        folder / "sums.parquet"
    )
    rows = []
    for day in _sampled(dates):
        connection = duck.connected()
        for table in (BILLING, USAGE):
            file = duck.literal(_place(table, day).path(stored))
            connection.execute(f"CREATE TEMP VIEW {table.name} AS FROM read_parquet({file}, hive_partitioning = false)")
        duck.define(connection, "product_rows")
        rows.append(duck.frame(connection, "FROM product_rows"))
    pl.concat(rows).write_parquet(folder / "rows.parquet")


def _sampled(dates: Sequence[date]) -> list[date]:
    """The first day and some later ones, all of them in the first half."""
    step = max(1, len(dates) // 2 // SAMPLED)
    return list(dates[: len(dates) // 2 : step])[:SAMPLED]


def _place(table: frames.Table, day: date) -> lake.Place:
    return lake.Place(table, TENANT, f"{day:%Y-%m}", day)


def _days(folder: Path) -> list[date]:
    return _dates(SIZES[(folder / "size").read_text(encoding="ascii")].days)


def _root(folder: Path, days: Sequence[date]) -> Path:
    """A store with what was gathered of some days, and chargeback of an older state, which goes to history."""
    stored, root = folder / "stored", folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    lake.create(root, TENANT)
    with state.open_state(stored) as template, state.open_state(root) as store, store.transaction():
        known = state.days(template, TENANT)
        used, fetched = gather_state.usage_days(template, TENANT), gather_state.day_metrics(template, TENANT)
        for table in (RESOURCES, IDENTITIES):
            gather_state.replace_entities(store, table, TENANT, gather_state.entities(template, table, TENANT))
        for day in days:
            for table in (BILLING, USAGE):
                place = _place(table, day)
                place.path(root).parent.mkdir(parents=True, exist_ok=True)
                os.link(place.path(stored), place.path(root))
            row = known[f"{day:%Y-%m}", str(day)]
            kept = state.BillingDay(**{name: getattr(row, name) for name in state.BillingDay._fields})
            state.upsert_billing_days(store, [kept])
            gather_state.save_usage_days(store, TENANT, [used[str(day)]])
            gather_state.save_day_metrics(store, TENANT, [fetched[str(day), metric] for metric in METRICS])
            older = _place(CHARGEBACK, day)
            lake.publish(root, older, lake.write(older.temporary(root), CHARGEBACK, [frames.empty(CHARGEBACK)]))
    os.sync()
    return root


def _recalculated(folder: Path, watch: Watch, days: Sequence[date]) -> Answer:
    config = _configured(folder)
    root = _root(folder, days)
    hooks = work.Hooks(lambda: AT, lambda _: None, lambda *_: None, threading.Event())
    request = work.Request("recalculate", force=True)
    with watch.timed():
        summary = pipeline.run_tenant(
            config.model_copy(update={"root": root}), config.tenants[0], request, hooks, "bench"
        )
    return Answer(summary.rows_written, lambda: _found(folder, root))


def _found(folder: Path, root: Path) -> pl.DataFrame:
    """All rows of some days, and the sum of each other day with a line_id of 0."""
    rows = lake.scan(root, CHARGEBACK, TENANT).select(*ROW, "amount")
    sampled = _sampled(_days(folder))
    other = rows.filter(~pl.col("charge_date").is_in(sampled)).group_by("charge_date").agg(pl.col("amount").sum())
    sums = other.with_columns(line_id=pl.lit(0, pl.Int64), identity_id=pl.lit("")).select(*ROW, "amount")
    return pl.concat([rows.filter(pl.col("charge_date").is_in(sampled)), sums]).collect()


def _prorata(folder: Path, watch: Watch) -> Answer:
    return _recalculated(folder, watch, _days(folder))


def _prorata_half(folder: Path, watch: Watch) -> Answer:
    days = _days(folder)
    return _recalculated(folder, watch, days[: len(days) // 2])


def check(folder: Path, variant: str, answer: Answer) -> None:
    """Every row of some days, and the sums of all others."""
    found = answer.found()
    days = _days(folder)
    done = days[: len(days) // 2] if "half" in variant else days
    if answer.rows != len(done) * SIZES[(folder / "size").read_text(encoding="ascii")].lines * _principals(folder):
        raise WrongResultError(f"{answer.rows} rows; expected one for each line and principal")
    sums = pl.read_parquet(folder / "sums.parquet").filter(
        pl.col("charge_date").is_in(done), ~pl.col("charge_date").is_in(_sampled(days))
    )
    sums = sums.with_columns(line_id=pl.lit(0, pl.Int64), identity_id=pl.lit("")).select(*ROW, "amount")
    check_same(found, pl.concat([pl.read_parquet(folder / "rows.parquet").select(*ROW, "amount"), sums]), ROW)


def _principals(folder: Path) -> int:
    return SIZES[(folder / "size").read_text(encoding="ascii")].principals


CASE = Case(
    "tenant_year",
    "A tenant-year: 1,000 lines a day x 200 principals = 73 M rows by recalculate",
    "rows",
    prepare,
    {
        "prorata": Variant(_prorata, rounds=3),
        "prorata, half the days": Variant(_prorata_half, rounds=3),
    },
    check,
    (
        Target("at least 6 M rows/s", "prorata", "rate", at_least=6e6),
        Target(
            "peak flat: all days within 10 % of half of them", "prorata", "peak", "prorata, half the days", at_most=1.1
        ),
    ),
)
