"""Claims: one process works on a tenant, and a dead one never keeps it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import state as state_module
from engine.errors import StoreError, TenantBusyError
from engine.state import State, claim, holder, open_state, runs, start_run

NOW = "2026-11-20T12:00:00Z"
CHECKOUT = Path(state_module.__file__).parents[1]

HOLDER = """
import subprocess, sys
from pathlib import Path
from engine.state import claim, open_state, start_run
with open_state(Path(sys.argv[1])) as state, claim(state, "acme", "2026-11-19T03:00:00Z"):
    start_run(state, "r1", ecosystem="aws", tenant_id="acme", command="run", started_at="2026-11-19T03:00:00Z")
    # A program it started must not keep the lock after its death.
    outliving = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
    print(outliving.pid, flush=True)
    sys.stdin.readline()
"""

Start = Callable[[], "tuple[subprocess.Popen[str], int]"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with open_state(tmp_path) as opened:
        yield opened


@pytest.fixture
def start_holder(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that holds tenant acme, and the pid of one that it started."""
    started: list[subprocess.Popen[str]] = []
    outliving: list[int] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        outliving.append(int(process.stdout.readline()))
        return process, outliving[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for pid in outliving:
        os.kill(pid, signal.SIGKILL)


def test_a_claim_names_its_process_and_ends_with_its_block(state: State) -> None:
    with claim(state, "acme", NOW) as own:
        assert own == ("acme", socket.gethostname(), own.boot_id, os.getpid(), own.start_ticks, NOW)
        assert re.fullmatch(r"[0-9a-f-]{36}", own.boot_id)
        assert own.start_ticks > 0
        assert holder(state, "acme") == own
    assert holder(state, "acme") is None
    assert state.rows("SELECT count(*) FROM claims") == [(0,)]
    assert (state.file.parent / "claims" / "acme.lock").exists()


def test_a_tenant_is_claimed_once_in_a_process_too(state: State) -> None:
    with claim(state, "acme", NOW), claim(state, "beta", NOW):
        with pytest.raises(TenantBusyError) as raised, claim(state, "acme", "later"):
            pytest.fail("claimed twice")
        with ThreadPoolExecutor(1) as threads, pytest.raises(TenantBusyError):
            threads.submit(lambda: claim(state, "acme", "later").__enter__()).result()
    seen = f"busy, held by pid {os.getpid()} on host {socket.gethostname()} since {NOW}"
    assert str(raised.value) == f"tenant acme: {seen}; expected no other run"
    assert raised.value.exit_code == 75
    with claim(state, "acme", "later"):
        pass


def test_a_block_that_fails_frees_the_tenant(state: State) -> None:
    with pytest.raises(ValueError, match="no"), claim(state, "acme", NOW):
        raise ValueError("no")
    with claim(state, "acme", NOW):
        pass


def test_another_process_is_refused_with_the_owners_name(state: State, start_holder: Start) -> None:
    process, _ = start_holder()
    owner = rf"held by pid {process.pid} on host \S+ since 2026-11-19T03:00:00Z;"
    with pytest.raises(TenantBusyError, match=owner), claim(state, "acme", NOW):
        pytest.fail("claimed twice")
    assert [run.status for run in runs(state, "acme")] == ["running"]
    with claim(state, "beta", NOW):
        pass
    process.communicate("done\n", timeout=60)
    assert process.returncode == 0
    with claim(state, "acme", NOW):
        pass


def test_kill_9_frees_the_tenant_at_once(state: State, start_holder: Start) -> None:
    process, outliving = start_holder()
    process.kill()
    # Not reaped: it is a zombie when the claim is tried, and the program it started still lives.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    os.kill(outliving, 0)
    assert [run.status for run in runs(state, "acme")] == ["died"]
    assert state.rows("SELECT count(*) FROM claims") == [(1,)]
    assert holder(state, "acme") is None
    with claim(state, "acme", NOW) as own:
        assert holder(state, "acme") == own
        start_run(state, "r2", ecosystem="aws", tenant_id="acme", command="run", started_at=NOW)
        assert [(run.run_id, run.status) for run in runs(state, "acme")] == [("r2", "running"), ("r1", "died")]


def test_the_row_of_a_dead_owner_is_not_named(state: State) -> None:
    with claim(state, "acme", NOW):
        with state.transaction() as connection:
            connection.execute("UPDATE claims SET start_ticks = start_ticks + 1")
        with pytest.raises(TenantBusyError, match="held by a process that just started;"), claim(state, "acme", NOW):
            pytest.fail("claimed twice")


@pytest.mark.parametrize(
    ("column", "value", "lives"),
    [("start_ticks", 1, False), ("boot_id", "another", False), ("pid", 2**22 + 1, False), ("host", "elsewhere", True)],
)
def test_an_owner_is_a_process_and_not_a_pid(state: State, column: str, value: object, lives: bool) -> None:
    with claim(state, "acme", NOW):
        with state.transaction() as connection:
            connection.execute(f"UPDATE claims SET {column} = ?", (value,))
        assert (holder(state, "acme") is not None) == lives


def test_start_ticks_are_read_behind_a_hostile_program_name(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b 1 2"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        ticks = state_module._start_ticks(process.pid)
    finally:
        process.kill()
        process.wait()
    assert ticks >= state_module._start_ticks(os.getpid()) > 0
    assert state_module._start_ticks(process.pid) == 0


def test_a_lock_that_cannot_be_made_is_one_line(state: State) -> None:
    (state.file.parent / "claims").write_text("a file")
    with pytest.raises(StoreError, match=r"claims: cannot be used \(File exists\)"), claim(state, "acme", NOW):
        pytest.fail("claimed")
