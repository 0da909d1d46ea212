"""The kernel: the winning rung of every part, shares decided once per weight group, and the fan-out.

Frames in: lines (BILLING with rule_id and weight_scope), RULES, WEIGHTS. Frame out: CHARGEBACK.

    classes   distinct (rule_id, weight_scope) of the lines                               small
    parts     classes x parts of the rule, each with its winning rung and labels          small
    shares    winning candidates of each weight group with prefix sums                    small
    fan-out   lines |x| parts (1:parts of the rule) x shares (1:payers of the group)      the output

All decisions fall on the small frames; the big one is columns gathered from them and integer arithmetic, in the order
of the key: it is never sorted, and no join and no window function runs over it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import date
from itertools import pairwise
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from engine import digests, frames, money
from engine.errors import ContractError, LedgerError, fault, shown
from engine.frames import (
    BILLING,
    CHARGEBACK,
    MEASURES,
    RULES,
    UNALLOCATED,
    WEIGHTS,
    Blocks,
    check_rows,
    is_text,
    shape,
    weight_group,
)

KERNEL_VERSION = 1
"""Raised only when amounts may change; part of every input digest."""
OF_LINES = (*(name for name in BILLING.schema if name in CHARGEBACK.schema), "rule_id", "weight_scope")
"""The columns of lines that make their rows; neither tags nor quantities are among them."""
LAST_BASES = ("resource", "operator", "unallocated")
_PART = ["rule_id", "weight_scope", "part"]
_EXACT = pl.Int128


class Plan(NamedTuple):
    """What the fan-out of a set of lines needs, decided once on small frames.

    `parts` (key: rule_id, weight_scope, part; in that order): labels of the part, its _share with _share_before and
    _share_total, _lead (the rule's first part), weight_total, _group. `shares` (key: _group, identity_id; in that
    order): weight, weight_before; identity_id '' stands for the line's resource. `payers`: _group, at which row of
    `shares` it begins (`_first`) and how many rows it has and fans out to (`_fan`).
    """

    parts: pl.DataFrame
    shares: pl.DataFrame
    payers: pl.DataFrame


def allocate(
    lines: pl.DataFrame,
    rules: pl.DataFrame,
    weights: pl.DataFrame,
    *,
    measures: Sequence[str] = ("amount",),
    calculation_id: str = "",
) -> pl.LazyFrame:
    """Split every line over the identities that bear it: CHARGEBACK rows in the order of the key.

    `lines`: BILLING with `rule_id` and `weight_scope`; `rules`: RULES; `weights`: WEIGHTS. Each of `measures` is split
    with the same shares, each exactly; the others come out null. Rows whose every measure is 0 are left out, but a
    line keeps at least one. Text columns keep the dtype they come with (String, or Enum from `frames.encoded`).
    ContractError if a line's rule is unknown, a ladder does not end, or weights are negative, not unique, too large.
    """
    ordered = _checked_lines(lines, measures).sort(BILLING.key)
    check_rows(rules, RULES)
    check_rows(weights, WEIGHTS)
    decided = plan(ordered, rules, weights)
    if ordered.schema["rule_id"] != pl.String:
        decided = encoded(decided, ordered)
    parts = split(ordered, decided, measures=measures)
    return shape(whole(fan_out(parts, measures=measures, calculation_id=calculation_id)).lazy(), CHARGEBACK)


def _checked_lines(lines: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """The lines themselves, if they are BILLING with a rule and a weight scope each; else ContractError."""
    if not measures or len(set(measures)) < len(measures) or not set(measures) <= set(MEASURES):
        seen = ", ".join(map(shown, measures)) or "none"
        raise ContractError(fault("measures", seen, f"some of {', '.join(MEASURES)}, each once"))
    texts = [name for name in ("rule_id", "weight_scope") if is_text(lines.schema.get(name, pl.Null()))]
    lines_table = BILLING._replace(
        name="lines", schema={**BILLING.schema, "rule_id": pl.String(), "weight_scope": pl.String()}
    )
    known = lines.select(name for name in lines.columns if name in BILLING.schema or name in texts)
    check_rows(known, lines_table)
    return lines


def plan(lines: pl.DataFrame, rules: pl.DataFrame, weights: pl.DataFrame) -> Plan:
    """Parts, winning rungs and shares for these lines; see `allocate` for what is refused."""
    return planned(rungs_asked(lines, rules, weights), weights)


def planned(rungs: pl.DataFrame, weights: pl.DataFrame) -> Plan:
    """The plan from `rungs_asked`."""
    winners = _winners(rungs)
    groups = _groups(winners)
    shares = _shares(groups, weights)
    payers = (
        shares.with_row_index("_first")
        .group_by("_group", maintain_order=True)
        .agg(pl.col("_first").min(), _fan=pl.len())
    )
    parts = winners.join(groups, on=_GROUP_KEY, how="left", validate="m:1").sort(_PART).select(_PLANNED_PART)
    return Plan(parts, shares.select("_group", "identity_id", "weight", "weight_before"), payers)


def by_day(decided: Plan, lines: pl.DataFrame) -> dict[date, Plan]:
    """The plan of lines of several days -> charge date -> the plan of the day's lines, as if there were no others."""
    day, rule = "charge_date", ["rule_id", "weight_scope"]
    parts = (
        lines.select(day, pl.col(rule).cast(pl.String))
        .unique()
        .join(decided.parts, on=rule, how="inner")
        .sort(day, *_PART)
        .with_columns(_of_all="_group", _group=_ranked("_group", day))
    )
    shares = (
        parts.select(day, "_group", "_of_all")
        .unique()
        .join(decided.shares, left_on="_of_all", right_on="_group", how="inner")
        .sort(day, "_group", "identity_id")
    )
    payers = (
        shares.with_columns(_first=pl.int_range(pl.len(), dtype=pl.get_index_type()).over(day))
        .group_by(day, "_group", maintain_order=True)
        .agg(pl.col("_first").min(), _fan=pl.len())
    )
    plans = (frame.select(day, *known.columns) for frame, known in zip((parts, shares, payers), decided, strict=True))
    of_days = [
        frame.partition_by(day, maintain_order=True, include_key=False, as_dict=True) for frame in plans
    ]  # fmt: skip
    return {found: Plan(*(frames_of[found,] for frames_of in of_days)) for (found,) in of_days[0]}


