"""The arithmetic behind a charge: read from the lake, recomputed in plain integers, and compared with what is stored.

The numbers that made a row stand beside it, so nothing is weighed again: the explanation holds for what is stored, also
when bills, key tables or rules have changed since. What today's rules would decide is said besides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from engine import decide, lake, rules, state
from engine.config import Config, Tenant
from engine.errors import LedgerError, StoreError, UsageError, fault, shown
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, USAGE, empty
from engine.money import UNITS, apportion_units, format_units, to_units
from engine.text import aligned, counted, indented, number

LABELS = (
    "billing_period", "charge_date", "product_category", "product_type", "line_item_type", "operation",
    "sub_account_id", "region", "resource_id", "invoice_id", "unit", "currency",
)  # fmt: skip
"""The columns of a line that an explanation shows, besides quantity, tags and amount."""

NAMES_SHOWN = 20


class Address(NamedTuple):
    """What is to be explained: a line, or one of its rows."""

    line_id: int
    part: int | None = None
    identity_id: str | None = None


class Line(NamedTuple):
    """A billing line: `labels` as in BILLING, `units` of its amount, `quantity` in units if it has one."""

    line_id: int
    labels: dict[str, str]
    tags: dict[str, str]
    quantity: int | None
    units: int


class Passed(NamedTuple):
    """Why a rung did not hold, or why a key of a `weighted` rung did not count. `reason` as in EMPTY_KEYS."""

    rung: int
    basis: str
    metric: str
    reason: str


class Payer(NamedTuple):
    """A row: the identity, its weight after those before it, the units stored and those computed here."""

    identity_id: str
    weight: int
    before: int
    stored: int
    recomputed: int


class Part(NamedTuple):
    """A part of a line at the rung that took it.

    `share` is the part's share of the line in units of 1e-12, None if the rule has changed since or counts in seconds.
    `passed` are the rungs before, `empty` the keys of this rung that did not count. Payers whose amount is 0 have no
    row.
    """

    part: int
    units: int
    share: int | None
    rung: int
    basis: str
    metric: str
    cost_type: str
    allocation_method: str
    allocation_detail: str
    total: int
    passed: tuple[Passed, ...]
    empty: tuple[Passed, ...]
    payers: tuple[Payer, ...]


class Today(NamedTuple):
    """What the configuration of today decides for the line; `same` if that is what is stored."""

    rule_id: str
    rule_version: str
    owner: str
    window: str
    same: bool


class Explanation(NamedTuple):
    """A line, the rule that split it, and the arithmetic of every part."""

    tenant_id: str
    line: Line
    rule_id: str
    rule_version: str
    calculation_id: str
    today: Today
    parts: tuple[Part, ...]

    @property
    def allocated(self) -> int:
        """What the line's rows sum to, in units."""
        return sum(payer.stored for part in self.parts for payer in part.payers)


_ADDRESS = re.compile(r"([+-]?[0-9]{1,20})(?:/([0-9]{1,5})/(.+))?", re.DOTALL)


