"""The inventory of a Confluent Cloud organization: what there is, to whom it belongs, and who may be charged."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import polars as pl

from engine.errors import ContractError, SourceError, fault, shown
from engine.frames import IDENTITY_SNAPSHOT, RESOURCE_SNAPSHOT, USAGE, Table, check_rows
from engine.sources.answers import Answer, canonical, clean, listed
from engine.sources.http import Client, joined
from engine.sources.landing import Landing


class _Kind(NamedTuple):
    """One kind of the inventory: the type of its entities, how its lists are asked for, and what must be known first.

    A kind that needs only the environments is listed for each of them.
    """

    type: str
    path: str
    page_size: int | None
    needs: tuple[str, ...] = ()


KINDS = {
    "environments": _Kind("environment", "org/v2/environments", 99),
    "clusters": _Kind("kafka_cluster", "cmk/v2/clusters", 99, ("environments",)),
    "connectors": _Kind("connector", "connect/v1", None, ("environments", "clusters")),
    "schema_registries": _Kind("schema_registry", "srcm/v3/clusters", 50, ("environments",)),
    "ksqldbs": _Kind("ksqldb", "ksqldbcm/v2/clusters", 100, ("environments",)),
    "flink_pools": _Kind("flink_pool", "fcpm/v2/compute-pools", 50, ("environments",)),
    "flink_statements": _Kind("flink_statement", "sql/v1", 50, ("environments", "flink_pools")),
    "service_accounts": _Kind("service_account", "iam/v2/service-accounts", 99),
    "users": _Kind("user", "iam/v2/users", 99),
    "api_keys": _Kind("api_key", "iam/v2/api-keys", 100),
    "identity_providers": _Kind("identity_provider", "iam/v2/identity-providers", 99),
    "identity_pools": _Kind("identity_pool", "iam/v2/identity-providers", 99, ("identity_providers",)),
}
"""Everything that is gathered, by the name under which it is landed, in the order in which it is asked for."""

FlinkClient = Callable[[str, str], Client | None]
"""(region, cloud) -> who asks for the statements there; None if there are no credentials for the region."""


def flink_url(template: str, region: str, cloud: str) -> str:
    """The URL of Flink in a region, from a template with `{region}` and `{cloud}`.

    Both come from answers and credentials are sent there, so they may only be a part of a host's name.
    """
    for name, value in (("region", region), ("cloud", cloud)):
        if not _HOST_PART.fullmatch(value):
            raise ContractError(fault(f"Flink {name}", f"value {shown(value)}", "letters, digits and hyphens"))
    return template.replace("{region}", region).replace("{cloud}", cloud)


_HOST_PART = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def fetch_inventory(client: Client, flink: FlinkClient, landing: Landing) -> dict[str, str]:
    """Land the inventory, one file a kind, each whole or not at all; the error of each kind that failed.

    A kind that fails does not stop the others, except those that need it.
    """
    failed = dict[str, str]()
    for name, kind in KINDS.items():
        lost = [need for need in kind.needs if need in failed]
        if lost:
            failed[name] = fault(name, f"not asked for, as {lost[0]} failed", "what it depends on")
        elif not landing.has(name):
            try:
                landing.write(name, _asked(name, client, flink, landing))
            except (SourceError, ContractError) as error:
                failed[name] = "; ".join(error.faults)
    return failed


def faults(failed: Mapping[str, str]) -> list[str]:
    """What `fetch_inventory` says of kinds that failed, without one line for each that only depends on another."""
    lost = [name for name in failed if any(need in failed for need in KINDS[name].needs)]
    own = [text for name, text in failed.items() if name not in lost]
    listed = ", ".join(name.replace("_", " ") for name in lost)
    return [*own, *([f"not asked for because of that: {listed}"] if lost else [])]


def _asked(name: str, client: Client, flink: FlinkClient, landing: Landing) -> Iterator[Answer]:
    """The answers for one kind, as they may be landed."""
    kind = KINDS[name]
    access = f"a Cloud API key with the role OrganizationAdmin, or one that may read {name.replace('_', ' ')}"
    known = {need: landing.read(need) for need in kind.needs}
    if name == "flink_statements":
        answers = _asked_statements(known["flink_pools"], flink)
    elif name == "connectors":
        answers = _asked_connectors(known["clusters"], client, access)
    else:
        answers = (
            page
            for path, params in _lists(name, known)
            for page in client.pages(path, params, page_size=kind.page_size, access=access)
        )
    return (_without_settings(name, answer) for answer in answers)


def _lists(name: str, known: Mapping[str, Sequence[Answer]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Path and parameters of the lists that make up a kind."""
    path = KINDS[name].path
    if name == "identity_pools":
        for provider in _ids("identity_providers", known):
            yield f"{path}/{joined(provider, 'identity-pools')}", {}
    elif KINDS[name].needs:
        for environment in _ids("environments", known):
            yield path, {"environment": environment}
    else:
        yield path, {}


