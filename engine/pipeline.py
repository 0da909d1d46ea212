"""The recipes: gather, calculate, check, emit; the only module that knows two stages exist.

What is to be done is derived, at each run, from what is stored. A day is calculated when the digest of its inputs
differs from the one it was calculated with; nothing has to be marked by hand, and a run that dies leaves nothing that
the next one does not put right.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from datetime import date
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine import allocate, digests, identities, lake, names, rules, state, weights
from engine.config import Config, Tenant, load
from engine.emitters import sqlite
from engine.errors import (
    ConfigError,
    EmissionError,
    LedgerError,
    ProrataError,
    SourceError,
    StoppedError,
    StoreError,
    fault,
    shown,
)
from engine.frames import (
    BILLING,
    CHARGEBACK,
    EMPTY_KEYS,
    IDENTITIES,
    RESOURCES,
    USAGE,
    Table,
    check_ordered,
    check_rows,
    empty,
    encoded,
)
from engine.sources import aws_cur, key_table

MEASURES = ("amount",)
"""The measures that AWS bills fill."""


class Inputs(NamedTuple):
    """What a tenant's allocation needs besides its billing: rules, and USAGE with principals as identities."""

    tenant: Tenant
    rules: rules.Rules
    usage: pl.DataFrame


class Allocation(NamedTuple):
    """CHARGEBACK and EMPTY_KEYS of some days."""

    chargeback: pl.DataFrame
    empty_keys: pl.DataFrame


def configured(file: Path) -> Config:
    """The configuration of a file; ConfigError with every fault of its form and its rules."""
    config, document, faults = load(file)
    if config is not None:
        faults = [*faults, *rules.faults(config, document)]
    if config is None or faults:
        raise ConfigError(faults)
    return config


def inputs(tenant: Tenant) -> Inputs:
    """The tenant's rules and key tables; ContractError or SourceError if a key table is not what it should be."""
    tables = []
    for path in tenant.keys:
        usage = key_table.read_key_table(path, tenant.id)
        tables.append(identities.key_principals(usage, tenant, where=str(path)))
    return Inputs(tenant, rules.resolve(tenant), pl.concat([empty(USAGE), *tables]))


def allocate_period(billing: pl.DataFrame, given: Inputs) -> Allocation:
    """BILLING of one billing period -> its CHARGEBACK and EMPTY_KEYS, in memory: all days at once, nothing stored.

    The same stages as a run's, which goes day by day.
    """
    lines = matched(billing.lazy(), given).collect().sort(BILLING.key)
    cost = direct_cost(lines.lazy(), given)
    decided = decide(lines, cost, given)
    rows = allocate.fan_out(allocate.split(lines, decided.plan, measures=MEASURES), measures=MEASURES)
    allocate.check_line_sums(lines, rows, MEASURES)
    days = lines.select("tenant_id", "billing_period", "charge_date", "rule_id", "weight_scope").unique()
    asked = days.join(decided.empty_keys, on=["rule_id", "weight_scope"], how="inner").select(EMPTY_KEYS.columns)
    return Allocation(rows, asked.sort(EMPTY_KEYS.key))


def matched(billing: pl.LazyFrame, given: Inputs) -> pl.LazyFrame:
    """BILLING -> the same rows with owner, rule_id, window and weight_scope."""
    return rules.match(identities.with_owner(billing, given.tenant.owner), given.rules)


def direct_cost(lines: pl.LazyFrame, given: Inputs) -> pl.DataFrame:
    """Lines with owners -> `weights.direct_cost`."""
    return weights.direct_cost(lines, names.operator(given.tenant))


class Decided(NamedTuple):
    """What is decided for some lines: who bears them, and the keys that were empty (by rule and weight scope)."""

    plan: allocate.Plan
    empty_keys: pl.DataFrame


def decide(lines: pl.DataFrame, cost: pl.DataFrame, given: Inputs) -> Decided:
    """Matched lines of one billing period, and direct cost of its windows -> winning rungs and shares."""
    wanted = weights.groups(lines.lazy(), given.rules)
    days = lines["charge_date"].unique().dt.to_string("%Y-%m-%d")
    periods = lines["billing_period"].unique()
    known = weights.Known(
        weights.direct_cost_in_windows(cost),
        weights.usage_in_windows(given.usage, str(periods.first() or ""), days),
    )
    weighed = weights.weigh(wanted, given.rules, known)
    rungs = allocate.rungs_asked(lines, given.rules.frame, weighed.weights)
    return Decided(allocate.planned(rungs, weighed.weights), _empty_keys(rungs, weighed.empty_keys))


