"""What landed answers say is neither lost nor taken for less: by the next run, by a replay, without state.db.

A gather that was not folded is taken in as of its own day. What was published, and is gone or cannot be read, keeps
what is stored. What a gather said is published again where the lake says something else.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from engine.errors import StoppedError, StoreError
from engine.sources import confluent
from engine.sources.landing import Landing
from engine.state import open_state
from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served
from tests.integration.confluent import FIRST, Tenant, day

DAYS = 8
TODAY = day(DAYS)
KEPT = {"KAFKA_STORAGE", "KSQL_NUM_CSU", "FLINK_NUM_CFU"}
COSTS = confluent.costs_name((FIRST, TODAY))
ALL_LANDED = "inventory landed"


@pytest.fixture
def server() -> Iterator[Server]:
    organization = bundled(FIRST, DAYS)
    for when, records in organization.costs.items():
        organization.costs[when] = [one for one in records if one["line_type"] in KEPT]
    with served(organization) as found:
        yield found


@pytest.fixture
def tenant(tmp_path: Path, server: Server) -> Tenant:
    return Tenant(tmp_path / "conf", server, lookback_days="10")


def replay(tenant: Tenant, today: date = TODAY, hour: int = 9) -> tuple[int, tuple[str, ...]]:
    done = tenant.run(today, "recalculate", {}, hour=hour, replay=True)
    return done.exit_code, done.faults


def landing(tenant: Tenant, gather_id: int) -> Landing:
    return Landing(tenant.root / f"raw/confluent_cloud/conf/gathers/{gather_id:06}")


def spoil(tenant: Tenant, gather_id: int, name: str, text: str, other: str) -> None:
    """Another text in an answer that was landed, as if it had come so."""
    where = landing(tenant, gather_id)
    pages = where.read(name)
    assert any(text in page.text for page in pages)
    where.write(name, [page._replace(text=page.text.replace(text, other)) for page in pages])


def storage(server: Server, when: date, amount: int) -> None:
    record = server.organization.find(when, "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(amount))


def all_stop(server: Server) -> None:
    """From now on no statement runs, and a ksqlDB has another owner."""
    for one in server.organization.inventory["flink_statements"].values():
        one.body["status"]["phase"] = "STOPPED"
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")


def ran_on(tenant: Tenant, when: date) -> set[str]:
    """The statements that are known to have run on a day."""
    return set(tenant.table("usage").filter(metric="running_statements", window=str(when))["principal"])


def owners(tenant: Tenant) -> list[tuple[str, str]]:
    return tenant.query("SELECT valid_from, owner FROM resources WHERE id = 'lksqlc-prod1' ORDER BY 1")


# Gathers that were not folded


def test_what_a_run_landed_before_it_failed_is_taken_in_as_of_its_own_day(tenant: Tenant, server: Server) -> None:
    assert tenant.run(day(6)).exit_code == 0
    fails(tenant, day(7))
    all_stop(server)
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_pending, tenant.total()) == (0, 0, server.organization.total())
    assert ran_on(tenant, day(7)) == ran_on(tenant, day(6)) != set()
    assert (ran_on(tenant, TODAY), owners(tenant)) == (set(), [("", "sa-ksql"), (str(TODAY), "u-bob")])


def fails(tenant: Tenant, today: date) -> tuple[str, ...]:
    """A run that lands all, and cannot publish it."""
    in_the_way = tenant.root / f"lake/billing/tenant_id=conf/month=2025-09/{day(6)}.parquet"
    (in_the_way / "x").mkdir(parents=True)
    with pytest.raises(StoreError) as raised:
        tenant.run(today)
    shutil.rmtree(in_the_way)
    assert all(str(in_the_way) in text for text in raised.value.faults)
    return raised.value.faults


def test_what_cannot_be_taken_in_is_told_and_landed_for_a_replay(tenant: Tenant, server: Server) -> None:
    assert tenant.run(day(6)).exit_code == 0
    fails(tenant, day(7))
    all_stop(server)
    told, _ = fails(tenant, TODAY)
    assert told.startswith("what 2025-09-08T00:00:00Z landed: ")
    assert told.endswith("`prorata recalculate --replay` takes it in")
    assert tenant.run(day(9)).exit_code == 0
    assert replay(tenant, day(9)) == (0, ())
    assert ran_on(tenant, day(7)) == ran_on(tenant, day(6)) != set()
    assert (ran_on(tenant, TODAY), owners(tenant)) == (set(), [("", "sa-ksql"), (str(TODAY), "u-bob")])


def test_an_inventory_that_could_not_be_read_is_folded_by_a_replay_that_can(tenant: Tenant, server: Server) -> None:
    tenant.run(day(6))
    with pytest.raises(StoppedError):
        tenant.run(day(7), stop_at=ALL_LANDED)
    good = max((page.text for page in landing(tenant, 2).read("connectors")), key=len)
    spoil(tenant, 2, "connectors", good, "[1]")
    all_stop(server)
    done = tenant.run(TODAY)
    assert (done.exit_code, ran_on(tenant, day(7))) == (0, set())
    assert any("the inventory of 2025-09-08T00:00:00Z is left out: " in text for text in done.warnings)
    before = tenant.files()
    assert replay(tenant) == (0, ())
    assert tenant.files() == before
    # What another parser would understand.
    spoil(tenant, 2, "connectors", "[1]", good)
    assert replay(tenant) == (0, ())
    assert ran_on(tenant, day(7)) == ran_on(tenant, day(6)) != set()
    assert (ran_on(tenant, TODAY), owners(tenant)) == (set(), [("", "sa-ksql"), (str(TODAY), "u-bob")])
    assert tenant.query("SELECT status, folded FROM gathers") == [("done", 1), ("failed", 1), ("done", 1)]


# Answers that were published, and are not there any more, or not to be read


@pytest.mark.parametrize(("what", "code"), [("missing", 14), ("refused", 12)])
def test_a_replay_takes_no_older_costs_than_were_published(
    tenant: Tenant, server: Server, what: str, code: int
) -> None:
    tenant.run(TODAY, hour=1)
    storage(server, day(3), 977)
    tenant.run(TODAY, hour=2)
    before = tenant.files()
    [name] = [one for one in landing(tenant, 2).names() if one.startswith("costs-2025-09")]
    if what == "missing":
        landing(tenant, 2).drop(name)
    else:
        spoil(tenant, 2, name, "977", '"abc"')
    found, told = replay(tenant)
    assert (found, len(told), tenant.files() == before) == (code, 1, True)
    assert ("000002" in told[0] and "costs" in told[0]) or "abc" in told[0]
    assert tenant.total() == server.organization.total()


def test_costs_that_a_killed_run_landed_are_replayed_by_the_run_that_took_them_over(tenant: Tenant) -> None:
    with pytest.raises(StoppedError):
        tenant.run(date(2025, 9, 30), stop_at=ALL_LANDED)
    # September is landed with the first gather only.
    assert tenant.run(date(2025, 10, 1)).exit_code == 0
    before = tenant.files()
    assert replay(tenant, date(2025, 10, 1)) == (0, ())
    assert tenant.files() == before


def test_costs_are_published_again_where_the_lake_says_something_else(tenant: Tenant, server: Server) -> None:
    storage(server, day(3), 977)
    tenant.run(TODAY, hour=1)
    [name] = [one for one in landing(tenant, 1).names() if one.startswith("costs-2025-09")]
    # What another parser would understand, for a while.
    spoil(tenant, 1, name, "977", "978")
    assert (replay(tenant), tenant.total()) == ((0, ()), server.organization.total() + 1)
    done = tenant.run(TODAY, hour=10)
    assert (done.days_gathered, tenant.total()) == (1, server.organization.total())
    assert tenant.run(TODAY, hour=11).days_gathered == 0


# Without state.db


def lose_state(tenant: Tenant) -> None:
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (tenant.root / name).unlink(missing_ok=True)


@pytest.mark.parametrize("kept", ["no state", "older state"])
def test_what_existed_when_is_known_again_from_the_lake(
    tmp_path: Path, tenant: Tenant, server: Server, kept: str
) -> None:
    tenant.run(day(3))
    with sqlite3.connect(tenant.root / "state.db") as now, sqlite3.connect(tmp_path / "older.db") as older:
        now.backup(older)
    now.close()
    older.close()
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    tenant.run(day(4))
    tenant.run(TODAY)
    before = tenant.files()
    lose_state(tenant)
    if kept == "older state":
        shutil.copy(tmp_path / "older.db", tenant.root / "state.db")
    # Whoever reads the landed answers first is told, and loses nothing.
    assert replay(tenant) == (0, ())
    assert "inventories are not read again: state.db does not know all gathers" in tenant.logged[-1] + str(
        tenant.logged
    )
    done = tenant.run(TODAY, hour=10)
    assert (done.exit_code, owners(tenant)) == (0, [("", "sa-ksql"), (str(day(4)), "u-bob")])
    assert tenant.files() == before


def test_that_nobody_knows_what_existed_when_is_told(tenant: Tenant) -> None:
    tenant.run(TODAY)
    lose_state(tenant)
    shutil.rmtree(tenant.root / "lake")
    told = "the lake does not say what existed when, and state.db does not know all gathers: changes are lost"
    assert told in tenant.run(TODAY, hour=1).warnings
    assert told not in tenant.run(TODAY, hour=2).warnings


def test_a_gather_that_went_well_ends_the_failures_in_a_row_in_the_same_step(tenant: Tenant, server: Server) -> None:
    server.organization.denied["api_keys"] = 500
    tenant.run(TODAY, hour=1)
    server.organization.denied.clear()
    with open_state(tenant.root) as store, store.transaction() as connection:
        connection.execute(
            "CREATE TRIGGER dies BEFORE DELETE ON gather_failures BEGIN SELECT RAISE(ABORT, 'dies here'); END"
        )
    with pytest.raises(sqlite3.IntegrityError, match="dies here"):
        tenant.run(TODAY, hour=2)
    assert tenant.query("SELECT status, folded FROM gathers") == [("failed", 1), ("open", 0)]
