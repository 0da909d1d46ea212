"""The allocation of Confluent Cloud once more: plain Python, one line at a time, slow and obvious.

It starts from raw material (lines, intervals of resources and identities, values of metrics, the tenant's rules, all as
text) and shares no code with the product. The table of products stands here a second time, as it was specified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from tests.reference.allocation import EMPTY_KEY, UNALLOCATED, UNITS, ZERO_KEY_TOTAL, parse_units, shares_of, weighing

Row = Mapping[str, Any]
Rung = dict[str, Any]

BOTH = ["bytes_in", "bytes_out"]
EVERYBODY = {"basis": "even", "population": "period_owners", "detail": "no_active_identities_located"}
LAST = {"basis": "resource", "detail": "no_identities_located"}


def active(detail: str, metrics: Sequence[str] = (), cost_type: str = "shared") -> Rung:
    """Whoever is active on the resource, alike."""
    return {
        "basis": "even",
        "population": "active",
        "metrics": list(metrics),
        "cost_type": cost_type,
        "detail": detail,
    }


def usage(metrics: Sequence[str], detail: str = "usage_ratio_allocation") -> Rung:
    """By what was measured."""
    return {"basis": "usage", "metrics": list(metrics), "detail": detail}


LADDERS: dict[str, list[Rung]] = {
    "kafka_write": [usage(["bytes_in"]), active("no_metrics_located", BOTH), EVERYBODY, LAST],
    "kafka_read": [usage(["bytes_out"]), active("no_metrics_located", BOTH), EVERYBODY, LAST],
    "kafka_partition": [active("no_metrics_located", BOTH), EVERYBODY, LAST],
    "kafka_even": [active("even_split_allocation", BOTH), EVERYBODY, LAST],
    "kafka_capacity": [usage(BOTH), active("no_usage_for_active_identities", BOTH), EVERYBODY, LAST],
    "owners_or_all": [active("even_split_allocation", cost_type="usage"), EVERYBODY, LAST],
    "connector_usage": [active("even_split_allocation", cost_type="usage"), LAST],
    "connector_capacity": [active("even_split_allocation"), LAST],
    "flink": [
        usage(["flink_cfu"]),
        usage(["running_statements"], "no_usage_for_active_identities"),
        active("no_usage_for_active_identities", ["flink_cfu", "running_statements"], cost_type="usage"),
        EVERYBODY,
        LAST,
    ],
    "everybody": [
        {"basis": "even", "population": "period_accounts", "detail": "even_split_allocation"},
        {"basis": "unallocated", "detail": "no_identities_located"},
    ],
    "resource": [{"basis": "resource", "detail": "default_allocation"}],
    "cluster_linking": [{"basis": "resource", "cost_type": "usage", "detail": "cluster_linking_cost"}],
    "unknown_product": [{"basis": "resource", "detail": "unknown_product"}],
    "malformed": [{"basis": "resource", "detail": "malformed_billing"}],
}
PRODUCTS: dict[str, list[str]] = {
    "kafka_write": ["KAFKA_NETWORK_WRITE"],
    "kafka_read": ["KAFKA_NETWORK_READ"],
    "kafka_partition": ["KAFKA_PARTITION"],
    "kafka_even": ["KAFKA_BASE", "KAFKA_STORAGE"],
    "owners_or_all": ["SCHEMA_REGISTRY", "GOVERNANCE_BASE", "NUM_RULES", "KSQL_NUM_CSU", "KSQL_NUM_CSUS"],
    "connector_usage": [
        "CONNECT_NUM_TASKS", "CONNECT_THROUGHPUT", "CUSTOM_CONNECT_NUM_TASKS", "CUSTOM_CONNECT_THROUGHPUT",
    ],
    "connector_capacity": ["CONNECT_CAPACITY", "CUSTOM_CONNECT_PLUGIN"],
    "flink": ["FLINK_NUM_CFU", "FLINK_NUM_CFUS"],
    "everybody": ["AUDIT_LOG_READ", "SUPPORT"],
    "resource": ["TABLEFLOW_DATA_PROCESSED", "TABLEFLOW_NUM_TOPICS", "TABLEFLOW_STORAGE"],
    "cluster_linking": ["CLUSTER_LINKING_PER_LINK", "CLUSTER_LINKING_READ", "CLUSTER_LINKING_WRITE"],
}  # fmt: skip
"""Ladder -> the products that go down it whole."""
CKU = [{"share": "0.70", "ladder": "kafka_capacity"}, {"share": "0.30", "ladder": "kafka_even"}]
"""Parts of KAFKA_NUM_CKU and KAFKA_NUM_CKUS."""

METHODS = {
    "usage": ("usage", "usage_ratio"),
    "even": ("shared", "even_split"),
    "resource": ("shared", "to_resource"),
    "operator": ("operator", "operator"),
    "unallocated": ("shared", "unallocated"),
    "failed": ("shared", "allocation_failed"),
}
ACCOUNTS = {"service_account", "user", "identity_pool"}
OWNERS = ACCOUNTS | {"principal"}
SENTINELS = {
    "connector_credentials_unknown", "connector_credentials_masked", "connector_api_key_masked",
    "connector_api_key_not_found", "ksqldb_owner_unknown", "ksqldb_deleted_when_calc_started",
    "flink_stmt_owner_unknown",
}  # fmt: skip
SECONDS = 86_400


class Charge(NamedTuple):
    """One row of the result; amounts in units of 1e-12."""

    line_id: int
    part: int
    identity_id: str
    units: int
    list_units: int | None
    cost_type: str
    allocation_method: str
    allocation_detail: str
    rule_id: str
    rung: int
    part_units: int
    weight_before: int
    weight: int
    weight_total: int


class EmptyKey(NamedTuple):
    """A rung that did not hold."""

    rule_id: str
    part: int
    rung: int
    resource_id: str
    basis: str
    metric: str
    reason: str


class Part(NamedTuple):
    """A share of a line (any integer; they are compared) and its ladder."""

    share: int
    rungs: list[Rung]


class Day:
    """What there was on a day, and whose it was."""

    def __init__(
        self,
        day: date,
        resources: Sequence[Row],
        identities: Sequence[Row],
        values: Sequence[Row],
        operator: str,
        failed: frozenset[tuple[str, str]],
    ) -> None:
        self.start = datetime(day.year, day.month, day.day)
        self.end = self.start + timedelta(days=1)
        self.day, self.operator, self.failed = day, operator, failed
        self.resources = self.there(resources)
        self.identities = self.there(identities)
        self.values = [row for row in values if row["window"] == str(day)]

    def there(self, rows: Sequence[Row]) -> dict[str, Row]:
        """The rows of the day by id."""
        found = {}
        for row in rows:
            in_interval = (row["valid_from"] is None or row["valid_from"] <= self.day) and (
                row["valid_to"] is None or self.day < row["valid_to"]
            )
            lived = (row["created_at"] is None or row["created_at"] < self.end) and (
                row["deleted_at"] is None or row["deleted_at"] >= self.start
            )
            if in_interval and lived:
                assert row["id"] not in found, "intervals overlap"
                found[row["id"]] = row
        return found

    def owner_of_key(self, name: str) -> str:
        """The owner of an API key; anything else itself."""
        known = self.identities.get(name)
        return str(known["owner"]) if known is not None and known["type"] == "api_key" else name

    def may_weigh(self, identity: str) -> bool:
        """Whether an identity may bear cost that is split."""
        if identity in ("", UNALLOCATED, self.operator):
            return False
        known = self.identities.get(identity)
        return known is None or known["type"] in OWNERS or identity in SENTINELS

    def payers(self, names: Sequence[str]) -> set[str]:
        """Names -> who stands behind them and may bear cost."""
        return {identity for identity in map(self.owner_of_key, names) if self.may_weigh(identity)}

    def statements(self, pool: str) -> list[Row]:
        """The Flink statements of a pool, the newest last."""
        found = [row for row in self.resources.values() if row["type"] == "flink_statement" and row["parent"] == pool]
        return sorted(found, key=lambda row: (row["created_at"] or datetime.min, row["id"]))  # noqa: DTZ901

    def statement_owner(self, pool: str, name: str) -> str:
        """The owner of the newest statement of this name."""
        owners = [row["owner"] for row in self.statements(pool) if row["display_name"] == name]
        return (owners[-1] if owners else "") or "flink_stmt_owner_unknown"

    def resource_active(self, resource: str) -> set[str]:
        """Whom the inventory names."""
        if not resource:
            return set()
        row = self.resources.get(resource)
        if row is None and resource.startswith(("lcc-", "clcc-")):
            return self.payers(["connector_credentials_unknown"])
        if row is None and resource.startswith("lksqlc-"):
            return self.payers(["ksqldb_deleted_when_calc_started"])
        if row is not None and row["type"] == "connector":
            return self.payers([self.connector_owner(row["owner"])])
        if row is not None and row["type"] == "ksqldb":
            return self.payers([row["owner"] or "ksqldb_owner_unknown"])
        names = [
            identity["owner"]
            for identity in self.identities.values()
            if identity["type"] == "api_key" and identity["scope"] == resource
        ]
        names += [statement["owner"] or "flink_stmt_owner_unknown" for statement in self.statements(resource)]
        return self.payers(names)

    def connector_owner(self, text: str) -> str:
        """What the inventory says of a connector -> who bears its cost."""
        if text.startswith("api_key:"):
            key = self.identities.get(text.removeprefix("api_key:"))
            owner = key["owner"] if key is not None and key["type"] == "api_key" else ""
            return owner or "connector_api_key_not_found"
        return text or "connector_credentials_unknown"

    def measured(self, resource: str, metrics: Sequence[str]) -> dict[str, int]:
        """Who was seen in these metrics of the resource, and the sum of what was above zero, in 1e-12."""
        found: dict[str, int] = {}
        for row in self.values:
            if row["resource_id"] != resource or row["metric"] not in metrics or not resource:
                continue
            name = row["principal"]
            if row["metric"] in ("flink_cfu", "running_statements"):
                name = self.statement_owner(resource, name)
            for identity in self.payers([name]):
                found[identity] = found.get(identity, 0) + max(parse_units(row["value"]), 0)
        return found

    def population(self, rung: Row, resource: str) -> set[str]:
        """Who shares alike."""
        seen = set(self.measured(resource, rung.get("metrics") or []))
        match rung["population"]:
            case "resource_active":
                return self.resource_active(resource)
            case "metrics_derived":
                return seen
            case "active":
                return self.resource_active(resource) | seen
            case kind:
                types = OWNERS if kind == "period_owners" else ACCOUNTS
                return {
                    name
                    for name, row in self.identities.items()
                    if row["type"] in types and name not in (UNALLOCATED, self.operator)
                }

    def alive_seconds(self, resource: str) -> int:
        """For how many whole seconds of the day the resource lived; all of them if nothing is known of it."""
        row = self.resources.get(resource)
        if row is None:
            return SECONDS
        first = max((row["created_at"] or self.start).replace(microsecond=0), self.start)
        last = min((row["deleted_at"] or self.end).replace(microsecond=0), self.end)
        return max(int((last - first).total_seconds()), 0)


# ------------------------------------------------------------------------------------------------ rules


def ladder_of(given: Any, tenant: Row) -> list[Rung]:
    """Rungs in place, or those of a named ladder."""
    return list({**LADDERS, **tenant.get("ladders", {})}[given] if isinstance(given, str) else given)


def product_of(product_type: str, tenant: Row) -> Row | None:
    """What the tenant says of a product, or else the table."""
    if product_type in tenant.get("products", {}):
        return tenant["products"][product_type]  # type: ignore[no-any-return]
    if product_type in ("KAFKA_NUM_CKU", "KAFKA_NUM_CKUS"):
        return {"parts": CKU}
    return next(({"ladder": ladder} for ladder, names in PRODUCTS.items() if product_type in names), None)


def metrics_of(rungs: Sequence[Row]) -> set[str]:
    """What a ladder may ask for."""
    return {metric for rung in rungs for metric in listed(rung.get("metrics"))}


def listed(value: Any) -> list[str]:
    """A value or a list of values, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def without_failed(rungs: list[Rung], failed: frozenset[str]) -> list[Rung]:
    """A ladder as far as it goes without asking for a metric that failed."""
    for number, rung in enumerate(rungs):
        if failed.intersection(listed(rung.get("metrics"))):
            return [*rungs[:number], {"basis": "failed", "detail": "metrics_fetch_failed"}]
    return rungs


