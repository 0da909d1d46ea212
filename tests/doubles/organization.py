"""A whole Confluent Cloud organization as data: who and what there is, what it cost, and how either changes.

Everything follows from arguments: no clock, no chance but of a `Random` that is passed in. `confluent_cloud` serves it.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html.entities
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal, localcontext
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

Record = dict[str, Any]
"""A record of the costs as the API gives it, numbers as Decimal."""

KINDS = (
    "environments",
    "clusters",
    "connectors",
    "schema_registries",
    "ksqldbs",
    "flink_pools",
    "flink_statements",
    "service_accounts",
    "users",
    "api_keys",
    "identity_providers",
    "identity_pools",
)
BILLING_ADMIN, ORGANIZATION_ADMIN = "BillingAdmin", "OrganizationAdmin"
ORGANIZATION_ID = "0d1b2c3a-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
SETTING = "CANARY-SETTING"
"""How everything begins that users wrote into connectors and statements and that may be a secret of theirs."""


class Credential(NamedTuple):
    """A key and its secret, both easily found in a text that they should not be in."""

    key: str
    secret: str

    @property
    def basic(self) -> str:
        """What HTTP Basic makes of them."""
        return base64.b64encode(f"{self.key}:{self.secret}".encode()).decode()

    @property
    def canaries(self) -> list[str]:
        """What must not be shown of them, in each of its spellings; of `basic` what says all, without its =."""
        texts = [self.key, self.secret, self.basic.rstrip("=")]
        return [way(text) for text in texts for way in SPELLINGS.values()]


CLOUD = Credential("CANARYKEYCLOUD01", "CANARY-SECRET-cloud/0123456789+abcdef")
FLINK = {
    # Of a length that HTTP Basic fills up with == and with =; the one above needs neither.
    "us-east-1": Credential("CANARYKEYFLINK01", "CANARY-SECRET-flink-us/0123456789+abcd"),
    "europe-west1": Credential("CANARYKEYFLINK02", "CANARY-SECRET-flink-eu/0123456789+abcde"),
}


_NAMED = {text: name.removesuffix(";") for name, text in sorted(html.entities.html5.items()) if name.endswith(";")}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "a log of Python": lambda text: text.replace("\\", "\\\\").replace("'", "\\'"),
    "plain": str,
    "JSON with slashes escaped": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON with signs escaped": lambda text: "".join(one if one.isalnum() else f"\\u{ord(one):04x}" for one in text),
    "JSON with all escaped": lambda text: "".join(f"\\u{ord(one):04X}" for one in text),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text).replace("/", "\\/"))[3:-3],
    "URL": lambda text: quote(text, safe=""),
    "URL in lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "URL in a URL": lambda text: quote(quote(text, safe=""), safe=""),
    "form with + read as a blank": lambda text: text.replace("+", " "),
    "HTML": html.escape,
    "HTML with signs by number": lambda text: "".join(one if one.isalnum() else f"&#{ord(one)};" for one in text),
    "HTML with signs in hex": lambda text: "".join(one if one.isalnum() else f"&#x{ord(one):X};" for one in text),
    "HTML with filled numbers": lambda text: "".join(one if one.isalnum() else f"&#x{ord(one):06x};" for one in text),
    "HTML with signs by name": lambda text: "".join(f"&{_NAMED[one]};" if one in _NAMED else one for one in text),
    "HTML in HTML": lambda text: html.escape("".join(one if one.isalnum() else f"&#{ord(one)};" for one in text)),
    "HTML in JSON": lambda text: html.escape(text).replace("/", "&#47;").replace("&", "\\u0026"),
    "bytes": lambda text: "".join(one if one.isalnum() else f"\\x{ord(one):02x}" for one in text),
}
"""How servers write a text into JSON, URLs, HTML and logs."""


@dataclass
class Entity:
    """One thing of the inventory.

    `within` says in which list it is: the environment; for connectors environment and cluster, for statements region,
    cloud and environment, for identity pools the provider.
    """

    id: str
    within: tuple[str, ...]
    body: dict[str, Any]


@dataclass
class Organization:
    """The organization as it is now. Change it between two gathers, or in `Server.before`, during one.

    `hidden` kinds answer with empty lists, and `denied` ones with a status. `roles` are what the Cloud API key may do.
    `order` is any text: each gives the costs in another order. Costs from before `oldest` cannot be asked for.
    """

    credential: Credential = CLOUD
    flink: dict[str, Credential] = field(default_factory=lambda: dict(FLINK))
    roles: set[str] = field(default_factory=lambda: {BILLING_ADMIN, ORGANIZATION_ADMIN})
    inventory: dict[str, dict[str, Entity]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    costs: dict[date, list[Record]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    denied: dict[str, int] = field(default_factory=dict)
    removed: list[tuple[str, Entity]] = field(default_factory=list)
    order: str = ""
    oldest: date | None = None
    changes: int = 0

    def copy(self) -> Organization:
        """Another one that is the same now and does not change with this one."""
        return copy.deepcopy(self)

    def canaries(self) -> list[str]:
        """What must not be in any log, error, file or output, in each of its spellings."""
        credentials = [self.credential, *self.flink.values()]
        return [*(text for one in credentials for text in one.canaries), SETTING]

    # What it cost

    def records(self, first: date, end: date) -> list[Record]:
        """The records of the days from `first` to before `end`, in the order in which they are served."""
        days = [day for day in sorted(self.costs) if first <= day < end]
        found = [one for day in days for one in self.costs[day]]
        return sorted(found, key=lambda one: _hash(self.order, one["id"])) if self.order else found

    def total(self, first: date = date.min, end: date = date.max) -> Decimal:
        """The exact sum of the amounts of the days from `first` to before `end`."""
        return exact_sum(one["amount"] for one in self.records(first, end))

    def found(self, record_id: str) -> tuple[date, Record]:
        """A record and the day under which it is served."""
        return next((day, one) for day, ones in self.costs.items() for one in ones if one["id"] == record_id)

    def find(self, day: date, line_type: str, resource_id: str = "") -> list[Record]:
        """The records of a line: more than one if it has tiers or kinds of network access."""
        return [one for one in self.costs[day] if (one["line_type"], _resource_id(one)) == (line_type, resource_id)]

    def revise(self, record_id: str, **fields: Any) -> None:
        """Give a record other values; a field given as `...` is left out of it from now on."""
        _, record = self.found(record_id)
        for name, value in fields.items():
            if value is ...:
                record.pop(name, None)
            else:
                record[name] = value

    def add_cost(self, day: date, record: Record) -> None:
        """A late line of a day."""
        self.costs.setdefault(day, []).append(record)

    def withdraw(self, *record_ids: str) -> None:
        """Records that are no longer there."""
        for record_id in record_ids:
            day, record = self.found(record_id)
            self.costs[day].remove(record)

    def empty_day(self, day: date) -> None:
        """A day that no longer has any records."""
        self.costs[day] = []

    def retier(self, record_id: str, tiers: Sequence[tuple[Decimal, Decimal]]) -> None:
        """Put rows of (quantity, price) in the place of the rows of the record's line; one row has no tier."""
        day, record = self.found(record_id)
        rows = []
        for number, (quantity, price) in enumerate(tiers):
            numbers = {"quantity": quantity, "price": price, "amount": quantity * price}
            tier = {"lower_bound": number * 1000, "upper_bound": (number + 1) * 1000} if len(tiers) > 1 else {}
            row = record | numbers | {"original_amount": quantity * price, "discount_amount": Decimal(0)}
            row |= {"tier_dimensions": tier}
            rows.append(row | {"id": cost_id("tier", day, record["line_type"], number, self.changed())})
        kept = [one for one in self.costs[day] if line_key(one) != line_key(record)]
        self.costs[day] = kept + rows

    def changed(self) -> int:
        """Count a change; so no two new records have the same id."""
        self.changes += 1
        return self.changes

    # Who and what there is

    def ids(self, kind: str) -> list[str]:
        """The ids of a kind, in the order in which they are listed."""
        return list(self.inventory[kind])

    def add(self, kind: str, *entities: Entity) -> None:
        """Entities that are there from now on."""
        self.inventory[kind] |= {one.id: one for one in entities}

    def remove(self, kind: str, entity_id: str) -> Entity:
        """Delete one; `bring_back` can undo that. What lies within it cannot be listed any more."""
        entity = self.inventory[kind].pop(entity_id)
        self.removed.append((kind, entity))
        return entity

    def bring_back(self, entity_id: str) -> None:
        """The same entity again, as it was when it was removed."""
        kind, entity = next(pair for pair in self.removed if pair[1].id == entity_id)
        self.removed = [pair for pair in self.removed if pair[1].id != entity_id]
        self.add(kind, entity)

    def rename(self, kind: str, entity_id: str, name: str) -> None:
        """Give an entity another name; the id of none depends on it, but a connector is listed under its name."""
        body = self.inventory[kind][entity_id].body
        if kind == "connectors":
            body["info"]["name"] = body["info"]["config"]["name"] = name
            return
        holder = body if kind in _NAMED_AT_THE_TOP else body["spec"]
        holder[
            {"users": "full_name", "api_keys": "description", "flink_statements": "name"}.get(kind, "display_name")
        ] = name

    def change_owner(self, kind: str, entity_id: str, owner: str | None) -> None:
        """Give an API key, ksqlDB, Flink statement or connector another owner; None takes it away.

        The owner of a connector may be `api_key:` and a key.
        """
        body = self.inventory[kind][entity_id].body
        match kind:
            case "api_keys":
                body["spec"]["owner"] = None if owner is None else {"id": owner}
            case "ksqldbs":
                body["spec"]["credential_identity"] = None if owner is None else {"id": owner}
            case "flink_statements":
                body["spec"]["principal"] = owner or ""
            case "connectors":
                config = body["info"]["config"]
                for name in ("kafka.auth.mode", "kafka.service.account.id", "kafka.api.key"):
                    config.pop(name, None)
                config |= {} if owner is None else _connector_owner(owner)
            case _:
                raise ValueError(f"{kind} have no owner")

    # Whatever may happen

    def drift(self, random: Random, change: str = "") -> str:
        """Change something as a provider or its customer might, and say what; `change` is one of CHANGES."""
        name = change or random.choice(list(CHANGES))
        return f"{name}: {CHANGES[name](self, random)}"


