"""What a Prometheus would hold that scrapes the bundled organization: samples, and what each day then comes to.

Byte series are deltas, the bytes of the time since the last sample; there is a sample exactly at each midnight, which
belongs to the day that begins then. All values are exact in binary, so the sums of Prometheus are exact, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from tests.doubles.bundled import CLUSTERS

REQUEST_BYTES = "confluent_kafka_server_request_bytes"
RESPONSE_BYTES = "confluent_kafka_server_response_bytes"
NUM_CFU = "confluent_flink_num_cfu"
CFU_MINUTES = "confluent_flink_statement_utilization_cfu_minutes_consumed"
DAY_MINUTES = 1440

PRINCIPALS: Mapping[str, tuple[str, ...]] = {
    "lkc-prod1": ("sa-orders", "sa-search", "u-alice", "KEYCONNECT000001", "pool-apps", "sa-stranger"),
    "lkc-prod2": ("sa-search", "KEYNOOWNER000001"),
    "lkc-test1": ("u-bob",),
}
"""Who uses each cluster: service accounts, users, API keys, pools, and one whom the inventory does not know."""
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "lfcp-prod1": ("enrich-orders", "rollup-hourly", "mystery", "statement-gone"),
    "lfcp-test1": ("test-join",),
}
PRESENT, ZERO, MISSING = "present", "zero", "missing"
DEFAULT_STATES: Mapping[tuple[str, int], str] = {
    ("lkc-prod2", 3): ZERO,
    ("lkc-prod2", 4): MISSING,
    ("lkc-prod1", 5): ZERO,
    ("lfcp-prod1", 6): ZERO,
    ("lfcp-prod1", 7): MISSING,
    ("lkc-prod1", 9): MISSING,
    # Before there was the pool.
    ("lfcp-test1", 0): MISSING,
    ("lfcp-test1", 1): MISSING,
    **{("lkc-test1", number): MISSING for number in range(20, 30)},
}
"""(resource, number of the day) -> what there is then; all others are present."""
DEFAULT_NAN = ("lkc-prod1", "u-alice", 2)


class Sample(NamedTuple):
    """One sample; its labels are `kafka_id` and `principal_id`, or `compute_pool_id` and `flink_statement_name`."""

    name: str
    labels: dict[str, str]
    minute: int
    value: str

    @property
    def milliseconds(self) -> int:
        """The time since 1970 as Prometheus keeps it."""
        return self.minute * 60_000


class Used(NamedTuple):
    """What a series comes to in a day."""

    day: date
    metric: str
    resource_id: str
    principal: str


@dataclass(frozen=True)
class Metrics:
    """The samples of `days` days from `first`, one every `step_minutes`, a divisor of a day.

    `states` are the days without samples, or with zeros only. `nan` is a cluster, a principal and the number of a day
    at whose noon the bytes it sent are no number. `principals` more accounts use each cluster: those of
    `bundled(principals=...)`. Pools in `fallback_pools` have only the second of the two metrics of Flink.
    """

    first: date
    days: int = 40
    step_minutes: int = 15
    principals: int = 0
    states: Mapping[tuple[str, int], str] = field(default_factory=lambda: DEFAULT_STATES)
    nan: tuple[str, str, int] | None = DEFAULT_NAN
    fallback_pools: tuple[str, ...] = ()

    def samples(self) -> Iterator[Sample]:
        """All samples, series by series in the order of time."""
        for name, resource, principal in self._series():
            labels = _labels(name, resource, principal)
            for number in range(self.days):
                yield from self._day(name, labels, number)

    def used(self) -> dict[Used, Decimal]:
        """What each series comes to on each day on which it has samples, without those that are no numbers.

        It is not added up from samples: the value of a day times how many there are.
        """
        found = dict[Used, Decimal]()
        for name, resource, principal in self._series():
            for number in range(self.days):
                if self._state(resource, number) == MISSING:
                    continue
                times = DAY_MINUTES // self.step_minutes - self._nan_at(name, resource, principal, number)
                value = self._value(name, resource, principal, number) * times
                found[Used(self.first + timedelta(days=number), name, resource, principal)] = value
        return found

    def by_resource(self) -> dict[tuple[date, str, str], dict[str, Decimal]]:
        """`used` by (day, metric, resource): principal -> value."""
        found = defaultdict[tuple[date, str, str], dict[str, Decimal]](dict)
        for (day, metric, resource, principal), value in self.used().items():
            found[day, metric, resource][principal] = value
        return dict(found)

    def _series(self) -> Iterator[tuple[str, str, str]]:
        more = tuple(f"sa-p{number:05}" for number in range(self.principals))
        for cluster in CLUSTERS:
            for principal in (*PRINCIPALS[cluster], *more):
                yield REQUEST_BYTES, cluster, principal
                yield RESPONSE_BYTES, cluster, principal
        for pool, statements in STATEMENTS.items():
            for statement in statements:
                yield CFU_MINUTES if pool in self.fallback_pools else NUM_CFU, pool, statement

    def _day(self, name: str, labels: dict[str, str], number: int) -> Iterator[Sample]:
        resource, principal = labels.values()
        if self._state(resource, number) == MISSING:
            return
        midnight = datetime.combine(self.first + timedelta(days=number), datetime.min.time(), UTC)
        start = int(midnight.timestamp()) // 60
        value = str(self._value(name, resource, principal, number))
        minutes = range(start, start + DAY_MINUTES, self.step_minutes)
        noon = minutes[len(minutes) // 2] if self._nan_at(name, resource, principal, number) else None
        for minute in minutes:
            yield Sample(name, labels, minute, "NaN" if minute == noon else value)

    def _state(self, resource: str, number: int) -> str:
        return self.states.get((resource, number), PRESENT)

    def _nan_at(self, name: str, resource: str, principal: str, number: int) -> bool:
        return name == REQUEST_BYTES and self.nan == (resource, principal, number)

    def _value(self, name: str, resource: str, principal: str, number: int) -> Decimal:
        """Each day has another value, so that a sample that counts for the wrong day shows."""
        if self._state(resource, number) == ZERO:
            return Decimal(0)
        # What somebody uses follows from the letters of the name, so that no two do the same by chance of their order.
        letters = sum(place * ord(letter) for place, letter in enumerate(principal, start=1))
        if name in {NUM_CFU, CFU_MINUTES}:
            return Decimal(letters % 7 + 1 + number % 3) / 4
        direction = 3 if name == RESPONSE_BYTES else 1
        return Decimal(letters * 1009 * direction + 4096 * number)


def _labels(name: str, resource: str, principal: str) -> dict[str, str]:
    if name in {NUM_CFU, CFU_MINUTES}:
        return {"compute_pool_id": resource, "flink_statement_name": principal}
    return {"kafka_id": resource, "principal_id": principal}
