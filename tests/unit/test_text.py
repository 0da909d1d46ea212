"""Numbers, columns and names as people are shown them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from engine import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", "0"),
        ("-0.000000000000", "0"),
        ("17731.454399976000", "17,731.454399976"),
        ("-1234567.100", "-1,234,567.1"),
        ("1E+6", "1,000,000"),
        ("1E-12", "0.000000000001"),
        (1024, "1,024"),
        (Decimal("98765432109876543210987654.123456789012"), "98,765,432,109,876,543,210,987,654.123456789012"),
    ],
)
def test_a_number_keeps_every_significant_digit_and_no_other(value: str | int | Decimal, expected: str) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("plain, é and 日本", "plain, é and 日本"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202egnp", r"\u202egnp"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(written: str, expected: str) -> None:
    assert text.printable(written) == expected
    assert text.printable(expected) == expected


def test_columns_stand_in_line_and_numbers_on_their_points() -> None:
    rows = [("who", "amount", "what"), ("ants", "1.25", "x"), ("日本", "-1,000", ""), ("bees", "", "y")]
    assert text.aligned(rows, right=(1,)) == [
        "who      amount  what",
        "ants       1.25  x",
        "日本  -1,000",
        "bees             y",
    ]


def test_a_table_may_be_empty() -> None:
    assert text.aligned([("who", "amount")], right=(1,)) == ["who  amount"]


@pytest.mark.parametrize("cell", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert text.spreadsheet_cell(cell) == f"'{cell}"


def test_other_cells_stay_as_they_are() -> None:
    assert [text.spreadsheet_cell(cell) for cell in ("", "a=b", "'=x")] == ["", "a=b", "'=x"]
