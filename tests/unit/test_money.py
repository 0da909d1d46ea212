"""Parsing, rounding, bounds and apportionment of amounts, by example."""

from __future__ import annotations

from fractions import Fraction

import polars as pl
import pytest

from engine.errors import ContractError
from engine.money import (
    AMOUNT,
    UNITS,
    UNITS_MAX,
    WEIGHT_TOTAL_LIMIT,
    apportion_units,
    apportioned,
    check_sum_fits,
    exact_share,
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


def expression_shares(units: int, weights: list[int], dtype: pl.DataType) -> list[int]:
    """`apportioned` over one amount, computed in a dtype."""
    total, size = sum(weights), abs(units)
    frame = pl.DataFrame({"w": weights}, schema={"w": dtype}).with_columns(b=pl.col("w").cum_sum() - pl.col("w"))
    numbers = [pl.lit(number, dtype) for number in ((units > 0) - (units < 0), size // total, size % total)]
    shares = frame.select(apportioned(*numbers, pl.col("b"), pl.col("w"), pl.lit(total, dtype))).to_series()
    assert shares.dtype == dtype
    return shares.to_list()


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
    assert expression_shares(units, weights, pl.Int128()) == shares
    assert sum(shares) == units


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weights", [[2**31 - 1], [2**31 - 2, 1], [1, 2**31 - 2], [2**30, 2**30 - 1], [1] * 1000])
def test_64_bits_hold_the_largest_narrow_amount_and_weights(weights: list[int], sign: int) -> None:
    units = sign * (2**63 - 1)
    assert expression_shares(units, weights, pl.Int64()) == apportion_units(units, weights)


@pytest.mark.parametrize(
    "weights", [[WEIGHT_TOTAL_LIMIT - 1], [WEIGHT_TOTAL_LIMIT - 2, 1], [1, WEIGHT_TOTAL_LIMIT - 2]]
)
def test_128_bits_hold_the_largest_amount_and_weights(weights: list[int]) -> None:
    assert expression_shares(-UNITS_MAX, weights, pl.Int128()) == apportion_units(-UNITS_MAX, weights)


def test_the_exact_share_is_a_fraction() -> None:
    assert exact_share(100, 1, 3) == Fraction(100, 3)
