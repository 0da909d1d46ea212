"""What is asked of the Prometheus that holds a Confluent Cloud organization's metrics, and its answers as USAGE.

Exported values are what came in since the sample before, so a day's usage is the sum of all its samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

from engine.frames import USAGE
from engine.sources import prometheus
from engine.sources.answers import Answer
from engine.sources.prometheus import Samples
from engine.sources.promql import Query, Window

_CFU = "confluent_flink_num_cfu"
_CFU_MINUTES = "confluent_flink_statement_utilization_cfu_minutes_consumed"
_BY_STATEMENT = "compute_pool_id, flink_statement_name"


class Metric(NamedTuple):
    """A metric: the question for its values, and the labels that hold the resource and the principal.

    `series` are the metrics of Prometheus that `values` sums, the first that is there. `counts` asks how many samples
    there are, if gaps are to be known.
    """

    values: Query
    series: tuple[str, ...]
    resource: str
    principal: str
    counts: Query | None = None


def _bytes(name: str, series: str) -> Metric:
    values = prometheus.sum_of_samples(name, series, ("kafka_id", "principal_id"), "kafka_id")
    counts = prometheus.sample_counts(f"{name}_samples", series, ("kafka_id",), "kafka_id")
    return Metric(values, (series,), "kafka_id", "principal_id", counts)


def _summed(series: str, by: str) -> str:
    return f"sum by ({by}) (sum_over_time({series}{{matcher}}[{{range}}]))"


METRICS: dict[str, Metric] = {
    "bytes_in": _bytes("bytes_in", "confluent_kafka_server_request_bytes"),
    "bytes_out": _bytes("bytes_out", "confluent_kafka_server_response_bytes"),
    "flink_cfu": Metric(
        Query(
            "flink_cfu",
            # The second series where a pool has nothing of the first on a day: one question instead of two.
            f"{_summed(_CFU, _BY_STATEMENT)} or ({_summed(_CFU_MINUTES, _BY_STATEMENT)}"
            f" unless on (compute_pool_id) {_summed(_CFU, 'compute_pool_id')})",
            ("compute_pool_id", "flink_statement_name"),
            "compute_pool_id",
        ),
        (_CFU, _CFU_MINUTES),
        "compute_pool_id",
        "flink_statement_name",
    ),
}
"""By name as in USAGE; `running_statements` comes with the inventory."""


class Measured(NamedTuple):
    """USAGE, and by day what was no number (`dropped`: window, points)."""

    usage: pl.DataFrame
    dropped: pl.DataFrame
    warnings: tuple[str, ...]


def measured(found: Samples, metric: str, tenant_id: str) -> Measured:
    """What the answers to a metric's question for values say."""
    asked = METRICS[metric]
    usage = found.values.select(
        tenant_id=pl.lit(tenant_id),
        window="window",
        resource_id=asked.resource,
        metric=pl.lit(metric),
        principal=asked.principal,
        value="value",
    )
    dropped = found.dropped.group_by("window").agg(pl.col("points").sum()).sort("window")
    return Measured(usage.select(USAGE.columns), dropped, found.warnings)


class Gaps(NamedTuple):
    """How many samples are lacking, by day and resource (window, resource_id, missing)."""

    missing: pl.DataFrame
    warnings: tuple[str, ...]


def gaps(pages: Iterable[Answer], metric: str, window: Window, ids: Iterable[str], scrape_seconds: int) -> Gaps:
    """The landed answers to a metric's question for counts of the ids."""
    counts = METRICS[metric].counts
    if counts is None:
        return Gaps(pl.DataFrame(schema={"window": pl.String, "resource_id": pl.String, "missing": pl.Int64}), ())
    samples = prometheus.parse_days(pages, counts, window)
    found = prometheus.gaps(samples, counts, window, ids, scrape_seconds)
    return Gaps(found.select("window", resource_id=counts.id_label, missing="missing"), samples.warnings)
