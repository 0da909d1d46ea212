"""Whether a run would go well: bills, tables, teams, pools and the store of a tenant, looked at without a write.

Bills that were read before and have not changed are not read again; others are read whole, as a run would, so that a
bad value in the last line is found before a run meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from engine import cost_days, credentials, decide, gather_state, lake, pipeline, rules, state, teams, wanted, warehouse
from engine.config import AwsTenant, Config, ConfluentTenant, CostModelTenant, Tenant
from engine.errors import ConfigError, LedgerError, ProrataError, SourceError, fault, shown
from engine.frames import BILLING, IDENTITIES, USAGE, empty
from engine.sources import aws_cur, tag_table
from engine.text import counted, printable


class Finding(NamedTuple):
    """What is in order (ok), may be meant otherwise (warning) or is wrong (error, with the exit code of its kind)."""

    tenant_id: str
    level: Literal["ok", "warning", "error"]
    text: str
    exit_code: int = 0


def check(config: Config, tenant: Tenant, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings as they are made: bills or credentials, key tables, teams, store, pools. Errors are findings.

    The network is asked for nothing.
    """
    matched: set[str] = set()
    if isinstance(tenant, AwsTenant):
        # The default binds the step of this turn; mypy cannot tell the type of such a lambda.
        for step in (_bills, _keys):
            yield from _as_findings(tenant, lambda step=step: step(config.root, tenant, matched))  # type: ignore[misc]
    elif isinstance(tenant, ConfluentTenant):
        yield from _credentials(tenant, environment)
        if tenant.metrics is None:
            yield _warning(tenant, "no metrics are configured: nothing is split by usage")
        yield from _as_findings(tenant, lambda: _gathering(config.root, tenant))
    else:
        yield from _credentials(tenant, environment)
        yield from _as_findings(tenant, lambda: _samples(config.root, tenant))
    yield from _as_findings(tenant, lambda: _teams(config.root, tenant))
    yield from _as_findings(tenant, lambda: _stored(config.root, tenant, matched))
    if isinstance(tenant, AwsTenant):
        yield from _pools(tenant, matched)


