"""What was metered once stays: usage that is lost, answers that say less than before, and a Prometheus that forgets."""

from __future__ import annotations

import re
import shutil
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from engine import pipeline, plan
from engine.errors import StoppedError, StoreError
from engine.work import Summary
from tests.doubles.confluent_cloud import Server
from tests.doubles.front import front
from tests.doubles.organization import Record
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import Tenant, day
from tests.integration.measured import DAYS, METRICS, NOWHERE, TODAY

LOST = day(2)


def ask(tenant: Tenant, url: str) -> None:
    """Another Prometheus from now on."""
    tenant.write(metrics=tenant.tenant["metrics"] | {"url": url})


def file_of(tenant: Tenant, table: str, when: int) -> Path:
    """A day's file in the lake."""
    return tenant.root / f"lake/{table}/tenant_id=conf/month=2025-09/{day(when)}.parquet"


def lose_usage(tenant: Tenant, *, answers: bool = False) -> None:
    """The usage of a day is gone, and the landed answers too if they are to be."""
    file_of(tenant, "usage", 2).unlink()
    if answers:
        shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")


def lose_state(tenant: Tenant) -> None:
    """Nothing is known any more."""
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (tenant.root / name).unlink(missing_ok=True)


def tear(file: Path) -> None:
    """The end of a file is zeros, and its size the same."""
    torn = file.read_bytes()[:-200] + bytes(200)
    file.unlink()
    file.write_bytes(torn)


def outputs(tenant: Tenant) -> dict[str, str | None]:
    return {name: one.output_digest for name, one in tenant.days().items()}


def changed(before: dict[str, str | None], tenant: Tenant) -> list[str]:
    after = outputs(tenant)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def split(tenant: Tenant, resource: str = "lkc-prod1", when: int = 6) -> set[str]:
    """By what the writing of a cluster is split on a day."""
    rows = tenant.table("chargeback").filter(
        pl.col("charge_date") == day(when),
        pl.col("product_type") == "KAFKA_NETWORK_WRITE",
        pl.col("resource_id") == resource,
    )
    return set(rows["allocation_detail"])


def revise(server: Server, when: int = 2) -> None:
    """Another bill of a day."""
    record = server.organization.find(day(when), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(1000))


def withdrawn(server: Server, cluster: str) -> list[Record]:
    """All records of a cluster, which are billed no more."""
    kinds = ("NETWORK_WRITE", "NETWORK_READ", "PARTITION", "BASE", "STORAGE", "NUM_CKU")
    found = [
        record
        for number in range(DAYS)
        for kind in kinds
        for record in server.organization.find(day(number), f"KAFKA_{kind}", cluster)
    ]
    server.organization.withdraw(*(record["id"] for record in found))
    return found


def seen(done: Summary) -> tuple[int, int, int]:
    return done.exit_code, done.days_calculated, done.days_pending


# Answers are kept


@pytest.mark.parametrize("again", ["run", "recalculate", "replay"])
@pytest.mark.usefixtures("ran")
def test_lost_usage_is_read_from_landed_answers_and_nobody_is_asked(
    tenant: Tenant, server: Server, expired: str, again: str
) -> None:
    before = tenant.files()
    lose_usage(tenant)
    ask(tenant, expired)
    server.forget()
    how = (TODAY,) if again == "run" else (TODAY, "recalculate", {})
    done = tenant.run(*how, hour=5, replay=again == "replay")
    assert (done.exit_code, done.requests, done.days_pending, tenant.files() == before) == (
        0,
        server.counted(),
        0,
        True,
    )


@pytest.mark.usefixtures("ran")
def test_lost_usage_whose_answers_are_gone_is_fetched_again(tenant: Tenant, server: Server) -> None:
    before = tenant.files()
    lose_usage(tenant, answers=True)
    server.forget()
    done = tenant.run(TODAY, hour=5)
    # What the server is, three metrics of which two are counted, and one sample that is no number.
    assert (done.exit_code, done.requests - server.counted(), tenant.files() == before) == (0, 1 + 3 + 2 + 1, True)


@pytest.mark.parametrize("prometheus_is", ["the same", "expired"])
def test_a_late_line_asks_for_its_own_resource_and_changes_no_other(
    tenant: Tenant, server: Server, expired: str, prometheus_is: str
) -> None:
    organization = server.organization
    late = list(organization.find(day(6), "KAFKA_NETWORK_WRITE", "lkc-test1"))
    withdrawn(server, "lkc-test1")
    tenant.run(TODAY)
    before, used = outputs(tenant), tenant.table("usage")
    for record in late:
        organization.add_cost(day(6), record)
    if prometheus_is == "expired":
        ask(tenant, expired)
    done = tenant.run(TODAY, hour=5)
    assert (done.exit_code, changed(before, tenant)) == (0, [str(day(6))])
    assert split(tenant) == {"usage_ratio_allocation"}
    after = tenant.table("usage")
    assert after.join(used, on=used.columns, how="semi").height == used.height
    added = after.filter(pl.col("resource_id") == "lkc-test1")
    assert set(added["window"]) == ({str(day(6))} if prometheus_is == "the same" else set())
    ids, fetches = tenant.query(
        f"SELECT ids, fetches ->> '$.lkc-prod1' < fetches ->> '$.lkc-test1' FROM day_metrics"
        f" WHERE charge_date = '{day(6)}' AND metric = 'bytes_in'"
    )[0]
    assert ("lkc-test1" in ids, fetches) == (True, 1)
    files = tenant.files()
    done = tenant.run(TODAY, "recalculate", {}, hour=6, replay=True)
    assert (done.exit_code, tenant.files() == files) == (0, True)
    lost = tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{day(6)}.parquet"
    lost.unlink()
    assert (tenant.run(TODAY, "recalculate", {}, hour=6).exit_code, tenant.files() == files) == (0, True)


