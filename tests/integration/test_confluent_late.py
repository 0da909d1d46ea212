"""Inventories that are folded late, by a replay that can read them: what they say is known then, and nothing is lost.

Neither the usage of their days, if that is lost, nor what gathers said that are no longer kept.
"""

from __future__ import annotations

import shutil
import sqlite3
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from engine.errors import StoppedError
from engine.state import open_state
from tests.doubles.confluent_cloud import Server
from tests.integration.confluent import Tenant, day
from tests.integration.measured import TODAY
from tests.integration.test_confluent_replay import ALL_LANDED, landing, owners, ran_on, replay, spoil
from tests.integration.test_confluent_usage import file_of, lose_state, tear

LATE = day(7)
"""The day whose inventory is folded late."""


def left_out(tenant: Tenant, number: int = 2, when: date = LATE) -> str:
    """An inventory of a day that no parser understands, of the gather of this number, and what it said."""
    tenant.run(when - timedelta(days=1))
    with pytest.raises(StoppedError):
        tenant.run(when, stop_at=ALL_LANDED)
    good = max((page.text for page in landing(tenant, number).read("connectors")), key=len)
    spoil(tenant, number, "connectors", good, "[1]")
    return good


def usage_of(tenant: Tenant, when: date) -> pl.DataFrame:
    return tenant.table("usage").filter(window=str(when)).sort("resource_id", "metric", "principal")


# Usage of its day that is lost


@pytest.mark.parametrize("how", ["gone", "torn", "gone, without metrics"])
def test_what_a_late_inventory_says_does_not_pass_for_the_usage_that_its_day_lost(
    tenant: Tenant, expired: str, measured: str, how: str
) -> None:
    good = left_out(tenant)
    assert tenant.run(TODAY).exit_code == 0
    metered, charged = usage_of(tenant, LATE), tenant.table("chargeback")
    assert (metered.height > 0, ran_on(tenant, LATE)) == (True, set())
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    if how == "torn":
        tear(file_of(tenant, "usage", 7))
    else:
        file_of(tenant, "usage", 7).unlink()
    spoil(tenant, 2, "connectors", "[1]", good)
    metrics = tenant.tenant["metrics"]
    tenant.write(metrics=None if how == "gone, without metrics" else metrics | {"url": expired})
    assert replay(tenant) == (0, ())
    done = tenant.run(TODAY, hour=10)
    assert (done.exit_code, tenant.table("chargeback").equals(charged)) == (0, True)
    assert any("usage of 1 day (2025-09-08) is lost, and cannot be had now" in text for text in done.warnings)
    # What it lost is asked for until it is whole again, and then it has what ran, too.
    tenant.write(metrics=metrics | {"url": measured})
    assert tenant.run(TODAY, hour=11).exit_code == 0
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    assert usage_of(tenant, LATE).filter(pl.col("metric") != "running_statements").equals(metered)


@pytest.mark.parametrize("how", ["gone", "torn", "there"])
def test_without_metrics_a_late_inventory_says_all_there_is_of_its_day(tenant: Tenant, how: str) -> None:
    tenant.write(metrics=None)
    good = left_out(tenant)
    # The run that goes on with it ends, and the one after it asks anew.
    assert [tenant.run(LATE, hour=hour).exit_code for hour in (20, 21)] == [12, 0]
    assert tenant.run(TODAY).exit_code == 0
    once = usage_of(tenant, LATE)
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    if how == "gone":
        file_of(tenant, "usage", 7).unlink()
    elif how == "torn":
        tear(file_of(tenant, "usage", 7))
    spoil(tenant, 2, "connectors", "[1]", good)
    assert replay(tenant) == (0, ())
    assert usage_of(tenant, LATE).equals(once)
    assert tenant.run(TODAY, hour=10).warnings == ()


# When the first gathers are no longer kept


def forgets(tenant: Tenant) -> None:
    """From now on answers are kept for two days, and what a replay makes of inventories shows in few products."""
    tenant.write(metrics=None, retention_days="2")


def numbers(tenant: Tenant) -> list[int]:
    """The gathers whose answers are kept."""
    folders = (tenant.root / "raw/confluent_cloud/conf/gathers").iterdir()
    found = sorted(int(one.name) for one in folders)
    assert tenant.query("SELECT gather_id FROM gathers ORDER BY 1") == [(number,) for number in found]
    return found


def known(tenant: Tenant) -> list[list[tuple[object, ...]]]:
    """All that is known of entities."""
    return [tenant.query(f"SELECT * FROM {name}") for name in ("resources", "identities", "zero_gathers")]