def address(text: str) -> Address:
    """LINE or LINE/PART/IDENTITY; UsageError if it is neither."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not -(2**63) <= int(found[1]) < 2**63:
        raise UsageError(
            fault("LINE_OR_ROW", f"value {shown(text)}", "a line_id, or line_id/part/identity such as 123/0/payments")
        )
    return Address(int(found[1]), int(found[2]) if found[2] else None, found[3])


def explain(config: Config, tenants: Sequence[Tenant], wanted: Address) -> Explanation:
    """The explanation of a line of one of the tenants.

    Raises UsageError if none of them has it or several do, or it is not calculated; StoreError if the lake cannot be
    read. What does not add up is no error here: see `faults`.
    """
    found = [(tenant, line) for tenant in tenants if (line := _line(config.root, tenant, wanted)) is not None]
    if not found:
        named = ", ".join(tenant.id for tenant in tenants)
        expected = "a line_id of `prorata sql 'SELECT line_id FROM billing'`"
        raise UsageError(fault(f"line {wanted.line_id}", f"not among the billing of tenant {named}", expected))
    if len(found) > 1:
        named = ", ".join(tenant.id for tenant, _ in found)
        raise UsageError(fault(f"line {wanted.line_id}", f"is one of several tenants: {named}", "--tenant with one"))
    tenant, line = found[0]
    rows = _rows(config.root, tenant, line, wanted)
    return _explanation(config.root, tenant, line, rows)


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StoreError(
            fault(str(place), f"cannot be read ({shown(str(error))})", "a lake that prorata wrote")
        ) from error


def _line(root: Path, tenant: Tenant, wanted: Address) -> pl.DataFrame | None:
    """The line as the one row of a BILLING frame."""
    with _readable(root / "lake" / BILLING.name):
        found = (
            lake.scan(root, BILLING, tenant.id).filter(pl.col("line_id") == wanted.line_id).collect(engine="streaming")
        )
    return found.head(1) if found.height else None


def _rows(root: Path, tenant: Tenant, line: pl.DataFrame, wanted: Address) -> pl.DataFrame:
    """The line's CHARGEBACK rows."""
    place = _place(tenant, line, CHARGEBACK)
    where = f"line {wanted.line_id} of {place.charge_date}"
    with state.open_state(root, write=False) as store:
        day = state.days(store, tenant.id).get((place.billing_period, str(place.charge_date)))
    if day is None or not day.chargeback_calculated:
        raise UsageError(fault(where, "its day is not calculated from its newest bill", "`prorata run` first"))
    with _readable(place.path(root)):
        stored = pl.scan_parquet(place.path(root), hive_partitioning=False, glob=False)
        rows = stored.filter(pl.col("line_id") == wanted.line_id).collect(engine="streaming")
    if not rows.height:
        raise LedgerError(fault(where, "a line without rows", "at least one row per line"))
    keys = rows.select("part", "identity_id").rows()
    if wanted.part is not None and (wanted.part, wanted.identity_id) not in keys:
        named = ", ".join(f"{part}/{identity}" for part, identity in keys[:NAMES_SHOWN])
        raise UsageError(fault(where, f"no row {shown(f'{wanted.part}/{wanted.identity_id}')}", f"one of {named}"))
    return rows.sort("part", "weight_before", "identity_id")


def _place(tenant: Tenant, line: pl.DataFrame, table: Any) -> lake.Place:
    charge_date: date = line["charge_date"][0]
    return lake.Place(table, tenant.id, line["billing_period"][0], charge_date)


def _explanation(root: Path, tenant: Tenant, line: pl.DataFrame, rows: pl.DataFrame) -> Explanation:
    first = rows.row(0, named=True)
    lost = _lost(root, tenant, line, first["rule_id"])
    ours = rules.resolve(tenant)
    known = _rule(ours, first["rule_id"]).filter(pl.col("version") == first["rule_version"])
    # Shares of a rule that is derived for a day are in seconds, which are no fractions of twelve decimals.
    of_one = known.unique("part")["share"].sum() == UNITS
    parts = [
        _part(of_part, lost.filter(pl.col("part") == part), known.filter(pl.col("part") == part), of_one=of_one)
        for (part,), of_part in rows.partition_by("part", as_dict=True, maintain_order=True).items()
    ]
    return Explanation(
        tenant.id,
        _described(line),
        first["rule_id"],
        first["rule_version"],
        first["calculation_id"],
        _today(tenant, ours, line, first),
        tuple(parts),
    )  # fmt: skip


def _rule(ours: rules.Rules, rule_id: str) -> pl.DataFrame:
    """The RULES of one rule as they are now, also of one that was derived for a day; none if there is no such rule."""
    if " " in rule_id and rules.base(rule_id) in ours.products:
        return rules.derived(ours, [rule_id]).frame
    return ours.frame.filter(pl.col("rule_id") == rule_id)


def _described(line: pl.DataFrame) -> Line:
    row = line.with_columns(to_units(pl.col("amount", "quantity"))).row(0, named=True)
    labels = {name: str(row[name]) for name in LABELS}
    return Line(row["line_id"], labels, json.loads(row["tags"]), row["quantity"], row["amount"])


