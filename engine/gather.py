"""Gathering a tenant whose bill comes from an API: costs into billing days, inventories into entities.

A gather lands raw answers first and reads them afterwards. What is landed whole is never asked for twice: a run that
dies leaves its gather open, and the next run of the day goes on with it. After midnight another gather goes on with the
costs that it landed; its inventory is taken in as of its own day. For every day that it covers, the lines that came are
the lines there are.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

from engine import decide, entities, gather_state, lake, state
from engine.config import ConfluentCloud, ConfluentTenant, Credentials
from engine.credentials import Variable, secret
from engine.errors import ContractError, ProrataError, SourceError, StoppedError, StoreError, fault
from engine.frames import BILLING, IDENTITIES, RESOURCES, USAGE, empty
from engine.sources import confluent, confluent_inventory
from engine.sources.confluent import Window
from engine.sources.confluent_inventory import Inventory
from engine.sources.http import Client, Clock, Endpoint
from engine.sources.landing import Landing
from engine.text import counted
from engine.wanted import (
    RUNNING,
    RUNNING_FROM,
    TO_FORCE,
    goes_on,
    gone_on_with,
    irreplaceable,
    lost_billing,
    lost_usage,
    suspension,
    window,
)
from engine.work import (
    Summary,
    Work,
    as_time,
    check_variables,
    clock_of,
    known_days,
    publish_billing,
    publish_usage,
    raw_folder,
    usage_left,
    withdraw,
)


def landing_of(root: Path, tenant: ConfluentTenant, gather_id: int) -> Landing:
    """Where one gather lands."""
    return Landing(raw_folder(root, tenant) / "gathers" / f"{gather_id:06}")


def gather(work: Work, tenant: ConfluentTenant, summary: Summary) -> Summary:
    """One pass over the API. What fails is counted and told; what is stored stays, and the steps after this go on."""
    reason = suspension(work.store, tenant.id)
    if reason is not None:
        if not work.request.lift:
            work.problems.append(
                SourceError(fault(f"tenant {tenant.id}", reason, "`prorata run --force` to try again"))
            )
            return summary
        work.log(reason)
        gather_state.clear_failures(work.store, tenant.id)
    # Those of the metrics, too.
    check_variables(work)
    source = tenant.source
    where = f"tenant {tenant.id}: source"
    endpoint = _endpoint(source, source, work, where)
    flink = {
        region: _endpoint(source, keys, work, f"{where}: flink {region}")
        for region, keys in (source.flink.keys if source.flink else {}).items()
    }
    try:
        return _gathered(work, tenant, (endpoint, flink), summary)
    except (SourceError, ContractError) as error:
        work.problems.append(error)
        _count_failure(work, tenant, "; ".join(error.faults))
        return summary


def _count_failure(work: Work, tenant: ConfluentTenant, error: str) -> None:
    found = gather_state.count_failure(
        work.store, tenant.id, error, now=work.hooks.now(), threshold=tenant.gather_failure_threshold
    )
    if found.suspended_at is not None:
        work.warn(f"the gather failed {counted(found.failures, 'time')} in a row: gathering is suspended")


def _endpoint(source: ConfluentCloud, keys: ConfluentCloud | Credentials, work: Work, where: str) -> Endpoint:
    return Endpoint(
        url=source.url,
        key=secret(Variable(keys.api_key, where, "api_key"), work.hooks.environment),
        secret=secret(Variable(keys.api_secret, where, "api_secret"), work.hooks.environment),
        timeout_seconds=float(source.timeout_seconds),
        requests_per_second=float(source.requests_per_second),
        attempts=source.attempts,
        ca_bundle=source.ca_bundle,
        known=work.known,
    )


class _Clients:
    """Who asks the API, and who asks Flink in each region; closed together. `requests` counts all that was sent."""

    def __init__(self, stack: ExitStack, work: Work, template: str, api: Endpoint, flink: dict[str, Endpoint]) -> None:
        self._stack, self._work, self._template, self._flink = stack, work, template, flink
        self._by_url = {api.url: self._entered(api)}
        self.api = self._by_url[api.url]

    def _entered(self, endpoint: Endpoint) -> Client:
        return self._stack.enter_context(Client(endpoint, Clock(*clock_of(self._work)), self._work.hooks.stop))

    def flink(self, region: str, cloud: str) -> Client | None:
        """Who asks for statements in a region; None if the configuration has no key for it."""
        endpoint = self._flink.get(region)
        if endpoint is None:
            return None
        url = confluent_inventory.flink_url(self._template, region, cloud)
        name = f"{region} {url}"
        if name not in self._by_url:
            self._by_url[name] = self._entered(endpoint._replace(url=url))
        return self._by_url[name]

    @property
    def requests(self) -> int:
        return sum(client.requests for client in self._by_url.values())


def _gathered(
    work: Work, tenant: ConfluentTenant, endpoints: tuple[Endpoint, dict[str, Endpoint]], summary: Summary
) -> Summary:
    days = window(tenant, work.now().date())
    _know_again(work, tenant)
    summary = _with_published(summary, _take_in(work, tenant, days))
    one = open_gather(work, tenant, days)
    landing = landing_of(work.root, tenant, one.gather_id)
    lacking, requests = _fetch(work, tenant, one, landing, endpoints)
    summary = summary._replace(requests=summary.requests + requests)
    return absorb(work, tenant, one, landing, lacking, summary)


class Lacking(NamedTuple):
    """What a gather could not land. `costs`: window -> error; `kinds`: kind of the inventory -> error."""

    costs: Mapping[Window, ProrataError] = MappingProxyType({})
    kinds: Mapping[str, str] = MappingProxyType({})


def absorb(
    work: Work,
    tenant: ConfluentTenant,
    one: gather_state.Gather,
    landing: Landing,
    lacking: Lacking,
    summary: Summary,
) -> Summary:
    """What a gather landed -> billing days and entities. What it lacks keeps nothing else from being published."""
    landed = {days: found for days, found in _landed(work, tenant, one).items() if days not in lacking.costs}
    published = _publish(work, tenant, one, landed)
    problems = [*lacking.costs.values(), *published.errors]
    try:
        if not one.folded:
            _complete(work, tenant, one, landing, lacking.kinds, problems)
    except ContractError as error:
        # The answers are whole, so they would be the same if this gather went on: the next one asks again.
        ended_at = work.hooks.now()
        gather_state.update_gather(
            *(work.store, one),
            requests=0,
            status="failed",
            ended_at=ended_at,
            error=str(error),
            inventory_errors=lacking.kinds,
        )
        problems.append(error)
    _forget_old(work, tenant)
    if lacking.kinds:
        problems.append(SourceError(f"inventory: {text}" for text in confluent_inventory.faults(lacking.kinds)))
    work.problems.extend(problems)
    if problems:
        _count_failure(work, tenant, "; ".join(text for problem in problems for text in problem.faults))
    return _with_published(summary, published)


def _with_published(summary: Summary, published: _Published) -> Summary:
    return summary._replace(
        days_gathered=summary.days_gathered + published.changed,
        days_removed=summary.days_removed + published.removed,
    )


def open_gather(work: Work, tenant: ConfluentTenant, days: Window) -> gather_state.Gather:
    """The gather of today whose run did not end, if it is over the same days; else a new one."""
    first, end = map(str, days)
    last, landed = gather_state.last_gather(work.store, tenant.id), _last_landed(work.root, tenant)
    # A number beyond what the state knows is of a gather that came after it: the state is an older one, put back.
    if last is not None and goes_on(last, days, work.now().date()) and last.gather_id >= landed:
        work.log(f"going on with the gather of {last.started_at}, {first} to before {end}")
        return last
    work.log(f"gathering {first} to before {end}")
    return gather_state.begin_gather(work.store, tenant.id, work.hooks.now(), first, end, above=landed)


def _last_landed(root: Path, tenant: ConfluentTenant) -> int:
    """The highest number under which a gather landed anything: answers of another must not pass for those of today."""
    return max(_landed_numbers(root, tenant), default=0)


def _landed_numbers(root: Path, tenant: ConfluentTenant) -> list[int]:
    """The numbers under which gathers landed anything, whether the state knows them or not."""
    folder = raw_folder(root, tenant) / "gathers"
    try:
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise StoreError(fault(str(folder), f"cannot be read ({error.strerror})", "a folder of answers")) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _take_in(work: Work, tenant: ConfluentTenant, days: Window) -> _Published:
    """What a gather landed that was not finished, and does not go on -> billing days, and entities as of its day.

    What ran on that day nobody can ask for later. What of it cannot be read is told by the gather that follows.
    """
    last = gather_state.last_gather(work.store, tenant.id)
    if last is None or last.status != "open" or goes_on(last, days, work.now().date()):
        return _Published()
    if last.gather_id < _last_landed(work.root, tenant):
        return _Published()
    work.log(f"taking in what the gather of {last.started_at} landed")
    try:
        return _taken_in(work, tenant, last)
    except StoreError as error:
        # What there is today is to be landed all the same: nobody can be asked for it tomorrow.
        told = "`prorata recalculate --replay` takes it in"
        work.problems.append(StoreError(f"what {last.started_at} landed: {text}; {told}" for text in error.faults))
        return _Published()


def _taken_in(work: Work, tenant: ConfluentTenant, last: gather_state.Gather) -> _Published:
    landing = landing_of(work.root, tenant, last.gather_id)
    _drop_torn(work, landing, confluent_inventory.KINDS)
    published = _publish(work, tenant, last, _landed(work, tenant, last))
    lacking = _lacking(landing)
    if len(lacking) < len(confluent_inventory.KINDS):
        try:
            _complete(work, tenant, last, landing, lacking, [SourceError(["the gather was not finished"])])
        except ContractError as error:
            _leave_out(work, last, error)
    return published


def _lacking(landing: Landing) -> dict[str, str]:
    """The kinds of the inventory that a gather which did not come to its end has not landed, as it is told of them."""
    return {name: f"{name}: not asked for" for name in confluent_inventory.KINDS if not landing.has(name)}


def _know_again(work: Work, tenant: ConfluentTenant) -> None:
    """What existed when, as the lake has it, if the state does not know the gathers that saw it.

    It was lost, or is an older one. What is gathered next would date all changes to today, those of past days, too.
    """
    last, landed = gather_state.last_gather(work.store, tenant.id), _last_landed(work.root, tenant)
    # Where raw answers are lost, too, only the lake can say that there were more.
    knows_all = last is not None and last.gather_id >= landed
    known = _known(work, tenant)
    try:
        resources, identities = (
            lake.read_current(work.root, kind.table, tenant.id).filter(pl.col("type").is_in(kind.types))
            for kind in (entities.RESOURCE, entities.IDENTITY)
        )
    except StoreError as error:
        if not knows_all:
            work.warn(f"what existed when is not known again: {'; '.join(error.faults)}")
        return
    types = {*resources["type"], *identities["type"]}
    stored = Known(resources, identities, dict.fromkeys(types, 0) | known.zero_counts)
    seen, seen_before = _last_seen(stored), _last_seen(known)
    if seen is not None and (seen_before is None or seen > seen_before):
        with work.store.transaction():
            _store_known(work, tenant, stored)
            if not landed:
                # Nor are the gathers kept that saw it: a replay begins with it.
                base = gather_state.Base(0, frozenset(types), *_entities_of(stored))
                gather_state.save_base(work.store, tenant.id, base)
        work.log(f"what existed when is known again as the lake has it, up to {seen}")
    elif seen is None and landed and not knows_all:
        work.warn("the lake does not say what existed when, and state.db does not know all gathers: changes are lost")


def _last_seen(known: Known) -> datetime | None:
    """When the last of the entities was seen that are known, if any are."""
    times = (frame["last_seen_at"].max() for frame in (known.resources, known.identities))
    return max((time for time in times if isinstance(time, datetime)), default=None)


class _Landed(NamedTuple):
    """Where the costs of a window are landed: under the window itself, or under one that begins before it."""

    landing: Landing
    days: Window


def _landed(work: Work, tenant: ConfluentTenant, one: gather_state.Gather) -> dict[Window, _Landed]:
    """Where the windows of a gather are landed, as far as they are: with it, or with one that it goes on with."""
    before = gone_on_with(
        gather_state.gathers(work.store, tenant.id), one.gather_id, date.fromisoformat(one.started_at[:10])
    )
    found = dict[Window, _Landed]()
    for holder in (one, *before):
        landing = landing_of(work.root, tenant, holder.gather_id)
        for days, asked in product(_windows(one), _windows(holder)):
            is_within = asked[0] <= days[0] and asked[1] == days[1]
            if days not in found and is_within and landing.has(confluent.costs_name(asked)):
                found[days] = _Landed(landing, asked)
    return dict(sorted(found.items()))


def _drop_torn(work: Work, landing: Landing, names: Iterable[str]) -> None:
    """Take away what was landed and cannot be read, so that it is asked for again."""
    for name in names:
        if landing.has(name) and not _is_whole(work, landing, name):
            landing.drop(name)


def _is_whole(work: Work, landing: Landing, name: str) -> bool:
    """Whether what was landed before can be read; what cannot is told, and is as if it was not landed."""
    try:
        landing.read(name)
    except StoreError as error:
        work.warn(f"{'; '.join(error.faults)}; it is asked for again")
        return False
    return True


def _fetch(
    work: Work,
    tenant: ConfluentTenant,
    one: gather_state.Gather,
    landing: Landing,
    endpoints: tuple[Endpoint, dict[str, Endpoint]],
) -> tuple[Lacking, int]:
    """Land what is not landed yet: costs, and the inventory if it is not folded. What could not be had; requests sent.

    A window that fails does not keep the others, nor the inventory, from being asked for.
    """
    template, landed = tenant.source.flink.url if tenant.source.flink else "", _landed(work, tenant, one)
    if landed:
        work.log(f"costs: {counted(len(landed), 'window')} landed before")
    as_it_is = partial(gather_state.update_gather, status=one.status, ended_at=one.ended_at, folded=one.folded)
    with ExitStack() as stack:
        clients = _Clients(stack, work, template, *endpoints)
        failed, kinds = dict[Window, ProrataError](), dict[str, str]()
        try:
            for days in _windows(one):
                work.stop_if_asked()
                found = landed.get(days)
                if found is not None and _is_whole(work, found.landing, confluent.costs_name(found.days)):
                    continue
                try:
                    confluent.fetch_costs(clients.api, landing, days)
                    work.log(f"costs {days[0]} to before {days[1]} landed")
                except (SourceError, ContractError) as error:
                    failed[days] = _of_window(error, days)
            if not one.folded:
                _drop_torn(work, landing, confluent_inventory.KINDS)
                kinds = confluent_inventory.fetch_inventory(clients.api, clients.flink, landing)
                work.log(f"inventory landed{', but for a part' if kinds else ''}")
        except (SourceError, ContractError, StoppedError) as error:
            as_it_is(work.store, one, requests=clients.requests, error=str(error))
            raise
        as_it_is(work.store, one, requests=clients.requests, inventory_errors=kinds)
        return Lacking(failed, kinds), clients.requests


def _of_window(error: ProrataError, days: Window) -> ProrataError:
    """The error with the window that it is of."""
    return type(error)(f"costs {days[0]} to before {days[1]}: {text}" for text in error.faults)


def _windows(one: gather_state.Gather) -> list[Window]:
    return confluent.cost_windows(date.fromisoformat(one.first_day), date.fromisoformat(one.end_day))


class _Published(NamedTuple):
    """How many days changed and were withdrawn; an error for each window that could not be read."""

    changed: int = 0
    removed: int = 0
    errors: Sequence[ProrataError] = ()


def _publish(
    work: Work, tenant: ConfluentTenant, one: gather_state.Gather, landed: Mapping[Window, _Landed]
) -> _Published:
    """Landed costs -> billing days: those that differ are replaced, those without lines any more are withdrawn.

    The days of a window that was not landed, or that cannot be read, keep what they have.
    """
    before = _published_before(work, one)
    lost = {day for _, day in lost_billing(work.root, tenant.id, state.days(work.store, tenant.id))}
    known = known_days(work)
    changed = removed = 0
    errors = list[ProrataError]()
    whole = not one.inventory_errors if one.folded else None
    for landing, days in landed.values():
        work.stop_if_asked()
        first, end = map(str, days)
        same = before.get((first, end))
        try:
            content = landing.content(confluent.costs_name(days))
            is_whole = not any(first <= day < end for day in lost)
            if same is not None and is_whole and same.sha256 == _digest_of_window(work, tenant, content, days):
                gather_state.record_window(work.store, same._replace(gather_id=one.gather_id))
                continue
            costs = _costs(tenant, landing, days)
        except (ContractError, StoreError) as error:
            errors.append(_of_window(error, days))
            continue
        for text in costs.warnings:
            work.warn(text)
        covered = {key for key in known if first <= key[1] < end}
        billing = _without_stored(work, costs.billing, days)
        done = _publish_days(work, billing, covered, whole=whole)
        changed, removed = changed + done.changed, removed + done.removed
        gather_state.record_window(
            work.store,
            gather_state.LandedWindow(
                *(tenant.id, one.gather_id, first, end, _digest_of_window(work, tenant, content, days)),
                *(costs.records, costs.malformed),
                f"{costs.residue:f}",
                list(costs.warnings),
            ),
        )
    work.log(f"costs: {counted(changed, 'day')} changed, {removed} withdrawn")
    return _Published(changed, removed, errors)


def _digest_of_window(work: Work, tenant: ConfluentTenant, content: bytes, days: Window) -> str:
    """SHA-256 of an answer, and of the billing that the state has of its days: where both are the same, all is done."""
    digest = hashlib.sha256(f"{tenant.source.currency} ".encode() + content)
    for key, day in state.days(work.store, tenant.id).items():
        if str(days[0]) <= key[1] < str(days[1]):
            digest.update(f"\n{key} {day.billing_digest}".encode())
    return digest.hexdigest()


def _costs(tenant: ConfluentTenant, landing: Landing, days: Window) -> confluent.Costs:
    pages = landing.read(confluent.costs_name(days))
    return confluent.parse_costs(pages, tenant.id, days, tenant.source.currency)


def _without_stored(work: Work, billing: pl.DataFrame, days: Window) -> pl.DataFrame:
    """BILLING of a window without records of no date that are booked already, on an earlier day of the month.

    They are booked on the first day of their window; when that begins within a month, it once began before.
    """
    found = _may_be_stored(billing, days)
    if not found:
        return billing
    first = days[0]
    stored = lake.scan(work.root, BILLING, work.tenant.id, str(first)[:7])
    before = stored.filter(pl.col("charge_date") < first, pl.col("resource_id").is_in(found))
    booked = before.select(pl.col("resource_id").unique()).collect(engine="streaming")["resource_id"]
    return billing.filter((pl.col("charge_date") != first) | ~pl.col("resource_id").is_in(booked.to_list()))


def _may_be_stored(billing: pl.DataFrame, days: Window) -> list[str]:
    """Under which resources a window that begins within a month books records that may have no date."""
    first = days[0]
    if first.day == 1:
        return []
    malformed = pl.col("resource_id").str.starts_with(confluent.MALFORMED)
    return billing.filter(malformed, pl.col("charge_date") == first)["resource_id"].to_list()


def _published_before(work: Work, one: gather_state.Gather) -> dict[tuple[str, str], gather_state.LandedWindow]:
    """What the gather before this one published, by window; nothing if it may not have published all."""
    before = [found for found in gather_state.gathers(work.store, one.tenant_id) if found.gather_id < one.gather_id]
    if not before or not before[-1].folded:
        return {}
    found = gather_state.windows(work.store, one.tenant_id, before[-1].gather_id)
    return {(row.first_day, row.end_day): row for row in found}


def _publish_days(
    work: Work, billing: pl.DataFrame, covered: Iterable[state.DayKey], *, whole: bool | None
) -> _Published:
    """BILLING of some days -> the lake; what else there was of the days that it covers is withdrawn.

    `whole`: whether the inventory that was folded last is whole; None if the one that goes with these costs is not
    folded yet, and days wait for it. A day that is known waits, or does not, as it did.
    """
    stored = state.days(work.store, work.tenant.id)
    found, changed = set[state.DayKey](), 0
    for (charge_date,), lines in billing.partition_by("charge_date", as_dict=True, maintain_order=True).items():
        key = (str(charge_date)[:7], str(charge_date))
        found.add(key)
        day = publish_billing(work, key, lines)
        known = stored.get(key)
        if known is None or (known.billing_digest, known.billing_bytes) != (day.billing_digest, day.billing_bytes):
            ready = 0 if whole is None else int(whole) if known is None else known.resources_gathered
            day = day._replace(resources_gathered=ready, metrics_gathered=0)
            changed += state.upsert_billing_days(work.store, [day])
    return _Published(changed, withdraw(work, sorted(set(covered) - found)))


def _complete(
    work: Work,
    tenant: ConfluentTenant,
    one: gather_state.Gather,
    landing: Landing,
    failed: Mapping[str, str],
    problems: Iterable[ProrataError],
) -> None:
    """Fold the landed inventory into what is known, and end the gather, in one transaction.

    `failed` are the kinds of the inventory that it lacks, `problems` what was wrong with costs.
    """
    landed = confluent_inventory.read_inventory(landing, failed)
    inventory = confluent_inventory.parse_inventory(landed)
    for text in inventory.warnings:
        work.warn(text)
    known = _known(work, tenant)
    earlier = (before for before in gather_state.gathers(work.store, tenant.id) if before.gather_id < one.gather_id)
    seen_before = gather_state.base_types(work.store, tenant.id) | _told_of(*earlier)
    after = folded(tenant, known, inventory, one.started_at, seen_before)
    _tell_changes(work, after)
    touched = _touched(work, known, after) if failed else []
    has_statements = "flink_statements" in landed
    running = _publish_running(work, tenant, one.started_at[:10], inventory) if has_statements else ([], [])
    errors = [*(text for problem in problems for text in problem.faults), *failed.values()]
    with work.store.transaction():
        _store_known(work, tenant, after)
        gather_state.save_usage_days(work.store, tenant.id, *running)
        gather_state.set_resources_gathered(
            work.store, tenant.id, one.first_day, one.end_day, whole=not failed, touched=touched
        )
        gather_state.update_gather(
            work.store,
            one,
            requests=0,
            status="failed" if errors else "done",
            ended_at=work.hooks.now(),
            error="; ".join(errors) or None,
            folded=1,
            inventory_errors=failed,
        )
        if not errors:
            gather_state.clear_failures(work.store, tenant.id)


class Known(NamedTuple):
    """What is known of a tenant's entities: intervals, and counts of empty inventories. `changes`: see `entities`."""

    resources: pl.DataFrame
    identities: pl.DataFrame
    zero_counts: dict[str, int]
    changes: tuple[pl.DataFrame, ...] = ()


