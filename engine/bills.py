"""Gathering a tenant whose bill comes in files: new or changed bills -> billing days in the lake and in the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from engine import identities, state
from engine.config import AwsTenant
from engine.errors import ContractError, ProrataError, SourceError, shown, together
from engine.frames import BILLING, check_rows
from engine.sources import aws_cur
from engine.wanted import lost_billing
from engine.work import Summary, Work, known_days, publish_billing, withdraw


def gather(work: Work, tenant: AwsTenant, summary: Summary, ready: Callable[[], None]) -> Summary:
    """New or changed bills -> billing days in the lake and in the state.

    A bill that cannot be read stays as it was and keeps no other from its place: its faults are told at the end of the
    run (`work.problems`), when the days of the others are calculated. `ready` raises SourceError or ContractError where
    days could not be calculated at all: then no bill is published, or the billing would be of one delivery and the
    chargeback of another.
    """
    source = tenant.source
    loaded = state.loaded_assemblies(work.store, tenant.id)
    lost = {period for period, _ in lost_billing(work.root, tenant.id, state.days(work.store, tenant.id))}
    undone = lost | state.half_published(work.store, tenant.id).keys()
    assemblies, faults = aws_cur.survey(source.path, source.report)
    problems: list[ProrataError] = [SourceError(faults)] if faults else []
    new: list[tuple[aws_cur.Assembly, str]] = []
    for assembly in assemblies:
        for warning in assembly.warnings:
            work.warn(warning)
        known = loaded.get(assembly.billing_period)
        try:
            fingerprint = aws_cur.fingerprint(assembly)
        except SourceError as error:
            problems.append(error)
            continue
        if known is None or known.fingerprint != fingerprint or assembly.billing_period in undone:
            new.append((assembly, fingerprint))
    unready = _fault_of(ready) if new else None
    problems += [unready] if unready else []
    for assembly, fingerprint in new:
        read = _read(work, tenant, assembly)
        if isinstance(read, ProrataError):
            problems.append(read)
        elif not unready:
            summary = _publish(work, tenant, assembly, fingerprint, read, summary)
    if unready:
        raise together(problems)
    work.problems.extend(problems)
    return summary


def _fault_of(ready: Callable[[], None]) -> ProrataError | None:
    try:
        ready()
    except (SourceError, ContractError) as error:
        return error
    return None


def _read(work: Work, tenant: AwsTenant, assembly: aws_cur.Assembly) -> aws_cur.Load | ProrataError:
    """The bill, or what is wrong with it."""
    work.stop_if_asked()
    work.log(f"reading bill {assembly.billing_period}, assembly {assembly.assembly_id}, {len(assembly.files)} file(s)")
    try:
        loaded = aws_cur.load(assembly, tenant.id)
        return loaded._replace(billing=check_rows(loaded.billing, BILLING, where=str(assembly.manifest)))
    except (SourceError, ContractError) as error:
        return error


def _publish(
    work: Work,
    tenant: AwsTenant,
    assembly: aws_cur.Assembly,
    fingerprint: str,
    loaded: aws_cur.Load,
    summary: Summary,
) -> Summary:
    billing = loaded.billing
    for warning in loaded.warnings:
        work.warn(warning)
    _warn_without_owners(work, tenant, assembly.billing_period, billing)
    _begin_assembly(work, assembly, fingerprint, loaded)
    known = {key for key in known_days(work) if key[0] == assembly.billing_period}
    changed, found = 0, set()
    for (charge_date,), lines in billing.partition_by("charge_date", as_dict=True, maintain_order=True).items():
        key = (assembly.billing_period, str(charge_date))
        found.add(key)
        changed += state.upsert_billing_days(work.store, [publish_billing(work, key, lines)])
        work.hooks.progress(f"billing {assembly.billing_period}", len(found), billing["charge_date"].n_unique())
    removed = withdraw(work, sorted(known - found))
    state.finish_assembly(work.store, tenant.id, assembly.billing_period)
    amounts = ", ".join(f"{amount:f} {currency}" for currency, amount in sorted(loaded.amounts.items())) or "nothing"
    work.log(
        f"bill {assembly.billing_period}: {loaded.lines} line(s) pooled to {billing.height}, {amounts};"
        f" {changed} day(s) changed, {removed} withdrawn, {loaded.days_outside_period} outside the month"
    )
    return summary._replace(days_gathered=summary.days_gathered + changed, days_removed=summary.days_removed + removed)


def _warn_without_owners(work: Work, tenant: AwsTenant, billing_period: str, billing: pl.DataFrame) -> None:
    """Say that no line of a bill has an owner: the tag may be misspelt, and all would go to pools."""
    if billing.height and not identities.any_owned(billing.lazy(), tenant.owner):
        tags = ", ".join(shown(tag) for tag in tenant.owner.tags)
        work.warn(f"bill {billing_period}: no line has an owner (tag {tags})")


def _begin_assembly(work: Work, assembly: aws_cur.Assembly, fingerprint: str, loaded: aws_cur.Load) -> None:
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
    state.begin_assembly(work.store, row, _files(loaded))


def _files(loaded: aws_cur.Load) -> Sequence[state.AssemblyFile]:
    return [
        state.AssemblyFile(str(file.path), file.size, file.mtime_ns, file.sha256, file.lines) for file in loaded.files
    ]
