"""Every table that crosses a stage, declared once: columns, key, and the two kinds of check.

`shape` compares a frame's lazy schema with its table and is cheap, so every stage ends with it. `check_rows` looks
at the data (nulls, key uniqueness) and runs at the two edges: after a source, before a write.

Text is '' when absent, never null, so that keys are NULL-safe by construction. In memory a text column may be an
Enum (a day's labels are encoded once and fan out as codes); on disk it is always plain String.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from functools import reduce
from operator import or_
from typing import NamedTuple

import polars as pl

from engine.errors import ContractError, LedgerError, fault, shown
from engine.money import AMOUNT, UNITS, UNITS_MAX

# Rows that are in memory already gain nothing from a stream, which takes a tenth of a millisecond to begin, several
# hundred times a day. Who reads files of any size asks for the streaming engine.
pl.Config.set_engine_affinity("in-memory")

UNALLOCATED = "UNALLOCATED"
"""The identity that bears what no rung could place. It never weighs."""

LINE_AS_ROWS = 20
"""A billing line, which the checks group and join by, takes them about as much memory as so many rows of chargeback."""
MEASURES = ("amount", "effective_amount", "list_amount", "contracted_amount")


class Table(NamedTuple):
    """A declared table.

    `schema` maps columns to dtypes in order; `key` columns identify a row and give the order on disk; `nullable`
    names the columns that may hold null; `varied` those that hardly ever repeat from one row to the next, which is how
    `digests` and `lake` then treat them, and the only ones that differ within one of `Blocks`.
    """

    name: str
    schema: dict[str, pl.DataType]
    key: tuple[str, ...]
    nullable: frozenset[str] = frozenset()
    varied: frozenset[str] = frozenset()

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self.schema)


class Blocks(NamedTuple):
    """Rows of a table that come in blocks, within which only the table's `varied` columns differ.

    `varied`: some of these columns, or all, row by row. `steady`: all others, one row for each block. `starts`: the
    places, from 0, of each block's first row. Neighbouring blocks may say the same. `constant`: which of the steady
    columns are known to say the same of all blocks.
    """

    varied: pl.DataFrame
    steady: pl.DataFrame
    starts: pl.Series
    constant: frozenset[str] = frozenset()


def halves(chunk: pl.DataFrame | Blocks, table: Table) -> list[tuple[pl.DataFrame, Table]]:
    """The frames that rows of a table lie in, each with what it is to have of the table."""
    if isinstance(chunk, pl.DataFrame):
        return [(chunk, table)]
    varied, steady = (
        table._replace(schema={name: dtype for name, dtype in table.schema.items() if (name in chunk.varied) == chosen})
        for chosen in (True, False)
    )
    return [(chunk.varied, varied), (chunk.steady, steady)]


_TEXT, _DATE, _TIME, _KEY = pl.String(), pl.Date(), pl.Datetime("us"), pl.Int64()

_LABELS: dict[str, pl.DataType] = {
    "ecosystem": _TEXT,
    "billing_period": _TEXT,
    "env_id": _TEXT,
    "resource_id": _TEXT,
    "product_category": _TEXT,
    "product_type": _TEXT,
    "line_item_type": _TEXT,
    "region": _TEXT,
    "operation": _TEXT,
    "sub_account_id": _TEXT,
    "invoice_id": _TEXT,
}
_AMOUNTS: dict[str, pl.DataType] = dict.fromkeys(MEASURES, AMOUNT)
_OPTIONAL_MEASURES = frozenset(MEASURES[1:])

BILLING = Table(
    "billing",
    {
        "tenant_id": _TEXT,
        "charge_date": _DATE,
        "line_id": _KEY,
        **_LABELS,
        "quantity": AMOUNT,
        "unit": _TEXT,
        "currency": _TEXT,
        "tags": _TEXT,
        **_AMOUNTS,
    },
    key=("tenant_id", "charge_date", "line_id"),
    nullable=_OPTIONAL_MEASURES | {"quantity"},
    varied=frozenset({"line_id", "resource_id", "quantity", "tags", *MEASURES}),
)
"""One billing line of one day. `tags` is canonical JSON: an object, keys sorted, no blanks, values never ''."""

RULES = Table(
    "rules",
    {
        "rule_id": _TEXT,
        "part": pl.Int16(),
        "share": pl.Int64(),
        "ladder": _TEXT,
        "rung": pl.Int16(),
        "basis": _TEXT,
        "metric": _TEXT,
        "payer": _TEXT,
        "cost_type": _TEXT,
        "allocation_method": _TEXT,
        "allocation_detail": _TEXT,
        "version": _TEXT,
    },
    key=("rule_id", "part", "rung"),
)
"""One rung of one part of one rule.

