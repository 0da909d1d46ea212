"""The cases of `docs/cost-models.md` and of the folder `cost_models`: answers in, lines and charges out.

A case has a block of YAML (a tenant) and tables under `### Answers` (question, bytes, and how many hours were answered,
if it is asked by the hour), `### Principals` (metric, principal, value), `### Failed metrics`, `### Days`, and what is
made of them: `### Lines` and `### Charges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import polars as pl

from engine import decide, pipeline, rules
from engine.config import CostModelTenant, GenericTenant, KafkaTenant
from engine.frames import IDENTITIES, RESOURCES, USAGE, empty
from engine.money import AMOUNT, parse_amount
from engine.sources import cost_model
from engine.sources.cost_questions import questions
from engine.sources.prometheus import Samples
from tests.spec import specs
from tests.spec.specs import DAY, Row, Spec

LINE_COLUMNS = {"date": "charge_date", "product": "product_type"}
CHARGE_COLUMNS = {**specs.CHARGE_COLUMNS, **LINE_COLUMNS}


def cases(file: Path) -> Iterator[Spec]:
    """The cases of a file: those of its sections that say which lines there are."""
    return (spec for spec in specs.read_specs(file) if "Lines" in spec.tables)


def tenant_of(spec: Spec, folder: Path) -> CostModelTenant:
    indented = "".join(f"    {line}\n" for line in spec.rules.splitlines())
    config = folder / "prorata.yaml"
    config.write_text(f"root: ./prorata-data\ntenants:\n  - id: spec\n{indented}", encoding="utf-8")
    [tenant] = pipeline.configured(config).tenants
    assert isinstance(tenant, KafkaTenant | GenericTenant)
    return tenant


def days_of(spec: Spec) -> list[date]:
    return [date.fromisoformat(row["date"]) for row in spec.tables.get("Days", [{"date": DAY}])]


def answers_of(spec: Spec, tenant: CostModelTenant) -> dict[str, Samples]:
    """The tables as the answers that they stand for, of every question that the tenant asks."""
    answers, rows = spec.tables.get("Answers", []), spec.tables.get("Principals", [])
    found = {}
    for one in questions(tenant):
        if one.use in {"mean", "sum"}:
            points = [
                (row.get("date", DAY), row["bytes"], row.get("hours") or "1")
                for row in answers
                if row["question"] == one.name
            ]
            found[one.name] = _samples(points, [])
        elif one.use == "weights":
            given = [
                (row.get("date", DAY), row["value"], "24", row["principal"])
                for row in rows
                if row["metric"] == one.metrics[0]
            ]
            found[one.name] = _samples(given, list(one.values.by))
    assert {row["question"] for row in answers} <= found.keys()
    return found


def _samples(points: Sequence[tuple[str, ...]], by: list[str]) -> Samples:
    columns = ["window", "value", "points", *by]
    frame = pl.DataFrame(points, schema=dict.fromkeys(columns, pl.String), orient="row")
    values = frame.with_columns(value=parse_amount(pl.col("value")), points=pl.col("points").cast(pl.UInt32))
    assert values.schema["value"] == AMOUNT
    key = ["window", *by]
    return Samples(values.select(*key, "value", "points").sort(key), values.select(*key, "points").clear(), ())


def lines_of(spec: Spec, tenant: CostModelTenant) -> pl.DataFrame:
    """BILLING of the case's days."""
    return cost_model.bill(tenant, days_of(spec), answers_of(spec, tenant)).billing


def charges_of(spec: Spec, tenant: CostModelTenant) -> pl.DataFrame:
    """CHARGEBACK of the case's days."""
    given = decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE))
    usage = cost_model.usage(tenant, days_of(spec), answers_of(spec, tenant))
    found = []
    for day, lines in lines_of(spec, tenant).group_by("charge_date", maintain_order=True):
        failed = {
            (row["metric"], tenant.source.cluster_id)
            for row in spec.tables.get("Failed metrics", [])
            if row.get("date", DAY) == str(day[0])
        }
        todays = usage.filter(pl.col("window") == str(day[0]))
        facts = decide.DayFacts(empty(RESOURCES), empty(IDENTITIES), todays, frozenset(failed))
        found.append(decide.allocate_day(lines, given, facts).chargeback)
    return pl.concat(found)


def line_texts(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """BILLING as rows of text with these columns."""
    rate = pl.col("tags").str.json_path_match("$.rate")
    return _texts(frame.with_columns(rate=rate), columns, LINE_COLUMNS)


def charge_texts(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """CHARGEBACK as rows of text with these columns."""
    return _texts(frame, columns, CHARGE_COLUMNS)


def _texts(frame: pl.DataFrame, columns: Sequence[str], names: dict[str, str]) -> list[str]:
    chosen = frame.select(pl.col(names.get(name, name)).cast(pl.String).alias(name) for name in columns)
    return sorted(" | ".join(row) for row in chosen.rows())


def expected(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    return specs.expected(rows, columns)
