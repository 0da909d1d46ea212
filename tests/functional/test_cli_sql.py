"""`sql`, as a process: views, formats, and what an analyst may get wrong."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.functional.bills import PRORATA, asked, environment, line, prorata, ran, write_all

SUMS = "SELECT identity_id, sum(amount) AS amount FROM chargeback GROUP BY ALL ORDER BY ALL"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made, of a bill whose tags would like to be run."""
    folder = tmp_path_factory.mktemp("calculated")
    lines = [
        line("1", team="=cmd()"),
        line("2", team="+1"),
        line("3", team="@SUM(A1)"),
        line("-1.5", team="-2"),
        line("4", team="plain"),
    ]
    write_all(folder, lines=lines)
    ran(folder, "run")
    return folder


def test_every_view_answers(folder: Path) -> None:
    views = [
        "chargeback", "chargeback_named", "chargeback_daily", "chargeback_monthly", "billing", "unallocated",
        "empty_keys", "identities", "payers", "teams", "tags", "resources", "chargeback_dimensions",
        "chargeback_facts",
    ]  # fmt: skip
    counts = " UNION ALL ".join(f"SELECT '{view}' AS name, count(*) AS rows FROM {view}" for view in views)
    assert {row["name"] for row in asked(folder, counts) if row["rows"]} == {*views} - {
        "unallocated",
        "empty_keys",
        "resources",
        "tags",
    }


def test_a_table_stands_in_columns_with_plain_decimals(folder: Path) -> None:
    assert ran(folder, "sql", SUMS).splitlines() == [
        "identity_id           amount",
        "+1            2.000000000000",
        "-2           -1.500000000000",
        "=cmd()        1.000000000000",
        "@sum(a1)      3.000000000000",
        "plain         4.000000000000",
    ]


def test_csv_gives_a_spreadsheet_nothing_to_run(folder: Path) -> None:
    rows = list(csv.reader(io.StringIO(ran(folder, "sql", "--format", "csv", SUMS))))
    assert rows == [
        ["identity_id", "amount"],
        ["'+1", "2.000000000000"],
        ["'-2", "-1.500000000000"],
        ["'=cmd()", "1.000000000000"],
        ["'@sum(a1)", "3.000000000000"],
        ["plain", "4.000000000000"],
    ]


def test_json_has_exact_decimals_as_text(folder: Path) -> None:
    query = """
        SELECT 0.000000000001::DECIMAL(38,12) AS small, 12345678901234567890123456.5::DECIMAL(38,12) AS large,
            NULL AS nothing, TRUE AS yes, DATE '2025-10-01' AS day, [1, 2] AS list, 'é"' AS text, 'inf'::DOUBLE AS big
    """
    assert asked(folder, query) == [
        {
            "small": "0.000000000001",
            "large": "12345678901234567890123456.500000000000",
            "nothing": None,
            "yes": True,
            "day": "2025-10-01",
            "list": [1, 2],
            "text": 'é"',
            "big": "inf",
        }
    ]
    assert asked(folder, "SELECT 1 AS one WHERE FALSE") == []


def test_parquet_goes_to_a_file(folder: Path) -> None:
    assert ran(folder, "sql", "--format", "parquet", "--output", "of_parquet.parquet", SUMS) == ""
    stored = pl.read_parquet(folder / "of_parquet.parquet")
    assert stored["amount"].sum() == Decimal("8.5")
    assert [path.name for path in folder.glob("of_parquet*")] == ["of_parquet.parquet"]
    done = prorata(folder, "sql", "--format", "parquet", SUMS)
    assert (done.returncode, done.stderr) == (
        2,
        "prorata: --format parquet: without --output; expected a file to write\n",
    )


def test_output_replaces_a_file_only_if_the_query_is_right(folder: Path) -> None:
    target = folder / "of_csv.csv"
    target.write_text("before", encoding="utf-8")
    assert prorata(folder, "sql", "--format", "csv", "-o", "of_csv.csv", "SELECT nope").returncode == 2
    assert target.read_text(encoding="utf-8") == "before"
    ran(folder, "sql", "--format", "csv", "-o", "of_csv.csv", SUMS)
    assert len(target.read_text(encoding="utf-8").splitlines()) == 6
    done = prorata(folder, "sql", "-o", "nowhere/of_csv.csv", SUMS)
    assert done.returncode == 14
    assert "nowhere/of_csv.csv.part: cannot be written (No such file or directory)" in done.stderr


