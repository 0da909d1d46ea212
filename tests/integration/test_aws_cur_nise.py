"""Reports that another program generated, read by us and added up independently."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.frames import BILLING, check_rows
from engine.sources.aws_cur import Load, discover, load
from tests.functional.bills import ran
from tests.integration.reports import write_config

STATIC_REPORT = """
---
generators:
  - EC2Generator:
      start_date: MONTH-01
      end_date: MONTH-04
      resource_id: 60000000
      tags: {resourceTags/user:environment: prod, resourceTags/user:team: "Payments "}
      instance_type: {inst_type: m5.large, vcpu: 2, memory: 8 GiB, storage: EBS Only, family: General Purpose,
                      physical_cores: 1, cost: 0.096, rate: 0.096, saving: 0.061}
  - EC2Generator:
      start_date: MONTH-01
      end_date: MONTH-04
      resource_id: 60000001
      tags: {resourceTags/user:team: search}
      instance_type: {inst_type: c5.xlarge, vcpu: 4, memory: 8 GiB, storage: EBS Only, family: General Purpose,
                      physical_cores: 2, cost: 0.17, rate: 0.17}
  - EBSGenerator:
      start_date: MONTH-01
      end_date: MONTH-04
      resource_id: 61000000
      amount: 100
      rate: 0.1
      tags: {resourceTags/user:environment: prod, resourceTags/user:team: search}
  - S3Generator:
      start_date: MONTH-02
      end_date: MONTH-04
      amount: 10
      rate: 0.0231
      tags: {resourceTags/user:environment: dev}
accounts:
  payer: 9999999999999
  user: [1111111111111, 2222222222222]
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a generated report of two months, several files each."""
    folder = tmp_path_factory.mktemp("nise")
    for name in ("bucket", "tmp"):
        (folder / name).mkdir()
    for month in ("2025-09", "2025-10"):
        (folder / "static.yml").write_text(STATIC_REPORT.replace("MONTH", month))
        generate(folder, month)
    return folder / "bucket"


def generate(folder: Path, month: str) -> None:
    arguments = {
        "--static-report-file": "static.yml",
        "--start-date": f"{month}-01",
        "--end-date": f"{month}-04",
        "--file-row-limit": "100",
        "--aws-s3-bucket-name": "bucket",
        "--aws-s3-report-name": "cur",
        "--aws-s3-report-prefix": "prefix",
    }
    words = [word for pair in arguments.items() for word in pair]
    subprocess.run(
        [Path(sys.executable).with_name("nise"), "report", "aws", *words],
        cwd=folder,
        # It leaves its temporary files behind.
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        check=True,
        capture_output=True,
    )


def generated_lines(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.rglob("*.csv.gz")):
        with gzip.open(file) as packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
            yield from csv.DictReader(text)


def loads(folder: Path) -> list[Load]:
    return [load(assembly, "acme") for assembly in discover(folder, None)]


def sums(billing: pl.DataFrame) -> dict[tuple[str, str, str, str], Decimal]:
    """Amounts by day, account, product and team, as BILLING has them."""
    totals: dict[tuple[str, str, str, str], Decimal] = defaultdict(Decimal)
    for row in billing.iter_rows(named=True):
        team = json.loads(row["tags"]).get("team", "")
        totals[str(row["charge_date"]), row["sub_account_id"], row["product_category"], team] += row["amount"]
    return dict(totals)


def expected_sums(folder: Path) -> dict[tuple[str, str, str, str], Decimal]:
    """The same from the files themselves, each line rounded to 12 decimals."""
    totals: dict[tuple[str, str, str, str], Decimal] = defaultdict(Decimal)
    for line in generated_lines(folder):
        key = (
            line["lineItem/UsageStartDate"][:10],
            line["lineItem/UsageAccountId"],
            line["lineItem/ProductCode"],
            line.get("resourceTags/user:team", ""),
        )
        totals[key] += Decimal(line["lineItem/UnblendedCost"]).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)
    return dict(totals)


def exact_total(folder: Path) -> Decimal:
    return sum((Decimal(line["lineItem/UnblendedCost"]) for line in generated_lines(folder)), Decimal(0))


def test_a_generated_report_adds_up(reports: Path) -> None:
    september, october = loads(reports)
    billing = pl.concat([september.billing, october.billing])
    check_rows(billing, BILLING)
    assert sums(billing) == expected_sums(reports)
    assert {"Payments ", "search", ""} == {team for *_, team in sums(billing)}
    assert september.lines + october.lines == sum(1 for _ in generated_lines(reports))
    assert len(september.files) == len(october.files) == 3
    assert billing.height < september.lines + october.lines
    assert september.days_outside_period == october.days_outside_period == 0
    residue = september.residue + october.residue
    assert residue != 0
    assert september.amounts["USD"] + october.amounts["USD"] + residue == exact_total(reports)


DIGEST = """
import hashlib, sys
from pathlib import Path
from engine.sources.aws_cur import discover, load
for assembly in discover(Path(sys.argv[1]), None):
    print(hashlib.sha256(load(assembly, "acme").billing.write_csv().encode()).hexdigest())
