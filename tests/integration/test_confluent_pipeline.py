"""A Confluent Cloud tenant from its API to the lake, over real HTTP, with usage from a real Prometheus."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from engine import pipeline, state, status
from engine.errors import ConfigError, StoppedError, StoreError
from engine.sources import confluent
from engine.sources.landing import Landing
from tests.doubles import confluent_cloud as faults
from tests.doubles.bundled import bundled, planned_total
from tests.doubles.confluent_cloud import COSTS, Server, served
from tests.doubles.confluent_metrics import REQUEST_BYTES, Used
from tests.doubles.front import WAYS, front, reader, told
from tests.doubles.organization import Entity, Organization
from tests.doubles.prometheus import Row, prometheus
from tests.integration.confluent import FIRST, VARIABLES, Tenant, day
from tests.integration.measured import DAYS, METRICS, NOWHERE, TODAY

NAMES = {
    "confluent_kafka_server_request_bytes": "bytes_in",
    "confluent_kafka_server_response_bytes": "bytes_out",
    "confluent_flink_num_cfu": "flink_cfu",
}
REGISTRY, KEY, ACCOUNT = "SCHEMA_REGISTRY", "KEYORDERS0000001", "sa-orders"


def outputs(tenant: Tenant) -> dict[str, str | None]:
    return {name: one.output_digest for name, one in tenant.days().items()}


def changed(before: dict[str, str | None], after: dict[str, str | None]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def ids(tenant: Tenant, product: str, when: date, resource: str = "") -> set[str]:
    """Who bears the lines of a product on a day."""
    rows = tenant.table("chargeback").filter(pl.col("product_type") == product, pl.col("charge_date") == when)
    return set(rows.filter((pl.col("resource_id") == resource) | (resource == ""))["identity_id"])


def test_what_was_billed_is_charged_and_what_was_measured_is_stored(tenant: Tenant, server: Server) -> None:
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (0, DAYS, 0)
    assert tenant.total() == tenant.total("billing") == planned_total(DAYS) == server.organization.total()
    sums = tenant.table("chargeback").group_by("line_id", "charge_date").agg(pl.col("amount", "list_amount").sum())
    billed = tenant.table("billing").select("line_id", "charge_date", "amount", "list_amount")
    assert sums.sort("charge_date", "line_id").equals(billed.sort("charge_date", "line_id"))
    found = {
        (row["window"], row["metric"], row["resource_id"], row["principal"]): row["value"]
        for row in tenant.table("usage").iter_rows(named=True)
        if row["metric"] != "running_statements"
    }
    expected = {
        (str(one.day), NAMES[one.metric], one.resource_id, one.principal): value
        for one, value in METRICS.used().items()
    }
    assert found == {key: value for key, value in expected.items() if key in found}
    # Everything that a line may weigh by is there.
    assert {(key[1], key[2]) for key in expected} == {(key[1], key[2]) for key in found}


WHICH = "tenant conf: metrics: password, ${WHAT}"


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("kafka_id", f"a question with the credentials in it ({WHICH}); expected credentials that are no common word"),
        (
            "resultType",
            f"of the configuration ({WHICH}); expected an answer without them, or credentials that are no common word",
        ),
    ],
)
def test_a_password_that_is_a_common_word_changes_no_answer_and_is_told(
    tenant: Tenant, measured: str, password: str, told: str
) -> None:
    with front(measured, f"Basic {base64.b64encode(f'reader:{password}'.encode()).decode()}") as url:
        tenant.tenant["metrics"] |= {"url": url, "username": "${WHO}", "password": "${WHAT}"}
        tenant.write()
        done = tenant.run(TODAY, environment=VARIABLES | {"WHO": "reader", "WHAT": password})
    assert (done.exit_code, done.days_pending) == (11, DAYS)
    assert told in str(done.faults)
    assert password not in str(done)
    assert not list(tenant.root.rglob("bytes_in*"))


def test_few_questions_are_asked_of_the_metrics(tenant: Tenant, server: Server) -> None:
    done = tenant.run(TODAY)
    # Of one stretch of days: what the server is, then each metric once for all resources, and how many samples there
    # are of two. Then a day of one principal that a sample makes no number.
    assert done.requests - server.counted() == 1 + 3 + 2 + 1


@pytest.mark.usefixtures("ran")
def test_a_sample_that_is_no_number_is_dropped_and_the_others_of_its_day_are_not(tenant: Tenant) -> None:
    spoilt = tenant.query("SELECT charge_date, metric, dropped FROM day_metrics WHERE dropped > 0")
    assert spoilt == [(str(day(2)), "bytes_in", 1)]
    rows = tenant.table("usage").filter(window=str(day(2)), metric="bytes_in", principal="u-alice")
    # Three of the four samples are left.
    assert rows["value"].item() == METRICS.used()[Used(day(2), REQUEST_BYTES, "lkc-prod1", "u-alice")] > 0
    before = tenant.files()
    tenant.run(TODAY, "recalculate", replay=True)
    assert tenant.files() == before


@pytest.mark.usefixtures("ran")
def test_a_day_without_any_sample_lacks_all_of_them(tenant: Tenant) -> None:
    found = tenant.query("SELECT charge_date, ids, gaps FROM day_metrics WHERE metric = 'bytes_in'")
    there = {(str(one.day), one.resource_id) for one in METRICS.used()}
    assert {name: gaps for name, _, gaps in found} == {
        name: sum(4 for one in json.loads(ids) if (name, one) not in there) for name, ids, _ in found
    }
    # Of this cluster there is all on the day before.
    assert [gaps for name, _, gaps in found if name == str(day(4))] == [8]


def test_a_metric_that_nobody_scraped_says_so(tmp_path: Path, server: Server) -> None:
    with prometheus([Row("other", {}, 0, 1)], tmp_path / "empty") as url:
        tenant = Tenant(tmp_path / "conf", server, url, lookback_days="2")
        tenant.run(day(2))
    config = pipeline.configured(tenant.file)
    [found] = status.status(config, config.tenants)
    assert found.gathers is not None
    lacking = sum(gaps for (gaps,) in tenant.query("SELECT gaps FROM day_metrics"))
    assert (found.gathers.without_samples, found.gathers.gaps) == (4, lacking)
    # Two days of two metrics of at least two clusters.
    assert lacking >= 2 * 2 * 2 * 96
    assert [line for line in status.lines(found) if "samples not scraped, all of 4 days of a metric" in line] != []


def test_what_prometheus_warns_of_is_told_once_a_query(tmp_path: Path, server: Server, measured: str) -> None:
    with front(measured, None, ["1 of 2 stores\nis \x1b[31mdown", "slow"]) as url:
        tenant = Tenant(tmp_path / "conf", server, url, lookback_days="2")
        done = tenant.run(day(2))
    told = [text for text in done.warnings if "Prometheus warns" in text]
    assert len(told) == len(set(told)) == 3 * 2
    days = f"{day(0)} to {day(1)}"
    assert f"metric bytes_in, {days}: Prometheus warns: '1 of 2 stores is \\\\x1b[31mdown'" in told
    assert done.exit_code == 0


@pytest.mark.usefixtures("ran")
def test_nothing_new_is_one_pass_over_the_costs_and_no_calculation(tenant: Tenant, server: Server) -> None:
    before = tenant.files()
    server.forget()
    done = tenant.run(TODAY)
    assert server.windows() == {(str(TODAY - timedelta(days=10)), "2025-09-01"): 1, ("2025-09-01", "2025-09-09"): 1}
    assert (done.days_gathered, done.days_calculated, done.days_unchanged, done.rows_written) == (0, 0, 0, 0)
    assert done.requests == server.counted()
    assert tenant.files() == before


@pytest.mark.usefixtures("ran")
def test_a_revised_line_recalculates_its_day_and_no_other(tenant: Tenant, server: Server) -> None:
    before = outputs(tenant)
    record = server.organization.find(day(3), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal("77.123456789012"))
    done = tenant.run(TODAY)
    assert (done.days_gathered, done.days_calculated) == (1, 1)
    assert changed(before, outputs(tenant)) == [str(day(3))]
    assert tenant.total() == server.organization.total()


@pytest.mark.usefixtures("ran")
def test_withdrawn_lines_and_emptied_days_disappear_and_days_outside_stay(tenant: Tenant, server: Server) -> None:
    organization = server.organization
    organization.empty_day(day(5))
    organization.withdraw(*(one["id"] for one in organization.find(day(4), "KAFKA_STORAGE", "lkc-prod1")))
    organization.empty_day(day(0))
    tenant.write(lookback_days="7")
    done = tenant.run(TODAY)
    assert (done.days_gathered, done.days_removed, done.days_calculated) == (1, 1, 1)
    assert str(day(5)) not in tenant.days()
    # 1 September is older than the window, and a record without a date stays where it was booked.
    old = tenant.table("billing").filter(pl.col("charge_date") == day(0))
    assert old["resource_id"].str.starts_with("malformed_billing_").sum() == 1
    left = tenant.total() - old["amount"].sum()
    assert left == organization.total(day(1)) - dateless(organization)
    emitted = sqlite3.connect(tenant.root / "results.db")
    assert emitted.execute("SELECT count(*) FROM chargeback_facts").fetchone()[0] > 0
    emitted.close()


def dateless(organization: Organization) -> Decimal:
    """What the records without a date come to."""
    return sum(
        (one["amount"] for one in organization.records(date.min, date.max) if "start_date" not in one), Decimal(0)
    )


# Metrics that fail


def test_failed_metrics_leave_days_waiting_and_the_next_run_heals_them(tenant: Tenant, server: Server) -> None:
    good = tenant.tenant["metrics"]
    tenant.write(metrics=NOWHERE)
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (11, 0, DAYS)
    assert "metrics bytes_in, bytes_out, flink_cfu, 2025-09-01 to 2025-09-08" in done.faults[0]
    one = tenant.days()[str(day(1))]
    assert (one.metrics_gathered, one.attempts, "no answer" in (one.error or "")) == (0, 1, True)
    tenant.write(metrics=good)
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (0, DAYS, 0)
    assert tenant.total() == server.organization.total()
    assert {(one.attempts, one.error) for one in tenant.days().values()} == {(0, None)}


def failed_lines(tenant: Tenant) -> pl.DataFrame:
    rows = tenant.table("chargeback")
    return rows.filter(pl.col("allocation_method") == "allocation_failed") if rows.height else rows


def test_at_the_limit_the_lines_are_unallocated_and_a_later_run_does_not_ask_again(
    tenant: Tenant, server: Server
) -> None:
    good = tenant.tenant["metrics"]
    tenant.write(metrics=NOWHERE)
    tenant.run(TODAY)
    # Another gather is no reason to count from the beginning.
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (11, DAYS, 0)
    failed = failed_lines(tenant)
    assert set(failed["identity_id"]) == {"UNALLOCATED"}
    assert {"KAFKA_NETWORK_WRITE", "KAFKA_NUM_CKU", "FLINK_NUM_CFU"} <= set(failed["product_type"])
    assert tenant.total() == server.organization.total()
    errors = tenant.query("SELECT DISTINCT status, attempts, error LIKE '%no answer%' FROM day_metrics")
    assert errors == [("given_up", 2, 1)]
    tenant.write(metrics=good)
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated) == (0, 0)
    done = tenant.run(TODAY, lift=True)
    assert (done.exit_code, done.days_calculated) == (0, DAYS)
    assert failed_lines(tenant).height == 0


def test_a_day_that_was_given_up_is_asked_for_again_when_its_bill_changes(tenant: Tenant, server: Server) -> None:
    good = tenant.tenant["metrics"]
    tenant.write(metrics=NOWHERE)
    for _ in range(2):
        tenant.run(TODAY)
    record = server.organization.find(day(2), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(1))
    done = tenant.run(TODAY)
    # The count began again with the other bill: the day waits.
    assert (done.days_pending, tenant.days()[str(day(2))].attempts) == (1, 1)
    tenant.write(metrics=good)
    done = tenant.run(TODAY)
    assert (done.days_calculated, done.days_pending) == (1, 0)
    assert str(day(2)) not in set(failed_lines(tenant)["charge_date"].cast(pl.String))
    assert tenant.total() == server.organization.total()


def test_a_metric_that_is_missing_is_no_failure(tenant: Tenant) -> None:
    assert tenant.run(TODAY).exit_code == 0
    rows = tenant.table("chargeback").filter(
        pl.col("charge_date") == day(4),
        pl.col("resource_id") == "lkc-prod2",
        pl.col("product_type") == "KAFKA_NETWORK_WRITE",
    )
    assert set(rows["allocation_detail"]) == {"no_metrics_located"}


@pytest.mark.parametrize(
    ("again", "metrics"), [("run", True), ("run", False), ("recalculate", True), ("replay", False)]
)
def test_statements_that_ran_on_a_day_are_read_again_when_its_usage_is_lost(
    tenant: Tenant, again: str, metrics: bool
) -> None:
    tenant.write(**({} if metrics else {"metrics": None}))
    lost = seen_daily(tenant)
    before = tenant.files()
    for file in lost:
        file.unlink()
    asked = (TODAY,) if again == "run" else (TODAY, "recalculate", {})
    done = tenant.run(*asked, hour=4, replay=again == "replay")
    assert (done.exit_code, done.faults, tenant.files() == before) == (0, (), True)


@pytest.mark.parametrize("metrics", [True, False])
def test_what_ran_and_cannot_be_read_again_leaves_the_chargeback_as_it_is(tenant: Tenant, metrics: bool) -> None:
    tenant.write(**({} if metrics else {"metrics": None}))
    lost = seen_daily(tenant)
    before = outputs(tenant)
    for file in lost:
        file.unlink()
    shutil.rmtree(tenant.root / "raw")
    for command in ("run", "recalculate"):
        done = tenant.run(TODAY, command, hour=4)
        assert (done.exit_code, changed(before, outputs(tenant))) == (0, [])
        assert any(f"2 days ({day(6)}, {day(7)}) is lost" in text for text in done.warnings)


def seen_daily(tenant: Tenant) -> list[Path]:
    """Gather each morning, so that it is known what ran on each day; the usage of two days, to be lost."""
    for number in range(1, DAYS + 1):
        assert tenant.run(day(number), hour=2).exit_code == 0
    return [tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{day(number)}.parquet" for number in (6, 7)]


def test_a_resource_that_is_billed_later_is_asked_for_on_its_days_only(tenant: Tenant, server: Server) -> None:
    organization = server.organization
    writes = list(organization.find(day(6), "KAFKA_NETWORK_WRITE", "lkc-test1"))
    for number in range(DAYS):
        kinds = ("KAFKA_NETWORK_WRITE", "KAFKA_NETWORK_READ", "KAFKA_PARTITION", "KAFKA_BASE", "KAFKA_STORAGE")
        for kind in (*kinds, "KAFKA_NUM_CKU"):
            organization.withdraw(*(one["id"] for one in organization.find(day(number), kind, "lkc-test1")))
    tenant.run(TODAY)
    assert "lkc-test1" not in set(tenant.table("usage")["resource_id"])
    for record in writes:
        organization.add_cost(day(6), record)
    before = outputs(tenant)
    done = tenant.run(TODAY)
    assert (done.exit_code, changed(before, outputs(tenant))) == (0, [str(day(6))])
    of_cluster = tenant.table("usage").filter(pl.col("resource_id") == "lkc-test1")
    assert set(of_cluster["window"]) == {str(day(6))}


# The inventory


def test_a_kind_that_fails_holds_back_what_is_not_calculated_and_deletes_nothing(
    tenant: Tenant, server: Server
) -> None:
    organization = server.organization
    late = organization.costs.pop(day(7))
    tenant.run(TODAY)
    before = outputs(tenant)
    organization.costs[day(7)] = late
    organization.denied["api_keys"] = 500
    organization.remove("service_accounts", "sa-idle")
    organization.remove("connectors", "lcc-nothing")
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_gathered, done.days_calculated, done.days_pending) == (11, 1, 0, 1)
    assert "inventory" in done.faults[0]
    assert "api_keys" in done.faults[0] or "api-keys" in done.faults[0]
    assert tenant.days()[str(day(7))].resources_gathered == 0
    assert (changed(before, outputs(tenant)), outputs(tenant)[str(day(7))]) == ([], None)
    # Identities are not scanned, since one of their kinds failed; connectors are.
    gone = "SELECT id FROM {} WHERE deleted_at IS NOT NULL"
    assert tenant.query(gone.format("identities")) == []
    assert tenant.query(gone.format("resources")) == [("lcc-nothing",)]
    organization.denied.clear()
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (0, 1, 0)
    assert tenant.query(gone.format("identities")) == [("sa-idle",)]


@pytest.mark.usefixtures("ran")
def test_an_inventory_gathered_in_part_recalculates_no_day_until_it_is_whole(tenant: Tenant, server: Server) -> None:
    before, organization = outputs(tenant), server.organization
    since = f"{day(3)}T00:00:00Z"
    account = {"id": "sa-new", "display_name": "new", "metadata": {"created_at": since}}
    key = {"id": "KEYNEW", "spec": {"owner": {"id": "sa-new"}, "resource": {"id": "lkc-prod2"}}}
    organization.add("service_accounts", Entity("sa-new", (), account))
    organization.add("api_keys", Entity("KEYNEW", (), key | {"metadata": {"created_at": since}}))
    organization.denied["api_keys"] = 500
    late = [str(day(number)) for number in range(3, DAYS)]
    done = tenant.run(TODAY, hour=5)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (11, 0, len(late))
    assert [name for name, one in tenant.days().items() if not one.resources_gathered] == late
    assert changed(before, outputs(tenant)) == []
    # What only the rules change need not wait: that is not the inventory's.
    assert tenant.run(TODAY, "recalculate", {}, hour=5).days_calculated == DAYS - len(late)
    organization.denied.clear()
    done = tenant.run(TODAY, hour=6)
    assert (done.exit_code, done.days_calculated, done.days_pending) == (0, len(late), 0)
    assert changed(before, outputs(tenant))
    assert set(changed(before, outputs(tenant))) <= set(late)
    assert "sa-new" in set(tenant.table("chargeback")["identity_id"])


def test_an_empty_inventory_deletes_at_the_threshold_across_restarts(tenant: Tenant, server: Server) -> None:
    tenant.write(zero_gather_deletion_threshold="2", cutoff_days="0")
    tenant.run(TODAY)
    server.organization.hidden.add("connectors")
    counts = "SELECT count FROM zero_gathers WHERE type = 'connector'"
    deleted = "SELECT count(*) FROM resources WHERE type = 'connector' AND deleted_at IS NOT NULL"
    seen = []
    for _ in range(2):
        tenant.run(TODAY)
        seen.append((tenant.query(counts), tenant.query(deleted)))
    assert seen == [([(1,)], [(0,)]), ([(2,)], [(12,)])]
    server.organization.hidden.clear()
    tenant.run(TODAY)
    assert tenant.query(counts) == [(0,)]
    alive = "SELECT count(*) FROM resources WHERE type = 'connector' AND deleted_at IS NULL AND valid_to = ''"
    assert tenant.query(alive) == [(12,)]


def test_a_new_owner_bears_the_days_from_the_gather_on_and_no_earlier_ones(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    tenant.run(TODAY - timedelta(days=5))
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    tenant.run(TODAY - timedelta(days=4))
    tenant.run(TODAY)
    after = outputs(tenant)
    billed = {when for when in map(day, range(DAYS)) if server.organization.find(when, "KSQL_NUM_CSU", "lksqlc-prod1")}
    assert billed
    assert {(when, *ids(tenant, "KSQL_NUM_CSU", when, "lksqlc-prod1")) for when in billed} == {
        (when, "sa-ksql" if when < day(4) else "u-bob") for when in billed
    }
    tenant.run(TODAY + timedelta(days=1))
    assert changed(after, outputs(tenant)) == []


def test_what_disappears_and_comes_back_was_not_there_in_between(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10", cutoff_days="0")
    tenant.run(day(1))
    server.organization.remove("service_accounts", "sa-idle")
    tenant.run(day(3))
    server.organization.bring_back("sa-idle")
    tenant.run(day(6))
    tenant.run(TODAY)
    there = [when for when in map(day, range(DAYS)) if "sa-idle" in ids(tenant, "SUPPORT", when)]
    supported = [when for when in map(day, range(DAYS)) if server.organization.find(when, "SUPPORT")]
    assert there == [when for when in supported if when <= day(3) or when >= day(6)]
    assert tenant.query(
        "SELECT valid_from, valid_to, substr(deleted_at, 1, 10) FROM identities WHERE id = 'sa-idle'"
    ) == [
        ("", str(day(6)), str(day(3))),
        (str(day(6)), "", None),
    ]


def test_a_new_statement_is_there_since_it_was_seen_where_a_region_has_no_key(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    del tenant.tenant["source"]["flink"]["keys"]["europe-west1"]
    tenant.write()
    tenant.run(day(4), hour=2)
    assert tenant.query("SELECT count(*) FROM zero_gathers WHERE type = 'flink_statement'") == [(0,)]
    statements = server.organization.inventory["flink_statements"]
    like = next(one for one in statements.values() if "us-east-1" in one.within)
    new = copy.deepcopy(like.body) | {"name": "new"}
    new["metadata"].pop("created_at", None)
    new["metadata"]["uid"] = "uid-new"
    server.organization.add("flink_statements", Entity("uid-new", like.within, new))
    before = outputs(tenant)
    done = tenant.run(day(4), hour=5)
    assert (done.days_calculated, changed(before, outputs(tenant))) == (0, [])
    since = "SELECT valid_from FROM resources WHERE id = 'uid-new'"
    assert tenant.query(since) == [(str(day(4)),)]
    tenant.run(day(4), "recalculate", {}, replay=True)
    assert tenant.query(since) == [(str(day(4)),)]


def ran_on(tenant: Tenant, when: date) -> set[tuple[str, str]]:
    """Pool and name of each statement that ran on a day."""
    rows = tenant.table("usage").filter(metric="running_statements", window=str(when))
    return set(rows.select("resource_id", "principal").rows())


EUROPE = "lfcp-test1"
"""The pool of the region whose key may be missing."""


def test_what_runs_is_known_of_the_regions_that_have_a_key(tmp_path: Path, server: Server) -> None:
    def bearers(tenant: Tenant) -> list[tuple[object, ...]]:
        rows = tenant.table("chargeback").filter(
            pl.col("product_type").str.starts_with("FLINK"), resource_id="lfcp-prod1"
        )
        return sorted(rows.filter(charge_date=day(6)).select("line_id", "identity_id", "rung", "amount").rows())

    both, one = (Tenant(tmp_path / name, server, lookback_days="10") for name in ("both", "one"))
    del one.tenant["source"]["flink"]["keys"]["europe-west1"]
    one.write()
    for tenant in (both, one):
        for when in (day(6), day(7)):
            tenant.run(when, hour=1)
    assert ran_on(one, day(6)) == {found for found in ran_on(both, day(6)) if found[0] != EUROPE} != set()
    assert ran_on(one, day(6)) != ran_on(both, day(6))
    assert bearers(one) == bearers(both) != []


def test_what_ran_in_a_region_stays_when_its_key_is_gone_later_that_day(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    tenant.run(day(6), hour=1)
    before = ran_on(tenant, day(6))
    statements = server.organization.inventory["flink_statements"].values()
    stopping = next(one for one in statements if one.body["name"] == "enrich-orders")
    stopping.body["status"]["phase"] = "STOPPED"
    del tenant.tenant["source"]["flink"]["keys"]["europe-west1"]
    tenant.write()
    tenant.run(day(6), hour=5)
    assert before - ran_on(tenant, day(6)) == {("lfcp-prod1", "enrich-orders")}
    # What is lost is read again from the answers of both gathers.
    files = tenant.files(["usage"])
    shutil.rmtree(tenant.root / "lake" / "usage")
    tenant.run(day(7), hour=1)
    assert tenant.files(["usage"]).items() >= files.items()


def torn(tenant: Tenant, gather_id: int, name: str) -> None:
    """Cut an answer that a gather landed."""
    file = tenant.root / f"raw/confluent_cloud/conf/gathers/{gather_id:06}/{name}.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-20])


@pytest.fixture
def lost(tenant: Tenant) -> Tenant:
    """A tenant that was run on the last days, and has lost the usage of one of them."""
    for number in (6, 7, 8):
        tenant.run(day(number), hour=2)
    (tenant.root / f"lake/usage/tenant_id=conf/month=2025-09/{day(6)}.parquet").unlink()
    return tenant


def gather_on(tenant: Tenant, when: date) -> int:
    [(found,)] = tenant.query(f"SELECT max(gather_id) FROM gathers WHERE started_at LIKE '{when}%'")
    return int(found)


def test_lost_usage_is_restored_though_another_answer_of_its_day_is_torn(lost: Tenant) -> None:
    before = outputs(lost)
    torn(lost, gather_on(lost, day(6)), "users")
    assert (lost.run(TODAY, hour=4).exit_code, changed(before, outputs(lost))) == (0, [])
    assert ran_on(lost, day(6)) != set()


def test_lost_usage_is_restored_from_another_gather_of_its_day(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    for hour in (1, 5):
        tenant.run(day(6), hour=hour)
    before = tenant.files(["usage"])
    shutil.rmtree(tenant.root / "lake" / "usage")
    torn(tenant, 2, "flink_statements")
    done = tenant.run(day(7))
    assert tenant.files(["usage"]).items() >= before.items()
    told = [text for text in done.warnings if f"which statements ran on {day(6)} is not read again: " in text]
    assert [text for text in told if "000002/flink_statements.jsonl.zst: " not in text] == []
    assert (done.exit_code, len(told)) == (0, 1)


@pytest.mark.parametrize("name", ["flink_statements", "flink_pools"])
def test_a_day_whose_lost_usage_is_torn_in_the_answers_too_stays_as_it_was_charged(
    lost: Tenant, server: Server, name: str
) -> None:
    before = outputs(lost)
    torn(lost, gather_on(lost, day(6)), name)
    record = server.organization.find(day(2), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(77))
    for hour in (4, 5):
        done = lost.run(TODAY, hour=hour)
        assert (done.exit_code, done.days_pending) == (0, 0)
        assert len([text for text in done.warnings if str(day(6)) in text and "stays as it is" in text]) == 1
    assert changed(before, outputs(lost)) == [str(day(2))]


def test_a_replay_keeps_what_is_stored_of_an_answer_that_is_torn(two_months: tuple[Tenant, Server]) -> None:
    tenant, server = two_months
    record = server.organization.find(date(2025, 9, 29), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(77))
    tenant.run(OCTOBER, hour=3)
    torn(tenant, 2, confluent.costs_name((date(2025, 9, 27), date(2025, 10, 1))))
    tenant.write(source=tenant.tenant["source"] | {"currency": "EUR"})
    done = tenant.run(OCTOBER, "recalculate", {}, replay=True)
    assert (done.exit_code, done.days_gathered, len(done.faults)) == (14, 2, 1)
    assert "costs-2025-09-27-2025-10-01.jsonl.zst: " in done.faults[0]
    assert tenant.total() == server.organization.total()
    assert tenant.table("billing").group_by("currency").agg(pl.col("charge_date").n_unique()).sort(
        "currency"
    ).rows() == [
        ("EUR", 2),
        ("USD", 2),
    ]


@pytest.mark.parametrize("how", ["torn", "gone"])
def test_a_replay_keeps_the_entities_it_cannot_read_again(two_months: tuple[Tenant, Server], how: str) -> None:
    tenant, _ = two_months
    entities = tenant.query("SELECT * FROM identities ORDER BY id, valid_from")
    torn(tenant, 1, "users")
    if how == "gone":
        Landing(tenant.root / "raw/confluent_cloud/conf/gathers/000001").drop("users")
    tenant.write(source=tenant.tenant["source"] | {"currency": "EUR"})
    done = tenant.run(OCTOBER, "recalculate", {}, replay=True)
    assert (done.exit_code, done.days_gathered, len(done.faults)) == (14, 4, 1)
    assert tenant.query("SELECT * FROM identities ORDER BY id, valid_from") == entities


# Gathers that fail


def test_a_window_that_fails_is_asked_for_again_by_the_next_run(tenant: Tenant, server: Server) -> None:
    server.script(f"{COSTS}?start_date=2025-09-01", faults.status(500))
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_gathered) == (11, 0)
    assert tenant.query("SELECT status, folded, requests > 0 FROM gathers") == [("failed", 1, 1)]
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated) == (0, DAYS)
    assert tenant.query("SELECT status FROM gathers ORDER BY gather_id") == [("failed",), ("done",)]


@pytest.fixture
def two_months(tmp_path: Path) -> Iterator[tuple[Tenant, Server]]:
    """A tenant whose days lie in two windows, two in each, all calculated."""
    with served(bundled(date(2025, 9, 29), 4)) as server:
        made = Tenant(tmp_path / "months", server, lookback_days="6", gather_failure_threshold="5")
        assert made.run(OCTOBER).days_calculated == 4
        yield made, server


OCTOBER = date(2025, 10, 3)
ONE_WINDOW = {"an amount": (12, "amount 'abc'"), "a refusal": (11, "400")}


@pytest.mark.parametrize("wrong", ONE_WINDOW)
def test_one_window_that_is_wrong_keeps_its_days_and_all_others_go_on(
    two_months: tuple[Tenant, Server], wrong: str
) -> None:
    tenant, server = two_months
    before, organization = outputs(tenant), server.organization
    first = organization.find(date(2025, 9, 29), "KAFKA_STORAGE", "lkc-prod1")[0]
    good = first["amount"]
    last = organization.find(date(2025, 10, 2), "KAFKA_STORAGE", "lkc-prod1")[0]
    organization.revise(last["id"], amount=Decimal(77))
    organization.add("service_accounts", Entity("sa-new", (), {"id": "sa-new"}))
    code, told = ONE_WINDOW[wrong]
    if wrong == "an amount":
        organization.revise(first["id"], amount="abc")
    else:
        server.script(f"{COSTS}?start_date=2025-09-27", faults.status(400))
    done = tenant.run(OCTOBER, hour=3)
    assert (done.exit_code, done.days_gathered, done.days_calculated, done.days_pending) == (code, 1, 1, 0)
    assert [("costs 2025-09-27 to before 2025-10-01: " in text, told in text) for text in done.faults] == [(True, True)]
    assert changed(before, outputs(tenant)) == ["2025-10-02"]
    assert tenant.query("SELECT count(*) FROM identities WHERE id = 'sa-new'") == [(1,)]
    assert tenant.query("SELECT failures FROM gather_failures") == [(1,)]
    organization.revise(first["id"], amount=good + 1)
    done = tenant.run(OCTOBER, hour=4)
    assert (done.exit_code, done.days_gathered, tenant.total()) == (0, 1, organization.total())
    assert tenant.query("SELECT failures FROM gather_failures") == []


def test_all_that_is_wrong_is_told(two_months: tuple[Tenant, Server]) -> None:
    tenant, server = two_months
    before, organization = outputs(tenant), server.organization
    organization.revise(organization.find(date(2025, 10, 1), "KAFKA_STORAGE", "lkc-prod1")[0]["id"], amount="abc")
    organization.denied["api_keys"] = 500
    server.script(f"{COSTS}?start_date=2025-09-27", faults.status(400))
    done = tenant.run(OCTOBER, hour=3)
    assert (done.exit_code, changed(before, outputs(tenant))) == (11, [])
    assert [text.partition(":")[0] for text in done.faults] == [
        *("costs 2025-09-27 to before 2025-10-01", "costs 2025-10-01 to before 2025-10-03", "inventory")
    ]


def test_landed_answers_that_could_not_be_read_are_read_again(two_months: tuple[Tenant, Server]) -> None:
    tenant, server = two_months
    record = server.organization.find(date(2025, 9, 29), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount="12.50 USD")
    assert tenant.run(OCTOBER, hour=3).exit_code == 12
    # As long as nobody can read them, the answers before them count.
    before = tenant.files()
    done = tenant.run(OCTOBER, "recalculate", {}, replay=True)
    assert (done.exit_code, tenant.files()) == (12, before)
    # What another parser would understand.
    landing = Landing(tenant.root / "raw/confluent_cloud/conf/gathers/000002")
    name = confluent.costs_name((date(2025, 9, 27), date(2025, 10, 1)))
    landing.write(name, [page._replace(text=page.text.replace("12.50 USD", "12.50")) for page in landing.read(name)])
    done = tenant.run(OCTOBER, "recalculate", {}, replay=True)
    server.organization.revise(record["id"], amount=Decimal("12.50"))
    assert (done.exit_code, tenant.total()) == (0, server.organization.total())


def flags(tenant: Tenant) -> list[int]:
    """Of each day, whether it has a whole inventory."""
    return [one.resources_gathered for one in tenant.days().values()]


COSTS_LANDED = f"costs {FIRST} to before {TODAY} landed"


def test_a_replay_of_a_gather_without_inventory_calculates_no_day(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    with pytest.raises(StoppedError):
        tenant.run(TODAY, stop_at=COSTS_LANDED)
    done = tenant.run(TODAY, "recalculate", {}, replay=True)
    assert (done.days_gathered, done.days_calculated, done.days_pending) == (DAYS, 0, DAYS)
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_calculated, tenant.total()) == (0, DAYS, server.organization.total())


def test_a_replay_after_a_partial_inventory_calculates_no_day_that_is_new(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10", gather_failure_threshold="9")
    record = server.organization.find(day(3), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount="12.50 USD")
    server.organization.denied["api_keys"] = 500
    assert tenant.run(TODAY).exit_code == 12
    name = confluent.costs_name((FIRST, TODAY))
    landing = Landing(tenant.root / "raw/confluent_cloud/conf/gathers/000001")
    landing.write(name, [page._replace(text=page.text.replace("12.50 USD", "12.50")) for page in landing.read(name)])
    done = tenant.run(TODAY, "recalculate", {}, replay=True)
    assert (done.exit_code, done.days_gathered, done.days_calculated, flags(tenant)) == (0, DAYS, 0, [0] * DAYS)


@pytest.mark.usefixtures("ran")
def test_a_replay_leaves_days_waiting_that_a_partial_inventory_touched(tenant: Tenant, server: Server) -> None:
    body = {"id": "sa-new", "display_name": "new", "metadata": {"created_at": f"{day(3)}T00:00:00Z"}}
    server.organization.add("service_accounts", Entity("sa-new", (), body))
    server.organization.denied["api_keys"] = 500
    tenant.run(TODAY, hour=5)
    assert flags(tenant) == [1] * 3 + [0] * 5
    tenant.write(source=tenant.tenant["source"] | {"currency": "EUR"})
    done = tenant.run(TODAY, "recalculate", {}, replay=True)
    assert (done.days_gathered, done.days_calculated, done.days_pending) == (DAYS, 3, 5)
    assert flags(tenant) == [1] * 3 + [0] * 5


@pytest.mark.usefixtures("ran")
def test_failures_in_a_row_suspend_the_tenant_until_it_is_forced(tenant: Tenant, server: Server) -> None:
    # Two windows a run; a gather of which a part failed counts once.
    server.script(COSTS, faults.status(500), times=4)
    for _ in range(2):
        assert tenant.run(TODAY).exit_code == 11
    server.forget()
    done = tenant.run(TODAY)
    assert (done.exit_code, server.counted()) == (11, 0)
    assert "gathering is suspended since 2025-09-09T00:00:00Z, after 2 failures in a row" in done.faults[0]
    assert tenant.run(TODAY, lift=True).exit_code == 0
    assert tenant.run(TODAY).exit_code == 0


def test_one_failure_between_gathers_that_go_well_does_not_count(tenant: Tenant, server: Server) -> None:
    for _ in range(3):
        server.script(COSTS, faults.status(500))
        assert tenant.run(TODAY).exit_code == 11
        assert tenant.run(TODAY).exit_code == 0


@pytest.mark.parametrize(("code", "expected"), [(401, "BillingAdmin"), (403, "BillingAdmin")])
def test_credentials_that_are_refused_name_the_role_that_is_missing(
    tenant: Tenant, server: Server, code: int, expected: str
) -> None:
    server.script(COSTS, faults.status(code))
    done = tenant.run(TODAY)
    assert (done.exit_code, expected in done.faults[0], len(done.faults)) == (11, True, 1)


def test_an_amount_that_is_no_number_is_bad_data_and_nothing_of_it_is_published(tenant: Tenant, server: Server) -> None:
    server.script(f"{COSTS}?start_date=2025-09-01", faults.WRONG_DATA["amount is text"])
    done = tenant.run(TODAY)
    assert (done.exit_code, done.days_gathered) == (12, 0)
    assert "amount 'abc'" in done.faults[0]
    # The answers were whole, so it is the next gather that asks again.
    assert tenant.run(TODAY).exit_code == 0
    assert tenant.total() == server.organization.total()


def test_a_variable_that_is_not_set_is_named(tenant: Tenant) -> None:
    with pytest.raises(ConfigError, match="source: api_secret: environment variable CLOUD_SECRET is not set; expected"):
        tenant.run(TODAY, environment={"CLOUD_KEY": "x"})


def test_a_window_without_days_is_refused(tenant: Tenant) -> None:
    tenant.write(lookback_days="5", cutoff_days="5")
    with pytest.raises(ConfigError, match=r"lookback_days: value '5'; expected more than cutoff_days, 5"):
        tenant.run(TODAY)


def test_a_run_that_failed_after_its_gather_is_over_and_the_next_asks_again(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    (tenant.root / "results.db").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"results\.db"):
        tenant.run(TODAY, hour=2)
    (tenant.root / "results.db").rmdir()
    record = server.organization.find(day(3), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(77))
    server.forget()
    done = tenant.run(TODAY, hour=18)
    assert (done.exit_code, server.counted() > 0, tenant.total()) == (0, True, server.organization.total())


def test_a_recalculation_does_not_end_a_gather_that_was_stopped(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server)
    with pytest.raises(StoppedError):
        tenant.run(TODAY, stop_at=COSTS_LANDED)
    asked = server.windows()
    tenant.run(TODAY, "recalculate", {})
    assert tenant.query("SELECT gather_id, status, run_ended FROM gathers") == [(1, "open", 0)]
    done = tenant.run(TODAY)
    assert (done.exit_code, server.windows(), set(asked.values())) == (0, asked, {1})


def test_no_window_is_asked_for_twice_when_a_gather_that_failed_in_part_is_stopped(
    tmp_path: Path, server: Server
) -> None:
    tenant = Tenant(tmp_path / "conf", server, "http://127.0.0.1:9", gather_failure_threshold="9")
    server.organization.denied["api_keys"] = 500
    server.script(f"{COSTS}?start_date=2025-08-01", faults.status(500))
    for hour in (1, 2):
        with pytest.raises(StoppedError):
            tenant.run(TODAY, hour=hour, stop_at="inventory: ")
    assert tenant.query("SELECT status, folded, run_ended FROM gathers") == [("failed", 1, 0)] * 2
    server.organization.denied.clear()
    tenant.write(metrics=None)
    done = tenant.run(TODAY, hour=3)
    assert (done.exit_code, tenant.total()) == (0, server.organization.total())
    assert set(server.whole_windows().values()) == {1}
    # A run that ended is over: the next one asks anew.
    tenant.run(TODAY, hour=4)
    assert set(server.whole_windows().values()) == {2}


@pytest.mark.parametrize("kept", ["older state", "no state"])
def test_answers_of_gathers_that_the_state_does_not_know_do_not_pass_for_those_of_today(
    tmp_path: Path, server: Server, kept: str
) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    tenant.run(TODAY)
    with sqlite3.connect(tenant.root / "state.db") as before, sqlite3.connect(tmp_path / "older.db") as older:
        before.backup(older)
    before.close()
    older.close()
    tenant.run(TODAY, hour=3)
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (tenant.root / name).unlink(missing_ok=True)
    if kept == "older state":
        shutil.copy(tmp_path / "older.db", tenant.root / "state.db")
    record = server.organization.find(day(3), "KAFKA_STORAGE", "lkc-prod1")[0]
    server.organization.revise(record["id"], amount=Decimal(77))
    server.forget()
    done = tenant.run(TODAY, hour=9)
    assert (done.exit_code, server.counted() > 0, tenant.total()) == (0, True, server.organization.total())
    assert tenant.query("SELECT max(gather_id) FROM gathers") == [(3,)]


# Without the network


@pytest.mark.usefixtures("ran")
def test_a_recalculation_asks_nobody_and_gives_the_same_files(tenant: Tenant, server: Server) -> None:
    before = tenant.files()
    server.forget()
    tenant.write(metrics=NOWHERE)
    for replay in (False, True):
        done = tenant.run(TODAY, "recalculate", {}, replay=replay)
        assert (done.exit_code, done.days_calculated, server.counted()) == (0, DAYS, 0)
        assert tenant.files() == before


def test_landed_answers_are_read_again_by_another_parser(tenant: Tenant, server: Server) -> None:
    tenant.run(day(5))
    server.organization.change_owner("ksqldbs", "lksqlc-prod1", "u-bob")
    tenant.run(TODAY)
    entities = "SELECT * FROM {} ORDER BY id, valid_from"
    known = [tenant.query(entities.format(name)) for name in ("resources", "identities")]
    tenant.write(source=tenant.tenant["source"] | {"currency": "EUR"})
    with state.open_state(tenant.root) as store, store.transaction() as connection:
        connection.execute("DELETE FROM resources")
    done = tenant.run(TODAY, "recalculate", {}, replay=True)
    assert (done.exit_code, done.days_gathered) == (0, DAYS)
    assert set(tenant.table("chargeback")["currency"]) == {"EUR"}
    assert [tenant.query(entities.format(name)) for name in ("resources", "identities")] == known
    assert tenant.total() == server.organization.total()


def test_a_record_without_a_date_is_booked_once_by_a_replay(tmp_path: Path, server: Server) -> None:
    tenant = Tenant(tmp_path / "conf", server, lookback_days="10")
    tenant.run(TODAY)
    tenant.write(lookback_days="5")
    # Windows that begin on the fourth, fifth and sixth day.
    for number in range(3):
        tenant.run(TODAY + timedelta(days=number), hour=5)
    booked = tenant.files(["billing"])
    assert tenant.total("billing") == server.organization.total()
    for lost in ("nothing", "the day of booking", "everything"):
        if lost == "everything":
            shutil.rmtree(tenant.root / "lake" / "billing")
        elif lost == "the day of booking":
            (tenant.root / f"lake/billing/tenant_id=conf/month=2025-09/{FIRST}.parquet").unlink()
        done = tenant.run(TODAY, "recalculate", {}, hour=6, replay=True)
        assert (lost, done.exit_code, tenant.files(["billing"])) == (lost, 0, booked)


def test_answers_are_kept_for_as_long_as_they_may_be_needed(tenant: Tenant) -> None:
    tenant.write(retention_days="12", lookback_days="10")
    for number in (0, 1, 20):
        tenant.run(TODAY + timedelta(days=number))
    kept = sorted(folder.name for folder in (tenant.root / "raw/confluent_cloud/conf/gathers").iterdir())
    assert kept == ["000003"]
    assert tenant.query("SELECT gather_id FROM gathers") == [(3,)]


@pytest.mark.usefixtures("ran")
def test_principals_that_only_metrics_name_are_shown_as_such(tenant: Tenant) -> None:
    found = dict(tenant.table("identities").select("id", "type").rows())
    assert (found["sa-stranger"], found["sa-orders"], found["UNALLOCATED"]) == (
        "principal",
        "service_account",
        "system",
    )


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_is_in_any_file_or_message(tenant: Tenant, server: Server, measured: str, way: str) -> None:
    right, wrong = reader(way, "right"), reader(way, "wrong")
    metrics = tenant.tenant["metrics"] | right.settings
    said = list[object]()
    with (
        front(measured, right.authorization) as refusing,
        front(measured, right.authorization, [told(right.authorization)]) as repeating,
    ):
        server.script("/", faults.echoing(500), times=2)
        tenant.write(metrics=metrics | {"url": refusing})
        said.append(tenant.run(TODAY, environment=VARIABLES | wrong.environment))
        server.script(COSTS, faults.echoing(403))
        said.append(tenant.run(TODAY, environment=VARIABLES | wrong.environment))
        tenant.write(metrics=metrics | {"url": repeating})
        said.append(tenant.run(TODAY, environment=VARIABLES | right.environment, lift=True))
        assert "401 Unauthorized" in str(said)
        assert "repeats credentials of the configuration" in str(said)
        tenant.write(metrics=metrics | {"url": refusing})
        done = tenant.run(TODAY, environment=VARIABLES | right.environment, lift=True)
    assert (done.exit_code, done.days_pending) == (0, 0)
    said += [done, *tenant.logged]
    canaries = [*server.organization.canaries(), *VARIABLES.values(), *right.canaries, *wrong.canaries]
    # Keys are names: the API lists them. Secrets it does not.
    secret = [text for text in canaries if text not in {CLOUD_KEY, *FLINK_KEYS}]
    files = [file for file in tenant.folder.rglob("*") if file.is_file()]
    texts = {str(file): file.read_bytes() for file in files} | {"said": "\n".join(map(str, said)).encode()}
    texts |= {f"{file} unpacked": unpacked(file) for file in files if file.name.endswith(".zst")}
    assert [(place, text) for place, content in texts.items() for text in secret if text.encode() in content] == []


CLOUD_KEY, FLINK_KEYS = VARIABLES["CLOUD_KEY"], {VARIABLES["FLINK_US_KEY"], VARIABLES["FLINK_EU_KEY"]}


def unpacked(file: Path) -> bytes:
    import pyarrow as pa  # noqa: PLC0415

    with pa.CompressedInputStream(str(file), "zstd") as stream:
        content: bytes = stream.read()
    return content


def test_all_variables_that_are_not_set_are_named_before_anything_is_asked(tenant: Tenant, server: Server) -> None:
    tenant.tenant["metrics"] |= {"username": "${WHO}", "password": "${WHAT}"}
    tenant.write()
    with pytest.raises(ConfigError) as raised:
        tenant.run(TODAY, environment={name: value for name, value in VARIABLES.items() if "FLINK_EU" not in name})
    assert [text.partition(" is not set")[0].rpartition(" ")[2] for text in raised.value.faults] == [
        *("FLINK_EU_KEY", "FLINK_EU_SECRET"),
        *("WHO", "WHAT"),
    ]
    assert server.counted() == 0
