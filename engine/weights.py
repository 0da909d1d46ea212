"""One function per basis: the groups that lines ask for, and what is known -> WEIGHTS.

Everything here is small: a group stands for all lines of one ladder, window and scope. Values are exact (Int128 units
of 1e-12) until `quantised` makes them integer weights; no float comes between a sample and a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import polars as pl

from engine import money
from engine.config import Rung
from engine.frames import USAGE, WEIGHTS, decoded, shape, weight_group
from engine.identities import Candidates
from engine.rules import DIRECT, SCOPES, TENANT_WIDE, Rules

POINTS = 2**60
"""What a `weighted` rung shares out over its keys, and each key over identities."""
_EXACT = pl.Int128
_CANDIDATE = ["weight_group", "rung", "identity_id"]
_RUNG_OF_GROUP = ["weight_group", "rung"]
_RESOURCE = ["window", "resource_id"]


_DIRECT_COST_EMPTY = pl.DataFrame(
    schema={
        "window": pl.String,
        "identity_id": pl.String,
        "sub_account_id": pl.String,
        "product_category": pl.String,
        "currency": pl.String,
        "units": pl.Int128,
    }
)
_USAGE_EMPTY = pl.DataFrame(
    schema={"window": pl.String, "metric": pl.String, "identity_id": pl.String, "units": pl.Int128}
)
_CANDIDATES_EMPTY = Candidates(
    pl.DataFrame(
        schema={
            "window": pl.String,
            "resource_id": pl.String,
            "metric": pl.String,
            "identity_id": pl.String,
            "units": pl.Int128,
        }
    ),
    pl.DataFrame(schema={"window": pl.String, "resource_id": pl.String, "identity_id": pl.String}),
    pl.DataFrame(schema={"window": pl.String, "population": pl.String, "identity_id": pl.String}),
)


class Known(NamedTuple):
    """What rungs weigh by, for the windows of some days.

    `direct_cost`: window, identity_id, sub_account_id, product_category, currency, units; the operator is not in it.
    `usage`: window, metric, identity_id, units; key unique. `candidates`: who may be charged by the ladders of
    products, on each of the days.
    """

    direct_cost: pl.DataFrame = _DIRECT_COST_EMPTY
    usage: pl.DataFrame = _USAGE_EMPTY
    candidates: Candidates = _CANDIDATES_EMPTY


class Weighed(NamedTuple):
    """WEIGHTS, and the keys of `weighted` rungs that were empty: weight_group, rung, metric, reason."""

    weights: pl.DataFrame
    empty_keys: pl.DataFrame


_LABELS_WEIGHED = ["owner", "sub_account_id", "product_category", "currency"]


def classes(lines: pl.DataFrame) -> pl.DataFrame:
    """Matched lines -> rule_id, weight_scope, window, each once, and the least of what weights may depend on besides.

    Whatever is decided is decided for a class, of which there are far fewer than lines.
    """
    return lines.group_by("rule_id", "weight_scope", "window").agg(pl.col(_LABELS_WEIGHED).min())


def groups(classes: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Classes of lines -> one row per weight group they ask for.

    Columns: ladder, weight_scope, weight_group, window, owner, sub_account_id, product_category, currency. Where a
    ladder's scope leaves a column open, it holds the least of its values.
    """
    ladders = rules.frame.lazy().select("rule_id", "ladder").unique()
    return (
        classes.lazy()
        .join(ladders, on="rule_id", how="inner")
        .group_by("ladder", "weight_scope", "window")
        .agg(pl.col(_LABELS_WEIGHED).min())
        .with_columns(weight_group=weight_group())
        .sort("weight_group")
        .collect()
    )


