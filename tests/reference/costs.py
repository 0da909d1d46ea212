"""What a day costs, in whole numbers and nothing else: as one would do it on paper, to compare the engine with."""

from __future__ import annotations

from typing import NamedTuple

UNITS = 10**12


class Line(NamedTuple):
    """A quantity and an amount, in units of 1e-12."""

    quantity: int
    amount: int


def digits(text: str) -> tuple[int, int]:
    """A decimal as a whole number, and by what power of ten it is too large: 0.10 is 10 and 2."""
    whole, _, decimals = text.partition(".")
    return int(whole + decimals), len(decimals)


def half_even(number: int, by: int) -> int:
    """`number / by` to the nearest whole number, of two that are as near the even one; both are not negative."""
    down, rest = number // by, number % by
    if rest * 2 > by or (rest * 2 == by and down % 2 == 1):
        return down + 1
    return down


def fixed(count: str, rate: str) -> Line:
    (number, decimals), (price, places) = digits(count), digits(rate)
    hours = number * 24
    quantity = half_even(hours * UNITS, 10**decimals)
    return Line(quantity, half_even(hours * price * UNITS, 10 ** (decimals + places)))


def stored(total_bytes: str, answers: int, rate: str) -> Line:
    (number, decimals), (price, places) = digits(total_bytes), digits(rate)
    below = 10**decimals * 2**30 * answers
    quantity = half_even(number * 24 * UNITS, below)
    return Line(quantity, half_even(number * 24 * price * UNITS, below * 10**places))


def moved(total_bytes: str, rate: str) -> Line:
    (number, decimals), (price, places) = digits(total_bytes), digits(rate)
    below = 10**decimals * 2**30
    return Line(half_even(number * UNITS, below), half_even(number * price * UNITS, below * 10**places))
