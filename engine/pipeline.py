"""The recipes: gather, calculate, check, emit; the only module that knows two stages exist.

What is to be done is derived, at each run, from what is stored. A day is calculated when the digest of its inputs
differs from the one it was calculated with; nothing has to be marked by hand, and a run that dies leaves nothing that
the next one does not put right.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import polars as pl

from engine import (
    allocate,
    bills,
    cost_days,
    credentials,
    digests,
    gather_state,
    identities,
    lake,
    money,
    names,
    rules,
    state,
    teams,
    wanted,
)
from engine.config import AwsTenant, Config, ConfluentTenant, CostModelTenant, Tenant, load
from engine.decide import (
    MEASURES_OF,
    DayFacts,
    Decided,
    Inputs,
    by_day,
    decide,
    decide_product_days,
    direct_cost,
    facts_by_day,
    matched,
    matched_encoded,
)
from engine.emitters import sqlite
from engine.errors import (
    ConfigError,
    ContractError,
    EmissionError,
    LedgerError,
    ProrataError,
    SourceError,
    StoppedError,
    StoreError,
    fault,
    shown,
    together,
)
from engine.frames import (
    BILLING,
    CHARGEBACK,
    EMPTY_KEYS,
    IDENTITIES,
    RESOURCES,
    TAGS,
    TEAMS,
    UNALLOCATED,
    USAGE,
    Blocks,
    Table,
    check_ordered,
    check_rows,
    decoded,
    empty,
    encoded,
)
from engine.meanwhile import ChecksMeanwhile, checks_meanwhile
from engine.sources import cost_faults, key_table, tag_table
from engine.text import counted, number
from engine.work import Hooks, Request, Summary, Work, usage_of

__all__ = [
    "Hooks",
    "Request",
    "Summary",
    "configured",
    "days_due",
    "file_log",
    "held_back",
    "idle_pools",
    "inputs",
    "is_ready",
    "run_tenant",
]


def configured(file: Path) -> Config:
    """The configuration of a file; ConfigError with every fault of its form and its rules."""
    config, document, faults = load(file)
    if config is not None:
        faults = [
            *faults,
            *rules.faults(config, document),
            *wanted.faults(config, document),
            *teams.faults(config, document),
            *cost_faults.faults(config, document),
        ]
    if config is None or faults:
        raise ConfigError(faults)
    return config


def inputs(tenant: AwsTenant) -> Inputs:
    """The tenant's rules and key tables; ContractError or SourceError if a key table is not what it should be."""
    tables: list[pl.DataFrame] = []
    wrong: list[ProrataError] = []
    for path in tenant.keys:
        try:
            usage = key_table.read_key_table(path, tenant.id)
            placed = partial(key_table.first_row, path)
            tables.append(identities.key_principals(usage, tenant, where=str(path), placed=placed))
        except (SourceError, ContractError) as error:
            wrong.append(error)
    if wrong:
        raise together(wrong)
    _check_sums(tenant, tables)
    return Inputs(tenant, rules.resolve(tenant), pl.concat([empty(USAGE), *tables]))


def _check_sums(tenant: AwsTenant, tables: Sequence[pl.DataFrame]) -> None:
    """ContractError, with the file and the key of the largest value, if the values of key tables might not sum exactly.

    Whatever is summed later is a part of these. Here the files are known, and no bill is published yet.
    """
    units = [money.largest(table.select(money.to_units(pl.col("value"))).to_series()) for table in tables]
    largest = max(units, default=0)
    if not largest:
        return
    path, table = tenant.keys[units.index(largest)], tables[units.index(largest)]
    key = table.filter(pl.col("value") == pl.col("value").max())["metric"][0]
    where = f"{path}: key {shown(key)}: column value"
    money.check_sum_fits(where, largest, sum(table.height for table in tables))


_Step: TypeAlias = Callable[[Work, Summary], Summary]
_Stage: TypeAlias = tuple[str, _Step]


class _Found(NamedTuple):
    """What is decided for the lines of some days.

    `lines`: BILLING with rule_id and weight_scope, in the order of the key. `unknown_products`: as in `DayDecision`.
    """

    lines: pl.DataFrame
    decided: Decided
    unknown_products: Sequence[pl.DataFrame] = ()


_Decide: TypeAlias = Callable[[pl.DataFrame, Sequence[state.Day]], _Found]
"""(BILLING of some days, these days) -> what is decided for them, for each as if it were alone."""


class _Known(NamedTuple):
    """What days are calculated from, as it is known at one time.

    `causes`: a digest for each day of everything that its chargeback can depend on, from what is known without reading
    the lake. `decisions`: what gives, for a billing period, what decides for the billing of its days. `entities`: how
    many are looked at for each day.
    """

    causes: dict[state.DayKey, str]
    decisions: Callable[[Work], Callable[[str], _Decide]]
    entities: int = 0


class _Recipe(NamedTuple):
    """What differs between ecosystems.

    `gathering` are the stages of a run that come before everything is stored, `again` those of a recalculation,
    `replaying` those of one that reads landed answers again. `known`: what the days of a state are calculated from.
    `entities`: a stage that brings the lake's identities and resources up to date.
    """

    gathering: Sequence[_Stage]
    again: Sequence[_Stage]
    replaying: Sequence[_Stage]
    known: Callable[[state.State, dict[state.DayKey, state.Day]], _Known]
    entities: _Step


def _recipe(tenant: Tenant) -> _Recipe:
    if isinstance(tenant, AwsTenant):
        return _of_bills(tenant)
    return _of_products(tenant) if isinstance(tenant, ConfluentTenant) else _of_cost_model(tenant)


