"""What a tenant has, and since when: the inventories of its gathers, one after another, folded into intervals.

Pure frames, the same for RESOURCES and IDENTITIES. What is known is a function of the inventories that were seen, in
their order: nothing here reads a clock or a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import polars as pl

from engine.frames import IDENTITIES, IDENTITY_SNAPSHOT, RESOURCE_SNAPSHOT, RESOURCES, Table, check_rows, shape

RESOURCE_TYPES = (
    "environment",
    "kafka_cluster",
    "connector",
    "schema_registry",
    "ksqldb",
    "flink_pool",
    "flink_statement",
)
IDENTITY_TYPES = ("service_account", "user", "identity_pool", "identity_provider", "api_key")
"""The types of which an inventory says who there is; `principal` and `system` are not among them."""

NEVER = -1
"""The threshold at which an empty inventory never deletes anything."""

_ATTRIBUTES = ("type", "parent", "owner", "scope")
"""What makes another interval when it changes; a display name alone does not."""


class Kind(NamedTuple):
    """One of the two tables of entities. `together`: deletions are looked for only if all its types were gathered."""

    table: Table
    snapshot: Table
    types: tuple[str, ...]
    together: bool


RESOURCE = Kind(RESOURCES, RESOURCE_SNAPSHOT, RESOURCE_TYPES, together=False)
IDENTITY = Kind(IDENTITIES, IDENTITY_SNAPSHOT, IDENTITY_TYPES, together=True)


class Seen(NamedTuple):
    """One gather of an inventory: what there was, when, and the types of which this is all there was.

    `seen_before`: the types that an earlier gather was told of, whole or not.
    """

    snapshot: pl.DataFrame
    at: datetime
    gathered: frozenset[str]
    seen_before: frozenset[str] = frozenset()


class Folded(NamedTuple):
    """What is known after a gather.

    `zero_counts`: type -> how often in a row it came back empty although some are known; a type that never came back
    whole is not in it. `changes`: id, type, change (new, changed, deleted, back) of what this gather changed.
    """

    intervals: pl.DataFrame
    zero_counts: dict[str, int]
    changes: pl.DataFrame


def fold(
    kind: Kind, known: pl.DataFrame, seen: Seen, zero_counts: Mapping[str, int], *, tenant_id: str, threshold: int
) -> Folded:
    """The intervals that are known, and one gather more -> the intervals that are known then.

    What a type has in the first gather that was told of it, in part or whole, was there always (or since its
    `created_at`); what comes later is there since `created_at`, or since it was first seen. An entity that is missing
    from a whole gather of its type is deleted from then on; a type that comes back empty although some are known only
    if that happened `threshold` times in a row (NEVER: not at all).
    """
    shape(known.lazy(), kind.table)
    snapshot = check_rows(seen.snapshot, kind.snapshot)
    counts, scanned = _scanned(kind, known, seen, zero_counts, threshold)
    attributes = [name for name in _ATTRIBUTES if name in kind.table.schema]
    pairs = _pairs(known, snapshot, seen, scanned)
    differs = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_seen") for name in attributes)
    told = pairs.with_columns(
        change=pl.when(~pl.col("is_seen"))
        .then(pl.when("is_gone").then(pl.lit("deleted")))
        .when(~pl.col("is_known"))
        .then(pl.lit("new"))
        .when(pl.col("deleted_at").is_not_null())
        .then(pl.lit("back"))
        .when(differs)
        .then(pl.lit("changed"))
    )
    intervals = pl.concat(
        [
            known.filter(pl.col("valid_to").is_not_null()),
            _kept(told, kind, seen),
            _begun(told, kind, seen, seen.seen_before.union(zero_counts), tenant_id),
        ]
    )
    changes = told.filter(pl.col("change").is_not_null()).select(
        "id", type=pl.coalesce("type_seen", "type"), change=pl.col("change")
    )
    return Folded(check_rows(intervals.sort(kind.table.key), kind.table), counts, changes.sort("id"))


def _scanned(
    kind: Kind, known: pl.DataFrame, seen: Seen, zero_counts: Mapping[str, int], threshold: int
) -> tuple[dict[str, int], set[str]]:
    """The zero counts after this gather, and the types of which what is missing is gone."""
    gathered = [name for name in kind.types if name in seen.gathered]
    active = known.filter(pl.col("valid_to").is_null() & pl.col("deleted_at").is_null())
    there, there_now = set(active["type"].unique()), set(seen.snapshot["type"].unique())
    counts = dict(zero_counts)
    for name in gathered:
        empty_now = name in there and name not in there_now
        counts[name] = counts.get(name, 0) + 1 if empty_now else 0 if name in there_now else counts.get(name, 0)
    if kind.together and len(gathered) < len(kind.types):
        # An identity that is missing here may be one of a kind that could not be asked for: nothing is counted.
        reset = {name: 0 for name in gathered if name in there_now or name not in zero_counts}
        return {**zero_counts, **reset}, set()
    believed = {
        name
        for name in gathered
        if name in there_now or (threshold != NEVER and counts[name] >= max(threshold, 1))
    }  # fmt: skip
    return counts, believed


def _pairs(known: pl.DataFrame, snapshot: pl.DataFrame, seen: Seen, scanned: set[str]) -> pl.DataFrame:
    """What is known to be so until further notice beside what was seen, by id.

    `day` is from when on a change counts: the day of the gather, or where the clock went back, the interval's own.
    """
    current = known.filter(pl.col("valid_to").is_null()).with_columns(is_known=True)
    there = snapshot.select("id", pl.exclude("id").name.suffix("_seen"), is_seen=True)
    return current.join(there, on="id", how="full", coalesce=True, validate="1:1").with_columns(
        pl.col("is_known", "is_seen").fill_null(value=False),
        is_gone=pl.col("type").is_in(list(scanned)) & pl.col("deleted_at").is_null(),
        day=pl.max_horizontal(pl.lit(seen.at.date()), "valid_from"),
    )


def _kept(told: pl.DataFrame, kind: Kind, seen: Seen) -> pl.DataFrame:
    """The rows that were known: ended, marked as deleted, seen again, or as they were.

    One that another of the same day replaces is no more: an interval has at least a day.
    """
    at = pl.lit(seen.at, kind.table.schema["last_seen_at"])
    ends = pl.col("change").is_in(["back", "changed"]).fill_null(value=False)
    same_day = pl.col("valid_from").is_not_null() & (pl.col("valid_from") >= pl.col("day"))
    stays = pl.col("is_seen") & ~ends
    return (
        told.filter(pl.col("is_known") & ~(ends & same_day))
        .with_columns(
            valid_to=pl.when(ends).then("day").otherwise("valid_to"),
            deleted_at=pl.when(pl.col("change") == "deleted").then(at).otherwise("deleted_at"),
            display_name=pl.when(stays).then("display_name_seen").otherwise("display_name"),
            last_seen_at=pl.when(stays).then(at).otherwise("last_seen_at"),
        )
        .select(kind.table.columns)
    )


def _begun(told: pl.DataFrame, kind: Kind, seen: Seen, seen_before: frozenset[str], tenant_id: str) -> pl.DataFrame:
    """The intervals that begin: of what is new, changed or back."""
    at = pl.lit(seen.at, kind.table.schema["last_seen_at"])
    is_new = pl.col("change") == "new"
    always = is_new & ~pl.col("type_seen").is_in(list(seen_before))
    since = pl.coalesce("created_at_seen", at)
    seen_names = [name for name in ("type", "display_name", "parent", "owner", "scope") if name in kind.table.schema]
    return (
        told.filter(pl.col("change").is_in(["new", "back", "changed"]))
        .with_columns(
            tenant_id=pl.lit(tenant_id),
            valid_from=pl.when(always).then(pl.lit(None, pl.Date)).when(is_new).then(since.dt.date()).otherwise("day"),
            valid_to=pl.lit(None, pl.Date),
            created_at=pl.when(always)
            .then("created_at_seen")
            .when(is_new)
            .then(since)
            .when(pl.col("change") == "back")
            .then(at)
            .otherwise("created_at"),
            deleted_at=pl.lit(None, kind.table.schema["deleted_at"]),
            first_seen_at=pl.when(pl.col("change") == "changed").then("first_seen_at").otherwise(at),
            last_seen_at=at,
        )
        .with_columns(pl.col(f"{name}_seen").alias(name) for name in seen_names)
        .select(kind.table.columns)
    )
