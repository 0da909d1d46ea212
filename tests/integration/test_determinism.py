"""One bill in other words, in another order, by other processes with other threads and hash seeds: the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import polars as pl

from bench.data import TEAMS, write_cur
from tests.integration.killing.stores import DAYS, DIMENSIONS, FACTS, digests, queried
from tests.integration.reports import write_config

CHECKOUT = Path(__file__).parents[2]
RESOURCES, REPORT_DAYS, COLUMNS = 700, 8, 60
CUSTOMERS = 320
LEAST_ROWS = 300_000
MONTH = "20250901-20251001"

POOLS = [
    {
        "name": "compute",
        "match": {"service": "AmazonEC2"},
        "ladder": [{"basis": "usage", "key": "requests"}, {"basis": "even"}, {"basis": "unallocated"}],
    },
    {
        "name": "storage",
        "match": {"service": "AmazonS3"},
        "parts": [
            {"share": "0.7", "ladder": [{"basis": "usage", "key": "bytes"}, {"basis": "unallocated"}]},
            {"share": "0.3", "ladder": [{"basis": "even"}, {"basis": "unallocated"}]},
        ],
    },
    {
        "name": "databases",
        "match": {"service": "AmazonRDS"},
        "window": "month",
        "ladder": [
            {"basis": "cost", "scope": "service_account"},
            {"basis": "cost", "scope": "all"},
            {"basis": "unallocated"},
        ],
    },
    {
        "name": "logs",
        "match": {"service": "AmazonCloudWatch"},
        "ladder": [
            {"basis": "weighted", "keys": {"requests": "0.5", "bytes": "0.25", "nothing": "0.25"}},
            {"basis": "unallocated"},
        ],
    },
]


class Variant(NamedTuple):
    """What differs between two runs over one bill."""

    snake: bool = False
    shuffled: bool = False
    parts: int = 4
    threads: int = 2
    days_at_a_time: int = 2
    hash_seed: int = 0


VARIANTS = {
    "as it came": Variant(),
    "snake, shuffled, in 3 parts, one thread": Variant(
        snake=True, shuffled=True, parts=3, threads=1, days_at_a_time=1, hash_seed=1
    ),
    "shuffled, in one part, three days at a time": Variant(shuffled=True, parts=1, days_at_a_time=3, hash_seed=2),
    "one thread, three days at a time": Variant(threads=1, days_at_a_time=3, hash_seed=3),
}


class Outcome(NamedTuple):
    """What a run left behind."""

    lake: dict[str, str]
    days: list[tuple[object, ...]]
    facts: list[tuple[object, ...]]
    dimensions: list[tuple[object, ...]]
    rows: int


def write_keys(file: Path) -> Path:
    """Dated requests of every customer and bytes of the month, with fractions and zeros, in no particular order."""
    rows = ["identity,date,period,key,value"]
    for number in range(CUSTOMERS):
        name = f"customer-{number * 7919 % 1000:03d}"
        rows += [
            f"{name},2025-09-{day:02d},,requests,{(number * 31 + day * 17) % 97}.{number % 10}"
            for day in range(1, REPORT_DAYS + 1)
        ]
        if number % 16 == 0:
            rows.append(f"{name},,2025-09,bytes,{number * 1_000_003}")
    file.write_text("\n".join([rows[0], *sorted(rows[1:], key=lambda row: row[::-1])]) + "\n")
    return file


def snake_case(name: str) -> str:
    """A column's name in the other dialect, as AWS spells it for Athena."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower())


def write_variant(original: Path, cur: Path, variant: Variant) -> Path:
    """The lines of `original`, as a variant of it has them; the folder of the reports."""
    month = cur / MONTH
    (month / "again").mkdir(parents=True)
    lines = pl.concat(pl.read_csv(file, infer_schema=False) for file in sorted(original.rglob("*.csv.gz")))
    if variant.shuffled:
        lines = lines.sample(fraction=1, shuffle=True, seed=variant.hash_seed)
    if variant.snake:
        lines = lines.rename(snake_case)
    names = [f"cur-{number}.csv.gz" for number in range(variant.parts)]
    bounds = [lines.height * number // variant.parts for number in range(variant.parts + 1)]
    for name, first, last in zip(names, bounds, bounds[1:], strict=False):
        lines[first:last].write_csv(month / "again" / name, compression="gzip", compression_level=1)
    manifest = json.loads((original / MONTH / "cur-Manifest.json").read_text())
    keys = [f"acme/cur/{MONTH}/again/{name}" for name in names]
    (month / "cur-Manifest.json").write_text(json.dumps({**manifest, "assemblyId": "again", "reportKeys": keys}))
    return cur


def outcome(folder: Path, original: Path, variant: Variant) -> Outcome:
    """Run the command line over a variant, in a process of its own."""
    folder.mkdir()
    rewritten = variant.snake or variant.shuffled
    cur = write_variant(original, folder / "cur", variant) if rewritten else original
    config = write_config(
        folder / "prorata.yaml",
        root=folder / "data",
        cur=cur,
        workers=variant.days_at_a_time,
        keys=[write_keys(folder / "keys.csv")],
        pools=POOLS,
        owner={"tags": ["team"], "identities": [f"team-{number:02d}" for number in range(TEAMS)]},
    )
    ended = subprocess.run(
        [sys.executable, "-m", "cli", "run", "-c", config],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "POLARS_MAX_THREADS": str(variant.threads),
            "PYTHONHASHSEED": str(variant.hash_seed),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    state = queried(folder / "data" / "state.db", days=DAYS)
    results = queried(folder / "data" / "results.db", facts=FACTS, dimensions=DIMENSIONS)
    rows = pl.scan_parquet(folder / "data" / "lake" / "chargeback" / "**" / "*.parquet").select(pl.len()).collect()
    return Outcome(digests(folder / "data" / "lake"), state["days"], **results, rows=rows.item())


def test_digests_and_bytes_depend_on_the_bill_alone(tmp_path: Path) -> None:
    """One test, since two processes that share several would each make all variants."""
    write_cur(tmp_path / "cur", resources=RESOURCES, days=REPORT_DAYS, files=Variant().parts, columns=COLUMNS)
    found = {name: outcome(tmp_path / name, tmp_path / "cur", variant) for name, variant in VARIANTS.items()}
    expected = found["as it came"]
    assert expected.rows >= LEAST_ROWS
    assert len(expected.days) == REPORT_DAYS
    kinds = {path.split("/")[0] for path in expected.lake if "tenant_id=acme" in path}
    assert kinds == {"billing", "chargeback", "empty_keys", "identities", "resources", "tags", "teams"}
    for field in Outcome._fields:
        assert {name: differing(getattr(other, field), getattr(expected, field)) for name, other in found.items()} == {
            name: [] for name in VARIANTS
        }, field


def differing(found: object, expected: object) -> list[str]:
    """What is in one of the two and not in the other: a few of many."""
    if found == expected:
        return []
    if not isinstance(found, dict | list) or not isinstance(expected, dict | list):
        return [f"{found} is not {expected}"]
    items = [set(map(str, part.items() if isinstance(part, dict) else part)) for part in (found, expected)]
    return sorted(items[0] ^ items[1])[:6] or ["the order"]
