"""Killed anywhere, then run once more: the store is that of a run that nobody disturbed.

A lake that holds a first delivery of October gets a second one, in which a day is as before, days are changed, one is
gone and one is new; so a run does everything that runs do. `killing/victim.py` ends it before each event in turn.
"""

from __future__ import annotations

import atexit
import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.killing.forks import Forks
from tests.integration.killing.stores import Store, differences, digests, queried, store
from tests.integration.reports import Line, line, write_bill, write_config

CHECKOUT = Path(__file__).parents[2]
SIGKILL = -9
BLOCKS = 8
"""Tests that share the kills, so that two processes can share the tests."""
PATIENCE = 300
"""Seconds after which a child counts as hung; nothing takes a hundredth of it."""

POOLS = [
    {
        "name": "nat",
        "match": {"usage_type": "NatGateway*"},
        "ladder": [{"basis": "usage", "key": "nat_gb"}, {"basis": "even"}, {"basis": "unallocated"}],
    },
    {
        "name": "logs",
        "match": {"service": "AmazonCloudWatch"},
        "ladder": [{"basis": "weighted", "keys": {"runner_hours": "0.5", "ingested_gb": "0.5"}}, {"basis": "operator"}],
    },
]
TAGS = "identity,key,value\nants,team,insects\n"
KEYS = "identity,date,key,value\nants,2025-10-01,nat_gb,1\nbees,2025-10-01,nat_gb,2\n"


def nat(day: int) -> Line:
    return line(day, "1.00", usage_type="NatGateway-Bytes", resource="nat-1")


def logs(day: int) -> Line:
    return line(day, "0.10", service="AmazonCloudWatch", resource="log-1")


FIRST = [
    *(line(day, f"{day}.50", team) for day in (1, 2, 3, 4) for team in ("ants", "bees")),
    *(nat(day) for day in (1, 2, 3, 4)),
    line(1, "0.77", line_item_type="Tax"),
]
# 1 October stays. 2: the line that asked for an empty key is gone. 3: gone. 4: one empty key more. 5: new. The tax is
# split by the whole month, so 1 October's charges change although its lines do not.
SECOND = [
    *(line(day, f"{day}.50", team) for day in (1, 4, 5) for team in ("ants", "bees")),
    line(2, "7.00", "ants"),
    line(2, "0.30", "dogs", resource="i-2"),
    *(nat(day) for day in (1, 4, 5)),
    logs(4),
    line(1, "0.77", line_item_type="Tax"),
]

PHASES = {
    r"write state.db(-wal|-shm)|truncate state.db-shm": "SQLite's log of state.db, inside a commit",
    r"write results.db(-wal|-shm)|truncate results.db-shm": "SQLite's log of results.db, inside a commit",
    r"(write|truncate) state.db": "state.db, inside a checkpoint",
    r"(write|truncate) results.db": "results.db, inside a checkpoint",
    r"unlink state.db-.*": "state.db: end of its log",
    r"unlink results.db-.*": "results.db: end of its log",
    r"open claims/acme.lock": "claim: lock",
    r"commit state.db INSERT claims.*": "claim: commit",
    r"commit state.db INSERT pipeline_runs": "run: start",
    r"commit state.db UPDATE pipeline_runs (gather|calculate|entities|teams|check|emit)": "run: stage",
    r"commit state.db DELETE ingestion_assemblies, INSERT ingestion_assemblies.*": "bill: begin",
    r"open tmp/acme/billing-.*": "billing: write",
    r"remove tmp/acme/billing-.*": "billing: drop what is stored already",
    r"link history/billing/.*": "billing: history",
    r"rename lake/billing/.*": "billing: rename",
    r"commit state.db INSERT pipeline_state": "billing: commit",
    r"remove lake/chargeback/.*": "withdraw: chargeback",
    r"remove lake/billing/.*": "withdraw: billing",
    r"commit state.db DELETE pipeline_state": "withdraw: commit",
    r"commit state.db UPDATE ingestion_assemblies.*": "bill: finish",
    r"open tmp/acme/chargeback-.*": "chargeback: write",
    r"link history/chargeback/.*": "chargeback: history",
    r"rename lake/chargeback/.*": "chargeback: rename",
    r"open tmp/acme/empty_keys-.*": "empty keys: write",
    r"link history/empty_keys/.*": "empty keys: history",
    r"rename lake/empty_keys/.*": "empty keys: rename",
    r"remove lake/empty_keys/.*": "empty keys: withdraw",
    r"commit state.db UPDATE pipeline_state": "day: commit",
    r"open tmp/acme/identities.part": "identities: write",
    r"rename lake/identities/.*": "identities: rename",
    r"open tmp/acme/resources.part": "resources: write",
    r"rename lake/resources/.*": "resources: rename",
    r"commit state.db INSERT tenant_entities": "entities: commit",
    r"open tmp/acme/tags.part": "tags: write",
    r"rename lake/tags/.*": "tags: rename",
    r"open tmp/acme/teams.part": "teams: write",
    r"rename lake/teams/.*": "teams: rename",
    r"commit state.db DELETE custom_tags, .*INSERT tenant_teams": "teams: commit",
    r"check query": "check",
    r"commit results.db DELETE payers, INSERT payers": "emit: payers",
    r"commit results.db .*INSERT chargeback_facts": "emit: facts",
    r"commit results.db DELETE chargeback_facts": "emit: withdraw",
    r"commit state.db INSERT emission_records": "emit: record",
    r"commit state.db UPDATE gathers, UPDATE pipeline_runs done": "run: end",
    r"commit state.db DELETE claims": "claim: release",
}
"""Events -> the phase of the run that they belong to. Every phase must be met, and every event have a phase."""
SAMPLED = ("write", "truncate")
"""Events of which there are many alike: of each stretch of them one is chosen, a different one each time."""


