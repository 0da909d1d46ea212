"""The inventory of an organization: what is asked, what fails alone, and what each answer becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from engine.errors import ContractError, StoppedError
from engine.frames import IDENTITY_SNAPSHOT, RESOURCE_SNAPSHOT, shape
from engine.sources import confluent_inventory
from engine.sources.answers import Answer
from engine.sources.confluent import (
    KINDS,
    Inventory,
    fetch_inventory,
    flink_url,
    parse_inventory,
    read_inventory,
)
from engine.sources.http import Client
from engine.sources.landing import Landing
from tests.unit.scripted import Reply, Request, Script, answering, client

CREATED = {"created_at": "2025-03-04T05:06:07.123456789Z"}
CANARY = "canary-password"


def one(identity: str, **members: Any) -> dict[str, Any]:
    return {"id": identity, "metadata": CREATED, **members}


def within(identity: str, environment: str, name: str, **spec: Any) -> dict[str, Any]:
    return one(identity, spec={"display_name": name, "environment": {"id": environment}, **spec})


def connector(identity: str, **config: str) -> dict[str, Any]:
    settings = {"connection.password": CANARY, **{name.replace("_", "."): text for name, text in config.items()}}
    said = {"state": "FAILED", "trace": CANARY, "msg": CANARY, "error_details": {"why": [CANARY]}}
    status = {"connector": said, "tasks": [{"id": 0, **said}, CANARY], "validation_errors": [CANARY], "later": CANARY}
    info = {"name": "x", "config": settings, "tasks": [{"connector": "x", "task": 0, "later": CANARY}], "later": CANARY}
    return {"id": {"id": identity, "id_type": "ID"}, "info": info, "status": status, "later": {"why": CANARY}}


def pool(identity: str, environment: str, region: str) -> dict[str, Any]:
    crn = (
        f"crn://confluent.cloud/organization=org-1/environment={environment}/flink-region=aws.{region}/pool={identity}"
    )
    return {
        "id": identity,
        "spec": {"display_name": f"pool {identity}", "cloud": "AWS", "region": region},
        "metadata": {"resource_name": crn, **CREATED},
    }


def statement(uid: str, name: str, pool_id: str, phase: str, **spec: Any) -> dict[str, Any]:
    return {
        "name": name,
        "metadata": {"uid": uid, **CREATED},
        "spec": {"compute_pool": {"id": pool_id}, "statement": f"CREATE TABLE ... {CANARY}", **spec},
        "status": {"phase": phase, "detail": CANARY},
    }


ANSWERS: dict[str, Any] = {
    "/org/v2/environments?page_size=99": [one("env-1", display_name="prod"), one("env-2", display_name="test")],
    "/cmk/v2/clusters?environment=env-1&page_size=99": [within("lkc-1", "env-1", "orders")],
    "/cmk/v2/clusters?environment=env-2&page_size=99": [within("lkc-2", "env-2", "trials")],
    "/connect/v1/environments/env-1/clusters/lkc-1/connectors?expand=info%2Cstatus%2Cid": {
        "sink": connector("lcc-1", name="sink", kafka_auth_mode="SERVICE_ACCOUNT", kafka_service_account_id="sa-1"),
        "config": connector("lcc-2", kafka_auth_mode="KAFKA_API_KEY", kafka_api_key="KEY1"),
    },
    "/connect/v1/environments/env-2/clusters/lkc-2/connectors?expand=info%2Cstatus%2Cid": {},
    "/srcm/v3/clusters?environment=env-1&page_size=50": [within("lsrc-1", "env-1", "schemas")],
    "/srcm/v3/clusters?environment=env-2&page_size=50": Reply(404),
    "/ksqldbcm/v2/clusters?environment=env-1&page_size=100": [
        within("lksqlc-1", "env-1", "ksql", kafka_cluster={"id": "lkc-1"}, credential_identity={"id": "sa-2"}),
        within("lksqlc-2", "env-1", "ksql 2", kafka_cluster={"id": "lkc-1"}, csu=4),
    ],
    "/ksqldbcm/v2/clusters?environment=env-2&page_size=100": [],
    "/fcpm/v2/compute-pools?environment=env-1&page_size=50": [
        pool("lfcp-1", "env-1", "us-east-1"),
        pool("lfcp-2", "env-1", "us-east-1"),
    ],
    "/fcpm/v2/compute-pools?environment=env-2&page_size=50": [pool("lfcp-3", "env-2", "eu-west-1")],
    "/sql/v1/organizations/org-1/environments/env-1/statements?page_size=50": [
        statement("uid-1", "enrich", "lfcp-1", "RUNNING", principal="sa-1"),
        statement("uid-2", "nightly", "lfcp-1", "COMPLETED", principal="u-1"),
        statement("uid-3", "broken", "lfcp-2", "FAILED", principal="u-1"),
        statement("uid-4", "ended", "lfcp-2", "STOPPED", principal="u-1"),
        statement("uid-5", "orphan", "lfcp-2", "PENDING"),
    ],
    "/sql/v1/organizations/org-1/environments/env-2/statements?page_size=50": [],
    "/iam/v2/service-accounts?page_size=99": [one("sa-1", display_name="loader", description="d"), one("sa-2")],
    "/iam/v2/users?page_size=99": [one("u-1", full_name="Ada", email="a@x"), one("u-2", full_name="", email="b@x")],
    "/iam/v2/api-keys?page_size=100": [
        one(
            "KEY1", spec={"description": "sink", "owner": {"id": "sa-1"}, "resource": {"id": "lkc-1"}, "secret": CANARY}
        )
    ],
    "/iam/v2/identity-providers?page_size=99": [one("op-1", display_name="okta")],
    "/iam/v2/identity-providers/op-1/identity-pools?page_size=99": [one("pool-1", display_name="apps")],
}


def fetched(
    folder: Path, changes: Mapping[str, Any] | None = None, regions: tuple[str, ...] = ("us-east-1", "eu-west-1")
) -> tuple[dict[str, str], Script]:
    """What a gather of the organization, with some answers changed, failed with; and what it asked for."""
    answers = ANSWERS | dict(changes or {})

    def answer(request: Request) -> Reply:
        found = answers.get(request.target, Reply(400, body="not in the script"))
        if isinstance(found, Reply):
            return found
        return Reply(body=json.dumps(found if "/connectors?" in request.target else {"data": found}))

    with answering(answer) as server, ExitStack() as stack:
        cloud = stack.enter_context(client(server.url))

        def flink(region: str, cloud_name: str) -> Client | None:
            assert cloud_name == "aws"
            key = SecretStr(f"key-{region}")
            return stack.enter_context(client(server.url, key=key, secret=key)) if region in regions else None

        return fetch_inventory(cloud, flink, Landing(folder)), server


def gathered(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Inventory:
    failed, _ = fetched(folder, changes, **options)
    assert failed == {}
    return parsed(folder)


def parsed(folder: Path) -> Inventory:
    landing = Landing(folder)
    inventory = parse_inventory(read_inventory(landing, KINDS.keys() - set(landing.names())))
    shape(inventory.resources.lazy(), RESOURCE_SNAPSHOT)
    shape(inventory.identities.lazy(), IDENTITY_SNAPSHOT)
    return inventory


def test_every_list_is_asked_for_once(tmp_path: Path) -> None:
    failed, server = fetched(tmp_path)
    assert failed == {}
    assert sorted(asked.target for asked in server.asked) == sorted(ANSWERS)
    assert Landing(tmp_path).names() == sorted(KINDS)


def test_what_there_is(tmp_path: Path) -> None:
    inventory = gathered(tmp_path)
    assert inventory.warnings == ()
    assert inventory.gathered == {kind.type for kind in KINDS.values()}
    assert inventory.resources.drop("created_at").rows() == [
        ("env-1", "environment", "prod", "", "", ""),
        ("env-2", "environment", "test", "", "", ""),
        ("lcc-1", "connector", "sink", "lkc-1", "sa-1", "env-1"),
        ("lcc-2", "connector", "config", "lkc-1", "api_key:KEY1", "env-1"),
        ("lfcp-1", "flink_pool", "pool lfcp-1", "env-1", "", "env-1"),
        ("lfcp-2", "flink_pool", "pool lfcp-2", "env-1", "", "env-1"),
        ("lfcp-3", "flink_pool", "pool lfcp-3", "env-2", "", "env-2"),
        ("lkc-1", "kafka_cluster", "orders", "env-1", "", "env-1"),
        ("lkc-2", "kafka_cluster", "trials", "env-2", "", "env-2"),
        ("lksqlc-1", "ksqldb", "ksql", "lkc-1", "sa-2", "env-1"),
        ("lksqlc-2", "ksqldb", "ksql 2", "lkc-1", "ksqldb_owner_unknown", "env-1"),
        ("lsrc-1", "schema_registry", "schemas", "env-1", "", "env-1"),
        ("uid-1", "flink_statement", "enrich", "lfcp-1", "sa-1", "env-1"),
        ("uid-2", "flink_statement", "nightly", "lfcp-1", "u-1", "env-1"),
        ("uid-3", "flink_statement", "broken", "lfcp-2", "u-1", "env-1"),
        ("uid-4", "flink_statement", "ended", "lfcp-2", "u-1", "env-1"),
        ("uid-5", "flink_statement", "orphan", "lfcp-2", "flink_stmt_owner_unknown", "env-1"),
    ]
    assert inventory.identities.drop("created_at").rows() == [
        ("KEY1", "api_key", "sink", "sa-1", "lkc-1"),
        ("op-1", "identity_provider", "okta", "", ""),
        ("pool-1", "identity_pool", "apps", "op-1", ""),
        ("sa-1", "service_account", "loader", "", ""),
        ("sa-2", "service_account", "", "", ""),
        ("u-1", "user", "Ada", "", ""),
        ("u-2", "user", "b@x", "", ""),
    ]
    without = inventory.resources.filter(pl.col("created_at").is_null())["type"].unique().to_list()
    assert without == ["connector"]
    assert inventory.identities["created_at"].unique().to_list() == [datetime(2025, 3, 4, 5, 6, 7, 123456)]
    assert inventory.running.rows() == [
        ("lfcp-1", "running_statements", "enrich", Decimal(1)),
        ("lfcp-2", "running_statements", "orphan", Decimal(1)),
    ]


def test_settings_and_statements_of_others_are_not_landed(tmp_path: Path) -> None:
    gathered(tmp_path)
    landed = {name: "".join(page.text for page in pages) for name, pages in read_inventory(Landing(tmp_path)).items()}
    assert [name for name, text in landed.items() if CANARY in text] == []
    assert '"connection.password":"(not landed)"' in landed["connectors"]
    assert '"state":"FAILED"' in landed["connectors"]
    assert '"secret":"(not landed)"' in landed["api_keys"]


@pytest.mark.parametrize("path", [(), ("id",), ("info",), ("info", "config"), ("status",), ("status", "connector")])
def test_what_stands_where_a_group_should_is_not_landed(tmp_path: Path, path: tuple[str, ...]) -> None:
    url = "/connect/v1/environments/env-1/clusters/lkc-1/connectors?expand=info%2Cstatus%2Cid"
    value: Any = CANARY
    for name in reversed(path):
        value = {name: value}
    fetched(tmp_path, {url: {"x": value}})
    landed = Landing(tmp_path).read("connectors")
    assert [page for page in landed if CANARY in page.text] == []
    assert "(not landed)" in "".join(page.text for page in landed)


ACCOUNT, KEY = {"kafka_service_account_id": "sa-9"}, {"kafka_api_key": "KEY9"}
BY_ACCOUNT, BY_KEY = {"kafka_auth_mode": "SERVICE_ACCOUNT"}, {"kafka_auth_mode": "KAFKA_API_KEY"}


@pytest.mark.parametrize(
    ("config", "owner"),
    [
        (BY_ACCOUNT | ACCOUNT, "sa-9"),
        (BY_ACCOUNT | ACCOUNT | KEY, "sa-9"),
        (BY_KEY | KEY, "api_key:KEY9"),
        (BY_KEY | KEY | ACCOUNT, "api_key:KEY9"),
        (ACCOUNT, "sa-9"),
        (KEY, "api_key:KEY9"),
        ({"kafka_auth_mode": ""} | KEY, "api_key:KEY9"),
        ({"kafka_auth_mode": "service_account"} | ACCOUNT, "sa-9"),
        (BY_KEY | {"kafka_api_key": "****************"}, "connector_api_key_masked"),
        ({"kafka_api_key": "*"}, "connector_api_key_masked"),
        (BY_ACCOUNT | {"kafka_service_account_id": "****"}, "connector_credentials_masked"),
        (BY_ACCOUNT | KEY, "connector_credentials_unknown"),
        (BY_KEY | ACCOUNT, "connector_credentials_unknown"),
        (BY_KEY, "connector_credentials_unknown"),
        ({"kafka_auth_mode": "OAUTH"}, "lcc-1"),
        ({}, "lcc-1"),
    ],
)
def test_whom_a_connector_belongs_to(tmp_path: Path, config: dict[str, str], owner: str) -> None:
    url = "/connect/v1/environments/env-1/clusters/lkc-1/connectors?expand=info%2Cstatus%2Cid"
    inventory = gathered(tmp_path, {url: {"x": connector("lcc-1", **config)}})
    assert inventory.resources.filter(type="connector")["owner"].to_list() == [owner]


@pytest.mark.parametrize("found", [{"id": {"id": "lcc-1"}}, {"id": {"id": "lcc-1"}, "info": None, "status": 3}])
def test_a_connector_of_which_only_the_id_is_known(tmp_path: Path, found: object) -> None:
    url = "/connect/v1/environments/env-1/clusters/lkc-1/connectors?expand=info%2Cstatus%2Cid"
    inventory = gathered(tmp_path, {url: {"lost": found}})
    assert inventory.resources.filter(type="connector").drop("created_at").rows() == [
        ("lcc-1", "connector", "lost", "lkc-1", "lcc-1", "env-1")
    ]


@pytest.mark.parametrize(
    ("url", "failing", "dependent"),
    [
        (
            "/org/v2/environments?page_size=99",
            "environments",
            {"clusters", "connectors", "schema_registries", "ksqldbs", "flink_pools", "flink_statements"},
        ),
        ("/cmk/v2/clusters?environment=env-2&page_size=99", "clusters", {"connectors"}),
        ("/fcpm/v2/compute-pools?environment=env-1&page_size=50", "flink_pools", {"flink_statements"}),
        ("/iam/v2/identity-providers?page_size=99", "identity_providers", {"identity_pools"}),
        ("/iam/v2/identity-providers/op-1/identity-pools?page_size=99", "identity_pools", set()),
        ("/sql/v1/organizations/org-1/environments/env-2/statements?page_size=50", "flink_statements", set()),
        ("/iam/v2/users?page_size=99", "users", set()),
        ("/iam/v2/api-keys?page_size=100", "api_keys", set()),
    ],
)
@pytest.mark.parametrize("status", [403, 500])
def test_a_kind_that_fails_stops_only_what_needs_it(
    tmp_path: Path, url: str, failing: str, dependent: set[str], status: int
) -> None:
    failed, _ = fetched(tmp_path, {url: Reply(status)})
    assert failed.keys() == {failing} | dependent
    assert f": {status} " in failed[failing]
    assert all(f"not asked for, as {failing} failed" in failed[name] for name in dependent)
    told = [f"not asked for because of that: {', '.join(name.replace('_', ' ') for name in failed if name != failing)}"]
    assert confluent_inventory.faults(failed) == [failed[failing], *(told if dependent else [])]
    assert Landing(tmp_path).names() == sorted(KINDS.keys() - failed.keys())
    assert parsed(tmp_path).gathered == {kind.type for name, kind in KINDS.items() if name not in failed}
    assert parsed(tmp_path).warnings == ()
    again, server = fetched(tmp_path)
    assert again == {}
    lists = {"environments": 1, "clusters": 2, "connectors": 2, "identity_providers": 1, "identity_pools": 1}
    assert len(server.asked) == sum(lists.get(name, 1 if name in {"users", "api_keys"} else 2) for name in failed)


def test_missing_rights_name_the_role(tmp_path: Path) -> None:
    changes = {
        "/iam/v2/api-keys?page_size=100": Reply(403),
        "/sql/v1/organizations/org-1/environments/env-1/statements?page_size=50": Reply(401),
    }
    failed, _ = fetched(tmp_path, changes)
    assert failed["api_keys"].endswith("a Cloud API key with the role OrganizationAdmin, or one that may read api keys")
    assert failed["flink_statements"].endswith("an API key of Flink in us-east-1 that may read statements")


def test_statements_are_asked_for_with_the_key_of_their_region(tmp_path: Path) -> None:
    _, server = fetched(tmp_path)
    of_flink = [asked for asked in server.asked if asked.target.startswith("/sql/")]
    assert len({asked.headers["Authorization"] for asked in of_flink}) == 2


def test_a_region_without_credentials_is_said_and_not_taken_for_one_without_statements(tmp_path: Path) -> None:
    inventory = gathered(tmp_path, regions=("us-east-1",))
    assert "flink_statement" not in inventory.gathered
    assert inventory.warnings == (
        "flink_statements: no credentials for eu-west-1.aws, where there are pools; their owners are not known",
    )
    assert inventory.running.height == 2


def test_a_pool_without_an_organization_fails_its_statements(tmp_path: Path) -> None:
    lost = pool("lfcp-3", "env-2", "eu-west-1") | {"metadata": {}}
    failed, _ = fetched(tmp_path, {"/fcpm/v2/compute-pools?environment=env-2&page_size=50": [lost]})
    assert list(failed) == ["flink_statements"]
    assert "a pool without an organization" in failed["flink_statements"]


def test_an_organization_without_anything(tmp_path: Path) -> None:
    empty = {url: [] for url in ANSWERS if url.startswith(("/org", "/iam"))}
    inventory = gathered(tmp_path, empty)
    assert inventory.resources.height == inventory.identities.height == inventory.running.height == 0
    assert inventory.gathered == {kind.type for kind in KINDS.values()}


def test_entities_without_an_id_are_counted_and_their_type_is_not_whole(tmp_path: Path) -> None:
    odd = [one("u-1", full_name="Ada"), {"full_name": "no id"}, {"id": 7}, "text", None]
    inventory = gathered(tmp_path, {"/iam/v2/users?page_size=99": odd})
    assert inventory.identities.filter(type="user").height == 1
    assert "user" not in inventory.gathered
    assert inventory.warnings == ("users: 4 without an id are left out, and what is gone is not looked for",)


def test_of_an_entity_that_came_twice_the_last_counts(tmp_path: Path) -> None:
    twice = [
        one("u-1", full_name="Ada"),
        one("u-2", full_name="Bo"),
        one("u-1", full_name="Eva"),
        one("u-2", full_name="Bo"),
    ]
    inventory = gathered(tmp_path, {"/iam/v2/users?page_size=99": twice})
    assert inventory.identities.filter(type="user")["display_name"].to_list() == ["Eva", "Bo"]
    assert inventory.warnings == ("inventory: 1 came again and were different; the last counts",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-03-04T05:06:07Z", datetime(2025, 3, 4, 5, 6, 7)),
        ("2025-03-04T05:06:07", datetime(2025, 3, 4, 5, 6, 7)),
        ("2025-03-04T05:06:07.5+02:00", datetime(2025, 3, 4, 3, 6, 7, 500_000)),
        ("", None),
        ("0001-01-01T00:00:00+05:00", None),
        ("yesterday", None),
        ("2025-13-04T05:06:07Z", None),
        ("2025-03-04", None),
    ],
)
def test_times_are_utc(tmp_path: Path, text: str, expected: datetime | None) -> None:
    users = [{"id": "u-1", "metadata": {"created_at": text}}]
    inventory = gathered(tmp_path, {"/iam/v2/users?page_size=99": users})
    assert inventory.identities.filter(type="user")["created_at"].to_list() == [expected]
    odd = "inventory: 1 with a created_at that is no time count as if they had none"
    assert inventory.warnings == ((odd,) if text and expected is None else ())


def test_ids_from_answers_stay_one_segment_of_a_path(tmp_path: Path) -> None:
    failed, server = fetched(tmp_path, {"/iam/v2/identity-providers?page_size=99": [one("../users?x=")]})
    assert list(failed) == ["identity_pools"]
    assert "/iam/v2/identity-providers/..%2Fusers%3Fx%3D/identity-pools?page_size=99" in [
        asked.target for asked in server.asked
    ]


@pytest.mark.parametrize("region", ["", "evil.example/", "a.b", "A", "x@y", "-a", "a" * 64, "ü"])
def test_credentials_go_to_no_host_that_an_answer_makes_up(region: str) -> None:
    template = "https://flink.{region}.{cloud}.confluent.cloud"
    assert flink_url(template, "us-east-1", "aws") == "https://flink.us-east-1.aws.confluent.cloud"
    for words in ((region, "aws"), ("us-east-1", region)):
        with pytest.raises(ContractError, match="letters, digits and hyphens"):
            flink_url(template, *words)


@pytest.mark.parametrize("body", [[1], "text", 7, None])
def test_connectors_of_another_form_fail_alone(tmp_path: Path, body: object) -> None:
    url = "/connect/v1/environments/env-1/clusters/lkc-1/connectors?expand=info%2Cstatus%2Cid"
    failed, _ = fetched(tmp_path, {url: body})
    assert list(failed) == ["connectors"]
    assert "expected an object of connectors by name" in failed["connectors"]


def test_stopping_is_no_failure_of_a_kind(tmp_path: Path) -> None:
    def stopped(*_: object) -> Reply:
        raise AssertionError

    with answering(stopped) as server, client(server.url) as http:
        http._stop.set()
        with pytest.raises(StoppedError):
            fetch_inventory(http, lambda *_: None, Landing(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_none_is_named() -> None:
    with pytest.raises(ContractError, match="answer to /u"):
        parse_inventory({"users": [Answer("/u", 200, "[]")]})
    with pytest.raises(ContractError, match="answer to /a/e/c/l/connectors"):
        parse_inventory({"connectors": [Answer("/a/e/c/l/connectors", 200, "7")]})


def test_a_list_that_never_ends_fails_alone(tmp_path: Path) -> None:
    endless = Reply(body='{"data": [], "metadata": {"next": "?page_token=a"}}')
    url = "/iam/v2/users?page_size=99"
    failed, _ = fetched(tmp_path, {url: endless, f"{url}&page_token=a": endless})
    assert list(failed) == ["users"]
    assert "a page_token came a second time" in failed["users"]
