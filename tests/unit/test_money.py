"""Parsing, rounding, bounds and apportionment of amounts, by example."""

from __future__ import annotations

import random

import polars as pl
import pytest

from engine.errors import ContractError
from engine.money import (
    AMOUNT,
    NARROW_TOTAL_LIMIT,
    NARROW_UNITS_LIMIT,
    UNITS,
    UNITS_MAX,
    WEIGHT_TOTAL_LIMIT,
    apportion_units,
    apportioned,
    apportioned_through,
    check_sum_fits,
    format_units,
    largest,
    parse_amount,
    rounding_residue,
    to_amount,
    to_units,
)
from tests.unit.cases import amounts


def parsed(text: str | None) -> int | None:
    """A text in units."""
    units: int | None = pl.select(to_units(parse_amount(pl.lit(text, pl.String)))).item()
    return units


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("0", 0),
        ("-0", 0),
        ("0.10", 10**11),
        ("1", UNITS),
        ("-1.5", -15 * 10**11),
        ("4e-07", 400_000),
        ("4E-07", 400_000),
        ("1e2", 100 * UNITS),
        ("0.000000000001", 1),
        # A tie goes to the even unit, whatever the sign.
        ("0.0000000000005", 0),
        ("0.0000000000015", 2),
        ("0.0000000000025", 2),
        ("-0.0000000000015", -2),
        ("0.00000000000050000000000000000000000000000001", 1),
        ("1e-400", 0),
        ("99999999999999999999999999.999999999999", UNITS_MAX),
        ("-99999999999999999999999999.999999999999", -UNITS_MAX),
    ],
)
def test_a_number_is_its_units(text: str, units: int) -> None:
    assert parsed(text) == units


@pytest.mark.parametrize(
    "text",
    [None, "", " ", "abc", "1,5", "1.500,00", "1_000", " 1", "1 ", "\t1", "1\n", "nan", "NaN", "inf", "-inf", "1e309",
     "100000000000000000000000000", "99999999999999999999999999.9999999999995", "0x10", "1e", "e5", "--1", "1.2.3", "-",
     "$1", "1%", "\u0661", "\uff11", "None", "true"],
)  # fmt: skip
def test_what_is_no_number_that_fits_is_null(text: str | None) -> None:
    assert parsed(text) is None


def test_no_digit_is_lost_beyond_what_a_float_holds() -> None:
    assert parsed("12345678901234567890123456.123456789012") == 12345678901234567890123456123456789012


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("1.5", "0"),
        ("0.0000000000001234", "0.0000000000001234"),
        ("0.0000000000009", "-0.0000000000001"),
        ("-0.0000000000009", "0.0000000000001"),
        ("3.0000000000005", "0.0000000000005"),
        ("abc", None),
    ],
)
def test_the_residue_is_what_rounding_dropped(text: str, moved: str | None) -> None:
    found = pl.select(rounding_residue(pl.lit(text))).to_series()
    assert found.to_list() == pl.Series([moved], dtype=pl.String).cast(pl.Decimal(38, 24)).to_list()


def test_units_and_amounts_are_the_same_bits() -> None:
    given = amounts("0", "1.5", "-0.000000000001", "99999999999999999999999999.999999999999", None)
    there = given.to_frame("amount").select(units=to_units(pl.col("amount")))
    assert there["units"].to_list() == [0, 15 * 10**11, -1, UNITS_MAX, None]
    back = there.select(to_amount(pl.col("units"))).to_series()
    assert back.dtype == AMOUNT
    assert back.to_list() == given.to_list()


def test_units_beyond_38_digits_never_become_an_amount() -> None:
    with pytest.raises(pl.exceptions.PolarsError):
        pl.select(to_amount(pl.lit(UNITS_MAX + 1, pl.Int128)))


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0"),
        (1, "0.000000000001"),
        (-1, "-0.000000000001"),
        (UNITS, "1"),
        (-15 * 10**11, "-1.5"),
        (10 * UNITS, "10"),
        (UNITS_MAX, "99999999999999999999999999.999999999999"),
    ],
)
def test_units_are_written_plainly(units: int, text: str) -> None:
    assert format_units(units) == text


@pytest.mark.parametrize(
    ("units", "most"),
    [([], 0), ([None], 0), ([0], 0), ([3, -5, None], 5), ([-UNITS_MAX, 1], UNITS_MAX)],
)
def test_the_largest_is_an_absolute_value(units: list[int | None], most: int) -> None:
    assert largest(pl.Series(units, dtype=pl.Int128)) == most


