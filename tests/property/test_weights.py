"""Integer weights of exact values, against the rule written down in plain Python."""

from __future__ import annotations

from fractions import Fraction

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from engine.weights import quantised
from tests.property.strategies import DETERMINED
from tests.reference.allocation import UNITS, WEIGHT_TOTAL_LIMIT, integer_weights

LARGEST_TOTAL = 10**38 - 1

value_lists = st.one_of(
    st.lists(st.integers(0, 10**6).map(lambda number: number * UNITS), min_size=1, max_size=6),
    st.lists(st.integers(0, 10**30), min_size=1, max_size=6),
    st.lists(st.integers(0, 10**13).map(lambda number: number * UNITS * 10**12), min_size=1, max_size=6),
    st.lists(st.one_of(st.just(0), st.integers(0, LARGEST_TOTAL // 6)), min_size=1, max_size=6),
    st.lists(st.integers(LARGEST_TOTAL - 10**20, LARGEST_TOTAL), min_size=1, max_size=1),
    st.sampled_from([2**bits + step for bits in range(60, 127) for step in (-1, 0, 1)]).map(lambda number: [number]),
    st.lists(st.just(0), min_size=1, max_size=3),
)
"""Values in units of 1e-12: whole ones, small and huge ones, totals at every power of two up to the largest."""


@DETERMINED
@given(st.lists(value_lists, min_size=1, max_size=25))
def test_values_become_the_weights_of_the_rule(groups: list[list[int]]) -> None:
    rows = [
        (f"g{group}", f"i{place}", value) for group, values in enumerate(groups) for place, value in enumerate(values)
    ]
    frame = pl.DataFrame(
        rows, schema={"weight_group": pl.String, "identity_id": pl.String, "units": pl.Int128}, orient="row"
    ).with_columns(rung=pl.lit(0, pl.Int16))
    found = {(row["weight_group"], row["identity_id"]): row["weight"] for row in quantised(frame).to_dicts()}
    for group, values in enumerate(groups):
        weights, _ = integer_weights({f"i{place}": value for place, value in enumerate(values)})
        assert {name: found[f"g{group}", name] for name in weights} == weights


@DETERMINED
@given(value_lists)
def test_weights_keep_proportions_and_stay_below_the_limit(values: list[int]) -> None:
    named = {f"i{place}": value for place, value in enumerate(values)}
    weights, shift = integer_weights(named)
    total, value_total = sum(weights.values()), sum(values)
    assert total < WEIGHT_TOTAL_LIMIT
    assert (total > 0) == (value_total > 0)
    if total:
        error = Fraction(len(values) + 1, total) if shift else Fraction(0)
        assert all(
            abs(Fraction(weights[name], total) - Fraction(value, value_total)) <= error for name, value in named.items()
        )
