"""A small bill as AWS delivers it, and the program as a user runs it: in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRORATA = (sys.executable, "-W", "error", "-m", "cli")

CONFIG = """
root: ./out
tenants:
  - id: acme
    ecosystem: aws
    source: {kind: aws_cur, path: ./cur}
    owner:
      tags: [team]
      identities: [payments, search, mobile]
    operator: platform
    keys: [keys.csv]
    pools:
      - name: nat
        match: {service: AmazonEC2, usage_type: "*NatGateway*"}
        ladder: [{basis: usage, key: nat_gb}, {basis: even}, {basis: unallocated}]
      - name: support
        match: {service: "AWSSupport*"}
        ladder: [{basis: operator}]
"""

KEYS = """identity,date,key,value
payments,2025-10-01,nat_gb,1
search,2025-10-01,nat_gb,2
"""

_DEFAULTS = {
    "identity/LineItemId": "x",
    "bill/InvoiceId": "",
    "lineItem/UsageAccountId": "111111111111",
    "lineItem/LineItemType": "Usage",
    "lineItem/UsageStartDate": "2025-10-01T00:00:00Z",
    "lineItem/ProductCode": "AmazonEC2",
    "lineItem/UsageType": "BoxUsage:m5.large",
    "lineItem/Operation": "RunInstances",
    "lineItem/ResourceId": "",
    "lineItem/UsageAmount": "1",
    "lineItem/CurrencyCode": "USD",
    "lineItem/UnblendedCost": "1",
    "product/region": "eu-central-1",
    "pricing/unit": "Hrs",
    "resourceTags/user:team": "",
}


def line(
    amount: str,
    *,
    day: str = "2025-10-01",
    team: str = "",
    service: str = "AmazonEC2",
    usage_type: str = "BoxUsage:m5.large",
    resource: str = "",
    currency: str = "USD",
    line_item_type: str = "Usage",
) -> dict[str, str]:
    """One line of a report."""
    return {
        **_DEFAULTS,
        "lineItem/UnblendedCost": amount,
        "lineItem/UsageStartDate": f"{day}T00:00:00Z",
        "lineItem/ProductCode": service,
        "lineItem/UsageType": usage_type,
        "lineItem/ResourceId": resource,
        "lineItem/CurrencyCode": currency,
        "lineItem/LineItemType": line_item_type,
        "resourceTags/user:team": team,
    }


OCTOBER = (
    line("30", team="Payments "),
    line("20.5", team="search"),
    line("10", usage_type="EUC1-NatGateway-Bytes"),
    line("0.000000000001", service="AmazonS3", usage_type="Requests"),
    line("7", service="AWSSupportBusiness", usage_type="Dollar"),
    line("40", day="2025-10-02", team="payments"),
    line("1", day="2025-10-02", team="mobile"),
    line("3", day="2025-10-02", usage_type="EUC1-NatGateway-Bytes"),
    line("5", day="2025-10-03", team="search"),
    line("-2", day="2025-10-03", team="search", line_item_type="Credit"),
)
"""Three days. On the first the NAT key has values, on the second it has none and falls to `even`."""
NAT_LINE = {"charge_date": "2025-10-01", "product_type": "EUC1-NatGateway-Bytes"}


def write_bill(
    folder: Path,
    lines: Sequence[Mapping[str, str]] = OCTOBER,
    *,
    month: str = "20251001-20251101",
    assembly: str = "first",
) -> None:
    """A delivery of one month below `folder`, in one file, as the newest of its month."""
    start, end = month.split("-")
    manifest = json.dumps(
        {
            "assemblyId": assembly,
            "reportName": "cur",
            "compression": "None",
            "billingPeriod": {"start": f"{start}T000000.000Z", "end": f"{end}T000000.000Z"},
            "reportKeys": [f"prefix/cur/{month}/{assembly}/cur-1.csv"],
        }
    )
    place = folder / month / assembly
    place.mkdir(parents=True)
    with (place / "cur-1.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(_DEFAULTS))
        writer.writeheader()
        writer.writerows(lines)
    for target in (place, place.parent):
        (target / "cur-Manifest.json").write_text(manifest, encoding="utf-8")


def write_all(folder: Path, *, config: str = CONFIG, lines: Sequence[Mapping[str, str]] = OCTOBER) -> None:
    """Configuration, key table and bill of one tenant in `folder`."""
    (folder / "prorata.yaml").write_text(config, encoding="utf-8")
    (folder / "keys.csv").write_text(KEYS, encoding="utf-8")
    write_bill(folder / "cur", lines)


def environment(**more: str) -> dict[str, str]:
    """The environment of a run: the checkout is found from anywhere, nobody's own settings count."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRORATA_")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", **more}


def prorata(folder: Path, *words: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`. It fails the test if it shows a traceback."""
    done = subprocess.run(
        [*PRORATA, *words],
        cwd=folder,
        env=environment(**env),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ran(folder: Path, *words: str | Path, stdin: str = "") -> str:
    """What the program printed; the test fails if it did not succeed."""
    done = prorata(folder, *words, stdin=stdin)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def answered(folder: Path, *words: str | Path, code: int = 0) -> Any:
    """The JSON that the program printed."""
    done = prorata(folder, *words, "--json")
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def asked(folder: Path, query: str) -> list[dict[str, Any]]:
    """The rows that `prorata sql` gives."""
    rows: list[dict[str, Any]] = json.loads(ran(folder, "sql", "--format", "json", query))
    return rows
