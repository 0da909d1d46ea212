"""results.db: a day's chargeback as facts and dimensions that plain SQLite sums exactly."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.emitters import sqlite
from engine.emitters.sqlite import LABELS, Results, emit_day, holds, open_results, put_payers, withdraw_day
from engine.errors import ContractError, LedgerError, StoreError
from engine.frames import CHARGEBACK

PERIOD, DATE = "2026-10", "2026-10-01"
KEY = ("acme", PERIOD, DATE)

ROW: dict[str, Any] = {
    "tenant_id": "acme",
    "charge_date": date(2026, 10, 1),
    "line_id": 1,
    "part": 0,
    "identity_id": "payments",
    "ecosystem": "aws",
    "billing_period": PERIOD,
    "env_id": "111122223333",
    "resource_id": "i-0123",
    "product_category": "AmazonEC2",
    "product_type": "BoxUsage:m5.large",
    "line_item_type": "Usage",
    "region": "eu-west-1",
    "operation": "RunInstances",
    "sub_account_id": "111122223333",
    "invoice_id": "",
    "currency": "USD",
    "amount": Decimal("1.5"),
    "effective_amount": None,
    "list_amount": None,
    "contracted_amount": None,
    "cost_type": "direct",
    "allocation_method": "direct",
    "allocation_detail": "owner_tag",
    "rule_id": "direct",
    "rule_version": "v1",
    "rung": 0,
    "part_amount": Decimal("1.5"),
    "weight_before": 0,
    "weight": 1,
    "weight_total": 1,
    "calculation_id": "calc",
}


def chargeback(*changes: dict[str, Any]) -> pl.DataFrame:
    rows = [ROW | {"line_id": number} | change for number, change in enumerate(changes)]
    return pl.DataFrame(rows, schema=CHARGEBACK.schema)


def amounts(*texts: str, **labels: str) -> pl.DataFrame:
    return chargeback(*({"amount": Decimal(text), **labels} for text in texts))


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    with open_results(tmp_path) as opened:
        yield opened


def plain(results: Results, sql: str) -> list[Any]:
    """What anybody reads who opens the file with SQLite and nothing of ours."""
    connection = sqlite3.connect(results.file)
    rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def test_rows_of_equal_labels_are_one_fact(results: Results) -> None:
    rows = chargeback({}, {"operation": "StopInstances"}, {"identity_id": "search", "amount": Decimal("-0.25")})
    assert emit_day(results, *KEY, rows) == 2
    assert plain(results, "SELECT identity_id, amount_whole, amount_fraction, amount FROM chargeback ORDER BY 1") == [
        ("payments", 3, 0, "3.000000000000"),
        ("search", 0, -250_000_000_000, "-0.250000000000"),
    ]
    assert plain(results, "SELECT * FROM chargeback_dimensions WHERE identity_id = 'search'")[0][1:] == tuple(
        ROW[label] if label != "identity_id" else "search" for label in LABELS
    )
    assert plain(results, "SELECT tenant_id, billing_period, charge_date FROM chargeback_facts") == [KEY, KEY]


def test_a_dimension_id_is_the_hash_of_its_labels(results: Results) -> None:
    hostile = {"identity_id": "'); DROP TABLE chargeback_facts; --", "resource_id": '=cmd()|é\n"../\x00', "env_id": ""}
    emit_day(results, *KEY, chargeback(hostile))
    labels = [str({**ROW, **hostile}[label]) for label in LABELS]
    text = "".join(f"{len(label.encode())}:{label}" for label in labels)
    stored = results.rows("SELECT * FROM chargeback_dimensions")
    assert stored == [(hashlib.sha256(text.encode()).hexdigest()[:16], *labels)]


def test_labels_that_only_meet_at_their_borders_are_two_dimensions(results: Results) -> None:
    rows = chargeback({"product_category": "ab", "product_type": "c"}, {"product_category": "a", "product_type": "bc"})
    assert emit_day(results, *KEY, rows) == 2


def test_encoded_labels_give_the_same_facts(results: Results) -> None:
    rows = chargeback({}, {"identity_id": "search"})
    emit_day(results, *KEY, rows)
    before = plain(results, "SELECT * FROM chargeback_facts")
    encoded = rows.with_columns(
        pl.col("identity_id").cast(pl.Enum(["payments", "search"])), pl.col("tenant_id").cast(pl.Enum(["acme"]))
    )
    assert emit_day(results, *KEY, encoded) == 2
    assert plain(results, "SELECT * FROM chargeback_facts") == before


def test_a_day_is_replaced_and_the_others_stay(results: Results) -> None:
    second = ("acme", PERIOD, "2026-10-02")
    emit_day(results, *KEY, chargeback({}, {"identity_id": "search"}))
    emit_day(results, *second, chargeback({"charge_date": date(2026, 10, 2)}))
    emit_day(results, "beta", PERIOD, DATE, chargeback({"tenant_id": "beta"}))
    assert emit_day(results, *KEY, chargeback({"amount": Decimal(7)})) == 1
    assert plain(results, "SELECT tenant_id, charge_date, amount_whole FROM chargeback ORDER BY 1, 2") == [
        ("acme", "2026-10-01", 7),
        ("acme", "2026-10-02", 1),
        ("beta", "2026-10-01", 1),
    ]


def test_the_same_day_again_leaves_the_same_facts(results: Results) -> None:
    rows = chargeback({}, {"identity_id": "search"})
    emit_day(results, *KEY, rows)
    before = plain(results, "SELECT * FROM chargeback_facts")
    emit_day(results, *KEY, rows.reverse())
    assert plain(results, "SELECT * FROM chargeback_facts") == before


def test_a_day_without_rows_has_no_facts(results: Results) -> None:
    emit_day(results, *KEY, chargeback({}))
    assert emit_day(results, *KEY, chargeback()) == 0
    assert plain(results, "SELECT count(*) FROM chargeback_facts") == [(0,)]


def test_a_withdrawn_day_is_gone(results: Results) -> None:
    assert not holds(results, "acme")
    emit_day(results, *KEY, chargeback({}))
    assert holds(results, "acme")
    assert not holds(results, "beta")
    withdraw_day(results, *KEY)
    withdraw_day(results, *KEY)
    assert not holds(results, "acme")


@pytest.mark.parametrize(
    ("texts", "total"),
    [
        (["0"], "0.000000000000"),
        (["0.1", "0.2"], "0.300000000000"),
        (["-0.5"], "-0.500000000000"),
        (["-0.000000000001"], "-0.000000000001"),
        (["0.6", "0.7"], "1.300000000000"),
        (["-0.6", "-0.7"], "-1.300000000000"),
        (["2", "-0.5"], "1.500000000000"),
        (["-2", "0.5"], "-1.500000000000"),
        (["1", "-0.999999999999"], "0.000000000001"),
        (["-1", "0.999999999999"], "-0.000000000001"),
        (["1.25", "-1.25"], "0.000000000000"),
        (["0.75", "-1.25"], "-0.500000000000"),
        (["123456789.000000000001", "0.999999999999"], "123456790.000000000000"),
        (["9223372036854775806.5", "0.499999999999"], "9223372036854775806.999999999999"),
        (["-9223372036854775807.999999999999"], "-9223372036854775807.999999999999"),
    ],
)
def test_totals_are_exact(results: Results, texts: list[str], total: str) -> None:
    # Each amount a fact of its own, so that it is SQLite that sums them.
    rows = chargeback(*({"amount": Decimal(text), "resource_id": f"i-{n}"} for n, text in enumerate(texts)))
    assert emit_day(results, *KEY, rows) == len(texts)
    assert plain(results, "SELECT * FROM chargeback_totals")[0][:4] == ("acme", PERIOD, "payments", "USD")
    assert plain(results, "SELECT amount FROM chargeback_totals") == [(total,)]


def test_totals_keep_currencies_identities_and_bills_apart(results: Results) -> None:
    emit_day(results, *KEY, chargeback({}, {"currency": "EUR"}, {"identity_id": "search"}))
    older = chargeback({"billing_period": "2026-09"})
    emit_day(results, "acme", "2026-09", DATE, older)
    assert len(plain(results, "SELECT * FROM chargeback_totals WHERE amount = '1.500000000000'")) == 4


money_texts = st.decimals(min_value=-(10**15), max_value=10**15, places=12, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.tuples(money_texts, st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1, max_size=30))
def test_plain_sqlite_sums_to_what_came_in(results: Results, lines: list[tuple[Decimal, str, str]]) -> None:
    rows = [{"amount": amount, "identity_id": who, "resource_id": what} for amount, who, what in lines]
    emit_day(results, *KEY, chargeback(*rows))
    expected = sum(int(amount.scaleb(12)) for amount, _, _ in lines)
    whole, fraction = plain(results, "SELECT sum(amount_whole), sum(amount_fraction) FROM chargeback_facts")[0]
    assert whole * 10**12 + fraction == expected
    for view in ("chargeback", "chargeback_totals", "chargeback_named", "chargeback_team_totals"):
        texts = [Decimal(text) for (text,) in plain(results, f"SELECT amount FROM {view}")]
        assert sum(int(text.scaleb(12)) for text in texts) == expected


PAYERS = pl.DataFrame(
    [("", "", "rest"), ("payments", "Payments", "money"), ("search", "Search", "money")],
    schema={"identity_id": pl.String, "identity_name": pl.String, "team": pl.String},
    orient="row",
)


def by_team(results: Results) -> list[Any]:
    return plain(results, "SELECT tenant_id, team, currency, amount FROM chargeback_team_totals ORDER BY 1, 2, 3")


def test_teams_group_what_is_stored_and_change_nothing_of_it(results: Results) -> None:
    rows = chargeback({}, {"identity_id": "search"}, {"identity_id": "i-1"}, {"identity_id": "UNALLOCATED"})
    emit_day(results, *KEY, rows)
    facts = plain(results, "SELECT * FROM chargeback_facts")
    assert by_team(results) == [
        ("acme", "UNALLOCATED", "USD", "1.500000000000"),
        ("acme", "UNASSIGNED", "USD", "4.500000000000"),
    ]
    put_payers(results, "acme", PAYERS)
    assert by_team(results) == [
        ("acme", "UNALLOCATED", "USD", "1.500000000000"),
        ("acme", "money", "USD", "3.000000000000"),
        ("acme", "rest", "USD", "1.500000000000"),
    ]
    named = "SELECT identity_id, identity_name, team FROM chargeback_named ORDER BY 1"
    assert plain(results, named)[1:3] == [("i-1", "i-1", "rest"), ("payments", "Payments", "money")]
    assert plain(results, "SELECT * FROM chargeback_facts") == facts


def test_payers_are_replaced_as_a_whole_and_by_tenant(results: Results) -> None:
    put_payers(results, "acme", PAYERS)
    put_payers(results, "beta", PAYERS.head(2).with_columns(team=pl.lit("theirs")))
    put_payers(results, "acme", PAYERS.tail(1))
    assert plain(results, "SELECT * FROM payers") == [
        ("acme", "search", "Search", "money"),
        ("beta", "", "", "theirs"),
        ("beta", "payments", "Payments", "theirs"),
    ]


def test_payers_that_are_the_same_are_not_written_again(results: Results) -> None:
    put_payers(results, "acme", PAYERS)
    before = results.rows("SELECT total_changes()")
    put_payers(results, "acme", PAYERS)
    assert results.rows("SELECT total_changes()") == before


def test_an_amount_whose_whole_part_passes_64_bits_is_refused(results: Results) -> None:
    emit_day(results, *KEY, chargeback({}))
    largest = amounts("9223372036854775807.999999999999")
    assert emit_day(results, *KEY, largest) == 1
    with pytest.raises(
        LedgerError, match=r"results\.db: tenant acme, billing period 2026-10, day 2026-10-01: amount -922"
    ):
        emit_day(results, *KEY, amounts("-9223372036854775808"))
    with pytest.raises(
        LedgerError, match=r"amount 9223372036854775808 of identity 'payments'; expected at most 9223372"
    ):
        emit_day(results, *KEY, amounts("9223372036854775807", "1"))
    assert plain(results, "SELECT amount FROM chargeback") == [("9223372036854775807.999999999999",)]


def test_sums_that_could_wrap_are_refused(results: Results) -> None:
    with pytest.raises(ContractError, match="could pass the exact range"):
        emit_day(results, *KEY, amounts(*["9" * 26] * 20))


@pytest.mark.parametrize(
    "change", [{"tenant_id": "beta"}, {"billing_period": "2026-09"}, {"charge_date": date(2026, 10, 2)}]
)
def test_rows_of_another_day_are_refused(results: Results, change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match=r"1 row\(s\) of another tenant, period or day"):
        emit_day(results, *KEY, chargeback({}, change))
    assert not holds(results, "acme")


def test_two_sets_of_labels_never_share_a_dimension(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    emit_day(results, *KEY, chargeback({}))
    monkeypatch.setattr(sqlite, "_canonical_text", lambda: pl.lit("always the same"))
    emit_day(results, *KEY, chargeback({}))
    with pytest.raises(LedgerError, match="two different sets of labels share one dimension_id"):
        emit_day(results, *KEY, chargeback({"identity_id": "search"}))
    assert plain(results, "SELECT identity_id FROM chargeback") == [("payments",)]


def test_a_full_disk_leaves_the_day_as_it_was(results: Results) -> None:
    emit_day(results, *KEY, chargeback({}))
    pages = results.rows("PRAGMA page_count")[0][0]
    results.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"results\.db: the disk is full"):
        emit_day(results, *KEY, chargeback(*({"resource_id": f"i-{number:032}"} for number in range(500))))
    assert plain(results, "SELECT amount FROM chargeback") == [("1.500000000000",)]


def test_results_of_another_program_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.db").write_bytes(b"\x00not a database" * 100)
    with pytest.raises(StoreError, match=r"results\.db: not an SQLite database"):
        open_results(tmp_path)