def rule_of(line: Row, tenant: Row, day: Day) -> tuple[str, list[tuple[int, Part]]]:
    """The rule's id and its numbered parts for a line."""
    if line["resource_id"].startswith("malformed_billing_"):
        return "malformed_billing", [(0, Part(1, LADDERS["malformed"]))]
    product = product_of(line["product_type"], tenant)
    if product is None:
        return "unknown_product", [(0, Part(1, LADDERS["unknown_product"]))]
    parts = product.get("parts") or [{"share": "1", "ladder": product["ladder"]}]
    split = [Part(parse_units(part["share"]), ladder_of(part["ladder"], tenant)) for part in parts]
    rule_id, numbered = f"product:{line['product_type']}", list(enumerate(split))
    alive = day.alive_seconds(line["resource_id"])
    if product.get("partial_life") == "unallocated" and alive < SECONDS:
        dead = Part((SECONDS - alive) * UNITS, [{"basis": "unallocated", "detail": "inactive_fraction"}])
        lived = [(number + 1, Part(part.share * alive, part.rungs)) for number, part in numbered if alive]
        rule_id, numbered = f"{rule_id} alive={alive}", [(0, dead), *lived]
    lacking = frozenset(metric for metric, resource in day.failed if resource == line["resource_id"])
    failed = sorted({metric for part in split for metric in metrics_of(part.rungs)} & lacking)
    if failed:
        rule_id += f" failed={','.join(failed)}"
    return rule_id, [(number, Part(part.share, without_failed(part.rungs, lacking))) for number, part in numbered]


