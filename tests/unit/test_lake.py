"""The lake: files, digests in footers, publishing by rename, history, and disks that fail."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from engine import lake
from engine.digests import digest
from engine.errors import ContractError, LedgerError, StoreError
from engine.frames import (
    BILLING,
    CHARGEBACK,
    EMPTY_KEYS,
    IDENTITIES,
    KEPT_WHOLE,
    LAKE_TABLES,
    MEASURES,
    RESOURCES,
    Blocks,
    Table,
    decoded,
    empty,
    encoded,
)
from engine.lake import Place
from tests.conftest import SmallDisk
from tests.unit.cases import DAY, HOSTILE, PERIOD, in_blocks, rows

CHECKOUT = Path(lake.__file__).parents[1]
PLACE = Place(CHARGEBACK, "acme", PERIOD, DAY)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lake.create(tmp_path / "data", "acme")
    return tmp_path / "data"


def charges(count: int = 5, amount: str = "1.5") -> pl.DataFrame:
    """Rows of one day, with hostile texts."""
    plain = {"tenant_id": "acme", "billing_period": PERIOD, "currency": "USD", "weight": 1, "weight_total": 1}
    plain |= {"amount": amount, "part_amount": amount}
    return rows(
        CHARGEBACK,
        *(
            {**plain, "line_id": number, "identity_id": f"i{number % 3}", "region": HOSTILE[number % len(HOSTILE)]}
            for number in range(count)
        ),
    )  # fmt: skip


def loosely(frame: pl.DataFrame) -> pl.DataFrame:
    """Encoded, with values in each Enum that no row has."""
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(
        frame[name].cast(pl.Enum(pl.Series([*frame[name], "\x00unused", "\U0010fffd"]).unique().sort()))
        for name in texts
    )


def put(root: Path, frame: pl.DataFrame, calculation_id: str = "c", place: Place = PLACE) -> lake.Written:
    written = lake.write(place.temporary(root), place.table, [frame], calculation_id=calculation_id)
    lake.publish(root, place, written)
    return written


def left(root: Path) -> list[str]:
    """What lies in tmp/ besides folders."""
    return sorted(str(path.relative_to(root)) for path in (root / "tmp").rglob("*") if not path.is_dir())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def versions(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "history").rglob("*.parquet"))


# ------------------------------------------------------------------------------------------------ places


def test_everything_lies_where_the_layout_says() -> None:
    root = Path("/r")
    assert PLACE.path(root) == Path("/r/lake/chargeback/tenant_id=acme/month=2025-09/2025-09-01.parquet")
    assert PLACE.version(root, "d1") == Path("/r/history/chargeback/tenant_id=acme/month=2025-09/2025-09-01/d1.parquet")
    assert PLACE.temporary(root).is_relative_to("/r/tmp")
    assert PLACE.temporary(root).suffix != ".parquet"


@pytest.mark.parametrize("tenant", ["a", "0", "a-b_c", "9" * 63, "parquet", "2025-09"])
def test_no_place_of_a_valid_tenant_leaves_its_root(tenant: str) -> None:
    root = Path("/r")
    for table in (BILLING, CHARGEBACK, EMPTY_KEYS):
        place = Place(table, tenant, PERIOD, DAY)
        paths = [place.path(root), place.version(root, "0" * 64), place.temporary(root)]
        for path, folder in zip(paths, ("lake", "history", "tmp"), strict=True):
            assert Path(os.path.normpath(path)).is_relative_to(root / folder)
            assert f"{tenant}" in str(path)


def test_places_of_two_tenants_tables_periods_and_days_are_apart() -> None:
    places = [
        Place(table, tenant, period, day)
        for table in (BILLING, CHARGEBACK)
        for tenant in ("a", "a-2025", "a-2025-09")
        for period in ("2025-09", "2025-10")
        for day in (DAY, dt.date(2025, 10, 1))
    ]
    for where in (Place.path, Place.temporary, lambda place, root: place.version(root, "d")):
        assert len({where(place, Path("/r")) for place in places}) == len(places)


def test_a_day_of_any_year_has_ten_characters() -> None:
    assert Place(BILLING, "a", "0987-01", dt.date(987, 1, 2)).path(Path("/r")).name == "0987-01-02.parquet"


# ------------------------------------------------------------------------------------------------ create


def test_creating_twice_changes_nothing(root: Path) -> None:
    before = tree(root)
    lake.create(root, "acme")
    assert tree(root) == before
    assert len(before) == len(LAKE_TABLES)


def test_creating_clears_what_a_killed_run_of_this_tenant_left(root: Path) -> None:
    lake.create(root, "acme-2")
    others = Place(CHARGEBACK, "acme-2", PERIOD, DAY).temporary(root)
    for path in (PLACE.temporary(root), PLACE.temporary(root).with_suffix(".loose"), others):
        path.write_bytes(b"torn")
    lake.create(root, "acme")
    assert left(root) == [str(others.relative_to(root))]


@pytest.mark.parametrize("tenant", ["acme", "09", "2025", "empty", "chargeback", "part"])
def test_a_tenant_never_clears_what_another_writes(root: Path, tenant: str) -> None:
    names = ["x-acme", "acme-x", "acme_", "a", "2025-09"]
    for name in names:
        lake.create(root, name)
        Place(CHARGEBACK, name, PERIOD, DAY).temporary(root).write_bytes(b"mine")
    lake.create(root, tenant)
    assert len(left(root)) == len(names)


def test_a_published_day_outlives_another_creation(root: Path) -> None:
    put(root, charges())
    before = tree(root / "lake")
    lake.create(root, "acme")
    lake.create(root, "other")
    assert tree(root / "lake") == before


def test_tenants_may_create_the_store_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        root = tmp_path / str(attempt)
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(lake.create, root, f"t{number}") for number in range(8)]:
                done.result()
        assert len(tree(root)) == len(LAKE_TABLES)


@pytest.mark.parametrize("table", LAKE_TABLES, ids=lambda table: table.name)
def test_a_plain_glob_reads_an_empty_lake(root: Path, table: Table) -> None:
    with duckdb.connect() as connection:
        found = connection.execute(f"describe select * from '{root}/lake/{table.name}/**/*.parquet'").fetchall()
        count = connection.execute(f"select count(*) from '{root}/lake/{table.name}/**/*.parquet'").fetchone()
    assert count == (0,)
    kinds = {
        pl.String(): "VARCHAR",
        pl.Date(): "DATE",
        pl.Datetime("us"): "TIMESTAMP",
        pl.Int16(): "SMALLINT",
        pl.Int64(): "BIGINT",
    }
    month = [("month", "VARCHAR")] if table not in KEPT_WHOLE else []
    assert [(name, kind) for name, kind, *_ in found] == [
        *((name, kinds.get(dtype, "DECIMAL(38,12)")) for name, dtype in table.schema.items()), *month,
    ]  # fmt: skip


def test_a_plain_glob_reads_empty_and_full_files_together(root: Path) -> None:
    put(root, charges(7))
    with duckdb.connect() as connection:
        found = connection.execute(
            f"select tenant_id, month, count(*), sum(amount) from '{root}/lake/chargeback/**/*.parquet' group by all"
        ).fetchall()
    assert [(tenant, month, count, str(total)) for tenant, month, count, total in found] == [
        ("acme", PERIOD, 7, "10.500000000000")
    ]


# ------------------------------------------------------------------------------------------------ write


@pytest.mark.parametrize("table", LAKE_TABLES, ids=lambda table: table.name)
def test_text_is_plain_and_amounts_are_decimals_on_disk(root: Path, table: Table) -> None:
    written = lake.write(root / "tmp" / "acme" / "x.part", table, [encoded(rows(table, {}))])
    arrow = {field.name: field.type for field in pq.read_schema(written.path)}
    kinds = {
        pl.String(): pa.string(),
        pl.Date(): pa.date32(),
        pl.Datetime("us"): pa.timestamp("us"),
        pl.Int16(): pa.int16(),
        pl.Int64(): pa.int64(),
    }
    assert arrow == {name: kinds.get(dtype, pa.decimal128(38, 12)) for name, dtype in table.schema.items()}
    assert pl.read_parquet_schema(written.path) == table.schema
    required = {field.name for field in pq.read_schema(written.path) if not field.nullable}
    assert required == set(table.schema) - table.nullable


def test_what_was_written_is_read_back(root: Path) -> None:
    frame = charges(50)
    written = put(root, frame)
    assert (written.rows, written.size) == (50, PLACE.path(root).stat().st_size)
    assert_frame_equal(lake.read(root, PLACE), frame)
    assert lake.footer(PLACE.path(root)) == (written.digest, "c") == (digest(frame, CHARGEBACK), "c")
    assert left(root) == []


def test_the_largest_and_the_smallest_numbers_are_read_back(root: Path) -> None:
    extremes = ["99999999999999999999999999.999999999999", "-99999999999999999999999999.999999999999", "0.000000000001"]
    frame = rows(
        CHARGEBACK,
        *({"line_id": line, "amount": amount, "part_amount": amount, "weight": 2**62 - 1, "list_amount": amount}
          for line, amount in zip([-(2**63), 0, 2**63 - 1], extremes, strict=True)),
    )  # fmt: skip
    put(root, frame)
    assert_frame_equal(lake.read(root, PLACE), frame)


def test_the_same_rows_give_the_same_bytes_however_they_come(root: Path) -> None:
    frame = charges(40)
    forms: dict[str, pl.DataFrame] = {
        "text": frame,
        "codes": encoded(frame),
        "codes with values to spare": loosely(frame),
        "some of both": encoded(frame, ["identity_id", "region"]),
        "in pieces": pl.concat([frame.slice(0, 11), frame.slice(11)], rechunk=False),
        "part of a larger frame": pl.concat([frame, frame]).slice(40),
    }
    found = {}
    for name, form in forms.items():
        written = lake.write(PLACE.temporary(root), CHARGEBACK, [form], calculation_id="c")
        found[name] = (
            written.digest,
            written.rows,
            written.size,
            hashlib.sha256(written.path.read_bytes()).hexdigest(),
        )
    assert set(found.values()) == {found["text"]}, found
    assert found["text"][0] == digest(frame, CHARGEBACK)


@pytest.mark.parametrize("lengths", [(1,), (13, 14), (0, 39), (39,)])
def test_chunks_do_not_change_the_digest_nor_spare_values_the_bytes(root: Path, lengths: tuple[int, ...]) -> None:
    frame = charges(40)

    def chunks(form: pl.DataFrame) -> Iterator[pl.DataFrame]:
        offset = 0
        for length in (*lengths, 40 - sum(lengths)):
            yield form.slice(offset, length)
            offset += length

    exact = lake.write(PLACE.temporary(root), CHARGEBACK, chunks(encoded(frame)))
    content = exact.path.read_bytes()
    loose = lake.write(PLACE.temporary(root), CHARGEBACK, chunks(loosely(frame)))
    assert loose == exact
    assert loose.path.read_bytes() == content
    assert exact.digest == digest(frame, CHARGEBACK)
    assert_frame_equal(pl.read_parquet(exact.path), frame)
    assert left(root) == [str(PLACE.temporary(root).relative_to(root))]


def test_a_file_depends_on_its_rows_and_not_on_what_was_there_before(root: Path) -> None:
    first = lake.write(PLACE.temporary(root), CHARGEBACK, [charges(9)])
    content = first.path.read_bytes()
    lake.write(PLACE.temporary(root), CHARGEBACK, [charges(1000, "7")])
    assert lake.write(PLACE.temporary(root), CHARGEBACK, [charges(9)]).path.read_bytes() == content


def test_blocks_make_the_same_file(root: Path) -> None:
    of_nine = charges(10)[pl.int_range(90, eager=True) // 9]
    frame = encoded(of_nine.with_columns(charges(90).select("identity_id").get_columns()))
    plain = lake.write(PLACE.temporary(root), CHARGEBACK, [frame.head(45), frame.slice(45)])
    content = plain.path.read_bytes()
    blocks = [in_blocks(piece, CHARGEBACK) for piece in (frame.head(45), frame.slice(45))]
    assert all(piece.starts.len() == 5 for piece in blocks)
    # A measure that no row has may be told of a block.
    unfilled = frame.head(5).select(MEASURES[1:])
    assert unfilled.null_count().sum_horizontal().item() == 15
    told = [name for name in CHARGEBACK.columns if name in {*blocks[1].steady.columns, *unfilled.columns}]
    of_block = blocks[1].steady.hstack(unfilled).select(told)
    blocks[1] = blocks[1]._replace(varied=blocks[1].varied.drop(unfilled.columns), steady=of_block)
    found = lake.write(PLACE.temporary(root), CHARGEBACK, blocks)
    assert found == plain
    assert found.path.read_bytes() == content


def test_thousands_of_values_in_several_row_groups_are_read_back(root: Path) -> None:
    """More values than a dictionary is written with whole: each row group then has its own."""
    count = 5000
    frame = charges(count).with_columns(
        resource_id=pl.format("i-{}\u00e9", pl.int_range(count).reverse()),
        invoice_id=pl.format("{}", pl.int_range(count) % 1025),
    )
    codes = encoded(frame)
    written = lake.write(
        PLACE.temporary(root), CHARGEBACK, [codes.slice(0, 10), codes.slice(10, 2000), codes.slice(2010)]
    )
    assert pq.read_metadata(written.path).num_row_groups == 3
    assert_frame_equal(pl.read_parquet(written.path), frame)
    lake.publish(root, PLACE, written)
    assert_frame_equal(lake.read_encoded(root, PLACE), codes)
    assert written.digest == digest(frame, CHARGEBACK)
    loose = lake.write(PLACE.temporary(root), CHARGEBACK, [loosely(frame)])
    assert_frame_equal(pl.read_parquet(loose.path), frame)
    assert loose.digest == written.digest


@pytest.mark.parametrize(
    "chunks", [[], [empty(CHARGEBACK)], [encoded(empty(CHARGEBACK))] * 2], ids=["none", "empty", "two"]
)
def test_no_rows_are_a_file_without_rows(root: Path, chunks: list[pl.DataFrame]) -> None:
    written = lake.write(PLACE.temporary(root), CHARGEBACK, chunks)
    assert written.rows == 0
    assert written.digest == digest(empty(CHARGEBACK), CHARGEBACK)
    assert pl.read_parquet(written.path).schema == empty(CHARGEBACK).schema
    lake.publish(root, PLACE, written)
    assert_frame_equal(lake.read_encoded(root, PLACE), encoded(empty(CHARGEBACK)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows.drop(["region"]),
        lambda rows: rows.rename_columns(["x" if name == "region" else name for name in rows.column_names]),
        lambda rows: rows.set_column(5, "ecosystem", rows["ecosystem"].cast(pa.binary())),
        lambda rows: rows.set_column(5, "ecosystem", pa.array([["a"]] * rows.num_rows)),
        lambda rows: rows.set_column(5, "ecosystem", pa.array([*["a"] * (rows.num_rows - 1), None])),
        lambda rows: rows.set_column(5, "ecosystem", pa.array(range(rows.num_rows))),
        lambda rows: rows.select(rows.column_names[::-1]),
        lambda rows: rows,
    ],
    ids=["missing", "other name", "bytes", "lists", "null", "numbers", "order", "of another library"],
)
def test_a_file_that_is_not_ours_is_read_as_text_or_refused_as_ever(
    root: Path, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    put(root, charges(40))
    path = PLACE.path(root)
    rows = pq.read_table(path, partitioning=None)
    assert rows.column_names[5] == "ecosystem"
    pq.write_table(spoil(rows), path, store_schema=spoil(rows) is rows)

    def outcome(read: Callable[[Path, Place], pl.DataFrame]) -> pl.DataFrame | str:
        try:
            return decoded(read(root, PLACE).lazy()).collect()
        except ContractError as error:
            return "; ".join(error.faults)

    text, codes = outcome(lake.read), outcome(lake.read_encoded)
    if isinstance(text, str) or isinstance(codes, str):
        assert text == codes
    else:
        assert_frame_equal(text, codes)


def test_text_that_is_no_utf_8_is_refused_however_it_is_read(root: Path) -> None:
    put(root, charges(40).with_columns(region=pl.lit("eu-central-1")))
    path = PLACE.path(root)
    content = path.read_bytes()
    assert content.count(b"eu-central-1") == 1
    path.write_bytes(content.replace(b"eu-central-1", b"eu-c\xffntral-1"))
    for read in (lake.read, lake.read_encoded):
        with pytest.raises(StoreError, match=r"(?i)utf-8") as caught:
            read(root, PLACE)
        assert str(path) in str(caught.value)


def spoiled_by(error: Exception) -> Iterator[pl.DataFrame]:
    yield charges()
    raise error


@pytest.mark.parametrize(
    "error",
    [
        LedgerError("here: it; expected that"),
        pl.exceptions.ComputeError("a bug"),
        OSError(5, "not the lake's"),
        ValueError("x"),
    ],
)
def test_an_error_in_making_rows_passes_as_it_is_and_leaves_nothing(root: Path, error: Exception) -> None:
    """An error of the kernel or of its input is not one of the disk: it has another exit code and another culprit."""
    with pytest.raises(type(error)) as caught:
        lake.write(PLACE.temporary(root), CHARGEBACK, spoiled_by(error))
    assert caught.value is error
    assert left(root) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame.drop("rung"),
        lambda frame: frame.with_columns(weight=pl.lit(1.0)),
        lambda frame: frame.select(reversed(frame.columns)),
        lambda frame: frame.with_columns(more=pl.lit(1)),
        lambda frame: frame.with_columns(amount=pl.lit(None, frame.schema["amount"])),
        lambda frame: frame.with_columns(region=pl.lit(None, pl.String)),
        lambda frame: encoded(frame).with_columns(region=pl.lit(None, pl.Enum([""]))),
        lambda frame: frame.with_columns(line_id=pl.lit(None, pl.Int64)),
    ],
    ids=["missing", "float", "order", "more", "null amount", "null text", "null code", "null key"],
)
def test_rows_that_are_not_the_tables_are_refused_and_leave_nothing(
    root: Path, spoil: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    with pytest.raises((ContractError, LedgerError)):
        lake.write(PLACE.temporary(root), CHARGEBACK, [spoil(charges())])
    assert left(root) == []


def in_another_chunk(spoil: Callable[[Blocks], Blocks]) -> list[Blocks]:
    sound = in_blocks(encoded(charges()), CHARGEBACK)
    return [sound, spoil(sound)]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda some: some._replace(steady=some.steady.drop("rung")), "missing column.*: rung"),
        (lambda some: some._replace(varied=some.varied.drop("weight")), "missing column.*: weight"),
        (lambda some: some._replace(varied=some.varied.with_columns(more=1)), "extra column.*: more"),
        (lambda some: some._replace(steady=some.steady.with_columns(weight=1)), "extra column.*: weight"),
        (lambda some: some._replace(steady=some.steady.cast({"rung": pl.Int64})), "column rung: dtype Int64"),
        (lambda some: some._replace(steady=some.steady.with_columns(rung=pl.lit(None, pl.Int16))), "rung: null"),
        (lambda some: some._replace(varied=some.varied.with_columns(weight=pl.lit(None, pl.Int64))), "weight: null"),
    ],
)
def test_blocks_that_are_not_the_tables_are_refused_and_leave_nothing(
    root: Path, spoil: Callable[[Blocks], Blocks], told: str
) -> None:
    with pytest.raises(ContractError, match=told):
        lake.write(PLACE.temporary(root), CHARGEBACK, in_another_chunk(spoil))
    assert left(root) == []


def test_chunks_of_other_encodings_are_refused_and_leave_nothing(root: Path) -> None:
    with pytest.raises(LedgerError, match="chunks with different encodings"):
        lake.write(PLACE.temporary(root), CHARGEBACK, [charges(1), charges(2)])
    assert left(root) == []


# ------------------------------------------------------------------------------------------------ publish


def test_publishing_the_same_again_touches_nothing(root: Path) -> None:
    put(root, charges())
    before = PLACE.path(root).stat()
    put(root, charges())
    after = PLACE.path(root).stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert versions(root) == []
    assert left(root) == []


def test_what_is_replaced_goes_to_history_once(root: Path) -> None:
    one, other = charges(5), charges(6)
    first = put(root, one)
    content = PLACE.path(root).read_bytes()
    second = put(root, other)
    assert versions(root) == [first.digest]
    assert PLACE.version(root, first.digest).read_bytes() == content
    assert_frame_equal(lake.read(root, PLACE), other)
    for _ in range(2):
        put(root, one)
        put(root, other)
    assert versions(root) == sorted([first.digest, second.digest])
    assert PLACE.version(root, first.digest).read_bytes() == content
    assert left(root) == []


def test_another_calculation_of_the_same_rows_takes_their_place(root: Path) -> None:
    written = put(root, charges(), "one")
    put(root, charges(), "two")
    assert lake.footer(PLACE.path(root)) == (written.digest, "two")
    assert lake.footer(PLACE.version(root, written.digest)) == (written.digest, "one")


def test_withdrawing_leaves_no_file_and_keeps_the_version(root: Path) -> None:
    written = put(root, charges())
    lake.withdraw(root, PLACE)
    assert not PLACE.path(root).exists()
    assert versions(root) == [written.digest]
    lake.withdraw(root, PLACE)
    assert versions(root) == [written.digest]
    put(root, charges())
    lake.withdraw(root, PLACE)
    assert versions(root) == [written.digest]


def test_withdrawing_what_never_was_is_nothing(root: Path) -> None:
    before = tree(root)
    lake.withdraw(root, Place(BILLING, "acme", "1999-01", dt.date(1999, 1, 1)))
    assert tree(root) == before


def test_a_crash_after_the_version_was_kept_is_made_good(root: Path) -> None:
    """Killed between the link into history and the rename: the next run publishes as if nothing had been."""
    first = put(root, charges(5))
    kept = PLACE.version(root, first.digest)
    kept.parent.mkdir(parents=True)
    kept.hardlink_to(PLACE.path(root))
    put(root, charges(6))
    assert versions(root) == [first.digest]
    assert lake.read(root, PLACE).height == 6
    assert lake.footer(kept) == (first.digest, "c")


def test_a_file_that_is_not_ours_is_kept_by_its_bytes(root: Path) -> None:
    charges().write_parquet(PLACE.path(root), mkdir=True)
    content = PLACE.path(root).read_bytes()
    assert lake.footer(PLACE.path(root)) == ("", "")
    put(root, charges())
    assert versions(root) == [hashlib.sha256(content).hexdigest()]


TORN = [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\x00" * 100 + b"PAR1"]


@pytest.mark.parametrize("content", [*TORN, "cut"], ids=["empty", "magic", "text", "zeros", "cut"])
def test_a_torn_file_is_replaced_and_kept_by_its_bytes(root: Path, content: bytes | str) -> None:
    """What a full disk or a bad one left in the place of a day: a run must be able to put the day right again."""
    put(root, charges())
    torn = content if isinstance(content, bytes) else PLACE.path(root).read_bytes()[:-9]
    PLACE.path(root).write_bytes(torn)
    put(root, charges())
    assert_frame_equal(lake.read(root, PLACE), charges())
    assert hashlib.sha256(torn).hexdigest() in versions(root)
    PLACE.path(root).write_bytes(torn)
    lake.withdraw(root, PLACE)
    assert not PLACE.path(root).exists()


def test_a_torn_current_file_is_replaced(root: Path) -> None:
    frame = rows(IDENTITIES, {"tenant_id": "acme", "id": "a"})
    lake.put_current(root, IDENTITIES, "acme", frame)
    target = root / "lake/identities/tenant_id=acme/current.parquet"
    target.write_bytes(b"PAR1")
    lake.put_current(root, IDENTITIES, "acme", frame)
    assert_frame_equal(pl.read_parquet(target), frame)


# ------------------------------------------------------------------------------------------------ the rest of it


def test_the_current_file_is_replaced_only_by_another(root: Path) -> None:
    for table in (IDENTITIES, RESOURCES):
        target = root / f"lake/{table.name}/tenant_id=acme/current.parquet"
        lake.put_current(root, table, "acme", rows(table, {"tenant_id": "acme", "id": "a"}))
        first = target.stat().st_ino
        lake.put_current(root, table, "acme", rows(table, {"tenant_id": "acme", "id": "a"}))
        assert target.stat().st_ino == first
        lake.put_current(root, table, "acme", rows(table, {"tenant_id": "acme", "id": "b"}))
        assert pl.read_parquet(target)["id"].to_list() == ["b"]
    assert left(root) == []
    assert versions(root) == []


def test_a_scan_reads_a_tenants_periods_in_order_and_nobody_elses(root: Path) -> None:
    def day(tenant: str, period: str, date: dt.date) -> None:
        frame = charges(2).with_columns(
            tenant_id=pl.lit(tenant), billing_period=pl.lit(period), charge_date=pl.lit(date)
        )
        put(root, frame, place=Place(CHARGEBACK, tenant, period, date))

    lake.create(root, "acme-2")
    for period, date in (
        ("2025-10", dt.date(2025, 10, 1)),
        ("2025-09", dt.date(2025, 9, 2)),
        ("2025-09", dt.date(2025, 9, 1)),
        ("2025-10", dt.date(2025, 9, 30)),
    ):
        day("acme", period, date)
    day("acme-2", "2025-09", DAY)

    def seen(*given: str) -> list[tuple[str, str]]:
        found = (
            lake.scan(root, CHARGEBACK, *given)
            .select("billing_period", pl.col("charge_date").cast(pl.String))
            .collect()
        )
        return list(dict.fromkeys(found.rows()))

    assert seen("acme") == [
        ("2025-09", "2025-09-01"),
        ("2025-09", "2025-09-02"),
        ("2025-10", "2025-09-30"),
        ("2025-10", "2025-10-01"),
    ]
    assert seen("acme", "2025-09") == [("2025-09", "2025-09-01"), ("2025-09", "2025-09-02")]
    assert seen("nobody") == []
    assert lake.scan(root, CHARGEBACK, "nobody").collect_schema() == CHARGEBACK.schema
    assert set(lake.sizes(root, CHARGEBACK, "acme")) == set(seen("acme"))
    assert lake.sizes(root, CHARGEBACK, "nobody") == {}
    assert lake.sizes(root, CHARGEBACK, "acme-2") == {
        (PERIOD, "2025-09-01"): Place(CHARGEBACK, "acme-2", PERIOD, DAY).path(root).stat().st_size
    }


@pytest.mark.parametrize(
    "name", ["sp ace", "da[t]a", "st*r", "?", "{a,b}", "100%25", "#1", "it's", "tenant_id=x", "d\u00e9"]
)
def test_a_root_of_any_name_is_this_folder_and_no_other(tmp_path: Path, name: str) -> None:
    """What a path holds is not a pattern: beside `st*r` there may be a `star`."""
    for folder, amount in (("star", "1"), ("a", "2"), (name, "3")):
        lake.create(tmp_path / folder, "acme")
        frame = charges(9, amount)
        written = lake.write(PLACE.temporary(tmp_path / folder), CHARGEBACK, [loosely(frame)])
        lake.publish(tmp_path / folder, PLACE, written)
        assert_frame_equal(lake.read(tmp_path / folder, PLACE), frame)
        assert_frame_equal(lake.scan(tmp_path / folder, CHARGEBACK, "acme").collect(), frame)


# ------------------------------------------------------------------------------------------------ what fails


def one_line(error: StoreError) -> str:
    (line,) = error.faults
    assert line.isprintable()
    assert len(line) < 1000
    assert line.endswith("; expected a lake that can be read and written")
    return line


def test_a_day_that_is_not_there_cannot_be_read(root: Path) -> None:
    with pytest.raises(StoreError, match="No such file") as caught:
        lake.read(root, PLACE)
    assert one_line(caught.value).startswith(f"{PLACE.path(root)}: ")


@pytest.mark.parametrize("content", TORN, ids=["empty", "magic", "text", "zeros"])
def test_a_torn_file_is_one_line(root: Path, content: bytes) -> None:
    PLACE.path(root).parent.mkdir(parents=True)
    PLACE.path(root).write_bytes(content)
    for look in (
        lambda: lake.read(root, PLACE),
        lambda: lake.read_encoded(root, PLACE),
        lambda: lake.footer(PLACE.path(root)),
    ):
        with pytest.raises(StoreError) as caught:
            look()
        assert one_line(caught.value).startswith(f"{PLACE.path(root)}: ")


def test_a_file_cut_in_its_middle_is_one_line(root: Path) -> None:
    put(root, charges(2000))
    content = PLACE.path(root).read_bytes()
    PLACE.path(root).write_bytes(content[:1000] + content[1500:])
    for read in (lake.read, lake.read_encoded):
        with pytest.raises(StoreError) as caught:
            read(root, PLACE)
        one_line(caught.value)


def test_a_file_of_another_table_is_told(root: Path) -> None:
    PLACE.path(root).parent.mkdir(parents=True)
    charges().drop("rung").write_parquet(PLACE.path(root))
    with pytest.raises(ContractError, match=r"2025-09-01.parquet: table chargeback: 1 missing column\(s\): rung"):
        lake.read(root, PLACE)


def test_a_folder_in_the_place_of_a_file_is_one_line(root: Path) -> None:
    PLACE.path(root).mkdir(parents=True)
    for act in (lambda: put(root, charges()), lambda: lake.withdraw(root, PLACE), lambda: lake.read(root, PLACE)):
        with pytest.raises(StoreError) as caught:
            act()
        one_line(caught.value)
    PLACE.temporary(root).unlink(missing_ok=True)
    PLACE.temporary(root).mkdir()
    with pytest.raises(StoreError) as caught:
        lake.write(PLACE.temporary(root), CHARGEBACK, [charges()])
    one_line(caught.value)


@pytest.mark.parametrize("place", ["", "lake", "tmp", "tmp/acme", "lake/billing"])
def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path, place: str) -> None:
    target = tmp_path / "data" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("in the way")
    with pytest.raises(StoreError) as caught:
        lake.create(tmp_path / "data", "acme")
    one_line(caught.value)
    assert target.read_text() == "in the way"


def test_a_folder_in_tmp_does_not_stop_the_next_run(root: Path) -> None:
    (root / "tmp" / "acme" / "folder").mkdir()
    try:
        lake.create(root, "acme")
    except StoreError as error:
        one_line(error)


def test_a_store_without_tmp_is_one_line(root: Path) -> None:
    (root / "tmp" / "acme").rmdir()
    with pytest.raises(StoreError, match="No such file or directory") as caught:
        put(root, charges())
    one_line(caught.value)


# ------------------------------------------------------------------------------------------------ disks that refuse

ACTIONS = """
import ctypes, datetime, os, sys
from pathlib import Path
import polars as pl
from engine import lake
from engine.errors import StoreError
from engine.frames import CHARGEBACK

