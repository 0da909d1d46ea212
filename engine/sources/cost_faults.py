"""What cannot work in a cost model: dates that leave days without a rate, selectors, labels, what is said twice.

And how a Prometheus is asked, of tenants with a bill, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from urllib.parse import urlsplit

from engine.config import (
    UNREAD,
    AwsTenant,
    Config,
    CostModelTenant,
    Dated,
    Document,
    GenericCostModel,
    GenericTenant,
    KafkaAdmin,
    KafkaCostModel,
    KafkaPrices,
    KafkaSeries,
    KafkaTenant,
    Prometheus,
)
from engine.errors import fault, shown
from engine.frames import UNALLOCATED
from engine.sources.cost_questions import IDENTITIES_SEEN, matchers_of, priced
from engine.sources.cost_rates import named, ordered
from engine.sources.promql import regular_expression_fault

_RESERVED_LABELS = ("window", "value", "points")
SCRAPE_SECONDS_MAX = 3600
_QUANTITIES = ("log_size", "bytes_in", "bytes_out")
"""The names of series that are quantities."""


def faults(config: Config, document: Document) -> list[str]:
    """Everything in the cost models of a configuration that cannot work, with its place in the file."""
    found = list[str]()
    models = [
        (number, one) for number, one in enumerate(config.tenants) if isinstance(one, KafkaTenant | GenericTenant)
    ]
    regions = {one.source.region for _, one in models}
    for number, tenant in models:
        found += _Faults(tenant, number, document, regions).found()
    for number, one in enumerate(config.tenants):
        if not isinstance(one, AwsTenant) and one.metrics is not None:
            found += _credentials(one.metrics, document.where(("tenants", number, "metrics")))
    return [*found, *_shared_faults(config, document)]


def _credentials(given: Prometheus | KafkaAdmin, where: str) -> Iterator[str]:
    """Half a credential, or two of them: one would be left out without a word."""
    for one, other in (("username", "password"), ("password", "username")):
        if getattr(given, one) is not None and getattr(given, other) is None:
            yield fault(where, f"{one} without {other}", "both, or neither")
    if isinstance(given, Prometheus) and given.bearer is not None and (given.username or given.password):
        yield fault(where, f"{'username' if given.username else 'password'} and bearer", "one way to say who asks")


def _shared_faults(config: Config, document: Document) -> Iterator[str]:
    """Kafka clusters in one Prometheus of which both would cost the same series."""
    clusters = [
        (number, one, _server(one.metrics.url))
        for number, one in enumerate(config.tenants)
        if isinstance(one, KafkaTenant) and one.metrics is not None
    ]
    in_each, taken = Counter(server for _, _, server in clusters), dict[tuple[object, ...], str]()
    for number, one, server in clusters:
        if one.source.selector is None and in_each[server] > 1:
            where = document.where(("tenants", number, "source"))
            seen = f"tenant {one.id} has no selector, and other clusters are in the same Prometheus"
            yield fault(where, seen, "a selector that tells its series from theirs")
        chosen = [(server, *series) for series in _chosen(one.source)]
        other = next((taken[series] for series in chosen if series in taken), None)
        if other is not None:
            where = document.where(("tenants", number, "source", "selector"))
            seen = f"tenant {one.id} has the selector of tenant {other}, in the same Prometheus"
            yield fault(where, seen, "one that tells its series from the other's")
        for series in chosen:
            taken.setdefault(series, one.id)


_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "https": 443}


def _server(url: str) -> tuple[object, ...]:
    """What a URL leads to, however it is written."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return (url,)
    return parts.scheme, "localhost" if host in _THIS_MACHINE else host, port, parts.path.rstrip("/")


def _chosen(source: KafkaCostModel) -> list[tuple[str, object]]:
    """The series of quantities that a source chooses, as name and matchers; none without a selector that is one."""
    try:
        found = tuple(sorted(matchers_of(source.selector or "")))
    except ValueError:
        return []
    return [(getattr(source.series, name), found) for name in _QUANTITIES if found]