def product_groups(lines: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Lines matched by product -> one row per weight group: ladder, weight_scope, weight_group, window, resource_id."""
    ladders = rules.frame.select("rule_id", "ladder").unique()
    return (
        lines.select("rule_id", "weight_scope", "window", "resource_id")
        .unique()
        .join(ladders, on="rule_id", how="inner")
        .drop("rule_id")
        .unique()
        .with_columns(weight_group=weight_group())
        .sort("weight_group")
    )


def direct_cost(lines: pl.LazyFrame, operator: str) -> pl.DataFrame:
    """BILLING with `owner` -> net direct cost, in units.

    Columns: billing_period, charge_date, identity_id, sub_account_id, product_category, currency, units. The operator's
    own cost never weighs. ContractError if a sum might not be exact.
    """
    owner = pl.col("owner").cast(pl.String)
    owned = lines.filter((owner != "") & (owner != operator)).with_columns(units=money.to_units(pl.col("amount")))
    keys = ["billing_period", "charge_date", "owner", "sub_account_id", "product_category", "currency"]
    cost = (
        decoded(owned.group_by(keys).agg(pl.col("units").sum(), _largest=pl.col("units").abs().max(), _lines=pl.len()))
        .rename({"owner": "identity_id"})
        .collect(engine="streaming")
    )
    if cost.height:
        money.check_sum_fits("direct cost", money.largest(cost["_largest"]), int(cost["_lines"].sum()))
    return cost.drop("_largest", "_lines")


def direct_cost_in_windows(cost: pl.DataFrame) -> pl.DataFrame:
    """`direct_cost` -> the same by window: every day by itself, and every billing period."""
    day = pl.col("charge_date").dt.to_string("%Y-%m-%d")
    keys = ["window", "identity_id", "sub_account_id", "product_category", "currency"]
    daily = cost.with_columns(window=day)
    monthly = cost.with_columns(window=pl.col("billing_period"))
    return pl.concat([daily, monthly]).group_by(keys).agg(pl.col("units").sum())


def usage_in_windows(
    usage: pl.DataFrame, billing_period: str, days: Iterable[str], *, whole: bool = True
) -> pl.DataFrame:
    """USAGE -> sums per window, metric and identity, for the days of one billing period and for the period itself.

    A dated metric weighs on its day, and in the period with the sum of the month's days; a metric given by period
    weighs on each of the days alike. Without `whole` the sums of the month's days are left out: they take longer than
    those of a day, and often no group asks for them. ContractError if a sum might not be exact.
    """
    keys = ["window", "metric", "identity_id"]
    values = shape(usage.lazy(), USAGE).select(
        "window", "metric", identity_id="principal", units=money.to_units(pl.col("value"))
    ).collect()  # fmt: skip
    if values.height:
        money.check_sum_fits("key tables", money.largest(values["units"]), values.height)
    dated = values.filter(pl.col("window").str.len_bytes() > len("2025-09"))
    monthly = dated.filter(pl.col("window").str.starts_with(f"{billing_period}-")) if whole else dated.clear()
    by_period = values.filter(pl.col("window") == billing_period)
    named_days = pl.DataFrame({"window": sorted(set(days))}, schema={"window": pl.String})
    return (
        pl.concat(
            [
                dated.join(named_days, on="window", how="semi"),
                monthly.with_columns(window=pl.lit(billing_period)),
                by_period,
                by_period.drop("window").join(named_days, how="cross").select(by_period.columns),
            ]
        )
        .group_by(keys)
        .agg(pl.col("units").sum())
        .sort(keys)
    )


def weigh(wanted: pl.DataFrame, rules: Rules, known: Known) -> Weighed:
    """The candidates of every rung of every wanted group (`groups`), as integer weights."""
    rungs = [
        (ladder, number, rung)
        for ladder in wanted["ladder"].unique()
        for number, rung in enumerate(rules.ladders[ladder])
    ]
    weighted = [asked for asked in rungs if asked[2].basis == "weighted"]
    mixed = _weighted(wanted, weighted, known) if weighted else Weighed(_WEIGHTS_EMPTY, _EMPTY_KEYS_EMPTY)
    frame = pl.concat([_weighed(wanted, rungs, known), mixed.weights]).sort(WEIGHTS.key)
    return Weighed(shape(frame.lazy(), WEIGHTS).collect(), mixed.empty_keys)


def weigh_reached(wanted: pl.DataFrame, rules: Rules, known: Known) -> pl.DataFrame:
    """WEIGHTS of the wanted groups (`product_groups`), of each up to the first of its rungs that holds.

    A tenant has many resources, and its identities would be candidates of each of them at a rung that hardly any line
    gets to.
    """
    found, left, number = [_WEIGHTS_EMPTY], wanted, 0
    while left.height:
        ladders = [name for name in left["ladder"].unique() if number < len(rules.ladders[name]) - 1]
        if not ladders:
            break
        rungs = [(name, number, rules.ladders[name][number]) for name in ladders]
        found.append(_weighed(left, rungs, known))
        held = found[-1].filter(pl.col("weight") > 0)
        left = left.join(held, on="weight_group", how="anti")
        number += 1
    return shape(pl.concat(found).lazy(), WEIGHTS).collect()


def _weighed(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Known) -> pl.DataFrame:
    """WEIGHTS of these rungs, of those that weigh by one value per candidate."""
    by_basis = [(weigh_by, [asked for asked in rungs if asked[2].basis == basis]) for basis, weigh_by in BASES.items()]
    values = [weigh_by(wanted, asked, known) for weigh_by, asked in by_basis if asked]
    return quantised(pl.concat([_VALUES_EMPTY, *values]))


Asked: TypeAlias = tuple[str, int, Rung]
"""A rung of a ladder: the ladder's name, the rung's number, the rung."""


def _rungs(
    wanted: pl.DataFrame, rungs: Sequence[Asked], **operands: tuple[pl.DataType, list[list[Any]]]
) -> pl.DataFrame:
    """The wanted groups with each of their ladder's rungs among `rungs`, and a row for each value of its operands."""
    # A list of lists takes polars longer to take in than all that is done with it.
    counts = [len(values) for values in next(iter(operands.values()))[1]] if operands else [1] * len(rungs)
    each = [rung for rung, count in zip(rungs, counts, strict=True) for _ in range(count)]
    listed = pl.DataFrame(
        {
            "ladder": [ladder for ladder, _, _ in each],
            "rung": [number for _, number, _ in each],
            **{name: list(chain.from_iterable(values)) for name, (_, values) in operands.items()},
        },
        schema={"ladder": pl.String, "rung": pl.Int16, **{name: dtype for name, (dtype, _) in operands.items()}},
    )
    return wanted.join(listed, on="ladder", how="inner")


def _direct(wanted: pl.DataFrame, rungs: Sequence[Asked], _known: Known) -> pl.DataFrame:
    """The owner bears it all."""
    return _rungs(wanted, rungs).select(*_RUNG_OF_GROUP, identity_id="owner", units=_units(1))


def _even(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Known) -> pl.DataFrame:
    """Everybody of the population, each alike."""
    by_cost = [asked for asked in rungs if asked[2].population in (None, "owners")]
    by_product = [asked for asked in rungs if asked[2].population not in (None, "owners")]
    found = [_VALUES_EMPTY]
    if by_cost:
        # Identities with direct cost in the window.
        owners = known.direct_cost.select("window", "identity_id").unique()
        found.append(
            _rungs(wanted, by_cost).join(owners, on="window", how="inner").select(*_CANDIDATE, units=_units(1))
        )
    if by_product:
        found.append(_population(wanted, by_product, known.candidates).select(*_CANDIDATE, units=_units(1)))
    return pl.concat(found)


def _population(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Candidates) -> pl.DataFrame:
    """Owners of the resource, who was seen in its metrics, or everybody: whoever is several of these, once."""
    owned = [asked for asked in rungs if asked[2].population in ("resource_active", "active")]
    measured = [asked for asked in rungs if asked[2].metrics]
    wide = [asked for asked in rungs if asked[2].population in TENANT_WIDE]
    found = [_VALUES_EMPTY]
    if owned:
        found.append(_rungs(wanted, owned).join(known.resource_owners, on=_RESOURCE, how="inner"))
    if measured:
        seen = known.resource_usage
        found.append(_metrics(wanted, measured).join(seen, on=[*_RESOURCE, "metric"], how="inner"))
    if wide:
        populations = _rungs(wanted, wide, population=(pl.String(), [[asked[2].population] for asked in wide]))
        found.append(populations.join(known.tenant_owners, on=["window", "population"], how="inner"))
    return pl.concat([frame.select(_CANDIDATE) for frame in found]).unique()


def _metrics(wanted: pl.DataFrame, rungs: Sequence[Asked]) -> pl.DataFrame:
    """The wanted groups with each of the rungs and, one row each, its metrics."""
    return _rungs(wanted, rungs, metric=(pl.String(), [list(asked[2].metrics or []) for asked in rungs]))


def _cost(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Known) -> pl.DataFrame:
    """Net direct cost in the window, scope and currency; who nets to less than nothing weighs nothing."""
    found = [_VALUES_EMPTY]
    for scope, columns in SCOPES.items():
        asked = _rungs(wanted, [(ladder, number, rung) for ladder, number, rung in rungs if rung.scope == scope])
        keys = ["window", "currency", *columns]
        net = known.direct_cost.group_by(*keys, "identity_id").agg(pl.col("units").sum())
        units = pl.max_horizontal(pl.col("units"), _units(0))
        found.append(asked.join(net, on=keys, how="inner").select(*_CANDIDATE, units=units))
    return pl.concat(found)


def _fixed(wanted: pl.DataFrame, rungs: Sequence[Asked], _known: Known) -> pl.DataFrame:
    """The configured percentages."""
    percentages = [rung.percentages or {} for _, _, rung in rungs]
    return _rungs(
        wanted,
        rungs,
        identity_id=(pl.String(), [list(shares) for shares in percentages]),
        units=(pl.String(), [[str(share) for share in shares.values()] for shares in percentages]),
    ).select(*_CANDIDATE, money.to_units(money.parse_amount(pl.col("units"))))


def _usage(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Known) -> pl.DataFrame:
    """The key's values in the window; or the sum of what was measured on the line's resource."""
    by_key = [asked for asked in rungs if asked[2].metrics is None]
    measured = [asked for asked in rungs if asked[2].metrics is not None]
    found = [_VALUES_EMPTY]
    if by_key:
        keys = _rungs(wanted, by_key, metric=(pl.String(), [[asked[2].key] for asked in by_key]))
        found.append(keys.join(known.usage, on=["window", "metric"], how="inner").select(*_CANDIDATE, "units"))
    if measured:
        values = _metrics(wanted, measured).join(
            known.candidates.resource_usage, on=[*_RESOURCE, "metric"], how="inner"
        )
        found.append(values.group_by(_CANDIDATE).agg(pl.col("units").sum()))
    return pl.concat(found)


BASES: dict[str, Callable[[pl.DataFrame, Sequence[Asked], Known], pl.DataFrame]] = {
    DIRECT: _direct,
    "even": _even,
    "cost": _cost,
    "fixed": _fixed,
    "usage": _usage,
}
"""Bases that weigh by one exact value per candidate: wanted groups, the basis's rungs, what is known -> weight_group,
rung, identity_id, units. (`weighted` mixes several values; the last bases weigh nothing.)"""
_VALUES_EMPTY = pl.DataFrame(
    schema={"weight_group": pl.String, "rung": pl.Int16, "identity_id": pl.String, "units": pl.Int128}
)
_WEIGHTS_EMPTY = pl.DataFrame(schema=WEIGHTS.schema)
_EMPTY_KEYS_EMPTY = pl.DataFrame(
    schema={"weight_group": pl.String, "rung": pl.Int16, "metric": pl.String, "reason": pl.String}
)


def _weighted(wanted: pl.DataFrame, rungs: Sequence[Asked], known: Known) -> Weighed:
    """POINTS are apportioned to the keys that total more than 0, and each key's points to identities by its values.

    Keys weigh as configured, in the order of their names; so an empty key's weight goes to the others.
    """
    of_rung = [*_RUNG_OF_GROUP, "metric"]
    keys = [rung.keys or {} for _, _, rung in rungs]
    asked = _rungs(
        wanted,
        rungs,
        metric=(pl.String(), [list(weights) for weights in keys]),
        key_weight=(pl.Int128(), [[int(weight * money.UNITS) for weight in weights.values()] for weights in keys]),
    ).select(*of_rung, "window", "key_weight")
    candidates = quantised(asked.join(known.usage, on=["window", "metric"], how="inner"), by=of_rung)
    totals = candidates.group_by(of_rung).agg(key_total=pl.col("weight").cast(_EXACT).sum())
    weighing = asked.join(totals, on=of_rung, how="left").sort(of_rung)
    points = _apportioned(
        weighing.filter(pl.col("key_total") > 0), pl.lit(POINTS, _EXACT), "key_weight", _RUNG_OF_GROUP
    ).rename({"apportioned": "key_points"})
    shares = _apportioned(
        candidates.join(points, on=of_rung, how="left").sort(*of_rung, "identity_id"),
        pl.col("key_points").fill_null(0),
        "weight",
        of_rung,
    )
    weights = shares.group_by(_CANDIDATE).agg(weight=pl.col("apportioned").sum().cast(pl.Int64))
    return Weighed(weights.select(WEIGHTS.columns), _empty(weighing))


def _apportioned(frame: pl.DataFrame, amount: pl.Expr, weight: str, over: list[str]) -> pl.DataFrame:
    """Rows in their order with `apportioned`: their part of `amount` by `weight`, within each of the groups `over`."""
    return (
        frame.with_columns(_weight=pl.col(weight).cast(_EXACT), _amount=amount.cast(_EXACT))
        .with_columns(_total=pl.max_horizontal(pl.col("_weight").sum().over(over), _units(1, whole=False)))
        .with_columns(_before=pl.col("_weight").cum_sum().over(over) - pl.col("_weight"))
        .with_columns(
            apportioned=money.apportioned(
                pl.lit(1, _EXACT),
                pl.col("_amount") // pl.col("_total"),
                pl.col("_amount") % pl.col("_total"),
                pl.col("_before"),
                pl.col("_weight"),
                pl.col("_total"),
            )
        )
        .drop("_weight", "_amount", "_total", "_before")
    )


def _empty(weighing: pl.DataFrame) -> pl.DataFrame:
    reason = pl.when(pl.col("key_total").is_null()).then(pl.lit("empty_key")).otherwise(pl.lit("zero_key_total"))
    return weighing.filter(pl.col("key_total").fill_null(0) == 0).select(*_RUNG_OF_GROUP, "metric", reason=reason)


def quantised(values: pl.DataFrame, by: list[str] | None = None) -> pl.DataFrame:
    """Exact values (`units`, per candidate of a rung of a group) -> integer weights that total less than 2**62.

    Where all values of the rung are whole numbers they are taken as they are, else in units of 1e-12; a total that
    reaches 2**62 shifts all of them right by the fewest bits after which the shifted total is below it.
    Rows: the columns `by`, identity_id, weight.
    """
    over = by or _RUNG_OF_GROUP
    totals = (
        values.group_by(over)
        .agg(_whole=(pl.col("units") % _units(1) == 0).all(), _total=pl.col("units").sum())
        .with_columns(_scale=pl.when("_whole").then(_units(1)).otherwise(_units(1, whole=False)))
    )
    totals = _shifted(totals.with_columns(pl.col("_total") // pl.col("_scale")))
    return values.join(totals, on=over, how="left", validate="m:1").select(
        *dict.fromkeys(["weight_group", "rung", *over, "identity_id"]),
        weight=(pl.col("units") // pl.col("_scale")).cast(pl.Int64),
    )


def _shifted(totals: pl.DataFrame) -> pl.DataFrame:
    """`_scale` times the smallest power of two that brings `_total` below the limit."""
    for bits in range(62, 127):
        reached = pl.col("_total") >= pl.lit(2**bits, _EXACT)
        # Hardly ever does any total reach the limit, and the first comparison says so.
        if not totals.select(reached.any()).item():
            break
        totals = totals.with_columns(_scale=pl.when(reached).then(pl.col("_scale") * 2).otherwise(pl.col("_scale")))
    return totals


def _units(number: int, *, whole: bool = True) -> pl.Expr:
    """An Int128 literal: `number` whole ones in units, or `number` itself."""
    return pl.lit(number * money.UNITS if whole else number, _EXACT)