def _as_findings(tenant: Tenant, step: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a step finds; an error that ends it is a finding too."""
    try:
        yield from step()
    except ProrataError as error:
        yield from _errors(tenant, error)


def _ok(tenant: Tenant, text: str) -> Finding:
    return Finding(tenant.id, "ok", text)


def _warning(tenant: Tenant, text: str) -> Finding:
    return Finding(tenant.id, "warning", text)


def _errors(tenant: Tenant, error: ProrataError) -> Iterator[Finding]:
    # A finding names its tenant already.
    own = f"tenant {tenant.id}: "
    return (Finding(tenant.id, "error", text.removeprefix(own), error.exit_code) for text in error.faults)


def _credentials(tenant: Tenant, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every variable that the tenant names; not whether what is in it opens anything."""
    if faults := credentials.faults(tenant, environment):
        yield from _errors(tenant, ConfigError(faults))
    else:
        yield _ok(tenant, "credentials: every variable is set")


def _gathering(root: Path, tenant: ConfluentTenant) -> Iterator[Finding]:
    """Whether the last gather went well."""
    with state.open_state(root, write=False) as store:
        last, suspended = gather_state.last_gather(store, tenant.id), wanted.suspension(store, tenant.id)
    if suspended:
        yield _warning(tenant, f"{suspended}; `prorata run --force` tries again")
    elif last is None:
        yield _ok(tenant, "gather: nothing is gathered yet")
    elif last.status == "done":
        yield _ok(tenant, f"gather: {last.started_at}, {last.first_day} to before {last.end_day}")
    else:
        told = f" ({last.error.splitlines()[0]})" if last.error else ""
        yield _warning(tenant, f"gather: {last.started_at} is {last.status}{told}")


def _samples(root: Path, tenant: CostModelTenant) -> Iterator[Finding]:
    """Whether all samples came of all days, and whether their cost model is the one that holds now."""
    with state.open_state(root, write=False) as store:
        known = cost_days.Known(root, store, tenant, (date.min, date.max))
        ruleless = cost_days.without_rules(root, store, tenant)
        only_there = wanted.only_in_lake(root, store, tenant.id)
        held = pipeline.held_back(root, store, tenant)
    found = cost_days.incomplete(tenant, known.day_metrics)
    for text in cost_days.told_incomplete(found):
        yield _warning(tenant, text)
    if older := [day for day in known.made if known.is_of_older_model(day)]:
        span = cost_days.told_span(older)
        yield _warning(
            tenant, f"cost model: {span} were made of an older cost model; `prorata plan` says what becomes of them"
        )
    kept = {day: gone for day, gone in ruleless.items() if not (known.has_changed(day) and known.can_be_made(day))}
    for text in (*cost_days.told_without_rules(kept), *cost_days.told_never_asked(held)):
        yield _warning(tenant, f"cost model: {text}")
    lost = {day for day in known.lost if not known.can_be_made(day)} - only_there
    for text in (*cost_days.told_unknown(only_there), *cost_days.told_lost(lost)):
        yield _warning(tenant, text)
    given_up = cost_days.made_without(tenant, known.day_metrics, known.made)
    for text in cost_days.told_given_up(given_up):
        yield _warning(tenant, text)
    of_first = known.of_first_samples()
    for text in cost_days.told_given_up(of_first, "those in the first samples bear it"):
        yield _warning(tenant, text)
    if not found and not given_up and not of_first:
        yield _ok(tenant, "samples: none are missing")


def _bills(root: Path, tenant: AwsTenant, matched: set[str]) -> Iterator[Finding]:
    """Every bill on disk: its manifest and files are there, and what is new in it can be read."""
    with state.open_state(root, write=False) as store:
        loaded = state.loaded_assemblies(store, tenant.id)
    assemblies, faults = aws_cur.survey(tenant.source.path, tenant.source.report)
    if faults:
        yield from _errors(tenant, SourceError(faults))
    for assembly in assemblies:
        bill = (
            f"bill {assembly.billing_period}, assembly {assembly.assembly_id}, {counted(len(assembly.files), 'file')}"
        )
        for text in assembly.warnings:
            yield _warning(tenant, text)
        known = loaded.get(assembly.billing_period)
        try:
            if known is not None and known.fingerprint == aws_cur.fingerprint(assembly):
                yield _ok(tenant, f"{bill}: read before, unchanged")
                continue
            load = aws_cur.load(assembly, tenant.id)
            _match(tenant, load.billing.lazy(), matched)
        except ProrataError as error:
            yield from _errors(tenant, error)
            continue
        for text in load.warnings:
            yield _warning(tenant, text)
        amounts = ", ".join(f"{amount:f} {currency}" for currency, amount in sorted(load.amounts.items()))
        yield _ok(tenant, f"{bill}: {counted(load.lines, 'line')}, {amounts or 'nothing billed'}")


def _match(tenant: AwsTenant, billing: pl.LazyFrame, matched: set[str]) -> None:
    """Add the rules that lines of this billing fall under."""
    given = decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE))
    matched.update(
        decide.matched(billing, given).select(pl.col("rule_id").unique()).collect(engine="streaming")["rule_id"]
    )


def _keys(_root: Path, tenant: AwsTenant, _matched: set[str]) -> Iterator[Finding]:
    """The key tables, and whether they have the keys that pools ask for."""
    if not tenant.keys:
        return
    usage = pipeline.inputs(tenant).usage
    keys = sorted(usage["metric"].unique())
    tables, rows = counted(len(tenant.keys), "key table"), counted(usage.height, "row")
    yield _ok(tenant, f"{tables}: {rows}, {counted(len(keys), 'key')}: {_listed(keys)}")
    for pool, key in _keys_asked(tenant):
        if key not in keys:
            yield _warning(tenant, f"pool {shown(pool)}: key {shown(key)} is in no key table")


