"""Which metrics the days of a tenant ask for, and Prometheus asked for them, in few questions.

A day asks for what the ladders of its lines may weigh by. What was answered for a resource is not asked again; what
failed is, until it is given up. A metric that has no values for a resource was answered all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

import polars as pl
from pydantic import SecretStr

from engine import gather_state, metered
from engine.config import ConfluentTenant, CostModelTenant, Prometheus
from engine.credentials import Variable, secret
from engine.decide import Inputs
from engine.errors import ContractError, SourceError
from engine.gather_state import DayMetric
from engine.metered import Answered, Ask, Less, Question
from engine.sources import prometheus
from engine.sources.confluent_metrics import METRICS
from engine.sources.http import Client, Clock, Endpoint
from engine.text import counted
from engine.wanted import Key, Need, charged_of_lost, needs, out_of_reach
from engine.work import Summary, Work, clock_of, usage_left


def gather(work: Work, tenant: ConfluentTenant, given: Inputs, summary: Summary) -> Summary:
    """Fetch what days ask for and have not, in the fewest questions. What fails leaves its days waiting."""
    if tenant.metrics is None:
        return summary
    metered.adopt(work, tenant)
    asked = _asked(work, tenant, given)
    if not asked:
        return summary
    with Client(endpoint(work, tenant, tenant.metrics), Clock(*clock_of(work)), work.hooks.stop) as client:
        failed = _fetch_all(work, tenant, tenant.metrics, client, asked)
        requests = client.requests
    _tell_failures(work, failed)
    return summary._replace(requests=summary.requests + requests)


def _asked(work: Work, tenant: ConfluentTenant, given: Inputs) -> list[Ask]:
    """What days ask for and have not; if that is forced, what was given up, and what may not be all, too."""
    known = gather_state.day_metrics(work.store, tenant.id)
    warned = {number for number, one in gather_state.metric_fetches(work.store, tenant.id).items() if one.warned}
    found = list[Ask]()
    for key, need in sorted(needs(work.root, work.store, tenant, given).items()):
        one = known.get(key)
        if one is None or not work.request.lift:
            found.append(Ask(need, need.open_ids(one)))
        else:
            found.append(Ask(need, tuple(name for name in need.ids if name not in one.fetches)))
            found.append(Ask(need, _maybe_more(work, need, one, warned), anew=True))
    return [ask for ask in found if ask.ids]


def _maybe_more(work: Work, need: Need, known: DayMetric, warned: Collection[int]) -> tuple[str, ...]:
    """The answered resources of which there may be more: no value came, samples are lacking, or Prometheus warned.

    Or of which nobody knows whether it did, as the lake alone has their answer. It may have been another Prometheus, or
    one that was not filled yet; and nothing that is known can be taken back.
    """
    answered = tuple(name for name in need.ids if name in known.fetches)
    if known.gaps:
        # Of which of them is not known.
        return answered
    usage = usage_left(work, need.charge_date)
    there = set(usage.filter(pl.col("metric") == need.metric)["resource_id"])
    return tuple(name for name in answered if name not in there or known.fetches[name] in {metered.AS_STORED, *warned})


def endpoint(work: Work, tenant: ConfluentTenant | CostModelTenant, given: Prometheus) -> Endpoint:
    """Where a tenant's Prometheus is, and who asks; ConfigError if a variable that it names cannot be used."""

    def opened(key: str, variable: str | None) -> SecretStr | None:
        where = f"tenant {tenant.id}: metrics"
        return secret(Variable(variable, where, key), work.hooks.environment) if variable else None

    return Endpoint(
        url=given.url,
        key=opened("username", given.username),
        secret=opened("password", given.password),
        bearer=opened("bearer", given.bearer),
        timeout_seconds=float(given.timeout_seconds),
        requests_per_second=float(given.requests_per_second),
        attempts=given.attempts,
        ca_bundle=given.ca_bundle,
        known=work.known,
    )


def _stretches(asked: Sequence[Ask], days_per_query: int) -> Iterator[list[Ask]]:
    """What is asked, in stretches of days for which it can be asked at once."""
    rest = sorted(asked)
    while rest:
        end = date.fromisoformat(rest[0].need.charge_date) + timedelta(days=days_per_query)
        within = [ask for ask in rest if ask.need.charge_date < str(end)]
        rest = rest[len(within) :]
        yield within


def _questions(asked: Sequence[Ask]) -> list[Question]:
    """What is asked for a stretch of days as few questions: one a metric."""
    metrics = sorted({ask.need.metric for ask in asked})
    return [_question([ask for ask in asked if ask.need.metric == metric]) for metric in metrics]


