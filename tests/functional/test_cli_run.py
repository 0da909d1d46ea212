"""`run` and `recalculate`, as processes: what they print, what they leave alone, how they end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.functional.bills import (
    CONFIG,
    OCTOBER,
    PRORATA,
    answered,
    asked,
    environment,
    line,
    prorata,
    ran,
    write_all,
    write_bill,
)

TWO_TENANTS = f"""{CONFIG}
  - id: broken
    ecosystem: aws
    source: {{kind: aws_cur, path: ./broken}}
    owner: {{tags: [team]}}
  - id: late
    ecosystem: aws
    source: {{kind: aws_cur, path: ./cur}}
    owner: {{tags: [team]}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration, a key table and a bill of three days."""
    write_all(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made; nobody changes it."""
    folder = tmp_path_factory.mktemp("once")
    write_all(folder)
    ran(folder, "run")
    return folder


@pytest.fixture
def calculated(once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "copy"))


def days(folder: Path) -> dict[str, str]:
    """Day -> what happened to its output file last."""
    files = (folder / "out/lake/chargeback/tenant_id=acme").glob("*/*.parquet")
    return {file.stem: str(file.stat().st_mtime_ns) for file in files}


def test_a_run_ends_with_exact_costs_by_identity(folder: Path) -> None:
    done = prorata(folder, "run")
    assert done.returncode == 0, done.stderr
    words = [text.split() for text in done.stdout.splitlines()]
    # payments: 30 + 40 direct, a third of 10 and half of 3 of the NAT; search: 20.5 + 3 direct, the rest of the 10.
    table = {row[0]: row[1:] for row in words if row}
    assert table["payments"] == ["70", "3.333333333333", "1.5", "74.833333333333"]
    assert table["search"] == ["23.5", "6.666666666667", "30.166666666667"]
    assert table["mobile"] == ["1", "1.5", "2.5"]
    assert table["platform"] == ["7", "7"]
    assert table["UNALLOCATED"] == ["0.000000000001", "0.000000000001"]
    assert table["total"][-1] == "114.500000000001"
    assert table["billed"] == ["114.500000000001", "USD"]
    assert table["allocated"] == ["114.500000000001", "USD"]
    assert table["difference"] == ["0", "USD"]
    assert "untagged 0.000000000001" in done.stdout
    assert str(folder / "out/lake") in done.stdout


def test_the_query_that_a_run_gives_is_one_that_duckdb_runs(folder: Path) -> None:
    query = next(text for text in ran(folder, "run").splitlines() if "SELECT" in text)
    with duckdb.connect() as plain:
        rows = plain.execute(query[query.index("SELECT") :]).fetchall()
    assert ("mobile", "USD") in {row[:2] for row in rows}


def test_a_run_says_what_it_does_in_plain_lines_on_stderr(folder: Path) -> None:
    lines = prorata(folder, "run").stderr.splitlines()
    assert "acme: chargeback 2025-10: 3 days" in lines
    assert all(text.startswith("acme: ") for text in lines)


def test_a_second_run_does_nothing_and_says_so(calculated: Path) -> None:
    before = days(calculated)
    assert ran(calculated, "run") == "acme: nothing to do: 3 days up to date\n"
    assert days(calculated) == before


def test_a_run_with_nothing_to_do_does_not_load_what_only_work_needs(calculated: Path) -> None:
    script = "import json, sys, cli\ntry: cli.main(['run'])\nfinally: print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=calculated, env=environment(), capture_output=True, text=True, check=True
    )
    said, modules = done.stdout.splitlines()
    assert said == "acme: nothing to do: 3 days up to date"
    assert {"duckdb", "rich", "engine.query", "engine.explain"} & set(json.loads(modules)) == set()


def test_the_summary_as_json_is_exact(folder: Path) -> None:
    (tenant,) = answered(folder, "run")["tenants"]
    assert (tenant["tenant_id"], tenant["exit_code"], tenant["errors"]) == ("acme", 0, [])
    assert (tenant["days_calculated"], tenant["days"]) == (3, 3)
    (total,) = tenant["totals"]
    assert total["billed"] == total["allocated"] == "114.500000000001"
    assert total["difference"] == "0"
    payments = next(row for row in tenant["cost_by_identity"] if row["identity_id"] == "payments")
    assert payments["usage"] == "3.333333333333"
    (again,) = answered(folder, "run")["tenants"]
    assert (again["days_calculated"], again["rows_written"]) == (0, 0)


