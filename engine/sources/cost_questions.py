"""What Prometheus is asked for a cost model: questions as data, of which no answer depends on a rate.

What is stored comes by the hour, what was counted by the day, a single series each. What is asked for every principal
comes by the day, so that an answer has a point a day however many principals there are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from engine.config import CostModelTenant, GenericCostModel, KafkaCostModel, KafkaPrices, KafkaTenant
from engine.sources.promql import DAY_SECONDS, Query, quoted

HOURS = 24
"""Of a UTC day, always."""
IDENTITIES_SEEN = "identities"
"""The metric of USAGE that says who there is in a cluster of anything but Kafka."""

Use: TypeAlias = Literal["mean", "sum", "weights", "identities", "resources"]
"""What a question's answers are for: the mean or the sum of bytes, values by principal, who there is, what there is."""


class Question(NamedTuple):
    """One thing that Prometheus is asked of a cluster, for every day.

    `counts` asks of a quantity how many of its samples came, of each `by` for itself where it has labels. `metrics`:
    what USAGE lacks where there is no answer. Queries are named as `landed_as` says: answers are landed under that.
    """

    name: str
    use: Use
    values: Query
    counts: Query | None = None
    metrics: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What is asked: where it changes, older answers are of another question."""
        asked = [[query.expression, query.by, query.step_seconds] for query in (self.values, self.counts) if query]
        return hashlib.sha256(json.dumps([self.use, asked]).encode()).hexdigest()[:16]

    def landed_as(self, name: str) -> Question:
        """The question with its queries named as they are where its answers were landed under this name."""
        counts = self.counts and self.counts._replace(name=_landed(f"{name}_samples"))
        return self._replace(values=self.values._replace(name=_landed(name)), counts=counts)

    def expected(self, scrape_seconds: int) -> int:
        """How many samples a whole day has, or hours where nobody knows how it is scraped; 0 where nobody counts."""
        if self.counts is None:
            return 0
        return DAY_SECONDS // scrape_seconds if self.counts.by else HOURS


def questions(tenant: CostModelTenant) -> tuple[Question, ...]:
    """What a tenant's days are made of."""
    if tenant.metrics is None:
        return ()
    if isinstance(tenant, KafkaTenant):
        return tuple(_kafka_questions(tenant.source))
    return tuple(_generic_questions(tenant.source))


def _kafka_questions(source: KafkaCostModel) -> Iterator[Question]:
    named, chosen = source.series, f"{{{matchers(source.selector or '')}}}"
    log_size, bytes_in, bytes_out = (f"{name}{chosen}" for name in (named.log_size, named.bytes_in, named.bytes_out))
    counted = tuple(dict.fromkeys((named.broker, named.instance)))
    asked_for = {name for rates in source.rates for name in priced(rates)}
    if "storage_per_gib_hourly" in asked_for:
        yield Question("storage", "mean", _hourly("storage", _mean(log_size)), _samples("storage", log_size, counted))
    if "network_ingress_per_gib" in asked_for:
        risen = Query("ingress", f"sum({_risen(bytes_in)})", ())
        yield Question("ingress", "sum", risen, _samples("ingress", bytes_in, counted, counter=True))
    if "network_egress_per_gib" in asked_for:
        risen = Query("egress", f"sum({_risen(bytes_out)})", ())
        yield Question("egress", "sum", risen, _samples("egress", bytes_out, counted, counter=True))
    if source.identity_source != "static":
        for name, series in (("bytes_in", bytes_in), ("bytes_out", bytes_out)):
            risen = Query(name, f"sum by ({named.principal}) ({_risen(series)})", (named.principal,))
            yield Question(name, "weights", risen, metrics=(name,))
    for name, label in (("brokers", named.broker), ("topics", named.topic)):
        found = f"group by ({label}) (present_over_time({bytes_in}[{{range}}]))"
        yield Question(name, "resources", Query(name, found, (label,)))


def priced(rates: KafkaPrices) -> set[str]:
    """The prices that rates name, or their regions."""
    prices = [rates, *getattr(rates, "region_overrides", {}).values()]
    return {name for one in prices for name in KafkaPrices.model_fields if getattr(one, name) is not None}


def _mean(series: str) -> str:
    """The mean over the scrapes of an hour of the sum of the series: one that is there in half of them counts half."""
    return f"sum({_numbers(f'sum_over_time({series}[{{range}}])')}) / max(count_over_time({series}[{{range}}]))"


def _risen(series: str) -> str:
    """By how much counters rose on a day, from the scrape at its start, if there is one, to the one at its end.

    In one piece, since what is counted between the last scrape of one range and the first of the next is in neither: of
    hours it would be lost 24 times, and all of a job that sends on the hour. Points are asked for 1 ms before midnight.
    A range that is closed at both ends, as in 2.x, has to look at midnight itself, or what is counted from the last
    scrape to the one at midnight is on no day. What is below 0 is a reset that a NaN hides.

    Of a counter whose first or last sample of the day is no number, the day without its first and its last hour.
    """
    return f"increase({series}[1d] offset -1ms) >= 0 < Inf or increase({series}[22h] offset 1h) >= 0 < Inf"


