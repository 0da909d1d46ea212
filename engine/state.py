"""What prorata has done: days, runs, loaded bills, emissions and claims, in <root>/state.db.

Nothing here decides: what is to be done is derived, at each run, from the digests that are stored. Times are ISO texts
that the caller gives; nothing reads a clock.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.database import Database, connected, connected_for_reading, writable_folder
from engine.errors import StoreError, TenantBusyError, fault

DayKey: TypeAlias = tuple[str, str]
"""(billing_period 'YYYY-MM', charge_date 'YYYY-MM-DD') of one day of one tenant."""
Outcome: TypeAlias = Literal["emitted", "failed", "skipped", "withdrawn"]
Ending: TypeAlias = Literal["done", "failed", "stopped"]


class State(Database):
    """An open state.db. Threads may share it; `with state.transaction():` makes several writes one."""


def open_state(root: Path, *, write: bool = True) -> State:
    """The state of a root folder, created and migrated if need be; StoreError if it cannot be used.

    With `write=False` nothing is created or changed: where there is no state yet, it reads as empty.
    """
    file = root / "state.db"
    return State(file, connected(file, "state") if write else connected_for_reading(file, "state"))


# Days


class Day(NamedTuple):
    """One row of pipeline_state. Flags are 0 or 1; digests and counts are None until the day was first calculated.

    `checked_digest` is the output digest of the chargeback that the ledger's checks last passed.
    `chargeback_calculated` 0 with an `output_digest` says: the stored chargeback is of an older bill.
    """

    ecosystem: str
    tenant_id: str
    billing_period: str
    charge_date: str
    billing_gathered: int
    resources_gathered: int
    metrics_gathered: int
    chargeback_calculated: int
    billing_digest: str
    billing_rows: int
    billing_bytes: int
    cause_digest: str | None
    input_digest: str | None
    output_digest: str | None
    calculation_id: str | None
    chargeback_rows: int | None
    chargeback_bytes: int | None
    empty_key_rows: int | None
    checked_digest: str | None
    attempts: int
    error: str | None


class BillingDay(NamedTuple):
    """One day of billing as it was published in the lake."""

    ecosystem: str
    tenant_id: str
    billing_period: str
    charge_date: str
    billing_digest: str
    billing_rows: int
    billing_bytes: int
    resources_gathered: int = 1
    metrics_gathered: int = 1


class CalculatedDay(NamedTuple):
    """One day of chargeback as it was published in the lake."""

    tenant_id: str
    billing_period: str
    charge_date: str
    cause_digest: str
    input_digest: str
    output_digest: str
    calculation_id: str
    chargeback_rows: int
    chargeback_bytes: int
    empty_key_rows: int


def days(state: State, tenant_id: str) -> dict[DayKey, Day]:
    """All days of a tenant, in the order of their keys."""
    rows = state.rows(
        """
        SELECT ecosystem, tenant_id, billing_period, charge_date,
            billing_gathered, resources_gathered, metrics_gathered, chargeback_calculated,
            billing_digest, billing_rows, billing_bytes,
            cause_digest, input_digest, output_digest, calculation_id,
            chargeback_rows, chargeback_bytes, empty_key_rows, checked_digest, attempts, error
        FROM pipeline_state
        WHERE tenant_id = ?
        ORDER BY billing_period, charge_date
        """,
        (tenant_id,),
    )
    return {(row[2], row[3]): Day(*row) for row in rows}


def upsert_billing_days(state: State, gathered: Iterable[BillingDay]) -> int:
    """Record days of billing, in one transaction; returns how many are new or differ from what was recorded.

    A day whose billing digest changed must be calculated again and starts with no attempts; its digests of the last
    calculation stay, since that chargeback is what the lake still holds.
    """
    with state.transaction() as connection:
        return connection.executemany(
            """
            INSERT INTO pipeline_state (
                ecosystem, tenant_id, billing_period, charge_date,
                billing_gathered, resources_gathered, metrics_gathered, chargeback_calculated,
                billing_digest, billing_rows, billing_bytes, attempts
            )
            VALUES (
                :ecosystem, :tenant_id, :billing_period, :charge_date,
                1, :resources_gathered, :metrics_gathered, 0,
                :billing_digest, :billing_rows, :billing_bytes, 0
            )
            ON CONFLICT (tenant_id, billing_period, charge_date) DO UPDATE SET
                ecosystem = excluded.ecosystem,
                billing_gathered = 1,
                resources_gathered = excluded.resources_gathered,
                metrics_gathered = excluded.metrics_gathered,
                chargeback_calculated = chargeback_calculated AND billing_digest = excluded.billing_digest,
                attempts = iif(billing_digest = excluded.billing_digest, attempts, 0),
                error = iif(billing_digest = excluded.billing_digest, error, NULL),
                billing_digest = excluded.billing_digest,
                billing_rows = excluded.billing_rows,
                billing_bytes = excluded.billing_bytes
            WHERE (ecosystem, billing_gathered, resources_gathered, metrics_gathered,
                    billing_digest, billing_rows, billing_bytes)
                <> (excluded.ecosystem, 1, excluded.resources_gathered, excluded.metrics_gathered,
                    excluded.billing_digest, excluded.billing_rows, excluded.billing_bytes)
            """,
            [day._asdict() for day in gathered],
        ).rowcount


def remove_days(state: State, tenant_id: str, keys: Iterable[DayKey]) -> int:
    """Forget days that a bill no longer has, in one transaction; returns how many were known.

    Their emission records stay: `pending` then asks for them to be withdrawn.
    """
    with state.transaction() as connection:
        return connection.executemany(
            "DELETE FROM pipeline_state WHERE tenant_id = ? AND billing_period = ? AND charge_date = ?",
            [(tenant_id, *key) for key in keys],
        ).rowcount


def commit_day(state: State, day: CalculatedDay) -> None:
    """Record in one transaction that a day is calculated: status, digests, counts; error and attempts are cleared.

    Raises StoreError if the day has no billing.
    """
    with state.transaction() as connection:
        changed = connection.execute(
            """
            UPDATE pipeline_state SET
                chargeback_calculated = 1,
                cause_digest = :cause_digest,
                input_digest = :input_digest,
                output_digest = :output_digest,
                calculation_id = :calculation_id,
                chargeback_rows = :chargeback_rows,
                chargeback_bytes = :chargeback_bytes,
                empty_key_rows = :empty_key_rows,
                attempts = 0,
                error = NULL
            WHERE tenant_id = :tenant_id AND billing_period = :billing_period AND charge_date = :charge_date
            """,
            day._asdict(),
        ).rowcount
        _check_known(state, changed, day.tenant_id, (day.billing_period, day.charge_date))


def begin_day(state: State, tenant_id: str, key: DayKey) -> None:
    """Record in one transaction that a day's chargeback is about to be replaced: neither calculated nor checked."""
    with state.transaction() as connection:
        connection.execute(
            """
            UPDATE pipeline_state SET chargeback_calculated = 0, checked_digest = NULL
            WHERE tenant_id = ? AND billing_period = ? AND charge_date = ?
            """,
            (tenant_id, *key),
        )