def _known(work: Work, tenant: ConfluentTenant) -> Known:
    return Known(
        gather_state.entities(work.store, RESOURCES, tenant.id),
        gather_state.entities(work.store, IDENTITIES, tenant.id),
        gather_state.zero_counts(work.store, tenant.id),
    )


def _told_of(*gathers: gather_state.Gather) -> frozenset[str]:
    """The types of entities that gathers which are folded were told of; of a kind not whole, too (a region's key)."""
    kinds = confluent_inventory.KINDS.items()
    return frozenset(
        kind.type for one in gathers if one.folded for name, kind in kinds if name not in one.inventory_errors
    )


def folded(
    tenant: ConfluentTenant, known: Known, inventory: Inventory, started_at: str, seen_before: frozenset[str]
) -> Known:
    """What is known after one inventory more. `seen_before`: the types that gathers before it were told of."""
    threshold, at = tenant.zero_gather_deletion_threshold, as_time(started_at)
    seen = entities.Seen(inventory.resources, at, inventory.gathered, seen_before)
    resources = entities.fold(
        entities.RESOURCE, known.resources, seen, known.zero_counts, tenant_id=tenant.id, threshold=threshold
    )
    seen = seen._replace(snapshot=inventory.identities)
    found = entities.fold(
        entities.IDENTITY, known.identities, seen, resources.zero_counts, tenant_id=tenant.id, threshold=threshold
    )
    return Known(resources.intervals, found.intervals, found.zero_counts, (resources.changes, found.changes))


