"""The Parquet lake: what lies where, digests, and writing beside and renaming.

`lake/` is always exactly the truth, one file per tenant, billing period and day. Files are written in `tmp/` on the
same file system, under a name that is not Parquet's, made durable, and renamed into place; the version they replace
is hard-linked into `history/` first.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from engine.digests import Digest, as_arrow, in_order, row_by_row, row_type, told
from engine.errors import ContractError, StoreError, fault
from engine.frames import KEPT_WHOLE, LAKE_TABLES, MEASURES, Blocks, Table, empty, halves, shape

ROW_GROUP_ROWS = 250_000
"""About how many rows a row group of a day file has; a chunk that is written is a row group."""
_DIGEST_KEY, _CALCULATION_KEY = b"prorata.digest", b"prorata.calculation_id"
_FILTERED = "charge_date", "line_id"
_DICTIONARY_VALUES, _DICTIONARY_SHARE = 1024, 32
"""A dictionary of more values than this, and than one for so many rows, is cut to the values of its row group."""


class Written(NamedTuple):
    """A file that lies in `tmp/`, and what is in it."""

    path: Path
    digest: str
    rows: int
    size: int


class Place(NamedTuple):
    """Where a table's rows of one tenant, billing period and day lie."""

    table: Table
    tenant_id: str
    billing_period: str
    charge_date: date

    def path(self, root: Path) -> Path:
        """The file in the lake."""
        return self._month(root / "lake") / f"{self.charge_date.isoformat()}.parquet"

    def temporary(self, root: Path) -> Path:
        """Where it is written first."""
        name = f"{self.table.name}-{self.billing_period}-{self.charge_date.isoformat()}.part"
        return _temporary(root, self.tenant_id) / name

    def version(self, root: Path, digest: str) -> Path:
        """Where a version that was replaced is kept."""
        return self._month(root / "history") / self.charge_date.isoformat() / f"{digest}.parquet"

    def _month(self, folder: Path) -> Path:
        return folder / self.table.name / f"tenant_id={self.tenant_id}" / f"month={self.billing_period}"


def _temporary(root: Path, tenant_id: str) -> Path:
    """Where a tenant's files are written: a folder of its own, which the holder of its claim may clear."""
    return root / "tmp" / tenant_id


def create(root: Path, tenant_id: str) -> None:
    """Make the folders a tenant's run writes to, and one empty file per table, so that a glob finds a file in each.

    What a killed run of the tenant left in `tmp/` is removed; so only the holder of its claim may call this.
    """
    temporary = _temporary(root, tenant_id)
    with _store_errors(root):
        temporary.mkdir(parents=True, exist_ok=True)
        for left in temporary.iterdir():
            left.unlink()
        for table in LAKE_TABLES:
            monthly = table not in KEPT_WHOLE
            folder = root / "lake" / table.name / "tenant_id=_" / ("month=_" if monthly else "")
            target = folder / "empty.parquet"
            if not target.exists():
                folder.mkdir(parents=True, exist_ok=True)
                written = write(temporary / f"{table.name}-empty.part", table, [empty(table)])
                written.path.replace(target)
                _sync_folder(folder)


def write(path: Path, table: Table, chunks: Iterable[pl.DataFrame | Blocks], *, calculation_id: str = "") -> Written:
    """Write chunks of a table, in the order of its key, as one durable Parquet file.

    Text comes as String, or as Enums that are the same for all chunks. A chunk becomes a row group. On disk text is
    plain String and amounts are DECIMAL; digest and calculation id stand in the footer. The same chunks give the same
    bytes within a version of the library. StoreError if the file can't be written.
    """
    state, rows = Digest(table), 0
    given = _Chunks(chunks, table)
    try:
        with _store_errors(path), _created(path) as sink:
            # Enums are the same for all chunks, so the first one's codes are as wide as all others'.
            first = next(given, None)
            first = as_arrow(empty(table)) if first is None else first
            with _writer(sink, table, first) as writer:
                for chunk in chain([first], given):
                    state.update(chunk)
                    writer.write_table(_stored(chunk, writer.schema), row_group_size=max(chunk.num_rows, 1))
                    rows += chunk.num_rows
                found = state.hexdigest()
                writer.add_key_value_metadata({_DIGEST_KEY: found or "", _CALCULATION_KEY: calculation_id})
    except StoreError:
        # What made the chunks failed, not the store.
        if given.error is not None:
            raise given.error from None
        raise
    if found is None:
        return _written_again(path, table, calculation_id)
    return Written(path, found, rows, path.stat().st_size)


