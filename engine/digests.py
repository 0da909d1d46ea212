"""Digests of tables: SHA-256 over content, the same on every machine, thread count and library version."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, NoReturn

import polars as pl
import pyarrow as pa

from engine.errors import LedgerError, fault
from engine.frames import Blocks, Table, categories, is_text
from engine.money import to_amount

UNDIGESTED = frozenset({"calculation_id"})
"""Columns that a digest leaves out: what made a row, not what it says."""
_SEEN_AT_ONCE = 20_000
"""Of how many rows values are looked for at once: most columns have all of theirs among the first."""


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
        self._varied = self._schema.keys() & table.varied
        self._steady = self._schema.keys() - self._varied - self._nullable
        self._streams: dict[tuple[str, str], _Rows | _Runs] = {}
        for name, dtype in self._schema.items():
            if name in self._nullable:
                self._streams[name, "nulls"] = _Runs()
            self._streams[name, "values"] = _Rows() if name in self._varied else _Runs()
            if _is_wide(dtype):
                self._streams[name, "high"] = _Runs()
        self._texts = {name: _Texts(name) for name, dtype in self._schema.items() if is_text(dtype)}
        self._rows = 0

    def update(self, chunk: pa.Table) -> None:
        """Add the rows of a chunk, from `as_arrow`."""
        columns = {name: chunk.column(name).chunk(0) for name in self._schema}
        # They are the same for all columns but those of one block, which begins where the others' first one does.
        ends = max((column.run_ends for column in columns.values() if is_blocks(column)), key=len, default=_FIRST)
        starts = _starts(ends)

        def placed(run: _Run) -> _Run:
            return _Run(run.values, starts.take(run.starts), chunk.num_rows)

        for name, column in columns.items():
            if is_blocks(column) and (name in self._steady or column.values.null_count == len(column.values)):
                self._add(name, self._physical(name, column.values), placed)
            else:
                self._add(name, self._physical(name, row_by_row(column)))
        self._rows += chunk.num_rows

    def _physical(self, name: str, column: pa.Array) -> pa.Array:
        """A column as it lies in memory: of texts their places, of booleans bytes."""
        if name in self._texts:
            return self._texts[name].places(column)
        return column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column

    def _add(self, name: str, values: pa.Array, placed: Callable[[_Run], _Run] = lambda run: run) -> None:
        """Add values of a column; `placed` tells in which rows of the chunk their runs begin."""
        if not len(values):
            return
        if name in self._nullable:
            self._streams[name, "nulls"].update(placed(_nulls(values)))
            values = values.slice(0, 0) if values.null_count == len(values) else values.drop_null()
        for stream, part in _parts(values):
            state = self._streams[name, stream]
            if isinstance(state, _Rows):
                state.update(part)
                hashed = part
            else:
                run = _run(part, is_one=stream == "values" and self._is_one(name))
                state.update(placed(run))
                hashed = run.values
            if stream == "values" and name in self._texts:
                self._texts[name].see(hashed)

    def _is_one(self, name: str) -> bool:
        """Whether the column is of text and has one value in all rows."""
        return name in self._texts and self._texts[name].is_one()

    def hexdigest(self) -> str | None:
        """The digest; None if an Enum had values that no row has."""
        if not all(texts.is_tight() for texts in self._texts.values()):
            return None
        lines = [f"rows={self._rows}\n", *(f"{name}={self._hashes(name)}\n" for name in self._schema)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _hashes(self, name: str) -> str:
        """The hashes of a column's streams."""
        found = "".join(
            self._streams[name, stream].hexdigests() for stream in _STREAMS if (name, stream) in self._streams
        )
        return found + self._texts[name].hexdigest() if name in self._texts else found


_STREAMS = ("nulls", "values", "high")
"""The streams of a column, in their order; what comes of its texts is the last."""


def _refuse(name: str, seen: str, expected: str) -> NoReturn:
    raise LedgerError(fault(f"column {name}", seen, expected))


class _Texts:
    """The distinct values of a text column, and which of them a row has."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: pa.Array | None = None
        self._seen: pa.Array | None = None

    def places(self, column: pa.DictionaryArray) -> pa.Array:
        """Of each row the place of its text, in the narrowest code; LedgerError unless all chunks come alike."""
        texts = column.dictionary
        if self._values is None:
            if len(texts) > 1 and not pl.Series(texts).is_sorted():
                _refuse(self._name, "an encoding that is not in byte order", "`frames.encoded`")
            self._values = texts
        elif not self._values.equals(texts):
            _refuse(self._name, "chunks with different encodings", "one encoding for all chunks")
        code = _code(len(texts))
        return column.indices if column.indices.type == code else column.indices.cast(code)

    def see(self, places: pa.Array) -> None:
        """Add places of values that rows have."""
        for start in range(0, len(places), _SEEN_AT_ONCE):
            if self.is_tight():
                return
            seen = places[start : start + _SEEN_AT_ONCE].unique()
            self._seen = seen if self._seen is None else pa.concat_arrays([self._seen, seen]).unique()

    def is_one(self) -> bool:
        """Whether there is one value, which then is in every row that is not null."""
        return self._values is not None and len(self._values) == 1

    def is_tight(self) -> bool:
        """Whether every value is in a row."""
        return (0 if self._seen is None else len(self._seen)) == (0 if self._values is None else len(self._values))

    def hexdigest(self) -> str:
        texts = [] if self._values is None else self._values.to_pylist()
        return hashlib.sha256("".join(f"{len(text.encode())}:{text}" for text in texts).encode()).hexdigest()


class _Run(NamedTuple):
    """The runs of so many rows: their values, and the rows in which these stand first."""

    values: pa.Array
    starts: pa.Array
    rows: int


class _Rows:
    """A stream of the values of all rows."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, values: pa.Array) -> None:
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
        """Add rows, at least one."""
        values, starts, rows = given
        if self._rows and values[0].as_py() == self._last:
            values, starts = values[1:], starts[1:]
        if len(values):
            self._hash.update(_bytes(values))
            self._starts.update(_bytes(compute().add(starts, self._rows) if self._rows else starts))
            self._last = values[-1].as_py()
        self._rows += rows

    def hexdigests(self) -> str:
        return self._hash.hexdigest() + self._starts.hexdigest()


