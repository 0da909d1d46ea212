"""Which metrics the days of a tenant ask for, and the usage that is fetched for them.

A day asks for what the ladders of its lines may weigh by. What was answered for a resource is not asked again, and is
read from the landed answers where it is lost; what failed is asked again, until it is given up. A metric that has no
values for a resource was answered all the same. An answer that says less than is known replaces nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import polars as pl
from pydantic import SecretStr

from engine import gather_state, state
from engine.config import ConfluentTenant, CostModelTenant, Prometheus
from engine.decide import Inputs
from engine.errors import ContractError, SourceError, StoreError, fault, shown
from engine.gather_state import DayMetric
from engine.sources import confluent_metrics, prometheus
from engine.sources.confluent_metrics import METRICS
from engine.sources.http import Client, Clock, Endpoint
from engine.sources.landing import Landing
from engine.text import counted, printable
from engine.wanted import Key, Need, charged_of_lost, irreplaceable, lost_usage, needs, statements_lost
from engine.work import Summary, Work, clock_of, publish_usage, raw_folder, secret, usage_left, usage_of


class Ask(NamedTuple):
    """What is asked for a day: some of the resources of what it needs; `anew`, though it was answered."""

    need: Need
    ids: tuple[str, ...]
    anew: bool = False


def gather(work: Work, tenant: ConfluentTenant, given: Inputs, summary: Summary) -> Summary:
    """Fetch what days ask for and have not, in the fewest questions. What fails leaves its days waiting."""
    if tenant.metrics is None:
        return summary
    _adopt(work, tenant)
    asked = _asked(work, tenant, given)
    if not asked:
        return summary
    with Client(endpoint(work, tenant, tenant.metrics), Clock(*clock_of(work)), work.hooks.stop) as client:
        failed = _fetch_all(work, tenant, tenant.metrics, client, asked)
        requests = client.requests
    _tell_failures(work, failed)
    return summary._replace(requests=summary.requests + requests)


def _asked(work: Work, tenant: ConfluentTenant, given: Inputs) -> list[Ask]:
    """What days ask for and have not; if that is forced, what was given up, and what may be a part only, too."""
    known = gather_state.day_metrics(work.store, tenant.id)
    warned = {number for number, one in gather_state.metric_fetches(work.store, tenant.id).items() if one.warned}
    found = list[Ask]()
    for key, need in sorted(needs(work.root, work.store, tenant, given).items()):
        one = known.get(key)
        if one is None or not work.request.lift:
            found.append(Ask(need, need.open_ids(one)))
        else:
            found.append(Ask(need, tuple(name for name in need.ids if name not in one.fetches)))
            partly = tuple(name for name in need.ids if one.fetches.get(name) in warned)
            found.append(Ask(need, partly, anew=True))
    return [ask for ask in found if ask.ids]


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
    """A metric of some resources over the days from `first` to before `end`, for some of them."""

    metric: str
    first: date
    end: date
    ids: tuple[str, ...]
    asks: tuple[Ask, ...]


def _stretches(asked: Sequence[Ask], days_per_query: int) -> Iterator[list[Ask]]:
    """What is asked, in stretches of days for which it can be asked at once."""
    rest = sorted(asked)
    while rest:
        end = date.fromisoformat(rest[0].need.charge_date) + timedelta(days=days_per_query)
        within = [ask for ask in rest if ask.need.charge_date < str(end)]
        rest = rest[len(within) :]
        yield within


def _questions(asked: Sequence[Ask]) -> list[_Question]:
    """What is asked for a stretch of days as few questions: one a metric."""
    metrics = sorted({ask.need.metric for ask in asked})
    return [_question([ask for ask in asked if ask.need.metric == metric]) for metric in metrics]


def _question(asked: Sequence[Ask]) -> _Question:
    first, last = (date.fromisoformat(ask.need.charge_date) for ask in (asked[0], asked[-1]))
    ids = tuple(sorted({one for ask in asked for one in ask.ids}))
    return _Question(asked[0].need.metric, first, last + timedelta(days=1), ids, tuple(asked))


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
    for number, stretch in enumerate(stretches, start=1):
        work.stop_if_asked()
        answered, rest = _landed_answers(work, tenant, stretch)
        for question in _questions(rest):
            server = server or _server(client)
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
        failed += _publish(work, tenant, answered)
        days = f"{stretch[0].need.charge_date} to {stretch[-1].need.charge_date}"
        work.log(f"metrics {number} of {len(stretches)}: {days}")
    return failed


def _server(client: Client) -> tuple[prometheus.Version, str]:
    """What Prometheus is; or why it cannot be had, since every question would wait as long for the same."""
    try:
        return prometheus.buildinfo(client), ""
    except (SourceError, ContractError) as error:
        return prometheus.Version("", left_open=False), "; ".join(error.faults)


class _Answered(NamedTuple):
    """A question's answer: USAGE, for each day what was dropped, and for each day and resource what is lacking.

    `unmended`: days of which a point is dropped although most of its samples may be numbers, with the reason.
    """

    question: _Question
    fetch_id: int
    usage: pl.DataFrame
    dropped: dict[str, int]
    gaps: dict[tuple[str, str], int]
    fetched_at: str
    warnings: tuple[str, ...]
    unmended: Mapping[str, str]

    def usage_of(self, day: str, ids: Collection[str]) -> pl.DataFrame:
        """USAGE of some resources on a day."""
        return self.usage.filter(pl.col("window") == day, pl.col("resource_id").is_in(list(ids)))

    def gaps_of(self, day: str, ids: Iterable[str]) -> int:
        """How many samples of some resources are lacking on a day."""
        return sum(self.gaps.get((day, resource), 0) for resource in ids)


def _fetched(
    work: Work,
    tenant: ConfluentTenant,
    given: Prometheus,
    client: Client,
    question: _Question,
    version: prometheus.Version,
) -> _Answered:
    fetch_id = _next_number(work, tenant)
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

    def ask_again(found: prometheus.Samples) -> dict[str, str]:
        days = (question.first, question.end)
        return prometheus.fetch_samples(client, landing, asked.values, asked.series, days, version, found)

    return _read(landing, tenant, question, fetch_id, work.hooks.now(), ask_again)


def landing_of(root: Path, tenant: ConfluentTenant, fetch_id: int) -> Landing:
    """Where the answers to one question are landed."""
    return Landing(raw_folder(root, tenant) / "metrics" / f"{fetch_id:06}")


def _read(
    landing: Landing,
    tenant: ConfluentTenant,
    question: _Question,
    fetch_id: int,
    at: str = "",
    ask_again: Callable[[prometheus.Samples], dict[str, str]] | None = None,
) -> _Answered:
    """What was landed for a question; days that one sample made no number are asked for again, sample by sample."""
    asked, days = METRICS[question.metric], (question.first, question.end)
    samples = prometheus.parse_days(landing.read(prometheus.landed_name(asked.values, days)), asked.values, days)
    unmended = dict[str, str]()
    if samples.dropped.height:
        unmended = ask_again(samples) if ask_again is not None else {}
        raw = prometheus.samples_name(asked.values, days)
        # What was landed by older versions has none.
        if landing.has(raw):
            samples = prometheus.mended(samples, landing.read(raw), asked.values, asked.series, days)
    if ask_again is None:
        unmended = dict.fromkeys(samples.unseen, "not landed")
    found = confluent_metrics.measured(samples, question.metric, tenant.id)
    gaps, warnings = dict[tuple[str, str], int](), found.warnings
    if asked.counts is not None and tenant.metrics is not None:
        counts = landing.read(prometheus.landed_name(asked.counts, days))
        lacking = confluent_metrics.gaps(counts, question.metric, days, question.ids, tenant.metrics.scrape_seconds)
        gaps = {(day, resource): missing for day, resource, missing in lacking.missing.rows()}
        warnings = tuple(dict.fromkeys([*warnings, *lacking.warnings]))
    return _Answered(question, fetch_id, found.usage, dict(found.dropped.rows()), gaps, at, warnings, unmended)


def _without_unmended(work: Work, tenant: ConfluentTenant, answer: _Answered) -> tuple[_Answered, list[_Failed]]:
    """An answer without the days whose samples could not be had: they fail, and at the limit are taken as they are."""
    asks, metric = answer.question.asks, answer.question.metric
    known = gather_state.day_metrics(work.store, tenant.id)
    failed, left_out = dict[str, list[Need]](), list[str]()
    for need in (ask.need for ask in asks):
        day = need.charge_date
        if day not in answer.unmended:
            continue
        if _attempts(need, known.get((day, metric))) < tenant.allocation_retry_limit:
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
    """Count the failure on each of the days. What was answered before stays."""
    known = gather_state.day_metrics(work.store, tenant.id)
    kept = charged_of_lost(work.root, work.store, tenant.id)
    rows = list[DayMetric]()
    for need in failed:
        before = known.get((need.charge_date, need.metric))
        attempts = _attempts(need, before)
        # A day that is charged as it should be, and only lost its usage, loses nothing by waiting.
        is_last = attempts >= tenant.allocation_retry_limit and need.charge_date not in kept
        found = DayMetric(*need[:2], "given_up" if is_last else "failed", *need[2:], attempts=attempts, error=error)
        if before is not None:
            found = found._replace(**{name: getattr(before, name) for name in _OF_ANSWERS})
        rows.append(found)
    gather_state.save_day_metrics(work.store, tenant.id, rows)
    given_up = tuple(row.charge_date for row in rows if row.status == "given_up")
    return _Failed(failed[0].metric, tuple(need.charge_date for need in failed), error, given_up)


_OF_ANSWERS = ("fetch_id", "rows", "dropped", "gaps", "fetches")
AS_STORED = 0
"""Stands for the number of a question where usage is as it was found in the lake: no answer is landed under it."""


def _publish(work: Work, tenant: ConfluentTenant, answered: Sequence[_Answered]) -> list[_Failed]:
    """Answers of one stretch of days -> the lake, then the state. What says less than is known changes nothing.

    Usage that is lost stays so until `settle`, when it is whole.
    """
    known = gather_state.day_metrics(work.store, tenant.id)
    lost = lost_usage(work.root, work.store, tenant.id)
    unlike = lost & gather_state.usage_days(work.store, tenant.id).keys()
    wanted: dict[str, list[tuple[_Answered, Ask]]] = {}
    for one in answered:
        for ask in one.question.asks:
            wanted.setdefault(ask.need.charge_date, []).append((one, ask))
    rows, published, gone = dict[Key, DayMetric](), list[gather_state.UsageDay](), list[str]()
    less = list[_Less]()
    for day, of_day in sorted(wanted.items()):
        usage = usage_left(work, day)
        for one, ask in of_day:
            key = (day, ask.need.metric)
            before = rows.get(key, known.get(key))
            usage, after, said_less = _merged(usage, one, ask, before, is_lost=day in unlike)
            rows |= {key: after} if after is not None else {}
            less += [said_less] if said_less is not None else []
        done = publish_usage(work, day, usage)
        if day not in lost:
            published += [done] if done else []
            gone += [] if done else [day]
    with work.store.transaction():
        for one in answered:
            if one.fetched_at:
                _record(work, tenant, one)
        gather_state.save_usage_days(work.store, tenant.id, published, gone)
        gather_state.save_day_metrics(work.store, tenant.id, rows.values())
    return _settled_less(work, tenant, less)


class _Less(NamedTuple):
    """An answer with less than is known of a day. `is_stored`: what is known lies in the lake."""

    need: Need
    found: int
    known: int
    is_stored: bool


def _merged(
    usage: pl.DataFrame, one: _Answered, ask: Ask, before: DayMetric | None, *, is_lost: bool
) -> tuple[pl.DataFrame, DayMetric | None, _Less | None]:
    """USAGE of a day with an answer in it, and what is known of its metric then; or why the answer is not taken.

    `is_lost`: what lies in the lake is not what was published, and nobody knows what it is.
    """
    need = ask.need
    is_asked = (pl.col("metric") == need.metric) & pl.col("resource_id").is_in(list(ask.ids))
    stored, others = usage.filter(is_asked), usage.filter(~is_asked)
    found = one.usage_of(need.charge_date, ask.ids)
    rows = found.height + others.filter(pl.col("metric") == need.metric).height
    if is_lost and before is not None and rows < before.rows:
        return usage, None, _Less(need, rows, before.rows, is_stored=False)
    kept = [] if is_lost else _less_known(found, stored)
    is_kept = pl.col("resource_id").is_in(kept)
    usage = pl.concat([others, found.filter(~is_kept), stored.filter(is_kept)])
    known = before.fetches if before is not None else {}
    fetches = {name: known.get(name, AS_STORED) if name in kept else one.fetch_id for name in ask.ids}
    after = _with_answers(need, before, usage.filter(pl.col("metric") == need.metric).height, fetches)
    # A resource that has no lines on the day may not have been there, and lacks nothing.
    dropped, gaps = one.dropped.get(need.charge_date, 0), one.gaps_of(need.charge_date, ask.ids)
    if kept:
        dropped, gaps = (before.dropped, before.gaps) if before is not None else (0, 0)
    elif before is not None and set(after.ids) - set(ask.ids):
        dropped, gaps = dropped + before.dropped, gaps + before.gaps
    less = _Less(need, found.filter(is_kept).height, stored.filter(is_kept).height, is_stored=True) if kept else None
    return usage, after._replace(dropped=dropped, gaps=gaps), less


def _less_known(found: pl.DataFrame, stored: pl.DataFrame) -> list[str]:
    """The resources of which an answer has fewer principals than are stored, or less of them in all."""
    sums = (pl.len().alias("principals"), pl.col("value").sum())
    new, old = (one.group_by("resource_id").agg(*sums) for one in (found, stored))
    both = old.join(new, on="resource_id", how="left", suffix="_found", validate="1:1")
    is_less = (pl.col("principals_found") < pl.col("principals")) | (pl.col("value_found") < pl.col("value"))
    return sorted(both.filter(is_less.fill_null(value=True))["resource_id"])


def _with_answers(need: Need, before: DayMetric | None, rows: int, fetches: Mapping[str, int]) -> DayMetric:
    """What is known of a metric when some resources more are answered."""
    known = {name: number for name, number in (before.fetches if before else {}).items() if name in need.ids}
    merged = dict(sorted({**known, **fetches}.items()))
    last = max(merged.values())
    if set(need.ids) <= merged.keys():
        return DayMetric(*need[:2], "fetched", *need[2:], last, rows, fetches=merged)
    left = before or DayMetric(*need[:2], "failed", *need[2:])
    return left._replace(fetch_id=last, rows=rows, fetches=merged)


def _record(work: Work, tenant: ConfluentTenant, one: _Answered) -> None:
    asked, warned = one.question, int(bool(one.warnings or one.unmended))
    fetch = gather_state.MetricFetch(
        one.fetch_id, asked.metric, str(asked.first), str(asked.end), asked.ids, one.fetched_at, warned
    )
    gather_state.record_fetch(work.store, tenant.id, fetch)


def _settled_less(work: Work, tenant: ConfluentTenant, less: Sequence[_Less]) -> list[_Failed]:
    """Answers that were not taken are told; where a day cannot do without them, they are failures."""
    kept = charged_of_lost(work.root, work.store, tenant.id)
    failed, told = list[_Failed](), dict[str, list[_Less]]()
    for one in less:
        day, metric = one.need[:2]
        if one.is_stored or day in kept:
            told.setdefault(metric, []).append(one)
        else:
            error = f"{one.found} of the {counted(one.known, 'value')} that were fetched before and are lost"
            failed.append(_record_failure(work, tenant, [one.need], error))
    for metric, of_metric in told.items():
        days, first = ", ".join(one.need.charge_date for one in of_metric), of_metric[0]
        work.warn(
            f"metric {metric}: Prometheus says less of {counted(len(of_metric), 'day')} ({days}) than before"
            f" ({first.found} instead of {counted(first.known, 'value')} on the first): what is known stays"
        )
    return failed


def _next_number(work: Work, tenant: ConfluentTenant) -> int:
    """A number that no question has, nor a folder of answers that the state does not know."""
    landed = _landed_numbers(work, tenant)
    return max(gather_state.next_fetch_id(work.store, tenant.id), max(landed, default=0) + 1)


def _landed_numbers(work: Work, tenant: ConfluentTenant) -> list[int]:
    folder = raw_folder(work.root, tenant) / "metrics"
    try:
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise StoreError(fault(str(folder), f"cannot be read ({error.strerror})", "a folder of answers")) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


# Landed answers


def _adopt(work: Work, tenant: ConfluentTenant) -> None:
    """Answers that are landed whole and that the state does not know, as it was lost or a run died: known again."""
    known = gather_state.metric_fetches(work.store, tenant.id)
    for number in _landed_numbers(work, tenant):
        if number in known:
            continue
        landing = landing_of(work.root, tenant, number)
        question = _landed_question(landing)
        answer = _read_kept(work, tenant, question, number) if question is not None else None
        if answer is None:
            landing.remove()
            continue
        ids = tuple(answer.usage["resource_id"].unique().sort())
        answer = answer._replace(question=answer.question._replace(ids=ids), fetched_at=work.hooks.now())
        with work.store.transaction():
            _record(work, tenant, answer)


def _landed_question(landing: Landing) -> _Question | None:
    """What was asked, by the names of what was landed; None if it is not whole."""
    names = landing.names()
    for name in names:
        found = _LANDED.fullmatch(name)
        if found is not None and found["metric"] in METRICS:
            days = date.fromisoformat(found["first"]), date.fromisoformat(found["end"])
            counts = METRICS[found["metric"]].counts
            is_whole = counts is None or prometheus.landed_name(counts, days) in names
            return _Question(found["metric"], *days, (), ()) if is_whole else None
    return None


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_LANDED = re.compile(f"(?P<metric>[a-z_]+)-(?P<first>{_DAY})-(?P<end>{_DAY})")


def _read_kept(work: Work, tenant: ConfluentTenant, question: _Question, number: int) -> _Answered | None:
    """The landed answers to a question; None, and told, if they cannot be read, or if there are none any more."""
    landing = landing_of(work.root, tenant, number)
    if not landing.names():
        return None
    try:
        return _read(landing, tenant, question, number)
    except StoreError as error:
        work.warn(f"{error}")
        return None


def _kept_answer(work: Work, tenant: ConfluentTenant, fetch: gather_state.MetricFetch | None) -> _Answered | None:
    if fetch is None:
        return None
    days = date.fromisoformat(fetch.first_day), date.fromisoformat(fetch.end_day)
    return _read_kept(work, tenant, _Question(fetch.metric, *days, fetch.ids, ()), fetch.fetch_id)


def _landed_answers(work: Work, tenant: ConfluentTenant, asked: Sequence[Ask]) -> tuple[list[_Answered], list[Ask]]:
    """What landed answers have of what is asked, oldest first; and what they have nothing of, or not all."""
    found = list[_Answered]()
    rest = {(ask.need.charge_date, ask.need.metric): ask for ask in asked if not ask.anew}
    for fetch in gather_state.metric_fetches(work.store, tenant.id).values():
        covered = {
            key: tuple(one for one in ask.ids if one in fetch.ids)
            for key, ask in rest.items()
            if key[1] == fetch.metric and fetch.first_day <= key[0] < fetch.end_day
        }
        answer = _kept_answer(work, tenant, fetch) if any(covered.values()) else None
        if answer is None:
            continue
        there = set(answer.usage.select("window", "resource_id").unique().rows())
        taken = {
            key: tuple(one for one in ids if (key[0], one) in there)
            for key, ids in covered.items()
            if key[0] not in answer.unmended
        }
        asks = tuple(Ask(rest[key].need, ids) for key, ids in taken.items() if ids)
        if asks:
            found.append(answer._replace(question=answer.question._replace(asks=asks)))
        for key, ids in taken.items():
            rest[key] = rest[key]._replace(ids=tuple(one for one in rest[key].ids if one not in ids))
    return found, sorted([*(ask for ask in rest.values() if ask.ids), *(ask for ask in asked if ask.anew)])


def _landed_usage(
    work: Work, tenant: ConfluentTenant, known: Iterable[DayMetric]
) -> Iterator[tuple[str, list[tuple[DayMetric, dict[str, _Answered]]]]]:
    """Days, and for each of their metrics the landed answer of each resource, as far as it is kept."""
    fetches = gather_state.metric_fetches(work.store, tenant.id)
    read = dict[int, _Answered | None]()
    for day, group in groupby(known, key=lambda one: one.charge_date):
        of_day = list(group)
        numbers = {number for one in of_day for number in one.fetches.values()}
        # Those of one day at a time; those after it mostly have the same.
        read = {
            one: read[one] if one in read else _kept_answer(work, tenant, fetches.get(one)) for one in sorted(numbers)
        }
        yield (
            day,
            [
                (one, {name: answer for name, number in one.fetches.items() if (answer := read[number]) is not None})
                for one in of_day
            ],
        )


def _reread(usage: pl.DataFrame, one: DayMetric, answers: Mapping[str, _Answered]) -> tuple[pl.DataFrame, DayMetric]:
    """USAGE of a day as the landed answers have it, and what is known of the metric then; the rest is as it was."""
    if not answers:
        return usage, one
    by_number = {answer.fetch_id: answer for answer in answers.values()}
    ids = {number: [name for name in answers if answers[name].fetch_id == number] for number in by_number}
    is_answered = (pl.col("metric") == one.metric) & pl.col("resource_id").is_in(list(answers))
    found = [answer.usage_of(one.charge_date, ids[number]) for number, answer in by_number.items()]
    usage = pl.concat([usage.filter(~is_answered), *found])
    if answers.keys() != one.fetches.keys():
        return usage, one
    return usage, one._replace(
        rows=usage.filter(pl.col("metric") == one.metric).height,
        dropped=sum(answer.dropped.get(one.charge_date, 0) for answer in by_number.values()),
        gaps=sum(answer.gaps_of(one.charge_date, ids[number]) for number, answer in by_number.items()),
    )


def restore(work: Work, tenant: ConfluentTenant) -> None:
    """Lost usage -> the lake again, as the landed answers have it. What is not landed any more is open again."""
    lost = lost_usage(work.root, work.store, tenant.id)
    if not lost:
        return
    if gone := sorted(statements_lost(work.root, work.store, tenant.id) & lost):
        work.warn(
            f"usage of {counted(len(gone), 'day')} ({', '.join(gone)}) is lost, and no answer is kept that says which"
            " statements ran: the bill is another one since, and is charged without them"
        )
    known = [one for one in gather_state.day_metrics(work.store, tenant.id).values() if one.charge_date in lost]
    for day, of_day in _landed_usage(work, tenant, known):
        usage, rows = usage_left(work, day), list[DayMetric]()
        for one, by_resource in of_day:
            usage, after = _reread(usage, one, by_resource)
            unread = [name for name in one.fetches if name not in by_resource]
            usage = usage.filter((pl.col("metric") != one.metric) | ~pl.col("resource_id").is_in(unread))
            rows.append(after._replace(fetches={name: one.fetches[name] for name in by_resource}))
        publish_usage(work, day, usage)
        gather_state.save_day_metrics(work.store, tenant.id, rows)


def replay(work: Work, tenant: ConfluentTenant) -> None:
    """Read the landed answers of all days again, without asking anybody. Lost usage is as `restore` left it."""
    lost = lost_usage(work.root, work.store, tenant.id) | irreplaceable(work.root, work.store, tenant.id)
    known = gather_state.day_metrics(work.store, tenant.id).values()
    for day, of_day in _landed_usage(work, tenant, (one for one in known if one.charge_date not in lost)):
        usage, rows = usage_of(work, day), list[DayMetric]()
        for one, by_resource in of_day:
            usage, after = _reread(usage, one, by_resource)
            rows.append(after)
        done = publish_usage(work, day, usage)
        with work.store.transaction():
            gather_state.save_usage_days(work.store, tenant.id, [done] if done else [], [] if done else [day])
            gather_state.save_day_metrics(work.store, tenant.id, rows)


# Telling


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
        causes.setdefault((f"{one.days[0]} to {one.days[-1]}", one.error), []).append(one.metric)
        if one.given_up:
            work.warn(
                f"metric {one.metric}: given up for {counted(len(one.given_up), 'day')} from"
                f" {one.given_up[0]} on; their lines go to UNALLOCATED as allocation_failed, until"
                " `prorata run --force` asks again"
            )
    faults = [f"metrics {', '.join(metrics)}, {days}: {error}" for (days, error), metrics in causes.items()]
    if faults:
        work.problems.append(SourceError(faults))


# Whether a day has all


def settle(work: Work, tenant: ConfluentTenant, given: Inputs) -> None:
    """Say of every day whether it has all that it asks for; usage that nobody asks for any more is taken out."""
    wanted = needs(work.root, work.store, tenant, given)
    known = _narrowed(work, tenant, wanted)
    by_day: dict[str, list[DayMetric | None]] = {}
    for key, need in wanted.items():
        if need.open_ids(known.get(key)):
            by_day.setdefault(need.charge_date, []).append(known.get(key))
    flags = []
    for _, day in state.days(work.store, tenant.id):
        open_ = by_day.get(day, [])
        failed = [one for one in open_ if one is not None and one.error]
        attempts = max((one.attempts for one in failed), default=0)
        flags.append(gather_state.MetricsFlag(day, int(not open_), attempts, failed[0].error if failed else None))
    gather_state.set_metrics_gathered(work.store, tenant.id, flags)
    lost = lost_usage(work.root, work.store, tenant.id)
    if kept := sorted(lost & charged_of_lost(work.root, work.store, tenant.id)):
        work.warn(
            f"usage of {counted(len(kept), 'day')} ({', '.join(kept)}) is lost, and cannot be had now: what was charged"
            " by it stays as it is"
        )


def _narrowed(work: Work, tenant: ConfluentTenant, wanted: Mapping[Key, Need]) -> dict[Key, DayMetric]:
    """What is known, without what is not asked for any more, in the state and in the lake.

    So the usage of a day does not depend on what it once asked for. Lost usage that is whole again, or of a day that
    waits no longer for the rest of it, is what is published from now on.
    """
    known = gather_state.day_metrics(work.store, tenant.id)
    has_metrics = tenant.metrics is not None
    gone = [key for key in known if key not in wanted] if has_metrics else []
    fewer = {key: _fewer(one, wanted[key]) for key, one in known.items() if key in wanted}
    fewer = {key: one for key, one in fewer.items() if one != known[key]}
    waiting = {need.charge_date for key, need in wanted.items() if need.open_ids(fewer.get(key, known.get(key)))}
    lost = lost_usage(work.root, work.store, tenant.id)
    # Who has no metrics any more cannot tell what a day lacks.
    settled = lost - (waiting if has_metrics else charged_of_lost(work.root, work.store, tenant.id))
    if not gone and not fewer and not settled:
        return known
    changed = {day for day, _ in (*gone, *fewer)}
    published, withdrawn, rows = list[gather_state.UsageDay](), list[str](), dict[Key, int]()
    for day in sorted((changed - lost) | settled):
        usage = usage_left(work, day)
        if has_metrics:
            usage = _asked_only(usage, {key[1]: need.ids for key, need in wanted.items() if key[0] == day})
        rows |= {(day, metric): count for metric, count in usage.group_by("metric").len().rows()}
        done = publish_usage(work, day, usage)
        published += [done] if done else []
        withdrawn += [] if done else [day]
    rewritten = {one.charge_date for one in published} | set(withdrawn)
    after = [one._replace(rows=rows.get(key, 0)) if key[0] in rewritten else one for key, one in fewer.items()]
    with work.store.transaction():
        gather_state.save_usage_days(work.store, tenant.id, published, withdrawn)
        gather_state.save_day_metrics(work.store, tenant.id, after, gone)
    return gather_state.day_metrics(work.store, tenant.id)


def _fewer(one: DayMetric, need: Need) -> DayMetric:
    """What is known of a metric of which no more is asked for; all of it may be answered then."""
    fetches = {name: number for name, number in one.fetches.items() if name in need.ids}
    if set(need.ids) <= fetches.keys():
        same = one.status == "fetched" and one.ids == need.ids
        return one if same else one._replace(status="fetched", ids=need.ids, fetches=fetches, attempts=0, error=None)
    return one._replace(fetches=fetches)


def _asked_only(usage: pl.DataFrame, asked: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """USAGE of a day without the metrics of resources that its lines do not ask for."""
    wanted = pl.DataFrame(
        [(metric, one) for metric, ids in asked.items() for one in ids],
        schema={"metric": pl.String, "resource_id": pl.String},
        orient="row",
    )
    is_metric = pl.col("metric").is_in(list(METRICS))
    ours = usage.filter(is_metric).join(wanted, on=["metric", "resource_id"], how="semi")
    return pl.concat([usage.filter(~is_metric), ours])
