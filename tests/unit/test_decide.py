"""What is decided for a day, around the charges that the spec tables show."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from engine import decide, rules
from engine.errors import ContractError
from engine.frames import BILLING, IDENTITIES, RESOURCES, RULES, USAGE, check_rows, empty
from tests.unit.cases import DAY, rows, tenant
from tests.unit.test_rules_of_products import tenant as confluent

START = dt.datetime(2025, 9, 1)
NEXT = START + dt.timedelta(days=1)


def given(**fields: Any) -> decide.Inputs:
    made = confluent(**fields)
    return decide.Inputs(made, rules.resolve(made), empty(USAGE))


def billing(*lines: dict[str, Any]) -> pl.DataFrame:
    plain = {"tenant_id": "acme", "ecosystem": "confluent_cloud", "currency": "USD", "tags": "{}", "amount": "1"}
    return rows(BILLING, *({**plain, "line_id": number, **line} for number, line in enumerate(lines)))


RESOURCE = {
    "id": "lkc-1", "type": "kafka_cluster", "parent": "env-1", "owner": "", "display_name": "one",
    "valid_from": None, "valid_to": None,
}  # fmt: skip
IDENTITY = {"id": "K", "type": "api_key", "owner": "sa-1", "scope": "lkc-1", "valid_from": None, "valid_to": None}
VALUE = {"window": "2025-09-01", "resource_id": "lkc-1", "metric": "bytes_in", "principal": "sa-1", "value": "1"}


def facts(
    resource: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    value: dict[str, Any] | None = None,
    failed: tuple[tuple[str, str], ...] = (),
) -> decide.DayFacts:
    return decide.DayFacts(
        rows(RESOURCES, {**RESOURCE, **(resource or {})}),
        rows(IDENTITIES, {**IDENTITY, **(identity or {})}),
        rows(USAGE, {**VALUE, **(value or {})}),
        frozenset(failed),
    )


NOTHING = decide.DayFacts(empty(RESOURCES), empty(IDENTITIES), empty(USAGE), frozenset())

# ------------------------------------------------------------------------------------------------ the decision


def test_a_decision_has_lines_in_the_order_of_the_key_and_the_rules_of_the_day() -> None:
    lines = billing(
        {"line_id": 9, "product_type": "KAFKA_BASE", "resource_id": "lkc-1"},
        {"line_id": -3, "product_type": "SUPPORT"},
    )
    found = decide.decide_products(lines, given(), facts(failed=(("bytes_in", "lkc-1"),)))
    assert found.lines.columns == [*BILLING.columns, "rule_id", "window", "weight_scope"]
    assert found.lines["line_id"].to_list() == [-3, 9]
    check_rows(found.rules, RULES)
    assert set(found.rules["rule_id"]) == {"product:SUPPORT", "product:KAFKA_BASE failed=bytes_in"}


def test_unknown_products_are_counted_by_currency() -> None:
    lines = billing(
        {"product_type": "NEW", "amount": "1.5"},
        {"product_type": "NEW", "amount": "-0.25"},
        {"product_type": "NEW", "currency": "EUR"},
        {"product_type": ""},
        {"product_type": "SUPPORT"},
        {"product_type": "NEW", "resource_id": "malformed_billing_0123456789ab"},
    )
    assert decide.decide_products(lines, given(), NOTHING).unknown_products.rows() == [
        ("", "USD", 1, Decimal(1)),
        ("NEW", "EUR", 1, Decimal(1)),
        ("NEW", "USD", 2, Decimal("1.25")),
    ]


def test_a_day_without_lines_has_nothing() -> None:
    found = decide.decide_products(billing().select(BILLING.columns), given(), NOTHING)
    assert (found.lines.height, found.rules.height, found.unknown_products.height) == (0, 0, 0)
    assert found.decided.plan.parts.height == found.decided.empty_keys.height == 0


def test_lines_of_two_days_are_refused() -> None:
    with pytest.raises(ContractError, match="lines of 2 days"):
        decide.decide_products(billing({}, {"charge_date": dt.date(2025, 9, 2)}), given(), NOTHING)


def test_lines_may_come_encoded() -> None:
    lines = billing({"product_type": "KAFKA_NETWORK_WRITE", "resource_id": "lkc-1"})
    codes = lines.with_columns(pl.col(pl.String).cast(pl.Categorical).cast(pl.String))
    enums = lines.with_columns(
        pl.col(name).cast(pl.Enum(lines[name].unique())) for name in ("product_type", "resource_id")
    )
    assert decide.allocate_day(codes, given(), facts()).chargeback["identity_id"].to_list() == ["sa-1"]
    assert decide.allocate_day(enums, given(), facts()).chargeback["identity_id"].to_list() == ["sa-1"]
    assert decide.metrics_needed(enums, given()) == {"bytes_in": ["lkc-1"], "bytes_out": ["lkc-1"]}


def test_what_is_matched_has_the_same_columns_in_both_ecosystems() -> None:
    aws = tenant()
    pools = decide.matched(billing({}).lazy(), decide.Inputs(aws, rules.resolve(aws), empty(USAGE)))
    products = decide.matched(billing({}).lazy(), given())
    assert set(pools.collect_schema()) == set(products.collect_schema())


# ------------------------------------------------------------------------------------------------ what is needed


def test_metrics_are_needed_of_the_resources_whose_ladders_may_weigh_by_them() -> None:
    lines = billing(
        {"product_type": "KAFKA_NETWORK_WRITE", "resource_id": "lkc-2"},
        {"product_type": "KAFKA_PARTITION", "resource_id": "lkc-1"},
        {"product_type": "KAFKA_PARTITION", "resource_id": "lkc-1"},
        {"product_type": "FLINK_NUM_CFU", "resource_id": "lfcp-1"},
        {"product_type": "CLUSTER_LINKING_READ", "resource_id": "lkc-3"},
        {"product_type": "CONNECT_NUM_TASKS", "resource_id": "lcc-1"},
        {"product_type": "KAFKA_BASE"},
        {"product_type": "KAFKA_BASE", "resource_id": "malformed_billing_0123456789ab"},
        {"product_type": "NEW", "resource_id": "lkc-4"},
        {"product_type": "KAFKA_STORAGE", "resource_id": "lkc-5", "charge_date": dt.date(2025, 9, 2)},
    )
    clusters = ["lkc-1", "lkc-2", "lkc-5"]
    assert decide.metrics_needed(lines, given()) == {
        "bytes_in": clusters,
        "bytes_out": clusters,
        "flink_cfu": ["lfcp-1"],
    }
    assert decide.metrics_needed(lines.head(0), given()) == {}


def test_a_tenants_own_rules_may_need_less() -> None:
    own = given(
        products={"KAFKA_NETWORK_WRITE": {"ladder": [{"basis": "usage", "metrics": "bytes_in"}, {"basis": "resource"}]}}
    )
    lines = billing({"product_type": "KAFKA_NETWORK_WRITE", "resource_id": "lkc-1"})
    assert decide.metrics_needed(lines, own) == {"bytes_in": ["lkc-1"]}


# ------------------------------------------------------------------------------------------------ digests of facts


def digest(found: decide.DayFacts) -> str:
    return decide.facts_digest(DAY, found)


@pytest.mark.parametrize(
    "changed",
    [
        facts(resource={"owner": "sa-1"}),
        facts(resource={"parent": "env-2"}),
        facts(resource={"type": "schema_registry"}),
        facts(resource={"created_at": START + dt.timedelta(hours=1)}),
        facts(resource={"deleted_at": NEXT - dt.timedelta(seconds=1)}),
        facts(resource={"created_at": NEXT}),
        facts(resource={"valid_to": DAY}),
        facts(identity={"owner": "sa-2"}),
        facts(identity={"scope": "lkc-2"}),
        facts(identity={"type": "user"}),
        facts(identity={"deleted_at": START - dt.timedelta(seconds=1)}),
        facts(value={"value": "2"}),
        facts(value={"principal": "sa-2"}),
        facts(value={"metric": "bytes_out"}),
        facts(value={"resource_id": "lkc-2"}),
        facts(value={"window": "2025-09-02"}),
        facts(failed=(("bytes_in", "lkc-1"),)),
        facts(failed=(("bytes_in", "lkc-1"), ("bytes_out", "lkc-1"))),
    ],
)
def test_what_may_change_a_charge_changes_the_digest(changed: decide.DayFacts) -> None:
    assert digest(changed) != digest(facts())


def test_the_digest_tells_resources_apart_for_which_a_metric_failed() -> None:
    one, other = ("bytes_in", "lkc-1"), ("bytes_in", "lkc-2")
    assert len({digest(facts(failed=failed)) for failed in ((one,), (other,), (one, other))}) == 3
    assert digest(facts(failed=(one, other))) == digest(facts(failed=(other, one)))


@pytest.mark.parametrize(
    "changed",
    [
        facts(resource={"display_name": "another"}),
        facts(resource={"first_seen_at": START, "last_seen_at": NEXT}),
        facts(resource={"deleted_at": NEXT}),
        facts(resource={"valid_from": DAY, "valid_to": dt.date(2025, 9, 2)}),
        facts(identity={"display_name": "another", "last_seen_at": NEXT}),
        facts(identity={"created_at": START, "deleted_at": NEXT}),
    ],
)
def test_what_cannot_change_a_charge_does_not(changed: decide.DayFacts) -> None:
    assert digest(changed) == digest(facts())


def test_what_was_not_there_on_the_day_does_not_count() -> None:
    later = rows(RESOURCES, RESOURCE, {**RESOURCE, "id": "lkc-2", "created_at": NEXT})
    assert digest(facts()._replace(resources=later)) == digest(facts())


def test_the_name_of_a_statement_is_what_metrics_know_it_by() -> None:
    names = [facts(resource={"type": "flink_statement", "display_name": name}) for name in ("s-1", "s-2")]
    assert digest(names[0]) != digest(names[1])


def test_a_digest_of_nothing_is_one_of_nothing() -> None:
    assert digest(NOTHING) == decide.facts_digest(dt.date(2025, 9, 2), NOTHING) != digest(facts())
