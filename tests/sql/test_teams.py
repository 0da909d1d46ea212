"""Names and teams beside amounts: joined to every row once, whatever the tables hold, and never part of an amount."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from engine import teams, warehouse
from engine.emitters import sqlite
from engine.frames import CHARGEBACK, IDENTITIES, TEAMS
from tests.sql.lakes import queried, stored, table, text
from tests.unit.cases import tenant

CHARGED = table(
    CHARGEBACK,
    """
    tenant_id | billing_period | charge_date | line_id | identity_id | currency | amount         | cost_type
    acme      | 2024-01        | 2024-01-30  | 1       | sa-1        | USD      | 1.000000000001 | usage
    acme      | 2024-01        | 2024-01-30  | 2       | sa-2        | USD      | 2              | usage
    acme      | 2024-01        | 2024-01-31  | 3       | sa-1        | EUR      | -4             | shared
    acme      | 2024-01        | 2024-01-31  | 4       | lkc-9       | USD      | 8              | shared
    acme      | 2024-01        | 2024-01-31  | 5       | UNALLOCATED | USD      | 16             | shared
    beta      | 2024-01        | 2024-01-31  | 1       | sa-1        | USD      | 32             | usage
    gone      | 2024-01        | 2024-01-31  | 1       | sa-1        | USD      | 64             | usage
    gone      | 2024-01        | 2024-01-31  | 2       | UNALLOCATED | USD      | 128            | shared
    """,
    part="0",
    ecosystem="confluent_cloud",
)
KNOWN = table(
    IDENTITIES,
    """
    tenant_id | id          | type            | display_name  | valid_from | valid_to
    acme      | sa-1        | service_account | old name      | -          | 2024-01-31
    acme      | sa-1        | service_account | orders        | 2024-01-31 | -
    acme      | sa-2        | service_account |               | -          | -
    acme      | UNALLOCATED | system          | UNALLOCATED   | -          | -
    beta      | sa-1        | operator        | =their orders | -          | -
    """,
)
MEMBERS = table(
    TEAMS,
    """
    tenant_id | identity_id | team
    acme      |             | rest
    acme      | sa-1        | pay
    acme      | sa-2        | ship
    beta      |             | others
    beta      | sa-1        | =pay
    """,
)
NAMED = """
    SELECT tenant_id, identity_id, identity_name, team, cost_class, currency, amount
    FROM chargeback_named ORDER BY tenant_id, line_id
