"""Digests of tables: SHA-256 over content, the same on every machine, thread count and library version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import polars as pl
import pyarrow as pa

from engine.errors import LedgerError, fault
from engine.frames import Table, categories, encoded, is_text
from engine.money import to_amount

UNDIGESTED = frozenset({"calculation_id"})
"""Columns that a digest leaves out: what made a row, not what it says."""


class Digest:
    """SHA-256 over a table's content in the order of its rows, fed in chunks.

    The digest is the hash of a line `rows=N` and a line `name=` per column but `calculation_id`, with the hex hashes of
    the column's streams one after another. A stream is the bytes of one value of every row. *Runs* are two streams: the
    values of those rows only whose value is not that of the row before (the first row is always one of them), and the
    numbers of these rows, from 0, as integers of 8 bytes. Integers are little-endian two's complement. The streams are

        of nulls     in a column that may be null: runs of one byte, 1 for null; what follows leaves these rows out
        of text      runs of its place among the distinct values in byte order, in 1, 2 or 4 bytes (the fewest that
                     do); then these values, each as `<byte length>:<UTF-8>`
        of decimals  in units, 16 bytes: runs of the low 8 bytes, then runs of the high 8 bytes
        of others    runs of the value in the column's width; dates are days since 1970-01-01, booleans 0 or 1

    except that in the table's `varied` columns places, low bytes and other values are of every row, not runs. (In a
    chargeback most columns say the same for all payers of a part, and runs are a tenth of the bytes.)

    Chunks come with text as Enums, the same for all chunks (`frames.encoded`). If a value of an Enum turns out to be
    in no row, `hexdigest` is None: the caller then encodes what it wrote again.
    """

    def __init__(self, table: Table) -> None:
        self._schema = {name: dtype for name, dtype in table.schema.items() if name not in UNDIGESTED}
        self._nullable = self._schema.keys() & table.nullable
        varied = self._schema.keys() & table.varied
        self._whole = {_values(name): _Rows() for name in varied}
        self._runs = {
            **{_nulls(name): _Runs() for name in self._nullable},
            **{_values(name): _Runs() for name in self._schema.keys() - varied},
            **{_high(name): _Runs() for name, dtype in self._schema.items() if _is_wide(dtype)},
        }
        self._texts: dict[str, _Texts] = {}
        self._rows = 0

    def update(self, chunk: pl.DataFrame) -> None:
        """Add the rows of a chunk. Columns are looked at together: a small day has more of them than rows."""
        self._rows += chunk.height
        given: dict[str, pl.Series] = {}
        wide: dict[str, pl.Series] = {}
        for name, dtype in self._schema.items():
            column = chunk[name].rechunk()
            if name in self._nullable:
                given[_nulls(name)], column = _without_nulls(column)
            if is_text(dtype):
                given[_values(name)] = self._codes(name, column)
            elif _is_wide(dtype):
                wide[name] = column
            else:
                given[_values(name)] = column.cast(pl.UInt8) if dtype == pl.Boolean else column
        for low, high in _halves(wide):
            given.update({_values(column.name): column for column in low})
            given.update({_high(column.name): column for column in high})
        self._feed(given)

    def _codes(self, name: str, column: pl.Series) -> pl.Series:
        """The places of a text column's values among those of all chunks."""
        texts = categories(column)
        if name not in self._texts:
            if not texts.is_sorted():
                _refuse(name, "an encoding that is not in byte order", "`frames.encoded`")
            self._texts[name] = _Texts(texts, pl.Series([0], dtype=pl.UInt8).new_from_index(0, texts.len()))
        elif not self._texts[name].values.equals(texts):
            _refuse(name, "chunks with different encodings", "one encoding for all chunks")
        return column.to_physical().cast(_width(texts.len()))

    def _feed(self, given: dict[str, pl.Series]) -> None:
        """Streams by name -> their hashes."""
        hashed = {name: given[name] for name in self._whole if name in given}
        for name, values in hashed.items():
            self._whole[name].update(values)
        for name, run in _runs({name: given[name] for name in self._runs if name in given}):
            self._runs[name].update(run)
            hashed[name] = run.values
        for name, texts in self._texts.items():
            if (codes := hashed.get(_values(name))) is not None and not texts.is_tight():
                texts.present.scatter(codes, 1)

    def hexdigest(self) -> str | None:
        """The digest; None if an Enum had values that no row has."""
        if not all(texts.is_tight() for texts in self._texts.values()):
            return None
        lines = [f"rows={self._rows}\n", *(f"{name}={self._hashes(name)}\n" for name in self._schema)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _hashes(self, name: str) -> str:
        """The hashes of a column's streams."""
        streams: dict[str, _Rows | _Runs] = {**self._whole, **self._runs}
        found = "".join(
            streams[key].hexdigests() for key in (_nulls(name), _values(name), _high(name)) if key in streams
        )
        return found + self._texts_of(name).hexdigest() if is_text(self._schema[name]) else found

    def _texts_of(self, name: str) -> _Texts:
        return self._texts.get(name) or _Texts(pl.Series(dtype=pl.String), pl.Series(dtype=pl.UInt8))


def _nulls(name: str) -> str:
    return f"nulls of {name}"


def _values(name: str) -> str:
    return f"values of {name}"


def _high(name: str) -> str:
    return f"high of {name}"


def _refuse(name: str, seen: str, expected: str) -> NoReturn:
    raise LedgerError(fault(f"column {name}", seen, expected))


class _Texts(NamedTuple):
    """The distinct values of a text column, and of each whether a row has it (1) or not (0)."""

    values: pl.Series
    present: pl.Series

    def is_tight(self) -> bool:
        """Whether every value is in a row."""
        return self.present.min() != 0

    def hexdigest(self) -> str:
        texts = self.values.cast(pl.String).to_list()
        return hashlib.sha256("".join(f"{len(text.encode())}:{text}" for text in texts).encode()).hexdigest()


class _Run(NamedTuple):
    """The runs of so many rows: their values, and the rows in which these stand first."""

    values: pl.Series
    starts: pl.Series
    rows: int


class _Rows:
    """A stream of the values of all rows."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, values: pl.Series) -> None:
        """Add rows."""
        self._hash.update(_bytes(values))

    def hexdigests(self) -> str:
        return self._hash.hexdigest()


class _Runs:
    """The two streams of runs. A run goes on across chunks."""

    def __init__(self) -> None:
        self._hash, self._starts = hashlib.sha256(), hashlib.sha256()
        self._rows, self._last = 0, None

    def update(self, given: _Run) -> None:
        """Add rows."""
        values, starts, rows = given
        goes_on = self._rows and values[0] == self._last
        if goes_on:
            values, starts = values.slice(1), starts.slice(1)
        if values.len():
            self._hash.update(_bytes(values))
            self._starts.update(_bytes(starts.cast(pl.Int64) + self._rows))
            self._last = values[-1]
        self._rows += rows

    def hexdigests(self) -> str:
        return self._hash.hexdigest() + self._starts.hexdigest()


def _runs(given: dict[str, pl.Series]) -> Iterator[tuple[str, _Run]]:
    """Columns by name -> the rows of each at which a run begins, and their values; a column without rows has none.

    Neighbours are compared as two views of the same memory; nothing is copied. Most columns of a chunk are one run,
    which is found out faster than listed.
    """
    for frame in _by_length(given):
        rows = frame.height
        differs = frame.select((pl.all().slice(1) != pl.all().head(rows - 1)).any()).row(0)
        varied = [name for name, several in zip(frame.columns, differs, strict=True) if several]
        after, before = pl.col(varied).slice(1), pl.col(varied).head(rows - 1)
        places = frame.select(((after != before).arg_true() + 1).implode())
        starts = {name: _FIRST.clone().append(places[name][0]) for name in varied}
        found = frame.select(pl.col(name).gather(starts[name]).implode() for name in varied)
        for name in frame.columns:
            if name in starts:
                yield name, _Run(found[name][0], starts[name], rows)
            else:
                yield name, _Run(frame[name].head(1), _FIRST, rows)


_FIRST = pl.Series([0], dtype=pl.get_index_type())


def _by_length(given: dict[str, pl.Series]) -> Iterator[pl.DataFrame]:
    """Columns by name -> frames of those that are equally long, but for those of no rows."""
    for length in {column.len() for column in given.values()} - {0}:
        yield pl.DataFrame([column.alias(name) for name, column in given.items() if column.len() == length])


def _without_nulls(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Of every row 1 for null and 0 for a value; and the values."""
    nulls, rows = column.null_count(), column.len()
    if nulls in (0, rows):
        flags = pl.Series([int(nulls > 0)], dtype=pl.UInt8).new_from_index(0, rows)
        return flags, column.head(0) if nulls else column
    return column.is_null().cast(pl.UInt8), column.drop_nulls()


def _is_wide(dtype: pl.DataType) -> bool:
    """Whether values have 16 bytes."""
    return dtype == pl.Int128 or isinstance(dtype, pl.Decimal)


def _width(values: int) -> type[pl.DataType]:
    """The narrowest code for so many values."""
    return pl.UInt8 if values <= 2**8 else pl.UInt16 if values <= 2**16 else pl.UInt32


def _halves(given: dict[str, pl.Series]) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Columns by name -> frames of the low and the high 8 bytes of each value of 16, as integers."""
    for frame in _by_length({name: _pairs(column) for name, column in given.items()}):
        yield frame.select(pl.all().gather_every(2)), frame.select(pl.all().gather_every(2, 1))


def _pairs(column: pl.Series) -> pl.Series:
    """The low and the high 8 bytes of each value in turn, as they lie in memory."""
    if column.dtype == pl.Int128:
        # Arrow has no such integer, but decimals are just that in memory.
        column = column.to_frame().select(to_amount(pl.all())).to_series()
    array = column.rechunk().to_arrow()
    return pl.Series(
        pa.Array.from_buffers(pa.int64(), 2 * len(array), [None, array.buffers()[1]], offset=2 * array.offset)
    )


def _bytes(column: pl.Series) -> memoryview:
    """The column's values as they lie in memory: little-endian, without nulls."""
    array = column.rechunk().to_arrow()
    width = array.type.bit_width // 8
    data = array.buffers()[1] if len(array) else None
    return memoryview(data or b"")[array.offset * width : (array.offset + len(array)) * width]


def digest(frame: pl.DataFrame, table: Table | None = None) -> str:
    """The digest of a frame, in the order of its rows; of the columns of a table if one is given, else of all."""
    chosen = table or Table("", dict(frame.schema), (), frozenset(frame.columns))
    # Enums are mostly what `encoded` made of these rows; if they are not, of the text itself.
    exact = all(categories(column).is_sorted() for column in frame.select(pl.col(pl.Enum)))
    found = _digest(encoded(frame), chosen) if exact else None
    return found or _digest(encoded(frame.with_columns(pl.col(pl.Enum).cast(pl.String))), chosen) or ""


def _digest(codes: pl.DataFrame, table: Table) -> str | None:
    state = Digest(table)
    state.update(codes)
    return state.hexdigest()
