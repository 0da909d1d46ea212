"""The plain-Python baseline: one line after the other, one payer after the other, exact with Python's own integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from engine.money import UNITS

LAST = ("resource", "operator", "unallocated")
Row = Mapping[str, Any]


class Share(NamedTuple):
    """What a payer bears of a line, of one rung."""

    identity: str
    before: int
    weight: int
    total: int
    rung: Row


class Ladders:
    """Rules and weights by what a line names; who wins a scope is found once."""

    def __init__(self, rules: Iterable[Row], weights: Iterable[Row]) -> None:
        self.rungs: dict[str, list[Row]] = {}
        for rung in rules:
            self.rungs.setdefault(rung["rule_id"], []).append(rung)
        self.weights: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for row in weights:
            key = row["weight_group"], row["rung"]
            self.weights.setdefault(key, []).append((row["identity_id"], row["weight"]))
        self.found: dict[tuple[str, str], list[Share]] = {}

    def shares(self, rule: str, scope: str) -> list[Share]:
        """The payers of a line, by identity."""
        if (rule, scope) not in self.found:
            self.found[rule, scope] = self._shares(rule, scope)
        return self.found[rule, scope]

    def _shares(self, rule: str, scope: str) -> list[Share]:
        for rung in self.rungs[rule]:
            if rung["basis"] in LAST:
                return [Share(rung["payer"], 0, 1, 1, rung)]
            weights = sorted(self.weights.get((f"{rung['ladder']}@{scope}", rung["rung"]), []))
            total, before, shares = sum(weight for _, weight in weights), 0, []
            for identity, weight in weights:
                if weight:
                    shares.append(Share(identity, before, weight, total, rung))
                before += weight
            if total:
                return shares
        raise ValueError(f"the ladder of {rule} takes nothing")


def charges(lines: Iterable[Row], ladders: Ladders) -> Iterator[tuple[Any, ...]]:
    """Rows of a chargeback: the line's labels, payer, units, labels of the rung, and the numbers that made it."""
    for line in lines:
        units = int(line["amount"] * UNITS)
        size, sign = abs(units), -1 if units < 0 else 1
        for share in ladders.shares(line["rule_id"], line["weight_scope"]):
            quotient, remainder = divmod(size, share.total)
            after = remainder * (share.before + share.weight) // share.total
            part = sign * (quotient * share.weight + after - remainder * share.before // share.total)
            if part or (not units and not share.before):
                rung = share.rung
                yield (
                    line["tenant_id"], line["charge_date"], line["line_id"], rung["part"], share.identity,
                    line["ecosystem"], line["billing_period"], line["env_id"], line["resource_id"],
                    line["product_category"], line["product_type"], line["line_item_type"], line["region"],
                    line["operation"], line["sub_account_id"], line["invoice_id"], line["currency"], part,
                    rung["cost_type"], rung["allocation_method"], rung["allocation_detail"], rung["rule_id"],
                    rung["version"], rung["rung"], units, share.before, share.weight, share.total,
                )  # fmt: skip
