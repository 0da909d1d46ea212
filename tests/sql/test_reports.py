"""Every report on a small lake, whole tables; and their parameters."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from engine import warehouse
from engine.errors import StoreError
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, TEAMS
from engine.sqlfiles import names
from tests.sql.lakes import stored, table, text

# Two services in two accounts, a pool of each kind, a credit, a second currency, a late line, a second tenant.
BILLED = table(
    BILLING,
    """
    billing_period | charge_date | line_id | product_category | product_type | sub_account_id | currency | amount
    2024-01        | 2024-01-01  | 1       | AmazonEC2        | BoxUsage     | 111            | USD      | 10
    2024-01        | 2024-01-01  | 2       | AmazonEC2        | NatGateway   | 111            | USD      | 6
    2024-01        | 2024-01-01  | 3       | AmazonEC2        | NatGateway   | 222            | USD      | -2
    2024-01        | 2024-01-02  | 4       | AWSSupport       | Support      | 111            | EUR      | 5
    2024-01        | 2024-01-02  | 5       | AmazonS3         | Storage      | 222            | USD      | 1
    2024-01        | 2024-01-02  | 6       | Tax              | Tax          | 111            | USD      | 3
    2024-01        | 2024-01-02  | 7       | Tax              | Tax          | 222            | USD      | 4
    2024-02        | 2024-01-31  | 8       | AmazonEC2        | BoxUsage     | 111            | USD      | 0.25
    """,
    tenant_id="acme",
)
CHARGED = table(
    CHARGEBACK,
    """
    billing_period | line_id | part | identity_id | amount | cost_type | rule_id     | rung | allocation_detail
    2024-01        | 1       | 0    | pay         | 10     | direct    | direct      | 0    | owner_tag
    2024-01        | 2       | 0    | pay         | 4      | usage     | pool:nat    | 0    | nat
    2024-01        | 2       | 0    | search      | 2      | usage     | pool:nat    | 0    | nat
    2024-01        | 3       | 0    | pay         | -1     | usage     | pool:nat    | 0    | nat
    2024-01        | 3       | 0    | search      | -1     | usage     | pool:nat    | 0    | nat
    2024-01        | 4       | 0    | platform    | 2      | operator  | pool:help   | 0    | help
    2024-01        | 4       | 1    | pay         | 3      | shared    | pool:help   | 1    | help
    2024-01        | 5       | 0    | UNALLOCATED | 1      | shared    | untagged    | 0    | untagged
    2024-01        | 6       | 0    | pay         | 3      | shared    | pool:tax    | 0    | tax
    2024-01        | 7       | 0    | UNALLOCATED | 4      | shared    | pool:tax    | 2    | empty_key
    2024-02        | 8       | 0    | platform    | 0.25   | direct    | direct      | 0    | owner_tag
    """,
    tenant_id="acme",
)
SCOPE = '2024-01 {"sub_account_id":"222","product_category":"Tax","currency":"USD"}'
KEYS = table(
    EMPTY_KEYS,
    f"""
    charge_date | rule_id   | part | rung | basis    | metric          | reason         | weight_scope
    2024-01-01  | pool:nat  | 0    | 0    | weighted | hours           | empty_key      | 2024-01-01
    2024-01-02  | pool:help | 1    | 0    | usage    | seats           | zero_key_total | 2024-01
    2024-01-02  | pool:tax  | 0    | 0    | cost     | service_account | empty_key      | {SCOPE}
    2024-01-02  | pool:tax  | 0    | 1    | cost     | account         | empty_key      | {SCOPE}
    """,
    tenant_id="acme",
    billing_period="2024-01",
)
PAYERS = table(
    IDENTITIES,
    """
    id          | type     | display_name
    pay         | owner    | Payments
    search      | owner    | search
    platform    | operator |
    UNALLOCATED | system   | UNALLOCATED
    """,
    tenant_id="acme",
)
MEMBERS = table(
    TEAMS,
    """
    identity_id | team
                | rest
    pay         | money
    search      | money
    """,
    tenant_id="acme",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = BILLED.drop("amount", "quantity", "unit", "tags").columns
    charged = CHARGED.drop(set(labels) - {"line_id"}).join(BILLED.select(labels), on="line_id", maintain_order="left")
    other = BILLED.filter(pl.col("line_id") == 5).with_columns(tenant_id=pl.lit("beta"))
    other_charged = charged.filter(pl.col("line_id") == 5).with_columns(tenant_id=pl.lit("beta"))
    return stored(
        tmp_path_factory.mktemp("store"),
        (BILLING, pl.concat([BILLED, other])),
        (CHARGEBACK, pl.concat([charged, other_charged]).select(CHARGEBACK.columns)),
        (EMPTY_KEYS, KEYS),
        (IDENTITIES, PAYERS),
        (TEAMS, MEMBERS),
    )


def report(
    root: Path, name: str, first: date | None = None, end: date | None = None, tenant: str | None = "acme"
) -> str:
    with warehouse.open_lake(root) as connection:
        found = warehouse.report(connection, name, tenant_id=tenant, from_date=first, to_date=end)
    return text(found.drop("tenant_id") if tenant else found)


EXPECTED = {
    "billed_and_allocated": """
        currency | billed | allocated | difference | unallocated | lines | rows
        EUR | 5 | 5 | 0 | 0 | 1 | 2
        USD | 22.25 | 22.25 | 0 | 5 | 7 | 9
    """,
    "cost_by_identity": """
        identity_id | identity_name | team | currency | direct | usage | shared | operator | unallocated | total | rows
        pay | Payments | money | EUR | 0 | 0 | 3 | 0 | 0 | 3 | 1
        platform | platform | rest | EUR | 0 | 0 | 0 | 2 | 0 | 2 | 1
        pay | Payments | money | USD | 10 | 3 | 3 | 0 | 0 | 16 | 4
        search | search | money | USD | 0 | 1 | 0 | 0 | 0 | 1 | 2
        platform | platform | rest | USD | 0 | 0 | 0 | 0.25 | 0 | 0.25 | 1
        UNALLOCATED | UNALLOCATED | UNALLOCATED | USD | 0 | 0 | 0 | 0 | 5 | 5 | 2
    """,
    "cost_by_team": """
        team | currency | direct | usage | shared | operator | unallocated | total | rows
        money | EUR | 0 | 0 | 3 | 0 | 0 | 3 | 1
        rest | EUR | 0 | 0 | 0 | 2 | 0 | 2 | 1
        money | USD | 10 | 4 | 3 | 0 | 0 | 17 | 6
        rest | USD | 0 | 0 | 0 | 0.25 | 0 | 0.25 | 1
        UNALLOCATED | USD | 0 | 0 | 0 | 0 | 5 | 5 | 2
    """,
    # The taxed line of account 111 had weights of its own: it does not count among those that asked in vain.
    "empty_keys": """
        rule_id | part | rung | basis | metric | reason | currency | days | lines | amount
        pool:help | 1 | 0 | usage | seats | zero_key_total | EUR | 1 | 1 | 3
        pool:nat | 0 | 0 | weighted | hours | empty_key | USD | 1 | 2 | 4
        pool:tax | 0 | 0 | cost | service_account | empty_key | USD | 1 | 1 | 4
        pool:tax | 0 | 1 | cost | account | empty_key | USD | 1 | 1 | 4
    """,
    "pool_vs_allocated": """
        billing_period | rule_id | currency | billed | identities | operator | unallocated | difference | lines
        2024-01 | pool:help | EUR | 5 | 3 | 2 | 0 | 0 | 1
        2024-01 | direct | USD | 10 | 10 | 0 | 0 | 0 | 1
        2024-01 | pool:nat | USD | 4 | 4 | 0 | 0 | 0 | 2
        2024-01 | pool:tax | USD | 7 | 3 | 0 | 4 | 0 | 2
        2024-01 | untagged | USD | 1 | 0 | 0 | 1 | 0 | 1
        2024-02 | direct | USD | 0.25 | 0 | 0.25 | 0 | 0 | 1
    """,
    "unallocated_by_reason": """
        currency | class | reason | rule_id | amount | lines | days
        USD | no_weight | empty_key | pool:tax | 4 | 1 | 1
        USD | untagged | untagged | untagged | 1 | 1 | 1
    """,
    "untagged_by_service": """
        currency | product_category | product_type | untagged | pooled | unallocated | lines
        EUR | AWSSupport | Support | 5 | 5 | 0 | 1
        USD | Tax | Tax | 7 | 3 | 4 | 2
        USD | AmazonEC2 | NatGateway | 4 | 4 | 0 | 2
        USD | AmazonS3 | Storage | 1 | 0 | 1 | 1
    """,
}


def test_every_report_is_tested() -> None:
    assert sorted(EXPECTED) == names("reports")


@pytest.mark.parametrize("name", EXPECTED)
def test_report(root: Path, name: str) -> None:
    assert report(root, name) == "\n".join(line.strip() for line in EXPECTED[name].strip().splitlines())


def test_days_are_asked_for_from_a_first_to_before_an_end(root: Path) -> None:
    head = "currency | billed | allocated | difference | unallocated | lines | rows"
    first, second, late = date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 31)
    assert report(root, "billed_and_allocated", None, second) == f"{head}\nUSD | 14 | 14 | 0 | 0 | 3 | 5"
    assert report(root, "billed_and_allocated", first, second) == f"{head}\nUSD | 14 | 14 | 0 | 0 | 3 | 5"
    assert report(root, "billed_and_allocated", late) == f"{head}\nUSD | 0.25 | 0.25 | 0 | 0 | 1 | 1"
    assert report(root, "billed_and_allocated", second, late) == (
        f"{head}\nEUR | 5 | 5 | 0 | 0 | 1 | 2\nUSD | 8 | 8 | 0 | 5 | 3 | 3"
    )


def test_without_a_tenant_all_are_reported_each_by_itself(root: Path) -> None:
    assert report(root, "unallocated_by_reason", tenant=None) == (
        "tenant_id | currency | class | reason | rule_id | amount | lines | days\n"
        "acme | USD | no_weight | empty_key | pool:tax | 4 | 1 | 1\n"
        "acme | USD | untagged | untagged | untagged | 1 | 1 | 1\n"
        "beta | USD | untagged | untagged | untagged | 1 | 1 | 1"
    )


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("tenant", ["nobody", "' OR 1 = 1 --", "acme' --", "%"])
def test_a_tenant_without_rows_has_an_empty_report(root: Path, name: str, tenant: str) -> None:
    assert "\n" not in report(root, name, tenant=tenant)


def test_a_report_that_does_not_exist_is_refused(root: Path) -> None:
    with pytest.raises(StoreError, match=r"^sql/reports: no SQL file named '\.\./views/billing'; expected one of "):
        report(root, "../views/billing")