def _empty_keys(rungs: pl.DataFrame, of_weighted: pl.DataFrame) -> pl.DataFrame:
    """Rungs that weighed nothing, and single empty keys of the `weighted` rungs that were tried."""
    lost = allocate.empty_keys(rungs).filter(pl.col("basis") != "weighted")
    first_held = pl.col("rung").filter("holds").min().over("rule_id", "weight_scope", "part")
    keys = (
        rungs.filter(pl.col("rung") <= first_held)
        .drop("metric")
        .join(of_weighted, on=["weight_group", "rung"], how="inner")
        .select(lost.columns)
    )
    return pl.concat([lost, keys]).sort("rule_id", "part", "rung", "weight_scope", "metric")


class Hooks(NamedTuple):
    """What the recipes need from outside: the time, where to tell what happens, and when to stop.

    `log(text)`: one line for people. `progress(stage, done, total)`: how far a stage is.
    """

    now: Callable[[], str]
    log: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    stop: threading.Event


class Request(NamedTuple):
    """What a command asks for: days from `first` to before `end` (None: open), and whether to redo unchanged days."""

    command: str
    first: date | None = None
    end: date | None = None
    force: bool = False

    def covers(self, charge_date: str) -> bool:
        """Whether a day is asked for."""
        return (self.first is None or charge_date >= str(self.first)) and (
            self.end is None or charge_date < str(self.end)
        )


class Summary(NamedTuple):
    """What a run of one tenant did."""

    tenant_id: str
    days_gathered: int = 0
    days_removed: int = 0
    days_calculated: int = 0
    days_unchanged: int = 0
    rows_written: int = 0
    days_emitted: int = 0
    warnings: tuple[str, ...] = ()


class _Work(NamedTuple):
    """What the steps of one run of one tenant share."""

    root: Path
    tenant: Tenant
    request: Request
    hooks: Hooks
    store: state.State
    workers: int
    warnings: list[str]

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.log(f"warning: {text}")

    def log(self, text: str) -> None:
        self.hooks.log(f"{self.tenant.id}: {text}")


def run_tenant(config: Config, tenant: Tenant, request: Request, hooks: Hooks, run_id: str) -> Summary:
    """Gather, calculate, check and emit one tenant under its claim, and log the run.

    `recalculate` starts from the stored billing and redoes every day that is asked for. Raises the ProrataError of the
    first step that failed; what was published before stands, the rest is as it was.
    """
    with state.open_state(config.root) as store, state.claim(store, tenant.id, hooks.now()):
        work = _Work(config.root, tenant, request, hooks, store, config.max_parallel_days, [])
        state.start_run(
            store,
            run_id,
            ecosystem=tenant.ecosystem,
            tenant_id=tenant.id,
            command=request.command,
            started_at=hooks.now(),
        )
        summary = Summary(tenant.id)
        try:
            lake.create(config.root, tenant.id)
            for stage, step in _steps(request):
                state.update_run(store, run_id, stage, _counts(summary))
                summary = step(work, summary)
            state.finish_run(store, run_id, "done", _counts(summary), ended_at=hooks.now())
        except BaseException as error:
            _log_failure(work, run_id, summary, error)
            raise
    return summary._replace(warnings=tuple(work.warnings))


def _steps(request: Request) -> Sequence[tuple[str, Callable[[_Work, Summary], Summary]]]:
    stored = (("calculate", _calculate), ("entities", _entities), ("check", _check), ("emit", _emit))
    return (("gather", _gather), *stored) if request.command == "run" else stored


def _counts(summary: Summary) -> state.RunCounts:
    return state.RunCounts(summary.days_gathered, summary.days_calculated, summary.days_removed, summary.rows_written)