def entities_cause(state: State, tenant_id: str) -> str | None:
    """The digest of what a tenant's identities and resources were derived from; None if they never were."""
    found = state.rows("SELECT cause_digest FROM tenant_entities WHERE tenant_id = ?", (tenant_id,))
    return str(found[0][0]) if found else None


def commit_entities(state: State, tenant_id: str, cause_digest: str) -> None:
    """Record in one transaction what a tenant's identities and resources are derived from."""
    with state.transaction() as connection:
        connection.execute(
            "INSERT INTO tenant_entities (tenant_id, cause_digest) VALUES (?, ?)"
            " ON CONFLICT (tenant_id) DO UPDATE SET cause_digest = excluded.cause_digest",
            (tenant_id, cause_digest),
        )


def mark_checked(state: State, tenant_id: str, keys: Iterable[DayKey]) -> None:
    """Record in one transaction that the ledger's checks found nothing in the chargeback these days have now."""
    with state.transaction() as connection:
        connection.executemany(
            """
            UPDATE pipeline_state SET checked_digest = output_digest
            WHERE tenant_id = ? AND billing_period = ? AND charge_date = ?
            """,
            [(tenant_id, *key) for key in keys],
        )


def fail_day(state: State, tenant_id: str, key: DayKey, error: str) -> None:
    """Record in one transaction that a day could not be calculated, with the reason; counts the attempt.

    Raises StoreError if the day has no billing.
    """
    with state.transaction() as connection:
        changed = connection.execute(
            """
            UPDATE pipeline_state SET chargeback_calculated = 0, attempts = attempts + 1, error = ?
            WHERE tenant_id = ? AND billing_period = ? AND charge_date = ?
            """,
            (error, tenant_id, *key),
        ).rowcount
        _check_known(state, changed, tenant_id, key)


