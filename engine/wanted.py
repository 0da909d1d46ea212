"""What a tenant's API and its metrics are to be asked for, as it follows from what is stored. Asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from engine import decide, gather_state, lake, state
from engine.config import AwsTenant, Config, ConfluentTenant, Document
from engine.decide import Inputs
from engine.errors import StoreError, fault
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, USAGE
from engine.gather_state import DayMetric
from engine.sources.landing import Landing, raw_folder
from engine.text import counted

RUNNING = "running_statements"
"""The one metric that comes with the inventory: what runs on the day of the gather."""
RUNNING_FROM = ("flink_pools", "flink_statements")
"""The kinds of the inventory that say what runs."""
TO_FORCE = "`prorata run --force` with --from and --to charges the days that they name by what there is"
"""What to do about days that keep what they were charged."""
Key = tuple[str, str]
"""(charge date, metric)"""


def window(tenant: ConfluentTenant, today: date) -> tuple[date, date]:
    """The days that a gather of today covers: from the first to before the second."""
    return today - timedelta(days=tenant.lookback_days), today - timedelta(days=tenant.cutoff_days)


def faults(config: Config, document: Document) -> list[str]:
    """Windows of the configuration in which there are no days, with their place in the file."""
    return [
        fault(
            document.where(("tenants", number, "lookback_days")),
            f"value '{tenant.lookback_days}'",
            f"more than cutoff_days, {tenant.cutoff_days}",
        )
        for number, tenant in enumerate(config.tenants)
        if not isinstance(tenant, AwsTenant) and tenant.lookback_days <= tenant.cutoff_days
    ]


def goes_on(last: gather_state.Gather, days: tuple[date, date], today: date) -> bool:
    """Whether the gather of today over these days is the last one, begun today, whose run did not end.

    On another day it is another one, since an inventory is of its day; see `gone_on_with`.
    """
    of_a_run = last.status == "open" or (last.status == "done" and last.folded)
    is_same = (last.first_day, last.end_day) == (str(days[0]), str(days[1])) and last.started_at[:10] == str(today)
    return bool(of_a_run and not last.run_ended and is_same)


def gone_on_with(gathers: Sequence[gather_state.Gather], gather_id: int, today: date) -> list[gather_state.Gather]:
    """The gathers before one of today, newest first, whose windows of costs it need not ask for once more.

    Their runs did not end, and they began today or yesterday: what was answered before that may be out of date.
    """
    recent, found = {str(today), str(today - timedelta(days=1))}, list[gather_state.Gather]()
    for before in reversed([one for one in gathers if one.gather_id < gather_id]):
        # A number that is left out is of a gather that came later, and that an older state does not know.
        is_next = before.gather_id == gather_id - 1 - len(found)
        if before.run_ended or not is_next or before.started_at[:10] not in recent:
            break
        found.append(before)
    return found


def suspension(store: state.State, tenant_id: str) -> str | None:
    """Why a tenant is not gathered any more; None if it is."""
    found = gather_state.failures(store, tenant_id)
    if found is None or found.suspended_at is None:
        return None
    return (
        f"gathering is suspended since {found.suspended_at}, after {counted(found.failures, 'failure')} in a row; the"
        f" last was: {found.error.splitlines()[0]}"
    )


class Need(NamedTuple):
    """What a day asks for: a metric of some resources, for the billing that it has."""

    charge_date: str
    metric: str
    ids: tuple[str, ...]
    billing_digest: str

    def is_the_question_of(self, known: DayMetric) -> bool:
        """Whether what is known of it is still about the same."""
        return (self.ids, self.billing_digest) == (known.ids, known.billing_digest)

    def rows_at_least(self, known: DayMetric) -> int:
        """How many values there must be at least, if there is as much as before.

        How many of them were of a resource that is not asked for any more nobody knows; but there were some.
        """
        return known.rows if set(known.ids) <= set(self.ids) else min(known.rows, 1)

    def open_ids(self, known: DayMetric | None) -> tuple[str, ...]:
        """The resources that are yet to be asked for: what was answered once is not asked again."""
        if known is None:
            return self.ids
        if known.status == "given_up" and self.is_the_question_of(known):
            return ()
        return tuple(one for one in self.ids if one not in known.fetches)


def needs(root: Path, store: state.State, tenant: ConfluentTenant, given: Inputs) -> dict[Key, Need]:
    """What the stored days ask for; nothing if no metrics are configured."""
    if tenant.metrics is None:
        return {}
    days = state.days(store, tenant.id)
    kept = irreplaceable(root, store, tenant.id) | {day for _, day in lost_billing(root, tenant.id, days)}
    digests = {key[1]: day.billing_digest for key, day in days.items() if key[1] not in kept}
    with lake.reading(root, BILLING, tenant.id):
        asked = decide.metrics_by_day(lake.scan(root, BILLING, tenant.id), given)
    # A day that keeps what it was charged asks for what it once asked for, and so for nothing; one whose lines are
    # lost asks for no less than it did.
    known = gather_state.day_metrics(store, tenant.id) if kept else {}
    as_before = {key: Need(*key, one.ids, one.billing_digest) for key, one in known.items() if key[0] in kept}
    return as_before | {
        (str(day), metric): Need(str(day), metric, tuple(ids), digests[str(day)])
        for day, metric, ids in asked.rows()
        if str(day) in digests
    }


def given_up(tenant: ConfluentTenant, known: Mapping[Key, DayMetric]) -> dict[str, frozenset[tuple[str, str]]]:
    """Charge date -> (metric, resource id) of what could not be had of it and nobody waits for any more, if any.

    Nothing without metrics: who does not ask for any lacks none.
    """
    found = dict[str, set[tuple[str, str]]]()
    for (day, metric), one in known.items() if tenant.metrics is not None else ():
        lacking = {(metric, resource) for resource in one.ids if resource not in one.fetches}
        if one.status == "given_up" and lacking:
            found.setdefault(day, set()).update(lacking)
    return {day: frozenset(lacking) for day, lacking in found.items()}


def unasked(known: DayMetric) -> list[str]:
    """The resources that nobody asks for any more, and whose usage stays as the lake alone has it.

    It counts for nothing: no ladder of the day's lines weighs by it.
    """
    return [name for name in known.fetches if name not in known.ids]


def only_in_lake(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days of which the lake has a file, and the state nothing: it was lost, or is an older one that was put back."""
    known = {key[1] for key in state.days(store, tenant_id)} | gather_state.usage_days(store, tenant_id).keys()
    tables = (BILLING, CHARGEBACK, EMPTY_KEYS, USAGE)
    return {day for table in tables for _, day in lake.sizes(root, table, tenant_id)} - known