def _log_failure(work: _Work, run_id: str, summary: Summary, error: BaseException) -> None:
    status: state.Ending = "stopped" if isinstance(error, StoppedError | KeyboardInterrupt) else "failed"
    text = "\n".join(error.faults) if isinstance(error, ProrataError) else f"{type(error).__name__}: {error}"
    try:
        state.finish_run(work.store, run_id, status, _counts(summary), ended_at=work.hooks.now(), error=text)
    except StoreError as second:
        # The first error is the one to show; a full disk, say, has both.
        work.log(f"the failure could not be logged: {second}")


def _gather(work: _Work, summary: Summary) -> Summary:
    """New or changed bills -> billing days in the lake and in the state."""
    source = work.tenant.source
    loaded = state.loaded_assemblies(work.store, work.tenant.id)
    undone = _lost_billing(work) | state.half_published(work.store, work.tenant.id).keys()
    for assembly in aws_cur.discover(source.path, source.report):
        for warning in assembly.warnings:
            work.warn(warning)
        fingerprint = aws_cur.fingerprint(assembly)
        known = loaded.get(assembly.billing_period)
        if known is None or known.fingerprint != fingerprint or assembly.billing_period in undone:
            summary = _gather_assembly(work, assembly, fingerprint, summary)
    return summary


def _lost_billing(work: _Work) -> set[str]:
    """The billing periods of which a file that the state knows is not in the lake as it was written."""
    sizes = lake.sizes(work.root, BILLING, work.tenant.id)
    days = state.days(work.store, work.tenant.id)
    return {period for (period, day), row in days.items() if sizes.get((period, day)) != row.billing_bytes}


def _gather_assembly(work: _Work, assembly: aws_cur.Assembly, fingerprint: str, summary: Summary) -> Summary:
    _stop_if_asked(work)
    work.log(f"reading bill {assembly.billing_period}, assembly {assembly.assembly_id}, {len(assembly.files)} file(s)")
    loaded = aws_cur.load(assembly, work.tenant.id)
    billing = check_rows(loaded.billing, BILLING, where=str(assembly.manifest))
    for warning in loaded.warnings:
        work.warn(warning)
    _warn_without_owners(work, assembly.billing_period, billing)
    _begin_assembly(work, assembly, fingerprint, loaded)
    known = {key for key in _known_days(work) if key[0] == assembly.billing_period}
    changed, found = 0, set()
    for (charge_date,), lines in billing.partition_by("charge_date", as_dict=True, maintain_order=True).items():
        key = (assembly.billing_period, str(charge_date))
        found.add(key)
        changed += _publish_billing(work, key, lines)
        work.hooks.progress(f"billing {assembly.billing_period}", len(found), billing["charge_date"].n_unique())
    removed = _withdraw(work, sorted(known - found))
    state.finish_assembly(work.store, work.tenant.id, assembly.billing_period)
    amounts = ", ".join(f"{amount:f} {currency}" for currency, amount in sorted(loaded.amounts.items())) or "nothing"
    work.log(
        f"bill {assembly.billing_period}: {loaded.lines} line(s) pooled to {billing.height}, {amounts};"
        f" {changed} day(s) changed, {removed} withdrawn, {loaded.days_outside_period} outside the month"
    )
    return summary._replace(days_gathered=summary.days_gathered + changed, days_removed=summary.days_removed + removed)


def _warn_without_owners(work: _Work, billing_period: str, billing: pl.DataFrame) -> None:
    """Say that no line of a bill has an owner: the tag may be misspelt, and all would go to pools."""
    if billing.height and not identities.any_owned(billing.lazy(), work.tenant.owner):
        tags = ", ".join(shown(tag) for tag in work.tenant.owner.tags)
        work.warn(f"bill {billing_period}: no line has an owner (tag {tags})")


def _known_days(work: _Work) -> set[state.DayKey]:
    """Days that the state knows, or of which a file lies in the lake: a crash may leave one without the other."""
    tables = (BILLING, CHARGEBACK, EMPTY_KEYS)
    stored = {key for table in tables for key in lake.sizes(work.root, table, work.tenant.id)}
    return stored | state.days(work.store, work.tenant.id).keys()