def _touched(work: Work, before: Known, after: Known) -> list[str]:
    """The days of which another inventory knows otherwise than the one before."""
    days = {day: frozenset[tuple[str, str]]() for _, day in state.days(work.store, work.tenant.id)}
    was, now = (
        decide.facts_by_day(days, decide.DayFacts(known.resources, known.identities, empty(USAGE), frozenset()))
        for known in (before, after)
    )
    return [day for day in days if was[day] != now[day]]


def _store_known(work: Work, tenant: ConfluentTenant, known: Known) -> None:
    gather_state.replace_entities(work.store, RESOURCES, tenant.id, known.resources)
    gather_state.replace_entities(work.store, IDENTITIES, tenant.id, known.identities)
    gather_state.replace_zero_counts(work.store, tenant.id, known.zero_counts)


def _tell_changes(work: Work, known: Known) -> None:
    counts = pl.concat(known.changes).group_by("type", "change").len().sort("type", "change").rows()
    told = ", ".join(f"{count} {kind} {change}" for kind, change, count in counts) or "nothing changed"
    work.log(f"inventory: {told}")


def _publish_running(
    work: Work, tenant: ConfluentTenant, day: str, inventory: Inventory
) -> tuple[list[gather_state.UsageDay], list[str]]:
    """The statements that run on the day of the gather -> its usage."""
    return _published_usage(work, day, _with_running(usage_left(work, day), tenant, day, inventory))