def _check_known(state: State, changed: int, tenant_id: str, key: DayKey) -> None:
    if not changed:
        place = f"{state.file}: tenant {tenant_id}, billing period {key[0]}"
        raise StoreError(fault(place, f"no day {key[1]}", "a day whose billing was gathered"))


# Runs


class RunCounts(NamedTuple):
    """What a run has done so far."""

    days_gathered: int = 0
    days_calculated: int = 0
    days_removed: int = 0
    rows_written: int = 0


class Run(NamedTuple):
    """One row of pipeline_runs. `status` is running, done, failed, stopped or died; who died has no `ended_at`."""

    run_id: str
    ecosystem: str
    tenant_id: str
    command: str
    started_at: str
    ended_at: str | None
    status: str
    stage: str
    days_gathered: int
    days_calculated: int
    days_removed: int
    rows_written: int
    error: str | None


def start_run(state: State, run_id: str, *, ecosystem: str, tenant_id: str, command: str, started_at: str) -> None:
    """Record a run of a tenant, whose claim the caller holds."""
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO pipeline_runs (
                run_id, ecosystem, tenant_id, command, started_at, status, stage,
                days_gathered, days_calculated, days_removed, rows_written
            )
            VALUES (?, ?, ?, ?, ?, 'running', 'start', 0, 0, 0, 0)
            """,
            (run_id, ecosystem, tenant_id, command, started_at),
        )


def update_run(state: State, run_id: str, stage: str, counts: RunCounts) -> None:
    """Record where a run is."""
    with state.transaction() as connection:
        connection.execute(
            """
            UPDATE pipeline_runs SET
                stage = :stage,
                days_gathered = :days_gathered,
                days_calculated = :days_calculated,
                days_removed = :days_removed,
                rows_written = :rows_written
            WHERE run_id = :run_id
            """,
            {"run_id": run_id, "stage": stage, **counts._asdict()},
        )


def finish_run(
    state: State, run_id: str, status: Ending, counts: RunCounts, *, ended_at: str, error: str | None = None
) -> None:
    """Record how a run ended; its stage stays the last it was in."""
    with state.transaction() as connection:
        connection.execute(
            """
            UPDATE pipeline_runs SET
                status = :status,
                ended_at = :ended_at,
                error = :error,
                days_gathered = :days_gathered,
                days_calculated = :days_calculated,
                days_removed = :days_removed,
                rows_written = :rows_written
            WHERE run_id = :run_id
            """,
            {"run_id": run_id, "status": status, "ended_at": ended_at, "error": error, **counts._asdict()},
        )


def runs(state: State, tenant_id: str, *, limit: int = 10) -> list[Run]:
    """The last runs of a tenant, newest first. A run is `running` only while the process that holds its claim lives."""
    found = _stored_runs(state, tenant_id, limit)
    doubtful = {run.run_id for run in found if run.status == "running"}
    if not doubtful or holder(state, tenant_id):
        return found
    # It may have ended in order since it was read; what is still running after its holder is gone is so for ever.
    return [
        run._replace(status="died") if run.status == "running" and run.run_id in doubtful else run
        for run in _stored_runs(state, tenant_id, limit)
    ]


def _stored_runs(state: State, tenant_id: str, limit: int) -> list[Run]:
    found = state.rows(
        """
        SELECT run_id, ecosystem, tenant_id, command, started_at, ended_at, status, stage,
            days_gathered, days_calculated, days_removed, rows_written, error
        FROM pipeline_runs
        WHERE tenant_id = ?
        ORDER BY started_at DESC, rowid DESC
        LIMIT ?
        """,
        (tenant_id, limit),
    )
    return [Run(*run) for run in found]


# Loaded bills


class Assembly(NamedTuple):
    """One load of one bill (a row of ingestion_assemblies).

    `amounts`: currency -> exact decimal text. `fingerprint` says whether the bill on disk is still the one loaded.
    `schema_differences` is anything that is JSON.
    """

    tenant_id: str
    billing_period: str
    assembly_id: str
    fingerprint: str
    manifest: str
    lines: int
    billing_rows: int
    amounts: dict[str, str]
    rounding_residue: str
    days_outside_period: int
    schema_differences: Any
    warnings: list[str]
    loaded_at: str
    status: str = "loaded"


class AssemblyFile(NamedTuple):
    """One file of a loaded bill (a row of ingestion_files)."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    lines: int