def _begin_assembly(work: _Work, assembly: aws_cur.Assembly, fingerprint: str, loaded: aws_cur.Load) -> None:
    row = state.Assembly(
        tenant_id=work.tenant.id,
        billing_period=assembly.billing_period,
        assembly_id=assembly.assembly_id,
        fingerprint=fingerprint,
        manifest=str(assembly.manifest),
        lines=loaded.lines,
        billing_rows=loaded.billing.height,
        amounts={currency: f"{amount:f}" for currency, amount in loaded.amounts.items()},
        rounding_residue=f"{loaded.residue:f}",
        days_outside_period=loaded.days_outside_period,
        schema_differences=list(loaded.schema_differences),
        warnings=list(loaded.warnings),
        loaded_at=work.hooks.now(),
    )
    files = [
        state.AssemblyFile(str(file.path), file.size, file.mtime_ns, file.sha256, file.lines) for file in loaded.files
    ]
    state.begin_assembly(work.store, row, files)


def _publish_billing(work: _Work, key: state.DayKey, lines: pl.DataFrame) -> int:
    """1 if the day is new or differs from what is stored."""
    place = _place(work, BILLING, key)
    written = lake.write(place.temporary(work.root), BILLING, _slices(encoded(lines)))
    lake.publish(work.root, place, written)
    day = state.BillingDay(work.tenant.ecosystem, work.tenant.id, *key, written.digest, written.rows, written.size)
    return state.upsert_billing_days(work.store, [day])


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    return frame.iter_slices(lake.ROW_GROUP_ROWS)


def _withdraw(work: _Work, keys: Sequence[state.DayKey]) -> int:
    """Take days out of the lake that their bill no longer has."""
    for key in keys:
        for table in (CHARGEBACK, EMPTY_KEYS, BILLING):
            lake.withdraw(work.root, _place(work, table, key))
    return state.remove_days(work.store, work.tenant.id, keys)


def _place(work: _Work, table: Table, key: state.DayKey) -> lake.Place:
    return lake.Place(table, work.tenant.id, key[0], date.fromisoformat(key[1]))


def _calculate(work: _Work, summary: Summary) -> Summary:
    """Days whose inputs changed -> chargeback in the lake and in the state."""
    days = state.days(work.store, work.tenant.id)
    causes = _causes(work.tenant, days)
    changed = _changed(work.root, work.tenant, days, causes)
    due = [key for key in days if work.request.covers(key[1]) and (work.request.force or key in changed)]
    if not due:
        return summary
    given = inputs(work.tenant)
    for period in sorted({period for period, _ in due}):
        keys = [key for key in due if key[0] == period]
        for done in _calculate_days(work, given, keys, days, causes):
            summary = summary._replace(
                days_calculated=summary.days_calculated + (done.rows is not None),
                days_unchanged=summary.days_unchanged + (done.rows is None),
                rows_written=summary.rows_written + (done.rows or 0),
            )
    return summary


def days_due(root: Path, tenant: Tenant, days: dict[state.DayKey, state.Day]) -> set[state.DayKey]:
    """The gathered days that a run would look at again: something that their chargeback can depend on has changed.

    SourceError if a key table cannot be read.
    """
    if not any(day.chargeback_calculated for day in days.values()):
        return set(days)
    return _changed(root, tenant, days, _causes(tenant, days))


def _changed(
    root: Path, tenant: Tenant, days: dict[state.DayKey, state.Day], causes: dict[state.DayKey, str]
) -> set[state.DayKey]:
    sizes, empty_keys = (lake.sizes(root, table, tenant.id) for table in (CHARGEBACK, EMPTY_KEYS))
    return {
        key
        for key, day in days.items()
        if not day.chargeback_calculated
        or day.cause_digest != causes[key]
        or day.chargeback_bytes != sizes.get(key)
        or bool(day.empty_key_rows) != (key in empty_keys)
    }


def _causes(tenant: Tenant, days: dict[state.DayKey, state.Day]) -> dict[state.DayKey, str]:
    """For each day a digest of everything its chargeback can depend on, from what is known without reading the lake.

    Where it is the one stored, the day is done. Where not, the day's own input digest decides.
    """
    resolved = rules.resolve(tenant)
    common = _common_cause(tenant, resolved)
    monthly = "month" in resolved.windows()
    bills: dict[str, str] = {}
    for (period, _), day in sorted(days.items()):
        bills[period] = bills.get(period, "") + day.billing_digest
    return {
        key: hashlib.sha256(f"{common}\n{day.billing_digest}\n{bills[key[0]] if monthly else ''}".encode()).hexdigest()
        for key, day in days.items()
    }