def _ids(name: str, known: Mapping[str, Sequence[Answer]]) -> list[str]:
    return sorted({entity.id for entity in _entities(name, known[name]) if entity.id})


def _asked_connectors(clusters: Sequence[Answer], client: Client, access: str) -> Iterator[Answer]:
    """The connectors of each cluster: an object by name, never cut into pages."""
    found = {(entity.scope, entity.id) for entity in _entities("clusters", clusters) if entity.id}
    for environment, cluster in sorted(found):
        path = f"{KINDS['connectors'].path}/{joined('environments', environment, 'clusters', cluster, 'connectors')}"
        answer = client.get(path, {"expand": "info,status,id"}, absent_ok=True, access=access)
        _connectors(answer)
        yield answer


class _Place(NamedTuple):
    """Where Flink statements are: those of all pools in one place are one list."""

    organization: str
    environment: str
    region: str
    cloud: str


def _places(pools: Sequence[Answer]) -> Iterator[tuple[_Place, str]]:
    """(place, id) of every Flink pool."""
    for page, value in _values("flink_pools", pools):
        found = _ORGANIZATION.search(_text(value, "metadata", "resource_name"))
        region, cloud = (_text(value, "spec", name).lower() for name in ("region", "cloud"))
        place = _Place(unquote(found[1]) if found else "", _environment(page, value), region, cloud)
        yield place, _text(value, "id")


_ORGANIZATION = re.compile(r"/organization=([^/]+)")
_ENVIRONMENT = re.compile(r"/environment=([^/]+)")


def _asked_statements(pools: Sequence[Answer], flink: FlinkClient) -> Iterator[Answer]:
    """The statements of each place for which there are credentials; the URL says in its fragment which it is."""
    for place in sorted({place for place, _ in _places(pools)}):
        client = flink(place.region, place.cloud)
        if client is None:
            continue
        if not place.organization:
            raise ContractError(
                fault(f"Flink pools of {place.environment}", "a pool without an organization", "one in resource_name")
            )
        segments = ("organizations", place.organization, "environments", place.environment, "statements")
        path = f"{KINDS['flink_statements'].path}/{joined(*segments)}"
        access = f"an API key of Flink in {place.region} that may read statements"
        for page in client.pages(path, page_size=KINDS["flink_statements"].page_size, access=access):
            yield page._replace(url=f"{page.url}#{place.region}.{place.cloud}")


_CONNECTOR_LANDED = frozenset(
    {
        *((), ("id",), ("id", "id"), ("id", "id_type")),
        *(("info",), ("info", "name"), ("info", "type"), ("info", "config")),
        *(("info", "tasks"), ("info", "tasks", "connector"), ("info", "tasks", "task")),
        *(("info", "config", "name"), ("info", "config", "connector.class"), ("info", "config", "tasks.max")),
        *(("info", "config", "kafka.auth.mode"), ("info", "config", "kafka.api.key")),
        ("info", "config", "kafka.service.account.id"),
        *(("status",), ("status", "name"), ("status", "type")),
        *(("status", "connector"), ("status", "connector", "state"), ("status", "connector", "worker_id")),
        *(("status", "tasks"), ("status", "tasks", "id")),
        *(("status", "tasks", "state"), ("status", "tasks", "worker_id")),
    }
)
"""What of a connector is landed, by its path of names: what is read, and what is certain to be no setting.

All else may be a setting, or quote one: what connectors say when they fail does, under names that come and change.
"""
_CONNECTOR_GROUPS = frozenset(path[:-1] for path in _CONNECTOR_LANDED if path)
_NOT_LANDED = "(not landed)"
_Hides = Callable[[tuple[str, ...], Any], bool]


