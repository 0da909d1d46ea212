"""Bills made from a cost model: how the landed answers of Prometheus, and rates, become lines and usage.

Everything here is pure: a rate that changes asks nothing. The quantity of a line is what
Prometheus answered, as an exact decimal, and its amount that quantity times the rate, exact to 1e-12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import polars as pl

from engine.config import CostModelTenant, KafkaTenant
from engine.errors import ContractError, fault
from engine.frames import BILLING, RESOURCES, USAGE, check_rows
from engine.money import AMOUNT, UNITS, UNITS_MAX, format_units, to_amount, to_units
from engine.sources import prometheus
from engine.sources.answers import Answer
from engine.sources.cost_questions import HOURS, IDENTITIES_SEEN, Question, questions
from engine.sources.cost_rates import LINE_KEY, Charge, charges, identity_source, plain, static
from engine.sources.lines import line_id, tags_json
from engine.sources.prometheus import Samples
from engine.sources.promql import DAY_SECONDS, Window

GIB = 2**30
STATIC = "static_identities"
"""The metric of USAGE that says whom a Kafka cluster's configuration names."""

Answers: TypeAlias = Mapping[str, Samples]
"""Question -> what was answered, for some days."""


def parse(question: Question, pages: Iterable[Answer], window: Window) -> Samples:
    """The landed answers to a question's query for values; ContractError if they are none, or a quantity below 0."""
    return prometheus.parse_days(pages, question.values, window, negative=question.use not in {"mean", "sum"})


class Counts(NamedTuple):
    """Day -> how many samples came of whatever has fewest, and of all together (`totals`)."""

    fewest: dict[str, int]
    totals: dict[str, str]


def parse_counts(question: Question, pages: Iterable[Answer], window: Window) -> Counts:
    """The landed answers to a question's query for counts.

    What has a name of its own (a broker) may have been scraped by one instance after the other; else each instance is
    looked at for itself.
    """
    assert question.counts is not None  # else nothing was landed
    found = prometheus.parse_days(pages, question.counts, window).values
    names = [pl.when(pl.col(label) != "").then(label) for label in question.counts.by]
    of_each = found.group_by("window", pl.coalesce(*names, pl.lit("")).alias("_of")).agg(pl.col("value").sum())
    fewest = of_each.group_by("window").agg(pl.col("value").min())
    return Counts({day: int(value) for day, value in fewest.rows()}, totals(found))


