"""What state.db knows of tenants whose bill comes from an API: gathers, metrics, usage, entities, and suspension.

Like `state`, nothing here decides and nothing reads a clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import polars as pl

from engine.database import Database
from engine.frames import IDENTITIES, RESOURCES, Table

Status = Literal["fetched", "failed", "given_up"]


class Gather(NamedTuple):
    """One pass over the API, over the days from `first_day` to before `end_day`.

    `inventory_errors`: kind -> error. `folded`: the inventory, as far as it was landed, is in the entities, or came too
    late for that; what ran is in the usage of its day.
    `run_ended`: its run ended, well or with an error; one that was killed or stopped goes on.
    """

    tenant_id: str
    gather_id: int
    started_at: str
    ended_at: str | None
    first_day: str
    end_day: str
    status: str
    requests: int
    error: str | None
    folded: int
    run_ended: int
    inventory_errors: dict[str, str]


_GATHER = """
    SELECT tenant_id, gather_id, started_at, ended_at, first_day, end_day, status, requests, error, folded, run_ended,
        inventory_errors
    FROM gathers
"""


def gathers(state: Database, tenant_id: str) -> list[Gather]:
    """All gathers of a tenant, oldest first."""
    found = state.rows(f"{_GATHER} WHERE tenant_id = ? ORDER BY gather_id", (tenant_id,))
    return [_gather(row) for row in found]


def last_gather(state: Database, tenant_id: str) -> Gather | None:
    """The gather that was begun last."""
    found = state.rows(f"{_GATHER} WHERE tenant_id = ? ORDER BY gather_id DESC LIMIT 1", (tenant_id,))
    return _gather(found[0]) if found else None


def _gather(row: Sequence[Any]) -> Gather:
    return Gather._make([*row[:-1], json.loads(row[-1])])


def begin_gather(
    state: Database, tenant_id: str, started_at: str, first_day: str, end_day: str, *, above: int = 0
) -> Gather:
    """Record in one transaction that a gather begins; one that is still open is given up for it.

    Its number is higher than that of any gather that is known, and than `above`.
    """
    with state.transaction() as connection:
        connection.execute(
            """
            UPDATE gathers SET status = 'failed', ended_at = ?, error = coalesce(error, 'was not finished')
            WHERE tenant_id = ? AND status = 'open'
            """,
            (started_at, tenant_id),
        )
        (number,) = connection.execute(
            "SELECT max(coalesce(max(gather_id), 0), ?) + 1 FROM gathers WHERE tenant_id = ?", (above, tenant_id)
        ).fetchone()
        connection.execute(
            """
            INSERT INTO gathers (
                tenant_id, gather_id, started_at, first_day, end_day, status, requests, folded, run_ended,
                inventory_errors
            )
            VALUES (?, ?, ?, ?, ?, 'open', 0, 0, 0, '{}')
            """,
            (tenant_id, number, started_at, first_day, end_day),
        )
    return Gather(tenant_id, number, started_at, None, first_day, end_day, "open", 0, None, 0, 0, {})


def update_gather(
    state: Database,
    gather: Gather,
    *,
    requests: int,
    status: str = "open",
    ended_at: str | None = None,
    error: str | None = None,
    folded: int = 0,
    inventory_errors: Mapping[str, str] | None = None,
) -> None:
    """Record in one transaction how far a gather came, or how it ended; `requests` are added."""
    with state.transaction() as connection:
        connection.execute(
            """
            UPDATE gathers SET
                requests = requests + ?, status = ?, ended_at = ?, error = ?, folded = ?, inventory_errors = ?
            WHERE tenant_id = ? AND gather_id = ?
            """,
            (
                *(requests, status, ended_at, error, folded, _json(dict(inventory_errors or {}))),
                *(gather.tenant_id, gather.gather_id),
            ),
        )


def end_run(state: Database, tenant_id: str) -> None:
    """Record in one transaction that the run ended which gathered last, well or with an error."""
    with state.transaction() as connection:
        connection.execute("UPDATE gathers SET run_ended = 1 WHERE tenant_id = ? AND run_ended = 0", (tenant_id,))


def forget_gathers(state: Database, tenant_id: str, gather_ids: Iterable[int]) -> None:
    """Forget gathers whose answers are no longer kept."""
    with state.transaction() as connection:
        connection.executemany(
            "DELETE FROM gathers WHERE tenant_id = ? AND gather_id = ?", [(tenant_id, one) for one in gather_ids]
        )


class LandedWindow(NamedTuple):
    """The costs that a gather landed for one window, and what was published of them.

    `sha256`: of the answer, and of the billing that its days had when it was published.
    """

    tenant_id: str
    gather_id: int
    first_day: str
    end_day: str
    sha256: str
    records: int
    malformed: int
    rounding_residue: str
    warnings: list[str]


def record_window(state: Database, window: LandedWindow) -> None:
    """Record in one transaction that the costs of a window are published."""
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO landed_windows (
                tenant_id, gather_id, first_day, end_day, sha256, records, malformed, rounding_residue, warnings
            )
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (tenant_id, gather_id, first_day) DO UPDATE SET
                end_day = excluded.end_day,
                sha256 = excluded.sha256,
                records = excluded.records,
                malformed = excluded.malformed,
                rounding_residue = excluded.rounding_residue,
                warnings = excluded.warnings
            """,
            (*window[:-1], _json(window.warnings)),
        )


