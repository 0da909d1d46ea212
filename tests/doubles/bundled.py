"""The organization that tests and `make run` share: two environments, three Kafka clusters, and whatever else there is.

Its costs are a plan: a line costs `price * (quantity + growth * day) - discount` on the days of its turn. So what it
costs in all is known without looking at a single record (`planned_totals`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from tests.doubles.organization import ORGANIZATION_ID, SETTING, Entity, Organization, Record, cost_id, exact_sum

PROD, TEST = "env-prod1", "env-test1"
CLUSTERS = {"lkc-prod1": PROD, "lkc-prod2": PROD, "lkc-test1": TEST}
US, EU = ("us-east-1", "aws"), ("europe-west1", "gcp")

CONNECTORS: dict[str, tuple[str, dict[str, str]]] = {
    "lcc-account": ("lkc-prod1", {"kafka.auth.mode": "SERVICE_ACCOUNT", "kafka.service.account.id": "sa-connect"}),
    "lcc-key": ("lkc-prod1", {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": "KEYCONNECT000001"}),
    "lcc-bareaccount": ("lkc-prod1", {"kafka.service.account.id": "sa-connect"}),
    "lcc-barekey": ("lkc-prod1", {"kafka.api.key": "KEYORDERS0000001"}),
    "lcc-maskedkey": ("lkc-prod1", {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": "****************"}),
    "lcc-maskedaccount": (
        "lkc-prod1",
        {"kafka.auth.mode": "SERVICE_ACCOUNT", "kafka.service.account.id": "****************"},
    ),
    "lcc-unknownkey": ("lkc-prod1", {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": "KEYUNKNOWN000001"}),
    "lcc-keygone": ("lkc-prod2", {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": "KEYGONE000000001"}),
    "lcc-ownerless": ("lkc-prod2", {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": "KEYNOOWNER000001"}),
    "lcc-nokey": ("lkc-prod2", {"kafka.auth.mode": "KAFKA_API_KEY"}),
    "lcc-nothing": ("lkc-prod2", {}),
    "lcc-custom": ("lkc-prod2", {"kafka.auth.mode": "SERVICE_ACCOUNT", "kafka.service.account.id": "sa-orders"}),
}
"""Connectors of every auth mode: where they run, and the settings that say whose they are."""

STATEMENTS: dict[str, tuple[str, str, str]] = {
    "enrich-orders": ("lfcp-prod1", "sa-flink", "RUNNING"),
    "rollup-hourly": ("lfcp-prod1", "u-alice", "RUNNING"),
    "old-report": ("lfcp-prod1", "sa-flink", "STOPPED"),
    "broken-job": ("lfcp-prod1", "sa-search", "FAILED"),
    "one-off-query": ("lfcp-prod1", "u-bob", "COMPLETED"),
    "mystery": ("lfcp-prod1", "", "RUNNING"),
    "stranger-job": ("lfcp-prod1", "sa-stranger", "RUNNING"),
    "test-join": ("lfcp-test1", "u-bob", "RUNNING"),
    "test-warming-up": ("lfcp-test1", "sa-flink", "PENDING"),
}
"""Flink statements by name: pool, owner, phase."""

API_KEYS: dict[str, tuple[str | None, str | None]] = {
    "KEYORDERS0000001": ("sa-orders", "lkc-prod1"),
    "KEYSEARCH0000001": ("sa-search", "lkc-prod1"),
    "KEYSEARCH0000002": ("sa-search", "lkc-prod2"),
    "KEYALICE00000001": ("u-alice", "lkc-prod1"),
    "KEYBOB0000000001": ("u-bob", "lkc-test1"),
    "KEYCONNECT000001": ("sa-connect", "lkc-prod1"),
    "KEYGONE000000001": ("u-gone", "lkc-prod2"),
    "KEYNOOWNER000001": (None, "lkc-prod2"),
    "KEYREGISTRY00001": ("sa-orders", "lsrc-prod1"),
    "KEYREGISTRY00002": ("u-alice", "lsrc-prod1"),
    "KEYKSQL000000001": ("sa-ksql", "lksqlc-prod1"),
    "KEYFLINK00000001": ("sa-flink", "lfcp-prod1"),
    "KEYCLOUD00000001": ("sa-platform", "cloud"),
    "KEYCLOUD00000002": ("u-carol", None),
}
"""API keys: owner, and the resource they are for."""

SERVICE_ACCOUNTS = ("orders", "search", "connect", "ksql", "flink", "platform", "idle")
USERS = ("alice", "bob", "carol")


def bundled(first: date, days: int = 40, *, principals: int = 0) -> Organization:
    """The organization, with costs of `days` days from `first`.

    `principals` more service accounts have an API key for each of the three Kafka clusters.
    """
    organization = Organization()
    always = f"{first - timedelta(days=400)}T09:00:00Z"
    _add_resources(organization, always, first)
    _add_connectors(organization)
    _add_statements(organization, always, first)
    _add_identities(organization, always, first)
    for number in range(principals):
        account = f"sa-p{number:05}"
        organization.add("service_accounts", _top(account, account, always))
        for cluster in CLUSTERS:
            key = f"KEYP{number:05}{cluster[4:].upper():>7}".replace(" ", "0")
            organization.add("api_keys", _api_key(key, account, cluster, always))
    for number in range(days):
        day = first + timedelta(days=number)
        organization.costs[day] = [_record(line, day, number) for line in PLAN if line.is_due(number)]
    return organization


def _metadata(created_at: str, resource_name: str = "") -> dict[str, str]:
    crn = f"crn://confluent.cloud/organization={ORGANIZATION_ID}{resource_name}"
    return {
        "self": "https://api.confluent.cloud/x",
        "resource_name": crn,
        "created_at": created_at,
        "updated_at": created_at,
    }


def _top(entity_id: str, name: str, created_at: str, *, within: tuple[str, ...] = (), **more: Any) -> Entity:
    """An entity whose name is not in its spec."""
    body = {"id": entity_id, "display_name": name, **more, "metadata": _metadata(created_at)}
    return Entity(entity_id, within, body)


def _spec(entity_id: str, name: str, environment: str, created_at: str, **spec: Any) -> Entity:
    """An entity within an environment."""
    body = {
        "id": entity_id,
        "spec": {"display_name": name, "environment": {"id": environment}, **spec},
        "metadata": _metadata(created_at, f"/environment={environment}/x={entity_id}"),
        "status": {"phase": "PROVISIONED"},
    }
    return Entity(entity_id, (environment,), body)


def _add_resources(organization: Organization, always: str, first: date) -> None:
    organization.add("environments", _top(PROD, "production", always), _top(TEST, "test", always))
    for cluster, environment in CLUSTERS.items():
        more = {"cloud": "AWS", "region": "us-east-1", "kafka_bootstrap_endpoint": f"SASL_SSL://{cluster}.example:9092"}
        organization.add("clusters", _spec(cluster, f"Kafka {cluster[4:]}", environment, always, **more))
    for registry, environment in (("lsrc-prod1", PROD), ("lsrc-test1", TEST)):
        more = {"cloud": "AWS", "region": "us-east-1", "http_endpoint": f"https://{registry}.example"}
        organization.add(
            "schema_registries", _spec(registry, f"Stream Governance {environment}", environment, always, **more)
        )
    for ksqldb, cluster, owner in (("lksqlc-prod1", "lkc-prod1", "sa-ksql"), ("lksqlc-test1", "lkc-test1", None)):
        identity = None if owner is None else {"id": owner}
        more = {"kafka_cluster": {"id": cluster}, "credential_identity": identity, "csu": 4}
        organization.add("ksqldbs", _spec(ksqldb, f"ksqlDB {cluster[4:]}", CLUSTERS[cluster], always, **more))
    # One of the pools lived for half of its first day.
    noon = f"{first + timedelta(days=2)}T12:00:00Z"
    for pool, environment, (region, cloud), created_at in (
        ("lfcp-prod1", PROD, US, always),
        ("lfcp-test1", TEST, EU, noon),
    ):
        more = {"cloud": cloud.upper(), "region": region, "max_cfu": 10}
        organization.add("flink_pools", _spec(pool, f"pool {environment}", environment, created_at, **more))


def _add_connectors(organization: Organization) -> None:
    for connector, (cluster, settings) in CONNECTORS.items():
        name = f"{connector.removeprefix('lcc-')} connector"
        config = {
            "name": name,
            "connector.class": "S3_SINK",
            "tasks.max": "2",
            "aws.secret.access.key": f"{SETTING}-{connector}",
            "transforms.mask.replacement": f"{SETTING}-{connector}-2",
            **settings,
        }
        trace = f"Access denied with {SETTING}-{connector}-3"
        said = {"state": "FAILED", "worker_id": "w-1", "trace": trace, "msg": trace, "newly_said": {"text": trace}}
        status = {"name": name, "connector": said, "tasks": [{"id": 0, **said}, trace], "type": "sink"}
        status |= {"errors_from_trace": [{"error": trace}], "validation_errors": [trace], "error_details": trace}
        body = {"id": {"id": connector, "id_type": "ID"}, "info": {"name": name, "type": "sink", "config": config}}
        organization.add("connectors", Entity(connector, (CLUSTERS[cluster], cluster), body | {"status": status}))


def _add_statements(organization: Organization, always: str, first: date) -> None:
    created_at = {"lfcp-prod1": always, "lfcp-test1": f"{first + timedelta(days=2)}T12:30:00Z"}
    places = {"lfcp-prod1": (*US, PROD), "lfcp-test1": (*EU, TEST)}
    for number, (name, (pool, owner, phase)) in enumerate(STATEMENTS.items()):
        uid = f"5f0e1d2c-0000-4000-8000-{number:012}"
        spec = {
            "statement": f"SELECT '{SETTING}-{name}' FROM orders",
            "properties": {"sql.current-catalog": "default", "sql.secrets.token": f"{SETTING}-{name}-2"},
            "compute_pool_id": pool,
            "compute_pool": {"id": pool},
            "principal": owner,
            "stopped": phase == "STOPPED",
        }
        body = {
            "name": name,
            "organization_id": ORGANIZATION_ID,
            "environment_id": places[pool][2],
            "spec": spec,
            "status": {"phase": phase, "detail": f"{SETTING}-{name}-3"},
            "metadata": _metadata(created_at[pool]) | {"uid": uid},
        }
        organization.add("flink_statements", Entity(uid, places[pool], body))


def _add_identities(organization: Organization, always: str, first: date) -> None:
    for name in SERVICE_ACCOUNTS:
        organization.add("service_accounts", _top(f"sa-{name}", f"{name} service", always, description=f"runs {name}"))
    # One of the accounts is newer than most of the days.
    hired = f"{first + timedelta(days=20)}T08:30:00Z"
    organization.add("service_accounts", _top("sa-newhire", "new service", hired, description=""))
    for name in USERS:
        body = {"id": f"u-{name}", "full_name": name.title(), "email": f"{name}@example.com"}
        organization.add("users", Entity(f"u-{name}", (), body | {"metadata": _metadata(always)}))
    organization.add("api_keys", *(_api_key(key, owner, scope, always) for key, (owner, scope) in API_KEYS.items()))
    organization.add("api_keys", _api_key("KEYNEWHIRE000001", "sa-newhire", "lkc-prod2", hired))
    organization.add("identity_providers", _top("op-okta", "Okta", always), _top("op-azure", "Entra", always))
    for pool, provider in (("pool-apps", "op-okta"), ("pool-batch", "op-okta"), ("pool-ops", "op-azure")):
        organization.add("identity_pools", _top(pool, pool.removeprefix("pool-"), always, within=(provider,)))


def _api_key(key: str, owner: str | None, scope: str | None, created_at: str) -> Entity:
    spec = {
        "display_name": "",
        "description": f"key of {owner}",
        "owner": None if owner is None else {"id": owner, "kind": "ServiceAccount"},
        "resource": None if scope is None else {"id": scope, "kind": "Cluster"},
    }
    return Entity(key, (), {"id": key, "spec": spec, "metadata": _metadata(created_at)})


class Line(NamedTuple):
    """A line of the costs: what it is for, and what it costs on day 0, 1, ... if it is its turn.

    `tier` is the number of its tier, if the price has some. `damage` names the field that is not as it should be.
    """

    product: str
    line_type: str
    resource: str
    environment: str
    unit: str
    price: str
    quantity: str
    growth: str = "0"
    discount: str = "0"
    every: int = 1
    at: int = 0
    access: str = ""
    tier: int | None = None
    damage: str = ""

    def is_due(self, number: int) -> bool:
        """Whether the line is there on day `number`."""
        return number >= self.at and (number - self.at) % self.every == 0

    def quantity_on(self, number: int) -> Decimal:
        """How much there is of it on day `number`."""
        return Decimal(self.quantity) + Decimal(self.growth) * number

    def total(self, days: int) -> Decimal:
        """What it costs in the days before day `days`, without looking at any of them."""
        times = max(0, -(-(days - self.at) // self.every))
        numbers = times * self.at + self.every * (times * (times - 1) // 2)
        quantity = Decimal(self.quantity) * times + Decimal(self.growth) * numbers
        return Decimal(self.price) * quantity - Decimal(self.discount) * times


def _kafka(line_type: str, cluster: str, unit: str, price: str, quantity: str, *more: str, **named: Any) -> Line:
    return Line("KAFKA", line_type, cluster, CLUSTERS[cluster], unit, price, quantity, *more, **named)


def _plan() -> Iterator[Line]:
    for factor, cluster in enumerate(CLUSTERS, start=1):
        for line_type, price in (("KAFKA_NETWORK_WRITE", "0.110003"), ("KAFKA_NETWORK_READ", "0.049999")):
            yield _kafka(line_type, cluster, "GB", price, f"{factor}12.3457", "1.0001", "0.5", access="INTERNET")
            yield _kafka(line_type, cluster, "GB", price, f"{factor}.0001", "0.0003", access="PRIVATE_LINK")
        yield _kafka("KAFKA_STORAGE", cluster, "GB-hour", "0.000109", f"{factor}00.25", "3.1415")
    yield _kafka("KAFKA_NUM_CKU", "lkc-prod1", "CKU-hour", "2.25", "48", "0", "10.8")
    yield _kafka("KAFKA_NUM_CKUS", "lkc-prod2", "CKU-hour", "2.2501", "24")
    yield _kafka("KAFKA_BASE", "lkc-test1", "Hour", "0.0417", "24")
    # Three rows that are one line: the price falls with the quantity.
    for tier, (price, quantity) in enumerate((("0.0015", "1000"), ("0.0012", "500"), ("0.000999", "0.7777"))):
        yield _kafka("KAFKA_PARTITION", "lkc-prod1", "Partition-hour", price, quantity, "0.3333", tier=tier)
    yield _kafka("KAFKA_PARTITION", "lkc-prod2", "Partition-hour", "0.0015", "720")
    yield Line("KAFKA", "KAFKA_BASE", "lkc-gone1", TEST, "Hour", "0.0417", "24")
    yield from (
        Line(product, line_type, resource, PROD, "Hour", price, quantity, "0.0001")
        for product, line_type, resource, price, quantity in (
            ("STREAM_GOVERNANCE", "SCHEMA_REGISTRY", "lsrc-prod1", "0.0025", "24"),
            ("STREAM_GOVERNANCE", "GOVERNANCE_BASE", "lsrc-prod1", "1.00001", "24"),
            ("STREAM_GOVERNANCE", "NUM_RULES", "lsrc-prod1", "0.014", "7"),
            ("KSQL", "KSQL_NUM_CSU", "lksqlc-prod1", "0.23", "96"),
            ("KSQL", "KSQL_NUM_CSUS", "lksqlc-gone1", "0.23", "24"),
            ("CUSTOM_CONNECT", "CUSTOM_CONNECT_NUM_TASKS", "lcc-custom", "0.1", "24"),
            ("CUSTOM_CONNECT", "CUSTOM_CONNECT_THROUGHPUT", "lcc-custom", "0.025", "2.5001"),
            ("CUSTOM_CONNECT", "CUSTOM_CONNECT_PLUGIN", "lcc-custom", "0.2", "24"),
            ("CONNECT", "CONNECT_CAPACITY", "lcc-account", "0.5", "24"),
            ("FLINK", "FLINK_NUM_CFU", "lfcp-prod1", "0.0035", "1440.5"),
            ("AUDIT_LOG", "AUDIT_LOG_READ", "lkc-audit", "0.05", "3.3333"),
            ("TABLEFLOW", "TABLEFLOW_DATA_PROCESSED", "lkc-prod1", "0.04", "12.125"),
            ("TABLEFLOW", "TABLEFLOW_NUM_TOPICS", "lkc-prod1", "0.1", "5"),
            ("TABLEFLOW", "TABLEFLOW_STORAGE", "lkc-prod1", "0.00001", "99.9999"),
            ("CLUSTER_LINK", "CLUSTER_LINKING_PER_LINK", "lkc-prod2", "0.25", "24"),
            ("CLUSTER_LINK", "CLUSTER_LINKING_READ", "lkc-prod2", "0.05", "11.0001"),
            ("CLUSTER_LINK", "CLUSTER_LINKING_WRITE", "lkc-prod2", "0.06", "11.0002"),
            # Nobody has rules for these.
            ("KAFKA", "KAFKA_REST_PRODUCE", "lkc-prod1", "0.11", "0.0001"),
            ("KAFKA", "KAFKA_STREAMS", "lkc-prod1", "0.03", "24"),
            ("CONNECT", "CONNECT_NUM_RECORDS", "lcc-account", "0.000001", "5.0001"),
            ("USM", "USM_CONNECTED_NODE", "lkc-usm01", "0.07", "72"),
            ("AGENTS", "AGENT_DREAM_HOURS", "lag-prod1", "0.99", "1.5"),
        )
    )
    yield Line("STREAM_GOVERNANCE", "SCHEMA_REGISTRY", "lsrc-test1", TEST, "Hour", "0.0025", "24")
    yield Line("KSQL", "KSQL_NUM_CSUS", "lksqlc-test1", TEST, "CSU-hour", "0.23", "24")
    yield Line("FLINK", "FLINK_NUM_CFUS", "lfcp-test1", TEST, "CFU-minute", "0.0035", "60.5", "0.5", at=2)
    for number, connector in enumerate(CONNECTORS):
        for line_type, price in (("CONNECT_NUM_TASKS", "0.034567"), ("CONNECT_THROUGHPUT", "0.025")):
            yield Line("CONNECT", line_type, connector, PROD, "Hour", price, f"{24 + number}", "0.0011")
    yield Line("CONNECT", "CONNECT_NUM_TASKS", "lcc-gone1", PROD, "Hour", "0.034567", "24")
    yield _kafka("KAFKA_NETWORK_READ", "lkc-prod1", "GB", "-0.049999", "1000.01", every=9, at=8, access="INTERNET")
    yield Line("SUPPORT_CLOUD_BUSINESS", "SUPPORT", "", "", "", "123.456789", "1", every=10)
    yield Line("PROMO", "PROMO_CREDIT", "", "", "", "-400.00000001", "1", every=15, at=3)
    yield _kafka("KAFKA_BASE", "lkc-test1", "Hour", "0.5", "3.0003", every=13, at=4, damage="start_date")
    yield _kafka("KAFKA_BASE", "lkc-test1", "Hour", "0.7", "2.0002", every=13, at=5, damage="resource")


PLAN = tuple(_plan())
"""What is billed each day, in the order in which it is served."""


def planned_totals(days: int) -> dict[str, Decimal]:
    """What the first `days` days cost, by line type."""
    totals = defaultdict[str, Decimal](Decimal)
    for line in PLAN:
        totals[line.line_type] = exact_sum(iter((totals[line.line_type], line.total(days))))
    return dict(totals)


def planned_total(days: int) -> Decimal:
    """What the first `days` days cost."""
    return exact_sum(iter(planned_totals(days).values()))


def _record(line: Line, day: date, number: int) -> Record:
    quantity, price, discount = line.quantity_on(number), Decimal(line.price), Decimal(line.discount)
    key = (day, line.line_type, line.resource, line.access, line.tier, line.every, line.at)
    record: Record = {
        "id": cost_id(*key),
        "start_date": day.isoformat(),
        "end_date": (day + timedelta(days=1)).isoformat(),
        "granularity": "DAILY",
        "product": line.product,
        "line_type": line.line_type,
        "network_access_type": line.access or None,
        "quantity": quantity,
        "unit": line.unit,
        "price": price,
        "original_amount": price * quantity,
        "discount_amount": discount,
        "amount": price * quantity - discount,
        "description": f"{line.line_type.replace('_', ' ').lower()} {line.resource}".strip(),
        "tier_dimensions": {},
    }
    if line.tier is not None:
        record["tier_dimensions"] = {"lower_bound": line.tier * 1000, "upper_bound": (line.tier + 1) * 1000}
    if line.resource:
        environment = {"id": line.environment}
        record["resource"] = {
            "id": line.resource,
            "display_name": f"name of {line.resource}",
            "environment": environment,
        }
    if line.damage == "start_date":
        del record["start_date"]
    if line.damage == "resource":
        record["resource"] = line.resource
    return record