def _published_usage(work: Work, day: str, usage: pl.DataFrame) -> tuple[list[gather_state.UsageDay], list[str]]:
    """USAGE of a day -> the lake; what is to be saved of it in the state, and the day if it has none any more."""
    published = publish_usage(work, day, usage)
    return ([published], []) if published else ([], [day])


def _with_running(usage: pl.DataFrame, tenant: ConfluentTenant, day: str, inventory: Inventory) -> pl.DataFrame:
    """USAGE of a day with the statements that one of its gathers saw run; of a pool, the last that asked counts."""
    stays = (pl.col("metric") != RUNNING) | pl.col("resource_id").is_in(list(inventory.not_asked))
    running = inventory.running.select(
        tenant_id=pl.lit(tenant.id), window=pl.lit(day), resource_id="resource_id", metric=pl.lit(RUNNING),
        principal="principal", value="value",
    ).select(USAGE.columns)  # fmt: skip
    # A statement names its pool, which may be another than those of the place where it was asked for.
    return pl.concat([usage.filter(stays), running]).unique(USAGE.key, keep="last", maintain_order=True)


def restore_usage(work: Work, tenant: ConfluentTenant) -> None:
    """Lost usage -> the lake again, as far as the landed inventories say what ran; metrics are asked for once more.

    What ran cannot be asked for later. A day of which no answer says it any more keeps its chargeback, and is named;
    if it is forced nobody waits for what ran any more, but only for metrics, as of other days that lost their usage.
    """
    _know_again(work, tenant)
    published, found = gather_state.usage_days(work.store, tenant.id), list[gather_state.UsageDay]()
    unknown = sorted(irreplaceable(work.root, work.store, tenant.id))
    if forced := [day for day in unknown if work.request.forces(day)]:
        gather_state.save_usage_days(work.store, tenant.id, [published[day]._replace(running=0) for day in forced])
        work.warn(
            f"which statements ran on {counted(len(forced), 'day')} ({', '.join(forced)}) is lost, and the days are"
            " forced: what is billed is charged without them"
        )
    for day in sorted(lost_usage(work.root, work.store, tenant.id)):
        left = usage_left(work, day)
        if not left.filter(pl.col("metric") == RUNNING).height:
            left = _with_landed_running(work, tenant, day, left)
        one = publish_usage(work, day, left) if left.height else None
        # Without metrics nobody else takes care of the day.
        if one is not None and tenant.metrics is None and (day not in published or one.rows >= published[day].rows):
            found.append(one)
    gather_state.save_usage_days(work.store, tenant.id, found)
    if gone := sorted(irreplaceable(work.root, work.store, tenant.id)):
        work.warn(
            f"usage of {counted(len(gone), 'day')} ({', '.join(gone)}) is lost, and no whole answer is kept that says"
            f" which statements ran: what was charged for them stays as it is; {TO_FORCE}"
        )