def test_a_late_line_whose_metrics_are_given_up_takes_no_other_with_it(
    tenant: Tenant, server: Server, measured: str
) -> None:
    organization = server.organization
    late = [one for one in withdrawn(server, "lkc-test1") if one.get("start_date") == str(day(6))]
    tenant.run(TODAY)
    before = tenant.table("chargeback").filter(pl.col("charge_date") == day(6)).drop("calculation_id")
    for record in late:
        organization.add_cost(day(6), record)
    tenant.write(metrics=NOWHERE)
    assert seen(tenant.run(TODAY, hour=2)) == (11, 0, 1)
    # The whole day waits for one of its resources.
    config = pipeline.configured(tenant.file)
    [planned] = plan.plan(config, config.tenants, TODAY)
    [waits] = [one for one in planned.days if one.calculate]
    assert (waits.charge_date, waits.calculate_reason) == (str(day(6)), "metrics_failed")
    assert waits.detail.startswith("bytes_out of 1 of 4 resources, attempt 1 of 2: ")
    done = tenant.run(TODAY, hour=3)
    assert seen(done) == (11, 1, 0)
    assert any("the lines of resources that were not answered" in text for text in done.warnings)
    after = tenant.table("chargeback").filter(pl.col("charge_date") == day(6)).drop("calculation_id")
    failed = after.filter(allocation_method="allocation_failed")
    assert (set(failed["resource_id"]), set(failed["identity_id"])) == ({"lkc-test1"}, {"UNALLOCATED"})
    assert split(tenant, "lkc-test1") == {"metrics_fetch_failed"}
    rest, known = (one.filter(pl.col("resource_id") != "lkc-test1") for one in (after, before))
    assert rest.filter(allocation_detail="usage_ratio_allocation").height > 0
    assert rest.sort(rest.columns).equals(known.sort(rest.columns))
    assert seen(tenant.run(TODAY, hour=4)) == (0, 0, 0)
    ask(tenant, measured)
    assert seen(tenant.run(TODAY, hour=5, lift=True)) == (0, 1, 0)
    assert split(tenant, "lkc-test1") == {"usage_ratio_allocation"}


@pytest.mark.usefixtures("ran")
def test_a_resource_that_is_billed_again_is_what_was_answered_once(
    tenant: Tenant, server: Server, expired: str
) -> None:
    files, organization = tenant.files(), server.organization
    records = [one for one in organization.records(day(6), day(7)) if one.get("resource", {}).get("id") == "lkc-prod1"]
    organization.withdraw(*(one["id"] for one in records))
    tenant.run(TODAY, hour=5)
    assert "lkc-prod1" not in set(tenant.table("usage").filter(window=str(day(6)))["resource_id"])
    for record in records:
        organization.add_cost(day(6), record)
    ask(tenant, expired)
    assert (tenant.run(TODAY, hour=6).exit_code, tenant.files() == files) == (0, True)


# The state is lost


@pytest.mark.parametrize("kept", ["answers", "usage", "answers of an older state"])
def test_a_lost_state_loses_no_usage(tenant: Tenant, expired: str, kept: str) -> None:
    if kept == "answers of an older state":
        tenant.run(day(4))
        shutil.copy(tenant.root / "state.db", tenant.folder / "older.db")
    tenant.run(TODAY)
    files = tenant.files(["usage"])
    by_detail = split_by_detail(tenant)
    lose_state(tenant)
    if kept == "answers of an older state":
        shutil.copy(tenant.folder / "older.db", tenant.root / "state.db")
    if kept == "usage":
        shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    ask(tenant, expired)
    done = tenant.run(TODAY, hour=5)
    assert (done.exit_code, tenant.files(["usage"]) == files, split_by_detail(tenant)) == (0, True, by_detail)
    told = [text for text in done.warnings if "Prometheus says less" in text]
    assert [text.partition(":")[0] for text in told] == (
        ["metric bytes_in", "metric bytes_out", "metric flink_cfu"] if kept == "usage" else []
    )
    # Of what has no samples it is not known that it was asked for; of the rest nobody asks any more.
    again = tenant.run(TODAY, hour=6)
    assert (seen(again), again.warnings) == ((0, 0, 0), tuple(text for text in again.warnings if "less" not in text))
    done = tenant.run(TODAY, "recalculate", {}, hour=7, replay=True)
    assert (done.exit_code, tenant.files(["usage"]) == files, split_by_detail(tenant)) == (0, True, by_detail)


