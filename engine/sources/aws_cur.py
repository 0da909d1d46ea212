"""AWS Cost and Usage Reports on disk: an assembly, whose files `aws_manifest` finds, becomes BILLING.

Columns are known by their canonical name (`tag_key`): `lineItem/UnblendedCost` and `line_item_unblended_cost` are one
column, `resourceTags/user:team` and `resource_tags_user_team` one tag. Lines are pooled to one per day and LINE_KEY, so
a change of rules needs no second reading; the identity/LineItemId of AWS differs between deliveries and is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from engine.errors import ContractError, ProrataError, SourceError, fault, shown, together
from engine.frames import BILLING, check_rows, tag_key
from engine.money import AMOUNT, RESIDUE, check_sum_fits, parse_amount, rounding_residue, to_amount, to_units
from engine.sources.aws_manifest import Assembly, discover, survey
from engine.sources.csv_text import (
    FAULTS_SHOWN,
    RECORD,
    check_width,
    collect,
    column,
    header,
    limited,
    line_places,
    place,
    scan,
)
from engine.sources.lines import line_id, tags_json

__all__ = ["LINE_KEY", "Assembly", "Load", "LoadedFile", "discover", "fingerprint", "load", "survey"]

POOLING_VERSION = 1
"""Part of every fingerprint: raised when the same files become other lines."""

LINE_KEY = (
    "billing_period",
    "charge_date",
    "sub_account_id",
    "product_category",
    "product_type",
    "operation",
    "region",
    "line_item_type",
    "resource_id",
    "invoice_id",
    "currency",
    "tags",
)
"""The columns of BILLING that make a line, and its id (`line_id`)."""

_REQUIRED = {
    "sub_account_id": "lineItem/UsageAccountId",
    "charge_time": "lineItem/UsageStartDate",
    "line_item_type": "lineItem/LineItemType",
    "product_category": "lineItem/ProductCode",
    "product_type": "lineItem/UsageType",
    "amount": "lineItem/UnblendedCost",
    "currency": "lineItem/CurrencyCode",
}
_OPTIONAL = {
    "resource_id": "lineItem/ResourceId",
    "operation": "lineItem/Operation",
    "invoice_id": "bill/InvoiceId",
    "region": "product/region",
    "region_code": "product/regionCode",
    "unit": "pricing/unit",
    "quantity": "lineItem/UsageAmount",
}
_NOTED = (
    "bill/PayerAccountId",
    "lineItem/LegalEntity",
    "lineItem/LineItemDescription",
    "product/productFamily",
    "savingsPlan/SavingsPlanEffectiveCost",
    "reservation/EffectiveCost",
)
"""Columns whose absence is recorded although nothing is read from them."""
_USER_TAG = "resource_tags_user_"
_COST_CATEGORY = "cost_category_"
_KNOWN_PREFIXES = (
    "bill_",
    _COST_CATEGORY,
    "discount_",
    "identity_",
    "line_item_",
    "pricing_",
    "product_",
    "reservation_",
    "resource_tags_",
    "savings_plan_",
    "split_line_item_",
)
_NULLS = ("", "None")
"""How an optional column says that it has no value."""
_FILLED = ("sub_account_id", "line_item_type")
"""Required columns that are never blank; product code and usage type are on some fees and taxes."""
_CURRENCY = r"^[A-Z]{3}$"
_LABELS = tuple(name for name in _REQUIRED | _OPTIONAL if name not in {"charge_time", "amount", "quantity"})

_UTC_TIME = r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|\+00:00)$"
_READ_AT_ONCE = 2
"""Files read at the same time: enough to fill the gaps between files; more only costs memory."""

Result = TypeVar("Result")


class LoadedFile(NamedTuple):
    """A file as it was when it was read."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    lines: int


class Load(NamedTuple):
    """What an assembly holds.

    `billing` is the table BILLING in key order. `amounts` totals it by currency; `residue` is what rounding to 12
    decimals took from the lines read (text minus amount, summed over all currencies). `days_outside_period` counts the
    charge dates outside the month: they stay in its bill.
    """

    billing: pl.DataFrame
    files: tuple[LoadedFile, ...]
    residue: Decimal
    amounts: dict[str, Decimal]
    lines: int
    days_outside_period: int
    schema_differences: tuple[str, ...]
    warnings: tuple[str, ...]


