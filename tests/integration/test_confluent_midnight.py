"""A run that is stopped and goes on, on the same day or after midnight, asks only for what it lacks.

Windows of costs that a stopped run landed whole are not asked for again on that day and the next. An inventory is of
the day on which it was landed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from engine import pipeline, plan
from engine.errors import ConfigError, StoppedError
from engine.sources import confluent
from engine.sources.confluent import Window
from engine.work import Summary
from tests.doubles import confluent_cloud as faults
from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import COSTS, Server, served
from tests.integration.confluent import VARIABLES, Tenant

FIRST, TODAY = date(2025, 8, 28), date(2025, 10, 3)
"""The days of the bill lie in three months, and so the costs of a run in three windows."""
BILLED = {
    date(2025, 8, 28),
    date(2025, 8, 31),
    date(2025, 9, 1),
    date(2025, 9, 10),
    date(2025, 10, 1),
    date(2025, 10, 2),
}
TOMORROW = TODAY + timedelta(days=1)
KEPT = {"KAFKA_STORAGE", "KSQL_NUM_CSU", "SUPPORT", "FLINK_NUM_CFU"}
LOOKBACK = (TODAY - FIRST).days
AUGUST, SEPTEMBER, OCTOBER = confluent.cost_windows(TODAY - timedelta(days=LOOKBACK), TODAY)
OCTOBER_OF_TOMORROW = OCTOBER[0], TOMORROW


@pytest.fixture
def server() -> Iterator[Server]:
    organization = bundled(FIRST, (TODAY - FIRST).days)
    for when, records in organization.costs.items():
        organization.costs[when] = [one for one in records if when in BILLED and one["line_type"] in KEPT]
    with served(organization) as found:
        yield found


@pytest.fixture
def tenant(tmp_path: Path, server: Server) -> Tenant:
    return Tenant(tmp_path / "conf", server, lookback_days=str(LOOKBACK))


def landed(days: Window) -> str:
    """What a run says when it has landed a window."""
    return f"costs {days[0]} to before {days[1]} landed"


ALL_LANDED, FOLDED = "inventory landed", "inventory: "
"""What a run says when it has landed all, and when it has published all."""
POINTS = {
    "one window landed": (landed(AUGUST), {SEPTEMBER, OCTOBER_OF_TOMORROW}),
    "two windows landed": (landed(SEPTEMBER), {OCTOBER_OF_TOMORROW}),
    "costs landed": (landed(OCTOBER), {OCTOBER_OF_TOMORROW}),
    "all landed, nothing published": (ALL_LANDED, {OCTOBER_OF_TOMORROW}),
    "all published": (FOLDED, {OCTOBER_OF_TOMORROW}),
}
"""Where a run is stopped -> what it says then, and the windows that the run after midnight asks for."""


def stopped(tenant: Tenant, at: str, today: date = TODAY, hour: int = 23) -> None:
    with pytest.raises(StoppedError):
        tenant.run(today, hour=hour, stop_at=at)


def asked(server: Server) -> dict[tuple[str, str], int]:
    """How often each window was answered whole since it was last asked."""
    found = dict(server.whole_windows())
    server.forget()
    return found


def once(windows: set[Window]) -> dict[tuple[str, str], int]:
    return {(str(first), str(end)): 1 for first, end in windows}


def revised(server: Server, when: date, amount: int = 77) -> None:
    record = server.organization.find(when, "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(amount))


def ran_on(tenant: Tenant, when: date) -> set[str]:
    """The statements that are known to have run on a day."""
    return set(tenant.table("usage").filter(metric="running_statements", window=str(when))["principal"])


@pytest.fixture
def undisturbed(tmp_path: Path, server: Server) -> dict[str, str]:
    """What there is after two runs that nobody stopped."""
    made = Tenant(tmp_path / "undisturbed", server, lookback_days=str(LOOKBACK))
    for today in (TODAY, TOMORROW):
        assert made.run(today).exit_code == 0
    server.forget()
    return made.files()


def test_a_run_that_lacks_its_secrets_ends_no_gather(tenant: Tenant, server: Server) -> None:
    """It asked nothing, so what was landed before it is as new as it was."""
    stopped(tenant, ALL_LANDED, hour=1)
    server.forget()
    without = {name: value for name, value in VARIABLES.items() if name != "CLOUD_SECRET"}
    with pytest.raises(ConfigError, match="CLOUD_SECRET is not set"):
        tenant.run(TODAY, hour=2, environment=without)
    assert tenant.run(TODAY, hour=3).exit_code == 0
    assert asked(server) == {}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_goes_on_after_midnight_asks_only_for_what_it_lacks(
    tenant: Tenant, server: Server, undisturbed: dict[str, str], point: str
) -> None:
    at, expected = POINTS[point]
    stopped(tenant, at)
    server.forget()
    done = tenant.run(TOMORROW)
    assert (done.exit_code, done.days_pending, asked(server)) == (0, 0, once(expected))
    assert tenant.total() == server.organization.total()
    # Which statements ran on a day that was not gathered to its end nobody knows.
    ran = f"{TODAY}.parquet"
    found = {name: digest for name, digest in tenant.files().items() if not name.endswith(ran)}
    assert found == {name: digest for name, digest in undisturbed.items() if not name.endswith(ran)}
    # That run ended: the next is another pass.
    assert tenant.run(TOMORROW, hour=4).exit_code == 0
    first = TOMORROW - timedelta(days=LOOKBACK)
    assert asked(server) == once({*confluent.cost_windows(first, TOMORROW)})


def test_no_window_is_asked_for_twice_over_two_midnights_unless_it_is_old(tenant: Tenant, server: Server) -> None:
    stopped(tenant, landed(AUGUST))
    stopped(tenant, landed(SEPTEMBER), TOMORROW)
    assert asked(server) == once({AUGUST, SEPTEMBER})
    # What was landed yesterday still counts, what was landed before that is asked for again.
    day_after = TOMORROW + timedelta(days=1)
    done = tenant.run(day_after)
    august = AUGUST[0] + timedelta(days=2), AUGUST[1]
    assert (done.exit_code, asked(server)) == (0, once({august, (OCTOBER[0], day_after)}))


def test_answers_of_the_day_before_yesterday_are_asked_for_again(tenant: Tenant, server: Server) -> None:
    stopped(tenant, landed(OCTOBER))
    revised(server, date(2025, 9, 10))
    server.forget()
    today = TODAY + timedelta(days=2)
    done = tenant.run(today)
    windows = confluent.cost_windows(today - timedelta(days=LOOKBACK), today)
    assert (done.exit_code, asked(server)) == (0, once({*windows}))
    assert tenant.total() == server.organization.total()


def test_what_changed_of_the_window_that_reaches_further_is_there(tenant: Tenant, server: Server) -> None:
    stopped(tenant, landed(OCTOBER))
    revised(server, date(2025, 10, 1))
    server.forget()
    assert tenant.run(TOMORROW).exit_code == 0
    assert tenant.total() == server.organization.total()


@pytest.mark.parametrize("left", ["all kinds", "not the users"])
def test_an_inventory_is_of_the_day_on_which_it_was_landed(tenant: Tenant, server: Server, left: str) -> None:
    # The first day of all, so that what is seen first now was there always.
    assert tenant.run(TODAY - timedelta(days=1)).exit_code == 0
    stopped(tenant, ALL_LANDED)
    if left == "not the users":
        (tenant.root / "raw/confluent_cloud/conf/gathers/000002/users.jsonl.zst").unlink()
    for one in server.organization.inventory["flink_statements"].values():
        one.body["status"]["phase"] = "STOPPED"
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    done = tenant.run(TOMORROW)
    assert (done.exit_code, done.days_pending) == (0, 0)
    assert ran_on(tenant, TODAY - timedelta(days=1)) == ran_on(tenant, TODAY) != set()
    assert ran_on(tenant, TOMORROW) == set()
    assert tenant.query("SELECT valid_from, owner FROM resources WHERE id = 'lksqlc-prod1'") == [
        ("", "sa-ksql"),
        (str(TOMORROW), "u-bob"),
    ]
    assert tenant.query("SELECT status, folded, run_ended FROM gathers") == [
        *[("done", 1, 1), ("failed", 1, 1), ("done", 1, 1)]
    ]
    files = tenant.files()
    assert tenant.run(TOMORROW, "recalculate", {}, hour=4, replay=True).exit_code == 0
    assert tenant.files() == files


def test_a_gather_goes_on_with_the_inventory_of_its_own_day_only(tenant: Tenant, server: Server) -> None:
    stopped(tenant, ALL_LANDED)
    # Days that were asked for yesterday, too.
    tenant.write(lookback_days=str(LOOKBACK + 1), cutoff_days="1")
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    server.forget()
    assert tenant.run(TOMORROW).exit_code == 0
    assert (asked(server), server.counted()) == ({}, 0)
    assert tenant.query("SELECT valid_from FROM resources WHERE id = 'lksqlc-prod1' ORDER BY 1") == [
        ("",),
        (str(TOMORROW),),
    ]


def test_a_window_that_failed_or_could_not_be_read_is_told_after_midnight_too(tenant: Tenant, server: Server) -> None:
    revised(server, date(2025, 9, 10))
    record = server.organization.find(date(2025, 9, 10), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount="abc")
    stopped(tenant, ALL_LANDED)
    done = tenant.run(TOMORROW)
    assert (done.exit_code, len(done.faults)) == (12, 1)
    server.organization.revise(record["id"], amount=Decimal(5))
    assert tenant.run(TOMORROW, hour=2).exit_code == 0
    assert tenant.total() == server.organization.total()


def test_the_plan_says_what_goes_on_after_midnight(tenant: Tenant) -> None:
    stopped(tenant, landed(SEPTEMBER))
    config = pipeline.configured(tenant.file)

    def reasons(today: date) -> dict[str, str]:
        [found] = plan.plan(config, config.tenants, today)
        return {day.charge_date: day.gather_reason for day in found.days}

    found = reasons(TOMORROW)
    assert (found[str(AUGUST[0] + timedelta(days=1))], found[str(TODAY)]) == ("gather_unfinished", "in_window")
    assert set(reasons(TOMORROW + timedelta(days=1)).values()) == {"in_window", "too_recent"}


# Torn answers


def torn(tenant: Tenant, name: str, gather_id: int = 1) -> Path:
    """Cut an answer that a gather landed."""
    file = tenant.root / f"raw/confluent_cloud/conf/gathers/{gather_id:06}/{name}.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-20])
    return file


def told(done: Summary, file: Path) -> int:
    """How often a run says that an answer is torn, and that it is asked for again."""
    found = [text for text in done.warnings if str(file) in text]
    assert [text for text in found if not text.endswith("expected landed answers, whole; it is asked for again")] == []
    return len(found)


@pytest.mark.parametrize("today", [TODAY, TOMORROW])
@pytest.mark.parametrize("point", ["two windows landed", "all landed, nothing published", "all published"])
def test_torn_costs_are_asked_for_again_by_the_run_that_goes_on(
    tenant: Tenant, server: Server, point: str, today: date
) -> None:
    stopped(tenant, POINTS[point][0], hour=1)
    file = torn(tenant, confluent.costs_name(SEPTEMBER))
    server.forget()
    done = tenant.run(today, hour=2)
    assert (done.exit_code, done.days_pending) == (0, 0)
    assert told(done, file) == 1
    lacking = {OCTOBER} if point == "two windows landed" else set[Window]()
    rest = {OCTOBER_OF_TOMORROW} if today == TOMORROW else lacking
    assert asked(server) == once({SEPTEMBER, *rest})
    assert tenant.total() == server.organization.total()


def test_a_torn_inventory_is_asked_for_again_by_the_run_that_goes_on(tenant: Tenant, server: Server) -> None:
    stopped(tenant, ALL_LANDED, hour=1)
    file = torn(tenant, "users")
    server.forget()
    done = tenant.run(TODAY, hour=2)
    assert (done.exit_code, server.counted(), server.passes("/iam/v2/users")) == (0, 1, 1)
    assert told(done, file) == 1


def test_torn_costs_that_cannot_be_had_again_fail_as_any_window_does(tenant: Tenant, server: Server) -> None:
    stopped(tenant, FOLDED, hour=1)
    torn(tenant, confluent.costs_name(SEPTEMBER))
    server.script(COSTS, faults.status(500))
    done = tenant.run(TODAY, hour=2)
    assert (done.exit_code, len(done.faults)) == (11, 1)
    assert done.faults[0].startswith(f"costs {SEPTEMBER[0]} to before {SEPTEMBER[1]}: ")
    # All was published before it was torn, and a replay knows that an answer is missing.
    assert tenant.total() == server.organization.total()
    assert tenant.run(TODAY, "recalculate", {}, hour=3, replay=True).exit_code == 14
    assert tenant.total() == server.organization.total()
    assert tenant.run(TODAY, hour=3).exit_code == 0


def test_a_torn_inventory_of_yesterday_is_left_out(tenant: Tenant, server: Server) -> None:
    stopped(tenant, ALL_LANDED)
    file = torn(tenant, "users")
    done = tenant.run(TOMORROW)
    assert (done.exit_code, done.days_pending, tenant.total()) == (0, 0, server.organization.total())
    assert told(done, file) == 1