@pytest.mark.parametrize("prometheus_is", ["the same", "expired"])
@pytest.mark.parametrize("state_is", ["lost", "older"])
def test_a_lost_state_takes_no_usage_from_days_before_the_window(
    tenant: Tenant, expired: str, tmp_path: Path, prometheus_is: str, state_is: str
) -> None:
    tenant.write(lookback_days="4", retention_days="5")
    for number in range(1, DAYS + 1):
        assert tenant.run(day(number)).exit_code == 0
        if number == 2:
            shutil.copy(tenant.root / "state.db", tmp_path / "older.db")
    used, charged, by_detail = tenant.files(["usage"]), tenant.files(["chargeback"]), split_by_detail(tenant)
    lose_state(tenant)
    if state_is == "older":
        shutil.copy(tmp_path / "older.db", tenant.root / "state.db")
    if prometheus_is == "expired":
        ask(tenant, expired)
    for hour in (1, 2):
        done = tenant.run(TODAY, hour=hour)
        # The bill of the second day came in full after the older state was kept: a replay is what it asks for.
        assert (done.exit_code, tenant.files(["usage"]) == used) == (14 if state_is == "older" else 0, True)
        assert all("--replay" in text for text in done.faults)
        [told] = [text for text in done.warnings if "not known to state.db" in text]
        # An older state knows the first two, and what ran on its own day.
        unknown = range(3 if state_is == "older" else 0, 4)
        assert [str(day(number)) in told for number in range(DAYS)] == [number in unknown for number in range(DAYS)]
        assert not any("is lost" in text for text in done.warnings)
    assert tenant.files(["chargeback"]) == charged
    # Their costs are landed, though what Prometheus said of them is not any more.
    assert tenant.run(TODAY, "recalculate", {}, hour=3, replay=True).exit_code == 0
    done = tenant.run(TODAY, hour=4)
    assert (done.exit_code, tenant.files(["usage"]) == used, split_by_detail(tenant)) == (0, True, by_detail)
    assert not any("not known to state.db" in text for text in done.warnings)


@pytest.mark.usefixtures("ran")
def test_a_lost_state_loses_no_usage_if_prometheus_is_down_either(tenant: Tenant, measured: str) -> None:
    files, by_detail, used = tenant.files(["usage"]), split_by_detail(tenant), tenant.table("usage")
    known = set(used.filter(metric="bytes_in").select("window", "resource_id").rows())
    lose_state(tenant)
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    tenant.write(metrics=NOWHERE)
    assert seen(tenant.run(TODAY, hour=2)) == (11, 0, DAYS)
    assert seen(tenant.run(TODAY, hour=3)) == (11, DAYS, 0)
    rows = tenant.table("chargeback").filter(product_type="KAFKA_NETWORK_WRITE")
    window = pl.col("charge_date").cast(pl.String)
    failed = rows.filter(allocation_method="allocation_failed").select(window, "resource_id")
    # Of what has no values nobody knows whether that was the answer.
    assert set(failed.rows()) == set(rows.select(window, "resource_id").rows()) - known
    assert 0 < failed.n_unique() < rows.select(window, "resource_id").n_unique()
    assert tenant.files(["usage"]) == files
    ask(tenant, measured)
    assert tenant.run(TODAY, hour=4, lift=True).exit_code == 0
    assert (tenant.files(["usage"]) == files, split_by_detail(tenant)) == (True, by_detail)


def test_usage_that_a_killed_run_wrote_and_did_not_record_stays(tenant: Tenant, server: Server, expired: str) -> None:
    late = [one for one in withdrawn(server, "lkc-test1") if one.get("start_date") == str(day(6))]
    tenant.run(TODAY)
    shutil.copy(tenant.root / "state.db", tenant.folder / "older.db")
    for record in late:
        server.organization.add_cost(day(6), record)
    tenant.run(TODAY, hour=1)
    files, by_detail = tenant.files(), split_by_detail(tenant)
    lose_state(tenant)
    shutil.copy(tenant.folder / "older.db", tenant.root / "state.db")
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")
    ask(tenant, expired)
    assert seen(tenant.run(TODAY, hour=2)) == (0, 1, 0)
    assert (tenant.files() == files, split_by_detail(tenant)) == (True, by_detail)
    assert seen(tenant.run(TODAY, hour=3)) == (0, 0, 0)


def split_by_detail(tenant: Tenant) -> dict[str, Decimal]:
    rows = tenant.table("chargeback").group_by("allocation_detail").agg(pl.col("amount").sum())
    return dict(rows.rows())


@pytest.mark.usefixtures("ran")
def test_landed_answers_that_nobody_knows_and_that_are_torn_are_told_once(tenant: Tenant) -> None:
    folder = tenant.root / "raw/confluent_cloud/conf/metrics"
    shutil.copytree(folder / "000001", folder / "000050")
    for file in (folder / "000050").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    told = [tenant.run(TODAY, hour=hour).warnings for hour in (2, 3)]
    assert [sum("metrics/000050" in text for text in texts) for texts in told] == [1, 0]


# Files are lost or torn