def test_a_new_assembly_calculates_exactly_the_days_that_changed(calculated: Path) -> None:
    before = days(calculated)
    write_bill(
        calculated / "cur", [*OCTOBER, line("0.5", day="2025-10-02", team="mobile", resource="i-1")], assembly="second"
    )
    (tenant,) = answered(calculated, "run")["tenants"]
    assert (tenant["days_gathered"], tenant["days_calculated"]) == (1, 1)
    assert [day for day, when in days(calculated).items() if before[day] != when] == ["2025-10-02"]
    assert asked(calculated, "SELECT sum(amount) AS amount FROM chargeback") == [{"amount": "115.000000000001"}]


def test_a_new_assembly_with_the_same_lines_changes_nothing(calculated: Path) -> None:
    before = days(calculated)
    write_bill(calculated / "cur", OCTOBER[::-1], assembly="second")
    (tenant,) = answered(calculated, "run")["tenants"]
    assert (tenant["days_gathered"], tenant["days_calculated"]) == (0, 0)
    assert days(calculated) == before


def test_a_changed_rule_calculates_only_the_days_it_concerns(calculated: Path) -> None:
    changed = CONFIG.replace("{basis: even}, {basis: unallocated}]", "{basis: unallocated}]")
    (calculated / "prorata.yaml").write_text(changed, encoding="utf-8")
    (tenant,) = answered(calculated, "run")["tenants"]
    # The rule's version stands in the rows of both days with NAT lines; the third day has none.
    assert (tenant["days_calculated"], tenant["days_unchanged"]) == (2, 1)


def test_days_can_be_limited(folder: Path) -> None:
    (tenant,) = answered(folder, "run", "--from", "2025-10-02", "--to", "2025-10-03")["tenants"]
    assert tenant["days_calculated"] == 1
    assert list(days(folder)) == ["2025-10-02"]
    assert ran(folder, "run", "--from", "2025-10-02", "--to", "2025-10-03") == "acme: nothing to do: 1 day up to date\n"


def test_recalculate_changes_no_outcome_without_a_cause(calculated: Path) -> None:
    assert ran(calculated, "recalculate").startswith(
        "acme: 3 days calculated again, 0 outputs changed; 12 rows written"
    )
    (tenant,) = answered(calculated, "recalculate", "--from", "2025-10-02")["tenants"]
    assert (tenant["days_calculated"], tenant["outputs_changed"]) == (2, 0)


def test_recalculate_counts_the_outputs_that_a_rule_changed(calculated: Path) -> None:
    changed = CONFIG.replace("{basis: even}, {basis: unallocated}]", "{basis: unallocated}]")
    (calculated / "prorata.yaml").write_text(changed, encoding="utf-8")
    (tenant,) = answered(calculated, "recalculate")["tenants"]
    assert (tenant["days_calculated"], tenant["outputs_changed"]) == (3, 2)


def test_recalculate_works_from_stored_bills_alone(calculated: Path) -> None:
    (calculated / "cur").rename(calculated / "gone")
    assert "0 outputs changed" in ran(calculated, "recalculate")
    assert prorata(calculated, "run").returncode == 11


def test_today_fixes_the_times_that_are_recorded(folder: Path) -> None:
    ran(folder, "run", "--today", "2025-11-20")
    (tenant,) = answered(folder, "status")["tenants"]
    assert tenant["bills"][0]["loaded_at"] == "2025-11-20T00:00:00Z"
    assert {run["started_at"] for run in tenant["runs"]} == {"2025-11-20T00:00:00Z"}


def test_a_tenant_that_fails_does_not_keep_others_from_their_run(folder: Path) -> None:
    (folder / "prorata.yaml").write_text(TWO_TENANTS, encoding="utf-8")
    write_bill(folder / "broken", [line("abc")])
    done = prorata(folder, "run")
    assert done.returncode == 1
    assert "cur-1.csv:2: column lineItem/UnblendedCost: value 'abc'; expected a decimal" in done.stderr
    assert "prorata: " in done.stderr
    rows = asked(folder, "SELECT DISTINCT tenant_id FROM chargeback ORDER BY ALL")
    assert [row["tenant_id"] for row in rows] == ["acme", "late"]


def test_the_exit_code_of_one_tenant_is_its_own(folder: Path) -> None:
    (folder / "prorata.yaml").write_text(TWO_TENANTS, encoding="utf-8")
    write_bill(folder / "broken", [line("abc")])
    assert prorata(folder, "run", "--tenant", "broken").returncode == 12
    assert prorata(folder, "run", "--tenant", "broken", "--tenant", "late").returncode == 1
    tenants = answered(folder, "run", code=1)["tenants"]
    assert [(tenant["tenant_id"], tenant["exit_code"]) for tenant in tenants] == [
        ("acme", 0),
        ("broken", 12),
        ("late", 0),
    ]