def _numbers(expression: str) -> str:
    """The series whose value is a number: in a sum, one NaN would make all of it none. `counts` knows of the others."""
    return f"{expression} > -Inf < Inf"


def _hourly(name: str, expression: str) -> Query:
    return Query(name, expression, (), step_seconds=3600)


def _samples(name: str, series: str, by: tuple[str, ...], *, counter: bool = False) -> Query:
    """How many samples of an hour came from each broker, by each instance of its exporter.

    They are those of the series that has most, since a topic may be there for a part of an hour; of ten series of which
    one has a sample that is no number, nine tenths. A broker that was there a day before or after has 0. Of a `counter`
    the sample at the end of an hour is looked at too, as it is where the day's rise is read.
    """
    labels = ", ".join(by)
    came = f"max by ({labels}) (count_over_time({series}[{{range}}]))"
    summed = f"sum_over_time({series}{'[1h] offset -1ms' if counter else '[{range}]'})"
    numbers = f"avg by ({labels}) ({_are_numbers(summed)})"
    known = f"0 * group by ({labels}) (present_over_time({series}[2d] offset -1d))"
    return Query(f"{name}_samples", f"{came} * {numbers} or {known}", by, step_seconds=3600)


def _are_numbers(expression: str) -> str:
    """1 where a value is a number, 0 where it is none."""
    return f"0 * {expression} == bool 0"


def _daily(name: str, expression: str, label: str, *, every: str = "1h") -> Query:
    """The values of a day's full hours, added up by the server: a point a day, where there may be many series.

    Hours that are no number, or below 0, are left out.
    """
    return Query(name, f"sum_over_time((({expression}) >= 0)[{{range}}:{every}] offset -1ms)", (label,))


def _generic_questions(source: GenericCostModel) -> Iterator[Question]:
    found = source.identity_source
    for one in source.cost_types:
        by_use: tuple[tuple[Use, str | None], ...] = (
            ("mean", one.quantity.storage_gib),
            ("sum", one.quantity.network_gib),
        )
        for use, asked in by_use:
            if asked is not None:
                name = quantity_of(one.name)
                counts = _hourly(_landed(f"{name}_samples"), f"avg({_are_numbers(f'({asked})')})")
                yield Question(name, use, _hourly(_landed(name), f"sum({_numbers(f'({asked})')})"), counts)
    if found.source != "static" and found.discovery_query is not None and found.label is not None:
        # Every five minutes, since that is how long Prometheus takes a sample for the present.
        asked = f"group by ({found.label}) ({_an_hour(found.discovery_query)})"
        query = _daily("discovery", asked, found.label, every="5m")
        yield Question("discovery", "identities", query, metrics=(IDENTITIES_SEEN,))
    for one in source.cost_types:
        if one.allocation_query is not None and one.allocation_label is not None:
            name = f"allocation-{one.name}"
            asked = f"sum by ({one.allocation_label}) ({_numbers(f'({_an_hour(one.allocation_query)})')})"
            query = _daily(_landed(name), asked, one.allocation_label)
            yield Question(name, "weights", query, metrics=(one.name, IDENTITIES_SEEN))


def _an_hour(query: str) -> str:
    """A query in which `{range}` stands for an hour, although it is asked for a day at once."""
    return query.replace("{range}", "1h")


def _landed(name: str) -> str:
    """A question's name as it may be one of a file."""
    return re.sub(r"[^A-Za-z0-9_.=-]", "_", name)


def quantity_of(product_type: str) -> str:
    """The name of the question for the quantity of a cost type."""
    return f"quantity-{product_type}"


_MATCHER = re.compile(
    r"""\s*(?P<label>[a-zA-Z_][a-zA-Z0-9_]*)\s*(?P<is>=~|!~|!=|=)\s*"""
    r"""(?:"(?P<double>(?:[^"\\\n]|\\.)*)"|'(?P<single>[^'\\\n]*)')\s*"""
)


def matchers(selector: str) -> str:
    """A selector's matchers in one form, each text quoted anew; ValueError if it is anything else."""
    return ", ".join(f"{label}{how}{quoted(text)}" for label, how, text in matchers_of(selector))


def matchers_of(selector: str) -> list[tuple[str, str, str]]:
    """(label, operator, text) of each of a selector's matchers; ValueError, from where on it is anything else."""
    found, place = list[tuple[str, str, str]](), 0
    while place < len(selector):
        match = _MATCHER.match(selector, place)
        if match is None:
            raise ValueError(selector[place:])
        try:
            text = json.loads(f'"{match["double"]}"') if match["double"] is not None else match["single"]
        except ValueError:
            raise ValueError(selector[place:]) from None
        if "{range}" in text or "{matcher}" in text:
            raise ValueError(selector[place:])
        found.append((match["label"], match["is"], text))
        place = match.end()
        if place < len(selector):
            if selector[place] != "," or not selector[place + 1 :].strip():
                raise ValueError(selector[place:])
            place += 1
    return found
