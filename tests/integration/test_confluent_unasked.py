"""Usage that nobody asks for any more, after a change of rules or of the bill, and that is asked for again."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine import pipeline, status
from tests.doubles.confluent_cloud import Server
from tests.integration.confluent import Tenant, day
from tests.integration.measured import DAYS, NOWHERE, TODAY
from tests.integration.test_confluent_usage import changed, file_of, outputs, seen, split, withdrawn

FREE: dict[str, Any] = {"ladder": [{"basis": "resource", "cost_type": "shared", "detail": "stored"}]}
"""A ladder that asks for no metric."""
KINDS = ("NETWORK_WRITE", "NETWORK_READ", "PARTITION", "BASE", "STORAGE", "NUM_CKU", "NUM_CKUS")
ALL = {f"KAFKA_{name}": FREE for name in KINDS}
"""Nobody asks for the metrics of clusters any more."""
WRITING = ALL | {
    "KAFKA_NETWORK_READ": {
        "ladder": [
            {"basis": "even", "population": "active", "metrics": ["bytes_out"], "detail": "even_split_allocation"},
            {"basis": "resource", "detail": "no_identities_located"},
        ]
    }
}
"""Nobody asks for one of them any more."""
CHARGED = ("billing", "chargeback", "empty_keys")


def forget_answers(tenant: Tenant) -> None:
    """What was landed of metrics is not kept any more."""
    shutil.rmtree(tenant.root / "raw/confluent_cloud/conf/metrics")


def gaps(tenant: Tenant) -> int:
    """How many samples are missing of what is asked for, as `status` says."""
    config = pipeline.configured(tenant.file)
    [found] = status.status(config, config.tenants)
    assert found.gathers is not None
    return found.gathers.gaps


def other_rules(tenant: Tenant, products: dict[str, Any]) -> None:
    """Other rules, and a Prometheus that nobody can ask."""
    tenant.write(products=products, metrics=tenant.tenant["metrics"] | {"url": NOWHERE["url"]})


def put_back(older: Path, tenant: Tenant) -> None:
    """The state as it was before a run, as if that had been killed before it could write there."""
    for name in ("state.db-wal", "state.db-shm"):
        (tenant.root / name).unlink(missing_ok=True)
    shutil.copy(older, tenant.root / "state.db")


@pytest.mark.parametrize("products", [WRITING, ALL], ids=["one metric", "all metrics"])
@pytest.mark.parametrize("answers", ["kept", "gone"])
@pytest.mark.usefixtures("ran")
def test_rules_that_are_changed_back_find_all_usage_again(
    tenant: Tenant, products: dict[str, Any], answers: str
) -> None:
    files, before = tenant.files(), gaps(tenant)
    if answers == "gone":
        forget_answers(tenant)
    other_rules(tenant, products)
    assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    assert (tenant.files(["usage"]) == {name: one for name, one in files.items() if name.startswith("usage")}) == (
        answers == "gone"
    )
    assert seen(tenant.run(TODAY, hour=2)) == (0, 0, 0)
    assert gaps(tenant) < before or products is WRITING
    tenant.write(products=None)
    assert (seen(tenant.run(TODAY, hour=3)), tenant.files() == files, gaps(tenant)) == ((0, DAYS, 0), True, before)


@pytest.mark.parametrize(
    ("days", "retention"), [(DAYS + 5, "11"), (DAYS, "10")], ids=["older than the window", "in it"]
)
@pytest.mark.parametrize("killed", [False, True])
def test_rules_that_are_changed_back_when_answers_are_gone_meanwhile_find_all_usage_again(
    tenant: Tenant, tmp_path: Path, days: int, retention: str, killed: bool
) -> None:
    """Raw answers are kept for little longer than days are in the window, or not even that."""
    tenant.write(retention_days=retention)
    tenant.run(TODAY)
    files = tenant.files()
    older = Path(shutil.copy(tenant.root / "state.db", tmp_path / "older.db"))
    other_rules(tenant, ALL)
    # Ten days are in the window; the first three are not any more.
    assert tenant.run(day(days), hour=1).exit_code == 0
    if killed:
        put_back(older, tenant)
    tenant.write(products=None)
    done = tenant.run(day(DAYS + 12), hour=2)
    assert not any((tenant.root / "raw/confluent_cloud/conf/metrics").iterdir())
    kept = {name for name in files if days == DAYS or name[-18:-8] in map(str, map(day, range(3)))}
    after = tenant.files()
    assert {name for name in kept if after[name] != files[name]} == set()
    # Of the others nobody can tell, and nobody answers.
    assert done.exit_code == (0 if days == DAYS else 11)
    assert "lost" not in str(done.warnings)


@pytest.mark.parametrize("products", [WRITING, ALL], ids=["one metric", "all metrics"])
@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.usefixtures("ran")
def test_usage_that_nobody_asks_for_counts_for_nothing(
    tenant: Tenant, server: Server, measured: str, products: dict[str, Any], replay: bool
) -> None:
    forget_answers(tenant)
    other_rules(tenant, products)
    assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    if replay:
        assert tenant.run(TODAY, "recalculate", {}, hour=2, replay=True).exit_code == 0
    fresh = Tenant(tenant.folder.parent / "fresh", server, measured, lookback_days="10", products=products)
    fresh.run(TODAY)
    assert tenant.files(CHARGED) == fresh.files(CHARGED)


@pytest.mark.parametrize("answers", ["kept", "gone"])
@pytest.mark.usefixtures("ran")
def test_killed_as_rules_leave_usage_out_every_day_is_charged_by_them(
    tenant: Tenant, tmp_path: Path, answers: str
) -> None:
    files = tenant.files()
    if answers == "gone":
        forget_answers(tenant)
    older = Path(shutil.copy(tenant.root / "state.db", tmp_path / "older.db"))
    other_rules(tenant, ALL)
    assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    charged = tenant.files()
    put_back(older, tenant)
    done = tenant.run(TODAY, hour=2)
    assert (seen(done), tenant.files() == charged, "lost" in str(done.warnings)) == ((0, DAYS, 0), True, False)
    tenant.write(products=None)
    assert (seen(tenant.run(TODAY, hour=3)), tenant.files() == files) == ((0, DAYS, 0), True)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("answers", ["kept", "gone"])
@pytest.mark.usefixtures("ran")
def test_a_cluster_that_is_not_billed_for_a_while_keeps_what_was_metered_of_it(
    tenant: Tenant, server: Server, tmp_path: Path, answers: str, killed: bool
) -> None:
    files, before = tenant.files(), outputs(tenant)
    if answers == "gone":
        forget_answers(tenant)
    older = Path(shutil.copy(tenant.root / "state.db", tmp_path / "older.db"))
    gone = withdrawn(server, "lkc-test1")
    tenant.write(metrics=tenant.tenant["metrics"] | {"url": NOWHERE["url"]})
    done = tenant.run(TODAY, hour=1)
    if killed:
        put_back(older, tenant)
        done = tenant.run(TODAY, hour=2)
    assert (done.exit_code, "lost" in str(done.warnings), tenant.total()) == (0, False, server.organization.total())
    assert split(tenant) == {"usage_ratio_allocation"}
    for record in gone:
        # One is malformed, and of the first day.
        server.organization.add_cost(date.fromisoformat(record.get("start_date", str(day(0)))), record)
    assert tenant.run(TODAY, hour=3).exit_code == 0
    assert (changed(before, tenant), tenant.files() == files) == ([], True)


@pytest.mark.usefixtures("ran")
def test_forced_it_is_asked_for_again_whatever_the_lake_alone_has(tenant: Tenant, measured: str) -> None:
    """Whether Prometheus had warned of the answer nobody knows any more."""
    files = tenant.files()
    forget_answers(tenant)
    other_rules(tenant, {"FLINK_NUM_CFU": FREE})
    assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    tenant.write(products=None, metrics=tenant.tenant["metrics"] | {"url": measured})
    assert (seen(tenant.run(TODAY, hour=2)), tenant.files() == files) == ((0, DAYS, 0), True)
    assert tenant.query("SELECT count(*) FROM day_metrics WHERE fetches ->> '$.lfcp-prod1' = 0")[0][0] > 0
    assert (seen(tenant.run(TODAY, hour=3, lift=True)), tenant.files() == files) == ((0, 0, 0), True)
    assert tenant.query("SELECT count(*) FROM day_metrics WHERE fetches ->> '$.lfcp-prod1' = 0")[0][0] == 0


@pytest.mark.usefixtures("ran")
def test_of_a_lost_file_only_what_is_there_is_known_without_being_asked_for(tenant: Tenant, measured: str) -> None:
    files = tenant.files()
    forget_answers(tenant)
    other_rules(tenant, WRITING)
    assert seen(tenant.run(TODAY, hour=1)) == (0, DAYS, 0)
    file_of(tenant, "usage", 2).unlink()
    tenant.write(metrics=tenant.tenant["metrics"] | {"url": measured})
    assert tenant.run(TODAY, hour=2).exit_code == 0
    # What nobody asks for is lost with the file; the others' are fetched.
    usage = tenant.table("usage").filter(pl.col("window") == str(day(2)))
    assert not usage.filter(metric="bytes_in", resource_id="lkc-test1").height
    assert usage.filter(metric="bytes_out", resource_id="lkc-test1").height
    tenant.write(products=None)
    assert (tenant.run(TODAY, hour=3).exit_code, tenant.files() == files) == (0, True)
