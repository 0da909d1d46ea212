"""Random but fixed days of a Confluent Cloud organization: bill, inventory, metrics, and the tenant's own rules.

Every organization has resources of all kinds that come, go, come back and change owners, keys that are shared, lost and
deleted, metrics with gaps, zeros and names that nobody knows, credits, and products that no rule names.
"""

from __future__ import annotations

import datetime as dt
import itertools
import random
from typing import Any, NamedTuple

from tests.reference.products import LADDERS, PRODUCTS

Row = dict[str, Any]

DAYS = [dt.date(2025, 11, day) for day in (3, 4, 5, 6)]
METRICS = ["bytes_in", "bytes_out", "flink_cfu", "running_statements"]
TYPES = ["service_account", "user", "identity_pool", "identity_provider", "principal", "system"]
ACCOUNTS = ["sa-1", "sa-2", "sa-10", "u-1", "U-1", "ünal", "pool-1", "op-1", "UNALLOCATED", "ops"]
KEYS = ["KEY1", "KEY2", "KEY3", "KEY4", "KEY5"]
CLUSTERS = ["lkc-1", "lkc-2", "lkc-3"]
CONNECTORS = ["lcc-1", "lcc-2", "lcc-3", "clcc-1", "lcc-4"]
KSQLDBS = ["lksqlc-1", "lksqlc-2"]
POOLS = ["lfcp-1", "lfcp-2"]
REGISTRIES = ["lsrc-1"]
KINDS = {
    "kafka_cluster": CLUSTERS,
    "connector": CONNECTORS,
    "ksqldb": KSQLDBS,
    "flink_pool": POOLS,
    "schema_registry": REGISTRIES,
}
STATEMENTS = ["s-1", "s-2", "s-3"]
NEAR_NAMES = {
    "kafka_cluster": ["KAFKA", "CLUSTER", "TABLEFLOW"],
    "connector": ["CONNECT"],
    "ksqldb": ["KSQL"],
    "flink_pool": ["FLINK"],
    "schema_registry": ["SCHEMA", "GOVERNANCE", "NUM_RULES"],
}
"""How the products begin that are billed for a kind of resource."""
KNOWN_PRODUCTS = [name for names in PRODUCTS.values() for name in names] + ["KAFKA_NUM_CKU", "KAFKA_NUM_CKUS"]
UNKNOWN_PRODUCTS = ["KAFKA_STREAMS", "PROMO_CREDIT", "kafka_base", ""]
OWN_PRODUCTS = ["KAFKA_STREAMS", "KAFKA_BASE", "KAFKA_NUM_CKU", "CONNECT_NUM_TASKS", "FLINK_NUM_CFU", "SUPPORT"]
MIDNIGHTS = [dt.datetime(2025, 11, day) for day in (3, 4, 5, 6, 7)]


class Organization(NamedTuple):
    """What is known of some days: the tenant's rules as in YAML, and rows of text, dates and times."""

    tenant: Row
    lines: list[Row]
    resources: list[Row]
    identities: list[Row]
    usage: list[Row]
    failed: frozenset[tuple[str, str]]


def time_drawn(random_: random.Random) -> dt.datetime:
    """A time at or around the days: midnight exactly, or not."""
    around = random_.choice([dt.timedelta(0), dt.timedelta(microseconds=1), dt.timedelta(seconds=1)])
    if random_.random() < 0.4:
        return random_.choice(MIDNIGHTS) + random_.choice([around, -around])
    return dt.datetime(2025, 11, 2) + dt.timedelta(microseconds=random_.randrange(6 * 86_400 * 10**6))


def intervals_drawn(random_: random.Random, row: Row, owners: list[str], present: float = 0.85) -> list[Row]:
    """An entity over one or two intervals, under one owner or another; now and then none at all."""
    if random_.random() > present:
        return []
    bounds: list[dt.date | None] = [None, None]
    if random_.random() < 0.3:
        bounds.insert(1, random_.choice(DAYS))
    found = []
    for first, end in itertools.pairwise(bounds):
        times = sorted([time_drawn(random_), time_drawn(random_)])
        created = times[0] if random_.random() < 0.35 else None
        deleted = times[1] if random_.random() < 0.35 else None
        found.append(
            {
                "display_name": row["id"],
                "parent": "",
                "scope": "",
                **row,
                "owner": random_.choice(owners),
                "valid_from": first,
                "valid_to": end,
                "created_at": created,
                "deleted_at": deleted,
            }
        )
    return found