def windows(state: Database, tenant_id: str, gather_id: int) -> list[LandedWindow]:
    """The windows whose costs a gather published, in their order."""
    found = state.rows(
        """
        SELECT tenant_id, gather_id, first_day, end_day, sha256, records, malformed, rounding_residue, warnings
        FROM landed_windows
        WHERE tenant_id = ? AND gather_id = ?
        ORDER BY first_day
        """,
        (tenant_id, gather_id),
    )
    return [LandedWindow._make([*row[:-1], json.loads(row[-1])]) for row in found]


# Suspension


class Failures(NamedTuple):
    """How often in a row a tenant's gathers failed, with the last error; `suspended_at` if they are too many."""

    failures: int
    error: str
    suspended_at: str | None


def failures(state: Database, tenant_id: str) -> Failures | None:
    """The failures in a row; None if the last gather did not fail."""
    found = state.rows("SELECT failures, error, suspended_at FROM gather_failures WHERE tenant_id = ?", (tenant_id,))
    return Failures(*found[0]) if found else None


def count_failure(state: Database, tenant_id: str, error: str, *, now: str, threshold: int) -> Failures:
    """Record in one transaction that a gather failed, and from the threshold on that the tenant is suspended."""
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO gather_failures (tenant_id, failures, error, suspended_at)
            VALUES (:tenant_id, 1, :error, iif(1 >= :threshold, :now, NULL))
            ON CONFLICT (tenant_id) DO UPDATE SET
                failures = failures + 1,
                error = excluded.error,
                suspended_at = coalesce(suspended_at, iif(failures + 1 >= :threshold, :now, NULL))
            """,
            {"tenant_id": tenant_id, "error": error, "now": now, "threshold": threshold},
        )
        row = connection.execute(
            "SELECT failures, error, suspended_at FROM gather_failures WHERE tenant_id = ?", (tenant_id,)
        ).fetchone()
    return Failures._make(row)


def clear_failures(state: Database, tenant_id: str) -> None:
    """Record in one transaction that a gather did not fail, or that it is to be tried again."""
    with state.transaction() as connection:
        connection.execute("DELETE FROM gather_failures WHERE tenant_id = ?", (tenant_id,))


# Metrics and usage


class DayMetric(NamedTuple):
    """What became of a metric that a day asks for, for the resources in `ids`.

    `fetches`: resource -> number of the question that answered it, whatever became of later ones; one that is not in
    `ids` is not asked for any more, and its usage stays. `rows`, `dropped` and `gaps` are of the others' answers. A
    cost model asks one question a day, `fetch_id`, whose answer has `points` values, of `rows` samples; `total` is a
    decimal, by which it is told from one with less ('': not known).
    """

    charge_date: str
    metric: str
    status: Status
    ids: tuple[str, ...]
    billing_digest: str
    fetch_id: int | None = None
    rows: int = 0
    dropped: int = 0
    gaps: int = 0
    attempts: int = 0
    error: str | None = None
    points: int = 0
    total: str = ""
    fetches: Mapping[str, int] = {}


def day_metrics(state: Database, tenant_id: str) -> dict[tuple[str, str], DayMetric]:
    """(charge date, metric) -> what became of it, in this order."""
    found = state.rows(
        """
        SELECT
            charge_date, metric, status, ids, billing_digest,
            fetch_id, rows, dropped, gaps, attempts, error, points, total, fetches
        FROM day_metrics
        WHERE tenant_id = ?
        ORDER BY charge_date, metric
        """,
        (tenant_id,),
    )
    return {
        (row[0], row[1]): DayMetric._make([*row[:3], tuple(json.loads(row[3])), *row[4:-1], json.loads(row[-1])])
        for row in found
    }


def save_day_metrics(
    state: Database, tenant_id: str, known: Iterable[DayMetric], gone: Iterable[tuple[str, str]] = ()
) -> None:
    """Record in one transaction what became of metrics, and which are not asked for any more."""
    with state.transaction() as connection:
        connection.executemany(
            "DELETE FROM day_metrics WHERE tenant_id = ? AND charge_date = ? AND metric = ?",
            [(tenant_id, *key) for key in gone],
        )
        connection.executemany(
            """
            INSERT OR REPLACE INTO day_metrics (
                tenant_id, charge_date, metric, status, ids, billing_digest,
                fetch_id, rows, dropped, gaps, attempts, error, points, total, fetches
            )
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            [(tenant_id, *one[:3], _json(one.ids), *one[4:-1], _json(one.fetches)) for one in known],
        )