def _with_landed_running(work: Work, tenant: ConfluentTenant, day: str, usage: pl.DataFrame) -> pl.DataFrame:
    """USAGE of a day with the statements that its gathers saw run; an answer that cannot be read is as if not kept."""
    for one in gather_state.gathers(work.store, tenant.id):
        landing = landing_of(work.root, tenant, one.gather_id)
        if one.folded and one.started_at[:10] == day and landing.has("flink_statements"):
            try:
                landed = {name: landing.read(name) for name in RUNNING_FROM}
                usage = _with_running(usage, tenant, day, confluent_inventory.parse_inventory(landed))
            except (StoreError, ContractError) as error:
                work.warn(f"which statements ran on {day} is not read again: {'; '.join(error.faults)}")
    return usage


def _forget_old(work: Work, tenant: ConfluentTenant) -> None:
    """Remove raw answers that need not be kept any more, once it is recorded what is known by their inventories.

    In this order: of a run that dies in between, the next one does the rest, and a replay folds none of them twice.
    """
    limit = str(work.now().date() - timedelta(days=tenant.retention_days))
    folder = raw_folder(work.root, tenant)
    gathers = gather_state.gathers(work.store, tenant.id)
    old = [one for one in gathers[:-1] if one.started_at < limit]
    if old:
        _move_base(work, tenant, gathers, old)
    fetches = gather_state.metric_fetches(work.store, tenant.id).values()
    old_gathers = [one.gather_id for one in old]
    old_fetches = [one.fetch_id for one in fetches if one.fetched_at < limit]
    for kind, numbers in (("gathers", old_gathers), ("metrics", old_fetches)):
        for number in numbers:
            _remove(folder / kind / f"{number:06}")
    gather_state.forget_gathers(work.store, tenant.id, old_gathers)
    gather_state.forget_fetches(work.store, tenant.id, old_fetches)