def lost_usage(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days whose usage in the lake is not what was published, and can be had again."""
    return _unlike_published(root, store, tenant_id) - irreplaceable(root, store, tenant_id)


def charged_of_lost(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days whose usage is lost, and of whose bill every line was charged by it: they stay as they are without it.

    Where the bill is another one since, or the chargeback is lost, too, what is billed is not charged, and there is
    nothing to keep.
    """
    return _unlike_published(root, store, tenant_id) - _uncharged(root, store, tenant_id)


def out_of_reach(root: Path, store: state.State, tenant: ConfluentTenant, today: date) -> set[str]:
    """Days that keep what they were charged of lost usage, and that nobody is asked for: older than the window."""
    first = str(window(tenant, today)[0])
    return {day for day in charged_of_lost(root, store, tenant.id) if day < first}


def irreplaceable(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days whose usage is lost, with statements that ran and of which no answer says what ran, and that are charged."""
    return statements_lost(root, store, tenant_id) - _uncharged(root, store, tenant_id)


def _uncharged(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days of which the lake does not have the chargeback of their bill."""
    days = state.days(store, tenant_id)
    lost = lost_chargeback(root, tenant_id, days)
    return {key[1] for key, row in days.items() if not row.chargeback_calculated or key in lost}


def lost_billing(root: Path, tenant_id: str, days: Mapping[state.DayKey, state.Day]) -> set[state.DayKey]:
    """Days of which a billing file that the state knows is not in the lake as it was written."""
    sizes = lake.sizes(root, BILLING, tenant_id)
    return {key for key, day in days.items() if sizes.get(key) != day.billing_bytes}


def lost_chargeback(root: Path, tenant_id: str, days: Mapping[state.DayKey, state.Day]) -> set[state.DayKey]:
    """Days whose chargeback, or empty keys, in the lake are not what was committed."""
    sizes, empty_keys = (lake.sizes(root, table, tenant_id) for table in (CHARGEBACK, EMPTY_KEYS))
    return {
        key
        for key, day in days.items()
        if day.chargeback_bytes != sizes.get(key) or bool(day.empty_key_rows) != (key in empty_keys)
    }


def statements_lost(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days whose usage is lost, with statements that ran, and of which no whole answer says what ran any more."""
    lost = _unlike_published(root, store, tenant_id)
    if not lost:
        return set()
    landed = {
        one.started_at[:10]
        for one in gather_state.gathers(store, tenant_id)
        if one.folded
        and one.started_at[:10] in lost
        and _can_be_read(Landing(raw_folder(root, "confluent_cloud", tenant_id) / "gathers" / f"{one.gather_id:06}"))
    }
    published = gather_state.usage_days(store, tenant_id)
    # Without gathers, usage is that of a cost model, which has its own answers.
    return {
        day
        for day in lost
        if day not in landed
        and day in published
        and published[day].running
        and gather_state.last_gather(store, tenant_id) is not None
        and not _says_what_ran(root, tenant_id, day)
    }


def _can_be_read(landing: Landing) -> bool:
    """Whether the answers of a gather that say what ran are there and whole."""
    try:
        for name in RUNNING_FROM:
            landing.read(name)
    except StoreError:
        return False
    return True


def _says_what_ran(root: Path, tenant_id: str, day: str) -> bool:
    place = lake.Place(USAGE, tenant_id, day[:7], date.fromisoformat(day))
    try:
        return place.path(root).exists() and RUNNING in lake.read(root, place)["metric"]
    except StoreError:
        return False


def _unlike_published(root: Path, store: state.State, tenant_id: str) -> set[str]:
    sizes = {charge_date: size for (_, charge_date), size in lake.sizes(root, USAGE, tenant_id).items()}
    published = {day: row.size for day, row in gather_state.usage_days(store, tenant_id).items()}
    return {day for day in {*sizes, *published} if sizes.get(day) != published.get(day)}