def _hides_of_connector(path: tuple[str, ...], value: Any) -> bool:
    within = path[1:]
    is_group = value is None or isinstance(value, dict | list)
    return within not in _CONNECTOR_LANDED or (within in _CONNECTOR_GROUPS and not is_group)


_HIDES: dict[str, _Hides] = {
    "connectors": _hides_of_connector,
    "flink_statements": lambda path, _: path[-1] in {"statement", "properties", "detail"},
    "api_keys": lambda path, _: path[-1] == "secret",
}
"""Kind -> whether the value at a path of names in a body may be somebody's secret, and is not landed: settings of
connectors, what they said when they failed, and the text of statements."""


def _without_settings(name: str, answer: Answer) -> Answer:
    """The answer as it may be landed."""
    if answer.status == 404 or name not in _HIDES:
        return answer
    return answer._replace(text=canonical(_hidden(answer.body, _HIDES[name])))


def _hidden(value: Any, hides: _Hides, path: tuple[str, ...] = ()) -> Any:
    if path and hides(path, value):
        return _NOT_LANDED
    if isinstance(value, dict):
        return {name: _hidden(inner, hides, (*path, name)) for name, inner in value.items()}
    return [_hidden(inner, hides, path) for inner in value] if isinstance(value, list) else value


class Inventory(NamedTuple):
    """What one gather saw.

    `resources` and `identities` are RESOURCE_SNAPSHOT and IDENTITY_SNAPSHOT. `running` has the columns resource_id,
    metric, principal and value of USAGE: 1 for each Flink statement that was not stopped. `gathered` names the types of
    which everything was seen that there is. `not_asked`: Flink pools where there are no credentials to see statements.
    """

    resources: pl.DataFrame
    identities: pl.DataFrame
    running: pl.DataFrame
    gathered: frozenset[str]
    not_asked: frozenset[str]
    warnings: tuple[str, ...]


def read_inventory(landing: Landing, lacking: Collection[str] = ()) -> dict[str, list[Answer]]:
    """The landed pages of every kind but those that it lacks; StoreError if one of them is not there, or torn."""
    return {name: landing.read(name) for name in KINDS if name not in lacking}


def parse_inventory(landed: Mapping[str, Sequence[Answer]]) -> Inventory:
    """What there is, from the landed pages of the kinds that were gathered (`read_inventory`).

    An entity without an id is counted, and its type counts as not gathered whole. Of entities with one id the last
    counts.
    """
    entities = {name: list(_entities(name, pages)) for name, pages in landed.items()}
    unnamed = {name: count for name, found in entities.items() if (count := sum(not one.id for one in found))}
    without = _pools_without(landed)
    gathered = {KINDS[name].type for name in landed if name not in unnamed}
    resources, identities = (
        [one for name, found in entities.items() for one in found if one.id and (name in _IDENTITY_KINDS) is identity]
        for identity in (False, True)
    )
    return Inventory(
        resources=_snapshot(resources, RESOURCE_SNAPSHOT),
        identities=_snapshot(identities, IDENTITY_SNAPSHOT),
        running=_running(landed.get("flink_statements", ())),
        gathered=frozenset(gathered - ({KINDS["flink_statements"].type} if without else set())),
        not_asked=frozenset(pool for _, pool in without),
        warnings=tuple(_inventory_warnings(unnamed, without, [*resources, *identities])),
    )


