"""What a run ends with: who bears what, that it sums to what was billed, and what nobody bears.

Every figure comes from `sql/reports`, the same files that an analyst runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl

from engine import warehouse
from engine.money import format_units, to_units
from engine.text import aligned, number, printable, width

CLASSES = ("direct", "usage", "shared", "operator", "unallocated")
"""What an amount is, by who bears it (UNALLOCATED, the operator) and else by its type of cost."""


BY = ("identity", "team")
"""By what costs are told apart."""
_TOLD_BY = {"identity": ("identity_id", "identity_name", "team"), "team": ("team",)}
"""The columns of a report that say whose a row is; the first is its key."""


class Cost(NamedTuple):
    """What one payer, an identity or a team, bears in one currency, by class, in units.

    `payer` is an identity's id, its name and its team; or a team alone.
    """

    currency: str
    payer: tuple[str, ...]
    by_class: dict[str, int]

    @property
    def called(self) -> str:
        """The payer for people: its id or team, and what it is called if that is something else."""
        key, *names = self.payer
        return f"{key} ({names[0]})" if names and names[0] != key else key

    @property
    def total(self) -> int:
        """All classes together."""
        return sum(self.by_class.values())


class Total(NamedTuple):
    """What was billed in one currency and what became of it, in units; `reasons`: why some of it is unallocated."""

    currency: str
    billed: int
    allocated: int
    reasons: dict[str, int]


_VIEWS = ("billing", "chargeback", "identities", "teams", "payers", "chargeback_named", "unallocated")
"""The views that these reports read, as every run ends with them; see `warehouse.CHECKED`."""


class Costs(NamedTuple):
    """The costs of one tenant over the days from `first` to `last`, both included; by identity, by team, or both."""

    tenant_id: str
    first: date
    last: date
    costs: dict[str, tuple[Cost, ...]]
    totals: tuple[Total, ...]


def costs(root: Path, tenant_id: str, first: date, last: date, by: Sequence[str] = BY) -> Costs:
    """What is stored for a tenant's days from `first` to `last`; StoreError if the lake cannot be read."""
    end = last + timedelta(days=1)

    def report(lake: duckdb.DuckDBPyConnection, name: str) -> pl.DataFrame:
        return _in_units(warehouse.report(lake, name, tenant_id=tenant_id, from_date=first, to_date=end))

    with warehouse.open_lake(root, views=_VIEWS) as lake:
        found = {one: _costs(report(lake, f"cost_by_{one}"), _TOLD_BY[one]) for one in by}
        billed = report(lake, "billed_and_allocated").select("currency", "billed", "allocated")
        by_reason = report(lake, "unallocated_by_reason")
    totals = tuple(
        Total(currency, whole, allocated, _reasons(by_reason, currency)) for currency, whole, allocated in billed.rows()
    )
    return Costs(tenant_id, first, last, found, totals)


def _costs(rows: pl.DataFrame, payer: Sequence[str]) -> tuple[Cost, ...]:
    classes = rows.select(CLASSES).rows()
    return tuple(
        Cost(currency, tuple(names), dict(zip(CLASSES, amounts, strict=True)))
        for (currency, *names), amounts in zip(rows.select("currency", *payer).rows(), classes, strict=True)
    )


def _in_units(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(to_units(pl.col(name)) for name, dtype in rows.schema.items() if dtype.is_decimal())


def _reasons(rows: pl.DataFrame, currency: str) -> dict[str, int]:
    """Reason -> units, over all rules."""
    of_currency = rows.filter(pl.col("currency") == currency)
    found: dict[str, int] = {}
    for reason, units in of_currency.select("reason", "amount").rows():
        found[reason] = found.get(reason, 0) + units
    return found


def lines(found: Costs, columns: int | None = None, by: str = "identity") -> Iterator[str]:
    """The costs for people; where `columns` of a terminal are too few for the table, it is told class by class."""
    for total in found.totals:
        rows = list(_rows(found.costs[by], total))
        table = aligned(rows, right=range(1, len(rows[0])))
        if columns is not None and max(width(line) for line in table) > columns:
            table = aligned(list(_narrow_rows(rows)), right=(2,))
        yield ""
        yield from table
        yield ""
        yield from _total_lines(total)


def _rows(found: Sequence[Cost], total: Total) -> Iterator[list[str]]:
    costs = [cost for cost in found if cost.currency == total.currency]
    sums = {name: sum(cost.by_class.get(name, 0) for cost in costs) for name in CLASSES}
    classes = [name for name in CLASSES if any(cost.by_class.get(name) for cost in costs)]
    yield [total.currency, *classes, "total"]
    for cost in costs:
        yield [cost.called, *(_amount(cost.by_class.get(name, 0)) for name in classes), _amount(cost.total) or "0"]
    yield ["total", *(_amount(sums[name]) for name in classes), _amount(sum(sums.values())) or "0"]


def _amount(units: int) -> str:
    return number(format_units(units)) if units else ""


def _narrow_rows(rows: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """One row for each amount: whose it is, its class, how much."""
    heading = rows[0]
    yield heading[0], "", "amount"
    for name, *amounts in rows[1:]:
        for what, amount in zip(heading[1:], amounts, strict=True):
            if amount:
                yield name, what, amount
                name = ""  # noqa: PLW2901  # said once


def _total_lines(total: Total) -> Iterator[str]:
    unallocated = sum(total.reasons.values())
    reasons = ", ".join(f"{printable(reason)} {_amount(units) or '0'}" for reason, units in total.reasons.items())
    rows = [
        ("", "", ""),
        ("billed", number(format_units(total.billed)), total.currency),
        ("allocated", number(format_units(total.allocated)), total.currency),
        ("difference", number(format_units(total.billed - total.allocated)), total.currency),
        ("unallocated", number(format_units(unallocated)), total.currency + _share(unallocated, total.billed)),
    ]
    table = aligned(rows, right=(1,))[1:]
    yield from table[:-1]
    yield f"{table[-1]}{f': {reasons}' if reasons else ''}"


def _share(part: int, whole: int) -> str:
    """How much of the whole a part is, in percent; '' where that says nothing."""
    if whole <= 0 or part < 0:
        return ""
    basis_points = part * 10_000 // whole
    percent = "under 0.01" if part and not basis_points else f"{basis_points // 100}.{basis_points % 100:02d}"
    return f" ({percent} % of billed)"


def as_json(found: Costs) -> dict[str, Any]:
    """The costs as JSON has them: amounts are exact decimal text."""
    return {
        "first_day": str(found.first),
        "last_day": str(found.last),
        **{f"cost_by_{by}": [_cost_json(cost, _TOLD_BY[by]) for cost in costs] for by, costs in found.costs.items()},
        "totals": [
            {
                "currency": total.currency,
                "billed": format_units(total.billed),
                "allocated": format_units(total.allocated),
                "difference": format_units(total.billed - total.allocated),
                "unallocated": format_units(sum(total.reasons.values())),
                "unallocated_by_reason": {reason: format_units(units) for reason, units in total.reasons.items()},
            }
            for total in found.totals
        ],
    }


def _cost_json(cost: Cost, payer: Sequence[str]) -> dict[str, str]:
    return {
        "currency": cost.currency,
        **dict(zip(payer, cost.payer, strict=True)),
        **{name: format_units(cost.by_class.get(name, 0)) for name in CLASSES},
        "total": format_units(cost.total),
    }