@pytest.mark.parametrize("again", ["run", "replay"])
@pytest.mark.usefixtures("ran")
def test_a_torn_usage_file_of_the_same_size_is_read_from_landed_answers(
    tenant: Tenant, expired: str, again: str
) -> None:
    files = tenant.files()
    tear(file_of(tenant, "usage", 2))
    ask(tenant, expired)
    how = (TODAY,) if again == "run" else (TODAY, "recalculate", {})
    assert (tenant.run(*how, hour=1, replay=again == "replay").exit_code, tenant.files() == files) == (0, True)


def test_a_torn_billing_file_is_named(tenant: Tenant) -> None:
    tenant.run(TODAY)
    tear(file_of(tenant, "billing", 1))
    with pytest.raises(StoreError, match=re.escape(str(file_of(tenant, "billing", 1)))):
        tenant.run(TODAY, hour=1)


def test_a_lost_billing_file_takes_no_usage_with_it_and_holds_up_no_other_day(
    tenant: Tenant, server: Server, expired: str
) -> None:
    tenant.run(TODAY)
    files, lost = tenant.files(["usage"]), file_of(tenant, "billing", 1)
    kept, before = lost.read_bytes(), outputs(tenant)
    lost.unlink()
    ask(tenant, expired)
    # Nothing older than five days is gathered any more; all is to be calculated again.
    free = {"ladder": [{"basis": "resource", "cost_type": "shared", "detail": "stored"}]}
    tenant.write(lookback_days="5", products={"KAFKA_STORAGE": free})
    for hour, calculated in ((1, DAYS - 1), (2, 0)):
        done = tenant.run(TODAY, hour=hour)
        assert (seen(done), tenant.files(["usage"]) == files) == ((14, calculated, 1), True)
        assert [str(lost) in text and "--replay" in text for text in done.faults] == [True]
    assert str(day(1)) not in changed(before, tenant)
    config = pipeline.configured(tenant.file)
    [found] = plan.plan(config, config.tenants, TODAY)
    assert [one.calculate_reason for one in found.days if one.charge_date == str(day(1))] == ["billing_lost"]
    lost.write_bytes(kept)
    assert (seen(tenant.run(TODAY, hour=3)), tenant.files(["usage"]) == files) == ((0, 1, 0), True)
    assert (split(tenant, when=1), tenant.total()) == ({"usage_ratio_allocation"}, server.organization.total())


# Usage is lost, with what it was read from


@pytest.mark.usefixtures("ran")
def test_less_than_was_known_replaces_nothing_and_is_told(tenant: Tenant, expired: str, measured: str) -> None:
    before, files = outputs(tenant), tenant.files()
    lose_usage(tenant, answers=True)
    ask(tenant, expired)
    for hour in (5, 6, 7):
        done = tenant.run(TODAY, hour=hour)
        assert (done.exit_code, changed(before, tenant)) == (0, [])
        told = [text for text in done.warnings if "says less of 1 day (2025-09-03)" in text]
        assert [text.partition(":")[0] for text in told] == ["metric bytes_in", "metric bytes_out", "metric flink_cfu"]
        assert any("usage of 1 day (2025-09-03) is lost" in text for text in done.warnings)
    ask(tenant, measured)
    done = tenant.run(TODAY, hour=8)
    assert (done.exit_code, tenant.files() == files) == (0, True)
    assert not any("lost" in text for text in done.warnings)


def test_the_answers_that_are_left_of_a_lost_day_are_not_all_that_was_known_of_it(
    tenant: Tenant, server: Server, expired: str, measured: str
) -> None:
    late = [one for one in withdrawn(server, "lkc-test1") if one.get("start_date") == str(day(6))]
    tenant.run(TODAY)
    for record in late:
        server.organization.add_cost(day(6), record)
    tenant.run(TODAY, hour=1)
    before, files = outputs(tenant), tenant.files()
    file_of(tenant, "usage", 6).unlink()
    for number in (1, 2):
        shutil.rmtree(tenant.root / f"raw/confluent_cloud/conf/metrics/{number:06}")
    ask(tenant, expired)
    for hour in (2, 3):
        assert (seen(tenant.run(TODAY, hour=hour)), changed(before, tenant)) == ((0, 0, 1), [])
    ask(tenant, measured)
    assert (tenant.run(TODAY, hour=4).exit_code, tenant.files() == files) == (0, True)


@pytest.mark.usefixtures("ran")
def test_a_day_that_lost_its_usage_waits_for_a_prometheus_that_fails_and_keeps_what_was_charged(
    tenant: Tenant, measured: str
) -> None:
    before, files = outputs(tenant), tenant.files()
    lose_usage(tenant, answers=True)
    tenant.write(metrics=NOWHERE)
    for hour in (2, 3, 4):
        done = tenant.run(TODAY, hour=hour)
        assert (done.exit_code, changed(before, tenant)) == (11, [])
    rows = f"SELECT DISTINCT status, rows > 0 FROM day_metrics WHERE charge_date = '{LOST}'"
    assert tenant.query(rows) == [("failed", 1)]
    ask(tenant, measured)
    assert (tenant.run(TODAY, hour=5).exit_code, tenant.files() == files) == (0, True)


