"""Any history, gathered step by step, ends in the files of a lake that saw only its end.

Real: the answers of the double, their landing and parsing, entities, metrics' settling, calculation, the lake and the
state. Left out for speed: HTTP (the double is asked directly), SQL checks and emitters, which other tests run. Both
roots see the same inventories, as what was seen when is the history itself, so they are asked for once; the fresh one
sees costs only at the end.
A day of each history is charged once more by the reference, from the bill and the intervals of the lake.

And a replay makes the same of the inventories that are kept, with what was known by those that are not, as of all.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import polars as pl
import pytest

from engine import gather, gather_state, lake, metered, pipeline, rules, state, wanted
from engine.config import ConfluentTenant
from engine.decide import Inputs
from engine.frames import IDENTITIES, RESOURCES, USAGE, empty
from engine.meanwhile import checks_meanwhile
from engine.sources import confluent, confluent_inventory
from engine.sources.answers import Answer
from engine.sources.confluent_inventory import KINDS
from engine.sources.landing import Landing
from engine.sources.secrets import Secrets
from engine.work import Hooks, Request, Summary, Work
from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server
from tests.doubles.organization import CHANGES, Organization
from tests.integration.confluent import Tenant
from tests.reference import products as reference

HISTORIES, BLOCKS, DAYS = 504, 12, 3
FIRST = date(2025, 9, 10)
"""Within a month, so that costs are one window."""
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
        organization.costs[when] = random.sample(of_products, min(len(of_products), 6))
    return organization


class Step(NamedTuple):
    """A gather of a history: its date, and the organization as it was then."""

    today: date
    organization: Organization


def history(seed: int) -> list[Step]:
    """Every kind of change at least once, in any order that can be, over three gathers."""
    organization, random = small(seed), Random(f"history {seed}")
    steps = [Step(FIRST + timedelta(days=1), organization.copy())]
    first = ["disappearance", "owner", *random.sample(["amount", "withdrawal", "late line", "tiers"], 2)]
    then = ["known late", "reappearance", "withdrawal", "late line", "tiers", *random.sample(sorted(CHANGES), 1)]
    for number, changes in ((DAYS - 1, first), (DAYS, then)):
        random.shuffle(changes)
        # Last, or a late line might fill the day again.
        for change in [*changes, *(["empty day"] if changes is then else [])]:
            organization.drift(random, change)
        organization.order = str(random.random())
        steps.append(Step(FIRST + timedelta(days=number), organization.copy()))
    return steps


class Root:
    """A lake with a tenant for each history."""

    def __init__(self, folder: Path, server: Server, seeds: Iterable[int]) -> None:
        self.given = Tenant(folder, server, lookback_days="9", emitters=[])
        self.given.write_all([f"h{seed}" for seed in seeds])
        self.config = pipeline.configured(self.given.file)
        self.tenants = {tenant.id: tenant for tenant in self.config.tenants}
        self.recipes = {tenant.id: pipeline._recipe(tenant) for tenant in self.config.tenants}
        # Rules are the same at each gather.
        self.inputs = {one.id: Inputs(one, rules.resolve(one), empty(USAGE)) for one in self.config.tenants}
        self.store = state.open_state(self.config.root)

    def gathers(
        self, seed: int, step: Step, server: Server, *, seen_by: Root | None = None, last: bool = False
    ) -> Summary:
        """One gather and what follows from it.

        `seen_by`: whose landed inventory of the same gather is taken; until the last, such a root sees no costs.
        """
        costs = last or seen_by is None
        tenant = self.tenants[f"h{seed}"]
        assert isinstance(tenant, ConfluentTenant)
        hooks = Hooks(lambda: f"{step.today}T12:00:00Z", lambda _: None, lambda *_: None, threading.Event())
        work = Work(self.config.root, tenant, Request("run"), hooks, self.store, 1, [], [], [], set(), Secrets())
        lake.create(work.root, tenant.id)
        server.organization = replace(step.organization, costs=step.organization.costs if costs else {})
        one = gather.open_gather(work, tenant, wanted.window(tenant, step.today))
        landing = gather.landing_of(work.root, tenant, one.gather_id)
        if seen_by is not None:
            landing.folder.mkdir(parents=True)
            landed_there = gather.landing_of(seen_by.config.root, tenant, one.gather_id)
            for kind in confluent_inventory.KINDS:
                landing.path(kind).hardlink_to(landed_there.path(kind))
        assert landed(landing, Direct(server), one.first_day, one.end_day) == {}
        summary = gather.absorb(work, tenant, one, landing, gather.Lacking(), Summary(tenant.id))
        metered.settle(work, tenant, self.inputs[tenant.id])
        recipe = self.recipes[tenant.id]
        with checks_meanwhile(work.root, tenant.id, work.hooks.stop) as checks:
            summary = pipeline._calculate(work, recipe, summary, checks)
        assert work.problems == []
        return recipe.entities(work, summary) if last else summary

    def expected(self, seed: int, when: date) -> dict[tuple[int, str], int]:
        """Line and identity -> units of 1e-12 that the reference charges for a day, from the same bill and facts."""
        tables = {
            name: self.given.table(name, f"h{seed}").to_dicts()
            for name in ("billing", "resources", "identities", "usage")
        }
        values = [row | {"value": f"{row['value']:f}"} for row in tables["usage"]]
        there = reference.Day(when, tables["resources"], tables["identities"], values, "", frozenset())
        found = dict[tuple[int, str], int]()
        for row in tables["billing"]:
            if row["charge_date"] == when:
                line = row | {"amount": f"{row['amount']:f}", "list": f"{row['list_amount']:f}"}
                for charge in reference.line_charges(line, {}, there)[0]:
                    key = charge.line_id, charge.identity_id
                    found[key] = found.get(key, 0) + charge.units
        return found

    def charged(self, seed: int, when: date) -> dict[tuple[int, str], int]:
        """What `expected` is compared with."""
        rows = self.given.table("chargeback", f"h{seed}").filter(pl.col("charge_date") == when)
        units = rows.select("line_id", "identity_id", pl.col("amount").reinterpret(dtype=pl.Int128))
        sums = units.group_by("line_id", "identity_id").agg(pl.col("amount").sum())
        return {(line, identity): amount for line, identity, amount in sums.rows()}

    def files(self, seed: int) -> dict[str, str]:
        return self.given.files(("billing", "chargeback", "empty_keys", "usage", "identities", "resources"), f"h{seed}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: all that is written is made durable, which here is nothing worth."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as made:
        yield Path(made)


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
def test_a_history_ends_in_the_files_of_a_lake_that_saw_only_its_end(folder: Path, server: Server, block: int) -> None:
    seeds = range(block, HISTORIES, BLOCKS)
    stepwise, fresh = (Root(folder / name, server, seeds) for name in ("steps", "fresh"))
    calculated = 0
    for seed in seeds:
        *steps, last = history(seed)
        for step in steps:
            calculated += stepwise.gathers(seed, step, server).days_calculated
            fresh.gathers(seed, step, server, seen_by=stepwise)
        calculated += stepwise.gathers(seed, last, server, last=True).days_calculated
        fresh.gathers(seed, last, server, seen_by=stepwise, last=True)
        assert stepwise.files(seed) == fresh.files(seed), f"history {seed}"
        billed = stepwise.given.table("chargeback", f"h{seed}")["amount"].sum()
        assert billed == last.organization.total(FIRST, last.today), f"history {seed}"
        # Both lakes would agree on the same mistake; another implementation would not make it. Of the days, the first
        # is the one that knew the most changes.
        when = next(day for day in sorted(last.organization.costs) if last.organization.costs[day])
        assert stepwise.charged(seed, when) == stepwise.expected(seed, when), f"history {seed}"
        for root in (stepwise, fresh):
            shutil.rmtree(root.config.root / "raw")
    assert calculated > len(seeds) * DAYS


def test_every_history_has_every_kind_of_change() -> None:
    for seed in range(0, HISTORIES, 50):
        first, middle, last = history(seed)
        assert any(not records for records in last.organization.costs.values())
        assert not first.organization.removed
        assert len(middle.organization.removed) == 1
        back = [entity.id for _, entity in middle.organization.removed]
        assert any(one in ids for ids in last.organization.inventory.values() for one in back)
        assert first.today < middle.today < last.today == FIRST + timedelta(days=DAYS)


# With inventories that are no longer kept


INVENTORIES, SEEDS = 8, 24
KEPT_DAYS = 2
FAULTS = ("", "", "lacks a part", "refused", "refused for a while", "stopped", "without an id")


class Fault(NamedTuple):
    """What is wrong with an inventory.

    Some kinds of it did not come, it cannot be understood, its run was stopped, or one of a kind has no id, so that
    nobody knows whether all came.
    """

    name: str
    lacking: dict[str, str]


def fault_of(random: Random) -> Fault:
    name, lacking = random.choice(FAULTS), dict[str, str]()
    if name in {"lacks a part", "stopped"}:
        for kind in random.sample(list(KINDS), random.randint(1, 3)):
            lacking |= {one: "refused" for one, of in KINDS.items() if one == kind or kind in of.needs}
    return Fault(name, lacking)


def faults_of(seed: int, random: Random) -> list[Fault]:
    """What is wrong with each inventory of a history: nothing with the first and the last, but in one history."""
    good, between = Fault("", {}), INVENTORIES - 2
    if not seed:
        # What is told of accounts, and never whole, before it is told of no more, is forgotten meanwhile.
        return [Fault("without an id", {}), *[Fault("lacks a part", {"service_accounts": "refused"})] * between, good]
    return [good, *(fault_of(random) for _ in range(between)), good]


def drifted(organization: Organization, random: Random) -> Organization:
    """The organization a day later, with lists that come empty now and then."""
    for change in random.choices(["owner", "disappearance", "reappearance", "known late"], k=4):
        organization.drift(random, change)
    organization.hidden = set(random.sample(["connectors", "ksqldbs", "users", "api_keys"], random.randint(0, 1)))
    return organization.copy()


class Inventories:
    """A tenant whose inventories are gathered day by day."""

    def __init__(self, root: Root, server: Server, tenant_id: str, **settings: int) -> None:
        given = root.tenants["h0"].model_copy(update={"id": tenant_id, **settings})
        assert isinstance(given, ConfluentTenant)
        self.tenant, self.server, self.store, self.root = given, server, root.store, root.config.root
        self.warnings = list[str]()
        lake.create(self.root, given.id)

    def work(self, today: date, command: str = "run") -> Work:
        hooks = Hooks(lambda: f"{today}T12:00:00Z", lambda _: None, lambda *_: None, threading.Event())
        asked = Request(command, replay=command != "run")
        return Work(self.root, self.tenant, asked, hooks, self.store, 1, self.warnings, [], [], set(), Secrets())

    def gathers(self, today: date, organization: Organization, fault: Fault) -> None:
        """One gather, with what is wrong with it."""
        work = self.work(today)
        self.server.organization = replace(organization, costs={})
        one = gather.open_gather(work, self.tenant, wanted.window(self.tenant, today))
        landing = gather.landing_of(work.root, self.tenant, one.gather_id)
        assert landed(landing, Direct(self.server), one.first_day, one.end_day) == {}
        for name in fault.lacking:
            landing.drop(name)
        if fault.name.startswith("refused"):
            landing.write("refused", landing.read("users"))
            landing.write("users", [Answer("u", 200, "[1]")])
        if fault.name == "without an id":
            nobody = Answer("u", 200, '{"data": [{"display_name": "nobody"}]}')
            landing.write("service_accounts", [*landing.read("service_accounts"), nobody])
        if fault.name != "stopped":
            gather.absorb(work, self.tenant, one, landing, gather.Lacking({}, fault.lacking), Summary(self.tenant.id))

    def understood(self, number: int) -> None:
        """What a gather landed is understood from now on."""
        landing = gather.landing_of(self.root, self.tenant, number)
        landing.write("users", landing.read("refused"))

    def replayed(self, today: date) -> dict[str, list[tuple[object, ...]]]:
        """What is known of entities, and of what ran on the days whose answers are kept, by a replay."""
        work = self.work(today, "recalculate")
        gather.replay(work, self.tenant, Summary(self.tenant.id))
        assert work.problems == []
        return self.known(today)

    def known(self, today: date) -> dict[str, list[tuple[object, ...]]]:
        tables = {
            table.name: gather_state.entities(self.store, table, self.tenant.id).drop("tenant_id").rows()
            for table in (RESOURCES, IDENTITIES)
        }
        first = today - timedelta(days=KEPT_DAYS)
        files = sorted((self.root / f"lake/usage/tenant_id={self.tenant.id}").glob("**/*.parquet"))
        ran = [pl.read_parquet(file).drop("tenant_id").rows() for file in files if file.stem >= str(first)]
        return {**tables, "zero": [*gather_state.zero_counts(self.store, self.tenant.id).items()], "ran": ran}

    def kept(self) -> list[int]:
        return [one.gather_id for one in gather_state.gathers(self.store, self.tenant.id)]


def test_a_replay_of_the_inventories_that_are_kept_is_that_of_all(folder: Path, server: Server) -> None:
    root = Root(folder, server, [0])
    for seed in range(SEEDS):
        random, organization = Random(f"inventories {seed}"), small(seed)
        threshold = random.randint(1, 2)
        every, few = (
            Inventories(
                root, server, f"{name}{seed}", retention_days=days, zero_gather_deletion_threshold=threshold
            )
            for name, days in (("every", 1000), ("few", KEPT_DAYS))
        )  # fmt: skip
        faults = faults_of(seed, random)
        for number in range(INVENTORIES):
            today = FIRST + timedelta(days=1 + number)
            if number >= 2 and faults[number - 2].name == "refused for a while":
                every.understood(number - 1)
                few.understood(number - 1)
            now = drifted(organization, random)
            for tenant in (every, few):
                tenant.gathers(today, now, faults[number])
            assert few.known(today) == every.known(today), f"seed {seed}, gather {number + 1}"
            if random.random() < 0.2:
                assert few.replayed(today) == every.replayed(today), f"seed {seed}, gather {number + 1}"
        assert few.replayed(today) == every.replayed(today), f"seed {seed}, {faults}"
        assert (len(every.kept()), len(few.kept())) == (INVENTORIES, KEPT_DAYS + 1)
        assert not [text for text in few.warnings if "read" in text and "again" in text]