def _common_cause(tenant: Tenant, resolved: rules.Rules) -> str:
    """A digest of what all days have in common: the kernel, owners, rules, and the content of key tables."""
    common = hashlib.sha256(f"kernel {allocate.KERNEL_VERSION}\n".encode())
    common.update(tenant.model_dump_json(include={"id", "ecosystem", "owner", "operator"}).encode())
    common.update(repr([resolved.pools, sorted(resolved.ladders.items())]).encode())
    for path in tenant.keys:
        common.update(_file_digest(path).encode())
    return common.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(fault(str(path), f"cannot be read ({error.strerror})", "a key table")) from error


class _Done(NamedTuple):
    """A day that is calculated; `rows` is None if its inputs had not changed."""

    key: state.DayKey
    rows: int | None


def _calculate_days(
    work: _Work,
    given: Inputs,
    keys: Sequence[state.DayKey],
    days: dict[state.DayKey, state.Day],
    causes: dict[state.DayKey, str],
) -> Iterator[_Done]:
    """Days of one billing period, a few at a time, in any order."""
    cost = _period_cost(work, given, keys[0][0]) if "month" in given.rules.windows() else None
    waiting = iter(keys)
    with ThreadPoolExecutor(work.workers, thread_name_prefix="day") as pool:
        # No more days are handed out than can run, so that a stop waits for those at most.
        running = {
            pool.submit(_calculate_day, work, given, days[key], causes[key], cost)
            for key in islice(waiting, work.workers)
        }
        done = 0
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    done += 1
                    work.hooks.progress(f"chargeback {keys[0][0]}", done, len(keys))
                _stop_if_asked(work)
                running |= {
                    pool.submit(_calculate_day, work, given, days[key], causes[key], cost)
                    for key in islice(waiting, work.workers - len(running))
                }
        finally:
            wait(running)


def _period_cost(work: _Work, given: Inputs, billing_period: str) -> pl.DataFrame:
    billing = lake.scan(work.root, BILLING, work.tenant.id, billing_period)
    return direct_cost(identities.with_owner(billing, work.tenant.owner), given)


def _stop_if_asked(work: _Work) -> None:
    if work.hooks.stop.is_set():
        raise StoppedError(f"tenant {work.tenant.id}: stopped; what was published stands, the next run does the rest")


def _calculate_day(work: _Work, given: Inputs, day: state.Day, cause: str, period_cost: pl.DataFrame | None) -> _Done:
    """One day, from the lake to the lake. A failure is recorded with the day, whose stored chargeback stays."""
    try:
        return _calculated(work, given, day, cause, period_cost)
    except ProrataError as error:
        # A full disk, say, takes no record either; the error itself is what counts.
        with suppress(StoreError):
            state.fail_day(work.store, work.tenant.id, (day.billing_period, day.charge_date), str(error))
        raise


def _calculated(work: _Work, given: Inputs, day: state.Day, cause: str, period_cost: pl.DataFrame | None) -> _Done:
    key = (day.billing_period, day.charge_date)
    lines = matched(lake.read(work.root, _place(work, BILLING, key)).lazy(), given).collect()
    cost = direct_cost(lines.lazy(), given) if period_cost is None else period_cost
    decided = decide(lines, cost, given)
    codes = encoded(lines)
    input_digest = _input_digest(day.billing_digest, codes, decided)
    place = _place(work, CHARGEBACK, key)
    if not work.request.force and input_digest == day.input_digest and _is_stored(work, place, day):
        state.commit_day(work.store, _as_calculated(day, cause))
        return _Done(key, None)
    calculation_id = input_digest[:16]
    split = allocate.split(codes, allocate.encoded(decided.plan, codes), measures=MEASURES)
    written = lake.write(
        place.temporary(work.root),
        CHARGEBACK,
        _checked_rows(split, codes, calculation_id),
        calculation_id=calculation_id,
    )
    # From here to the commit the lake and the state may differ, and sizes do not always tell.
    state.begin_day(work.store, work.tenant.id, key)
    lake.publish(work.root, place, written)
    empty_key_rows = _publish_empty_keys(work, key, lines, decided.empty_keys)
    state.commit_day(
        work.store,
        state.CalculatedDay(
            work.tenant.id,
            *key,
            cause,
            input_digest,
            written.digest,
            calculation_id,
            written.rows,
            written.size,
            empty_key_rows,
        ),
    )
    return _Done(key, written.rows)


