"""Tenants made from a cost model against a Prometheus, run in this process over real HTTP."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import polars as pl
import yaml

from engine import cost_days, pipeline, plan, state
from engine.config import GenericTenant, KafkaTenant
from engine.gather_state import day_metrics
from engine.work import Clock, Hooks, Request, Summary
from tests.doubles.exporter import START
from tests.unit import scripted
from tests.unit.scripted import Reply, Script

RATES = {
    "compute_hourly_rate": "0.10",
    "storage_per_gib_hourly": "0.0001",
    "network_ingress_per_gib": "0.01",
    "network_egress_per_gib": "0.02",
}
FIRST = date(1970, 1, 1) + timedelta(milliseconds=START)


def metrics(url: str, **settings: Any) -> dict[str, Any]:
    """The metrics of a tenant; rate and attempts are for tests, not for politeness."""
    return {"url": url, "requests_per_second": "100000", "attempts": "1", **settings}


def kafka(cluster: str, url: str | None, **settings: Any) -> dict[str, Any]:
    """A Kafka tenant; `source` and `metrics` among the settings are added to those that it has."""
    source = {
        "kind": "cost_model",
        "cluster_id": cluster,
        "currency": "EUR",
        "broker_count": "3",
        "rates": RATES,
        "selector": f'cluster="{cluster}"',
        **settings.pop("source", {}),
    }
    given = {} if url is None else {"metrics": metrics(url, **settings.pop("metrics", {}))}
    return {"id": cluster, "ecosystem": "self_managed_kafka", "source": source, **given, "cutoff_days": "0", **settings}


class Root:
    """Some tenants in a root of their own."""

    def __init__(self, folder: Path, *tenants: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.file = folder / "data", folder / "prorata.yaml"
        self.logged: list[str] = []
        self.runs = 0
        self.write(*tenants)

    def write(self, *tenants: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump({"root": "data", "tenants": list(tenants)}))

    def run(
        self,
        today: date,
        command: str = "run",
        *,
        number: int = 0,
        environment: Mapping[str, str] | None = None,
        stop: threading.Event | None = None,
        **asked: Any,
    ) -> Summary:
        """One run of one of the tenants."""
        config = pipeline.configured(self.file)
        hooks = Hooks(
            lambda: f"{today}T03:00:00Z",
            self.logged.append,
            lambda *_: None,
            stop or threading.Event(),
            environment or {},
            Clock(time.time, time.monotonic),
        )
        self.runs += 1
        request = Request(command, force=command == "recalculate", **asked)
        return pipeline.run_tenant(
            config, config.tenants[number], request, hooks, f"{self.file.parent.name}-{self.runs}"
        )

    def table(self, name: str) -> pl.DataFrame:
        """All rows of a table of the lake."""
        files = sorted((self.root / "lake" / name).glob("tenant_id=*/**/*.parquet"))
        return pl.read_parquet(files, hive_partitioning=False) if files else pl.DataFrame()

    def lines(self, *columns: str, product: str | None = None) -> list[tuple[Any, ...]]:
        """Billing lines in order of their days, by default with date and amount."""
        found = self.table("billing").sort("charge_date", "product_type")
        found = found if product is None else found.filter(pl.col("product_type") == product)
        return found.select(columns or ("charge_date", "amount")).rows()

    def amounts(self, day: date) -> dict[str, Decimal]:
        """Product -> amount of a day."""
        return dict(self.table("billing").filter(pl.col("charge_date") == day).select("product_type", "amount").rows())

    def days(self, tenant: str) -> dict[str, state.Day]:
        with state.open_state(self.root, write=False) as store:
            return {key[1]: day for key, day in state.days(store, tenant).items()}

    def incomplete(self) -> list[cost_days.Incomplete]:
        tenant = pipeline.configured(self.file).tenants[0]
        assert isinstance(tenant, KafkaTenant | GenericTenant)
        with state.open_state(self.root, write=False) as store:
            return cost_days.incomplete(tenant, day_metrics(store, tenant.id))

    def plan(self, today: date) -> dict[str, plan.DayPlan]:
        config = pipeline.configured(self.file)
        [found] = plan.plan(config, config.tenants[:1], today)
        return {day.charge_date: day for day in found.days}


class Between:
    """A server between the tenants and their Prometheus that passes on what it is asked, or answers as it is told."""

    def __init__(self, url: str) -> None:
        self.url, self.reply = url, self.passed
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def serving(self) -> AbstractContextManager[Script]:
        return scripted.answering(self._answer)

    def _answer(self, request: scripted.Request) -> Reply:
        return self.reply(request)

    def passed(self, request: scripted.Request) -> Reply:
        content = request.body.encode() or None
        headers = {name: request.headers[name] for name in ("Content-Type", "Authorization") if name in request.headers}
        asked = urllib.request.Request(f"{self.url}{request.target}", content, headers, method=request.method)
        try:
            with self._opener.open(asked, timeout=30) as response:
                return Reply(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read())

    def failing(self, word: str, reply: Reply) -> None:
        """Answer with this what asks for `word`, and pass on the rest."""
        self.reply = lambda request: reply if word in unquote_plus(request.body) else self.passed(request)
