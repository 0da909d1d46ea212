"""What is decided for lines before a single row is made: each line's rule, the rung that holds, and who pays how much.

The recipe of one day (or of one bill) without the outside world: billing, what is known of its windows, and rules in;
the plan of the kernel out. Tenants whose owners stand in tags (`decide`) and tenants whose products have ladders
(`decide_products`) meet in the same weights and the same kernel.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

import polars as pl

from engine import allocate, digests, identities, money, names, rules, weights
from engine.config import AwsTenant, Tenant
from engine.errors import ContractError, fault
from engine.frames import BILLING, EMPTY_KEYS, decoded, encoded

MEASURES_OF: dict[str, tuple[str, ...]] = {
    "aws": ("amount",),
    "confluent_cloud": ("amount", "list_amount"),
    "self_managed_kafka": ("amount",),
    "generic_metrics": ("amount",),
}
"""Ecosystem -> the measures that its bills fill; the first is the one that is charged."""


class Inputs(NamedTuple):
    """What a tenant's allocation needs besides billing: rules, and USAGE of key tables, principals as identities."""

    tenant: Tenant
    rules: rules.Rules
    usage: pl.DataFrame


class Allocation(NamedTuple):
    """CHARGEBACK and EMPTY_KEYS of some days."""

    chargeback: pl.DataFrame
    empty_keys: pl.DataFrame


class Decided(NamedTuple):
    """What is decided for some lines: who bears them, and the keys that were empty (by rule and weight scope)."""

    plan: allocate.Plan
    empty_keys: pl.DataFrame


class DayFacts(NamedTuple):
    """What is known of one day of a tenant whose products have ladders.

    `resources`, `identities`: RESOURCES and IDENTITIES, all intervals. `usage`: USAGE of the day, principals as the
    source names them. `failed`: (metric, resource id) of what could not be read and was given up for this day.
    """

    resources: pl.DataFrame
    identities: pl.DataFrame
    usage: pl.DataFrame
    failed: frozenset[tuple[str, str]]


class DayDecision(NamedTuple):
    """What is decided for a day's lines.

    `lines`: BILLING with rule_id, weight_scope and window. `rules`: RULES, with those that were derived for the day.
    `unknown_products`: product_type, currency, lines, amount of the products that no rule names.
    """

    lines: pl.DataFrame
    rules: pl.DataFrame
    decided: Decided
    unknown_products: pl.DataFrame


def allocate_period(billing: pl.DataFrame, given: Inputs) -> Allocation:
    """BILLING of one billing period -> its CHARGEBACK and EMPTY_KEYS, in memory: all days at once, nothing stored.

    The same stages as a run's, which stores each day by itself.
    """
    lines = matched(billing.lazy(), given).collect().sort(BILLING.key)
    cost = direct_cost(lines.lazy(), given)
    return _allocated(lines, decide(lines, cost, given), MEASURES_OF[given.tenant.ecosystem])


def _allocated(lines: pl.DataFrame, decided: Decided, measures: tuple[str, ...]) -> Allocation:
    """Lines in the order of the key and what is decided for them -> their rows."""
    rows = allocate.fan_out(allocate.split(lines, decided.plan, measures=measures), measures=measures)
    allocate.check_line_sums(lines, rows, measures)
    days = lines.select("tenant_id", "billing_period", "charge_date", "rule_id", "weight_scope").unique()
    asked = days.join(decided.empty_keys, on=["rule_id", "weight_scope"], how="inner").select(EMPTY_KEYS.columns)
    return Allocation(allocate.whole(rows), asked.sort(EMPTY_KEYS.key))


def matched(billing: pl.LazyFrame, given: Inputs) -> pl.LazyFrame:
    """BILLING -> the same rows with owner, rule_id, window and weight_scope."""
    if not isinstance(given.tenant, AwsTenant):
        return rules.match_products(billing, given.rules).with_columns(owner=pl.lit(""))
    return rules.match(identities.with_owner(billing, given.tenant.owner), given.rules)


def matched_encoded(billing: pl.DataFrame, given: Inputs) -> pl.DataFrame:
    """`matched` of encoded BILLING (`frames.encoded`) of bills; what is added is encoded, too."""
    if not isinstance(given.tenant, AwsTenant):
        raise TypeError("products are matched by text")
    owner, known = given.tenant.owner, given.rules
    owned = _with_said(billing, ["tags"], lambda kinds: identities.with_owner(kinds, owner))
    return _with_said(owned, rules.columns_seen(known), lambda kinds: rules.match_kinds(kinds, known))


