"""Benchmarks guard the kernel: at a small size its result is asserted, and its time compared with the first here.

`make bench` runs this; `make test` does not, since a time says nothing on a machine that runs tests beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.data import KernelCase, kernel_case
from engine import allocate, frames
from engine.frames import CHARGEBACK
from engine.money import to_units

LINES, IDENTITIES, GROUPS = 20_000, 20, 200


@pytest.fixture(scope="module")
def case() -> KernelCase:
    return kernel_case(lines=LINES, identities=IDENTITIES, groups=GROUPS, days=1)


def _encoded(case: KernelCase) -> pl.DataFrame:
    """As a run does it: labels as codes."""
    lines = frames.encoded(case.lines)
    decided = allocate.encoded(allocate.plan(lines, case.rules, case.weights), lines)
    return allocate.whole(allocate.fan_out(allocate.split(lines, decided)))


def _plain(case: KernelCase) -> pl.DataFrame:
    """As a library's user does it: labels as text."""
    return allocate.allocate(*case).collect()


@pytest.mark.parametrize("allocated", [_encoded, _plain])
def test_the_kernel(
    benchmark: BenchmarkFixture, case: KernelCase, allocated: Callable[[KernelCase], pl.DataFrame]
) -> None:
    rows = benchmark(allocated, case)
    assert rows.columns == CHARGEBACK.columns
    assert rows.height == LINES * IDENTITIES
    assert _units(rows).equals(_units(case.lines))
    assert set(rows["allocation_method"].unique()) == {"usage_ratio", "even_split"}


def _units(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("line_id").agg(to_units(pl.col("amount")).sum()).sort("line_id")