@pytest.mark.parametrize("prometheus_is", ["silent", "expired"])
@pytest.mark.usefixtures("ran")
def test_a_day_that_lost_its_usage_and_has_another_bill_fails_until_it_is_charged(
    tenant: Tenant, server: Server, expired: str, measured: str, prometheus_is: str
) -> None:
    lose_usage(tenant, answers=True)
    ask(tenant, expired if prometheus_is == "expired" else NOWHERE["url"])
    tenant.run(TODAY, hour=2)
    revise(server)
    done = tenant.run(TODAY, hour=3)
    assert seen(done) == (11, 0, 1)
    assert any("2025-09-03" in text for text in done.faults)
    done = tenant.run(TODAY, hour=4)
    # The limit of this tenant is 2.
    assert (seen(done), tenant.total()) == ((11, 1, 0), server.organization.total())
    assert any("given up for 1 day from 2025-09-03" in text for text in done.warnings)
    failed = tenant.table("chargeback").filter(allocation_method="allocation_failed")
    assert set(failed["charge_date"]) == {LOST}
    assert tenant.run(TODAY, hour=5).exit_code == 0
    ask(tenant, measured)
    assert seen(tenant.run(TODAY, hour=6, lift=True)) == (0, 1, 0)
    assert (tenant.total(), split(tenant, when=2)) == (server.organization.total(), {"usage_ratio_allocation"})


@pytest.mark.usefixtures("ran")
def test_a_revised_bill_of_a_day_that_lost_its_usage_is_charged_by_the_landed_answers(
    tenant: Tenant, server: Server
) -> None:
    lose_usage(tenant)
    tenant.write(metrics=NOWHERE)
    revise(server)
    assert (seen(tenant.run(TODAY, hour=2)), tenant.total()) == ((0, 1, 0), server.organization.total())
    assert split(tenant, when=2) == {"usage_ratio_allocation"}