def _of_bills(tenant: AwsTenant) -> _Recipe:
    """A tenant whose bill comes in files, and whose owners stand in tags."""

    def ready() -> None:
        wrong: list[ProrataError] = []
        for read in (lambda: inputs(tenant), lambda: tag_table.read_tag_tables(tenant.teams.tags, tenant.id)):
            try:
                read()
            except (SourceError, ContractError) as error:
                wrong.append(error)
        if wrong:
            raise together(wrong)

    # To read key tables takes as long as to decide two days.
    given_once = cache(partial(inputs, tenant))

    def decisions(work: Work) -> Callable[[str], _Decide]:
        given = given_once()

        def of_period(billing_period: str) -> _Decide:
            period_cost = (
                _period_cost(work, tenant, given, billing_period) if "month" in given.rules.windows() else None
            )

            def decided(billing: pl.DataFrame, _days: Sequence[state.Day]) -> _Found:
                is_encoded = isinstance(billing.schema["tags"], pl.Enum)
                lines = matched_encoded(billing, given) if is_encoded else matched(billing.lazy(), given).collect()
                work.rules_matched.update(lines["rule_id"].unique())
                cost = direct_cost(lines.lazy(), given) if period_cost is None else period_cost
                return _Found(lines, decide(lines, cost, given))

            return decided

        return of_period

    return _Recipe(
        gathering=(("gather", lambda work, summary: bills.gather(work, tenant, summary, ready)),),
        again=(),
        replaying=(),
        known=lambda _, days: _Known(_causes_of_bills(tenant, days), decisions),
        entities=lambda work, summary: _entities_of_bills(work, tenant, given_once, summary),
    )


def _of_products(tenant: ConfluentTenant) -> _Recipe:
    """A tenant whose bill comes from an API, and whose products have ladders."""
    # What asks the network takes long to import, and who only looks does not need it.

    @cache
    def given() -> Inputs:
        return Inputs(tenant, rules.resolve(tenant), empty(USAGE))

    def fetch(work: Work, summary: Summary) -> Summary:
        from engine import metrics  # noqa: PLC0415  # see above

        read_again(work)
        return settle(work, metrics.gather(work, tenant, given(), summary))

    def pass_over(work: Work, summary: Summary) -> Summary:
        from engine import gather  # noqa: PLC0415  # see above

        return gather.gather(work, tenant, summary)

    def read_again(work: Work) -> None:
        from engine import metered  # noqa: PLC0415  # see above

        metered.drop_torn(work, tenant)
        _restore_usage(work, tenant)

    def settle(work: Work, summary: Summary) -> Summary:
        from engine import metered  # noqa: PLC0415  # see above

        metered.settle(work, tenant, given())
        return summary

    def restore(work: Work, summary: Summary) -> Summary:
        read_again(work)
        return settle(work, summary)

    def replay(work: Work, summary: Summary) -> Summary:
        from engine import gather, metered  # noqa: PLC0415  # see above

        # First, as what is torn is lost, and to add to it would hide that.
        metered.drop_torn(work, tenant)
        summary = gather.replay(work, tenant, summary)
        _restore_usage(work, tenant)
        metered.replay(work, tenant)
        return settle(work, summary)

    return _Recipe(
        gathering=(("gather", pass_over), ("metrics", fetch)),
        again=(("metrics", restore),),
        replaying=(("replay", replay),),
        known=lambda store, days: _known_of_products(tenant, given(), store, days),
        entities=lambda work, summary: _entities_of_products(work, tenant, summary),
    )


def _restore_usage(work: Work, tenant: ConfluentTenant) -> None:
    from engine import gather, metered  # noqa: PLC0415  # as in `_of_products`

    gather.restore_usage(work, tenant)
    metered.restore(work, tenant)


def _known_of_products(
    tenant: ConfluentTenant, given: Inputs, store: state.State, days: dict[state.DayKey, state.Day]
) -> _Known:
    facts = _facts(store, tenant)
    failed = wanted.given_up(tenant, gather_state.day_metrics(store, tenant.id))

    def decisions(work: Work) -> Callable[[str], _Decide]:
        def decided(billing: pl.DataFrame, days: Sequence[state.Day]) -> _Found:
            lacking = {day.charge_date: failed.get(day.charge_date, frozenset()) for day in days}
            return _by_products(work, billing, given, facts, lacking)

        return lambda _billing_period: decided

    facts_of = facts_by_day({day: failed.get(day, frozenset()) for _, day in days}, facts)
    causes = _causes_of_days(store, given, days, lambda day: [facts_of[day]])
    return _Known(causes, decisions, facts.resources.height + facts.identities.height)


def _of_cost_model(tenant: CostModelTenant) -> _Recipe:
    """A tenant without a bill: its days are made from a cost model and from metrics."""

    @cache
    def given() -> Inputs:
        return Inputs(tenant, rules.resolve(tenant), empty(USAGE))

    def make(work: Work, summary: Summary) -> Summary:
        from engine import construct  # noqa: PLC0415  # it takes long to import

        return construct.gather(work, tenant, summary)

    def again(work: Work, summary: Summary) -> Summary:
        from engine import construct  # noqa: PLC0415  # it takes long to import

        return construct.rebuild(work, tenant, summary, redo=work.request.force)

    def known(store: state.State, days: dict[state.DayKey, state.Day]) -> _Known:
        failed = cost_days.failed_metrics(store, tenant)
        # Who there is on a day is said by its usage: what was found on other days changes nothing.
        facts = DayFacts(empty(RESOURCES), empty(IDENTITIES), empty(USAGE), frozenset())

        def decisions(work: Work) -> Callable[[str], _Decide]:
            def decided(billing: pl.DataFrame, days: Sequence[state.Day]) -> _Found:
                # What fails, fails for the one cluster that there is, under the id that it had when the day was made.
                clusters = billing["resource_id"].unique()
                lacking = {
                    day.charge_date: frozenset(
                        (metric, cluster) for metric in failed.get(day.charge_date, ()) for cluster in clusters
                    )
                    for day in days
                }
                return _by_products(work, billing, given(), facts, lacking)

            return lambda _billing_period: decided

        return _Known(_causes_of_days(store, given(), days, lambda day: sorted(failed.get(day, ()))), decisions)

    return _Recipe(
        gathering=(("gather", make),),
        again=(("construct", again),),
        replaying=(("construct", again),),
        known=known,
        entities=lambda work, summary: _entities_of_cost_model(work, tenant, summary),
    )


