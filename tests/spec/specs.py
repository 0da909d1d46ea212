"""Reads the Markdown files of this folder: rules, lines and keys in, charges out, as tables a person can read.

A file has a title, then cases (`##`). A case has a title, prose that nobody parses, and tables under `### Lines`,
`### Charges` and, if wanted, `### Keys` and `### Empty keys`. The rules are a block of YAML (a tenant's owner,
operator, ladders and pools) in the case, or once for all cases before the first; so may tables be. A table may leave
columns out: lines then have a plain default, charges are not compared in them.

Files of the folder `confluent` have tables `### Resources`, `### Identities`, `### Usage` and `### Failed metrics`
instead of keys, and a tenant's products, ladders and operator as rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, RESOURCES, USAGE, Table, tag_key
from engine.money import AMOUNT, parse_amount

Row = dict[str, str]

CHARGE_COLUMNS = {
    "identity": "identity_id",
    "cost type": "cost_type",
    "method": "allocation_method",
    "detail": "allocation_detail",
    "rule": "rule_id",
    "period": "billing_period",
    "date": "charge_date",
    "part amount": "part_amount",
    "weight before": "weight_before",
    "weight total": "weight_total",
    "key": "metric",
}
"""Columns of charges and empty keys that have another name in their frames."""


class Spec(NamedTuple):
    """One case: where it stands, its rules, and its tables by the heading above them."""

    name: str
    rules: str
    tables: dict[str, list[Row]]


def read_specs(file: Path) -> Iterator[Spec]:
    """The cases of one file."""
    text = file.read_text(encoding="utf-8")
    head, *cases = text.split("\n## ")
    for case in cases:
        title = case.partition("\n")[0]
        yield Spec(f"{file.stem}: {title}", _rules(case) or _rules(head), {**_tables(head), **_tables(case)})


def _rules(text: str) -> str:
    return text.partition("```yaml\n")[2].partition("```")[0]


def _tables(text: str) -> dict[str, list[Row]]:
    tables = {}
    for section in text.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        cells = [_cells(line) for line in body.splitlines() if line.startswith("|")]
        columns, _ruler, *rows = cells or [[], []]
        tables[heading] = [dict(zip(columns, row, strict=True)) for row in rows]
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def write_config(spec: Spec, folder: Path) -> Path:
    """The case's rules as a configuration file, with its key tables beside it: by day and by period."""
    indented = "".join(f"    {line}\n" for line in spec.rules.splitlines())
    config = folder / "prorata.yaml"
    config.write_text(
        "root: ./prorata-data\n"
        "tenants:\n"
        "  - id: spec\n"
        "    ecosystem: aws\n"
        "    source: {kind: aws_cur, path: ./cur}\n"
        f"    keys: [by_day.csv, by_period.csv]\n{indented}",
        encoding="utf-8",
    )
    keys = spec.tables.get("Keys", [])
    for column, length in (("date", len("2025-11-01")), ("period", len("2025-11"))):
        rows = [f"{key['identity']},{key['when']},{key['key']},{key['value']}" for key in keys]
        chosen = [row for row, key in zip(rows, keys, strict=True) if len(key["when"]) == length]
        text = "\n".join([f"identity,{column},key,value", *chosen, ""])
        (folder / f"by_{'day' if column == 'date' else 'period'}.csv").write_text(text, encoding="utf-8")
    return config


def write_product_config(spec: Spec, folder: Path) -> Path:
    """The rules of a case of the folder `confluent` as a configuration file."""
    indented = "".join(f"    {line}\n" for line in spec.rules.splitlines())
    config = folder / "prorata.yaml"
    config.write_text(
        "root: ./prorata-data\n"
        "tenants:\n"
        "  - id: spec\n"
        "    ecosystem: confluent_cloud\n"
        f"    source: {{kind: confluent_cloud, api_key: '${{KEY}}', api_secret: '${{SECRET}}'}}\n{indented}",
        encoding="utf-8",
    )
    return config


DAY = "2025-11-04"
"""The day of everything that says no other one."""


def product_billing(lines: Sequence[Row]) -> pl.DataFrame:
    """A table of lines with products as BILLING. The line's number is its line_id."""
    plain = {"currency": "USD", "list": None, "resource": "", "environment": "env-1", "date": DAY}
    rows = [
        {
            "line_id": number,
            "ecosystem": "confluent_cloud",
            "charge_date": line["date"],
            "billing_period": line["date"][:7],
            "env_id": line["environment"],
            "resource_id": line["resource"],
            "product_type": line["product"],
            "currency": line["currency"],
            "tags": "{}",
            "amount": line["amount"],
            "list_amount": line["list"],
        }
        for number, line in enumerate(plain | line for line in lines)
    ]
    return _frame(BILLING, rows)