class _Chunks:
    """Chunks as they come, in Arrow, and the error with which they ended, if any."""

    def __init__(self, chunks: Iterable[pl.DataFrame | Blocks], table: Table) -> None:
        self._chunks, self._table = iter(chunks), table
        self._schema: pa.Schema | None = None
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        return self

    def __next__(self) -> pa.Table:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        return self._storable(chunk)

    def _storable(self, chunk: pl.DataFrame | Blocks) -> pa.Table:
        """The chunk, if it is of the table's shape and has no null where none may be; else ContractError."""
        found = as_arrow(chunk)
        # Chunks are alike, and to look at a frame's types takes longer than to compare those in Arrow.
        if self._schema != found.schema:
            for frame, table in halves(chunk, self._table):
                shape(frame.lazy(), table)
            self._schema = found.schema
        required = [name for name in self._table.columns if name not in self._table.nullable]
        if nulls := [name for name in required if told(found.column(name).chunk(0)).null_count]:
            place = f"table {self._table.name}, column"
            raise ContractError([fault(f"{place} {name}", "null values", "none") for name in nulls])
        return found


def _written_again(path: Path, table: Table, calculation_id: str) -> Written:
    """The file once more, with the Enums cut to the values that its rows have; so it only depends on its rows."""
    before = path.with_suffix(".loose")
    try:
        path.replace(before)
        return write(path, table, _exactly_encoded(before, table), calculation_id=calculation_id)
    finally:
        before.unlink(missing_ok=True)


def _exactly_encoded(path: Path, table: Table) -> Iterator[pl.DataFrame]:
    texts = [name for name, dtype in table.schema.items() if dtype == pl.String]
    stored = pl.scan_parquet(path, hive_partitioning=False, glob=False)
    enums = {
        name: pl.Enum(stored.select(pl.col(name).unique()).collect(engine="streaming")[name].sort()) for name in texts
    }
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            group = pl.DataFrame(pl.from_arrow(file.read_row_group(number)))
            yield group.with_columns(pl.col(name).cast(dtype) for name, dtype in enums.items())


def _writer(sink: pa.NativeFile, table: Table, chunk: pa.Table) -> pq.ParquetWriter:
    texts = [name for name, dtype in table.schema.items() if dtype == pl.String]
    types = {field.name: row_type(field.type) for field in chunk.schema}
    return pq.ParquetWriter(
        sink,
        pa.schema([pa.field(name, types[name], name in table.nullable) for name in table.columns]),
        # Every reader knows it. zstd makes files a third smaller, but takes four times as long.
        compression="snappy",
        # Dictionaries pay where values repeat much; for what is told of a part (line_id and part_amount, its rung, the
        # total of its weights) they take longer than they are worth: to find one costs more than to squeeze a run.
        use_dictionary=[*texts, "part", "weight_before", "weight"],
        # What analysts filter by, besides the folders, and what mostly is null, which checks then need not read;
        # statistics of every column cost a third of the time.
        write_statistics=[name for name in (*_FILTERED, *MEASURES[1:]) if name in table.schema],
        store_schema=False,
        # In the 1,024 rows that are usual a row takes 5 % longer.
        write_batch_size=65_536,
    )


