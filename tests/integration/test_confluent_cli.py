"""The command line over tenants whose bill comes from an API: plan, status, check, explain, several at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.doubles import confluent_cloud as faults
from tests.doubles.bundled import bundled, planned_total
from tests.doubles.confluent_cloud import COSTS, Server, served
from tests.doubles.front import WAYS, front, reader
from tests.doubles.organization import SPELLINGS
from tests.integration.confluent import FIRST, VARIABLES, Tenant, day
from tests.integration.confluent import prometheus as metrics_at
from tests.integration.said import Said

DAYS = 3
TODAY = day(DAYS)


@pytest.fixture
def server() -> Iterator[Server]:
    with served(bundled(FIRST, DAYS)) as found:
        yield found


@pytest.fixture
def tenant(tmp_path: Path, server: Server) -> Tenant:
    """A tenant whose secrets are in a file beside the configuration; cutoff and lookback leave a day on either side."""
    made = Tenant(tmp_path / "conf", server, lookback_days="5", cutoff_days="1")
    (made.folder / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in VARIABLES.items()))
    return made


def test_a_run_gathers_and_says_what_it_did(tenant: Tenant) -> None:
    said = Said(tenant, "run", "--today", str(TODAY))
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].startswith("conf: 2 days calculated; ")
    difference = next(line for line in said.out.splitlines() if line.startswith("difference"))
    assert difference.split() == ["difference", "0", "USD"]
    assert "conf: gathering 2025-08-30 to before 2025-09-03" in said.err
    again = Said(tenant, "run", "--today", str(TODAY))
    assert (again.code, again.out) == (0, "conf: nothing to do: 2 days up to date\n")


def test_json_counts_requests_and_days_that_wait(tenant: Tenant, server: Server) -> None:
    tenant.write(metrics={"url": "http://127.0.0.1:9", "attempts": "1"})
    said = Said(tenant, "run", "--today", str(TODAY), "--json")
    found = said.document["tenants"][0]
    assert (said.code, found["exit_code"], found["days_pending"], found["days_calculated"]) == (11, 11, 2, 0)
    assert found["requests"] > server.counted()
    assert "metrics bytes_in" in found["errors"][0]
    assert "prorata: tenant conf: metrics bytes_in" in said.err


def plan(tenant: Tenant, *words: str) -> list[str]:
    said = Said(tenant, "plan", "--today", str(TODAY), *words)
    assert (said.code, said.err) == (0, "")
    return said.out.splitlines()


def test_a_plan_says_of_every_day_what_will_become_of_it_and_why(tenant: Tenant, server: Server) -> None:
    first = plan(tenant)
    assert first == [
        "conf (confluent_cloud): 4 days to gather, 0 to calculate",
        "  2025-08-30 to 2025-09-02  4 days: gathered: lies in the window of lookback_days and cutoff_days;"
        " not calculated: no lines are known",
        "  2025-09-03 to 2025-09-04  2 days: not gathered: younger than cutoff_days;"
        " not calculated: no lines are known",
    ]
    assert not tenant.root.exists()
    Said(tenant, "run", "--today", str(TODAY))
    server.forget()
    tenant.write(lookback_days="2")
    assert plan(tenant, "--explain")[1:] == [
        "  2025-09-01  not gathered: older than lookback_days; what is stored stays; not calculated: up to date",
        "  2025-09-02  gathered: lies in the window of lookback_days and cutoff_days; not calculated: up to date",
        "  2025-09-03  not gathered: younger than cutoff_days; not calculated: no lines are known",
        "  2025-09-04  not gathered: younger than cutoff_days; not calculated: no lines are known",
    ]
    tenant.write(metrics={"url": "http://127.0.0.1:9", "attempts": "1"})
    assert "calculated: metrics are to be fetched first" in plan(tenant)[1]
    Said(tenant, "run", "--today", str(TODAY))
    assert "metrics failed and are to be fetched again first (" in plan(tenant)[1]
    assert "attempt 1 of 2" in plan(tenant)[1]
    Said(tenant, "run", "--today", str(TODAY))
    assert "up to date, without metrics that were given up (" in plan(tenant)[1]
    found = json.loads(Said(tenant, "plan", "--today", str(TODAY), "--json").out)["tenants"][0]
    assert {(one["gather"], one["gather_reason"], one["calculate_reason"]) for one in found["days"]} == {
        (False, "before_window", "given_up"),
        (True, "in_window", "given_up"),
        (False, "too_recent", "no_billing"),
    }


def test_suspension_is_seen_in_run_plan_status_and_check(tenant: Tenant, server: Server) -> None:
    server.script(COSTS, faults.status(500), times=4)
    for _ in range(2):
        assert Said(tenant, "run", "--today", str(TODAY)).code == 11
    told = "gathering is suspended since 2025-09-04T00:00:00Z, after 2 failures in a row"
    run = Said(tenant, "run", "--today", str(TODAY))
    assert (run.code, told in run.err, "`prorata run --force`" in run.err) == (11, True, True)
    assert told in "\n".join(plan(tenant))
    assert "gathering is suspended" in plan(tenant)[2]
    assert told in Said(tenant, "status").out
    assert told in Said(tenant, "check").out
    assert Said(tenant, "run", "--force", "--today", str(TODAY)).code == 0
    assert "suspended" not in Said(tenant, "status").out


def test_status_and_check_tell_of_gathers_and_credentials(tenant: Tenant) -> None:
    check = Said(tenant, "check")
    assert (check.code, check.err) == (0, "")
    assert "ok       conf: credentials: every variable is set" in check.out
    assert "ok       conf: gather: nothing is gathered yet" in check.out
    Said(tenant, "run", "--today", str(TODAY))
    status = Said(tenant, "status").out
    assert "last gather 2025-09-04T00:00:00Z, 2025-08-30 to before 2025-09-03: done" in status
    found = Said(tenant, "status", "--json").document["tenants"][0]["gathers"]
    assert (found["last"]["status"], found["malformed"], found["suspended"]) == ("done", 0, None)
    assert "all checks pass" in Said(tenant, "check").out
    (tenant.folder / ".env").write_text("CLOUD_KEY=x\n")
    check = Said(tenant, "check")
    assert (check.code, check.err.count("is not set")) == (10, 5)
    assert "environment variable CLOUD_SECRET is not set" in check.err


def test_the_environment_wins_over_the_file(tenant: Tenant) -> None:
    (tenant.folder / ".env").write_text("".join(f"{name}=another-one\n" for name in VARIABLES))
    assert Said(tenant, "run", "--today", str(TODAY)).code == 11
    assert Said(tenant, "run", "--today", str(TODAY), **VARIABLES).code == 0


def test_a_charge_is_explained_with_its_arithmetic(tenant: Tenant) -> None:
    Said(tenant, "run", "--today", str(TODAY))
    lines = tenant.table("chargeback").filter(product_type="KAFKA_NUM_CKU")["line_id"].unique()
    said = Said(tenant, "explain", str(lines[0]))
    assert said.code == 0, said.err
    assert "share 0.7 of the line" in said.out
    assert "decided the same by the configuration as it is now" in said.out
    assert ": equal" in said.out


def test_tenants_are_run_side_by_side_and_one_that_fails_is_not_another_s(tenant: Tenant) -> None:
    good = tenant.tenant
    bad = good | {"id": "bad", "source": good["source"] | {"url": "http://127.0.0.1:9"}}
    tenants = [good | {"id": "a"}, bad, good | {"id": "z"}]
    tenant.file.write_text(yaml.safe_dump({"root": "data", "max_parallel_tenants": "3", "tenants": tenants}))
    said = Said(tenant, "run", "--today", str(TODAY + timedelta(days=1)))
    assert said.code == 1
    # In the order of the configuration, whoever was done first.
    heads = [line for line in said.out.splitlines() if line.startswith(("a: ", "z: ", "bad: "))]
    assert [line[:22] for line in heads] == ["a: 3 days calculated; ", "z: 3 days calculated; "]
    assert "no answer" in said.err
    found = Said(tenant, "run", "--json", "--today", str(TODAY + timedelta(days=1))).document["tenants"]
    assert [(one["tenant_id"], one["exit_code"]) for one in found] == [("a", 0), ("bad", 11), ("z", 0)]
    assert sum(tenant.total("chargeback", name) for name in ("a", "z")) == 2 * planned_total(DAYS)


def nested(levels: int) -> object:
    """As many objects, one in the other."""
    value: object = 1
    for _ in range(levels):
        value = {"in": value}
    return value


def no_url(page: dict[str, Any]) -> dict[str, Any]:
    return page | {"metadata": {"next": "http://[x?page_token=1"}}


def deep_costs(page: dict[str, Any]) -> dict[str, Any]:
    return page | {"data": [one | {"tier_dimensions": nested(450)} for one in page["data"]]}


def deep_connectors(page: dict[str, Any]) -> dict[str, Any]:
    return page | {"deep": {"info": {"config": nested(450)}}}


@pytest.mark.parametrize(
    ("prefix", "fault", "told"),
    [
        (COSTS, faults.redirected("http://[bad"), "a redirect to what is no URL"),
        (COSTS, faults.changed(no_url), "metadata.next has no page_token"),
        (COSTS, faults.changed(deep_costs), "an answer nested too deeply"),
        ("/connect", faults.changed(deep_connectors), "an answer nested too deeply"),
        ("/iam", faults.redirected("//[x"), "a redirect to what is no URL"),
    ],
)
def test_an_answer_that_is_no_answer_is_one_line(
    tenant: Tenant, server: Server, prefix: str, fault: faults.Fault, told: str
) -> None:
    server.script(prefix, fault, times=1000)
    said = Said(tenant, "run", "--today", str(TODAY))
    assert (said.code, "Traceback" in said.err) == (11, False)
    assert [line for line in said.err.splitlines() if told in line] != []
    server.clear()
    assert Said(tenant, "run", "--today", str(TODAY)).code == 0


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_is_in_any_output(tenant: Tenant, server: Server, way: str) -> None:
    right, wrong = reader(way, "right"), reader(way, "wrong")
    # What is behind the door has no metrics: whoever is let in fails, too.
    with front(server.url, right.authorization) as url:
        tenant.write(metrics=metrics_at(url) | right.settings)
        # Days ask for metrics from the first run on.
        said = [Said(tenant, "run", "--today", str(TODAY), **wrong.environment)]
        server.script("/iam", faults.echoing(500), times=3)
        server.script("/iam", faults.revealing(401, SPELLINGS["URL"]), times=1000)
        said += [Said(tenant, "run", "--today", str(TODAY), **right.environment)]
        server.script(COSTS, faults.echoing(403), times=2)
        said += [Said(tenant, name, "--json", **wrong.environment) for name in ("run", "status", "check", "plan")]
    texts = "".join(one.out + one.err for one in said)
    texts += "".join(file.read_bytes().decode("latin-1") for file in (tenant.file.parent / "data").glob("state.db*"))
    assert texts.count(f"{url}/api/v1/status/buildinfo: 401 ") > 0
    assert f"GET {server.url}/iam" in texts
    secrets = [value for name, value in VARIABLES.items() if name.endswith("SECRET")]
    hidden = [way(text) for text in secrets for way in SPELLINGS.values()]
    hidden += [*right.canaries, *wrong.canaries, "CANARY-SETTING", "\x1b[31mbad"]
    assert [text for text in hidden if text in texts] == []