def _nulls(column: pa.Array) -> _Run:
    """Of each row whether it is null; most columns are null in all rows or in none."""
    if column.null_count in (0, len(column)):
        return _Run(pa.array([int(column.null_count > 0)], pa.uint8()), _FIRST, len(column))
    return _run(column.is_null().cast(pa.uint8()), is_one=False)


def _parts(column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """A column without nulls -> what goes into which of its streams; nothing if it has no rows."""
    if not len(column):
        return
    if not pa.types.is_decimal(column.type):
        yield "values", column
        return
    # The low and the high 8 bytes of each value in turn, as they lie in memory.
    halves = pl.Series(
        pa.Array.from_buffers(pa.int64(), 2 * len(column), [None, column.buffers()[1]], offset=2 * column.offset)
    )
    split = halves.to_frame().select_seq(values=pl.first().gather_every(2), high=pl.first().gather_every(2, 1))
    yield from ((half.name, half.to_arrow()) for half in split)


def _run(values: pa.Array, *, is_one: bool) -> _Run:
    """Values of rows, at least one -> their runs; `is_one`: whether it is known that there is one value in all rows."""
    if is_one:
        return _Run(values[:1], _FIRST, len(values))
    found = compute().run_end_encode(values, run_end_type=pa.int64())
    return _Run(found.values, _starts(found.run_ends), len(values))


def _starts(ends: pa.Array) -> pa.Array:
    """Where runs begin, from where they end; there is at least one."""
    return pa.concat_arrays([_FIRST, ends[:-1]])


_FIRST = pa.array([0], pa.int64())


@cache
def compute() -> ModuleType:
    """Arrow's functions take long to import, and a run that has nothing to do needs none."""
    return import_module("pyarrow.compute")


def _is_wide(dtype: pl.DataType) -> bool:
    """Whether values have 16 bytes."""
    return dtype == pl.Int128 or isinstance(dtype, pl.Decimal)


def _bytes(values: pa.Array) -> memoryview:
    """The values as they lie in memory: little-endian, without nulls."""
    width = values.type.bit_width // 8
    return memoryview(values.buffers()[1] or b"")[values.offset * width : (values.offset + len(values)) * width]


def as_arrow(chunk: pl.DataFrame | Blocks) -> pa.Table:
    """Rows in Arrow, of one chunk: text as dictionaries, and decimals for whole units; what is told of blocks, as runs.

    Enums keep their values and their order; of other text the distinct values are found, in byte order.
    """
    if isinstance(chunk, Blocks):
        return _blocks_as_arrow(chunk)
    # Arrow has no integers of 16 bytes, but decimals are just that in memory.
    return _as_arrow(chunk.with_columns(to_amount(pl.col(pl.Int128))))


def _blocks_as_arrow(chunk: Blocks) -> pa.Table:
    rows, blocks = _as_arrow(chunk.varied), _as_arrow(chunk.steady)
    ends = chunk.starts.slice(1).cast(pl.Int64).append(pl.Series([rows.num_rows])).head(blocks.num_rows).to_arrow()

    def runs(name: str, column: pa.Array) -> pa.Array:
        if name in chunk.constant:
            return _runs(ends[-1:], column[:1])
        return _runs(ends, column) if len(ends) < rows.num_rows else column

    columns = [runs(name, blocks.column(name).chunk(0)) for name in blocks.column_names]
    return pa.Table.from_arrays([*rows.columns, *columns], names=[*rows.column_names, *blocks.column_names])


def _as_arrow(plain: pl.DataFrame) -> pa.Table:
    if not plain.height:
        # Of no rows a table would have no chunk, and so no dictionary.
        columns = [column.to_arrow(compat_level=_OLD_ARROW) for column in plain]
    else:
        columns = [column.chunk(0) for column in plain.rechunk().to_arrow(compat_level=_OLD_ARROW).columns]
    texts = [_encoded(column) if pa.types.is_large_string(column.type) else column for column in columns]
    return pa.Table.from_arrays(texts, names=plain.columns)


def is_blocks(column: pa.Array) -> bool:
    """Whether a column of `as_arrow` has a value for each block, not for each row."""
    return bool(pa.types.is_run_end_encoded(column.type))


def told(column: pa.Array) -> pa.Array:
    """The values of a column of `as_arrow`, of each row or of each block."""
    return column.values if is_blocks(column) else column


def row_type(dtype: pa.DataType) -> pa.DataType:
    """What a column of `as_arrow` is row by row."""
    return dtype.value_type if pa.types.is_run_end_encoded(dtype) else dtype


def row_by_row(column: pa.Array) -> pa.Array:
    """A column of `as_arrow` with a value for each row."""
    if not is_blocks(column):
        return column
    values, ends = column.values, column.run_ends
    if not len(values):
        return values
    if values.null_count == len(values):
        return _zeros(values.type, len(column), null=True)
    if not pa.types.is_dictionary(values.type):
        return spread(values, ends)
    codes = values.indices
    codes = spread(codes, ends) if len(values.dictionary) > 1 else _zeros(codes.type, len(column))
    return pa.DictionaryArray.from_arrays(codes, values.dictionary, ordered=values.type.ordered, safe=False)


def _zeros(dtype: pa.DataType, rows: int, *, null: bool = False) -> pa.Array:
    """A zero for each row, or nothing."""
    zeros = _zero_bytes((rows * dtype.bit_width // 8).bit_length())
    return pa.Array.from_buffers(dtype, rows, [zeros if null else None, zeros], rows if null else 0)


@cache
def _zero_bytes(bits: int) -> pa.Buffer:
    """2**bits bytes. They are shared by all columns of codes that are all the same, and by those that are all null."""
    return pa.py_buffer(bytes(2**bits))


def spread(values: pa.Array, ends: pa.Array) -> pa.Array:
    """The values of runs, each up to one of the ends -> the values of all rows."""
    if pa.types.is_decimal(values.type):
        # Runs of 16 bytes are decoded one by one, in twice the time.
        return values.take(spread(pl.int_range(len(values), dtype=pl.Int32, eager=True).to_arrow(), ends))
    return compute().run_end_decode(_runs(ends, values))


def _runs(ends: pa.Array, values: pa.Array) -> pa.RunEndEncodedArray:
    """Values up to ends, which are known to rise: to look at each takes longer than to decode the runs."""
    dtype = pa.run_end_encoded(ends.type, values.type)
    return pa.Array.from_buffers(dtype, ends[-1].as_py() if len(ends) else 0, [None], 0, 0, [ends, values])


_OLD_ARROW = pl.CompatLevel.oldest()
"""Texts as large_string, which every reader knows, instead of string views."""


def _encoded(texts: pa.Array) -> pa.DictionaryArray:
    """Text without nulls as codes of its distinct values, which are in byte order."""
    places, values = in_order(texts.dictionary_encode())
    return pa.DictionaryArray.from_arrays(places, values, ordered=True, safe=False)


def in_order(texts: pa.DictionaryArray) -> tuple[pa.Array, pa.Array]:
    """Encoded text -> of each row the place of its text among the values of its dictionary in byte order, and these."""
    values = texts.dictionary
    code = _code(len(values))
    if len(values) <= 1:
        # So are most columns of a day.
        return texts.indices.cast(code), values
    order = compute().array_sort_indices(values)
    ranks = compute().array_sort_indices(order).cast(code)
    return ranks.take(texts.indices), values.take(order)


def _code(values: int) -> pa.DataType:
    """The narrowest code for so many values."""
    return pa.uint8() if values <= 2**8 else pa.uint16() if values <= 2**16 else pa.uint32()


def digest(frame: pl.DataFrame, table: Table | None = None) -> str:
    """The digest of a frame, in the order of its rows; of the columns of a table if one is given, else of all."""
    chosen = table or Table("", dict(frame.schema), (), frozenset(frame.columns))
    rows = frame if frame.columns == chosen.columns else frame.select(chosen.columns)
    if not rows.height:
        texts = {name: pl.String() if is_text(dtype) else dtype for name, dtype in rows.schema.items()}
        return _digest_of_nothing(tuple(texts.items()), chosen.nullable, chosen.varied)
    enums = [name for name, dtype in rows.schema.items() if isinstance(dtype, pl.Enum)]
    # They are mostly what `encoded` made of these rows; if they are not, the digest is that of the text itself.
    if all(categories(rows[name]).is_sorted() for name in enums) and (found := _digest(rows, chosen)):
        return found
    return _digest(rows.with_columns(pl.col(enums).cast(pl.String)), chosen) or ""


@cache
def _digest_of_nothing(
    columns: tuple[tuple[str, pl.DataType], ...], nullable: frozenset[str], varied: frozenset[str]
) -> str:
    """The digest of a frame without rows: most days have no empty keys, say."""
    schema = dict(columns)
    return _digest(pl.DataFrame(schema=schema), Table("", schema, (), nullable, varied)) or ""


def _digest(rows: pl.DataFrame, table: Table) -> str | None:
    state = Digest(table)
    state.update(as_arrow(rows))
    return state.hexdigest()