def phase(event: str) -> str:
    """Which phase an event belongs to; the event itself if to none."""
    return next((name for pattern, name in PHASES.items() if re.fullmatch(pattern, event)), event)


class Start(NamedTuple):
    """A store before the run that is killed, the configuration of that run, and how it ends when it is left alone.

    `events` are those of the undisturbed run, in which one day is calculated at a time, so that they always come in
    this order; `seconds` is how long it took.
    """

    folder: Path
    before: Store
    expected: Store
    events: tuple[str, ...]
    seconds: float


class Case(NamedTuple):
    """A copy of the store, to be killed on."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "data"

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"


def case(start: Path, folder: Path) -> Case:
    """A copy of a store, with configurations of its own; bills are shared and never written."""
    folder.mkdir(parents=True)
    made = Case(folder)
    if (start / "data").exists():
        shutil.copytree(start / "data", made.root)
    for name, workers in (("first", 1), ("second", 1), ("parallel", 3)):
        cur = start / ("first" if name == "first" else "second")
        # The second delivery comes with teams.
        more = {} if name == "first" else {"teams": {"default": "rest", "tags": str(start / "tags.csv")}}
        keys = [start / "keys.csv"]
        write_config(made.config(name), root=made.root, cur=cur, keys=keys, pools=POOLS, workers=workers, **more)
    return made


def run(*configs: Path) -> None:
    """Run the command line for each, which must succeed."""
    command = [sys.executable, "-m", "tests.integration.killing.rerun", *map(str, configs)]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    outcomes = dict(zip(configs, map(json.loads, ended.stdout.splitlines()), strict=True))
    assert {config: outcome for config, outcome in outcomes.items() if outcome[0]} == {}


class Victim(NamedTuple):
    """A run that ended or was killed: its exit code (SIGKILL if killed), and its events as far as it came."""

    code: int
    events: tuple[str, ...]
    seconds: float


@cache
def forks() -> Forks:
    """Where victims come from, for as long as there are tests of this module in a process."""
    made = Forks()
    atexit.register(made.close)
    return made


def victim(
    config: Path, root: Path, *, before_event: int = 0, after_seconds: float | None = None, today: date | None = None
) -> Victim:
    """Run the command line until its n-th event, or until so many seconds after its start, or to its end."""
    code, seconds = forks().run(config, root, today, before_event=before_event, after_seconds=after_seconds)
    log = config.with_suffix(".events")
    events = log.read_text().splitlines() if log.exists() else []
    return Victim(code, tuple(events), seconds)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """The lake with the first delivery, and what becomes of it when the second is read undisturbed."""
    folder = tmp_path_factory.mktemp("start")
    write_bill(folder / "first", FIRST, assembly="a1")
    write_bill(folder / "second", SECOND[::2], SECOND[1::2], assembly="a2")
    (folder / "keys.csv").write_text(KEYS)
    (folder / "tags.csv").write_text(TAGS)
    built = case(folder, folder / "built")
    run(built.config("first"))
    shutil.move(built.root, folder / "data")
    undisturbed = case(folder, folder / "undisturbed")
    ended = victim(undisturbed.config("second"), undisturbed.root)
    assert ended.code == 0, undisturbed.config("second").with_suffix(".err").read_text()
    return Start(folder, store(folder / "data"), store(undisturbed.root), ended.events, ended.seconds)


def fatal_events(events: Sequence[str]) -> list[int]:
    """The numbers, from 1, of the events before which a run is killed: all, and of each stretch of SQLite's writes one.

    Which one turns with every stretch, so that logs are torn at all their places.
    """
    chosen, stretch, turn = [], list[int](), 0
    for number, event in enumerate([*events, "end"], start=1):
        if event.startswith(SAMPLED):
            stretch.append(number)
            continue
        if stretch:
            # The first is as good as the commit it is part of, before which the run was killed already.
            later = stretch[1:] or stretch
            chosen.append(later[turn % len(later)])
            stretch, turn = [], turn + 1
        chosen.append(number)
    return chosen[:-1]


def table(deaths: Sequence[tuple[str, str]]) -> str:
    """Where runs died, by phase."""
    lines = (f"  {name:45} {event} ({count} x)" for (name, event), count in sorted(Counter(deaths).items()))
    return "\n".join(["died before", *lines])


def test_the_run_that_is_killed_does_all_that_runs_do(start: Start) -> None:
    deaths = [(phase(start.events[number - 1]), start.events[number - 1]) for number in fatal_events(start.events)]
    print(table(deaths))  # noqa: T201  # shown if the test fails
    met = {name for name, _ in deaths}
    assert sorted(set(PHASES.values()) - met) == [], "phases that were not met"
    assert sorted(met - set(PHASES.values())) == [], "events of no phase"
    stages = [event.split()[-1] for event in start.events if phase(event) == "run: stage"]
    assert stages == ["gather", "calculate", "entities", "teams", "check", "emit"]
    assert differences(start.before, start.expected), "the second delivery changes nothing"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_before_every_event_in_turn(start: Start, tmp_path: Path, block: int) -> None:
    numbers = fatal_events(start.events)[block::BLOCKS]
    cases = {number: case(start.folder, tmp_path / str(number)) for number in numbers}
    died = {number: victim(made.config("second"), made.root, before_event=number) for number, made in cases.items()}
    deaths = [(phase(ended.events[-1]), ended.events[-1]) for ended in died.values()]
    print(table(deaths))  # noqa: T201  # shown if the test fails
    assert {number: (ended.code, ended.events) for number, ended in died.items()} == {
        number: (SIGKILL, start.events[:number]) for number in numbers
    }
    run(*(made.config("second") for made in cases.values()))
    wrong = {
        f"killed before event {number}, {start.events[number - 1]}": found
        for number, made in cases.items()
        if (found := differences(store(made.root), start.expected))
    }
    assert wrong == {}


@pytest.mark.parametrize("block", range(4))
def test_killed_at_random_instants(start: Start, tmp_path: Path, block: int) -> None:
    """Three days at a time: what the others did meanwhile is anywhere."""
    instants = [random.Random(seed).random() for seed in range(block, 20, 4)]
    cases = [case(start.folder, tmp_path / str(number)) for number in range(len(instants))]
    died = [
        victim(made.config("parallel"), made.root, after_seconds=instant * start.seconds)
        for made, instant in zip(cases, instants, strict=True)
    ]
    for instant, ended in zip(instants, died, strict=True):
        last = ended.events[-1] if ended.events else "anything"
        print(f"{instant:.3f} of the run: {phase(last)}, just before or after {last}")  # noqa: T201
    # A run that is faster than the one that was measured may end before its killer comes.
    assert {SIGKILL} <= {ended.code for ended in died} <= {SIGKILL, 0}
    run(*(made.config("parallel") for made in cases))
    assert [differences(store(made.root), start.expected) for made in cases] == [[]] * len(cases)


def number_of(start: Start, event: str, after: str = "") -> int:
    """The number of the first event that fits a pattern, after another that does."""
    numbers = [number for number, seen in enumerate(start.events, start=1) if re.fullmatch(event, seen)]
    least = number_of(start, after) if after else 0
    return next(number for number in numbers if number > least)


@pytest.mark.parametrize(
    ("renamed", "commit", "stored"),
    [
        ("lake/billing/tenant_id=acme/month=2025-10/2025-10-02.parquet", "INSERT pipeline_state", "billing_digest"),
        ("lake/chargeback/tenant_id=acme/month=2025-10/2025-10-04.parquet", "UPDATE pipeline_state", "output_digest"),
        ("lake/empty_keys/tenant_id=acme/month=2025-10/2025-10-04.parquet", "UPDATE pipeline_state", "empty_key_rows"),
    ],
)
def test_killed_between_rename_and_commit(start: Start, tmp_path: Path, renamed: str, commit: str, stored: str) -> None:
    made = case(start.folder, tmp_path / "case")
    number = number_of(start, f"commit state.db {commit}", after=f"rename {re.escape(renamed)}")
    assert victim(made.config("second"), made.root, before_event=number).code == SIGKILL
    # The file is the new one, and the state does not know it yet.
    file, day = renamed.removeprefix("lake/"), Path(renamed).stem
    assert digests(made.root / "lake")[file] == start.expected.lake[file] != start.before.lake[file]
    query = f"SELECT {stored} FROM pipeline_state WHERE charge_date = '{day}'"
    known = [queried(folder / "state.db", stored=query) for folder in (made.root, start.folder / "data")]
    assert known[0] == known[1]
    run(made.config("second"))
    assert differences(store(made.root), start.expected) == []


@pytest.mark.parametrize(
    "event",
    [
        "commit state.db INSERT pipeline_state",
        "rename lake/billing/.*/2025-10-04.parquet",
        "rename lake/billing/.*/2025-10-05.parquet",
        "remove lake/billing/.*/2025-10-03.parquet",
        "commit state.db DELETE pipeline_state",
        "commit state.db UPDATE ingestion_assemblies.*",
        "rename lake/chargeback/.*/2025-10-05.parquet",
        "commit state.db UPDATE pipeline_runs entities",
        "commit state.db UPDATE pipeline_runs emit",
    ],
)
def test_killed_and_then_the_first_delivery_counts_again(start: Start, tmp_path: Path, event: str) -> None:
    """What the killed run put there and nobody committed must go: the lake is that of the bill that counts."""
    made = case(start.folder, tmp_path / "case")
    matching = [number for number, seen in enumerate(start.events, start=1) if re.fullmatch(event, seen)]
    # The event after it has happened, or not, if it is a commit.
    number = matching[-1] + (not event.startswith("commit"))
    assert victim(made.config("second"), made.root, before_event=number).code == SIGKILL
    run(made.config("first"))
    found = store(made.root)
    assert found.lake == start.before.lake
    assert found.left == start.before.left
    assert found.state["days"] == start.before.state["days"]
    assert found.results["totals"] == start.before.results["totals"]


def test_killed_between_rename_and_commit_and_then_the_rules_are_as_before(start: Start, tmp_path: Path) -> None:
    """The day's file has the size that the state knows, and other charges."""
    made = case(start.folder, tmp_path / "case")
    configs = {}
    for name, ants in (("before", 60), ("meanwhile", 40)):
        ladder = [{"basis": "fixed", "percentages": {"ants": ants, "bees": 100 - ants}}, {"basis": "unallocated"}]
        configs[name] = write_config(
            made.config(name),
            root=made.root,
            cur=start.folder / "first",
            pools=[{"name": "nat", "match": {"usage_type": "NatGateway*"}, "ladder": ladder}],
            workers=1,
        )
    run(configs["before"])
    before = store(made.root)
    shutil.copytree(made.root, tmp_path / "copy")
    undisturbed = victim(configs["meanwhile"], made.root).events
    commit = undisturbed.index("commit state.db UPDATE pipeline_state") + 1
    shutil.rmtree(made.root)
    shutil.copytree(tmp_path / "copy", made.root)
    configs["meanwhile"].with_suffix(".events").unlink()
    assert victim(configs["meanwhile"], made.root, before_event=commit).code == SIGKILL
    run(configs["before"])
    assert store(made.root).lake == before.lake


