"""The example of clusters without a bill, as `make run` runs it, with answers that a real Prometheus gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.doubles import recorded
from tests.doubles.exporter import example_rows
from tests.doubles.prometheus import prometheus

pytestmark = pytest.mark.xdist_group("cost_models")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "fixtures" / "cost_models"
ANSWERS = FOLDER / "answers.jsonl"
TODAY = "2025-10-11"
ADDRESS = "http://127.0.0.1:19473"


def run(folder: Path, url: str) -> dict[str, Any]:
    """What `prorata run` says of the example, with the answers at this address."""
    config = folder / "prorata.yaml"
    text = (FOLDER / "prorata.yaml").read_text(encoding="utf-8")
    assert ADDRESS in text
    config.write_text(text.replace(ADDRESS, url).replace("../../../prorata-data-cost-models", "data"), encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "cli", "run", "-c", str(config), "--today", TODAY, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_example(tmp_path: Path) -> None:
    with recorded.replaying(recorded.read(ANSWERS)) as url:
        run(tmp_path, url)
    lines = pl.read_parquet(tmp_path / "data" / "lake" / "billing" / "**" / "*.parquet")
    charges = pl.read_parquet(tmp_path / "data" / "lake" / "chargeback" / "**" / "*.parquet")
    by_product = lines.group_by("product_type").agg(pl.col("amount").sum()).sort("product_type")
    found = {product: f"{amount:f}" for product, amount in by_product.rows()}
    # 5 days at 7.20 and 5 at 8.64; an hour of the ninth day, and the two around it in part, were not scraped.
    assert found.pop("SELF_KAFKA_NETWORK_INGRESS") <= "1.8"
    assert found.pop("SELF_KAFKA_NETWORK_EGRESS") <= "7.2"
    assert found == {
        "PG_COMPUTE": "120.000000000000",
        "PG_STORAGE": "3.600000000000",
        "SELF_KAFKA_COMPUTE": "79.200000000000",
        "SELF_KAFKA_STORAGE": "12.000000000000",
    }
    assert charges["amount"].sum() == lines["amount"].sum()
    assert sorted(set(charges["identity_id"])) == ["User:alice", "User:bob", "crm", "shop"]


def test_the_answers_are_those_of_a_prometheus(tmp_path: Path) -> None:
    """If questions change: copy the file that this writes over that of the example."""
    answers: recorded.Answers = {}
    with prometheus(example_rows(10), tmp_path / "prometheus") as target, recorded.recording(target, answers) as url:
        run(tmp_path, url)
    told = recorded.read(ANSWERS)
    for one in (answers, told):
        # The version of the program, and when it was built.
        one.pop("/api/v1/status/buildinfo ")
    recorded.write(tmp_path / "answers.jsonl", answers)
    assert answers.keys() == told.keys()
    assert {asked: json.loads(body) for asked, body in answers.items()} == {
        asked: json.loads(body) for asked, body in told.items()
    }
