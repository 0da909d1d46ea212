"""Which metrics the days of a tenant ask for, and the usage that is fetched for them.

A day asks for what the ladders of its lines may weigh by. What was fetched for all of its resources is not asked for
again; what failed is, until it is given up. A metric that has no values for a resource was fetched all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl
from pydantic import SecretStr

from engine import gather_state, state
from engine.config import ConfluentTenant, CostModelTenant, Prometheus
from engine.decide import Inputs
from engine.errors import ContractError, SourceError, shown
from engine.gather_state import DayMetric
from engine.sources import confluent_metrics, prometheus
from engine.sources.confluent_metrics import METRICS
from engine.sources.http import Client, Clock, Endpoint
from engine.sources.landing import Landing
from engine.text import counted, printable
from engine.wanted import Key, Need, is_open, lost_usage, needs
from engine.work import Summary, Work, clock_of, publish_usage, raw_folder, secret, usage_left


def gather(work: Work, tenant: ConfluentTenant, given: Inputs, summary: Summary) -> Summary:
    """Fetch what days ask for and have not, in the fewest questions. What fails leaves its days waiting."""
    asked = _asked(work, tenant, given)
    if not asked or tenant.metrics is None:
        return summary
    with Client(endpoint(work, tenant, tenant.metrics), Clock(*clock_of(work)), work.hooks.stop) as client:
        failed = _fetch_all(work, tenant, tenant.metrics, client, asked)
        requests = client.requests
    _tell_failures(work, failed)
    return summary._replace(requests=summary.requests + requests)


def _asked(work: Work, tenant: ConfluentTenant, given: Inputs) -> list[Need]:
    wanted = needs(work.root, work.store, tenant, given)
    known = gather_state.day_metrics(work.store, tenant.id)
    lost = lost_usage(work.root, work.store, tenant.id)
    return [
        need
        for key, need in sorted(wanted.items())
        if is_open(need, known.get(key), lost) or (work.request.lift and known[key].status == "given_up")
    ]


def endpoint(work: Work, tenant: ConfluentTenant | CostModelTenant, given: Prometheus) -> Endpoint:
    """Where a tenant's Prometheus is, and who asks; ConfigError if a variable that it names is not set."""

    def opened(name: str, variable: str | None) -> SecretStr | None:
        return secret(variable, work.hooks.environment, f"tenant {tenant.id}: metrics: {name}") if variable else None

    return Endpoint(
        url=given.url,
        key=opened("username", given.username),
        secret=opened("password", given.password),
        bearer=opened("bearer", given.bearer),
        timeout_seconds=float(given.timeout_seconds),
        requests_per_second=float(given.requests_per_second),
        attempts=given.attempts,
        ca_bundle=given.ca_bundle,
    )


class _Question(NamedTuple):
    """A metric of some resources over the days from `first` to before `end`, for the needs of some of them."""

    metric: str
    first: date
    end: date
    ids: tuple[str, ...]
    needs: tuple[Need, ...]


def _questions(needs: Sequence[Need], days_per_query: int) -> Iterator[list[_Question]]:
    """The needs as few questions: for each stretch of days those of all metrics."""
    rest = sorted(needs)
    while rest:
        end = date.fromisoformat(rest[0].charge_date) + timedelta(days=days_per_query)
        within = [need for need in rest if need.charge_date < str(end)]
        rest = rest[len(within) :]
        yield [
            _question([need for need in within if need.metric == metric])
            for metric in sorted({need.metric for need in within})
        ]


def _question(needs: Sequence[Need]) -> _Question:
    first, last = (date.fromisoformat(need.charge_date) for need in (needs[0], needs[-1]))
    ids = tuple(sorted({one for need in needs for one in need.ids}))
    return _Question(needs[0].metric, first, last + timedelta(days=1), ids, tuple(needs))


class _Failed(NamedTuple):
    """A question that could not be answered, and which of its days are given up for it."""

    question: _Question
    error: str
    given_up: tuple[str, ...]


