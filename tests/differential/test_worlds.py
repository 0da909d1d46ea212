"""From files to charges: the product and the plain-Python reference agree bit for bit on random worlds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import decide, frames, pipeline
from engine.sources import aws_cur
from tests.differential.files_of_worlds import write_world
from tests.differential.worlds import World, world
from tests.reference import allocation as reference
from tests.reference.allocation import EMPTY_KEY, ZERO_KEY_TOTAL, Line

SEEDS = range(60)

LABELS = {
    "charge_date": "charge_date",
    "billing_period": "billing_period",
    "sub_account_id": "account",
    "product_category": "service",
    "product_type": "usage_type",
    "operation": "operation",
    "region": "region",
    "line_item_type": "line_item_type",
    "resource_id": "resource",
    "currency": "currency",
    "invoice_id": "invoice",
}
"""Columns of the product -> fields of the reference's lines."""
LINE = [*LABELS, "tags"]
UNITS = pl.Int128()
EMPTY_KEY_COLUMNS = [
    "charge_date",
    "billing_period",
    "rule_id",
    "part",
    "rung",
    "weight_scope",
    "basis",
    "metric",
    "reason",
]


class Compared(NamedTuple):
    """A world, what the reference makes of it, and what the product does."""

    world: World
    expected: reference.Allocation
    lines: pl.DataFrame
    chargeback: pl.DataFrame
    empty_keys: pl.DataFrame


def calculated(world_: World, folder: Path, *, snake: bool = False) -> Compared:
    """Write the world as files and let the product read, match, weigh and split."""
    folder.mkdir()
    tenant = pipeline.configured(write_world(world_, folder, snake=snake)).tenants[0]
    given = pipeline.inputs(tenant)
    lines, chargeback, empty_keys = [], [], []
    for assembly in aws_cur.discover(tenant.source.path, tenant.source.report):
        billing = aws_cur.load(assembly, tenant.id).billing
        found = decide.allocate_period(billing, given)
        lines.append(decide.matched(billing.lazy(), given).collect())
        by_codes = decide.matched_encoded(frames.encoded(billing), given)
        assert_frame_equal(frames.decoded(by_codes.lazy()).collect(), lines[-1])
        chargeback.append(found.chargeback)
        empty_keys.append(found.empty_keys)
    expected = reference.allocate(world_.raw_lines, world_.tenant, world_.key_rows)
    return Compared(world_, expected, pl.concat(lines), pl.concat(chargeback), pl.concat(empty_keys))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[Compared]:
    folder = tmp_path_factory.mktemp("worlds")
    return [calculated(world(seed), folder / str(seed), snake=seed % 2 == 1) for seed in SEEDS]


def line_columns(lines: list[Line]) -> dict[str, list[str]]:
    """The reference's lines as columns of the product."""
    columns = {ours: [getattr(line, theirs) for line in lines] for ours, theirs in LABELS.items()}
    tags = [json.dumps(dict(line.tags), ensure_ascii=False, separators=(",", ":")) for line in lines]
    return {**columns, "tags": tags}


def expected_rows(expected: reference.Allocation) -> pl.DataFrame:
    charges = expected.charges
    return pl.DataFrame(
        {
            **line_columns([charge.line for charge in charges]),
            "env_id": [charge.line.account for charge in charges],
            "ecosystem": ["aws"] * len(charges),
            "tenant_id": ["acme"] * len(charges),
            "part": pl.Series([charge.part for charge in charges], dtype=pl.Int16),
            "identity_id": [charge.identity_id for charge in charges],
            "amount": pl.Series([charge.units for charge in charges], dtype=UNITS),
            "cost_type": [charge.cost_type for charge in charges],
            "allocation_method": [charge.allocation_method for charge in charges],
            "allocation_detail": [charge.allocation_detail for charge in charges],
            "rule_id": [charge.rule_id for charge in charges],
            "rung": pl.Series([charge.rung for charge in charges], dtype=pl.Int16),
            "part_amount": pl.Series([charge.part_units for charge in charges], dtype=UNITS),
            "weight_before": [charge.weight_before for charge in charges],
            "weight": [charge.weight for charge in charges],
            "weight_total": [charge.weight_total for charge in charges],
        }
    )


