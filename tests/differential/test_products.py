"""Bill, inventory and metrics to charges by product: the product and the plain-Python reference agree bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from engine import pipeline
from tests.differential.calculated_days import calculated, frames
from tests.differential.organizations import DAYS, Organization, organization
from tests.reference import products as reference
from tests.reference.allocation import EMPTY_KEY, ZERO_KEY_TOTAL

ORGANIZATIONS = 260
"""Of four days each."""
BATCH = 10


class Expected(NamedTuple):
    """What the reference makes of an organization."""

    charges: list[reference.Charge]
    empty: set[tuple[Any, ...]]


class Compared(NamedTuple):
    """An organization, what the reference makes of it, and what the product does."""

    given: Organization
    expected: Expected
    chargeback: pl.DataFrame
    empty_keys: pl.DataFrame


def expected(given: Organization) -> Expected:
    charges: list[reference.Charge] = []
    empty: set[tuple[Any, ...]] = set()
    for day in DAYS:
        there = reference.Day(
            day, given.resources, given.identities, given.usage, given.tenant.get("operator", ""), given.failed
        )
        for line in given.lines:
            if line["charge_date"] == day:
                rows, lost = reference.line_charges(line, given.tenant, there)
                charges += rows
                empty |= {(str(day), *key) for key in lost}
    return Expected(charges, empty)


def compared(given: Organization) -> Compared:
    found = calculated(frames(given))
    return Compared(given, expected(given), found.chargeback, found.empty_keys)


UNITS = {"amount": "units", "list_amount": "list_units", "part_amount": "part_units"}
COLUMNS = (
    "line_id", "part", "identity_id", "amount", "list_amount", "cost_type", "allocation_method", "allocation_detail",
    "rule_id", "rung", "part_amount", "weight_before", "weight", "weight_total",
)  # fmt: skip


def expected_rows(charges: list[reference.Charge]) -> pl.DataFrame:
    schema = {
        "line_id": pl.Int64, "part": pl.Int16, "identity_id": pl.String, "amount": pl.Int128, "list_amount": pl.Int128,
        "cost_type": pl.String, "allocation_method": pl.String, "allocation_detail": pl.String, "rule_id": pl.String,
        "rung": pl.Int16, "part_amount": pl.Int128, "weight_before": pl.Int64, "weight": pl.Int64,
        "weight_total": pl.Int64,
    }  # fmt: skip
    columns = {name: [getattr(charge, UNITS.get(name, name)) for charge in charges] for name in COLUMNS}
    return pl.DataFrame(columns, schema=schema).sort("line_id", "part", "identity_id")


def found_rows(chargeback: pl.DataFrame) -> pl.DataFrame:
    units = chargeback.with_columns(pl.col(list(UNITS)).reinterpret(dtype=pl.Int128))
    return units.select(COLUMNS).sort("line_id", "part", "identity_id")


def found_empty(empty_keys: pl.DataFrame) -> set[tuple[Any, ...]]:
    found = set()
    for row in empty_keys.to_dicts():
        window, _, scope = row["weight_scope"].partition(" ")
        assert window == str(row["charge_date"])
        labels = json.loads(scope)
        key = ("rule_id", "part", "rung", "basis", "metric", "reason")
        rule_id, part, rung, basis, metric, reason = (row[name] for name in key)
        found.add((window, rule_id, part, rung, labels["resource_id"], basis, metric, reason))
    return found


@pytest.fixture(scope="module", params=range(0, ORGANIZATIONS, BATCH))
def batch(request: pytest.FixtureRequest) -> list[Compared]:
    return [compared(organization(seed)) for seed in range(request.param, request.param + BATCH)]


def test_charges_are_those_of_the_reference(batch: list[Compared]) -> None:
    for one in batch:
        assert_frame_equal(found_rows(one.chargeback), expected_rows(one.expected.charges))


def test_empty_keys_are_those_of_the_reference(batch: list[Compared]) -> None:
    for one in batch:
        assert found_empty(one.empty_keys) == one.expected.empty


def test_every_line_sums_exactly(batch: list[Compared]) -> None:
    for one in batch:
        sums: dict[int, list[int]] = {}
        for charge in one.expected.charges:
            found = sums.setdefault(charge.line_id, [0, 0])
            found[0] += charge.units
            found[1] += charge.list_units or 0
        assert sums == {
            line["line_id"]: [reference.parse_units(line["amount"]), reference.parse_units(line["list"] or "0")]
            for line in one.given.lines
        }


def kinds(one: Expected) -> Iterator[str]:
    """What an organization reaches."""
    for charge in one.charges:
        yield f"{charge.allocation_method} / {charge.allocation_detail}"
        yield "derived" if " alive=" in charge.rule_id else "failed" if " failed=" in charge.rule_id else "plain"
        if " alive=" in charge.rule_id and " failed=" in charge.rule_id:
            yield "derived twice"
        if charge.identity_id in reference.SENTINELS:
            yield charge.identity_id
        if charge.units < 0:
            yield "negative"
        if charge.weight not in (1, charge.weight_total):
            yield "usage of several"
        yield f"part {charge.part}"
    for key in one.empty:
        yield f"{key[5]} {key[7]}"


def test_organizations_reach_every_kind_of_charge() -> None:
    found = Counter(kind for seed in range(ORGANIZATIONS) for kind in kinds(expected(organization(seed))))
    details = {
        "usage_ratio": ["usage_ratio_allocation", "no_usage_for_active_identities", "our_own"],
        "even_split": [
            "even_split_allocation", "no_metrics_located", "no_usage_for_active_identities",
            "no_active_identities_located", "our_own",
        ],
        "to_resource": [
            "default_allocation", "cluster_linking_cost", "no_identities_located", "unknown_product", "our_rest",
            "malformed_billing",
        ],
        "unallocated": [
            "inactive_fraction", "no_identities_located", "default_allocation", "unknown_product", "our_rest",
        ],
        "operator": ["no_identities_located", "default_allocation", "our_rest"],
        "allocation_failed": ["metrics_fetch_failed"],
    }  # fmt: skip
    wanted = [f"{method} / {detail}" for method, names in details.items() for detail in names]
    wanted += ["derived", "failed", "plain", "derived twice", "negative", "usage of several", *reference.SENTINELS]
    wanted += [f"part {part}" for part in range(4)]
    wanted += [f"usage {EMPTY_KEY}", f"usage {ZERO_KEY_TOTAL}", f"even {EMPTY_KEY}"]
    assert {kind: found[kind] for kind in wanted if found[kind] < 15} == {}


def test_tenants_are_such_as_a_configuration_may_have(tmp_path: Path) -> None:
    file = tmp_path / "prorata.yaml"
    tenants = [{**organization(seed).tenant, "id": f"acme-{seed}"} for seed in range(0, ORGANIZATIONS, 10)]
    file.write_text(yaml.safe_dump({"root": "./data", "tenants": tenants}), encoding="utf-8")
    assert len(pipeline.configured(file).tenants) == len(tenants)
