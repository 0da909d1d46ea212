"""Every case of `docs/cost-models.md` and of the folder `cost_models` holds; and what it says is asked is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import rules
from engine.config import KafkaTenant
from engine.sources.cost_questions import questions
from tests.spec import cost_cases, specs
from tests.spec.specs import Spec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cost-models.md"
FILES = [PAGE, *sorted((Path(__file__).parent / "cost_models").glob("*.md"))]
SPECS = [spec for file in FILES for spec in cost_cases.cases(file)]


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_spec(spec: Spec, tmp_path: Path) -> None:
    tenant = cost_cases.tenant_of(spec, tmp_path)
    lines, charges = spec.tables["Lines"], spec.tables["Charges"]
    found = cost_cases.line_texts(cost_cases.lines_of(spec, tenant), list(lines[0]))
    assert found == cost_cases.expected(lines, list(lines[0]))
    split = cost_cases.charge_texts(cost_cases.charges_of(spec, tenant), list(charges[0]))
    assert split == cost_cases.expected(charges, list(charges[0]))


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_the_charges_add_up_to_the_lines(spec: Spec) -> None:
    """So that an error of the author is not taken for one of the engine."""
    assert specs.sums(spec.tables["Charges"], "product") == specs.sums(spec.tables["Lines"], "product")


def test_the_page_has_worked_examples() -> None:
    assert len(list(cost_cases.cases(PAGE))) >= 7


def test_every_rung_of_the_rulebook_takes_a_line(tmp_path: Path) -> None:
    book = rules.rulebook("self_managed_kafka")
    wanted = {
        (f"product:{name}", rung)
        for name, product in book.products.items()
        for rung in range(len(book.ladders[str(product.ladder)]))
    }
    found: set[tuple[str, int]] = set()
    for number, spec in enumerate(SPECS):
        folder = tmp_path / str(number)
        folder.mkdir()
        charges = cost_cases.charges_of(spec, cost_cases.tenant_of(spec, folder))
        found |= set(charges.select("rule_id", "rung").rows())
    assert wanted - found == set()


def test_the_page_says_what_is_asked(tmp_path: Path) -> None:
    spec = next(cost_cases.cases(PAGE))
    tenant = cost_cases.tenant_of(spec, tmp_path)
    assert isinstance(tenant, KafkaTenant)
    source = tenant.source.model_copy(update={"selector": 'cluster="eu"'})
    blocks = PAGE.read_text(encoding="utf-8").split("```promql\n")[1:]
    said = [[line for line in block.partition("```")[0].splitlines() if not line.startswith("#")] for block in blocks]
    asked = questions(tenant.model_copy(update={"source": source}))
    assert said == [
        [one.values.expression for one in asked],
        [one.counts.expression for one in asked[:1] if one.counts],
    ]