def _by_products(
    work: Work,
    billing: pl.DataFrame,
    given: Inputs,
    facts: DayFacts,
    failed: Mapping[str, frozenset[tuple[str, str]]],
) -> _Found:
    """BILLING of some days, and what failed on each -> what is decided, with the usage of these days."""
    usage = pl.concat(usage_of(work, day) for day in failed)
    found = decide_product_days(billing, given, facts._replace(usage=usage), failed)
    return _Found(found.lines, found.decided, [found.unknown_products])


def _facts(store: state.State, tenant: ConfluentTenant) -> DayFacts:
    """What is known of a tenant's entities; usage and failures are those of a day."""
    resources, identities_ = (gather_state.entities(store, table, tenant.id) for table in (RESOURCES, IDENTITIES))
    return DayFacts(resources, identities_, empty(USAGE), frozenset())


def run_tenant(config: Config, tenant: Tenant, request: Request, hooks: Hooks, run_id: str) -> Summary:
    """Gather, calculate, check and emit one tenant under its claim, and log the run.

    `recalculate` starts from the stored billing and redoes every day that is asked for. Raises the ProrataError of the
    first step that failed, with the faults that were found before it; what was published before stands, the rest is as
    it was. What failed without keeping the later steps from their work is in the summary.
    """
    with state.open_state(config.root) as store, state.claim(store, tenant.id, hooks.now()):
        known = credentials.known(config.tenants, hooks.environment)
        work = Work(config.root, tenant, request, hooks, store, config.max_parallel_days, [], [], [], set(), known)
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
            with checks_meanwhile(config.root, tenant.id, hooks.stop) as checks:
                for stage, step in _stages(_recipe(tenant), request, checks):
                    state.update_run(store, run_id, stage, _counts(summary))
                    summary = step(work, summary)
            summary = _with_problems(work, summary)
            status: state.Ending = "failed" if summary.faults else "done"
            told = "\n".join(summary.faults) or None
            with store.transaction():
                if request.command == "run":
                    gather_state.end_run(store, tenant.id)
                state.finish_run(store, run_id, status, _counts(summary), ended_at=hooks.now(), error=told)
        except StoppedError as error:
            _log_failure(work, run_id, summary, error)
            raise
        except ProrataError as error:
            # What failed before is often why this did, and nobody would be told of it otherwise.
            failure = together([*work.problems, error])
            _log_failure(work, run_id, summary, failure)
            if failure is error:
                raise
            raise failure from error
        except BaseException as error:
            _log_failure(work, run_id, summary, error)
            raise
    return summary._replace(warnings=tuple(work.warnings))


def _with_problems(work: Work, summary: Summary) -> Summary:
    faults = tuple(text for problem in work.problems for text in problem.faults)
    return summary._replace(faults=faults, exit_code=work.problems[0].exit_code if work.problems else 0)


def _stages(recipe: _Recipe, request: Request, checks: ChecksMeanwhile) -> Sequence[_Stage]:
    before = recipe.gathering if request.command == "run" else recipe.replaying if request.replay else recipe.again

    def calculate(work: Work, summary: Summary) -> Summary:
        return _calculate(work, recipe, summary, checks)

    def check(work: Work, summary: Summary) -> Summary:
        return _check(work, summary, checks)

    return (
        *before,
        ("calculate", calculate),
        ("entities", recipe.entities),
        ("teams", _teams),
        ("check", check),
        ("emit", _emit),
    )


def _counts(summary: Summary) -> state.RunCounts:
    return state.RunCounts(summary.days_gathered, summary.days_calculated, summary.days_removed, summary.rows_written)


def _log_failure(work: Work, run_id: str, summary: Summary, error: BaseException) -> None:
    status: state.Ending = "stopped" if isinstance(error, StoppedError | KeyboardInterrupt) else "failed"
    text = "\n".join(error.faults) if isinstance(error, ProrataError) else f"{type(error).__name__}: {error}"
    try:
        with work.store.transaction():
            # A gather that was stopped goes on, as one that was killed does. One whose run failed is over: when it is
            # tried again, hours later, what it landed may be out of date.
            # Without what the configuration lacks nothing was asked, so what an earlier run landed is gone on with.
            if status == "failed" and work.request.command == "run" and not isinstance(error, ConfigError):
                gather_state.end_run(work.store, work.tenant.id)
            state.finish_run(work.store, run_id, status, _counts(summary), ended_at=work.hooks.now(), error=text)
    except StoreError as second:
        # The first error is the one to show; a full disk, say, has both.
        work.log(f"the failure could not be logged: {second}")


def _calculate(work: Work, recipe: _Recipe, summary: Summary, checks: ChecksMeanwhile) -> Summary:
    """Days whose inputs changed -> chargeback in the lake and in the state; days that wait for inputs stay."""
    days = state.days(work.store, work.tenant.id)
    known = recipe.known(work.store, days)
    changed = _changed(work.root, work.tenant, days, known.causes)
    settled = _settled(work.root, work.store, work.tenant)
    held = _held_back(work.root, work.store, work.tenant, [days[key] for key in changed if work.request.covers(key[1])])
    for text in cost_days.told_never_asked(held):
        work.warn(text)
    settled |= {(day[:7], day) for day in held}
    due = [
        key
        for key in days
        if work.request.covers(key[1]) and key not in settled and (work.request.force or key in changed)
    ]
    kept, unbilled = _kept(work), _unbilled(work, days)
    _tell_unbilled(work, unbilled, due)
    ready = [key for key in due if is_ready(days[key]) and key[1] not in kept and key not in unbilled]
    # A day that is calculated may wait, too, for what it is to be made anew of.
    waiting = {key for key in days if work.request.covers(key[1]) and not is_ready(days[key])} | {*due} - {*ready}
    unasked = _out_of_reach(work) if waiting else set()
    stays = {key for key in waiting if key[1] in unasked}
    if waiting - stays:
        work.log(f"{counted(len(waiting - stays), 'day')} wait for inventory or metrics")
    summary = summary._replace(days_pending=len(waiting - stays), days_kept=len(stays))
    if not ready:
        return summary
    decisions = known.decisions(work)
    checks.begin(days, len(ready))
    for period in sorted({period for period, _ in ready}):
        keys = [key for key in ready if key[0] == period]
        for done in _calculate_days(work, known, decisions(period), keys, days):
            summary = summary._replace(
                days_calculated=summary.days_calculated + (done.rows is not None),
                days_unchanged=summary.days_unchanged + (done.rows is None),
                rows_written=summary.rows_written + (done.rows or 0),
            )
            checks.add(*done)
    _warn_of_unknown_products(work)
    if isinstance(work.tenant, AwsTenant) and len(ready) == len(days):
        # Only when all days were looked at is it known, as after a change of rules, which is when it is asked.
        for text in idle_pools(work.tenant, work.rules_matched):
            work.warn(text)
    return summary