def _ranked(name: str, over: str) -> pl.Expr:
    """Numbers from 0 on, without gaps, in the order of a column's numbers."""
    return (pl.col(name).rank("dense").over(over) - 1).cast(pl.get_index_type())


def rungs_asked(lines: pl.DataFrame, rules: pl.DataFrame, weights: pl.DataFrame) -> pl.DataFrame:
    """Every rung of every part of the lines' rules, per weight scope; the lines may also be classes of lines.

    With `weight_total` (null: no candidate) and `holds`. Rows: rule_id, weight_scope, part, rung and the columns of
    RULES, weight_group; in the order of these first four.
    """
    totals = _weight_totals(weights)
    rungs = (
        lines.select(pl.col("rule_id", "weight_scope").cast(pl.String))
        .unique()
        .join(shape(rules.lazy(), RULES).collect(), on="rule_id", how="left")
        .with_columns(weight_group=weight_group())
        .join(totals, on=["weight_group", "rung"], how="left", validate="m:1")
        .with_columns(_last=pl.col("basis").is_in(LAST_BASES))
        .with_columns(holds=pl.col("_last") | (pl.col("weight_total").fill_null(0) > 0))
        .sort(*_PART, "rung")
    )
    _check_shares(rules)
    unknown = rungs.filter(pl.col("part").is_null())["rule_id"].unique().sort()
    if unknown.len():
        names = ", ".join(shown(name) for name in unknown.head(5))
        raise ContractError(
            fault("table rules", f"no row for {unknown.len()} rule(s) of lines: {names}", "every line's rule")
        )
    return rungs


