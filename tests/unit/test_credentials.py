"""What a configuration's variables may hold."""

from __future__ import annotations

import pytest

from engine import credentials
from engine.config import Config
from engine.credentials import Variable, secret
from engine.errors import ConfigError
from tests.integration.cost_tenants import kafka

CANARY = "canary-77"


def config(*tenants: dict[str, object]) -> Config:
    return Config.model_validate({"root": "data", "tenants": list(tenants)})


def opened(cluster: str, **admin: str) -> dict[str, object]:
    """A tenant whose Kafka and whose Prometheus ask who it is."""
    asked = {"bootstrap_servers": ["kafka:9094"], "username": "${WHO}", "password": "${KAFKA}", **admin}
    return kafka(cluster, "http://prom", source={"admin": asked}, metrics={"bearer": "${BEARER}"})


@pytest.mark.parametrize("value", ["Straße € im Topf", "tab\tin it"])
def test_a_kafka_password_may_be_what_a_header_cannot_hold(value: str) -> None:
    [tenant] = config(opened("k")).tenants
    assert credentials.faults(tenant, {"WHO": "jörg", "KAFKA": value, "BEARER": CANARY}) == []
    [told] = credentials.faults(tenant, {"WHO": "me", "KAFKA": CANARY, "BEARER": value})
    assert told == (
        "tenant k: metrics: bearer: environment variable BEARER has a blank, or another character that cannot be sent;"
        " expected visible characters of ASCII"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (f"{CANARY}\n", "ends in a line end; expected the secret alone, without it"),
        (f"{CANARY}\r\n", "ends in a line end; expected the secret alone, without it"),
        (f"{CANARY}\udcff", "is not UTF-8; expected text in UTF-8"),
        (
            "short     ",
            "has fewer than 8 letters; expected a longer secret, which can be told from the words of answers that"
            " are kept",
        ),
        ("", "is not set; expected a value in the environment, or in a file .env beside the configuration"),
    ],
)
def test_a_kafka_password_may_not_be_what_nobody_means(value: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        secret(Variable("${KAFKA}", "k", "password", is_header=False), {"KAFKA": value})
    assert str(caught.value) == f"k: password: environment variable KAFKA {told}"