def _inventory_warnings(
    unnamed: Mapping[str, int], without: Sequence[tuple[str, str]], entities: Sequence[_Entity]
) -> Iterator[str]:
    for name, count in unnamed.items():
        yield f"{name}: {count} without an id are left out, and what is gone is not looked for"
    for place in dict.fromkeys(place for place, _ in without):
        yield f"flink_statements: no credentials for {place}, where there are pools; their owners are not known"
    if changed := len(set(entities)) - len({one.id for one in entities}):
        yield f"inventory: {changed} came again and were different; the last counts"
    if odd := sum(one.created_at not in {"", None} and _time(one.created_at) is None for one in entities):
        yield f"inventory: {odd} with a created_at that is no time count as if they had none"


class _Entity(NamedTuple):
    """One resource or identity; what is absent is ''."""

    id: str
    display_name: str
    type: str = ""
    parent: str = ""
    owner: str = ""
    scope: str = ""
    created_at: str = ""


def _snapshot(entities: Sequence[_Entity], table: Table) -> pl.DataFrame:
    """Entities -> a snapshot table in key order, the last of each id."""
    rows = [one._replace(created_at="")._asdict() | {"created_at": _time(one.created_at)} for one in entities]
    frame = pl.DataFrame(
        [[row[name] for name in table.columns] for row in rows], schema=table.schema, orient="row"
    ).unique(table.key, keep="last", maintain_order=True)
    return check_rows(frame.sort(table.key), table, where="inventory")


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{5,8}(\.[0-9]+)?(Z|[+-][0-9]{2}:?[0-9]{2})?", re.IGNORECASE)


def _time(text: str) -> datetime | None:
    """A time of an API, in UTC without saying so; None if it is none."""
    try:
        moment = datetime.fromisoformat(text) if _TIME.fullmatch(text) else None
        return moment and (moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None))
    except (ValueError, OverflowError):
        return None


def _text(value: Any, *path: str) -> str:
    """The text that lies at a path of names, or ''."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return clean(value) if isinstance(value, str) else ""


def _values(name: str, pages: Sequence[Answer]) -> Iterator[tuple[Answer, Any]]:
    """(page, value) of every entity of a kind; a connector's value knows its name."""
    for page in pages:
        if name == "connectors":
            yield from ((page, {"name": key, "value": value}) for key, value in _connectors(page).items())
        else:
            yield from ((page, value) for value in listed(page))


def _connectors(page: Answer) -> dict[str, Any]:
    """The connectors of a cluster by name; ContractError if the answer is of another form."""
    body = page.body if page.status != 404 else {}
    if not isinstance(body, dict) and body != []:
        raise ContractError(fault(f"answer to {page.url}", "is of another form", "an object of connectors by name"))
    return body or {}


def _environment(page: Answer, value: Any) -> str:
    """The environment of an entity: as it says, or as its list was asked for."""
    found = _ENVIRONMENT.search(_text(value, "metadata", "resource_name"))
    asked = parse_qs(urlsplit(page.url).query).get("environment", [""])[0]
    return _text(value, "spec", "environment", "id") or (unquote(found[1]) if found else "") or asked


def _entities(name: str, pages: Sequence[Answer]) -> Iterator[_Entity]:
    for page, value in _values(name, pages):
        made = _MADE[name](page, value)
        yield made._replace(type=KINDS[name].type, created_at=made.created_at or _text(value, "metadata", "created_at"))


def _named(_: Answer, value: Any) -> _Entity:
    """An environment, service account or identity provider."""
    return _Entity(_text(value, "id"), _text(value, "display_name"))


def _within_environment(page: Answer, value: Any) -> _Entity:
    """A cluster, Schema Registry or Flink pool."""
    environment = _environment(page, value)
    return _Entity(_text(value, "id"), _text(value, "spec", "display_name"), parent=environment, scope=environment)


def _ksqldb(page: Answer, value: Any) -> _Entity:
    return _within_environment(page, value)._replace(
        parent=_text(value, "spec", "kafka_cluster", "id"),
        owner=_text(value, "spec", "credential_identity", "id") or "ksqldb_owner_unknown",
    )


