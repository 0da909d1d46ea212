"""Random samples in a real Prometheus, and in a stand-in for 3.x, against a plain sum for each UTC day."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources.landing import Landing
from engine.sources.prometheus import buildinfo, fetch_days, landed_name, parse_days, sum_of_samples, windows
from tests.doubles.left_open import left_open
from tests.doubles.prometheus import Row, prometheus
from tests.unit.scripted import client

DAY = 86_400_000
START = 1_761_350_400_000
"""2025-10-25, the day before clocks change in Europe."""
FIRST = date(2025, 10, 25)
DAYS = 5
CLUSTERS = ("lkc-a", "lkc-b", "lkc-c")
QUERY = sum_of_samples("bytes", "request_bytes", ["kafka_id", "principal_id"], "kafka_id")

EDGES = st.builds(
    lambda day, step, off: START + day * DAY + step * 3_600_000 + off,
    st.integers(-1, DAYS),
    st.sampled_from([0, 0, 0, 1, 12, 23]),
    st.integers(-2, 2),
)
MOMENTS = EDGES | st.integers(START - DAY, START + (DAYS + 1) * DAY)
# Quarters and whole numbers are exact in Prometheus's floats, and so are their sums.
VALUES = st.integers(0, 2**40).map(str) | st.integers(0, 10_000).map(lambda quarters: str(Decimal(quarters) / 4))
SERIES = st.tuples(st.sampled_from(CLUSTERS), st.sampled_from(["sa-1", "u-2", ""]), st.sampled_from(["i", "j"]))
SAMPLES = st.dictionaries(st.tuples(SERIES, MOMENTS), VALUES, min_size=1, max_size=80)


def plain_sums(rows: list[Row], ids: set[str]) -> dict[tuple[str, str, str], Decimal]:
    sums = defaultdict[tuple[str, str, str], Decimal](Decimal)
    for row in rows:
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row.milliseconds)).date()
        if FIRST <= day < FIRST + timedelta(days=DAYS) and row.labels["kafka_id"] in ids:
            sums[str(day), row.labels["kafka_id"], row.labels["principal_id"]] += Decimal(row.value)
    return dict(sums)


@given(
    samples=SAMPLES,
    ids=st.sets(st.sampled_from(CLUSTERS), min_size=1),
    step_seconds=st.sampled_from([86_400, 86_400, 21_600, 3600, 1800]),
    days_per_query=st.integers(1, DAYS),
    ids_per_query=st.integers(1, 3),
)
@settings(max_examples=25)
def test_a_day_is_the_sum_of_its_samples(
    samples: dict[tuple[tuple[str, str, str], int], str],
    ids: set[str],
    step_seconds: int,
    days_per_query: int,
    ids_per_query: int,
) -> None:
    rows = [
        Row("request_bytes", {"kafka_id": cluster, "principal_id": principal, "instance": instance}, moment, value)
        for ((cluster, principal, instance), moment), value in samples.items()
    ]
    query = QUERY._replace(step_seconds=step_seconds)
    with tempfile.TemporaryDirectory() as temporary, left_open(rows) as newer:
        folder = Path(temporary)
        with prometheus(rows, folder) as older:
            for url in (older, newer):
                found, landing = dict[tuple[str, ...], Decimal](), Landing(folder / "landed")
                with client(url) as http:
                    version = buildinfo(http)
                    for window in windows(query, (FIRST, FIRST + timedelta(days=DAYS)), days_per_query):
                        fetch_days(http, landing, query, window, version, ids=ids, ids_per_query=ids_per_query)
                        said = parse_days(landing.read(landed_name(query, window)), query, window)
                        assert said.dropped.is_empty()
                        found |= {row[:3]: row[3] for row in said.values.rows()}
                assert found == plain_sums(rows, ids)