def _kept(work: Work) -> set[str]:
    """Days whose usage is lost: what was calculated with it must not be calculated again without it.

    Of a cost model those, too, whose lines are lost: they could not be made again, and hold up no other day.
    """
    if isinstance(work.tenant, CostModelTenant):
        return cost_days.lost(work.root, work.store, work.tenant.id)
    if not isinstance(work.tenant, ConfluentTenant):
        return set()
    return wanted.charged_of_lost(work.root, work.store, work.tenant.id)


def _unbilled(work: Work, days: dict[state.DayKey, state.Day]) -> set[state.DayKey]:
    """Days of an API's bill whose lines are lost, and were not gathered again; those of files come with their bill."""
    if not isinstance(work.tenant, ConfluentTenant):
        return set()
    return wanted.lost_billing(work.root, work.tenant.id, days)


def _tell_unbilled(work: Work, unbilled: Collection[state.DayKey], due: Collection[state.DayKey]) -> None:
    """Days without their lines stay as they were charged; that they cannot be calculated is a fault."""
    is_replayed = "`prorata recalculate --replay` reads what is landed again"
    files = [str(work.place(BILLING, key).path(work.root)) for key in sorted(unbilled) if key in due]
    if files:
        work.problems.append(
            StoreError(fault(file, "is lost", f"the file that was published; {is_replayed}") for file in files)
        )
    if others := [key[1] for key in sorted(unbilled) if key not in due and work.request.covers(key[1])]:
        work.warn(
            f"billing of {counted(len(others), 'day')} ({', '.join(others)}) is lost: what was charged for it stays;"
            f" {is_replayed}"
        )


def _out_of_reach(work: Work) -> set[str]:
    """Days that wait for nothing that the next run would ask for."""
    if not isinstance(work.tenant, ConfluentTenant):
        return set()
    return wanted.out_of_reach(work.root, work.store, work.tenant, work.now().date())


def _settled(root: Path, store: state.State, tenant: Tenant) -> set[state.DayKey]:
    """Calculated days that are not calculated again, whatever changed: no rule is left for lines that they have."""
    if not isinstance(tenant, CostModelTenant):
        return set()
    return {(day[:7], day) for day in cost_days.without_rules(root, store, tenant)}


def held_back(root: Path, store: state.State, tenant: CostModelTenant) -> dict[str, tuple[str, ...]]:
    """Charge date -> metrics, of days that other rules would change, could they be weighed by these metrics."""
    days = state.days(store, tenant.id)
    changed = _changed(root, tenant, days, _recipe(tenant).known(store, days).causes)
    return _held_back(root, store, tenant, [days[key] for key in changed])


