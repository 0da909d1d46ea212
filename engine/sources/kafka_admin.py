"""What a Kafka cluster itself says of its brokers and topics, by librdkafka (the extra `kafka`).

No amount depends on it. Who its principals are, Kafka does not say: that is in metrics, or named in the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import SecretStr

from engine.config import KafkaAdmin
from engine.errors import ConfigError, ContractError, SourceError, fault, shown
from engine.sources.answers import Answer, clean
from engine.sources.landing import Landing
from engine.sources.secrets import Secrets, in_brackets

NAME = "metadata"
"""The name under which a cluster's metadata are landed."""


def properties(admin: KafkaAdmin, username: SecretStr | None, password: SecretStr | None) -> dict[str, str]:
    """What librdkafka has to know to ask."""
    encrypted, known = admin.security == "tls", username is not None and password is not None
    found = {
        "bootstrap.servers": ",".join(admin.bootstrap_servers),
        "security.protocol": f"{'sasl_' if known else ''}{'ssl' if encrypted else 'plaintext'}",
        "client.id": "prorata",
    }
    if username is not None and password is not None:
        found |= {
            "sasl.mechanism": admin.mechanism,
            "sasl.username": username.get_secret_value(),
            "sasl.password": password.get_secret_value(),
        }
    if encrypted and admin.ca_bundle is not None:
        found["ssl.ca.location"] = str(admin.ca_bundle)
    return found


def fetch(given: Mapping[str, str], landing: Landing, where: str, timeout_seconds: float, known: Secrets) -> None:
    """Land a cluster's metadata, in the place of those of the last run.

    SourceError if it does not give them, or if one of the `known` credentials is in them, be it that of another
    endpoint: as they come, or not at all.
    """
    try:
        from confluent_kafka import KafkaException  # noqa: PLC0415  # only who asks for it needs the extra
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415  # an extra, which may not be there
    except ImportError as error:
        raise ConfigError(
            fault(where, "confluent-kafka is not installed", "the extra kafka, prorata[kafka]")
        ) from error
    try:
        # What it would write to stderr by itself is in the exception, too.
        found = AdminClient({**given, "log_level": "0"}).list_topics(timeout=timeout_seconds)
    except KafkaException as error:
        told = error.args[0].str() if error.args else ""
        seen = f"{given['bootstrap.servers']}: {shown(known.hidden(told), limit=200)}"
        raise SourceError(fault(where, seen, "the metadata of a Kafka cluster")) from error
    content = {
        "cluster_id": found.cluster_id,
        "brokers": [{"id": one.id, "host": one.host, "port": one.port} for one in found.brokers.values()],
        "topics": [{"name": one.topic, "partitions": len(one.partitions)} for one in found.topics.values()],
    }
    text = json.dumps(content)
    if (name := known.met(text)) is not None:
        seen = f"{given['bootstrap.servers']}: metadata that repeat credentials of the configuration{in_brackets(name)}"
        raise SourceError(fault(where, seen, "metadata without them, or credentials that are no common word"))
    landing.write(NAME, [Answer(NAME, 200, text)])


def parse(pages: list[Answer], where: str) -> Iterator[tuple[str, str]]:
    """The landed metadata -> (type, name) of every broker and topic, without those that are Kafka's own."""
    try:
        for page in pages:
            body = page.body
            yield from (("broker", str(one["id"])) for one in body["brokers"])
            yield from (("topic", clean(one["name"])) for one in body["topics"] if not one["name"].startswith("__"))
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(fault(where, "metadata of another form", "brokers and topics")) from error