_NAMED_AT_THE_TOP = (
    "environments",
    "service_accounts",
    "users",
    "identity_providers",
    "identity_pools",
    "flink_statements",
)


def exact_sum(amounts: Iterator[Decimal]) -> Decimal:
    """The sum, with more digits than any has."""
    with localcontext(prec=100):
        return sum(amounts, Decimal(0))


def line_key(record: Record) -> tuple[Any, ...]:
    """What rows of one line have in common."""
    resource = record.get("resource") or {}
    environment = resource.get("environment", {}).get("id") if isinstance(resource, dict) else resource
    names = ("start_date", "product", "line_type", "network_access_type", "unit")
    return (_resource_id(record), environment, *(record.get(name) for name in names))


def _resource_id(record: Record) -> str:
    resource = record.get("resource")
    return resource.get("id", "") if isinstance(resource, dict) else ""


def _hash(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def cost_id(*parts: object) -> str:
    return f"dlz-{_hash(*parts)[:20]}"


def _connector_owner(owner: str) -> dict[str, str]:
    if owner.startswith("api_key:"):
        return {"kafka.auth.mode": "KAFKA_API_KEY", "kafka.api.key": owner.removeprefix("api_key:")}
    return {"kafka.auth.mode": "SERVICE_ACCOUNT", "kafka.service.account.id": owner}


# What may happen by chance


def _well_formed(organization: Organization) -> list[tuple[date, Record]]:
    return [
        (day, one)
        for day in sorted(organization.costs)
        for one in organization.costs[day]
        if "start_date" in one and isinstance(one.get("resource"), dict | None)
    ]


_LAST = "nothing, since nothing would be left"


def _any_record(organization: Organization, random: Random) -> tuple[date, Record]:
    return random.choice(_well_formed(organization))


def _amount(random: Random) -> Decimal:
    return Decimal(random.randint(-(10**11), 10**13)).scaleb(-10)


def _revise_amount(organization: Organization, random: Random) -> str:
    _, record = _any_record(organization, random)
    organization.revise(record["id"], amount=_amount(random))
    return str(record["id"])


def _withdraw(organization: Organization, random: Random) -> str:
    _, record = _any_record(organization, random)
    if len(_well_formed(organization)) == 1:
        return _LAST
    organization.withdraw(record["id"])
    return str(record["id"])


def _late(organization: Organization, random: Random) -> str:
    _, like = _any_record(organization, random)
    day = random.choice(sorted(organization.costs))
    dates = {"start_date": day.isoformat(), "end_date": (day + timedelta(days=1)).isoformat()}
    record = copy.deepcopy(like) | dates | {"id": cost_id("late", day, organization.changed())}
    organization.add_cost(day, record | {"amount": _amount(random)})
    return str(record["id"])


def _retier(organization: Organization, random: Random) -> str:
    _, record = _any_record(organization, random)
    count = random.randint(1, 4)
    organization.retier(
        record["id"], [(Decimal(random.randint(1, 999)), Decimal(number + 1) / 64) for number in range(count)]
    )
    return f"{record['id']} in {count}"


def _empty_day(organization: Organization, random: Random) -> str:
    day = random.choice(sorted(organization.costs))
    if all(other == day for other, _ in _well_formed(organization)):
        return _LAST
    organization.empty_day(day)
    return day.isoformat()


def _new_owner(organization: Organization, random: Random) -> str:
    kind = random.choice(
        [kind for kind in ("api_keys", "ksqldbs", "flink_statements", "connectors") if organization.ids(kind)]
    )
    entity_id, owner = random.choice(organization.ids(kind)), random.choice(organization.ids("service_accounts"))
    organization.change_owner(kind, entity_id, owner)
    return f"{entity_id} to {owner}"


_COME_AND_GO = ("connectors", "ksqldbs", "flink_statements", "service_accounts", "users", "api_keys", "identity_pools")


def _disappear(organization: Organization, random: Random) -> str:
    # One of each kind stays, so that no kind is empty by chance.
    kinds = [kind for kind in _COME_AND_GO if len(organization.ids(kind)) > 1]
    kind = random.choice(kinds)
    return organization.remove(kind, random.choice(organization.ids(kind))).id


def _reappear(organization: Organization, random: Random) -> str:
    if not organization.removed:
        return "nothing was gone"
    _, entity = random.choice(organization.removed)
    organization.bring_back(entity.id)
    return entity.id


def _known_late(organization: Organization, random: Random) -> str:
    """An account and its key of days that were billed long ago, of which nobody was told before."""
    since = {"created_at": f"{random.choice(sorted(organization.costs)[:-1])}T00:00:00Z"}
    name, cluster = f"sa-late{organization.changed()}", random.choice(organization.ids("clusters"))
    organization.add("service_accounts", Entity(name, (), {"id": name, "display_name": name, "metadata": since}))
    spec = {"owner": {"id": name, "kind": "ServiceAccount"}, "resource": {"id": cluster, "kind": "Cluster"}}
    key = f"KEY{name}"
    organization.add("api_keys", Entity(key, (), {"id": key, "spec": spec, "metadata": since}))
    return f"{name} on {cluster} since {since['created_at']}"


CHANGES: Mapping[str, Callable[[Organization, Random], str]] = {
    "amount": _revise_amount,
    "withdrawal": _withdraw,
    "late line": _late,
    "tiers": _retier,
    "empty day": _empty_day,
    "owner": _new_owner,
    "disappearance": _disappear,
    "reappearance": _reappear,
    "known late": _known_late,
}
"""What `Organization.drift` may do."""
