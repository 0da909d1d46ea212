"""Digests: the same for the same content, another for any other, and as their definition says."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine import digests
from engine.digests import Digest, as_arrow, digest
from engine.errors import LedgerError
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, RULES, Blocks, Table, categories, encoded
from tests.unit.cases import HOSTILE, amounts, rows

TABLES = (BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, RULES)


def table_rows(table: Table, count: int = 7, seed: int = 0) -> pl.DataFrame:
    """Rows with a few different values in every column, nulls where there may be some."""
    random_ = random.Random(seed)
    values: dict[str, list[Any]] = {}
    for name, dtype in table.schema.items():
        if dtype == pl.String():
            drawn: list[Any] = [random_.choice(HOSTILE) for _ in range(count)]
        elif dtype == pl.Date():
            drawn = [dt.date(1969, 12, 30) + dt.timedelta(random_.randrange(4)) for _ in range(count)]
        elif dtype == pl.Datetime("us"):
            drawn = [dt.datetime(1969, 12, 31, 23, 59, 59, random_.randrange(9)) for _ in range(count)]
        elif isinstance(dtype, pl.Decimal):
            drawn = [f"{random_.randrange(-3, 3)}.{random_.randrange(3)}" for _ in range(count)]
        else:
            drawn = [random_.randrange(-3, 3) for _ in range(count)]
        values[name] = [None if name in table.nullable and random_.random() < 0.3 else value for value in drawn]
    return rows(table, *(dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)))


def in_chunks(frame: pl.DataFrame, table: Table, *lengths: int) -> str | None:
    """The digest of an encoded frame fed in pieces of these lengths and the rest."""
    state, offset = Digest(table), 0
    for length in (*lengths, frame.height - sum(lengths)):
        state.update(as_arrow(frame.slice(offset, length)))
        offset += length
    return state.hexdigest()


# ------------------------------------------------------------------------------------------------ the definition


def physical(value: Any) -> Any:
    """Days, or microseconds, since 1970; what is a number already stays."""
    if isinstance(value, dt.datetime):
        return (value - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
    return (value - dt.date(1970, 1, 1)).days if isinstance(value, dt.date) else value


def streams(values: list[Any], width: int, *, runs: bool, signed: bool = True) -> list[bytes]:
    """The bytes of integers: of all of them, or as runs, of those that differ from the one before and their places."""
    starts = [place for place, value in enumerate(values) if not place or value != values[place - 1]]
    chosen = [values[place] for place in starts] if runs else values
    found = [b"".join(value.to_bytes(width, "little", signed=signed) for value in chosen)]
    return [*found, b"".join(place.to_bytes(8, "little") for place in starts)] if runs else found


def text_streams(values: list[str], *, runs: bool) -> list[bytes]:
    """The streams of text without nulls."""
    distinct = sorted(set(values), key=str.encode)
    place, count = {value: number for number, value in enumerate(distinct)}, len(distinct)
    width = 1 if count <= 256 else 2 if count <= 65536 else 4
    codes = streams([place[value] for value in values], width, runs=runs, signed=False)
    return [*codes, b"".join(f"{len(text.encode())}:{text}".encode() for text in distinct)]


def number_streams(values: list[Any], dtype: pl.DataType, *, runs: bool) -> list[bytes]:
    """The streams of numbers and dates without nulls."""
    if isinstance(dtype, pl.Decimal):
        units = [int(Fraction(value) * 10**12) for value in values]
        low = streams([number % 2**64 for number in units], 8, runs=runs, signed=False)
        return [*low, *streams([number // 2**64 for number in units], 8, runs=True)]
    widths = {pl.Int16(): 2, pl.Int64(): 8, pl.Date(): 4, pl.Datetime("us"): 8}
    return streams([physical(value) for value in values], widths[dtype], runs=runs)


def defined(frame: pl.DataFrame, table: Table) -> str:
    """The digest, from its definition, in plain Python."""
    text = f"rows={frame.height}\n"
    for name, dtype in table.schema.items():
        if name == "calculation_id":
            continue
        values, runs = frame[name].to_list(), name not in table.varied
        nulls = streams([value is None for value in values], 1, runs=True) if name in table.nullable else []
        given = [value for value in values if value is not None]
        content = text_streams(given, runs=runs) if dtype == pl.String() else number_streams(given, dtype, runs=runs)
        text += f"{name}={''.join(hashlib.sha256(stream).hexdigest() for stream in nulls + content)}\n"
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_digest_is_what_its_definition_says(table: Table, seed: int) -> None:
    frame = table_rows(table, count=50, seed=seed)
    assert digest(frame, table) == defined(frame, table)
    assert digest(frame.clear(), table) == defined(frame.clear(), table)
    assert digest(frame.head(1), table) == defined(frame.head(1), table)


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 65535, 65536, 65537])
def test_many_values_are_digested_as_the_definition_says(count: int) -> None:
    table = Table("t", {"t": pl.String()}, ("t",))
    frame = pl.DataFrame({"t": [f"{number * 7919 % count:x}" for number in range(count)]}, schema={"t": pl.String})
    assert frame["t"].n_unique() == count
    assert digest(frame, table) == defined(frame, table)
    assert in_chunks(encoded(frame), table, count // 3, count // 3) == defined(frame, table)


def test_the_largest_numbers_are_digested_in_full() -> None:
    frame = table_rows(BILLING, 2).with_columns(
        line_id=pl.Series([2**63 - 1, -(2**63)]),
        amount=amounts("99999999999999999999999999.999999999999", "-99999999999999999999999999.999999999999"),
    )
    assert digest(frame, BILLING) == defined(frame, BILLING)


# ------------------------------------------------------------------------------------------------ the same


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_how_content_lies_in_memory_does_not_matter(table: Table) -> None:
    frame = table_rows(table, 60)
    expected = digest(frame, table)
    codes = encoded(frame)
    assert digest(codes, table) == expected
    scattered = pl.concat([frame.slice(0, 7), frame.slice(7, 1), frame.slice(8)], rechunk=False)
    assert digest(scattered, table) == expected
    assert digest(pl.concat([frame, frame]).slice(60), table) == expected
    assert digest(pl.concat([frame.head(3), frame]).slice(3, 60), table) == expected
    loose = codes.with_columns(
        codes[name].cast(pl.String).cast(pl.Enum([*categories(codes[name]), "\uffffunused"]))
        for name in codes.columns
        if isinstance(codes.schema[name], pl.Enum)
    )
    assert digest(loose, table) == expected


@pytest.mark.parametrize("lengths", [(), (1,), (0, 59, 0), (9, 8, 7), (8, 8, 8, 8), (33, 1)])
def test_chunks_together_are_the_whole(lengths: tuple[int, ...]) -> None:
    for table in TABLES:
        frame = table_rows(table, 60)
        assert in_chunks(encoded(frame), table, *lengths) == digest(frame, table)


def test_what_made_a_row_is_left_out() -> None:
    frame = table_rows(CHARGEBACK)
    assert digest(frame.with_columns(calculation_id=pl.lit("another")), CHARGEBACK) == digest(frame, CHARGEBACK)
    assert frozenset({"calculation_id"}) == digests.UNDIGESTED


def test_dates_integers_and_flags_of_any_width_are_digested() -> None:
    frame = pl.DataFrame(
        {"a": [1, None], "b": [True, None], "c": [2**100, None], "d": [dt.date(2025, 9, 1), None]},
        schema={"a": pl.Int8, "b": pl.Boolean, "c": pl.Int128, "d": pl.Date},
    )
    found = {digest(frame), digest(frame.reverse()), digest(frame.with_columns(b=pl.Series([False, None])))}
    assert len(found) == 3


RUN = """
import hashlib, sys
import polars as pl
from engine import frames
from engine.digests import digest
from tests.unit.test_digests import table_rows
rows = pl.concat([table_rows(frames.CHARGEBACK, 50)] * 2000)
print(pl.thread_pool_size(), hash("x"), digest(rows, frames.CHARGEBACK))
"""


def test_processes_threads_and_hash_seeds_do_not_matter() -> None:
    found = []
    for threads, seed in (("1", "0"), ("2", "1"), ("2", "12345")):
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", RUN],
            cwd=Path(digests.__file__).parents[1],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(finished.stdout.split())
    assert [threads for threads, _, _ in found] == ["1", "2", "2"]
    assert len({seed for _, seed, _ in found}) == 3
    assert len({value for _, _, value in found}) == 1


# ------------------------------------------------------------------------------------------------ another

OTHER = {
    pl.String(): "other",
    pl.Date(): dt.date(1999, 9, 9),
    pl.Datetime("us"): dt.datetime(1999, 9, 9),
    pl.Int16(): 77,
    pl.Int64(): 77,
}


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_cell_counts(table: Table, place: int) -> None:
    frame = table_rows(table)
    seen = {digest(frame, table)}
    columns = [name for name in table.columns if name != "calculation_id"]
    for name in columns:
        other = amounts("77")[0] if isinstance(table.schema[name], pl.Decimal) else OTHER[table.schema[name]]
        here = pl.int_range(pl.len()) == place
        value = pl.lit(other).cast(table.schema[name])
        seen.add(digest(frame.with_columns(pl.when(here).then(value).otherwise(pl.col(name)).alias(name)), table))
    assert len(seen) == len(columns) + 1


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_null_is_not_zero_and_not_absent(table: Table) -> None:
    frame = table_rows(table)
    for name in table.nullable:
        zero = pl.lit(dt.date(1970, 1, 1)) if table.schema[name] == pl.Date() else pl.lit(0).cast(table.schema[name])
        first, second = (pl.int_range(pl.len()) == place for place in (0, 1))
        frames = [
            frame.with_columns(zero.alias(name)),
            frame.with_columns(pl.when(first).then(None).otherwise(zero).alias(name)),
            frame.with_columns(pl.when(second).then(None).otherwise(zero).alias(name)),
            frame.with_columns(pl.lit(None, table.schema[name]).alias(name)),
        ]
        assert len({digest(other, table) for other in frames}) == 4


def test_the_order_of_rows_counts() -> None:
    frame = table_rows(CHARGEBACK)
    assert digest(frame.reverse(), CHARGEBACK) != digest(frame, CHARGEBACK)


def test_rows_more_or_fewer_count() -> None:
    constant = rows(CHARGEBACK, *[{}] * 3)
    assert len({digest(constant.head(count), CHARGEBACK) for count in range(4)}) == 4


def test_names_of_columns_count_and_their_order() -> None:
    frame = pl.DataFrame({"a": ["x"], "b": ["x"]})
    assert (
        len(
            {digest(frame), digest(frame.rename({"a": "c"})), digest(frame.select("b", "a")), digest(frame.select("a"))}
        )
        == 4
    )


def test_a_table_takes_its_columns_wherever_they_stand() -> None:
    frame = table_rows(RULES)
    turned = frame.select(reversed(frame.columns)).with_columns(more=pl.lit("x"))
    assert digest(turned, RULES) == digest(frame, RULES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["b", "a"]),
        (["a", "a"], ["a", "b"]),
        (["ab", "c"], ["a", "bc"]),
        (["a", "1:b"], ["a1:b", ""]),
        (["1:a", "1:b"], ["1:a1:b", "1:a1:b"]),
        (["", ""], ["0:", "0:"]),
        (["a"], ["a", "a"]),
        (["\u00e9"], ["e\u0301"]),
        (["x"], ["X"]),
        (["x\x00"], ["x"]),
        (["\\N"], [""]),
    ],
)
def test_texts_that_imitate_others_are_others(one: list[str], other: list[str]) -> None:
    assert digest(pl.DataFrame({"t": one})) != digest(pl.DataFrame({"t": other}))


def test_a_text_in_another_column_is_another_content() -> None:
    frame = pl.DataFrame({"a": ["x", "y"], "b": ["y", "x"]})
    assert digest(frame) != digest(frame.select(a="b", b="a"))


# ------------------------------------------------------------------------------------------------ encodings


def test_values_that_no_row_has_are_told() -> None:
    table = Table("t", {"t": pl.String()}, ("t",))
    for values, text in ((["a", "b"], ["a", "a"]), (["a"], [])):
        state = Digest(table)
        state.update(as_arrow(pl.DataFrame({"t": text}, schema={"t": pl.Enum(values)})))
        assert state.hexdigest() is None
        state.update(as_arrow(pl.DataFrame({"t": values}, schema={"t": pl.Enum(values)})))
        assert state.hexdigest() == digest(pl.DataFrame({"t": [*text, *values]}), table)


def test_chunks_of_other_encodings_are_refused() -> None:
    table = Table("t", {"t": pl.String()}, ("t",))
    for values in (["a", "c"], ["b", "a"], ["a"], ["a", "b", "c"]):
        state = Digest(table)
        state.update(as_arrow(pl.DataFrame({"t": ["a", "b"]}, schema={"t": pl.Enum(["a", "b"])})))
        with pytest.raises(LedgerError, match="column t: chunks with different encodings; expected one encoding"):
            state.update(as_arrow(pl.DataFrame({"t": ["a"]}, schema={"t": pl.Enum(values)})))
        again = pl.DataFrame({"t": ["b"]}, schema={"t": pl.Enum(["a", "b"])})
        state.update(as_arrow(again))


def test_codes_that_are_not_in_byte_order_never_give_a_wrong_digest() -> None:
    """The digest says places among the values in byte order; an Enum of another order must not pass for one."""
    frame = pl.DataFrame({"t": ["b", "a"]})
    table = Table("t", {"t": pl.String()}, ("t",))
    state = Digest(table)
    try:
        state.update(as_arrow(frame.cast(pl.Enum(["b", "a"]))))
    except LedgerError:
        return
    assert state.hexdigest() in (None, digest(frame, table))


def test_a_digest_may_be_asked_for_in_between() -> None:
    frame = encoded(table_rows(RULES, 10))
    state = Digest(RULES)
    state.update(as_arrow(frame))
    assert state.hexdigest() == state.hexdigest()
    state.update(as_arrow(frame))
    assert state.hexdigest() == in_chunks(pl.concat([frame, frame]), RULES)


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("seed", range(20))
def test_what_is_known_of_blocks_does_not_matter(seed: int) -> None:
    """Blocks of many lengths, some that say what the one before said; in one chunk, in several, and without starts."""
    random_ = random.Random(seed)
    lengths = [random_.choice((1, 4, 5, 30)) for _ in range(12)]
    varied = encoded(table_rows(CHARGEBACK, sum(lengths), seed).with_columns(calculation_id=pl.lit("c")))
    lines = table_rows(CHARGEBACK, len(lengths), seed + 100)[[0, 0, *range(2, len(lengths))]]
    steady = [name for name in CHARGEBACK.columns if name not in CHARGEBACK.varied]
    of_line = pl.Series([line for line, length in enumerate(lengths) for _ in range(length)])
    frame = encoded(varied.with_columns(lines[of_line].get_columns()).with_columns(varied.select(CHARGEBACK.varied)))
    assert frame.select(pl.struct(steady).n_unique()).item() < len(lengths)
    starts = pl.Series([sum(lengths[:line]) for line in range(len(lengths))], dtype=pl.get_index_type())
    whole = Blocks(frame.drop(steady), frame[starts].select(steady), starts)
    expected = in_chunks(frame, CHARGEBACK)

    for cut in (0, 3, 7):
        state, row = Digest(CHARGEBACK), int(starts[cut])
        state.update(as_arrow(Blocks(whole.varied.head(row), whole.steady.head(cut), starts.head(cut))))
        state.update(as_arrow(Blocks(whole.varied.slice(row), whole.steady.slice(cut), starts.slice(cut) - row)))
        assert state.hexdigest() == expected


@pytest.mark.parametrize("seed", range(20))
def test_it_does_not_matter_which_columns_are_told_of_blocks(seed: int) -> None:
    """Also some that may be null, some that vary, and some of one value."""
    random_ = random.Random(seed)
    lengths = [random_.choice((1, 2, 9)) for _ in range(9)] if seed else [1] * 9
    ends = pl.Series(lengths).cum_sum()
    for table in (CHARGEBACK, BILLING, IDENTITIES):
        lines = table_rows(table, len(lengths), seed)
        alone = random_.sample(table.columns, 3)
        frame = encoded(
            lines.with_columns(pl.col(alone).first())[
                [line for line, length in enumerate(lengths) for _ in range(length)]
            ]
        )
        steady = random_.sample(table.columns, len(table.columns) // 2)
        starts = (ends - pl.Series(lengths)).cast(pl.get_index_type())
        state = Digest(table)
        blocks = Blocks(frame.drop(steady), frame[starts].select(steady), starts, frozenset({*alone} & {*steady}))
        state.update(as_arrow(blocks))
        assert state.hexdigest() == in_chunks(frame, table)