def lose_what_ran(tenant: Tenant, *, metrics: bool) -> None:
    """A run each day; then the usage of one day is lost, and all that was landed."""
    tenant.write(**({} if metrics else {"metrics": None}))
    for number in range(1, DAYS + 1):
        tenant.run(day(number), hour=2)
    (tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{day(6)}.parquet").unlink()
    shutil.rmtree(tenant.root / "raw")


@pytest.mark.parametrize("metrics", [True, False])
def test_another_bill_is_charged_without_statements_of_which_nobody_knows_any_more_that_they_ran(
    tenant: Tenant, server: Server, metrics: bool
) -> None:
    lose_what_ran(tenant, metrics=metrics)
    before = outputs(tenant)
    done = tenant.run(TODAY, hour=4)
    assert (done.exit_code, changed(before, tenant)) == (0, [])
    revise(server, 6)
    done = tenant.run(TODAY, hour=5)
    assert (seen(done), changed(before, tenant), tenant.total()) == (
        *((0, 1, 0), [str(day(6))]),
        server.organization.total(),
    )
    assert [text for text in done.warnings if "lost" in text] == [
        f"usage of 1 day ({day(6)}) is lost, and no whole answer is kept that says which statements ran: what is"
        " billed is charged without them"
    ]
    done = tenant.run(TODAY, hour=6)
    assert (seen(done), [text for text in done.warnings if "lost" in text]) == ((0, 0, 0), [])
    assert tenant.run(TODAY, "recalculate", hour=7).days_calculated == DAYS


@pytest.mark.parametrize("prometheus_is", ["silent", "expired"])
@pytest.mark.usefixtures("ran")
def test_a_day_that_lost_its_usage_and_its_chargeback_fails_until_it_is_charged(
    tenant: Tenant, server: Server, expired: str, prometheus_is: str
) -> None:
    lose_usage(tenant, answers=True)
    (tenant.root / f"lake/chargeback/tenant_id=conf/month=2025-09/{LOST}.parquet").unlink()
    ask(tenant, expired if prometheus_is == "expired" else NOWHERE["url"])
    assert seen(tenant.run(TODAY, hour=2)) == (11, 0, 1)
    done = tenant.run(TODAY, hour=3)
    # The limit of this tenant is 2.
    assert (seen(done), tenant.total()) == ((11, 1, 0), server.organization.total())
    done = tenant.run(TODAY, hour=4)
    assert (seen(done), [text for text in done.warnings if "lost" in text]) == ((0, 0, 0), [])


def test_a_day_that_lost_what_ran_and_its_chargeback_is_charged_without_it(tenant: Tenant, server: Server) -> None:
    tenant.write(metrics=None)
    for number in range(1, DAYS + 1):
        tenant.run(day(number), hour=2)
    for table in ("usage", "chargeback"):
        (tenant.root / f"lake/{table}/tenant_id=conf/month=2025-09/{day(6)}.parquet").unlink()
    shutil.rmtree(tenant.root / "raw")
    done = tenant.run(TODAY, hour=3)
    assert (seen(done), tenant.total()) == ((0, 1, 0), server.organization.total())
    assert seen(tenant.run(TODAY, hour=4)) == (0, 0, 0)


@pytest.mark.parametrize("before_is", ["well", "silent", "expired"])
@pytest.mark.usefixtures("ran")
def test_a_lost_day_whose_bill_lost_a_resource_is_charged_by_what_prometheus_has(
    tenant: Tenant, server: Server, measured: str, expired: str, before_is: str
) -> None:
    lose_usage(tenant, answers=True)
    records = server.organization.records(day(2), day(3))
    gone = [one["id"] for one in records if one.get("resource", {}).get("id") == "lkc-prod1"]
    server.organization.withdraw(*gone)
    if before_is != "well":
        ask(tenant, expired if before_is == "expired" else NOWHERE["url"])
        assert seen(tenant.run(TODAY, hour=2)) == (11, 0, 1)
        ask(tenant, measured)
    done = tenant.run(TODAY, hour=3)
    assert (seen(done), tenant.total()) == ((0, 1, 0), server.organization.total())
    assert tenant.table("chargeback").filter(allocation_method="allocation_failed").height == 0
    assert seen(tenant.run(TODAY, hour=4)) == (0, 0, 0)


@pytest.mark.usefixtures("ran")
def test_a_forced_day_that_lost_its_usage_is_charged_by_what_there_is(
    tenant: Tenant, server: Server, expired: str
) -> None:
    before = outputs(tenant)
    landed = "SELECT fetch_id, metric, first_day, end_day, ids FROM metric_fetches"
    known = tenant.query(landed)
    lose_usage(tenant, answers=True)
    ask(tenant, expired)
    folder = tenant.root / "raw/confluent_cloud/conf/metrics"
    for hour in (2, 3):
        done = tenant.run(TODAY, hour=hour, lift=hour == 3)
        assert (seen(done), changed(before, tenant)) == ((0, 0, 1), [])
        # An answer of which nothing was taken is not kept; if that is forced, other days are asked for, too.
        assert hour == 3 or (tenant.query(landed), list(folder.iterdir())) == (known, [])
    assert any("--from" in text for text in done.warnings)
    # Older than the lookback, nobody is asked for it any more, and it waits for nothing.
    server.forget()
    done = tenant.run(day(30), hour=1)
    assert (done.requests, changed(before, tenant)) == (server.counted(), [])
    assert (done.days_pending, done.days_kept) == (0, 1)
    config = pipeline.configured(tenant.file)
    for today, reason, calculated in ((day(30), "lost", False), (TODAY, "usage_lost", True)):
        [planned] = plan.plan(config, config.tenants, today)
        [of_day] = [one for one in planned.days if one.charge_date == str(LOST)]
        assert (of_day.calculate_reason, of_day.calculate) == (reason, calculated)
    # But if it is forced.
    done = tenant.run(day(30), hour=4, lift=True, first=LOST, end=day(3))
    assert (seen(done), changed(before, tenant)) == ((0, 1, 0), [str(LOST)])
    assert tenant.total() == server.organization.total()
    assert split(tenant, when=2) == {"no_metrics_located"}
    done = tenant.run(TODAY, hour=5)
    assert (seen(done), [text for text in done.warnings if "lost" in text or "less" in text]) == ((0, 0, 0), [])


@pytest.mark.parametrize("metrics", [True, False])
def test_a_forced_day_that_lost_what_ran_is_charged_without_it(tenant: Tenant, server: Server, metrics: bool) -> None:
    lose_what_ran(tenant, metrics=metrics)
    before = outputs(tenant)
    assert (seen(tenant.run(TODAY, hour=4)), changed(before, tenant)) == ((0, 0, 0), [])
    done = tenant.run(TODAY, hour=5, lift=True, first=day(6), end=day(7))
    assert (seen(done), changed(before, tenant)) == ((0, 1, 0), [str(day(6))])
    assert tenant.total() == server.organization.total()
    done = tenant.run(TODAY, hour=6)
    assert (seen(done), [text for text in done.warnings if "lost" in text]) == ((0, 0, 0), [])


def test_a_forced_run_that_does_not_end_leaves_a_good_chargeback_to_no_other(tenant: Tenant) -> None:
    for today in (day(6), TODAY):
        tenant.run(today)
    (tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{day(6)}.parquet").unlink()
    shutil.rmtree(tenant.root / "raw")
    before = outputs(tenant)
    tenant.write(metrics=NOWHERE, allocation_retry_limit="1")
    with pytest.raises(StoppedError):
        tenant.run(TODAY, hour=1, lift=True, first=day(6), end=day(7), stop_at="what is billed is charged without them")
    assert (seen(tenant.run(TODAY, hour=2)), changed(before, tenant)) == ((11, 0, 1), [])


# Samples that are no numbers, and whose others cannot be had


def test_samples_that_cannot_be_had_hold_back_their_own_day_and_are_left_out_at_the_limit(
    tenant: Tenant, server: Server, measured: str
) -> None:
    with front(measured, None, refused=["query="]) as url:
        ask(tenant, url)
        done = tenant.run(TODAY, hour=1)
        assert seen(done) == (11, DAYS - 1, 1)
        assert [text.partition(": bytes_in, ")[0] for text in done.faults] == [
            f"metrics bytes_in, {LOST} to {LOST}",
        ]
        assert "would load too many samples" in done.faults[0]
        done = tenant.run(TODAY, hour=2)
        assert seen(done) == (0, 1, 0)
        told = [text for text in done.warnings if "no numbers" in text]
        assert [text.partition(":")[0] for text in told] == [f"metric bytes_in, {LOST}"]
        done = tenant.run(TODAY, hour=3)
        assert (seen(done), done.warnings) == ((0, 0, 0), ())
    # Of one principal nothing is known on the day, and of all others all.
    rows = tenant.table("usage").filter(window=str(LOST), metric="bytes_in")
    assert "u-alice" not in set(rows.filter(resource_id="lkc-prod1")["principal"])
    assert (split(tenant, when=2), tenant.total()) == ({"usage_ratio_allocation"}, server.organization.total())
    assert tenant.table("chargeback").filter(allocation_method="allocation_failed").height == 0
    files = tenant.files()
    tenant.run(TODAY, "recalculate", {}, hour=4, replay=True)
    assert tenant.files() == files


def test_samples_that_come_later_are_not_left_out(tenant: Tenant, measured: str) -> None:
    with front(measured, None, refused=["query="]) as url:
        ask(tenant, url)
        assert tenant.run(TODAY, hour=1).days_pending == 1
    ask(tenant, measured)
    assert seen(tenant.run(TODAY, hour=2)) == (0, 1, 0)
    rows = tenant.table("usage").filter(window=str(LOST), metric="bytes_in", resource_id="lkc-prod1")
    assert "u-alice" in set(rows["principal"])


# Answers that may be a part only


def test_answers_that_prometheus_warned_of_are_asked_for_again_when_forced(
    tenant: Tenant, server: Server, measured: str, expired: str, tmp_path: Path
) -> None:
    some = (one for one in METRICS.samples() if one.labels.get("principal_id") != "u-alice")
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in some)
    with prometheus(rows, tmp_path / "part") as part, front(part, None, ["1 of 2 stores is down"]) as url:
        ask(tenant, url)
        assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    files = tenant.files()
    ask(tenant, measured)
    assert seen(tenant.run(TODAY, hour=2)) == (0, 0, 0)
    # Who has less to say, or cannot be had, changes nothing.
    ask(tenant, expired)
    done = tenant.run(TODAY, hour=3, lift=True)
    assert (seen(done), tenant.files() == files) == ((0, 0, 0), True)
    assert len([text for text in done.warnings if "says less" in text]) == 3
    ask(tenant, NOWHERE["url"])
    done = tenant.run(TODAY, hour=4, lift=True)
    assert (seen(done), tenant.files() == files) == ((11, 0, 0), True)
    ask(tenant, measured)
    older = shutil.copy(tenant.root / "state.db", tmp_path)
    done = tenant.run(TODAY, hour=5, lift=True)
    assert (done.exit_code, done.days_calculated > 0, tenant.total()) == (0, True, server.organization.total())
    assert "u-alice" in set(tenant.table("usage")["principal"])
    whole = Tenant(tmp_path / "whole", server, measured, lookback_days="10")
    whole.tenant["metrics"]["scrape_seconds"] = "21600"
    whole.write()
    whole.run(TODAY, hour=5)
    assert tenant.files(["usage"]) == whole.files(["usage"])
    # They are whole now.
    assert seen(tenant.run(TODAY, hour=6, lift=True)) == (0, 0, 0)
    # A state that knows only the answer before takes nothing of what the lake has, nor of what it charged.
    files = tenant.files()
    lose_state(tenant)
    shutil.copy(older, tenant.root / "state.db")
    ask(tenant, expired)
    assert (tenant.run(TODAY, hour=7).exit_code, tenant.files() == files) == (0, True)
    # Nor does it if the answers that it knows are read again.
    assert (tenant.run(TODAY, "recalculate", {}, hour=8, replay=True).exit_code, tenant.files() == files) == (0, True)
    # Of two landed answers the one that says more counts.
    lose_state(tenant)
    shutil.rmtree(tenant.root / "lake/usage")
    ask(tenant, expired)
    assert (tenant.run(TODAY, hour=9).exit_code, tenant.files(["usage"]) == whole.files(["usage"])) == (0, True)


def test_a_smaller_sum_of_as_many_values_replaces_nothing_and_is_told(
    tenant: Tenant, server: Server, measured: str, tmp_path: Path
) -> None:
    late = [one for one in withdrawn(server, "lkc-test1") if one.get("start_date") == str(LOST)]
    dropped = f"SELECT dropped FROM day_metrics WHERE charge_date = '{LOST}' AND metric = 'bytes_in'"
    with front(measured, None, ["1 of 2 stores is down"]) as url:
        ask(tenant, url)
        tenant.run(TODAY, hour=1)
        assert tenant.query(dropped) == [(1,)]
        for record in late:
            server.organization.add_cost(LOST, record)
        # A late line's resource and those that are asked for again are one question, and count once.
        tenant.run(TODAY, hour=2, lift=True)
        assert tenant.query(dropped) == [(1,)]
    files = tenant.files()
    some = (one for number, one in enumerate(METRICS.samples()) if number % 2)
    half = [Row(one.name, one.labels, one.milliseconds, one.value) for one in some]
    with prometheus(half, tmp_path / "half") as url:
        ask(tenant, url)
        done = tenant.run(TODAY, hour=3, lift=True)
    assert (seen(done), tenant.files() == files) == ((0, 0, 0), True)
    told = [text.partition(":")[0] for text in done.warnings if "(a smaller sum on the first)" in text]
    assert told == ["metric bytes_in", "metric bytes_out", "metric flink_cfu"]


def test_answers_without_values_and_with_gaps_are_asked_for_again_when_forced(
    tenant: Tenant, server: Server, measured: str, expired: str, tmp_path: Path
) -> None:
    # One sample of a cluster's four a day, and nothing of Flink: a Prometheus that is not back-filled yet.
    some = (one for one in METRICS.samples() if "kafka_id" in one.labels and one.minute % 1440 == 360)
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in some)
    with prometheus(rows, tmp_path / "part") as part:
        ask(tenant, part)
        assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    ask(tenant, measured)
    assert seen(tenant.run(TODAY, hour=2)) == (0, 0, 0)
    assert tenant.run(TODAY, hour=3, lift=True).exit_code == 0
    whole = Tenant(tmp_path / "whole", server, measured, lookback_days="10")
    whole.tenant["metrics"]["scrape_seconds"] = "21600"
    whole.write()
    whole.run(TODAY, hour=3)
    files = tenant.files(["usage"])
    assert files == whole.files(["usage"])
    # Nothing known is taken back.
    ask(tenant, expired)
    assert (seen(tenant.run(TODAY, hour=4, lift=True)), tenant.files(["usage"])) == ((0, 0, 0), files)