def test_a_tenant_that_another_process_works_on_is_busy(calculated: Path) -> None:
    holder = """
import sys, pathlib
from engine import state
with state.open_state(pathlib.Path('out')) as store, state.claim(store, 'acme', '2025-11-20T00:00:00Z') as claim:
    print(claim.pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder],
        cwd=calculated,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        done = prorata(calculated, "run")
        (tenant,) = answered(calculated, "status")["tenants"]
        other.communicate()
    assert done.returncode == 75
    assert f"prorata: tenant acme: busy, held by pid {pid} on host" in done.stderr
    assert tenant["holder"]["pid"] == pid
    assert prorata(calculated, "run").returncode == 0


def started(folder: Path) -> subprocess.Popen[str]:
    """A run that does not end before the test wants it to."""
    return subprocess.Popen(
        [*PRORATA, "run"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_claim(folder: Path) -> None:
    """Until another process holds the tenant; then it handles signals too."""
    with (folder / "out/claims/acme.lock").open() as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.01)


def test_sigterm_ends_a_run_in_order_and_the_next_one_does_the_rest(calculated: Path) -> None:
    write_bill(calculated / "cur", [line("1", team="search"), line("2", day="2025-10-02")], assembly="second")
    # While the test holds the state, the run waits for it, in the middle of its work.
    with sqlite3.connect(calculated / "out/state.db", isolation_level=None) as state:
        state.execute("BEGIN IMMEDIATE")
        process = started(calculated)
        wait_for_claim(calculated)
        process.send_signal(signal.SIGTERM)
        state.execute("COMMIT")
    state.close()
    _, said = process.communicate()
    assert process.returncode == 143
    assert "prorata: tenant acme: stopped; what was published stands, the next run does the rest" in said
    (tenant,) = answered(calculated, "status")["tenants"]
    assert [run["status"] for run in tenant["runs"]] == ["stopped", "done"]
    ran(calculated, "run")
    assert asked(calculated, "SELECT sum(amount) AS amount FROM chargeback") == [{"amount": "3.000000000000"}]


@pytest.fixture
def stuck(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that waits for a key table that is a pipe."""
    (folder / "keys.csv").unlink()
    os.mkfifo(folder / "keys.csv")
    with started(folder) as process:
        # To open it takes as long as it takes the run to get there.
        pipe = os.open(folder / "keys.csv", os.O_WRONLY)
        yield process
        process.kill()
        os.close(pipe)


def test_a_second_sigterm_ends_a_run_at_once(stuck: subprocess.Popen[str]) -> None:
    assert stuck.stderr is not None
    stuck.send_signal(signal.SIGTERM)
    assert "stopping" in stuck.stderr.readline()
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait() == -signal.SIGTERM


def test_sigint_ends_a_run_with_130(stuck: subprocess.Popen[str], folder: Path) -> None:
    stuck.send_signal(signal.SIGINT)
    _, said = stuck.communicate()
    assert said.splitlines()[-1] == "prorata: interrupted"
    assert stuck.returncode == 130
    (tenant,) = answered(folder, "status")["tenants"]
    assert [run["status"] for run in tenant["runs"]] == ["stopped"]


def test_a_run_that_was_killed_is_shown_as_died(stuck: subprocess.Popen[str], folder: Path) -> None:
    (tenant,) = answered(folder, "status")["tenants"]
    assert [run["status"] for run in tenant["runs"]] == ["running"]
    assert tenant["holder"]["pid"] == stuck.pid
    stuck.kill()
    stuck.wait()
    (tenant,) = answered(folder, "status")["tenants"]
    assert [run["status"] for run in tenant["runs"]] == ["died"]
    assert tenant["holder"] is None


def test_bars_are_drawn_on_a_terminal_only(folder: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PRORATA, "run"], cwd=folder, env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        drawn = b"".join(iter(lambda: read_terminal(ours), b""))
        results = process.stdout.read() if process.stdout else b""
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[" in drawn
    assert b"acme: reading bill 2025-10" in drawn
    assert b"\x1b" not in results


def read_terminal(terminal: int) -> bytes:
    """What was drawn; nothing once nobody draws any more, which Linux reports as an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_run_goes_on_when_nobody_reads_what_it_says(folder: Path) -> None:
    (folder / "prorata.yaml").write_text(TWO_TENANTS.replace("./broken", "./cur"), encoding="utf-8")
    with subprocess.Popen(
        [*PRORATA, "run"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    assert process.returncode == 141
    rows = asked(folder, "SELECT DISTINCT tenant_id FROM chargeback ORDER BY ALL")
    assert [row["tenant_id"] for row in rows] == ["acme", "broken", "late"]
