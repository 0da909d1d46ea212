"""The example of clusters without a bill, as `make run` runs it, with answers that a real Prometheus gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import polars as pl

from tests.doubles import recorded
from tests.doubles.exporter import example_rows
from tests.doubles.prometheus import prometheus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "fixtures" / "cost_models"
ANSWERS = FOLDER / "answers.jsonl"
TODAY = "2025-10-11"
ADDRESS = "http://127.0.0.1:19473"


def prorata(folder: Path, *words: str) -> str:
    """What a command says that goes well."""
    command = [sys.executable, "-W", "error", "-m", "cli", *words[:1], "-c", str(folder / "prorata.yaml"), *words[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder: Path, url: str, *words: str, teams: str = "") -> str:
    """What `prorata run` says of the example, with the answers at this address; `teams` are its tenants', too."""
    text = (FOLDER / "prorata.yaml").read_text(encoding="utf-8")
    assert ADDRESS in text
    text = text.replace(ADDRESS, url).replace("../../../prorata-data-cost-models", "data")
    text = text.replace("    teams:\n", f"    teams:\n{teams}")
    (folder / "prorata.yaml").write_text(f"{text}    teams:\n{teams}" if teams else text, encoding="utf-8")
    return prorata(folder, "run", "--today", TODAY, *words)


def test_the_example_and_its_teams(tmp_path: Path) -> None:
    """One test, since the example takes seconds."""
    with recorded.replaying(recorded.read(ANSWERS)) as url:
        said = run(tmp_path, url, "--by", "team")
    check_lake(tmp_path / "data" / "lake")
    check_teams(tmp_path, said)
    # Somebody moves: nobody is asked, since nobody is there, and no day is calculated again.
    (tmp_path / "tags.csv").write_text("identity,key,value\nUser:bob,team,sales\ncrm,team,sales\n", encoding="utf-8")
    said = run(tmp_path, "http://127.0.0.1:9", teams="      default: others\n      tags: tags.csv\n")
    assert said.count("nothing to do: 10 days up to date") == 2
    assert by_team(tmp_path) == {
        ("orders-kafka", "shop"): "52.35",
        ("orders-kafka", "sales"): "47.85",
        ("main-postgres", "sales"): "60.9",
        ("main-postgres", "others"): "62.7",
    }


def check_lake(lake: Path) -> None:
    lines, charges = (pl.read_parquet(lake / table / "**" / "*.parquet") for table in ("billing", "chargeback"))
    by_product = lines.group_by("product_type").agg(pl.col("amount").sum()).sort("product_type")
    found = {product: f"{amount:f}" for product, amount in by_product.rows()}
    # 5 days at 7.20 and 5 at 8.64; an hour of the ninth day was not scraped.
    assert found == {
        "PG_COMPUTE": "120.000000000000",
        "PG_STORAGE": "3.600000000000",
        "SELF_KAFKA_COMPUTE": "79.200000000000",
        "SELF_KAFKA_NETWORK_EGRESS": "7.200000000000",
        "SELF_KAFKA_NETWORK_INGRESS": "1.800000000000",
        "SELF_KAFKA_STORAGE": "12.000000000000",
    }
    assert charges["amount"].sum() == lines["amount"].sum()
    assert sorted(set(charges["identity_id"])) == ["User:alice", "User:bob", "crm", "shop"]


def by_team(folder: Path) -> dict[tuple[str, str], str]:
    """(tenant, team) -> total, as the report has it."""
    rows = json.loads(prorata(folder, "report", "cost_by_team", "--format", "json"))
    return {(row["tenant_id"], row["team"]): f"{Decimal(row['total']).normalize():f}" for row in rows}


def check_teams(folder: Path, said: str) -> None:
    tables = said.split(" days calculated; ")
    rows = [[text.split() for text in table.splitlines()] for table in tables]
    kafka, postgres = ({row[0]: row[-1] for row in of_tenant if row} for of_tenant in rows[1:])
    assert {team: kafka[team] for team in ("shop", "UNASSIGNED", "total")} == {
        "shop": "52.35",
        "UNASSIGNED": "47.85",
        "total": "100.2",
    }
    assert (postgres["UNASSIGNED"], postgres["total"]) == ("123.6", "123.6")
    assert by_team(folder) == {
        ("orders-kafka", "shop"): "52.35",
        ("orders-kafka", "UNASSIGNED"): "47.85",
        ("main-postgres", "UNASSIGNED"): "123.6",
    }


def test_the_answers_are_those_of_a_prometheus(tmp_path: Path) -> None:
    """If questions change: copy the file that this writes over that of the example."""
    answers: recorded.Answers = {}
    with prometheus(example_rows(10), tmp_path / "prometheus") as target, recorded.recording(target, answers) as url:
        run(tmp_path, url)
    recorded.write(tmp_path / "answers.jsonl", answers)
    told = recorded.read(ANSWERS)
    for one in (answers, told):
        # The version of the program, and when it was built.
        one.pop("/api/v1/status/buildinfo ")
    assert answers.keys() == told.keys()
    assert {asked: json.loads(body) for asked, body in answers.items()} == {
        asked: json.loads(body) for asked, body in told.items()
    }
