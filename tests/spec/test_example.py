"""The example of `make run` shows what it says: every basis, every pool at work, next to nothing left over."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from engine import decide, pipeline
from engine.config import Basis
from engine.sources import aws_cur

ACME = Path(__file__).parents[2] / "data" / "fixtures" / "aws" / "acme"


@pytest.fixture(scope="module")
def given() -> decide.Inputs:
    return pipeline.inputs(pipeline.configured(ACME / "prorata.yaml").tenants[0])


@pytest.fixture(scope="module")
def load() -> aws_cur.Load:
    (assembly,) = aws_cur.discover(ACME / "cur", None)
    return aws_cur.load(assembly, "acme")


@pytest.fixture(scope="module")
def found(load: aws_cur.Load, given: decide.Inputs) -> decide.Allocation:
    return decide.allocate_period(load.billing, given)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in ACME.rglob("*") if file.is_file()) < 2_000_000


def test_all_is_charged(load: aws_cur.Load, found: decide.Allocation) -> None:
    assert load.lines == 10_320
    assert load.amounts == {"USD": Decimal("1147.847612904")}
    assert found.chargeback["amount"].sum() == Decimal("1147.847612904")


def test_every_owner_is_charged_what_carries_its_tag(found: decide.Allocation) -> None:
    direct = found.chargeback.filter(pl.col("rule_id") == "direct").group_by("identity_id").agg(pl.col("amount").sum())
    assert dict(direct.rows()) == {
        "data-platform": Decimal("418.503225816"),
        "growth lab": Decimal("9.984"),
        "mobile": Decimal("59.328"),
        "payments": Decimal("115.764645168"),
        "platform": Decimal("9.984"),
        "search": Decimal("163.561290312"),
    }


def test_the_configuration_uses_every_basis_and_scope(given: decide.Inputs) -> None:
    assert set(given.rules.frame["basis"]) == set(get_args(Basis))
    scopes = given.rules.frame.filter(pl.col("rule_id") != "pool:tax", pl.col("basis") == "cost")["metric"]
    assert set(scopes) == {"service_account", "account", "all"}
    assert given.rules.frame.filter(pl.col("part") > 0).height


def test_every_basis_bears_money(given: decide.Inputs, found: decide.Allocation) -> None:
    rungs = given.rules.frame.select("rule_id", "part", "rung", "basis")
    borne = found.chargeback.join(rungs, on=["rule_id", "part", "rung"], how="left", validate="m:1")
    assert set(borne["basis"]) == set(get_args(Basis))


def test_every_pool_matches_lines(given: decide.Inputs, found: decide.Allocation) -> None:
    pools = {pool.rule_id for pool in given.rules.pools}
    # The generator writes no tax; its pool comes with prorata.
    assert pools - set(found.chargeback["rule_id"]) == {"pool:tax"}


def test_less_than_a_hundredth_of_the_untagged_money_stays_unallocated(found: decide.Allocation) -> None:
    untagged = found.chargeback.filter(pl.col("rule_id") != "direct")
    left = untagged.filter(pl.col("identity_id") == "UNALLOCATED")
    assert untagged["amount"].sum() == Decimal("370.722451608")
    assert 0 < left["amount"].sum() < untagged["amount"].sum() / 100
    assert set(left["allocation_detail"]) == {"untagged", "zero_key_total"}


def test_missing_keys_are_recorded(found: decide.Allocation) -> None:
    empty = found.empty_keys.select("charge_date", "metric", "reason").cast(pl.String).rows()
    assert ("2025-10-05", "transfer_gb", "empty_key") in empty
    assert {day for day, metric, _ in empty if metric == "ingested_gb"} == {"2025-10-04", "2025-10-05"}
    assert {reason for _, metric, reason in empty if metric == "restored_gb"} == {"zero_key_total"}
