"""Cost models by the day: the rates that hold on it, the lines it may have, and who is named. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple, TypeAlias

import polars as pl

from engine.config import (
    CostModelTenant,
    Dated,
    GenericCostModel,
    KafkaCostModel,
    KafkaPrices,
    KafkaTenant,
    StaticIdentity,
)
from engine.frames import RESOURCES
from engine.sources.cost_questions import Use, quantity_of

LINE_KEY = ("billing_period", "charge_date", "resource_id", "product_category", "product_type", "unit", "currency")
"""The columns of BILLING that make a line, and its id (`line_id`)."""

Source: TypeAlias = KafkaCostModel | GenericCostModel


class Charge(NamedTuple):
    """What a line of a day is made of: a rate, and a number for 24 hours or the answer to a question."""

    product_type: str
    product_category: str
    unit: str
    rate: Decimal
    number: Decimal | None = None
    question: str = ""
    use: Use = "sum"


def charges(source: Source, day: date) -> tuple[Charge, ...]:
    """The lines that a day may have under the rates that hold on it; none on a day without rates."""
    return tuple(_kafka_charges(source, day) if isinstance(source, KafkaCostModel) else _generic_charges(source, day))


def _kafka_charges(source: KafkaCostModel, day: date) -> Iterator[Charge]:
    rates = next((one for one in source.rates if one.covers(day)), None)
    if rates is None:
        return
    prices = _in_region(rates, rates.region_overrides.get(source.region or ""))
    brokers = next((one.count for one in source.broker_count if one.covers(day)), None)
    if brokers is not None and prices["compute_hourly_rate"] is not None:
        rate = prices["compute_hourly_rate"]
        yield Charge("SELF_KAFKA_COMPUTE", "kafka", "broker-hours", rate, number=Decimal(brokers))
    for product_type, unit, price, question, use in _KAFKA_MEASURED:
        measured = prices[price]
        if measured is not None:
            yield Charge(product_type, "kafka", unit, measured, question=question, use=use)


_KAFKA_MEASURED: tuple[tuple[str, str, str, str, Use], ...] = (
    ("SELF_KAFKA_STORAGE", "GiB-hours", "storage_per_gib_hourly", "storage", "mean"),
    ("SELF_KAFKA_NETWORK_INGRESS", "GiB", "network_ingress_per_gib", "ingress", "sum"),
    ("SELF_KAFKA_NETWORK_EGRESS", "GiB", "network_egress_per_gib", "egress", "sum"),
)


def _in_region(rates: KafkaPrices, override: KafkaPrices | None) -> dict[str, Decimal | None]:
    """A region's prices where it has its own, the others where not."""
    found: dict[str, Decimal | None] = {}
    for name in KafkaPrices.model_fields:
        own: Decimal | None = getattr(override, name) if override is not None else None
        found[name] = own if own is not None else getattr(rates, name)
    return found


def _generic_charges(source: GenericCostModel, day: date) -> Iterator[Charge]:
    for one in source.cost_types:
        dated = next((rate for rate in one.rate if rate.covers(day)), None)
        if dated is None:
            continue
        rate = dated.region_overrides.get(source.region or "", dated.rate)
        if one.quantity.fixed is not None:
            yield Charge(one.name, one.product_category, "hours", rate, number=one.quantity.fixed)
        elif one.quantity.storage_gib is not None:
            question = quantity_of(one.name)
            yield Charge(one.name, one.product_category, "GiB-hours", rate, question=question, use="mean")
        else:
            yield Charge(one.name, one.product_category, "GiB", rate, question=quantity_of(one.name), use="sum")


def model_digest(tenant: CostModelTenant, day: date) -> str:
    """A digest of what of the cost model a day's billing and usage depend on, however its numbers are written."""
    source = tenant.source
    made = [
        [*one[:3], plain(one.rate), "" if one.number is None else plain(one.number), one.question, one.use]
        for one in charges(source, day)
    ]
    labels = [tenant.id, source.cluster_id, source.region, source.currency, LINE_KEY]
    content = [labels, made, identity_source(source), static(source)]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def plain(number: Decimal) -> str:
    """A decimal in one form, however it was written: 0.5 for 0.500."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def static(source: Source) -> list[str]:
    """The ids of the identities that a source names, if it is to look at them."""
    return sorted(one.id for one in named(source)) if identity_source(source) != "prometheus" else []


def identity_source(source: Source) -> str:
    """From where it is known who uses a cluster: prometheus, static or both."""
    return source.identity_source if isinstance(source, KafkaCostModel) else source.identity_source.source


def cluster(tenant: CostModelTenant) -> pl.DataFrame:
    """The cluster itself as RESOURCES: there from the first of its rates to the end of the last."""
    source = tenant.source
    first, end = _life(source)
    kind = "kafka_cluster" if isinstance(tenant, KafkaTenant) else "cluster"
    row: dict[str, object] = {
        "tenant_id": tenant.id,
        "id": source.cluster_id,
        "type": kind,
        "display_name": source.display_name or source.cluster_id,
        "parent": "",
        "owner": "",
        "scope": source.region or "",
        "created_at": _midnight(first),
        "deleted_at": _midnight(end),
    }
    return pl.DataFrame([{**dict.fromkeys(RESOURCES.columns), **row}], schema=RESOURCES.schema)


def _midnight(day: date | None) -> datetime | None:
    return datetime(day.year, day.month, day.day) if day is not None else None  # noqa: DTZ001  # UTC, as everywhere


def _life(source: Source) -> tuple[date | None, date | None]:
    dated: list[Sequence[Dated]] = (
        [source.rates] if isinstance(source, KafkaCostModel) else [one.rate for one in source.cost_types]
    )
    firsts, ends = [row[0].first for row in map(ordered, dated)], [row[-1].end for row in map(ordered, dated)]
    return (
        None if None in firsts else min(day for day in firsts if day is not None),
        None if None in ends else max(day for day in ends if day is not None),
    )


def ordered(dated: Sequence[Dated]) -> list[Dated]:
    """What is dated, in the order of time."""
    return sorted(dated, key=lambda one: one.first or date.min)


def named(source: Source) -> Sequence[StaticIdentity]:
    """The identities that a source names, whether or not it looks at them."""
    if isinstance(source, KafkaCostModel):
        return source.static_identities
    return source.identity_source.static_identities


def names(source: Source) -> dict[str, str]:
    """Id -> display name of the identities that a source names."""
    return {one.id: one.name or one.id for one in named(source)}
