"""Every case of the Markdown files in the folder `confluent` holds: see specs.py for their form."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from engine import decide, pipeline, rules
from engine.config import ConfluentTenant
from engine.frames import USAGE, empty
from tests.spec import specs
from tests.spec.specs import Spec

FOLDER = Path(__file__).parent / "confluent"
SPECS = [spec for file in sorted(FOLDER.glob("*.md")) for spec in specs.read_specs(file)]
EMPTY_KEYS = ["date", "rule", "part", "rung", "basis", "key", "reason"]


def given_of(spec: Spec, folder: Path) -> decide.Inputs:
    tenant = pipeline.configured(specs.write_product_config(spec, folder)).tenants[0]
    assert isinstance(tenant, ConfluentTenant)
    return decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE))


def facts_of(spec: Spec, *, backwards: bool = False) -> decide.DayFacts:
    frames = [
        specs.resources(spec.tables.get("Resources", [])),
        specs.identities(spec.tables.get("Identities", [])),
        specs.usage(spec.tables.get("Usage", [])),
    ]
    resources, identities, usage = [frame.reverse() if backwards else frame for frame in frames]
    failed = frozenset((row["metric"], row["resource"]) for row in spec.tables.get("Failed metrics", []))
    return decide.DayFacts(resources, identities, usage, failed)


def allocated(spec: Spec, folder: Path, *, backwards: bool = False) -> decide.Allocation:
    """What the engine makes of the case, day by day."""
    given, facts = given_of(spec, folder), facts_of(spec, backwards=backwards)
    lines = specs.product_billing(spec.tables["Lines"])
    days = (lines.reverse() if backwards else lines).partition_by("charge_date")
    found = [decide.allocate_day(day, given, facts) for day in days]
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
        assert specs.empty_keys(found.empty_keys, EMPTY_KEYS) == specs.expected(spec.tables["Empty keys"], EMPTY_KEYS)


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_order_of_rows_does_not_matter(spec: Spec, tmp_path: Path) -> None:
    found, backwards = allocated(spec, tmp_path), allocated(spec, tmp_path, backwards=True)
    columns = [name for name in found.chargeback.columns if name != "calculation_id"]
    assert found.chargeback.select(columns).sort(columns).equals(backwards.chargeback.select(columns).sort(columns))
    assert found.empty_keys.sort(found.empty_keys.columns).equals(backwards.empty_keys.sort(found.empty_keys.columns))


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_the_table_of_charges_adds_up(spec: Spec) -> None:
    """So that an error of the author is not taken for one of the engine."""
    charges = specs.sums(spec.tables["Charges"], "line")
    assert charges == specs.sums(spec.tables["Lines"], "line")


def test_every_product_of_the_rulebook_has_a_case() -> None:
    book = rules.rulebook("confluent_cloud")
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for spec in SPECS:
        for line in spec.tables["Lines"]:
            seen[line["product"]].add(spec.name)
    assert set(book.products) <= seen.keys()


def test_every_rung_of_the_rulebook_takes_a_line(tmp_path: Path) -> None:
    book = rules.rulebook("confluent_cloud")
    wanted = {
        (f"product:{name}", part, rung)
        for name, product in book.products.items()
        for part, ladder in enumerate([part.ladder for part in product.parts] if product.parts else [product.ladder])
        for rung in range(len(book.ladders[str(ladder)]))
    }
    found: set[tuple[str, int, int]] = set()
    for number, spec in enumerate(SPECS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found |= set(allocated(spec, folder).chargeback.select("rule_id", "part", "rung").rows())
    assert wanted - found == set()