def _move_base(
    work: Work, tenant: ConfluentTenant, gathers: Sequence[gather_state.Gather], old: Sequence[gather_state.Gather]
) -> None:
    """Fold the inventories of old gathers, as a replay would, into what a replay begins with from now on.

    Where nobody can know that, it begins with what is known now, after the last gather that is folded.
    """
    base = _base(work, tenant, gathers)
    ahead = [one for one in old if one.gather_id > base.gather_id]
    end = base.gather_id + len(ahead)
    try:
        if ahead and ahead[-1].gather_id != end:
            raise StoreError([_UNKNOWN])
        again = _folded_again(work, tenant, base, ahead)
        base = gather_state.Base(end, again.types, *_entities_of(again.known))
    except (StoreError, ContractError) as error:
        base = _base_of_now(work, tenant, gathers)
        work.warn(f"no replay will read inventories again that are gathered by now: {'; '.join(error.faults)}")
    gather_state.save_base(work.store, tenant.id, base)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        seen = f"cannot be removed ({error.strerror})"
        raise StoreError(fault(str(error.filename or folder), seen, "a folder that this user may write")) from error


def replay(work: Work, tenant: ConfluentTenant, summary: Summary) -> Summary:
    """Read all landed costs and inventories again, as the gathers did, without asking anybody."""
    done = _Published()
    folded_before = [one for one in gather_state.gathers(work.store, tenant.id) if one.folded]
    whole = bool(folded_before) and not folded_before[-1].inventory_errors
    for one in _booked_once(work, _replayed_costs(work, tenant)):
        published = _publish_days(work, one.billing, one.covered, whole=whole)
        done = _Published(done.changed + published.changed, done.removed + published.removed)
    _replay_inventories(work, tenant)
    work.log(f"answers read again: {counted(done.changed, 'day')} changed, {done.removed} withdrawn")
    return summary._replace(
        days_gathered=summary.days_gathered + done.changed, days_removed=summary.days_removed + done.removed
    )


