"""What opens a configuration's endpoints: the variables that it names, what they hold, and all of it to search for.

One home for which credentials there are and which of them cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel, SecretStr

from engine.config import AwsTenant, ConfluentTenant, KafkaAdmin, KafkaTenant, Tenant
from engine.errors import ConfigError, fault
from engine.sources.secrets import Credential, Secrets

SECRET_LENGTH_MIN = 8
"""Answers are searched for our own secrets before they are kept. A shorter one may be a part of any word in them, as
`kafka` is of `kafka_id`: nobody could tell it from what is billed."""
_NAMES = {"api_secret": "api_key", "password": "username", "bearer": None}
"""Keys of a configuration under which secrets stand, and the key under which stands who asks, which is none."""
_KEYS = ("api_key", "api_secret", "username", "password", "bearer")


class Variable(NamedTuple):
    """A variable `${NAME}` that a configuration names for a credential, under a key of a place.

    `is_header`: it is sent in a header of HTTP.
    """

    text: str
    where: str
    key: str
    is_header: bool = True

    @property
    def name(self) -> str:
        """What it is called in the environment."""
        return self.text.removeprefix("${").removesuffix("}")


def variables(tenant: Tenant) -> list[Variable]:
    """Every variable that a tenant's configuration names for its credentials."""
    return [one for found in _endpoints(tenant) for one in found.values()]


def _endpoints(tenant: Tenant) -> Iterator[dict[str, Variable]]:
    """For each endpoint of a tenant the variables of what opens it, by their keys."""
    for place, model in _models(tenant):
        where = f"tenant {tenant.id}: {place}"
        given = ((key, getattr(model, key, None)) for key in _KEYS)
        is_header = not isinstance(model, KafkaAdmin)
        yield {key: Variable(variable, where, key, is_header) for key, variable in given if variable is not None}


def _models(tenant: Tenant) -> Iterator[tuple[str, BaseModel | None]]:
    if isinstance(tenant, AwsTenant):
        return
    if isinstance(tenant, ConfluentTenant):
        source = tenant.source
        yield "source", source
        for region, keys in sorted((source.flink.keys if source.flink else {}).items()):
            yield f"source: flink {region}", keys
    yield "metrics", tenant.metrics
    if isinstance(tenant, KafkaTenant):
        yield "source: admin", tenant.source.admin


def secret(variable: Variable, environment: Mapping[str, str]) -> SecretStr:
    """What a variable holds; ConfigError, naming it, if it is not set, or cannot be sent or searched for."""
    value = environment.get(variable.name, "")
    place, seen = f"{variable.where}: {variable.key}", f"environment variable {variable.name}"
    if not value:
        expected = "a value in the environment, or in a file .env beside the configuration"
        raise ConfigError(fault(place, f"{seen} is not set", expected))
    # Of what is wrong nothing is told but its kind, not even how long it is.
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(fault(place, f"{seen} is not UTF-8", "text in UTF-8"))
    if value.endswith("\n"):
        # As files have one; nobody's secret does.
        raise ConfigError(fault(place, f"{seen} ends in a line end", "the secret alone, without it"))
    if variable.is_header and not all("!" <= letter <= "~" for letter in value):
        seen = f"{seen} has a blank, or another character that cannot be sent"
        raise ConfigError(fault(place, seen, "visible characters of ASCII"))
    if variable.key in _NAMES and len(value.strip()) < SECRET_LENGTH_MIN:
        expected = "a longer secret, which can be told from the words of answers that are kept"
        raise ConfigError(fault(place, f"{seen} has fewer than {SECRET_LENGTH_MIN} letters", expected))
    return SecretStr(value)


def faults(tenant: Tenant, environment: Mapping[str, str]) -> list[str]:
    """What is wrong with each of a tenant's variables that cannot be used."""
    found = list[str]()
    for variable in variables(tenant):
        try:
            secret(variable, environment)
        except ConfigError as error:
            found += error.faults
    return found


def known(tenants: Iterable[Tenant], environment: Mapping[str, str]) -> Secrets:
    """The credentials of all tenants, as far as they are set, to search for: each may come back from any endpoint."""
    endpoints = [found for tenant in tenants for found in _endpoints(tenant)]
    return Secrets(one for found in endpoints for one in _credentials(found, environment))


def _credentials(found: Mapping[str, Variable], environment: Mapping[str, str]) -> Iterator[Credential]:
    for key, name in _NAMES.items():
        # One that its own tenant cannot use is not sent, but may be known elsewhere: without a line's end, say.
        value = environment.get(found[key].name, "").strip() if key in found else ""
        if len(value) >= SECRET_LENGTH_MIN:
            who = environment.get(found[name].name) if name is not None and name in found else None
            told = f"{found[key].where}: {key}, {found[key].text}"
            yield Credential(SecretStr(value), None if who is None else SecretStr(who), told)