def test_a_query_may_come_on_stdin(folder: Path) -> None:
    assert json.loads(ran(folder, "sql", "--format", "json", stdin="SELECT 1 AS one;\n")) == [{"one": 1}]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
        ("SELECT nope FROM chargeback", 'Referenced column "nope" not found'),
        ("SELECT * FROM nope", "Table with name nope does not exist"),
        ("SELECT CAST(tags AS INTEGER) FROM billing", "Conversion Error"),
        ("SELECT error('two' || chr(10) || chr(27) || 'lines')", "two"),
        ("", "a statement without rows"),
        ("/* nothing */", "a statement without rows"),
        (
            "SELECT 1 AS one; SELECT 2 AS two",
            "statement 1 of 2 has rows, too; expected one query, the last, and before",
        ),
        ("SET threads = 1; DESCRIBE billing; SELECT 1;", "statement 2 of 3 has rows, too"),
        ("SELECT 1; SET threads = 1", "statement 1 of 2 has rows, too"),
        ("PRAGMA show_tables; SELECT 1", "statement 1 of 2 has rows, too"),
        ("CALL pragma_version(); SELECT 1", "statement 1 of 2 has rows, too"),
        ("PREPARE mine AS SELECT 1; EXECUTE mine; SELECT 1", "statement 2 of 3 has rows, too"),
        ("EXPLAIN SELECT 1; SELECT 1", "statement 1 of 2 has rows, too"),
        ("PRAGMA threads = 1; PIVOT identities ON type; SELECT 1", "statement 2 of 3 has rows, too"),
        (
            "CREATE TEMP TABLE mine (one INTEGER); INSERT INTO mine VALUES (1) RETURNING one; SELECT 1",
            "statement 2 of 3 has rows, too",
        ),
        ("SELECT TIMESTAMPTZ '2025-10-01 00:00:00+00' AS late", "column 'late': a time with a time zone"),
    ],
)
def test_a_wrong_query_is_one_line(folder: Path, query: str, complaint: str) -> None:
    done = prorata(folder, "sql", query)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("prorata: query")
    assert complaint in said


def test_what_prepares_a_query_may_stand_before_it(folder: Path) -> None:
    sums = "SELECT currency, sum(amount) AS amount FROM chargeback GROUP BY ALL"
    assert asked(folder, f"SET threads = 1; CREATE TEMP VIEW mine AS {sums}; SELECT * FROM mine;") == [
        {"currency": "USD", "amount": "8.500000000000"}
    ]
    prepares = [
        "PRAGMA threads = 1",
        "PRAGMA disable_progress_bar",
        "SET VARIABLE least = 8",
        "ATTACH ':memory:' AS other",
        f"CREATE TABLE other.mine AS PIVOT ({sums}) ON currency USING sum(amount)",
        "USE other",
        "PREPARE add AS INSERT INTO mine VALUES ($1)",
        "EXECUTE add(9)",
        "CREATE MACRO twice(a) AS 2 * a",
        "CHECKPOINT",
        "BEGIN",
        "COMMIT",
    ]
    query = "SELECT count(*) AS rows FROM mine WHERE twice(USD) > getvariable('least')"
    assert asked(folder, "; ".join([*prepares, query])) == [{"rows": 2}]
    # DuckDB makes two statements of it, of which the user wrote one.
    assert asked(folder, f"PIVOT ({sums}) ON currency USING sum(amount)") == [{"USD": "8.500000000000"}]
    for one in ("SELECT 1 AS one", "PRAGMA show_tables"):
        done = prorata(folder, "sql", "--format", "parquet", "-o", "two.parquet", f"{one}; SELECT 2 AS two")
        assert (done.returncode, "statement 1 of 2 has rows, too" in done.stderr) == (2, True)
        assert not (folder / "two.parquet").exists()


@pytest.mark.parametrize(
    "statement",
    ["SET threads = 1", "CREATE TEMP VIEW mine AS SELECT 1", "CHECKPOINT", "SET threads = 1; SET threads = 2"],
)
def test_a_statement_without_rows_says_nothing(folder: Path, statement: str) -> None:
    assert ran(folder, "sql", statement) == ""
    assert ran(folder, "sql", "--format", "csv", statement) == ""
    assert ran(folder, "sql", "--format", "json", statement) == "[]\n"


def test_a_query_without_rows_says_its_columns_whatever_they_are_called(folder: Path) -> None:
    assert ran(folder, "sql", 'SELECT true AS "Success" WHERE false').split() == ["Success"]
    assert ran(folder, "sql", "CREATE TEMP TABLE mine AS SELECT 1").split() == ["Count", "1"]


def test_nothing_is_written_before_a_statement_is_refused(folder: Path) -> None:
    done = prorata(folder, "sql", "COPY (SELECT 1) TO 'copy.csv'; SELECT 1; SELECT 2")
    assert (done.returncode, "statement 2 of 3 has rows, too" in done.stderr) == (2, True)
    assert not (folder / "copy.csv").exists()


def test_a_long_table_ends_with_a_word_about_the_rest(folder: Path) -> None:
    done = prorata(folder, "sql", "SELECT range AS number FROM range(1001)")
    assert len(done.stdout.splitlines()) == 1 + 1000
    assert done.stderr == "prorata: only 1000 rows are shown; --format csv or json gives all\n"
    assert len(ran(folder, "sql", "--format", "csv", "SELECT range FROM range(1001)").splitlines()) == 1 + 1001


def test_the_printed_views_work_in_plain_duckdb(folder: Path) -> None:
    script = ran(folder, "sql", "--print-views")
    with duckdb.connect() as plain:
        plain.execute(script)
        assert plain.sql("SELECT sum(amount) FROM chargeback").fetchall() == [(Decimal("8.5"),)]


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    query = "SELECT range AS number FROM range(200000)"
    with subprocess.Popen(
        [*PRORATA, "sql", "--format", "csv", query],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "number\n"
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_without_a_lake_there_is_nothing_to_ask(tmp_path: Path) -> None:
    write_all(tmp_path)
    done = prorata(tmp_path, "sql", "SELECT 1")
    assert done.returncode == 14
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