def _stored(chunk: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [row_by_row(chunk.column(name).chunk(0)) for name in schema.names]
    cut = [_cut(column) if pa.types.is_dictionary(column.type) else column for column in columns]
    return pa.Table.from_arrays(cut, schema=schema)


def _cut(texts: pa.DictionaryArray) -> pa.DictionaryArray:
    """A column of texts whose dictionary, if it is large, has only values that the chunk has."""
    if len(texts.dictionary) <= max(_DICTIONARY_VALUES, len(texts) // _DICTIONARY_SHARE):
        return texts
    codes, values = pl.Series(texts.indices), pl.Series(texts.dictionary)
    present = codes.unique().sort()
    places = pl.zeros(values.len(), dtype=pl.UInt32, eager=True)
    numbers = pl.int_range(present.len(), dtype=pl.UInt32, eager=True)
    left = places.scatter(present, numbers).gather(codes).cast(codes.dtype)
    # The codes of an Enum are places among its values; nobody has to look at each again.
    return pa.DictionaryArray.from_arrays(
        left.to_arrow(), texts.dictionary.take(present.to_arrow()), ordered=texts.type.ordered, safe=False
    )


def footer(path: Path) -> tuple[str, str]:
    """(digest, calculation id) of a file that `write` made; StoreError if it is none."""
    with _store_errors(path):
        metadata = pq.read_metadata(path).metadata or {}
    return metadata.get(_DIGEST_KEY, b"").decode(), metadata.get(_CALCULATION_KEY, b"").decode()


def rows_in(path: Path) -> int:
    """How many rows a file has by its footer; StoreError if it cannot be read."""
    with _store_errors(path):
        return int(pq.read_metadata(path).num_rows)


def _claims(target: Path, written: Written) -> bool:
    """Whether the file in a place says that it is what was written; a file that cannot be read as Parquet does not."""
    try:
        return target.exists() and footer(target) == footer(written.path)
    except StoreError:
        return False


def _holds(target: Path, written: Written) -> bool:
    """Whether the file in a place is what was written, byte for byte: a damaged file may say so and not be."""
    return _claims(target, written) and filecmp.cmp(target, written.path, shallow=False)


def publish(root: Path, place: Place, written: Written) -> None:
    """Put a written file in its place; the version it replaces goes to history. Until the last step nothing changes.

    The same file stays, if it is there already: after a recalculation that changed nothing, or a crash between rename
    and commit. One that only says so, because it is damaged or another version of the library wrote it, is replaced and
    no version of its own.
    """
    target = place.path(root)
    with _store_errors(target):
        if _holds(target, written):
            written.path.unlink()
            return
        if not _claims(target, written):
            _keep_version(root, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        written.path.replace(target)
        _sync_folder(target.parent)


def withdraw(root: Path, place: Place) -> None:
    """Take a day that has no rows any more out of the lake; its last version goes to history."""
    target = place.path(root)
    with _store_errors(target):
        if target.exists():
            _keep_version(root, place)
            target.unlink()
            _sync_folder(target.parent)


def _keep_version(root: Path, place: Place) -> None:
    target = place.path(root)
    if not target.exists():
        return
    kept = place.version(root, _name_of_version(target))
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.link(target, kept)
        _sync_folder(kept.parent)


def _name_of_version(target: Path) -> str:
    """The digest of a file's content; of its bytes if it is torn."""
    try:
        found, _ = footer(target)
    except StoreError:
        found = ""
    return found or hashlib.sha256(target.read_bytes()).hexdigest()


def current(root: Path, table: Table, tenant_id: str) -> Path:
    """Where a tenant's rows of a table that is kept whole lie."""
    return root / "lake" / table.name / f"tenant_id={tenant_id}" / "current.parquet"


def put_current(root: Path, table: Table, tenant_id: str, frame: pl.DataFrame) -> None:
    """Replace a tenant's `current.parquet` of a table that is kept whole (identities, resources)."""
    target = current(root, table, tenant_id)
    written = write(_temporary(root, tenant_id) / f"{table.name}.part", table, [frame])
    with _store_errors(target):
        if _holds(target, written):
            written.path.unlink()
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        written.path.replace(target)
        _sync_folder(target.parent)


def read_current(root: Path, table: Table, tenant_id: str) -> pl.DataFrame:
    """A tenant's rows of a table that is kept whole; none if it has no file yet."""
    path = current(root, table, tenant_id)
    with _store_errors(path):
        if not path.exists():
            return empty(table)
        return shape(
            pl.read_parquet(path, hive_partitioning=False, glob=False).lazy(), table, where=str(path)
        ).collect()


def read(root: Path, place: Place) -> pl.DataFrame:
    """The rows of one day, in the order of the key; StoreError if the file is not there or not readable."""
    path = place.path(root)
    with _store_errors(path):
        return shape(
            pl.read_parquet(path, hive_partitioning=False, glob=False).lazy(), place.table, where=str(path)
        ).collect()


def read_encoded(root: Path, place: Place) -> pl.DataFrame:
    """`read` with text as `frames.encoded` has it, in half the time that both take: a file has dictionaries already.

    What is not as `write` makes it (other types, nulls in text, text that is no UTF-8) comes as `read` has it.
    """
    try:
        found = _read_encoded(place.path(root), place.table)
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        # What is wrong with it is told below.
        found = None
    return read(root, place) if found is None else found


def _read_encoded(path: Path, table: Table) -> pl.DataFrame | None:
    types = {name: _type_on_disk(dtype) for name, dtype in table.schema.items()}
    with pq.ParquetFile(path) as file:
        if [(field.name, field.type) for field in file.schema_arrow] != list(types.items()):
            return None
        texts = [name for name, dtype in types.items() if pa.types.is_string(dtype)]
        with pq.ParquetFile(path, metadata=file.metadata, read_dictionary=texts) as coded:
            rows = coded.read(use_threads=False)
    columns = {name: rows.column(name).combine_chunks() for name in table.columns}
    for name in texts:
        columns[name].dictionary.validate(full=True)
    if any(columns[name].null_count for name in texts):
        return None
    return pl.DataFrame(
        [_enum(name, columns[name]) if name in texts else pl.Series(name, columns[name]) for name in columns]
    )


def _type_on_disk(dtype: pl.DataType) -> pa.DataType:
    return pa.string() if dtype == pl.String else pl.Series([], dtype=dtype).to_arrow().type


def _enum(name: str, column: pa.DictionaryArray) -> pl.Series:
    places, values = in_order(column)
    return pl.Series(name, places).cat.to(pl.Enum(pl.Series(values)))


def scan(root: Path, table: Table, tenant_id: str, billing_period: str = "*") -> pl.LazyFrame:
    """All rows of a tenant, or of one of its billing periods; an empty frame if it has no file.

    Only day files are read, see `sizes`. To be collected within `reading`.
    """
    files = _day_files(root / "lake" / table.name / f"tenant_id={tenant_id}", billing_period)
    return pl.scan_parquet(files, hive_partitioning=False, glob=False) if files else empty(table).lazy()


def _day_files(folder: Path, billing_period: str = "*") -> list[Path]:
    found = folder.glob(f"month={billing_period}/*.parquet")
    return sorted(path for path in found if _is_day(path.parent.name, path.name))


def sizes(root: Path, table: Table, tenant_id: str) -> dict[tuple[str, str], int]:
    """(billing period, charge date) -> bytes of every day file of a tenant.

    A file of any other name is none of ours; that it is there is told by the check `files_vs_log`.
    """
    folder = root / "lake" / table.name / f"tenant_id={tenant_id}"
    with _store_errors(folder):
        months = list(os.scandir(folder)) if folder.exists() else []
        return {
            (month.name.removeprefix("month="), day.name.removesuffix(".parquet")): day.stat().st_size
            for month in months
            if month.is_dir()
            for day in os.scandir(month)
            if _is_day(month.name, day.name)
        }


def _is_day(month: str, file: str) -> bool:
    """Whether a file of this name in a folder of that name is a day's."""
    return bool(_MONTH.fullmatch(month) and _DAY.fullmatch(file))


_MONTH, _DAY = re.compile(r"month=\d{4}-\d{2}"), re.compile(r"\d{4}-\d{2}-\d{2}\.parquet")


@contextmanager
def reading(root: Path, table: Table, tenant_id: str) -> Iterator[None]:
    """Within which the rows of `scan` are collected: a file that cannot be read is a StoreError that names it."""
    folder = root / "lake" / table.name / f"tenant_id={tenant_id}"
    with _store_errors(folder):
        try:
            yield
        except pl.exceptions.PolarsError:
            # Polars does not say which of the files it was.
            for file in _day_files(folder):
                with _store_errors(file), pq.ParquetFile(file) as found:
                    for number in range(found.num_row_groups):
                        found.read_row_group(number)
            raise


@contextmanager
def _created(path: Path) -> Iterator[pa.NativeFile]:
    """A new file to write to: durable when the block ends, gone if it fails."""
    try:
        with path.open("wb") as file:
            with pa.OSFile(str(path), "wb") as sink:
                yield sink
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Errors of the file system and of Parquet as a StoreError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        place = getattr(error, "filename2", None) or getattr(error, "filename", None) or path
        raise StoreError(fault(str(place), reason, "a lake that can be read and written")) from error
