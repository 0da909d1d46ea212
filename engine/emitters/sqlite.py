"""The chargeback as a star schema in <root>/results.db, for tools that read SQLite.

Labels are stored once, in chargeback_dimensions; chargeback_facts holds one exact amount per day and combination of
labels. sql/results/ declares both, and the views that print amounts as decimal text.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import polars as pl
import polars_hash as plh

from engine.database import Database, connected
from engine.errors import LedgerError, fault, shown
from engine.money import UNITS, check_sum_fits, format_units, to_units

LABELS = (
    "tenant_id",
    "ecosystem",
    "identity_id",
    "env_id",
    "resource_id",
    "product_category",
    "product_type",
    "line_item_type",
    "region",
    "sub_account_id",
    "currency",
    "cost_type",
    "allocation_method",
    "allocation_detail",
)
"""The columns of chargeback_dimensions after its id, in their order."""
WHOLE_MAX = 2**63 - 1
"""The largest whole part of an amount that an SQLite integer holds."""


class Results(Database):
    """An open results.db. Threads may share it."""


def open_results(root: Path) -> Results:
    """The results of a root folder, created and migrated if need be; StoreError if they cannot be used."""
    file = root / "results.db"
    return Results(file, connected(file, "results"))


def holds(results: Results, tenant_id: str) -> bool:
    """Whether there is any fact of a tenant; False tells that what was emitted before was lost or is nothing."""
    return bool(results.rows("SELECT 1 FROM chargeback_facts WHERE tenant_id = ? LIMIT 1", (tenant_id,)))


def emit_day(results: Results, tenant_id: str, billing_period: str, charge_date: str, rows: pl.DataFrame) -> int:
    """Replace one day's facts by the sums of CHARGEBACK rows, in one transaction; returns how many facts there are.

    Raises ContractError if the sums might not be exact, LedgerError if a row is of another day or a sum's whole part
    needs more than 64 bits, StoreError if the file cannot be written; the day then stays as it was.
    """
    where = f"{results.file}: tenant {tenant_id}, billing period {billing_period}, day {charge_date}"
    _check_day(rows, tenant_id, billing_period, charge_date, where)
    facts = _facts(_sums(rows, where), where)
    dimensions = facts.select("dimension_id", *LABELS).rows()
    amounts = (
        facts.with_columns(billing_period=pl.lit(billing_period), charge_date=pl.lit(charge_date))
        .select("tenant_id", "billing_period", "charge_date", "dimension_id", "amount_whole", "amount_fraction")
        .rows()
    )
    with results.transaction() as connection:
        _delete_day(connection, (tenant_id, billing_period, charge_date))
        _insert_dimensions(connection, dimensions, where)
        connection.executemany(
            """
            INSERT INTO chargeback_facts (
                tenant_id, billing_period, charge_date, dimension_id, amount_whole, amount_fraction
            )
            VALUES (?, ?, ?, ?, ?, ?)
            """,
            amounts,
        )
    return len(amounts)


def withdraw_day(results: Results, tenant_id: str, billing_period: str, charge_date: str) -> None:
    """Delete one day's facts in one transaction; StoreError if the file cannot be written. Dimensions stay."""
    with results.transaction() as connection:
        _delete_day(connection, (tenant_id, billing_period, charge_date))


def put_payers(results: Results, tenant_id: str, payers: pl.DataFrame) -> None:
    """Replace a tenant's payers (identity_id, identity_name, team; unique, in order of the id) in one transaction.

    Nothing is written where they are the same; StoreError if the file cannot be written.
    """
    stored = results.rows(
        "SELECT identity_id, identity_name, team FROM payers WHERE tenant_id = ? ORDER BY identity_id", (tenant_id,)
    )
    given = payers.select("identity_id", "identity_name", "team").rows()
    if stored == given:
        return
    with results.transaction() as connection:
        connection.execute("DELETE FROM payers WHERE tenant_id = ?", (tenant_id,))
        connection.executemany(
            "INSERT INTO payers (tenant_id, identity_id, identity_name, team) VALUES (?, ?, ?, ?)",
            [(tenant_id, *payer) for payer in given],
        )


