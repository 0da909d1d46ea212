"""A run that makes days from a cost model, killed anywhere, then run once more: the store is that of a run left alone.

A lake that holds two days of a Kafka cluster gets a second run, after the cost model changed: on the first day the
cluster is not there any more, on the second a broker costs more, the third is new and has to be asked for; and all
principals are in another team. `killing/victim.py` ends it before each event. Of a cluster of anything else, whose
price changes, it ends it before some.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.doubles.exporter import DAY, GIB, MINUTE, Cluster, gauge
from tests.doubles.prometheus import Row, prometheus
from tests.integration.cost_tenants import FIRST, Between, Root, kafka, metrics
from tests.integration.killing.forks import Forks, fatal
from tests.integration.killing.stores import Store, differences, queried, store
from tests.integration.test_kill import SIGKILL, victim
from tests.unit.scripted import Script

TENANT = "k"
BEFORE, TODAY = FIRST + timedelta(days=2), FIRST + timedelta(days=3)
BLOCKS, INSTANTS = 2, 20
GENERIC_KILLS = 10
"""Of a run over anything but Kafka, which takes the same way through the same stages."""

KNOWN = {
    "resources": "SELECT * FROM resources ORDER BY tenant_id, id, valid_from",
    "metrics": "SELECT * FROM day_metrics ORDER BY 1, 2, 3",
    "fetches": "SELECT fetch_id, metric, first_day, end_day, ids FROM metric_fetches ORDER BY 1",
    "usage": "SELECT * FROM usage_days ORDER BY 1, 2",
    "made": "SELECT * FROM constructed_days ORDER BY 1, 2",
    "flags": "SELECT charge_date, resources_gathered, metrics_gathered FROM pipeline_state ORDER BY 1",
}


class Start(NamedTuple):
    """A store before the run that is killed, and how that run ends when it is left alone."""

    folder: Path
    script: Script
    tenant: Callable[..., dict[str, Any]]
    expected: Store
    known: dict[str, list[Any]]
    events: tuple[str, ...]


def tenant(url: str, *, changed: bool) -> dict[str, Any]:
    first = FIRST + timedelta(days=changed)
    rates = {"from": str(first), "compute_hourly_rate": "0.2" if changed else "0.1", "network_ingress_per_gib": "0.01"}
    members = [{"team": "after" if changed else "before", "id": "User:*"}]
    settings = {"lookback_days": "3", "teams": {"members": members}, "metrics": {"scrape_seconds": "1200"}}
    return kafka(TENANT, url, source={"rates": [rates]}, **settings)


def generic(url: str, *, changed: bool) -> dict[str, Any]:
    first = str(FIRST + timedelta(days=changed))
    common = {"product_category": "postgresql"}
    fixed = {"name": "FIXED", "rate": [{"from": first, "rate": "2" if changed else "1"}], "quantity": {"fixed": "1"}}
    stored = {"name": "STORED", "rate": [{"from": first, "rate": "1"}], "quantity": {"storage_gib": "sum(pg_size)"}}
    split = {"allocation": "usage_ratio", "allocation_query": "pg_size", "allocation_label": "datname"}
    source = {
        "kind": "cost_model",
        "cluster_id": TENANT,
        "identity_source": {"label": "datname", "discovery_query": "pg_size"},
        "cost_types": [{**fixed, **common, "allocation": "even_split"}, {**stored, **common, **split}],
    }
    given = {"id": TENANT, "ecosystem": "generic_metrics", "source": source, "metrics": metrics(url)}
    return {**given, "lookback_days": "3", "cutoff_days": "0"}


def generic_rows() -> Iterator[Row]:
    for name, size in (("shop", 75), ("crm", 25)):
        moments = range(0, 3 * DAY, 5 * MINUTE)
        yield from gauge("pg_size", {"datname": name}, ((moment, size * GIB) for moment in moments))


def case(
    start: Path,
    folder: Path,
    url: str,
    of: Callable[..., dict[str, Any]] = tenant,
    *,
    changed: bool = True,
    workers: int = 1,
) -> Root:
    """A copy of the store, to be killed on. With one worker events come in one order."""
    made = Root(folder, of(url, changed=changed))
    made.file.write_text(f"max_parallel_days: {workers}\n{made.file.read_text()}")
    if (start / "data").exists():
        shutil.copytree(start / "data", made.root)
    return made


def known(root: Path) -> dict[str, list[Any]]:
    return queried(root / "state.db", **KNOWN)


@contextmanager
def started(folder: Path, rows: Iterator[Row], of: Callable[..., dict[str, Any]]) -> Iterator[Start]:
    with prometheus(rows, folder / "prometheus") as url:
        between = Between(url)
        with between.serving() as script:
            built = case(folder, folder / "built", script.url, of, changed=False)
            assert built.run(BEFORE).faults == ()
            shutil.move(built.root, folder / "data")
            undisturbed = case(folder, folder / "undisturbed", script.url, of)
            ended = victim(undisturbed.file, undisturbed.root, today=TODAY)
            assert ended.code == 0, undisturbed.file.with_suffix(".err").read_text()
            yield Start(folder, script, of, store(undisturbed.root), known(undisturbed.root), ended.events)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with started(tmp_path_factory.mktemp("start"), Cluster(TENANT, 3, step=20 * MINUTE).rows(), tenant) as found:
        yield found


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


PHASES = {
    r"commit state.db INSERT claims.*|open claims/k.lock|commit state.db INSERT pipeline_runs": "run: start",
    r"commit state.db UPDATE pipeline_runs (gather|calculate|entities|teams)": "run: stage",
    r"open raw/.*": "answer: write",
    r"rename raw/.*": "answer: landed",
    r"commit state.db INSERT metric_fetches, .*": "answer: commit",
    r"open tmp/k/usage-.*": "usage: write",
    r"(link history|remove lake)/usage/.*": "usage: history",
    r"rename lake/usage/.*": "usage: rename",
    r"open tmp/k/billing-.*": "billing: write",
    r"link history/billing/.*": "billing: history",
    r"rename lake/billing/.*": "billing: rename",
    r"commit state.db (INSERT pipeline_state, )?(DELETE usage_days, )?INSERT OR": "days made: commit",
    r"(link history|remove lake)/(chargeback|billing)/.*2025-10-01.*": "withdraw",
    r"commit state.db DELETE pipeline_state": "withdraw: commit",
    r"commit state.db ": "nothing new",
    r"commit state.db UPDATE pipeline_state": "day: flags, begin and commit",
    r"open tmp/k/chargeback-.*": "chargeback: write",
    r"link history/chargeback/.*": "chargeback: history",
    r"rename lake/chargeback/.*": "chargeback: rename",
    r"((open|remove) tmp/k|rename lake)/(identities|resources)[./].*": "entities: written",
    r"commit state.db INSERT tenant_entities": "entities: commit",
    r"((open|remove) tmp/k|rename lake)/(tags|teams)[./].*": "teams: written",
    r"commit state.db DELETE custom_tags, INSERT tenant_teams": "teams: commit",
}
"""Events -> the phase of the run that they belong to; what comes after them is the same for every tenant."""


def phase(event: str) -> str:
    """Which phase an event belongs to; the event itself if to none."""
    return next((name for pattern, name in PHASES.items() if re.fullmatch(pattern, event)), event)


def wrong_after(start: Start, made: Root) -> list[str]:
    """Run once more, and say what is not as it should be; the store was left by a run that was killed."""
    if not (made.root / "state.db").exists():
        return ["without a state"]
    committed = len(known(made.root)["fetches"])
    before = len(start.script.asked)
    done = made.run(TODAY)
    asked = len(start.script.asked) - before
    wrong = [f"exit code {done.exit_code}: {done.faults}"] if done.exit_code else []
    # Each answer that was recorded is one question less, or two with the count of its samples.
    left = len(start.known["fetches"]) - committed
    wrong += [f"asked {asked} times with {left} questions open"] if asked > (1 + 2 * left if left else 0) else []
    wrong += differences(store(made.root), start.expected)
    found = known(made.root)
    return wrong + [f"{name}: {found[name]}" for name in KNOWN if found[name] != start.known[name]]


def test_the_run_that_is_killed_does_all_that_there_is(start: Start) -> None:
    met = {phase(start.events[number - 1]) for number in fatal(start.events)}
    assert sorted(met - set(PHASES.values())) == [], "events of no phase"
    assert sorted(set(PHASES.values()) - met) == []


def wrong_if_killed(start: Start, forks: Forks, folder: Path, numbers: Iterable[int]) -> dict[str, list[str]]:
    """What is not as it should be where a run is killed before these of its events, and another one follows."""
    wrong = {}
    for number in numbers:
        made = case(start.folder, folder / str(number), start.script.url, start.tenant)
        code, _ = forks.run(made.file, made.root, TODAY, before_event=number)
        events = made.file.with_suffix(".events").read_text().splitlines()
        assert (code, phase(events[-1])) == (SIGKILL, phase(start.events[number - 1]))
        if found := wrong_after(start, made):
            wrong[f"killed before event {number}, {start.events[number - 1]}"] = found
        shutil.rmtree(made.file.parent)
    return wrong


@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_before_every_event(start: Start, forks: Forks, tmp_path: Path, block: int) -> None:
    assert wrong_if_killed(start, forks, tmp_path, fatal(start.events)[block::BLOCKS]) == {}


def test_a_cluster_of_anything_killed_before_some_events(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    with started(tmp_path / "start", generic_rows(), generic) as found:
        numbers = fatal(found.events)
        some = random.Random(0).sample(numbers, GENERIC_KILLS)
        assert wrong_if_killed(found, forks, tmp_path, some) == {}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_at_random_instants(start: Start, forks: Forks, tmp_path: Path, block: int) -> None:
    whole = case(start.folder, tmp_path / "whole", start.script.url, workers=2)
    _, seconds = forks.run(whole.file, whole.root, TODAY)
    wrong = {}
    for seed in range(block, INSTANTS, BLOCKS):
        made = case(start.folder, tmp_path / str(seed), start.script.url, workers=2)
        instant = random.Random(seed).random()
        code, _ = forks.run(made.file, made.root, TODAY, after_seconds=instant * seconds)
        # A run that is faster than the one that was measured may end before its killer comes.
        assert code in {SIGKILL, 0}
        if found := wrong_after(start, made):
            wrong[f"killed after {instant:.3f} of the run"] = found
        shutil.rmtree(made.file.parent)
    assert wrong == {}
