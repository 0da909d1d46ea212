"""Who owns what, and who may be charged, as expressions and joins.

Where owners stand in tags: from the tags of BILLING to identities. Where they do not: from the inventory as it was on
a day, and from what was measured, to whom the rungs of a ladder may charge (`candidates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

import polars as pl

from engine import money, names
from engine.config import AwsTenant, Owner
from engine.errors import ContractError, fault, shown
from engine.frames import (
    IDENTITIES,
    RESOURCES,
    UNALLOCATED,
    decoded_tags,
    normalised,
    shape,
    tag_key,
)

IDENTITIES_SHOWN = 20

OWNER_TYPES = ("service_account", "user", "identity_pool", "principal")
"""Types of identities that may bear cost. Keys stand for their owners; providers and what is `system` for nobody."""
ACCOUNT_TYPES = OWNER_TYPES[:3]
"""Those of them that the organization has, as against principals that only metrics name."""
STATEMENT_METRICS = ("flink_cfu", "running_statements")
"""Metrics whose principals are names of statements of the resource."""
API_KEY = "api_key:"
"""Before the key in the owner of a connector that logs in with one."""
STATEMENT_OWNER_UNKNOWN = "flink_stmt_owner_unknown"
KEY_NOT_FOUND = "connector_api_key_not_found"
OWNER_UNKNOWN = {"connector": "connector_credentials_unknown", "ksqldb": "ksqldb_owner_unknown"}
"""Type of a resource that has one owner -> who bears its cost if nobody knows whom it belongs to."""
GONE = {
    "lcc-": "connector_credentials_unknown",
    "clcc-": "connector_credentials_unknown",
    "lksqlc-": "ksqldb_deleted_when_calc_started",
}
"""How ids of such resources begin -> who bears the cost of one that the inventory of the day does not have."""
SENTINELS = frozenset(
    {
        STATEMENT_OWNER_UNKNOWN,
        KEY_NOT_FOUND,
        "connector_api_key_masked",
        "connector_credentials_masked",
        *OWNER_UNKNOWN.values(),
        *GONE.values(),
    }
)
"""Identities that stand for an owner nobody could name. They bear cost and weigh, unlike UNALLOCATED."""


def resolved(text: pl.Expr, owner: Owner) -> pl.Expr:
    """Texts -> identities: normalised, then aliases; '' where the text is null, blank or a word for nobody."""
    return normalised(text).replace(names.aliases(owner)).replace(UNALLOCATED.lower(), "").fill_null("")


def with_owner(billing: pl.LazyFrame, owner: Owner) -> pl.LazyFrame:
    """BILLING -> the same rows with `owner`: whom the first of the owner's tags that is not blank names, or ''."""
    keys = list(dict.fromkeys(tag_key(tag) for tag in owner.tags))
    values = [pl.col("_tags").struct.field(key) for key in keys]
    # A day has far fewer distinct tags than lines.
    owners = decoded_tags(billing, keys).select("tags", owner=_first_owner(values, owner))
    return billing.join(owners, on="tags", how="left", validate="m:1", maintain_order="left")


def any_owned(billing: pl.LazyFrame, owner: Owner) -> bool:
    """Whether any line has an owner."""
    tags = billing.select("tags").unique()
    return bool(with_owner(tags, owner).select((pl.col("owner") != "").any()).collect().item())


def _first_owner(values: Sequence[pl.Expr], owner: Owner) -> pl.Expr:
    identities = [resolved(value, owner) for value in values]
    return pl.coalesce(*[pl.when(identity != "").then(identity) for identity in identities], pl.lit(""))