@pytest.mark.usefixtures("ran")
def test_a_forced_day_keeps_what_landed_answers_say_of_its_lost_usage(tenant: Tenant, expired: str) -> None:
    for (number,) in tenant.query("SELECT fetch_id FROM metric_fetches WHERE metric = 'flink_cfu'"):
        shutil.rmtree(tenant.root / f"raw/confluent_cloud/conf/metrics/{number:06}")
    lose_usage(tenant)
    ask(tenant, expired)
    done = tenant.run(TODAY, hour=1, lift=True, first=LOST, end=day(3))
    assert (done.exit_code, split(tenant, when=2)) == (0, {"usage_ratio_allocation"})


def test_less_than_was_known_is_not_taken_from_what_was_landed_of_it_either(
    tenant: Tenant, server: Server, measured: str, tmp_path: Path
) -> None:
    records = server.organization.records(day(6), day(7))
    late = [one for one in records if one.get("resource", {}).get("id") == "lkc-test1"]
    server.organization.withdraw(*(one["id"] for one in late))
    tenant.run(TODAY)
    used = tenant.files(["usage"])
    lose_usage(tenant, answers=True)
    # What is asked along with the lost day is answered, and landed.
    for record in late:
        server.organization.add_cost(day(6), record)
    some = (one for one in METRICS.samples() if one.labels.get("principal_id") != "u-alice")
    rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in some)
    with prometheus(rows, tmp_path / "part") as part:
        ask(tenant, part)
        done = tenant.run(TODAY, hour=1)
        assert any("says less of 1 day (2025-09-03)" in text for text in done.warnings)
    ask(tenant, measured)
    assert tenant.run(TODAY, hour=2).exit_code == 0
    name = f"usage/tenant_id=conf/month=2025-09/{LOST}.parquet"
    assert tenant.files(["usage"])[name] == used[name]


