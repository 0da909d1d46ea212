"""Where every tenant stands: bills, days, runs and emissions, derived from what is stored and what is on disk.

Only reads. Nothing is marked as complete anywhere: a bill is complete when the newest delivery on disk is the one that
was read, all its days are published, and each was calculated from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from engine import cost_days, gather_state, pipeline, state, wanted
from engine.config import AwsTenant, Config, ConfluentTenant, ProductTenant, Tenant
from engine.errors import ProrataError
from engine.frames import IDENTITIES
from engine.sources import aws_cur
from engine.text import aligned, counted, indented, number

RUNS_SHOWN = 5


class Bill(NamedTuple):
    """A bill of one billing period: as it was read (None: not yet) and whether everything in it is calculated.

    `amounts`: currency -> exact decimal text. `missing` says what is left to do or wrong; a complete bill has none.
    """

    billing_period: str
    assembly_id: str | None
    files: int | None
    lines: int | None
    billing_rows: int | None
    amounts: dict[str, str]
    rounding_residue: str | None
    loaded_at: str | None
    days: int
    days_pending: int
    days_outside_period: int | None
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the newest delivery was read and each of its days calculated."""
        return not self.missing


class Days(NamedTuple):
    """How many days have billing, how many are calculated from it, how many are not; the first and the last."""

    gathered: int
    calculated: int
    pending: int
    first: str | None
    last: str | None


class Emissions(NamedTuple):
    """How many days an emitter was given, has yet to be given, and could not be given; with one of the errors."""

    emitter: str
    done: int
    pending: int
    failed: int
    error: str | None


class Gathers(NamedTuple):
    """What a tenant's API was asked for: its last gather, and what days wait for.

    `suspended` says why it is not gathered any more. `metrics_failed` and `metrics_given_up` count days and metrics;
    `dropped` values were no numbers, `gaps` are samples that were not scraped, `without_samples` counts days and
    metrics of which there are none at all. `incomplete`: each day and question of a cost model of which not all samples
    came.
    """

    last: gather_state.Gather | None
    suspended: str | None
    records: int
    malformed: int
    rounding_residue: str
    days_waiting_for_inventory: int
    days_waiting_for_metrics: int
    metrics_failed: int
    metrics_given_up: int
    metrics_error: str | None
    dropped: int
    gaps: int
    resources: int
    identities: int
    incomplete: tuple[cost_days.Incomplete, ...] = ()
    without_samples: int = 0


class TenantStatus(NamedTuple):
    """One tenant. `faults` is what keeps its bills from being read now; `holder` who works on it.

    `gathers` is None where the bill comes in files; where it does not, `bills` is empty.
    """

    tenant_id: str
    ecosystem: str
    bills: tuple[Bill, ...]
    days: Days
    runs: tuple[state.Run, ...]
    emissions: tuple[Emissions, ...]
    unknown_owners: tuple[str, ...]
    holder: state.Claim | None
    faults: tuple[str, ...]
    gathers: Gathers | None = None


def status(config: Config, tenants: Sequence[Tenant]) -> list[TenantStatus]:
    """Where these tenants stand; StoreError if the state is there and cannot be read. Writes nothing."""
    with state.open_state(config.root, write=False) as store:
        return [_tenant_status(config.root, tenant, store) for tenant in tenants]


def _tenant_status(root: Path, tenant: Tenant, store: state.State) -> TenantStatus:
    days = state.days(store, tenant.id)
    due, faults = _due(root, store, tenant, days)
    found = TenantStatus(
        tenant.id,
        tenant.ecosystem,
        (),
        _days(list(days.values()), len(due)),
        tuple(state.runs(store, tenant.id, limit=RUNS_SHOWN)),
        tuple(_emissions(store, tenant, emitter) for emitter in tenant.emitters),
        (),
        state.holder(store, tenant.id),
        tuple(faults),
    )
    if not isinstance(tenant, AwsTenant):
        return found._replace(gathers=_gathers(store, tenant, days))
    delivered, unread = aws_cur.delivered(tenant.source.path, tenant.source.report)
    return found._replace(
        bills=tuple(_bills(store, tenant, days, due, delivered, whole=not unread)),
        unknown_owners=_unknown_owners(root, tenant),
        faults=(*unread, *faults),
    )


