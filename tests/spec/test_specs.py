"""Every case of the Markdown files in this folder holds: see specs.py for their form."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from engine import decide, pipeline
from engine.config import Basis
from tests.spec import specs
from tests.spec.specs import Spec

SPECS = [spec for file in sorted(Path(__file__).parent.glob("*.md")) for spec in specs.read_specs(file)]


def allocated(spec: Spec, folder: Path, *, backwards: bool = False) -> decide.Allocation:
    """What the engine makes of the case, bill by bill."""
    config = pipeline.configured(specs.write_config(spec, folder))
    given = pipeline.inputs(config.tenants[0])
    lines = specs.billing(spec.tables["Lines"])
    bills = (lines.reverse() if backwards else lines).partition_by("billing_period")
    found = [decide.allocate_period(bill, given) for bill in bills]
    return decide.Allocation(
        pl.concat([allocation.chargeback for allocation in found]),
        pl.concat([allocation.empty_keys for allocation in found]),
    )


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_spec(spec: Spec, tmp_path: Path) -> None:
    found = allocated(spec, tmp_path)
    charges = spec.tables["Charges"]
    columns = list(charges[0])
    assert specs.charges(found.chargeback, spec.tables["Lines"], columns) == specs.expected(charges, columns)
    if "Empty keys" in spec.tables:
        columns = ["date", "rule", "part", "rung", "basis", "key", "reason"]
        assert specs.empty_keys(found.empty_keys, columns) == specs.expected(spec.tables["Empty keys"], columns)


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_order_of_lines_does_not_matter(spec: Spec, tmp_path: Path) -> None:
    found, backwards = allocated(spec, tmp_path), allocated(spec, tmp_path, backwards=True)
    order = [pl.col("billing_period"), pl.col("charge_date"), pl.col("line_id"), pl.col("part"), pl.col("identity_id")]
    assert backwards.chargeback.sort(order).equals(found.chargeback.sort(order))


def test_specs_cover_every_basis() -> None:
    pooled = set(get_args(Basis)) - {"direct"}
    assert {basis for basis in pooled if any(f"basis: {basis}" in spec.rules for spec in SPECS)} == pooled