def fingerprint(assembly: Assembly) -> str:
    """A digest of the assembly's id and of its files' names, sizes and modification times; no file is opened.

    Raises SourceError if a file is not there any more.
    """
    states = _states(assembly.files)
    files = [[file.name, state.size, state.mtime_ns] for file, state in zip(assembly.files, states, strict=True)]
    text = json.dumps([POOLING_VERSION, assembly.billing_period, assembly.assembly_id, files])
    return hashlib.sha256(text.encode()).hexdigest()


class Delivery(NamedTuple):
    """The newest assembly of a billing period, without its files."""

    assembly_id: str
    fingerprint: str


def delivered(path: Path, report: str | None) -> tuple[dict[str, Delivery], list[str]]:
    """Billing period -> its newest delivery on disk, of those that can be read; and the faults of the others."""
    found: dict[str, Delivery] = {}
    try:
        assemblies, faults = survey(path, report)
    except ProrataError as error:
        return found, list(error.faults)
    for one in assemblies:
        try:
            found[one.billing_period] = Delivery(one.assembly_id, fingerprint(one))
        except ProrataError as error:
            faults += error.faults
    return found, faults


class _State(NamedTuple):
    """What changes when a file changes."""

    size: int
    mtime_ns: int
    inode: int


def _states(files: Sequence[Path]) -> list[_State]:
    states, faults = [], []
    for file in files:
        try:
            seen = file.stat()
        except OSError as error:
            faults.append(fault(place(file), f"cannot be read ({error.strerror or error})", "a file of the assembly"))
        else:
            states.append(_State(seen.st_size, seen.st_mtime_ns, seen.st_ino))
    if faults:
        raise SourceError(faults)
    return states


class _Header(NamedTuple):
    """The columns of a file: where each that is used stands, and where those of each tag key do, ordered by name."""

    names: tuple[str, ...]
    used: dict[str, int]
    tags: dict[str, tuple[int, ...]]
    differences: tuple[str, ...]


def _spellings(name: str) -> str:
    """A column's name in both dialects."""
    return f"{name} ({tag_key(name)})"


def _read(assembly: Assembly) -> tuple[_Header, list[_Part]]:
    """The header that all files share, checked before any data is read, and the files.

    A file that is wrong hides nothing that is wrong with the others: one error has the faults of all, file by file.
    """
    headers = _each(header, assembly.files)
    wrong = {file: names for file, names in headers.items() if isinstance(names, ProrataError)}
    readable = {file: names for file, names in headers.items() if not isinstance(names, ProrataError)}
    head, parts = None, list[_Part]()
    if readable:
        first, names = next(iter(readable.items()))
        head, faults = _parsed_header(names, f"{place(first)} (of {place(assembly.manifest)})")
        wrong |= {first: ContractError(faults)} if faults else {}
        wrong |= {file: _differs(first, names, file, other) for file, other in readable.items() if other != names}
        alike = () if faults else [file for file in readable if file not in wrong]
        for file, part in _each(partial(_part, head=head), alike).items():
            if isinstance(part, ProrataError):
                wrong[file] = part
            else:
                parts.append(part)
    if head is None or wrong:
        raise together([wrong[file] for file in assembly.files if file in wrong])
    return head, parts


def _differs(first: Path, names: Sequence[str], file: Path, other: Sequence[str]) -> ContractError:
    seen = f"its header differs from that of {place(first)} ({_difference(names, other)})"
    return ContractError(fault(place(file), seen, "one header in all files of an assembly"))


def _difference(first: Sequence[str], other: Sequence[str]) -> str:
    missing = [name for name in first if name not in other]
    extra = [name for name in other if name not in first]
    said = [*(f"without {shown(name)}" for name in missing), *(f"with {shown(name)}" for name in extra)]
    return ", ".join(limited(said)) or "its columns are in another order or repeat"


def _parsed_header(names: tuple[str, ...], where: str) -> tuple[_Header, list[str]]:
    """What the names of a header mean, and what is wrong with them."""
    positions: dict[str, list[int]] = {}
    for position, name in sorted(enumerate(names), key=lambda item: (item[1], item[0])):
        positions.setdefault(tag_key(name), []).append(position)
    wanted = {ours: positions.get(tag_key(name), []) for ours, name in (_REQUIRED | _OPTIONAL).items()}
    faults = [
        fault(where, f"column {_spellings(name)} is missing", "every required column")
        for ours, name in _REQUIRED.items()
        if not wanted[ours]
    ]
    faults += [
        fault(where, f"columns {', '.join(shown(names[position]) for position in found)} are the same", "one of them")
        for found in wanted.values()
        if len(found) > 1
    ]
    tags = {
        canonical.removeprefix(_USER_TAG): tuple(found)
        for canonical, found in sorted(positions.items())
        if canonical.startswith(_USER_TAG)
    }
    used = {ours: found[0] for ours, found in wanted.items() if found}
    return _Header(names, used, tags, tuple(_differences(names, positions, tags))), faults


