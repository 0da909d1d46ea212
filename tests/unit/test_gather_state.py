"""What state.db knows of tenants whose bill comes from an API, and how an older one comes to know it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest

from engine import gather_state as known
from engine import sqlfiles
from engine.frames import IDENTITIES, RESOURCES, from_rows
from engine.state import BillingDay, State, days, open_state, upsert_billing_days

NOW, LATER = "2026-11-20T12:00:00Z", "2026-11-21T12:00:00Z"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with open_state(tmp_path) as opened:
        yield opened


OLDER = sqlfiles.names("state")[:-1]


@pytest.mark.parametrize("version", range(1, len(OLDER) + 1))
def test_a_state_of_an_older_version_keeps_its_days_and_learns_the_rest(tmp_path: Path, version: int) -> None:
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    for name in OLDER[:version]:
        connection.executescript(sqlfiles.read_sql("state", name))
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.execute(
        """
        INSERT INTO pipeline_state (
            ecosystem, tenant_id, billing_period, charge_date, billing_gathered, resources_gathered, metrics_gathered,
            chargeback_calculated, billing_digest, billing_rows, billing_bytes, attempts
        )
        VALUES ('aws', 'acme', '2026-10', '2026-10-01', 1, 1, 1, 0, 'b1', 10, 1000, 0)
        """
    )
    connection.close()
    with open_state(tmp_path) as state:
        assert list(days(state, "acme")) == [("2026-10", "2026-10-01")]
        assert known.gathers(state, "acme") == []
        assert known.begin_gather(state, "conf", NOW, "2026-05-04", "2026-11-15").gather_id == 1
        made = known.ConstructedDay("2026-10-01", "cause", "-0.5")
        known.save_constructed_days(state, "kafka", [made])
        assert known.constructed_days(state, "kafka") == {"2026-10-01": made}
        assert state.rows("PRAGMA user_version") == [(len(OLDER) + 1,)]


def test_an_older_state_knows_which_question_answered_and_of_which_days_it_said_what_ran(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    for name in OLDER[:5]:
        connection.executescript(sqlfiles.read_sql("state", name))
    connection.executescript(
        """
        INSERT INTO gathers VALUES ('conf', 1, 't', 't', '2026-10-01', '2026-10-03', 'done', 1, NULL, '{}', 1, 1);
        INSERT INTO day_metrics VALUES
            ('conf', '2026-10-01', 'bytes_in', 'fetched', '["lkc-1","lkc-2"]', 'b1', 3, 4, 0, 1, 0, NULL),
            ('conf', '2026-10-02', 'bytes_in', 'failed', '["lkc-1"]', 'b1', NULL, 0, 0, 0, 1, '500');
        INSERT INTO usage_days VALUES
            ('conf', '2026-10-01', 'd1', 6, 300), ('conf', '2026-10-03', 'd3', 0, 300),
            ('kafka', '2026-10-01', 'd2', 6, 300);
        """
    )
    connection.close()
    with open_state(tmp_path) as state:
        assert [one.fetches for one in known.day_metrics(state, "conf").values()] == [{"lkc-1": 3, "lkc-2": 3}, {}]
        assert [one.running for one in known.usage_days(state, "conf").values()] == [2, 0]
        assert [one.running for one in known.usage_days(state, "kafka").values()] == [0]


def test_what_days_were_made_of_is_taken_from_what_was_known_of_their_metrics(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    for name in sqlfiles.names("state")[:4]:
        connection.executescript(sqlfiles.read_sql("state", name))
    connection.executemany(
        "INSERT INTO constructed_days (tenant_id, charge_date, cause, rounding_residue) VALUES ('k', ?, 'c', '0')",
        [("2026-10-01",), ("2026-10-02",)],
    )
    connection.executemany(
        """
        INSERT INTO day_metrics (
            tenant_id, charge_date, metric, status, ids, billing_digest, fetch_id, rows, dropped, gaps, attempts, error
        )
        VALUES ('k', '2026-10-01', ?, ?, '["d"]', '', ?, ?, 0, ?, ?, ?)
        """,
        [
            ("ingress", "fetched", 1, 280, 8, 0, None),
            ("egress", "failed", None, 0, 0, 1, "no"),
            ("bytes_in", "fetched", 2, 3, 0, 0, None),
        ],
    )
    connection.close()
    with open_state(tmp_path) as state:
        made = known.constructed_days(state, "k")
        assert {day: (one.model, dict(one.answers)) for day, one in made.items()} == {
            "2026-10-01": ("", {"bytes_in": (3, 0, 3, "d", 2, ""), "ingress": (280, 8, 280, "d", 1, "")}),
            "2026-10-02": ("", {}),
        }
        told = made["2026-10-01"]._replace(model="m", answers={"ingress": known.MadeOf(288, 0, 1, "d", 7, "576")})
        told = told._replace(given_up={"allocation-STO": ("STO", "identities"), "egress": ()})
        known.save_constructed_days(state, "k", [told])
        assert known.constructed_days(state, "k")["2026-10-01"] == told


def test_there_is_one_open_gather_and_another_one_ends_it(state: State) -> None:
    first = known.begin_gather(state, "conf", NOW, "2026-05-04", "2026-11-15")
    known.update_gather(state, first, requests=3, error="500")
    known.begin_gather(state, "conf", LATER, "2026-05-05", "2026-11-16")
    known.begin_gather(state, "other", LATER, "2026-05-05", "2026-11-16")
    found = known.gathers(state, "conf")
    assert [(one.gather_id, one.status, one.requests, one.error, one.ended_at) for one in found] == [
        (1, "failed", 3, "500", LATER),
        (2, "open", 0, None, None),
    ]
    assert known.last_gather(state, "conf") == found[1]


def test_what_is_forgotten_takes_its_windows_along(state: State) -> None:
    one = known.begin_gather(state, "conf", NOW, "2026-10-01", "2026-11-15")
    window = known.LandedWindow("conf", one.gather_id, "2026-10-01", "2026-11-01", "s", 5, 1, "0.5", ["odd"])
    known.record_window(state, window)
    known.record_window(state, window._replace(records=6))
    assert known.windows(state, "conf", 1) == [window._replace(records=6)]
    known.forget_gathers(state, "conf", [1])
    assert (known.windows(state, "conf", 1), known.gathers(state, "conf")) == ([], [])


def test_failures_count_until_one_goes_well_and_suspend_from_the_threshold_on(state: State) -> None:
    seen = [known.count_failure(state, "conf", f"e{number}", now=NOW, threshold=2) for number in range(3)]
    assert seen == [
        known.Failures(1, "e0", None),
        known.Failures(2, "e1", NOW),
        known.Failures(3, "e2", NOW),
    ]
    known.clear_failures(state, "conf")
    assert known.failures(state, "conf") is None
    assert known.count_failure(state, "conf", "e", now=LATER, threshold=1) == known.Failures(1, "e", LATER)


def test_metrics_and_usage_are_as_they_were_recorded(state: State) -> None:
    good = known.DayMetric("2026-10-01", "bytes_in", "fetched", ("lkc-1", "lkc-2"), "b1", 2, rows=7, gaps=2, points=3)
    good = good._replace(total="0.5", fetches={"lkc-1": 1, "lkc-2": 2})
    bad = known.DayMetric("2026-10-02", "bytes_in", "failed", ("lkc-1",), "b2", attempts=2, error="500")
    known.save_day_metrics(state, "conf", [bad, good])
    known.save_day_metrics(state, "other", [good])
    assert list(known.day_metrics(state, "conf").values()) == [good, bad]
    known.save_day_metrics(state, "conf", [bad._replace(attempts=3)], [("2026-10-01", "bytes_in")])
    assert list(known.day_metrics(state, "conf").values()) == [bad._replace(attempts=3)]
    assert known.next_fetch_id(state, "conf") == 1
    fetches = [known.MetricFetch(n, "bytes_in", "2026-10-01", "2026-11-01", ("lkc-1",), NOW, n - 1) for n in (1, 2)]
    for fetch in fetches:
        known.record_fetch(state, "conf", fetch)
    # A number is never given again, even if nothing of it is kept.
    known.forget_fetches(state, "conf", [1, 2])
    assert (known.metric_fetches(state, "conf"), known.next_fetch_id(state, "conf")) == ({2: fetches[1]}, 3)
    usage = known.UsageDay("2026-10-01", "d1", 3, 300, 1)
    known.save_usage_days(state, "conf", [usage])
    assert known.usage_days(state, "conf") == {"2026-10-01": usage}
    known.save_usage_days(state, "conf", [], ["2026-10-01"])
    assert known.usage_days(state, "conf") == {}


def gathered(state: State) -> list[tuple[str, int, int, int, str | None]]:
    found = days(state, "conf").values()
    return [(one.charge_date, one.resources_gathered, one.metrics_gathered, one.attempts, one.error) for one in found]


def test_flags_of_days_change_only_where_they_are_meant_to(state: State) -> None:
    for date_ in ("2026-10-01", "2026-10-02"):
        row = BillingDay("confluent_cloud", "conf", "2026-10", date_, "b", 1, 100, 0, 0)
        upsert_billing_days(state, [row])
    known.set_resources_gathered(state, "conf", "2026-10-02", "2026-10-03", whole=True)
    known.set_metrics_gathered(
        state,
        "conf",
        [known.MetricsFlag("2026-10-01", 1, 0, None), known.MetricsFlag("2026-10-02", 0, 2, "500")],
    )
    assert gathered(state) == [("2026-10-01", 1, 1, 0, None), ("2026-10-02", 1, 0, 2, "500")]
    known.set_resources_gathered(state, "conf", "2026-10-02", "2026-10-03", whole=False)
    known.set_metrics_gathered(state, "conf", [known.MetricsFlag("2026-10-02", 1, 0, None)])
    assert gathered(state) == [("2026-10-01", 1, 1, 0, None), ("2026-10-02", 0, 1, 0, None)]


def test_entities_come_back_as_they_were_stored(state: State) -> None:
    moment = datetime(2026, 10, 1, 2, 3, 4, 567890)
    named = {"tenant_id": "conf", "id": "lcc-1", "type": "connector", "display_name": "ü'\""}
    change = date(2026, 10, 5)
    resources = from_rows(
        RESOURCES,
        named | {"valid_to": change, "created_at": moment},
        named | {"valid_from": change, "last_seen_at": moment},
    )
    identities = from_rows(IDENTITIES, {"tenant_id": "conf", "id": "sa-1", "type": "service_account"})
    known.replace_entities(state, RESOURCES, "conf", resources)
    known.replace_entities(state, IDENTITIES, "conf", identities)
    assert known.entities(state, RESOURCES, "conf").equals(resources)
    assert known.entities(state, IDENTITIES, "conf").equals(identities)
    assert known.entities(state, IDENTITIES, "other").schema == identities.schema
    known.replace_entities(state, RESOURCES, "conf", resources.head(0))
    assert (known.counts(state, "resources", "conf"), known.counts(state, "identities", "conf")) == (0, 1)
    known.replace_zero_counts(state, "conf", {"connector": 2, "user": 0})
    assert known.zero_counts(state, "conf") == {"connector": 2, "user": 0}
