"""Costs and inventory of a whole organization, over HTTP: all there is, whatever happens on the way, and no secret."""

from __future__ import annotations

import json
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import SecretStr

from engine.errors import ContractError, SourceError
from engine.frames import BILLING
from engine.sources import confluent
from engine.sources.confluent import Inventory, Window
from engine.sources.http import Client, Endpoint
from engine.sources.landing import Landing
from tests.doubles import confluent_cloud
from tests.doubles.bundled import CONNECTORS, STATEMENTS, bundled, planned_total, planned_totals
from tests.doubles.confluent_cloud import Fault, Server, served
from tests.doubles.organization import SPELLINGS, Credential
from tests.unit.scripted import Time

FIRST, DAYS = date(2025, 9, 12), 40
END = FIRST + timedelta(days=DAYS)
WINDOWS = [(date(2025, 9, 12), date(2025, 10, 1)), (date(2025, 10, 1), date(2025, 10, 22))]


@pytest.fixture
def server() -> Iterator[Server]:
    with served(bundled(FIRST, DAYS)) as running:
        yield running


def client(url: str, credential: Credential, time: Time | None = None) -> Client:
    key, secret = SecretStr(credential.key), SecretStr(credential.secret)
    endpoint = Endpoint(url, key, secret, timeout_seconds=0.5, requests_per_second=1e9, attempts=4)
    return Client(endpoint, (time or Time()).clock)


def costs(server: Server, folder: Path, windows: list[Window] | None = None) -> list[confluent.Costs]:
    landing, found = Landing(folder), []
    with client(server.url, server.organization.credential) as http:
        for window in windows or confluent.cost_windows(FIRST, END):
            confluent.fetch_costs(http, landing, window)
            pages = landing.read(confluent.costs_name(window))
            found.append(confluent.parse_costs(pages, "acme", window, "USD"))
    return found


def billing(server: Server, folder: Path) -> pl.DataFrame:
    return pl.concat([part.billing for part in costs(server, folder)])


def inventory(server: Server, folder: Path) -> tuple[dict[str, str], Inventory]:
    with ExitStack() as stack:
        cloud = stack.enter_context(client(server.url, server.organization.credential))

        def flink(region: str, cloud_name: str) -> Client | None:
            credential = server.organization.flink.get(region)
            url = confluent.flink_url(server.flink_url, region, cloud_name)
            return stack.enter_context(client(url, credential)) if credential else None

        failed = confluent.fetch_inventory(cloud, flink, Landing(folder))
    return failed, confluent.parse_inventory(confluent.read_inventory(Landing(folder), failed))


def test_every_line_of_the_costs_to_the_last_digit(server: Server, tmp_path: Path) -> None:
    parsed = costs(server, tmp_path)
    lines = pl.concat([part.billing for part in parsed])
    residue = sum((part.residue for part in parsed), Decimal(0))
    assert (residue, lines["amount"].sum()) == (0, planned_total(DAYS))
    by_type = dict(lines.group_by("product_type").agg(pl.col("amount").sum()).iter_rows())
    assert by_type == planned_totals(DAYS)
    assert sum(part.records for part in parsed) == len(server.organization.records(FIRST, END))
    assert sum(part.outside for part in parsed) == 0
    assert server.windows() == Counter({(first.isoformat(), end.isoformat()): 1 for first, end in WINDOWS})


def test_tiers_merge_and_malformed_records_are_kept_and_shown(server: Server, tmp_path: Path) -> None:
    parsed = costs(server, tmp_path)
    lines = pl.concat([part.billing for part in parsed])
    tiers = lines.filter(product_type="KAFKA_PARTITION", resource_id="lkc-prod1")
    assert tiers.height == DAYS
    assert all(len(json.loads(json.loads(tags)["tiers"])) == 3 for tags in tiers["tags"])
    malformed = lines.filter(pl.col("resource_id").str.starts_with(confluent.MALFORMED))
    damaged = [
        one
        for one in server.organization.records(FIRST, END)
        if "start_date" not in one or isinstance(one.get("resource"), str)
    ]
    assert sum(part.malformed for part in parsed) == len(damaged) > 2
    assert malformed["amount"].sum() == sum(one["amount"] for one in damaged)
    without_day = malformed.filter(pl.col("tags").str.contains("start_date"))
    assert set(without_day["charge_date"]) <= {first for first, _ in WINDOWS}
    assert any("malformed record(s)" in warning for part in parsed for warning in part.warnings)


