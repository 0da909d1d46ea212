"""Tables: shape, row checks, order, encoding, tags and names."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import pairwise

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine import frames
from engine.errors import ContractError, LedgerError
from engine.frames import (
    BILLING,
    CHARGEBACK,
    EMPTY_KEYS,
    IDENTITIES,
    RESOURCES,
    RULES,
    USAGE,
    WEIGHTS,
    Blocks,
    Table,
    categories,
    check_ordered,
    check_rows,
    empty,
    encoded,
    normalised,
    normalised_text,
    shape,
    starts,
    tag_key,
    weight_group,
    with_tags,
)
from tests.unit.cases import HOSTILE, billing, in_blocks, rows, weight_rows

TABLES = (BILLING, RULES, WEIGHTS, CHARGEBACK, EMPTY_KEYS, USAGE, IDENTITIES, RESOURCES)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_is_declared_soundly(table: Table) -> None:
    assert set(table.key) <= set(table.schema)
    assert table.nullable <= set(table.schema)
    assert table.columns == list(table.schema)
    texts = [name for name, dtype in table.schema.items() if dtype == pl.String]
    assert not table.nullable & set(texts), "text is '' when absent, never null"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_an_empty_frame_passes_every_check(table: Table) -> None:
    frame = empty(table)
    assert shape(frame.lazy(), table).collect().equals(frame)
    assert check_rows(frame, table) is frame
    assert encoded(frame).height == 0


def test_shape_gives_back_the_frame_it_was_given() -> None:
    lazy = weight_rows(("g", 0, "a", 1)).lazy()
    assert shape(lazy, WEIGHTS) is lazy
    assert shape(encoded(lazy.collect()).lazy(), WEIGHTS).collect().height == 1


def test_shape_names_every_difference_at_once() -> None:
    frame = empty(WEIGHTS).rename({"rung": "step", "weight_group": "group"}).with_columns(weight=pl.lit(1.0))
    with pytest.raises(ContractError) as caught:
        shape(frame.lazy(), WEIGHTS, where="here")
    assert caught.value.faults == [
        "here: table weights: 2 missing column(s): weight_group, rung; expected every declared column",
        "here: table weights: 2 extra column(s): group, step; expected no other column",
        "here: table weights, column weight: dtype Float64; expected Int64",
    ]


def test_shape_tells_a_wrong_order() -> None:
    turned = empty(WEIGHTS).select("rung", "weight_group", "identity_id", "weight")
    with pytest.raises(ContractError, match="columns in the order rung, weight_group, identity_id, weight; expected"):
        shape(turned.lazy(), WEIGHTS)


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt64, pl.Float64, pl.String, pl.Decimal(38, 11)])
def test_shape_refuses_dtypes_that_are_only_similar(dtype: pl.DataType) -> None:
    frame = empty(BILLING).with_columns(pl.col("amount").cast(dtype))
    with pytest.raises(ContractError, match="column amount: dtype"):
        shape(frame.lazy(), BILLING)


def test_shape_reads_no_rows() -> None:
    never = pl.LazyFrame(schema=WEIGHTS.schema).map_batches(lambda _: 1 / 0, schema=WEIGHTS.schema)  # type: ignore[arg-type,return-value] # fails if it is run
    assert shape(never, WEIGHTS) is never


def test_check_rows_counts_nulls_and_shows_a_repeated_key() -> None:
    frame = weight_rows(("g", 0, "a\n", 1), ("g", 0, "a\n", 2), ("g", 0, "b", None))
    with pytest.raises(ContractError) as caught:
        check_rows(frame, WEIGHTS, where="here")
    assert caught.value.faults == [
        "here: table weights, column weight: 1 null value(s); expected none",
        (
            r"here: table weights: 2 rows share a key, for example weight_group='g', rung='0', identity_id='a\n';"
            " expected unique (weight_group, rung, identity_id)"
        ),
    ]


def test_measures_but_the_first_may_be_null() -> None:
    line = billing({})
    assert check_rows(line, BILLING) is line
    with pytest.raises(ContractError, match="column amount: 1 null value"):
        check_rows(line.with_columns(amount=pl.lit(None, BILLING.schema["amount"])), BILLING)


ORDERED = [
    ("g", 0, "a", 1),
    ("g", 0, "b", 1),
    ("g", 1, "a", 1),
    ("h", 0, "Z", 1),
    ("h", 0, "a", 1),
    ("h", 0, "\u00e9", 1),
]


def every_way(frame: pl.DataFrame) -> list[Blocks]:
    """WEIGHTS in blocks of which each is as long as it can be, in blocks of one row each, and with text encoded."""
    one = Blocks(
        frame.select(WEIGHED.varied), frame.select("weight_group", "rung"), pl.int_range(frame.height, eager=True)
    )
    return [in_blocks(frame, WEIGHED), in_blocks(encoded(frame), WEIGHED), one]


WEIGHED = WEIGHTS._replace(varied=frozenset({"identity_id", "weight"}))


def test_rows_in_the_order_of_the_key_pass() -> None:
    for frame in (weight_rows(*ORDERED), weight_rows(*ORDERED[:1]), weight_rows()):
        for blocks in every_way(frame):
            check_ordered(blocks, WEIGHED)


@pytest.mark.parametrize("place", range(len(ORDERED) - 1))
def test_two_rows_out_of_order_trip(place: int) -> None:
    turned = [*ORDERED[:place], ORDERED[place + 1], ORDERED[place], *ORDERED[place + 2 :]]
    keys = [row[:3] for row in turned]
    wrong = sum(after <= before for before, after in pairwise(keys))
    for blocks in every_way(weight_rows(*turned)):
        with pytest.raises(
            LedgerError, match=rf"weights: {wrong} row\(s\) not after the one before; expected strictly"
        ):
            check_ordered(blocks, WEIGHED)


@pytest.mark.parametrize("place", range(len(ORDERED)))
def test_a_repeated_key_trips(place: int) -> None:
    for blocks in every_way(weight_rows(*ORDERED[: place + 1], *ORDERED[place:])):
        with pytest.raises(LedgerError, match=r"weights: 1 row\(s\) not after the one before; expected strictly"):
            check_ordered(blocks, WEIGHED)


@pytest.mark.parametrize("encode", [False, True])
def test_rows_start_something_where_a_column_changes(*, encode: bool) -> None:
    texts = pl.DataFrame({"text": ["a", "a", "b", "b", "a"], "number": [1, 1, 1, None, None]})
    frame = encoded(texts) if encode else texts
    assert starts(frame, ["text"]).to_list() == [0, 2, 4]
    assert starts(frame, ["number"]).to_list() == [0, 3]
    assert starts(frame, ["text", "number"]).to_list() == [0, 2, 3, 4]
    assert starts(frame.head(1), ["text"]).to_list() == [0]
    assert starts(frame.head(2), ["text"]).to_list() == [0]
    assert starts(frame.clear(), ["text"]).to_list() == []


def test_codes_are_places_in_byte_order() -> None:
    texts = ["b", "Z", "a", "\u00e9", "", "\U0001d518", "\uffff", "b"]
    frame = encoded(pl.DataFrame({"text": texts, "n": range(8)}))
    assert categories(frame["text"]).to_list() == sorted(set(texts), key=str.encode)
    assert frame["text"].to_physical().to_list() == [sorted(set(texts), key=str.encode).index(text) for text in texts]
    assert frame["text"].cast(pl.String).to_list() == texts
    assert frame["n"].dtype == pl.Int64


def test_only_the_named_columns_are_encoded() -> None:
    frame = encoded(pl.DataFrame({"a": ["x"], "b": ["y"]}), ["b"])
    assert frame["a"].dtype == pl.String
    assert isinstance(frame["b"].dtype, pl.Enum)


def test_hostile_texts_come_back_from_their_codes() -> None:
    frame = pl.DataFrame({"text": HOSTILE})
    assert_frame_equal(frames.decoded(encoded(frame).lazy()).collect(), frame)


def test_plain_text_has_no_categories() -> None:
    with pytest.raises(TypeError, match="column t is String, not an Enum"):
        categories(pl.Series("t", ["a"]))


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("team", "team"),
        ("Team", "team"),
        ("CostCenter", "cost_center"),
        ("cost-center", "cost_center"),
        ("cost_center", "cost_center"),
        ("cost  center", "cost_center"),
        ("__cost..center//", "cost_center"),
        ("APIKey", "a_p_i_key"),
        ("user:team", "user_team"),
        ("k8s.io/app", "k8s_io_app"),
        ("\u00c9quipe", "\u00e9quipe"),
        ("\u4e2d", "\u4e2d"),
        ("2fa", "2fa"),
        ("---", "---"),
        ("!", "!"),
    ],
)
def test_tag_keys_are_canonical(written: str, canonical: str) -> None:
    assert tag_key(written) == canonical


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("payments", "payments"),
        ("Payments ", "payments"),
        ("\tPAYMENTS\n", "payments"),
        ("data  \u00a0 platform", "data platform"),
        ("\u2003data\u3000platform\u2028", "data platform"),
        ("e\u0301quipe", "\u00e9quipe"),
        ("E\u0301quipe", "\u00e9quipe"),
        # What only looks like a blank is a character.
        ("\u200bx", "\u200bx"),
        ("\ufeffx", "\ufeffx"),
        # Lower-case, not case-folded: these stay apart.
        ("STRASSE", "strasse"),
        ("Stra\u00dfe", "stra\u00dfe"),
        ("\u1e9e", "\u00df"),
        # One letter that has two in lower-case, and one whose form depends on its place.
        ("\u0130", "i\u0307"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
        ("\ufb01", "\ufb01"),
        ("", ""),
        (" \u00a0\t", ""),
    ],
)
def test_names_are_normalised(written: str, name: str) -> None:
    assert normalised_text(written) == name
    assert normalised_text(name) == name
    assert pl.select(normalised(pl.Series([written, None]))).to_series().to_list() == [name, None]


def test_tags_are_decoded_in_the_order_of_the_rows() -> None:
    lines = billing(
        {"tags": {"a": "2"}}, {}, {"tags": {"a": "1", "b": "x"}}, {"tags": {"b": "y"}}, {"tags": {"a": "2"}}
    )
    found = with_tags(lines.lazy(), ["a", "c"]).collect()
    assert found["line_id"].to_list() == [0, 1, 2, 3, 4]
    assert found["_tags"].struct.field("a").to_list() == ["2", None, "1", None, "2"]
    assert found["_tags"].struct.field("c").to_list() == [None] * 5
    assert_frame_equal(found.drop("_tags"), lines)


def test_hostile_tags_are_decoded_as_they_are() -> None:
    lines = billing(*({"tags": {"a": text, 'q"{}.$': text}} for text in HOSTILE))
    found = with_tags(lines.lazy(), ["a", 'q"{}.$']).collect()["_tags"]
    for key in ("a", 'q"{}.$'):
        assert found.struct.field(key).to_list() == HOSTILE


def test_no_line_has_no_tags() -> None:
    assert with_tags(empty(BILLING).lazy(), ["a"]).collect().height == 0


def test_a_weight_group_is_the_ladder_and_the_scope() -> None:
    frame = pl.DataFrame({"ladder": ["l"], "weight_scope": ["2025-09 {@}"]})
    assert frame.select(weight_group()).item() == "l@2025-09 {@}"


def test_a_frame_of_a_few_rows_fills_in_what_they_leave_out() -> None:
    frame = frames.from_rows(
        BILLING,
        {"tenant_id": "a", "charge_date": dt.date(2025, 9, 1), "amount": 3, "rule_id": "r"},
        {"tenant_id": "b", "charge_date": dt.date(2025, 9, 2), "line_id": 7, "rule_id": "q"},
    )
    assert frame.columns == [*BILLING.columns, "rule_id"]
    check_rows(frame.drop("rule_id"), BILLING)
    assert frame["line_id"].to_list() == [0, 7]
    assert frame["list_amount"].to_list() == [None, None]
    assert frame["region"].to_list() == ["", ""]


def test_a_frame_of_no_rows_is_an_empty_one() -> None:
    assert_frame_equal(frames.from_rows(WEIGHTS), empty(WEIGHTS))


@pytest.mark.parametrize("amount", [0.1 + 0.2, True, "1.5", "abc", Decimal("1e30"), Decimal("0.0000000000005")])
def test_an_amount_written_by_hand_is_exact_or_refused(amount: object) -> None:
    """Never a float, and never quietly null: whoever writes a frame by hand gets the amount that stands there."""
    try:
        frame = frames.from_rows(BILLING, {"charge_date": dt.date(2025, 9, 1), "amount": amount})
    except (TypeError, ValueError, ContractError, pl.exceptions.PolarsError):
        return
    assert not isinstance(amount, float | bool)
    assert frame["amount"].to_list() == [Decimal(str(amount))]


def test_rows_of_this_suite_have_the_shape_of_their_tables() -> None:
    for table in TABLES:
        shape(rows(table, {}).lazy(), table)
