"""Random but fixed inputs of the kernel: thousands of small cases, laid into one set of frames so that they run fast.

A case is a rule with one to four parts, ladders of its own and a few lines in one to three weight scopes. Names carry
the number of the case, so that a difference leads back to it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from typing import Any, NamedTuple

import polars as pl

from engine.frames import BILLING, MEASURES, RULES, WEIGHTS

WEIGHING_BASES = ("direct", "even", "cost", "fixed", "usage", "weighted")
LAST_BASES = ("operator", "resource", "unallocated")
LABELS = {
    "direct": ("direct", "direct"),
    "usage": ("usage", "usage_ratio"),
    "even": ("shared", "even_split"),
    "cost": ("shared", "cost_ratio"),
    "fixed": ("shared", "fixed"),
    "weighted": ("shared", "weighted"),
    "operator": ("operator", "operator"),
    "resource": ("shared", "to_resource"),
    "unallocated": ("shared", "unallocated"),
}

NAMES = ["team", "Team", "équipe", "\U0001d518"]
"""Byte order is not the order of the locale: capitals, accents, a sign beyond 16 bits."""

Row = dict[str, Any]


class KernelInput(NamedTuple):
    """Inputs of the kernel as rows (for references) and how often each category of input was drawn."""

    lines: list[Row]
    rules: list[Row]
    weights: list[Row]
    drawn: Counter[str]

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Lines, RULES and WEIGHTS as the kernel takes them."""
        return lines_frame(self.lines), frame(self.rules, RULES.schema), frame(self.weights, WEIGHTS.schema)