def _check_shares(rules: pl.DataFrame) -> None:
    """ContractError unless every part has a positive share, the same on all its rungs, and rules total below 2**62."""
    parts = rules.group_by("rule_id", "part").agg(pl.col("share").min(), _largest=pl.col("share").max())
    totals = parts.group_by("rule_id").agg(
        _smallest=pl.col("share").min(),
        _total=pl.col("share").cast(_EXACT).sum(),
        _one=(pl.col("share") == pl.col("_largest")).all(),
    )
    limit = pl.lit(money.WEIGHT_TOTAL_LIMIT, _EXACT)
    wrong = totals.filter((pl.col("_smallest") <= 0) | (pl.col("_total") >= limit) | ~pl.col("_one"))["rule_id"].sort()
    if wrong.len():
        names = ", ".join(shown(name) for name in wrong.head(5))
        expected = "one positive share for each part, in all below 2**62"
        raise ContractError(
            fault("table rules, column share", f"{wrong.len()} rule(s) with other shares: {names}", expected)
        )


def empty_keys(rungs: pl.DataFrame) -> pl.DataFrame:
    """`rungs_asked` -> the rungs before the winning one: rule_id, part, rung, weight_scope, basis, metric, reason."""
    first = pl.col("rung").filter("holds").min().over(_PART)
    columns = ["rule_id", "part", "rung", "weight_scope", "basis", "metric"]
    return rungs.filter(pl.col("rung") < first).select(*columns, reason=_reason())


def _reason() -> pl.Expr:
    return pl.when(pl.col("weight_total").is_null()).then(pl.lit("empty_key")).otherwise(pl.lit("zero_key_total"))


def _weight_totals(weights: pl.DataFrame) -> pl.DataFrame:
    """weight_group, rung, weight_total of WEIGHTS; ContractError if they are not what the arithmetic needs."""
    shape(weights.lazy(), WEIGHTS)
    faults = []
    if weights.height and (negative := int((weights["weight"] < 0).sum())):
        faults.append(fault("table weights", f"{negative} negative weight(s)", "none"))
    if duplicates := int(weights.select(WEIGHTS.key).is_duplicated().sum()):
        faults.append(fault("table weights", f"{duplicates} rows share a key", f"unique ({', '.join(WEIGHTS.key)})"))
    totals = weights.group_by("weight_group", "rung").agg(weight_total=pl.col("weight").cast(_EXACT).sum())
    large = totals.filter(pl.col("weight_total") >= pl.lit(money.WEIGHT_TOTAL_LIMIT, _EXACT))
    if large.height:
        example = shown(large["weight_group"][0])
        faults.append(
            fault("table weights", f"{large.height} total(s) too large, for example {example}", "below 2**62")
        )
    if faults:
        raise ContractError(faults)
    return totals.with_columns(pl.col("weight_total").cast(pl.Int64))


def _winners(rungs: pl.DataFrame) -> pl.DataFrame:
    """One row per part: its first rung that holds; a last rung without a detail says why the first did not hold."""
    first = rungs.unique(_PART, keep="first", maintain_order=True).select(*_PART, _first_reason=_reason())
    winners = rungs.filter("holds").unique(_PART, keep="first", maintain_order=True)
    if winners.height < first.height:
        endless = first.join(winners, on=_PART, how="anti")["rule_id"].unique().sort()
        names = ", ".join(shown(name) for name in endless.head(5))
        raise ContractError(
            fault("table rules", f"{endless.len()} rule(s) whose ladder may take nothing: {names}", _ENDS)
        )
    last = pl.col("_last")
    unnamed = last & (pl.col("allocation_detail") == "")
    return _with_part_prefix(winners).join(first, on=_PART, how="left", validate="1:1").with_columns(
        allocation_detail=pl.when(unnamed).then(pl.col("_first_reason")).otherwise(pl.col("allocation_detail")),
        weight_total=pl.when(last).then(pl.lit(1, pl.Int64)).otherwise(pl.col("weight_total")),
        _weighed_group=pl.when(last).then(pl.lit("")).otherwise(pl.col("weight_group")),
        _weighed_rung=pl.when(last).then(pl.lit(-1, pl.Int16)).otherwise(pl.col("rung")),
        _charged=pl.when(last).then(pl.col("payer")).otherwise(pl.lit("")),
    )  # fmt: skip


