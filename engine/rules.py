"""Ladders, pools and products -> RULES, and the match of every line to exactly one rule.

Rules are data: the tenant's YAML over the rulebook's. What cannot work is refused here, with the place in the file.
Where owners stand in tags, lines are matched by pools; where they do not, by their product.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache, reduce
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import polars as pl
from polars.expr.whenthen import ChainedThen, Then

from engine import globs, money, names
from engine.config import (
    LAST_BASES,
    OPERANDS,
    AwsTenant,
    Config,
    Document,
    GenericTenant,
    Match,
    Pool,
    Product,
    ProductTenant,
    Rulebook,
    Rung,
    Tenant,
    load_rulebook,
)
from engine.errors import fault, shown
from engine.frames import RULES, UNALLOCATED, normalised_text, shape, tag_key, with_tags

LABELS: dict[str, tuple[str, str]] = {
    "direct": ("direct", "direct"),
    "usage": ("usage", "usage_ratio"),
    "even": ("shared", "even_split"),
    "cost": ("shared", "cost_ratio"),
    "fixed": ("shared", "fixed"),
    "weighted": ("shared", "weighted"),
    "operator": ("operator", "operator"),
    "resource": ("shared", "to_resource"),
    "unallocated": ("shared", "unallocated"),
}
"""Basis -> (cost_type, allocation_method)."""

DIRECT = "direct"
UNTAGGED = "untagged"
UNKNOWN_PRODUCT = "unknown_product"
"""The rule of lines whose product type no rule names."""
MALFORMED = "malformed_billing"
"""The rule of lines that stand for a record that could not be understood; their resources are named `MALFORMED_*`."""
_INACTIVE = Rung(basis="unallocated", detail="inactive_fraction")
"""Who bears the fraction of a day in which a resource was not there."""
_FAILED = Rung(basis="unallocated", detail="metrics_fetch_failed")
"""Who bears what a metric should have split that could not be read."""
ALLOCATION_FAILED = "allocation_failed"
DETAILS = {"usage": "usage_ratio_allocation", "even": "even_split_allocation"}
"""Basis -> allocation_detail of a product's rung that names none; a last rung: see `_detail`."""
TENANT_WIDE = frozenset({"period_owners", "period_accounts"})
"""Populations that do not depend on the line's resource."""
FROM_INVENTORY = frozenset({"running_statements"})
"""Metrics that are not measured: they come with the inventory of their day, or not at all."""
OWN_ALLOCATION = "allocation"
"""In a ladder of cost types: the values by which the line's own cost type is split, which are called after it."""
METRICS: dict[str, tuple[str, ...]] = {
    "confluent_cloud": ("bytes_in", "bytes_out", "flink_cfu", "running_statements"),
    "self_managed_kafka": ("bytes_in", "bytes_out", "static_identities"),
    "generic_metrics": ("identities", OWN_ALLOCATION),
}
"""Ecosystem -> what USAGE may be asked for in the ladders of its products."""
SECONDS_A_DAY = 86_400
_OWN_LADDER = "rule:"
"""Before the names of the two ladders that no configuration can name."""
SCOPES: dict[str, tuple[str, ...]] = {
    "service_account": ("sub_account_id", "product_category"),
    "account": ("sub_account_id",),
    "all": (),
}
"""Scope of a cost rung -> the columns in which lines and direct cost must agree, besides currency."""
MATCH_COLUMNS = {
    "service": "product_category",
    "usage_type": "product_type",
    "line_item_type": "line_item_type",
    "account": "sub_account_id",
    "region": "region",
}
"""Condition of a pool -> the column of BILLING it looks at."""


class ResolvedPart(NamedTuple):
    """A part of a rule: its exact share and the name of its ladder."""

    share: Decimal
    ladder: str


class ResolvedPool(NamedTuple):
    """A pool with nothing left open: conditions, window, parts."""

    rule_id: str
    match: Match
    window: str
    parts: tuple[ResolvedPart, ...]


class ResolvedProduct(NamedTuple):
    """A rule for lines of one product: its parts, and what becomes of days in which the resource lived in part."""

    parts: tuple[ResolvedPart, ...]
    partial_life: str = "whole"


class Rules(NamedTuple):
    """A tenant's rules.

    Pools in the order in which they are tried, ladders by name, the table RULES, products by rule_id, and the identity
    that operator rungs charge.
    """

    pools: tuple[ResolvedPool, ...]
    ladders: Mapping[str, tuple[Rung, ...]]
    frame: pl.DataFrame
    products: Mapping[str, ResolvedProduct] = MappingProxyType({})
    operator: str = ""

    def windows(self) -> frozenset[str]:
        """The windows that any pool uses."""
        return frozenset(pool.window for pool in self.pools)


