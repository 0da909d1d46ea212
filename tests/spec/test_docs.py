"""The table of products in docs/confluent-cloud.md is what the rulebook says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import polars as pl

from engine import rules
from engine.money import UNITS
from tests.unit.test_rules_of_products import tenant

PAGE = Path(__file__).parents[2] / "docs" / "confluent-cloud.md"
HEADER = ["| products | share | who pays | cost type | detail |", "|---|---|---|---|---|"]
RUNG = ("share", "basis", "metric", "payer", "cost_type", "allocation_detail")


def who(basis: str, metric: str, payer: str) -> str:
    match basis:
        case "usage":
            return f"by {metric}"
        case "even":
            return f"evenly: {metric}"
        case "resource":
            return "the resource"
        case _:
            return payer


def table(found: pl.DataFrame) -> Iterator[str]:
    """A row for each rung, once for all products that have the same ones, in the order of the rulebook."""
    yield from HEADER
    by_product = {
        rule: tuple(rows.select(RUNG).rows()) for (rule,), rows in found.group_by("rule_id", maintain_order=True)
    }
    first = {rungs: number for number, rungs in reversed(list(enumerate(by_product.values())))}
    ordered = sorted(by_product, key=lambda rule: first[by_product[rule]])
    for rungs, alike in groupby(ordered, key=lambda rule: by_product[rule]):
        names = ", ".join(rule.removeprefix("product:") for rule in alike)
        before = None
        for share, basis, metric, payer, cost_type, detail in rungs:
            percent = "" if share in {UNITS, before} else f"{share * 100 // UNITS} %"
            yield f"| {names} | {percent} | {who(basis, metric, payer)} | {cost_type} | {detail} |"
            names, before = "", share


def test_the_page_has_every_product_with_its_rungs() -> None:
    expected = list(table(rules.resolve(tenant()).frame))
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = lines.index(HEADER[0])
    end = next(number for number in range(begin, len(lines)) if not lines[number].startswith("|"))
    assert lines[begin:end] == expected
