"""What the steps of one run of one tenant share: what is asked for, where to tell of it, and the tenant's days."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine import credentials, gather_state, lake, state
from engine.config import ConfluentTenant, CostModelTenant, Tenant
from engine.errors import ConfigError, ProrataError, StoppedError, StoreError
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, USAGE, Table, check_rows, empty, encoded
from engine.rules import FROM_INVENTORY
from engine.sources import landing
from engine.sources.secrets import Secrets


class Clock(NamedTuple):
    """The time in seconds: as it is, and to measure with."""

    unix: Callable[[], float]
    monotonic: Callable[[], float]


class Hooks(NamedTuple):
    """What the recipes need from outside: the time, where to tell what happens, when to stop, and secrets.

    `log(text)`: one line for people. `progress(stage, done, total)`: how far a stage is. `environment` holds what
    `${NAME}` stands for. `clock` measures what `now` only names; without one nothing can be fetched.
    """

    now: Callable[[], str]
    log: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    stop: threading.Event
    environment: Mapping[str, str] = {}
    clock: Clock | None = None


class Request(NamedTuple):
    """What a command asks for: days from `first` to before `end` (None: open), and whether to redo unchanged days.

    `lift`: gather a tenant that is suspended, and ask again for what was given up, for what lacks values or samples,
    and for what Prometheus warned of; named days are made of what there is (`forces`).
    `replay`: read landed answers again.
    """

    command: str
    first: date | None = None
    end: date | None = None
    force: bool = False
    lift: bool = False
    replay: bool = False

    def covers(self, charge_date: str) -> bool:
        """Whether a day is asked for."""
        return (self.first is None or charge_date >= str(self.first)) and (
            self.end is None or charge_date < str(self.end)
        )

    def forces(self, charge_date: str) -> bool:
        """Whether a day is to be made of what there is, be it less than before: it is named, and not one of all."""
        return self.lift and self.first is not None and self.end is not None and self.covers(charge_date)


class Summary(NamedTuple):
    """What a run of one tenant did. `faults` kept it from a part of its work, with the exit code of the first.

    `days_pending` wait for what the next run asks for; `days_kept` keep what they were charged of usage that is lost,
    and that no run asks for unless it is forced.
    """

    tenant_id: str
    days_gathered: int = 0
    days_removed: int = 0
    days_calculated: int = 0
    days_unchanged: int = 0
    rows_written: int = 0
    days_emitted: int = 0
    days_pending: int = 0
    days_kept: int = 0
    requests: int = 0
    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    exit_code: int = 0


class Work(NamedTuple):
    """One run of one tenant, under its claim."""

    root: Path
    tenant: Tenant
    request: Request
    hooks: Hooks
    store: state.State
    workers: int
    warnings: list[str]
    problems: list[ProrataError]
    """What failed without keeping the later steps from their work."""
    unknown_products: list[pl.DataFrame]
    """Of each day that was calculated: what `decide.DayDecision` says of products without a rule."""
    rules_matched: set[str]
    """The rules under which a line of a day fell that was looked at."""
    known: Secrets
    """The credentials of all tenants, none of which may be in what is kept or said of answers."""

    def warn(self, text: str) -> None:
        """Tell of something that somebody should look at."""
        self.warnings.append(text)
        self.log(f"warning: {text}")

    def log(self, text: str) -> None:
        """Tell what happens."""
        self.hooks.log(f"{self.tenant.id}: {text}")

    def now(self) -> datetime:
        """The time, naive UTC as in all tables."""
        return as_time(self.hooks.now())

    def stop_if_asked(self) -> None:
        """StoppedError if the run is to end."""
        if self.hooks.stop.is_set():
            raise StoppedError(
                f"tenant {self.tenant.id}: stopped; what was published stands, the next run does the rest"
            )

    def place(self, table: Table, key: state.DayKey) -> lake.Place:
        """Where the tenant's rows of a day lie."""
        return lake.Place(table, self.tenant.id, key[0], date.fromisoformat(key[1]))


def as_time(text: str) -> datetime:
    """A time as hooks give it, naive UTC as in all tables."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


def check_variables(work: Work) -> None:
    """ConfigError with every variable of the tenant that cannot be used: nothing is asked for in vain."""
    if faults := credentials.faults(work.tenant, work.hooks.environment):
        raise ConfigError(faults)


def clock_of(work: Work) -> Clock:
    """The clock of a run that may fetch."""
    if work.hooks.clock is None:
        raise TypeError("a run that gathers from an API needs a clock")
    return work.hooks.clock


def raw_folder(root: Path, tenant: ConfluentTenant | CostModelTenant) -> Path:
    """Where the answers that a tenant's gathers landed lie."""
    return landing.raw_folder(root, tenant.source.kind, tenant.id)


def known_days(work: Work) -> set[state.DayKey]:
    """Days that the state knows, or of which a file lies in the lake: a crash may leave one without the other."""
    tables = (BILLING, CHARGEBACK, EMPTY_KEYS)
    stored = {key for table in tables for key in lake.sizes(work.root, table, work.tenant.id)}
    return stored | state.days(work.store, work.tenant.id).keys()


def publish_billing(work: Work, key: state.DayKey, lines: pl.DataFrame) -> state.BillingDay:
    """A day's billing -> the lake; what is there now."""
    place = work.place(BILLING, key)
    written = lake.write(place.temporary(work.root), BILLING, _slices(encoded(lines)))
    lake.publish(work.root, place, written)
    return state.BillingDay(work.tenant.ecosystem, work.tenant.id, *key, written.digest, written.rows, written.size)


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return frame.iter_slices(lake.ROW_GROUP_ROWS)


def withdraw(work: Work, keys: Sequence[state.DayKey]) -> int:
    """Take days out of the lake that their bill no longer has."""
    for key in keys:
        for table in (CHARGEBACK, EMPTY_KEYS, BILLING):
            lake.withdraw(work.root, work.place(table, key))
    return state.remove_days(work.store, work.tenant.id, keys)


def usage_key(charge_date: str) -> state.DayKey:
    """Where the usage of a day lies: in its own month, whatever bill the day is in."""
    return charge_date[:7], charge_date


def usage_of(work: Work, charge_date: str) -> pl.DataFrame:
    """USAGE of a day; no rows if it has no file, StoreError if that cannot be read."""
    place = work.place(USAGE, usage_key(charge_date))
    if not place.path(work.root).exists():
        return empty(USAGE)
    return lake.read(work.root, place)


def usage_left(work: Work, charge_date: str) -> pl.DataFrame:
    """USAGE of a day that is to be written again: a torn file has nothing to keep."""
    try:
        return usage_of(work, charge_date)
    except StoreError:
        return empty(USAGE)


def publish_usage(work: Work, charge_date: str, usage: pl.DataFrame) -> gather_state.UsageDay | None:
    """USAGE of a day, in any order -> the lake; what is there now, None if there are no rows."""
    place = work.place(USAGE, usage_key(charge_date))
    if not usage.height:
        lake.withdraw(work.root, place)
        return None
    rows = check_rows(usage.sort(USAGE.key), USAGE)
    written = lake.write(place.temporary(work.root), USAGE, _slices(encoded(rows)))
    lake.publish(work.root, place, written)
    running = int(rows["metric"].is_in(sorted(FROM_INVENTORY)).sum())
    return gather_state.UsageDay(charge_date, written.digest, written.rows, written.size, running)