def identities_drawn(random_: random.Random) -> list[Row]:
    """Accounts, keys and what is neither. Now and then nobody, or nobody but keys."""
    found: list[Row] = []
    if random_.random() < 0.1:
        return found
    for name in ACCOUNTS if random_.random() < 0.9 else []:
        kind = {"op-1": "identity_provider", "UNALLOCATED": "system"}.get(name) or random_.choice(
            [*TYPES[:3] * 3, *TYPES]
        )
        found += intervals_drawn(random_, {"id": name, "type": kind}, [""], 0.7)
    for name in KEYS:
        scope = random_.choice([*CLUSTERS, *CLUSTERS, *REGISTRIES, *KSQLDBS, ""])
        key = {"id": name, "type": "api_key", "scope": scope}
        found += intervals_drawn(random_, key, [*ACCOUNTS, "", "sa-404"], 0.8)
    return found


def resources_drawn(random_: random.Random) -> list[Row]:
    """Resources of all kinds, some of them gone, some with statements."""
    owners = {
        "connector": [
            *ACCOUNTS, *(f"api_key:{key}" for key in [*KEYS, "KEY404"]), "", "connector_api_key_masked",
            "connector_credentials_masked", "lcc-1",
        ],
        "ksqldb": [*ACCOUNTS, *KEYS, ""],
    }  # fmt: skip
    found = []
    for kind, names in KINDS.items():
        for name in names:
            found += intervals_drawn(random_, {"id": name, "type": kind}, owners.get(kind, [""]), 0.8)
    for number in range(random_.randrange(8)):
        statement = {
            "id": f"uid-{number}",
            "type": "flink_statement",
            "display_name": random_.choice(STATEMENTS),
            "parent": random_.choice(POOLS),
        }
        found += intervals_drawn(random_, statement, [*ACCOUNTS, "KEY1", ""])
    return found


def value_drawn(random_: random.Random, whole: bool) -> str:
    """A value of a metric: nothing, little, a lot, less than nothing."""
    if random_.random() < 0.25:
        return random_.choice(["0", "0", "0.0", "-3"])
    number = random_.randrange(1, 10 ** random_.randrange(1, 17))
    return str(number) if whole else f"{number}.{random_.randrange(10**12):012d}"


def usage_drawn(random_: random.Random) -> list[Row]:
    """Values of metrics: gaps, names that nobody knows, several rows of one principal."""
    found = []
    for day in DAYS:
        for metric in METRICS:
            if random_.random() < 0.3:
                continue
            of_statements = metric in ("flink_cfu", "running_statements")
            nothing, whole = random_.random() < 0.2, random_.random() < 0.7
            names = (
                [*STATEMENTS, "s-404"] if of_statements else [*ACCOUNTS, *KEYS, "", "u-9", "flink_stmt_owner_unknown"]
            )
            for resource in POOLS if of_statements else CLUSTERS:
                if random_.random() < 0.3:
                    continue
                for name in random_.choices(names, k=random_.randrange(1, 9)):
                    value = "0" if nothing else value_drawn(random_, whole)
                    found.append(
                        {
                            "window": str(day),
                            "resource_id": resource,
                            "metric": metric,
                            "principal": name,
                            "value": "1" if metric == "running_statements" and not nothing else value,
                        }
                    )
    random_.shuffle(found)
    return found


def amount_drawn(random_: random.Random) -> str:
    """An amount: everyday, tiny, huge, nothing; either sign."""
    kind = random_.choice(["everyday", "everyday", "everyday", "zero", "unit", "huge", "long"])
    text = {
        "everyday": f"{random_.randrange(2000)}.{random_.randrange(100):02d}",
        "zero": "0",
        "unit": f"0.{random_.randrange(1, 9):012d}",
        "huge": f"{random_.randrange(10**22)}.{random_.randrange(10**12):012d}",
        "long": f"{random_.randrange(100)}.{random_.randrange(10**12):012d}",
    }[kind]
    return f"-{text}" if random_.random() < 0.25 else text


def lines_drawn(random_: random.Random) -> list[Row]:
    """Lines of all products on all kinds of resources, mostly those they are billed for."""
    found: list[Row] = []
    products = [*KNOWN_PRODUCTS, *random_.sample(KNOWN_PRODUCTS, 6), *random_.sample(UNKNOWN_PRODUCTS, 2)]
    for day in DAYS:
        for product in products:
            if random_.random() < 0.3:
                continue
            near = [
                name for kind, names in KINDS.items() if product.startswith(tuple(NEAR_NAMES[kind])) for name in names
            ]
            resource = random_.choice(near or CLUSTERS)
            if random_.random() < 0.12:
                resource = random_.choice(["", "", "malformed_billing_0123456789ab", "lkc-404", "lcc-404"])
            found.append(
                {
                    "line_id": len(found),
                    "charge_date": day,
                    "product_type": product,
                    "resource_id": resource,
                    "currency": random_.choice(["USD", "USD", "EUR"]),
                    "amount": amount_drawn(random_),
                    "list": random_.choice([None, amount_drawn(random_)]),
                }
            )
    return found