def begin_assembly(state: State, assembly: Assembly, files: Iterable[AssemblyFile]) -> None:
    """Record in one transaction a bill that was read, with its files, and whose days are published from now on."""
    texts = assembly._asdict() | {
        "amounts": _json(assembly.amounts),
        "schema_differences": _json(assembly.schema_differences),
        "warnings": _json(assembly.warnings),
    }
    with state.transaction() as connection:
        connection.execute(
            """
            DELETE FROM ingestion_assemblies
            WHERE tenant_id = :tenant_id AND billing_period = :billing_period AND status = 'publishing'
            """,
            texts,
        )
        load_id = connection.execute(
            """
            INSERT INTO ingestion_assemblies (
                tenant_id, billing_period, assembly_id, fingerprint, manifest, lines, billing_rows, amounts,
                rounding_residue, days_outside_period, schema_differences, warnings, loaded_at, status
            )
            VALUES (
                :tenant_id, :billing_period, :assembly_id, :fingerprint, :manifest, :lines, :billing_rows, :amounts,
                :rounding_residue, :days_outside_period, :schema_differences, :warnings, :loaded_at, 'publishing'
            )
            """,
            texts,
        ).lastrowid
        connection.executemany(
            "INSERT INTO ingestion_files (load_id, path, size, mtime_ns, sha256, lines) VALUES (?, ?, ?, ?, ?, ?)",
            [(load_id, *file) for file in files],
        )


def finish_assembly(state: State, tenant_id: str, billing_period: str) -> None:
    """Record in one transaction that all days of the bill are published; the load it replaces is kept as 'replaced'."""
    with state.transaction() as connection:
        for before, after in (("loaded", "replaced"), ("publishing", "loaded")):
            connection.execute(
                "UPDATE ingestion_assemblies SET status = ? WHERE tenant_id = ? AND billing_period = ? AND status = ?",
                (after, tenant_id, billing_period, before),
            )


def half_published(state: State, tenant_id: str) -> dict[str, str]:
    """Billing period -> assembly whose days a run did not get to publish all; the next run does."""
    found = state.rows(
        "SELECT billing_period, assembly_id FROM ingestion_assemblies WHERE tenant_id = ? AND status = 'publishing'",
        (tenant_id,),
    )
    return dict(found)


def loaded_assemblies(state: State, tenant_id: str) -> dict[str, Assembly]:
    """The load that counts, for each billing period of a tenant, in their order."""
    found = state.rows(
        """
        SELECT tenant_id, billing_period, assembly_id, fingerprint, manifest, lines, billing_rows, amounts,
            rounding_residue, days_outside_period, schema_differences, warnings, loaded_at, status
        FROM ingestion_assemblies
        WHERE tenant_id = ? AND status = 'loaded'
        ORDER BY billing_period
        """,
        (tenant_id,),
    )
    return {row[1]: _assembly(row) for row in found}


def loaded_files(state: State, tenant_id: str) -> dict[str, list[AssemblyFile]]:
    """The files of the loads that count, for each billing period of a tenant, by path."""
    found = state.rows(
        """
        SELECT billing_period, path, size, mtime_ns, sha256, files.lines
        FROM ingestion_files AS files
        JOIN ingestion_assemblies USING (load_id)
        WHERE tenant_id = ? AND status = 'loaded'
        ORDER BY billing_period, path
        """,
        (tenant_id,),
    )
    files: dict[str, list[AssemblyFile]] = {}
    for billing_period, *file in found:
        files.setdefault(billing_period, []).append(AssemblyFile(*file))
    return files


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _assembly(row: Sequence[Any]) -> Assembly:
    load = Assembly(*row)
    return load._replace(
        amounts=json.loads(row[7]), schema_differences=json.loads(row[10]), warnings=json.loads(row[11])
    )