def _lost(root: Path, tenant: Tenant, line: pl.DataFrame, rule_id: str) -> pl.DataFrame:
    """The EMPTY_KEYS of the line's day that concern its rule and its weight scope."""
    path = _place(tenant, line, EMPTY_KEYS).path(root)
    if not path.exists():
        return empty(EMPTY_KEYS)
    with _readable(path):
        stored = pl.read_parquet(path, hive_partitioning=False, glob=False)
    of_rule = stored.filter(pl.col("rule_id") == rule_id).sort(EMPTY_KEYS.key)
    labels = line.row(0, named=True)
    scopes = [scope for scope in of_rule["weight_scope"].unique() if _is_within(scope, labels)]
    return of_rule.filter(pl.col("weight_scope").is_in(scopes))


def _is_within(scope: str, labels: dict[str, Any]) -> bool:
    """Whether a line is in a weight scope: a window, and (where cost is weighed) the labels that lines must share."""
    _, _, text = scope.partition(" ")
    return all(labels.get(name) == value for name, value in json.loads(text or "{}").items())


def _part(rows: pl.DataFrame, lost: pl.DataFrame, known: pl.DataFrame, *, of_one: bool) -> Part:
    """A part from its rows, the rungs that did not hold, and the part's RULES (no rows if the rule has changed).

    `of_one`: whether the shares of the rule's parts total 1.
    """
    exact = rows.with_columns(to_units(pl.col("amount", "part_amount")))
    first = exact.row(0, named=True)
    passed = [Passed(*row) for row in lost.select("rung", "basis", "metric", "reason").rows()]
    # One row at most: a rule has each rung of a part once.
    rung = known.filter(pl.col("rung") == first["rung"]).to_dicts()
    basis = rung[0]["basis"] if rung else _basis(first["allocation_method"])
    return Part(
        part=first["part"],
        units=first["part_amount"],
        share=rung[0]["share"] if rung and of_one else None,
        rung=first["rung"],
        basis=basis,
        metric=rung[0]["metric"] if rung else "",
        cost_type=first["cost_type"],
        allocation_method=first["allocation_method"],
        allocation_detail=first["allocation_detail"],
        total=first["weight_total"],
        passed=tuple(one for one in passed if one.rung < first["rung"]),
        empty=tuple(one for one in passed if one.rung == first["rung"]),
        payers=tuple(
            _payer(*row)
            for row in exact.select(
                "identity_id", "weight", "weight_before", "weight_total", "part_amount", "amount"
            ).rows()
        ),
    )


def _basis(method: str) -> str:
    return next((basis for basis, (_, name) in rules.LABELS.items() if name == method), method)


def _payer(identity_id: str, weight: int, before: int, total: int, part_units: int, stored: int) -> Payer:
    _, recomputed, _ = apportion_units(part_units, [before, weight, total - before - weight])
    return Payer(identity_id, weight, before, stored, recomputed)


def _today(tenant: Tenant, ours: rules.Rules, line: pl.DataFrame, row: dict[str, Any]) -> Today:
    given = decide.Inputs(tenant, ours, empty(USAGE))
    decided = decide.matched(line.lazy(), given).collect().row(0, named=True)
    version = ours.frame.filter(pl.col("rule_id") == decided["rule_id"])["version"][0]
    # What a day derives from a rule depends on the day, not on the configuration.
    same = (decided["rule_id"], version) == (rules.base(row["rule_id"]), row["rule_version"])
    # The rule for owned lines is one for all owners, so it is also asked who the owner is.
    same_owner = decided["rule_id"] != rules.DIRECT or decided["owner"] == row["identity_id"]
    return Today(decided["rule_id"], version, decided["owner"], decided["window"], same and same_owner)


