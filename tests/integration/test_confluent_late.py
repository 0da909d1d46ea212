"""Inventories that are folded late, by a replay that can read them: what they say is known then, and nothing is lost.

Neither the usage of their days, if that is lost, nor what gathers said that are no longer kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date

import polars as pl
import pytest

from engine.errors import StoppedError
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import Tenant, day
from tests.integration.measured import TODAY
from tests.integration.test_confluent_replay import ALL_LANDED, landing, ran_on, replay, spoil
from tests.integration.test_confluent_usage import file_of, tear

LATE = day(7)
"""The day whose inventory is folded late."""


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has forgotten all of it, and answers well."""
    with prometheus([Row("other", {}, 0, 1)], tmp_path_factory.mktemp("expired")) as url:
        yield url


def left_out(tenant: Tenant) -> str:
    """An inventory of a day that no parser understands, and what it said."""
    tenant.run(day(6))
    with pytest.raises(StoppedError):
        tenant.run(LATE, stop_at=ALL_LANDED)
    good = max((page.text for page in landing(tenant, 2).read("connectors")), key=len)
    spoil(tenant, 2, "connectors", good, "[1]")
    return good


def usage_of(tenant: Tenant, when: date) -> pl.DataFrame:
    return tenant.table("usage").filter(window=str(when)).sort("resource_id", "metric", "principal")


# Usage of its day that is lost


@pytest.mark.parametrize("how", ["gone", "torn", "gone, without metrics"])
def test_what_a_late_inventory_says_does_not_pass_for_the_usage_that_its_day_lost(
    tenant: Tenant, expired: str, measured: str, how: str
) -> None:
    good = left_out(tenant)
    assert tenant.run(TODAY).exit_code == 0
    metered, charged = usage_of(tenant, LATE), tenant.table("chargeback")
    assert (metered.height > 0, ran_on(tenant, LATE)) == (True, set())
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    if how == "torn":
        tear(file_of(tenant, "usage", 7))
    else:
        file_of(tenant, "usage", 7).unlink()
    spoil(tenant, 2, "connectors", "[1]", good)
    metrics = tenant.tenant["metrics"]
    tenant.write(metrics=None if how == "gone, without metrics" else metrics | {"url": expired})
    assert replay(tenant) == (0, ())
    done = tenant.run(TODAY, hour=10)
    assert (done.exit_code, tenant.table("chargeback").equals(charged)) == (0, True)
    assert any("usage of 1 day (2025-09-08) is lost, and cannot be had now" in text for text in done.warnings)
    # What it lost is asked for until it is whole again, and then it has what ran, too.
    tenant.write(metrics=metrics | {"url": measured})
    assert tenant.run(TODAY, hour=11).exit_code == 0
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    assert usage_of(tenant, LATE).filter(pl.col("metric") != "running_statements").equals(metered)


@pytest.mark.parametrize("how", ["gone", "torn", "there"])
def test_without_metrics_a_late_inventory_says_all_there_is_of_its_day(tenant: Tenant, how: str) -> None:
    tenant.write(metrics=None)
    good = left_out(tenant)
    # The run that goes on with it ends, and the one after it asks anew.
    assert [tenant.run(LATE, hour=hour).exit_code for hour in (20, 21)] == [12, 0]
    assert tenant.run(TODAY).exit_code == 0
    once = usage_of(tenant, LATE)
    assert ran_on(tenant, LATE) == ran_on(tenant, day(6)) != set()
    if how == "gone":
        file_of(tenant, "usage", 7).unlink()
    elif how == "torn":
        tear(file_of(tenant, "usage", 7))
    spoil(tenant, 2, "connectors", "[1]", good)
    assert replay(tenant) == (0, ())
    assert usage_of(tenant, LATE).equals(once)
    assert tenant.run(TODAY, hour=10).warnings == ()