`share` is the part's integer share of the line (over the parts of a rule they may total anything below 2**62);
`ladder` names the rungs, which rules may have in common; `metric` is what a rung weighs by (a key, a scope, a
population; for people); `payer` is who a last rung charges ('' for the line's resource); `allocation_detail` ''
on a last rung means: the reason why the first rung did not hold.
"""

WEIGHTS = Table(
    "weights",
    {"weight_group": _TEXT, "rung": pl.Int16(), "identity_id": _TEXT, "weight": pl.Int64()},
    key=("weight_group", "rung", "identity_id"),
)
"""One candidate payer of one group at one rung; `weight` is never negative and a group's rung totals less than 2**62.

`weight_group` is `ladder@weight_scope` (see `weight_group`).
"""

CHARGEBACK = Table(
    "chargeback",
    {
        "tenant_id": _TEXT,
        "charge_date": _DATE,
        "line_id": _KEY,
        "part": pl.Int16(),
        "identity_id": _TEXT,
        **_LABELS,
        "currency": _TEXT,
        **_AMOUNTS,
        "cost_type": _TEXT,
        "allocation_method": _TEXT,
        "allocation_detail": _TEXT,
        "rule_id": _TEXT,
        "rule_version": _TEXT,
        "rung": pl.Int16(),
        "part_amount": AMOUNT,
        "weight_before": pl.Int64(),
        "weight": pl.Int64(),
        "weight_total": pl.Int64(),
        "calculation_id": _TEXT,
    },
    key=("tenant_id", "charge_date", "line_id", "part", "identity_id"),
    nullable=_OPTIONAL_MEASURES,
    varied=frozenset({"identity_id", *MEASURES, "weight_before", "weight"}),
)
"""One amount charged to one identity for one part of one line, with the numbers that made it.

amount = sign(part_amount) * (q * weight + r * (weight_before + weight) // total - r * weight_before // total) with
total = weight_total and q, r = divmod(|part_amount|, total), all in units of 1e-12.
"""

EMPTY_KEYS = Table(
    "empty_keys",
    {
        "tenant_id": _TEXT,
        "billing_period": _TEXT,
        "charge_date": _DATE,
        "rule_id": _TEXT,
        "part": pl.Int16(),
        "rung": pl.Int16(),
        "weight_scope": _TEXT,
        "basis": _TEXT,
        "metric": _TEXT,
        "reason": _TEXT,
    },
    key=("tenant_id", "charge_date", "rule_id", "part", "rung", "weight_scope", "metric"),
)
"""One key, population or scope that weighed nothing on a day on which a line asked for it.

`reason` is `empty_key` (no candidate) or `zero_key_total` (candidates, all of weight 0). A `weighted` rung has one
row for each of its keys that was empty, also when the rung itself held.
"""

USAGE = Table(
    "usage",
    {
        "tenant_id": _TEXT,
        "window": _TEXT,
        "resource_id": _TEXT,
        "metric": _TEXT,
        "principal": _TEXT,
        "value": AMOUNT,
    },
    key=("tenant_id", "window", "resource_id", "metric", "principal"),
)
"""One value of one metric of one principal on one resource in one window.

`window` is a day (YYYY-MM-DD) or a billing period (YYYY-MM); a metric is one or the other throughout. Rows of one key
may repeat: they are samples and are summed. A key table is this with resource_id ''; its keys are the metrics.
"""

_LIFE: dict[str, pl.DataType] = dict.fromkeys(("created_at", "deleted_at", "first_seen_at", "last_seen_at"), _TIME)
_INTERVAL: dict[str, pl.DataType] = {"tenant_id": _TEXT, "id": _TEXT, "valid_from": _DATE, "valid_to": _DATE}
_UNBOUNDED = frozenset({"valid_from", "valid_to", *_LIFE})

IDENTITIES = Table(
    "identities",
    {
        **_INTERVAL,
        "type": _TEXT,
        "display_name": _TEXT,
        "owner": _TEXT,
        "scope": _TEXT,
        **_LIFE,
    },
    key=("tenant_id", "id", "valid_from"),
    nullable=_UNBOUNDED,
)
"""One identity over one interval of days, `valid_to` exclusive; null bounds mean always. Times are UTC.

AWS: `type` is owner (in the configuration), unknown_owner (only seen in tags), operator or system. Confluent Cloud:
service_account, user, identity_pool, identity_provider, api_key (`owner` who holds it, `scope` the resource it is for),
principal (only seen in metrics) or system."""

RESOURCES = Table(
    "resources",
    {
        **_INTERVAL,
        "type": _TEXT,
        "display_name": _TEXT,
        "parent": _TEXT,
        "owner": _TEXT,
        "scope": _TEXT,
        **_LIFE,
    },
    key=("tenant_id", "id", "valid_from"),
    nullable=_UNBOUNDED,
)
"""One resource over one interval of days, `valid_to` exclusive; null bounds mean always. Times are UTC.

AWS: `type` is the product code, `scope` the usage account. Confluent Cloud: environment, kafka_cluster, connector,
schema_registry, ksqldb, flink_pool or flink_statement; `scope` is the environment, `parent` what it belongs to."""

_SEEN = ("id", "type", "display_name", "parent", "owner", "scope", "created_at")
RESOURCE_SNAPSHOT = Table(
    "resource_snapshot",
    {name: RESOURCES.schema[name] for name in _SEEN},
    key=("id",),
    nullable=frozenset({"created_at"}),
)
"""One resource as one gather of the inventory saw it."""
IDENTITY_SNAPSHOT = Table(
    "identity_snapshot",
    {name: IDENTITIES.schema[name] for name in _SEEN if name != "parent"},
    key=("id",),
    nullable=frozenset({"created_at"}),
)
"""One identity as one gather of the inventory saw it."""

TAGS = Table(
    "tags",
    {"tenant_id": _TEXT, "id": _TEXT, "key": _TEXT, "value": _TEXT},
    key=("tenant_id", "id", "key"),
)
"""One tag that a user's table gives to an identity or a resource, as of now."""

TEAMS = Table(
    "teams",
    {"tenant_id": _TEXT, "identity_id": _TEXT, "team": _TEXT},
    key=("tenant_id", "identity_id"),
)
"""The team of one identity, as of now. `identity_id` '' stands for every payer that has no row of its own.

Joined when results are shown, never stored with amounts: nobody is recalculated because a team changed.
"""

LAKE_TABLES = (BILLING, CHARGEBACK, EMPTY_KEYS, USAGE, IDENTITIES, RESOURCES, TAGS, TEAMS)
KEPT_WHOLE = (IDENTITIES, RESOURCES, TAGS, TEAMS)
"""Those of them of which a tenant has one file, not one a day."""


def tag_key(text: str) -> str:
    """The canonical form of a tag key, after the rule by which AWS turns CUR columns into snake case.

    An underscore goes before each upper-case letter, letters become lower-case, anything but letters and digits an
    underscore; runs collapse and the ends are stripped: 'CostCenter', 'cost-center' and 'cost_center' are one key. A
    text of nothing else stays as it is.
    """
    spaced = "".join(f"_{letter}" if letter.isupper() else letter for letter in text)
    return re.sub(r"[\W_]+", "_", spaced.lower()).strip("_") or text


def with_tags(frame: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """The rows of `frame` (which has `tags`) in their order with `_tags`, as in `decoded_tags`."""
    return frame.join(decoded_tags(frame, keys), on="tags", how="left", validate="m:1", maintain_order="left")


def decoded_tags(frame: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """The distinct `tags` of a frame with `_tags`: a struct of one text per canonical key, null where there is none."""
    return (
        frame.select("tags")
        .unique()
        .with_columns(_tags=pl.col("tags").str.json_decode(pl.Struct({key: pl.String() for key in keys})))
    )


def normalised(text: pl.Expr) -> pl.Expr:
    """What all spellings of one identity have in common: NFC, no outer blanks, single inner blanks, lower-case."""
    blanks = text.str.normalize("NFC").str.replace_all(r"\s+", " ")
    return blanks.str.strip_chars(" ").str.to_lowercase().str.normalize("NFC")


def normalised_text(text: str) -> str:
    """`normalised` of one text, for names in the configuration."""
    return str(pl.select(normalised(pl.lit(text))).item())


def weight_group(ladder: str = "ladder", weight_scope: str = "weight_scope") -> pl.Expr:
    """The text that names a weight group, from the columns that hold a ladder's name and a line's scope."""
    return pl.concat_str(pl.col(ladder), pl.lit("@"), pl.col(weight_scope))


def is_text(dtype: pl.DataType) -> bool:
    """Whether a column of this dtype holds text in memory (plain or encoded)."""
    return dtype == pl.String or isinstance(dtype, pl.Enum)


def shape(frame: pl.LazyFrame, table: Table, *, where: str = "") -> pl.LazyFrame:
    """The frame itself if it has exactly the table's columns, order and dtypes; else ContractError with all faults."""
    seen = frame.collect_schema()
    place = f"{where}: table {table.name}" if where else f"table {table.name}"
    faults = []
    missing = [column for column in table.schema if column not in seen]
    extra = [column for column in seen if column not in table.schema]
    if missing:
        faults.append(fault(place, f"{len(missing)} missing column(s): {', '.join(missing)}", "every declared column"))
    if extra:
        faults.append(fault(place, f"{len(extra)} extra column(s): {', '.join(extra)}", "no other column"))
    for column, dtype in table.schema.items():
        found = seen.get(column)
        if found is not None and found != dtype and not (dtype == pl.String and is_text(found)):
            faults.append(fault(f"{place}, column {column}", f"dtype {found}", str(dtype)))
    if not faults and list(seen) != list(table.schema):
        faults.append(fault(place, f"columns in the order {', '.join(seen)}", ", ".join(table.schema)))
    if faults:
        raise ContractError(faults)
    return frame


def check_rows(frame: pl.DataFrame, table: Table, *, where: str = "") -> pl.DataFrame:
    """The frame itself if no required value is null and no key stands twice; else ContractError with examples."""
    shape(frame.lazy(), table, where=where)
    place = f"{where}: table {table.name}" if where else f"table {table.name}"
    faults = []
    for column in table.schema:
        nulls = frame[column].null_count() if column not in table.nullable else 0
        if nulls:
            faults.append(fault(f"{place}, column {column}", f"{nulls} null value(s)", "none"))
    duplicated = frame.select(table.key).is_duplicated()
    if count := duplicated.sum():
        example = frame.filter(duplicated).row(0, named=True)
        named = ", ".join(f"{column}={shown(str(example[column]))}" for column in table.key)
        faults.append(
            fault(place, f"{count} rows share a key, for example {named}", f"unique ({', '.join(table.key)})")
        )
    if faults:
        raise ContractError(faults)
    return frame


def check_ordered(blocks: Blocks, table: Table) -> None:
    """LedgerError unless the rows ascend strictly by the table's key; for rows that are in order already.

    Rows of a block are compared by the last column of the key, the first ones of blocks by all of it.
    """
    *leading, last = table.key
    rows, firsts = _neighbours(blocks.varied[last]), blocks.starts.slice(1)
    within = rows.after > rows.before
    continues = across = within.gather(firsts - 1)
    for column in (_neighbours(blocks.steady[name]) for name in reversed(leading)):
        across = (column.after > column.before) | ((column.after == column.before) & across)
    wrong = int((~within).sum()) - int((~continues).sum()) + int((~across).sum())
    if wrong:
        raise LedgerError(
            fault(f"table {table.name}", f"{wrong} row(s) not after the one before", "strictly ascending keys")
        )


def starts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """The places, from 0, of the rows of which the one before says something else in one of these columns.

    The first row is always one of them.
    """
    places = pl.int_range(frame.height, dtype=pl.get_index_type(), eager=True)
    differ = (column.after.ne_missing(column.before) for column in (_neighbours(frame[name]) for name in columns))
    return places.head(1).append(places.slice(1).filter(reduce(or_, differ)))


class _Neighbours(NamedTuple):
    """All values of a column but the last, and all but the first."""

    before: pl.Series
    after: pl.Series


def _neighbours(column: pl.Series) -> _Neighbours:
    """Views of a column, which compare in a fifth of the time that a shifted copy takes."""
    return _Neighbours(column.head(max(column.len() - 1, 0)), column.slice(1))


def encoded(frame: pl.DataFrame, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The frame with its text columns (or those named) as Enums of their distinct values in byte order.

    A fan-out then moves 1 to 4 bytes instead of a text, and a column's codes mean the same whatever came before.
    """
    schema = frame.schema
    texts = [name for name in columns or schema if schema[name] == pl.String]
    if not texts or not frame.height:
        return frame.with_columns(pl.col(texts).cast(pl.Enum([])))
    # Most columns of a day say one thing, and that is found out in a tenth of the time that a list of values takes.
    first = frame.select(pl.col(texts).first()).row(0, named=True)
    differs = frame.select(pl.col(texts).ne_missing(pl.col(texts).first()).any()).row(0, named=True)
    varied = [name for name in texts if differs[name]]
    values = frame.select(pl.col(varied).unique().sort().implode())
    codes = [pl.col(name).cast(pl.Enum(values[name].item())) for name in varied]
    same = [pl.lit(text, pl.Enum([text])).alias(name) for name, text in first.items() if not differs[name]]
    return frame.with_columns(*codes, *same)


def categories(column: pl.Series) -> pl.Series:
    """The values of an encoded text column, in byte order; a code is a place among them."""
    dtype = column.dtype
    if not isinstance(dtype, pl.Enum):
        raise TypeError(f"column {column.name} is {dtype}, not an Enum")
    return dtype.categories


def decoded(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The frame with every text column as String."""
    return frame.with_columns(pl.col(pl.Enum).cast(pl.String))


def from_rows(table: Table, *rows: Mapping[str, object]) -> pl.DataFrame:
    """A frame of the table from a few rows written by hand; what a row leaves out is '', 0 or null.

    Columns that the table does not have (a line's `rule_id` and `weight_scope`, say) come last, as text.
    """
    absent = {
        name: None if name in table.nullable else "" if dtype == pl.String else 0
        for name, dtype in table.schema.items()
    }
    for row in rows:
        for name, value in row.items():
            _check_value(table, name, value)
    more = dict.fromkeys((name for row in rows for name in row if name not in table.schema), pl.String())
    return pl.DataFrame([{**absent, **row} for row in rows], schema={**table.schema, **more}, orient="row")


def _check_value(table: Table, name: str, value: object) -> None:
    dtype = table.schema.get(name, pl.String())
    kinds: tuple[type, ...] = (Decimal, int) if isinstance(dtype, pl.Decimal) else (dtype.to_python(),)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if isinstance(value, Decimal | int) and fits and isinstance(dtype, pl.Decimal):
        units = Context(prec=80).multiply(Decimal(value), Decimal(UNITS))
        fits = units.is_finite() and units == units.to_integral_value() and abs(units) <= UNITS_MAX
    if not fits and not (value is None and name in table.nullable):
        raise ContractError(fault(f"table {table.name}, column {name}", shown(value), f"a value of dtype {dtype}"))


def empty(table: Table) -> pl.DataFrame:
    """A frame of the table without rows."""
    return pl.DataFrame(schema=table.schema)