def frame(rows: list[Row], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Rows as a frame with exactly these columns."""
    return pl.DataFrame({column: [row[column] for row in rows] for column in schema}, schema=schema)


def lines_frame(rows: list[Row]) -> pl.DataFrame:
    """Lines whose amounts are units of 1e-12, as BILLING with `rule_id` and `weight_scope`."""
    schema = {**BILLING.schema, "rule_id": pl.String(), "weight_scope": pl.String()}
    amounts = [*MEASURES, "quantity"]
    units = frame(rows, {**schema, **dict.fromkeys(amounts, pl.Int128())})
    return units.with_columns(pl.col(amounts).reinterpret(dtype=pl.Decimal(38, 12)))


class Limits(NamedTuple):
    """The largest amount, in units, and the largest total weight of a rung that are drawn."""

    units: int
    weight_total: int


WIDE = Limits(10**38 - 1, 2**62 - 1)
"""All that the tables can hold."""
NARROW = Limits(2**63 - 1, 2**31 - 1)
"""What 64-bit products can hold: the kernel may calculate otherwise there."""


def units_drawn(random_: random.Random, drawn: Counter[str], limit: int) -> int:
    """An amount: zero, one unit, everyday, huge; either sign."""
    kind = random_.choice(["zero", "unit", "tiny", "everyday", "everyday", "digits", "huge", "largest"])
    size: int = {
        "zero": 0,
        "unit": 1,
        "tiny": random_.randrange(2, 1000),
        "everyday": random_.randrange(1, 10**6) * 10 ** random_.randrange(13),
        "digits": random_.randrange(min(10 ** random_.randrange(1, 38), limit)),
        "huge": random_.randrange(limit // 10, limit),
        "largest": limit,
    }[kind]
    sign = random_.choice([1, 1, -1])
    drawn[f"amount {kind}{' negative' if sign < 0 and size else ''}"] += 1
    return sign * size


def weights_drawn(random_: random.Random, drawn: Counter[str], limit: int) -> list[int] | None:
    """The weights of one rung of one group; None where it has no candidate."""
    kind = random_.choices(
        ["missing", "one zero", "all zero", "one", "few", "some zero", "largest", "near the largest", "many"],
        [20, 6, 6, 12, 30, 10, 6, 6, 2],
    )[0]
    drawn[f"weights {kind}"] += 1
    count = random_.randrange(2, 8)
    match kind:
        case "missing":
            return None
        case "one zero" | "all zero":
            return [0] * (1 if kind == "one zero" else count)
        case "one":
            return [random_.choice([1, 7, min(10**12, limit), limit])]
        case "few":
            return [random_.randrange(1, min(10 ** random_.randrange(1, 18), limit // 10)) for _ in range(count)]
        case "some zero":
            weights = [random_.choice([0, random_.randrange(1, min(10**13, limit // 10))]) for _ in range(count)]
            return [0, *weights, 1]
        case "largest":
            return [limit - count, *[1] * count]
        case "near the largest":
            return [random_.randrange(limit // (count + 1)) + 1 for _ in range(count)]
        case _:
            return [random_.randrange(10**6) for _ in range(random_.randrange(100, 400))]


def shares_drawn(random_: random.Random, drawn: Counter[str]) -> list[int]:
    """The integer shares of a rule's parts."""
    kind = random_.choices(["whole", "two", "thirds", "odd", "lopsided", "largest"], [60, 10, 10, 10, 5, 5])[0]
    drawn[f"parts {kind}"] += 1
    match kind:
        case "whole":
            return [random_.choice([10**12, 10**12, 1, 977])]
        case "two":
            return [7 * 10**11, 3 * 10**11]
        case "thirds":
            return [333333333333, 333333333333, 333333333334]
        case "odd":
            return [random_.randrange(1, 10**12) for _ in range(random_.randrange(2, 5))]
        case "lopsided":
            return [1, 10**12 - 1]
        case _:
            return [WIDE.weight_total - 2, 1, 1]


class _Cases:
    """Draws cases one after the other into the same lists."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self.random, self.limits = random.Random(seed), limits
        self.found = KernelInput([], [], [], Counter())
        self.line_ids: set[int] = set()

    def add(self, number: int) -> None:
        scopes = [f"2025-09-{day:02d} ü" for day in range(1, self.random.randrange(2, 5))]
        shares = shares_drawn(self.random, self.found.drawn)
        shared_ladder = len(shares) > 1 and self.random.random() < 0.2
        rungs = self.rungs()
        for part, share in enumerate(shares):
            if part and not shared_ladder:
                rungs = self.rungs()
            ladder = f"ladder {number}" if shared_ladder else f"ladder {number}.{part}"
            self.add_rules(number, part, share, ladder, rungs)
            if part == 0 or not shared_ladder:
                for scope in scopes:
                    self.add_weights(f"{ladder}@{scope}", rungs)
        for _ in range(self.random.randrange(1, 4)):
            self.add_line(number, self.random.choice(scopes))

    def rungs(self) -> list[str]:
        count = self.random.choice([0, 1, 1, 1, 2, 2, 3])
        return [*self.random.choices(WEIGHING_BASES, k=count), self.random.choice(LAST_BASES)]

    def add_rules(self, number: int, part: int, share: int, ladder: str, rungs: list[str]) -> None:
        for rung, basis in enumerate(rungs):
            payer = {"operator": "platform", "unallocated": "UNALLOCATED"}.get(basis, "")
            tells_reason = basis == "unallocated" and rung > 0
            cost_type, method = LABELS[basis]
            self.found.rules.append(
                {
                    "rule_id": f"rule {number}",
                    "part": part,
                    "share": share,
                    "ladder": ladder,
                    "rung": rung,
                    "basis": basis,
                    "metric": "",
                    "payer": payer,
                    "cost_type": cost_type,
                    "allocation_method": method,
                    "allocation_detail": "" if tells_reason else f"detail {number}",
                    "version": f"version {number}.{rung}",
                }
            )

    def add_weights(self, group: str, rungs: list[str]) -> None:
        for rung, _ in enumerate(rungs[:-1]):
            weights = weights_drawn(self.random, self.found.drawn, self.limits.weight_total) or []
            names = self.random.sample(range(10**4), len(weights))
            for name, weight in zip(names, weights, strict=True):
                identity = f"{self.random.choice(NAMES)} {name}"
                self.found.weights.append(
                    {"weight_group": group, "rung": rung, "identity_id": identity, "weight": weight}
                )

    def add_line(self, number: int, scope: str) -> None:
        line_id = self.random.randrange(-(2**63), 2**63)
        assert line_id not in self.line_ids
        self.line_ids.add(line_id)
        texts = {column: f"{column} {number % 7}" for column in CARRIED}
        resource = self.random.choice(["", f"i-{number}"])
        self.found.drawn["line with resource" if resource else "line without resource"] += 1
        self.found.lines.append(
            {
                **texts,
                "tenant_id": self.random.choice(["acme", "zeta"]),
                "charge_date": dt.date(2025, 9, self.random.randrange(1, 31)),
                "line_id": line_id,
                "resource_id": resource,
                "quantity": self.random.choice([None, 10**12]),
                "unit": "Hrs",
                "currency": self.random.choice(["USD", "EUR"]),
                "tags": "{}",
                "amount": units_drawn(self.random, self.found.drawn, self.limits.units),
                **{measure: self.optional_units() for measure in MEASURES[1:]},
                "rule_id": f"rule {number}",
                "weight_scope": scope,
            }
        )

    def optional_units(self) -> int | None:
        if self.random.random() < 0.3:
            self.found.drawn["measure null"] += 1
            return None
        return units_drawn(self.random, self.found.drawn, self.limits.units)


CARRIED = (
    "ecosystem",
    "billing_period",
    "env_id",
    "product_category",
    "product_type",
    "line_item_type",
    "region",
    "operation",
    "sub_account_id",
    "invoice_id",
)
"""Text columns the kernel only carries."""


def kernel_cases(seed: int, count: int, limits: Limits = WIDE) -> KernelInput:
    """`count` cases; the same ones for the same seed, always. Rows come in no particular order."""
    cases = _Cases(seed, limits)
    for number in range(count):
        cases.add(number)
    for rows in cases.found[:3]:
        cases.random.shuffle(rows)
    return cases.found