class MetricFetch(NamedTuple):
    """One question to the metrics that was answered; the answers are landed under its number.

    `warned`: Prometheus said that they may be a part of the truth only.
    """

    fetch_id: int
    metric: str
    first_day: str
    end_day: str
    ids: tuple[str, ...]
    fetched_at: str
    warned: int = 0


def metric_fetches(state: Database, tenant_id: str) -> dict[int, MetricFetch]:
    """Number -> question, of all whose answers are kept."""
    found = state.rows(
        """
        SELECT fetch_id, metric, first_day, end_day, ids, fetched_at, warned
        FROM metric_fetches
        WHERE tenant_id = ?
        ORDER BY fetch_id
        """,
        (tenant_id,),
    )
    return {row[0]: MetricFetch._make([*row[:4], tuple(json.loads(row[4])), *row[5:]]) for row in found}


def next_fetch_id(state: Database, tenant_id: str) -> int:
    """A number that no question has."""
    found = state.rows("SELECT coalesce(max(fetch_id), 0) + 1 FROM metric_fetches WHERE tenant_id = ?", (tenant_id,))
    return int(found[0][0])


def record_fetch(state: Database, tenant_id: str, fetch: MetricFetch) -> None:
    """Record in one transaction a question whose answers are landed."""
    with state.transaction() as connection:
        connection.execute(
            """
            INSERT INTO metric_fetches (tenant_id, fetch_id, metric, first_day, end_day, ids, fetched_at, warned)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (tenant_id, *fetch[:4], _json(fetch.ids), *fetch[5:]),
        )


def forget_fetches(state: Database, tenant_id: str, fetch_ids: Iterable[int]) -> None:
    """Forget questions whose answers are no longer kept, but for the number that was given last."""
    with state.transaction() as connection:
        connection.executemany(
            """
            DELETE FROM metric_fetches
            WHERE tenant_id = ?1 AND fetch_id = ?2
                AND fetch_id < (SELECT max(fetch_id) FROM metric_fetches WHERE tenant_id = ?1)
            """,
            [(tenant_id, one) for one in fetch_ids],
        )


class UsageDay(NamedTuple):
    """The day file of usage in the lake. `running`: how many of its rows are statements that ran."""

    charge_date: str
    digest: str
    rows: int
    size: int
    running: int = 0


def usage_days(state: Database, tenant_id: str) -> dict[str, UsageDay]:
    """Charge date -> the day file of usage, as it was published."""
    found = state.rows(
        "SELECT charge_date, digest, rows, bytes, running FROM usage_days WHERE tenant_id = ? ORDER BY charge_date",
        (tenant_id,),
    )
    return {row[0]: UsageDay(*row) for row in found}


def save_usage_days(state: Database, tenant_id: str, days: Iterable[UsageDay], gone: Iterable[str] = ()) -> None:
    """Record in one transaction day files of usage that were published, and days that have none any more."""
    with state.transaction() as connection:
        connection.executemany(
            "DELETE FROM usage_days WHERE tenant_id = ? AND charge_date = ?", [(tenant_id, one) for one in gone]
        )
        connection.executemany(
            """
            INSERT OR REPLACE INTO usage_days (tenant_id, charge_date, digest, rows, bytes, running)
            VALUES (?, ?, ?, ?, ?, ?)
            """,
            [(tenant_id, *one) for one in days],
        )


class MetricsFlag(NamedTuple):
    """Whether a day has all its metrics; how often they failed in a row, and why."""

    charge_date: str
    gathered: int
    attempts: int
    error: str | None


def set_metrics_gathered(state: Database, tenant_id: str, flags: Iterable[MetricsFlag]) -> None:
    """Record in one transaction which days have all metrics they ask for."""
    with state.transaction() as connection:
        connection.executemany(
            """
            UPDATE pipeline_state SET metrics_gathered = ?2, attempts = ?3, error = ?4
            WHERE tenant_id = ?5 AND charge_date = ?1
                AND (metrics_gathered <> ?2 OR (?2 = 0 AND (attempts, coalesce(error, '')) <> (?3, coalesce(?4, ''))))
            """,
            [(*flag, tenant_id) for flag in flags],
        )


def set_resources_gathered(
    state: Database, tenant_id: str, first_day: str, end_day: str, *, whole: bool, touched: Iterable[str] = ()
) -> None:
    """Record in one transaction that the inventory was gathered whole; or that it was not, for days that wait for it.

    A whole inventory is one for all days. One that is not holds back the days of the gather that are not calculated,
    and the days that it touched, calculated or not.
    """
    with state.transaction() as connection:
        if whole:
            connection.execute("UPDATE pipeline_state SET resources_gathered = 1 WHERE tenant_id = ?", (tenant_id,))
        else:
            connection.execute(
                """
                UPDATE pipeline_state SET resources_gathered = 0
                WHERE tenant_id = ? AND charge_date >= ? AND charge_date < ? AND chargeback_calculated = 0
                """,
                (tenant_id, first_day, end_day),
            )
            connection.executemany(
                "UPDATE pipeline_state SET resources_gathered = 0 WHERE tenant_id = ? AND charge_date = ?",
                [(tenant_id, day) for day in touched],
            )


class MadeOf(NamedTuple):
    """An answer that a day was made of: how many samples came (`rows`), how many were missing, how many values it had.

    `digest`: of the question ('': not known). `fetch_id`: the number of the answer (0: not known). `total`: as in
    DayMetric.
    """

    rows: int
    gaps: int
    points: int
    digest: str
    fetch_id: int
    total: str = ""


class ConstructedDay(NamedTuple):
    """What a day's lines and usage were made from, and what rounding took of its lines.

    `model`: a digest of what of the cost model held on it ('': not known). `answers`: question -> the answer to it that
    the day was made of. `given_up`: question without which it was made, as it failed for good -> the metrics of USAGE
    that the day lacks for that. (In state.db they stand among `answers`, each as an object with its metrics.)
    """

    charge_date: str
    cause: str
    rounding_residue: str
    model: str = ""
    answers: Mapping[str, MadeOf] = MappingProxyType({})
    given_up: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def constructed_days(state: Database, tenant_id: str) -> dict[str, ConstructedDay]:
    """Charge date -> what the day was made from."""
    found = state.rows(
        """
        SELECT charge_date, cause, rounding_residue, model, answers
        FROM constructed_days
        WHERE tenant_id = ?
        ORDER BY charge_date
        """,
        (tenant_id,),
    )
    return {row[0]: ConstructedDay._make([*row[:-1], *_made_of(row[-1])]) for row in found}


def _made_of(text: str) -> tuple[dict[str, MadeOf], dict[str, tuple[str, ...]]]:
    found = json.loads(text).items()
    answers = {name: MadeOf(*one) for name, one in found if not isinstance(one, dict)}
    return answers, {name: tuple(one["metrics"]) for name, one in found if isinstance(one, dict)}


def _without(day: ConstructedDay) -> dict[str, dict[str, tuple[str, ...]]]:
    return {name: {"metrics": lacking} for name, lacking in day.given_up.items()}


def save_constructed_days(state: Database, tenant_id: str, days: Iterable[ConstructedDay]) -> None:
    """Record in one transaction what days were made from."""
    with state.transaction() as connection:
        connection.executemany(
            """
            INSERT OR REPLACE INTO constructed_days (tenant_id, charge_date, cause, rounding_residue, model, answers)
            VALUES (?, ?, ?, ?, ?, ?)
            """,
            [(tenant_id, *one[:4], _json({**one.answers, **_without(one)})) for one in days],
        )


# Entities


def entities(state: Database, table: Table, tenant_id: str, prefix: str = "") -> pl.DataFrame:
    """A tenant's rows of RESOURCES or IDENTITIES, in the order of the key; with a prefix, those of its base."""
    columns = ", ".join(table.schema)
    found = state.rows(
        f"SELECT {columns} FROM {prefix}{table.name} WHERE tenant_id = ? ORDER BY id, valid_from",  # noqa: S608  # our names
        (tenant_id,),
    )
    texts = pl.DataFrame(found, schema=dict.fromkeys(table.schema, pl.String()), orient="row")
    return texts.with_columns(
        *(
            pl.when(pl.col(name) != "").then(pl.col(name)).str.to_date("%Y-%m-%d")
            for name in ("valid_from", "valid_to")
        ),
        *(
            pl.col(name).str.to_datetime("%Y-%m-%dT%H:%M:%S%.6f", time_unit="us")
            for name, dtype in table.schema.items()
            if isinstance(dtype, pl.Datetime)
        ),
    ).select(table.columns)


def replace_entities(state: Database, table: Table, tenant_id: str, frame: pl.DataFrame, prefix: str = "") -> None:
    """Record in one transaction a tenant's rows of RESOURCES or IDENTITIES, in the place of those that were known."""
    name = f"{prefix}{table.name}"
    texts = frame.with_columns(
        pl.col("valid_from", "valid_to").dt.strftime("%Y-%m-%d").fill_null(""),
        *(
            pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.6f")
            for name, dtype in table.schema.items()
            if isinstance(dtype, pl.Datetime)
        ),
    )
    marks = ", ".join("?" * len(table.schema))
    with state.transaction() as connection:
        connection.execute(f"DELETE FROM {name} WHERE tenant_id = ?", (tenant_id,))  # noqa: S608  # our names
        connection.executemany(
            f"INSERT INTO {name} ({', '.join(table.schema)}) VALUES ({marks})",  # noqa: S608  # our names
            texts.select(table.columns).rows(),
        )


def counts(state: Database, name: str, tenant_id: str) -> int:
    """How many intervals of `resources` or `identities` a tenant has."""
    return int(state.rows(f"SELECT count(*) FROM {name} WHERE tenant_id = ?", (tenant_id,))[0][0])  # noqa: S608  # our names


def zero_counts(state: Database, tenant_id: str) -> dict[str, int]:
    """Type -> how often in a row it came back empty although some are known; a type that never came whole is not in."""
    return dict(state.rows("SELECT type, count FROM zero_gathers WHERE tenant_id = ? ORDER BY type", (tenant_id,)))


def replace_zero_counts(state: Database, tenant_id: str, counts: Mapping[str, int]) -> None:
    """Record in one transaction the counts of empty inventories."""
    with state.transaction() as connection:
        connection.execute("DELETE FROM zero_gathers WHERE tenant_id = ?", (tenant_id,))
        connection.executemany(
            "INSERT INTO zero_gathers (tenant_id, type, count) VALUES (?, ?, ?)",
            [(tenant_id, name, count) for name, count in sorted(counts.items())],
        )


class Base(NamedTuple):
    """What was known of entities once all gathers up to `gather_id` were folded.

    `resources` and `identities` are RESOURCES and IDENTITIES, `zero_counts` as the function, `types` those that the
    gathers were told of, whole or not.
    """

    gather_id: int
    types: frozenset[str]
    zero_counts: dict[str, int]
    resources: pl.DataFrame
    identities: pl.DataFrame


_BASE = "base_"
"""Before the names of the tables of entities, of those in which they are as of a base."""


def base(state: Database, tenant_id: str) -> Base | None:
    """What a replay of a tenant's inventories begins with; None if no gather was forgotten yet."""
    found = state.rows("SELECT gather_id, types, zero_counts FROM bases WHERE tenant_id = ?", (tenant_id,))
    if not found:
        return None
    (gather_id, types, counted) = found[0]
    frames = (entities(state, table, tenant_id, _BASE) for table in (RESOURCES, IDENTITIES))
    return Base(gather_id, frozenset(json.loads(types)), json.loads(counted), *frames)


def base_types(state: Database, tenant_id: str) -> frozenset[str]:
    """The types of entities that the gathers of the base were told of."""
    found = state.rows("SELECT types FROM bases WHERE tenant_id = ?", (tenant_id,))
    return frozenset(json.loads(found[0][0]) if found else ())


def save_base(state: Database, tenant_id: str, base: Base) -> None:
    """Record in one transaction what a replay begins with, in the place of what it began with before."""
    with state.transaction() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO bases (tenant_id, gather_id, types, zero_counts) VALUES (?, ?, ?, ?)",
            (tenant_id, base.gather_id, _json(sorted(base.types)), _json(dict(sorted(base.zero_counts.items())))),
        )
        replace_entities(state, RESOURCES, tenant_id, base.resources, _BASE)
        replace_entities(state, IDENTITIES, tenant_id, base.identities, _BASE)


def _json(value: Sequence[str] | Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
