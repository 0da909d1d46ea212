"""Tenants without a bill against a real Prometheus: what a day costs, what is missing, and what fails and heals."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine import state
from engine.gather_state import day_metrics
from engine.sources.landing import Landing
from tests.doubles.exporter import (
    BYTES_IN,
    BYTES_OUT,
    DAY,
    GIB,
    HOUR,
    LOG_SIZE,
    MINUTE,
    SECOND,
    START,
    Cluster,
    gauge,
)
from tests.doubles.front import WAYS, front, reader, told
from tests.doubles.organization import Credential
from tests.doubles.prometheus import Row, prometheus
from tests.functional.bills import prorata
from tests.integration.cost_tenants import FIRST, RATES, Between, Root, kafka, metrics
from tests.unit.scripted import Reply

DAYS = 30
COMPUTE, STORAGE, INGRESS, EGRESS = (
    f"SELF_KAFKA_{name}" for name in ("COMPUTE", "STORAGE", "NETWORK_INGRESS", "NETWORK_EGRESS")
)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def strange_rows() -> Iterator[Row]:
    """Edges of days, values that are no numbers, zeros, and series without principals."""
    edge = {"cluster": "edge", "broker": "1", "topic": "t", "principal": "p"}
    moments = range(0, 2 * DAY + MINUTE, MINUTE)
    # 1 GiB comes in between the last scrape of the first day and the one at midnight; the size doubles at midnight.
    yield from gauge(BYTES_IN, edge, ((moment, 0 if moment < DAY else GIB) for moment in moments))
    yield from gauge(LOG_SIZE, edge, ((moment, GIB if moment < DAY else 2 * GIB) for moment in moments))
    nan = {"cluster": "nan", "broker": "1", "topic": "t", "principal": "p"}
    for moment in range(0, DAY + MINUTE, MINUTE):
        bad = 5 * HOUR <= moment < 6 * HOUR
        yield from gauge(LOG_SIZE, nan, [(moment, "NaN" if bad else 10 * GIB)])
        yield from gauge(BYTES_IN, nan, [(moment, "NaN" if bad else moment // MINUTE * 60)])
    zero = {"cluster": "zero", "broker": "1", "topic": "t"}
    for moment in range(0, DAY + MINUTE, MINUTE):
        yield from gauge(BYTES_IN, {**zero, "principal": "p"}, [(moment, 7)])
        yield from gauge(BYTES_OUT, zero, [(moment, moment // MINUTE * GIB)])
    for name, size in (("shop", 75), ("crm", 25)):
        for moment in range(0, DAY, MINUTE):
            labels = {"server": "pg", "datname": name}
            yield from gauge("pg_database_size_bytes", labels, [(moment, size * GIB)])


def broken_rows() -> Iterator[Row]:
    """Three days of clusters of two brokers of which one has trouble on the second."""
    # One of two exporters is down all day.
    for row in Cluster("half", 3).rows():
        if row.labels["broker"] == "1" or not START + DAY <= row.milliseconds < START + 2 * DAY:
            yield row
    # The same where series do not say which broker they are of, only what was scraped.
    for row in Cluster("plain", 3).rows():
        if row.labels["broker"] == "1" or not START + DAY <= row.milliseconds < START + 2 * DAY:
            labels = {name: text for name, text in row.labels.items() if name != "broker"}
            yield row._replace(labels={**labels, "instance": f"kafka-{row.labels['broker']}:9404"})
    # Broker 2 moves to another machine, and nothing is missing.
    for row in Cluster("moved", 3).rows():
        late = row.labels["broker"] == "2" and row.milliseconds >= START + DAY + 11 * HOUR
        yield row._replace(labels={**row.labels, "instance": "10.0.0.9:9404" if late else "10.0.0.1:9404"})
    # A small topic beside the others, with one sample that is no number.
    yield from Cluster("spoilt", 3).rows()
    for name in (BYTES_IN, LOG_SIZE):
        labels = {"cluster": "spoilt", "broker": "1", "topic": "tiny"}
        labels |= {"principal": "User:alice"} if name == BYTES_IN else {}
        bad = DAY + 5 * HOUR
        yield from gauge(name, labels, ((at, "NaN" if at == bad else 0) for at in range(0, 3 * DAY + MINUTE, MINUTE)))
    # What is no number lies where two days meet.
    labels = {"cluster": "midnight", "broker": "1", "topic": "t", "principal": "p"}
    moments = range(0, 3 * DAY + MINUTE, MINUTE)
    yield from gauge(BYTES_IN, labels, ((at, "NaN" if at == DAY else at // MINUTE * GIB) for at in moments))
    # 1 GiB comes in within the first seconds of each hour, between two scrapes.
    labels = {"cluster": "burst", "broker": "1", "topic": "t", "principal": "p"}
    moments = range(30 * SECOND, DAY + MINUTE, MINUTE)
    yield from gauge(BYTES_IN, labels, ((moment, (moment // HOUR + 1) * GIB) for moment in moments))
    for name, size in (("a", 75), ("b", 25)):
        for moment in range(0, DAY, MINUTE):
            bad = name == "b" and moment == 2 * HOUR - MINUTE
            yield from gauge("spoilt_bytes", {"of": name}, [(moment, "NaN" if bad else size * GIB)])


def not_there(moment: int) -> bool:
    return 2 * HOUR <= moment < 4 * HOUR


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    clusters = [
        Cluster("eu", DAYS, step=5 * MINUTE),
        Cluster("us", DAYS, step=7 * MINUTE, offset=17_123),
        Cluster("minute", 2),
        Cluster("odd", 2, offset=17_123),
        Cluster("reset", 1, reset=11 * HOUR + 30 * MINUTE + 30 * SECOND),
        Cluster("gap", 1, missing=not_there),
    ]
    rows = chain(strange_rows(), broken_rows(), *(one.rows() for one in clusters))
    with prometheus(rows, tmp_path_factory.mktemp("prometheus"), prefix="/some/where") as found:
        yield found


def test_thirty_days_of_two_clusters_in_one_prometheus(url: str, tmp_path: Path) -> None:
    five, seven = {"scrape_seconds": "300"}, {"scrape_seconds": "420"}
    root = Root(
        tmp_path,
        kafka("eu", url, metrics=five, lookback_days=str(DAYS)),
        kafka("us", url, metrics=seven, lookback_days=str(DAYS), source={"broker_count": "5"}),
    )
    for number in (0, 1):
        summary = root.run(day(DAYS), number=number)
        assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), DAYS, 0)
    billing = root.table("billing")
    eu, us = (billing.filter(pl.col("tenant_id") == name) for name in ("eu", "us"))
    by_product = dict(eu.group_by("product_type").agg(pl.col("amount").sum()).rows())
    # Every scrape is on the full hour: not a byte is estimated.
    assert by_product == {COMPUTE: 30 * Decimal("7.2"), STORAGE: 36, INGRESS: Decimal("7.2"), EGRESS: Decimal("28.8")}
    assert eu.filter(pl.col("product_type") == INGRESS)["quantity"].unique().to_list() == [24]
    assert set(us.filter(pl.col("product_type") == COMPUTE)["amount"]) == {Decimal(12)}
    estimated = us.filter(pl.col("product_type") == INGRESS)["quantity"].to_list()
    assert len(estimated) == DAYS
    assert all(abs(Fraction(quantity) / 24 - 1) < Fraction(1, 10**6) for quantity in estimated)
    charges = root.table("chargeback").filter(pl.col("tenant_id") == "eu")
    shares = (
        charges.group_by("product_type", "identity_id").agg(pl.col("amount").sum()).sort("product_type", "identity_id")
    )
    assert [row for row in shares.rows() if row[0] == INGRESS] == [
        (INGRESS, "User:alice", Decimal("5.4")),
        (INGRESS, "User:bob", Decimal("1.8")),
    ]
    assert charges["amount"].sum() == eu["amount"].sum()
    resources = root.table("resources").filter(pl.col("tenant_id") == "eu").select("id", "type", "parent")
    assert resources.rows() == [
        ("eu", "kafka_cluster", ""),
        ("eu/broker/1", "broker", "eu"),
        ("eu/broker/2", "broker", "eu"),
        ("eu/topic/orders", "topic", "eu"),
    ]
    identities = root.table("identities").filter(pl.col("tenant_id") == "eu").select("id", "type")
    assert identities.rows() == [
        ("UNALLOCATED", "system"),
        ("User:alice", "principal"),
        ("User:bob", "principal"),
    ]


def one_day(url: str, folder: Path, cluster: str, **settings: Any) -> Root:
    """A root with the first day of a cluster."""
    root = Root(folder, kafka(cluster, url, lookback_days="1", **settings))
    assert root.run(day(1)).faults == ()
    return root


def test_a_gibibyte_an_hour_scraped_on_the_minute_is_24_and_not_25(url: str, tmp_path: Path) -> None:
    root = one_day(url, tmp_path, "minute")
    assert root.lines("product_type", "quantity", "amount") == [
        (COMPUTE, 72, Decimal("7.2")),
        (EGRESS, 48, Decimal("0.96")),
        (INGRESS, 24, Decimal("0.24")),
        (STORAGE, 12000, Decimal("1.2")),
    ]
    assert root.incomplete() == []
    tags = [json.loads(tags) for [tags] in root.lines("tags", product=INGRESS)]
    assert tags == [{"answers": "1", "bytes": str(24 * GIB), "rate": "0.01"}]


def test_odd_scrapes_are_within_a_millionth(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("odd", url, lookback_days="2"))
    root.run(day(2))
    quantities = [quantity for [quantity] in root.lines("quantity", product=INGRESS)]
    assert len(quantities) == 2
    assert all(abs(Fraction(quantity) / 24 - 1) < Fraction(1, 10**6) for quantity in quantities)
    assert [quantity for [quantity] in root.lines("quantity", product=STORAGE)] == [12000, 12000]


def test_a_counter_that_is_set_back_is_neither_negative_nor_doubled(url: str, tmp_path: Path) -> None:
    [[quantity]] = one_day(url, tmp_path, "reset").lines("quantity", product=INGRESS)
    # What came in between the last scrape before and the reset, half a minute of it, nobody has seen.
    assert Fraction(24) - Fraction(1, 60) <= Fraction(quantity) <= 24


def test_what_rises_between_two_days_is_on_neither(url: str, tmp_path: Path) -> None:
    """As the page on cost models says: of 24 jobs the first, at midnight, between two scrapes; and no other."""
    root = one_day(url, tmp_path, "burst")
    [[quantity]] = root.lines("quantity", product=INGRESS)
    assert 23 <= quantity <= 23 * Decimal(1440) / 1439
    charges = root.table("chargeback").filter(pl.col("product_type") == INGRESS)
    assert charges.select("identity_id", "allocation_method").rows() == [("p", "usage_ratio")]


def test_what_happens_at_midnight_counts_once(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("edge", url, lookback_days="2"))
    root.run(day(2))
    # What came in before the sample at midnight came in on the first day; what lies there from midnight, on the second.
    assert root.lines("charge_date", "quantity", product=INGRESS) == [(day(0), 1), (day(1), 0)]
    assert root.lines("charge_date", "quantity", product=STORAGE) == [(day(0), 24), (day(1), 48)]


def test_missing_hours_are_told_and_what_is_stored_is_their_mean(url: str, tmp_path: Path) -> None:
    root = one_day(url, tmp_path, "gap")
    # Counters went on while nobody looked.
    assert root.amounts(day(0)) == {
        COMPUTE: Decimal("7.2"),
        STORAGE: Decimal("1.2"),
        INGRESS: Decimal("0.24"),
        EGRESS: Decimal("0.96"),
    }
    assert [tuple(one) for one in root.incomplete()] == [
        (str(day(0)), name, 1320, 1440) for name in ("egress", "ingress", "storage")
    ]
    assert any(
        "ingress: samples are missing on 1 day" in text and "(1320 of 1440 came)" in text for text in root.logged
    )


def test_an_incomplete_day_waits_if_it_is_to(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("gap", url, lookback_days="1", incomplete_below="0.95"))
    summary = root.run(day(1))
    assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), 0, 1)
    assert root.days("gap")[str(day(0))].error == "storage: 1320 of 1440 samples"
    assert root.plan(day(1))[str(day(0))].calculate_reason == "incomplete"
    # It is asked for again, in case more has come; a threshold that is kept lets it pass.
    assert root.run(day(1)).requests > 1
    root.write(kafka("gap", url, lookback_days="1", incomplete_below="0.9"))
    summary = root.run(day(1))
    assert (summary.requests, summary.days_calculated, summary.days_pending) == (0, 1, 0)


@pytest.mark.parametrize("cluster", ["half", "plain"])
def test_an_exporter_that_is_down_is_told_though_another_is_whole(url: str, tmp_path: Path, cluster: str) -> None:
    root = Root(tmp_path, kafka(cluster, url, lookback_days="3", incomplete_below="1"))
    summary = root.run(day(3))
    assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), 2, 1)
    assert [tuple(one) for one in root.incomplete()] == [
        (str(day(1)), name, 0, 1440) for name in ("egress", "ingress", "storage")
    ]
    assert root.lines("quantity", product=INGRESS) == [(24,), (12,), (24,)]


def test_an_exporter_that_is_down_on_the_first_day_is_told(url: str, tmp_path: Path) -> None:
    """Whoever comes on the day after was there before, or there is one day to look at."""
    root = Root(tmp_path, kafka("half", url, lookback_days="1", incomplete_below="1"))
    assert root.run(day(2)).days_pending == 1
    assert {one.came for one in root.incomplete()} == {0}


def test_a_broker_that_moves_is_whole(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("moved", url, lookback_days="3", incomplete_below="1"))
    assert root.run(day(3)).days_calculated == 3
    assert root.incomplete() == []


def test_what_is_no_number_is_dropped_and_counted(url: str, tmp_path: Path) -> None:
    root = one_day(url, tmp_path, "nan")
    [[size, tags]] = root.lines("quantity", "tags", product=STORAGE)
    assert (size, json.loads(tags)["answers"]) == (240, "23")
    [[tags]] = root.lines("tags", product=INGRESS)
    # Of a counter the first sample of the day and the last one say it all.
    assert json.loads(tags) == {"answers": "1", "bytes": str(24 * 3600), "rate": "0.01"}
    assert root.days("nan")[str(day(0))].chargeback_calculated
    assert [tuple(one) for one in root.incomplete()] == [
        *((str(day(0)), name, came, 1440) for name, came in (("egress", 0), ("ingress", 1320), ("storage", 1380)))
    ]


def test_one_sample_that_is_no_number_takes_nothing_else_with_it(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("spoilt", url, lookback_days="3", incomplete_below="1"))
    summary = root.run(day(3))
    assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), 2, 1)
    assert root.lines("quantity", product=INGRESS) == [(24,), (24,), (24,)]
    assert root.lines("quantity", product=STORAGE) == [(12000,), (12000,), (12000,)]
    # Two hours of one of three series of the broker that send, and one of one of two that are stored.
    assert [tuple(one) for one in root.incomplete()] == [
        (str(day(1)), "ingress", 1400, 1440),
        (str(day(1)), "storage", 1410, 1440),
    ]
    root.write(kafka("spoilt", url, lookback_days="3"))
    assert root.run(day(3)).days_calculated == 1
    charges = root.table("chargeback").filter(pl.col("product_type") == INGRESS, pl.col("charge_date") == day(1))
    assert charges.sort("identity_id").select("identity_id", "amount").rows() == [
        ("User:alice", Decimal("0.18")),
        ("User:bob", Decimal("0.06")),
    ]


def test_what_is_no_number_at_midnight_takes_an_hour_at_each_end_and_is_told_on_both_days(
    url: str, tmp_path: Path
) -> None:
    prices = {"network_ingress_per_gib": "0.01"}
    root = Root(tmp_path, kafka("midnight", url, lookback_days="3", source={"rates": prices}))
    assert root.run(day(3)).days_calculated == 3
    quantities = [quantity for [quantity] in root.lines("quantity", product=INGRESS)]
    assert [round(quantity, 3) for quantity in quantities] == [22 * 60, 22 * 60, 24 * 60]
    assert [tuple(one) for one in root.incomplete()] == [(str(day(number)), "ingress", 1380, 1440) for number in (0, 1)]
    charges = root.table("chargeback").filter(pl.col("product_type") == INGRESS)
    assert set(charges["identity_id"]) == {"p"}


def test_a_series_of_a_query_that_is_no_number_is_told(url: str, tmp_path: Path) -> None:
    cost_type = {
        "name": "STORED",
        "product_category": "store",
        "rate": "1",
        "quantity": {"storage_gib": "spoilt_bytes"},
        "allocation": "usage_ratio",
        "allocation_query": "spoilt_bytes",
        "allocation_label": "of",
    }
    source = {"kind": "cost_model", "cluster_id": "spoilt", "cost_types": [cost_type]}
    given = {"id": "spoilt", "ecosystem": "generic_metrics", "source": source, "metrics": metrics(url)}
    root = Root(tmp_path, {**given, "lookback_days": "1", "cutoff_days": "0"})
    assert root.run(day(1)).faults == ()
    # For an hour there are 75 GiB instead of 100.
    assert root.lines("quantity", product="STORED") == [(23 * 100 + 75,)]
    assert [tuple(one) for one in root.incomplete()] == [(str(day(0)), "quantity-STORED", 23, 24)]


def test_an_answer_that_is_no_number_is_no_whole_day(url: str, tmp_path: Path) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="1"))
        between.failing("sum(sum_over_time(kafka_log_log_size", hourly(dict.fromkeys(range(1, 24), "NaN")))
        assert root.run(day(1)).faults == ()
    assert [tuple(one) for one in root.incomplete()] == [(str(day(0)), "storage", 60, 1440)]
    told = f"storage: 23 points left out, since they are no numbers, the first on {day(0)}"
    assert any(told in text for text in root.logged)


def test_a_day_without_samples_costs_its_brokers(url: str, tmp_path: Path) -> None:
    root = one_day(url, tmp_path, "nowhere")
    assert root.amounts(day(0)) == {COMPUTE: Decimal("7.2")}
    assert root.table("chargeback").select("identity_id", "allocation_detail").rows() == [
        ("UNALLOCATED", "no_identities_located")
    ]
    assert {one.came for one in root.incomplete()} == {0}


def test_zeros_and_series_without_principals(url: str, tmp_path: Path) -> None:
    settings = {"identity_source": "both", "static_identities": ["a", "b"], "rates": {**RATES}}
    root = one_day(url, tmp_path, "zero", source=settings)
    charges = root.table("chargeback").filter(pl.col("product_type").is_in([INGRESS, EGRESS]))
    found = charges.select("product_type", "identity_id", "amount", "allocation_detail").sort(
        "product_type", "identity_id"
    )
    assert found.rows() == [
        (EGRESS, "a", Decimal("14.4"), "no_metrics_located"),
        (EGRESS, "b", Decimal("14.4"), "no_metrics_located"),
        (INGRESS, "a", 0, "no_metrics_located"),
    ]


def test_databases_of_a_server(url: str, tmp_path: Path) -> None:
    source = {
        "kind": "cost_model",
        "cluster_id": "pg",
        "identity_source": {"label": "datname", "discovery_query": 'pg_database_size_bytes{server="pg"}'},
        "cost_types": [
            {
                "name": "PG_COMPUTE",
                "product_category": "postgresql",
                "rate": "0.25",
                "quantity": {"fixed": "2"},
                "allocation": "even_split",
            },
            {
                "name": "PG:STORAGE",
                "product_category": "postgresql",
                "rate": "0.0001",
                "quantity": {"storage_gib": 'pg_database_size_bytes{server="pg"}'},
                "allocation": "usage_ratio",
                "allocation_query": "avg_over_time(pg_database_size_bytes[{range}])",
                "allocation_label": "datname",
            },
        ],
    }
    tenant = {"id": "pg", "ecosystem": "generic_metrics", "source": source, "metrics": metrics(url)}
    root = Root(tmp_path, {**tenant, "lookback_days": "1", "cutoff_days": "0"})
    assert root.run(day(1)).faults == ()
    assert root.lines("product_type", "quantity", "amount") == [
        ("PG:STORAGE", 2400, Decimal("0.24")),
        ("PG_COMPUTE", 48, 12),
    ]
    charges = (
        root.table("chargeback").select("product_type", "identity_id", "amount").sort("product_type", "identity_id")
    )
    assert charges.rows() == [
        ("PG:STORAGE", "crm", Decimal("0.06")),
        ("PG:STORAGE", "shop", Decimal("0.18")),
        ("PG_COMPUTE", "crm", 6),
        ("PG_COMPUTE", "shop", 6),
    ]


# What changes, and what that touches.


def test_a_rate_that_changes_asks_nothing_and_touches_its_days_alone(url: str, tmp_path: Path) -> None:
    given = {"metrics": {"scrape_seconds": "300"}, "lookback_days": "5"}
    root = Root(tmp_path, kafka("eu", url, **given))
    root.run(day(DAYS))
    before = {name: row.output_digest for name, row in root.days("eu").items()}
    assert root.run(day(DAYS)).days_calculated == 0
    rates = [{"to": str(day(27)), **RATES}, {"from": str(day(27)), **RATES, "compute_hourly_rate": "0.2"}]
    # Nobody is there to ask.
    root.write(kafka("eu", "http://127.0.0.1:9/", **given, source={"rates": rates}))
    changed = {str(day(number)) for number in range(27, DAYS)}
    plan = root.plan(day(DAYS))
    assert {name for name, one in plan.items() if one.gather_reason == "model_changed"} == changed
    assert {name for name, one in plan.items() if one.calculate} == changed
    summary = root.run(day(DAYS))
    assert (summary.faults, summary.requests, summary.days_calculated) == ((), 0, 3)
    after = {name: row.output_digest for name, row in root.days("eu").items()}
    assert {name for name, digest in after.items() if digest != before[name]} == changed
    assert not any(
        one.gather or one.calculate for one in root.plan(day(DAYS)).values() if one.charge_date < str(day(DAYS))
    )
    compute = dict(root.lines(product=COMPUTE))
    assert (compute[day(26)], compute[day(27)]) == (Decimal("7.2"), Decimal("14.4"))
    # As much as to say the same with other digits, or of a time that nobody asks for.
    rates[0]["compute_hourly_rate"] = "0.1"
    root.write(
        kafka("eu", "http://127.0.0.1:9/", **given, source={"rates": [*rates[:1], {**rates[1], "to": "2030-01-01"}]})
    )
    assert root.run(day(DAYS)).days_calculated == 0
    root.write(kafka("eu", "http://127.0.0.1:9/", **given))
    assert root.run(day(DAYS)).days_calculated == 3
    assert {name: row.output_digest for name, row in root.days("eu").items()} == before


def test_a_recalculation_makes_all_days_anew_and_the_same(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("minute", url, lookback_days="2"))
    root.run(day(2))
    before = {file: file.read_bytes() for file in (root.root / "lake").glob("**/*.parquet")}
    summary = root.run(day(2), "recalculate")
    assert (summary.days_calculated, summary.requests) == (2, 0)
    assert {file: file.read_bytes() for file in (root.root / "lake").glob("**/*.parquet")} == before


def test_a_cluster_that_ends_has_no_lines_after_it(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, kafka("minute", url, lookback_days="2"))
    root.run(day(2))
    rates = [{"to": str(day(1)), **RATES}]
    root.write(kafka("minute", url, lookback_days="2", source={"rates": rates}))
    summary = root.run(day(2))
    assert (summary.days_removed, summary.days_calculated) == (1, 0)
    assert {charge_date for charge_date, _ in root.lines()} == {day(0)}
    assert set(root.table("chargeback")["charge_date"]) == {day(0)}
    assert root.run(day(2)).days_removed == 0


def test_another_selector_is_another_question(url: str, tmp_path: Path) -> None:
    root = one_day(url, tmp_path, "minute")
    root.write(kafka("minute", url, lookback_days="1", source={"selector": "cluster=~'minute|reset'"}))
    summary = root.run(day(1))
    assert (summary.faults, summary.days_calculated) == ((), 1)
    assert summary.requests > 1
    assert root.lines("quantity", product=STORAGE) == [(24000,)]


# What fails, and heals.

ERROR = '{"status": "error", "errorType": "execution", "error": "too many samples"}'


failures = pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(500, "no"), "500"),
        (Reply(503, ERROR), "503"),
        (Reply(400, ERROR), "too many samples"),
        (Reply(401, "who?"), "401"),
        (Reply(200, "<html>"), "JSON"),
        (Reply(200, ERROR), "too many samples"),
    ],
    ids=["500", "503", "400", "401", "html", "error"],
)


@failures
def test_a_failure_is_a_line_the_day_waits_and_heals(url: str, tmp_path: Path, reply: Reply, told: str) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="2"))
        between.reply = lambda _: reply
        summary = root.run(day(2))
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (11, 0, 2)
        [fault] = summary.faults
        assert told in fault
        assert fault.isprintable()
        assert fault.count("; expected ") == 1
        # Brokers cost what they cost; the day only waits to be split.
        assert root.lines() == [(day(0), Decimal("7.2")), (day(1), Decimal("7.2"))]
        assert root.plan(day(2))[str(day(0))].calculate_reason == "metrics_failed"
        between.reply = between.passed
        summary = root.run(day(2))
        assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), 2, 0)
        assert root.lines(product=INGRESS) == [(day(0), Decimal("0.24")), (day(1), Decimal("0.24"))]


@failures
def test_a_question_that_fails_alone_is_a_line_the_day_waits_and_heals(
    url: str, tmp_path: Path, reply: Reply, told: str
) -> None:
    """As a user runs it, and with a server that says what it is, and answers everything else."""
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="1"))
        between.failing("sum(increase(kafka_server_brokertopicmetrics_bytesin", reply)
        done = prorata(tmp_path, "run", "--today", str(day(1)))
        [fault] = [line for line in done.stderr.splitlines() if "metrics: ingress" in line]
        assert (done.returncode, fault.count("; expected ")) == (11, 1)
        assert told in fault
        assert "Traceback" not in done.stderr
        # What else was asked came, and is not charged before all of the day is there.
        assert {*root.amounts(day(0))} == {COMPUTE, EGRESS, STORAGE}
        assert root.days("minute")[str(day(0))].metrics_gathered == 0
        assert root.table("chargeback").height == 0
        between.reply = between.passed
        done = prorata(tmp_path, "run", "--today", str(day(1)))
        assert (done.returncode, done.stderr.count("ingress")) == (0, 0)
        assert root.amounts(day(0))[INGRESS] == Decimal("0.24")
        assert root.table("chargeback")["amount"].sum() == Decimal("9.6")


def heals(root: Root, url: str, days: int, **settings: Any) -> None:
    """A Prometheus that answers is all that waiting days need."""
    root.write(kafka("minute", url, lookback_days=str(days), **settings))
    summary = root.run(day(days))
    assert (summary.faults, summary.days_calculated, summary.days_pending) == ((), days, 0)
    assert root.lines(product=INGRESS) == [(day(number), Decimal("0.24")) for number in range(days)]


def test_nobody_there_and_too_slow(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path / "down", kafka("minute", "http://127.0.0.1:9/", lookback_days="2"))
    summary = root.run(day(2))
    assert (len(summary.faults), summary.exit_code, summary.days_pending) == (1, 11, 2)
    heals(root, url, 2)
    done = threading.Event()
    between = Between(url)
    between.reply = lambda _: Reply(before=done.wait)
    with between.serving() as script:
        tenant = kafka("minute", script.url, lookback_days="2", metrics={"timeout_seconds": "0.05"})
        root = Root(tmp_path / "slow", tenant)
        summary = root.run(day(2))
        done.set()
        assert (len(summary.faults), summary.exit_code, summary.days_pending) == (1, 11, 2)
        between.reply = between.passed
        heals(root, script.url, 2)


def test_other_tenants_are_done(url: str, tmp_path: Path) -> None:
    """As a user runs it: one tenant waits for its Prometheus, the other needs none."""
    fixed = {"identity_source": "static", "static_identities": ["ops"], "rates": {"compute_hourly_rate": "1"}}
    other = kafka("other", None, lookback_days="1", source=fixed)
    found = []
    for where in ("http://127.0.0.1:9/", url):
        Root(tmp_path, kafka("minute", where, lookback_days="1"), other)
        found.append(prorata(tmp_path, "run", "--today", str(day(1))))
    assert [done.returncode for done in found] == [1, 0]
    assert "other: 1 day calculated" in found[0].stdout
    told = [text for text in found[0].stderr.splitlines() if "127.0.0.1:9" in text]
    assert len(told) == 1, found[0].stderr
    assert "minute: 1 day calculated" in found[1].stdout
    assert "other: nothing to do: 1 day up to date" in found[1].stdout


def test_each_tenant_of_a_prometheus_that_is_down_is_named(tmp_path: Path) -> None:
    Root(tmp_path, *(kafka(name, "http://127.0.0.1:9/", lookback_days="1") for name in ("eu", "us")))
    done = prorata(tmp_path, "run", "--today", str(day(1)))
    told = sorted(text.partition(": GET ")[0] for text in done.stderr.splitlines() if "127.0.0.1:9" in text)
    assert told == ["prorata: tenant eu: metrics", "prorata: tenant us: metrics"]


@pytest.mark.parametrize("from_request", [1, 5])
def test_a_prometheus_that_hardly_answers_is_not_asked_everything(url: str, tmp_path: Path, from_request: int) -> None:
    """From its first question on, or in the midst of a run."""
    between = Between(url)
    with between.serving() as script:
        busy = Reply(503, "busy", {"Retry-After": "0"})
        between.reply = lambda request: busy if len(script.asked) > from_request else between.passed(request)
        settings = {"lookback_days": "2", "metrics": {"attempts": "2"}}
        root = Root(tmp_path, kafka("minute", script.url, **settings))
        summary = root.run(day(2))
        # What it is, and a light question, twice. Later two questions, and a light one again.
        assert len(script.asked) - from_request == (2 if from_request == 1 else 3 * 2)
        assert (summary.days_pending, len(summary.faults)) == (2, 1 if from_request == 1 else 3)
        if from_request > 1:
            assert summary.faults[-1].startswith("metrics: not asked for the rest: POST ")
            # What was not asked has not failed.
            assert root.plan(day(2))[str(day(0))].detail.startswith("ingress, attempt 1 of 3: ")
            with state.open_state(root.root, write=False) as store:
                assert {name for _, name in day_metrics(store, "minute")} == {"storage", "ingress", "egress"}
        between.reply = between.passed
        heals(root, script.url, 2)


def test_one_question_that_fails_leaves_the_rest_of_the_day_and_other_days(url: str, tmp_path: Path) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="1", allocation_retry_limit="2"))
        between.failing("sum by (principal) (increase(kafka_server_brokertopicmetrics_bytesin", Reply(500, "no"))
        summary = root.run(day(1))
        [fault] = summary.faults
        assert "metrics: bytes_in: " in fault
        assert summary.days_pending == 1
        # The quantities came; they are not asked for again.
        asked = len(script.asked)
        summary = root.run(day(1))
        assert len(script.asked) - asked == 3
        # Given up: what it would have split goes to UNALLOCATED, the rest where it belongs.
        assert (summary.days_calculated, summary.days_pending) == (1, 0)
        found = (
            root.table("chargeback")
            .select("product_type", "identity_id", "allocation_method")
            .sort("product_type", "identity_id")
        )
        assert found.rows() == [
            (COMPUTE, "UNALLOCATED", "allocation_failed"),
            (EGRESS, "User:alice", "usage_ratio"),
            (EGRESS, "User:bob", "usage_ratio"),
            (INGRESS, "UNALLOCATED", "allocation_failed"),
            (STORAGE, "UNALLOCATED", "allocation_failed"),
        ]
        between.reply = between.passed
        assert root.run(day(1)).requests == 0
        assert root.run(day(1), lift=True).days_calculated == 1
        assert set(root.table("chargeback")["identity_id"]) == {"User:alice", "User:bob"}


def hourly(values: dict[int, str]) -> Reply:
    """An answer of one series with these values for the hours of the first day; 0 for the others."""
    points = [[(START + hour * HOUR - 1) / 1000, values.get(hour, "0")] for hour in range(1, 25)]
    body = {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": points}]}}
    return Reply(200, json.dumps(body))


def test_a_quantity_below_zero_cannot_be_and_the_day_waits(url: str, tmp_path: Path) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="1"))
        # The day's sum is not below zero.
        between.failing("sum(sum_over_time(kafka_log_log_size", hourly({5: "-5", 6: "7"}))
        summary = root.run(day(1))
        [fault] = summary.faults
        assert "storage" in fault
        assert "1 value(s) like '-5'; expected 0 or more, since there is no less than nothing" in fault
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (11, 0, 1)
        assert STORAGE not in root.amounts(day(0))
        between.reply = between.passed
        assert root.run(day(1)).days_calculated == 1
        assert root.amounts(day(0))[STORAGE] == Decimal("1.2")


def test_a_query_for_less_than_nothing_costs_nothing(url: str, tmp_path: Path) -> None:
    cost_type = {
        "name": "LESS",
        "product_category": "store",
        "rate": "1",
        "quantity": {"storage_gib": '-pg_database_size_bytes{server="pg"}'},
        "allocation": "even_split",
    }
    source = {"kind": "cost_model", "cluster_id": "less", "cost_types": [cost_type]}
    given = {"id": "less", "ecosystem": "generic_metrics", "source": source, "metrics": metrics(url)}
    root = Root(tmp_path, {**given, "lookback_days": "1", "cutoff_days": "0"})
    summary = root.run(day(1))
    [fault] = summary.faults
    assert "24 value(s) like '-107374182400'; expected 0 or more" in fault
    assert (summary.days_calculated, root.table("billing").height) == (0, 0)


def test_a_quantity_that_is_given_up_has_no_line(url: str, tmp_path: Path) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("minute", script.url, lookback_days="1", allocation_retry_limit="1"))
        between.failing("sum(increase(kafka_server_brokertopicmetrics_bytesin", Reply(500, "no"))
        summary = root.run(day(1))
        assert (summary.exit_code, summary.days_calculated) == (11, 1)
        assert set(root.amounts(day(0))) == {COMPUTE, EGRESS, STORAGE}
        assert any("its lines are left out" in text for text in root.logged)


def test_a_real_limit_of_samples(url: str, tmp_path: Path) -> None:
    with prometheus(Cluster("minute", 1).rows(), tmp_path / "prometheus", options=["--query.max-samples=100"]) as found:
        root = Root(tmp_path / "root", kafka("minute", found, lookback_days="1"))
        summary = root.run(day(1))
    assert summary.days_pending == 1
    assert all("days_per_query" in fault and fault.isprintable() for fault in summary.faults)
    heals(root, url, 1)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials(url: str, tmp_path: Path, kind: str) -> None:
    right = {"basic": f"Basic {base64.b64encode(b'me:sesame77').decode()}", "bearer": "Bearer sesame77"}[kind]
    given = {"basic": {"username": "${USER_}", "password": "${PASS_}"}, "bearer": {"bearer": "${PASS_}"}}[kind]
    with front(url, right) as behind:
        root = Root(tmp_path, kafka("minute", behind, lookback_days="1", metrics=given))
        wrong = root.run(day(1), environment={"USER_": "me", "PASS_": "wrong-one"})
        assert (wrong.exit_code, wrong.days_pending, len(wrong.faults)) == (11, 1, 1)
        assert "wrong-one" not in wrong.faults[0]
        assert root.run(day(1), environment={"USER_": "me", "PASS_": "sesame77"}).days_calculated == 1


def test_what_prometheus_warns_of_is_one_line(url: str, tmp_path: Path) -> None:
    with front(url, None, ["1 of 2 stores\nis down"]) as behind:
        root = Root(tmp_path, kafka("minute", behind, lookback_days="1"))
        done = root.run(day(1))
    assert (done.exit_code, done.days_calculated) == (0, 1)
    assert "bytes_in: Prometheus warns: '1 of 2 stores is down'" in done.warnings


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_is_in_any_file_or_message(url: str, tmp_path: Path, way: str) -> None:
    right, wrong = reader(way, "right"), reader(way, "wrong")
    admin = Credential("CANARYADMIN", "CANARY-PASSWORD-admin/0123456789+abcd")
    opened = {"ADMIN_NAME": admin.key, "ADMIN_PASSWORD": admin.secret}
    asked = {"bootstrap_servers": ["127.0.0.1:9"], "security": "plaintext", "timeout_seconds": "0.2"}
    source = {"admin": asked | {"username": "${ADMIN_NAME}", "password": "${ADMIN_PASSWORD}"}}

    def tenant(behind: str) -> dict[str, Any]:
        return kafka("minute", behind, lookback_days="1", source=source, metrics=right.settings)

    with (
        front(url, right.authorization) as refusing,
        front(url, right.authorization, [told(right.authorization)]) as repeating,
    ):
        root = Root(tmp_path, tenant(refusing))
        said = [root.run(day(1), environment=opened | wrong.environment)]
        root.write(tenant(repeating))
        said += [root.run(day(1), environment=opened | right.environment)]
        assert "401 Unauthorized" in str(said)
        assert "repeats credentials of the configuration" in str(said)
        root.write(tenant(refusing))
        said += [root.run(day(1), environment=opened | right.environment, lift=True)]
    assert (said[-1].days_calculated, said[-1].days_pending) == (1, 0)
    files = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    texts = [f"{said}{root.logged}".encode(), *files.values()]
    texts += [
        f"{Landing(Path(file).parent).read(Path(file).name.removesuffix('.jsonl.zst'))}".encode()
        for file in files
        if file.endswith(".zst")
    ]
    canaries = [*right.canaries, *wrong.canaries, *admin.canaries]
    assert [one for one in canaries if any(one.encode() in text for text in texts)] == []


def test_a_run_that_is_stopped_goes_on_where_it_was(url: str, tmp_path: Path) -> None:
    between, stop = Between(url), threading.Event()
    with between.serving() as script:
        root = Root(tmp_path, kafka("eu", script.url, lookback_days="12", metrics={"days_per_query": "4"}))

        def stopping(request: Any) -> Reply:
            if len(script.asked) > 15:
                stop.set()
            return between.passed(request)

        between.reply = stopping
        with pytest.raises(Exception, match="stopped"):
            root.run(day(DAYS), stop=stop)
        asked = len(script.asked)
        between.reply = between.passed
        assert root.run(day(DAYS)).days_calculated == 12
        # Two to begin with, and 10 for each of the 3 stretches of days; a question may have been cut short.
        assert len(script.asked) - asked <= 2 + 30 - (asked - 2) + 2


def test_days_are_asked_for_in_bounded_pieces(url: str, tmp_path: Path) -> None:
    between = Between(url)
    with between.serving() as script:
        root = Root(tmp_path, kafka("eu", script.url, lookback_days="6", metrics={"days_per_query": "3"}))
        root.run(day(DAYS))
        # Two stretches of 3 days, and for each of them 7 questions and 3 counts.
        assert len(script.asked) == 2 + 2 * 10
