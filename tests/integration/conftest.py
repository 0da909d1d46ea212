"""A Confluent Cloud tenant, its API and its Prometheus, for the tests that need all three (`measured`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served
from tests.doubles.organization import Organization
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import FIRST, Tenant
from tests.integration.measured import DAYS, METRICS


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that holds the metrics."""
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in METRICS.samples())
    with prometheus(rows, tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@pytest.fixture
def organization() -> Organization:
    return bundled(FIRST, DAYS)


@pytest.fixture
def server(organization: Organization) -> Iterator[Server]:
    with served(organization) as found:
        yield found


@pytest.fixture
def tenant(tmp_path: Path, server: Server, measured: str) -> Tenant:
    """A tenant with metrics, whose window covers all days from the day after the last."""
    made = Tenant(tmp_path / "conf", server, measured, lookback_days="10")
    made.tenant["metrics"]["scrape_seconds"] = "21600"
    made.write()
    return made