def _connector(page: Answer, value: Any) -> _Entity:
    segments = [unquote(segment) for segment in urlsplit(page.url).path.split("/")]
    environment, cluster = segments[-4], segments[-2]
    identity = _text(value, "value", "id", "id")
    config = value["value"].get("info") if isinstance(value["value"], dict) else None
    return _Entity(
        identity,
        _text(config, "config", "name") or clean(value["name"]),
        parent=cluster,
        owner=_connector_owner(config.get("config") if isinstance(config, dict) else None, identity),
        scope=environment,
    )


def _connector_owner(config: Any, connector: str) -> str:
    """Whose credentials a connector uses: an account, `api_key:` and a key, or why that is not known."""
    mode, account, key = (
        _text(config, name).strip() for name in ("kafka.auth.mode", "kafka.service.account.id", "kafka.api.key")
    )
    if not mode:
        mode = "SERVICE_ACCOUNT" if account else "KAFKA_API_KEY" if key else ""
    match mode.upper():
        case "SERVICE_ACCOUNT":
            return "connector_credentials_masked" if _is_masked(account) else account or _CREDENTIALS_UNKNOWN
        case "KAFKA_API_KEY":
            return "connector_api_key_masked" if _is_masked(key) else f"api_key:{key}" if key else _CREDENTIALS_UNKNOWN
        case _:
            return connector


_CREDENTIALS_UNKNOWN = "connector_credentials_unknown"


def _is_masked(text: str) -> bool:
    return text != "" and not text.strip("*")


def _statement(page: Answer, value: Any) -> _Entity:
    name = _text(value, "name")
    return _Entity(
        _text(value, "metadata", "uid") or name,
        name,
        parent=_text(value, "spec", "compute_pool", "id"),
        owner=_text(value, "spec", "principal") or "flink_stmt_owner_unknown",
        scope=unquote(urlsplit(page.url).path.split("/")[-2]),
    )


def _user(_: Answer, value: Any) -> _Entity:
    return _Entity(_text(value, "id"), _text(value, "full_name") or _text(value, "email"))


def _api_key(_: Answer, value: Any) -> _Entity:
    return _Entity(
        _text(value, "id"),
        _text(value, "spec", "description") or _text(value, "spec", "display_name"),
        owner=_text(value, "spec", "owner", "id"),
        scope=_text(value, "spec", "resource", "id"),
    )


def _identity_pool(page: Answer, value: Any) -> _Entity:
    provider = unquote(urlsplit(page.url).path.split("/")[-2])
    return _Entity(_text(value, "id"), _text(value, "display_name"), owner=provider)


_MADE: dict[str, Callable[[Answer, Any], _Entity]] = {
    "environments": _named,
    "clusters": _within_environment,
    "connectors": _connector,
    "schema_registries": _within_environment,
    "ksqldbs": _ksqldb,
    "flink_pools": _within_environment,
    "flink_statements": _statement,
    "service_accounts": _named,
    "users": _user,
    "api_keys": _api_key,
    "identity_providers": _named,
    "identity_pools": _identity_pool,
}
_IDENTITY_KINDS = ("service_accounts", "users", "api_keys", "identity_providers", "identity_pools")
_STOPPED = ("COMPLETED", "FAILED", "STOPPED")


def _running(pages: Sequence[Answer]) -> pl.DataFrame:
    """The Flink statements that were not stopped, once each by pool and name."""
    running = {
        (_text(value, "spec", "compute_pool", "id"), _text(value, "name"))
        for _, value in _values("flink_statements", pages)
        if _text(value, "status", "phase") not in _STOPPED
    }
    rows = [(pool, "running_statements", name, Decimal(1)) for pool, name in sorted(running) if pool and name]
    schema = {name: USAGE.schema[name] for name in ("resource_id", "metric", "principal", "value")}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _pools_without(landed: Mapping[str, Sequence[Answer]]) -> list[tuple[str, str]]:
    """(region and cloud, id) of Flink pools in places whose statements were not asked for, in order."""
    if "flink_statements" not in landed:
        return []
    asked = {urlsplit(page.url).fragment for page in landed["flink_statements"]}
    pools = ((f"{place.region}.{place.cloud}", pool) for place, pool in _places(landed.get("flink_pools", ())))
    return sorted({(place, pool) for place, pool in pools if place not in asked})