_ENDS = f"a last rung of {', '.join(LAST_BASES)}"


def _with_part_prefix(winners: pl.DataFrame) -> pl.DataFrame:
    rule = ["rule_id", "weight_scope"]
    return winners.with_columns(
        _share=pl.col("share").cast(_EXACT),
        _share_before=pl.col("share").cast(_EXACT).cum_sum().over(rule) - pl.col("share").cast(_EXACT),
        _share_total=pl.col("share").cast(_EXACT).sum().over(rule),
        _lead=pl.col("part") == pl.col("part").min().over(rule),
        rule_version=pl.col("version"),
    )


_GROUP_KEY = ["_weighed_group", "_weighed_rung", "_charged"]
_PLANNED_PART = [
    *_PART, "rung", "basis", "cost_type", "allocation_method", "allocation_detail", "rule_version", "weight_total",
    "_share", "_share_before", "_share_total", "_lead", "_group",
]  # fmt: skip


def _groups(winners: pl.DataFrame) -> pl.DataFrame:
    """The distinct sets of payers, numbered: a weighed group at its winning rung, or whom a last rung charges."""
    return winners.select(_GROUP_KEY).unique().sort(_GROUP_KEY).with_row_index("_group")


def _shares(groups: pl.DataFrame, weights: pl.DataFrame) -> pl.DataFrame:
    weighed = groups.filter(pl.col("_weighed_rung") >= 0).join(
        weights.filter(pl.col("weight") > 0),
        left_on=["_weighed_group", "_weighed_rung"],
        right_on=["weight_group", "rung"],
        how="inner",
    )
    charged = groups.filter(pl.col("_weighed_rung") < 0).select(
        "_group", identity_id="_charged", weight=pl.lit(1, pl.Int64)
    )
    return (
        pl.concat([weighed.select("_group", "identity_id", "weight"), charged])
        .sort("_group", "identity_id")
        .with_columns(weight_before=pl.col("weight").cum_sum().over("_group") - pl.col("weight"))
    )


def encoded(decided: Plan, lines: pl.DataFrame) -> Plan:
    """The plan with text as Enums, for lines that are `frames.encoded`: the fan-out then moves codes, not text."""
    keys = ["rule_id", "weight_scope"]
    labels = ["cost_type", "allocation_method", "allocation_detail", "rule_version"]
    parts = frames.encoded(decided.parts.with_columns(pl.col(key).cast(lines.schema[key]) for key in keys), labels)
    return decided._replace(parts=parts, shares=frames.encoded(decided.shares, ["identity_id"]))


class Split(NamedTuple):
    """Lines cut into parts, ready to fan out.

    `rows`: lines in their order, one row per part, with the part's labels and group, its units of each measure
    (`_units_*`), at which share it begins and how many rows it fans out to (`_first`, `_fan`) and, if any is for the
    line's resource, `_payer`. `shares` as in `Plan`, with `_weight_after` and its `_ratio` to the total of the group.
    `constant`: labels that are the same in all rows. `narrow`: 64 bits hold the arithmetic, which takes a fraction of
    the time.
    """

    rows: pl.DataFrame
    shares: pl.DataFrame
    constant: frozenset[str]
    narrow: bool


