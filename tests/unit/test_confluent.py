"""Costs of Confluent Cloud: windows, what is asked, and records that become lines, one for one or not."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from engine.errors import ContractError, SourceError
from engine.frames import BILLING, shape
from engine.sources.answers import Answer
from engine.sources.confluent import LINE_KEY, Costs, cost_windows, costs_name, fetch_costs, parse_costs
from engine.sources.landing import Landing
from tests.unit.scripted import Reply, client, serving

OCTOBER = (date(2025, 10, 1), date(2025, 11, 1))
RECORD = {
    "id": '"r1"',
    "start_date": '"2025-10-02"',
    "end_date": '"2025-10-03"',
    "granularity": '"DAILY"',
    "product": '"KAFKA"',
    "line_type": '"KAFKA_STORAGE"',
    "amount": "1.10",
    "original_amount": "1.25",
    "discount_amount": "0.15",
    "price": "0.11",
    "quantity": "10.5",
    "unit": '"GB-hour"',
    "description": '"Storage"',
    "network_access_type": '"INTERNET"',
    "tier_dimensions": "{}",
    "resource": '{"id": "lkc-1", "display_name": "orders", "environment": {"id": "env-1"}}',
}
"""A record, its values as raw JSON: numbers must not pass through a float on their way into a test either."""


def record(**changes: str | None) -> str:
    """The record with values changed, or taken out by None."""
    members = [f'"{name}": {text}' for name, text in (RECORD | changes).items() if text is not None]
    return "{" + ", ".join(members) + "}"


def page(*records: str) -> Answer:
    return Answer("/billing/v1/costs", 200, '{"data": [' + ", ".join(records) + "]}")


def costs(*records: str, pages: list[Answer] | None = None) -> Costs:
    parsed = parse_costs(pages if pages is not None else [page(*records)], "acme", OCTOBER, "USD")
    shape(parsed.billing.lazy(), BILLING)
    return parsed


def faults(*records: str) -> list[str]:
    with pytest.raises(ContractError) as caught:
        costs(*records)
    assert all(said.isprintable() for said in caught.value.faults)
    return list(caught.value.faults)


def line(parsed: Costs) -> dict[str, object]:
    assert parsed.billing.height == 1
    return parsed.billing.row(0, named=True)


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        ("2025-10-01", "2025-10-01", []),
        ("2025-10-02", "2025-10-01", []),
        ("2025-10-31", "2025-11-01", ["2025-10-31 2025-11-01"]),
        ("2025-10-15", "2025-11-02", ["2025-10-15 2025-11-01", "2025-11-01 2025-11-02"]),
        ("2024-02-01", "2024-03-01", ["2024-02-01 2024-03-01"]),
        ("2025-12-31", "2026-02-01", ["2025-12-31 2026-01-01", "2026-01-01 2026-02-01"]),
    ],
)
def test_windows_are_months_cut_to_what_is_asked_for(first: str, end: str, expected: list[str]) -> None:
    windows = cost_windows(date.fromisoformat(first), date.fromisoformat(end))
    assert [f"{start} {stop}" for start, stop in windows] == expected


def test_windows_of_many_years_are_each_within_a_month_and_join() -> None:
    windows = cost_windows(date(2023, 1, 17), date(2030, 7, 9))
    assert windows[0][0] == date(2023, 1, 17)
    assert windows[-1][1] == date(2030, 7, 9)
    assert all(0 < (end - first).days <= 31 and (end.day == 1 or end == windows[-1][1]) for first, end in windows)
    assert [end for _, end in windows[:-1]] == [first for first, _ in windows[1:]]


def test_costs_are_asked_for_and_landed_page_by_page(tmp_path: Path) -> None:
    first = Reply(body=f'{{"data": [{record()}], "metadata": {{"next": "https://x/costs?page_token=t2"}}}}')
    last = Reply(body=f'{{"data": [{record(id="2")}], "metadata": {{"next": ""}}}}')
    landing = Landing(tmp_path)
    with serving(first, last) as server, client(server.url) as http:
        fetch_costs(http, landing, OCTOBER)
        assert http.requests == 2
    query = "/billing/v1/costs?start_date=2025-10-01&end_date=2025-11-01&page_size=2000"
    assert [asked.target for asked in server.asked] == [query, f"{query}&page_token=t2"]
    pages = landing.read(costs_name(OCTOBER))
    assert [answer.text for answer in pages] == [first.body, last.body]
    assert costs(pages=pages).records == 2


@pytest.mark.parametrize("status", [401, 404, 500])
def test_costs_that_cannot_be_had_leave_nothing_landed(tmp_path: Path, status: int) -> None:
    first = Reply(body='{"data": [], "metadata": {"next": "?page_token=t2"}}')
    said = "BillingAdmin" if status == 401 else str(status)
    with serving(first, Reply(status)) as server, client(server.url) as http, pytest.raises(SourceError, match=said):
        fetch_costs(http, Landing(tmp_path), OCTOBER)
    assert list(tmp_path.iterdir()) == []


def test_a_record_becomes_a_line() -> None:
    parsed = costs(record())
    assert parsed[1:] == (1, 0, 0, Decimal(0), ())
    found = line(parsed)
    del found["line_id"]
    assert found == {
        "tenant_id": "acme",
        "charge_date": date(2025, 10, 2),
        "ecosystem": "confluent_cloud",
        "billing_period": "2025-10",
        "env_id": "env-1",
        "resource_id": "lkc-1",
        "product_category": "KAFKA",
        "product_type": "KAFKA_STORAGE",
        "line_item_type": "",
        "region": "",
        "operation": "INTERNET",
        "sub_account_id": "",
        "invoice_id": "",
        "quantity": Decimal("10.5"),
        "unit": "GB-hour",
        "currency": "USD",
        "tags": '{"description":"Storage","display_name":"orders"}',
        "amount": Decimal("1.10"),
        "effective_amount": None,
        "list_amount": Decimal("1.25"),
        "contracted_amount": None,
    }


def test_the_id_of_a_line_is_a_hash_of_its_key() -> None:
    found = line(costs(record()))
    text = "".join(f"{len(str(found[name]).encode())}:{found[name]}," for name in LINE_KEY)
    assert found["line_id"] == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def test_no_costs_are_an_empty_table() -> None:
    for pages in ([], [page()], [Answer("/x", 200, '{"data": null}')]):
        assert costs(pages=pages).billing.height == 0


def test_tiers_of_a_price_are_one_line_that_says_what_it_was_made_of() -> None:
    tiers = [
        record(id='"a"', amount="0.1", quantity="1", price="0.1", tier_dimensions='{"tier": "0-1"}'),
        record(id='"b"', amount="0.2", quantity="2", price="0.10", original_amount="7", description='"Second"'),
        record(id='"c"', amount="-0.05", quantity="0", description="null", discount_amount=None),
    ]
    parsed = costs(*tiers)
    found = line(parsed)
    assert (parsed.records, found["amount"], found["quantity"]) == (3, Decimal("0.25"), Decimal(3))
    assert found["list_amount"] == Decimal("9.5")
    tags = json.loads(str(found["tags"]))
    assert (tags["description"], tags["display_name"]) == ("Second", "orders")
    assert json.loads(tags["tiers"], parse_float=Decimal) == [
        {"amount": Decimal("-0.05"), "original_amount": Decimal("1.25"), "price": Decimal("0.11"), "quantity": 0},
        {
            "amount": Decimal("0.1"),
            "original_amount": Decimal("1.25"),
            "discount_amount": Decimal("0.15"),
            "price": Decimal("0.1"),
            "quantity": 1,
            "description": "Storage",
            "tier_dimensions": {"tier": "0-1"},
        },
        {
            "amount": Decimal("0.2"),
            "original_amount": 7,
            "discount_amount": Decimal("0.15"),
            "price": Decimal("0.1"),
            "quantity": 2,
            "description": "Second",
        },
    ]
    assert_frame_equal(parsed.billing, costs(*reversed(tiers)).billing)
    assert_frame_equal(parsed.billing, costs(pages=[page(tiers[2]), page(tiers[0], tiers[1])]).billing)


def test_a_single_record_with_tier_dimensions_keeps_them() -> None:
    tags = json.loads(str(line(costs(record(tier_dimensions='{"b": 1, "a": "x"}')))["tags"]))
    assert tags["tiers"].endswith('"tier_dimensions":{"a":"x","b":1}}]')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_date", '"2025-10-03"'),
        ("product", '"CONNECT"'),
        ("line_type", '"KAFKA_BASE"'),
        ("network_access_type", '"PRIVATE"'),
        ("unit", '"GB"'),
        ("resource", '{"id": "lkc-2", "environment": {"id": "env-1"}}'),
        ("resource", '{"id": "lkc-1", "environment": {"id": "env-2"}}'),
    ],
)
def test_what_differs_in_its_key_is_another_line_and_leaves_the_first_alone(field: str, value: str) -> None:
    alone = line(costs(record()))["line_id"]
    both = costs(record(), record(id='"2"', **{field: value})).billing
    assert both.height == 2
    assert alone in both["line_id"].to_list()


@pytest.mark.parametrize(
    ("amount", "expected", "residue"),
    [
        ("0.1", "0.1", "0"),
        ("-12", "-12", "0"),
        ("1e-7", "0.0000001", "0"),
        ("2.5E+3", "2500", "0"),
        ("0.00000000000049", "0", "4.9e-13"),
        ("0.1234567890125", "0.123456789012", "5e-13"),
        ("99999999999999999999999999.999999999999", "99999999999999999999999999.999999999999", "0"),
        ('"3.50"', "3.5", "0"),
        ("1e-400", "0", "0"),
    ],
)
def test_amounts_are_exact(amount: str, expected: str, residue: str) -> None:
    parsed = costs(record(amount=amount))
    assert (line(parsed)["amount"], parsed.residue) == (Decimal(expected), Decimal(residue))


@pytest.mark.parametrize(
    ("amount", "seen"),
    [
        (None, "amount is missing"),
        ("null", "amount is missing"),
        ('""', "amount is missing"),
        ('"n/a"', "amount 'n/a'"),
        ('"1,5"', "amount '1,5'"),
        ("true", "amount 'true'"),
        ("[1]", "amount '[1]'"),
        ("1e26", "amount '1E+26'"),
        ("1e99999999999999999999", "amount '1e99999999999999999999'"),
    ],
)
def test_an_amount_that_is_none_is_an_error_and_never_0(amount: str | None, seen: str) -> None:
    said = faults(record(id='"good"'), record(id='"bad"', amount=amount, start_date="null"))
    place = "costs 2025-10-01 to 2025-11-01, page 1, record 'bad'"
    assert said == [f"{place}: {seen}; expected a decimal number below 1e26"]


def test_all_bad_amounts_are_named_with_their_page() -> None:
    with pytest.raises(ContractError) as caught:
        costs(pages=[page(record(amount='"x"')), page(record(id="2", original_amount='"y"'))])
    assert [said.partition("; ")[0] for said in caught.value.faults] == [
        "costs 2025-10-01 to 2025-11-01, page 1, record 'r1': amount 'x'",
        "costs 2025-10-01 to 2025-11-01, page 2, record '2': original_amount 'y'",
    ]
    many = faults(*(record(id=str(number), amount="{}") for number in range(50)))
    assert len(many) == 21
    assert many[-1] == "... and 30 more"


def test_sums_that_would_not_be_exact_are_refused() -> None:
    many = [record(id=str(number), amount="99999999999999999999999999") for number in range(3)]
    assert "could pass the exact range" in faults(*many)[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"start_date": None}, "start_date: missing; expected YYYY-MM-DD"),
        ({"start_date": '"2025-02-30"'}, "start_date: '2025-02-30'; expected YYYY-MM-DD"),
        ({"start_date": '"20251002"'}, "start_date: '20251002'; expected YYYY-MM-DD"),
        ({"start_date": "20251002"}, "start_date: '20251002'; expected YYYY-MM-DD"),
        ({"resource": '"lkc-1"'}, "resource: 'lkc-1'; expected an object"),
        ({"resource": '{"id": 7}'}, "resource.id: '7'; expected a text"),
        ({"resource": '{"id": "x", "environment": []}'}, "resource.environment: '[]'; expected an object"),
        ({"line_type": "[1.50]"}, "line_type: '[1.50]'; expected a text"),
        (
            {"start_date": "null", "resource": "3"},
            "start_date: missing; expected YYYY-MM-DD; resource: '3'; expected an object",
        ),
    ],
)
def test_a_malformed_record_keeps_its_amount_under_a_name_of_its_own(changes: dict[str, str], error: str) -> None:
    text = record(**changes)
    parsed = costs(text, record(id='"good"'))
    found = parsed.billing.filter(pl.col("resource_id").str.starts_with("malformed_billing_")).row(0, named=True)
    assert (parsed.malformed, found["amount"]) == (1, Decimal("1.10"))
    assert json.loads(found["tags"])["error"] == error
    assert found["charge_date"] == (date(2025, 10, 1) if "start_date" in error else date(2025, 10, 2))
    canonical = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    for as_float, as_came in (("1.1,", "1.10,"), ("[1.5]", "[1.50]")):
        canonical = canonical.replace(as_float, as_came)
    assert found["resource_id"] == f"malformed_billing_{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
    (warning,) = parsed.warnings
    assert warning.startswith("costs 2025-10-01 to 2025-11-01: 1 malformed record(s) of 1.1 in all are booked on ")
    assert warning.endswith(f"for example record 'r1': {error}")


def test_support_and_promotions_have_no_resource() -> None:
    for resource in (None, "null", "{}", '{"id": null, "environment": null}', '{"id": "", "environment": {}}'):
        found = line(costs(record(resource=resource, product='"SUPPORT"', line_type='"SUPPORT"', amount="-3")))
        assert (found["resource_id"], found["env_id"], found["amount"]) == ("", "", Decimal(-3))
        assert json.loads(str(found["tags"])) == {"description": "Storage"}


def test_what_is_absent_is_empty_text_or_null() -> None:
    found = line(costs('{"start_date": "2025-10-02", "amount": 1}'))
    assert [found[name] for name in LINE_KEY[2:-1]] == [""] * 6
    assert (found["quantity"], found["list_amount"], found["tags"]) == (None, None, "{}")


def test_a_sum_of_which_a_part_is_not_known_is_not_known() -> None:
    found = line(costs(record(), record(id="2", quantity="null", original_amount=None)))
    assert (found["amount"], found["quantity"], found["list_amount"]) == (Decimal("2.2"), None, None)


def test_a_quantity_that_is_no_number_is_said() -> None:
    parsed = costs(record(quantity='"many"'))
    assert line(parsed)["quantity"] is None
    assert parsed.warnings == (
        "costs 2025-10-01 to 2025-11-01: 1 record(s) whose quantity is no number have no quantity",
    )


def test_a_record_on_two_pages_counts_once() -> None:
    parsed = costs(pages=[page(record()), page(record(), record(id='"r2"'), record(id="null"), record(id="null"))])
    assert (parsed.records, line(parsed)["amount"]) == (4, Decimal("4.4"))
    assert parsed.warnings == ("costs 2025-10-01 to 2025-11-01: 1 record(s) that came more than once count once",)


def test_one_id_for_two_records_is_an_error() -> None:
    assert faults(record(), record(amount="1.11")) == [
        "costs 2025-10-01 to 2025-11-01, page 1, record 'r1': another record came under the same id; expected an id "
        "for each record"
    ]


def test_a_record_of_another_window_is_left_to_it_and_said() -> None:
    others = [record(id=f'"{day}"', start_date=f'"{day}"') for day in (date(2025, 9, 30), date(2025, 11, 1))]
    parsed = costs(record(), *others)
    assert (parsed.records, parsed.outside, line(parsed)["amount"]) == (1, 2, Decimal("1.10"))
    assert parsed.warnings == (
        "costs 2025-10-01 to 2025-11-01: 2 record(s) of 2.2 in all, of 2025-09-30 to 2025-11-01, are left out: they "
        "count in the answers for their own days",
    )


@pytest.mark.parametrize("changes", [{"end_date": '"2025-11-02"'}, {"granularity": '"MONTHLY"'}])
def test_a_record_of_more_than_a_day_is_booked_on_its_first(changes: dict[str, str]) -> None:
    parsed = costs(record(**changes))
    assert line(parsed)["charge_date"] == date(2025, 10, 2)
    assert parsed.warnings == (
        "costs 2025-10-01 to 2025-11-01: 1 record(s) of more than a day are booked on their start_date",
    )


@pytest.mark.parametrize("changes", [{"end_date": '"2025-10-02"'}, {"end_date": None, "granularity": None}])
def test_ways_to_write_a_day(changes: dict[str, str | None]) -> None:
    assert costs(record(**changes)).warnings == ()


def test_text_from_outside_stays_text() -> None:
    odd = json.dumps('\u2028"\\\x00\x1b[31mü')
    found = line(costs(record(resource=f'{{"id": {odd}, "display_name": {odd}}}', description='"\\ud800x"')))
    assert found["resource_id"] == '\u2028"\\\x00\x1b[31mü'
    assert json.loads(str(found["tags"])) == {"description": "?x", "display_name": '\u2028"\\\x00\x1b[31mü'}


@pytest.mark.parametrize("text", ["", "[]", '{"data": {}}', '{"records": []}', "7"])
def test_a_landed_page_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ContractError, match=r"answer to /x: .*; expected an object with a list, data"):
        costs(pages=[Answer("/x", 200, text)])


def test_a_record_that_is_no_object_is_named() -> None:
    assert faults("7")[0].endswith("page 1: record '7'; expected an object with an amount")