def _question(asked: Sequence[Ask]) -> Question:
    by_need = dict[Need, set[str]]()
    for ask in asked:
        # What is open of a day, and what is asked anew, is answered, or fails, at once.
        by_need.setdefault(ask.need, set()).update(ask.ids)
    asks = tuple(Ask(need, tuple(sorted(ids))) for need, ids in by_need.items())
    first, last = (date.fromisoformat(ask.need.charge_date) for ask in (asked[0], asked[-1]))
    ids = tuple(sorted({one for ask in asked for one in ask.ids}))
    return Question(asked[0].need.metric, first, last + timedelta(days=1), ids, asks)


class _Failed(NamedTuple):
    """Why something was not answered for some days of a metric, and which of them are given up for it."""

    metric: str
    days: tuple[str, ...]
    error: str
    given_up: tuple[str, ...]


def _fetch_all(
    work: Work, tenant: ConfluentTenant, given: Prometheus, client: Client, asked: Sequence[Ask]
) -> list[_Failed]:
    failed, stretches = list[_Failed](), list(_stretches(asked, given.days_per_query))
    server: tuple[prometheus.Version, str] | None = None
    too_old = _too_old(work, tenant)
    for number, stretch in enumerate(stretches, start=1):
        work.stop_if_asked()
        answered, rest = metered.landed_answers(work, tenant, stretch)
        rest = [ask for ask in rest if ask.need.charge_date not in too_old]
        for question in _questions(rest):
            server = server or reached(client)
            version, unreachable = server
            try:
                if unreachable:
                    raise SourceError(unreachable)
                answer = _fetched(work, tenant, given, client, question, version)
                _tell_warnings(work, answer)
                whole, failures = _without_unmended(work, tenant, answer)
                answered.append(whole)
                failed += failures
            except (SourceError, ContractError) as error:
                of_days = [ask.need for ask in question.asks]
                failed.append(_record_failure(work, tenant, of_days, "; ".join(error.faults)))
        failed += _settled_less(work, tenant, metered.publish(work, tenant, answered))
        days = f"{stretch[0].need.charge_date} to {stretch[-1].need.charge_date}"
        work.log(f"metrics {number} of {len(stretches)}: {days}")
    return failed


def _too_old(work: Work, tenant: ConfluentTenant) -> set[str]:
    """Days that lost their usage, keep what they were charged, and that no run covers any more: nobody is asked."""
    kept = out_of_reach(work.root, work.store, tenant, work.now().date())
    return {day for day in kept if not work.request.forces(day)}


def reached(client: Client) -> tuple[prometheus.Version, str]:
    """What Prometheus is, and ''; or why it cannot be had, since every question would wait as long for the same."""
    try:
        return prometheus.buildinfo(client), ""
    except (SourceError, ContractError) as error:
        return prometheus.Version("", left_open=False), "; ".join(error.faults)


def _fetched(
    work: Work,
    tenant: ConfluentTenant,
    given: Prometheus,
    client: Client,
    question: Question,
    version: prometheus.Version,
) -> Answered:
    fetch_id = metered.next_number(work, tenant)
    landing = metered.landing_of(work.root, tenant, fetch_id)
    asked, days = METRICS[question.metric], (question.first, question.end)

    def ask_again(found: prometheus.Samples) -> dict[str, str]:
        return prometheus.fetch_samples(client, landing, asked.values, asked.series, days, version, found)

    try:
        for query in (asked.values, asked.counts):
            if query is not None:
                prometheus.fetch_days(
                    *(client, landing, query, days, version), ids=question.ids, ids_per_query=given.ids_per_query
                )
        return metered.read(landing, tenant, question, fetch_id, work.hooks.now(), ask_again)
    except (SourceError, ContractError):
        # What is not whole, or cannot be understood, is asked for again.
        landing.remove()
        raise


def _without_unmended(work: Work, tenant: ConfluentTenant, answer: Answered) -> tuple[Answered, list[_Failed]]:
    """An answer without the days whose samples could not be had: they fail, unless forced or at the limit."""
    asks, metric = answer.question.asks, answer.question.metric
    known = gather_state.day_metrics(work.store, tenant.id)
    failed, left_out = dict[str, list[Need]](), list[str]()
    for need in (ask.need for ask in asks):
        day = need.charge_date
        if day not in answer.unmended:
            continue
        attempts = _attempts(need, known.get((day, metric)))
        if attempts < tenant.allocation_retry_limit and not work.request.forces(day):
            failed.setdefault(answer.unmended[day], []).append(need)
        else:
            left_out.append(day)
    for day in left_out:
        work.warn(
            f"metric {metric}, {day}: values of the day that are no numbers"
            f" ({answer.dropped.get(day, 0)}) are left out, since their samples cannot be had: {answer.unmended[day]}"
        )
    gone = {need for needs_ in failed.values() for need in needs_}
    whole = answer.question._replace(asks=tuple(ask for ask in asks if ask.need not in gone))
    return answer._replace(question=whole), [_record_failure(work, tenant, *one[::-1]) for one in failed.items()]


