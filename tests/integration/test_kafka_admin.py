"""Brokers and topics of a Kafka cluster as it says itself: of librdkafka's mock cluster, which speaks Kafka over TCP.

The mock asks for neither TLS nor SASL, knows no ACLs, and never refuses anybody: what a real cluster says to wrong
credentials, and whether its metadata leave out topics that a principal may not see, it cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Producer
from pydantic import SecretStr

from engine.config import KafkaAdmin
from engine.errors import ConfigError, ContractError, SourceError
from engine.sources import kafka_admin
from engine.sources.answers import Answer
from engine.sources.landing import Landing
from engine.sources.secrets import Credential, Secrets
from tests.integration.cost_tenants import FIRST, Root, kafka


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    """Where a cluster of three brokers is, with the topics orders and __consumer_offsets."""
    producer = Producer({"test.mock.num.brokers": 3, "log_level": 0})
    for topic in ("orders", "__consumer_offsets"):
        producer.produce(topic, b"x")
    assert producer.flush(10) == 0
    yield [f"{one.host}:{one.port}" for one in producer.list_topics(timeout=10).brokers.values()]
    producer.flush()


def tenant(servers: list[str], folder: Path, *, timeout: str = "5") -> Root:
    source = {
        "rates": {"compute_hourly_rate": "1"},
        "identity_source": "static",
        "static_identities": ["ops"],
        "admin": {"bootstrap_servers": servers, "security": "plaintext", "timeout_seconds": timeout},
    }
    return Root(folder, kafka("k", None, source=source, lookback_days="2"))


def test_brokers_and_topics_are_resources(servers: list[str], tmp_path: Path) -> None:
    root = tenant(servers, tmp_path)
    assert root.run(FIRST).faults == ()
    named = root.table("resources").select("id", "type", "parent")
    assert named.rows() == [
        ("k", "kafka_cluster", ""),
        *((f"k/broker/{number}", "broker", "k") for number in (1, 2, 3)),
        ("k/topic/orders", "topic", "k"),
    ]
    assert root.days("k").keys() == {"2025-09-29", "2025-09-30"}


def test_a_cluster_that_is_not_there_is_a_line_and_holds_up_no_day(tmp_path: Path) -> None:
    summary = tenant(["127.0.0.1:9"], tmp_path, timeout="0.5").run(FIRST)
    [fault] = summary.faults
    assert fault.startswith("tenant k: source: admin: 127.0.0.1:9: ")
    assert fault.isprintable()
    assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (11, 2, 0)


def test_credentials_go_by_sasl_and_tls_is_the_default() -> None:
    admin = KafkaAdmin.model_validate({"bootstrap_servers": ["a:1", "b:2"], "ca_bundle": "/ca.pem"})
    assert kafka_admin.properties(admin, None, None) == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "ssl",
        "client.id": "prorata",
        "ssl.ca.location": "/ca.pem",
    }
    found = kafka_admin.properties(admin, SecretStr("me"), SecretStr("secret"))
    assert (found["security.protocol"], found["sasl.mechanism"]) == ("sasl_ssl", "SCRAM-SHA-512")
    assert (found["sasl.username"], found["sasl.password"]) == ("me", "secret")


def test_metadata_of_another_form_are_a_line() -> None:
    with pytest.raises(ContractError, match="here: metadata of another form; expected brokers and topics"):
        list(kafka_admin.parse([Answer("metadata", 200, '{"brokers": [{}], "topics": []}')], "here"))


@pytest.mark.parametrize(
    ("where_to", "password", "told"),
    [
        ("", "orders", "metadata that repeat credentials of the configuration; expected metadata without them, or"),
        ("127.0.0.1:9", "transport", "Broker *** failure"),
    ],
)
def test_a_password_is_neither_landed_nor_said(
    servers: list[str], tmp_path: Path, where_to: str, password: str, told: str
) -> None:
    landing = Landing(tmp_path)
    given = {"bootstrap.servers": where_to or servers[0], "security.protocol": "plaintext"}
    with pytest.raises(SourceError) as caught:
        kafka_admin.fetch(given, landing, "k", 1, Secrets([Credential(SecretStr(password))]))
    assert told in str(caught.value)
    assert password not in str(caught.value)
    assert landing.names() == []
    known = Secrets([Credential(SecretStr("another"))])
    kafka_admin.fetch(given | {"bootstrap.servers": servers[0]}, landing, "k", 5, known)
    assert landing.names() == [kafka_admin.NAME]


def test_a_variable_that_cannot_be_used_is_told_before_the_cluster_is_asked(tmp_path: Path) -> None:
    root = tenant(["127.0.0.1:9"], tmp_path, timeout="0.5")
    [made] = yaml.safe_load(root.file.read_text())["tenants"]
    root.write(made | {"metrics": {"url": "http://127.0.0.1:9", "username": "${WHO}", "password": "${WHAT}"}})
    with pytest.raises(ConfigError) as error:
        root.run(FIRST, environment={"WHO": "reader", "WHAT": "short"})
    [told] = error.value.faults
    assert told.startswith("tenant k: metrics: password: environment variable WHAT has fewer than 8 letters")
    assert not (root.root / "raw").exists()