def key_principals(
    usage: pl.DataFrame, tenant: AwsTenant, *, where: str, placed: Callable[[Sequence[str]], str] | None = None
) -> pl.DataFrame:
    """USAGE with principals replaced by the identities they name; ContractError if one may not weigh.

    `placed`: where the first row of some principals stands; without it the message says `where`.
    """
    found = usage.with_columns(_as_written=pl.col("principal"), principal=resolved(pl.col("principal"), tenant.owner))
    operator = names.operator(tenant)
    barred = found.filter((pl.col("principal") == "") | ((pl.col("principal") == operator) & (operator != "")))
    if barred.height:
        written = barred["_as_written"].unique().sort()
        place = placed(written.to_list()) if placed else where
        raise ContractError(
            fault(
                f"{place}: column identity",
                f"{barred.height} row(s) of {', '.join(shown(name) for name in written.head(IDENTITIES_SHOWN))}",
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


def alive(frame: pl.DataFrame, day: date) -> pl.DataFrame:
    """The RESOURCES or IDENTITIES that there were on a UTC day, as they were on it: at most one row per id.

    Bounds that are null are open. What was deleted on the day was there on it. Should intervals of one id overlap, the
    later one counts.
    """
    start = datetime(day.year, day.month, day.day)  # noqa: DTZ001  # times are naive UTC throughout
    end = start + timedelta(days=1)
    return (
        frame.filter(
            pl.col("valid_from").is_null() | (pl.col("valid_from") <= day),
            pl.col("valid_to").is_null() | (pl.col("valid_to") > day),
            pl.col("created_at").is_null() | (pl.col("created_at") < end),
            pl.col("deleted_at").is_null() | (pl.col("deleted_at") >= start),
        )
        .sort("id", "valid_from", nulls_last=False)
        .unique("id", keep="last", maintain_order=True)
    )


def alive_on(frame: pl.DataFrame, days: Iterable[date]) -> pl.DataFrame:
    """`alive` on each of some days, with the day as `window`."""
    found = [alive(frame, day).with_columns(window=pl.lit(str(day))) for day in days if frame.height]
    return pl.concat([frame.clear().with_columns(window=pl.lit("")), *found])


def alive_seconds(resources: pl.DataFrame) -> pl.DataFrame:
    """`alive_on` RESOURCES -> window, id and for how many whole seconds of the day each lived.

    That is from created_at to deleted_at.
    """
    start = pl.col("window").str.to_datetime("%Y-%m-%d", time_unit="us")
    end = start + pl.duration(days=1)
    first = pl.col("created_at").dt.truncate("1s").clip(lower_bound=start, upper_bound=end).fill_null(start)
    last = pl.col("deleted_at").dt.truncate("1s").clip(lower_bound=start, upper_bound=end).fill_null(end)
    seconds = (last - first).dt.total_seconds().clip(lower_bound=0)
    return resources.select("window", "id", alive_seconds=seconds)


class Candidates(NamedTuple):
    """Whom the rungs of some days may charge. Keys are unique; whoever may never weigh is in none of them.

    `resource_usage`: window, resource_id, metric, identity_id, units (of values above 0; 0 where there is no such
    value). `resource_owners`: window, resource_id, identity_id of the resources that were asked for.
    `tenant_owners`: window, population, identity_id.
    """

    resource_usage: pl.DataFrame
    resource_owners: pl.DataFrame
    tenant_owners: pl.DataFrame


def candidates(
    lines: pl.DataFrame, resources: pl.DataFrame, known: pl.DataFrame, usage: pl.DataFrame, operator: str
) -> Candidates:
    """Who may be charged for some resources on some days, each day by what was there on it.

    `lines`: window (the day) and resource_id, among others. `resources` and `known`: RESOURCES and IDENTITIES of the
    days (`alive_on`); `usage`: USAGE of the days, principals as the source names them. ContractError if a sum might
    not be exact.
    """
    asked = lines.select("window", "resource_id").unique().filter(pl.col("resource_id") != "")
    who = _Who(known, operator)
    statements = _statements(resources)
    return Candidates(
        _resource_usage(asked, usage, statements, who),
        _resource_owners(asked, resources, statements, who),
        _tenant_owners(known, operator),
    )


class _Who(NamedTuple):
    """The identities of some days, and the operator, who never weighs."""

    known: pl.DataFrame
    operator: str

    def keys(self) -> pl.DataFrame:
        """API keys and their owners: window, identity_id, key_owner."""
        keys = self.known.filter(pl.col("type") == "api_key")
        return keys.select("window", identity_id="id", key_owner="owner")

    def resolved(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows with API keys in `identity_id` replaced by their owners, without those whose identity may not weigh."""
        key = ["window", "identity_id"]
        types = self.known.select("window", identity_id="id", _type="type")
        barred = ["", UNALLOCATED, *([self.operator] if self.operator else [])]
        weighs = (
            pl.col("_type").is_null()
            | pl.col("_type").is_in(OWNER_TYPES)
            | pl.col("identity_id").is_in(sorted(SENTINELS))
        )
        return (
            frame.join(self.keys(), on=key, how="left", validate="m:1")
            .with_columns(identity_id=pl.coalesce("key_owner", "identity_id"))
            .join(types, on=key, how="left", validate="m:1")
            .filter(weighs, ~pl.col("identity_id").is_in(barred))
            .drop("key_owner", "_type")
        )


def _statements(resources: pl.DataFrame) -> pl.DataFrame:
    """Flink statements by name within their pool: window, resource_id, principal, statement_owner; newest last."""
    return (
        resources.filter(pl.col("type") == "flink_statement")
        .sort("created_at", "id", nulls_last=False)
        .select(
            "window",
            resource_id="parent",
            principal="display_name",
            statement_owner=pl.when(pl.col("owner") == "")
            .then(pl.lit(STATEMENT_OWNER_UNKNOWN))
            .otherwise(pl.col("owner")),
        )
    )


def _resource_usage(asked: pl.DataFrame, usage: pl.DataFrame, statements: pl.DataFrame, who: _Who) -> pl.DataFrame:
    measured = usage.join(asked, on=["window", "resource_id"], how="semi").with_columns(
        units=pl.max_horizontal(money.to_units(pl.col("value")), pl.lit(0, pl.Int128))
    )
    if not measured.height:
        keys = ["window", "resource_id", "metric", "principal", "units"]
        return measured.select(keys).rename({"principal": "identity_id"})
    money.check_sum_fits("usage", money.largest(measured["units"]), measured.height)
    of_statement = pl.col("metric").is_in(STATEMENT_METRICS)
    by_statement = pl.coalesce("statement_owner", pl.lit(STATEMENT_OWNER_UNKNOWN))
    # Of statements that bore one name on one day, one after the other, the newest stands for all.
    by_name = ["window", "resource_id", "principal"]
    newest = statements.unique(by_name, keep="last", maintain_order=True)
    owned = (
        measured.filter(of_statement)
        .join(newest, on=by_name, how="left", validate="m:1")
        .with_columns(principal=by_statement)
    )
    keys = ["window", "resource_id", "metric", "principal", "units"]
    named = pl.concat([measured.filter(~of_statement).select(keys), owned.select(keys)])
    # Each name is looked up once, and not for every resource and metric that it was seen in.
    names = named.select("window", "principal", identity_id="principal").unique()
    weighing = named.join(who.resolved(names), on=["window", "principal"], how="inner", validate="m:1")
    keys = ["window", "resource_id", "metric", "identity_id"]
    return weighing.group_by(keys).agg(pl.col("units").sum()).sort(keys)


def _resource_owners(asked: pl.DataFrame, resources: pl.DataFrame, statements: pl.DataFrame, who: _Who) -> pl.DataFrame:
    """Whom the inventory names for each resource.

    A connector or ksqlDB: its owner. A Flink pool: the owners of its statements. Anything else (a cluster, a Schema
    Registry): the owners of the API keys that are scoped to it.
    """
    there = asked.join(
        resources.select("window", "type", "owner", resource_id="id"),
        on=["window", "resource_id"],
        how="left",
        validate="1:1",
    ).with_columns(identity_id=pl.when(pl.col("type").is_null()).then(_gone(pl.col("resource_id"))))
    has_one = pl.col("type").is_in(list(OWNER_UNKNOWN)).fill_null(value=False)
    is_gone = pl.col("identity_id").is_not_null()
    others = there.filter(~has_one & ~is_gone).select("window", "resource_id")
    keys = who.known.filter(pl.col("type") == "api_key").select("window", resource_id="scope", identity_id="owner")
    found = [
        there.filter(is_gone),
        _one_owner(there.filter(has_one), who),
        others.join(keys, on=["window", "resource_id"], how="inner"),
        others.join(statements, on=["window", "resource_id"], how="inner").rename({"statement_owner": "identity_id"}),
    ]
    columns = ["window", "resource_id", "identity_id"]
    return who.resolved(pl.concat([frame.select(columns) for frame in found])).unique().sort(columns)


def _gone(resource_id: pl.Expr) -> pl.Expr:
    """Who bears the cost of a resource that the inventory does not have; null where that goes by its kind."""
    return pl.coalesce(
        [pl.when(resource_id.str.starts_with(prefix)).then(pl.lit(sentinel)) for prefix, sentinel in GONE.items()]
    )


def _one_owner(owned: pl.DataFrame, who: _Who) -> pl.DataFrame:
    """Connectors and ksqlDBs with their owner, or with the sentinel that says why there is none."""
    by_key = pl.col("owner").str.starts_with(API_KEY)
    key = pl.when(by_key).then(pl.col("owner").str.strip_prefix(API_KEY))
    key_owner = pl.when(pl.col("key_owner") != "").then(pl.col("key_owner"))
    unknown = pl.col("type").replace_strict(OWNER_UNKNOWN, return_dtype=pl.String)
    return (
        owned.with_columns(_key=key)
        .join(who.keys(), left_on=["window", "_key"], right_on=["window", "identity_id"], how="left", validate="m:1")
        .with_columns(
            identity_id=pl.when(pl.col("_key").is_not_null())
            .then(pl.coalesce(key_owner, pl.lit(KEY_NOT_FOUND)))
            .when(pl.col("owner") == "")
            .then(unknown)
            .otherwise(pl.col("owner"))
        )
    )


def _tenant_owners(known: pl.DataFrame, operator: str) -> pl.DataFrame:
    """Every identity that may own something, for the populations of the whole tenant."""
    barred = [UNALLOCATED, *([operator] if operator else [])]
    populations = {"period_owners": OWNER_TYPES, "period_accounts": ACCOUNT_TYPES}
    return pl.concat(
        known.filter(pl.col("type").is_in(types), ~pl.col("id").is_in(barred)).select(
            "window", population=pl.lit(population), identity_id="id"
        )
        for population, types in populations.items()
    ).sort("window", "population", "identity_id")


def with_principals(known: pl.DataFrame, usage: pl.LazyFrame, tenant_id: str, *, operator: str) -> pl.DataFrame:
    """The IDENTITIES that inventories name, and those that only others do, in the order of the key.

    That is: principals that only metrics name (type principal), sentinels and UNALLOCATED (system), and the operator.
    """
    measured = (
        usage.filter(~pl.col("metric").is_in(STATEMENT_METRICS))
        .group_by(id="principal")
        .agg(first_seen_at=pl.col("window").min(), last_seen_at=pl.col("window").max())
        .with_columns(
            pl.col("first_seen_at", "last_seen_at").str.to_datetime("%Y-%m-%d", time_unit="us"),
            type=pl.lit("principal"),
        )
        .collect(engine="streaming")
    )
    others = pl.DataFrame(
        [
            *((name, "system") for name in sorted({*SENTINELS, UNALLOCATED})),
            *([(operator, "operator")] if operator else []),
        ],
        schema={"id": pl.String, "type": pl.String},
        orient="row",
    )
    more = (
        pl.concat([others, measured.filter(pl.col("id") != "")], how="diagonal")
        .unique("id", keep="first", maintain_order=True)
        .join(known, on="id", how="anti")
        .with_columns(tenant_id=pl.lit(tenant_id), display_name=pl.col("id"), owner=pl.lit(""), scope=pl.lit(""))
        .with_columns(
            pl.lit(None, IDENTITIES.schema[name]).alias(name)
            for name in ("valid_from", "valid_to", "created_at", "deleted_at")
        )
        .select(IDENTITIES.columns)
    )
    return shape(pl.concat([known, more]).sort(IDENTITIES.key).lazy(), IDENTITIES).collect()
