"""Digests of tables: SHA-256 over content, the same on every machine, thread count and library version."""

from __future__ import annotations

import hashlib

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
        self._columns = {
            name: _kind(dtype)(name, nullable=name in table.nullable, varied=name in table.varied)
            for name, dtype in table.schema.items()
            if name not in UNDIGESTED
        }
        self._rows = 0

    def update(self, chunk: pl.DataFrame) -> None:
        """Add the rows of a chunk."""
        self._rows += chunk.height
        for name, column in self._columns.items():
            column.update(chunk[name].rechunk())

    def hexdigest(self) -> str | None:
        """The digest; None if an Enum had values that no row has."""
        hashes = {name: column.hexdigests() for name, column in self._columns.items()}
        if None in hashes.values():
            return None
        lines = [f"rows={self._rows}\n", *(f"{name}={found}\n" for name, found in hashes.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Rows:
    """A stream of the values of all rows."""

    def __init__(self) -> None:
        self._values = hashlib.sha256()

    def update(self, values: pl.Series) -> pl.Series:
        """Add rows; the values that were hashed, which are all that there are."""
        self._values.update(_bytes(values))
        return values

    def hexdigests(self) -> str:
        return self._values.hexdigest()


class _Runs:
    """The two streams of runs. A run goes on across chunks."""

    def __init__(self) -> None:
        self._values, self._starts = hashlib.sha256(), hashlib.sha256()
        self._rows, self._last = 0, None

    def update(self, values: pl.Series, *, times: int = 1) -> pl.Series:
        """Add rows, or one value so many times; the values that were hashed, which are all that there are."""
        if not values.len():
            return values
        starts = _starts(values)
        if self._rows and values[0] == self._last:
            starts = starts.slice(1)
        found = values.gather(starts)
        self._values.update(_bytes(found))
        self._starts.update(_bytes(starts.cast(pl.Int64) + self._rows))
        self._rows, self._last = self._rows + values.len() * times, values[-1]
        return found

    def hexdigests(self) -> str:
        return self._values.hexdigest() + self._starts.hexdigest()


def _starts(values: pl.Series) -> pl.Series:
    """The rows at which a run begins. Neighbours are compared as two views of the same memory; nothing is copied."""
    first = pl.Series([0], dtype=pl.get_index_type())
    changes = values.slice(1) != values.head(values.len() - 1)
    # Most columns of a chunk are one run, which is found out faster than listed.
    return first.append(changes.arg_true() + 1) if changes.any() else first


class _Column:
    """The streams of a column of numbers, dates or flags."""

    def __init__(self, name: str, *, nullable: bool, varied: bool) -> None:
        self._name = name
        self._nulls = _Runs() if nullable else None
        self._values = _Rows() if varied else _Runs()

    def update(self, values: pl.Series) -> None:
        if self._nulls is not None:
            nulls = values.null_count()
            same = nulls in (0, values.len())
            flags = (values.head(1) if same else values).is_null().cast(pl.UInt8)
            self._nulls.update(flags, times=values.len() if same else 1)
            values = values.drop_nulls() if nulls else values
        self._update(values)

    def _update(self, values: pl.Series) -> None:
        self._values.update(values.cast(pl.UInt8) if values.dtype == pl.Boolean else values)

    def hexdigests(self) -> str | None:
        """The hashes of all streams."""
        return (self._nulls.hexdigests() if self._nulls is not None else "") + self._values.hexdigests()


class _Decimals(_Column):
    """The streams of a column of decimals, or of integers as wide."""

    def __init__(self, name: str, *, nullable: bool, varied: bool) -> None:
        super().__init__(name, nullable=nullable, varied=varied)
        self._high = _Runs()

    def _update(self, values: pl.Series) -> None:
        low, high = _halves(values)
        self._values.update(low)
        self._high.update(high)

    def hexdigests(self) -> str | None:
        return f"{super().hexdigests()}{self._high.hexdigests()}"


class _Text(_Column):
    """The streams of a column of text, which comes as an Enum."""

    def __init__(self, name: str, *, nullable: bool, varied: bool) -> None:
        super().__init__(name, nullable=nullable, varied=varied)
        self._texts: pl.Series | None = None
        self._present = pl.Series(dtype=pl.UInt8)

    def _update(self, values: pl.Series) -> None:
        texts = categories(values)
        if self._texts is None and not texts.is_sorted():
            self._refuse("an encoding that is not in byte order", "`frames.encoded`")
        if self._texts is None:
            self._texts, self._present = texts, pl.zeros(texts.len(), dtype=pl.UInt8, eager=True)
        elif not self._texts.equals(texts):
            self._refuse("chunks with different encodings", "one encoding for all chunks")
        codes = self._values.update(values.to_physical().cast(_width(texts.len())))
        if not self._is_tight():
            self._present.scatter(codes, 1)

    def _is_tight(self) -> bool:
        """Whether every value of the Enum is in a row."""
        return not (self._present == 0).any()

    def _refuse(self, seen: str, expected: str) -> None:
        raise LedgerError(fault(f"column {self._name}", seen, expected))

    def hexdigests(self) -> str | None:
        if not self._is_tight():
            return None
        texts = self._texts.to_list() if self._texts is not None else []
        values = "".join(f"{len(text.encode())}:{text}" for text in texts)
        return f"{super().hexdigests()}{hashlib.sha256(values.encode()).hexdigest()}"


def _kind(dtype: pl.DataType) -> type[_Column]:
    if is_text(dtype):
        return _Text
    return _Decimals if dtype == pl.Int128 or isinstance(dtype, pl.Decimal) else _Column


def _width(values: int) -> type[pl.DataType]:
    """The narrowest code for so many values."""
    return pl.UInt8 if values <= 2**8 else pl.UInt16 if values <= 2**16 else pl.UInt32


def _halves(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The low and the high 8 bytes of each value of 16, as integers."""
    if column.dtype == pl.Int128:
        # Arrow has no such integer, but decimals are just that in memory.
        column = column.to_frame().select(to_amount(pl.all())).to_series()
    array = column.rechunk().to_arrow()
    halves = pa.Array.from_buffers(pa.int64(), 2 * len(array), [None, array.buffers()[1]], offset=2 * array.offset)
    pairs = pl.Series(halves)
    return pairs.gather_every(2), pairs.gather_every(2, 1)


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