def _keys_asked(tenant: AwsTenant) -> list[tuple[str, str]]:
    """(pool, key) of every key that a rung of one of the tenant's pools weighs by."""
    resolved = rules.resolve(tenant)
    own = {f"pool:{pool.name}": pool.name for pool in tenant.pools}
    rungs = [
        (own[pool.rule_id], rung)
        for pool in resolved.pools
        if pool.rule_id in own
        for part in pool.parts
        for rung in resolved.ladders[part.ladder]
    ]
    asked = [(pool, key) for pool, rung in rungs for key in ([rung.key] if rung.key else sorted(rung.keys or {}))]
    return list(dict.fromkeys(asked))


def _teams(root: Path, tenant: Tenant) -> Iterator[Finding]:
    """The tag tables; and what of them and of the table of teams concerns nobody that the last run knew."""
    tags = tag_table.read_tag_tables(tenant.teams.tags, tenant.id)
    if tenant.teams.tags:
        yield _ok(tenant, f"{counted(len(tenant.teams.tags), 'tag table')}: {counted(tags.height, 'tag')}")
    known = teams.current(lake.read_current(root, IDENTITIES, tenant.id))
    if known.is_empty():
        return
    strangers = tags.filter(pl.col("key") == teams.KEY).join(known, on="id", how="anti")["id"]
    if strangers.len():
        names = _listed([shown(name) for name in strangers])
        yield _warning(tenant, f"teams: {strangers.len()} tagged that no identity is named: {names}")
    for number, row in enumerate(tenant.teams.members):
        if not known.select(teams.fits(row).any()).item():
            yield _warning(tenant, f"teams: row {number + 1}, of team {shown(row.team)}, fits no identity yet")


def _listed(names: list[str], limit: int = 10) -> str:
    rest = [f"{len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *rest]) or "none"


def _stored(root: Path, tenant: Tenant, matched: set[str]) -> Iterator[Finding]:
    """The store: it can be read, and `sql/checks` find nothing in the whole of the tenant's lake.

    Days that are still to be calculated add up to nothing yet, and are counted only.
    """
    with state.open_state(root, write=False) as store:
        days = state.days(store, tenant.id)
        log = pipeline.file_log(store, tenant.id)
    if not days:
        yield _ok(tenant, "store: nothing is stored yet")
        return
    if isinstance(tenant, AwsTenant):
        with lake.reading(root, BILLING, tenant.id):
            _match(tenant, lake.scan(root, BILLING, tenant.id), matched)
    waiting = [key for key, day in days.items() if not day.chargeback_calculated]
    calculated = days.keys() - waiting
    # Everything there is, not only what the state knows of: a day file too many lies outside that, maybe.
    span = date.min, date.max
    with warehouse.open_lake(root, views=warehouse.CHECKED) as connection:
        wrong = warehouse.run_checks(connection, tenant.id, ("0000-00", "9999-99"), span, log, waiting)
    for one in wrong:
        text = fault(f"check {one.check}", f"{counted(one.rows, 'row')}, for example {printable(one.example)}", "none")
        yield Finding(tenant.id, "error", text, LedgerError.exit_code)
    if calculated and not wrong:
        bills = counted(len({period for period, _ in calculated}), "bill")
        yield _ok(tenant, f"store: {counted(len(calculated), 'day')} of {bills}, all checks pass")
    if waiting:
        yield _warning(tenant, f"store: {counted(len(waiting), 'day')} more to calculate")


def _pools(tenant: AwsTenant, matched: set[str]) -> Iterator[Finding]:
    """Pools under which no line falls that is stored or was read."""
    if not matched:
        return
    for text in pipeline.idle_pools(tenant, matched):
        yield _warning(tenant, text)