def split(lines: pl.DataFrame, decided: Plan, *, measures: Sequence[str] = ("amount",)) -> Split:
    """Lines (in the order of the key) -> their parts. Parts of a line are apportioned first, payers of a part later."""
    parts = (
        _with_parts(lines, decided.parts)
        .lazy()
        .join(decided.payers.lazy(), on="_group", how="left", validate="m:1", maintain_order="left")
        .with_columns(_part_units(measure, decided.parts).alias(f"_units_{measure}") for measure in measures)
        .with_columns(
            _zero=pl.all_horizontal(money.to_units(pl.col(measure)).fill_null(0) == 0 for measure in measures)
        )
        .collect()
    )
    rows, shares = _with_resource_payers(parts, decided.shares)
    shares = shares.with_columns(_weight_after=pl.col("weight_before") + pl.col("weight")).with_columns(
        _ratio=pl.col("_weight_after") / pl.col("weight").sum().over("_group")
    )
    return Split(rows.rechunk(), shares.rechunk(), _constant(rows), narrow=_is_narrow(rows, measures))


def _with_parts(lines: pl.DataFrame, parts: pl.DataFrame) -> pl.DataFrame:
    """Lines |x| the parts of their rule and weight scope (1:parts), in the order of both.

    Only places are joined, on one number where text is encoded. The columns are gathered afterwards, those of lines
    only if some line has several parts.
    """
    classes = (
        parts.with_row_index("_first_part")
        .group_by("rule_id", "weight_scope", maintain_order=True)
        .agg(pl.col("_first_part").first(), _parts=pl.len())
    )
    on, key = _class_key(lines.schema["rule_id"])
    known = classes.lazy().select(*key, "_first_part", "_parts")
    asked = lines.lazy().select(key).join(known, on=on, how="left", validate="m:1", maintain_order="left")
    places = asked.select("_first_part", "_parts").collect()
    labels = parts.drop("rule_id", "weight_scope")
    if (classes["_parts"] == 1).all():
        return pl.concat([lines, labels[places["_first_part"]]], how="horizontal")
    pairs = _expanded(places, "_first_part", "_parts")
    return pl.concat([lines[pairs["_row"]], labels[pairs["_place"]]], how="horizontal")


def _class_key(dtype: pl.DataType) -> tuple[list[str], list[pl.Expr]]:
    """What rule and weight scope are joined by, names and values: where they are encoded, one number for both."""
    if dtype == pl.String:
        return ["rule_id", "weight_scope"], [pl.col("rule_id"), pl.col("weight_scope")]
    rule, scope = (pl.col(name).to_physical().cast(pl.UInt64) for name in ("rule_id", "weight_scope"))
    return ["_class"], [(rule * 2**32 + scope).alias("_class")]


def _constant(rows: pl.DataFrame) -> frozenset[str]:
    """The columns of CHARGEBACK that say the same of all these parts."""
    labels = [name for name in rows.columns if name in CHARGEBACK.schema and name not in MEASURES]
    physical = pl.col(labels).to_physical()
    found = rows.select((physical == physical.first()).all())
    return (
        frozenset(name for name, constant in found.row(0, named=True).items() if constant)
        if rows.height
        else frozenset()
    )


def _part_units(measure: str, parts: pl.DataFrame) -> pl.Expr:
    """The part's units of a line's measure; null stays null. Rules of one part, as most are, take the line's whole."""
    units = money.to_units(pl.col(measure))
    if (parts["_share"] == parts["_share_total"]).all():
        return units
    total = pl.col("_share_total")
    return money.apportioned(
        units.sign(), units.abs() // total, units.abs() % total, pl.col("_share_before"), pl.col("_share"), total
    )


