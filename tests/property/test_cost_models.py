"""Any cost model and any answers: the lines are those of the plain reference, and nothing is lost by splitting them."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import decide, rules
from engine.config import KafkaTenant
from engine.frames import IDENTITIES, RESOURCES, USAGE, empty
from engine.money import to_units
from engine.sources import cost_model, cost_rates
from engine.sources.prometheus import Samples
from tests.reference import costs

FIRST = date(2025, 11, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(6)]
PRODUCTS = {
    "storage": "SELF_KAFKA_STORAGE",
    "ingress": "SELF_KAFKA_NETWORK_INGRESS",
    "egress": "SELF_KAFKA_NETWORK_EGRESS",
}
PRICES = {
    "compute": "compute_hourly_rate",
    "storage": "storage_per_gib_hourly",
    "ingress": "network_ingress_per_gib",
    "egress": "network_egress_per_gib",
}


def decimals(whole: int, places: int) -> st.SearchStrategy[str]:
    """Texts of decimals with up to so many digits before and after the point."""
    after = st.integers(0, places).flatmap(lambda count: st.from_regex(rf"\A[0-9]{{{count}}}\Z"))
    return st.builds(lambda a, b: f"{a}.{b}" if b else str(a), st.integers(0, 10**whole - 1), after)


rates = st.fixed_dictionaries({name: decimals(3, 12) for name in PRICES})
answers = st.fixed_dictionaries({name: st.one_of(st.none(), decimals(18, 12)) for name in PRODUCTS})
periods = st.lists(st.tuples(st.integers(1, 4), rates), min_size=1, max_size=3)


def tenant_of(found: list[tuple[int, dict[str, str]]], brokers: int) -> KafkaTenant:
    """A model whose rates change every few days."""
    dated, start = [], FIRST
    for number, (length, prices) in enumerate(found):
        end = start + timedelta(days=length)
        last = number == len(found) - 1
        dated.append(
            {
                "from": str(start),
                "to": None if last else str(end),
                **{PRICES[name]: price for name, price in prices.items()},
            }
        )
        start = end
    source = {"kind": "cost_model", "cluster_id": "k", "broker_count": str(brokers), "rates": dated}
    given_ = {"url": "http://prometheus:9090"}
    return KafkaTenant.model_validate(
        {"id": "t", "ecosystem": "self_managed_kafka", "source": source, "metrics": given_}
    )


def prices_of(found: list[tuple[int, dict[str, str]]], day: date) -> dict[str, str]:
    start = FIRST
    for length, prices in found[:-1]:
        if day < start + timedelta(days=length):
            return prices
        start += timedelta(days=length)
    return found[-1][1]


def samples(rows: list[tuple[str, str, int]]) -> Samples:
    frame = pl.DataFrame(rows, schema={"window": pl.String, "value": pl.String, "points": pl.UInt32}, orient="row")
    values = frame.with_columns(pl.col("value").cast(pl.Decimal(38, 12)))
    return Samples(values, values.select("window", "points").clear(), ())


@settings(max_examples=150, deadline=None)
@given(periods, st.integers(0, 10_000), st.lists(answers, min_size=6, max_size=6), st.integers(1, 24))
def test_lines_are_those_of_the_reference(
    found: list[tuple[int, dict[str, str]]], brokers: int, told: list[dict[str, str | None]], points: int
) -> None:
    tenant = tenant_of(found, brokers)
    by_question = {
        name: samples(
            [
                (str(day), said[name] or "", points)
                for day, said in zip(DAYS, told, strict=True)
                if said[name] is not None
            ]
        )
        for name in PRODUCTS
    }
    made = cost_model.bill(tenant, DAYS, by_question)
    expected = {}
    for day, said in zip(DAYS, told, strict=True):
        prices = prices_of(found, day)
        expected[day, "SELF_KAFKA_COMPUTE"] = costs.fixed(str(brokers), prices["compute"])
        for name, product in PRODUCTS.items():
            answer = said[name]
            if answer is not None:
                line = (
                    costs.stored(answer, points, prices[name])
                    if name == "storage"
                    else costs.moved(answer, prices[name])
                )
                expected[day, product] = line
    rows = made.billing.select(
        "charge_date", "product_type", to_units(pl.col("quantity")), to_units(pl.col("amount"))
    ).rows()
    assert {(day, product): costs.Line(quantity, amount) for day, product, quantity, amount in rows} == expected
    # What rounding took is less than half a unit a line.
    assert all(abs(residue) <= Fraction(4, 2 * costs.UNITS) for residue in made.residues.values())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["bytes_in", "bytes_out"]), decimals(15, 6)), max_size=8
    ),
    answers,
    st.sampled_from(["prometheus", "static", "both"]),
)
def test_nothing_is_lost_by_splitting(
    used: list[tuple[str, str, str]], said: dict[str, str | None], source: str
) -> None:
    tenant = tenant_of([(1, dict.fromkeys(PRICES, "0.123456789"))], 3)
    model = tenant.source.model_copy(update={"identity_source": source})
    static = [] if source == "prometheus" else [{"id": "x"}, {"id": "y"}]
    model = type(model).model_validate({**model.model_dump(by_alias=True, mode="json"), "static_identities": static})
    tenant = tenant.model_copy(update={"source": model})
    by_question = {
        name: samples([(str(FIRST), answer, 24)] if answer is not None else []) for name, answer in said.items()
    }
    if source != "static":
        for metric in ("bytes_in", "bytes_out"):
            latest = {principal: value for principal, name, value in used if name == metric}
            frame = pl.DataFrame(
                [(str(FIRST), principal, value, 1) for principal, value in sorted(latest.items())],
                schema={"window": pl.String, "principal": pl.String, "value": pl.String, "points": pl.UInt32},
                orient="row",
            ).with_columns(pl.col("value").cast(pl.Decimal(38, 12)))
            by_question[metric] = Samples(frame, frame.clear(), ())
    billing = cost_model.bill(tenant, [FIRST], by_question).billing
    usage = cost_model.usage(tenant, [FIRST], by_question)
    assert (set(usage["principal"]) <= set("abcd")) == (source == "prometheus")
    facts = decide.DayFacts(empty(RESOURCES), empty(IDENTITIES), usage, frozenset())
    rows = decide.allocate_day(billing, decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE)), facts).chargeback
    sums = rows.group_by("line_id").agg(pl.col("amount").sum()).sort("line_id")
    assert sums.rows() == billing.select("line_id", "amount").sort("line_id").rows()
    assert cost_rates.model_digest(tenant, FIRST) == cost_rates.model_digest(tenant, DAYS[-1])
