"""What becomes of the bill in this folder, as text: rows that a person can check, and digests that nobody can.

After a change that is meant to change amounts or digests: `python -m tests.golden.bill`, then read the difference.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from engine import lake, pipeline, rules, state
from engine.digests import digest
from engine.frames import BILLING, CHARGEBACK, EMPTY_KEYS, IDENTITIES, RESOURCES, RULES, Table
from engine.pipeline import Hooks, Request, configured, run_tenant

HERE = Path(__file__).parent
EXPECTED = HERE / "bill.txt"
SHOWN = (
    (BILLING, ["charge_date", "line_id", "product_type", "line_item_type", "currency", "amount", "tags"]),
    (CHARGEBACK, [
        "charge_date", "line_id", "part", "identity_id", "currency", "amount", "part_amount", "cost_type",
        "allocation_method", "allocation_detail", "rule_id", "rule_version", "rung", "weight_before", "weight",
        "weight_total", "calculation_id",
    ]),
    (EMPTY_KEYS, ["charge_date", "rule_id", "part", "rung", "weight_scope", "metric", "reason"]),
    (IDENTITIES, ["id", "type", "first_seen_at", "last_seen_at"]),
    (RESOURCES, ["id", "type", "scope", "first_seen_at", "last_seen_at"]),
)  # fmt: skip


def described(folder: Path) -> str:
    """Everything a run over the bill stores, in a folder that is empty."""
    shutil.copytree(HERE / "bill", folder, dirs_exist_ok=True)
    config = configured(folder / "prorata.yaml")
    (tenant,) = config.tenants
    hooks = Hooks(lambda: "2025-10-05T12:00:00Z", lambda _: None, lambda *_: None, threading.Event())
    run_tenant(config, tenant, Request("run"), hooks, "golden-run")
    resolved = rules.resolve(tenant).frame
    return "\n".join(
        [
            f"kernel {pipeline.allocate.KERNEL_VERSION}",
            f"table {RULES.name}: {digest(resolved, RULES)}",
            *resolved.select(text=pl.format("{} {}", "rule_id", "version"))["text"].unique(maintain_order=True),
            *_days(config.root),
            *(line for table, columns in SHOWN for line in _table(config.root, table, columns)),
            "",
        ]
    )


def _days(root: Path) -> Iterator[str]:
    with state.open_state(root) as store:
        for (period, charge_date), day in sorted(state.days(store, "golden").items()):
            yield f"day {period} {charge_date}"
            yield f"  billing {day.billing_rows} {day.billing_digest}"
            yield f"  input {day.input_digest}"
            yield f"  output {day.chargeback_rows} {day.output_digest}"


def _table(root: Path, table: Table, columns: list[str]) -> Iterator[str]:
    files = sorted((root / "lake" / table.name / "tenant_id=golden").rglob("*.parquet"))
    rows = pl.concat(pl.read_parquet(file, hive_partitioning=False) for file in files)
    yield f"table {table.name}: {digest(rows, table)}"
    for file in files:
        yield f"  {file.relative_to(root)} {lake.footer(file)[0]}"
    for row in rows.select(pl.col(columns).cast(pl.String)).rows():
        yield "  " + " | ".join("" if cell is None else cell.replace("\n", "\\n") for cell in row)


def main() -> None:
    """Write what is expected from now on."""
    with TemporaryDirectory() as folder:
        EXPECTED.write_text(described(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
