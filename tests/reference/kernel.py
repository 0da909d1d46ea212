"""The kernel once more, in plain Python: lines, rules and weights as rows in, charges as rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from tests.reference.allocation import EMPTY_KEY, UNALLOCATED, ZERO_KEY_TOTAL, shares_of

MEASURES = ("amount", "effective_amount", "list_amount", "contracted_amount")

Row = dict[str, Any]


class Outcome(NamedTuple):
    """Charges, and how often each basis came to which outcome.

    Amounts in units of 1e-12; `exact_amount` is the share before any rounding.
    """

    charges: list[Row]
    rungs: Counter[tuple[str, str]]


def outcome_of(weights: Mapping[str, int] | None) -> str:
    """What a rung that must weigh comes to."""
    if not weights:
        return EMPTY_KEY
    return "held" if sum(weights.values()) else ZERO_KEY_TOTAL


def split(units: int | None, weights: list[int]) -> list[Any]:
    """The shares of one measure; all null where it is."""
    return [None] * len(weights) if units is None else shares_of(units, weights)


def allocate(lines: Iterable[Row], rules: Iterable[Row], weights: Iterable[Row]) -> Outcome:
    """Walk every line through its rule."""
    ladders: dict[str, dict[int, list[Row]]] = {}
    for rung in sorted(rules, key=lambda row: (row["part"], row["rung"])):
        ladders.setdefault(rung["rule_id"], {}).setdefault(rung["part"], []).append(rung)
    candidates: dict[tuple[str, int], dict[str, int]] = {}
    for row in weights:
        candidates.setdefault((row["weight_group"], row["rung"]), {})[row["identity_id"]] = row["weight"]
    found = Outcome([], Counter())
    for line in lines:
        rows = list(_line(line, ladders[line["rule_id"]], candidates, found.rungs))
        stored = [row for row in rows if any(row[measure] for measure in MEASURES)]
        found.charges.extend(stored or rows[:1])
    return found


def _line(
    line: Row,
    parts: Mapping[int, list[Row]],
    candidates: Mapping[tuple[str, int], dict[str, int]],
    rungs: Counter[tuple[str, str]],
) -> Iterable[Row]:
    part_shares = [parts[part][0]["share"] for part in sorted(parts)]
    part_units = {measure: split(line[measure], part_shares) for measure in MEASURES}
    for position, part in enumerate(sorted(parts)):
        units = {measure: part_units[measure][position] for measure in MEASURES}
        exact = Fraction(line["amount"] * part_shares[position], sum(part_shares))
        rung, payers, reason = _winner(parts[part], line, candidates, rungs)
        identities = sorted(payers, key=lambda name: name.encode())
        weights = [payers[identity] for identity in identities]
        shares = {measure: split(units[measure], weights) for measure in MEASURES}
        moved = rung["basis"] == "resource" and identities == [UNALLOCATED]
        for place, identity in enumerate(identities):
            if weights[place] == 0:
                continue
            yield {
                "line": line,
                "part": part,
                "identity_id": identity,
                **{measure: shares[measure][place] for measure in MEASURES},
                "exact_amount": exact * Fraction(weights[place], sum(weights)),
                "cost_type": rung["cost_type"],
                "allocation_method": "unallocated" if moved else rung["allocation_method"],
                "allocation_detail": rung["allocation_detail"] or reason,
                "rule_version": rung["version"],
                "rung": rung["rung"],
                "part_amount": units["amount"],
                "weight_before": sum(weights[:place]),
                "weight": weights[place],
                "weight_total": sum(weights),
            }


def _winner(
    ladder: list[Row],
    line: Row,
    candidates: Mapping[tuple[str, int], dict[str, int]],
    rungs: Counter[tuple[str, str]],
) -> tuple[Row, dict[str, int], str]:
    """The rung that holds, its payers with weights, and why the first rung did not hold."""
    reason = ""
    for rung in ladder[:-1]:
        weights = candidates.get((f"{rung['ladder']}@{line['weight_scope']}", rung["rung"]))
        outcome = outcome_of(weights)
        rungs[rung["basis"], outcome] += 1
        if outcome == "held" and weights:
            return rung, weights, reason
        reason = reason or outcome
    last = ladder[-1]
    payer = last["payer"] or line["resource_id"] or UNALLOCATED
    rungs[last["basis"], "took the rest" if line["resource_id"] else "took the rest without resource"] += 1
    return last, {payer: 1}, reason