def test_an_answer_that_cannot_be_understood_is_a_failure_each_time_and_then_given_up(
    tenant: Tenant, tmp_path: Path
) -> None:
    good = [Row(one.name, one.labels, one.milliseconds, one.value) for one in METRICS.samples()]
    huge = next(one for one in good if one.name == "confluent_kafka_server_request_bytes")
    with prometheus(
        [*good, huge._replace(labels={**huge.labels, "principal_id": "huge"}, value=1e30)], tmp_path / "huge"
    ) as url:
        ask(tenant, url)
        assert seen(tenant.run(TODAY, hour=1)) == (11, 0, DAYS)
        assert seen(tenant.run(TODAY, hour=2)) == (11, DAYS, 0)
        done = tenant.run(TODAY, hour=3)
        assert (seen(done), done.warnings) == ((0, 0, 0), ())


@pytest.mark.usefixtures("ran")
def test_the_plan_says_that_usage_is_lost(tenant: Tenant) -> None:
    lose_usage(tenant)
    config = pipeline.configured(tenant.file)
    [found] = plan.plan(config, config.tenants, TODAY)
    assert {one.calculate_reason for one in found.days if one.charge_date == str(LOST)} == {"usage_lost"}
    tenant.run(TODAY, "recalculate", {}, hour=3)
    [found] = plan.plan(config, config.tenants, TODAY)
    assert "usage_lost" not in {one.calculate_reason for one in found.days}


def test_without_metrics_nothing_is_given_up(tenant: Tenant) -> None:
    tenant.write(metrics=NOWHERE, allocation_retry_limit="1")
    assert seen(tenant.run(TODAY, hour=1)) == (11, DAYS, 0)
    assert split(tenant) == {"metrics_fetch_failed"}
    tenant.write(metrics=None)
    config = pipeline.configured(tenant.file)
    [found] = plan.plan(config, config.tenants, TODAY)
    assert sum(one.calculate for one in found.days) == DAYS
    assert (seen(tenant.run(TODAY, hour=2)), split(tenant)) == ((0, DAYS, 0), {"no_metrics_located"})
    assert "allocation_failed" not in set(tenant.table("chargeback")["allocation_method"])