place = lake.Place(CHARGEBACK, "acme", "2025-09", datetime.date(2025, 9, 1))

def rows(count):
    plain = {pl.String(): "", pl.Date(): place.charge_date}
    made = {name: pl.lit(plain.get(dtype, 0)).cast(dtype) for name, dtype in CHARGEBACK.schema.items()}
    made["line_id"] = pl.int_range(count)
    made["invoice_id"] = pl.int_range(count).hash(7).cast(pl.String)
    return pl.select(pl.struct(**made)).to_series().struct.unnest().select(CHARGEBACK.columns)

def act(root, action, count):
    if action == "create":
        lake.create(root, "other")
    elif action == "withdraw":
        lake.withdraw(root, place)
    else:
        spare = {"operation": pl.Enum(["", "unused"])} if action == "put loose" else {}
        lake.publish(root, place, lake.write(place.temporary(root), CHARGEBACK, [rows(count).cast(spare)]))

def told(root, action, count=9):
    try:
        act(root, action, count)
    except StoreError as error:
        print(error)
    else:
        print("done")
"""
"""What a process does to a store that may refuse: each action is one line of its output, `done` or the error."""


def child(script: str, *arguments: str | Path) -> list[str | Path]:
    """A command that runs a script, wherever it is started."""
    command = [sys.executable, "-W", "error", "-c", ACTIONS + script, *arguments]
    return ["env", "-C", CHECKOUT, f"PYTHONPATH={CHECKOUT}", *command]


UNWRITABLE = """
# 24 PR_CAPBSET_DROP, 1 CAP_DAC_OVERRIDE: after the exec root is bound by the modes of files like anybody else.
if sys.argv[1] != "bound":
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
    script = sys.orig_argv.index("-c") + 2
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:script], "bound", *sys.argv[1:]])
root = Path(sys.argv[2])
for case in sys.argv[3:]:
    folder, _, action = case.partition(":")
    (root / folder).chmod(0o555)
    told(root, action)
    (root / folder).chmod(0o755)