class _Replayed(NamedTuple):
    """BILLING of a landed window, of the days that no later gather covers, and those of them that are known."""

    days: Window
    billing: pl.DataFrame
    covered: list[state.DayKey]


def _booked_once(work: Work, replayed: Iterable[_Replayed]) -> Iterator[_Replayed]:
    """The same, each to be published before the next is asked for; a record without a date is in one of them only.

    It is booked by the first window that has it, as when it was gathered, so such windows come last and in order.
    """
    late = list[_Replayed]()
    for one in replayed:
        if _may_be_stored(one.billing, one.days):
            late.append(one)
        else:
            yield one
    for one in sorted(late, key=lambda one: one.days):
        yield one._replace(billing=_without_stored(work, one.billing, one.days))


def _replayed_costs(work: Work, tenant: ConfluentTenant) -> Iterator[_Replayed]:
    """Costs as they were landed last for every day, newest gathers first.

    All that was landed counts, published or not: that a parser could not read it may be why it is read again. The days
    of what was published, and is gone or not understood, keep what is stored: it is newer than any older answer.
    """
    known = [one.gather_id for one in gather_state.gathers(work.store, tenant.id)]
    published = {number: _published_by(work, tenant, number) for number in known}
    covered, gone = set[str](), list[str]()
    for number in sorted({*known, *_landed_numbers(work.root, tenant)}, reverse=True):
        rows = published.get(number, {})
        landed = filter(None, map(confluent.window_of, landing_of(work.root, tenant, number).names()))
        for days in sorted({*landed, *rows}):
            names = (str(days[0] + timedelta(days=count)) for count in range((days[1] - days[0]).days))
            open_days = {name for name in names if name not in covered}
            if not open_days:
                continue
            work.stop_if_asked()
            landing = _holder(work, tenant, published, number, days)
            if landing is None:
                gone.append(f"{number:06}/{confluent.costs_name(days)}")
                covered.update(open_days)
                continue
            try:
                costs = _costs(tenant, landing, days)
            except (ContractError, StoreError) as error:
                work.problems.append(_of_window(error, days))
                # A torn answer was whole when it was landed, and so was most likely published.
                if days in rows or isinstance(error, StoreError):
                    covered.update(open_days)
                continue
            wanted = pl.col("charge_date").dt.to_string("%Y-%m-%d").is_in(sorted(open_days))
            yield _Replayed(
                days, costs.billing.filter(wanted), [key for key in known_days(work) if key[1] in open_days]
            )
            covered.update(open_days)
    if gone:
        more = f", and {len(gone) - 3} more" if len(gone) > 3 else ""
        seen = f"costs that were published are not there any more ({', '.join(gone[:3])}{more})"
        expected = "all that was landed; their days stay as they are"
        work.problems.append(StoreError(fault(str(raw_folder(work.root, tenant) / "gathers"), seen, expected)))


def _published_by(work: Work, tenant: ConfluentTenant, gather_id: int) -> dict[Window, gather_state.LandedWindow]:
    """What a gather published of costs, by window."""
    found = gather_state.windows(work.store, tenant.id, gather_id)
    return {(date.fromisoformat(row.first_day), date.fromisoformat(row.end_day)): row for row in found}


def _holder(
    work: Work,
    tenant: ConfluentTenant,
    published: Mapping[int, Mapping[Window, gather_state.LandedWindow]],
    gather_id: int,
    days: Window,
) -> Landing | None:
    """Where the answer of a gather for a window lies: with it, or with one before it that said the same."""
    name, own = confluent.costs_name(days), published.get(gather_id, {}).get(days)
    same = [
        number
        for number, rows in published.items()
        if own is not None and number < gather_id and days in rows and rows[days].sha256 == own.sha256
    ]
    landings = (landing_of(work.root, tenant, number) for number in (gather_id, *reversed(same)))
    return next((landing for landing in landings if landing.has(name)), None)