def test_killed_before_its_checks_the_next_run_makes_them(start: Start, tmp_path: Path) -> None:
    made = case(start.folder, tmp_path / "case")
    number = number_of(start, "commit state.db UPDATE pipeline_runs check")
    assert victim(made.config("second"), made.root, before_event=number).code == SIGKILL
    made.config("second").with_suffix(".events").unlink()
    ended = victim(made.config("second"), made.root)
    assert ended.code == 0
    assert ended.events.count("check query") == start.events.count("check query") > 0


def test_killed_while_a_root_is_made(start: Start, tmp_path: Path) -> None:
    """The first run of all, until it reads its bill: schemas, folders, the empty file of each table."""
    empty = tmp_path / "empty"
    for name in ("first", "second", "keys.csv"):
        empty.mkdir(exist_ok=True)
        (empty / name).symlink_to(start.folder / name)
    undisturbed = case(empty, tmp_path / "undisturbed")
    ended = victim(undisturbed.config("first"), undisturbed.root)
    assert ended.code == 0
    last = ended.events.index("commit state.db UPDATE pipeline_runs gather") + 1
    numbers = fatal_events(ended.events[:last])
    assert len(numbers) > 15
    cases = {number: case(empty, tmp_path / str(number)) for number in numbers}
    codes = {victim(made.config("first"), made.root, before_event=number).code for number, made in cases.items()}
    assert codes == {SIGKILL}
    run(*(made.config("first") for made in cases.values()))
    expected = store(undisturbed.root)
    assert {number: differences(store(made.root), expected) for number, made in cases.items()} == {
        number: [] for number in numbers
    }