def totals(values: pl.DataFrame) -> dict[str, str]:
    """Day -> the sum of all values of an answer, as a decimal: one that says less has a smaller sum."""
    units = to_units(pl.col("value"))
    # In two numbers, which hold the sum of as many values as there may be.
    parts = values.group_by("window").agg(whole=(units // UNITS).sum(), rest=(units % UNITS).sum())
    return {day: format_units(whole * UNITS + rest) for day, whole, rest in parts.rows()}


def came(question: Question, samples: Samples, counts: Mapping[str, int], scrape_seconds: int) -> dict[str, int]:
    """Day -> how many of the expected samples came: as many as were counted, and no more than of the hours answered."""
    expected, whole = question.expected(scrape_seconds), DAY_SECONDS // question.values.step_seconds
    points = dict(samples.values.select("window", "points").rows())
    return {day: min(count, expected, expected * points.get(day, 0) // whole) for day, count in counts.items()}


class Bill(NamedTuple):
    """BILLING of some days, and by day what rounding to 12 decimals took (exact amounts minus amounts)."""

    billing: pl.DataFrame
    residues: dict[str, Fraction]


class Quantity(NamedTuple):
    """How much of something there was on a day, and the answers it is made of: their sum, and how many."""

    amount: Fraction
    bytes: Decimal | None = None
    answers: int = 0


def bill(tenant: CostModelTenant, days: Sequence[date], answers: Answers) -> Bill:
    """What some days cost. What is not measured on a day has no line; ContractError if an amount is out of range."""
    source = tenant.source
    measured = {
        (name, day): (value, points)
        for name, samples in answers.items()
        if samples.values.columns == ["window", "value", "points"]
        for day, value, points in samples.values.rows()
    }
    rows, residues = list[tuple[object, ...]](), dict[str, Fraction]()
    # One by one: a line's bytes times its rate do not fit into 128 bits, and a day has as many lines as cost types.
    for day in days:
        for charge in charges(source, day):
            quantity = _quantity(charge, measured.get((charge.question, str(day))))
            if quantity is None:
                continue
            exact = quantity.amount * Fraction(charge.rate)
            units = round(exact * UNITS)
            residues[str(day)] = residues.get(str(day), Fraction(0)) + exact - Fraction(units, UNITS)
            rows.append(_row(tenant, day, charge, quantity, units))
    return Bill(_billing(rows, f"cost model of {tenant.id}"), residues)


def _quantity(charge: Charge, answer: tuple[Decimal, int] | None) -> Quantity | None:
    """None if it was not measured."""
    if charge.number is not None:
        return Quantity(Fraction(charge.number) * HOURS)
    if answer is None:
        return None
    total, points = answer
    gib = Fraction(total) / GIB
    return Quantity(gib / points * HOURS if charge.use == "mean" else gib, total, points)


_TAGS = ("rate", "bytes", "answers")
_ROW = {
    "tenant_id": pl.String,
    "ecosystem": pl.String,
    "charge_date": pl.Date,
    "resource_id": pl.String,
    "product_category": pl.String,
    "product_type": pl.String,
    "region": pl.String,
    "unit": pl.String,
    "currency": pl.String,
    **dict.fromkeys(_TAGS, pl.String),
    "quantity": pl.Int128,
    "amount": pl.Int128,
}


def _row(
    tenant: CostModelTenant, day: date, charge: Charge, quantity: Quantity, units: int
) -> tuple[object, ...]:  # fmt: skip
    source, size = tenant.source, round(quantity.amount * UNITS)
    if max(abs(units), size) > UNITS_MAX:
        where = f"tenant {tenant.id}: {charge.product_type} of {day}"
        raise ContractError(fault(where, f"{float(quantity.amount):.3g} {charge.unit}", "an amount below 1e26"))
    return (
        *(tenant.id, tenant.ecosystem, day, source.cluster_id, charge.product_category, charge.product_type),
        *(source.region or "", charge.unit, source.currency, plain(charge.rate)),
        *(("", "") if quantity.bytes is None else (plain(quantity.bytes), str(quantity.answers))),
        *(size, units),
    )


def _billing(rows: Sequence[tuple[object, ...]], where: str) -> pl.DataFrame:
    lines = pl.DataFrame(rows, schema=_ROW, orient="row").lazy()
    return check_rows(
        lines.with_columns(
            billing_period=pl.col("charge_date").dt.to_string("%Y-%m"),
            tags=tags_json({name: name for name in _TAGS}),
            **{name: to_amount(pl.col(name)) for name in ("quantity", "amount")},
            **{name: pl.lit(None, AMOUNT) for name in ("effective_amount", "list_amount", "contracted_amount")},
            **{name: pl.lit("") for name in ("env_id", "line_item_type", "operation", "sub_account_id", "invoice_id")},
        )
        .with_columns(_day=pl.col("charge_date").dt.to_string("%Y-%m-%d"))
        .with_columns(line_id=line_id([name if name != "charge_date" else "_day" for name in LINE_KEY]))
        .select(BILLING.columns)
        .sort(BILLING.key)
        .collect(),
        BILLING,
        where=where,
    )


def usage(tenant: CostModelTenant, days: Sequence[date], answers: Answers) -> pl.DataFrame:
    """USAGE of some days: what principals sent or received, or weigh by; and who there is, with a value of 1.

    `answers` are those to the questions of these days' own lines (`cost_days.asker`): whom only a cost type of another
    time names is nobody here.
    """
    source = tenant.source
    asked = [one for one in questions(tenant) if one.name in answers]
    found = [_usage_rows(answers[one.name], one.values.by[0], one.metrics[0]) for one in asked if one.use == "weights"]
    named = pl.DataFrame(
        [(str(day), principal) for day in days for principal in static(source) if charges(source, day)],
        schema={"window": pl.String, "principal": pl.String},
        orient="row",
    )
    if isinstance(tenant, KafkaTenant):
        found.append(_present(named, STATIC))
    else:
        discovered = [_usage_rows(answers[one.name], one.values.by[0], "") for one in asked if one.use == "identities"]
        seen = pl.concat([frame.select("window", "principal") for frame in [named, *found, *discovered]])
        only = identity_source(source) == "static"
        found.append(_present(named if only else seen.unique(), IDENTITIES_SEEN))
    wanted = [str(day) for day in days]
    return (
        pl.concat([_USAGE_EMPTY, *found])
        .filter(pl.col("window").is_in(wanted), pl.col("principal") != "")
        .with_columns(tenant_id=pl.lit(tenant.id), resource_id=pl.lit(source.cluster_id))
        .select(USAGE.columns)
        .sort(USAGE.key)
    )


_USAGE_EMPTY = pl.DataFrame(
    schema={"window": pl.String, "metric": pl.String, "principal": pl.String, "value": AMOUNT}
)  # fmt: skip


def _usage_rows(samples: Samples, label: str, metric: str) -> pl.DataFrame:
    return samples.values.select("window", metric=pl.lit(metric), principal=label, value="value")


def _present(seen: pl.DataFrame, metric: str) -> pl.DataFrame:
    return seen.select("window", metric=pl.lit(metric), principal="principal", value=pl.lit(1).cast(AMOUNT))


def resources(tenant: CostModelTenant, answers: Answers) -> pl.DataFrame:
    """RESOURCES that answers name, with the first and the last of their days."""
    found = list[pl.DataFrame]()
    for one in questions(tenant):
        if one.use == "resources" and one.name in answers:
            kind, label = one.name.removesuffix("s"), one.values.by[0]
            found.append(answers[one.name].values.select("window", type=pl.lit(kind), display_name=label))
    return resources_seen(tenant, pl.concat([_SEEN_EMPTY, *found]))


_SEEN_EMPTY = pl.DataFrame(schema=dict.fromkeys(("window", "type", "display_name"), pl.String))


def resources_seen(tenant: CostModelTenant, seen: pl.DataFrame) -> pl.DataFrame:
    """What was seen on days (window, type, display_name) as RESOURCES; ids have the cluster before them."""
    source = tenant.source
    day = pl.col("window").str.to_datetime("%Y-%m-%d", time_unit="us")
    return (
        seen.filter(pl.col("display_name") != "")
        .group_by("type", "display_name")
        .agg(first_seen_at=day.min(), last_seen_at=day.max())
        .with_columns(
            tenant_id=pl.lit(tenant.id),
            id=pl.concat_str(pl.lit(f"{source.cluster_id}/"), "type", pl.lit("/"), "display_name"),
            parent=pl.lit(source.cluster_id),
            owner=pl.lit(""),
            scope=pl.lit(source.cluster_id),
            **{
                name: pl.lit(None, RESOURCES.schema[name])
                for name in ("valid_from", "valid_to", "created_at", "deleted_at")
            },
        )
        .select(RESOURCES.columns)
        .sort(RESOURCES.key)
    )