"""


def test_folders_that_may_not_be_written_are_one_line_each_and_nothing_changes(root: Path) -> None:
    put(root, charges(3))
    (root / "history").mkdir()
    before = tree(root / "lake")
    month = "lake/chargeback/tenant_id=acme/month=2025-09"
    cases = [
        "tmp:create", "tmp/acme:put", "tmp/acme:put loose", "history:put", "history:withdraw", f"{month}:put",
        f"{month}:withdraw",
    ]  # fmt: skip
    finished = subprocess.run(child(UNWRITABLE, root, *cases), capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    for case, line in zip(cases, finished.stdout.splitlines(), strict=True):
        folder = case.partition(":")[0]
        assert f"{root / folder}" in line, "where it may not be written"
        assert line.endswith(": Permission denied; expected a lake that can be read and written"), line
    assert tree(root / "lake") == before


FULL = "told(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"


@pytest.mark.parametrize(
    ("action", "count"),
    [("put", 50_000), ("put loose", 50_000), ("put loose", 20_000)],
    ids=["plain", "loose", "loose again"],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    root: Path, on_small_disk: SmallDisk, action: str, count: int
) -> None:
    """In the last case the file fits once, but not a second time with its values cut to those that occur."""
    put(root, charges(3))
    before = tree(root)
    finished = on_small_disk(root, "640k", child(FULL, root, action, str(count)))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"{root}/tmp/acme/"), finished.stdout
    assert finished.stdout.endswith(" No space left on device; expected a lake that can be read and written\n")
    assert finished.stdout.count("\n") == 1
    assert tree(root) == before
    assert lake.read(root, PLACE).height == 3


def test_a_disk_that_is_just_large_enough_is_written(root: Path, on_small_disk: SmallDisk) -> None:
    """The disk of the test above does hold the file of its last case once."""
    finished = on_small_disk(root, "640k", child(FULL, root, "put", "20000"))
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "done\n", "")
    assert lake.read(root, PLACE).height == 20_000
    assert PLACE.path(root).stat().st_size > 200_000