# ------------------------------------------------------------------------------------------------ charges


def labels_of(rung: Row, number: int) -> tuple[str, str, str]:
    """cost_type, allocation_method, allocation_detail of a rung."""
    cost_type, method = METHODS[rung["basis"]]
    plain = {"usage": "usage_ratio_allocation", "even": "even_split_allocation"}.get(
        rung["basis"], "no_identities_located" if number else "default_allocation"
    )
    return rung.get("cost_type") or cost_type, method, rung.get("detail") or plain


def weights_of(rung: Row, line: Row, day: Day) -> dict[str, int]:
    """Integer weights of a rung that may weigh."""
    if rung["basis"] == "usage":
        return weighing(day.measured(line["resource_id"], listed(rung["metrics"])), "").weights
    rung = {**rung, "metrics": listed(rung.get("metrics"))}
    return dict.fromkeys(day.population(rung, line["resource_id"]), 1)


def metric_name(rung: Row) -> str:
    """What a rung weighs by, as it is recorded."""
    return " + ".join(listed(rung["metrics"])) if rung["basis"] == "usage" else str(rung["population"])


def line_charges(line: Row, tenant: Row, day: Day) -> tuple[list[Charge], list[EmptyKey]]:
    """Everything one line is charged as, and the rungs that did not hold."""
    rule_id, parts = rule_of(line, tenant, day)
    shares = [part.share for _, part in parts]
    part_units = shares_of(parse_units(line["amount"]), shares)
    part_lists = [None] * len(parts) if line["list"] is None else shares_of(parse_units(line["list"]), shares)
    charges: list[Charge] = []
    empty: list[EmptyKey] = []
    for place, (number, part) in enumerate(parts):
        rung_number, weights = 0, dict[str, int]()
        for rung_number, rung in enumerate(part.rungs[:-1]):
            weights = weights_of(rung, line, day)
            if sum(weights.values()):
                break
            reason = ZERO_KEY_TOTAL if weights else EMPTY_KEY
            key = EmptyKey(rule_id, number, rung_number, line["resource_id"], rung["basis"], metric_name(rung), reason)
            empty.append(key)
        else:
            rung_number, weights = len(part.rungs) - 1, {last_payer(part.rungs[-1], line, day): 1}
        labels = labels_of(part.rungs[rung_number], rung_number)
        if part.rungs[rung_number]["basis"] == "resource" and not line["resource_id"]:
            labels = (labels[0], "unallocated", labels[2])
        charges += part_charges(
            (line["line_id"], number),
            (part_units[place], part_lists[place]),
            weights,
            (*labels, rule_id, rung_number),
        )
    kept = [charge for charge in charges if charge.units or charge.list_units]
    return kept or charges[:1], empty


def part_charges(
    key: tuple[int, int],
    units: tuple[int, int | None],
    weights: Mapping[str, int],
    labels: tuple[str, str, str, str, int],
) -> Iterator[Charge]:
    """One part over its payers, who stand in the order of their names."""
    names = sorted(weights, key=lambda name: name.encode())
    numbers = [weights[name] for name in names]
    amounts = shares_of(units[0], numbers)
    lists = [None] * len(names) if units[1] is None else shares_of(units[1], numbers)
    for place, name in enumerate(names):
        if numbers[place]:
            yield Charge(
                *key, name, amounts[place], lists[place], *labels, units[0], sum(numbers[:place]), numbers[place],
                sum(numbers),
            )  # fmt: skip


def last_payer(rung: Row, line: Row, day: Day) -> str:
    """Whom a rung charges that takes everything."""
    if rung["basis"] == "operator":
        return day.operator
    return str(line["resource_id"] or UNALLOCATED) if rung["basis"] == "resource" else UNALLOCATED