def _gathers(store: state.State, tenant: ProductTenant, days: dict[state.DayKey, state.Day]) -> Gathers:
    last = gather_state.last_gather(store, tenant.id)
    windows = gather_state.windows(store, tenant.id, last.gather_id) if last else []
    known = gather_state.day_metrics(store, tenant.id)
    # Of some metrics usage is kept that nobody asks for any more.
    asked = [one for one in known.values() if one.ids]
    fetched = asked if isinstance(tenant, ConfluentTenant) else cost_days.asked_now(tenant, known)
    open_ = [one for one in fetched if one.status != "fetched"] if tenant.metrics is not None else []
    residues = [window.rounding_residue for window in windows]
    residues += [one.rounding_residue for one in gather_state.constructed_days(store, tenant.id).values()]
    incomplete = () if isinstance(tenant, ConfluentTenant) else cost_days.incomplete(tenant, known)
    return Gathers(
        last,
        wanted.suspension(store, tenant.id),
        sum(window.records for window in windows),
        sum(window.malformed for window in windows),
        f"{sum(map(Decimal, residues), Decimal(0)):f}",
        sum(not day.resources_gathered for day in days.values()),
        sum(not day.metrics_gathered for day in days.values()),
        sum(one.status == "failed" for one in open_),
        sum(one.status == "given_up" for one in open_),
        open_[0].error if open_ else None,
        sum(one.dropped for one in fetched),
        sum(one.gaps for one in fetched),
        gather_state.counts(store, "resources", tenant.id),
        gather_state.counts(store, "identities", tenant.id),
        tuple(incomplete),
        sum(one.rows == 0 and one.gaps > 0 for one in fetched),
    )


def _due(
    root: Path, store: state.State, tenant: Tenant, days: dict[state.DayKey, state.Day]
) -> tuple[set[state.DayKey], Sequence[str]]:
    """The days a run would calculate; those never calculated, and why, if a key table cannot be read."""
    try:
        return pipeline.days_due(root, store, tenant, days), ()
    except ProrataError as error:
        return {key for key, day in days.items() if not day.chargeback_calculated}, error.faults


def _bills(
    store: state.State,
    tenant: AwsTenant,
    days: dict[state.DayKey, state.Day],
    due: set[state.DayKey],
    delivered: dict[str, aws_cur.Delivery],
    *,
    whole: bool,
) -> list[Bill]:
    """`delivered`: what could be read of what is on disk; `whole`: whether that is all."""
    loaded = state.loaded_assemblies(store, tenant.id)
    files = state.loaded_files(store, tenant.id)
    half = state.half_published(store, tenant.id)
    bills = []
    for period in sorted({*loaded, *half, *delivered}):
        load = loaded.get(period)
        of_bill = [day for day in days.values() if day.billing_period == period]
        pending = sum(key[0] == period for key in due)
        bills.append(
            Bill(
                billing_period=period,
                assembly_id=load.assembly_id if load else None,
                files=len(files.get(period, [])) if load else None,
                lines=load.lines if load else None,
                billing_rows=load.billing_rows if load else None,
                amounts=load.amounts if load else {},
                rounding_residue=load.rounding_residue if load else None,
                loaded_at=load.loaded_at if load else None,
                days=len(of_bill),
                days_pending=pending,
                days_outside_period=load.days_outside_period if load else None,
                missing=tuple(_missing(load, half.get(period), pending, delivered.get(period), whole=whole)),
            )
        )
    return bills


def _missing(
    load: state.Assembly | None,
    half_published: str | None,
    pending: int,
    newest: aws_cur.Delivery | None,
    *,
    whole: bool,
) -> list[str]:
    said = []
    if newest is None and not whole:
        said.append("the reports on disk cannot be read")
    elif newest is None:
        said.append("no longer among the reports on disk (what was read stays)")
    elif load is None:
        said.append(f"assembly {newest.assembly_id} is not read yet")
    elif newest.assembly_id != load.assembly_id:
        said.append(f"a newer assembly, {newest.assembly_id}, is not read yet")
    elif newest.fingerprint != load.fingerprint:
        said.append("its files have changed since they were read")
    if half_published:
        said.append(f"not all days of assembly {half_published} are published")
    if pending:
        said.append(f"{counted(pending, 'day')} to calculate")
    return said


def _days(days: Sequence[state.Day], pending: int) -> Days:
    dates = [day.charge_date for day in days]
    return Days(len(days), len(days) - pending, pending, min(dates, default=None), max(dates, default=None))


def _emissions(store: state.State, tenant: Tenant, emitter: str) -> Emissions:
    records = [record for record in state.emissions(store, tenant.id) if record.emitter == emitter]
    failed = [record for record in records if record.outcome == "failed"]
    done = sum(record.outcome in ("emitted", "skipped") for record in records)
    pending = len(state.pending(store, tenant.id, emitter))
    return Emissions(emitter, done, pending, len(failed), failed[0].error if failed else None)


def _unknown_owners(root: Path, tenant: AwsTenant) -> tuple[str, ...]:
    """Owners that only tags name; () if the configuration names none, or nothing is stored yet."""
    file = root / "lake" / IDENTITIES.name / f"tenant_id={tenant.id}" / "current.parquet"
    if not tenant.owner.identities or not file.exists():
        return ()
    stored = pl.scan_parquet(file, hive_partitioning=False, glob=False)
    return tuple(stored.filter(pl.col("type") == "unknown_owner").select("id").collect()["id"].sort())