def _fetch_all(
    work: Work, tenant: ConfluentTenant, given: Prometheus, client: Client, asked: Sequence[Need]
) -> list[_Failed]:
    failed = list[_Failed]()
    try:
        version, unreachable = prometheus.buildinfo(client), ""
    except (SourceError, ContractError) as error:
        # Every question would wait as long for the same.
        version, unreachable = prometheus.Version("", left_open=False), "; ".join(error.faults)
    stretches = list(_questions(asked, given.days_per_query))
    for number, questions in enumerate(stretches, start=1):
        work.stop_if_asked()
        answered = list[_Answered]()
        for question in questions:
            try:
                if unreachable:
                    raise SourceError(unreachable)
                answered.append(_fetched(work, tenant, given, client, question, version, len(answered)))
                _tell_warnings(work, answered[-1])
            except (SourceError, ContractError) as error:
                failed.append(_record_failure(work, tenant, question, "; ".join(error.faults)))
        _publish(work, tenant, answered)
        work.log(f"metrics {number} of {len(stretches)}: {questions[0].first} to before {questions[-1].end}")
    return failed


class _Answered(NamedTuple):
    """A question's answer: USAGE, for each day what was dropped, and for each day and resource what is lacking."""

    question: _Question
    fetch_id: int
    usage: pl.DataFrame
    dropped: dict[str, int]
    gaps: dict[tuple[str, str], int]
    fetched_at: str
    warnings: tuple[str, ...]


def _fetched(
    work: Work,
    tenant: ConfluentTenant,
    given: Prometheus,
    client: Client,
    question: _Question,
    version: prometheus.Version,
    ahead: int,
) -> _Answered:
    fetch_id = gather_state.next_fetch_id(work.store, tenant.id) + ahead
    landing = landing_of(work.root, tenant, fetch_id)
    asked = METRICS[question.metric]
    for query in (asked.values, asked.counts):
        if query is not None:
            prometheus.fetch_days(
                client,
                landing,
                query,
                (question.first, question.end),
                version,
                ids=question.ids,
                ids_per_query=given.ids_per_query,
            )

    def ask_again(found: prometheus.Samples) -> None:
        days = (question.first, question.end)
        prometheus.fetch_samples(client, landing, asked.values, asked.series, days, version, found)

    return _read(landing, tenant, question, fetch_id, work.hooks.now(), ask_again)


def landing_of(root: Path, tenant: ConfluentTenant, fetch_id: int) -> Landing:
    """Where the answers to one question are landed."""
    return Landing(raw_folder(root, tenant) / "metrics" / f"{fetch_id:06}")


def _read(
    landing: Landing,
    tenant: ConfluentTenant,
    question: _Question,
    fetch_id: int,
    at: str,
    ask_again: Callable[[prometheus.Samples], None] | None = None,
) -> _Answered:
    """What was landed for a question; days that one sample made no number are asked for again, sample by sample."""
    asked, days = METRICS[question.metric], (question.first, question.end)
    samples = prometheus.parse_days(landing.read(prometheus.landed_name(asked.values, days)), asked.values, days)
    if samples.dropped.height:
        if ask_again is not None:
            ask_again(samples)
        raw = prometheus.samples_name(asked.values, days)
        # What was landed by older versions has none.
        if landing.has(raw):
            samples = prometheus.mended(samples, landing.read(raw), asked.values, asked.series, days)
    found = confluent_metrics.measured(samples, question.metric, tenant.id)
    gaps, warnings = dict[tuple[str, str], int](), found.warnings
    if asked.counts is not None and tenant.metrics is not None:
        counts = landing.read(prometheus.landed_name(asked.counts, days))
        lacking = confluent_metrics.gaps(counts, question.metric, days, question.ids, tenant.metrics.scrape_seconds)
        gaps = {(day, resource): missing for day, resource, missing in lacking.missing.rows()}
        warnings = tuple(dict.fromkeys([*warnings, *lacking.warnings]))
    return _Answered(question, fetch_id, found.usage, dict(found.dropped.rows()), gaps, at, warnings)