def _input_digest(billing_digest: str, lines: pl.DataFrame, decided: Decided) -> str:
    """What the day's chargeback is a function of: its lines, which rule and group each has, and what was decided."""
    content = [
        digests.digest(lines.select("line_id", "rule_id", "weight_scope")),
        digests.digest(decided.plan.parts),
        digests.digest(decided.plan.shares),
        digests.digest(decided.empty_keys),
    ]
    text = "\n".join([f"kernel {allocate.KERNEL_VERSION}", billing_digest, *content])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_stored(work: _Work, place: lake.Place, day: state.Day) -> bool:
    path = place.path(work.root)
    return path.exists() and path.stat().st_size == day.chargeback_bytes


def _as_calculated(day: state.Day, cause: str) -> state.CalculatedDay:
    kept = {name: getattr(day, name) for name in state.CalculatedDay._fields if name != "cause_digest"}
    return state.CalculatedDay(**kept, cause_digest=cause)


def _checked_rows(split: allocate.Split, lines: pl.DataFrame, calculation_id: str) -> Iterator[pl.DataFrame]:
    """The day's CHARGEBACK in chunks, each checked before it is written: order, keys, nulls, every line's sum."""
    offset = 0
    for chunk in allocate.chunks(split, lake.ROW_GROUP_ROWS):
        rows = allocate.fan_out(chunk, measures=MEASURES, calculation_id=calculation_id)
        count = int(chunk.rows["_lead"].sum())
        allocate.check_line_sums(lines.slice(offset, count), rows, MEASURES)
        offset += count
        yield check_ordered(rows, CHARGEBACK)
    if offset != lines.height:
        raise LedgerError(
            fault("table chargeback", f"{lines.height - offset} line(s) without a rule", "one rule per line")
        )


def _publish_empty_keys(work: _Work, key: state.DayKey, lines: pl.DataFrame, found: pl.DataFrame) -> int:
    place = _place(work, EMPTY_KEYS, key)
    if not found.height:
        lake.withdraw(work.root, place)
        return 0
    day = lines.select("tenant_id", "billing_period", "charge_date").head(1)
    rows = found.join(day, how="cross").select(EMPTY_KEYS.columns).sort(EMPTY_KEYS.key)
    written = lake.write(place.temporary(work.root), EMPTY_KEYS, [check_rows(rows, EMPTY_KEYS)])
    lake.publish(work.root, place, written)
    return rows.height


def _entities(work: _Work, summary: Summary) -> Summary:
    """Identities and resources, from the whole billing of the tenant; only if that, or what names owners, changed."""
    days = state.days(work.store, work.tenant.id)
    causes = [_common_cause(work.tenant, rules.resolve(work.tenant)), *(day.billing_digest for day in days.values())]
    cause = hashlib.sha256("\n".join(causes).encode()).hexdigest()
    stored = all(lake.current(work.root, table, work.tenant.id).exists() for table in (IDENTITIES, RESOURCES))
    if stored and state.entities_cause(work.store, work.tenant.id) == cause:
        return summary
    billing = lake.scan(work.root, BILLING, work.tenant.id)
    seen = (
        identities.with_owner(billing.select("tags", "charge_date"), work.tenant.owner)
        .filter(pl.col("owner") != "")
        .group_by("owner")
        .agg(first_seen_at=pl.col("charge_date").min(), last_seen_at=pl.col("charge_date").max())
        .collect(engine="streaming")
    )
    found = check_rows(identities.identities(work.tenant, seen, _named_by_rules(work.tenant)), IDENTITIES)
    lake.put_current(work.root, IDENTITIES, work.tenant.id, found)
    lake.put_current(work.root, RESOURCES, work.tenant.id, check_rows(identities.resources(billing), RESOURCES))
    unknown = found.filter(pl.col("type") == "unknown_owner")["id"]
    if work.tenant.owner.identities and unknown.len():
        names = ", ".join(shown(name) for name in unknown.head(10))
        work.warn(f"{unknown.len()} owner(s) that the configuration does not name, kept as they are: {names}")
    state.commit_entities(work.store, work.tenant.id, cause)
    return summary


