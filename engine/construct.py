"""Tenants without a bill: days are made from a cost model, and from what Prometheus answers to its questions.

Answers are landed first. A question that was answered for a day is not asked again, so a rate that changes asks
nothing; what a day is made from is kept as a digest, so that a cost model that changes makes those days anew that it
touches, and no others. A day that has lines is not made of less than it was made of (`Known.keeps`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import polars as pl
from pydantic import SecretStr

from engine import gather_state, lake, metered, metrics, state
from engine.config import CostModelTenant, KafkaTenant
from engine.cost_days import (
    QUANTITIES,
    Known,
    incomplete,
    is_less,
    is_poorer,
    landed_in,
    lost,
    made_of,
    told_incomplete,
    told_kept,
    told_lost,
    told_removed,
    told_span,
    told_unknown,
    told_without_rules,
    window,
    without_rules,
)
from engine.credentials import Variable, secret
from engine.errors import ContractError, SourceError, StoreError, fault
from engine.frames import BILLING, RESOURCES, USAGE, Table, empty
from engine.gather_state import ConstructedDay, DayMetric, MetricFetch, MetricsFlag
from engine.sources import cost_model, cost_rates, kafka_admin, prometheus
from engine.sources.cost_questions import Question, Use, questions
from engine.sources.http import Client, Clock
from engine.sources.landing import Landing
from engine.sources.prometheus import Samples
from engine.sources.promql import Query, Window
from engine.text import counted
from engine.wanted import only_in_lake
from engine.work import (
    Summary,
    Work,
    check_variables,
    clock_of,
    known_days,
    publish_billing,
    publish_usage,
    raw_folder,
    withdraw,
)

RESIDUE_DECIMALS = 24
UNHEARD_MAX = 2
"""So many times in a row a question is left without any answer, however often tried, before it is asked no more in a
run; and so many questions, before it is tried whether the server answers a light one."""


def gather(work: Work, tenant: CostModelTenant, summary: Summary) -> Summary:
    """Ask what has not been answered yet, and make the days that are made of something else than before."""
    days = _days(*window(tenant, work.now().date()))
    check_variables(work)
    _ask_cluster(work, tenant)
    _adopt(work, tenant)
    known = _recalled(work, tenant, days)
    unreadable = _unreadable(work, tenant, known, days)
    if unreadable:
        known = _recalled(work, tenant, days, unreadable)
    asked = _open_questions(work, known, days)
    requests = _fetch(work, tenant, known, asked)
    _forget_old(work, tenant)
    summary = summary._replace(requests=summary.requests + requests)
    asked_for = {str(day) for one in asked for day in one.days}
    return _made_anew(work, tenant, summary, days, _known(work, tenant, unreadable), asked_for=asked_for)


def _known(work: Work, tenant: CostModelTenant, unreadable: Collection[int] = ()) -> Known:
    span = window(tenant, work.now().date())
    return Known(work.root, work.store, tenant, span, unreadable=unreadable, forced=work.request.forces)


def _days(first: date, end: date) -> list[date]:
    return [first + timedelta(days=number) for number in range((end - first).days)]


def _ask_cluster(work: Work, tenant: CostModelTenant) -> None:
    """The brokers and topics of a Kafka cluster as it says itself, if it is to be asked. A failure is only told."""
    admin = tenant.source.admin if isinstance(tenant, KafkaTenant) else None
    if admin is None:
        return
    where = f"tenant {tenant.id}: source: admin"

    def opened(key: str, variable: str | None) -> SecretStr | None:
        return secret(Variable(variable, where, key, is_header=False), work.hooks.environment) if variable else None

    given = kafka_admin.properties(admin, opened("username", admin.username), opened("password", admin.password))
    landing = Landing(raw_folder(work.root, tenant) / "admin")
    try:
        kafka_admin.fetch(given, landing, where, float(admin.timeout_seconds), work.known)
        found = [(str(work.now().date()), *one) for one in kafka_admin.parse(landing.read(kafka_admin.NAME), where)]
    except (SourceError, ContractError) as error:
        work.problems.append(error)
        return
    seen = pl.DataFrame(found, schema=["window", "type", "display_name"], orient="row")
    if seen.height:
        _fold_resources(work, tenant, cost_model.resources_seen(tenant, seen))


# Landed answers


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_LANDED = re.compile(f"(?P<name>.+)-(?P<first>{_DAY})-(?P<end>{_DAY})")


def _adopt(work: Work, tenant: CostModelTenant) -> None:
    """Answers to questions of now that are landed and that the state does not know, as it was lost: known again.

    What a run that died had not landed whole is removed. What was answered to other questions stays.
    """
    known, now = gather_state.metric_fetches(work.store, tenant.id), work.hooks.now()
    for number in metered.landed_numbers(work, tenant):
        if number in known:
            continue
        landing = _landing(work, tenant, number)
        # The values come before their counts, whose name is longer.
        found = next((name for name in map(_LANDED.fullmatch, landing.names()) if name), None)
        if found is None:
            landing.remove()
            continue
        fetch = MetricFetch(number, found["name"], found["first"], found["end"], (), now)
        try:
            question = _landed_question(landing, fetch, questions(tenant))
            if question is None:
                continue
            if len(landing.names()) < (1 if question.counts is None else 2):
                landing.remove()
                continue
            samples = _samples(work, tenant, question, fetch)
            fetch = fetch._replace(ids=(question.digest,), warned=int(bool(samples.warnings)))
            seen = cost_model.resources(tenant, {question.name: samples})
        except (StoreError, ContractError) as error:
            # Known from now on, as the answer to no question, so that it is told once.
            work.warn(f"{error}; not used")
            seen = empty(RESOURCES)
        with work.store.transaction():
            gather_state.record_fetch(work.store, tenant.id, fetch)
            _fold_resources(work, tenant, seen)


def _landed_question(landing: Landing, fetch: MetricFetch, asked: Iterable[Question]) -> Question | None:
    """The question, of those that are asked, to which answers are landed; their counts may not be landed yet."""
    posted = {
        name: [dict(parse_qsl(urlsplit(page.url).query)) for page in landing.read(name)] for name in landing.names()
    }

    def is_answered(query: Query, *, absent_ok: bool) -> bool:
        found = posted.get(prometheus.landed_name(query, _span(fetch)))
        versions = (prometheus.Version("", left_open=left_open) for left_open in (False, True))
        forms = (prometheus.range_forms(query, _span(fetch), version, (), 1) for version in versions)
        return absent_ok if found is None else found in forms

    for question in asked:
        landed = question.landed_as(fetch.metric)
        has_counts = landed.counts is None or is_answered(landed.counts, absent_ok=True)
        if has_counts and is_answered(landed.values, absent_ok=False):
            return question
    return None


# Questions


class Open(NamedTuple):
    """A question and the days on which it is yet to be answered."""

    question: Question
    days: tuple[date, ...]


def _open_questions(work: Work, known: Known, days: Sequence[date]) -> list[Open]:
    """What is to be asked: what was not answered, and what came incomplete where the day waits for more."""
    lifted = {day for day in days if work.request.lift and work.request.covers(str(day))}
    found = [
        Open(one, tuple(day for day in days if known.is_open(one, str(day), lift=day in lifted)))
        for one in known.questions.values()
    ]
    return [one for one in found if one.days]


def _recalled(
    work: Work, tenant: CostModelTenant, days: Sequence[date] = (), unreadable: Collection[int] = ()
) -> Known:  # fmt: skip
    """What is known, after days that lack an answer have taken what was landed before to the question as it is now.

    So a change of a question that is taken back asks nothing, and finds what may not be had again. Samples are counted
    again where another number of them is expected by now.
    """
    known, found = _known(work, tenant, unreadable), list[DayMetric]()
    wanted = sorted({*map(str, days), *known.made})
    for question in known.questions.values():
        landed = dict[int, list[str]]()
        for day in wanted:
            for number in _to_recall(tenant, known, question, day) if known.is_wanted(question, day) else ():
                landed.setdefault(number, []).append(day)
        best = dict[str, DayMetric]()
        for number, of_days in sorted(landed.items()):
            try:
                rows, _ = _answered(work, tenant, question, known.fetches[number], of_days)
            except (StoreError, ContractError) as error:
                work.warn(str(error))
                continue
            best |= {
                one.charge_date: one
                for one in rows
                if not _is_surpassed(known, question, one, best.get(one.charge_date))
            }
        found += best.values()
    if not found:
        return known
    gather_state.save_day_metrics(work.store, tenant.id, found)
    return _known(work, tenant, unreadable)


def _to_recall(tenant: CostModelTenant, known: Known, question: Question, day: str) -> list[int]:
    """The numbers of landed answers that are to be read for a day again."""
    one = known.metric(day, question.name)
    if one is None or one.fetch_id is None or not known.is_kept(one):
        before, landed = made_of(known.made.get(day), question), known.landed_before(question, day)
        # Of who is in samples, one that names fewer may have been refused, which its counts do not show.
        if question.use not in QUANTITIES and before is not None and before.fetch_id in landed:
            return [before.fetch_id]
        return landed
    assert tenant.metrics is not None  # else nothing was landed
    is_counted = question.counts is None or one.rows + one.gaps == question.expected(tenant.metrics.scrape_seconds)
    return [] if is_counted and one.total else [one.fetch_id]


def _is_surpassed(known: Known, question: Question, one: DayMetric, other: DayMetric | None) -> bool:
    """Whether a landed answer says less than another one, or than what its day was made of: that may be had again."""
    if other is not None:
        return is_less(one, other)
    if _is_no_answer(known, question, one):
        return True
    made = made_of(known.made.get(one.charge_date), question)
    is_lost = not known.is_kept(known.metric(one.charge_date, question.name))
    return is_lost and made is not None and is_poorer(one, made)


def _is_no_answer(known: Known, question: Question, one: DayMetric) -> bool:
    """Whether nobody is in samples of which it was given up to ask who is.

    What failed is not missing: a Prometheus that has forgotten a day answers well, and says nothing.
    """
    before = known.metric(one.charge_date, question.name)
    was_given_up = before is not None and before.status == "given_up"
    return was_given_up and bool(question.metrics) and not one.points and not known.forced(one.charge_date)


def _unreadable(work: Work, tenant: CostModelTenant, known: Known, days: Sequence[date]) -> set[int]:
    """The landed answers of which days are to be made now and that cannot be read; they are as good as not there."""
    due = [day for day in {*map(str, days), *known.made} if known.has_changed(day) and known.can_be_made(day)]
    needed = {number: name for day in due for name, number in known.fetches_of(day)}
    found = set[int]()
    for number, name in sorted(needed.items()):
        try:
            _samples(work, tenant, known.questions[name], known.fetches[number])
        except (StoreError, ContractError) as error:
            work.warn(f"{error}; days that lack it are asked for again")
            found.add(number)
    return found


def _fetch(work: Work, tenant: CostModelTenant, known: Known, asked: Sequence[Open]) -> int:
    """Ask in as few pieces as may be. What fails is told, and leaves its days waiting. How many requests were sent."""
    given = tenant.metrics
    if not asked or given is None:
        return 0
    with Client(metrics.endpoint(work, tenant, given), Clock(*clock_of(work)), work.hooks.stop) as client:
        version, lacking = metrics.reached(client)
        if gone := lacking or _gone(client):
            # Who does not answer a question that costs nothing answers none, and each would wait as long for that.
            for piece in asked:
                _record_failure(work, tenant, known, piece, gone)
            failed = [f"metrics: {gone}"]
        else:
            failed = _ask(work, tenant, known, client, version, _stretches(known, asked, given.days_per_query))
        requests = client.requests
    if failed:
        work.problems.append(SourceError(failed))
    return requests


def _ask(
    work: Work,
    tenant: CostModelTenant,
    known: Known,
    client: Client,
    version: prometheus.Version,
    stretches: Sequence[tuple[Window, list[Open]]],
) -> list[str]:
    """Ask questions one after the other; what failed, in words.

    What is not asked any more, as its like or the server was not heard of, has not failed: the next run asks.
    """
    failed, less = dict[str, None](), dict[str, Use]()
    unheard, left_out, in_a_row, gone = Counter[str](), Counter[str](), 0, ""
    for number, (span, pieces) in enumerate(stretches, start=1):
        work.stop_if_asked()
        for piece in pieces:
            name, before = piece.question.name, client.unanswered
            # What failed before is tried again all the same: else days would come faster than they are given up.
            if gone or (unheard[name] >= UNHEARD_MAX and not _failures(known, piece)):
                left_out[name] += len(piece.days)
                continue
            try:
                fewer = _land(work, tenant, known, client, version, piece, less)
                less = dict.fromkeys(fewer, piece.question.use) | less
            except (SourceError, ContractError) as error:
                failed[f"metrics: {name}: {_first_line(error)}"] = None
                _record_failure(work, tenant, known, piece, str(error))
            # What was refused was answered; what was tried to the end was not.
            is_heard = client.unanswered == before
            unheard[name], in_a_row = (0, 0) if is_heard else (unheard[name] + 1, in_a_row + 1)
            if in_a_row >= UNHEARD_MAX:
                in_a_row, gone = 0, _gone(client)
        work.log(f"metrics {number} of {len(stretches)}: {span[0]} to before {span[1]}")
    return [*failed, *_told_left_out(gone, left_out)]


def _told_left_out(gone: str, left_out: Mapping[str, int]) -> Iterator[str]:
    """A line for a server that is not asked any more, else one for each question with the days that it is left out."""
    if gone:
        yield f"metrics: not asked for the rest: {gone}"
        return
    for name, days in left_out.items():
        seen = f"no answer {UNHEARD_MAX} times in a row, so not asked for {counted(days, 'more day')}"
        yield fault(f"metrics: {name}", seen, "an answer; the next run asks again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _gone(client: Client) -> str:
    """Why a server is not to be asked any more; '' if it answers a light question, be it by refusing it."""
    before = client.unanswered
    try:
        prometheus.is_left_open(client)
    except (SourceError, ContractError) as error:
        # What lets through questions of another kind only, as a gateway may, is there.
        return _first_line(error) if client.unanswered > before else ""
    return ""


def _stretches(known: Known, asked: Sequence[Open], days_per_query: int) -> list[tuple[Window, list[Open]]]:
    """The open questions in stretches of at most so many days, those of all questions together, in order.

    All quantities come first, since others may take longer than a Prometheus has, and of those what failed least often,
    so that no stretch waits for another one that fails.
    """

    def failures(stretch: tuple[Window, list[Open]]) -> int:
        return max((_failures(known, one) for one in stretch[1]), default=0)

    quantities = [one for one in asked if one.question.use in QUANTITIES]
    others = [one for one in asked if one.question.use not in QUANTITIES]
    return [one for part in (quantities, others) for one in sorted(_cut(part, days_per_query), key=failures)]


def _failures(known: Known, piece: Open) -> int:
    """How often the day of a piece that failed most often did."""
    found = (known.metric(str(day), piece.question.name) for day in piece.days)
    return max((one.attempts for one in found if one is not None), default=0)


def _cut(asked: Sequence[Open], days_per_query: int) -> list[tuple[Window, list[Open]]]:
    rest, found = sorted({day for one in asked for day in one.days}), list[tuple[Window, list[Open]]]()
    while rest:
        end = rest[0] + timedelta(days=days_per_query)
        within = [day for day in rest if day < end]
        rest = rest[len(within) :]
        chosen = set(within)
        pieces = [Open(one.question, tuple(day for day in one.days if day in chosen)) for one in asked]
        found.append(((within[0], within[-1] + timedelta(days=1)), [piece for piece in pieces if piece.days]))
    return found


def _land(
    work: Work,
    tenant: CostModelTenant,
    known: Known,
    client: Client,
    version: prometheus.Version,
    piece: Open,
    less: Mapping[str, Use],
) -> set[str]:
    """Ask one question for some days, land the answers, and record what came, but for less than came before.

    The days on which less came. `less`: those on which less came to questions before, quantities first, with the use of
    the first. Who is in what is left of their samples is not everybody, however many there are.
    """
    question, days = piece.question, (piece.days[0], piece.days[-1] + timedelta(days=1))
    fetch_id = metered.next_number(work, tenant)
    landing = _landing(work, tenant, fetch_id)
    for query in (question.values, question.counts):
        if query is not None:
            prometheus.fetch_days(client, landing, query, days, version)
    fetch = MetricFetch(fetch_id, question.name, str(days[0]), str(days[1]), (question.digest,), work.hooks.now())
    rows, samples = _answered(work, tenant, question, fetch, map(str, piece.days))
    fetch = fetch._replace(warned=int(bool(samples.warnings)))
    for text in samples.warnings:
        work.warn(f"{question.name}: {prometheus.told(text)}")
    if samples.dropped.height:
        points, first = samples.dropped.select(pl.col("points").sum(), pl.col("window").min()).row(0)
        told = f"{counted(points, 'point')} left out, since they are no numbers, the first on {first}"
        work.warn(f"{question.name}: {told}")

    def takes_away(one: DayMetric) -> bool:
        before = known.metric(one.charge_date, question.name)
        if before is None or not known.is_kept(before):
            return _is_no_answer(known, question, one)
        left = one.charge_date in less and question.use not in QUANTITIES and before.rows > 0
        return left or is_less(one, before)

    by_day = {one.charge_date: one for one in rows}
    worse = {day for day, one in by_day.items() if takes_away(one)}
    stay = sorted(day for day in worse if known.is_kept(known.metric(day, question.name)))
    if stay and question.use != "resources":
        work.warn(f"{question.name}: less came than before for {told_span(stay)}, and is not used")
    if nobody := sorted(day for day in worse - {*stay} if _is_no_answer(known, question, by_day[day])):
        work.warn(
            f"{question.name}: nobody is in the samples of {told_span(nobody)}, which were given up: they stay so,"
            " since they may be forgotten; `prorata run --force` with --from and --to takes it for the truth"
        )
    kept = [one for one in rows if one.charge_date not in worse]
    # Of samples that came whole, who is in them was answered before, if now fewer are: that is asked no more.
    if question.use not in QUANTITIES:
        whole = {day for day in worse if less.get(day) not in QUANTITIES}
        limit = tenant.allocation_retry_limit
        kept += [one._replace(attempts=limit) for one in _attempted(known, question, whole, "less came than before")]
    with work.store.transaction():
        gather_state.record_fetch(work.store, tenant.id, fetch)
        gather_state.save_day_metrics(work.store, tenant.id, kept)
        _fold_resources(work, tenant, cost_model.resources(tenant, {question.name: samples}))
    return worse


def _answered(
    work: Work, tenant: CostModelTenant, question: Question, fetch: MetricFetch, days: Iterable[str]
) -> tuple[list[DayMetric], Samples]:
    """What the landed answers to a question say of some days, as the state has it, and the answers."""
    assert tenant.metrics is not None  # else nothing was landed
    samples, scrape_seconds = _samples(work, tenant, question, fetch), tenant.metrics.scrape_seconds
    came, totals = _came(work, tenant, question, fetch, samples, scrape_seconds)
    dropped, points = (
        dict(frame.group_by("window").agg(pl.col("points").sum()).rows()) for frame in (samples.dropped, samples.values)
    )
    expected = question.expected(scrape_seconds)
    rows = [
        DayMetric(
            *(day, question.name, "fetched", (question.digest,), "", fetch.fetch_id),
            rows=came.get(day, 0),
            dropped=dropped.get(day, 0),
            gaps=max(expected - came.get(day, 0), 0),
            points=points.get(day, 0),
            total=totals.get(day, "0"),
        )
        for day in days
    ]
    return rows, samples


def _landing(work: Work, tenant: CostModelTenant, fetch_id: int) -> Landing:
    return Landing(landed_in(work.root, tenant, fetch_id))


def _span(fetch: MetricFetch) -> Window:
    return date.fromisoformat(fetch.first_day), date.fromisoformat(fetch.end_day)


def _samples(work: Work, tenant: CostModelTenant, question: Question, fetch: MetricFetch) -> Samples:
    days = _span(fetch)
    landing, landed = _landing(work, tenant, fetch.fetch_id), question.landed_as(fetch.metric)
    return cost_model.parse(question, landing.read(prometheus.landed_name(landed.values, days)), days)


def _came(
    work: Work,
    tenant: CostModelTenant,
    question: Question,
    fetch: MetricFetch,
    samples: Samples,
    scrape_seconds: int,
) -> tuple[dict[str, int], dict[str, str]]:
    """Day -> how many of the expected samples came, or for what nobody expects anything, how many series.

    And the total by which an answer is told from one with less: of the samples, or of the values of what nobody counts.
    """
    landed = question.landed_as(fetch.metric)
    if landed.counts is None:
        came = dict(samples.values.group_by("window").agg(came=pl.col("points").sum()).rows())
        return came, cost_model.totals(samples.values)
    days = _span(fetch)
    landing = _landing(work, tenant, fetch.fetch_id)
    counts = cost_model.parse_counts(question, landing.read(prometheus.landed_name(landed.counts, days)), days)
    expected, most = question.expected(scrape_seconds), max(counts.fewest.values(), default=0)
    # A scrape more than there is room for comes by chance, and a few after a restart.
    if most > expected + 1 + expected // 20:
        work.warn(
            f"{question.name}: {most} samples of a day came where scrape_seconds {scrape_seconds} lets expect"
            f" {expected}: whether any are missing cannot be told; it is to be that of the job in Prometheus"
        )
    return cost_model.came(question, samples, counts.fewest, scrape_seconds), counts.totals


def _attempted(known: Known, question: Question, days: Iterable[str], error: str) -> list[DayMetric]:
    """What was answered before for some days, with one attempt more to ask again."""
    found = (known.metric(day, question.name) for day in sorted(days))
    return [one._replace(attempts=one.attempts + 1, error=error) for one in found if one and one.status == "fetched"]


def _record_failure(work: Work, tenant: CostModelTenant, known: Known, piece: Open, error: str) -> None:
    """Count the failure on each of the days. What was answered before, if incompletely, stays."""
    question, rows = piece.question, list[DayMetric]()
    again = [] if question.use in QUANTITIES else _attempted(known, question, map(str, piece.days), error)
    for day in map(str, piece.days):
        before = known.metric(day, question.name)
        if before is not None and before.status == "fetched":
            continue
        attempts = before.attempts + 1 if before is not None else 1
        status: gather_state.Status = "given_up" if attempts >= tenant.allocation_retry_limit else "failed"
        rows.append(DayMetric(day, question.name, status, (question.digest,), "", attempts=attempts, error=error))
    gather_state.save_day_metrics(work.store, tenant.id, rows + again)
    if stay := [one.charge_date for one in again if one.attempts >= tenant.allocation_retry_limit]:
        days = counted(len(stay), "day")
        told = f"given up for {days} from {stay[0]} on; what was answered before stays"
        work.warn(f"{question.name}: {told}; `prorata run --force` asks again")
    # Days that were made of an answer keep it, which is said when all days are made.
    made = {day for day, one in known.made.items() if made_of(one, question) is not None}
    gone = [row.charge_date for row in rows if row.status == "given_up" and row.charge_date not in made]
    if gone:
        lost = "what it splits goes to UNALLOCATED" if question.metrics else "its lines are left out"
        lost = "no amount depends on it" if question.use == "resources" else lost
        days = counted(len(gone), "day")
        work.warn(f"{question.name}: given up for {days} from {gone[0]} on; {lost}; `prorata run --force` asks again")


def _fold_resources(work: Work, tenant: CostModelTenant, found: pl.DataFrame) -> None:
    """What answers name, added to what is known: first and last seen on the first and the last of all days."""
    if not found.height:
        return
    known = gather_state.entities(work.store, RESOURCES, tenant.id)
    same = [name for name in RESOURCES.columns if not name.endswith("_seen_at")]
    folded = (
        pl.concat([known, found])
        .group_by(same, maintain_order=True)
        .agg(pl.col("first_seen_at").min(), pl.col("last_seen_at").max())
        .select(RESOURCES.columns)
        .sort(RESOURCES.key)
    )
    gather_state.replace_entities(work.store, RESOURCES, tenant.id, folded)


def _forget_old(work: Work, tenant: CostModelTenant) -> None:
    """Remove raw answers that need not be kept any more. Their days stay as they were made last."""
    limit = str(work.now().date() - timedelta(days=tenant.retention_days))
    old = [
        one.fetch_id for one in gather_state.metric_fetches(work.store, tenant.id).values() if one.fetched_at < limit
    ]
    for fetch_id in old:
        _landing(work, tenant, fetch_id).remove()
    gather_state.forget_fetches(work.store, tenant.id, old)


# Days


def rebuild(work: Work, tenant: CostModelTenant, summary: Summary, *, redo: bool = False) -> Summary:
    """Make the stored days anew that are made of something else than before; with `redo` all that are asked for."""
    return _made_anew(work, tenant, summary, (), _recalled(work, tenant), redo=redo)


def _made_anew(
    work: Work,
    tenant: CostModelTenant,
    summary: Summary,
    days: Sequence[date],
    known: Known,
    *,
    redo: bool = False,
    asked_for: Set[str] = frozenset(),
) -> Summary:
    """These days and the stored ones, as far as they are to be made anew and can be. `asked_for`: in this run.

    Of those that the command is about only: others would be billed ahead of what they charge.
    """
    wanted = sorted({*map(str, days), *known.made})
    due = [
        day
        for day in wanted
        if work.request.covers(day) and known.can_be_made(day) and (redo or known.has_changed(day))
    ]
    rateless = [day for day in due if day in known.billed and not known.has_charges(day)]
    changed = removed = 0
    for fetches, group in groupby(due, key=known.fetches_of):
        work.stop_if_asked()
        of_group = list(group)
        try:
            answers = {
                name: _samples(work, tenant, known.questions[name], known.fetches[number]) for name, number in fetches
            }
        except (StoreError, ContractError) as error:
            work.warn(f"{error}; {told_span(of_group)} left as made before, the next run asks again for what it can")
            continue
        done = _make(work, tenant, known, answers, of_group)
        changed, removed = changed + done[0], removed + done[1]
    for text in told_removed(rateless):
        work.warn(text)
    _settle(work, tenant, known, wanted, {*due} | asked_for)
    if due:
        work.log(f"cost model: {counted(len(due), 'day')} made, {changed} changed, {removed} without lines")
    return summary._replace(days_gathered=summary.days_gathered + changed, days_removed=summary.days_removed + removed)


def _make(
    work: Work, tenant: CostModelTenant, known: Known, answers: cost_model.Answers, days: Sequence[str]
) -> tuple[int, int]:
    """Days that are made of the same answers -> the lake, then the state. How many changed, and have lines no more."""
    dates = [date.fromisoformat(day) for day in days]
    made = cost_model.bill(tenant, dates, answers)
    usage = cost_model.usage(tenant, [day for day in dates if cost_rates.charges(tenant.source, day)], answers)
    lines_of = made.billing.partition_by("charge_date", as_dict=True, maintain_order=True)
    usage_of = usage.partition_by("window", as_dict=True, maintain_order=True)
    stored, there = state.days(work.store, tenant.id), known_days(work)

    as_published = gather_state.usage_days(work.store, tenant.id)

    def published(charge_date: date) -> tuple[state.BillingDay | None, gather_state.UsageDay | None]:
        day, lines = str(charge_date), lines_of.get((charge_date,))
        key, of_day = (day[:7], day), usage_of.get((day,), usage.clear())
        measured = as_published.get(day)
        if measured is None or not _holds(work, USAGE, key, of_day, measured.digest):
            measured = publish_usage(work, day, of_day)
        if lines is None:
            return None, measured
        before = stored.get(key)
        if before is not None and _holds(work, BILLING, key, lines, before.billing_digest):
            return state.BillingDay(*(getattr(before, name) for name in state.BillingDay._fields)), measured
        # Whether it has all its metrics is said when all days are made.
        gathered = 1 if before is None else before.metrics_gathered
        return publish_billing(work, key, lines)._replace(metrics_gathered=gathered), measured

    billing, measured = list[state.BillingDay](), list[gather_state.UsageDay]()
    with ThreadPoolExecutor(work.workers, thread_name_prefix="made") as pool:
        for number, (of_day, found) in enumerate(pool.map(published, dates), start=1):
            billing += [of_day] if of_day else []
            measured += [found] if found else []
            work.hooks.progress("cost model", number, len(dates))
    gone = [(day[:7], day) for day in days if (day[:7], day) in there and (date.fromisoformat(day),) not in lines_of]
    without = sorted(set(days) - {one.charge_date for one in measured})
    causes = [
        ConstructedDay(
            *(day, known.cause(day), _text(made.residues.get(day, Fraction(0)))),
            *(known.model(day), known.answers_of(day), known.given_up_of(day)),
        )
        for day in days
    ]
    # Before it is said what days were made of: else a run that ends in between would leave their old lines for good.
    removed = withdraw(work, gone)
    with work.store.transaction():
        changed = state.upsert_billing_days(work.store, billing)
        gather_state.save_usage_days(work.store, tenant.id, measured, without)
        gather_state.save_constructed_days(work.store, tenant.id, causes)
    return changed, removed


def _holds(work: Work, table: Table, key: state.DayKey, rows: pl.DataFrame, digest: str) -> bool:
    """Whether a day's file in the lake is the one that the state knows, and has these rows: it is not written again."""
    place = work.place(table, key)
    path = place.path(work.root)
    try:
        return path.exists() and lake.footer(path)[0] == digest and lake.read(work.root, place).equals(rows)
    except StoreError:
        return False


