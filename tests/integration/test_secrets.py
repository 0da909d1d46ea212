"""No secret of ours in anything that is kept or said, through the command line; nor of one that is too short."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import Producer

from tests.doubles.confluent_cloud import Server
from tests.doubles.exporter import Cluster
from tests.doubles.prometheus import prometheus
from tests.integration.confluent import VARIABLES, Tenant
from tests.integration.cost_tenants import FIRST, Between, Root, kafka, metrics
from tests.integration.measured import TODAY
from tests.integration.said import Said
from tests.unit.scripted import Reply, Request

SHORT, LONG = "pa55wrd", "pa55word"
BASIC = {"username": "${WHO}", "password": "${WHAT}"}
BEARER = {"bearer": "${WHAT}"}
SENT = [base64.b64encode(f"reader:{password}".encode()).decode().rstrip("=") for password in (SHORT, LONG)]
REPEATED = "an answer that repeats credentials of the configuration"
TOLD = {
    "label": REPEATED,
    "warning": REPEATED,
    "execution": REPEATED,
    "error": "500 Internal Server Error 'who is ***?'",
}
"""Where a server repeats a secret, and what is told of it."""
ON = ("--today", str(TODAY))


def found(folder: Path, said: Iterable[Said], words: Sequence[str] = (SHORT, LONG, *SENT)) -> list[str]:
    """Where under a folder, but for what the user wrote, or in what was said, one of the secrets stands."""
    texts = {f"command {number}": f"{one.out}{one.err}".encode() for number, one in enumerate(said)}
    for file in (one for one in folder.rglob("*") if one.is_file() and one.name not in {".env", "prorata.yaml"}):
        texts[str(file)] = file.read_bytes()
        if file.suffix == ".zst":
            with pa.CompressedInputStream(str(file), "zstd") as stream:
                texts[f"{file}, unpacked"] = stream.read()
        if file.suffix == ".parquet":
            texts[f"{file}, unpacked"] = str(pl.read_parquet(file, hive_partitioning=False).to_dicts()).encode()
    return [place for place, text in texts.items() if any(one.encode() in text for one in words)]


def refused(said: Said, where: str, variable: str) -> bool:
    """Whether all that a command says is that a variable has too short a secret."""
    line = f"{where}: environment variable {variable} has fewer than 8 letters; expected a longer secret, which can be"
    lines = [text for text in f"{said.out}{said.err}".splitlines() if "fewer than 8 letters" in text]
    return said.code == 10 and bool(lines) and all(line in text for text in lines)


def test_a_secret_of_the_api_that_cannot_be_told_from_data_is_refused(tenant: Tenant, server: Server) -> None:
    given = VARIABLES | {"FLINK_EU_SECRET": SHORT}
    said = [Said(tenant, "run", "--json", *ON, **given), Said(tenant, "check", "--json", **given)]
    where = "source: flink europe-west1: api_secret"
    assert [refused(one, where, "FLINK_EU_SECRET") for one in said] == [True, True]
    assert (server.counted(), found(tenant.folder, said)) == (0, [])


CANNOT_BE_SENT = {
    "CLOUD_KEY": ("source: api_key", "KEY\udcdfCANARY", "is not UTF-8"),
    "CLOUD_SECRET": ("source: api_secret", "canary-in-a-file\n", "ends in a line end"),
    "FLINK_US_SECRET": ("source: flink us-east-1: api_secret", "canary-in-a-file\r\n", "ends in a line end"),
    "FLINK_EU_SECRET": (
        "source: flink europe-west1: api_secret",
        "canary and more",
        "has a blank, or another character",
    ),
    "WHO": ("metrics: username", "canäry", "has a blank, or another character"),
    "WHAT": ("metrics: password", "canary\ncanary", "has a blank, or another character"),
}
"""Variable -> where a tenant names it, what is in it, and what is told of that."""


def test_what_cannot_be_sent_is_refused_before_anything_is_asked(tenant: Tenant, server: Server) -> None:
    tenant.write(metrics=tenant.tenant["metrics"] | BASIC)
    given = VARIABLES | {name: value for name, (_, value, _) in CANNOT_BE_SENT.items()}
    for words in (["run", "--json", *ON], ["check"], ["check", "--json"]):
        said = Said(tenant, *words, **given)
        told = f"{said.out}{said.err}"
        assert said.code == 10
        for name, (where, _, seen) in CANNOT_BE_SENT.items():
            assert f"{where}: environment variable {name} {seen}" in told
        assert ("canary" in told.lower(), "every variable is set" in told) == (False, False)
    assert (server.counted(), found(tenant.folder, [], ["canary", "CANARY"])) == (0, [])


def echoing(between: Between, word: str, way: str) -> None:
    """Answers repeat what they were asked with: read out of the header, and in one of these places."""

    def reply(request: Request) -> Reply:
        kind, _, given = request.headers["Authorization"].partition(" ")
        secret = base64.b64decode(given).decode().partition(":")[2] if kind == "Basic" else given
        good = between.passed(request)
        text = good.body if isinstance(good.body, str) else good.body.decode()
        if way == "error":
            return Reply(500, f"who is {secret}?")
        if way == "label":
            return Reply(body=text.replace(f'"{word}"', f'"{secret}"'))
        if way == "warning":
            return Reply(body=text.replace('"status":', f'"warnings":["{secret} was used"],"status":', 1))
        return Reply(body=f'{{"status":"error","errorType":"{way}","error":"no {secret} here"}}')

    between.reply = reply


def test_a_secret_for_metrics_is_in_nothing_that_is_kept_or_said(tenant: Tenant, server: Server, measured: str) -> None:
    between, who = Between(measured), VARIABLES | {"WHO": "reader"}
    with between.serving() as script:
        tenant.write(metrics=tenant.tenant["metrics"] | {"url": script.url} | BASIC)
        echoing(between, "u-alice", "label")
        said = [Said(tenant, *words, "--json", **who, WHAT=SHORT) for words in (["run", *ON], ["check"])]
        assert [refused(one, "metrics: password", "WHAT") for one in said] == [True, True]
        assert (server.counted(), script.asked) == (0, [])
        for place in ("label", "error"):
            echoing(between, "u-alice", place)
            said.append(Said(tenant, "run", *ON, "--force", "--json", **who, WHAT=LONG))
            assert (said[-1].code, TOLD[place] in said[-1].err, TOLD[place] in said[-1].out) == (11, True, True)
        between.reply = between.passed
        said.append(Said(tenant, "run", *ON, "--force", **who, WHAT=LONG))
        assert said[-1].code == 0, said[-1].err
    said += [Said(tenant, "recalculate", "--replay", *ON), Said(tenant, "status", "--json"), Said(tenant, "plan")]
    assert "u-alice" in set(tenant.table("usage")["principal"])
    assert found(tenant.folder, said) == []


def test_a_secret_of_a_cost_model_is_in_nothing_that_is_kept_or_said(tmp_path: Path) -> None:
    on, folder = ("--today", str(FIRST + timedelta(days=1))), tmp_path / "root"
    with prometheus(Cluster("minute", 1).rows(), tmp_path / "prometheus") as url:
        between = Between(url)
        with between.serving() as script:
            root = Root(folder, kafka("minute", script.url, lookback_days="1", metrics=BEARER))
            echoing(between, "User:alice", "label")
            said = [Said(root, *words, "--json", WHAT=SHORT) for words in (["run", *on], ["check"])]
            assert [refused(one, "metrics: bearer", "WHAT") for one in said] == [True, True]
            assert script.asked == []
            for place, told in TOLD.items():
                echoing(between, "User:alice", place)
                said.append(Said(root, "run", *on, "--force", "--json", WHAT=LONG))
                assert (said[-1].code, told in said[-1].err, told in said[-1].out) == (11, True, True)
            between.reply = between.passed
            said.append(Said(root, "run", *on, "--force", WHAT=LONG))
            assert said[-1].code == 0, said[-1].err
    said += [Said(root, "recalculate", *on), Said(root, "status", "--json"), Said(root, "plan")]
    assert "User:alice" in set(root.table("usage")["principal"])
    assert found(folder, said) == []


def test_a_password_for_a_kafka_cluster_that_cannot_be_told_from_data_is_refused(tmp_path: Path) -> None:
    admin = {"bootstrap_servers": ["127.0.0.1:9"], "username": "${WHO}", "password": "${WHAT}"}
    source = {"rates": {"compute_hourly_rate": "1"}, "identity_source": "static", "static_identities": ["ops"]}
    root = Root(tmp_path, kafka("k", None, lookback_days="1", source={**source, "admin": admin}))
    said = [Said(root, *words, "--json", WHO="reader", WHAT=SHORT) for words in (["run"], ["check"])]
    assert [refused(one, "source: admin: password", "WHAT") for one in said] == [True, True]
    assert found(tmp_path, said) == []


OTHER = {"OTHER": "reader", "OTHERS": "another-canary-77"}
"""What opens the Prometheus of another tenant of the configuration."""
OTHERS = [OTHER["OTHERS"], base64.b64encode(b"reader:another-canary-77").decode().rstrip("=")]


def other() -> dict[str, Any]:
    """That tenant; whatever it is, it is not asked for."""
    return kafka("other", "http://127.0.0.1:9", metrics={"username": "${OTHER}", "password": "${OTHERS}"})


def repeating(between: Between, before: str, word: str) -> None:
    """Answers have a word behind another one."""

    def reply(request: Request) -> Reply:
        good = between.passed(request)
        text = good.body if isinstance(good.body, str) else good.body.decode()
        return Reply(good.status, text.replace(before, f"{before}{word}-"))

    between.reply = reply


@pytest.mark.parametrize("word", OTHERS, ids=["password", "Basic"])
@pytest.mark.parametrize("client", ["api", "flink", "metrics"])
def test_what_opens_any_endpoint_of_any_tenant_is_kept_from_no_answer(
    tenant: Tenant, server: Server, measured: str, client: str, word: str
) -> None:
    flink, _, path = server.flink_url.partition("/{")
    url, before = {"api": (server.url, "key of "), "flink": (flink, '"name": "'), "metrics": (measured, '"u-')}[client]
    between, given = Between(url), tenant.tenant
    repeating(between, before, word)
    with between.serving() as script:
        source, asked = dict(given["source"]), given["metrics"]
        match client:
            case "api":
                source |= {"url": script.url}
            case "flink":
                source["flink"] |= {"url": f"{script.url}/{{{path}"}
            case _:
                asked |= {"url": script.url}
        Root.write(tenant, given | {"source": source, "metrics": asked}, other())  # type: ignore[arg-type]
        commands = ["run", "--tenant", "conf", "--force", *ON, "--json"]
        said = Said(tenant, *commands, **VARIABLES, **OTHER)
        assert (said.code, found(tenant.folder, [said], [word])) == (11, [])
        assert f"{REPEATED} (tenant other: metrics: password, ${{OTHERS}}); expected" in said.err
        # Where nobody sets that variable it is a word like any other, and nothing is amiss.
        said = Said(tenant, *commands, **VARIABLES)
        assert (said.code, found(tenant.folder, [said], [word]) != []) == (0, True), said.err


@pytest.mark.parametrize("word", OTHERS, ids=["password", "Basic"])
def test_what_opens_another_tenant_s_prometheus_is_not_kept_by_a_cost_model(tmp_path: Path, word: str) -> None:
    on = ("--today", str(FIRST + timedelta(days=1)), "--tenant", "minute", "--force", "--json")
    with prometheus(Cluster("minute", 1).rows(), tmp_path / "prometheus") as url:
        between = Between(url)
        repeating(between, "User:", word)
        with between.serving() as script:
            root = Root(tmp_path / "root", kafka("minute", script.url, lookback_days="1"), other())
            said = Said(root, "run", *on, **OTHER)
            assert (said.code, REPEATED in said.err, found(root.root, [said], [word])) == (11, True, [])
            said = Said(root, "run", *on)
            assert (said.code, found(root.root, [said], [word]) != []) == (0, True), said.err


@pytest.mark.parametrize("word", ["canary-of-metrics", *OTHERS], ids=["own Prometheus", "password", "Basic"])
def test_what_opens_a_prometheus_is_not_kept_with_what_kafka_says(tmp_path: Path, word: str) -> None:
    producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    producer.produce(f"of-{word}", b"x")
    assert producer.flush(10) == 0
    servers = [f"{one.host}:{one.port}" for one in producer.list_topics(timeout=10).brokers.values()]
    admin = {"bootstrap_servers": servers, "security": "plaintext", "timeout_seconds": "5"}
    source = {"rates": {"compute_hourly_rate": "1"}, "identity_source": "static", "static_identities": ["ops"]}
    model = kafka("k", "http://127.0.0.1:9", lookback_days="1", source={**source, "admin": admin}, metrics=BEARER)
    root, run = Root(tmp_path / "root", model, other()), ("run", *ON, "--tenant", "k", "--json")
    said = Said(root, *run, **OTHER, WHAT="canary-of-metrics")
    assert ("metadata that repeat credentials" in said.err, found(root.root, [said], [word])) == (True, [])
    Root.write(root, model | {"metrics": metrics("http://127.0.0.1:9")})
    said = Said(root, *run)
    assert ("metadata that repeat" in said.err, found(root.root, [said], [word]) != []) == (False, True), said.err