def faults(explanation: Explanation) -> list[str]:
    """What does not add up, one line each; [] if every row, every part and the line do."""
    where = f"line {explanation.line.line_id} of tenant {explanation.tenant_id}"
    found = [
        fault(
            f"{where}, row {part.part}/{shown(payer.identity_id)}",
            f"stored {format_units(payer.stored)}",
            f"{format_units(payer.recomputed)}, as recomputed",
        )
        for part in explanation.parts
        for payer in part.payers
        if payer.stored != payer.recomputed
    ]
    found += [
        fault(f"{where}, part {part}", f"part_amount {format_units(stored)}", f"{format_units(computed)}, its share")
        for part, stored, computed in _part_amounts(explanation)
        if stored != computed
    ]
    if explanation.allocated != explanation.line.units:
        seen = f"its rows sum to {format_units(explanation.allocated)}"
        found.append(fault(where, seen, f"{format_units(explanation.line.units)}, the line's amount"))
    return found


def _part_amounts(explanation: Explanation) -> list[tuple[int, int, int]]:
    """(part, stored units, units by its share) of every part, where the shares are known and all parts have rows."""
    shares = [part.share for part in explanation.parts if part.share is not None]
    if len(shares) < len(explanation.parts) or sum(shares) != UNITS:
        return []
    computed = apportion_units(explanation.line.units, shares)
    return [(part.part, part.units, units) for part, units in zip(explanation.parts, computed, strict=True)]


def formula(part: Part, payer: Payer) -> list[str]:
    """The arithmetic of a row with its numbers, in units of 1e-12."""
    quotient, remainder = divmod(abs(part.units), part.total)
    before, after, total = payer.before, payer.before + payer.weight, part.total
    whole, upper, lower = quotient * payer.weight, remainder * after // total, remainder * before // total
    sign = "-" if part.units < 0 else ""
    return [
        f"C = {part.units}, w = {payer.weight}, b = {before}, W = {total}, q = {quotient}, r = {remainder}",
        f"q * w             = {quotient} * {payer.weight} = {whole}",
        f"r * (b + w) div W = {remainder} * {after} div {total} = {upper}",
        f"r * b div W       = {remainder} * {before} div {total} = {lower}",
        f"{sign}({whole} + {upper} - {lower}) = {payer.recomputed}",
    ]


FORMULA = (
    "sign(C) * (q * w + r * (b + w) div W - r * b div W), all in units of 0.000000000001",
    "C the part, w the weight, b those before, W all; q = |C| div W, r = |C| mod W",
)
"""What the amount of a row is."""