def _held_back(
    root: Path, store: state.State, tenant: Tenant, changed: Sequence[state.Day]
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    if not isinstance(tenant, CostModelTenant):
        return {}
    # Those that are not ready wait for an answer.
    return cost_days.never_asked(root, store, tenant, [one.charge_date for one in changed if is_ready(one)])


def idle_pools(tenant: AwsTenant, matched: Collection[str]) -> list[str]:
    """What to say of each pool that is not among the rules under which lines fell."""
    idle = [pool.name for pool in tenant.pools if f"pool:{pool.name}" not in matched]
    return [f"pool {shown(name)} matches no line of any bill yet" for name in idle]


def is_ready(day: state.Day) -> bool:
    """Whether everything that a day is calculated from is there."""
    return bool(day.billing_gathered and day.resources_gathered and day.metrics_gathered)


def _warn_of_unknown_products(work: Work) -> None:
    if not work.unknown_products:
        return
    by_product = ["product_type", "currency"]
    found = pl.concat(work.unknown_products).group_by(by_product).agg(pl.col("lines", "amount").sum()).sort(by_product)
    for product_type, currency, lines, amount in found.select(*by_product, "lines", "amount").rows():
        told = f"{counted(lines, 'line')} of {number(f'{amount:f}')} {currency}"
        by = "nobody" if isinstance(work.tenant, CostModelTenant) else "their resources, or by nobody without one"
        work.warn(f"no rule for product {shown(product_type)}: {told} borne by {by}")


def days_due(
    root: Path, store: state.State, tenant: Tenant, days: dict[state.DayKey, state.Day]
) -> set[state.DayKey]:  # fmt: skip
    """The gathered days that a run would look at again: something that their chargeback can depend on has changed.

    SourceError if a key table cannot be read.
    """
    if not any(day.chargeback_calculated for day in days.values()):
        return set(days)
    changed = _changed(root, tenant, days, _recipe(tenant).known(store, days).causes)
    held = _held_back(root, store, tenant, [days[key] for key in changed])
    return changed - _settled(root, store, tenant) - {(day[:7], day) for day in held}


def _changed(
    root: Path, tenant: Tenant, days: dict[state.DayKey, state.Day], causes: dict[state.DayKey, str]
) -> set[state.DayKey]:
    return wanted.lost_chargeback(root, tenant.id, days) | {
        key for key, day in days.items() if not day.chargeback_calculated or day.cause_digest != causes[key]
    }


def _causes_of_bills(tenant: AwsTenant, days: dict[state.DayKey, state.Day]) -> dict[state.DayKey, str]:
    """Where it is the one stored, the day is done. Where not, the day's own input digest decides."""
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


def _causes_of_days(
    store: state.State,
    given: Inputs,
    days: Mapping[state.DayKey, state.Day],
    facts: Callable[[str], Sequence[str]],
) -> dict[state.DayKey, str]:
    """A day's billing, usage and whatever else is known of it (`facts`, by charge date), under the rules."""
    common = _common_cause(given.tenant, given.rules)
    usage = gather_state.usage_days(store, given.tenant.id)
    causes = {}
    for key, day in days.items():
        measured = usage[day.charge_date].digest if day.charge_date in usage else ""
        text = "\n".join([common, day.billing_digest, measured, *facts(day.charge_date)])
        causes[key] = hashlib.sha256(text.encode()).hexdigest()
    return causes


def _common_cause(tenant: Tenant, resolved: rules.Rules) -> str:
    """A digest of what all days have in common: the kernel, owners, rules, and the content of key tables."""
    common = hashlib.sha256(f"kernel {allocate.KERNEL_VERSION}\n".encode())
    common.update(tenant.model_dump_json(include={"id", "ecosystem", "owner", "operator"}).encode())
    common.update(repr([resolved.pools, sorted(resolved.ladders.items()), sorted(resolved.products.items())]).encode())
    for path in tenant.keys if isinstance(tenant, AwsTenant) else ():
        common.update(_file_digest(path).encode())
    return common.hexdigest()


def _file_digest(path: Path, expected: str = "a key table") -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(fault(str(path), f"cannot be read ({error.strerror})", expected)) from error


class _Done(NamedTuple):
    """A day that is calculated; `rows` is None if its inputs had not changed."""

    key: state.DayKey
    rows: int | None


def _calculate_days(
    work: Work,
    known: _Known,
    decide_days: _Decide,
    keys: Sequence[state.DayKey],
    days: dict[state.DayKey, state.Day],
) -> Iterator[_Done]:
    """Days of one billing period, in any order: a few at a time, and of small ones some in one calculation."""
    waiting = deque(days[key] for key in keys)
    most, seen = -(-len(keys) // work.workers), list[float]()

    def handed_out(free: int) -> set[Future[_Ended]]:
        rows_per_line = max(seen, default=_ROWS_A_LINE)
        batches = (_next_days(waiting, most, rows_per_line, known.entities) for _ in range(free) if waiting)
        return {pool.submit(_calculate_some, work, decide_days, batch, known.causes) for batch in batches}

    with ThreadPoolExecutor(work.workers, thread_name_prefix="day") as pool:
        # No more days are handed out than can run, so that a stop waits for those at most.
        running = handed_out(work.workers)
        done = 0
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    ended = future.result()
                    for one in ended.done:
                        yield one
                        done += 1
                        work.hooks.progress(f"chargeback {keys[0][0]}", done, len(keys))
                        if one.rows is not None:
                            seen.append(one.rows / max(days[one.key].billing_rows, 1))
                    if ended.error is not None:
                        raise ended.error
                work.stop_if_asked()
                running |= handed_out(work.workers - len(running))
        finally:
            wait(running)


_ROWS_AT_ONCE = 50_000
"""About how many rows small days are to have that are calculated in one. A day alone takes as long as 20,000 rows."""
_ROWS_A_LINE = 1_000
"""How many rows a line has, as long as nothing is known of a tenant's days: then few lines are calculated in one."""


def _next_days(waiting: deque[state.Day], most: int, rows_per_line: float, entities: int) -> list[state.Day]:
    """The next of the days that wait, taken out of them: one, or as many as are small together.

    A day has as many rows as it had, or, if it was never calculated, so many for each of its lines; and so many
    entities are looked at for it.
    """
    batch, rows = list[state.Day](), 0.0
    while waiting and len(batch) < most:
        lines = waiting[0].billing_rows
        rows += max(waiting[0].chargeback_rows or lines * rows_per_line, lines) + entities
        if batch and rows > _ROWS_AT_ONCE:
            break
        batch.append(waiting.popleft())
    return batch


def _period_cost(work: Work, tenant: AwsTenant, given: Inputs, billing_period: str) -> pl.DataFrame:
    billing = lake.scan(work.root, BILLING, tenant.id, billing_period)
    with lake.reading(work.root, BILLING, tenant.id):
        return direct_cost(identities.with_owner(billing, tenant.owner), given)


class _Ended(NamedTuple):
    """What came of some days: those that are done, and the error with which the next one failed, if one did."""

    done: list[_Done]
    error: ProrataError | None = None


def _calculate_some(
    work: Work, decide_days: _Decide, days: Sequence[state.Day], causes: Mapping[state.DayKey, str]
) -> _Ended:
    """Days from the lake to the lake, one after the other, though they may be calculated in one.

    A failure is recorded with its day, whose stored chargeback stays.
    """
    found = _calculated_together(work, decide_days, days) if len(days) > 1 else None
    done = list[_Done]()
    for day in days:
        if done and work.hooks.stop.is_set():
            break
        key = _key(day)
        try:
            one = _calculated(work, decide_days, day) if found is None else found[key]
            done.append(_put(work, day, causes[key], one))
        except ProrataError as error:
            # A full disk, say, takes no record either; the error itself is what counts.
            with suppress(StoreError):
                state.fail_day(work.store, work.tenant.id, key, str(error))
            return _Ended(done, error)
    return _Ended(done)


def _key(day: state.Day) -> state.DayKey:
    return day.billing_period, day.charge_date


class _Calculated(NamedTuple):
    """A day that is calculated and not yet stored.

    `rows`: its CHARGEBACK, in chunks that are made as they are written; None if its inputs had not changed.
    """

    input_digest: str
    rows: Iterable[pl.DataFrame | Blocks] | None
    lines: pl.DataFrame
    empty_keys: pl.DataFrame


def _calculated(work: Work, decide_days: _Decide, day: state.Day) -> _Calculated:
    measures = MEASURES_OF[work.tenant.ecosystem]
    found = decide_days(lake.read_encoded(work.root, work.place(BILLING, _key(day))), [day])
    work.unknown_products.extend(found.unknown_products)
    codes, decided = encoded(found.lines.select(allocate.OF_LINES)), found.decided
    input_digest = _input_digest(day.billing_digest, codes, decided)
    if _is_done(work, day, input_digest):
        return _Calculated(input_digest, None, found.lines, decided.empty_keys)
    split = allocate.split(codes, allocate.encoded(decided.plan, codes), measures=measures)
    rows = _checked_rows(split, codes, measures, _calculation_id(input_digest))
    return _Calculated(input_digest, rows, found.lines, decided.empty_keys)


def _calculated_together(
    work: Work, decide_days: _Decide, days: Sequence[state.Day]
) -> dict[state.DayKey, _Calculated] | None:
    """Small days of a billing period, each as if it were alone, in about as many queries as one of them takes.

    None if one of them cannot be calculated, which is then to fail alone, or if they are not small.
    """
    try:
        return _together(work, decide_days, days)
    except ProrataError:
        return None


def _together(work: Work, decide_days: _Decide, days: Sequence[state.Day]) -> dict[state.DayKey, _Calculated] | None:
    measures = MEASURES_OF[work.tenant.ecosystem]
    charge_dates = {_key(day): date.fromisoformat(day.charge_date) for day in days}
    billing = {key: lake.read(work.root, work.place(BILLING, key)) for key in charge_dates}
    if not all((lines["charge_date"] == charge_dates[key]).all() for key, lines in billing.items()):
        return None
    found = decide_days(pl.concat(billing.values()), days)
    of_days = by_day(found.lines, found.decided)
    made, due = dict[state.DayKey, _Calculated](), list[state.DayKey]()
    for day in days:
        key = _key(day)
        lines, decided = of_days[charge_dates[key]]
        input_digest = _input_digest(day.billing_digest, lines, decided)
        made[key] = _Calculated(input_digest, None, lines, decided.empty_keys)
        if not _is_done(work, day, input_digest):
            due.append(key)
    if due:
        lines = pl.concat(made[key].lines for key in due)
        split = allocate.split(lines, found.decided.plan, measures=measures)
        if split.rows["_fan"].sum() >= lake.ROW_GROUP_ROWS:
            return None
        chunks = [allocate.whole(chunk) for chunk in _checked_rows(split, lines, measures, "")]
        rows = pl.concat(chunks).partition_by("charge_date", as_dict=True, maintain_order=True)
        for key in due:
            calculation_id = pl.lit(_calculation_id(made[key].input_digest))
            todays = rows[charge_dates[key],].with_columns(calculation_id=calculation_id)
            made[key] = made[key]._replace(rows=[encoded(todays)])
    work.unknown_products.extend(found.unknown_products)
    return made


def _calculation_id(input_digest: str) -> str:
    return input_digest[:16]


def _is_done(work: Work, day: state.Day, input_digest: str) -> bool:
    """Whether the stored chargeback of a day is what would be calculated, and need not be for another reason."""
    if work.request.force or input_digest != day.input_digest:
        return False
    return _is_stored(work, work.place(CHARGEBACK, _key(day)), day)


def _put(work: Work, day: state.Day, cause: str, found: _Calculated) -> _Done:
    """A calculated day -> the lake and the state."""
    key = _key(day)
    if found.rows is None:
        state.commit_day(work.store, _as_calculated(day, cause))
        return _Done(key, None)
    place, calculation_id = work.place(CHARGEBACK, key), _calculation_id(found.input_digest)
    written = lake.write(place.temporary(work.root), CHARGEBACK, found.rows, calculation_id=calculation_id)
    # From here to the commit the lake and the state may differ, and sizes do not always tell.
    state.begin_day(work.store, work.tenant.id, key)
    lake.publish(work.root, place, written)
    empty_key_rows = _publish_empty_keys(work, key, found.lines, found.empty_keys)
    state.commit_day(
        work.store,
        state.CalculatedDay(
            work.tenant.id,
            *key,
            cause,
            found.input_digest,
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


def _is_stored(work: Work, place: lake.Place, day: state.Day) -> bool:
    path = place.path(work.root)
    return path.exists() and path.stat().st_size == day.chargeback_bytes


def _as_calculated(day: state.Day, cause: str) -> state.CalculatedDay:
    kept = {name: getattr(day, name) for name in state.CalculatedDay._fields if name != "cause_digest"}
    return state.CalculatedDay(**kept, cause_digest=cause)


def _checked_rows(
    split: allocate.Split, lines: pl.DataFrame, measures: tuple[str, ...], calculation_id: str
) -> Iterator[Blocks]:
    """The day's CHARGEBACK in chunks, each checked before it is written: order, keys, nulls, every line's sum."""
    offset = 0
    for chunk in allocate.chunks(split, lake.ROW_GROUP_ROWS):
        found = allocate.fan_out(chunk, measures=measures, calculation_id=calculation_id)
        count = int(chunk.rows["_lead"].sum())
        check_ordered(found, CHARGEBACK)
        allocate.check_line_sums(lines.slice(offset, count), found, measures)
        offset += count
        yield found
    if offset != lines.height:
        raise LedgerError(
            fault("table chargeback", f"{lines.height - offset} line(s) without a rule", "one rule per line")
        )


def _publish_empty_keys(work: Work, key: state.DayKey, lines: pl.DataFrame, found: pl.DataFrame) -> int:
    place = work.place(EMPTY_KEYS, key)
    if not found.height:
        lake.withdraw(work.root, place)
        return 0
    day = decoded(lines.lazy().select("tenant_id", "billing_period", "charge_date").head(1)).collect()
    rows = found.join(day, how="cross").select(EMPTY_KEYS.columns).sort(EMPTY_KEYS.key)
    written = lake.write(place.temporary(work.root), EMPTY_KEYS, [check_rows(rows, EMPTY_KEYS)])
    lake.publish(work.root, place, written)
    return rows.height


def _entities_of_bills(work: Work, tenant: AwsTenant, given: Callable[[], Inputs], summary: Summary) -> Summary:
    """Identities and resources, from the whole billing of the tenant; only if that, or what names owners, changed."""
    days = state.days(work.store, tenant.id)
    causes = [_common_cause(tenant, rules.resolve(tenant)), *(day.billing_digest for day in days.values())]
    cause = hashlib.sha256("\n".join(causes).encode()).hexdigest()
    if _entities_are_of(work, cause):
        return summary
    billing = lake.scan(work.root, BILLING, tenant.id)
    with lake.reading(work.root, BILLING, tenant.id):
        # Many lines have the same tags.
        tagged = billing.group_by("tags").agg(_first=pl.col("charge_date").min(), _last=pl.col("charge_date").max())
        seen = (
            identities.with_owner(tagged, tenant.owner)
            .filter(pl.col("owner") != "")
            .group_by("owner")
            .agg(first_seen_at=pl.col("_first").min(), last_seen_at=pl.col("_last").max())
            .collect(engine="streaming")
        )
        resources = identities.resources(billing)
    found = identities.identities(tenant, seen, _named_by_rules(given()))
    _put_entities(work, found, resources)
    unknown = found.filter(pl.col("type") == "unknown_owner")["id"]
    if tenant.owner.identities and unknown.len():
        names = ", ".join(shown(name) for name in unknown.head(10))
        work.warn(f"{unknown.len()} owner(s) that the configuration does not name, kept as they are: {names}")
    state.commit_entities(work.store, tenant.id, cause)
    return summary


def _entities_are_of(work: Work, cause: str) -> bool:
    stored = all(lake.current(work.root, table, work.tenant.id).exists() for table in (IDENTITIES, RESOURCES))
    return stored and state.entities_cause(work.store, work.tenant.id) == cause


def _put_entities(work: Work, found: pl.DataFrame, resources: pl.DataFrame) -> None:
    lake.put_current(work.root, IDENTITIES, work.tenant.id, check_rows(found, IDENTITIES))
    lake.put_current(work.root, RESOURCES, work.tenant.id, check_rows(resources, RESOURCES))


def _named_by_rules(given: Inputs) -> set[str]:
    """The identities that key tables and percentages may charge."""
    rungs = [rung for ladder in given.rules.ladders.values() for rung in ladder]
    return {*given.usage["principal"], *(name for rung in rungs for name in rung.percentages or {})}


def _entities_of_products(work: Work, tenant: ConfluentTenant, summary: Summary) -> Summary:
    """What the inventories say, and the principals that only metrics name, as they may be shown."""
    facts = _facts(work.store, tenant)
    usage = gather_state.usage_days(work.store, tenant.id).values()
    causes = [tenant.operator or "", *map(digests.digest, facts[:2]), *(day.digest for day in usage)]
    cause = hashlib.sha256("\n".join(causes).encode()).hexdigest()
    if _entities_are_of(work, cause):
        return summary
    measured = lake.scan(work.root, USAGE, tenant.id)
    with lake.reading(work.root, USAGE, tenant.id):
        found = identities.with_principals(facts.identities, measured, tenant.id, operator=names.operator(tenant))
    _put_entities(work, found, facts.resources)
    state.commit_entities(work.store, tenant.id, cause)
    return summary


def _entities_of_cost_model(work: Work, tenant: CostModelTenant, summary: Summary) -> Summary:
    """The cluster and what answers name in it; whom the configuration names, and whom metrics do."""
    resources, named = cost_days.entities(work.store, tenant)
    usage = gather_state.usage_days(work.store, tenant.id).values()
    causes = [tenant.operator or "", *map(digests.digest, (resources, named)), *(day.digest for day in usage)]
    cause = hashlib.sha256("\n".join(causes).encode()).hexdigest()
    if _entities_are_of(work, cause):
        return summary
    measured = lake.scan(work.root, USAGE, tenant.id)
    with lake.reading(work.root, USAGE, tenant.id):
        found = identities.with_principals(empty(IDENTITIES), measured, tenant.id, operator=names.operator(tenant))
    # Those stand for owners in an inventory, which such a tenant has not.
    found = found.filter(~pl.col("id").is_in(sorted(identities.SENTINELS)))
    shown_as = found.join(named.rename({"display_name": "_name"}), on="id", how="left", validate="1:1")
    _put_entities(
        work,
        shown_as.with_columns(display_name=pl.coalesce("_name", "display_name")).select(IDENTITIES.columns),
        resources,
    )
    state.commit_entities(work.store, tenant.id, cause)
    return summary


def _teams(work: Work, summary: Summary) -> Summary:
    """Tags and teams, from the configuration, tag tables and identities; only if one of them changed.

    No day depends on them, so none is calculated or emitted again.
    """
    cause = _teams_cause(work)
    stored = all(lake.current(work.root, table, work.tenant.id).exists() for table in (TAGS, TEAMS))
    if stored and state.teams_cause(work.store, work.tenant.id) == cause:
        return summary
    tags = check_rows(tag_table.read_tag_tables(work.tenant.teams.tags, work.tenant.id), TAGS)
    known = lake.read_current(work.root, IDENTITIES, work.tenant.id)
    found = check_rows(teams.teams(work.tenant, known, tags), TEAMS)
    lake.put_current(work.root, TAGS, work.tenant.id, tags)
    lake.put_current(work.root, TEAMS, work.tenant.id, found)
    state.commit_teams(work.store, work.tenant.id, tags.select("id", "key", "value").iter_rows(), cause)
    if work.tenant.teams.members or work.tenant.teams.tags:
        own = found.filter(~pl.col("identity_id").is_in(["", UNALLOCATED]))
        work.log(f"teams: {counted(own.height, 'payer')} in {counted(own['team'].n_unique(), 'team')}")
    return summary


def _payers(work: Work) -> pl.DataFrame:
    """What the tenant's identities are called, and their teams."""
    known, found = (lake.read_current(work.root, table, work.tenant.id) for table in (IDENTITIES, TEAMS))
    return teams.payers(known, found)


def _teams_cause(work: Work) -> str:
    """A digest of all that a tenant's tags and teams depend on."""
    known = lake.current(work.root, IDENTITIES, work.tenant.id)
    content = [
        work.tenant.teams.model_dump_json(exclude={"tags"}),
        *(_file_digest(path, "a tag table") for path in work.tenant.teams.tags),
        lake.footer(known)[0] if known.exists() else "",
    ]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _check(work: Work, summary: Summary, checks: ChecksMeanwhile) -> Summary:
    """`sql/checks` over the days whose stored chargeback has not passed them yet; LedgerError with what offends.

    A day counts as checked by its output digest, so that one that failed, or that a killed run did not get to, is
    checked again.
    """
    days = state.days(work.store, work.tenant.id)
    unchecked = [
        key for key, day in days.items() if day.chargeback_calculated and day.checked_digest != day.output_digest
    ]
    # Nobody can say of a day whose lines are lost whether it adds up.
    unbilled = _unbilled(work, days) if unchecked else set[state.DayKey]()
    keys = [key for key in unchecked if key not in unbilled]
    if not keys:
        return summary
    # DuckDB takes as long to import as a run with nothing to do takes in all.
    from engine import warehouse  # noqa: PLC0415  # see above

    periods, dates = [period for period, _ in keys], [date.fromisoformat(day) for _, day in keys]
    covered = (min(periods), max(periods)), (min(dates), max(dates))
    # Between two days that are calculated there may be one that waits, for metrics or to be asked for, or is lost.
    waiting = [key for key, day in days.items() if not day.chargeback_calculated or key in unbilled]
    lost = [date.fromisoformat(key[1]) for key in unbilled if not work.place(BILLING, key).path(work.root).exists()]
    is_lost = (pl.col("table_name") == "billing") & pl.col("charge_date").is_in(lost)
    unlogged = _unlogged(work, days)
    waiting += [key for _, key in unlogged if key not in days]
    waiting += checks.passed()
    log = pl.concat([file_log(work.store, work.tenant.id).filter(~is_lost), _as_they_lie(work, unlogged)])
    with checks.opened() as connection:
        warehouse.check(connection, work.tenant.id, *covered, log, waiting)
    state.mark_checked(work.store, work.tenant.id, keys)
    return summary


def _unlogged(work: Work, days: Mapping[state.DayKey, state.Day]) -> list[tuple[Table, state.DayKey]]:
    """Files of days made from an API's answers, of which the state that knew them was lost, or is an older one.

    They are no fault of what was calculated now: who makes such days tells of them.
    """
    if isinstance(work.tenant, AwsTenant):
        return []
    billing, chargeback = (lake.sizes(work.root, table, work.tenant.id) for table in (BILLING, CHARGEBACK))
    return [
        *((BILLING, key) for key in billing if key not in days),
        *((CHARGEBACK, key) for key in chargeback if key not in days or days[key].chargeback_rows is None),
    ]


def _as_they_lie(work: Work, files: Iterable[tuple[Table, state.DayKey]]) -> pl.DataFrame:
    """What `file_log` says of day files, as if the state knew them."""
    rows = [
        (table.name, key[0], date.fromisoformat(key[1]), lake.rows_in(work.place(table, key).path(work.root)))
        for table, key in files
    ]
    return pl.DataFrame(rows, schema=_FILE_LOG, orient="row")


_FILE_LOG = {"table_name": pl.String, "billing_period": pl.String, "charge_date": pl.Date, "rows": pl.Int64}


def file_log(store: state.State, tenant_id: str) -> pl.DataFrame:
    """What the state says lies in the lake: table_name, billing_period, charge_date, rows."""
    rows = [
        (table, period, date.fromisoformat(charge_date), count)
        for (period, charge_date), day in state.days(store, tenant_id).items()
        for table, count in (("billing", day.billing_rows), ("chargeback", day.chargeback_rows))
        if count is not None
    ]
    return pl.DataFrame(rows, schema=_FILE_LOG, orient="row")


def _emit(work: Work, summary: Summary) -> Summary:
    """Days whose output digest an emitter has not had -> results.db. A failed day does not stop the others."""
    if "sqlite" not in work.tenant.emitters:
        return summary
    failed: list[str] = []
    with sqlite.open_results(work.root) as results:
        if not sqlite.holds(results, work.tenant.id):
            state.forget_emissions(work.store, work.tenant.id, "sqlite")
        sqlite.put_payers(results, work.tenant.id, _payers(work))
        pending = state.pending(work.store, work.tenant.id, "sqlite")
        for number, day in enumerate(pending, start=1):
            work.stop_if_asked()
            failed += _emit_day(work, results, day)
            work.hooks.progress("emitting to results.db", number, len(pending))
    if failed:
        raise EmissionError(failed)
    return summary._replace(days_emitted=len(pending))


def _emit_day(work: Work, results: sqlite.Results, day: state.PendingDay) -> list[str]:
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


def _given_to_sqlite(work: Work, results: sqlite.Results, day: state.PendingDay) -> int:
    """How many facts the day has in results.db now."""
    if day.output_digest is None:
        sqlite.withdraw_day(results, work.tenant.id, day.billing_period, day.charge_date)
        return 0
    stored = lake.read(work.root, work.place(CHARGEBACK, (day.billing_period, day.charge_date)))
    return sqlite.emit_day(results, work.tenant.id, day.billing_period, day.charge_date, stored)