def sorted_rows(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort(*LINE, "part", "identity_id")


def with_tags(rows: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """CHARGEBACK with the tags of its lines, amounts in units and dates as text."""
    key = ["billing_period", "charge_date", "line_id"]
    return (
        rows.join(lines.select(*key, "tags"), on=key)
        .with_columns(pl.col("amount", "part_amount").reinterpret(dtype=UNITS))
        .with_columns(pl.col("charge_date").dt.to_string("%Y-%m-%d"))
    )


def test_pooled_lines_are_those_of_the_reference(worlds: list[Compared]) -> None:
    for compared in worlds:
        expected = pl.DataFrame(
            {
                **line_columns(list(compared.expected.lines)),
                "amount": pl.Series(list(compared.expected.lines.values()), dtype=UNITS),
            }
        )
        found = compared.lines.with_columns(
            pl.col("amount").reinterpret(dtype=UNITS), pl.col("charge_date").dt.to_string("%Y-%m-%d")
        )
        assert_frame_equal(found.select(expected.columns).sort(LINE), expected.sort(LINE))


@pytest.mark.parametrize("seed", SEEDS)
def test_charges_are_those_of_the_reference(worlds: list[Compared], seed: int) -> None:
    compared = worlds[seed]
    expected = expected_rows(compared.expected)
    found = with_tags(compared.chargeback, compared.lines)
    assert_frame_equal(sorted_rows(found.select(expected.columns)), sorted_rows(expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_empty_keys_are_those_of_the_reference(worlds: list[Compared], seed: int) -> None:
    compared = worlds[seed]
    empty = compared.expected.empty_keys
    scopes = compared.lines.select(*LINE, "weight_scope").with_columns(pl.col("charge_date").dt.to_string("%Y-%m-%d"))
    expected = (
        pl.DataFrame(
            {
                **line_columns([record.line for record in empty]),
                "rule_id": [record.rule_id for record in empty],
                "part": pl.Series([record.part for record in empty], dtype=pl.Int16),
                "rung": pl.Series([record.rung for record in empty], dtype=pl.Int16),
                "basis": [record.basis for record in empty],
                "metric": [record.metric for record in empty],
                "reason": [record.reason for record in empty],
            }
        )
        .join(scopes, on=LINE, how="left")
        .select(EMPTY_KEY_COLUMNS)
        .unique()
    )
    found = compared.empty_keys.with_columns(pl.col("charge_date").dt.to_string("%Y-%m-%d")).select(EMPTY_KEY_COLUMNS)
    assert_frame_equal(found.sort(EMPTY_KEY_COLUMNS), expected.sort(EMPTY_KEY_COLUMNS))


def test_every_row_lies_within_one_unit_per_level_of_its_exact_share(worlds: list[Compared]) -> None:
    """By the integer weights; and by the values as the user wrote them, where the weights stand for those exactly."""
    charges = [charge for compared in worlds for charge in compared.expected.charges]
    levels = Counter((compared_levels(charge), charge.slack == 0) for charge in charges)
    assert all(count > 100 for count in (levels[1, True], levels[2, True], levels[1, False], levels[2, False]))
    for charge in charges:
        assert abs(charge.units - charge.exact) < compared_levels(charge)
        assert abs(charge.units - charge.ideal) < compared_levels(charge) + charge.slack


def compared_levels(charge: reference.Charge) -> int:
    """One level for the identities; another where a line has parts."""
    return 1 if Fraction(charge.part_units) * charge.weight == charge.exact * charge.weight_total else 2


def test_every_line_sums_exactly(worlds: list[Compared]) -> None:
    for compared in worlds:
        keys = ["billing_period", "charge_date", "line_id"]
        sums = compared.chargeback.group_by(keys).agg(pl.col("amount").sum()).sort(keys)
        assert_frame_equal(sums, compared.lines.select(*keys, "amount").sort(keys))


def outcomes(worlds: list[Compared]) -> Iterator[tuple[str, str]]:
    """Basis and outcome of every rung that a part of a line came to."""
    bases = {"usage_ratio": "usage", "even_split": "even", "cost_ratio": "cost", "to_resource": "resource"}
    for compared in worlds:
        for record in compared.expected.empty_keys:
            yield record.basis, record.reason
        for charge in compared.expected.charges:
            basis = bases.get(charge.allocation_method, charge.allocation_method)
            if basis == "unallocated":
                yield basis, charge.allocation_detail if charge.allocation_detail in REASONS else "by rule"
            else:
                yield basis, "held"


REASONS = {EMPTY_KEY, ZERO_KEY_TOTAL, "untagged"}
BOTH = (EMPTY_KEY, ZERO_KEY_TOTAL)


def test_worlds_reach_every_outcome_of_every_basis(worlds: list[Compared]) -> None:
    found = Counter(outcomes(worlds))
    wanted = [
        ("direct", "held"),
        *((basis, outcome) for basis in ("usage", "cost", "weighted") for outcome in ("held", *BOTH)),
        # An even rung has either nobody or somebody, and fixed percentages always total 100.
        *(("even", outcome) for outcome in ("held", EMPTY_KEY)),
        ("fixed", "held"),
        ("operator", "held"),
        ("resource", "held"),
        *(("unallocated", outcome) for outcome in (*BOTH, "untagged", "by rule")),
    ]
    assert {pair: found[pair] for pair in wanted if found[pair] < 25} == {}


def test_worlds_reach_every_kind_of_rule(worlds: list[Compared]) -> None:
    charges = [charge for compared in worlds for charge in compared.expected.charges]
    windows = Counter(
        (pool.get("window", "default"), reference.window_of(pool))
        for compared in worlds
        for pool in compared.world.tenant["pools"]
    )
    assert min(windows[kind] for kind in WINDOWS) >= 10
    found = Counter(
        {
            "several identities": sum(charge.weight < charge.weight_total for charge in charges),
            "one identity": sum(charge.weight == charge.weight_total for charge in charges),
            "second part": sum(charge.part > 0 for charge in charges),
            "third rung or later": sum(charge.rung > 1 for charge in charges),
            "built-in tax": sum(charge.rule_id == "pool:tax" for charge in charges),
            "negative": sum(charge.units < 0 for charge in charges),
            "nothing": sum(charge.units == 0 for charge in charges),
            "huge": sum(abs(charge.units) > 10**28 for charge in charges),
            "operator as owner": sum(
                charge.rule_id == "direct" and charge.identity_id == "platform" for charge in charges
            ),
            "resource rung without a resource": sum(
                charge.allocation_method == "unallocated" and charge.allocation_detail.startswith("pool")
                for charge in charges
            ),
        }
    )
    assert {kind: count for kind, count in found.items() if count < 50} == {}


WINDOWS = [("default", "day"), ("default", "month"), ("day", "day"), ("month", "month")]


def test_neither_the_order_of_rows_nor_the_dialect_has_an_effect(worlds: list[Compared], tmp_path: Path) -> None:
    for seed in (0, 1):
        given = world(seed)
        turned = World(given.tenant, given.raw_lines[::-1], given.key_rows[::-1])
        again = calculated(turned, tmp_path / str(seed), snake=seed % 2 == 0)
        assert_frame_equal(again.chargeback, worlds[seed].chargeback)
        assert_frame_equal(again.empty_keys, worlds[seed].empty_keys)
