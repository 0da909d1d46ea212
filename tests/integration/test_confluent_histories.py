"""Any history, gathered step by step, ends in the files of a lake that saw only its end.

Real: the answers of the double, their landing and parsing, entities, metrics' settling, calculation, the lake and the
state. Left out for speed: HTTP (the double is asked directly), SQL checks and emitters, which other tests run. Both
roots see the same inventories, since what was seen when is the history itself; the fresh one sees costs only at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from engine import gather, lake, metrics, pipeline, rules, state, wanted
from engine.config import ConfluentTenant
from engine.decide import Inputs
from engine.frames import USAGE, empty
from engine.sources import confluent, confluent_inventory
from engine.sources.answers import Answer
from engine.sources.landing import Landing
from engine.work import Hooks, Request, Summary, Work
from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server
from tests.doubles.organization import CHANGES, Organization
from tests.integration.confluent import FIRST, Tenant, day

HISTORIES, BLOCKS, DAYS = 504, 12, 4
KEPT = {
    "KAFKA_STORAGE",
    "KAFKA_NUM_CKU",
    "KSQL_NUM_CSU",
    "CONNECT_CAPACITY",
    "SUPPORT",
    "KAFKA_PARTITION",
    "PROMO_CREDIT",
}
"""Few products, so that histories are many."""


class Direct:
    """The double without HTTP: what a client gives, each page as the double makes it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def get(self, path: str, params: Mapping[str, str] | None = None, **_: object) -> Answer:
        from urllib.parse import urlencode  # noqa: PLC0415

        target = f"/{path}?{urlencode(params)}" if params else f"/{path}"
        basic = self.server.organization.credential.basic
        reply = self.server.answer("GET", target, {"Authorization": f"Basic {basic}"})
        return Answer(target, reply.status, reply.body.decode())

    def pages(
        self, path: str, params: Mapping[str, str] | None = None, *, page_size: int | None = None, **_: object
    ) -> Iterator[Answer]:
        asked = {**(params or {}), **({"page_size": str(page_size)} if page_size else {})}
        answer = self.get(path, asked)
        assert answer.status == 200
        # Lists are short enough for one page.
        assert not (answer.body.get("metadata") or {}).get("next")
        yield answer


def small(seed: int) -> Organization:
    organization = bundled(FIRST, DAYS)
    random = Random(seed)
    for when, records in organization.costs.items():
        of_products = [one for one in records if one["line_type"] in KEPT and "start_date" in one]
        organization.costs[when] = random.sample(of_products, min(len(of_products), 7))
    return organization


class Step(NamedTuple):
    """A gather of a history: its date, and the organization as it was then."""

    today: date
    organization: Organization


def history(seed: int) -> list[Step]:
    """Every kind of change at least once, in any order that can be, over three gathers."""
    organization, random = small(seed), Random(f"history {seed}")
    steps = [Step(day(random.choice([1, 2])), organization.copy())]
    first = ["disappearance", "owner", *random.sample(["amount", "withdrawal", "late line", "tiers"], 2)]
    then = ["reappearance", "withdrawal", "late line", "tiers", *random.sample(sorted(CHANGES), 1)]
    for today, changes in ((day(DAYS - 1), first), (day(DAYS), then)):
        random.shuffle(changes)
        # Last, or a late line might fill the day again.
        for change in [*changes, *(["empty day"] if changes is then else [])]:
            organization.drift(random, change)
        organization.order = str(random.random())
        steps.append(Step(today, organization.copy()))
    return steps


class Root:
    """One lake of a history."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.tenant = Tenant(folder, server, lookback_days="30", emitters=[])

    def gathers(self, step: Step, server: Server, *, costs: bool = True) -> Summary:
        """One gather and all that follows from it."""
        config = pipeline.configured(self.tenant.file)
        tenant = config.tenants[0]
        assert isinstance(tenant, ConfluentTenant)
        hooks = Hooks(lambda: f"{step.today}T12:00:00Z", lambda _: None, lambda *_: None, threading.Event())
        with state.open_state(config.root) as store:
            work = Work(config.root, tenant, Request("run"), hooks, store, 1, [], [], [])
            lake.create(config.root, tenant.id)
            server.organization = step.organization.copy()
            if not costs:
                server.organization.costs = {}
            one = gather.open_gather(work, tenant, wanted.window(tenant, step.today))
            landing = gather.landing_of(config.root, tenant, one.gather_id)
            failed = landed(landing, Direct(server), one.first_day, one.end_day)
            assert failed == {}
            summary = gather.absorb(work, tenant, one, landing, failed, Summary(tenant.id))
            metrics.settle(work, tenant, Inputs(tenant, rules.resolve(tenant), empty(USAGE)))
            recipe = pipeline._recipe(tenant)
            summary = pipeline._calculate(work, recipe, summary)
            assert work.problems == []
            return recipe.entities(work, summary)


def landed(landing: Landing, client: Direct, first: str, end: str) -> dict[str, str]:
    for window in confluent.cost_windows(date.fromisoformat(first), date.fromisoformat(end)):
        confluent.fetch_costs(client, landing, window)  # type: ignore[arg-type]
    return confluent_inventory.fetch_inventory(client, lambda *_: None, landing)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server() -> Server:
    """Asked directly: its port is never opened to anybody."""
    made = Server(Organization())
    made._http.server_close()
    return made


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_history_ends_in_the_files_of_a_lake_that_saw_only_its_end(
    tmp_path: Path, server: Server, block: int
) -> None:
    recalculated = 0
    for seed in range(block, HISTORIES, BLOCKS):
        steps = history(seed)
        stepwise, fresh = (Root(tmp_path / f"{name}-{seed}", server) for name in ("steps", "fresh"))
        for step in steps:
            recalculated += stepwise.gathers(step, server).days_calculated
        for step in steps[:-1]:
            fresh.gathers(step, server, costs=False)
        fresh.gathers(steps[-1], server)
        assert stepwise.tenant.files() == fresh.tenant.files(), f"history {seed}"
        entities = ("identities", "resources")
        assert stepwise.tenant.files(entities) == fresh.tenant.files(entities), f"history {seed}"
        assert stepwise.tenant.total() == steps[-1].organization.total(FIRST, steps[-1].today), f"history {seed}"
    assert recalculated > HISTORIES // BLOCKS * DAYS


def test_every_history_has_every_kind_of_change() -> None:
    for seed in range(0, HISTORIES, 50):
        first, middle, last = history(seed)
        assert any(not records for records in last.organization.costs.values())
        assert not first.organization.removed
        assert len(middle.organization.removed) == 1
        back = [entity.id for _, entity in middle.organization.removed]
        assert any(one in ids for ids in last.organization.inventory.values() for one in back)
        assert first.today < middle.today < last.today == FIRST + timedelta(days=DAYS)