def fan_out(
    parts: Split,
    *,
    measures: Sequence[str] = ("amount",),
    calculation_id: str = "",
    columns: Sequence[str] = tuple(CHARGEBACK.schema),
) -> Blocks:
    """`split` -> CHARGEBACK, or some of its columns, in the order of the key; never sorted. A block for each part."""
    ends, of_parts = parts.rows["_fan"].cum_sum(), parts.rows
    starts = ends - parts.rows["_fan"]
    rows = _apportioned(parts, measures, starts, ends)
    if rows.height < parts.rows["_fan"].sum():
        # Zeros are left out, of some parts all.
        starts = frames.starts(rows, ["_part"])
        of_parts = parts.rows[rows["_part"].gather(starts)]
    text = pl.String if parts.rows["rule_id"].dtype == pl.String else pl.Enum([calculation_id])
    of_row = {
        "identity_id": _payer(parts),
        "weight_before": pl.col("weight_before"),
        "weight": pl.col("weight"),
        **{name: money.to_amount(pl.col(f"_{name}").cast(_EXACT)) for name in measures},
    }
    same = {
        "calculation_id": pl.lit(calculation_id, text),
        **{name: pl.lit(None, money.AMOUNT) for name in MEASURES if name not in measures},
    }
    of_part = {**same, "part_amount": money.to_amount(pl.col(f"_units_{measures[0]}"))}
    chosen = {name: of_row[name] for name in columns if name in of_row}
    needed = {root for expression in chosen.values() for root in expression.meta.root_names()}
    varied = _gathered(parts, rows, needed - {*rows.columns}).select(**chosen)
    steady = of_parts.select(**{name: of_part.get(name, pl.col(name)) for name in columns if name not in of_row})
    return Blocks(varied, steady, starts, (parts.constant | same.keys()) & {*steady.columns})


def whole(blocks: Blocks) -> pl.DataFrame:
    """The rows of `fan_out`, with all their columns."""
    varied, steady, starts, constant = blocks
    ends = starts.shift(-1, fill_value=varied.height)
    block = _decoded(pl.int_range(starts.len(), dtype=pl.get_index_type(), eager=True), ends)
    gathered = steady.select(pl.exclude(constant))[block]
    columns: dict[str, pl.Expr | pl.Series] = {
        **{name: pl.col(name) for name in varied.columns},
        **{column.name: column for column in gathered.get_columns()},
        # One value; beside the others it is as long as those.
        **{name: pl.lit(steady[name].head(1)).first().alias(name) for name in constant},
    }
    return varied.select(columns[name] for name in CHARGEBACK.columns if name in columns)


