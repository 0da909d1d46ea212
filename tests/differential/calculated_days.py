"""What the product makes of the days of an organization, for comparison and for properties."""

from __future__ import annotations

from typing import Any, NamedTuple

import polars as pl

from engine import decide, rules
from engine.config import ConfluentTenant
from engine.frames import BILLING, IDENTITIES, RESOURCES, USAGE, Table, empty
from engine.money import AMOUNT, parse_amount
from tests.differential.organizations import DAYS, Organization


class Frames(NamedTuple):
    """An organization as the product takes it."""

    given: decide.Inputs
    billing: pl.DataFrame
    facts: decide.DayFacts


def frame(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a frame of the table; amounts are text, what a row leaves out is '' or null."""
    absent = {name: None if name in table.nullable else "" for name in table.schema}
    schema = {name: pl.String if dtype == AMOUNT else dtype for name, dtype in table.schema.items()}
    known = [{name: row.get(name, absent[name]) for name in schema} for row in rows]
    texts = pl.DataFrame(known, schema=schema, orient="row")
    return texts.with_columns(parse_amount(pl.col(name)) for name, dtype in table.schema.items() if dtype == AMOUNT)


def frames(given: Organization) -> Frames:
    """The organization's tables and rules."""
    tenant = ConfluentTenant.model_validate(given.tenant)
    lines = [
        {
            **line,
            "tenant_id": "acme",
            "ecosystem": "confluent_cloud",
            "billing_period": str(line["charge_date"])[:7],
            "tags": "{}",
            "list_amount": line["list"],
        }
        for line in given.lines
    ]
    facts = decide.DayFacts(
        frame(RESOURCES, given.resources), frame(IDENTITIES, given.identities), frame(USAGE, given.usage), given.failed
    )
    return Frames(decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE)), frame(BILLING, lines), facts)


def calculated(given: Frames) -> decide.Allocation:
    """All days of the organization, one by one."""
    days = [given.billing.filter(pl.col("charge_date") == day) for day in DAYS]
    found = [decide.allocate_day(day, given.given, given.facts) for day in days]
    return decide.Allocation(
        pl.concat([allocation.chargeback for allocation in found]),
        pl.concat([allocation.empty_keys for allocation in found]),
    )
