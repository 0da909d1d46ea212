"""Key tables: CSV or Parquet in, USAGE out, and what each bad row says."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine.errors import ContractError, SourceError
from engine.frames import USAGE, shape
from engine.sources.key_table import read_key_table

HEADER = "identity,date,period,key,value\n"


def written(folder: Path, text: str, name: str = "keys.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def faults(path: Path, kind: type[ContractError | SourceError] = ContractError) -> list[str]:
    with pytest.raises(kind) as caught:
        read_key_table(path, "acme")
    assert all(said.isprintable() for said in caught.value.faults)
    return list(caught.value.faults)


def test_rows_become_usage(tmp_path: Path) -> None:
    text = HEADER + ' search ,2025-10-02,,nat_gb,1.5\npayments,2025-10-01,,nat_gb,2\n"a, b",,2025-10, seats ,1e3\n'
    usage = read_key_table(written(tmp_path, text), "acme")
    shape(usage.lazy(), USAGE)
    assert usage.rows() == [
        ("acme", "2025-10", "", "seats", "a, b", Decimal(1000)),
        ("acme", "2025-10-01", "", "nat_gb", "payments", Decimal(2)),
        ("acme", "2025-10-02", "", "nat_gb", "search", Decimal("1.5")),
    ]


def test_samples_may_repeat_and_the_order_of_rows_and_columns_does_not_matter(tmp_path: Path) -> None:
    rows = ["a,k,2025-10-01,3", "a,k,2025-10-01,1", "b,k,2025-10-01,3", "a,j,2025-10-01,3"]
    first = read_key_table(written(tmp_path, "\n".join(["identity,key,date,value", *rows, ""])), "t")
    turned = [",".join(reversed(row.split(","))) for row in reversed(rows)]
    second = read_key_table(written(tmp_path, "\n".join(["value,date,key,identity", *turned])), "t")
    assert_frame_equal(first, second)
    assert first["value"].to_list() == [3, 1, 3, 3]


def test_only_periods_only_a_header_and_gzip(tmp_path: Path) -> None:
    usage = read_key_table(written(tmp_path, "identity,period,key,value\na,2025-10,k,0\n", "keys.csv.gz"), "t")
    assert usage.rows() == [("t", "2025-10", "", "k", "a", Decimal(0))]
    assert read_key_table(written(tmp_path, HEADER), "t").rows() == []


def test_a_value_that_would_become_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"value '0.0000000000005'; expected 0, or a number that twelve decimals"):
        read_key_table(written(tmp_path, "identity,date,key,value\na,2025-10-01,k,0.0000000000005\n"), "t")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.0", "0"), ("0.0000000000015", "0.000000000002"), ("+1", "1"), ("4e-07", "0.0000004"), ("-0", "0")],
)
def test_ways_to_write_a_value(tmp_path: Path, value: str, expected: str) -> None:
    usage = read_key_table(written(tmp_path, f"identity,date,key,value\na,2025-10-01,k,{value}\n"), "t")
    assert usage["value"].to_list() == [Decimal(expected)]


PARQUET = {"identity": ["a", "b"], "key": ["k", "k"]}
DATES = [date(2025, 10, 1), date(2025, 10, 2)]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([0.1, 2.5]),
        pl.Series(["0.1", "2.5"]),
        pl.Series([Decimal("0.1"), Decimal("2.5")]),
    ],
)
@pytest.mark.parametrize("dates", [pl.Series(DATES), pl.Series([str(day) for day in DATES])])
@pytest.mark.parametrize("text", [pl.String(), pl.Categorical(), pl.Enum(["a", "b", "k"])])
def test_parquet(tmp_path: Path, values: pl.Series, dates: pl.Series, text: pl.DataType) -> None:
    path = tmp_path / "keys.parquet"
    pl.DataFrame({**PARQUET, "date": dates, "value": values}).cast({"identity": text, "key": text}).write_parquet(path)
    assert read_key_table(path, "t").select("window", "principal", "value").rows() == [
        ("2025-10-01", "a", Decimal("0.1")),
        ("2025-10-02", "b", Decimal("2.5")),
    ]


def test_parquet_integers_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "keys.parquet"
    frame = pl.DataFrame(
        {**PARQUET, "key": ["k", "j"], "date": [DATES[0], None], "period": [None, "2025-10"], "value": [2**62, 7]}
    )
    frame.write_parquet(path)
    usage = read_key_table(path, "t")
    assert usage.select("window", "metric", "value").rows() == [
        ("2025-10", "j", Decimal(7)),
        ("2025-10-01", "k", Decimal(2**62)),
    ]
    frame.with_columns(pl.lit(None).alias("value")).write_parquet(path)
    assert faults(path)[0].startswith(f"{path}: row 1: column value: value ''; expected a decimal number")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("identity,date,key", ["column value is missing"]),
        (
            "key,date,owner,note",
            ["column identity is missing", "column value is missing", "column 'owner'", "column 'note'"],
        ),
        ("identity,key,value", ["columns date and period are both missing"]),
        ("identity,key,value,date,value", ["column value stands 2 times"]),
        ("Identity,key,value,date", ["column identity is missing", "unknown column 'Identity'"]),
        ("", ["column identity is missing"] + ["missing"] * 3),
    ],
)
def test_a_header_that_is_not_that_of_a_key_table(tmp_path: Path, header: str, said: list[str]) -> None:
    path = written(tmp_path, header + "\nbad,row\n")
    found = faults(path)
    assert len(found) == len(said)
    for fault, part in zip(found, said, strict=True):
        assert fault.startswith(f"{path}: ")
        assert part in fault


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,2025-10-01,,k,", "column value: value ''; expected a decimal number"),
        ("a,2025-10-01,,k,abc", "column value: value 'abc'; expected a decimal number"),
        ("a,2025-10-01,,k,NaN", "column value: value 'NaN'; expected a decimal number"),
        ("a,2025-10-01,,k,inf", "column value: value 'inf'; expected a decimal number"),
        ("a,2025-10-01,,k,1e309", "column value: value '1e309'; expected a decimal number"),
        ("a,2025-10-01,,k, 1", "column value: value ' 1'; expected a decimal number"),
        ("a,2025-10-01,,k,-1", "column value: value '-1'; expected a number that is not negative"),
        (" ,2025-10-01,,k,1", "column identity: value ''; expected a name that is not blank"),
        ("a,2025-10-01,, ,1", "column key: value ''; expected a name that is not blank"),
        ("a,2025-02-29,,k,1", "column date: value '2025-02-29'; expected a date (YYYY-MM-DD)"),
        ("a,2025-10-1,,k,1", "column date: value '2025-10-1'; expected a date (YYYY-MM-DD)"),
        ("a,01.10.2025,,k,1", "column date: value '01.10.2025'; expected a date (YYYY-MM-DD)"),
        ("a,,2025-13,k,1", "column period: value '2025-13'; expected a month (YYYY-MM)"),
        ("a,,2025-10-01,k,1", "column period: value '2025-10-01'; expected a month (YYYY-MM)"),
        ("a,,,k,1", "date '' and period ''; expected one of the two and the other empty"),
        ("a,2025-10-01,2025-10,k,1", "date '2025-10-01' and period '2025-10'; expected one of the two"),
    ],
)
def test_a_bad_row(tmp_path: Path, row: str, said: str) -> None:
    path = written(tmp_path, HEADER + '"two\nlines",2025-10-01,,k,1\n' + row + "\n")
    (found,) = faults(path)
    assert found.startswith(f"{path}:4: {said}")


def test_all_faults_at_once_up_to_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + ",x,,k,y\n")
    assert [said.split(": value")[0] for said in faults(path)] == [
        f"{path}:2: column identity",
        f"{path}:2: column value",
        f"{path}:2: column date",
    ]
    many = faults(written(tmp_path, HEADER + ",x,,k,y\n" * 500))
    assert (len(many), many[-1]) == (21, "... and 1480 more")


def test_bad_rows_of_parquet_have_a_row_number(tmp_path: Path) -> None:
    path = tmp_path / "keys.parquet"
    pl.DataFrame({**PARQUET, "date": DATES, "value": [float("nan"), -1.0]}).write_parquet(path)
    nan, negative = faults(path)
    assert nan.startswith(f"{path}: row 1: column value: value 'NaN'; expected a decimal number")
    assert negative.startswith(f"{path}: row 2: column value: value '-1.0'; expected a number that is not negative")


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("identity", pl.Series([1, 2])),
        ("key", pl.Series([True, False])),
        ("value", pl.Series([True, False])),
        ("date", pl.Series([20251001, 20251002])),
        ("date", pl.Series(DATES).cast(pl.Datetime)),
    ],
)
def test_parquet_columns_of_a_wrong_type(tmp_path: Path, name: str, series: pl.Series) -> None:
    path = tmp_path / "keys.parquet"
    pl.DataFrame({**PARQUET, "date": DATES, "value": [1, 2], name: series}).write_parquet(path)
    (said,) = faults(path)
    assert said.startswith(f"{path}: column {name}: dtype {series.dtype}; expected ")


def test_a_key_that_is_dated_here_and_by_period_there(tmp_path: Path) -> None:
    rows = [
        "a,2025-10-01,,fine,1",
        "a,2025-10-01,,mixed,1",
        "b,2025-10-02,,mixed,1",
        "a,,2025-10,mixed,1",
        "a,,2025-10,ok,1",
    ]
    path = written(tmp_path, HEADER + "\n".join(rows))
    assert faults(path) == [
        f"{path}: key 'mixed': dated at {path}:3, by period at {path}:5; expected dates or periods throughout"
    ]


@pytest.mark.parametrize(
    ("row", "count"), [("a,2025-10-01,,k,1,", 6), ("a,2025-10-01,,k,1,x", 6), ("a,2025-10-01,,k", 4)]
)
def test_a_row_of_the_wrong_length(tmp_path: Path, row: str, count: int) -> None:
    path = written(tmp_path, HEADER + "a,2025-10-01,,k,1\n" + row + "\n")
    assert faults(path) == [f"{path}:3: {count} fields; expected 5, as in the header"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('a,2025-10-01,,"k,1\n' + "a,2025-10-01,,k,1\n" * 3, "unexpected end of data"),
        ('a,2025-10-01,,"k"x,1\na,2025-10-01,,k,1,\n', "',' expected after '\"'"),
    ],
)
@pytest.mark.parametrize("rows", [1, 30])
def test_rows_of_the_wrong_length_are_told_before_one_that_cannot_be_read(
    tmp_path: Path, broken: str, said: str, rows: int
) -> None:
    path = written(tmp_path, HEADER + "a,2025-10-01,,k\n" * rows + broken)
    uneven = [f"{path}:{line}: 4 fields; expected 5, as in the header" for line in range(2, 2 + rows)]
    assert faults(path) == [
        *uneven[:20],
        *(["... and 10 more"] if rows > 20 else []),
        f"{path}:{2 + rows}: not well-formed CSV ({said}); expected comma-separated fields, quoted where they hold"
        " quotes, commas or line breaks",
    ]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [cut, Path.unlink, replace_by_folder])
@pytest.mark.parametrize("name", ["keys.csv.gz", "keys.parquet"])
def test_files_that_cannot_be_read(tmp_path: Path, harm: Callable[[Path], None], name: str) -> None:
    path = written(tmp_path, HEADER + "a,2025-10-01,,k,1\n" * 1_000, name)
    if name.endswith(".parquet"):
        pl.DataFrame({**PARQUET, "date": DATES, "value": [1, 2]}).write_parquet(path)
    harm(path)
    (said,) = faults(path, SourceError)
    assert said.startswith(f"{path}: ")


def test_a_csv_file_that_is_not_there_not_utf_8_or_of_another_kind(tmp_path: Path) -> None:
    (said,) = faults(tmp_path / "gone.csv", SourceError)
    assert said == f"{tmp_path}/gone.csv: cannot be read (No such file or directory); expected a file"
    path = tmp_path / "keys.csv"
    path.write_bytes(HEADER.encode() + b"\xff,2025-10-01,,k,1\n")
    assert faults(path) == [f"{path}:2: bytes ff; expected UTF-8"]
    (said,) = faults(written(tmp_path, "", "keys.xlsx"), SourceError)
    assert "neither CSV nor Parquet by its name" in said
    (said,) = faults(written(tmp_path, "not parquet", "keys.parquet"), SourceError)
    assert "not readable as Parquet" in said
