"""What a Kafka exporter and others would have left in a Prometheus: series of clusters, each with its troubles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tests.doubles.prometheus import Row

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
START = 1_759_276_800_000
"""2025-10-01, in milliseconds since 1970."""
GIB = 2**30
LOG_SIZE = "kafka_log_log_size"
BYTES_IN = "kafka_server_brokertopicmetrics_bytesin_total"
BYTES_OUT = "kafka_server_brokertopicmetrics_bytesout_total"


class Cluster(NamedTuple):
    """A cluster of two brokers: 1 GiB an hour comes in and 2 go out, three quarters alice's; 500 GiB lie on it.

    Scraped every `step` from `offset` on for so many days, but where it is `missing`; counters are set back at `reset`.
    """

    name: str
    days: int
    step: int = MINUTE
    offset: int = 0
    missing: Callable[[int], bool] = lambda _: False
    reset: int | None = None

    def moments(self) -> Iterator[int]:
        """When it was scraped, in milliseconds since START: up to the one that begins the day after the last."""
        last = self.days * DAY + self.step
        return (moment for moment in range(self.offset, last, self.step) if not self.missing(moment))

    def rows(self) -> Iterator[Row]:
        for moment in self.moments():
            for number, broker in enumerate(("1", "2")):
                labels = {"cluster": self.name, "broker": broker, "topic": "orders"}
                yield Row(LOG_SIZE, labels, START + moment, (200 + 100 * number) * GIB)
                for principal, share in (("User:alice", 3), ("User:bob", 1)):
                    for name, rate in ((BYTES_IN, 1), (BYTES_OUT, 2)):
                        rise = self._risen(moment) * GIB * rate * share / HOUR / 8
                        yield Row(name, {**labels, "principal": principal}, START + moment, repr(rise))

    def _risen(self, moment: int) -> int:
        """For how long the counter has been counting: an hour more than scraped, or since it was set back."""
        if self.reset is not None and moment >= self.reset:
            return moment - self.reset
        return moment + HOUR


def gauge(name: str, labels: dict[str, str], points: Iterable[tuple[int, int | str]]) -> Iterator[Row]:
    """A series of given values, at milliseconds since START."""
    return (Row(name, labels, START + moment, value) for moment, value in points)


def example_rows(days: int) -> Iterator[Row]:
    """What the example of `data/fixtures/cost_models` was recorded from: a Kafka cluster, and two databases."""
    yield from Cluster(
        "orders", days, step=5 * MINUTE, missing=lambda moment: 8 * DAY + HOUR <= moment < 8 * DAY + 2 * HOUR
    ).rows()
    for name, gib in (("shop", 75), ("crm", 25)):
        moments = range(0, days * DAY, 5 * MINUTE)
        labels = {"server": "pg-main", "datname": name}
        yield from gauge("pg_database_size_bytes", labels, ((moment, gib * GIB) for moment in moments))
