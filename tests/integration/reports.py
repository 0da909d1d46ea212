"""Small reports of any shape as files, with their manifests, and a configuration to read them with."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

OCTOBER, NOVEMBER = "20251001-20251101", "20251101-20251201"

COLUMNS = {
    "account": ("lineItem/UsageAccountId", "line_item_usage_account_id"),
    "time": ("lineItem/UsageStartDate", "line_item_usage_start_date"),
    "line_item_type": ("lineItem/LineItemType", "line_item_line_item_type"),
    "service": ("lineItem/ProductCode", "line_item_product_code"),
    "usage_type": ("lineItem/UsageType", "line_item_usage_type"),
    "cost": ("lineItem/UnblendedCost", "line_item_unblended_cost"),
    "currency": ("lineItem/CurrencyCode", "line_item_currency_code"),
    "resource": ("lineItem/ResourceId", "line_item_resource_id"),
    "team": ("resourceTags/user:team", "resource_tags_user_team"),
}
"""What a line has, and the name of its column in the slash and in the snake dialect."""

Line = dict[str, str]


def line(day: int, cost: str, team: str = "", **more: str) -> Line:
    """One hour's line of October 2025; what is not said is that of an instance."""
    return {
        "account": "111111111111",
        "time": f"2025-10-{day:02d}T00:00:00Z",
        "line_item_type": "Usage",
        "service": "AmazonEC2",
        "usage_type": "BoxUsage:m5.large",
        "cost": cost,
        "currency": "USD",
        "resource": "i-1",
        "team": team,
        **more,
    }


def report_text(lines: Iterable[Line], *, snake: bool = False, without: Sequence[str] = ()) -> str:
    """A part of a report as CSV."""
    kept = {name: spellings[snake] for name, spellings in COLUMNS.items() if name not in without}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(kept.values())
    writer.writerows([values[name] for name in kept] for values in lines)
    return file.getvalue()


def write_bill(
    cur: Path, *parts: Iterable[Line] | str | bytes, month: str = OCTOBER, assembly: str = "a1", suffix: str = ".csv"
) -> list[Path]:
    """One delivery of a month, of which each part is lines, text or bytes; the paths of its files."""
    folder = cur / month / assembly
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"cur-{number}{suffix}" for number in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        content = part if isinstance(part, str | bytes) else report_text(part)
        data = content.encode() if isinstance(content, str) else content
        # No time of day in the header: the same lines are the same bytes.
        file.write_bytes(gzip.compress(data, mtime=0) if suffix.endswith(".gz") and isinstance(content, str) else data)
    write_manifest(cur, [file.name for file in files], month=month, assembly=assembly)
    return files


def write_manifest(cur: Path, names: Sequence[str], *, month: str = OCTOBER, assembly: str = "a1") -> Path:
    """The month's manifest, by which this delivery counts; its path."""
    start, end = month.split("-")
    gzipped = any(name.endswith(".gz") for name in names)
    manifest = {
        "assemblyId": assembly,
        "reportName": "cur",
        "compression": "GZIP" if gzipped else "none",
        "billingPeriod": {"start": f"{start}T000000.000Z", "end": f"{end}T000000.000Z"},
        "reportKeys": [f"prefix/cur/{month}/{assembly}/{name}" for name in names],
    }
    file = cur / month / "cur-Manifest.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return file


OWNERS = ["ants", "bees", "cats"]


def write_config(
    file: Path, *, root: Path, cur: Path, workers: int = 2, keys: Sequence[Path] = (), **more: Any
) -> Path:
    """A configuration of one tenant, acme; `more` are further keys of the tenant."""
    tenant: Mapping[str, Any] = {
        "id": "acme",
        "ecosystem": "aws",
        "source": {"kind": "aws_cur", "path": str(cur)},
        "owner": {"tags": ["team"], "identities": OWNERS},
        "operator": "platform",
        "keys": [str(path) for path in keys],
        **more,
    }
    document = {"root": str(root), "max_parallel_days": workers, "tenants": [tenant]}
    file.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return file
