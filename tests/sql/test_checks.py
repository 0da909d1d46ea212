"""Every check of the ledger finds nothing in a lake as prorata wrote it, and trips on the damage it is there for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pytest

from engine import lake, pipeline, state, warehouse
from engine.errors import LedgerError
from engine.frames import BILLING, CHARGEBACK, Table
from engine.money import to_amount, to_units
from engine.sqlfiles import names

FIXTURES = Path(__file__).resolve().parents[2] / "data/fixtures/aws"
EVERYTHING = (("0000-00", "9999-99"), (date.min, date.max))
Damage = Callable[[pl.DataFrame], pl.DataFrame]


def run(config_file: Path) -> Path:
    config = pipeline.configured(config_file)
    hooks = pipeline.Hooks(lambda: "2026-01-01T00:00:00Z", lambda _: None, lambda *_: None, threading.Event())
    for tenant in config.tenants:
        pipeline.run_tenant(config, tenant, pipeline.Request("run"), hooks, f"run-{tenant.id}")
    return config.root


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the hand-made ledger's bill, allocated."""
    folder = tmp_path_factory.mktemp("ledger")
    shutil.copytree(FIXTURES / "ledger", folder / "ledger")
    file = folder / "ledger" / "prorata.yaml"
    text = file.read_text(encoding="utf-8")
    assert "root: ../../../../prorata-data" in text
    file.write_text(text.replace("root: ../../../../prorata-data", "root: ../store"), encoding="utf-8")
    return run(file)


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def findings(root: Path, *, thorough: bool = True) -> dict[str, int]:
    with state.open_state(root, write=False) as store:
        log = pipeline.file_log(store, "ledger")
    with warehouse.open_lake(root) as connection:
        found = warehouse.run_checks(connection, "ledger", *EVERYTHING, log, thorough=thorough)
    return {finding.check: finding.rows for finding in found}


def files(root: Path, table: Table) -> list[Path]:
    return sorted((root / "lake" / table.name / "tenant_id=ledger").rglob("*.parquet"))


def damaged(root: Path, table: Table, damage: Damage, *, where: pl.Expr | None = None) -> None:
    """Rewrite the first day file that has a row to damage."""
    for path in files(root, table):
        rows = pl.read_parquet(path, hive_partitioning=False)
        if where is None or rows.filter(where).height:
            damage(rows).write_parquet(path)
            return
    raise AssertionError("no file has such a row")


def first(where: pl.Expr) -> pl.Expr:
    """The first row for which a condition holds."""
    return where & (where.cum_sum() == 1)


def changed(column: str, value: pl.Expr, where: pl.Expr) -> Damage:
    return lambda rows: rows.with_columns(pl.when(first(where)).then(value).otherwise(pl.col(column)).alias(column))


ONE_UNIT_MORE = to_amount(to_units(pl.col("amount")) + 1)
SPLIT = pl.len().over("line_id") > 1
ANY = pl.col("line_id").is_not_null()


def swapped(units: int) -> Damage:
    """Some units of the first payer of a line go to the second, so that the line's sum stays."""
    fewer, more = (to_amount(to_units(pl.col("amount")) + change) for change in (-units, units))
    second = SPLIT & (pl.col("line_id") == pl.col("line_id").shift())
    return lambda rows: changed("amount", fewer, SPLIT)(changed("amount", more, second)(rows))


DAMAGES: dict[str, tuple[str, Table, Damage, pl.Expr]] = {
    "an amount is a unit off": ("line_sum", CHARGEBACK, changed("amount", ONE_UNIT_MORE, ANY), ANY),
    "a billed amount is a unit off": ("line_sum", BILLING, changed("amount", ONE_UNIT_MORE, ANY), ANY),
    "a row is gone": ("line_sum", CHARGEBACK, lambda rows: rows.filter(~first(SPLIT)), SPLIT),
    "a line has no row": (
        "line_sum",
        CHARGEBACK,
        lambda rows: rows.filter(pl.col("line_id") != pl.col("line_id").first()),
        ANY,
    ),
    "a measure appears that the line lacks": (
        "line_sum",
        CHARGEBACK,
        changed("list_amount", pl.col("amount"), ANY),
        ANY,
    ),
    "a day does not add up": ("day_sum", CHARGEBACK, changed("amount", ONE_UNIT_MORE, ANY), ANY),
    "a kind of cost is unknown": ("day_sum", CHARGEBACK, changed("cost_type", pl.lit("gift"), ANY), ANY),
    "a line is gone": ("orphan_rows", BILLING, lambda rows: rows.slice(1), ANY),
    "a row's service is another": ("orphan_rows", CHARGEBACK, changed("product_category", pl.lit("X"), ANY), ANY),
    "a row's resource is another": ("orphan_rows", CHARGEBACK, changed("resource_id", pl.lit("i-x"), ANY), ANY),
    "a row stands twice": ("duplicate_key", CHARGEBACK, lambda rows: pl.concat([rows.head(1), rows]), ANY),
    "a row stands again at the end": ("duplicate_key", CHARGEBACK, lambda rows: pl.concat([rows, rows.head(1)]), ANY),
    "a line stands twice": ("duplicate_key", BILLING, lambda rows: pl.concat([rows, rows.head(1)]), ANY),
    "a payer is null": ("null_key", CHARGEBACK, changed("identity_id", pl.lit(None), ANY), ANY),
    "a line id is null": ("null_key", BILLING, changed("line_id", pl.lit(None), ANY), ANY),
    "a row's currency is another": ("mixed_currency", CHARGEBACK, changed("currency", pl.lit("GBP"), ANY), ANY),
    "a weight is one more": ("weight_total", CHARGEBACK, changed("weight", pl.col("weight") + 1, SPLIT), SPLIT),
    "a weight is 0": ("weight_total", CHARGEBACK, changed("weight", pl.lit(0, pl.Int64), ANY), ANY),
    "a total is another": (
        "weight_total",
        CHARGEBACK,
        changed("weight_total", pl.col("weight_total") + 1, SPLIT),
        SPLIT,
    ),
    "weights overlap": (
        "weight_total",
        CHARGEBACK,
        changed("weight_before", pl.lit(0, pl.Int64), SPLIT & (pl.col("weight_before") > 0)),
        SPLIT & (pl.col("weight_before") > 0),
    ),
    "two payers of a line swapped a unit": ("apportionment", CHARGEBACK, swapped(1), SPLIT),
    "two payers of a line swapped a cent": ("weight_total", CHARGEBACK, swapped(10**10), SPLIT),
    "rows are missing from a file": ("files_vs_log", CHARGEBACK, lambda rows: rows.slice(1), ANY),
}


