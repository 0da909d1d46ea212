"""Confluent Cloud: costs here, and who and what there is in `confluent_inventory`.

`fetch_*` asks the APIs and lands their answers, `parse_*` makes tables of what was landed. Kinds of the inventory that
were landed already are not asked for again, so a landing is for one gather.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl

from engine.errors import ContractError, fault, shown
from engine.frames import BILLING, check_rows
from engine.money import AMOUNT, check_sum_fits, largest, parse_amount, rounding_residue, to_amount, to_units
from engine.sources.answers import Answer, canonical, clean, listed, shown_value
from engine.sources.confluent_inventory import (
    KINDS,
    FlinkClient,
    Inventory,
    fetch_inventory,
    flink_url,
    parse_inventory,
    read_inventory,
)
from engine.sources.csv_text import limited
from engine.sources.http import Client
from engine.sources.landing import Landing
from engine.sources.lines import line_id, tags_json
from engine.text import number

__all__ = [
    "KINDS",
    "LINE_KEY",
    "MALFORMED",
    "Costs",
    "FlinkClient",
    "Inventory",
    "Window",
    "cost_windows",
    "costs_name",
    "fetch_costs",
    "fetch_inventory",
    "flink_url",
    "parse_costs",
    "parse_inventory",
    "read_inventory",
    "window_of",
]

ECOSYSTEM = "confluent_cloud"
LINE_KEY = (
    "billing_period",
    "charge_date",
    "env_id",
    "resource_id",
    "product_category",
    "product_type",
    "operation",
    "unit",
    "currency",
)
"""The columns of BILLING that make a line, and its id (`line_id`). Tiers of a price share them and are one line."""
MALFORMED = "malformed_billing_"
"""How the resource id of a record begins that could not be understood; 12 digits of the record's SHA-256 follow."""

Window = tuple[date, date]
"""Days from the first to before the last."""

_COSTS_PAGE_SIZE = 2000
_BILLING_ADMIN = "a Cloud API key with the role BillingAdmin"


def cost_windows(first: date, end: date) -> list[Window]:
    """The days from `first` to before `end`, cut where months begin: what the costs API is asked for, one by one."""
    windows, start = list[Window](), first
    while start < end:
        following = (start.replace(day=1) + timedelta(days=31)).replace(day=1)
        windows.append((start, min(following, end)))
        start = following
    return windows


def costs_name(window: Window) -> str:
    """The name under which the costs of a window are landed."""
    return f"costs-{window[0].isoformat()}-{window[1].isoformat()}"


def window_of(name: str) -> Window | None:
    """The window whose costs are landed under a name; None if the name is another's."""
    found = _COSTS_NAME.fullmatch(name)
    return (date.fromisoformat(found[1]), date.fromisoformat(found[2])) if found else None


_COSTS_NAME = re.compile(r"costs-(\d{4}-\d{2}-\d{2})-(\d{4}-\d{2}-\d{2})")


def fetch_costs(client: Client, landing: Landing, window: Window) -> None:
    """Land the costs of a window, whole or not at all, in the place of what was. SourceError if they cannot be had.

    A 404 is an error here: no costs at all would withdraw every line of the window.
    """
    asked = {"start_date": window[0].isoformat(), "end_date": window[1].isoformat()}
    pages = client.pages("billing/v1/costs", asked, page_size=_COSTS_PAGE_SIZE, absent_ok=False, access=_BILLING_ADMIN)
    landing.write(costs_name(window), pages)


class Costs(NamedTuple):
    """What the answers for a window hold.

    `billing` is the table BILLING in key order. `records` were read for it, `malformed` of them could not be understood
    and are booked under a resource of their own. `residue` is what rounding to 12 decimals took (text minus amount).
    `outside` records were left out: their day is of another window, whose answers count for it.
    """

    billing: pl.DataFrame
    records: int
    malformed: int
    outside: int
    residue: Decimal
    warnings: tuple[str, ...]


class _Record(NamedTuple):
    """One record of the costs: its labels, its numbers as text, and what could not be understood."""

    place: str
    charge_date: str
    env_id: str
    resource_id: str
    product_category: str
    product_type: str
    operation: str
    unit: str
    quantity: str
    amount: str
    list_amount: str
    description: str
    display_name: str
    tiered: bool
    one_day: bool
    error: str
    tier: str = ""


_RECORDS: dict[str, pl.DataType] = dict.fromkeys(_Record._fields, pl.String()) | {
    "tiered": pl.Boolean(),
    "one_day": pl.Boolean(),
}