def _with_said(
    lines: pl.DataFrame, columns: Sequence[str], said: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> pl.DataFrame:
    """Lines with what is `said` of their kinds: these columns, as text, each kind once; its rows come in that order."""
    kinds = lines.select(columns).unique()
    found = said(decoded(kinds.lazy())).drop(columns).collect()
    known = kinds.hstack(encoded(found))
    return lines.join(known, on=columns, how="left", validate="m:1", maintain_order="left")


def direct_cost(lines: pl.LazyFrame, given: Inputs) -> pl.DataFrame:
    """Lines with owners -> `weights.direct_cost`."""
    return weights.direct_cost(lines, names.operator(given.tenant))


def decide(lines: pl.DataFrame, cost: pl.DataFrame, given: Inputs) -> Decided:
    """Matched lines of one billing period, and direct cost of its windows -> winning rungs and shares."""
    classes = decoded(weights.classes(lines).lazy()).collect()
    wanted = weights.groups(classes, given.rules)
    days = lines["charge_date"].unique().dt.to_string("%Y-%m-%d")
    period = str(lines["billing_period"].first() or "")
    known = weights.Known(
        weights.direct_cost_in_windows(cost),
        weights.usage_in_windows(given.usage, period, days, whole=(wanted["window"] == period).any()),
    )
    weighed = weights.weigh(wanted, given.rules, known)
    return _decided(classes, given.rules.frame, weighed)


def _decided(classes: pl.DataFrame, rules_frame: pl.DataFrame, weighed: weights.Weighed) -> Decided:
    rungs = allocate.rungs_asked(classes, rules_frame, weighed.weights)
    return Decided(allocate.planned(rungs, weighed.weights), _empty_keys(rungs, weighed.empty_keys))


def _empty_keys(rungs: pl.DataFrame, of_weighted: pl.DataFrame) -> pl.DataFrame:
    """Rungs that weighed nothing, and single empty keys of the `weighted` rungs that were tried."""
    lost = allocate.empty_keys(rungs).filter(pl.col("basis") != "weighted")
    first_held = pl.col("rung").filter("holds").min().over("rule_id", "weight_scope", "part")
    keys = (
        rungs.filter(pl.col("rung") <= first_held)
        .drop("metric")
        .join(of_weighted, on=["weight_group", "rung"], how="inner")
        .select(lost.columns)
    )
    return pl.concat([lost, keys]).sort("rule_id", "part", "rung", "weight_scope", "metric")


def decide_products(billing: pl.DataFrame, given: Inputs, facts: DayFacts) -> DayDecision:
    """BILLING of one day of a tenant whose products have ladders, and what is known of the day -> what is decided.

    ContractError if the lines are of several days, or if a sum might not be exact.
    """
    return decide_product_days(billing, given, facts, {str(_one_day(billing)): facts.failed})


def decide_product_days(
    billing: pl.DataFrame, given: Inputs, facts: DayFacts, failed: Mapping[str, frozenset[tuple[str, str]]]
) -> DayDecision:
    """`decide_products` of several days in one: each day by what is known of it, as if it were alone.

    `facts.usage`: USAGE of the days; `failed`: charge date -> what failed on it, for each of the days.
    """
    days = [date.fromisoformat(day) for day in sorted(failed)]
    there = identities.alive_on(facts.resources, days)
    by_product = rules.match_products(decoded(billing.lazy()), given.rules).collect()
    lives = identities.alive_seconds(there)
    lines = rules.with_derived(by_product, given.rules, lives, failed).sort(BILLING.key)
    todays = rules.derived(given.rules, lines["rule_id"].unique())
    found = identities.candidates(
        lines,
        there,
        identities.alive_on(facts.identities, days),
        facts.usage,
        given.rules.operator,
    )
    wanted = weights.product_groups(lines, todays)
    weighed = weights.weigh_reached(wanted, todays, weights.Known(candidates=found))
    rungs = allocate.rungs_asked(lines, todays.frame, weighed)
    lost = allocate.empty_keys(rungs).sort("rule_id", "part", "rung", "weight_scope")
    decided = Decided(allocate.planned(rungs, weighed), lost)
    return DayDecision(lines, todays.frame, decided, _unknown_products(lines))


def by_day(lines: pl.DataFrame, decided: Decided) -> dict[date, tuple[pl.DataFrame, Decided]]:
    """Lines of several days and what is decided for them -> charge date -> the same for its lines, as if alone."""
    day, rule = "charge_date", ["rule_id", "weight_scope"]
    plans = allocate.by_day(decided.plan, lines)
    empty_keys = (
        lines.select(day, *rule)
        .unique()
        .join(decided.empty_keys.with_row_index("_place"), on=rule, how="inner")
        .sort(day, "_place")
        .select(day, *decided.empty_keys.columns)
    )
    lost = empty_keys.partition_by(day, maintain_order=True, include_key=False, as_dict=True)
    none = decided.empty_keys.clear()
    return {
        found: (of_day, Decided(plans[found], lost.get((found,), none)))
        for (found,), of_day in lines.partition_by(day, maintain_order=True, as_dict=True).items()
    }


def _one_day(billing: pl.DataFrame) -> date:
    days: list[date] = billing["charge_date"].unique().sort().to_list()
    if len(days) > 1:
        raise ContractError(fault("table billing", f"lines of {len(days)} days, from {days[0]} on", "lines of one day"))
    return days[0] if days else date.min


def _unknown_products(lines: pl.DataFrame) -> pl.DataFrame:
    unknown = lines.filter(pl.col("rule_id") == rules.UNKNOWN_PRODUCT)
    units = unknown.select(money.to_units(pl.col("amount"))).to_series()
    money.check_sum_fits("lines of unknown products", money.largest(units), unknown.height)
    by_type = ["product_type", "currency"]
    return unknown.group_by(by_type).agg(lines=pl.len(), amount=pl.col("amount").sum()).sort(by_type)


def allocate_day(billing: pl.DataFrame, given: Inputs, facts: DayFacts) -> Allocation:
    """BILLING of one day -> its CHARGEBACK and EMPTY_KEYS by the ladders of products, in memory."""
    found = decide_products(billing, given, facts)
    return _allocated(found.lines, found.decided, MEASURES_OF[given.tenant.ecosystem])


def metrics_needed(billing: pl.DataFrame, given: Inputs) -> dict[str, list[str]]:
    """Metric -> ids of the resources (sorted) whose values the ladders of some lines may weigh by.

    Without those that come with the inventory (`rules.FROM_INVENTORY`).
    """
    found = metrics_by_day(billing.lazy(), given)
    asked = found.explode("resource_id").group_by("metric").agg(pl.col("resource_id").unique().sort()).sort("metric")
    return dict(asked.rows())


def metrics_by_day(billing: pl.LazyFrame, given: Inputs) -> pl.DataFrame:
    """What the ladders of each day's lines may weigh by: charge_date, metric, resource_id (sorted ids, none twice)."""
    by_rule = pl.DataFrame(
        [
            (rule_id, metric)
            for rule_id, metrics in rules.metrics_of(given.rules).items()
            for metric in metrics - rules.FROM_INVENTORY
        ],
        schema={"rule_id": pl.String, "metric": pl.String},
        orient="row",
    )
    return (
        rules.match_products(decoded(billing), given.rules)
        .filter(pl.col("resource_id") != "")
        .select("charge_date", "rule_id", "resource_id")
        .unique()
        .join(by_rule.lazy(), on="rule_id", how="inner")
        .group_by("charge_date", "metric")
        .agg(pl.col("resource_id").unique().sort())
        .sort("charge_date", "metric")
        .collect(engine="streaming")
    )


def facts_by_day(days: Mapping[str, frozenset[tuple[str, str]]], facts: DayFacts) -> dict[str, str]:
    """Charge date -> `facts_digest`, for days with what failed on each, as in `DayFacts`."""
    turns = _turns(facts)
    known: dict[tuple[int, frozenset[tuple[str, str]]], str] = {}
    found = {}
    for day, failed in days.items():
        charge_date = date.fromisoformat(day)
        # Between two days on which anything turned, all is as it was.
        place = bisect_right(turns, charge_date), failed
        if place not in known:
            known[place] = facts_digest(charge_date, facts._replace(failed=failed))
        found[day] = known[place]
    return found


def _turns(facts: DayFacts) -> list[date]:
    """The days from which on something may be known otherwise than on the day before, in order."""
    begins = (pl.col("valid_from", "valid_to"), pl.col("created_at", "deleted_at").cast(pl.Date))
    found = set[date]()
    for frame in (facts.resources, facts.identities):
        dates = frame.select(*begins, gone=pl.col("deleted_at").cast(pl.Date) + pl.duration(days=1))
        found |= {one for column in dates for one in column.unique() if one is not None}
    return sorted(found)


def facts_digest(day: date, facts: DayFacts) -> str:
    """A digest of what of the facts a day's chargeback can depend on.

    What was there on the day and whose it was, without names and times that do not matter for it: a resource that is
    deleted later is on this day what it was. The order of rows has no effect.
    """
    end = datetime(day.year, day.month, day.day) + timedelta(days=1)  # noqa: DTZ001  # times are naive UTC throughout
    resources = identities.alive(facts.resources, day).select(
        "id",
        "type",
        "parent",
        "owner",
        # Metrics know statements by name.
        name=pl.when(pl.col("type") == "flink_statement").then(pl.col("display_name")).otherwise(pl.lit("")),
        created_at="created_at",
        deleted_at=pl.when(pl.col("deleted_at") < end).then(pl.col("deleted_at")),
    )
    known = identities.alive(facts.identities, day).select("id", "type", "owner", "scope")
    values = ["resource_id", "metric", "principal", "value"]
    usage = facts.usage.filter(pl.col("window") == str(day)).select(values).sort(values)
    content = [digests.digest(frame) for frame in (resources, known, usage)]
    content += [json.dumps(pair) for pair in sorted(facts.failed)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()
