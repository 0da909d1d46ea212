"""The views say the same as the lake's files, in a plain DuckDB session too, and read no more files than asked."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pytest

from engine import warehouse
from engine.emitters import sqlite
from engine.errors import StoreError
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, RESOURCES
from engine.sqlfiles import names
from tests.sql.lakes import queried, stored, table, text

LABELS = {"ecosystem": "aws", "tenant_id": "acme"}
BILLED = table(
    BILLING,
    """
    billing_period | charge_date | line_id | product_category | currency | amount | list_amount
    2024-01        | 2024-01-30  | 1       | AmazonEC2        | USD      | 3      | 4
    2024-01        | 2024-01-31  | 2       | AmazonEC2        | USD      | 0.5    | -
    2024-02        | 2024-01-31  | 3       | AWSSupport       | EUR      | -7     | -
    2024-02        | 2024-02-01  | 4       | AmazonS3         | USD      | 0.000000000001 | 0
    """,
    **LABELS,
)
CHARGED = table(
    CHARGEBACK,
    """
  billing_period | charge_date | line_id | identity_id | currency | amount         | list_amount | cost_type | rule_id
  2024-01        | 2024-01-30  | 1       | pay         | USD      | 1              | 1.5         | usage     | pool:nat
  2024-01        | 2024-01-30  | 1       | search      | USD      | 2              | 2.5         | usage     | pool:nat
  2024-01        | 2024-01-31  | 2       | pay         | USD      | 0.5            | -           | direct    | direct
  2024-02        | 2024-01-31  | 3       | UNALLOCATED | EUR      | -7             | -           | shared    | pool:tax
  2024-02        | 2024-02-01  | 4       | UNALLOCATED | USD      | 0.000000000001 | 0           | shared    | untagged
    """,
    **LABELS,
    part="0",
).with_columns(
    allocation_detail=pl.Series(["nat", "nat", "owner_tag", "zero_key_total", "untagged"]),
    product_category=pl.Series(["AmazonEC2", "AmazonEC2", "AmazonEC2", "AWSSupport", "AmazonS3"]),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("store"), (BILLING, BILLED), (CHARGEBACK, CHARGED))


def test_every_view_has_its_place_in_the_order() -> None:
    assert sorted(warehouse.VIEWS) == names("views")


@pytest.mark.parametrize("view", ["chargeback", "chargeback_daily", "chargeback_monthly", "chargeback_facts"])
def test_every_view_of_amounts_has_the_bills_total(root: Path, view: str) -> None:
    labels = " JOIN chargeback_dimensions USING (tenant_id, dimension_id)" if view == "chargeback_facts" else ""
    totals = "SELECT currency, sum(amount) AS amount FROM {} GROUP BY currency ORDER BY currency"
    assert text(queried(root, totals.format(view + labels))) == "currency | amount\nEUR | -7\nUSD | 3.500000000001"
    assert text(queried(root, totals.format("billing"))) == "currency | amount\nEUR | -7\nUSD | 3.500000000001"


def test_daily_and_monthly(root: Path) -> None:
    daily = "SELECT billing_period, charge_date, identity_id, cost_type, amount, list_amount, rows"
    assert text(queried(root, f"{daily} FROM chargeback_daily ORDER BY ALL")) == (
        "billing_period | charge_date | identity_id | cost_type | amount | list_amount | rows\n"
        "2024-01 | 2024-01-30 | pay | usage | 1 | 1.5 | 1\n"
        "2024-01 | 2024-01-30 | search | usage | 2 | 2.5 | 1\n"
        "2024-01 | 2024-01-31 | pay | direct | 0.5 | - | 1\n"
        "2024-02 | 2024-01-31 | UNALLOCATED | shared | -7 | - | 1\n"
        "2024-02 | 2024-02-01 | UNALLOCATED | shared | 0.000000000001 | 0 | 1"
    )
    monthly = (
        "SELECT month, identity_id, currency, sum(amount) AS amount FROM chargeback_monthly GROUP BY ALL ORDER BY ALL"
    )
    assert text(queried(root, monthly)) == (
        "month | identity_id | currency | amount\n"
        "2024-01 | pay | USD | 1.5\n"
        "2024-01 | search | USD | 2\n"
        "2024-02 | UNALLOCATED | EUR | -7\n"
        "2024-02 | UNALLOCATED | USD | 0.000000000001"
    )


def test_unallocated_tells_why(root: Path) -> None:
    assert text(queried(root, "SELECT line_id, rule_id, reason, class, amount FROM unallocated ORDER BY ALL")) == (
        "line_id | rule_id | reason | class | amount\n"
        "3 | pool:tax | zero_key_total | no_weight | -7\n"
        "4 | untagged | untagged | untagged | 0.000000000001"
    )


ODD_TEXTS = ["", "a:b", "5:a", "\u00e9\U0001f600", 'say "hi"', "tab\tnewline\nnull\x01", "back\\slash", "'; --"]


def odd_rows() -> pl.DataFrame:
    """A row for each odd text as resource and as payer."""
    first = CHARGED.head(1)
    return pl.concat(
        first.with_columns(pl.lit(one).alias("resource_id"), pl.lit(other).alias("identity_id"))
        for one in ODD_TEXTS
        for other in ODD_TEXTS
    )


def test_a_dimension_id_is_the_digest_of_the_labels_and_their_lengths(tmp_path: Path) -> None:
    dimensions = queried(
        stored(tmp_path, (CHARGEBACK, odd_rows())), "SELECT * EXCLUDE (identity_name, team) FROM chargeback_dimensions"
    )
    assert dimensions.height == len(ODD_TEXTS) ** 2
    for dimension_id, *labels in dimensions.rows():
        key = "".join(f"{len(label.encode())}:{label}" for label in labels)
        assert dimension_id == hashlib.sha256(key.encode()).hexdigest()[:16]


def test_the_star_is_that_of_results_db(tmp_path: Path) -> None:
    rows = odd_rows()
    root = stored(tmp_path, (CHARGEBACK, rows))
    with sqlite.open_results(root) as results:
        sqlite.emit_day(results, "acme", "2024-01", "2024-01-30", rows)
        emitted = results.rows("SELECT * FROM chargeback_dimensions ORDER BY dimension_id")
        facts = results.rows(
            """
            SELECT tenant_id, billing_period, charge_date, dimension_id, amount
            FROM chargeback
            JOIN chargeback_dimensions USING (tenant_id, identity_id, resource_id)
            ORDER BY dimension_id
            """
        )
    labels = "SELECT * EXCLUDE (identity_name, team) FROM chargeback_dimensions ORDER BY dimension_id"
    seen = queried(root, labels)
    assert [tuple(row) for row in emitted] == seen.rows()
    view = "SELECT * REPLACE (charge_date::VARCHAR AS charge_date, amount::VARCHAR AS amount) FROM chargeback_facts"
    assert [tuple(row) for row in facts] == queried(root, f"{view} ORDER BY dimension_id").rows()


def test_a_tenants_name_is_text_and_its_folder_counts(tmp_path: Path) -> None:
    rows = pl.concat(CHARGED.with_columns(tenant_id=pl.lit(name)) for name in ("007", "2024-01-01"))
    root = stored(tmp_path, (CHARGEBACK, rows))
    found = queried(root, "SELECT tenant_id, month, count(*) AS rows FROM chargeback GROUP BY ALL ORDER BY ALL")
    assert text(found) == (
        "tenant_id | month | rows\n"
        "007 | 2024-01 | 3\n007 | 2024-02 | 2\n2024-01-01 | 2024-01 | 3\n2024-01-01 | 2024-02 | 2"
    )
    moved = root / "lake/chargeback/tenant_id=b"
    (root / "lake/chargeback/tenant_id=007").rename(moved)
    found = queried(root, "SELECT tenant_id, count(*) AS rows FROM chargeback GROUP BY ALL ORDER BY ALL")
    assert text(found) == "tenant_id | rows\n2024-01-01 | 5\nb | 5"


def scanned_files(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    ((_, plan),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) {query}").fetchall()
    return sum(int(files) for files in re.findall(r'"Total Files Read": "(\d+)"', plan))


def test_filters_on_folders_leave_the_other_files_unread(root: Path) -> None:
    with warehouse.open_lake(root) as connection:
        assert scanned_files(connection, "SELECT sum(amount) FROM chargeback") == 5
        assert scanned_files(connection, "SELECT sum(amount) FROM chargeback WHERE month = '2024-01'") == 2
        # Two days, and what gives payers their names: two files of two tables, each looked at twice.
        facts = "SELECT sum(amount) FROM chargeback_facts WHERE billing_period = '2024-02'"
        assert scanned_files(connection, facts) == 2 + 4
        assert scanned_files(connection, "SELECT sum(amount) FROM chargeback_monthly WHERE tenant_id = 'b'") == 0


def test_a_plain_session_needs_only_the_script(root: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(warehouse.views_script(root))
        for view in warehouse.VIEWS:
            connection.execute(f"SELECT * FROM {view}").fetchall()
        assert connection.execute("SELECT count(*) FROM chargeback").fetchone() == (5,)


@pytest.mark.parametrize("folder", ["it's", "a [b] *c?", 'say "$x"', "; DROP", "new\nline", "\u00e9"])
def test_a_root_of_any_name_is_found_and_nothing_else(tmp_path: Path, folder: str) -> None:
    root = stored(tmp_path / folder, (CHARGEBACK, CHARGED))
    stored(tmp_path / "a b yc1", (CHARGEBACK, CHARGED))
    with duckdb.connect() as connection:
        connection.execute(warehouse.views_script(root))
        assert connection.execute("SELECT count(*) FROM chargeback").fetchone() == (5,)
    assert queried(root, "FROM chargeback").height == 5


def test_an_empty_lake_has_every_view_and_no_row(tmp_path: Path) -> None:
    root = stored(tmp_path)
    for view in warehouse.VIEWS:
        found = queried(root, f"FROM {view}")
        assert found.height == (2 if view == "lake_files" else 0)
    assert queried(root, "FROM identities").columns == IDENTITIES.columns
    assert queried(root, "FROM resources").columns == RESOURCES.columns
    assert queried(root, "FROM empty_keys").columns == [*EMPTY_KEYS.columns, "month"]
    assert queried(root, "FROM billing").columns == [*BILLING.columns, "month"]
    assert queried(root, "FROM chargeback").columns == [*CHARGEBACK.columns, "month"]


def test_a_lake_of_an_older_schema_is_read_by_name(tmp_path: Path) -> None:
    root = stored(tmp_path, (CHARGEBACK, CHARGED))
    (older, *_) = sorted((root / "lake/chargeback/tenant_id=acme").rglob("*.parquet"))
    rows = pl.read_parquet(older, hive_partitioning=False)
    rows.drop("contracted_amount").select(sorted(rows.drop("contracted_amount").columns)).write_parquet(older)
    assert (
        queried(root, "SELECT sum(amount) AS amount FROM chargeback WHERE currency = 'USD'").item()
        == CHARGED.filter(pl.col("currency") == "USD")["amount"].sum()
    )


def test_lake_files_are_told_by_their_place(root: Path) -> None:
    found = queried(root, "SELECT table_name, tenant_id, month, charge_date, rows FROM lake_files ORDER BY ALL")
    assert text(found) == (
        "table_name | tenant_id | month | charge_date | rows\n"
        "billing | _ | - | - | 0\n"
        "billing | acme | 2024-01 | 2024-01-30 | 1\n"
        "billing | acme | 2024-01 | 2024-01-31 | 1\n"
        "billing | acme | 2024-02 | 2024-01-31 | 1\n"
        "billing | acme | 2024-02 | 2024-02-01 | 1\n"
        "chargeback | _ | - | - | 0\n"
        "chargeback | acme | 2024-01 | 2024-01-30 | 2\n"
        "chargeback | acme | 2024-01 | 2024-01-31 | 1\n"
        "chargeback | acme | 2024-02 | 2024-01-31 | 1\n"
        "chargeback | acme | 2024-02 | 2024-02-01 | 1"
    )


def test_a_root_without_a_lake_is_a_fault_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as raised:
        warehouse.open_lake(tmp_path)
    (fault,) = raised.value.faults
    assert fault.startswith(f"{tmp_path / 'lake'}: ")
    assert "\n" not in fault


def test_a_damaged_file_is_a_fault_of_one_line(tmp_path: Path) -> None:
    root = stored(tmp_path, (BILLING, BILLED), (CHARGEBACK, CHARGED))
    log = pl.DataFrame(
        schema={"table_name": pl.String, "billing_period": pl.String, "charge_date": pl.Date, "rows": pl.Int64}
    )
    with warehouse.open_lake(root) as connection:
        next((root / "lake/billing/tenant_id=acme").rglob("*.parquet")).write_bytes(b"PAR1 nothing PAR1")
        with pytest.raises(StoreError) as raised:
            warehouse.run_checks(connection, "acme", ("2024-01", "2024-02"), (date.min, date.max), log)
    assert len(raised.value.faults) == 1
    assert "\n" not in raised.value.faults[0]


def test_the_views_read_everything_again_after_checks(root: Path) -> None:
    log = queried(
        root, "SELECT table_name, month AS billing_period, charge_date, rows FROM lake_files WHERE tenant_id = 'acme'"
    )
    with warehouse.open_lake(root) as connection:
        day = date(2024, 1, 31)
        found = warehouse.run_checks(connection, "acme", ("2024-01", "2024-01"), (day, day), log)
        assert {finding.check for finding in found} == {"weight_total"}
        assert connection.execute("SELECT count(*) FROM chargeback").fetchone() == (5,)
