"""The days of a tenant without a bill, as far as they are stored: what they are made of, and lack. Asks nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine import gather_state, lake, state, wanted
from engine.config import CostModelTenant, KafkaTenant
from engine.frames import BILLING, RESOURCES
from engine.gather_state import DayMetric
from engine.sources import cost_questions, cost_rates
from engine.sources.cost_questions import Question
from engine.sources.promql import Window
from engine.text import counted
from engine.wanted import Key
from engine.work import raw_folder


def window(tenant: CostModelTenant, today: date) -> Window:
    """The days that a run of today makes."""
    return today - timedelta(days=tenant.lookback_days), today - timedelta(days=tenant.cutoff_days)


def variables(tenant: CostModelTenant) -> list[tuple[str, str]]:
    """(where, variable) of every secret that a tenant's configuration names."""
    admin = tenant.source.admin if isinstance(tenant, KafkaTenant) else None
    given = (("metrics", tenant.metrics), ("source: admin", admin))
    return [
        (f"tenant {tenant.id}: {place}: {name}", variable)
        for place, model in given
        for name in ("username", "password", "bearer")
        if (variable := getattr(model, name, None))
    ]


def is_incomplete(tenant: CostModelTenant, known: DayMetric) -> bool:
    """Whether too few of the expected samples came for the day to be calculated."""
    expected = known.rows + known.gaps
    return known.status == "fetched" and expected > 0 and known.rows < tenant.incomplete_below * expected


def landed_in(root: Path, tenant: CostModelTenant, fetch_id: int) -> Path:
    """Where the answers to one question are landed."""
    return raw_folder(root, tenant) / "metrics" / f"{fetch_id:06}"


class Known:
    """What is known of a tenant's days when they are made; a class only to read each table once."""

    def __init__(self, root: Path, store: state.State, tenant: CostModelTenant) -> None:
        self.tenant = tenant
        self.questions = {one.name: one for one in cost_questions.questions(tenant)}
        self._digests = {name: one.digest for name, one in self.questions.items()}
        self.day_metrics = gather_state.day_metrics(store, tenant.id)
        found = gather_state.metric_fetches(store, tenant.id).items()
        self.fetches = {number: one for number, one in found if landed_in(root, tenant, number).is_dir()}
        self.made = gather_state.constructed_days(store, tenant.id)
        days, sizes = state.days(store, tenant.id), lake.sizes(root, BILLING, tenant.id)
        self.billed = {day for _, day in days}
        unread = {key[1] for key, row in days.items() if sizes.get(key) != row.billing_bytes}
        self.lost = unread | wanted.lost_usage(root, store, tenant.id)

    def is_open(self, question: Question, day: str, *, lift: bool = False) -> bool:
        """Whether a question is to be asked for a day."""
        known = self.metric(day, question.name)
        if known is None:
            return bool(cost_rates.charges(self.tenant.source, date.fromisoformat(day)))
        if known.status == "given_up":
            return lift
        return known.status == "failed" or known.fetch_id not in self.fetches or is_incomplete(self.tenant, known)

    def metric(self, day: str, name: str) -> DayMetric | None:
        """What is known of a question that is asked now; None of another one."""
        known = self.day_metrics.get((day, name))
        return known if known is not None and known.ids == (self._digests[name],) else None

    def waits(self, day: str) -> tuple[str, str] | None:
        """Why a day is not to be calculated yet, as a code and in words; None if it is."""
        if not cost_rates.charges(self.tenant.source, date.fromisoformat(day)):
            return None
        for name in self.questions:
            one = self.metric(day, name)
            if one is None:
                return "metrics_wanted", ""
            if one.status == "failed":
                limit = self.tenant.allocation_retry_limit
                return "metrics_failed", f"{name}, attempt {one.attempts} of {limit}: {one.error}"
            if is_incomplete(self.tenant, one):
                return "incomplete", f"{name}: {one.rows} of {one.rows + one.gaps} samples"
        return None

    def can_be_made(self, day: str) -> bool:
        """Not where answers are not kept any more, or are waited for by a day that was made of older ones."""
        if not cost_rates.charges(self.tenant.source, date.fromisoformat(day)):
            return True
        for name in self.questions:
            known = self.metric(day, name)
            if known is not None and known.status == "fetched":
                if known.fetch_id not in self.fetches:
                    return False
            elif (known is None or known.status == "failed") and day in self.billed:
                return False
        return True

    def fetches_of(self, day: str) -> tuple[tuple[str, int], ...]:
        """The questions that were answered for a day, and under which numbers the answers are landed."""
        found = ((name, self.metric(day, name)) for name in self.questions)
        return tuple((name, one.fetch_id) for name, one in found if one is not None and one.fetch_id is not None)

    def cause(self, day: str) -> str:
        """A digest of all that a day's lines and usage are made of."""
        content = [cost_rates.model_digest(self.tenant, date.fromisoformat(day)), *map(str, self.fetches_of(day))]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def has_changed(self, day: str) -> bool:
        """Whether a day is to be made of something else than it was."""
        before = self.made.get(day)
        return before is None or before.cause != self.cause(day) or day in self.lost


class Incomplete(NamedTuple):
    """A day of which samples are missing: of which question how many came, and how many were expected."""

    charge_date: str
    question: str
    came: int
    expected: int


def incomplete(
    tenant: CostModelTenant, known: Mapping[Key, DayMetric], days: set[str] | None = None
) -> list[Incomplete]:  # fmt: skip
    """The days, of these or of all, on which not all of the expected samples came, in order."""
    asked = {one.name: one.digest for one in cost_questions.questions(tenant)}
    return [
        Incomplete(day, name, one.rows, one.rows + one.gaps)
        for (day, name), one in sorted(known.items())
        if one.gaps and one.ids == (asked.get(name),) and (days is None or day in days)
    ]


def told_incomplete(found: Sequence[Incomplete]) -> Iterator[str]:
    """A line a question: on how many days samples are missing, and on which most."""
    for question, group in groupby(sorted(found, key=lambda one: one.question), key=lambda one: one.question):
        days = list(group)
        worst = min(days, key=lambda one: (Fraction(one.came, one.expected), one.charge_date))
        yield (
            f"{question}: samples are missing on {counted(len(days), 'day')}, most on {worst.charge_date}"
            f" ({worst.came} of {worst.expected} came)"
        )


def failed_metrics(tenant: CostModelTenant, known: Mapping[Key, DayMetric]) -> dict[str, frozenset[str]]:
    """Charge date -> the metrics of USAGE that it lacks since their questions were given up, if there are any."""
    lacking = {one.name: set(one.metrics) for one in cost_questions.questions(tenant)}
    found = dict[str, set[str]]()
    for (day, name), one in known.items():
        if one.status == "given_up":
            found.setdefault(day, set()).update(lacking.get(name, ()))
    return {day: frozenset(metrics) for day, metrics in found.items()}


def entities(store: state.State, tenant: CostModelTenant) -> tuple[pl.DataFrame, pl.DataFrame]:
    """RESOURCES (the cluster, and what is in it), and id and display name of the identities that are named."""
    found = gather_state.entities(store, RESOURCES, tenant.id)
    own = pl.concat([cost_rates.cluster(tenant), found.filter(pl.col("parent") == tenant.source.cluster_id)])
    named = cost_rates.names(tenant.source)
    return own.sort(RESOURCES.key), pl.DataFrame(
        list(named.items()), schema={"id": pl.String, "display_name": pl.String}, orient="row"
    )
