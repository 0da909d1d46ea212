"""Rules of a tenant whose products have ladders: what is refused, what the table holds, which rule a line gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine import rules
from engine.config import ConfluentTenant, load
from engine.frames import BILLING, RULES, check_rows
from engine.money import UNITS
from tests.unit.cases import HOSTILE, rows

HEAD = """\
root: ./data
tenants:
  - id: acme
    ecosystem: confluent_cloud
    source: {kind: confluent_cloud, api_key: '${KEY}', api_secret: '${SECRET}'}
"""


def faults(folder: Path, *lines: str) -> list[str]:
    """The faults of a tenant with these lines, each with its place."""
    file = folder / "prorata.yaml"
    file.write_text(HEAD + "".join(f"    {line}\n" for line in lines), encoding="utf-8")
    config, document, found = load(file)
    return [line.replace(f"{folder}/", "") for line in [*found, *(rules.faults(config, document) if config else [])]]


def faults_of_rung(folder: Path, rung: str) -> list[str]:
    """What is wrong with one rung, before a last one that is fine."""
    found = faults(folder, f"ladders: {{own: [{rung}, {{basis: resource}}]}}")
    place = "prorata.yaml:6: tenants[0].ladders.own[0]: "
    assert all(line.startswith(place) for line in found)
    return [line.removeprefix(place) for line in found]


def tenant(**fields: Any) -> ConfluentTenant:
    source = {"kind": "confluent_cloud", "api_key": "${KEY}", "api_secret": "${SECRET}"}
    return ConfluentTenant.model_validate({"id": "acme", "ecosystem": "confluent_cloud", "source": source} | fields)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_tenant_without_rules_of_its_own_is_fine(tmp_path: Path) -> None:
    assert faults(tmp_path) == []


def test_the_rulebook_keeps_the_rules_it_makes(tmp_path: Path) -> None:
    book = Path(rules.__file__).parent / "rulebook" / "confluent_cloud.yaml"
    text = book.read_text(encoding="utf-8").partition("\ndefault_product:")[0]
    assert faults(tmp_path, *text.splitlines()) == []


@pytest.mark.parametrize(
    ("rung", "fault"),
    [
        (
            "{basis: direct}",
            "basis 'direct' in a ladder of products; expected one of even, operator, resource, unallocated, usage",
        ),
        (
            "{basis: cost, scope: all}",
            "basis 'cost' in a ladder of products; expected one of even, operator, resource, unallocated, usage",
        ),
        (
            "{basis: fixed, percentages: {a: 100}}",
            "basis 'fixed' in a ladder of products; expected one of even, operator, resource, unallocated, usage",
        ),
        (
            "{basis: weighted, keys: {gb: 1}}",
            "basis 'weighted' in a ladder of products; expected one of even, operator, resource, unallocated, usage",
        ),
        ("{basis: usage}", "basis 'usage' without metrics; expected metrics"),
        ("{basis: even}", "basis 'even' without population; expected population"),
        (
            "{basis: usage, metrics: bytes_in, key: gb}",
            "basis 'usage' with key; expected only cost_type, detail, metrics",
        ),
        (
            "{basis: usage, metrics: bytes_in, population: active}",
            "basis 'usage' with population; expected only cost_type, detail, metrics",
        ),
        (
            "{basis: usage, metrics: [bytes_in, bytes_out, bytes_in]}",
            "metric 'bytes_in' stands twice; expected every metric once",
        ),
        (
            "{basis: even, population: owners}",
            "population 'owners', which only lines with tags have; expected one of"
            " active, metrics_derived, period_accounts, period_owners, resource_active",
        ),
        (
            "{basis: even, population: metrics_derived}",
            "population 'metrics_derived' without metrics; expected metrics",
        ),
        (
            "{basis: even, population: period_owners, metrics: bytes_in}",
            "population 'period_owners' with metrics, which it does not look at;"
            " expected population active or metrics_derived, or no metrics",
        ),
        (
            "{basis: even, population: resource_active, metrics: bytes_in}",
            "population 'resource_active' with metrics, which it does not look at;"
            " expected population active or metrics_derived, or no metrics",
        ),
        (
            "{basis: unallocated}",
            "basis 'unallocated' takes all, no later rung can hold; expected it to be the last rung",
        ),
    ],
)
def test_a_rung_that_cannot_work_is_refused(tmp_path: Path, rung: str, fault: str) -> None:
    assert faults_of_rung(tmp_path, rung) == [fault]


@pytest.mark.parametrize(
    "rung",
    [
        "{basis: usage, metrics: [flink_cfu, bytes_in], cost_type: shared, detail: our_own}",
        "{basis: even, population: active}",
        "{basis: even, population: active, metrics: bytes_in, cost_type: usage}",
        "{basis: even, population: metrics_derived, metrics: [bytes_in]}",
        "{basis: even, population: resource_active, detail: our_own}",
        "{basis: even, population: period_accounts}",
    ],
)
def test_a_rung_that_can_work_is_fine(tmp_path: Path, rung: str) -> None:
    assert faults_of_rung(tmp_path, rung) == []


def test_all_faults_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        "operator: UNALLOCATED",
        "ladders:",
        "  open: [{basis: even, population: active}]",
        "products:",
        "  KAFKA_BASE: {ladder: kafka_evn}",
        "  KAFKA_NUM_CKU: {parts: [{share: 0.7, ladder: kafka_even}, {share: 0.2, ladder: open}]}",
        "  SUPPORT: {partial_life: whole}",
        "  KAFKA_STORAGE:",
        "    ladder: kafka_even",
        "    parts: [{share: 1, ladder: [{basis: resource, metrics: bytes_in}]}]",
        "  NUM_RULES: {ladder: [{basis: operator, cost_type: shared}]}",
    )
    names = ", ".join(sorted([*rules.rulebook("confluent_cloud").ladders, "open"]))
    products = "tenants[0].products"
    assert found == [
        "prorata.yaml:6: tenants[0].operator: operator 'UNALLOCATED'; expected a name that is not reserved",
        (
            "prorata.yaml:8: tenants[0].ladders.open[0]: the last rung is 'even', which may weigh nothing;"
            " expected a last rung of operator, resource, unallocated"
        ),
        f"prorata.yaml:10: {products}.KAFKA_BASE.ladder: unknown ladder 'kafka_evn'; expected one of {names}",
        f"prorata.yaml:11: {products}.KAFKA_NUM_CKU.parts: shares total 0.9; expected a total of 1",
        (
            f"prorata.yaml:12: {products}.SUPPORT: product 'SUPPORT' has neither ladder nor parts;"
            " expected one of them"
        ),
        (
            f"prorata.yaml:13: {products}.KAFKA_STORAGE: product 'KAFKA_STORAGE' has both ladder and parts;"
            " expected one of them"
        ),
        (
            f"prorata.yaml:15: {products}.KAFKA_STORAGE.parts[0].ladder[0]: basis 'resource' with metrics;"
            " expected only cost_type, detail"
        ),
        (
            f"prorata.yaml:16: {products}.NUM_RULES.ladder[0]: basis 'operator' with cost_type;"
            " expected only detail"
        ),
    ]  # fmt: skip


def test_an_operator_rung_needs_an_operator(tmp_path: Path) -> None:
    ladder = "ladders: {own: [{basis: operator}]}"
    (found,) = faults(tmp_path, ladder)
    assert found.endswith("basis 'operator', but the tenant has no operator; expected operator: NAME in the tenant")
    assert faults(tmp_path, ladder, "operator: ops") == []


@pytest.mark.parametrize(
    "field", ["metrics: bytes_in", "population: active", "cost_type: usage", "detail: our_own", "population: owners"]
)
def test_pools_have_nothing_of_what_products_have(tmp_path: Path, field: str) -> None:
    file = tmp_path / "prorata.yaml"
    file.write_text(
        "root: ./data\ntenants:\n  - id: acme\n    ecosystem: aws\n    source: {kind: aws_cur, path: ./cur}\n"
        "    owner: {tags: [team]}\n"
        f"    ladders: {{own: [{{basis: even, {field}}}, {{basis: unallocated}}]}}\n",
        encoding="utf-8",
    )
    config, document, found = load(file)
    assert config is not None
    (fault,) = [*found, *rules.faults(config, document)]
    name = field.partition(":")[0]
    assert fault == f"{file}:7: tenants[0].ladders.own[0]: basis 'even' with {name}; expected only basis"


# ------------------------------------------------------------------------------------------------ the table


def rungs(given: rules.Rules, rule_id: str, *columns: str) -> list[tuple[Any, ...]]:
    return given.frame.filter(rule_id=rule_id).select(columns).rows()


def test_the_table_holds_every_product_and_the_two_rules_for_the_rest() -> None:
    found = rules.resolve(tenant())
    check_rows(found.frame, RULES)
    products = {f"product:{name}" for name in rules.rulebook("confluent_cloud").products}
    assert set(found.frame["rule_id"]) == products | {"unknown_product", "malformed_billing"} == set(found.products)
    assert found.windows() == frozenset()


def test_a_rung_says_what_it_weighs_by() -> None:
    found = rules.resolve(tenant())
    assert rungs(found, "product:KAFKA_NUM_CKU", "part", "rung", "share", "basis", "metric", "ladder") == [
        (0, 0, 700_000_000_000, "usage", "bytes_in + bytes_out", "kafka_capacity"),
        (0, 1, 700_000_000_000, "even", "active", "kafka_capacity"),
        (0, 2, 700_000_000_000, "even", "period_owners", "kafka_capacity"),
        (0, 3, 700_000_000_000, "resource", "", "kafka_capacity"),
        (1, 0, 300_000_000_000, "even", "active", "kafka_even"),
        (1, 1, 300_000_000_000, "even", "period_owners", "kafka_even"),
        (1, 2, 300_000_000_000, "resource", "", "kafka_even"),
    ]


def test_a_version_changes_with_what_makes_amounts() -> None:
    def version(**fields: Any) -> str:
        (found,) = set(rules.resolve(tenant(**fields)).frame.filter(rule_id="product:KAFKA_BASE")["version"])
        return str(found)

    plain = version()
    assert version(products={"KAFKA_BASE": {"ladder": "kafka_even"}}) == plain
    assert version(products={"SUPPORT": {"ladder": "resource"}}) == plain
    assert version(products={"KAFKA_BASE": {"ladder": "kafka_even", "partial_life": "unallocated"}}) != plain
    assert version(products={"KAFKA_BASE": {"ladder": "kafka_partition"}}) != plain
    assert version(ladders={"kafka_even": [{"basis": "resource"}]}) != plain
    assert version(operator="ops") != plain


def test_every_metric_is_known_where_it_comes_from() -> None:
    asked = frozenset().union(*rules.metrics_of(rules.resolve(tenant())).values())
    assert asked == set(rules.METRICS["confluent_cloud"])
    assert asked > rules.FROM_INVENTORY


# ------------------------------------------------------------------------------------------------ lines and rules


def billing(*given: dict[str, Any]) -> pl.DataFrame:
    return rows(BILLING, *({"line_id": number, **line} for number, line in enumerate(given)))


def test_a_line_gets_the_rule_of_its_product_its_day_and_its_resource() -> None:
    lines = billing(
        {"product_type": "KAFKA_BASE", "resource_id": "lkc-1"},
        {"product_type": "KAFKA_BASES"},
        {"product_type": "KAFKA_BASE", "resource_id": "malformed_billing_0123456789ab"},
        {"product_type": "KAFKA_BASE", "resource_id": 'a"b'},
    )
    found = rules.match_products(lines.lazy(), rules.resolve(tenant())).collect()
    assert found.columns == [*BILLING.columns, "rule_id", "window", "weight_scope"]
    assert found.select("rule_id", "window", "weight_scope").rows() == [
        ("product:KAFKA_BASE", "2025-09-01", '2025-09-01 {"resource_id":"lkc-1"}'),
        ("unknown_product", "2025-09-01", '2025-09-01 {"resource_id":""}'),
        ("malformed_billing", "2025-09-01", '2025-09-01 {"resource_id":"malformed_billing_0123456789ab"}'),
        ("product:KAFKA_BASE", "2025-09-01", '2025-09-01 {"resource_id":"a\\"b"}'),
    ]


def test_no_product_type_from_outside_names_another_rule() -> None:
    texts = [*HOSTILE, "KAFKA_BASE alive=1", "KAFKA_BASE failed=bytes_in", "unknown_product", "malformed_billing"]
    found = rules.match_products(
        billing(*({"product_type": text} for text in texts)).lazy(), rules.resolve(tenant())
    ).collect()
    assert set(found["rule_id"]) == {"unknown_product"}


DAY = "2025-09-01"
LIVES = pl.DataFrame(
    [(DAY, "lkc-1", 1), (DAY, "lkc-2", 86_400), (DAY, "lkc-3", 0), ("2025-09-02", "lkc-4", 2)],
    schema=["window", "id", "alive_seconds"],
    orient="row",
)
"""On the second day, of which there is no line, another resource is there for a part."""


def test_rules_are_derived_only_where_the_day_is_different() -> None:
    given = rules.resolve(tenant(products={"KAFKA_BASE": {"ladder": "kafka_even", "partial_life": "unallocated"}}))
    names = ["lkc-1", "lkc-2", "lkc-3", "lkc-4", ""]
    lines = billing(
        *({"product_type": "KAFKA_BASE", "resource_id": name} for name in names),
        {"product_type": "KAFKA_STORAGE", "resource_id": "lkc-1"},
        {"product_type": "SUPPORT", "resource_id": "lkc-1"},
    )
    by_product = rules.match_products(lines.lazy(), given).collect()
    assert rules.with_derived(by_product, given, LIVES, {DAY: []})["rule_id"].to_list() == [
        "product:KAFKA_BASE alive=1",
        "product:KAFKA_BASE",
        "product:KAFKA_BASE alive=0",
        "product:KAFKA_BASE",
        "product:KAFKA_BASE",
        "product:KAFKA_STORAGE",
        "product:SUPPORT",
    ]
    failed = {("bytes_out", "lkc-1"), ("flink_cfu", "lkc-1"), ("bytes_out", "lkc-2"), ("bytes_in", "lkc-2")}
    found = rules.with_derived(by_product, given, LIVES, {DAY: failed, "2025-09-02": {("bytes_in", "lkc-4")}})
    assert found.columns == by_product.columns
    assert found["rule_id"].to_list() == [
        "product:KAFKA_BASE alive=1 failed=bytes_out",
        "product:KAFKA_BASE failed=bytes_in,bytes_out",
        "product:KAFKA_BASE alive=0",
        "product:KAFKA_BASE",
        "product:KAFKA_BASE",
        "product:KAFKA_STORAGE failed=bytes_out",
        "product:SUPPORT",
    ]


def test_a_derived_rule_has_exact_shares_and_ladders_that_end() -> None:
    name = "product:KAFKA_NUM_CKU alive=3600 failed=bytes_out"
    found = rules.derived(rules.resolve(tenant()), [name, "product:SUPPORT"])
    check_rows(found.frame, RULES)
    assert set(found.frame["rule_id"]) == {name, "product:SUPPORT"}
    columns = ("part", "rung", "share", "basis", "payer", "cost_type", "allocation_method", "allocation_detail")
    failed = ("unallocated", "UNALLOCATED", "shared", "allocation_failed", "metrics_fetch_failed")
    assert rungs(found, name, *columns) == [
        (0, 0, 82_800 * UNITS, "unallocated", "UNALLOCATED", "shared", "unallocated", "inactive_fraction"),
        (1, 0, 3600 * UNITS * 7 // 10, *failed),
        (2, 0, 3600 * UNITS * 3 // 10, *failed),
    ]
    version = dict(rules.resolve(tenant()).frame.select("rule_id", "version").unique().rows())
    assert set(found.frame.filter(rule_id=name)["version"]) == {version["product:KAFKA_NUM_CKU"]}


def test_a_ladder_goes_as_far_as_it_does_without_the_failed_metric() -> None:
    name = "product:KAFKA_NETWORK_READ failed=bytes_in"
    found = rules.derived(rules.resolve(tenant()), [name])
    assert rungs(found, name, "rung", "basis", "allocation_method") == [
        (0, "usage", "usage_ratio"),
        (1, "unallocated", "allocation_failed"),
    ]


def test_only_a_failure_is_called_one() -> None:
    """A tenant may use the same words; it is the rule that failed nothing."""
    ladder = [{"basis": "unallocated", "detail": "metrics_fetch_failed"}]
    found = rules.resolve(tenant(products={"KAFKA_BASE": {"ladder": ladder}}))
    assert rungs(found, "product:KAFKA_BASE", "allocation_method") == [("unallocated",)]