def resources(rows: Sequence[Row]) -> pl.DataFrame:
    """A table of resources as RESOURCES; `from` and `to` are days, `created` and `deleted` times."""
    return _frame(RESOURCES, [_interval(row) | {"parent": row.get("parent", "")} for row in rows])


def identities(rows: Sequence[Row]) -> pl.DataFrame:
    """A table of identities as IDENTITIES."""
    return _frame(IDENTITIES, [_interval(row) for row in rows])


def _interval(row: Row) -> dict[str, str | None]:
    return {
        "id": row["id"],
        "type": row["type"],
        "display_name": row.get("name") or row["id"],
        "owner": row.get("owner", ""),
        "scope": row.get("scope", ""),
        "valid_from": row.get("from") or None,
        "valid_to": row.get("to") or None,
        "created_at": row.get("created") or None,
        "deleted_at": row.get("deleted") or None,
    }


def usage(rows: Sequence[Row]) -> pl.DataFrame:
    """A table of values of metrics as USAGE."""
    return _frame(
        USAGE,
        [
            {
                "window": row.get("date", DAY),
                "resource_id": row["resource"],
                "metric": row["metric"],
                "principal": row["principal"],
                "value": row["value"],
            }
            for row in rows
        ],
    )


def _frame(table: Table, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    """A frame of the table from rows of text; what they leave out is '' or null."""
    absent = {name: None if name in table.nullable else "" for name in table.schema}
    texts = pl.DataFrame(
        [{**absent, "tenant_id": "spec", **row} for row in rows],
        schema={name: pl.Int64 if dtype == pl.Int64 else pl.String for name, dtype in table.schema.items()},
        orient="row",
    )
    parsed = {
        pl.Date(): lambda column: column.str.to_date(),
        pl.Datetime("us"): lambda column: column.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us"),
        AMOUNT: parse_amount,
    }
    return texts.with_columns(parsed[dtype](pl.col(name)) for name, dtype in table.schema.items() if dtype in parsed)


def billing(lines: Sequence[Row]) -> pl.DataFrame:
    """A table of lines as BILLING. The line's number is its line_id."""
    frame = pl.DataFrame([_billing_row(number, line) for number, line in enumerate(lines)])
    return frame.with_columns(
        pl.col("charge_date").str.to_date(),
        amount=parse_amount(pl.col("amount")),
        **{name: pl.lit(None, AMOUNT) for name in BILLING.nullable},
    ).select(pl.col(name).cast(dtype) for name, dtype in BILLING.schema.items())


def _billing_row(number: int, line: Row) -> dict[str, str | int]:
    date = line.get("date", "2025-11-01")
    return {
        "tenant_id": "spec",
        "charge_date": date,
        "line_id": number,
        "ecosystem": "aws",
        "billing_period": line.get("period", date[:7]),
        "env_id": line.get("account", "111"),
        "resource_id": line.get("resource", ""),
        "product_category": line.get("service", "AmazonEC2"),
        "product_type": line.get("usage type", "BoxUsage"),
        "line_item_type": line.get("type", "Usage"),
        "region": line.get("region", "us-east-1"),
        "operation": "",
        "sub_account_id": line.get("account", "111"),
        "invoice_id": "",
        "unit": "",
        "currency": line.get("currency", "USD"),
        "tags": _tags(line.get("tags", "")),
        "amount": line["amount"],
    }


def _tags(cell: str) -> str:
    """`{"Team": "x"}` or `team=x, app=y` -> tags as BILLING has them."""
    pairs = json.loads(cell) if cell.startswith("{") else dict(pair.split("=") for pair in cell.split(", ") if pair)
    known = {tag_key(key): value for key, value in pairs.items() if value}
    return json.dumps(known, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def charges(frame: pl.DataFrame, lines: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """CHARGEBACK as rows of text with these columns, in no particular order."""
    names = pl.DataFrame(
        {"line_id": range(len(lines)), "line": [line["line"] for line in lines]},
        schema={"line_id": CHARGEBACK.schema["line_id"], "line": pl.String},
    )
    return _texts(frame.join(names, on="line_id", how="left", validate="m:1"), columns)


def empty_keys(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """EMPTY_KEYS as rows of text with these columns."""
    assert frame.columns == list(EMPTY_KEYS.schema)
    return _texts(frame, columns)


def _texts(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    chosen = frame.select(pl.col(CHARGE_COLUMNS.get(name, name)).cast(pl.String).alias(name) for name in columns)
    return sorted(" | ".join(row) for row in chosen.rows())


def expected(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A table of the file as rows of text with these columns."""
    return sorted(" | ".join(row[name] for name in columns) for row in rows)


def sums(rows: Sequence[Row], column: str) -> dict[str, Decimal]:
    """The sum of the amounts of a table's rows for each value of a column."""
    found: dict[str, Decimal] = {}
    for row in rows:
        found[row[column]] = found.get(row[column], Decimal(0)) + Decimal(row["amount"])
    return found
