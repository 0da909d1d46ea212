"""A world as files: the configuration, key tables and reports that the product reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import yaml

from tests.differential.worlds import DAYS, Row, World

SLASH = {
    "account": "lineItem/UsageAccountId",
    "time": "lineItem/UsageStartDate",
    "line_item_type": "lineItem/LineItemType",
    "service": "lineItem/ProductCode",
    "usage_type": "lineItem/UsageType",
    "cost": "lineItem/UnblendedCost",
    "currency": "lineItem/CurrencyCode",
    "resource": "lineItem/ResourceId",
    "operation": "lineItem/Operation",
    "invoice": "bill/InvoiceId",
    "region": "product/region",
}
SNAKE = {
    "account": "line_item_usage_account_id",
    "time": "line_item_usage_start_date",
    "line_item_type": "line_item_line_item_type",
    "service": "line_item_product_code",
    "usage_type": "line_item_usage_type",
    "cost": "line_item_unblended_cost",
    "currency": "line_item_currency_code",
    "resource": "line_item_resource_id",
    "operation": "line_item_operation",
    "invoice": "bill_invoice_id",
    "region": "product_region",
}


def write_world(world: World, folder: Path, *, snake: bool = False) -> Path:
    """Write everything into an empty folder; the path of the configuration."""
    config = folder / "prorata.yaml"
    config.write_text(
        yaml.safe_dump({"root": "./data", "tenants": [world.tenant]}, allow_unicode=True), encoding="utf-8"
    )
    with (folder / "keys.csv").open("w", encoding="utf-8", newline="") as file:
        write_keys(world, file)
    for period, (start, end) in {"2025-09": ("20250901", "20251001"), "2025-10": ("20251001", "20251101")}.items():
        month = folder / "cur" / "prefix" / "cur" / f"{start}-{end}"
        (month / "assembly").mkdir(parents=True)
        # Two files, so that hours of one line may stand in different ones.
        lines = [line for line in world.raw_lines if line["billing_period"] == period]
        tags = sorted({key for line in lines for key in line["tags"]} | {"Unused"})
        for number, half in enumerate((lines[::2], lines[1::2]), start=1):
            write_report(half, tags, month / "assembly" / f"cur-{number}.csv", snake=snake)
        manifest = {
            "assemblyId": "assembly",
            "reportName": "cur",
            "compression": "none",
            "reportKeys": [f"prefix/cur/{start}-{end}/assembly/cur-{number}.csv" for number in (1, 2)],
            "billingPeriod": {"start": f"{start}T000000.000Z", "end": f"{end}T000000.000Z"},
        }
        (month / "cur-Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert {line["billing_period"] for line in world.raw_lines} == set(DAYS)
    return config


def write_keys(world: World, file: object) -> None:
    """Key rows as CSV, dated and by period side by side."""
    writer = csv.writer(file)  # type: ignore[arg-type]  # a text file
    writer.writerow(["identity", "date", "period", "key", "value"])
    for row in world.key_rows:
        window = row["window"]
        dated = [window, ""] if len(window) == len("YYYY-MM-DD") else ["", window]
        writer.writerow([row["identity"], *dated, row["key"], row["value"]])


def write_report(lines: list[Row], tags: list[str], path: Path, *, snake: bool) -> None:
    """Raw lines as a report, in one of the two dialects of its header; the hour goes round the clock."""
    names = SNAKE if snake else SLASH
    tag_names = [f"resource_tags_user_{_snake(key)}" if snake else f"resourceTags/user:{key}" for key in tags]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names.values(), *tag_names])
        for number, line in enumerate(lines):
            values = {**line, "time": f"{line['date']}T{number % 24:02d}:00:00Z"}
            writer.writerow([*(values[name] for name in names), *(line["tags"].get(key, "") for key in tags)])


def _snake(key: str) -> str:
    """Only for the few keys of worlds."""
    return {"CostCenter": "cost_center"}.get(key, key.lower())
