"""Whatever tiers, malformed rows and repetitions the costs hold: not a unit of money is lost or made."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.sources.answers import Answer
from engine.sources.confluent import parse_costs

FIRST, END = date(2025, 10, 1), date(2025, 11, 1)
AMOUNTS = st.decimals(min_value=-(10**11), max_value=10**11, places=20) | st.decimals(
    min_value=-1000, max_value=1000, places=2
)
IDS = st.sampled_from(["lkc-1", "lkc-2", "", None, "lfcp-ü"])
RESOURCES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.fixed_dictionaries({"id": IDS}, optional={"environment": st.none() | st.fixed_dictionaries({"id": IDS})}),
    st.sampled_from(["lkc-1", 7, [], {"id": []}, {"id": "x", "environment": "env-1"}]),
)
DAYS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 33).map(lambda days: (FIRST + timedelta(days)).isoformat()),
    st.sampled_from(["2025-10-02"] * 5 + ["", None, "yesterday", 20251002]),
)
RECORDS = st.fixed_dictionaries(
    {"amount": AMOUNTS},
    optional={
        "start_date": DAYS,
        "resource": RESOURCES,
        "product": st.sampled_from(["KAFKA", None, 1]),
        "line_type": st.sampled_from(["KAFKA_BASE", "SUPPORT", {}]),
        "unit": st.sampled_from(["GB", None]),
        "quantity": st.sampled_from([1, None, "x"]),
        "tier_dimensions": st.sampled_from([{}, {"tier": "1"}, None]),
    },
)


def text(record: dict[str, Any]) -> str:
    """JSON with the amount as its digits."""
    rest = json.dumps({name: value for name, value in record.items() if name != "amount"})[1:]
    return f'{{"amount": {record["amount"]}{", " if rest != "}" else ""}{rest}'


@given(st.lists(RECORDS, max_size=30), st.lists(st.integers(0, 29), max_size=5), st.integers(1, 7))
def test_the_total_is_kept(records: list[dict[str, Any]], repeated: list[int], page_size: int) -> None:
    texts = [text(record | {"id": f"r{number}"}) for number, record in enumerate(records)]
    texts += [texts[number] for number in repeated if number < len(texts)]
    pages = [
        Answer("/costs", 200, f'{{"data": [{", ".join(texts[start : start + page_size])}]}}')
        for start in range(0, len(texts), page_size)
    ]
    parsed = parse_costs(pages, "acme", (FIRST, END), "USD")

    def is_outside(record: dict[str, Any]) -> bool:
        day = record.get("start_date")
        return isinstance(day, str) and day[:3] == "202" and not FIRST.isoformat() <= day < END.isoformat()

    expected = sum((record["amount"] for record in records if not is_outside(record)), Decimal(0))
    booked = sum(parsed.billing["amount"].to_list(), Decimal(0))
    assert booked + parsed.residue == expected
    assert parsed.records + parsed.outside == len(records)
    assert parsed.outside == sum(map(is_outside, records))
    assert parsed.billing["charge_date"].is_between(FIRST, END, closed="left").all()
    shuffled = parse_costs(pages[::-1], "acme", (FIRST, END), "USD")
    assert shuffled.billing.equals(parsed.billing)
