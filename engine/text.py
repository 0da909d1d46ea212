"""Text for people and for spreadsheets: columns in line, exact numbers, and names from outside made harmless."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

GAP = "  "
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, or that would not be seen, escaped as in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def number(value: Decimal | int | str) -> str:
    """A decimal as people read it: thousands apart, every significant digit, no exponent ('17,731.454399976').

    Text is taken as a decimal; it is never a float.
    """
    whole, _, decimals = f"{Decimal(value):,f}".partition(".")
    decimals = decimals.rstrip("0")
    if not decimals and whole.strip("-0,") == "":
        return "0"
    return f"{whole}.{decimals}" if decimals else whole


def counted(count: int, noun: str) -> str:
    """How many of something: '1 day', '1,024 days'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def width(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells, the first one the heading, as lines with columns in line.

    Columns are flush left; those in `right` hold numbers and stand with their decimal points in line, flush right where
    there are none.
    """
    columns: list[list[str]] = [[printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    for index in right:
        columns[index][1:] = _on_point(columns[index][1:])
    widths = [max(width(cell) for cell in column) for column in columns]
    return [
        GAP.join(
            _padded(cell, widths[index], right=index in right) for index, cell in enumerate(cells)
        ).rstrip()
        for cells in zip(*columns, strict=True)
    ]  # fmt: skip


def _on_point(cells: list[str]) -> list[str]:
    """Numbers with blanks behind them, so that flush right their decimal points stand in line."""
    behind = [len(cell) - cell.index(".") if "." in cell else 0 for cell in cells]
    return [cell + " " * (max(behind, default=0) - own) for cell, own in zip(cells, behind, strict=True)]


def _padded(cell: str, cells: int, *, right: bool) -> str:
    blanks = " " * (cells - width(cell))
    return blanks + cell if right else cell + blanks


def indented(lines: Iterable[str]) -> Iterator[str]:
    """The lines two cells to the right."""
    return (f"  {line}" for line in lines)


def spreadsheet_cell(text: str) -> str:
    """A text as a spreadsheet may be given it: one that it would run as a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