def _record_failure(work: Work, tenant: ConfluentTenant, question: _Question, error: str) -> _Failed:
    known = gather_state.day_metrics(work.store, tenant.id)
    rows = list[DayMetric]()
    for need in question.needs:
        before = known.get((need.charge_date, need.metric))
        again = before is not None and before.status != "fetched" and need.is_the_question_of(before)
        attempts = before.attempts + 1 if before is not None and again else 1
        status: gather_state.Status = "given_up" if attempts >= tenant.allocation_retry_limit else "failed"
        rows.append(DayMetric(*need[:2], status, *need[2:], attempts=attempts, error=error))
    gather_state.save_day_metrics(work.store, tenant.id, rows)
    return _Failed(question, error, tuple(row.charge_date for row in rows if row.status == "given_up"))


def _publish(work: Work, tenant: ConfluentTenant, answered: Sequence[_Answered]) -> None:
    """Answers of one stretch of days -> the lake, then the state."""
    wanted: dict[str, dict[str, tuple[_Answered, Need]]] = {}
    for one in answered:
        for need in one.question.needs:
            wanted.setdefault(need.charge_date, {})[need.metric] = (one, need)
    rows, published, gone = list[DayMetric](), list[gather_state.UsageDay](), list[str]()
    for day, metrics in sorted(wanted.items()):
        parts = [usage_left(work, day).filter(~pl.col("metric").is_in(list(metrics)))]
        for one, need in metrics.values():
            of_day = one.usage.filter(pl.col("window") == day, pl.col("resource_id").is_in(list(need.ids)))
            parts.append(of_day)
            # A resource that has no lines on the day may not have been there, and lacks nothing.
            gaps = sum(one.gaps.get((day, resource), 0) for resource in need.ids)
            counts = (one.fetch_id, of_day.height, one.dropped.get(day, 0), gaps)
            rows.append(DayMetric(*need[:2], "fetched", *need[2:], *counts))
        usage = publish_usage(work, day, pl.concat(parts))
        published += [usage] if usage else []
        gone += [] if usage else [day]
    with work.store.transaction():
        for one in answered:
            asked = one.question
            if one.fetched_at:
                fetch = gather_state.MetricFetch(
                    one.fetch_id, asked.metric, str(asked.first), str(asked.end), asked.ids, one.fetched_at
                )
                gather_state.record_fetch(work.store, tenant.id, fetch)
        gather_state.save_usage_days(work.store, tenant.id, published, gone)
        gather_state.save_day_metrics(work.store, tenant.id, rows)


def _tell_warnings(work: Work, answered: _Answered) -> None:
    """What Prometheus says of an answer: it may be a part of the truth only, as far as anybody knows."""
    asked = answered.question
    days = f"{asked.first} to {asked.end - timedelta(days=1)}"
    for text in answered.warnings:
        work.warn(f"metric {asked.metric}, {days}: Prometheus warns: {_line(text)}")


def _line(text: str) -> str:
    return shown(printable(" ".join(text.split())), limit=_WARNING_SHOWN)


_WARNING_SHOWN = 300


def _tell_failures(work: Work, failed: Iterable[_Failed]) -> None:
    causes: dict[tuple[str, str], list[str]] = {}
    for one in failed:
        days = f"{one.question.first} to {one.question.end - timedelta(days=1)}"
        causes.setdefault((days, one.error), []).append(one.question.metric)
        if one.given_up:
            work.warn(
                f"metric {one.question.metric}: given up for {counted(len(one.given_up), 'day')} from"
                f" {one.given_up[0]} on; their lines go to UNALLOCATED as allocation_failed, until"
                " `prorata run --force` asks again"
            )
    faults = [f"metrics {', '.join(metrics)}, {days}: {error}" for (days, error), metrics in causes.items()]
    if faults:
        work.problems.append(SourceError(faults))