def rung_drawn(random_: random.Random) -> Row:
    """A rung that may weigh, with or without labels."""
    labels = random_.choice([{}, {"detail": "our_own"}, {"cost_type": "usage", "detail": "our_own"}])
    metrics = random_.choice([["bytes_in"], ["bytes_out"], ["bytes_in", "bytes_out"], ["flink_cfu"], METRICS])
    match random_.choice(["usage", "resource_active", "metrics_derived", "active", "wide"]):
        case "usage":
            return {"basis": "usage", "metrics": random_.choice([metrics, metrics[0]]), **labels}
        case "resource_active":
            return {"basis": "even", "population": "resource_active", **labels}
        case "metrics_derived":
            return {"basis": "even", "population": "metrics_derived", "metrics": metrics, **labels}
        case "active":
            return {"basis": "even", "population": "active", **random_.choice([{}, {"metrics": metrics}]), **labels}
        case _:
            return {"basis": "even", "population": random_.choice(["period_owners", "period_accounts"]), **labels}


def ladder_drawn(random_: random.Random, operator: bool) -> list[Row]:
    """Rungs, the last of which takes all."""
    basis = random_.choice(["resource", "unallocated", *(["operator", "operator"] if operator else [])])
    last = {"basis": basis, **random_.choice([{}, {"detail": "our_rest"}])}
    return [*(rung_drawn(random_) for _ in range(random_.choice([0, 1, 1, 2, 3]))), last]


def product_drawn(random_: random.Random, operator: bool) -> Row:
    """A product of the tenant's own: a ladder or parts, whole days or not."""
    ladders = [*LADDERS, "kafka_even", "kafka_even", "kafka_capacity"]
    shares = random_.choice(
        [
            ("1",),
            ("0.7", "0.3"),
            ("0.333333333333", "0.333333333333", "0.333333333334"),
            ("0.000000000001", "0.999999999999"),
        ]
    )
    life = random_.choice(
        [{}, {"partial_life": "whole"}, {"partial_life": "unallocated"}, {"partial_life": "unallocated"}]
    )
    given = [random_.choice([random_.choice(ladders), ladder_drawn(random_, operator)]) for _ in shares]
    if len(shares) == 1 and random_.random() < 0.7:
        return {"ladder": given[0], **life}
    parts = [{"share": share, "ladder": ladder} for share, ladder in zip(shares, given, strict=True)]
    return {"parts": parts, **life}


def tenant_drawn(random_: random.Random) -> Row:
    """A configuration without faults."""
    operator = random_.random() < 0.5
    own = random_.sample(OWN_PRODUCTS, random_.randrange(2, 6))
    ladders = {"kafka_read": ladder_drawn(random_, operator)} if random_.random() < 0.3 else {}
    return {
        "id": "acme",
        "ecosystem": "confluent_cloud",
        "source": {"kind": "confluent_cloud", "api_key": "${KEY}", "api_secret": "${SECRET}"},
        **({"operator": "ops"} if operator else {}),
        "ladders": ladders,
        "products": {name: product_drawn(random_, operator) for name in own},
    }


def failed_drawn(random_: random.Random) -> frozenset[tuple[str, str]]:
    """Metrics that failed, each for some of the resources that are asked for it."""
    found = set[tuple[str, str]]()
    for metric in random_.sample(METRICS[:3], random_.choice([0, 0, 0, 1, 2])):
        asked = [*(POOLS if metric == "flink_cfu" else CLUSTERS), "lkc-404"]
        found |= {(metric, resource) for resource in random_.sample(asked, random_.randrange(1, len(asked) + 1))}
    return frozenset(found)


def organization(seed: int) -> Organization:
    """The organization of a seed; the same one, always."""
    random_ = random.Random(seed)
    failed = failed_drawn(random_)
    return Organization(
        tenant_drawn(random_),
        lines_drawn(random_),
        resources_drawn(random_),
        identities_drawn(random_),
        usage_drawn(random_),
        failed,
    )
