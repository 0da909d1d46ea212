"""A Confluent Cloud tenant against the double, run in this process over real HTTP."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from engine import pipeline, state
from engine.work import Clock, Hooks, Request, Summary
from tests.doubles.confluent_cloud import Server
from tests.doubles.organization import CLOUD, FLINK, Credential

FIRST = date(2025, 9, 1)
"""The first day of the costs of the bundled organization."""
VARIABLES = {
    "CLOUD_KEY": CLOUD.key,
    "CLOUD_SECRET": CLOUD.secret,
    "FLINK_US_KEY": FLINK["us-east-1"].key,
    "FLINK_US_SECRET": FLINK["us-east-1"].secret,
    "FLINK_EU_KEY": FLINK["europe-west1"].key,
    "FLINK_EU_SECRET": FLINK["europe-west1"].secret,
}
assert isinstance(CLOUD, Credential)


def source(server: Server) -> dict[str, Any]:
    """The source of a tenant, as its configuration has it; rate and attempts are for tests, not for politeness."""
    regions = {"us-east-1": "US", "europe-west1": "EU"}
    keys = {
        region: {"api_key": f"${{FLINK_{name}_KEY}}", "api_secret": f"${{FLINK_{name}_SECRET}}"}
        for region, name in regions.items()
    }
    return {
        "kind": "confluent_cloud",
        "url": server.url,
        "api_key": "${CLOUD_KEY}",
        "api_secret": "${CLOUD_SECRET}",
        "requests_per_second": "100000",
        "attempts": "1",
        "timeout_seconds": "20",
        "flink": {"url": server.flink_url, "keys": keys},
    }


def prometheus(url: str) -> dict[str, Any]:
    """The metrics of a tenant, as its configuration has them."""
    return {"url": url, "requests_per_second": "100000", "attempts": "1", "scrape_seconds": "900"}


class Tenant:
    """One tenant in a root of its own; `settings` are more keys of its configuration."""

    def __init__(self, folder: Path, server: Server, metrics: str | None = None, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.root, self.file = folder, folder / "data", folder / "prorata.yaml"
        self.tenant: dict[str, Any] = {
            "id": "conf",
            "ecosystem": "confluent_cloud",
            "source": source(server),
            "lookback_days": "40",
            "cutoff_days": "0",
            "allocation_retry_limit": "2",
            "gather_failure_threshold": "2",
            **({"metrics": prometheus(metrics)} if metrics else {}),
            **settings,
        }
        self.logged: list[str] = []
        self.runs = 0
        self.write()

    def write(self, **settings: Any) -> None:
        """The configuration, with other settings."""
        self.tenant |= settings
        tenant = {name: value for name, value in self.tenant.items() if value is not None}
        self.file.write_text(yaml.safe_dump({"root": "data", "tenants": [tenant]}))

    def write_all(self, tenant_ids: Iterable[str]) -> None:
        """The configuration, with such a tenant under each of these names."""
        tenants = [self.tenant | {"id": name} for name in tenant_ids]
        self.file.write_text(yaml.safe_dump({"root": "data", "tenants": tenants}))

    def run(
        self,
        today: date,
        command: str = "run",
        environment: Mapping[str, str] = VARIABLES,
        *,
        hour: int = 0,
        stop_at: str = "",
        **asked: Any,
    ) -> Summary:
        """One run on a date; it is told to stop once it tells of `stop_at`."""
        config = pipeline.configured(self.file)
        clock, stop = Clock(time.time, time.monotonic), threading.Event()

        def log(text: str) -> None:
            self.logged.append(text)
            if stop_at and stop_at in text:
                stop.set()

        hooks = Hooks(
            lambda: f"{today}T{hour:02}:00:00Z",
            log,
            lambda *_: None,
            stop,
            environment,
            clock,
        )
        request = Request(command, force=command == "recalculate", **asked)
        self.runs += 1
        return pipeline.run_tenant(config, config.tenants[0], request, hooks, f"{self.folder.name}-{self.runs}")

    def table(self, name: str, tenant_id: str = "conf") -> pl.DataFrame:
        """All rows of a table of the lake."""
        files = sorted((self.root / "lake" / name / f"tenant_id={tenant_id}").glob("**/*.parquet"))
        return pl.read_parquet(files, hive_partitioning=False) if files else pl.DataFrame()

    def total(self, table: str = "chargeback", tenant_id: str = "conf") -> Decimal:
        found = self.table(table, tenant_id)
        return found["amount"].sum() if found.height else Decimal(0)  # type: ignore[return-value]

    def days(self) -> dict[str, state.Day]:
        """Charge date -> the day, as the state has it."""
        with state.open_state(self.root, write=False) as store:
            return {key[1]: day for key, day in state.days(store, "conf").items()}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with state.open_state(self.root, write=False) as store:
            return store.rows(sql)

    def files(
        self, tables: Iterable[str] = ("billing", "chargeback", "empty_keys", "usage"), tenant_id: str = "conf"
    ) -> dict[str, str]:
        """The SHA-256 of every file of some tables of the lake."""
        lake = self.root / "lake"
        return {
            str(file.relative_to(lake)): hashlib.sha256(file.read_bytes()).hexdigest()
            for table in tables
            for file in sorted((lake / table / f"tenant_id={tenant_id}").glob("**/*.parquet"))
        }


def day(number: int) -> date:
    """A day of the bundled organization, from 0."""
    return FIRST + timedelta(days=number)
