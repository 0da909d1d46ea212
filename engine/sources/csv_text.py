"""CSV files as text, exactly: what the sources that read CSV have in common.

Every value stays text until its source parses it. Polars reads; `csv_fields` counts; Python's csv module, which is
slow, only judges what they doubt, and names the physical line of what is wrong. Columns go by their position
(`column(3)`), so no header, however odd, can make a name stand for the wrong values.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import polars as pl
import pyarrow as pa

from engine.errors import ContractError, ProrataError, SourceError, fault, shown
from engine.sources.csv_fields import BLOCK_BYTES, surely_even

FAULTS_SHOWN = 20
"""How many faults of one kind are shown before the rest is only counted."""
RECORD = "record"
"""The name of the column that counts the records of a scan from 0, where it is asked for."""

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_BITS = 31
"""How zlib is told to expect gzip."""
_PACKED_BYTES = 1 << 20
_WELL_FORMED = "comma-separated fields, quoted where they hold quotes, commas or line breaks"


def place(path: Path) -> str:
    """A path as it stands in a message: quoted if it holds what would break the line."""
    text = str(path)
    return text if text.isprintable() else shown(text, limit=300)


def column(position: int) -> str:
    """The name under which a scan knows the column at `position`, counted from 0."""
    return f"c{position}"


def limited(faults: Iterable[str], total: int | None = None) -> list[str]:
    """At most FAULTS_SHOWN faults and, if there are more (up to `total`, if given), a line that counts the rest."""
    faults = iter(faults)
    seen = list(islice(faults, FAULTS_SHOWN))
    rest = sum(1 for _ in faults) if total is None else total - len(seen)
    return [*seen, f"... and {rest} more"] if rest > 0 else seen


def header(path: Path) -> tuple[str, ...]:
    """The names in the first record.

    Raises SourceError if the file cannot be read, is empty, or is not compressed as its name says; ContractError if it
    is not UTF-8 or not CSV.
    """
    _check_compression(path)
    with _records(path) as records:
        _, names = next(records, (1, []))
        return tuple(names)


def scan(path: Path, width: int, *, record: bool = False) -> pl.LazyFrame:
    """The records below the header, all columns as text, empty ones ''; with `record` also their count from 0.

    A record that is too short is filled with '', and one that is too long is cut if not all columns are read: ask
    `check_width`.
    """
    return pl.scan_csv(
        path,
        has_header=False,
        skip_rows=1,
        schema={column(position): pl.String() for position in range(width)},
        empty_string_is_null=False,
        glob=False,
        row_index_name=RECORD if record else None,
    )


def collect(frame: pl.LazyFrame, path: Path, width: int) -> pl.DataFrame:
    """The frame scanned from `path`; SourceError or ContractError with its faults if the file is broken."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _malformed(path, width, str(error)) from error


def check_width(path: Path, width: int) -> None:
    """Raise ContractError with the records that do not have `width` fields, or if quotes leave open how many they have.

    Only if something is wrong, or quotes stand where they leave doubt, are the records looked at one by one.
    """
    try:
        even = surely_even(_blocks(path), width)
    except (OSError, pa.ArrowException) as error:
        raise _malformed(path, width, str(error)) from error
    if not even and (faults := _width_faults(path, width)):
        raise ContractError(faults)


def line_places(path: Path, records: Collection[int]) -> dict[int, str]:
    """How a message names each of these records: `file:line`, by the physical line at which it starts.

    Quoted fields may hold line breaks, so lines are counted by the csv module, up to the last record that is asked for.
    """
    places = {record: f"{place(path)}: record {record + 1}" for record in records}
    last = max(records, default=-1)
    with _records(path) as rows:
        for number, (line, _) in enumerate(islice(rows, 1, last + 2)):
            if number in places:
                places[number] = f"{place(path)}:{line}"
    return places


def _blocks(path: Path) -> Iterator[pa.Buffer]:
    with pa.input_stream(path, compression="gzip" if path.suffix == ".gz" else None) as file:
        while (block := file.read_buffer(BLOCK_BYTES)).size:
            yield block


def _width_faults(path: Path, width: int) -> list[str]:
    """The faults of records that are too long or too short, and that for which the rest of them cannot be read."""
    ended = list[str]()

    def uneven() -> Iterator[str]:
        try:
            with _records(path) as rows:
                for line, row in rows:
                    if len(row) != width:
                        yield fault(f"{place(path)}:{line}", f"{len(row)} fields", f"{width}, as in the header")
        except ContractError as error:
            ended.extend(error.faults)

    return [*limited(uneven()), *ended]


def _malformed(path: Path, width: int, reason: str) -> ProrataError:
    """What is wrong with a file that Polars refused: the records that are too long or short, else Polars' own words."""
    try:
        faults = _width_faults(path, width)
        _check_members(path)
    except ProrataError as error:
        return error
    first_line = reason.strip().split("\n", maxsplit=1)[0]
    return ContractError(faults or fault(place(path), f"not well-formed CSV ({first_line})", _WELL_FORMED))


def _check_compression(path: Path) -> None:
    """Raise SourceError unless the file is gzip exactly if its name says so."""
    with _reading(path), path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
    if not magic:
        raise SourceError(fault(place(path), "the file is empty", "a header"))
    if path.suffix == ".gz" and magic != _GZIP_MAGIC:
        raise SourceError(fault(place(path), "not gzip", "what the name ends in"))
    if path.suffix != ".gz" and magic == _GZIP_MAGIC:
        raise SourceError(fault(place(path), "gzip", "plain text, or a name that ends in .gz"))


def _check_members(path: Path) -> None:
    """Raise SourceError if what follows gzip data is something else, if only zeros, which Python passes over."""
    if path.suffix != ".gz":
        return
    with _reading(path), path.open("rb") as file:
        member = zlib.decompressobj(wbits=_GZIP_BITS)
        while block := file.read(_PACKED_BYTES):
            while block:
                if member.eof:
                    member = zlib.decompressobj(wbits=_GZIP_BITS)
                # Bounded, since a block of zeros unpacks to a thousand times its size.
                member.decompress(block, _PACKED_BYTES)
                block = member.unconsumed_tail or member.unused_data


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into the error of whoever must act."""
    try:
        yield
    except EOFError as error:
        raise SourceError(fault(place(path), "the gzip data end too soon", "a whole file")) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(fault(place(path), f"the gzip data are damaged ({error})", "a whole file")) from error
    except OSError as error:
        raise SourceError(fault(place(path), f"cannot be read ({error.strerror or error})", "a file")) from error


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    with _reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield cast(BinaryIO, file)


@contextmanager
def _records(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The records with the physical line each starts at; only a line feed ends a line, as Polars has it."""
    try:
        with _unpacked(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
            yield _numbered(text, path)
    except UnicodeDecodeError as error:
        raise ContractError(_not_utf8(path)) from error


def _numbered(text: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    rows, before = csv.reader(text, strict=True), 0
    try:
        for row in rows:
            yield before + 1, row
            before = rows.line_num
    except csv.Error as error:
        where = f"{place(path)}:{before + 1}"
        raise ContractError(fault(where, f"not well-formed CSV ({error})", _WELL_FORMED)) from error


def _not_utf8(path: Path) -> str:
    """The fault of a file that is not UTF-8, with the first such line."""
    with _unpacked(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return fault(f"{place(path)}:{number}", f"bytes {line[error.start : error.end].hex(' ')}", "UTF-8")
    return fault(place(path), "not UTF-8", "UTF-8")