def parse_costs(pages: Sequence[Answer], tenant_id: str, window: Window, currency: str) -> Costs:
    """The costs of a window, from the pages that were landed for it.

    Records that are the same in day, resource, product and unit (tiers of a price) are one line, whose tag `tiers` says
    what it was made of. A record that lasts for more than its start_date is booked on it whole.

    Raises ContractError, with all faults, if an amount is no number that can be held exactly, or if one id stands for
    two different records.
    """
    where = f"costs {window[0]} to {window[1]}"
    values, repeated = _distinct(pages, where)
    read = pl.DataFrame(_records(values, window), schema=_RECORDS, orient="row").with_columns(
        amount=to_units(parse_amount(pl.col("amount"))),
        amount_text=pl.col("amount"),
        residue=rounding_residue(pl.col("amount")),
        list_amount=to_units(parse_amount(pl.col("list_amount"))),
        list_amount_text=pl.col("list_amount"),
        quantity=to_units(parse_amount(pl.col("quantity"))),
        quantity_text=pl.col("quantity"),
    )
    _check_amounts(read)
    for name in ("amount", "list_amount", "quantity"):
        check_sum_fits(f"{where}: {name}", largest(read[name]), read.height)
    first, end = (pl.lit(day.isoformat()) for day in window)
    inside = pl.col("charge_date").is_between(first, end, closed="left")
    records, outside = read.filter(inside), read.filter(~inside)
    return Costs(
        billing=_billing(records, tenant_id, currency, where),
        records=records.height,
        malformed=records.filter(pl.col("error") != "").height,
        outside=outside.height,
        residue=_total(records["residue"]),
        warnings=tuple(_cost_warnings(where, records, outside, repeated)),
    )


def _total(amounts: pl.Series) -> Decimal:
    total = amounts.sum()
    return total if isinstance(total, Decimal) else Decimal(0)


def _distinct(pages: Sequence[Answer], where: str) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """The records of the pages with the place of each, one for each id, and how many came once more."""
    values, faults = list[tuple[str, dict[str, Any]]](), list[str]()
    seen, repeated = dict[str, dict[str, Any]](), 0
    for page, value in ((page, value) for page, answer in enumerate(pages, start=1) for value in listed(answer)):
        if not isinstance(value, dict):
            faults.append(fault(f"{where}, page {page}", f"record {shown_value(value)}", "an object with an amount"))
            continue
        identity = value.get("id")
        place = f"{where}, page {page}, record {shown_value(identity)}"
        if identity is None or identity == "":
            values.append((place, value))
        elif (before := seen.setdefault(canonical(identity), value)) is value:
            values.append((place, value))
        elif canonical(before) == canonical(value):
            repeated += 1
        else:
            faults.append(fault(place, "another record came under the same id", "an id for each record"))
    if faults:
        raise ContractError(limited(faults))
    return values, repeated


def _check_amounts(read: pl.DataFrame) -> None:
    """Raise ContractError if an amount is missing, no number, or too large; a list price may be missing."""
    bad = {
        "amount": pl.col("amount").is_null(),
        "original_amount": pl.col("list_amount").is_null() & (pl.col("list_amount_text") != ""),
    }
    faults = [
        fault(place, f"{name} {shown(text)}" if text else f"{name} is missing", "a decimal number below 1e26")
        for name, is_bad in bad.items()
        for place, text in read.filter(is_bad)
        .select("place", "amount_text" if name == "amount" else "list_amount_text")
        .iter_rows()
    ]
    if faults:
        raise ContractError(limited(faults))


def _records(values: Sequence[tuple[str, Mapping[str, Any]]], window: Window) -> list[_Record]:
    """The records, those of them with their tier that are not a line by themselves."""
    records = [_record(value, place, window) for place, value in values]
    lines = Counter(map(_line, records))
    return [
        record._replace(tier=_tier(value)) if record.tiered or lines[_line(record)] > 1 else record
        for record, (_, value) in zip(records, values, strict=True)
    ]


_line = operator.attrgetter(*(name for name in LINE_KEY if name in _Record._fields))


def _tier(value: Mapping[str, Any]) -> str:
    return clean(canonical({name: value[name] for name in _TIER if value.get(name) not in _ABSENT}))


def _record(value: Mapping[str, Any], place: str, window: Window) -> _Record:
    """A record as it is booked: where it belongs, or under a name of its own with the reason in `error`."""
    faults = list[str]()
    day = _day(value.get("start_date"), faults)
    resource = _object(value.get("resource"), "resource", faults)
    environment = _object(resource.get("environment"), "resource.environment", faults)
    labels = {
        name: _label(given, field, faults)
        for name, given, field in (
            ("env_id", environment.get("id"), "resource.environment.id"),
            ("resource_id", resource.get("id"), "resource.id"),
            ("product_category", value.get("product"), "product"),
            ("product_type", value.get("line_type"), "line_type"),
            ("operation", value.get("network_access_type"), "network_access_type"),
            ("unit", value.get("unit"), "unit"),
        )
    }
    if faults:
        labels["resource_id"] = (
            MALFORMED + hashlib.sha256(canonical(value).encode(errors="surrogatepass")).hexdigest()[:12]
        )
    return _Record(
        place=place,
        charge_date=(day or window[0]).isoformat(),
        **labels,
        quantity=_plain(value.get("quantity")),
        amount=_plain(value.get("amount")),
        list_amount=_plain(value.get("original_amount")),
        description=_plain(value.get("description")),
        display_name=_plain(resource.get("display_name")),
        tiered=value.get("tier_dimensions") not in _ABSENT,
        one_day=_is_one_day(value, day),
        error="; ".join(faults),
    )


