"""`run --force` through the command line: what it says is true."""

from __future__ import annotations

import re
import shutil
from datetime import date
from pathlib import Path

from tests.doubles.confluent_cloud import Server
from tests.doubles.front import front
from tests.doubles.organization import Record
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import FIRST, VARIABLES, Tenant, day
from tests.integration.measured import NOWHERE, TODAY
from tests.integration.said import Said

SPOILT = day(2)
"""A day with a sample that is no number."""
LATE = "lkc-test1"
"""A cluster whose lines of a day come late."""


def ask(tenant: Tenant, url: str) -> None:
    """Another Prometheus from now on."""
    tenant.write(metrics=tenant.tenant["metrics"] | {"url": url})


def forced(tenant: Tenant, *words: str) -> Said:
    return Said(tenant, "run", "--force", "--today", str(TODAY), *words, **VARIABLES)


def lines(said: Said, *words: str) -> list[str]:
    """The warnings with these words."""
    return [one for one in said.err.splitlines() if "warning: " in one and all(word in one for word in words)]


def withdrawn(server: Server, when: date) -> list[Record]:
    """All records of the cluster are withdrawn; those of a day."""
    found = server.organization.records(FIRST, TODAY)
    # Where there is no object, there is a malformed record.
    late = [one for one in found if isinstance(one.get("resource"), dict) and one["resource"].get("id") == LATE]
    server.organization.withdraw(*(one["id"] for one in late))
    return [one for one in late if one.get("start_date") == str(when)]


def lose_usage(tenant: Tenant, when: date) -> None:
    (tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{when}.parquet").unlink()


def test_a_day_of_which_two_things_are_asked_again_is_counted_once(
    tenant: Tenant, server: Server, measured: str
) -> None:
    late = withdrawn(server, SPOILT)
    # What comes may be a part only, and samples that are no numbers cannot be had.
    with front(measured, None, ["1 of 2 stores is down"], refused=["query="]) as url:
        ask(tenant, url)
        assert [tenant.run(TODAY, hour=hour).days_pending for hour in (1, 2)] == [1, 0]
        for record in late:
            server.organization.add_cost(SPOILT, record)
        ask(tenant, NOWHERE["url"])
        assert [tenant.run(TODAY, hour=hour).days_pending for hour in (3, 4)] == [1, 0]
        said = forced(tenant)
        told = lines(said, "given up")
        assert (said.code, len(told)) == (11, 2), said.err
        assert all(f"given up for 1 day from {SPOILT} on" in one for one in told)
        ask(tenant, url)
        said = forced(tenant)
        assert (said.code, len(lines(said, "that are no numbers"))) == (0, 1), said.err


def test_a_day_that_is_asked_for_again_and_lacks_nothing_is_not_called_given_up(tenant: Tenant, measured: str) -> None:
    tenant.write(allocation_retry_limit="1")
    with front(measured, None, ["1 of 2 stores is down"]) as url:
        ask(tenant, url)
        tenant.run(TODAY)
    files = tenant.files()
    ask(tenant, NOWHERE["url"])
    said = forced(tenant)
    assert (said.code, lines(said), tenant.files() == files) == (11, [], True), said.err
    assert "metrics bytes_in, bytes_out, flink_cfu, 2025-09-01 to 2025-09-08: GET" in said.err
    assert tenant.query("SELECT DISTINCT status, attempts FROM day_metrics") == [("fetched", 0)]


def test_a_day_of_which_less_is_said_twice_is_counted_once(
    tenant: Tenant, server: Server, measured: str, tmp_path: Path
) -> None:
    late, landed = withdrawn(server, day(6)), tenant.root / "raw/confluent_cloud/conf/metrics"
    with front(measured, None, ["1 of 2 stores is down"]) as url:
        ask(tenant, url)
        tenant.run(TODAY, hour=1)
    for record in late:
        server.organization.add_cost(day(6), record)
    ask(tenant, measured)
    before = set(landed.iterdir())
    tenant.run(TODAY, hour=2)
    for one in set(landed.iterdir()) - before:
        shutil.rmtree(one)
    lose_usage(tenant, day(6))
    with prometheus([Row("other", {}, 0, 1)], tmp_path / "expired") as expired:
        ask(tenant, expired)
        said = forced(tenant)
    [told] = lines(said, "bytes_in", "says less of 8 days (")
    assert told.count(str(day(6))) == 1


def test_a_named_day_is_charged_without_its_usage_if_prometheus_is_down(tenant: Tenant, server: Server) -> None:
    tenant.run(TODAY)
    files, named = tenant.files(["chargeback"]), ("--from", str(SPOILT), "--to", str(day(3)))
    lose_usage(tenant, SPOILT)
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    ask(tenant, NOWHERE["url"])
    said = Said(tenant, "run", "--today", str(TODAY), **VARIABLES)
    told = "`prorata run --force` with --from and --to charges the days that they name by what there is"
    assert (said.code, len(lines(said, "is lost", told))) == (11, 1), said.err
    assert tenant.files(["chargeback"]) == files
    said = forced(tenant, *named)
    assert (said.code, len(lines(said, "given up for 1 day")), lines(said, "is lost")) == (11, 3, []), said.err
    assert tenant.total() == server.organization.total()
    changed = {name for name, digest in tenant.files(["chargeback"]).items() if files[name] != digest}
    assert [re.findall("[0-9]{4}-[0-9]{2}-[0-9]{2}", name) for name in changed] == [[str(SPOILT)]]
    said = Said(tenant, "run", "--today", str(TODAY), **VARIABLES)
    assert (said.code, lines(said)) == (0, [])


def test_the_help_says_what_becomes_of_named_days(tenant: Tenant) -> None:
    told = " ".join(Said(tenant, "run", "--help").out.split())
    assert "With --from and --to, make the days that they name of what there is, be it less than before." in told
