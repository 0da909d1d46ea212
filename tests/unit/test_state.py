"""state.db: opening and migrating it, and what is recorded in it about days, runs, bills and emissions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import database, sqlfiles
from engine.errors import StoreError
from engine.state import (
    Assembly,
    AssemblyFile,
    BillingDay,
    CalculatedDay,
    Outcome,
    PendingDay,
    RunCounts,
    State,
    begin_assembly,
    claim,
    commit_day,
    commit_teams,
    custom_tags,
    days,
    emissions,
    fail_day,
    finish_assembly,
    finish_run,
    forget_emissions,
    half_published,
    loaded_assemblies,
    loaded_files,
    mark_checked,
    open_state,
    pending,
    record_emission,
    remove_days,
    runs,
    start_run,
    teams_cause,
    update_run,
    upsert_billing_days,
)

PERIOD, DATE, LATER = "2026-10", "2026-10-01", "2026-10-02"
NOW = "2026-11-20T12:00:00Z"
CHECKOUT = Path(database.__file__).parents[1]

WITHOUT_PRIVILEGE = """
import ctypes, os, sys
# 24 PR_CAPBSET_DROP, 1 CAP_DAC_OVERRIDE: root after this is bound by the modes of files like anybody else,
# but still reads the checkout wherever it lies.
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""


def log_assembly(state: State, load: Assembly, files: list[AssemblyFile]) -> None:
    with state.transaction():
        begin_assembly(state, load, files)
        finish_assembly(state, load.tenant_id, load.billing_period)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with open_state(tmp_path) as opened:
        yield opened


def billing(
    date: str = DATE, digest: str = "b1", *, tenant: str = "acme", rows: int = 10, size: int = 1000
) -> BillingDay:
    return BillingDay("aws", tenant, PERIOD, date, digest, rows, size)


def calculated(date: str = DATE, output: str = "o1", *, tenant: str = "acme") -> CalculatedDay:
    return CalculatedDay(tenant, PERIOD, date, "c1", "i1", output, "calc-1", 40, 4000, 2)


