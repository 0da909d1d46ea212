"""Who owns a line: from the tags of BILLING to identities, as expressions and joins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from engine import names
from engine.config import AwsTenant, Owner
from engine.errors import ContractError, fault, shown
from engine.frames import (
    IDENTITIES,
    RESOURCES,
    UNALLOCATED,
    normalised,
    shape,
    tag_key,
    with_tags,
)

IDENTITIES_SHOWN = 20


def resolved(text: pl.Expr, owner: Owner) -> pl.Expr:
    """Texts -> identities: normalised, then aliases; '' where the text is null, blank or a word for nobody."""
    return normalised(text).replace(names.aliases(owner)).replace(UNALLOCATED.lower(), "").fill_null("")


def with_owner(billing: pl.LazyFrame, owner: Owner) -> pl.LazyFrame:
    """BILLING -> the same rows with `owner`: whom the first of the owner's tags that is not blank names, or ''."""
    keys = list(dict.fromkeys(tag_key(tag) for tag in owner.tags))
    values = [pl.col("_tags").struct.field(key) for key in keys]
    return with_tags(billing, keys).with_columns(owner=_first_owner(values, owner)).drop("_tags")


def any_owned(billing: pl.LazyFrame, owner: Owner) -> bool:
    """Whether any line has an owner."""
    tags = billing.select("tags").unique()
    return bool(with_owner(tags, owner).select((pl.col("owner") != "").any()).collect().item())


def _first_owner(values: Sequence[pl.Expr], owner: Owner) -> pl.Expr:
    identities = [resolved(value, owner) for value in values]
    return pl.coalesce(*[pl.when(identity != "").then(identity) for identity in identities], pl.lit(""))


def key_principals(usage: pl.DataFrame, tenant: AwsTenant, *, where: str) -> pl.DataFrame:
    """USAGE with principals replaced by the identities they name; ContractError if one may not weigh."""
    found = usage.with_columns(_as_written=pl.col("principal"), principal=resolved(pl.col("principal"), tenant.owner))
    operator = names.operator(tenant)
    barred = found.filter((pl.col("principal") == "") | ((pl.col("principal") == operator) & (operator != "")))
    if barred.height:
        written = barred["_as_written"].unique().sort().head(IDENTITIES_SHOWN).to_list()
        raise ContractError(
            fault(
                f"{where}: column identity",
                f"{barred.height} row(s) of {', '.join(shown(name) for name in written)}",
                "an identity that may bear shared cost (neither the operator nor UNALLOCATED)",
            )
        )
    return found.drop("_as_written")


def known_identities(tenant: AwsTenant) -> list[str]:
    """The identities the configuration names as owners, sorted."""
    known = {*tenant.owner.identities, *tenant.owner.aliases.values()}
    return sorted({names.identity(tenant.owner, name) for name in known} - {"", UNALLOCATED.lower()})


def identities(tenant: AwsTenant, seen: pl.DataFrame, named: Iterable[str] = ()) -> pl.DataFrame:
    """IDENTITIES of a tenant, from the configuration and from `seen`: owner (unique), first_seen_at, last_seen_at.

    Rows: the known owners (type owner), those that only tags or `named` (key tables, percentages) name
    (unknown_owner), the operator, and UNALLOCATED.
    """
    operator = names.operator(tenant)
    known = known_identities(tenant)
    declared = pl.DataFrame({"id": [*known, *([operator] if operator else []), *named, UNALLOCATED]}).unique()
    kind = (
        pl.when(pl.col("id") == UNALLOCATED)
        .then(pl.lit("system"))
        .when((pl.col("id") == operator) & pl.lit(operator != ""))
        .then(pl.lit("operator"))
        .when(pl.col("id").is_in(known))
        .then(pl.lit("owner"))
        .otherwise(pl.lit("unknown_owner"))
    )
    frame = (
        declared.join(seen.rename({"owner": "id"}), on="id", how="full", coalesce=True, validate="1:1")
        .lazy()
        .with_columns(
            tenant_id=pl.lit(tenant.id), type=kind, display_name=pl.col("id"), owner=pl.lit(""), scope=pl.lit("")
        )
        .with_columns(
            pl.lit(None, IDENTITIES.schema[name]).alias(name)
            for name in ("valid_from", "valid_to", "created_at", "deleted_at")
        )
        .with_columns(pl.col("first_seen_at", "last_seen_at").cast(IDENTITIES.schema["first_seen_at"]))
        .select(IDENTITIES.columns)
        .sort("id")
    )
    return shape(frame, IDENTITIES).collect()


def resources(billing: pl.LazyFrame) -> pl.DataFrame:
    """RESOURCES of BILLING: one row for each resource id that was billed, with the first and last day on which it was.

    A resource billed under several products or accounts takes the least of their names, so that the row does not
    depend on the order of lines.
    """
    frame = (
        billing.filter(pl.col("resource_id") != "")
        .group_by("tenant_id", "resource_id")
        .agg(
            type=pl.col("product_category").min(),
            scope=pl.col("sub_account_id").min(),
            first_seen_at=pl.col("charge_date").min(),
            last_seen_at=pl.col("charge_date").max(),
        )
        .with_columns(id=pl.col("resource_id"), display_name=pl.col("resource_id"), parent=pl.lit(""), owner=pl.lit(""))
        .with_columns(
            pl.lit(None, RESOURCES.schema[name]).alias(name)
            for name in ("valid_from", "valid_to", "created_at", "deleted_at")
        )
        .with_columns(pl.col("first_seen_at", "last_seen_at").cast(RESOURCES.schema["first_seen_at"]))
        .select(RESOURCES.columns)
        .sort("tenant_id", "id")
    )
    return shape(frame, RESOURCES).collect(engine="streaming")
