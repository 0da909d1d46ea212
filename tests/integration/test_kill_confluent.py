"""A gather killed anywhere, then run once more: the store is that of a run nobody disturbed, nothing is asked twice.

A lake that holds a first gather of an organization gets a second one, in which a day's lines changed, a day lost its
lines, a day is new, and so is an owner; with usage from a Prometheus. `killing/victim.py` ends it before each event.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served
from tests.doubles.confluent_metrics import Metrics
from tests.doubles.organization import Organization
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import VARIABLES, Tenant
from tests.integration.killing.forks import Forks, fatal
from tests.integration.killing.stores import Store, differences, queried, store
from tests.integration.test_kill import SIGKILL, victim

FIRST = date(2025, 9, 29)
"""So that the days of three lie in two months, and costs in two windows."""
BEFORE, TODAY = FIRST + timedelta(days=2), FIRST + timedelta(days=3)
KEPT = {"KAFKA_NUM_CKU", "KAFKA_NETWORK_WRITE", "KSQL_NUM_CSU", "SUPPORT", "FLINK_NUM_CFU"}
BLOCKS, INSTANTS = 4, 50


def small() -> Organization:
    organization = bundled(FIRST, 3)
    for when, records in organization.costs.items():
        organization.costs[when] = [one for one in records if one["line_type"] in KEPT and "start_date" in one]
    return organization


def changed(organization: Organization) -> None:
    """What happens between the two gathers."""
    record = organization.find(FIRST, "KAFKA_NUM_CKU", "lkc-prod1")[0]
    organization.revise(record["id"], amount=Decimal("5.5"))
    organization.empty_day(FIRST + timedelta(days=1))
    organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    organization.remove("connectors", "lcc-nothing")


class Start(NamedTuple):
    """A store before the run that is killed, and how that run ends when it is left alone."""

    folder: Path
    server: Server
    metrics: str
    expected: Store
    known: dict[str, list[object]]
    events: tuple[str, ...]
    seconds: float
    next_day: dict[str, object]
    """What there is once that run was left alone, and another one came on the day after."""


class Case(NamedTuple):
    """A copy of the store, to be killed on."""

    tenant: Tenant

    @property
    def root(self) -> Path:
        return self.tenant.root


def case(start: Path, folder: Path, server: Server, metrics: str) -> Case:
    tenant = Tenant(folder, server, metrics, lookback_days="5", cutoff_days="0")
    # Names of files, digests and times are those of the command line, which is what is killed.
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in VARIABLES.items()))
    if (start / "data").exists():
        shutil.copytree(start / "data", tenant.root)
    return Case(tenant)


KNOWN = {
    "resources": "SELECT * FROM resources ORDER BY tenant_id, id, valid_from",
    "identities": "SELECT * FROM identities ORDER BY tenant_id, id, valid_from",
    "zero": "SELECT * FROM zero_gathers ORDER BY 1, 2",
    "metrics": "SELECT charge_date, metric, status, ids, rows, attempts, error FROM day_metrics ORDER BY 1, 2",
    "usage": "SELECT * FROM usage_days ORDER BY 1, 2",
    "windows": "SELECT first_day, end_day, sha256, records FROM landed_windows ORDER BY gather_id, 1",
    "gathers": "SELECT gather_id, first_day, end_day, status FROM gathers ORDER BY 1",
    "flags": "SELECT charge_date, resources_gathered, metrics_gathered FROM pipeline_state ORDER BY 1",
}


ENDED = "SELECT status, run_ended FROM gathers WHERE gather_id = 2"


def known(root: Path) -> dict[str, list[object]]:
    return queried(root / "state.db", **KNOWN)


def stored(root: Path) -> Store:
    """All but the answers to metrics, which may be asked again, and are numbered."""
    found = store(root)
    left = [path for path in found.left if not path.startswith("raw/confluent_cloud/conf/metrics/")]
    return found._replace(left=tuple(left))


def charged(root: Path) -> dict[str, object]:
    """What is billed and charged, and the usage of days that are billed.

    What runs is asked for on its day only, and not at all if the run of the day is killed before.
    """
    found = store(root)
    tables = ("billing/", "chargeback/", "empty_keys/", "usage/")
    unbilled = tuple(f"{when}.parquet" for when in (TODAY, TODAY + timedelta(days=1)))
    kept = {name: one for name, one in found.lake.items() if name.startswith(tables) and not name.endswith(unbilled)}
    return {**kept, "facts": found.results["facts"], "totals": found.results["totals"], "claims": found.state["claims"]}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    folder = tmp_path_factory.mktemp("start")
    metrics = Metrics(FIRST, days=3, step_minutes=720)
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in metrics.samples())
    with served(small()) as server, prometheus(rows, tmp_path_factory.mktemp("prometheus")) as url:
        built = case(folder, folder / "built", server, url)
        assert built.tenant.run(BEFORE).exit_code == 0
        shutil.move(built.root, folder / "data")
        changed(server.organization)
        undisturbed = case(folder, folder / "undisturbed", server, url)
        ended = victim(undisturbed.tenant.file, undisturbed.root, today=TODAY)
        assert ended.code == 0, undisturbed.tenant.file.with_suffix(".err").read_text()
        expected = stored(undisturbed.root), known(undisturbed.root), ended.events, ended.seconds
        assert undisturbed.tenant.run(TODAY + timedelta(days=1)).exit_code == 0
        yield Start(folder, server, url, *expected, charged(undisturbed.root))


PHASES = {
    r"commit state.db INSERT claims.*|open claims/conf.lock|commit state.db INSERT pipeline_runs": "run: start",
    r"commit state.db UPDATE pipeline_runs (gather|metrics|calculate|entities|teams)": "run: stage",
    r"commit state.db UPDATE gathers failed, INSERT gathers": "gather: begin",
    r"open raw/.*/gathers/000002/costs-.*": "costs: write",
    r"rename raw/.*/gathers/000002/costs-.*": "costs: landed",
    r"open raw/.*/gathers/000002/[a-z_]+[.]jsonl.*": "inventory: write",
    r"rename raw/.*/gathers/000002/[a-z_]+[.]jsonl.*": "inventory: landed",
    r"commit state.db UPDATE gathers open": "gather: landed",
    r"open tmp/conf/billing-.*": "billing: write",
    r"link history/billing/.*": "billing: history",
    r"rename lake/billing/.*": "billing: rename",
    r"commit state.db INSERT pipeline_state": "billing: commit",
    r"(link history|remove lake)/(chargeback|billing)/.*2025-09-30.*": "withdraw",
    r"commit state.db DELETE pipeline_state": "withdraw: commit",
    r"commit state.db INSERT landed_windows": "window: commit",
    r"open tmp/conf/usage-.*": "usage: write",
    r"(link history|remove lake)/usage/.*": "usage: history",
    r"rename lake/usage/.*": "usage: rename",
    r"commit state.db DELETE resources, .*UPDATE gathers done.*": "gather: done, with its entities",
    r"commit state.db ": "gather: tidied",
    r"open raw/.*/metrics/.*": "metrics: write",
    r"rename raw/.*/metrics/.*": "metrics: landed",
    r"commit state.db INSERT metric_fetches, INSERT OR": "metrics: commit",
    r"commit state.db DELETE usage_days, DELETE day_metrics": "metrics: not asked for any more",
    r"commit state.db UPDATE pipeline_state": "day: flags, begin and commit",
    r"open tmp/conf/chargeback-.*": "chargeback: write",
    r"link history/chargeback/.*": "chargeback: history",
    r"rename lake/chargeback/.*": "chargeback: rename",
    r"open tmp/conf/empty_keys-.*|rename lake/empty_keys/.*|link history/empty_keys/.*": "empty keys",
    r"(open tmp/conf|rename lake)/(identities|resources)[./].*": "entities: written",
    r"commit state.db INSERT tenant_entities": "entities: commit",
    r"((open|remove) tmp/conf|rename lake)/(tags|teams)[./].*": "teams: written",
    r"commit state.db DELETE custom_tags, INSERT tenant_teams": "teams: commit",
}
"""Events -> the phase of the run that they belong to; what comes after them is the same for every tenant."""


def phase(event: str) -> str:
    """Which phase an event belongs to; the event itself if to none."""
    return next((name for pattern, name in PHASES.items() if re.fullmatch(pattern, event)), event)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


def wrong_after(start: Start, made: Case) -> list[str]:
    """Run once more, and say what is not as it should be; the store was left by a run that was killed."""
    if ("done", 1) in queried(made.root / "state.db", ended=ENDED)["ended"]:
        # Its killer came too late; the next run would be another pass. All that was left to do is to give up its claim,
        # which counts for nothing once its process is gone, and to close the state.
        found = differences(stored(made.root), start.expected)
        return [one for one in found if not one.startswith(("left: with state.db-", "state: with claims: "))]
    landed = made.root / "raw/confluent_cloud/conf/gathers/000002"
    windows = {tuple(re.findall(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", file.name)) for file in landed.glob("costs-*.zst")}
    start.server.forget()
    done = made.tenant.run(TODAY)
    wrong = [f"asked again for {window}" for window in windows if start.server.windows()[window]]
    wrong += [f"exit code {done.exit_code}: {done.faults}"] if done.exit_code else []
    wrong += differences(stored(made.root), start.expected)
    found = known(made.root)
    return wrong + [name for name in KNOWN if found[name] != start.known[name]]


def test_the_run_that_is_killed_does_all_that_gathers_do(start: Start) -> None:
    met = {phase(start.events[number - 1]) for number in fatal(start.events)}
    assert sorted(met - set(PHASES.values())) == [], "events of no phase"
    assert sorted(set(PHASES.values()) - met - {"empty keys", "metrics: not asked for any more"}) == []


@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_before_every_event_of_a_gather(start: Start, forks: Forks, tmp_path: Path, block: int) -> None:
    wrong = {}
    for number in fatal(start.events)[block::BLOCKS]:
        made = case(start.folder, tmp_path / str(number), start.server, start.metrics)
        code, _ = forks.run(made.tenant.file, made.root, TODAY, before_event=number)
        events = made.tenant.file.with_suffix(".events").read_text().splitlines()
        assert (code, phase(events[-1])) == (SIGKILL, phase(start.events[number - 1]))
        if found := wrong_after(start, made):
            wrong[f"killed before event {number}, {start.events[number - 1]}"] = found
        shutil.rmtree(made.tenant.folder)
    assert wrong == {}


def landed_windows(root: Path) -> set[tuple[str, str]]:
    """The windows of costs that the killed run landed whole."""
    files = (root / "raw/confluent_cloud/conf/gathers/000002").glob("costs-*.zst")
    dates = (re.findall(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", file.name) for file in files)
    return {(first, end) for first, end in dates}


def test_killed_before_an_event_of_each_phase_and_run_after_midnight(
    start: Start, forks: Forks, tmp_path: Path
) -> None:
    first_of = {phase(start.events[number - 1]): number for number in reversed(fatal(start.events))}
    gathering = [name for name, number in first_of.items() if number <= first_of["gather: tidied"]]
    wrong = {}
    for name in (*gathering, "metrics: commit", "chargeback: rename"):
        number = first_of[name]
        made = case(start.folder, tmp_path / str(number), start.server, start.metrics)
        assert forks.run(made.tenant.file, made.root, TODAY, before_event=number)[0] == SIGKILL
        landed = landed_windows(made.root)
        start.server.forget()
        done = made.tenant.run(TODAY + timedelta(days=1))
        asked = start.server.windows()
        found = [
            f"asked again for {one}"
            for one in asked
            if any(first <= one[0] and one[1] <= end for first, end in landed) or asked[one] > 1
        ]
        found += [f"exit code {done.exit_code}: {done.faults}, {done.warnings}"] if done.exit_code else []
        after = charged(made.root)
        found += [key for key in {*after, *start.next_day} if after.get(key) != start.next_day.get(key)]
        if found:
            wrong[f"killed before event {number}, {name}"] = found
        shutil.rmtree(made.tenant.folder)
    assert wrong == {}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_at_random_instants(start: Start, forks: Forks, tmp_path: Path, block: int) -> None:
    whole = case(start.folder, tmp_path / "whole", start.server, start.metrics)
    _, seconds = forks.run(whole.tenant.file, whole.root, TODAY)
    wrong = {}
    for seed in range(block, INSTANTS, BLOCKS):
        made = case(start.folder, tmp_path / str(seed), start.server, start.metrics)
        instant = random.Random(seed).random()
        code, _ = forks.run(made.tenant.file, made.root, TODAY, after_seconds=instant * seconds)
        # A run that is faster than the one that was measured may end before its killer comes.
        assert code in {SIGKILL, 0}
        if found := wrong_after(start, made):
            wrong[f"killed after {instant:.3f} of the run"] = found
        shutil.rmtree(made.tenant.folder)
    assert wrong == {}


def forgetting(folder: Path, server: Server) -> Case:
    """A tenant whose answers are kept for a day."""
    tenant = Tenant(folder, server, lookback_days="5", cutoff_days="0", retention_days="1")
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in VARIABLES.items()))
    return Case(tenant)


ENTITIES = {
    name: f"SELECT * FROM {name} ORDER BY 1, 2, 3"
    for name in ("resources", "identities", "bases", "base_resources", "base_identities")
}


@pytest.mark.parametrize("at", ["before it", "its answers are there", "its answers are gone"])
def test_killed_while_it_forgets_old_gathers(forks: Forks, tmp_path: Path, at: str) -> None:
    with served(small()) as server:
        made, whole = (forgetting(tmp_path / name, server) for name in ("made", "whole"))
        for number, owner in enumerate(("sa-ksql", "u-bob", "u-alice")):
            server.organization.change_owner("ksqldbs", "lksqlc-prod1", owner)
            assert made.tenant.run(BEFORE - timedelta(days=number < 2), hour=number).exit_code == 0
        gathers = made.root / "raw/confluent_cloud/conf/gathers"
        shutil.copytree(made.root, whole.root)
        shutil.copytree(gathers, tmp_path / "before")
        assert forks.run(whole.tenant.file, whole.root, TODAY)[0] == 0
        expected = queried(whole.root / "state.db", **ENTITIES)
        events = whole.tenant.file.with_suffix(".events").read_text().splitlines()
        fatal_event = r"commit state.db .* base_resources.*" if at == "before it" else r"commit state.db DELETE gathers"
        [place] = [number for number, event in enumerate(events, start=1) if re.fullmatch(fatal_event, event)]
        assert forks.run(made.tenant.file, made.root, TODAY, before_event=place)[0] == SIGKILL
        if at == "its answers are there":
            shutil.copytree(tmp_path / "before", gathers, dirs_exist_ok=True)
        for command in ("recalculate", "run"):
            done = made.tenant.run(TODAY, command, replay=command == "recalculate")
            # Costs that are gone and not forgotten are told.
            told = command == "recalculate" and at == "its answers are gone"
            assert (command, done.exit_code, len(done.faults)) == (command, 14 * told, int(told))
            found = queried(made.root / "state.db", **ENTITIES)
            names = ["resources", "identities"] if (command, at) == ("recalculate", "before it") else ENTITIES
            assert [name for name in names if found[name] != expected[name]] == []
        assert sorted(folder.name for folder in gathers.iterdir()) == ["000003", "000004"]
        assert queried(made.root / "state.db", gathers="SELECT gather_id FROM gathers")["gathers"] == [(3,), (4,)]