"""


def test_threads_and_hash_seeds_do_not_matter(reports: Path) -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, reports],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads, seed in (("1", "1"), ("2", "2"))
    }
    (output,) = outputs
    assert len(output.split()) == 2


@pytest.mark.big_data
def test_a_larger_report_adds_up(big_data: Path) -> None:
    folder = big_data / "aws" / "acme" / "cur"
    *full, empty = loads(folder)
    assert sum(month.amounts["USD"] for month in full) == Decimal("31653.3143998848")
    assert [month.billing["billing_period"][0] for month in full] == ["2025-09", "2025-10"]
    assert (empty.lines, empty.billing.height, empty.amounts) == (0, 0, {})
    assert sums(pl.concat(month.billing for month in full)) == expected_sums(folder)


UNALLOCATED = {"basis": "unallocated"}
OF_EVERY_BASIS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "even": ({"service": "AmazonVPC"}, [{"basis": "even"}, UNALLOCATED]),
    "operator": ({"service": "AmazonRoute53"}, [{"basis": "operator"}]),
    "resource": ({"tag": {"app": "svc5"}}, [{"basis": "resource"}]),
    "fixed": (
        {"tag": {"app": "svc4"}},
        [{"basis": "fixed", "percentages": {"payments": "50", "mobile": "33.3", "search": "16.7"}}, UNALLOCATED],
    ),
    "weighted": (
        {"service": "AmazonS3", "tag": {"app": "logs"}},
        [{"basis": "weighted", "keys": {"runner_hours": "0.3", "ingested_gb": "0.7"}}, UNALLOCATED],
    ),
    "unallocated": ({"account": "1111111111111", "tag": {"app": "svc0"}}, [UNALLOCATED]),
    "regional": (
        {"service": "AmazonEC2", "usage_type": "*Regional-Bytes"},
        [{"basis": "cost", "scope": "account"}, UNALLOCATED],
    ),
    "usage": ({"usage_type": "*-Bytes"}, [{"basis": "usage", "key": "transfer_gb"}, UNALLOCATED]),
    "rest": ({"service": "AmazonEC2"}, [{"basis": "cost", "scope": "all"}, UNALLOCATED]),
}
"""Pool -> which lines without an owner are in it, and who pays for them."""
KEYS = """identity,period,key,value
payments,2025-09,transfer_gb,1200.5
search,2025-09,transfer_gb,33.25
mobile,2025-10,transfer_gb,7
payments,2025-10,transfer_gb,3
payments,2025-09,runner_hours,10
data-platform,2025-10,runner_hours,11
search,2025-09,ingested_gb,0.125
mobile,2025-10,ingested_gb,99
"""


def stored(folder: Path, table: str) -> pl.DataFrame:
    return pl.read_parquet(folder / "out" / "lake" / table / "tenant_id=acme/**/*.parquet", hive_partitioning=False)


def totals(rows: pl.DataFrame, *keys: str) -> dict[Any, Decimal]:
    found = rows.group_by(keys).agg(pl.col("amount").sum()).rows()
    return {key[0] if len(keys) == 1 else tuple(key): amount for *key, amount in found}


@pytest.mark.big_data
def test_every_cent_of_a_larger_report_has_a_payer(big_data: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text(KEYS)
    write_config(
        tmp_path / "prorata.yaml",
        root=Path("out"),
        cur=big_data / "aws" / "acme" / "cur",
        keys=[Path("keys.csv")],
        owner={"tags": ["team"], "identities": ["data-platform", "mobile", "payments", "search"]},
        pools=[{"name": name, "match": match, "ladder": ladder} for name, (match, ladder) in OF_EVERY_BASIS.items()],
    )
    ran(tmp_path, "run")
    billing, chargeback = stored(tmp_path, "billing"), stored(tmp_path, "chargeback")
    assert totals(billing, "currency") == {"USD": Decimal("31653.3143998848")}
    for keys in (["currency"], ["charge_date", "currency"], ["billing_period", "charge_date", "line_id", "currency"]):
        assert totals(chargeback, *keys) == totals(billing, *keys)
    direct = chargeback.filter(pl.col("allocation_method") == "direct")
    assert totals(direct, "identity_id") == {
        "data-platform": Decimal("17731.454399976"),
        "payments": Decimal("2289.470399904"),
        "search": Decimal("1011.7048000608"),
        "mobile": Decimal("861.660799944"),
    }
    untagged = chargeback.filter(pl.col("allocation_method") != "direct")
    by_method = totals(untagged, "allocation_method")
    assert by_method == {
        "even_split": Decimal("219.6"),
        "operator": Decimal(732),
        "to_resource": Decimal("140.544"),
        "fixed": Decimal("368.928"),
        "weighted": Decimal(1464),
        "usage_ratio": Decimal("3205.44"),
        "cost_ratio": Decimal("3583.584"),
        "unallocated": Decimal("44.928"),
    }
    assert sum(by_method.values()) == Decimal("9759.024")
    nobody = totals(chargeback, "identity_id")["UNALLOCATED"]
    assert nobody == by_method["unallocated"]
    assert nobody * 100 < Decimal("9759.024")
    assert totals(untagged, "rule_id").keys() == {f"pool:{name}" for name in OF_EVERY_BASIS}
    ran(tmp_path, "check")