def test_an_inventory_is_folded_late_although_the_first_gathers_are_no_longer_kept(
    tenant: Tenant, server: Server
) -> None:
    forgets(tenant)
    tenant.run(day(3))
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-alice")
    tenant.run(day(4))
    good = left_out(tenant, 4)
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    tenant.run(TODAY)
    assert (numbers(tenant), ran_on(tenant, LATE)) == ([3, 4, 5], set())
    before = known(tenant)
    assert replay(tenant) == (0, ())
    assert known(tenant) == before
    spoil(tenant, 4, "connectors", "[1]", good)
    assert replay(tenant) == (0, ())
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    assert owners(tenant) == [("", "sa-ksql"), (str(day(4)), "u-alice"), (str(TODAY), "u-bob")]
    assert tenant.query("SELECT folded FROM gathers") == [(1,), (1,), (1,)]
    assert replay(tenant) == (0, ())
    assert not any("not read again" in text for text in tenant.logged)


@pytest.mark.parametrize("how", ["an older version", "a torn inventory"])
def test_where_nobody_knows_what_there_was_a_replay_reads_what_is_gathered_from_then_on(
    tenant: Tenant, server: Server, how: str
) -> None:
    forgets(tenant)
    tenant.run(day(3))
    tenant.run(day(4))
    good = left_out(tenant, 4)
    if how == "a torn inventory":
        tear(landing(tenant, 2).path("users"))
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    done = tenant.run(TODAY)
    told = [text for text in done.warnings if "no replay will read inventories again" in text]
    assert ["000002/users" in text for text in told] == ([True] if how == "a torn inventory" else [])
    if how == "an older version":
        with open_state(tenant.root) as store, store.transaction() as connection:
            for name in ("bases", "base_resources", "base_identities"):
                connection.execute(f"DELETE FROM {name}")
    before = known(tenant)
    spoil(tenant, 4, "connectors", "[1]", good)
    assert replay(tenant) == (0, ())
    assert (
        tenant.logged.count(
            "conf: warning: inventories up to 2025-09-09T00:00:00Z are not read again: "
            "the first ones are no longer kept"
        )
        == 1
    )
    # What ran depends on no other inventory.
    assert known(tenant) == before
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    file_of(tenant, "usage", 7).unlink()
    assert tenant.run(day(9)).exit_code == 0
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6))
    # From then on all is read again.
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-alice")
    later = left_out(tenant, 7, day(10))
    tenant.run(day(11))
    spoil(tenant, 7, "connectors", "[1]", later)
    assert replay(tenant, day(11)) == (0, ())
    assert owners(tenant) == [("", "sa-ksql"), (str(TODAY), "u-bob"), (str(day(9)), "u-alice")]
    assert ran_on(tenant, day(10)) == ran_on(tenant, day(6))


@pytest.mark.parametrize("table", ["identities", "bases"])
def test_a_replay_begins_with_what_the_lake_has_where_all_else_is_lost(
    tenant: Tenant, server: Server, table: str
) -> None:
    tenant.run(day(3))
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    tenant.run(TODAY)
    lose_state(tenant)
    shutil.rmtree(tenant.root / "raw")
    # All of it is known again, or nothing: a run that dies meanwhile leaves it to the next one.
    with open_state(tenant.root) as store, store.transaction() as connection:
        connection.execute(f"CREATE TRIGGER dies BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'dies here'); END")
    with pytest.raises(sqlite3.IntegrityError, match="dies here"):
        tenant.run(TODAY)
    with open_state(tenant.root) as store, store.transaction() as connection:
        connection.execute("DROP TRIGGER dies")
    assert tenant.run(TODAY, hour=1).exit_code == 0
    before = known(tenant)
    assert replay(tenant) == (0, ())
    assert (known(tenant), owners(tenant)) == (before, [("", "sa-ksql"), (str(TODAY), "u-bob")])


@pytest.mark.parametrize("gone", ["nothing", "raw", "raw/confluent_cloud/conf/gathers"])
def test_an_older_state_learns_from_the_lake_what_existed_when_though_raw_answers_are_gone(
    tenant: Tenant, server: Server, tmp_path: Path, gone: str
) -> None:
    tenant.write(metrics=None)
    tenant.run(day(3))
    older = shutil.copy(tenant.root / "state.db", tmp_path / "older.db")
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-alice")
    for when in (day(6), TODAY):
        tenant.run(when)
    before, charged = owners(tenant), tenant.files(["chargeback"])
    lose_state(tenant)
    shutil.copy(older, tenant.root / "state.db")
    shutil.rmtree(tenant.root / gone, ignore_errors=True)
    assert tenant.run(TODAY, hour=5).exit_code == 0
    assert (owners(tenant), tenant.files(["chargeback"]) == charged) == (before, True)