def child(script: str, *arguments: object, unprivileged: bool = False) -> subprocess.CompletedProcess[str]:
    command = [WITHOUT_PRIVILEGE, script] if unprivileged else [script]
    return subprocess.run(
        [sys.executable, "-c", *command, *map(str, arguments)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Opening


def test_a_new_state_has_the_newest_schema_and_is_durable(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there" / "yet"
    with open_state(root) as state:
        assert state.rows("PRAGMA user_version") == [(int(sqlfiles.names("state")[-1]),)]
        assert state.rows("PRAGMA journal_mode") == [("wal",)]
        assert state.rows("PRAGMA synchronous") == [(2,)]
        assert state.rows("PRAGMA foreign_keys") == [(1,)]
        tables = state.rows(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'"
        )
    assert dict(tables) == dict.fromkeys(
        [
            "base_identities",
            "base_resources",
            "bases",
            "claims",
            "custom_tags",
            "day_metrics",
            "emission_records",
            "gather_failures",
            "constructed_days",
            "gathers",
            "identities",
            "ingestion_assemblies",
            "ingestion_files",
            "landed_windows",
            "metric_fetches",
            "pipeline_runs",
            "pipeline_state",
            "resources",
            "tenant_entities",
            "tenant_teams",
            "usage_days",
            "zero_gathers",
        ],
        1,
    )


def test_what_is_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        upsert_billing_days(state, [billing()])
    with open_state(tmp_path) as state:
        assert list(days(state, "acme")) == [(PERIOD, DATE)]


@pytest.mark.parametrize("kind", ["state", "results"])
def test_every_migration_sets_its_own_number(kind: str) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for number, name in enumerate(sqlfiles.names(kind), start=1):
        connection.executescript(sqlfiles.read_sql(kind, name))
        assert (int(name), connection.execute("PRAGMA user_version").fetchone()[0]) == (number, number)
    connection.close()


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of SQL like ours, to which a test adds migrations."""
    folder = tmp_path / "sql" / "state"
    folder.mkdir(parents=True)
    (folder / "0001.sql").write_text(sqlfiles.read_sql("state", "0001"))
    monkeypatch.setattr(sqlfiles, "sql_folder", lambda: tmp_path / "sql")
    return folder


def test_an_older_state_is_migrated_and_keeps_its_rows(tmp_path: Path, migrations: Path) -> None:
    with open_state(tmp_path) as state:
        upsert_billing_days(state, [billing()])
    (migrations / "0002.sql").write_text("CREATE TABLE notes (note TEXT) STRICT;\nPRAGMA user_version = 2;\n")
    (migrations / "0003.sql").write_text("DROP TABLE notes;\nCREATE TABLE n (n TEXT);\nPRAGMA user_version = 3;\n")
    with pytest.raises(StoreError, match=r"state\.db: schema version 1; expected version 3"):
        open_state(tmp_path, write=False)
    with open_state(tmp_path) as state:
        assert state.rows("PRAGMA user_version") == [(3,)]
        assert len(days(state, "acme")) == 1


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, migrations: Path) -> None:
    open_state(tmp_path).close()
    (migrations / "0002.sql").write_text("CREATE TABLE notes (note TEXT) STRICT;\nPRAGMA user_version = 2;\n")
    (migrations / "0003.sql").write_text("CREATE TABLE more (a TEXT);\nDROP TABLE missing;\nPRAGMA user_version = 3;\n")
    with pytest.raises(StoreError, match="no such table: missing"):
        open_state(tmp_path)
    (migrations / "0003.sql").unlink()
    with open_state(tmp_path) as state:
        assert state.rows("PRAGMA user_version") == [(2,)]
        assert state.rows("SELECT name FROM sqlite_schema WHERE name IN ('notes', 'more')") == [("notes",)]


@pytest.mark.parametrize("write", [True, False])
def test_a_newer_state_is_refused(tmp_path: Path, write: bool) -> None:
    open_state(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(
        StoreError, match=r"state\.db: schema version 99, of a newer prorata; expected version \d+ or older"
    ):
        open_state(tmp_path, write=write)


@pytest.mark.parametrize("write", [True, False])
def test_a_database_of_another_program_is_refused(tmp_path: Path, write: bool) -> None:
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        open_state(tmp_path, write=write)


@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, write: bool) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database at all, but long enough to have a header" * 40)
    with pytest.raises(StoreError, match=r"state\.db: not an SQLite database") as raised:
        open_state(tmp_path, write=write)
    assert len(raised.value.faults) == 1
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_in_its_place_is_refused(tmp_path: Path, write: bool) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StoreError, match=r"state\.db: cannot be "):
        open_state(tmp_path, write=write)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match=r"root: cannot be used \(File exists\)"):
        open_state(tmp_path / "root")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        upsert_billing_days(state, [billing(f"2026-10-{day:02}") for day in range(1, 32)])
    file = tmp_path / "state.db"
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"state\.db: damaged"), open_state(tmp_path) as state:
        days(state, "acme")


def test_reading_before_anything_was_written_reads_nothing_and_creates_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with open_state(root, write=False) as state:
        assert days(state, "acme") == {}
        assert runs(state, "acme") == []
        assert loaded_assemblies(state, "acme") == {}
        assert pending(state, "acme", "sqlite") == []
    assert not root.exists()


def test_a_state_that_was_never_filled_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with open_state(tmp_path, write=False) as state:
        assert days(state, "acme") == {}


def test_a_reader_sees_what_a_writer_commits_and_cannot_write(state: State) -> None:
    with open_state(state.file.parent, write=False) as reader:
        upsert_billing_days(state, [billing()])
        assert len(days(reader, "acme")) == 1
        with pytest.raises(StoreError, match=r"state\.db: cannot be written"):
            upsert_billing_days(reader, [billing(LATER)])


def test_without_the_right_to_write_reading_works_and_writing_is_one_line(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        upsert_billing_days(state, [billing()])
    (tmp_path / "state.db").chmod(0o444)
    tmp_path.chmod(0o555)
    script = """
import sys
from pathlib import Path
from engine.errors import StoreError
from engine.state import days, open_state
with open_state(Path(sys.argv[1]), write=False) as state:
    print(len(days(state, "acme")), "day")
for root in (sys.argv[1], sys.argv[1] + "/below"):
    try:
        open_state(Path(root))
    except StoreError as error:
        print(error)
"""
    result = child(script, tmp_path, unprivileged=True)
    tmp_path.chmod(0o755)
    assert result.stderr == ""
    read, written, created = result.stdout.splitlines()
    assert read == "1 day"
    assert written.startswith(f"{tmp_path}/state.db: cannot be ")
    assert written.endswith("expected a file and a folder that this user may write")
    assert created.startswith(f"{tmp_path}/below: cannot be used (Permission denied); expected ")


def test_a_full_disk_is_one_line_and_changes_nothing(state: State) -> None:
    upsert_billing_days(state, [billing()])
    pages = state.rows("PRAGMA page_count")[0][0]
    state.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"state\.db: the disk is full .*; expected free space on its file system"):
        upsert_billing_days(
            state, [billing(f"2026-{month:02}-{day:02}") for month in range(1, 13) for day in range(1, 29)]
        )
    state.rows("PRAGMA max_page_count = 100000")
    assert list(days(state, "acme")) == [(PERIOD, DATE)]
    assert upsert_billing_days(state, [billing(LATER)]) == 1


def test_a_lock_that_does_not_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    with open_state(tmp_path) as state:
        other = sqlite3.connect(state.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"state\.db: locked by another process"):
            upsert_billing_days(state, [billing()])
        other.execute("ROLLBACK")
        other.close()
        assert upsert_billing_days(state, [billing()]) == 1


def test_text_that_is_not_unicode_is_one_line(state: State) -> None:
    file = AssemblyFile("cur/\udcff.csv.gz", 1, 2, "hash", 3)
    with pytest.raises(StoreError, match=r"state\.db: text .* is not Unicode"):
        log_assembly(state, assembly(), [file])
    assert loaded_assemblies(state, "acme") == {}


def test_a_bug_keeps_its_traceback(state: State) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        upsert_billing_days(state, [billing("01.10.2026")])


def test_processes_that_open_a_new_root_at_once_all_get_it(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from engine.state import BillingDay, days, open_state, upsert_billing_days
root, tenant = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for name in "abcdefghij":
    open_state(root / name, write=False).close()
    with open_state(root / name) as state:
        for day in (1, 2):
            upsert_billing_days(state, [BillingDay("aws", tenant, "2026-10", f"2026-10-0{day}", "b", 1, 1)])
"""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "root"), f"t{number}"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(5)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    outcomes = []
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    for starter in starters:
        _, errors = starter.communicate(timeout=60)
        outcomes.append((starter.returncode, errors))
    assert outcomes == [(0, "")] * 5
    for name in "abcdefghij":
        with open_state(tmp_path / "root" / name) as state:
            assert state.rows("SELECT count(*) FROM pipeline_state") == [(10,)]


def test_threads_share_a_state(state: State) -> None:
    dates = [f"2026-10-{day:02}" for day in range(1, 31)]

    def record(date: str) -> None:
        upsert_billing_days(state, [billing(date)])
        commit_day(state, calculated(date))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(record, dates))
    assert [day.charge_date for day in days(state, "acme").values() if day.chargeback_calculated] == dates


def test_transactions_inside_one_are_all_or_nothing(state: State) -> None:
    def stop_half_way() -> None:
        with state.transaction():
            upsert_billing_days(state, [billing()])
            log_assembly(state, assembly(), [])
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        stop_half_way()
    assert days(state, "acme") == {}
    assert loaded_assemblies(state, "acme") == {}


# Days


def test_a_gathered_day_is_not_calculated(state: State) -> None:
    assert upsert_billing_days(state, [billing(), billing(LATER)]) == 2
    assert days(state, "acme")[PERIOD, DATE] == (
        *("aws", "acme", PERIOD, DATE, 1, 1, 1, 0, "b1", 10, 1000),
        *(None, None, None, None, None, None, None, None, 0, None),
    )


def test_a_calculated_day_has_its_digests_and_counts(state: State) -> None:
    upsert_billing_days(state, [billing()])
    fail_day(state, "acme", (PERIOD, DATE), "disk full")
    commit_day(state, calculated())
    assert days(state, "acme")[PERIOD, DATE] == (
        *("aws", "acme", PERIOD, DATE, 1, 1, 1, 1, "b1", 10, 1000),
        *("c1", "i1", "o1", "calc-1", 40, 4000, 2, None, 0, None),
    )


def test_a_day_is_checked_as_long_as_its_chargeback_stays(state: State) -> None:
    upsert_billing_days(state, [billing(), billing(LATER)])
    commit_day(state, calculated())
    mark_checked(state, "acme", [(PERIOD, DATE)])
    assert {key: day.checked_digest for key, day in days(state, "acme").items()} == {
        (PERIOD, DATE): "o1",
        (PERIOD, LATER): None,
    }
    commit_day(state, calculated()._replace(output_digest="o2"))
    day = days(state, "acme")[PERIOD, DATE]
    assert (day.output_digest, day.checked_digest) == ("o2", "o1")


def test_the_same_billing_again_changes_nothing(state: State) -> None:
    upsert_billing_days(state, [billing()])
    commit_day(state, calculated())
    before = days(state, "acme")
    assert upsert_billing_days(state, [billing()]) == 0
    assert days(state, "acme") == before


def test_the_same_lines_in_other_bytes_need_no_calculation(state: State) -> None:
    upsert_billing_days(state, [billing()])
    commit_day(state, calculated())
    assert upsert_billing_days(state, [billing(size=999)]) == 1
    day = days(state, "acme")[PERIOD, DATE]
    assert (day.billing_bytes, day.chargeback_calculated) == (999, 1)


def test_changed_billing_must_be_calculated_again_with_fresh_attempts(state: State) -> None:
    upsert_billing_days(state, [billing()])
    commit_day(state, calculated())
    fail_day(state, "acme", (PERIOD, DATE), "no")
    assert upsert_billing_days(state, [billing(digest="b2", rows=11)]) == 1
    day = days(state, "acme")[PERIOD, DATE]
    assert (day.billing_digest, day.billing_rows, day.chargeback_calculated) == ("b2", 11, 0)
    assert (day.attempts, day.error) == (0, None)
    assert (day.input_digest, day.output_digest) == ("i1", "o1")


def test_failures_are_counted_and_survive_the_same_billing(state: State) -> None:
    upsert_billing_days(state, [billing()])
    fail_day(state, "acme", (PERIOD, DATE), "first")
    fail_day(state, "acme", (PERIOD, DATE), "second")
    upsert_billing_days(state, [billing()])
    day = days(state, "acme")[PERIOD, DATE]
    assert (day.chargeback_calculated, day.attempts, day.error) == (0, 2, "second")


def test_a_day_may_lie_in_two_bills(state: State) -> None:
    other = billing()._replace(billing_period="2026-09", billing_digest="b9")
    upsert_billing_days(state, [billing(), other])
    commit_day(state, calculated())
    assert [(day.billing_period, day.chargeback_calculated) for day in days(state, "acme").values()] == [
        ("2026-09", 0),
        ("2026-10", 1),
    ]


def test_tenants_do_not_see_each_other(state: State) -> None:
    upsert_billing_days(state, [billing(), billing(tenant="beta", digest="x")])
    remove_days(state, "acme", [(PERIOD, DATE)])
    assert days(state, "acme") == {}
    assert days(state, "beta")[PERIOD, DATE].billing_digest == "x"


def test_removed_days_are_counted_if_they_were_there(state: State) -> None:
    upsert_billing_days(state, [billing(), billing(LATER)])
    assert remove_days(state, "acme", [(PERIOD, DATE), (PERIOD, "2026-10-31")]) == 1
    assert remove_days(state, "acme", []) == 0
    assert list(days(state, "acme")) == [(PERIOD, LATER)]


def test_a_day_without_billing_cannot_be_calculated(state: State) -> None:
    with pytest.raises(
        StoreError, match=r"tenant acme, billing period 2026-10: no day 2026-10-01; expected a day whose"
    ):
        commit_day(state, calculated())
    with pytest.raises(StoreError, match="no day 2026-10-01"):
        fail_day(state, "acme", (PERIOD, DATE), "no")


# Runs


def begin(state: State, run_id: str, at: str = NOW, tenant: str = "acme") -> None:
    start_run(state, run_id, ecosystem="aws", tenant_id=tenant, command="run", started_at=at)


def test_a_run_is_recorded_from_start_to_end(state: State) -> None:
    with claim(state, "acme", NOW):
        begin(state, "r1")
        update_run(state, "r1", "calculate", RunCounts(days_gathered=3, days_calculated=1, rows_written=40))
        assert runs(state, "acme") == [
            ("r1", "aws", "acme", "run", NOW, None, "running", "calculate", 3, 1, 0, 40, None)
        ]
        finish_run(state, "r1", "failed", RunCounts(3, 2, 1, 80), ended_at="later", error="one day failed")
    assert runs(state, "acme") == [
        ("r1", "aws", "acme", "run", NOW, "later", "failed", "calculate", 3, 2, 1, 80, "one day failed")
    ]


def test_the_newest_runs_come_first_and_only_the_tenants(state: State) -> None:
    for number in range(4):
        begin(state, f"r{number}", f"2026-11-2{number}T00:00:00Z")
        finish_run(state, f"r{number}", "done", RunCounts(), ended_at=NOW)
    begin(state, "other", tenant="beta")
    assert [run.run_id for run in runs(state, "acme", limit=3)] == ["r3", "r2", "r1"]


def test_a_running_run_without_a_claim_has_died(state: State) -> None:
    begin(state, "r1")
    assert [run.status for run in runs(state, "acme")] == ["died"]
    assert state.rows("SELECT status FROM pipeline_runs") == [("running",)]


def test_the_next_claim_closes_the_runs_of_the_dead(state: State) -> None:
    begin(state, "r1", "2026-11-19")
    begin(state, "other", tenant="beta")
    with claim(state, "acme", NOW):
        begin(state, "r2", "2026-11-20")
        assert [(run.run_id, run.status) for run in runs(state, "acme")] == [("r2", "running"), ("r1", "died")]
    assert state.rows("SELECT run_id, status FROM pipeline_runs ORDER BY 1") == [
        ("other", "running"),
        ("r1", "died"),
        ("r2", "running"),
    ]


# Bills


def assembly(assembly_id: str = "a1", fingerprint: str = "f1", *, period: str = PERIOD) -> Assembly:
    return Assembly(
        tenant_id="acme",
        billing_period=period,
        assembly_id=assembly_id,
        fingerprint=fingerprint,
        manifest="cur/20261001-20261101/cur-Manifest.json",
        lines=24,
        billing_rows=2,
        amounts={"USD": "31653.3143998848", "EUR": "-0.000000000001"},
        rounding_residue="0.0000000000004",
        days_outside_period=1,
        schema_differences={"added": ["pricing/é"], "removed": []},
        warnings=["no manifest in the folder"],
        loaded_at=NOW,
    )


FILES = [
    AssemblyFile("cur-2.csv.gz", 20, 1_700_000_000_123_456_789, "h2", 12),
    AssemblyFile("cur-1.csv.gz", 10, 5, "h1", 12),
]


def test_a_loaded_bill_is_read_back_as_it_was(state: State) -> None:
    log_assembly(state, assembly(), FILES)
    assert loaded_assemblies(state, "acme") == {PERIOD: assembly()}
    assert loaded_files(state, "acme") == {PERIOD: [FILES[1], FILES[0]]}
    assert state.rows("SELECT amounts FROM ingestion_assemblies") == [
        ('{"EUR":"-0.000000000001","USD":"31653.3143998848"}',)
    ]


def test_a_bill_counts_only_once_all_its_days_are_published(state: State) -> None:
    log_assembly(state, assembly(), FILES)
    begin_assembly(state, assembly("a2", "f2"), FILES[:1])
    assert loaded_assemblies(state, "acme") == {PERIOD: assembly()}
    assert half_published(state, "acme") == {PERIOD: "a2"}
    begin_assembly(state, assembly("a3", "f3"), FILES[:1])
    finish_assembly(state, "acme", PERIOD)
    assert loaded_assemblies(state, "acme") == {PERIOD: assembly("a3", "f3")}
    assert half_published(state, "acme") == {}
    assert state.rows("SELECT count(*) FROM ingestion_files") == [(len(FILES) + 1,)]


def test_a_new_bill_replaces_the_old_one_which_is_kept(state: State) -> None:
    log_assembly(state, assembly(), FILES)
    log_assembly(state, assembly(period="2026-09"), [])
    log_assembly(state, assembly("a2", "f2"), FILES[:1])
    log_assembly(state, assembly(), FILES[1:])
    assert {period: load.assembly_id for period, load in loaded_assemblies(state, "acme").items()} == {
        "2026-09": "a1",
        PERIOD: "a1",
    }
    assert loaded_files(state, "acme") == {PERIOD: FILES[1:]}
    assert loaded_files(state, "beta") == {}
    assert state.rows(
        "SELECT assembly_id, status FROM ingestion_assemblies WHERE billing_period = ? ORDER BY load_id", (PERIOD,)
    ) == [
        ("a1", "replaced"),
        ("a2", "replaced"),
        ("a1", "loaded"),
    ]


def test_hostile_text_is_stored_as_it_is(state: State) -> None:
    hostile = "'); DROP TABLE claims; --\n\x00\"../é"
    log_assembly(state, assembly(hostile), [AssemblyFile(hostile, 1, 2, "h", 3)])
    assert loaded_assemblies(state, "acme")[PERIOD].assembly_id == hostile
    assert loaded_files(state, "acme")[PERIOD][0].path == hostile
    assert state.rows("SELECT count(*) FROM claims") == [(0,)]


# Emissions


def ready(state: State, *dates: str) -> None:
    upsert_billing_days(state, [billing(date) for date in dates])
    for date in dates:
        commit_day(state, calculated(date, f"o-{date}"))


def record(state: State, day: PendingDay, outcome: Outcome, emitter: str = "sqlite") -> None:
    error = "no" if outcome == "failed" else None
    record_emission(state, "acme", emitter, day, outcome, rows=4, emitted_at=NOW, error=error)


def test_calculated_days_are_pending_until_they_are_emitted(state: State) -> None:
    ready(state, LATER, DATE)
    upsert_billing_days(state, [billing("2026-10-03")])
    first, second = PendingDay(PERIOD, DATE, f"o-{DATE}"), PendingDay(PERIOD, LATER, f"o-{LATER}")
    assert pending(state, "acme", "sqlite") == [first, second]
    record(state, first, "emitted")
    assert pending(state, "acme", "sqlite") == [second]
    record(state, second, "skipped")
    assert pending(state, "acme", "sqlite") == []
    assert pending(state, "acme", "csv") == [first, second]
    assert pending(state, "beta", "sqlite") == []


def test_a_revised_day_is_pending_again(state: State) -> None:
    ready(state, DATE)
    record(state, pending(state, "acme", "sqlite")[0], "emitted")
    commit_day(state, calculated(DATE, "o2"))
    assert pending(state, "acme", "sqlite") == [PendingDay(PERIOD, DATE, "o2")]
    upsert_billing_days(state, [billing(digest="b2")])
    assert pending(state, "acme", "sqlite") == []


def test_a_failed_emission_is_pending_and_its_attempts_are_counted(state: State) -> None:
    ready(state, DATE)
    day = PendingDay(PERIOD, DATE, f"o-{DATE}")
    record(state, day, "failed")
    record(state, day, "failed")
    assert pending(state, "acme", "sqlite") == [day]
    assert emissions(state, "acme") == [("acme", "sqlite", *day, "failed", 4, 2, NOW, "no")]
    record(state, day._replace(output_digest="o2"), "failed")
    assert emissions(state, "acme")[0].attempts == 1
    record(state, day, "emitted")
    assert emissions(state, "acme") == [("acme", "sqlite", *day, "emitted", 4, 1, NOW, None)]
    assert pending(state, "acme", "sqlite") == []


@pytest.mark.parametrize("outcome", ["emitted", "failed", "skipped"])
def test_a_removed_day_is_withdrawn_once_and_emitted_again_when_it_returns(state: State, outcome: Outcome) -> None:
    ready(state, DATE)
    record(state, pending(state, "acme", "sqlite")[0], outcome)
    remove_days(state, "acme", [(PERIOD, DATE)])
    withdrawal = PendingDay(PERIOD, DATE, None)
    assert pending(state, "acme", "sqlite") == [withdrawal]
    record(state, withdrawal, "failed")
    assert pending(state, "acme", "sqlite") == [withdrawal]
    record(state, withdrawal, "withdrawn")
    assert pending(state, "acme", "sqlite") == []
    ready(state, DATE)
    assert pending(state, "acme", "sqlite") == [PendingDay(PERIOD, DATE, f"o-{DATE}")]


def test_forgotten_emissions_are_pending_again(state: State) -> None:
    ready(state, DATE)
    day = pending(state, "acme", "sqlite")[0]
    record(state, day, "emitted")
    record(state, day, "emitted", "csv")
    forget_emissions(state, "acme", "sqlite")
    assert pending(state, "acme", "sqlite") == [day]
    assert pending(state, "acme", "csv") == []


# Tags and teams


def test_tags_are_replaced_as_a_whole_and_by_tenant(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert (teams_cause(state, "acme"), custom_tags(state, "acme")) == (None, [])
        commit_teams(
            state, "acme", [("sa-2", "team", "x"), ("sa-1", "team", "=1+1"), ("sa-1", "note", "\u00e9")], "one"
        )
        commit_teams(state, "beta", [("sa-1", "team", "other")], "two")
        assert custom_tags(state, "acme") == [
            ("sa-1", "note", "\u00e9"),
            ("sa-1", "team", "=1+1"),
            ("sa-2", "team", "x"),
        ]
        commit_teams(state, "acme", [("sa-3", "team", "y")], "three")
        assert (teams_cause(state, "acme"), custom_tags(state, "acme")) == ("three", [("sa-3", "team", "y")])
        assert (teams_cause(state, "beta"), custom_tags(state, "beta")) == ("two", [("sa-1", "team", "other")])


def test_tags_that_cannot_be_stored_leave_those_before(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        commit_teams(state, "acme", [("sa-1", "team", "x")], "one")
        with pytest.raises(sqlite3.IntegrityError):
            commit_teams(state, "acme", [("sa-2", "team", "x"), ("sa-2", "team", "y")], "two")
        assert (teams_cause(state, "acme"), custom_tags(state, "acme")) == ("one", [("sa-1", "team", "x")])