def _replay_inventories(work: Work, tenant: ConfluentTenant) -> None:
    """Fold the inventories of all gathers that are kept again, onto what was known by those that are not.

    So are those that could not be read at the time, and can be now; what ran on their days is known then, too. That
    depends on no other inventory, and is known of those as well that come too late for the entities.
    """
    gathers = gather_state.gathers(work.store, tenant.id)
    unknown = {*_landed_numbers(work.root, tenant)} - {one.gather_id for one in gathers}
    why = _UNKNOWN if unknown else "the first ones are no longer kept"
    base = _base(work, tenant, gathers) if gathers else None
    if base is None or any(number > base.gather_id for number in unknown):
        work.warn(f"inventories are not read again: {why}")
        return
    late = [one for one in gathers if one.gather_id <= base.gather_id]
    if late:
        work.warn(f"inventories up to {late[-1].started_at} are not read again: {why}")
    try:
        again = _folded_again(work, tenant, base, gathers[len(late) :])
    except (StoreError, ContractError) as error:
        work.problems.append(error)
        work.warn("inventories are not read again: one of them cannot be read")
        return
    late = [one for one, _ in _inventories_again(work, tenant, [one for one in late if not one.folded])]
    with work.store.transaction():
        _store_known(work, tenant, again.known)
        for one in (*late, *again.new):
            as_it_is = partial(gather_state.update_gather, status=one.status, ended_at=one.ended_at, error=one.error)
            as_it_is(work.store, one, requests=0, folded=1, inventory_errors=one.inventory_errors)
        _publish_late(work, tenant, {one.started_at[:10] for one in (*late, *again.new)})
        if again.new and again.new[-1] is again.last and not again.last.inventory_errors:
            # Days may wait for the inventory that could not be read.
            first, end = again.last.first_day, again.last.end_day
            gather_state.set_resources_gathered(work.store, tenant.id, first, end, whole=True)


def _base(work: Work, tenant: ConfluentTenant, gathers: Sequence[gather_state.Gather]) -> gather_state.Base:
    """What a replay begins with: nothing if all gathers are kept, what is known now if nobody knows it any better."""
    stored = gather_state.base(work.store, tenant.id)
    if stored is not None:
        return stored
    if gathers[0].gather_id == 1:
        return gather_state.Base(0, frozenset(), {}, empty(RESOURCES), empty(IDENTITIES))
    return _base_of_now(work, tenant, gathers)


def _base_of_now(work: Work, tenant: ConfluentTenant, gathers: Sequence[gather_state.Gather]) -> gather_state.Base:
    last = max((one.gather_id for one in gathers if one.folded), default=gathers[0].gather_id - 1)
    types = gather_state.base_types(work.store, tenant.id) | _told_of(*gathers)
    return gather_state.Base(last, types, *_entities_of(_known(work, tenant)))


def _entities_of(known: Known) -> tuple[dict[str, int], pl.DataFrame, pl.DataFrame]:
    return known.zero_counts, known.resources, known.identities


class _Again(NamedTuple):
    """What is known once inventories were folded again, and by types that they were told of.

    `new`: the gathers of those that were not folded before, with what they lack; `last`: that of the last inventory.
    """

    known: Known
    types: frozenset[str]
    new: list[gather_state.Gather]
    last: gather_state.Gather | None


def _folded_again(
    work: Work, tenant: ConfluentTenant, base: gather_state.Base, gathers: Iterable[gather_state.Gather]
) -> _Again:
    """What was known before some gathers, and what they landed -> what is known after them."""
    again = _Again(Known(base.resources, base.identities, base.zero_counts), base.types, [], None)
    for one, inventory in _inventories_again(work, tenant, gathers):
        known = folded(tenant, again.known, inventory, one.started_at, again.types)
        new = again.new if one.folded else [*again.new, one]
        again = _Again(known, again.types | _told_of(one._replace(folded=1)), new, one)
    return again


def _inventories_again(
    work: Work, tenant: ConfluentTenant, gathers: Iterable[gather_state.Gather]
) -> Iterator[tuple[gather_state.Gather, Inventory]]:
    """Gathers, with what they lack, and their inventories, one after the other; those that cannot be read are left out.

    StoreError or ContractError if that is one that was folded.
    """
    for one in gathers:
        # One that is open goes on, or is taken in.
        if one.status == "open":
            continue
        landing = landing_of(work.root, tenant, one.gather_id)
        lacking = one.inventory_errors if one.folded else _lacking(landing)
        if len(lacking) == len(confluent_inventory.KINDS) and not one.folded:
            continue
        try:
            inventory = confluent_inventory.parse_inventory(confluent_inventory.read_inventory(landing, lacking))
        except (StoreError, ContractError) as error:
            if one.folded:
                raise
            _leave_out(work, one, error)
            continue
        yield one._replace(inventory_errors=dict(lacking)), inventory


def _publish_late(work: Work, tenant: ConfluentTenant, days: Collection[str]) -> None:
    """What gathers saw run on days, of which one is folded only now -> their usage.

    What is left of lost usage is not recorded, or it would pass for all of it: it stays lost until it is whole.
    """
    lost = lost_usage(work.root, work.store, tenant.id) | irreplaceable(work.root, work.store, tenant.id)
    for day in sorted(days):
        done = _published_usage(work, day, _with_landed_running(work, tenant, day, usage_left(work, day)))
        if day not in lost:
            gather_state.save_usage_days(work.store, tenant.id, *done)


_UNKNOWN = "state.db does not know all gathers that landed some, as it was lost or is an older one"


def _leave_out(work: Work, one: gather_state.Gather, error: ProrataError) -> None:
    work.warn(f"the inventory of {one.started_at} is left out: {'; '.join(error.faults)}")