class _Faults:
    """The checks of one tenant; a class only to carry it, its place and the document through them."""

    def __init__(self, tenant: CostModelTenant, number: int, document: Document, regions: set[str | None]) -> None:
        self.tenant, self.path, self.document, self.regions = tenant, ("tenants", number), document, regions

    def where(self, *path: str | int) -> str:
        return self.document.where((*self.path, *path))

    def found(self) -> Iterator[str]:
        source = self.tenant.source
        if isinstance(source, KafkaCostModel):
            yield from self._kafka(source)
        else:
            yield from self._generic(source)
        if self.tenant.metrics is None and self._asks():
            yield fault(self.where(), "quantities or identities to be measured, but no metrics", "metrics: {url: ...}")
        if self.tenant.retention_days < self.tenant.lookback_days:
            # A cost model that changes makes days anew from answers that are kept.
            seen = f"value '{self.tenant.retention_days}'"
            yield fault(self.where("retention_days"), seen, f"at least lookback_days, {self.tenant.lookback_days}")

    def _asks(self) -> bool:
        source = self.tenant.source
        if isinstance(source, KafkaCostModel):
            prices = {name for rates in source.rates for name in priced(rates)}
            return source.identity_source != "static" or bool(prices - {"compute_hourly_rate"})
        queries = [source.identity_source.discovery_query]
        for one in source.cost_types:
            queries += [one.quantity.storage_gib, one.quantity.network_gib, one.allocation_query]
        return any(query is not None for query in queries)

    def _kafka(self, source: KafkaCostModel) -> Iterator[str]:
        place = ("source", "rates")
        yield from self._dates(place, source.rates)
        yield from self._dates(("source", "broker_count"), source.broker_count)
        yield from self._region(place, source.region, [set(one.region_overrides) for one in source.rates])
        brokers, rates = ordered(source.broker_count), ordered(source.rates)
        if _begins_later(brokers[0], rates[0]) or _ends_earlier(brokers[-1], rates[-1]):
            yield fault(
                self.where("source", "broker_count"), "days with rates, but no brokers", "a count for each of them"
            )
        if not any(priced(one) for one in source.rates):
            names = ", ".join(KafkaPrices.model_fields)
            yield fault(self.where(*place), "no price at all", f"at least one of {names}")
        yield from self._selector(source.selector or "")
        yield from self._series(source.series)
        if source.admin is not None:
            yield from _credentials(source.admin, self.where("source", "admin"))
        if self.tenant.metrics is not None and self.tenant.metrics.scrape_seconds > SCRAPE_SECONDS_MAX:
            seen = f"value '{self.tenant.metrics.scrape_seconds}'"
            expected = f"at most {SCRAPE_SECONDS_MAX}, since a Kafka cluster is looked at by the hour"
            yield fault(self.where("metrics", "scrape_seconds"), seen, expected)
        yield from self._static(("source", "static_identities"), source.identity_source)
        labels = (source.series.broker, source.series.instance, source.series.topic, source.series.principal)
        yield from self._labels([(("source", "series"), label) for label in labels])

    def _selector(self, selector: str) -> Iterator[str]:
        where = self.where("source", "selector")
        try:
            found = matchers_of(selector)
        except ValueError as error:
            yield fault(where, f"selector, from {shown(str(error))} on", 'matchers like cluster="eu", topic!=""')
            return
        for _, how, text in found:
            rest = regular_expression_fault(text) if "~" in how else None
            if rest is not None:
                seen = f"regular expression {shown(text)}, from {shown(rest)} on"
                yield fault(where, seen, "one that Prometheus reads")

    def _series(self, series: KafkaSeries) -> Iterator[str]:
        for one, other in combinations(_QUANTITIES, 2):
            name = getattr(series, one)
            if name == getattr(series, other):
                seen = f"{one} and {other} are both {shown(name)}"
                yield fault(self.where("source", "series"), seen, "a series of its own for each")

    def _generic(self, source: GenericCostModel) -> Iterator[str]:
        found, seen = source.identity_source, set[str]()
        place = ("source", "identity_source")
        yield from self._static((*place, "static_identities"), found.source)
        if (found.label is None) != (found.discovery_query is None):
            yield fault(self.where(*place), "one of label and discovery_query without the other", "both, or neither")
        labels: list[tuple[tuple[str | int, ...], str]] = [((*place, "label"), found.label)] if found.label else []
        for number, one in enumerate(source.cost_types):
            path = ("source", "cost_types", number)
            if one.name in seen or one.name == IDENTITIES_SEEN:
                yield fault(self.where(*path, "name"), f"cost type {shown(one.name)} stands twice", "another name")
            seen.add(one.name)
            yield from self._dates((*path, "rate"), one.rate)
            yield from self._region((*path, "rate"), source.region, [set(rate.region_overrides) for rate in one.rate])
            if len(one.quantity.model_dump(exclude_none=True)) != 1:
                expected = "one of fixed, storage_gib, network_gib"
                yield fault(self.where(*path, "quantity"), "not one quantity", expected)
            given = [one.allocation_query is not None, one.allocation_label is not None]
            if given != [one.allocation == "usage_ratio"] * 2:
                expected = "allocation_query and allocation_label with usage_ratio, and neither with even_split"
                yield fault(self.where(*path), f"allocation {one.allocation} of {shown(one.name)}", expected)
            labels += [((*path, "allocation_label"), one.allocation_label)] if one.allocation_label else []
        yield from self._labels(labels)

    def _labels(self, labels: Iterable[tuple[tuple[str | int, ...], str]]) -> Iterator[str]:
        for path, label in labels:
            if label in _RESERVED_LABELS:
                yield fault(
                    self.where(*path), f"label {shown(label)} is reserved", "another one; label_replace renames"
                )

    def _static(self, path: tuple[str | int, ...], used: str) -> Iterator[str]:
        given = named(self.tenant.source)
        if given and used == "prometheus":
            yield fault(self.where(*path), "identities that are not looked at", "identity source static or both")
        if not given and used == "static":
            yield fault(self.where(*path), "identity source static, and no identities", "at least one")
        ids = [one.id for one in given]
        for number, one in enumerate(ids):
            if one in ids[:number]:
                yield fault(self.where(*path, number), f"{shown(one)} stands twice", "every identity once")
            if one in {UNALLOCATED, self.tenant.operator}:
                yield fault(self.where(*path, number), f"{shown(one)} never weighs", "an identity that may bear cost")

    def _region(self, path: tuple[str | int, ...], region: str | None, named: Sequence[set[str]]) -> Iterator[str]:
        if region is None and any(named):
            yield fault(self.where(*path), "rates by region, but the cluster has none", "region: NAME in the source")
        elif region is not None and UNREAD not in self.regions:
            # A list of prices may be that of several tenants; of nobody's region it is a word mistyped.
            for unknown in sorted(set[str]().union(*named) - self.regions):
                seen = f"region {shown(unknown)}, which no tenant of a cost model is in"
                yield fault(self.where(*path), seen, f"the region of one, such as {shown(region)}")

    def _dates(self, path: tuple[str | int, ...], dated: Sequence[Dated]) -> Iterator[str]:
        """Each entry has a day at least, and the next one begins where it ends: no day has two values."""
        for one in dated:
            if one.first is not None and one.end is not None and one.first >= one.end:
                yield fault(self.where(*path), f"from {one.first} to {one.end}, which is no day", "to after from")
        rows = ordered(dated)
        for before, after in pairwise(rows):
            if before.end is None or after.first is None or before.end != after.first:
                seen = f"one to {before.end or 'further notice'}, the next from {after.first or 'ever since'}"
                yield fault(self.where(*path), seen, "each to begin on the day to which the one before holds")


def _begins_later(one: Dated, other: Dated) -> bool:
    return one.first is not None and (other.first is None or one.first > other.first)


def _ends_earlier(one: Dated, other: Dated) -> bool:
    return one.end is not None and (other.end is None or one.end < other.end)
