"""The double of the Confluent Cloud API, asked over HTTP as a client asks: what other tests build on holds."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import pytest

from tests.doubles.bundled import API_KEYS, CONNECTORS, PLAN, STATEMENTS, bundled, planned_total, planned_totals
from tests.doubles.confluent_cloud import (
    COSTS,
    WRONG_DATA,
    Fault,
    Server,
    changed,
    cut_short,
    dropped,
    echoing,
    html,
    looping,
    rate_limited,
    redirected,
    served,
    silent,
    slow,
    status,
    truncated,
)
from tests.doubles.confluent_metrics import (
    CFU_MINUTES,
    NUM_CFU,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    Metrics,
    Used,
)
from tests.doubles.organization import CHANGES, KINDS, ORGANIZATION_ID, SETTING, Organization, line_key

ROOT = Path(__file__).parents[2]
FIRST, DAYS = date(2025, 9, 1), 40
LAST = FIRST + timedelta(days=DAYS)
WINDOWS = ((FIRST, date(2025, 10, 1)), (date(2025, 10, 1), LAST))
ENVIRONMENTS = "/org/v2/environments"
TINY = 0.03
"""Seconds that no test notices."""


class Asking:
    """A client as simple as can be."""

    def __init__(self, server: Server, *, key: tuple[str, str] | None = None, timeout: float = 30) -> None:
        auth = key or server.organization.credential
        # There are no certificates, and to load those of the system takes longer than most tests.
        self.http = httpx.Client(
            base_url=server.url,
            auth=(auth[0], auth[1]),
            timeout=httpx.Timeout(30, read=timeout),
            trust_env=False,
            verify=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **asked: str) -> httpx.Response:
        return self.http.get(path, params=asked or None)

    def pages(self, path: str, **asked: str) -> Iterator[dict[str, Any]]:
        while True:
            response = self.get(path, **asked)
            assert response.status_code == 200, response.text
            page = exact(response.text)
            yield page
            following = page["metadata"].get("next")
            if not following:
                return
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(following).query)
            asked |= {"page_token": query["page_token"][0]}

    def rows(self, path: str, **asked: str) -> list[dict[str, Any]]:
        return [row for page in self.pages(path, **asked) for row in page["data"]]

    def costs(self, *windows: tuple[date, date]) -> list[dict[str, Any]]:
        return [
            row
            for first, end in windows or WINDOWS
            for row in self.rows(COSTS, start_date=f"{first}", end_date=f"{end}", page_size="2000")
        ]


def exact(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def total(rows: list[dict[str, Any]]) -> Decimal:
    return sum((row["amount"] for row in rows), Decimal(0))


@pytest.fixture
def server() -> Iterator[Server]:
    with served(bundled(FIRST, DAYS)) as server:
        yield server


@pytest.fixture
def asking(server: Server) -> Iterator[Asking]:
    with Asking(server) as asking:
        yield asking


# Costs


def test_all_costs_add_up_to_what_the_plan_says_to_the_last_digit(asking: Asking) -> None:
    rows = asking.costs()
    by_type = {name: total([row for row in rows if row["line_type"] == name]) for name in planned_totals(DAYS)}
    assert total(rows) == planned_total(DAYS) == Decimal("14509.3485360160")
    assert by_type == planned_totals(DAYS)
    assert max(-Decimal(row["amount"]).as_tuple().exponent for row in rows) == 10


def test_amounts_are_numbers_in_json(asking: Asking) -> None:
    text = asking.get(COSTS, start_date="2025-09-01", end_date="2025-09-02", page_size="1").text
    assert '"amount": 11.8583640371, ' in text


@pytest.mark.parametrize("rows_per_page", [1, 7, 100, None])
def test_pages_hold_every_record_exactly_once(rows_per_page: int | None) -> None:
    organization = bundled(FIRST, 3)
    window = (FIRST, FIRST + timedelta(days=3))
    with served(organization, rows_per_page=rows_per_page) as server, Asking(server) as asking:
        rows = asking.costs(window)
        assert rows == [json_of(record) for record in organization.records(*window)]
        assert server.counted(COSTS) == -(-len(rows) // (rows_per_page or 2000))
        assert server.passes(COSTS) == 1
        assert server.windows() == server.whole_windows() == {("2025-09-01", "2025-09-04"): 1}


def json_of(record: dict[str, Any]) -> Any:
    """A record as it is read again: whole numbers are int."""
    plain = {name: str(value) if isinstance(value, Decimal) else value for name, value in record.items()}
    return {name: exact(plain[name]) if isinstance(value, Decimal) else plain[name] for name, value in record.items()}


def test_windows_are_half_open_and_follow_each_other(asking: Asking) -> None:
    days = [(FIRST + timedelta(days=number), FIRST + timedelta(days=number + 1)) for number in range(DAYS)]
    assert {row["id"] for row in asking.costs(*days)} == {row["id"] for row in asking.costs()}
    one = asking.costs((FIRST, FIRST + timedelta(days=1)))
    assert {row["start_date"] for row in one} == {"2025-09-01"}
    assert {row["end_date"] for row in one} == {"2025-09-02"}


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ({"start_date": "2025-09-01"}, "end_date must be YYYY-MM-DD"),
        ({"end_date": "2025-09-01"}, "start_date must be YYYY-MM-DD"),
        ({"start_date": "2025-9-1", "end_date": "2025-09-02"}, "start_date must be YYYY-MM-DD"),
        ({"start_date": "2025-02-29", "end_date": "2025-03-01"}, "start_date must be YYYY-MM-DD"),
        ({"start_date": "2025-09-02", "end_date": "2025-09-02"}, "start_date must be before end_date"),
        ({"start_date": "2025-09-03", "end_date": "2025-09-02"}, "start_date must be before end_date"),
        ({"start_date": "2025-09-01", "end_date": "2025-10-03"}, "the date range cannot be longer than one month"),
        ({"start_date": "2024-08-31", "end_date": "2024-09-02"}, "start_date must not be before 2024-09-01"),
    ],
)
def test_wrong_windows_are_refused(server: Server, asking: Asking, asked: dict[str, str], detail: str) -> None:
    server.organization.oldest = date(2024, 9, 1)
    response = asking.get(COSTS, **asked)
    assert (response.status_code, response.json()["errors"][0]["detail"]) == (400, detail)


def test_a_whole_month_of_31_days_is_allowed(asking: Asking) -> None:
    assert asking.get(COSTS, start_date="2025-10-01", end_date="2025-11-01").status_code == 200


def test_the_bill_has_everything_that_is_hard(asking: Asking) -> None:
    rows = asking.costs()
    tiers = Counter(map(line_key, rows))
    by_resource = {name for row in rows for name in [row.get("resource")] if isinstance(name, str)}
    assert max(tiers.values()) == 3
    assert {row["line_type"] for row in rows if "resource" not in row} == {"SUPPORT", "PROMO_CREDIT"}
    assert by_resource == {"lkc-test1"}
    assert sum("start_date" not in row for row in rows) == 3
    assert sum(row["amount"] < 0 for row in rows) == 4 + 3
    assert len(rows) == sum(line.is_due(number) for line in PLAN for number in range(DAYS))
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_bill_has_every_product(asking: Asking) -> None:
    assert {row["line_type"] for row in asking.costs()} == PRODUCTS == set(planned_totals(DAYS))


PRODUCTS = {
    # Those for which there are no rules.
    "AGENT_DREAM_HOURS",
    "CONNECT_NUM_RECORDS",
    "KAFKA_REST_PRODUCE",
    "KAFKA_STREAMS",
    "PROMO_CREDIT",
    "USM_CONNECTED_NODE",
    # Those for which there are.
    "KAFKA_NETWORK_WRITE",
    "KAFKA_NETWORK_READ",
    "KAFKA_PARTITION",
    "KAFKA_BASE",
    "KAFKA_STORAGE",
    "KAFKA_NUM_CKU",
    "KAFKA_NUM_CKUS",
    "SCHEMA_REGISTRY",
    "GOVERNANCE_BASE",
    "NUM_RULES",
    "KSQL_NUM_CSU",
    "KSQL_NUM_CSUS",
    "CONNECT_NUM_TASKS",
    "CONNECT_THROUGHPUT",
    "CUSTOM_CONNECT_NUM_TASKS",
    "CUSTOM_CONNECT_THROUGHPUT",
    "CONNECT_CAPACITY",
    "CUSTOM_CONNECT_PLUGIN",
    "FLINK_NUM_CFU",
    "FLINK_NUM_CFUS",
    "AUDIT_LOG_READ",
    "SUPPORT",
    "TABLEFLOW_DATA_PROCESSED",
    "TABLEFLOW_NUM_TOPICS",
    "TABLEFLOW_STORAGE",
    "CLUSTER_LINKING_PER_LINK",
    "CLUSTER_LINKING_READ",
    "CLUSTER_LINKING_WRITE",
}


def test_an_order_of_records_changes_their_order_only(server: Server, asking: Asking) -> None:
    before = asking.costs()
    server.organization.order = "other"
    after = asking.costs()
    assert [row["id"] for row in after] != [row["id"] for row in before]
    assert sorted(row["id"] for row in after) == sorted(row["id"] for row in before)


def test_two_organizations_of_the_same_arguments_are_the_same() -> None:
    assert bundled(FIRST, 5, principals=3) == bundled(FIRST, 5, principals=3)


# Inventory


LISTS: Mapping[str, tuple[str, str]] = {
    "environments": (ENVIRONMENTS, ""),
    "clusters": ("/cmk/v2/clusters", "environment"),
    "schema_registries": ("/srcm/v3/clusters", "environment"),
    "ksqldbs": ("/ksqldbcm/v2/clusters", "environment"),
    "flink_pools": ("/fcpm/v2/compute-pools", "environment"),
    "service_accounts": ("/iam/v2/service-accounts", ""),
    "users": ("/iam/v2/users", ""),
    "api_keys": ("/iam/v2/api-keys", ""),
    "identity_providers": ("/iam/v2/identity-providers", ""),
    "identity_pools": ("/iam/v2/identity-providers/{}/identity-pools", "provider"),
}


def listed(asking: Asking, kind: str, **asked: str) -> list[str]:
    path, by = LISTS[kind]
    within = {"environment": "environments", "provider": "identity_providers"}.get(by)
    ids = listed(asking, within) if within else [""]
    more = [asked | ({"environment": one} if by == "environment" else {}) for one in ids]
    return [row["id"] for one, given in zip(ids, more, strict=True) for row in asking.rows(path.format(one), **given)]


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("rows_per_page", [1, 2, None])
def test_every_list_holds_everything_once(kind: str, rows_per_page: int | None) -> None:
    organization = bundled(FIRST, 1, principals=5)
    with served(organization, rows_per_page=rows_per_page) as server, Asking(server) as asking:
        assert sorted(listed(asking, kind, page_size="50")) == sorted(organization.ids(kind))


@pytest.mark.parametrize(("kind", "page_size"), [("environments", 99), ("schema_registries", 50), ("api_keys", 100)])
def test_page_sizes_have_a_limit(asking: Asking, kind: str, page_size: int) -> None:
    path = LISTS[kind][0]
    for wrong in (f"{page_size + 1}", "0", "-1", "many", ""):
        assert asking.get(path, environment="env-prod1", page_size=wrong).status_code == 400
    assert asking.get(path, environment="env-prod1", page_size=f"{page_size}").status_code == 200


def test_pages_have_ten_rows_if_nobody_says_otherwise(asking: Asking) -> None:
    assert [len(page["data"]) for page in asking.pages(LISTS["api_keys"][0])] == [10, len(API_KEYS) + 1 - 10]


def test_a_token_is_good_for_its_own_list_only(asking: Asking) -> None:
    following = asking.get(LISTS["api_keys"][0]).json()["metadata"]["next"]
    token = urllib.parse.parse_qs(urllib.parse.urlsplit(following).query)["page_token"][0]
    assert set("+/=") <= set(token)
    assert asking.get(LISTS["api_keys"][0], page_token=token).status_code == 200
    assert asking.get(LISTS["users"][0], page_token=token).status_code == 400
    assert asking.get(LISTS["api_keys"][0], page_token="x").status_code == 400


def test_the_next_url_can_be_on_another_host() -> None:
    with served(bundled(FIRST, 1), rows_per_page=1, next_url="https://elsewhere.example") as server:
        with Asking(server) as asking:
            following = asking.get(ENVIRONMENTS).json()["metadata"]["next"]
        assert following.startswith("https://elsewhere.example/org/v2/environments?")


def test_the_last_page_has_no_next_or_an_empty_one(asking: Asking) -> None:
    ends = {kind: list(asking.pages(LISTS[kind][0]))[-1]["metadata"].get("next") for kind in ("users", "api_keys")}
    assert ends == {"users": "", "api_keys": None}


def connectors(asking: Asking, environment: str, cluster: str, **asked: str) -> httpx.Response:
    return asking.get(f"/connect/v1/environments/{environment}/clusters/{cluster}/connectors", **asked)


def test_connectors_are_an_object_by_name(asking: Asking) -> None:
    bodies = [
        body
        for cluster in ("lkc-prod1", "lkc-prod2")
        for body in connectors(asking, "env-prod1", cluster, expand="info,status,id").json().values()
    ]
    settings = {body["id"]["id"]: body["info"]["config"] for body in bodies}
    assert list(settings) == list(CONNECTORS)
    assert {
        name: {key: value for key, value in config.items() if key.startswith("kafka.")}
        for name, config in settings.items()
    } == {name: given for name, (_, given) in CONNECTORS.items()}
    assert connectors(asking, "env-test1", "lkc-test1", expand="info,status,id").json() == {}
    assert connectors(asking, "env-prod1", "lkc-prod2").json()[0] == "keygone connector"


@pytest.mark.parametrize(
    ("environment", "cluster"), [("env-test1", "lkc-prod1"), ("env-prod1", "lkc-x"), ("env-x", "lkc-prod1")]
)
def test_connectors_of_a_cluster_that_is_not_there_are_404(asking: Asking, environment: str, cluster: str) -> None:
    assert connectors(asking, environment, cluster).status_code == 404


def test_lists_of_what_is_gone_are_404(server: Server, asking: Asking) -> None:
    server.organization.remove("clusters", "lkc-prod1")
    server.organization.remove("identity_providers", "op-okta")
    server.organization.remove("environments", "env-test1")
    assert connectors(asking, "env-prod1", "lkc-prod1").status_code == 404
    assert asking.get(LISTS["identity_pools"][0].format("op-okta")).status_code == 404
    assert asking.get("/cmk/v2/clusters", environment="env-test1").status_code == 404
    assert asking.get("/cmk/v2/clusters").status_code == 400


def statements(
    server: Server, region: str, cloud: str, environment: str, organization: str = ORGANIZATION_ID
) -> list[str] | int:
    base = server.flink_url.format(region=region, cloud=cloud)
    path = f"{base}/sql/v1/organizations/{organization}/environments/{environment}/statements"
    with Asking(server, key=server.organization.flink[region]) as asking:
        code = asking.get(path).status_code
        return [row["name"] for row in asking.rows(path, page_size="2")] if code == 200 else code


def test_statements_are_listed_in_their_region_with_its_key(server: Server, asking: Asking) -> None:
    us = statements(server, "us-east-1", "aws", "env-prod1")
    eu = statements(server, "europe-west1", "gcp", "env-test1")
    assert isinstance(us, list)
    assert isinstance(eu, list)
    assert us + eu == list(STATEMENTS)
    assert statements(server, "us-east-1", "aws", "env-test1") == []
    assert statements(server, "us-east-1", "aws", "env-prod1", organization="another") == 404
    path = f"/flink/us-east-1/aws/sql/v1/organizations/{ORGANIZATION_ID}/environments/env-prod1/statements"
    assert asking.get(path).status_code == 401
    assert asking.get(path.replace("us-east-1", "mars-1")).status_code == 404


def test_the_organization_is_in_what_a_pool_is_called(asking: Asking) -> None:
    pools = asking.rows("/fcpm/v2/compute-pools", environment="env-test1")
    assert f"/organization={ORGANIZATION_ID}/" in pools[0]["metadata"]["resource_name"]
    assert (pools[0]["spec"]["region"], pools[0]["spec"]["cloud"]) == ("europe-west1", "GCP")
    assert pools[0]["metadata"]["created_at"] == "2025-09-03T12:00:00Z"


@pytest.mark.parametrize("key", [("x", "y"), ("CANARYKEYCLOUD01", "wrong"), ("CANARYKEYFLINK01", "wrong")])
def test_wrong_keys_are_401(server: Server, key: tuple[str, str]) -> None:
    with Asking(server, key=key) as asking:
        assert asking.get(ENVIRONMENTS).status_code == 401
        assert asking.get(COSTS).status_code == 401
    assert httpx.get(f"{server.url}{ENVIRONMENTS}", trust_env=False).status_code == 401


def test_a_role_that_is_missing_is_403(server: Server, asking: Asking) -> None:
    server.organization.roles = {"OrganizationAdmin"}
    assert asking.get(COSTS, start_date="2025-09-01", end_date="2025-09-02").status_code == 403
    assert asking.get(ENVIRONMENTS).status_code == 200
    server.organization.roles = {"BillingAdmin"}
    assert asking.get(COSTS, start_date="2025-09-01", end_date="2025-09-02").status_code == 200
    assert asking.get(ENVIRONMENTS).status_code == 403
    assert connectors(asking, "env-prod1", "lkc-prod1").status_code == 403


def test_nothing_can_be_written_and_other_paths_are_404(asking: Asking) -> None:
    assert asking.http.post(ENVIRONMENTS, json={}).status_code == 405
    assert asking.http.delete(ENVIRONMENTS).status_code == 405
    assert asking.get("/org/v2").status_code == 404


def test_users_secrets_are_where_a_client_must_not_keep_them(server: Server, asking: Asking) -> None:
    connector = next(iter(connectors(asking, "env-prod1", "lkc-prod1", expand="info,status,id").json().values()))
    assert connector["info"]["config"]["aws.secret.access.key"].startswith(SETTING)
    assert SETTING in connector["status"]["connector"]["trace"]
    assert SETTING in server.organization.canaries()


# Changes


def test_revisions_show(server: Server, asking: Asking) -> None:
    organization, day = server.organization, date(2025, 9, 10)
    before = asking.costs()
    support = organization.find(date(2025, 9, 11), "SUPPORT")[0]
    organization.revise(support["id"], amount=Decimal("0.0000000001"), description=...)
    base = organization.find(day, "KAFKA_BASE", "lkc-gone1")[0]
    organization.withdraw(base["id"])
    late = base | {"id": "late", "amount": Decimal("-7.5")}
    organization.add_cost(date(2025, 9, 12), late)
    organization.empty_day(date(2025, 9, 20))
    after = asking.costs()
    lost = [one for one in before if one.get("start_date") == "2025-09-20"]
    expected = total(before) - Decimal("123.456789") + Decimal("0.0000000001")
    expected += -base["amount"] + Decimal("-7.5") - total(lost)
    assert total(after) == expected == organization.total()
    assert {one["id"] for one in after} == {one["id"] for one in before} - {base["id"]} - {
        one["id"] for one in lost
    } | {"late"}
    assert next(one for one in after if one["id"] == support["id"]).get("description", "gone") == "gone"


def test_tiers_split_and_merge(server: Server, asking: Asking) -> None:
    organization, day = server.organization, date(2025, 9, 10)
    window = (day, day + timedelta(days=1))
    merged = organization.find(day, "KAFKA_PARTITION", "lkc-prod1")
    organization.retier(merged[1]["id"], [(Decimal(10), Decimal("0.5"))])
    split = organization.find(day, "KAFKA_STORAGE", "lkc-prod1")[0]
    organization.retier(split["id"], [(Decimal(10), Decimal("0.5")), (Decimal(5), Decimal("0.25"))])
    rows = asking.costs(window)
    one = [row for row in rows if line_key(row) == line_key(merged[0])]
    two = [row for row in rows if line_key(row) == line_key(split)]
    assert [(row["amount"], row["tier_dimensions"]) for row in one] == [(Decimal("5.0"), {})]
    assert [row["amount"] for row in two] == [Decimal("5.0"), Decimal("1.25")]
    assert all(row["tier_dimensions"] for row in two)
    assert len(rows) == len({row["id"] for row in rows})


def test_entities_come_go_and_change(server: Server, asking: Asking) -> None:
    organization = server.organization
    organization.remove("service_accounts", "sa-orders")
    organization.rename("users", "u-bob", "Robert")
    organization.change_owner("api_keys", "KEYALICE00000001", "sa-search")
    organization.change_owner("ksqldbs", "lksqlc-test1", "u-bob")
    organization.change_owner("connectors", "lcc-nothing", "api_key:KEYALICE00000001")
    assert "sa-orders" not in listed(asking, "service_accounts")
    assert {row["id"]: row["full_name"] for row in asking.rows("/iam/v2/users")}["u-bob"] == "Robert"
    keys = {row["id"]: row["spec"]["owner"] for row in asking.rows("/iam/v2/api-keys")}
    assert keys["KEYALICE00000001"] == {"id": "sa-search"}
    ksqldb = asking.rows("/ksqldbcm/v2/clusters", environment="env-test1")[0]
    assert ksqldb["spec"]["credential_identity"] == {"id": "u-bob"}
    config = connectors(asking, "env-prod1", "lkc-prod2", expand="info,id").json()["nothing connector"]["info"][
        "config"
    ]
    assert (config["kafka.auth.mode"], config["kafka.api.key"]) == ("KAFKA_API_KEY", "KEYALICE00000001")
    organization.bring_back("sa-orders")
    assert "sa-orders" in listed(asking, "service_accounts")


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_renamed(kind: str) -> None:
    organization = bundled(FIRST, 1)
    entity = organization.inventory[kind][organization.ids(kind)[0]]
    organization.rename(kind, entity.id, "a new name")
    assert "a new name" in json.dumps(entity.body)


def test_a_kind_can_be_empty_or_fail(server: Server, asking: Asking) -> None:
    server.organization.hidden = {"users", "connectors"}
    server.organization.denied = {"api_keys": 500, "flink_statements": 503}
    assert listed(asking, "users") == []
    assert connectors(asking, "env-prod1", "lkc-prod1", expand="id").json() == {}
    assert asking.get("/iam/v2/api-keys").status_code == 500
    assert statements(server, "us-east-1", "aws", "env-prod1") == 503
    server.organization.hidden, server.organization.denied = set(), {}
    assert len(listed(asking, "users")) == 3
    assert asking.get("/iam/v2/api-keys").status_code == 200


def test_something_can_happen_in_the_midst_of_a_gather(server: Server, asking: Asking) -> None:
    clusters = listed(asking, "clusters")
    server.before("/connect/", 1, lambda organization: organization.remove("clusters", "lkc-prod2"))
    assert "lkc-prod2" in clusters
    assert connectors(asking, "env-prod1", "lkc-prod1").status_code == 200
    assert connectors(asking, "env-prod1", "lkc-prod2").status_code == 404


def test_the_second_pass_can_have_another_total(server: Server, asking: Asking) -> None:
    def more(organization: Organization) -> None:
        record = organization.records(FIRST, LAST)[0]
        organization.revise(record["id"], amount=record["amount"] + 1)

    server.before(COSTS, 3, more)
    assert total(asking.costs()) == planned_total(DAYS)
    assert total(asking.costs()) == planned_total(DAYS) + 1
    assert set(server.windows().values()) == {2}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_by_chance_follows_from_its_seed(change: str) -> None:
    one, other = bundled(FIRST, 6), bundled(FIRST, 6)
    before = one.copy()
    for organization in (one, other):
        organization.drift(Random(1), "disappearance")
        told = [organization.drift(Random(2), change) for _ in range(3)]
        assert all(text.startswith(change) for text in told)
    assert one == other
    assert (one == before) == (change == "reappearance")


def test_histories_end_in_something_that_can_still_be_served() -> None:
    for seed in range(30):
        organization, random = bundled(FIRST, 5), Random(seed)
        for _ in range(25):
            organization.drift(random)
        records = organization.records(FIRST, LAST)
        assert len({record["id"] for record in records}) == len(records)
        with served(organization) as server, Asking(server) as asking:
            rows = asking.costs((FIRST, FIRST + timedelta(days=5)))
        assert total(rows) == organization.total()


# Faults


RIGHT = {"start_date": "2025-09-01", "end_date": "2025-09-02", "page_size": "2000"}


@pytest.mark.parametrize(
    ("fault", "code", "headers"),
    [
        (rate_limited("Retry-After", 3), 429, {"retry-after": "3"}),
        (rate_limited("rateLimit-reset", 4), 429, {"ratelimit-reset": "4"}),
        (rate_limited("X-RateLimit-Reset", 1_756_684_800), 429, {"x-ratelimit-reset": "1756684800"}),
        (rate_limited(), 429, {}),
        (status(500), 500, {}),
        (status(502), 502, {}),
        (status(503, "later", **{"Retry-After": "1"}), 503, {"retry-after": "1"}),
        (html(), 200, {"content-type": "text/html"}),
        (html(502), 502, {"content-type": "text/html"}),
        (redirected("https://elsewhere.example/"), 302, {"location": "https://elsewhere.example/"}),
    ],
)
def test_faults_with_a_status(server: Server, asking: Asking, fault: Fault, code: int, headers: dict[str, str]) -> None:
    server.script(COSTS, fault, times=2, after=1)
    responses = [asking.get(COSTS, **RIGHT) for _ in range(4)]
    assert [response.status_code for response in responses] == [200, code, code, 200]
    waits = {"retry-after", "ratelimit-reset", "x-ratelimit-reset", *headers} - {"content-type"}
    found = {name: value for name, value in responses[1].headers.items() if name in waits | set(headers)}
    assert found == headers
    assert responses[0].text == responses[3].text
    assert [request.status for request in server.requests] == [200, code, code, 200]
    assert [request.whole for request in server.requests] == [True, False, False, True]


def test_a_fault_is_for_its_prefix_only(server: Server, asking: Asking) -> None:
    server.script("/cmk/v2/clusters?environment=env-test1", status(500))
    assert asking.get("/cmk/v2/clusters", environment="env-prod1").status_code == 200
    assert asking.get(ENVIRONMENTS).status_code == 200
    assert asking.get("/cmk/v2/clusters", environment="env-test1").status_code == 500
    assert asking.get("/cmk/v2/clusters", environment="env-test1").status_code == 200
    assert server.counted("/cmk/") == 3
    assert server.counted() == 4


def test_faults_happen_one_after_the_other(server: Server, asking: Asking) -> None:
    server.script(ENVIRONMENTS, status(500), times=2)
    server.script(ENVIRONMENTS, status(503))
    server.script(ENVIRONMENTS, status(502), times=9)
    assert [asking.get(ENVIRONMENTS).status_code for _ in range(4)] == [500, 500, 503, 502]
    server.clear()
    server.forget()
    assert asking.get(ENVIRONMENTS).status_code == 200
    assert server.counted() == 1


@pytest.mark.parametrize(("fault", "status_seen"), [(dropped(), 0), (cut_short(), 200), (cut_short(0), 200)])
def test_connections_that_are_closed_too_early(server: Server, asking: Asking, fault: Fault, status_seen: int) -> None:
    server.script(COSTS, fault)
    with pytest.raises(httpx.RemoteProtocolError):
        asking.get(COSTS, **RIGHT)
    assert asking.get(COSTS, **RIGHT).status_code == 200
    assert [(request.status, request.whole) for request in server.requests] == [(status_seen, False), (200, True)]
    assert server.whole_windows() == {("2025-09-01", "2025-09-02"): 1}


@pytest.mark.parametrize("fault", [slow(TINY), silent(TINY)])
def test_slow_answers_come_whole_in_the_end(server: Server, asking: Asking, fault: Fault) -> None:
    right = asking.get(COSTS, **RIGHT).text
    server.script(COSTS, fault)
    assert asking.get(COSTS, **RIGHT).text == right


@pytest.mark.parametrize("fault", [slow(60, pieces=2), silent(60)])
def test_answers_that_are_slower_than_a_client_waits(server: Server, fault: Fault) -> None:
    server.script(COSTS, fault)
    with Asking(server, timeout=TINY) as asking, pytest.raises(httpx.ReadTimeout):
        asking.get(COSTS, **RIGHT)


def test_json_that_breaks_off(server: Server, asking: Asking) -> None:
    server.script(COSTS, truncated())
    response = asking.get(COSTS, **RIGHT)
    assert response.status_code == 200
    with pytest.raises(ValueError, match=r"."):
        response.json()


def test_an_error_that_repeats_credentials(server: Server, asking: Asking) -> None:
    server.script(COSTS, echoing())
    response = asking.get(COSTS, **RIGHT)
    assert response.status_code == 500
    assert server.organization.credential.basic in response.text
    assert server.organization.credential.basic in response.headers["x-echo"]


def test_a_page_that_comes_again_and_again(server: Server, asking: Asking) -> None:
    server.script(LISTS["api_keys"][0], looping(), times=3)
    pages = []
    for page in asking.pages(LISTS["api_keys"][0]):
        pages.append([row["id"] for row in page["data"]])
        if len(pages) == 3:
            break
    assert pages[0] == pages[1] == pages[2]


WRONG: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "amount is text": lambda row: row["amount"] == "abc",
    "amount is null": lambda row: row["amount"] is None,
    "amount is missing": lambda row: "amount" not in row,
    "no start_date": lambda row: "start_date" not in row,
    "resource is text": lambda row: row["resource"] == "lkc-prod1",
    "unknown product": lambda row: row["line_type"] == "NEVER_SEEN_BEFORE",
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_wrong_data(server: Server, asking: Asking, name: str) -> None:
    right = asking.get(COSTS, **RIGHT).json()
    server.script(COSTS, WRONG_DATA[name])
    wrong = asking.get(COSTS, **RIGHT).json()
    assert WRONG[name](wrong["data"][0])
    assert wrong["data"][1:] == right["data"][1:]
    assert asking.get(COSTS, **RIGHT).json() == right


def test_any_other_change_of_an_answer(server: Server, asking: Asking) -> None:
    server.script(ENVIRONMENTS, changed(lambda page: page | {"data": None}))
    assert asking.get(ENVIRONMENTS).json()["data"] is None
    assert asking.get(ENVIRONMENTS).json()["data"][0]["id"] == "env-prod1"


def test_a_fault_of_the_double_itself_is_an_error_of_the_test() -> None:
    def broken() -> None:
        with served(bundled(FIRST, 1)) as server, Asking(server) as asking:
            server.script(ENVIRONMENTS, changed(lambda page: page["no such key"]))
            with suppress(httpx.TransportError):
                asking.get(ENVIRONMENTS)

    with pytest.raises(ExceptionGroup, match="the double failed"):
        broken()


# Metrics


def test_metrics_add_up_by_day() -> None:
    metrics = Metrics(FIRST, days=12, step_minutes=60)
    sums, not_numbers = Counter[Used](), set[Used]()
    for sample in metrics.samples():
        day = datetime.fromtimestamp(sample.milliseconds / 1000, UTC).date()
        resource, principal = sample.labels.values()
        used = Used(day, sample.name, resource, principal)
        if sample.value == "NaN":
            not_numbers.add(used)
        else:
            sums[used] += Decimal(sample.value)  # type: ignore[assignment]
    assert not_numbers == {Used(date(2025, 9, 3), REQUEST_BYTES, "lkc-prod1", "u-alice")}
    assert sums == metrics.used()


def test_days_can_be_zero_or_missing() -> None:
    found = Metrics(FIRST, days=30).by_resource()
    day = [FIRST + timedelta(days=number) for number in range(30)]
    assert set(found[day[3], RESPONSE_BYTES, "lkc-prod2"].values()) == {Decimal(0)}
    assert (day[4], RESPONSE_BYTES, "lkc-prod2") not in found
    assert (day[25], REQUEST_BYTES, "lkc-test1") not in found
    assert set(found[day[6], NUM_CFU, "lfcp-prod1"].values()) == {Decimal(0)}
    sent, received = (found[day[2], name, "lkc-prod1"] for name in (REQUEST_BYTES, RESPONSE_BYTES))
    # A sample of 96 is no number.
    assert sent["u-alice"] % 95 == received["u-alice"] % 96 == 0
    assert {"sa-orders", "u-alice", "KEYCONNECT000001", "sa-stranger"} <= set(found[day[1], REQUEST_BYTES, "lkc-prod1"])


def test_there_is_a_sample_exactly_at_midnight_and_days_differ() -> None:
    metrics = Metrics(FIRST, days=2)
    minutes = {sample.minute for sample in metrics.samples()}
    assert int(datetime(2025, 9, 2, tzinfo=UTC).timestamp()) // 60 in minutes
    assert int(datetime(2025, 9, 3, tzinfo=UTC).timestamp()) // 60 not in minutes
    used = metrics.by_resource()
    assert used[FIRST, REQUEST_BYTES, "lkc-prod1"] != used[FIRST + timedelta(days=1), REQUEST_BYTES, "lkc-prod1"]


def test_a_pool_can_have_the_other_metric_only() -> None:
    metrics = Metrics(FIRST, days=4, fallback_pools=("lfcp-test1",))
    names = {(sample.name, sample.labels.get("compute_pool_id")) for sample in metrics.samples()}
    assert {pair for pair in names if pair[1]} == {(NUM_CFU, "lfcp-prod1"), (CFU_MINUTES, "lfcp-test1")}


# The program


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.doubles", "--first", "2025-09-01", "--days", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            key = (told["api_key"], told["api_secret"])
            asked = {"start_date": "2025-09-01", "end_date": "2025-09-03", "page_size": "2000"}
            response = httpx.get(f"{told['url']}{COSTS}", params=asked, auth=key, trust_env=False)
            assert total(exact(response.text)["data"]) == planned_total(2)
            flink = told["flink"]["keys"]["us-east-1"]
            url = told["flink"]["url"].format(region="us-east-1", cloud="aws")
            path = f"{url}/sql/v1/organizations/{ORGANIZATION_ID}/environments/env-prod1/statements"
            basic = (flink["api_key"], flink["api_secret"])
            assert httpx.get(path, auth=basic, trust_env=False).json()["data"][0]["name"] == "enrich-orders"
        finally:
            process.terminate()
