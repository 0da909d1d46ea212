"""Records of another length than the header are refused by line, as Python's csv module counts their fields."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import ContractError
from engine.sources.csv_fields import surely_even
from engine.sources.csv_text import check_width
from tests.property.strategies import DETERMINED

WIDTH = 3
MANY = settings(DETERMINED, max_examples=400)
LENGTHS = st.lists(st.sampled_from([WIDTH] * 4 + [1, WIDTH - 1, WIDTH + 1, WIDTH + 2]), max_size=5)


@st.composite
def fields(draw: st.DrawFn) -> str:
    text = draw(st.text('a1",;é \n\r', max_size=6))
    if set(text) & set('",\n\r') or draw(st.booleans()):
        return '"' + text.replace('"', '""') + '"'
    return text


@st.composite
def records(draw: st.DrawFn) -> list[str]:
    """Records with their line breaks, the first as long as it should be.

    Often one of the others lacks as many fields as one behind it has too many.
    """
    lengths = [WIDTH, *draw(LENGTHS)]
    if draw(st.booleans()):
        lacking = draw(st.integers(1, WIDTH - 1))
        lengths += [WIDTH - lacking, *draw(LENGTHS), WIDTH + lacking]
    line_break = draw(st.sampled_from(["\n", "\r\n"]))
    found = [",".join([draw(fields()) for _ in range(length)]) + line_break for length in lengths]
    if draw(st.booleans()) and found[-1] != line_break:
        found[-1] = found[-1].removesuffix(line_break)
    return found


def lengths(text: str) -> list[int]:
    return [len(row) for row in csv.reader(io.StringIO(text, newline="\n"))]


def blocks(text: str, size: int) -> Iterator[pa.Buffer]:
    data = text.encode()
    return (pa.py_buffer(data[start : start + size]) for start in range(0, len(data), size))


@MANY
@given(records(), st.integers(1, 40))
def test_records_are_counted_in_blocks_of_any_size(found: list[str], size: int) -> None:
    text = "".join(found)
    assert surely_even(blocks(text, size), WIDTH) == (set(lengths(text)) == {WIDTH})


@MANY
@given(st.lists(st.sampled_from(["a", ",", ",", '"', '"', "\n", "\r\n"]), max_size=40).map("".join), st.integers(1, 9))
@example('a,5" x,6" y\n', 100)
@example('a,b,"c"d",e"\n', 100)
@example('a,"b"c",d",e\n', 100)
def test_wherever_quotes_stand_what_is_said_to_be_even_is(text: str, size: int) -> None:
    if surely_even(blocks(text, size), WIDTH):
        assert set(lengths(text)) <= {WIDTH}


@DETERMINED
@given(found=records(), suffix=st.sampled_from([".csv", ".csv.gz"]))
def test_each_record_of_another_length_is_named(
    found: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"records{suffix}"
    text = "".join(found)
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    lines = [1 + "".join(found[:number]).count("\n") for number in range(len(found))]
    assert faults(path) == [
        f"{path}:{line}: {length} fields; expected {WIDTH}, as in the header"
        for line, length in zip(lines, lengths(text), strict=True)
        if length != WIDTH
    ]


def faults(path: Path) -> list[str]:
    try:
        check_width(path, WIDTH)
    except ContractError as error:
        return list(error.faults)
    return []