def _delete_day(connection: sqlite3.Connection, key: tuple[str, str, str]) -> None:
    connection.execute(
        "DELETE FROM chargeback_facts WHERE tenant_id = ? AND billing_period = ? AND charge_date = ?", key
    )


def _insert_dimensions(connection: sqlite3.Connection, dimensions: list[tuple[str, ...]], where: str) -> None:
    """Insert the dimensions that are new.

    An id is 64 bits of a hash. Should two sets of labels ever share one, the update below breaks a constraint, so
    that no amount is booked under another's labels.
    """
    try:
        connection.executemany(
            """
            INSERT INTO chargeback_dimensions (
                dimension_id, tenant_id, ecosystem, identity_id, env_id, resource_id, product_category, product_type,
                line_item_type, region, sub_account_id, currency, cost_type, allocation_method, allocation_detail
            )
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (dimension_id) DO UPDATE SET dimension_id = NULL
            WHERE (
                tenant_id, ecosystem, identity_id, env_id, resource_id, product_category, product_type,
                line_item_type, region, sub_account_id, currency, cost_type, allocation_method, allocation_detail
            ) <> (
                excluded.tenant_id, excluded.ecosystem, excluded.identity_id, excluded.env_id, excluded.resource_id,
                excluded.product_category, excluded.product_type, excluded.line_item_type, excluded.region,
                excluded.sub_account_id, excluded.currency, excluded.cost_type, excluded.allocation_method,
                excluded.allocation_detail
            )
            """,
            dimensions,
        )
    except sqlite3.IntegrityError as error:
        seen = "two different sets of labels share one dimension_id"
        raise LedgerError(fault(where, seen, "a dimension_id for each")) from error


def _check_day(rows: pl.DataFrame, tenant_id: str, billing_period: str, charge_date: str, where: str) -> None:
    strangers = rows.select(
        (
            (pl.col("tenant_id") != tenant_id)
            | (pl.col("billing_period") != billing_period)
            | (pl.col("charge_date").cast(pl.String) != charge_date)
        ).sum()
    ).item()
    if strangers:
        raise LedgerError(fault(where, f"{strangers} row(s) of another tenant, period or day", "rows of this day"))


def _sums(rows: pl.DataFrame, where: str) -> pl.DataFrame:
    """One row per combination of labels, with its total in units."""
    lines = rows.select(*(pl.col(label).cast(pl.String) for label in LABELS), units=to_units(pl.col("amount")))
    largest = lines.select(pl.col("units").abs().max()).item() or 0
    check_sum_fits(where, largest, lines.height)
    return lines.group_by(LABELS).agg(pl.col("units").sum())


def _facts(sums: pl.DataFrame, where: str) -> pl.DataFrame:
    """The sums with their dimension_id, as whole and fraction, both of the amount's sign; in the order of the id."""
    # Divided without its sign: floor division of a negative would round away from zero.
    sign, size, unit = pl.col("units").sign(), pl.col("units").abs(), pl.lit(UNITS, dtype=pl.Int128)
    too_large = sums.filter(size // unit > WHOLE_MAX)
    if too_large.height:
        example = too_large.row(0, named=True)
        seen = f"amount {format_units(example['units'])} of identity {shown(example['identity_id'])}"
        raise LedgerError(fault(where, seen, f"at most {WHOLE_MAX} whole units of currency"))
    return (
        sums.with_columns(
            _canonical_text().alias("dimension_id"),
            amount_whole=(sign * (size // unit)).cast(pl.Int64),
            amount_fraction=(sign * (size % unit)).cast(pl.Int64),
        )
        .with_columns(plh.col("dimension_id").chash.sha2_256().str.head(16))
        .sort("dimension_id")
    )


def _canonical_text() -> pl.Expr:
    """`<UTF-8 bytes>:<text>` of every label in order, so that no two sets of labels give the same text."""
    texts = (part for label in LABELS for part in (pl.col(label).str.len_bytes().cast(pl.String), ":", pl.col(label)))
    return pl.concat_str(*(pl.lit(text) if isinstance(text, str) else text for text in texts))