def as_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON has it: amounts and quantities as exact decimal text, ids and weights as text too."""
    line = explanation.line
    return {
        "tenant_id": explanation.tenant_id,
        "line": {
            "line_id": str(line.line_id),
            **line.labels,
            "quantity": None if line.quantity is None else format_units(line.quantity),
            "tags": line.tags,
            "amount": format_units(line.units),
        },
        "rule_id": explanation.rule_id,
        "rule_version": explanation.rule_version,
        "calculation_id": explanation.calculation_id,
        "today": explanation.today._asdict(),
        "parts": [_part_json(part) for part in explanation.parts],
        "allocated": format_units(explanation.allocated),
        "equal": not faults(explanation),
        "faults": faults(explanation),
    }


def _part_json(part: Part) -> dict[str, Any]:
    return {
        "part": part.part,
        "share": None if part.share is None else format_units(part.share),
        "amount": format_units(part.units),
        "rung": part.rung,
        "basis": part.basis,
        "metric": part.metric,
        "cost_type": part.cost_type,
        "allocation_method": part.allocation_method,
        "allocation_detail": part.allocation_detail,
        "weight_total": str(part.total),
        "passed": [one._asdict() for one in part.passed],
        "empty_keys": [one._asdict() for one in part.empty],
        "payers": [
            {
                "identity_id": payer.identity_id,
                "weight_before": str(payer.before),
                "weight": str(payer.weight),
                "stored": format_units(payer.stored),
                "recomputed": format_units(payer.recomputed),
                "equal": payer.stored == payer.recomputed,
            }
            for payer in part.payers
        ],
    }


def lines(explanation: Explanation, wanted: Address) -> Iterator[str]:
    """The explanation for people: the line, its rule, and the part that is asked for, or all of them."""
    line, labels = explanation.line, explanation.line.labels
    tags = ", ".join(f"{key}={value!r}" for key, value in line.tags.items())
    quantity = "" if line.quantity is None else f"{_amount(line.quantity)} {labels['unit']}"
    yield f"line {line.line_id} of tenant {explanation.tenant_id}"
    yield from _pairs(
        ("bill", f"{labels['billing_period']}, day {labels['charge_date']}"),
        ("product", " / ".join(labels[name] for name in ("product_category", "product_type", "operation"))),
        ("type", labels["line_item_type"]),
        ("account", labels["sub_account_id"]),
        ("region", labels["region"]),
        ("resource", labels["resource_id"]),
        ("invoice", labels["invoice_id"]),
        ("quantity", quantity),
        ("tags", tags),
        ("amount", f"{_amount(line.units)} {labels['currency']}"),
        ("rule", f"{explanation.rule_id}, version {explanation.rule_version}"),
        ("today", _decided_today(explanation)),
    )
    for one in explanation.parts:
        if wanted.part in (None, one.part):
            yield ""
            yield from _part_lines(one, wanted.identity_id)
    yield ""
    rows = sum(len(one.payers) for one in explanation.parts)
    yield (
        f"line {_amount(line.units)}, sum of its {counted(rows, 'row')} {_amount(explanation.allocated)}:"
        f" {_verdict(line.units, explanation.allocated)}"
    )


def _pairs(*pairs: tuple[str, str]) -> Iterator[str]:
    return (f"  {name:<10}{text}" for name, text in pairs if text)


def _amount(units: int) -> str:
    return number(format_units(units))


def _verdict(one: int, other: int) -> str:
    return "equal" if one == other else "DIFFERENT"


def _decided_today(explanation: Explanation) -> str:
    today = explanation.today
    if today.same:
        window = f"; window {today.window}" if today.window else ""
        return f"decided the same by the configuration as it is now{window}"
    owner = f", owner {today.owner!r}" if today.owner else ""
    return f"decided otherwise by the configuration as it is now: {today.rule_id}, version {today.rule_version}{owner}"


def _part_lines(part: Part, identity_id: str | None) -> Iterator[str]:
    share = {None: "", UNITS: ", the whole line"}.get(part.share, f", share {_amount(part.share or 0)} of the line")
    yield f"part {part.part}: {_amount(part.units)}{share}"
    for one in part.passed:
        yield f"  rung {one.rung}  {one.basis} {one.metric}: did not hold ({_reason(one.reason)})"
    detail = f", {part.allocation_detail}" if part.allocation_detail else ""
    yield f"  rung {part.rung}  {part.basis} {part.metric}: took it; {part.cost_type}, {part.allocation_method}{detail}"
    for one in part.empty:
        yield f"          without key {one.metric} ({_reason(one.reason)}); the other keys took its weight"
    yield ""
    rows = [("identity", "weight", "before", "stored", "recomputed", "")]
    rows += [
        (
            payer.identity_id,
            str(payer.weight),
            str(payer.before),
            _amount(payer.stored),
            _amount(payer.recomputed),
            _verdict(payer.stored, payer.recomputed),
        )
        for payer in part.payers
    ]
    yield from indented(aligned(rows, right=(1, 2, 3, 4)))
    if sum(payer.weight for payer in part.payers) < part.total:
        yield f"  (all weights total {part.total}; who is charged 0 has no row)"
    shown_payer = next((payer for payer in part.payers if payer.identity_id == identity_id), part.payers[0])
    yield ""
    yield from indented(FORMULA)
    yield f"  {shown_payer.identity_id}:"
    yield from (f"    {text}" for text in formula(part, shown_payer))
    yield (
        f"    recomputed {_amount(shown_payer.recomputed)}, stored {_amount(shown_payer.stored)}:"
        f" {_verdict(shown_payer.recomputed, shown_payer.stored)}"
    )


def _reason(reason: str) -> str:
    return {"empty_key": "empty_key: nobody has a value", "zero_key_total": "zero_key_total: all values are 0"}[reason]
