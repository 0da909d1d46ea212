"""The unit of money, exact parsing, and apportionment.

Amounts are DECIMAL(38,12) at every edge and Int128 counts of 1e-12 currency units inside. No amount is ever a float
(one guesses a quotient, which integers correct). Polars integers wrap silently, so every sum is bounded before it is
made (`check_sum_fits`).
"""

from __future__ import annotations

from typing import cast

import polars as pl

from engine.errors import ContractError, fault, shown

SCALE = 12
UNITS = 10**SCALE
"""How many units one currency unit has."""
AMOUNT = pl.Decimal(38, SCALE)
"""The type of every amount that leaves a stage."""
UNITS_MAX = 10**38 - 1
"""The largest count of units an amount can hold."""
WEIGHT_TOTAL_LIMIT = 2**62
"""Weights of one group total less than this, so that `r * hi` stays below 2**124."""
NARROW_UNITS_LIMIT, NARROW_TOTAL_LIMIT = 2**63, 2**50
"""Amounts and weight totals below these are apportioned in Int64; see `_narrow_quotient`."""
RESIDUE = pl.Decimal(38, 24)
"""What rounding moved is recorded to 24 decimals."""


def to_units(amount: pl.Expr) -> pl.Expr:
    """DECIMAL(38,12) -> Int128 count of 1e-12 units; free."""
    return amount.reinterpret(dtype=pl.Int128)


def to_amount(units: pl.Expr) -> pl.Expr:
    """Int128 count of 1e-12 units -> DECIMAL(38,12); raises beyond 38 digits."""
    return units.reinterpret(dtype=AMOUNT)


def parse_amount(text: pl.Expr) -> pl.Expr:
    """Text -> DECIMAL(38,12), rounded half-even; null where the text is not a finite decimal that fits."""
    return text.cast(AMOUNT, strict=False)


def rounding_residue(text: pl.Expr) -> pl.Expr:
    """Text -> DECIMAL(38,24): what `parse_amount` dropped (text minus amount); null where it cannot be held."""
    return text.cast(RESIDUE, strict=False) - parse_amount(text).cast(RESIDUE, strict=False)


def check_sum_fits(where: str, largest: int, count: int) -> None:
    """Raise ContractError if `count` amounts of at most `largest` units might not sum exactly."""
    if largest * count > UNITS_MAX:
        raise ContractError(
            fault(
                where,
                f"{count} amounts of up to {shown(format_units(largest))} could pass the exact range",
                f"a total below 1e{38 - SCALE}",
            )
        )


def largest(units: pl.Series) -> int:
    """The largest absolute value of Int128 units, or of other integers; 0 of none."""
    most, least = cast("int | None", units.max()), cast("int | None", units.min())
    return max(most or 0, -(least or 0))


def format_units(units: int) -> str:
    """Units as a plain decimal text without trailing zeros: 1500000000000 -> '1.5'."""
    sign = "-" if units < 0 else ""
    whole, rest = divmod(abs(units), UNITS)
    decimals = f"{rest:0{SCALE}d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def apportioned(
    sign: pl.Expr, quotient: pl.Expr, remainder: pl.Expr, before: pl.Expr, weight: pl.Expr, total: pl.Expr
) -> pl.Expr:
    """One payer's units of an amount C, all operands Int128.

    With |C| = quotient * total + remainder and payers in a fixed order, a payer whose weight is `weight` and whose
    predecessors weigh `before` gets

        sign(C) * (quotient * weight + (remainder * (before + weight)) // total - (remainder * before) // total)

    which telescopes: over all payers it sums to C whatever the weights, lies within one unit of the exact share,
    and changes only its sign with C. Division is of non-negative numbers, so every engine rounds it alike.
    """
    predecessors = apportioned_through(sign, quotient, remainder, before, total)
    return apportioned_through(sign, quotient, remainder, before + weight, total) - predecessors


def apportioned_through(
    sign: pl.Expr, quotient: pl.Expr, remainder: pl.Expr, after: pl.Expr, total: pl.Expr, ratio: pl.Expr | None = None
) -> pl.Expr:
    """The units of an amount that a payer and its predecessors, who weigh `after` together, are `apportioned`.

    Where rows follow each other in the order of the payers, a payer's own is this less the row before's: one division
    a row, not two. With `ratio`, after / total as a double, operands are Int64, of amounts and totals below
    NARROW_UNITS_LIMIT and NARROW_TOTAL_LIMIT.
    """
    floor = remainder * after // total if ratio is None else _narrow_quotient(remainder, after, total, ratio)
    return sign * (quotient * after + floor)


def _narrow_quotient(remainder: pl.Expr, after: pl.Expr, total: pl.Expr, ratio: pl.Expr) -> pl.Expr:
    """(remainder * after) // total in Int64, for 0 <= remainder < total < 2**50 and 0 <= after <= total.

    The product has up to 100 bits and division of 128 takes ten times as long, so a double guesses and integers
    correct. The three numbers are doubles exactly; quotient and product are each rounded by a factor within 2**-53 of
    1, so that the product, below 2**50, is off by less than 2**50 * 2**-51 = 1/2. Less 1/2 it is below the true
    quotient, and by less than 1: what it is cut to is the true floor or one less (0 for a negative one, as is the true
    floor). So remainder * after - guess * total lies in [0, 2 * total). Int64 holds that, and so gives it exactly
    although both products wrap, which is modulo 2**64.
    """
    guess = (remainder.cast(pl.Float64) * ratio - 0.5).cast(pl.Int64, wrap_numerical=True)
    return guess + (remainder * after - guess * total >= total).cast(pl.Int64)


def apportion_units(units: int, weights: list[int]) -> list[int]:
    """`apportioned` for one amount in plain Python, for explanations and for a handful of numbers."""
    total = sum(weights)
    quotient, remainder = divmod(abs(units), total)
    sign, before, shares = (-1 if units < 0 else 1), 0, []
    for weight in weights:
        part = quotient * weight + remainder * (before + weight) // total - remainder * before // total
        shares.append(sign * part)
        before += weight
    return shares
