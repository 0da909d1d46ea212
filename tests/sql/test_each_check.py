"""What each check finds, row by row, on lakes of a few rows made by hand; run as an analyst would run it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from engine import warehouse
from engine.errors import LedgerError
from engine.frames import BILLING, CHARGEBACK, MEASURES, Table
from engine.sqlfiles import names
from tests.sql.lakes import amount, offenders, queried, shared_lines, stored, table, text

LABELS = "ecosystem billing_period env_id resource_id product_category product_type line_item_type region operation"
EVERY_LABEL = [*LABELS.split(), "sub_account_id", "invoice_id", "currency"]
BILLED = table(
    BILLING,
    """
    billing_period | charge_date | line_id | currency | amount | effective_amount | list_amount
    2024-01        | 2024-01-01  | 1       | USD      | 10     | 0                | -
    2024-01        | 2024-01-01  | 2       | USD      | 6      | -                | 8
    2024-01        | 2024-01-02  | 1       | EUR      | 5      | -                | -
    2024-02        | 2024-01-02  | 3       | USD      | 7      | -                | -
    """,
    tenant_id="acme",
    resource_id="i-1",
)
CHARGED = table(
    CHARGEBACK,
    """
    charge_date | line_id | part | identity_id | amount | effective_amount | list_amount | cost_type | part_amount
    2024-01-01  | 1       | 0    | pay         | 10     | 0                | -           | direct    | 10
    2024-01-01  | 2       | 0    | pay         | 2      | -                | 3           | usage     | 4
    2024-01-01  | 2       | 0    | search      | 2      | -                | 3           | usage     | 4
    2024-01-01  | 2       | 1    | UNALLOCATED | 2      | -                | 2           | shared    | 2
    2024-01-02  | 1       | 0    | platform    | 5      | -                | -           | operator  | 5
    2024-01-02  | 3       | 0    | search      | 7      | -                | -           | shared    | 7
    """,
    tenant_id="acme",
).with_columns(
    weight_before=pl.Series([0, 0, 1, 0, 0, 0]),
    weight=pl.lit(1, pl.Int64),
    weight_total=pl.Series([1, 2, 2, 1, 1, 1]),
)
CHARGED = (
    CHARGED.drop(*EVERY_LABEL)
    .join(BILLED.select("charge_date", "line_id", *EVERY_LABEL), on=["charge_date", "line_id"], maintain_order="left")
    .select(CHARGEBACK.columns)
)
LINE_2, SEARCH = pl.col("line_id") == 2, pl.col("identity_id") == "search"
FIRST_DAY = pl.col("charge_date") == date(2024, 1, 1)
Change = Callable[[pl.DataFrame], pl.DataFrame]


def a_lake(root: Path, *, billed: pl.DataFrame = BILLED, charged: pl.DataFrame = CHARGED) -> Path:
    return stored(root, (BILLING, billed), (CHARGEBACK, charged))


def found(root: Path, check: str, *columns: str) -> str:
    """The rows that a check finds, as text without its head."""
    return "\n".join(text(offenders(root, check).select(columns)).splitlines()[1:])


def value(column: str, new: str | None, where: pl.Expr) -> pl.Expr:
    literal = pl.lit(new, pl.String).cast(CHARGEBACK.schema[column])
    return pl.when(where).then(literal).otherwise(pl.col(column)).alias(column)


ROW_CHECKS = [name for name in names("checks") if name != "files_vs_log"]


@pytest.mark.parametrize("check", ROW_CHECKS)
def test_a_sound_lake_has_no_offenders(tmp_path: Path, check: str) -> None:
    assert offenders(a_lake(tmp_path), check).height == 0


@pytest.mark.parametrize("check", ROW_CHECKS)
def test_an_empty_lake_has_no_offenders(tmp_path: Path, check: str) -> None:
    assert offenders(stored(tmp_path), check).height == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (value("amount", "2.000000000001", LINE_2 & SEARCH), "2 | 3 | 6 | 6.000000000001"),
        (value("amount", "1.999999999999", LINE_2 & SEARCH), "2 | 3 | 6 | 5.999999999999"),
        (value("amount", None, LINE_2 & SEARCH), "2 | 3 | 6 | 4"),
        (value("list_amount", "3.000000000001", LINE_2 & SEARCH), "2 | 3 | 6 | 6"),
        (value("list_amount", None, LINE_2), "2 | 3 | 6 | 6"),
        (value("effective_amount", "0", LINE_2), "2 | 3 | 6 | 6"),
        (value("effective_amount", None, ~LINE_2 & FIRST_DAY), "1 | 1 | 10 | 10"),
        (value("contracted_amount", "0", SEARCH & ~FIRST_DAY), "3 | 1 | 7 | 7"),
    ],
)
def test_line_sum_compares_every_measure_to_the_last_digit(tmp_path: Path, change: pl.Expr, expected: str) -> None:
    root = a_lake(tmp_path, charged=CHARGED.with_columns(change))
    assert found(root, "line_sum", "line_id", "rows", "billed", "allocated") == expected


def test_line_sum_finds_a_line_without_rows(tmp_path: Path) -> None:
    root = a_lake(tmp_path, charged=CHARGED.filter(~LINE_2))
    assert found(root, "line_sum", "line_id", "rows", "billed", "allocated") == "2 | 0 | 6 | -"


@pytest.mark.parametrize(
    ("billed", "allocated"),
    [(-1, 0), (0, -1), (5 * 2**64 + 7, 7 * 2**64 + 5), (2**64, 1), (-(2**64), 2**64 - 1)],
)
def test_line_sum_tells_amounts_apart_whose_hashes_are_the_same(tmp_path: Path, billed: int, allocated: int) -> None:
    where = pl.col("line_id") == 3
    root = a_lake(
        tmp_path,
        billed=BILLED.with_columns(value("amount", amount(billed), where)),
        charged=CHARGED.with_columns(value("amount", amount(allocated), where)),
    )
    assert queried(root, f"SELECT hash({billed}::HUGEINT) = hash({allocated}::HUGEINT) AS alike")["alike"].item()
    assert offenders(root, "line_sum")["line_id"].to_list() == [3]
    assert offenders(root, "day_sum")["charge_date"].to_list() == [date(2024, 1, 2)]


@pytest.mark.parametrize("label", ["currency", "billing_period"])
def test_a_day_with_a_null_in_both_tables_does_not_add_up(tmp_path: Path, label: str) -> None:
    """Files of billing and chargeback that agree in what neither may lack; they lie where the period says."""
    root = a_lake(tmp_path)
    for of in ("billing", "chargeback"):
        (file,) = (root / "lake" / of).glob("tenant_id=acme/month=2024-01/2024-01-02.parquet")
        pl.read_parquet(file, hive_partitioning=False).with_columns(
            value(label, None, pl.lit(value=True))
        ).write_parquet(file)
    assert set(offenders(root, "day_sum")["charge_date"]) == {date(2024, 1, 2)}


def test_line_sum_finds_lines_without_an_id_in_both_tables(tmp_path: Path) -> None:
    gone = value("line_id", None, pl.col("line_id") == 3)
    root = a_lake(tmp_path, billed=BILLED.with_columns(gone), charged=CHARGED.with_columns(gone))
    assert offenders(root, "line_sum")["line_id"].to_list() == [None]


def test_line_sum_of_a_line_of_nothing_wants_a_row(tmp_path: Path) -> None:
    nothing = BILLED.with_columns(value("amount", "0", LINE_2), value("list_amount", "0", LINE_2))
    root = a_lake(tmp_path / "none", billed=nothing, charged=CHARGED.filter(~LINE_2))
    assert found(root, "line_sum", "line_id", "rows") == "2 | 0"
    rows = CHARGED.filter(~LINE_2 | SEARCH).with_columns(
        *(value(column, "0", LINE_2) for column in ("amount", "list_amount", "part_amount", "weight_before"))
    )
    root = a_lake(tmp_path / "one", billed=nothing, charged=rows)
    assert [offenders(root, check).height for check in ROW_CHECKS] == [0] * len(ROW_CHECKS)


def test_day_sum_shows_the_classes_of_a_day_that_does_not_add_up(tmp_path: Path) -> None:
    columns = ("billing_period", "charge_date", "currency", "billed", "direct", "usage", "shared", "operator")
    root = a_lake(tmp_path / "gift", charged=CHARGED.with_columns(value("cost_type", "gift", LINE_2 & SEARCH)))
    expected = "2024-01 | 2024-01-01 | USD | 16 | 10 | 2 | 0 | 0"
    assert found(root, "day_sum", *columns) == expected
    root = a_lake(tmp_path / "currency", charged=CHARGED.with_columns(value("currency", "EUR", LINE_2 & SEARCH)))
    assert found(root, "day_sum", *columns).splitlines() == [
        "2024-01 | 2024-01-01 | EUR | - | 0 | 2 | 0 | 0",
        "2024-01 | 2024-01-01 | USD | 16 | 10 | 2 | 0 | 0",
    ]


def test_day_sum_does_not_let_bills_of_one_day_make_up_for_each_other(tmp_path: Path) -> None:
    swapped = CHARGED.with_columns(value("currency", "USD", ~FIRST_DAY)).with_columns(
        value("amount", "6", ~FIRST_DAY), value("part_amount", "6", ~FIRST_DAY)
    )
    billed = BILLED.with_columns(value("currency", "USD", ~FIRST_DAY))
    root = a_lake(tmp_path, billed=billed, charged=swapped)
    columns = ("billing_period", "charge_date", "billed", "shared", "operator")
    assert found(root, "day_sum", *columns).splitlines() == [
        "2024-01 | 2024-01-02 | 5 | 0 | 6",
        "2024-02 | 2024-01-02 | 7 | 6 | 0",
    ]


def test_day_sum_finds_rows_without_a_cost_type(tmp_path: Path) -> None:
    billing, chargeback = shared_lines([(100, [1, 1]), (100, [1, 1])])
    nameless = pl.when(pl.col("line_id") == 1).then(None).otherwise("cost_type").alias("cost_type")
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, chargeback.with_columns(nameless)))
    assert found(root, "day_sum", "charge_date", "usage") == "2024-01-01 | 0.0000000001"


def test_day_sum_finds_a_day_without_any_amount(tmp_path: Path) -> None:
    nothing = value("amount", None, pl.lit(value=True))
    root = a_lake(tmp_path, billed=BILLED.with_columns(nothing), charged=CHARGED.with_columns(nothing))
    assert found(root, "day_sum", "charge_date", "billed").splitlines() == [
        "2024-01-01 | -",
        "2024-01-02 | -",
        "2024-01-02 | -",
    ]


@pytest.mark.parametrize("label", EVERY_LABEL)
@pytest.mark.parametrize("new", ["2024-09", None])
def test_orphan_rows_finds_a_row_with_another_label(tmp_path: Path, label: str, new: str | None) -> None:
    damaged = CHARGED.with_columns(value(label, new, LINE_2 & SEARCH))
    # A row that says another bill stays in the folder of its own.
    root = a_lake(tmp_path, charged=CHARGED)
    damaged.filter(FIRST_DAY).write_parquet(root / "lake/chargeback/tenant_id=acme/month=2024-01/2024-01-01.parquet")
    assert found(root, "orphan_rows", "line_id", "identity_id") == "2 | search"


def test_orphan_rows_finds_rows_without_a_line(tmp_path: Path) -> None:
    root = a_lake(tmp_path, billed=BILLED.filter(~LINE_2))
    assert found(root, "orphan_rows", "line_id", "part", "identity_id").splitlines() == [
        "2 | 0 | pay",
        "2 | 0 | search",
        "2 | 1 | UNALLOCATED",
    ]


def appended(where: pl.Expr, **changes: str) -> Change:
    return lambda rows: pl.concat(
        [rows, rows.filter(where).with_columns(pl.lit(new).alias(name) for name, new in changes.items())]
    )


@pytest.mark.parametrize("elsewhere", [{}, {"billing_period": "2024-02"}], ids=["same file", "another file"])
def test_duplicate_key_finds_a_row_that_stands_again(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    columns = ("table_name", "charge_date", "line_id", "part", "identity_id", "rows")
    rows = appended(LINE_2 & SEARCH, **elsewhere)(CHARGED)
    assert found(a_lake(tmp_path / "rows", charged=rows), "duplicate_key", *columns) == (
        "chargeback | 2024-01-01 | 2 | 0 | search | 2"
    )
    lines = appended(LINE_2, **elsewhere)(BILLED)
    assert found(a_lake(tmp_path / "lines", billed=lines), "duplicate_key", *columns) == (
        "billing | 2024-01-01 | 2 | - | - | 2"
    )


def test_duplicate_key_finds_a_payer_that_stands_twice_in_every_part(tmp_path: Path) -> None:
    rows = pl.concat([CHARGED, CHARGED.with_columns(weight_before=pl.col("weight_before") + 7)])
    found_rows = found(a_lake(tmp_path, charged=rows), "duplicate_key", "charge_date", "line_id", "identity_id", "rows")
    keys = CHARGED.sort(CHARGEBACK.key).select("charge_date", "line_id", "identity_id").rows()
    assert found_rows.splitlines() == [f"{day} | {line} | {payer} | 2" for day, line, payer in keys]


def test_duplicate_key_finds_the_one_part_in_which_a_payer_stands_twice(tmp_path: Path) -> None:
    """Its payers are as many as those of the others, and the one who stands twice is one of theirs."""
    pairs = ["a b", "a b", "c c", "b c", "a c"]
    billing, chargeback = shared_lines([(100, [1, 1]) for _ in pairs])
    named = pl.Series([name for pair in pairs for name in pair.split()])
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, chargeback.with_columns(identity_id=named)))
    assert found(root, "duplicate_key", "line_id", "identity_id", "rows") == "3 | c | 2"


@pytest.mark.parametrize("column", ["part", "line_id"])
def test_duplicate_key_finds_what_stands_twice_though_the_first_such_part_lacks_a_key(
    tmp_path: Path, column: str
) -> None:
    billing, chargeback = shared_lines([(100, [1, 1]), (100, [1, 1])])
    nameless = pl.when(pl.col("line_id") == 1).then(None).otherwise(column).alias(column)
    rows = chargeback.with_columns(nameless, identity_id=pl.lit("pay"))
    root = stored(tmp_path, (BILLING, billing), (CHARGEBACK, rows))
    assert offenders(root, "duplicate_key").sort("line_id")["rows"].to_list() == [2, 2]


def test_duplicate_key_does_not_mind_the_order_of_rows(tmp_path: Path) -> None:
    assert found(a_lake(tmp_path, billed=BILLED.reverse(), charged=CHARGED.reverse()), "duplicate_key", "line_id") == ""


@pytest.mark.parametrize(
    ("of", "column"),
    [(of, column) for of in (BILLING, CHARGEBACK) for column in of.key if column != "tenant_id"],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_null_key_finds_a_null_in_each_column(tmp_path: Path, of: Table, column: str) -> None:
    root = a_lake(tmp_path)
    path = root / "lake" / of.name / "tenant_id=acme/month=2024-01/2024-01-01.parquet"
    rows = pl.read_parquet(path, hive_partitioning=False)
    first = pl.int_range(pl.len()) == 0
    rows.with_columns(pl.when(~first).then(pl.col(column)).alias(column)).write_parquet(path)
    assert found(root, "null_key", "table_name", "column_name") == f"{of.name} | {column}"


@pytest.mark.parametrize("new", ["EUR", "AAA", "ZZZ", None])
@pytest.mark.parametrize("line", [1, 2])
def test_mixed_currency_finds_a_row_or_a_line_of_another_currency(tmp_path: Path, new: str | None, line: int) -> None:
    where = (pl.col("line_id") == line) & FIRST_DAY
    expected = f"2024-01-01 | {line} | {sorted(['USD', new or 'null'])}"
    columns = ("charge_date", "line_id", "currencies")
    root = a_lake(tmp_path / "row", charged=CHARGED.with_columns(value("currency", new, where & ~SEARCH)))
    assert found(root, "mixed_currency", *columns) == expected
    root = a_lake(tmp_path / "line", billed=BILLED.with_columns(value("currency", new, where)))
    assert found(root, "mixed_currency", *columns) == expected
    root = a_lake(
        tmp_path / "twice", billed=pl.concat([BILLED, BILLED.filter(where).with_columns(currency=pl.lit(new))])
    )
    assert found(root, "mixed_currency", *columns) == expected


LOG_COLUMNS = "table_name", "billing_period", "charge_date", "rows"


def log_of(root: Path) -> pl.DataFrame:
    return queried(
        root,
        "SELECT table_name, month AS billing_period, charge_date, rows FROM lake_files WHERE tenant_id = 'acme'",
    )


def checked(root: Path, log: pl.DataFrame, *, slice_rows: int = 10**6) -> list[warehouse.Finding]:
    with warehouse.open_lake(root) as connection:
        return warehouse.run_checks(
            connection,
            "acme",
            ("2024-01", "2024-02"),
            (date(2024, 1, 1), date(2024, 1, 31)),
            log,
            slice_rows=slice_rows,
        )


def test_files_vs_log_compares_files_and_counts(tmp_path: Path) -> None:
    root = a_lake(tmp_path)
    log = log_of(root)
    assert log.height == 6
    assert checked(root, log) == []
    one_more = log.with_columns(rows=pl.col("rows") + (pl.int_range(pl.len()) == 0))
    (finding,) = checked(root, one_more)
    assert (finding.check, finding.rows) == ("files_vs_log", 1)
    assert "stored=2, logged=3" in finding.example
    (finding,) = checked(root, log.slice(1))
    assert "logged=None" in finding.example
    absent = pl.DataFrame([("billing", "2024-01", date(2024, 1, 9), 1)], schema=log.schema, orient="row")
    (finding,) = checked(root, pl.concat([log, absent]))
    assert "charge_date=2024-01-09, stored=None, logged=1, file=None" in finding.example
    beyond = absent.with_columns(charge_date=pl.lit(date(2024, 3, 1)))
    assert checked(root, pl.concat([log, beyond])) == []


@pytest.mark.parametrize(
    "stray",
    ["month=2024-01/2024-1-1.parquet", "month=2024-01/x.parquet", "month=2024-01/a/2024-01-01.parquet", "b.parquet"],
)
def test_files_vs_log_finds_a_file_where_no_day_file_lies(tmp_path: Path, stray: str) -> None:
    root = a_lake(tmp_path)
    log = log_of(root)
    path = root / "lake/chargeback/tenant_id=acme" / stray
    path.parent.mkdir(exist_ok=True)
    CHARGED.head(1).write_parquet(path)
    found_in_lake = checked(root, log)
    assert [(finding.check, finding.rows) for finding in found_in_lake] == [("files_vs_log", 1)]
    assert f"file={path}" in found_in_lake[0].example


def test_a_tenant_without_files_has_nothing_but_its_log_to_be_checked(tmp_path: Path) -> None:
    root = stored(tmp_path)
    log = log_of(a_lake(tmp_path / "other"))
    assert checked(root, log.clear()) == []
    assert [(finding.check, finding.rows) for finding in checked(root, log)] == [("files_vs_log", 6)]


def test_damage_of_one_tenant_is_not_another_ones(tmp_path: Path) -> None:
    root = a_lake(tmp_path)
    for of in ("billing", "chargeback", "identities"):
        path = root / "lake" / of / "tenant_id=beta/month=2024-01/2024-01-01.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no Parquet")
    assert checked(root, log_of(a_lake(tmp_path / "same"))) == []


def test_days_without_a_chargeback_file_are_missed(tmp_path: Path) -> None:
    root = a_lake(tmp_path)
    log = log_of(root)
    (root / "lake/chargeback/tenant_id=acme/month=2024-02/2024-01-02.parquet").unlink()
    assert {finding.check for finding in checked(root, log)} == {"files_vs_log", "line_sum", "day_sum"}


def test_a_row_of_another_day_in_a_days_file_is_found(tmp_path: Path) -> None:
    root = a_lake(tmp_path)
    log = log_of(root)
    path = root / "lake/chargeback/tenant_id=acme/month=2024-01/2024-01-02.parquet"
    rows = pl.read_parquet(path, hive_partitioning=False)
    rows.with_columns(charge_date=pl.lit(date(1999, 1, 1))).write_parquet(path)
    assert {finding.check for finding in checked(root, log)} == {"orphan_rows", "line_sum", "day_sum"}


@pytest.mark.parametrize("slice_rows", [1, 25, 50, 75, 10**6])
def test_checks_find_the_same_however_the_days_are_grouped(tmp_path: Path, slice_rows: int) -> None:
    damaged = CHARGED.with_columns(
        value("amount", "2.000000000001", LINE_2 & SEARCH), value("currency", "GBP", ~FIRST_DAY & SEARCH)
    )
    root = a_lake(tmp_path, charged=damaged)
    result = {finding.check: finding.rows for finding in checked(root, log_of(root), slice_rows=slice_rows)}
    assert result == {"line_sum": 1, "day_sum": 3, "apportionment": 1, "orphan_rows": 1, "mixed_currency": 1}


def test_the_error_names_every_check_that_is_not_met(tmp_path: Path) -> None:
    root = a_lake(tmp_path, charged=CHARGED.with_columns(value("amount", "2.5", LINE_2 & SEARCH)))
    with warehouse.open_lake(root) as connection, pytest.raises(LedgerError) as raised:
        warehouse.check(connection, "acme", ("2024-01", "2024-02"), (date.min, date.max), log_of(root))
    assert [fault.split(":")[1].strip() for fault in raised.value.faults] == [
        "check day_sum",
        "check line_sum",
        "check weight_total",
    ]
    assert "line_id=2" in raised.value.faults[1]
    assert "billed=6.000000000000, allocated=6.500000000000" in raised.value.faults[1]


def test_all_measures_are_summed() -> None:
    assert all(f"sum({measure})" in warehouse.read_sql("checks", "line_sum") for measure in MEASURES)


@pytest.mark.parametrize(
    ("damage", "is_sound"),
    [
        (value("amount", "2.000000000001", LINE_2 & SEARCH), False),
        (value("region", "eu", LINE_2 & SEARCH), False),
        (value("cost_type", None, LINE_2), False),
        (value("identity_id", "pay", LINE_2 & SEARCH), False),
        (value("amount", "5.000000000001", ~FIRST_DAY & ~SEARCH), True),
    ],
    ids=["amount", "label", "cost type", "payer", "of another day"],
)
def test_days_add_up_if_no_check_finds_a_row_of_theirs(tmp_path: Path, damage: pl.Expr, *, is_sound: bool) -> None:
    days = [("2024-01", "2024-01-01")]
    for name, charged, expected in (("as it was", CHARGED, True), ("damaged", CHARGED.with_columns(damage), is_sound)):
        with warehouse.open_lake(a_lake(tmp_path / name, charged=charged)) as connection:
            assert warehouse.add_up(connection, "acme", days) is expected