# Emissions


class PendingDay(NamedTuple):
    """A day an emitter must be given; `output_digest` None means: withdraw it."""

    billing_period: str
    charge_date: str
    output_digest: str | None


class Emission(NamedTuple):
    """One row of emission_records: what came of the last attempt. `attempts` counts the failures of this digest."""

    tenant_id: str
    emitter: str
    billing_period: str
    charge_date: str
    output_digest: str | None
    outcome: str
    rows: int
    attempts: int
    emitted_at: str
    error: str | None


def pending(state: State, tenant_id: str, emitter: str) -> list[PendingDay]:
    """What an emitter has yet to be given, by date.

    That is every calculated day whose output digest differs from the one recorded or whose last attempt failed, and
    every recorded day that is no longer in pipeline_state and not yet withdrawn.
    """
    found = state.rows(
        """
        SELECT days.billing_period, days.charge_date, days.output_digest
        FROM pipeline_state AS days
        LEFT JOIN emission_records AS records
            ON records.tenant_id = days.tenant_id
            AND records.emitter = :emitter
            AND records.billing_period = days.billing_period
            AND records.charge_date = days.charge_date
        WHERE days.tenant_id = :tenant_id
            AND days.chargeback_calculated = 1
            AND (
                records.output_digest IS NOT days.output_digest
                OR records.outcome IN ('failed', 'withdrawn')
            )
        UNION ALL
        SELECT records.billing_period, records.charge_date, NULL
        FROM emission_records AS records
        LEFT JOIN pipeline_state AS days USING (tenant_id, billing_period, charge_date)
        WHERE records.tenant_id = :tenant_id
            AND records.emitter = :emitter
            AND records.outcome <> 'withdrawn'
            AND days.tenant_id IS NULL
        ORDER BY 2, 1
        """,
        {"tenant_id": tenant_id, "emitter": emitter},
    )
    return [PendingDay(*row) for row in found]


def record_emission(
    state: State,
    tenant_id: str,
    emitter: str,
    day: PendingDay,
    outcome: Outcome,
    *,
    rows: int,
    emitted_at: str,
    error: str | None = None,
) -> None:
    """Record in one transaction what came of giving a day to an emitter."""
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO emission_records (
                tenant_id, emitter, billing_period, charge_date,
                output_digest, outcome, rows, attempts, emitted_at, error
            )
            VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?)
            ON CONFLICT (tenant_id, emitter, billing_period, charge_date) DO UPDATE SET
                attempts = iif(outcome = 'failed' AND output_digest IS excluded.output_digest, attempts + 1, 1),
                output_digest = excluded.output_digest,
                outcome = excluded.outcome,
                rows = excluded.rows,
                emitted_at = excluded.emitted_at,
                error = excluded.error
            """,
            (tenant_id, emitter, *day, outcome, rows, emitted_at, error),
        )


def emissions(state: State, tenant_id: str) -> list[Emission]:
    """Every emission record of a tenant, by emitter and date."""
    found = state.rows(
        """
        SELECT tenant_id, emitter, billing_period, charge_date,
            output_digest, outcome, rows, attempts, emitted_at, error
        FROM emission_records
        WHERE tenant_id = ?
        ORDER BY emitter, charge_date, billing_period
        """,
        (tenant_id,),
    )
    return [Emission(*row) for row in found]


def forget_emissions(state: State, tenant_id: str, emitter: str) -> None:
    """Give an emitter everything again: for when its output was lost."""
    with state.transaction() as connection:
        connection.execute("DELETE FROM emission_records WHERE tenant_id = ? AND emitter = ?", (tenant_id, emitter))


# Claims


class Claim(NamedTuple):
    """Who works on a tenant. A process is named by host, boot, pid and start, since pids are used again."""

    tenant_id: str
    host: str
    boot_id: str
    pid: int
    start_ticks: int
    claimed_at: str


@contextmanager
def claim(state: State, tenant_id: str, claimed_at: str) -> Iterator[Claim]:
    """Hold a tenant for this block, so that no other process or thread works on it.

    The truth is an OS lock on <root>/claims/<tenant_id>.lock, which dies with its process; the row in the state is
    for messages. Runs that a dead process left as 'running' are closed as 'died'. Raises TenantBusyError, naming who
    holds it, and StoreError if the lock or the state cannot be written.
    """
    descriptor = _lock(state.file.parent / "claims" / f"{tenant_id}.lock")
    if descriptor is None:
        raise TenantBusyError(_busy(tenant_id, holder(state, tenant_id)))
    try:
        own = Claim(tenant_id, socket.gethostname(), _boot_id(), os.getpid(), _start_ticks(os.getpid()), claimed_at)
        _write_claim(state, own)
        try:
            yield own
        finally:
            # The lock is what frees the tenant; a row that cannot be deleted names a process that is gone.
            with suppress(StoreError), state.transaction() as connection:
                connection.execute("DELETE FROM claims WHERE tenant_id = ?", (tenant_id,))
    finally:
        os.close(descriptor)


def _lock(file: Path) -> int | None:
    """A descriptor that holds the lock of a file until it is closed; None if another one holds it."""
    with writable_folder(file.parent):
        # O_CLOEXEC: a program started meanwhile must not keep the lock after us.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # flock, not lockf, which any close of the file would drop. The file is never unlinked: two could own it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
    return descriptor


def holder(state: State, tenant_id: str) -> Claim | None:
    """Who holds a tenant; None if nobody does, or nobody that still lives.

    A holder on another host is taken to live: from here nobody can know.
    """
    found = state.rows(
        "SELECT tenant_id, host, boot_id, pid, start_ticks, claimed_at FROM claims WHERE tenant_id = ?", (tenant_id,)
    )
    owner = Claim(*found[0]) if found else None
    return owner if owner and _lives(owner) else None


def _write_claim(state: State, own: Claim) -> None:
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO claims (tenant_id, host, boot_id, pid, start_ticks, claimed_at)
            VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (tenant_id) DO UPDATE SET
                host = excluded.host,
                boot_id = excluded.boot_id,
                pid = excluded.pid,
                start_ticks = excluded.start_ticks,
                claimed_at = excluded.claimed_at
            """,
            own,
        )
        connection.execute(
            "UPDATE pipeline_runs SET status = 'died' WHERE tenant_id = ? AND status = 'running'", (own.tenant_id,)
        )