def test_neither_pages_nor_the_order_of_records_matter(server: Server, tmp_path: Path) -> None:
    expected = billing(server, tmp_path / "one")
    server.organization.order = "another"
    assert_frame_equal(billing(server, tmp_path / "order"), expected)
    with served(server.organization, rows_per_page=97, next_url="http://127.0.0.1:9/elsewhere") as small:
        assert_frame_equal(billing(small, tmp_path / "pages"), expected)
        assert small.counted(confluent_cloud.COSTS) > 20


def test_a_revision_changes_its_line_and_no_other(server: Server, tmp_path: Path) -> None:
    before = billing(server, tmp_path / "before")
    day = FIRST + timedelta(days=5)
    (revised,) = server.organization.find(day, "KAFKA_STORAGE", "lkc-prod1")
    server.organization.revise(revised["id"], amount=Decimal("-7.000000000001"))
    (gone,) = server.organization.find(day, "KAFKA_STORAGE", "lkc-prod2")
    server.organization.withdraw(gone["id"])
    after = billing(server, tmp_path / "after")
    changed = before.join(after, on=[*BILLING.key, "amount"], how="anti").select("resource_id", "charge_date")
    assert sorted(changed.rows()) == [("lkc-prod1", day), ("lkc-prod2", day)]
    assert after.height == before.height - 1


OWNERS = {
    "lcc-account": "sa-connect",
    "lcc-key": "api_key:KEYCONNECT000001",
    "lcc-bareaccount": "sa-connect",
    "lcc-barekey": "api_key:KEYORDERS0000001",
    "lcc-maskedkey": "connector_api_key_masked",
    "lcc-maskedaccount": "connector_credentials_masked",
    "lcc-unknownkey": "api_key:KEYUNKNOWN000001",
    "lcc-keygone": "api_key:KEYGONE000000001",
    "lcc-ownerless": "api_key:KEYNOOWNER000001",
    "lcc-nokey": "connector_credentials_unknown",
    "lcc-nothing": "lcc-nothing",
    "lcc-custom": "sa-orders",
}


def test_everything_of_the_inventory(server: Server, tmp_path: Path) -> None:
    failed, found = inventory(server, tmp_path)
    assert (failed, found.warnings) == ({}, ())
    expected = {(kind.type, one) for name, kind in confluent.KINDS.items() for one in server.organization.ids(name)}
    rows = pl.concat([found.resources.select("type", "id"), found.identities.select("type", "id")])
    assert set(rows.iter_rows()) == expected
    assert found.gathered == {kind for kind, _ in expected}
    connectors = found.resources.filter(type="connector")
    assert dict(connectors.select("id", "owner").iter_rows()) == OWNERS
    assert dict(connectors.select("id", "parent").iter_rows()) == {one: CONNECTORS[one][0] for one in OWNERS}
    statements = found.resources.filter(type="flink_statement").select("display_name", "parent", "owner")
    assert {name: (pool, owner) for name, pool, owner in statements.iter_rows()} == {
        name: (pool, owner or "flink_stmt_owner_unknown") for name, (pool, owner, _) in STATEMENTS.items()
    }
    running = {name for name, (_, _, phase) in STATEMENTS.items() if phase not in {"STOPPED", "FAILED", "COMPLETED"}}
    assert set(found.running["principal"]) == running
    assert found.resources.filter(id="lksqlc-test1")["owner"].to_list() == ["ksqldb_owner_unknown"]
    assert found.resources.filter(pl.col("created_at").is_null())["type"].unique().to_list() == ["connector"]
    assert set(found.resources["scope"]) == {"", "env-prod1", "env-test1"}