"""
TOTALS = "SELECT tenant_id, currency, sum(amount) AS amount, {} AS rows FROM {} GROUP BY ALL ORDER BY ALL"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("store"), (CHARGEBACK, CHARGED), (IDENTITIES, KNOWN), (TEAMS, MEMBERS))


def test_every_row_has_the_name_and_the_team_of_now(root: Path) -> None:
    """One id in three tenants; a name that changed; a resource; a tenant that has no table at all."""
    assert text(queried(root, NAMED)) == (
        "tenant_id | identity_id | identity_name | team | cost_class | currency | amount\n"
        "acme | sa-1 | orders | pay | usage | USD | 1.000000000001\n"
        "acme | sa-2 | sa-2 | ship | usage | USD | 2\n"
        "acme | sa-1 | orders | pay | shared | EUR | -4\n"
        "acme | lkc-9 | lkc-9 | rest | shared | USD | 8\n"
        "acme | UNALLOCATED | UNALLOCATED | UNALLOCATED | unallocated | USD | 16\n"
        "beta | sa-1 | =their orders | =pay | operator | USD | 32\n"
        "gone | sa-1 | sa-1 | UNASSIGNED | usage | USD | 64\n"
        "gone | UNALLOCATED | UNALLOCATED | UNALLOCATED | unallocated | USD | 128"
    )


@pytest.mark.parametrize("view", ["chargeback_daily", "chargeback_monthly", "chargeback_dimensions"])
def test_every_view_of_payers_can_be_grouped_by_team(root: Path, view: str) -> None:
    pairs = f"SELECT DISTINCT tenant_id, identity_id, identity_name, team FROM {view} ORDER BY ALL"
    assert text(queried(root, pairs)) == (
        "tenant_id | identity_id | identity_name | team\n"
        "acme | UNALLOCATED | UNALLOCATED | UNALLOCATED\n"
        "acme | lkc-9 | lkc-9 | rest\n"
        "acme | sa-1 | orders | pay\n"
        "acme | sa-2 | sa-2 | ship\n"
        "beta | sa-1 | =their orders | =pay\n"
        "gone | UNALLOCATED | UNALLOCATED | UNALLOCATED\n"
        "gone | sa-1 | sa-1 | UNASSIGNED"
    )


def doubled(of: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([of, of, of.with_columns(pl.lit("x").alias("team" if "team" in of.columns else "display_name"))])


@pytest.mark.parametrize(
    ("identities", "members"),
    [(KNOWN, MEMBERS), (KNOWN.head(0), MEMBERS.head(0)), (KNOWN, MEMBERS.head(0)), (KNOWN.head(0), MEMBERS),
     (doubled(KNOWN), doubled(MEMBERS)), (KNOWN.head(1), MEMBERS.tail(1))],
    ids=["all", "none", "no teams", "no identities", "twice and twice again", "some"],
)  # fmt: skip
def test_no_row_is_lost_or_doubled_whatever_the_tables_hold(
    tmp_path: Path, identities: pl.DataFrame, members: pl.DataFrame
) -> None:
    root = stored(tmp_path, (CHARGEBACK, CHARGED), (IDENTITIES, identities), (TEAMS, members))
    plain = text(queried(root, TOTALS.format("count(*)", "chargeback")))
    assert text(queried(root, TOTALS.format("count(*)", "chargeback_named"))) == plain
    for view in ("chargeback_daily", "chargeback_monthly"):
        assert text(queried(root, TOTALS.format("sum(rows)::BIGINT", view))) == plain
    for report in ("cost_by_identity", "cost_by_team"):
        with warehouse.open_lake(root) as lake:
            found = warehouse.report(lake, report, tenant_id=None, from_date=None, to_date=None)
        sums = found.group_by("tenant_id", "currency").agg(pl.col("total", "rows").sum())
        amounts = sums.sort("tenant_id", "currency").rename({"total": "amount"})
        assert text(amounts.with_columns(pl.col("rows").cast(pl.Int64))) == plain
    star = "(SELECT * FROM chargeback_facts JOIN chargeback_dimensions USING (tenant_id, dimension_id))"
    assert text(queried(root, TOTALS.format("0", star)).drop("rows")) == text(
        queried(root, TOTALS.format("0", "chargeback")).drop("rows")
    )


def test_a_dimension_keeps_its_id_when_a_team_changes(tmp_path: Path) -> None:
    other = MEMBERS.with_columns(team=pl.lit("another"))
    before = stored(tmp_path / "before", (CHARGEBACK, CHARGED), (TEAMS, MEMBERS))
    after = stored(tmp_path / "after", (CHARGEBACK, CHARGED), (TEAMS, other))
    ids = "SELECT dimension_id FROM chargeback_dimensions ORDER BY ALL"
    assert queried(before, ids).equals(queried(after, ids))


def test_results_db_says_the_same(tmp_path: Path) -> None:
    """The views of both, on the teams that a configuration gives."""
    charged = CHARGED.filter(pl.col("tenant_id") == "acme", pl.col("charge_date").dt.day() == 31)
    known = KNOWN.filter(pl.col("tenant_id") == "acme")
    table_of_teams = {"default": "rest", "members": [{"team": "pay", "name": "order?"}]}
    found = teams.teams(
        tenant(teams=table_of_teams),
        known,
        pl.DataFrame(schema={"id": pl.String, "key": pl.String, "value": pl.String}),
    )
    root = stored(tmp_path, (CHARGEBACK, charged), (IDENTITIES, known), (TEAMS, found))
    with sqlite.open_results(root) as results:
        sqlite.emit_day(results, "acme", "2024-01", "2024-01-31", charged)
        sqlite.put_payers(results, "acme", teams.payers(known, found))
        named = results.rows("SELECT identity_id, identity_name, team, amount FROM chargeback_named ORDER BY 1, 4")
        totals = results.rows("SELECT team, currency, amount FROM chargeback_team_totals ORDER BY 1, 2")
    view = "SELECT identity_id, identity_name, team, amount::VARCHAR FROM chargeback_named ORDER BY 1, 4"
    assert named == queried(root, view).rows()
    monthly = "SELECT team, currency, sum(amount)::VARCHAR FROM chargeback_monthly GROUP BY ALL ORDER BY 1, 2"
    assert totals == queried(root, monthly).rows()
    assert [row[0] for row in totals] == ["UNALLOCATED", "pay", "rest"]