def resolve(tenant: Tenant) -> Rules:
    """The tenant's rules over the rulebook's. The tenant must be free of faults (see `faults`)."""
    return _pool_rules(tenant) if isinstance(tenant, AwsTenant) else _product_rules(tenant)


def _pool_rules(tenant: AwsTenant) -> Rules:
    book = rulebook(tenant.ecosystem)
    ladders: dict[str, tuple[Rung, ...]] = {
        name: tuple(rungs) for name, rungs in {**book.ladders, **tenant.ladders}.items()
    }
    ladders[_OWN_LADDER + DIRECT] = (Rung(basis="direct"), Rung(basis="unallocated"))
    ladders[_OWN_LADDER + UNTAGGED] = (Rung(basis="unallocated"),)
    own = {pool.name for pool in tenant.pools}
    pools = []
    for pool in [*tenant.pools, *(pool for pool in book.pools if pool.name not in own)]:
        parts = tuple(_named_parts(f"pool:{pool.name}", pool, ladders))
        pools.append(
            ResolvedPool(f"pool:{pool.name}", pool.match, pool.window or _default_window(pool.match, book), parts)
        )
    named = {name: tuple(_with_identities(rung, tenant) for rung in ladder) for name, ladder in ladders.items()}
    return Rules(tuple(pools), named, _rules_frame(tenant, pools, named), operator=names.operator(tenant))


def _with_identities(rung: Rung, tenant: AwsTenant) -> Rung:
    """The rung with percentages by identity instead of by name."""
    if rung.percentages is None:
        return rung
    shares = {names.identity(tenant.owner, name): percentage for name, percentage in rung.percentages.items()}
    return rung.model_copy(update={"percentages": shares})


@cache
def rulebook(ecosystem: str) -> Rulebook:
    """The rulebook of an ecosystem."""
    return load_rulebook(Path(__file__).parent / "rulebook" / f"{ecosystem}.yaml")


def _named_parts(rule_id: str, given: Pool | Product, ladders: dict[str, tuple[Rung, ...]]) -> Iterator[ResolvedPart]:
    """The parts of a pool or product; ladders written in place are added to `ladders` under the rule's id."""
    parts = [(part.share, part.ladder) for part in given.parts] if given.parts else [(Decimal(1), given.ladder)]
    for number, (share, ladder) in enumerate(parts):
        if isinstance(ladder, str):
            yield ResolvedPart(share, ladder)
        elif ladder is not None:
            name = rule_id if len(parts) == 1 else f"{rule_id}:{number}"
            ladders[name] = tuple(ladder)
            yield ResolvedPart(share, name)


def _default_window(match: Match, book: Rulebook) -> str:
    """`month` where one of the match's conditions only has patterns of the rulebook's month windows, else `day`."""
    for monthly in book.month_window:
        for field in monthly.model_fields_set:
            patterns = getattr(match, field)
            if patterns and all(
                any(globs.covers(known, pattern) for known in getattr(monthly, field)) for pattern in patterns
            ):
                return "month"
    return "day"


def _rules_frame(
    tenant: AwsTenant, pools: Sequence[ResolvedPool], ladders: Mapping[str, tuple[Rung, ...]]
) -> pl.DataFrame:
    operator = names.operator(tenant)
    whole = Decimal(1)
    rules = [
        (DIRECT, (ResolvedPart(whole, _OWN_LADDER + DIRECT),), "owner_tag", ""),
        (UNTAGGED, (ResolvedPart(whole, _OWN_LADDER + UNTAGGED),), UNTAGGED, ""),
        *((pool.rule_id, pool.parts, pool.rule_id.removeprefix("pool:"), _condition_text(pool)) for pool in pools),
    ]
    rows = [
        _rung_row(
            (rule_id, number, int(part.share * money.UNITS), part.ladder, rung_number),
            rung,
            _pool_labels(rung, rung_number, detail),
            operator,
            _version(conditions, parts, ladders, operator),
        )
        for rule_id, parts, detail, conditions in rules
        for number, part in enumerate(parts)
        for rung_number, rung in enumerate(ladders[part.ladder])
    ]
    return _rows_frame(rows)


def _pool_labels(rung: Rung, number: int, detail: str) -> tuple[str, str, str]:
    """cost_type, allocation_method, allocation_detail of a pool's rung."""
    # A last rung that only takes what the first could not place says why the first did not hold.
    fell = rung.basis == "unallocated" and number > 0
    return (*LABELS[rung.basis], "" if fell else detail)


def _rung_row(
    key: tuple[str, int, int, str, int], rung: Rung, labels: tuple[str, str, str], operator: str, version: str
) -> tuple[object, ...]:
    """A row of RULES; `key` is rule_id, part, share, ladder, rung."""
    payer = {"operator": operator, "unallocated": UNALLOCATED}.get(rung.basis, "")
    return (*key, rung.basis, metric(rung), payer, *labels, version)


