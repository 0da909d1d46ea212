"""Digests of tables: SHA-256 over content, the same on every machine, thread count and library version."""

from __future__ import annotations

import hashlib

import polars as pl
import pyarrow as pa

from engine.errors import LedgerError, fault
from engine.frames import Table, categories, encoded
from engine.money import to_amount

UNDIGESTED = frozenset({"calculation_id"})
"""Columns that a digest leaves out: what made a row, not what it says."""


class Digest:
    """SHA-256 over a table's content in the order of its rows, fed in chunks.

    For each column but `calculation_id`: for text, every row's place among the distinct values in byte order, in 1, 2
    or 4 bytes (the fewest that do; none for a single value), then these values, each as `<byte length>:<UTF-8>`; for
    numbers and dates every row's value as little-endian two's complement of the column's width (decimals 16 bytes, in
    units); booleans 1 byte; for a column that may be null only the values that are not, and one byte a row (1: null)
    in a hash of its own. The digest is the hash of `rows=N` and a line `name=` per column with its hash (that of the
    nulls before it, if any).

    Chunks come with text as Enums, the same for all chunks (`frames.encoded`). If a value of an Enum turns out to be
    in no row, `hexdigest` is None: the caller then encodes what it wrote again.
    """

    def __init__(self, table: Table) -> None:
        self._columns = [name for name in table.schema if name not in UNDIGESTED]
        self._nullable = table.nullable
        self._hashes = {name: hashlib.sha256() for name in self._columns}
        self._nulls = {name: hashlib.sha256() for name in self._columns if name in table.nullable}
        self._values: dict[str, pl.Series] = {}
        self._present: dict[str, set[int]] = {name: set() for name in self._columns}
        self._rows = 0

    def update(self, chunk: pl.DataFrame) -> None:
        """Add the rows of a chunk."""
        self._rows += chunk.height
        for name in self._columns:
            column = chunk[name]
            if isinstance(column.dtype, pl.Enum):
                self._update_text(name, column)
                continue
            if name in self._nullable:
                self._nulls[name].update(_bytes(column.is_null()))
                column = column.drop_nulls()
            self._hashes[name].update(_bytes(column))

    def _update_text(self, name: str, column: pl.Series) -> None:
        values = categories(column)
        if name not in self._values and not values.is_sorted():
            raise LedgerError(fault(f"column {name}", "an encoding that is not in byte order", "`frames.encoded`"))
        known = self._values.setdefault(name, values)
        if known is not values and not known.equals(values):
            raise LedgerError(fault(f"column {name}", "chunks with different encodings", "one encoding for all chunks"))
        codes = column.to_physical()
        present = self._present[name]
        if len(present) < values.len():
            present.update(codes.unique())
        if values.len() > 1:
            self._hashes[name].update(_bytes(codes.cast(_width(values.len()))))

    def hexdigest(self) -> str | None:
        """The digest; None if an Enum had values that no row has."""
        total = hashlib.sha256(f"rows={self._rows}\n".encode())
        for name in self._columns:
            column = self._hashes[name].copy()
            values = self._values.get(name)
            if values is not None:
                if len(self._present[name]) < values.len():
                    return None
                column.update("".join(f"{len(value.encode())}:{value}" for value in values).encode())
            nulls = self._nulls[name].hexdigest() if name in self._nulls else ""
            total.update(f"{name}={nulls}{column.hexdigest()}\n".encode())
        return total.hexdigest()


def _width(values: int) -> type[pl.DataType]:
    """The narrowest code for so many values."""
    return pl.UInt8 if values <= 2**8 else pl.UInt16 if values <= 2**16 else pl.UInt32


def _bytes(column: pl.Series) -> memoryview:
    """The column's values as they lie in memory: little-endian, without nulls."""
    if column.dtype == pl.Boolean:
        column = column.cast(pl.UInt8)
    elif column.dtype == pl.Int128:
        # Arrow has no such integer, but decimals are just that in memory.
        column = column.to_frame().select(to_amount(pl.all())).to_series()
    array = column.rechunk().to_arrow()
    width = array.type.bit_width // 8
    data = array.buffers()[1] if isinstance(array, pa.Array) else None
    if data is None or not len(array):
        return memoryview(b"")
    return memoryview(data)[array.offset * width : (array.offset + len(array)) * width]


def digest(frame: pl.DataFrame, table: Table | None = None) -> str:
    """The digest of a frame, in the order of its rows; of the columns of a table if one is given, else of all."""
    state = Digest(table or Table("", dict(frame.schema), (), frozenset(frame.columns)))
    state.update(encoded(frame.with_columns(pl.col(pl.Enum).cast(pl.String))))
    return state.hexdigest() or ""
