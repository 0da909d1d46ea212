"""Small tenants and tables for unit tests: what a test does not say has a plain default."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import polars as pl

from engine import money
from engine.config import AwsTenant
from engine.frames import BILLING, RULES, WEIGHTS, Blocks, Table, starts

DAY = dt.date(2025, 9, 1)
PERIOD = "2025-09"

HOSTILE = [
    "plain",
    "",
    'quo"te',
    "it's",
    "back\\slash",
    '{"sub_account_id":"1"}',
    '","currency":"USD',
    "a,b;c\td",
    "line\nbreak\r",
    "../../etc/passwd",
    "=cmd()",
    "%s $x ${y}",
    "a@b@c",
    "null",
    "\\N",
    "\u00e9\u4e2d\U0001d518",
    "\x00\x1b[31m",
]
"""Texts from outside that have broken somebody's parser."""


def tenant(**fields: Any) -> AwsTenant:
    """A tenant whose owner tag is `team`, as the configuration gives it."""
    plain: dict[str, Any] = {
        "id": "acme",
        "ecosystem": "aws",
        "source": {"kind": "aws_cur", "path": "cur"},
        "owner": {"tags": ["team"]},
    }
    return AwsTenant.model_validate(plain | fields)


def pool(name: str = "p", ladder: Any = ({"basis": "unallocated"},), **fields: Any) -> dict[str, Any]:
    """A pool of the configuration, one that matches every line."""
    rungs = ladder if isinstance(ladder, str) else list(ladder)
    return {"name": name, "match": {}, "ladder": rungs, **fields}


def amounts(*texts: str | None) -> pl.Series:
    """Amounts written as text."""
    return pl.Series(list(texts), dtype=pl.String).cast(money.AMOUNT)


def rows(table: Table, *given: dict[str, Any]) -> pl.DataFrame:
    """A frame of the table; amounts are text, what a row leaves out is '', 0, null or the first of September.

    Columns that the table does not have come last, as text.
    """
    plain = {
        name: None if name in table.nullable else DAY if dtype == pl.Date() else "" if dtype == pl.String() else 0
        for name, dtype in table.schema.items()
    }
    decimals = [name for name, dtype in table.schema.items() if dtype == money.AMOUNT]
    texts = dict.fromkeys(decimals, pl.String())
    more = dict.fromkeys((name for row in given for name in row if name not in table.schema), pl.String())
    written = [
        {name: str(value) if name in decimals and value is not None else value for name, value in (plain | row).items()}
        for row in given
    ]
    frame = pl.DataFrame(written, schema={**table.schema, **texts, **more}, orient="row")
    return frame.with_columns(money.parse_amount(pl.col(name)) for name in decimals)


def billing(*given: dict[str, Any]) -> pl.DataFrame:
    """BILLING of tenant acme; lines are numbered, `tags` may be a dict."""
    plain = {"tenant_id": "acme", "ecosystem": "aws", "billing_period": PERIOD, "currency": "USD", "amount": "1"}
    numbered = [
        {**plain, "line_id": number, **line, "tags": json.dumps(line.get("tags", {}), sort_keys=True)}
        for number, line in enumerate(given)
    ]
    return rows(BILLING, *numbered)


LAST = {
    "basis": "unallocated",
    "payer": "UNALLOCATED",
    "cost_type": "shared",
    "allocation_method": "unallocated",
    "allocation_detail": "",
}
"""What makes a row of RULES a last rung."""


def ladder_rows(*given: dict[str, Any]) -> pl.DataFrame:
    """RULES of one rule `r`, whose rungs weigh by usage in ladder `l` unless a row says otherwise."""
    plain = {
        "rule_id": "r",
        "share": 1,
        "ladder": "l",
        "basis": "usage",
        "cost_type": "usage",
        "allocation_method": "usage_ratio",
        "allocation_detail": "p",
        "version": "v",
    }
    return rows(RULES, *(plain | row for row in given))


def weight_rows(*given: tuple[str, int, str, int | None]) -> pl.DataFrame:
    """WEIGHTS from weight_group, rung, identity_id, weight."""
    return pl.DataFrame(list(given), schema=WEIGHTS.schema, orient="row")


def in_blocks(frame: pl.DataFrame, table: Table) -> Blocks:
    """The rows of a frame, a block wherever another column changes than those that vary."""
    steady = [name for name in frame.columns if name not in table.varied]
    firsts = starts(frame, steady)
    return Blocks(frame.drop(steady), frame[firsts].select(steady), firsts)