def _busy(tenant_id: str, owner: Claim | None) -> str:
    # Between its lock and its row, a new owner has no name yet.
    seen = f"pid {owner.pid} on host {owner.host} since {owner.claimed_at}" if owner else "a process that just started"
    return fault(f"tenant {tenant_id}", f"busy, held by {seen}", "no other run")


def _lives(owner: Claim) -> bool:
    if owner.host != socket.gethostname():
        return True
    return owner.boot_id == _boot_id() and owner.start_ticks == _start_ticks(owner.pid)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # Field 2 is the program's name in parentheses, which may itself hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


# Tags and teams


def teams_cause(state: State, tenant_id: str) -> str | None:
    """The digest of what a tenant's tags and teams were derived from; None if they never were."""
    found = state.rows("SELECT cause_digest FROM tenant_teams WHERE tenant_id = ?", (tenant_id,))
    return str(found[0][0]) if found else None


def custom_tags(state: State, tenant_id: str) -> list[tuple[str, str, str]]:
    """(entity_id, key, value) of every tag of a tenant, in their order."""
    found = state.rows(
        "SELECT entity_id, key, value FROM custom_tags WHERE tenant_id = ? ORDER BY entity_id, key", (tenant_id,)
    )
    return [(entity_id, key, value) for entity_id, key, value in found]


def commit_teams(state: State, tenant_id: str, tags: Iterable[tuple[str, str, str]], cause_digest: str) -> None:
    """Replace a tenant's custom tags (entity_id, key, value) in one transaction, and record what teams derive from."""
    with state.transaction() as connection:
        connection.execute("DELETE FROM custom_tags WHERE tenant_id = ?", (tenant_id,))
        connection.executemany(
            "INSERT INTO custom_tags (tenant_id, entity_id, key, value) VALUES (?, ?, ?, ?)",
            [(tenant_id, *tag) for tag in tags],
        )
        connection.execute(
            "INSERT INTO tenant_teams (tenant_id, cause_digest) VALUES (?, ?)"
            " ON CONFLICT (tenant_id) DO UPDATE SET cause_digest = excluded.cause_digest",
            (tenant_id, cause_digest),
        )