def _text(residue: Fraction) -> str:
    """A residue to 24 decimals; the rest is below what anybody could tell."""
    units = round(residue * 10**RESIDUE_DECIMALS)
    whole, rest = divmod(abs(units), 10**RESIDUE_DECIMALS)
    text = f"{whole}.{rest:0{RESIDUE_DECIMALS}d}".rstrip("0").rstrip(".")
    return f"-{text}" if units < 0 else text


def _settle(work: Work, tenant: CostModelTenant, known: Known, days: Sequence[str], touched: Set[str]) -> None:
    """Say of every day whether it has what it is calculated from, and if not, why it waits; and which are kept.

    Missing samples are told of days that were `touched` in this run, and of those that wait: of others nobody can end
    them, and `check` and `status` know.
    """
    charged = [day for day in days if known.has_charges(day)]
    flags = [_flag(known, day) for day in charged]
    gather_state.set_metrics_gathered(work.store, tenant.id, flags)
    kept = {day for day in charged if known.has_changed(day) and known.keeps(day) is not None}
    told = {one.charge_date for one in flags if not one.gathered or one.charge_date in touched}
    for text in told_incomplete(incomplete(tenant, known.day_metrics, told - kept)):
        work.warn(text)
    only_there = only_in_lake(work.root, work.store, tenant.id)
    for text in (
        *told_kept(known, days),
        *told_unknown(day for day in only_there if not known.is_in_window(day)),
        *told_lost(lost(work.root, work.store, tenant.id) - only_there),
        *told_without_rules(without_rules(work.root, work.store, tenant)),
    ):
        work.warn(text)


def _flag(known: Known, day: str) -> MetricsFlag:
    reason = known.waits(day)
    if reason is None:
        return MetricsFlag(day, 1, 0, None)
    found = [one for one in (known.metric(day, asked.name) for asked in known.asked_of(day)) if one is not None]
    return MetricsFlag(day, 0, max((one.attempts for one in found), default=0), reason[1] or "not answered yet")