_TIER = ("amount", "original_amount", "discount_amount", "price", "quantity", "description", "tier_dimensions")
_ABSENT: tuple[object, ...] = (None, "", {})
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _as_day(value: Any) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) and _DATE.fullmatch(value) else None
    except ValueError:
        return None


def _day(value: Any, faults: list[str]) -> date | None:
    day = _as_day(value)
    if day is None:
        faults.append(_unreadable("start_date", value, "YYYY-MM-DD"))
    return day


def _is_one_day(value: Mapping[str, Any], day: date | None) -> bool:
    """Whether a record says nothing else than that it is of one day."""
    end = _as_day(value.get("end_date"))
    return value.get("granularity") in (None, "DAILY") and (
        day is None or end is None or end - day <= timedelta(days=1)
    )


def _object(value: Any, field: str, faults: list[str]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    if value is not None:
        faults.append(_unreadable(field, value, "an object"))
    return {}


def _label(value: Any, field: str, faults: list[str]) -> str:
    if isinstance(value, str):
        return clean(value)
    if value is not None:
        faults.append(_unreadable(field, value, "a text"))
    return ""


def _unreadable(field: str, value: Any, expected: str) -> str:
    return fault(field, "missing" if value is None else shown_value(value), expected)


def _plain(value: Any) -> str:
    """A value as it came, as text: a number's digits, a text itself, '' for none."""
    return "" if value is None else clean(value if isinstance(value, str) else canonical(value))


def _billing(records: pl.DataFrame, tenant_id: str, currency: str, where: str) -> pl.DataFrame:
    """Records inside the window -> BILLING: one row per day and LINE_KEY."""
    billing = (
        records.lazy()
        .with_columns(billing_period=pl.col("charge_date").str.slice(0, 7), currency=pl.lit(currency))
        .group_by(LINE_KEY)
        .agg(
            pl.col("amount").sum(),
            *(_whole_sum(name) for name in ("list_amount", "quantity")),
            *(pl.col(name).filter(pl.col(name) != "").min() for name in ("description", "display_name", "error")),
            tiers=pl.col("tier").sort().str.join(","),
        )
        .with_columns(tiers=pl.when(pl.col("tiers") != "").then(pl.format("[{}]", "tiers")))
        .with_columns(
            tenant_id=pl.lit(tenant_id),
            ecosystem=pl.lit(ECOSYSTEM),
            line_id=line_id(LINE_KEY),
            charge_date=pl.col("charge_date").str.to_date("%Y-%m-%d"),
            tags=tags_json({name: name for name in ("description", "display_name", "error", "tiers")}),
            amount=to_amount(pl.col("amount")),
            list_amount=to_amount(pl.col("list_amount")),
            quantity=to_amount(pl.col("quantity")),
            effective_amount=pl.lit(None, AMOUNT),
            contracted_amount=pl.lit(None, AMOUNT),
            **{name: pl.lit("") for name in ("line_item_type", "region", "sub_account_id", "invoice_id")},
        )
        .select(BILLING.columns)
        .sort(BILLING.key)
        .collect()
    )
    return check_rows(billing, BILLING, where=where)


def _whole_sum(name: str) -> pl.Expr:
    """The sum of a column; null if one of its parts is, since it would be a wrong figure."""
    return pl.when(pl.col(name).null_count() == 0).then(pl.col(name).sum())


def _cost_warnings(where: str, records: pl.DataFrame, outside: pl.DataFrame, repeated: int) -> Iterator[str]:
    malformed = records.filter(pl.col("error") != "")
    if malformed.height:
        place, error = malformed.select("place", "error").row(0)
        yield (
            f"{where}: {malformed.height} malformed record(s) of {_sum(malformed)} in all are booked on {MALFORMED}*, "
            f"for example {place.rpartition(', ')[2]}: {error}"
        )
    if outside.height:
        first, last = outside.select(pl.col("charge_date").min(), last=pl.col("charge_date").max()).row(0)
        yield (
            f"{where}: {outside.height} record(s) of {_sum(outside)} in all, of {first} to {last}, are left out: they "
            "count in the answers for their own days"
        )
    if repeated:
        yield f"{where}: {repeated} record(s) that came more than once count once"
    if longer := records.filter(~pl.col("one_day")).height:
        yield f"{where}: {longer} record(s) of more than a day are booked on their start_date"
    words = records.filter(pl.col("quantity").is_null() & (pl.col("quantity_text") != "")).height
    if words:
        yield f"{where}: {words} record(s) whose quantity is no number have no quantity"
    if unknown := records["residue"].null_count():
        yield f"{where}: {unknown} record(s) of 1e14 or more have no rounding residue"


def _sum(records: pl.DataFrame) -> str:
    return number(_total(records.select(to_amount(pl.col("amount"))).to_series()))
