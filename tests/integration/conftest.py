"""A Confluent Cloud tenant, its API and its Prometheus, for the tests that need all three (`measured`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served
from tests.doubles.organization import Organization
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import FIRST, Tenant
from tests.integration.measured import DAYS, METRICS, TODAY


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that holds the metrics."""
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in METRICS.samples())
    with prometheus(rows, tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@pytest.fixture(scope="session")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has forgotten all of it, and answers well."""
    with prometheus([Row("other", {}, 0, 1)], tmp_path_factory.mktemp("expired")) as url:
        yield url


@pytest.fixture
def organization() -> Organization:
    return bundled(FIRST, DAYS)


@pytest.fixture
def server(organization: Organization) -> Iterator[Server]:
    with served(organization) as found:
        yield found


def _tenant(folder: Path, server: Server, measured: str) -> Tenant:
    made = Tenant(folder, server, measured, lookback_days="10")
    made.tenant["metrics"]["scrape_seconds"] = "21600"
    made.write()
    return made


@pytest.fixture
def tenant(tmp_path: Path, server: Server, measured: str) -> Tenant:
    """A tenant with metrics, whose window covers all days from the day after the last."""
    return _tenant(tmp_path / "conf", server, measured)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, measured: str) -> Path:
    """The root of such a tenant after its first run."""
    with served(bundled(FIRST, DAYS)) as found:
        made = _tenant(tmp_path_factory.mktemp("stored") / "conf", found, measured)
        assert made.run(TODAY).exit_code == 0
        return made.root


@pytest.fixture
def ran(tenant: Tenant, stored: Path) -> None:
    """The tenant after its first run, as `tenant.run(TODAY)` leaves it: made once, since most tests begin so.

    But that its own server says the same in other bytes (there is an address in it), so costs are published once more.
    """
    shutil.copytree(stored, tenant.root)
    tenant.runs = 1