def _gathered(parts: Split, rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """Rows with what the part and the share that each is made of say, all columns of a frame at once."""
    found, left = [rows], {*names}
    for frame, place in ((parts.shares, "_share"), (parts.rows, "_part")):
        if chosen := [name for name in frame.columns if name in left]:
            found.append(frame[chosen][rows[place]])
            left -= {*chosen}
    return pl.concat(found, how="horizontal")


def _payer(parts: Split) -> pl.Expr:
    """Who bears a row."""
    if "_payer" not in parts.rows.columns:
        return pl.col("identity_id")
    return pl.when(pl.col("basis") == "resource").then(pl.col("_payer")).otherwise(pl.col("identity_id"))


def _apportioned(parts: Split, measures: Sequence[str], starts: pl.Series, ends: pl.Series) -> pl.DataFrame:
    """One row per payer of each part, from one place to another, but those whose every measure is 0.

    With `_part` and `_share`, the rows of these frames that it is made of, and its units of each measure
    (`_<measure>`). Payers of a part follow each other in the order of their weights, so that a row's units are those
    that it and its predecessors get together, less what the row before it says of those.
    """
    exact = pl.Int64() if parts.narrow else _EXACT()
    ratio = ["_ratio"] if parts.narrow else []
    divided = parts._replace(
        rows=parts.rows.select(pl.col("weight_total").cast(exact).alias("_total"), *_division(measures, exact))
    )
    rows = _gathered(
        divided, _pairs(parts.rows, starts, ends), {"_weight_after", *ratio, *divided.rows.columns}
    ).select("_part", "_share", *(_through(measure, exact).alias(f"_{measure}") for measure in measures))
    rows = rows.with_columns(_own(rows[f"_{measure}"], starts) for measure in measures)
    kept = pl.any_horizontal((pl.col(f"_{measure}") != 0).fill_null(value=False) for measure in measures)
    if rows.select(kept.all()).item():
        return rows
    may_be_zero = parts.rows.select(pl.col("_zero") & pl.col("_lead")).to_series().gather(rows["_part"])
    is_first = parts.shares["weight_before"].gather(rows["_share"]) == 0
    return rows.filter(kept | (may_be_zero & is_first))


def _pairs(rows: pl.DataFrame, starts: pl.Series, ends: pl.Series) -> pl.DataFrame:
    """`_part` and `_share`: rows of both frames that fan out to a row. Shares of a group lie one after another.

    Both are runs, one for each part, once a share's place is given less its row's; to decode runs takes half as long
    as to make lists and to explode them.
    """
    place = pl.get_index_type()
    part = _decoded(pl.int_range(rows.height, dtype=place, eager=True), ends)
    # Places have no sign. Where the difference is below 0 it wraps, and comes back when the row's place is added.
    share = _decoded(rows["_first"] - starts, ends)
    return pl.DataFrame({"_part": part, "_share": share + pl.int_range(share.len(), dtype=place, eager=True)})


def _decoded(values: pl.Series, ends: pl.Series) -> pl.Series:
    """The values of runs, each up to one of the ends -> the values of all rows."""
    return pl.Series(digests.spread(values.to_arrow(), ends.cast(pl.Int64).to_arrow()))


def _expanded(rows: pl.DataFrame, first: str, count: str) -> pl.DataFrame:
    """Each row once for each of `count` places from `first` on: `_row` and `_place`, in the order of both."""
    place = pl.get_index_type()
    places = pl.int_ranges(pl.col(first), pl.col(first) + pl.col(count), dtype=place)
    return rows.lazy().select(_row=pl.int_range(pl.len(), dtype=place), _place=places).explode("_place").collect()


def _through(measure: str, exact: pl.DataType) -> pl.Expr:
    sign, quotient, remainder = (pl.col(f"_{name}_{measure}") for name in ("sign", "quotient", "remainder"))
    after, total = pl.col("_weight_after").cast(exact), pl.col("_total")
    ratio = pl.col("_ratio") if exact == pl.Int64 else None
    return money.apportioned_through(sign, quotient, remainder, after, total, ratio)


def _own(through: pl.Series, starts: pl.Series) -> pl.Series:
    """What each row adds to the one before; the first ones of parts, at `starts`, to nothing."""
    return through - through.shift(fill_value=0).scatter(starts, 0)


def _division(measures: Sequence[str], exact: pl.DataType) -> list[pl.Expr]:
    """|C| = quotient * total + remainder for the units C of each part and measure, and C's sign."""
    total = pl.col("weight_total").cast(exact)
    divided = []
    for measure in measures:
        units = pl.col(f"_units_{measure}").cast(exact)
        made = {"sign": units.sign(), "quotient": units.abs() // total, "remainder": units.abs() % total}
        divided += [expression.alias(f"_{name}_{measure}") for name, expression in made.items()]
    return divided


def _is_narrow(rows: pl.DataFrame, measures: Sequence[str]) -> bool:
    """Whether all totals and amounts are below the limits of 64 bits."""
    units = pl.max_horizontal(pl.col(f"_units_{measure}").abs().max().fill_null(0) for measure in measures)
    narrow = (pl.col("weight_total").max() < money.NARROW_TOTAL_LIMIT) & (
        units < pl.lit(money.NARROW_UNITS_LIMIT, _EXACT)
    )
    return bool(rows.select(narrow.fill_null(value=True)).item())


def _with_resource_payers(parts: pl.DataFrame, shares: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Parts for the line's resource get `_payer`: the resource, or UNALLOCATED (method unallocated) without one."""
    to_resource = pl.col("basis") == "resource"
    if not parts.select(to_resource.any()).item():
        return parts, shares
    resource = pl.col("resource_id").cast(pl.String)
    payer = pl.when(resource == "").then(pl.lit(UNALLOCATED)).otherwise(resource)
    borne = parts.select(payer.filter(to_resource)).to_series()
    # A share stands for many resources; one of them holds its place until the join has happened.
    placed = shares.with_columns(pl.col("identity_id").cast(pl.String).replace({"": borne.min()}))
    identity, method = shares.schema["identity_id"], parts.schema["allocation_method"]
    if identity != pl.String:
        identity = pl.Enum(pl.concat([placed["identity_id"], borne]).unique().sort())
    named = parts.with_columns(
        _payer=pl.when(to_resource).then(payer).otherwise(pl.lit(borne.min())).cast(identity),
        allocation_method=pl.when(to_resource & (resource == ""))
        .then(pl.lit("unallocated"))
        .otherwise(pl.col("allocation_method").cast(pl.String)),
    )
    named = named if method == pl.String else frames.encoded(named, ["allocation_method"])
    return named, placed.with_columns(pl.col("identity_id").cast(identity))


def chunks(parts: Split, rows: int) -> Iterator[Split]:
    """A split in slices that fan out to about `rows` rows each, cut between lines; the same for the same lines."""
    lines = frames.starts(parts.rows, BILLING.key)
    chunk = (parts.rows["_fan"].cast(pl.Int64).cum_sum() // rows).gather(lines)
    offsets = [*lines.gather(frames.starts(chunk.to_frame("chunk"), ["chunk"])), parts.rows.height]
    for start, end in pairwise(offsets):
        yield parts._replace(rows=parts.rows.slice(start, end - start))


def check_line_sums(lines: pl.DataFrame, rows: Blocks, measures: Sequence[str] = ("amount",)) -> None:
    """LedgerError unless, for every line and measure, the line's rows sum to the line exactly.

    Both in the order of the key, so that a line's blocks are those between two changes of it: nothing is grouped.
    """
    firsts, key = frames.starts(rows.steady, BILLING.key), list(BILLING.key)
    units, starts = rows.varied.select(money.to_units(pl.col(measures))), rows.starts.gather(firsts)
    sums = pl.DataFrame(
        {name: rows.steady[name][firsts] for name in key}
        | {f"_{name}": _sums(units[name], starts) for name in measures}
    )
    expected = lines.select_seq(
        # Text may be encoded in one frame and not in the other.
        pl.col("tenant_id").cast(sums["tenant_id"].dtype, strict=False),
        *key[1:],
        *(money.to_units(pl.col(name)).fill_null(0).alias(f"_{name}") for name in measures),
    )
    if sums.height == expected.height and sums.equals(expected):
        return
    both = expected.join(sums, on=key, how="full", coalesce=True, suffix="_rows")
    differs = pl.any_horizontal(pl.col(f"_{measure}").ne_missing(pl.col(f"_{measure}_rows")) for measure in measures)
    wrong = both.filter(differs).sort(key)
    first = wrong.row(0, named=True) if wrong.height else expected.row(0, named=True)
    raise LedgerError(
        fault(
            f"table chargeback, line {first['line_id']} of {first['charge_date']}",
            f"rows do not sum to the line (the first of {wrong.height} such line(s))",
            "every line's rows to sum to its amount; nothing was written",
        )
    )


def _sums(units: pl.Series, starts: pl.Series) -> pl.Series:
    """The exact sums of units (Int128; null counts as 0) from each of these places up to the next one."""
    if starts.len() == units.len():
        return units.fill_null(0)
    ends = starts.slice(1).append(pl.Series([units.len()], dtype=starts.dtype))
    if money.largest(units) * money.largest(ends - starts) < money.NARROW_UNITS_LIMIT:
        # 64 bits hold every sum. As lists they are added up in a tenth of the time that running sums take.
        offsets = starts.head(1).append(ends).cast(pl.Int64)
        lists = pa.LargeListArray.from_arrays(offsets.to_arrow(), units.cast(pl.Int64, wrap_numerical=True).to_arrow())
        return pl.Series(lists).list.sum().cast(_EXACT)
    through = units.fill_null(0).cum_sum().gather(ends - 1)
    return through - through.shift(fill_value=0)
