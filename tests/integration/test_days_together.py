"""Small days are calculated in one: the files, digests and failures of each are those of a day alone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from engine import meanwhile, pipeline, state
from engine.errors import LedgerError, StoppedError
from engine.frames import BILLING
from engine.work import Hooks, Request, Summary
from tests.integration.killing.stores import digests
from tests.integration.reports import Line, line, write_bill, write_config

DAYS = 12
POOLS = [
    {
        "name": "nat",
        "match": {"usage_type": "NatGateway*"},
        "ladder": [{"basis": "usage", "key": "nat_gb"}, {"basis": "even"}, {"basis": "unallocated"}],
    },
    {
        "name": "logs",
        "match": {"service": "AmazonCloudWatch"},
        "ladder": [{"basis": "weighted", "keys": {"nat_gb": "0.5", "none": "0.5"}}, {"basis": "operator"}],
    },
    {
        "name": "disks",
        "match": {"service": "AmazonEBS"},
        "parts": [
            {"share": "0.25", "ladder": [{"basis": "cost", "scope": "all"}, {"basis": "unallocated"}]},
            {"share": "0.75", "ladder": [{"basis": "resource"}]},
        ],
    },
    {
        "name": "taxes",
        "match": {"line_item_type": "Tax"},
        "window": "month",
        "ladder": [{"basis": "cost", "scope": "all"}, {"basis": "unallocated"}],
    },
]
KEYS = "identity,date,key,value\n" + "".join(
    f"{team},2025-10-{day:02d},nat_gb,{day * weight}\n"
    for day in (1, 2, 5, 9)
    for team, weight in (("ants", 1), ("bees", 2))
)


def lines(day: int) -> list[Line]:
    """Each day with other lines, owners and rungs than the days around it."""
    return [
        *(line(day, f"{day}.0{number}", team) for number, team in enumerate(["ants", "bees", "dogs"][: day % 4])),
        line(day, "1.00", usage_type="NatGateway-Bytes", resource="nat-1"),
        *([line(day, "0.10", service="AmazonCloudWatch", resource="log-1")] if day % 2 else []),
        *([line(day, "0.77", line_item_type="Tax", resource="")] if day % 6 < 2 else []),
        *([line(day, "-3.33", service="AmazonEBS", resource=f"vol-{day}" if day % 5 else "")] if day % 3 else []),
    ]


class Root(NamedTuple):
    """A store and the configuration that reads one bill into it."""

    config: Path

    @property
    def root(self) -> Path:
        return self.config.with_suffix("")

    def command(self, name: str, *, stop: threading.Event | None = None, **asked: Any) -> Summary:
        config = pipeline.configured(self.config)
        hooks = Hooks(lambda: "2025-11-01T00:00:00Z", lambda _: None, lambda *_: None, stop or threading.Event())
        request = Request(name, force=name == "recalculate", **asked)
        with state.open_state(config.root) as store:
            run_id = f"r{len(state.runs(store, 'acme', limit=100))}"
        return pipeline.run_tenant(config, config.tenants[0], request, hooks, run_id)

    def days(self) -> dict[str, state.Day]:
        with state.open_state(self.root) as store:
            return {day: row for (_, day), row in state.days(store, "acme").items()}

    def charged(self) -> set[int]:
        """The days of which chargeback is stored."""
        folder = self.root / "lake" / "chargeback" / "tenant_id=acme"
        return {int(path.stem[-2:]) for path in folder.glob("**/*.parquet")}

    def copy(self, name: str) -> Root:
        other = Root(self.config.with_name(f"{name}.yaml"))
        shutil.copytree(self.root, other.root)
        other.config.write_text(self.config.read_text().replace(str(self.root), str(other.root)))
        return other

    def damage(self, day: int) -> None:
        """Each line of a day comes twice, so that its rows cannot be in order."""
        (file,) = (self.root / "lake" / "billing").glob(f"**/2025-10-{day:02d}.parquet")
        stored = pl.read_parquet(file, hive_partitioning=False)
        pl.concat([stored, stored]).sort(BILLING.key).write_parquet(file)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A bill in a store, calculated, of which nothing waits."""
    folder = tmp_path_factory.mktemp("gathered")
    write_bill(folder / "cur", [one for day in range(1, DAYS + 1) for one in lines(day)])
    keys = folder / "keys.csv"
    keys.write_text(KEYS)
    found = Root(folder / "gathered.yaml")
    write_config(found.config, root=found.root, cur=folder / "cur", keys=[keys], workers=1, pools=POOLS)
    assert found.command("run").days_calculated == DAYS
    return found


