"""Amounts against Python's own decimals and fractions, for every text and number."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from engine.money import (
    NARROW_TOTAL_LIMIT,
    UNITS,
    UNITS_MAX,
    apportion_units,
    apportioned,
    apportioned_through,
    format_units,
    parse_amount,
    rounding_residue,
    to_units,
)
from tests.property.strategies import DETERMINED, integer_weights, units
from tests.reference.allocation import half_even, parse_units, shares_of

_DIGITS = st.text("0123456789", min_size=1, max_size=30)
plain_texts = st.builds(
    lambda sign, whole, decimals: f"{sign}{whole}{decimals}",
    st.sampled_from(["", "-"]),
    _DIGITS,
    st.one_of(st.just(""), _DIGITS.map(lambda digits: f".{digits}")),
)
exponent_texts = st.builds(
    lambda mantissa, letter, exponent: f"{mantissa}{letter}{exponent}",
    plain_texts,
    st.sampled_from("eE"),
    st.one_of(st.integers(-45, 30).map(str), st.integers(0, 30).map(lambda number: f"+{number:02d}")),
)
tie_texts = st.builds(
    lambda sign, whole, decimals: f"{sign}{whole}.{decimals:012d}5",
    st.sampled_from(["", "-"]),
    st.integers(0, 10**26 - 1),
    st.one_of(st.integers(0, 10**12 - 1), st.just(10**12 - 1)),
)
number_texts = st.one_of(plain_texts, exponent_texts, tie_texts)


def parsed(texts: list[str]) -> list[int | None]:
    return pl.select(to_units(parse_amount(pl.lit(pl.Series(texts, dtype=pl.String))))).to_series().to_list()


def python_units(text: str) -> int | None:
    """The text in units, rounded half-even, or null beyond 38 digits."""
    with localcontext(prec=200):
        rounded = int((Decimal(text) * UNITS).to_integral_value(ROUND_HALF_EVEN))
    return rounded if abs(rounded) <= UNITS_MAX else None


@DETERMINED
@given(st.lists(number_texts, min_size=20, max_size=60))
def test_numbers_are_parsed_like_decimals_rounded_half_even(texts: list[str]) -> None:
    assert parsed(texts) == [python_units(text) for text in texts]


@DETERMINED
@given(st.lists(number_texts, min_size=5, max_size=20))
def test_the_reference_parses_alike(texts: list[str]) -> None:
    assert [parse_units(text) for text in texts if python_units(text) is not None] == [
        number for number in map(python_units, texts) if number is not None
    ]


@DETERMINED
@given(st.lists(st.text("0123456789eE+-., _xnaif\u0661\uff11", max_size=12), min_size=20, max_size=60))
def test_what_is_no_number_is_null_and_never_a_wrong_amount(texts: list[str]) -> None:
    for text, found in zip(texts, parsed(texts), strict=True):
        if found is not None:
            assert found == python_units(text), text
            assert not set(text) - set("0123456789eE+-."), text


@DETERMINED
@given(
    st.lists(st.builds("{}.{}".format, st.integers(-(10**9), 10**9), st.text("0123456789", min_size=1, max_size=24)))
)
def test_the_residue_is_what_rounding_moved(texts: list[str]) -> None:
    moved = pl.select(rounding_residue(pl.lit(pl.Series(texts, dtype=pl.String)))).to_series()
    with localcontext(prec=200):
        expected = [Decimal(text) - Decimal(python_units(text) or 0) / UNITS for text in texts]
    assert moved.to_list() == expected


@DETERMINED
@given(units)
def test_units_written_as_text_are_the_same_amount(number: int) -> None:
    assert python_units(format_units(number)) == number
    assert parsed([format_units(number)]) == [number]


@DETERMINED
@given(st.fractions())
def test_half_even_is_the_nearest_integer_and_an_even_one_of_two(value: Fraction) -> None:
    assert half_even(value) == round(value)


@DETERMINED
@given(units, integer_weights())
def test_shares_sum_to_the_amount_and_lie_within_one_unit(amount: int, weights: list[int]) -> None:
    shares = apportion_units(amount, weights)
    total = sum(weights)
    assert sum(shares) == amount
    assert all(abs(share - Fraction(amount * weight, total)) < 1 for share, weight in zip(shares, weights, strict=True))
    assert all(share == 0 for share, weight in zip(shares, weights, strict=True) if weight == 0)
    assert apportion_units(-amount, weights) == [-share for share in shares]


@DETERMINED
@given(units, integer_weights(), st.integers(1, 10**6))
def test_shares_do_not_depend_on_the_scale_of_weights(amount: int, weights: list[int], factor: int) -> None:
    assert apportion_units(amount, [weight * factor for weight in weights]) == apportion_units(amount, weights)


@DETERMINED
@given(st.integers(-(10**18), 10**18), integer_weights(2**60))
def test_a_multiple_of_the_total_is_split_without_rounding(times: int, weights: list[int]) -> None:
    assert apportion_units(times * sum(weights), weights) == [times * weight for weight in weights]


@DETERMINED
@given(units, integer_weights(), st.integers(0, 7))
def test_payers_together_bear_what_one_of_their_joint_weight_would(amount: int, weights: list[int], first: int) -> None:
    """Neighbours merged into one payer: the telescope has no seam."""
    cut = min(first, len(weights) - 1)
    merged = [*weights[:cut], sum(weights[cut:])]
    assert sum(apportion_units(amount, weights)[cut:]) == apportion_units(amount, merged)[cut]


@DETERMINED
@given(units, integer_weights())
def test_all_ways_to_apportion_agree(amount: int, weights: list[int]) -> None:
    """In Polars, in plain integers, and by the definition with fractions."""
    total = sum(weights)
    frame = pl.DataFrame({"w": weights}, schema={"w": pl.Int128}).with_columns(
        b=pl.col("w").cum_sum() - pl.col("w"), c=pl.lit(amount, pl.Int128), t=pl.lit(total, pl.Int128)
    )
    size = pl.col("c").abs()
    shares = frame.select(
        apportioned(pl.col("c").sign(), size // pl.col("t"), size % pl.col("t"), pl.col("b"), pl.col("w"), pl.col("t"))
    ).to_series()
    assert shares.to_list() == apportion_units(amount, weights) == shares_of(amount, weights)


@DETERMINED
@given(
    st.integers(1, NARROW_TOTAL_LIMIT - 1).flatmap(
        lambda total: st.tuples(st.just(total), st.integers(0, total), st.integers(-(2**63) + 1, 2**63 - 1))
    )
)
def test_64_bits_give_the_exact_quotient(case: tuple[int, int, int]) -> None:
    """A double guesses it; what the guess is off by is put right."""
    total, after, amount = case
    quotient, remainder = divmod(abs(amount), total)
    numbers = [(amount > 0) - (amount < 0), quotient, remainder, after, total]
    operands = [pl.lit(number, pl.Int64) for number in numbers]
    found = pl.select(apportioned_through(*operands, ratio=operands[3] / operands[4])).to_series()
    assert found.dtype == pl.Int64
    sign = -1 if amount < 0 else 1
    assert found.item() == sign * (abs(amount) * after // total)