def settle(work: Work, tenant: ConfluentTenant, given: Inputs) -> None:
    """Say of every day whether it has all that it asks for; usage that nobody asks for any more is taken out."""
    wanted, known = needs(work.root, work.store, tenant, given), gather_state.day_metrics(work.store, tenant.id)
    if tenant.metrics is not None:
        known = _narrowed(work, tenant, wanted, known)
    lost = lost_usage(work.root, work.store, tenant.id)
    by_day: dict[str, list[Need]] = {}
    for need in wanted.values():
        by_day.setdefault(need.charge_date, []).append(need)
    flags = []
    for _, day in state.days(work.store, tenant.id):
        open_ = [
            known.get((need.charge_date, need.metric))
            for need in by_day.get(day, [])
            if is_open(need, known.get((need.charge_date, need.metric)), lost)
        ]
        failed = [one for one in open_ if one is not None and one.error]
        attempts = max((one.attempts for one in failed), default=0)
        flags.append(gather_state.MetricsFlag(day, int(not open_), attempts, failed[0].error if failed else None))
    gather_state.set_metrics_gathered(work.store, tenant.id, flags)


def _narrowed(
    work: Work, tenant: ConfluentTenant, wanted: Mapping[Key, Need], known: Mapping[Key, DayMetric]
) -> dict[Key, DayMetric]:
    """What is known, without what is not asked for any more, in the state and in the lake.

    So the usage of a day does not depend on what it once asked for.
    """
    gone = [key for key in known if key not in wanted]
    # What is lost and asked for again must not pass for what was published; what nobody asks for is as it is.
    asking = {need.charge_date for need in wanted.values()}
    lost = lost_usage(work.root, work.store, tenant.id)
    fewer = [
        one._replace(ids=wanted[key].ids)
        for key, one in known.items()
        if key in wanted and one.status == "fetched" and set(wanted[key].ids) < set(one.ids)
    ]
    if not gone and not fewer and lost <= asking:
        return dict(known)
    keep = {(key, one) for key, need in wanted.items() for one in need.ids}
    changed = {day for day, _ in gone} | {one.charge_date for one in fewer}
    days = sorted((changed - lost) | (lost - asking))
    rows: dict[Key, int] = {}
    published, withdrawn = list[gather_state.UsageDay](), list[str]()
    for day in days:
        asked = pl.DataFrame(
            [(metric, one) for (of, metric), one in keep if of == day],
            schema={"metric": pl.String, "resource_id": pl.String},
            orient="row",
        )
        stored = usage_left(work, day)
        ours = stored.filter(pl.col("metric").is_in(list(METRICS))).join(
            asked, on=["metric", "resource_id"], how="semi"
        )
        rows |= {(day, metric): count for metric, count in ours.group_by("metric").len().rows()}
        usage = publish_usage(work, day, pl.concat([stored.filter(~pl.col("metric").is_in(list(METRICS))), ours]))
        published += [usage] if usage else []
        withdrawn += [] if usage else [day]
    fewer = [one._replace(rows=rows.get((one.charge_date, one.metric), 0)) for one in fewer]
    with work.store.transaction():
        gather_state.save_usage_days(work.store, tenant.id, published, withdrawn)
        gather_state.save_day_metrics(work.store, tenant.id, fewer, gone)
    return gather_state.day_metrics(work.store, tenant.id)


def replay(work: Work, tenant: ConfluentTenant) -> None:
    """Read the landed answers of all days again, without asking anybody."""
    fetches = gather_state.metric_fetches(work.store, tenant.id)
    known = gather_state.day_metrics(work.store, tenant.id).values()
    by_fetch: dict[int, list[Need]] = {}
    for one in known:
        if one.status == "fetched" and one.fetch_id in fetches:
            by_fetch.setdefault(one.fetch_id, []).append(Need(one.charge_date, one.metric, one.ids, one.billing_digest))
    for fetch_id, of_fetch in sorted(by_fetch.items()):
        fetch, landing = fetches[fetch_id], landing_of(work.root, tenant, fetch_id)
        if not landing.names():
            continue
        days = date.fromisoformat(fetch.first_day), date.fromisoformat(fetch.end_day)
        question = _Question(fetch.metric, *days, fetch.ids, tuple(of_fetch))
        # Without a time it is no new question.
        _publish(work, tenant, [_read(landing, tenant, question, fetch_id, "")])