def _named_by_rules(tenant: Tenant) -> set[str]:
    """The identities that key tables and percentages may charge."""
    given = inputs(tenant)
    rungs = [rung for ladder in given.rules.ladders.values() for rung in ladder]
    return {*given.usage["principal"], *(name for rung in rungs for name in rung.percentages or {})}


def _check(work: _Work, summary: Summary) -> Summary:
    """`sql/checks` over the days whose stored chargeback has not passed them yet; LedgerError with what offends.

    A day counts as checked by its output digest, so that one that failed, or that a killed run did not get to, is
    checked again.
    """
    days = state.days(work.store, work.tenant.id)
    keys = [key for key, day in days.items() if day.chargeback_calculated and day.checked_digest != day.output_digest]
    if not keys:
        return summary
    # DuckDB takes as long to import as a run with nothing to do takes in all.
    from engine import warehouse  # noqa: PLC0415

    periods, dates = [period for period, _ in keys], [date.fromisoformat(day) for _, day in keys]
    covered = (min(periods), max(periods)), (min(dates), max(dates))
    with warehouse.open_lake(work.root) as connection:
        warehouse.check(connection, work.tenant.id, *covered, file_log(work.store, work.tenant.id))
    state.mark_checked(work.store, work.tenant.id, keys)
    return summary


def file_log(store: state.State, tenant_id: str) -> pl.DataFrame:
    """What the state says lies in the lake: table_name, billing_period, charge_date, rows."""
    rows = [
        (table, period, date.fromisoformat(charge_date), count)
        for (period, charge_date), day in state.days(store, tenant_id).items()
        for table, count in (("billing", day.billing_rows), ("chargeback", day.chargeback_rows))
        if count is not None
    ]
    schema = {"table_name": pl.String, "billing_period": pl.String, "charge_date": pl.Date, "rows": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _emit(work: _Work, summary: Summary) -> Summary:
    """Days whose output digest an emitter has not had -> results.db. A failed day does not stop the others."""
    if "sqlite" not in work.tenant.emitters:
        return summary
    failed: list[str] = []
    with sqlite.open_results(work.root) as results:
        if not sqlite.holds(results, work.tenant.id):
            state.forget_emissions(work.store, work.tenant.id, "sqlite")
        pending = state.pending(work.store, work.tenant.id, "sqlite")
        for number, day in enumerate(pending, start=1):
            _stop_if_asked(work)
            failed += _emit_day(work, results, day)
            work.hooks.progress("emitting to results.db", number, len(pending))
    if failed:
        raise EmissionError(failed)
    return summary._replace(days_emitted=len(pending))


def _emit_day(work: _Work, results: sqlite.Results, day: state.PendingDay) -> list[str]:
    """The faults of one day; what came of it is recorded."""
    rows, faults = 0, list[str]()
    try:
        rows = _given_to_sqlite(work, results, day)
    except ProrataError as error:
        faults = list(error.faults)
    outcome: state.Outcome = (
        "failed" if faults else "withdrawn" if day.output_digest is None else "emitted" if rows else "skipped"
    )
    told, now = "\n".join(faults) or None, work.hooks.now()
    # Where the disk is full the failure cannot be recorded either; without a record the day stays pending.
    with suppress(StoreError) if faults else nullcontext():
        state.record_emission(work.store, work.tenant.id, "sqlite", day, outcome, rows=rows, emitted_at=now, error=told)
    return faults


def _given_to_sqlite(work: _Work, results: sqlite.Results, day: state.PendingDay) -> int:
    """How many facts the day has in results.db now."""
    if day.output_digest is None:
        sqlite.withdraw_day(results, work.tenant.id, day.billing_period, day.charge_date)
        return 0
    stored = lake.read(work.root, _place(work, CHARGEBACK, (day.billing_period, day.charge_date)))
    return sqlite.emit_day(results, work.tenant.id, day.billing_period, day.charge_date, stored)
