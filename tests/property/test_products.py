"""What must hold of the days of every organization, whatever its rules, inventory and metrics are."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from engine import decide
from engine.frames import CHARGEBACK
from tests.differential.calculated_days import calculated, frames
from tests.differential.organizations import DAYS, organization
from tests.property.strategies import DETERMINED

FEW = settings(DETERMINED, max_examples=8)
AMOUNTS = ["amount", "list_amount", "part_amount"]
seeds = st.integers(1000, 2**32)
"""Of other organizations than those that the differential tests look at."""


def units(chargeback: pl.DataFrame) -> pl.DataFrame:
    return chargeback.with_columns(pl.col(AMOUNTS).reinterpret(dtype=pl.Int128))


def negated(text: str | None) -> str | None:
    return None if text is None else text[1:] if text.startswith("-") else f"-{text}"


@FEW
@given(seeds)
def test_nothing_leaks(seed: int) -> None:
    """Every measure of every line, and of every currency, is there to the last unit."""
    given_ = organization(seed)
    made = frames(given_)
    rows = calculated(made).chargeback
    for keys in (["line_id"], ["charge_date", "currency"]):
        found = rows.group_by(keys).agg(pl.col("amount", "list_amount").sum()).sort(keys)
        billed = made.billing.group_by(keys).agg(pl.col("amount", "list_amount").sum()).sort(keys)
        assert_frame_equal(found, billed)


@FEW
@given(seeds)
def test_a_refund_cancels_its_charge_for_every_identity(seed: int) -> None:
    given_ = organization(seed)
    refunds: list[dict[str, Any]] = [
        {**line, "amount": negated(line["amount"]), "list": negated(line["list"])} for line in given_.lines
    ]
    charged = units(calculated(frames(given_)).chargeback)
    refunded = units(calculated(frames(given_._replace(lines=refunds))).chargeback)
    assert_frame_equal(refunded, charged.with_columns(pl.col(AMOUNTS) * pl.lit(-1, pl.Int128)))


@FEW
@given(seeds)
def test_the_order_of_rows_has_no_effect(seed: int) -> None:
    given_ = organization(seed)
    shuffled = given_._replace(
        lines=[*given_.lines],
        resources=[*given_.resources],
        identities=[*given_.identities],
        usage=[*given_.usage],
    )
    for rows in (shuffled.lines, shuffled.resources, shuffled.identities, shuffled.usage):
        random.Random(seed).shuffle(rows)
    one, other = frames(given_), frames(shuffled)
    found, again = calculated(one), calculated(other)
    assert_frame_equal(again.chargeback, found.chargeback)
    assert_frame_equal(again.empty_keys, found.empty_keys)
    for day in DAYS:
        assert decide.facts_digest(day, one.facts) == decide.facts_digest(day, other.facts)
    assert decide.metrics_needed(one.billing, one.given) == decide.metrics_needed(other.billing, other.given)


@FEW
@given(seeds)
def test_who_may_never_weigh_bears_nothing_that_is_split(seed: int) -> None:
    given_ = organization(seed)
    rows = calculated(frames(given_)).chargeback.filter(
        pl.col("allocation_method").is_in(["usage_ratio", "even_split"])
    )
    barred = ["", "UNALLOCATED", given_.tenant.get("operator", "UNALLOCATED")]
    assert not rows["identity_id"].is_in(barred).any()
    assert (rows["weight"] > 0).all()


@FEW
@given(seeds)
def test_metrics_that_are_not_needed_have_no_effect(seed: int) -> None:
    """What is not asked for need not be fetched: without it every row is the same."""
    given_ = organization(seed)
    made = frames(given_)
    needed = decide.metrics_needed(made.billing, made.given)
    wanted = [
        row for row in given_.usage
        if row["metric"] == "running_statements" or row["resource_id"] in needed.get(row["metric"], [])
    ]  # fmt: skip
    asked = frames(given_._replace(usage=wanted))
    assert_frame_equal(calculated(asked).chargeback, calculated(made).chargeback)


@FEW
@given(seeds)
def test_facts_of_equal_digests_give_equal_charges(seed: int) -> None:
    """Names, times of sight and whatever was not there on the day do not count; nor may they change a row."""
    given_ = organization(seed)
    made = frames(given_)
    for day in DAYS:
        end = pl.lit(day).cast(pl.Datetime("us")) + pl.duration(days=1)
        other = made.facts._replace(
            resources=made.facts.resources.with_columns(
                display_name=pl.when(pl.col("type") == "flink_statement")
                .then(pl.col("display_name"))
                .otherwise(pl.lit("another name")),
                deleted_at=pl.when(pl.col("deleted_at") < end).then(pl.col("deleted_at")),
                last_seen_at=end,
            ),
            identities=made.facts.identities.with_columns(display_name=pl.lit("another name"), first_seen_at=end),
        )
        assert decide.facts_digest(day, other) == decide.facts_digest(day, made.facts)
        billing = made.billing.filter(pl.col("charge_date") == day)
        assert_frame_equal(
            decide.allocate_day(billing, made.given, other).chargeback,
            decide.allocate_day(billing, made.given, made.facts).chargeback,
        )


@FEW
@given(seeds)
def test_days_that_are_decided_in_one_are_as_if_each_were_alone(seed: int) -> None:
    """Whatever differs between them: lines, rules that are derived for a day, who there is, what failed."""
    made = frames(organization(seed))
    billed = [day for day in DAYS if made.billing.filter(pl.col("charge_date") == day).height]
    failed = {str(day): made.facts.failed if number % 2 else frozenset() for number, day in enumerate(billed)}
    together = decide.decide_product_days(made.billing, made.given, made.facts, failed)
    found = decide.by_day(together.lines, together.decided)
    assert sorted(found) == billed
    for day in billed:
        facts = made.facts._replace(failed=failed[str(day)])
        alone = decide.decide_products(made.billing.filter(pl.col("charge_date") == day), made.given, facts)
        lines, decided = found[day]
        assert_frame_equal(lines, alone.lines)
        for of_day, expected in zip(decided.plan, alone.decided.plan, strict=True):
            assert_frame_equal(of_day, expected)
        assert_frame_equal(decided.empty_keys, alone.decided.empty_keys)


@FEW
@given(seeds)
def test_rows_come_in_the_order_of_the_key_and_are_unique(seed: int) -> None:
    given_ = organization(seed)
    keys = calculated(frames(given_)).chargeback.select(CHARGEBACK.key).rows()
    assert keys == sorted(set(keys))