def test_every_check_has_a_damage() -> None:
    assert {check for check, *_ in DAMAGES.values()} == set(names("checks"))
    assert len(names("checks")) == 9


def test_a_sound_lake_passes_all_checks(sound: Path) -> None:
    assert findings(sound) == {}
    assert len(files(sound, CHARGEBACK)) > 3


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_trips_its_check(root: Path, name: str) -> None:
    check, table, damage, where = DAMAGES[name]
    damaged(root, table, damage, where=where)
    assert findings(root).get(check, 0) >= 1
    # A run makes the eight others only.
    assert (check in findings(root, thorough=False)) == (check != "apportionment")


def test_a_file_that_is_gone_is_missed(root: Path) -> None:
    files(root, CHARGEBACK)[0].unlink()
    assert findings(root)["files_vs_log"] == 1


def test_a_file_too_many_is_found_and_its_rows_are_duplicates(root: Path) -> None:
    original = files(root, CHARGEBACK)[0]
    copy = original.parent.parent / "month=2031-01" / original.name
    copy.parent.mkdir()
    shutil.copy(original, copy)
    found = findings(root)
    assert found["files_vs_log"] == 1
    assert found["duplicate_key"] >= 1


def test_the_error_names_the_check_and_a_row(root: Path) -> None:
    damaged(root, CHARGEBACK, changed("amount", ONE_UNIT_MORE, ANY))
    with (
        state.open_state(root, write=False) as store,
        warehouse.open_lake(root) as connection,
        pytest.raises(LedgerError, match=r"tenant ledger: check line_sum: 1 row\(s\), for example .*line_id=-?\d+"),
    ):
        warehouse.check(connection, "ledger", *EVERYTHING, pipeline.file_log(store, "ledger"))


def test_a_day_that_was_never_checked_is_checked_by_the_next_run(root: Path, sound: Path) -> None:
    """Killed between commit and check, say."""
    config = pipeline.configured(sound.parent / "ledger" / "prorata.yaml").model_copy(update={"root": root})
    damaged(root, CHARGEBACK, changed("amount", ONE_UNIT_MORE, ANY))
    with state.open_state(root) as store:
        size = {path: path.stat().st_size for path in files(root, CHARGEBACK)}
        with store.transaction() as connection:
            connection.execute("UPDATE pipeline_state SET checked_digest = NULL")
            for path, found in size.items():
                connection.execute(
                    "UPDATE pipeline_state SET chargeback_bytes = ? WHERE charge_date = ? AND billing_period = ?",
                    (found, path.stem, path.parent.name.removeprefix("month=")),
                )
    hooks = pipeline.Hooks(lambda: "2026-01-02T00:00:00Z", lambda _: None, lambda *_: None, threading.Event())
    with pytest.raises(LedgerError, match="check line_sum"):
        pipeline.run_tenant(config, config.tenants[0], pipeline.Request("run"), hooks, "again")


def test_the_lake_is_read_by_duckdb_alone(sound: Path) -> None:
    with duckdb.connect() as connection:
        for statement in warehouse.views_script(sound).split(";\n"):
            if statement.strip():
                connection.execute(statement)
        by_view = connection.sql("SELECT currency, sum(amount) FROM chargeback GROUP BY ALL ORDER BY ALL").fetchall()
        glob = str(sound / "lake/billing/**/*.parquet")
        billed = connection.sql(
            "SELECT currency, sum(amount) FROM read_parquet($glob) GROUP BY ALL ORDER BY ALL", params={"glob": glob}
        ).fetchall()
    assert by_view == billed
    assert [currency for currency, _ in billed] == ["EUR", "GBP", "USD"]
    assert lake.scan(sound, BILLING, "ledger").select(pl.len()).collect().item() > 40