def _attempts(need: Need, before: DayMetric | None) -> int:
    """How often the same question failed, once it does so again."""
    again = before is not None and before.status != "fetched" and need.is_the_question_of(before)
    return before.attempts + 1 if before is not None and again else 1


def _record_failure(work: Work, tenant: ConfluentTenant, failed: Sequence[Need], error: str) -> _Failed:
    """Count the failure on each of the days. What was answered before stays; at the limit, what the lake has does.

    So it does at once for a day that is forced. One of which all is answered, and that was asked anew, lacks nothing.
    """
    known = gather_state.day_metrics(work.store, tenant.id)
    unlike = metered.unlike_published(work, tenant)
    kept = charged_of_lost(work.root, work.store, tenant.id)
    rows = list[DayMetric]()
    for need in failed:
        before = known.get((need.charge_date, need.metric))
        if before is not None and before.fetches.keys() >= set(need.ids):
            continue
        attempts = _attempts(need, before)
        # A day that is charged as it should be, and only lost its usage, loses nothing by waiting.
        may_wait = attempts < tenant.allocation_retry_limit or need.charge_date in kept
        is_last = work.request.forces(need.charge_date) or not may_wait
        found = DayMetric(*need[:2], "given_up" if is_last else "failed", *need[2:], attempts=attempts, error=error)
        if before is not None:
            found = found._replace(**{name: getattr(before, name) for name in _OF_ANSWERS})
            found = found._replace(rows=need.rows_at_least(before))
        is_readable = need.charge_date not in unlike
        rows.append(metered.with_stored(work, need, found) if is_last and is_readable else found)
    gather_state.save_day_metrics(work.store, tenant.id, rows)
    given_up = tuple(row.charge_date for row in rows if row.status == "given_up")
    return _Failed(failed[0].metric, tuple(need.charge_date for need in failed), error, given_up)


_OF_ANSWERS = ("fetch_id", "dropped", "gaps", "fetches")


def _settled_less(work: Work, tenant: ConfluentTenant, less: Sequence[Less]) -> list[_Failed]:
    """Answers that were not taken are told; where a day cannot do without them, they are failures."""
    kept = charged_of_lost(work.root, work.store, tenant.id)
    failed, told, of_days = list[_Failed](), dict[str, list[Less]](), dict[Key, Less]()
    for one in less:
        of_days.setdefault(one.need[:2], one)
    for one in of_days.values():
        day, metric = one.need[:2]
        if one.is_stored or day in kept:
            told.setdefault(metric, []).append(one)
        else:
            error = f"{one.found} of the {counted(one.known, 'value')} that were fetched before and are lost"
            failed.append(_record_failure(work, tenant, [one.need], error))
    for metric, of_metric in told.items():
        days, first = ", ".join(one.need.charge_date for one in of_metric), of_metric[0]
        fewer = f"{first.found} instead of {counted(first.known, 'value')}"
        work.warn(
            f"metric {metric}: Prometheus says less of {counted(len(of_metric), 'day')} ({days}) than before"
            f" ({fewer if first.found < first.known else 'a smaller sum'} on the first): what is known stays"
        )
    return failed


def _tell_warnings(work: Work, answered: Answered) -> None:
    """What Prometheus says of an answer: it may be a part of the truth only, as far as anybody knows."""
    asked = answered.question
    days = f"{asked.first} to {asked.end - timedelta(days=1)}"
    for text in answered.warnings:
        work.warn(f"metric {asked.metric}, {days}: {prometheus.told(text)}")


def _tell_failures(work: Work, failed: Iterable[_Failed]) -> None:
    causes: dict[tuple[str, str], list[str]] = {}
    for one in failed:
        causes.setdefault((f"{one.days[0]} to {one.days[-1]}", one.error), []).append(one.metric)
        if one.given_up:
            work.warn(
                f"metric {one.metric}: given up for {counted(len(one.given_up), 'day')} from"
                f" {one.given_up[0]} on; the lines of resources that were not answered go to UNALLOCATED as"
                " allocation_failed, until `prorata run --force` asks again"
            )
    faults = [f"metrics {', '.join(metrics)}, {days}: {error}" for (days, error), metrics in causes.items()]
    if faults:
        work.problems.append(SourceError(faults))