def _differences(
    names: Sequence[str], positions: Mapping[str, Sequence[int]], tags: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    """What a header lacks of the recommended columns, what it has that is not known, and tags that became one."""
    region = {tag_key(_OPTIONAL["region"]), tag_key(_OPTIONAL["region_code"])}
    for name in (*_OPTIONAL.values(), *_NOTED):
        alternatives = region if tag_key(name) in region else {tag_key(name)}
        if not alternatives & positions.keys():
            yield f"recommended column {_spellings(name)} is missing"
    if not tags:
        yield f"recommended columns resourceTags/user:* ({_USER_TAG}*) are missing"
    if not any(canonical.startswith(_COST_CATEGORY) for canonical in positions):
        yield f"recommended columns costCategory/* ({_COST_CATEGORY}*) are missing"
    for canonical, found in sorted(positions.items()):
        if not canonical.startswith(_KNOWN_PREFIXES):
            yield f"column {shown(names[found[0]])} is of no known kind"
    for key, found in tags.items():
        if len(found) > 1:
            merged = ", ".join(shown(names[position]) for position in found)
            yield f"columns {merged} are one tag, {key}: the first that is not empty counts"


def load(assembly: Assembly, tenant_id: str) -> Load:
    """Read an assembly as a whole and pool its lines.

    Raises SourceError if a file cannot be read or changes meanwhile, ContractError if the header or a value breaks the
    contract; the error is of the kind of the first fault and has all (of many alike the first are shown, the rest is
    counted).
    """
    states = _states(assembly.files)
    with _unchanged(assembly.files, states):
        head, parts = _read(assembly)
    pooled = pl.concat(part.pooled for part in parts)
    _check_sums(assembly, pooled)
    billing = _billing(pooled, head, assembly.billing_period, tenant_id)
    outside = billing.filter(~_within(assembly))["charge_date"].n_unique()
    return Load(
        billing=billing,
        files=tuple(
            LoadedFile(file, state.size, state.mtime_ns, part.sha256, part.lines)
            for file, state, part in zip(assembly.files, states, parts, strict=True)
        ),
        residue=_total(pooled["residue"]),
        amounts=_amounts(billing),
        lines=sum(part.lines for part in parts),
        days_outside_period=outside,
        schema_differences=head.differences,
        warnings=tuple(_warnings(assembly, pooled, outside)),
    )


@contextmanager
def _unchanged(files: Sequence[Path], before: Sequence[_State]) -> Iterator[None]:
    """Raise SourceError if a file is another after the block than it was; that explains whatever else went wrong."""
    try:
        yield
    except ProrataError:
        _check_unchanged(files, before)
        raise
    _check_unchanged(files, before)


def _check_unchanged(files: Sequence[Path], before: Sequence[_State]) -> None:
    changed = [
        fault(
            place(file), f"changed while it was read ({was.size} bytes before, {now.size} after)", "a finished delivery"
        )
        for file, was, now in zip(files, before, _states(files), strict=True)
        if was != now
    ]
    if changed:
        raise SourceError(changed)


def _each(read: Callable[[Path], Result], files: Sequence[Path]) -> dict[Path, Result | ProrataError]:
    """What `read` gives for each file, a few at a time: its result, or what is wrong with the file."""

    def attempt(file: Path) -> Result | ProrataError:
        try:
            return read(file)
        except (SourceError, ContractError) as error:
            return error

    pool = ThreadPoolExecutor(_READ_AT_ONCE)
    try:
        return dict(zip(files, pool.map(attempt, files), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(fault(place(file), f"cannot be read ({error.strerror or error})", "a file")) from error


class _Part(NamedTuple):
    """One file: its lines pooled by the text of their labels and tags, how many they were, and its digest."""

    pooled: pl.DataFrame
    lines: int
    sha256: str


def _part(file: Path, head: _Header) -> _Part:
    """Read a file; ContractError if a line has too few or too many fields, or a value is wrong."""
    width, sha256 = len(head.names), _sha256(file)
    pooled = collect(_pooled(scan(file, width), head), file, width)
    check_width(file, width)
    if not pooled.select(_sound()).item():
        raise ContractError(_bad_values(file, head))
    return _Part(pooled, int(pooled["lines"].sum()), sha256)


def _charge_date(time: pl.Expr) -> pl.Expr:
    """The day of a UTC time, as text; null if it is written in another way. Whether the day exists is seen later."""
    return pl.when(time.str.contains(_UTC_TIME)).then(time.str.slice(0, 10))


def _is_date(day: pl.Expr) -> pl.Expr:
    return day.str.to_date("%Y-%m-%d", strict=False).is_not_null()


def _pooled(lines: pl.LazyFrame, head: _Header) -> pl.LazyFrame:
    """Lines -> one row per day and distinct text of labels and tags: sums in units, and counts of what was read.

    Sums may wrap: they count only if the bounds `amount_max` and `quantity_max` say that they cannot have.
    """
    used = {ours: pl.col(column(position)) for ours, position in head.used.items()}
    labels = {name: used[name] for name in _LABELS if name in used}
    tags = [column(position) for positions in head.tags.values() for position in positions]
    quantity = used.get("quantity", pl.lit(""))
    return (
        lines.select(
            *tags,
            **labels,
            charge_date=_charge_date(used["charge_time"]),
            amount=to_units(parse_amount(used["amount"])),
            residue=rounding_residue(used["amount"]),
            quantity=to_units(parse_amount(quantity)),
            word=~quantity.is_in(_NULLS) & parse_amount(quantity).is_null(),
        )
        .group_by("charge_date", *labels, *tags)
        .agg(
            pl.len().cast(pl.Int64).alias("lines"),
            pl.col("amount").sum(),
            pl.col("amount").count().cast(pl.Int64).alias("priced"),
            pl.col("amount").abs().max().alias("amount_max"),
            pl.col("residue").sum(),
            pl.col("residue").count().cast(pl.Int64).alias("residues"),
            pl.col("quantity").sum(),
            pl.col("quantity").count().cast(pl.Int64).alias("measured"),
            pl.col("quantity").abs().max().alias("quantity_max"),
            pl.col("word").sum().cast(pl.Int64).alias("words"),
        )
    )


def _sound() -> pl.Expr:
    """Whether every line of a part has all it must have."""
    filled = [~_is_blank(pl.col(name)) for name in _FILLED]
    filled.append(pl.col("currency").str.contains(_CURRENCY))
    return pl.all_horizontal(pl.col("priced") == pl.col("lines"), _is_date(pl.col("charge_date")), *filled).all()


def _is_blank(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars() == ""


def _bad_values(file: Path, head: _Header) -> list[str]:
    """One fault for each bad value, by line and column: the file is read again for the lines that hold one."""
    width = len(head.names)
    columns = {ours: pl.col(column(head.used[ours])) for ours in ("charge_time", "amount", "currency", *_FILLED)}
    bad = {ours: _is_blank(columns[ours]) for ours in _FILLED}
    bad["currency"] = ~columns["currency"].str.contains(_CURRENCY)
    bad["amount"] = parse_amount(columns["amount"]).is_null()
    bad["charge_time"] = ~_is_date(_charge_date(columns["charge_time"]))
    flags = scan(file, width, record=True).select(
        RECORD, **columns, **{f"bad_{ours}": flag for ours, flag in bad.items()}
    )
    counts = collect(flags.select(pl.col(f"bad_{ours}").sum() for ours in bad), file, width)
    rows = collect(flags.filter(pl.any_horizontal(f"bad_{ours}" for ours in bad)).head(FAULTS_SHOWN), file, width)
    lines = line_places(file, set(rows[RECORD]))
    # Only wrong rows come here, and of these only as many as a message shows.
    faults = [
        fault(
            f"{lines[row[RECORD]]}: column {head.names[head.used[ours]]}",
            f"value {shown(row[ours])}",
            _EXPECTED.get(ours, "a text that is not blank"),
        )
        for row in rows.sort(RECORD).iter_rows(named=True)
        for ours in bad
        if row[f"bad_{ours}"]
    ]
    return limited(faults, sum(counts.row(0)))


_EXPECTED = {
    "amount": "a decimal number of at most 26 digits before the point",
    "charge_time": "a UTC time such as 2025-10-01T00:00:00Z",
    "currency": "three capital letters, such as USD",
}


def _check_sums(assembly: Assembly, pooled: pl.DataFrame) -> None:
    """Raise ContractError if a sum of amounts or quantities could have wrapped."""
    lines = int(pooled["lines"].sum())
    for name, column_name in (("amount", _REQUIRED["amount"]), ("quantity", _OPTIONAL["quantity"])):
        largest = pooled[f"{name}_max"].max()
        if isinstance(largest, int):
            check_sum_fits(f"{place(assembly.manifest)}: column {column_name}", largest, lines)


def _label(name: str, head: _Header) -> pl.Expr:
    """A label as BILLING has it: '' where an optional one is absent or says that it has no value."""
    if name not in head.used:
        return pl.lit("")
    text = pl.col(name)
    return text if name in _REQUIRED else pl.when(text.is_in(_NULLS)).then(pl.lit("")).otherwise(text)


def _first_filled(texts: Iterable[pl.Expr]) -> pl.Expr:
    return pl.coalesce(*(pl.when(text != "").then(text) for text in texts), pl.lit(""))


def _one_per_line(pooled: pl.LazyFrame, head: _Header) -> pl.LazyFrame:
    """Rows pooled by raw text, file by file -> one row per day, labels and tags, as BILLING has them but for types."""
    tags = {key: f"tag {key}" for key in head.tags}
    labels = [name for name in _LABELS if name not in {"region_code", "unit"}]
    region = _first_filled([_label("region", head), _label("region_code", head)])
    texts = {name: _label(name, head) for name in labels} | {"region": region, "unit": _label("unit", head)}
    merged = {
        tags[key]: _first_filled(pl.col(column(position)) for position in positions)
        for key, positions in head.tags.items()
    }
    one_unit = pl.col("unit").min() == pl.col("unit").max()
    return (
        pooled.with_columns(**texts, **merged)
        .group_by("charge_date", *labels, *tags.values())
        .agg(
            pl.col("amount").sum(),
            pl.when(one_unit & (pl.col("measured").sum() > 0)).then(pl.col("quantity").sum()),
            pl.when(one_unit).then(pl.col("unit").first()).otherwise(pl.lit("")),
        )
        .with_columns(tags=tags_json(tags))
    )


def _billing(pooled: pl.DataFrame, head: _Header, billing_period: str, tenant_id: str) -> pl.DataFrame:
    """Rows pooled by raw text, file by file -> BILLING: one row per day and LINE_KEY."""
    billing = (
        _one_per_line(pooled.lazy(), head)
        .with_columns(billing_period=pl.lit(billing_period))
        .with_columns(
            tenant_id=pl.lit(tenant_id),
            ecosystem=pl.lit("aws"),
            env_id=pl.col("sub_account_id"),
            line_id=line_id(LINE_KEY),
            charge_date=pl.col("charge_date").str.to_date("%Y-%m-%d"),
            quantity=to_amount(pl.col("quantity")),
            amount=to_amount(pl.col("amount")),
            effective_amount=pl.lit(None, AMOUNT),
            list_amount=pl.lit(None, AMOUNT),
            contracted_amount=pl.lit(None, AMOUNT),
        )
        .select(BILLING.schema.keys())
        .sort(BILLING.key)
        .collect(engine="streaming")
    )
    return check_rows(billing, BILLING, where=f"billing period {billing_period}")


def _within(assembly: Assembly) -> pl.Expr:
    return pl.col("charge_date").is_between(assembly.period_start, assembly.period_end, closed="left")


def _total(amounts: pl.Series) -> Decimal:
    total = amounts.sum()
    return total if isinstance(total, Decimal) else Decimal(0)


def _amounts(billing: pl.DataFrame) -> dict[str, Decimal]:
    return dict(billing.group_by("currency").agg(pl.col("amount").sum()).sort("currency").iter_rows())


def _warnings(assembly: Assembly, pooled: pl.DataFrame, days_outside: int) -> Iterator[str]:
    where = f"billing period {assembly.billing_period}"
    if words := int(pooled["words"].sum()):
        yield f"{where}: {words} line(s) whose {_OPTIONAL['quantity']} is no number have no quantity"
    if unknown := int((pooled["priced"] - pooled["residues"]).sum()):
        yield f"{where}: {unknown} line(s) of 1e{RESIDUE.precision - RESIDUE.scale} or more have no rounding residue"
    if days_outside:
        yield f"{where}: {days_outside} charge date(s) outside the month are kept in its bill"