@pytest.mark.parametrize(
    ("most", "count"), [(UNITS_MAX, 1), (10**37, 9), (0, 10**9), (UNITS_MAX, 0), (UNITS_MAX // 7, 7)]
)
def test_sums_within_the_exact_range_pass(most: int, count: int) -> None:
    check_sum_fits("here", most, count)


@pytest.mark.parametrize(("most", "count"), [(UNITS_MAX, 2), (10**37, 10), (1, 10**38)])
def test_sums_that_could_wrap_are_refused_before_they_are_made(most: int, count: int) -> None:
    with pytest.raises(ContractError, match=r"\Ahere: [^\n]*exact range; expected a total below 1e26\Z"):
        check_sum_fits("here", most, count)


def expression_shares(units: int, weights: list[int]) -> list[int]:
    """`apportioned` over one amount."""
    total, size = sum(weights), abs(units)
    frame = pl.DataFrame({"w": weights}, schema={"w": pl.Int128}).with_columns(b=pl.col("w").cum_sum() - pl.col("w"))
    numbers = [pl.lit(number, pl.Int128) for number in ((units > 0) - (units < 0), size // total, size % total)]
    shares = frame.select(apportioned(*numbers, pl.col("b"), pl.col("w"), pl.lit(total, pl.Int128))).to_series()
    assert shares.dtype == pl.Int128
    return shares.to_list()


def narrow_ends(amounts_: list[int], after: list[int], total: list[int]) -> list[int]:
    """`apportioned_through` of many amounts, in 64 bits."""
    numbers = {
        "sign": [(amount > 0) - (amount < 0) for amount in amounts_],
        "quotient": [abs(amount) // whole for amount, whole in zip(amounts_, total, strict=True)],
        "remainder": [abs(amount) % whole for amount, whole in zip(amounts_, total, strict=True)],
        "after": after,
        "total": total,
    }
    frame = pl.DataFrame(numbers, schema=dict.fromkeys(numbers, pl.Int64))
    ratio = pl.col("after") / pl.col("total")
    return frame.select(apportioned_through(*(pl.col(name) for name in numbers), ratio)).to_series().to_list()


def exact_ends(amounts_: list[int], after: list[int], total: list[int]) -> list[int]:
    return [
        (1 if amount >= 0 else -1) * (abs(amount) * end // whole)
        for amount, end, whole in zip(amounts_, after, total, strict=True)
    ]


@pytest.mark.parametrize(
    ("units", "weights", "shares"),
    [
        (100, [1, 1, 1], [33, 33, 34]),
        (-100, [1, 1, 1], [-33, -33, -34]),
        (1, [1, 1, 1], [0, 0, 1]),
        (2, [1, 1, 1], [0, 1, 1]),
        (0, [1, 2], [0, 0]),
        (7, [0, 1, 0], [0, 7, 0]),
        (10, [3, 0, 7], [3, 0, 7]),
        (UNITS_MAX, [1], [UNITS_MAX]),
        (UNITS_MAX, [1, 1], [UNITS_MAX // 2, UNITS_MAX // 2 + 1]),
        (5, [WEIGHT_TOTAL_LIMIT - 2, 1], [4, 1]),
    ],
)
def test_shares_telescope(units: int, weights: list[int], shares: list[int]) -> None:
    assert apportion_units(units, weights) == shares
    assert expression_shares(units, weights) == shares
    assert sum(shares) == units


def test_64_bits_hold_the_largest_narrow_amounts_and_totals() -> None:
    """At the edges the guess is a quotient of nearly 2**50, and what is left of it wraps."""
    totals = [NARROW_TOTAL_LIMIT - step for step in range(1, 40)] + [2**49 + 1, 2**31, 3, 2, 1]
    cases = [
        (sign * amount, max(after, 0), total)
        for total in totals
        for sign in (1, -1)
        for amount in (
            NARROW_UNITS_LIMIT - 1,
            total - 1,
            total,
            total + 1,
            2 * total - 1,
            NARROW_UNITS_LIMIT // 3,
            1,
            0,
        )
        for after in (0, 1, total // 3, total // 2, total - 2, total - 1, total)
        if amount < NARROW_UNITS_LIMIT
    ]
    amounts_, after, total = (list(numbers) for numbers in zip(*cases, strict=True))
    assert narrow_ends(amounts_, after, total) == exact_ends(amounts_, after, total)


def test_64_bits_are_right_where_the_quotient_is_whole_or_nearly() -> None:
    """A guess just below or above an integer is what a double gets wrong."""
    digits = random.Random(20240101)
    cases = []
    for _ in range(20_000):
        total = digits.randrange(2, 2 ** digits.randint(2, 50))
        after = digits.randrange(1, total + 1)
        # remainder * after is about a multiple of total: remainder is about quotient * total / after.
        quotient = digits.randrange(0, after + 1)
        remainder = min(max(quotient * total // after + digits.randint(-1, 1), 0), total - 1)
        cases.append((digits.choice((-1, 1)) * remainder, after, total))
    amounts_, after, total = (list(numbers) for numbers in zip(*cases, strict=True))
    assert narrow_ends(amounts_, after, total) == exact_ends(amounts_, after, total)


@pytest.mark.parametrize(
    "weights", [[WEIGHT_TOTAL_LIMIT - 1], [WEIGHT_TOTAL_LIMIT - 2, 1], [1, WEIGHT_TOTAL_LIMIT - 2]]
)
def test_128_bits_hold_the_largest_amount_and_weights(weights: list[int]) -> None:
    assert expression_shares(-UNITS_MAX, weights) == apportion_units(-UNITS_MAX, weights)