def test_lists_of_many_pages_are_gathered_whole(tmp_path: Path) -> None:
    with served(bundled(FIRST, 1, principals=250), next_url="http://127.0.0.1:9") as server:
        failed, found = inventory(server, tmp_path)
        ids = server.organization.ids
        assert failed == {}
        assert found.identities.height == sum(len(ids(kind)) for kind in ids_of_identities())
        assert server.counted("/iam/v2/api-keys") == -(-len(ids("api_keys")) // 100)


def ids_of_identities() -> list[str]:
    return ["service_accounts", "users", "api_keys", "identity_providers", "identity_pools"]


FAULTS: dict[str, Fault] = {
    "Retry-After": confluent_cloud.rate_limited("Retry-After", 7),
    "rateLimit-reset": confluent_cloud.rate_limited("rateLimit-reset", 7),
    "X-RateLimit-Reset": confluent_cloud.rate_limited("X-RateLimit-Reset", 1_760_000_007),
    "429 alone": confluent_cloud.rate_limited(),
    "408": confluent_cloud.status(408),
    "500": confluent_cloud.status(500),
    "503": confluent_cloud.status(503),
    "dropped": confluent_cloud.dropped(),
    "cut short": confluent_cloud.cut_short(),
    "silent": confluent_cloud.silent(0.7),
    "slow": confluent_cloud.slow(0.8),
    "truncated": confluent_cloud.truncated(),
    "a page for people": confluent_cloud.html(),
    "an echo": confluent_cloud.echoing(503),
}


PLACES = ((confluent_cloud.COSTS, 1), ("/cmk", 1), ("/connect", 0), ("/flink", 0), ("/iam", 2))
"""Where each happens, and how many requests there go well before."""


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_passes_leaves_no_trace(tmp_path: Path, fault: Fault) -> None:
    with served(bundled(FIRST, 3), rows_per_page=60) as server:
        window = [(FIRST, FIRST + timedelta(days=3))]
        (expected,) = costs(server, tmp_path / "undisturbed", window)
        _, inventory_expected = inventory(server, tmp_path / "undisturbed")
        undisturbed = server.counted()
        server.forget()
        # What takes its time happens once only.
        places = PLACES[:1] if fault in {FAULTS["silent"], FAULTS["slow"]} else PLACES
        for prefix, after in places:
            server.script(prefix, fault, after=after)
        (disturbed,) = costs(server, tmp_path / "disturbed", window)
        failed, found = inventory(server, tmp_path / "disturbed")
        assert failed == {}
        assert_frame_equal(disturbed.billing, expected.billing)
        assert_frame_equal(found.resources, inventory_expected.resources)
        assert_frame_equal(found.identities, inventory_expected.identities)
        for name in Landing(tmp_path / "disturbed").names():
            assert Landing(tmp_path / "disturbed").read(name) == Landing(tmp_path / "undisturbed").read(name)
        # A slow answer is an answer, as long as bytes come and the whole is there in time.
        assert server.counted() == undisturbed + (0 if fault is FAULTS["slow"] else len(places))


@pytest.mark.parametrize(
    ("header", "value"), [("Retry-After", 7), ("rateLimit-reset", 7), ("X-RateLimit-Reset", 1_760_000_007)]
)
def test_each_way_to_say_how_long_is_waited_for(server: Server, tmp_path: Path, header: str, value: int) -> None:
    time = Time()
    server.script(confluent_cloud.COSTS, confluent_cloud.rate_limited(header, value))
    with client(server.url, server.organization.credential, time) as http:
        confluent.fetch_costs(http, Landing(tmp_path), WINDOWS[0])
    assert time.seconds == pytest.approx(7)


def test_costs_that_break_off_are_fetched_again_from_the_start(tmp_path: Path) -> None:
    with served(bundled(FIRST, 3), rows_per_page=60) as server:
        window = (FIRST, FIRST + timedelta(days=3))
        server.script(confluent_cloud.COSTS, confluent_cloud.status(500), times=4, after=2)
        with pytest.raises(SourceError, match="500"):
            costs(server, tmp_path, [window])
        assert list(tmp_path.iterdir()) == []
        costs(server, tmp_path, [window])
        assert server.windows() == {(window[0].isoformat(), window[1].isoformat()): 2}


def test_pages_without_end(server: Server, tmp_path: Path) -> None:
    server.script(confluent_cloud.COSTS, confluent_cloud.looping(), times=10)
    with pytest.raises(SourceError, match="a page_token came a second time"):
        costs(server, tmp_path)
    assert server.counted() <= 3


@pytest.mark.parametrize("name", confluent_cloud.WRONG_DATA)
def test_a_record_that_is_not_as_it_should_be(server: Server, tmp_path: Path, name: str) -> None:
    server.script(confluent_cloud.COSTS, confluent_cloud.WRONG_DATA[name])
    total = server.organization.total(*WINDOWS[0])
    if name.startswith("amount"):
        with pytest.raises(ContractError, match=r"costs 2025-09-12 to 2025-10-01, page 1, record 'dlz-.*: amount "):
            costs(server, tmp_path, WINDOWS[:1])
        return
    (parsed,) = costs(server, tmp_path, WINDOWS[:1])
    assert parsed.billing["amount"].sum() + parsed.residue == total


@pytest.mark.parametrize("kind", confluent.KINDS)
@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_kind_that_cannot_be_had_fails_alone(server: Server, tmp_path: Path, kind: str, code: int) -> None:
    server.organization.denied[kind] = code
    failed, found = inventory(server, tmp_path)
    needing = {name for name, other in confluent.KINDS.items() if kind in other.needs}
    assert failed.keys() == (set() if code == 404 else {kind} | needing)
    assert found.gathered == {other.type for name, other in confluent.KINDS.items() if name not in failed}


@pytest.mark.parametrize("kind", ["service_accounts", "api_keys"])
def test_a_list_that_is_lost_after_its_first_page_is_not_taken_for_a_shorter_one(tmp_path: Path, kind: str) -> None:
    with served(bundled(FIRST, 1, principals=250), rows_per_page=50) as server:
        assert len(server.organization.ids(kind)) > 50
        server.script(f"/iam/v2/{kind.replace('_', '-')}", confluent_cloud.status(404), after=1)
        failed, found = inventory(server, tmp_path)
    assert failed.keys() == {kind}
    assert ": 404 " in failed[kind]
    assert confluent.KINDS[kind].type not in found.gathered


def test_missing_roles_are_named(server: Server, tmp_path: Path) -> None:
    server.organization.roles.clear()
    with pytest.raises(SourceError, match="expected a Cloud API key with the role BillingAdmin"):
        costs(server, tmp_path)
    failed, _ = inventory(server, tmp_path)
    assert failed.keys() == confluent.KINDS.keys()
    assert "role OrganizationAdmin" in failed["environments"]


def test_costs_before_the_history_of_the_api_say_so(server: Server, tmp_path: Path) -> None:
    server.organization.oldest = FIRST + timedelta(days=3)
    with pytest.raises(SourceError, match="start_date must not be before 2025-09-15"):
        costs(server, tmp_path)


def test_a_redirect_gets_no_credentials(server: Server, tmp_path: Path) -> None:
    with served(bundled(FIRST, 1)) as elsewhere:
        server.script(confluent_cloud.COSTS, confluent_cloud.redirected(f"{elsewhere.url}{confluent_cloud.COSTS}"))
        with pytest.raises(SourceError, match="a redirect to"):
            costs(server, tmp_path)
        assert elsewhere.counted() == 0


def test_no_secret_is_landed_logged_or_said(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    bad = [confluent_cloud.echoing(code) for code in (400, 401, 403, 500)]
    bad += [
        confluent_cloud.truncated(0.9),
        confluent_cloud.cut_short(0.9),
        confluent_cloud.changed(lambda page: [page]),
    ]
    bad += [confluent_cloud.revealing(code, way) for way in SPELLINGS.values() for code in (401, 503)]
    for number, fault in enumerate(bad):
        server.script("/", fault, times=1000)
        try:
            costs(server, tmp_path / f"costs {number}")
        except (ContractError, SourceError) as error:
            said += [*traceback.format_exception(error), repr(error)]
        server.clear()
        server.script("/connect", fault, times=1000)
        server.script("/flink", fault, times=1000)
        failed, found = inventory(server, tmp_path / f"inventory {number}")
        assert failed.keys() == {"connectors", "flink_statements"}
        said += [*failed.values(), *found.warnings, repr(found)]
        server.clear()
    costs(server, tmp_path / "good")
    _, found = inventory(server, tmp_path / "good")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=10_000):
        said += [repr(found), repr(client(server.url, server.organization.credential)), caplog.text]
    for landing in map(Landing, tmp_path.iterdir()):
        said += [f"{page}" for name in landing.names() for page in landing.read(name)]
    everything = "\n".join(said)
    assert len(said) > 50
    assert "\x1b" not in everything
    assert [canary for canary in server.organization.canaries() if canary in everything] == []