def test_days_in_one_are_stored_as_each_alone_is(gathered: Root) -> None:
    alone = gathered.copy("alone")
    shutil.rmtree(alone.root / "lake" / "chargeback" / "tenant_id=acme")
    shutil.rmtree(alone.root / "lake" / "empty_keys" / "tenant_id=acme")
    for number in range(1, DAYS + 1):
        first = date(2025, 10, number)
        assert alone.command("run", first=first, end=first.replace(day=number + 1)).days_calculated == 1
    assert digests(alone.root / "lake") == digests(gathered.root / "lake")
    again = gathered.copy("again")
    assert again.command("recalculate").days_calculated == DAYS
    assert digests(again.root / "lake") == digests(gathered.root / "lake")
    assert not (again.root / "history").exists()
    assert alone.days() == gathered.days() == again.days()
    assert len({day.input_digest for day in gathered.days().values()}) == DAYS


@pytest.mark.parametrize("damaged", [1, 5, DAYS])
def test_a_day_that_fails_fails_alone(gathered: Root, damaged: int) -> None:
    """Those before it are done, and of itself and those after it everything stays as it was."""
    root = gathered.copy(f"damaged{damaged}")
    for table in ("chargeback", "empty_keys"):
        shutil.rmtree(root.root / "lake" / table / "tenant_id=acme")
    root.damage(damaged)
    with pytest.raises(LedgerError, match="table chargeback: "):
        root.command("recalculate")
    found = [day.attempts for day in root.days().values()]
    assert found == [int(number == damaged) for number in range(1, DAYS + 1)]
    assert root.charged() == set(range(1, damaged))


class StopAfter(threading.Event):
    """Set once a root has so many days of chargeback."""

    def __init__(self, root: Root, days: int) -> None:
        super().__init__()
        self.root, self.days = root, days

    def is_set(self) -> bool:
        return len(self.root.charged()) >= self.days


def test_a_run_that_is_stopped_ends_with_the_day_at_which_it_is(gathered: Root) -> None:
    root = gathered.copy("stopped")
    shutil.rmtree(root.root / "lake" / "chargeback" / "tenant_id=acme")
    with pytest.raises(StoppedError):
        root.command("run", stop=StopAfter(root, 5))
    assert root.charged() == set(range(1, 6))
    assert root.command("run").days_calculated == DAYS - 5
    assert digests(root.root / "lake") == digests(gathered.root / "lake")


class SeenByChecks(threading.Event):
    """Never set; when checks ask the first time, while days are calculated, `then` happens."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.asked, self._then = 0, then

    def is_set(self) -> bool:
        if threading.current_thread().name.startswith("check"):
            self.asked += 1
            if self.asked == 1:
                self._then()
        return False


def test_days_that_pass_while_others_are_calculated_count_as_checked(
    gathered: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meanwhile, "CHECKED_AT_ONCE", 1)
    root = gathered.copy("meanwhile")
    shutil.rmtree(root.root / "lake" / "chargeback" / "tenant_id=acme")
    seen = SeenByChecks()
    assert root.command("recalculate", stop=seen).days_calculated == DAYS
    assert seen.asked > 0
    assert all(day.checked_digest == day.output_digest for day in root.days().values())
    assert digests(root.root / "lake") == digests(gathered.root / "lake")


def test_a_day_that_does_not_pass_meanwhile_is_told_at_the_end(gathered: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meanwhile, "CHECKED_AT_ONCE", 1)
    root = gathered.copy("not passed")

    def lose_a_row() -> None:
        (file,) = (root.root / "lake" / "chargeback").glob("**/2025-10-01.parquet")
        pl.read_parquet(file, hive_partitioning=False).slice(1).write_parquet(file)

    with pytest.raises(LedgerError, match="tenant acme: check line_sum: 1 row") as raised:
        root.command("recalculate", stop=SeenByChecks(lose_a_row))
    assert "check files_vs_log" in str(raised.value)
    assert all(day.checked_digest is None for day in root.days().values())
    assert len(root.charged()) == DAYS