def as_json(found: TenantStatus) -> dict[str, Any]:
    """A tenant's status as JSON has it."""
    return {
        **found._asdict(),
        "bills": [{**bill._asdict(), "complete": bill.complete} for bill in found.bills],
        "days": found.days._asdict(),
        "runs": [run._asdict() for run in found.runs],
        "emissions": [emissions._asdict() for emissions in found.emissions],
        "holder": found.holder._asdict() if found.holder else None,
        "gathers": _gathers_json(found.gathers) if found.gathers else None,
    }


def _gathers_json(found: Gathers) -> dict[str, Any]:
    incomplete = [one._asdict() for one in found.incomplete]
    return {**found._asdict(), "last": found.last._asdict() if found.last else None, "incomplete": incomplete}


def lines(one: TenantStatus) -> Iterator[str]:
    """A tenant's status for people."""
    days = one.days
    range_ = f", {days.first} to {days.last}" if days.first else ""
    yield f"{one.tenant_id} ({one.ecosystem}): {counted(days.gathered, 'day')}{range_}; {days.pending} to calculate"
    if one.holder:
        yield f"  in work since {one.holder.claimed_at} by pid {one.holder.pid} on {one.holder.host}"
    yield from (f"  {text}" for text in one.faults)
    if one.bills:
        yield ""
        yield from indented(aligned(list(_bill_rows(one)), right=(2, 3, 4)))
    if one.gathers:
        yield from indented(_gather_lines(one.gathers))
    if one.runs:
        yield ""
        yield from indented(aligned(list(_run_rows(one)), right=(4, 5)))
    if one.runs and (error := one.runs[0].error):
        yield ""
        yield from indented(f"the last run failed: {text}" for text in error.splitlines())
    yield ""
    for emissions in one.emissions:
        yield (
            f"  emitted to {emissions.emitter}: {counted(emissions.done, 'day')}, {emissions.pending} pending,"
            f" {emissions.failed} failed{f' ({emissions.error})' if emissions.error else ''}"
        )
    if one.unknown_owners:
        yield f"  owners that the configuration does not name: {', '.join(map(repr, one.unknown_owners))}"


def _gather_lines(one: Gathers) -> Iterator[str]:
    if one.suspended:
        yield f"{one.suspended}; `prorata run --force` tries again"
    if last := one.last:
        yield (
            f"last gather {last.started_at}, {last.first_day} to before {last.end_day}: {last.status}"
            f"{f' ({last.error.splitlines()[0]})' if last.error else ''};"
            f" {counted(one.records, 'record')}, {counted(last.requests, 'request')}"
        )
    if one.malformed:
        yield f"{counted(one.malformed, 'record')} could not be understood, and are booked under malformed_billing_*"
    if one.resources or one.identities:
        yield f"known: {counted(one.resources, 'resource')}, {counted(one.identities, 'identity interval')}"
    if one.days_waiting_for_inventory:
        yield f"{counted(one.days_waiting_for_inventory, 'day')} wait for a whole inventory"
    if one.days_waiting_for_metrics:
        yield f"{counted(one.days_waiting_for_metrics, 'day')} wait for metrics"
    if one.metrics_failed or one.metrics_given_up:
        yield (
            f"metrics of days: {one.metrics_failed} failed, {one.metrics_given_up} given up"
            f"{f' ({one.metrics_error.splitlines()[0]})' if one.metrics_error else ''}"
        )
    if one.dropped or one.gaps:
        missing = f", all of {counted(one.without_samples, 'day')} of a metric" if one.without_samples else ""
        numbers = f"{counted(one.dropped, 'value')} that are no numbers"
        yield f"metrics: {numbers}, {counted(one.gaps, 'sample')} not scraped{missing}"
    yield from cost_days.told_incomplete(one.incomplete)


def _bill_rows(one: TenantStatus) -> Iterator[Sequence[str]]:
    yield "bill", "assembly", "files", "lines", "pooled to", "read at", "billed", "state"
    for bill in one.bills:
        counts = [number(count) if count is not None else "" for count in (bill.files, bill.lines, bill.billing_rows)]
        amounts = ", ".join(f"{number(amount)} {currency}" for currency, amount in bill.amounts.items())
        missing = "; ".join(bill.missing)
        yield bill.billing_period, bill.assembly_id or "", *counts, bill.loaded_at or "", amounts, missing or "complete"


def _run_rows(one: TenantStatus) -> Iterator[Sequence[str]]:
    yield "run", "command", "status", "stage", "days", "rows", "ended"
    for run_ in one.runs:
        counts = number(run_.days_calculated), number(run_.rows_written)
        yield run_.started_at, run_.command, run_.status, run_.stage, *counts, run_.ended_at or ""