def metric(rung: Rung) -> str:
    """What a rung weighs by, for people and for EMPTY_KEYS: a key, a scope, a population."""
    match rung.basis:
        case "usage":
            return rung.key or " + ".join(rung.metrics or [])
        case "cost":
            return rung.scope or ""
        case "even":
            return rung.population or "owners"
        case "weighted":
            return ", ".join(f"{key} {weight:f}" for key, weight in sorted((rung.keys or {}).items()))
        case _:
            return ""


def _version(
    conditions: str, parts: Sequence[ResolvedPart], ladders: Mapping[str, tuple[Rung, ...]], operator: str
) -> str:
    """12 hex digits that change when anything that makes the rule's amounts changes."""
    content = [[part.share, [rung.model_dump(exclude_none=True) for rung in ladders[part.ladder]]] for part in parts]
    text = json.dumps([conditions, content, operator], sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(number: object) -> str:
    """A decimal in one form, however it was written: 0.5 for 0.500."""
    if not isinstance(number, Decimal):
        raise TypeError(f"{number!r} is not a decimal")
    return f"{number.normalize():f}"


def _product_rules(tenant: ProductTenant) -> Rules:
    book = rulebook(tenant.ecosystem)
    ladders: dict[str, tuple[Rung, ...]] = {
        name: tuple(rungs) for name, rungs in {**book.ladders, **tenant.ladders}.items()
    }
    products_given = _cost_type_products(tenant, ladders) if isinstance(tenant, GenericTenant) else tenant.products
    given = {f"product:{name}": product for name, product in {**book.products, **products_given}.items()}
    if book.default_product is not None:
        given[UNKNOWN_PRODUCT] = book.default_product
    products = {
        rule_id: ResolvedProduct(tuple(_named_parts(rule_id, product, ladders)), product.partial_life)
        for rule_id, product in given.items()
    }
    if "malformed" in ladders:
        products[MALFORMED] = ResolvedProduct((ResolvedPart(Decimal(1), "malformed"),))
    operator = names.operator(tenant)
    rows = [
        row
        for rule_id, product in products.items()
        for row in _product_rows(rule_id, _shares(product), product, ladders, operator)
    ]
    return Rules((), ladders, _rows_frame(rows), products, operator)


def _cost_type_products(tenant: GenericTenant, ladders: Mapping[str, tuple[Rung, ...]]) -> dict[str, Product]:
    """A product for each cost type, with the ladder of its allocation; `allocation` in it stands for its own values."""
    return {
        one.name: Product(ladder=[_of_cost_type(rung, one.name) for rung in ladders[one.allocation]])
        for one in tenant.source.cost_types
    }


def _of_cost_type(rung: Rung, name: str) -> Rung:
    if rung.metrics is None:
        return rung
    return rung.model_copy(update={"metrics": [name if one == OWN_ALLOCATION else one for one in rung.metrics]})


def _rows_frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    return shape(pl.LazyFrame(rows, schema=RULES.schema, orient="row"), RULES).collect()


def _shares(product: ResolvedProduct) -> list[tuple[int, int, str]]:
    """(part, integer share, ladder) of each of a product's parts."""
    return [(number, int(part.share * money.UNITS), part.ladder) for number, part in enumerate(product.parts)]


def _product_rows(
    rule_id: str,
    shares: Sequence[tuple[int, int, str]],
    product: ResolvedProduct,
    ladders: Mapping[str, tuple[Rung, ...]],
    operator: str,
) -> Iterator[tuple[object, ...]]:
    """The rows of RULES of a product's rule with these parts."""
    version = _version(product.partial_life, product.parts, ladders, operator)
    for part, share, ladder in shares:
        for number, rung in enumerate(ladders[ladder]):
            yield _rung_row(
                (rule_id, part, share, ladder, number), rung, _product_labels(rung, number), operator, version
            )


def _product_labels(rung: Rung, number: int) -> tuple[str, str, str]:
    """cost_type, allocation_method, allocation_detail of a product's rung."""
    cost_type, method = LABELS[rung.basis]
    method = ALLOCATION_FAILED if rung is _FAILED else method
    return rung.cost_type or cost_type, method, rung.detail or _detail(rung, number)


def _detail(rung: Rung, number: int) -> str:
    """A last rung takes what identities could not; alone, nobody looked for any."""
    return DETAILS.get(rung.basis, "no_identities_located" if number else "default_allocation")


def match_products(lines: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """BILLING -> the same rows with `rule_id`, `window` (the day) and `weight_scope` (the day and the resource)."""
    by_product = pl.concat_str(pl.lit("product:"), pl.col("product_type").cast(pl.String))
    resource = pl.col("resource_id").cast(pl.String)
    return lines.with_columns(
        rule_id=pl.when(resource.str.starts_with(f"{MALFORMED}_") & (MALFORMED in rules.products))
        .then(pl.lit(MALFORMED))
        .when(by_product.is_in(list(rules.products)))
        .then(by_product)
        .otherwise(pl.lit(UNKNOWN_PRODUCT)),
        window=pl.col("charge_date").dt.to_string("%Y-%m-%d"),
    ).with_columns(
        weight_scope=pl.concat_str(
            pl.col("window"), pl.lit(" "), pl.struct(resource.alias("resource_id")).struct.json_encode()
        )
    )


def metrics_of(rules: Rules) -> dict[str, frozenset[str]]:
    """rule_id of each product -> the metrics that its ladders may weigh by."""
    return {
        rule_id: frozenset(
            name for part in product.parts for rung in rules.ladders[part.ladder] for name in rung.metrics or ()
        )
        for rule_id, product in rules.products.items()
    }


def with_derived(
    lines: pl.DataFrame, rules: Rules, lives: pl.DataFrame, failed: Mapping[str, Iterable[tuple[str, str]]]
) -> pl.DataFrame:
    """Lines matched by product -> the same with the rules of their day in `rule_id`.

    `lives`: window (a day), resource id, alive_seconds (of the day). `failed`: window -> (metric, resource id) of what
    could not be read. A rule that is derived from a product's for one day is named after it and what is different, and
    not after a resource, so that there are few: `product:X alive=43200 failed=bytes_in`.
    """
    partial = [rule_id for rule_id, product in rules.products.items() if product.partial_life == "unallocated"]
    short = lives.filter(pl.col("alive_seconds") < SECONDS_A_DAY).rename({"id": "resource_id"})
    is_short = pl.col("rule_id").is_in(partial) & pl.col("alive_seconds").is_not_null()
    alive = pl.when(is_short).then(pl.concat_str(pl.lit(" alive="), pl.col("alive_seconds"))).otherwise(pl.lit(""))
    without = pl.concat_str(pl.lit(" failed="), pl.col("failed")).fill_null("")
    key = ["window", "resource_id"]
    return (
        lines.join(short, on=key, how="left", validate="m:1", maintain_order="left")
        .join(_failing(rules, failed), on=[*key, "rule_id"], how="left", validate="m:1", maintain_order="left")
        .with_columns(rule_id=pl.concat_str("rule_id", alive, without))
        .drop("alive_seconds", "failed")
    )


def _failing(rules: Rules, failed: Mapping[str, Iterable[tuple[str, str]]]) -> pl.DataFrame:
    """window, resource_id, rule_id, failed: the metrics (sorted, with commas) that a rule lacks for a resource."""
    text = pl.String
    used = [(rule_id, metric) for rule_id, metrics in metrics_of(rules).items() for metric in metrics]
    by_rule = pl.DataFrame(used, schema={"rule_id": text, "metric": text}, orient="row")
    by_resource = pl.DataFrame(
        [(window, *pair) for window, pairs in failed.items() for pair in pairs],
        schema={"window": text, "metric": text, "resource_id": text},
        orient="row",
    )
    found = by_rule.join(by_resource, on="metric", how="inner").group_by("window", "resource_id", "rule_id")
    return found.agg(failed=pl.col("metric").sort().str.join(","))


def derived(rules: Rules, rule_ids: Iterable[str]) -> Rules:
    """The rules with these alone in the table, each as its id says: of a product, or derived from one for a day.

    A resource that lived for a part of the day: what it did not live goes to UNALLOCATED as a first part, in exact
    shares of seconds. A failed metric: each ladder goes as far as it does without, and then to UNALLOCATED.
    """
    ladders = {**rules.ladders, _OWN_LADDER + "inactive": (_INACTIVE,)}
    wanted = sorted(set(rule_ids))
    changed = [rule_id for rule_id in wanted if " " in rule_id]
    rows = [row for rule_id in changed for row in _derived_rows(rule_id, rules, ladders)]
    known = rules.frame.filter(pl.col("rule_id").is_in(wanted))
    return rules._replace(ladders=ladders, frame=pl.concat([known, _rows_frame(rows)]) if rows else known)


def base(rule_id: str) -> str:
    """The rule that a derived one is derived from; any other itself."""
    return rule_id.partition(" ")[0]


def _derived_rows(rule_id: str, rules: Rules, ladders: dict[str, tuple[Rung, ...]]) -> Iterator[tuple[object, ...]]:
    """RULES of a derived rule; ladders that end early are added to `ladders`."""
    base, *changes = rule_id.split(" ")
    product, change = rules.products[base], dict(text.split("=") for text in changes)
    shares = _shares(product)
    if "failed" in change:
        suffix, failed = f" failed={change['failed']}", frozenset(change["failed"].split(","))
        shares = [(part, share, _cut(ladder, suffix, failed, ladders)) for part, share, ladder in shares]
    if "alive" in change:
        alive = int(change["alive"])
        lived = [(part + 1, share * alive, ladder) for part, share, ladder in shares]
        dead = (0, (SECONDS_A_DAY - alive) * money.UNITS, _OWN_LADDER + "inactive")
        shares = [entry for entry in (dead, *lived) if entry[1] > 0]
    return _product_rows(rule_id, shares, product, ladders, rules.operator)


def _cut(ladder: str, suffix: str, failed: frozenset[str], ladders: dict[str, tuple[Rung, ...]]) -> str:
    """The ladder that ends before the first rung that needs a failed metric; itself if none does."""
    rungs = ladders[ladder]
    first = next((number for number, rung in enumerate(rungs) if failed.intersection(rung.metrics or ())), None)
    if first is None:
        return ladder
    ladders[ladder + suffix] = (*rungs[:first], _FAILED)
    return ladder + suffix


def _condition_text(pool: ResolvedPool) -> str:
    return json.dumps([pool.match.model_dump(mode="json", exclude_none=True), pool.window], sort_keys=True)


def match(lines: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """BILLING with `owner` -> the same rows with `rule_id`, `window` and `weight_scope`; a line is matched once.

    A line with an owner goes to `direct`, another to the first pool all of whose conditions hold, the rest to
    `untagged`. `window` is the text of the rule's window ('2025-09-01', '2025-09', '' for direct); `weight_scope` adds
    what else tells the rule's weight groups apart: the owner (direct), or account, service and currency where a rung
    weighs cost. Lines that are alike in all that rules look at are looked at once.
    """
    seen = columns_seen(rules)
    kinds = lines.select(seen).unique()
    return lines.join(match_kinds(kinds, rules), on=seen, how="left", validate="m:1", maintain_order="left")


def columns_seen(rules: Rules) -> list[str]:
    """The columns of lines on which their rule, window and weight scope depend."""
    conditions = {MATCH_COLUMNS.get(name, "tags") for pool in rules.pools for name in pool.match.model_fields_set}
    scopes = {
        column for pool in rules.pools for column in (*(_scope_columns(pool, rules.ladders) or ()), "currency")
        if _scope_columns(pool, rules.ladders) is not None
    }  # fmt: skip
    return sorted({"owner", "billing_period", "charge_date", *conditions, *scopes})


def match_kinds(kinds: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """`match` of lines of which hardly two are alike in all that rules look at (`columns_seen`)."""
    keys = sorted({tag_key(key) for pool in rules.pools for key in pool.match.tag or {}})
    conditions = [
        (-1, pl.col("owner") != ""),
        *((index, _condition(pool.match)) for index, pool in enumerate(rules.pools)),
    ]
    # The first that is not null. Pools by the dozen in one chain of conditions take twice as long.
    numbers = [pl.when(condition).then(pl.lit(index, pl.Int16)) for index, condition in conditions]
    rule_ids = [*(pool.rule_id for pool in rules.pools), UNTAGGED]
    monthly = [index for index, pool in enumerate(rules.pools) if pool.window == "month"]
    return (
        (with_tags(kinds, keys) if keys else kinds)
        .with_columns(_pool=pl.coalesce(*numbers, pl.lit(len(rules.pools), pl.Int16)))
        .with_columns(
            rule_id=pl.col("_pool").replace_strict({-1: DIRECT, **dict(enumerate(rule_ids))}, return_dtype=pl.String),
            # An owner bears a line whatever the window: one weight group per owner, not one per day.
            window=pl.when(pl.col("_pool") == -1)
            .then(pl.lit(""))
            .when(pl.col("_pool").is_in(monthly))
            .then(pl.col("billing_period"))
            .otherwise(pl.col("charge_date").dt.to_string("%Y-%m-%d")),
        )
        .with_columns(weight_scope=_weight_scope(rules))
        .drop("_pool", "_tags", strict=False)
    )


def _weight_scope(rules: Rules) -> pl.Expr:
    scope: Then | ChainedThen = pl.when(pl.col("_pool") == -1).then(pl.col("owner"))
    for columns in SCOPES.values():
        pools = [index for index, pool in enumerate(rules.pools) if _scope_columns(pool, rules.ladders) == columns]
        if pools:
            text = pl.struct(*columns, "currency").struct.json_encode()
            scope = scope.when(pl.col("_pool").is_in(pools)).then(pl.concat_str(pl.col("window"), pl.lit(" "), text))
    return scope.otherwise(pl.col("window"))


def _scope_columns(pool: ResolvedPool, ladders: Mapping[str, tuple[Rung, ...]]) -> tuple[str, ...] | None:
    """The columns of the pool's finest cost scope; None if no rung weighs cost."""
    scopes = [SCOPES[rung.scope] for part in pool.parts for rung in ladders[part.ladder] if rung.scope]
    return max(scopes, key=len, default=None)


def _condition(match: Match) -> pl.Expr:
    conditions = [
        globs.fits(pl.col(column), getattr(match, field))
        for field, column in MATCH_COLUMNS.items()
        if getattr(match, field)
    ]
    conditions += [
        globs.fits(pl.col("_tags").struct.field(tag_key(key)), patterns).fill_null(value=False)
        for key, patterns in (match.tag or {}).items()
    ]
    return reduce(lambda left, right: left & right, conditions, pl.lit(True))


def faults(config: Config, document: Document) -> list[str]:
    """Every rule of the configuration that cannot work, with its place in the file."""
    found: list[str] = []
    seen: set[str] = set()
    for number, tenant in enumerate(config.tenants):
        if tenant.id in seen:
            where = document.where(("tenants", number, "id"))
            found.append(fault(where, f"tenant {shown(tenant.id)} stands twice", "every tenant once"))
        seen.add(tenant.id)
        path = ("tenants", number)
        if isinstance(tenant, AwsTenant):
            found += _PoolRules(tenant, path, document).faults()
        else:
            found += _ProductRules(tenant, path, document).faults()
    return found


class _TenantRules:
    """The checks of one tenant's ladders; a class only to carry tenant, path and document through them."""

    def __init__(self, tenant: Tenant, path: tuple[str | int, ...], document: Document) -> None:
        self.path, self.document = path, document
        book = rulebook(tenant.ecosystem)
        self.ladder_names = {*book.ladders, *tenant.ladders}
        self.operator = names.operator(tenant)

    def where(self, *path: str | int) -> str:
        return self.document.where((*self.path, *path))

    def _ladders_faults(self, path: tuple[str | int, ...], named: str, given: Pool | Product) -> Iterator[str]:
        """What is wrong with the ladder or the parts of a pool or product."""
        if (given.ladder is None) == (given.parts is None):
            seen = "neither ladder nor parts" if given.ladder is None else "both ladder and parts"
            yield fault(self.where(*path), f"{named} has {seen}", "one of them")
        if given.ladder is not None:
            yield from self._ladder_faults((*path, "ladder"), given.ladder)
        for number, part in enumerate(given.parts or []):
            yield from self._ladder_faults((*path, "parts", number, "ladder"), part.ladder)

    def _share_faults(self, path: tuple[str | int, ...], given: Pool | Product) -> Iterator[str]:
        total = sum((part.share for part in given.parts or []), Decimal(0))
        if given.parts and total != 1:
            yield fault(self.where(*path, "parts"), f"shares total {total:f}", "a total of 1")

    def _ladder_faults(self, path: tuple[str | int, ...], ladder: str | list[Rung]) -> Iterator[str]:
        if isinstance(ladder, str):
            if ladder not in self.ladder_names:
                known = ", ".join(sorted(self.ladder_names))
                yield fault(self.where(*path), f"unknown ladder {shown(ladder)}", f"one of {known}")
            return
        for number, rung in enumerate(ladder):
            yield from self._rung_faults((*path, number), rung, last=number == len(ladder) - 1)

    def _rung_faults(self, path: tuple[str | int, ...], rung: Rung, *, last: bool) -> Iterator[str]:
        raise NotImplementedError

    def _place_faults(self, where: str, rung: Rung, *, last: bool) -> Iterator[str]:
        """What is wrong with where a rung stands."""
        bases = ", ".join(sorted(LAST_BASES))
        if last and rung.basis not in LAST_BASES:
            yield fault(
                where, f"the last rung is {shown(rung.basis)}, which may weigh nothing", f"a last rung of {bases}"
            )
        if not last and rung.basis in LAST_BASES:
            yield fault(where, f"basis {shown(rung.basis)} takes all, no later rung can hold", "it to be the last rung")

    def _operator_faults(self, where: str, rung: Rung) -> Iterator[str]:
        if rung.basis == "operator" and not self.operator:
            yield fault(where, "basis 'operator', but the tenant has no operator", "operator: NAME in the tenant")


class _ProductRules(_TenantRules):
    """The checks of a tenant whose products have ladders."""

    def __init__(self, tenant: ProductTenant, path: tuple[str | int, ...], document: Document) -> None:
        super().__init__(tenant, path, document)
        self.tenant = tenant

    def faults(self) -> Iterator[str]:
        if self.operator == UNALLOCATED:
            yield fault(self.where("operator"), f"operator {shown(self.operator)}", "a name that is not reserved")
        for name, ladder in self.tenant.ladders.items():
            yield from self._ladder_faults(("ladders", name), ladder)
        for product_type, product in ({} if isinstance(self.tenant, GenericTenant) else self.tenant.products).items():
            path = ("products", product_type)
            yield from self._ladders_faults(path, f"product {shown(product_type)}", product)
            yield from self._share_faults(path, product)

    def _rung_faults(self, path: tuple[str | int, ...], rung: Rung, *, last: bool) -> Iterator[str]:
        where = self.where(*path)
        if rung.basis not in _PRODUCT_FIELDS:
            known = ", ".join(sorted(_PRODUCT_FIELDS))
            yield fault(where, f"basis {shown(rung.basis)} in a ladder of products", f"one of {known}")
            return
        yield from self._place_faults(where, rung, last=last)
        yield from self._field_faults(where, rung)
        yield from self._operator_faults(where, rung)

    def _field_faults(self, where: str, rung: Rung) -> Iterator[str]:
        needed, allowed = _PRODUCT_FIELDS[rung.basis]
        if needed and getattr(rung, needed) is None:
            yield fault(where, f"basis {shown(rung.basis)} without {needed}", needed)
        for field in sorted(set(rung.model_fields_set) - {"basis"}):
            if field not in allowed:
                yield fault(where, f"basis {shown(rung.basis)} with {field}", f"only {', '.join(sorted(allowed))}")
        if rung.population == "owners":
            known = "active, metrics_derived, period_accounts, period_owners, resource_active"
            yield fault(where, "population 'owners', which only lines with tags have", f"one of {known}")
        if rung.population == "metrics_derived" and rung.metrics is None:
            yield fault(where, "population 'metrics_derived' without metrics", "metrics")
        if rung.metrics and rung.population in {*TENANT_WIDE, "resource_active"}:
            seen = f"population {shown(rung.population)} with metrics, which it does not look at"
            yield fault(where, seen, "population active or metrics_derived, or no metrics")
        known_metrics = METRICS[self.tenant.ecosystem]
        for name in sorted(set(rung.metrics or []) - set(known_metrics)):
            yield fault(where, f"unknown metric {shown(name)}", f"one of {', '.join(known_metrics)}")
        for name in sorted({name for name in rung.metrics or [] if (rung.metrics or []).count(name) > 1}):
            yield fault(where, f"metric {shown(name)} stands twice", "every metric once")


_LAST_FIELDS = frozenset({"cost_type", "detail"})
_PRODUCT_FIELDS: dict[str, tuple[str | None, frozenset[str]]] = {
    "usage": ("metrics", _LAST_FIELDS | {"metrics"}),
    "even": ("population", _LAST_FIELDS | {"population", "metrics"}),
    "resource": (None, _LAST_FIELDS),
    "unallocated": (None, _LAST_FIELDS),
    "operator": (None, frozenset({"detail"})),
}
"""Basis of a product's rung -> the field it needs, and those it may have."""


class _PoolRules(_TenantRules):
    """The checks of a tenant whose owners stand in tags."""

    def __init__(self, tenant: AwsTenant, path: tuple[str | int, ...], document: Document) -> None:
        super().__init__(tenant, path, document)
        self.tenant = tenant

    def faults(self) -> Iterator[str]:
        yield from self._alias_faults()
        for name, ladder in self.tenant.ladders.items():
            yield from self._ladder_faults(("ladders", name), ladder)
        seen: set[str] = set()
        for number, pool in enumerate(self.tenant.pools):
            if pool.name in seen:
                yield fault(
                    self.where("pools", number, "name"), f"pool {shown(pool.name)} stands twice", "every pool once"
                )
            seen.add(pool.name)
            yield from self._pool_faults(number, pool)

    def _alias_faults(self) -> Iterator[str]:
        known = {normalised_text(identity) for identity in self.tenant.owner.identities}
        targets: dict[str, str] = {}
        for alias, identity in self.tenant.owner.aliases.items():
            where, key, target = (
                self.where("owner", "aliases", alias),
                normalised_text(alias),
                normalised_text(identity),
            )
            if key in known and key != target:
                yield fault(where, f"alias {shown(alias)} is an identity itself", "another spelling of one")
            if targets.setdefault(key, target) != target:
                yield fault(where, f"alias {shown(alias)} stands for {shown(targets[key])} already", "one identity")
            if key == UNALLOCATED.lower():
                yield fault(where, f"alias {shown(alias)} is reserved", "a name that is not")
        for alias, identity in self.tenant.owner.aliases.items():
            target = normalised_text(identity)
            if target in targets and targets[target] != target:
                where = self.where("owner", "aliases", alias)
                yield fault(where, f"{shown(identity)} is an alias itself", "the identity it stands for")
        for number, identity in enumerate(self.tenant.owner.identities):
            if normalised_text(identity) == UNALLOCATED.lower():
                yield fault(self.where("owner", "identities", number), f"{shown(identity)} is reserved", "another name")
        if self.operator == UNALLOCATED.lower():
            yield fault(
                self.where("operator"), f"operator {shown(self.tenant.operator)}", "a name that is not reserved"
            )

    def _pool_faults(self, number: int, pool: Pool) -> Iterator[str]:
        yield from self._ladders_faults(("pools", number), f"pool {shown(pool.name)}", pool)
        spelled: dict[str, str] = {}
        for key in pool.match.tag or {}:
            if spelled.setdefault(tag_key(key), key) != key:
                where = self.where("pools", number, "match", "tag", key)
                yield fault(where, f"tag {shown(key)} is {shown(spelled[tag_key(key)])} again", "every tag once")
        yield from self._share_faults(("pools", number), pool)
        if takers := [shown(one.name) for one in _takers(self.tenant.pools[:number], pool)]:
            they = f"pool {takers[0]} takes" if len(takers) == 1 else f"pools {', '.join(takers)} take"
            yield fault(
                self.where("pools", number, "match"),
                f"pool {shown(pool.name)} can never match, {they} all its lines",
                "a condition that an earlier pool leaves open, or another order",
            )

    def _rung_faults(self, path: tuple[str | int, ...], rung: Rung, *, last: bool) -> Iterator[str]:
        where = self.where(*path)
        if rung.basis == "direct":
            yield fault(
                where, "basis 'direct'", "a basis for lines without an owner (tagged lines are direct by themselves)"
            )
        yield from self._place_faults(where, rung, last=last)
        needed = OPERANDS.get(rung.basis)
        given = sorted(set(rung.model_fields_set) - {"basis"})
        if needed and getattr(rung, needed) is None:
            yield fault(where, f"basis {shown(rung.basis)} without {needed}", f"{needed}")
        for field in given:
            if field != needed:
                yield fault(where, f"basis {shown(rung.basis)} with {field}", f"only {needed or 'basis'}")
        yield from self._operator_faults(where, rung)
        if rung.basis in ("usage", "weighted") and not self.tenant.keys:
            yield fault(
                where, f"basis {shown(rung.basis)}, but the tenant has no key table", "keys: [FILE] in the tenant"
            )
        yield from self._percentage_faults((*path, "percentages"), rung.percentages or {})

    def _percentage_faults(self, path: tuple[str | int, ...], percentages: Mapping[str, Decimal]) -> Iterator[str]:
        total = sum(percentages.values(), Decimal(0))
        if percentages and total != 100:
            yield fault(self.where(*path), f"percentages total {total:f}", "a total of 100")
        spelled: dict[str, str] = {}
        for identity in percentages:
            key, where = names.identity(self.tenant.owner, identity), self.where(*path, identity)
            if key in (self.operator, UNALLOCATED.lower()):
                yield fault(
                    where, f"{shown(identity)} in a denominator", "an identity that is neither operator nor UNALLOCATED"
                )
            if key in spelled:
                yield fault(where, f"{shown(identity)} is {shown(spelled[key])} again", "every identity once")
            spelled[key] = identity


_Conditions = dict[str, list[str]]
"""Column or tag -> patterns of which one must fit. A column that is not in it may have any text."""


def _conditions(match: Match) -> Iterator[tuple[str, list[str]]]:
    for field in MATCH_COLUMNS:
        if patterns := getattr(match, field):
            yield field, patterns
    for key, patterns in (match.tag or {}).items():
        yield f"tag {tag_key(key)}", patterns


_CONDITIONS_MAX = 100
"""How many conditions what is left of a pool's lines may take to be told; there may be pools by the hundred."""


def _takers(earlier: Sequence[Pool], pool: Pool) -> list[Pool]:
    """The first of the earlier pools that takes all lines of a pool, else those that together do; [] if none do.

    Decided pattern by pattern: one of the pool's is taken where an earlier pool has one that covers it. So a pool that
    is refused can never match, and one that can never match is refused unless its conditions have globs that only
    several together cover (`?*` and '' cover `*`), or what earlier pools leave of it takes too many conditions to tell.
    """
    whole = dict(_conditions(pool.match))
    for one in earlier:
        if not _without(whole, one.match):
            return [one]
    left, takers = [whole], []
    for one in earlier:
        rest = [conditions for before in left for conditions in _without(before, one.match)]
        if rest != left:
            takers.append(one)
        if not rest:
            return takers
        if len(rest) > _CONDITIONS_MAX:
            break
        left = rest
    return []


def _without(lines: _Conditions, taken: Match) -> list[_Conditions]:
    """What a match leaves of the lines for which all conditions hold: lines for which all of one of these hold."""
    left: list[_Conditions] = []
    within = lines
    for name, patterns in _conditions(taken):
        # A line may have any text in a column, and not have a tag at all.
        given = lines.get(name, [] if name.startswith("tag ") else ["*"])
        inside = [pattern for pattern in given if globs.any_covers(patterns, pattern)]
        if not inside:
            return [lines]
        if len(inside) < len(given):
            left.append({**within, name: [pattern for pattern in given if pattern not in inside]})
        within = {**within, name: inside}
    return left
