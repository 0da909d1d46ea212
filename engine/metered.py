"""The usage of a tenant's days: answers put into the lake, read again where usage is lost, and when a day has all.

What was answered for a resource stays. An answer that says less than is known replaces nothing. What nobody asks for
any more is taken out as long as it can be read again, and else stays, and counts for nothing. Here nobody is asked;
`metrics` does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine import gather_state, lake, state
from engine.config import ConfluentTenant, CostModelTenant
from engine.decide import Inputs
from engine.errors import ContractError, SourceError, StoreError, fault
from engine.frames import USAGE, empty
from engine.gather_state import DayMetric
from engine.sources import confluent_metrics, prometheus
from engine.sources.confluent_metrics import METRICS
from engine.sources.landing import Landing
from engine.text import counted
from engine.wanted import (
    TO_FORCE,
    Key,
    Need,
    charged_of_lost,
    irreplaceable,
    lost_usage,
    needs,
    only_in_lake,
    statements_lost,
    unasked,
    window,
)
from engine.work import Work, publish_usage, raw_folder, usage_key, usage_left, usage_of


class Ask(NamedTuple):
    """What is asked for a day: some of the resources of what it needs; `anew`, though it was answered."""

    need: Need
    ids: tuple[str, ...]
    anew: bool = False


class Question(NamedTuple):
    """A metric of some resources over the days from `first` to before `end`, for some of them."""

    metric: str
    first: date
    end: date
    ids: tuple[str, ...]
    asks: tuple[Ask, ...]


def landing_of(root: Path, tenant: ConfluentTenant, fetch_id: int) -> Landing:
    """Where the answers to one question are landed."""
    return Landing(raw_folder(root, tenant) / "metrics" / f"{fetch_id:06}")


class Answered(NamedTuple):
    """A question's answer: USAGE, for each day what was dropped, and for each day and resource what is lacking.

    `unmended`: days of which a point is dropped although most of its samples may be numbers, with the reason.
    """

    question: Question
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


def read(
    landing: Landing,
    tenant: ConfluentTenant,
    question: Question,
    fetch_id: int,
    at: str = "",
    ask_again: Callable[[prometheus.Samples], dict[str, str]] | None = None,
) -> Answered:
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
    return Answered(question, fetch_id, found.usage, dict(found.dropped.rows()), gaps, at, warnings, unmended)


# Into the lake


AS_STORED = 0
"""Stands for the number of a question where the lake alone has its answer: none is landed under it."""


def publish(work: Work, tenant: ConfluentTenant, answered: Sequence[Answered]) -> list[Less]:
    """Answers of one stretch of days -> the lake, then the state. What says less than is known changes nothing.

    Returns where that was so; an answer of which nothing was taken is not kept. Lost usage of a day that is forced is
    what there is. Usage that is lost stays so until `settle`, when it is whole.
    """
    known = gather_state.day_metrics(work.store, tenant.id)
    lost, unlike = lost_usage(work.root, work.store, tenant.id), unlike_published(work, tenant)
    wanted: dict[str, dict[Need, list[tuple[Answered, Ask]]]] = {}
    for one in answered:
        for ask in one.question.asks:
            wanted.setdefault(ask.need.charge_date, {}).setdefault(ask.need, []).append((one, ask))
    rows, published, gone = dict[Key, DayMetric](), list[gather_state.UsageDay](), list[str]()
    less = list[Less]()
    for day, of_day in sorted(wanted.items()):
        usage = usage_left(work, day)
        for need, of_need in of_day.items():
            before = known.get(need[:2])
            merged, after, said_less = usage, before, list[Less]()
            for one, ask in of_need:
                merged, after, less_of_one = _merged(merged, one, ask, after)
                said_less += [less_of_one] if less_of_one is not None else []
            found = _rows_of(need, merged)
            must_be_all = day in unlike and not work.request.forces(day)
            if must_be_all and before is not None and found < need.rows_at_least(before):
                less.append(Less(need, found, before.rows, is_stored=False))
                continue
            usage, less = merged, [*less, *said_less]
            rows |= {need[:2]: after} if after is not None else {}
        done = publish_usage(work, day, usage)
        if day not in lost:
            published += [done] if done else []
            gone += [] if done else [day]
    taken = {number for one in rows.values() for number in one.fetches.values()}
    fetched = [one for one in answered if one.fetched_at]
    rejected = [one.fetch_id for one in fetched if one.question.asks and one.fetch_id not in taken]
    with work.store.transaction():
        for one in (one for one in fetched if one.fetch_id not in rejected):
            _record(work, tenant, one)
        gather_state.save_usage_days(work.store, tenant.id, published, gone)
        gather_state.save_day_metrics(work.store, tenant.id, rows.values())
    for number in rejected:
        landing_of(work.root, tenant, number).remove()
    return less


def unlike_published(work: Work, tenant: ConfluentTenant) -> set[str]:
    """Days of which the lake has not the usage that was published, but something that nobody knows, or nothing."""
    return lost_usage(work.root, work.store, tenant.id) & gather_state.usage_days(work.store, tenant.id).keys()


def with_stored(work: Work, need: Need, given_up: DayMetric) -> DayMetric:
    """What is known of a metric that nobody answers, once the resources of which the lake has values count as answered.

    So they do where state.db and the landed answers are lost, and the lake is not.
    """
    is_asked = (pl.col("metric") == need.metric) & pl.col("resource_id").is_in(need.ids)
    stored = usage_left(work, need.charge_date).filter(is_asked)
    unknown = [name for name in stored["resource_id"].unique() if name not in given_up.fetches]
    return _with_answers(need, given_up, stored.height, dict.fromkeys(unknown, AS_STORED)) if unknown else given_up


class Less(NamedTuple):
    """An answer with less than is known of a day. `is_stored`: what is known lies in the lake."""

    need: Need
    found: int
    known: int
    is_stored: bool


def _merged(
    usage: pl.DataFrame, one: Answered, ask: Ask, before: DayMetric | None
) -> tuple[pl.DataFrame, DayMetric, Less | None]:
    """USAGE of a day with an answer in it, what is known of its metric then, and where the lake has more.

    What lies there counts in a file that nobody recorded, too: the run that wrote it was killed before it could.
    """
    need = ask.need
    is_asked = (pl.col("metric") == need.metric) & pl.col("resource_id").is_in(list(ask.ids))
    stored, others = usage.filter(is_asked), usage.filter(~is_asked)
    found = one.usage_of(need.charge_date, ask.ids)
    kept = _less_known(found, stored)
    is_kept = pl.col("resource_id").is_in(kept)
    usage = pl.concat([others, found.filter(~is_kept), stored.filter(is_kept)])
    known = before.fetches if before is not None else {}
    fetches = {name: known.get(name, AS_STORED) if name in kept else one.fetch_id for name in ask.ids}
    after = _with_answers(need, before, _rows_of(need, usage), fetches)
    # A resource that has no lines on the day may not have been there, and lacks nothing.
    dropped, gaps = one.dropped.get(need.charge_date, 0), one.gaps_of(need.charge_date, ask.ids)
    if kept:
        dropped, gaps = (before.dropped, before.gaps) if before is not None else (0, 0)
    elif before is not None and set(after.ids) - set(ask.ids):
        dropped, gaps = dropped + before.dropped, gaps + before.gaps
    less = Less(need, found.filter(is_kept).height, stored.filter(is_kept).height, is_stored=True) if kept else None
    return usage, after._replace(dropped=dropped, gaps=gaps), less


def _rows_of(of: Need | DayMetric, usage: pl.DataFrame) -> int:
    return usage.filter(pl.col("metric") == of.metric, pl.col("resource_id").is_in(of.ids)).height


_SAID = (pl.len().alias("principals"), pl.col("value").sum())
"""How much an answer says of a resource."""


def _less_known(found: pl.DataFrame, stored: pl.DataFrame) -> list[str]:
    """The resources of which an answer has fewer principals than are stored, or less of them in all."""
    new, old = (one.group_by("resource_id").agg(*_SAID) for one in (found, stored))
    both = old.join(new, on="resource_id", how="left", suffix="_found", validate="1:1")
    is_less = (pl.col("principals_found") < pl.col("principals")) | (pl.col("value_found") < pl.col("value"))
    return sorted(both.filter(is_less.fill_null(value=True))["resource_id"])


def _with_answers(need: Need, before: DayMetric | None, rows: int, fetches: Mapping[str, int]) -> DayMetric:
    """What is known of a metric when some resources more are answered."""
    merged = dict(sorted({**(before.fetches if before else {}), **fetches}.items()))
    last = max(merged.values())
    if set(need.ids) <= merged.keys():
        return DayMetric(*need[:2], "fetched", *need[2:], last, rows, fetches=merged)
    left = before or DayMetric(*need[:2], "failed", *need[2:])
    return left._replace(fetch_id=last, rows=rows, fetches=merged)


def _record(work: Work, tenant: ConfluentTenant, one: Answered) -> None:
    asked, warned = one.question, int(bool(one.warnings or one.unmended))
    fetch = gather_state.MetricFetch(
        one.fetch_id, asked.metric, str(asked.first), str(asked.end), asked.ids, one.fetched_at, warned
    )
    gather_state.record_fetch(work.store, tenant.id, fetch)


# Landed answers


def next_number(work: Work, tenant: ConfluentTenant | CostModelTenant) -> int:
    """A number that no question has, nor a folder of answers that the state does not know."""
    landed = landed_numbers(work, tenant)
    return max(gather_state.next_fetch_id(work.store, tenant.id), max(landed, default=0) + 1)


def landed_numbers(work: Work, tenant: ConfluentTenant | CostModelTenant) -> list[int]:
    """The numbers of all folders of answers on disk, in order."""
    folder = raw_folder(work.root, tenant) / "metrics"
    try:
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise StoreError(fault(str(folder), f"cannot be read ({error.strerror})", "a folder of answers")) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def adopt(work: Work, tenant: ConfluentTenant) -> None:
    """Answers that are landed whole and that the state does not know, as it was lost or a run died: known again."""
    known = gather_state.metric_fetches(work.store, tenant.id)
    for number in landed_numbers(work, tenant):
        if number in known:
            continue
        landing = landing_of(work.root, tenant, number)
        question = _landed_question(landing)
        if question is None:
            landing.remove()
            continue
        answer = _read_kept(work, tenant, question, number)
        if answer is None:
            # Known from now on, as the answer for no resource, so that it is told once.
            answer = Answered(question, number, empty(USAGE), {}, {}, "", (), {})
        ids = tuple(answer.usage["resource_id"].unique().sort())
        answer = answer._replace(question=answer.question._replace(ids=ids), fetched_at=work.hooks.now())
        with work.store.transaction():
            _record(work, tenant, answer)


def _landed_question(landing: Landing) -> Question | None:
    """What was asked, by the names of what was landed; None if it is not whole."""
    names = landing.names()
    for name in names:
        found = _LANDED.fullmatch(name)
        if found is not None and found["metric"] in METRICS:
            days = date.fromisoformat(found["first"]), date.fromisoformat(found["end"])
            counts = METRICS[found["metric"]].counts
            is_whole = counts is None or prometheus.landed_name(counts, days) in names
            return Question(found["metric"], *days, (), ()) if is_whole else None
    return None


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"


_LANDED = re.compile(f"(?P<metric>[a-z_]+)-(?P<first>{_DAY})-(?P<end>{_DAY})")


def _read_kept(work: Work, tenant: ConfluentTenant, question: Question, number: int) -> Answered | None:
    """The landed answers to a question; None, and told, if they cannot be read, or if there are none any more."""
    landing = landing_of(work.root, tenant, number)
    if not landing.names():
        return None
    try:
        return read(landing, tenant, question, number)
    except (StoreError, SourceError, ContractError) as error:
        work.warn(f"metrics/{number:06}: the landed answers are not used: {'; '.join(error.faults)}")
        return None


def _kept_answer(work: Work, tenant: ConfluentTenant, fetch: gather_state.MetricFetch | None) -> Answered | None:
    if fetch is None:
        return None
    days = date.fromisoformat(fetch.first_day), date.fromisoformat(fetch.end_day)
    return _read_kept(work, tenant, Question(fetch.metric, *days, fetch.ids, ()), fetch.fetch_id)


def landed_answers(work: Work, tenant: ConfluentTenant, asked: Sequence[Ask]) -> tuple[list[Answered], list[Ask]]:
    """What landed answers have of what is asked; and what they have nothing of, or not all.

    Of each resource that answer counts that says most: a newer one may be of a Prometheus that has forgotten a part,
    an older one of one that had not all yet.
    """
    best = dict[tuple[Key, str], tuple[tuple[int, Decimal, int], Answered]]()
    open_ = {(ask.need.charge_date, ask.need.metric): ask for ask in asked if not ask.anew}
    for fetch in gather_state.metric_fetches(work.store, tenant.id).values():
        covered = {
            (key, name)
            for key, ask in open_.items()
            if key[1] == fetch.metric and fetch.first_day <= key[0] < fetch.end_day
            for name in ask.ids
            if name in fetch.ids
        }
        answer = _kept_answer(work, tenant, fetch) if covered else None
        if answer is None:
            continue
        for day, name, principals, value in answer.usage.group_by("window", "resource_id").agg(*_SAID).rows():
            place, said = ((day, fetch.metric), name), (principals, value, fetch.fetch_id)
            if place in covered and day not in answer.unmended and (place not in best or best[place][0] < said):
                best[place] = said, answer
    known, unlike = gather_state.day_metrics(work.store, tenant.id), unlike_published(work, tenant)
    asks, rest = dict[int, list[Ask]](), list[Ask]()
    for key, ask in open_.items():
        found = {name: best[key, name] for name in ask.ids if (key, name) in best}
        before = known.get(key)
        if key[0] in unlike and before is not None:
            # What is lost was more than an answer may have that is landed, too, as other days took something of it.
            others = usage_left(work, key[0]).filter(~pl.col("resource_id").is_in(list(found)))
            rows = sum(said[0] for said, _ in found.values()) + _rows_of(ask.need, others)
            found = found if rows >= ask.need.rows_at_least(before) else {}
        for number in {answer.fetch_id for _, answer in found.values()}:
            ids = tuple(name for name, (_, answer) in found.items() if answer.fetch_id == number)
            asks.setdefault(number, []).append(Ask(ask.need, ids))
        rest.append(ask._replace(ids=tuple(name for name in ask.ids if name not in found)))
    answers = {answer.fetch_id: answer for _, answer in best.values()}
    landed = [
        answers[number]._replace(question=answers[number].question._replace(asks=tuple(of_answer)))
        for number, of_answer in sorted(asks.items())
    ]
    return landed, sorted([*(ask for ask in rest if ask.ids), *(ask for ask in asked if ask.anew)])


def _landed_usage(
    work: Work, tenant: ConfluentTenant, known: Iterable[DayMetric]
) -> Iterator[tuple[str, list[tuple[DayMetric, dict[str, Answered]]]]]:
    """Days, and for each of their metrics the landed answer of each resource, as far as it is kept."""
    fetches = gather_state.metric_fetches(work.store, tenant.id)
    answers = dict[int, Answered | None]()
    for day, group in groupby(known, key=lambda one: one.charge_date):
        of_day = list(group)
        numbers = {number for one in of_day for number in one.fetches.values()}
        # Those of one day at a time; those after it mostly have the same.
        answers = {
            one: answers[one] if one in answers else _kept_answer(work, tenant, fetches.get(one))
            for one in sorted(numbers)
        }
        yield (
            day,
            [
                (one, {name: answer for name, number in one.fetches.items() if (answer := answers[number]) is not None})
                for one in of_day
            ],
        )


def _reread(usage: pl.DataFrame, one: DayMetric, answers: Mapping[str, Answered]) -> tuple[pl.DataFrame, DayMetric]:
    """USAGE of a day as the landed answers have it, and what is known of the metric then; the rest is as it was."""
    if not answers:
        return usage, one
    by_number = {answer.fetch_id: answer for answer in answers.values()}
    ids = {number: [name for name in answers if answers[name].fetch_id == number] for number in by_number}
    is_answered = (pl.col("metric") == one.metric) & pl.col("resource_id").is_in(list(answers))
    found = [answer.usage_of(one.charge_date, ids[number]) for number, answer in by_number.items()]
    usage = pl.concat([usage.filter(~is_answered), *found])
    one = one._replace(rows=_rows_of(one, usage))
    if answers.keys() != one.fetches.keys():
        return usage, one
    return usage, one._replace(
        dropped=sum(answer.dropped.get(one.charge_date, 0) for answer in by_number.values()),
        gaps=sum(answer.gaps_of(one.charge_date, ids[number]) for number, answer in by_number.items()),
    )


def _with_more(
    stored: pl.DataFrame, one: DayMetric, usage: pl.DataFrame, after: DayMetric
) -> tuple[pl.DataFrame, DayMetric]:
    """`_reread`, but for resources of which the file that is there says more than the answers that the state knows.

    Then it is of an answer that came later: the run that took it was killed, or the state is an older one. Which answer
    that was nobody knows, so the lake alone has it from now on.
    """
    of_metric = pl.col("metric") == one.metric
    more = _less_known(usage.filter(of_metric), stored.filter(of_metric))
    is_more = of_metric & pl.col("resource_id").is_in(more)
    usage = pl.concat([usage.filter(~is_more), stored.filter(is_more)])
    fetches = {**after.fetches, **dict.fromkeys(more, AS_STORED)}
    return usage, after._replace(rows=_rows_of(one, usage), fetches=fetches) if more else after


def drop_torn(work: Work, tenant: ConfluentTenant) -> None:
    """Usage files that are torn, though they have the size that was published -> out of the lake: they are lost.

    A run looks at their footers, a replay at all of them.
    """
    for day in gather_state.usage_days(work.store, tenant.id):
        place = work.place(USAGE, usage_key(day))
        try:
            _ = lake.read(work.root, place) if work.request.replay else lake.footer(place.path(work.root))
        except StoreError:
            lake.withdraw(work.root, place)


def restore(work: Work, tenant: ConfluentTenant) -> None:
    """Lost usage -> the lake again, as the landed answers have it, and as its file does if that can be read.

    What is not landed any more is open again, unless the file has as many values as are known.
    """
    lost = lost_usage(work.root, work.store, tenant.id)
    if not lost:
        return
    if gone := sorted(statements_lost(work.root, work.store, tenant.id) & lost):
        work.warn(
            f"usage of {counted(len(gone), 'day')} ({', '.join(gone)}) is lost, and no whole answer is kept that says"
            " which statements ran: what is billed is charged without them"
        )
    known = [one for one in gather_state.day_metrics(work.store, tenant.id).values() if one.charge_date in lost]
    for day, of_day in _landed_usage(work, tenant, known):
        usage, rows = usage_left(work, day), list[DayMetric]()
        for one, by_resource in of_day:
            landed = one._replace(fetches={name: one.fetches[name] for name in by_resource}, dropped=0, gaps=0)
            usage, after = _with_more(usage, one, *_reread(usage, landed, by_resource))
            answered = tuple(name for name in one.ids if name in one.fetches)
            is_all = _rows_of(one._replace(ids=answered), usage) >= one.rows
            # What nobody asks for is known as far as it is there.
            there = {*usage.filter(pl.col("metric") == one.metric)["resource_id"], *one.ids}
            before = one._replace(fetches={name: number for name, number in one.fetches.items() if name in there})
            if is_all and len(by_resource) < len(one.fetches):
                after = before._replace(fetches={**before.fetches, **after.fetches})
            after = after._replace(fetches={**dict.fromkeys(unasked(before), AS_STORED), **after.fetches})
            # However little is left of it, as much was known.
            rows.append(after._replace(rows=max(one.rows, after.rows)))
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
    if unknown := sorted(_unknown(work, tenant)):
        work.warn(
            f"{counted(len(unknown), 'day')} ({', '.join(unknown)}) in the lake, and not known to state.db, which was"
            " lost or is an older one: what they charge stays, unchecked; `prorata recalculate --replay` takes in those"
            " of which costs are landed"
        )
    lost = lost_usage(work.root, work.store, tenant.id) - set(unknown)
    if kept := sorted(lost & charged_of_lost(work.root, work.store, tenant.id)):
        work.warn(
            f"usage of {counted(len(kept), 'day')} ({', '.join(kept)}) is lost, and cannot be had now: what was charged"
            f" by it stays as it is; {TO_FORCE}"
        )


def _narrowed(work: Work, tenant: ConfluentTenant, wanted: Mapping[Key, Need]) -> dict[Key, DayMetric]:
    """What is known, without what is not asked for any more and can be read again, in the state and in the lake.

    So the usage of a day does not depend on what it once asked for, as long as its answers are kept. What the lake
    alone has stays in it: a rule that is changed back finds it there. Lost usage that is whole again, or of a day that
    waits no longer for the rest of it, is what is published from now on.
    """
    known = gather_state.day_metrics(work.store, tenant.id)
    has_metrics = tenant.metrics is not None
    # What only the lake knows is as good as any, until the state knows it again.
    lost = lost_usage(work.root, work.store, tenant.id) - _unknown(work, tenant)
    # Who has no metrics any more cannot tell what a day lacks.
    found = _with_found(work, known, wanted, lost) if has_metrics else {}
    asked = {key: wanted[key].ids if key in wanted else () for key in found}
    stays = _staying(work, tenant, found.values(), asked, lost)
    after = {key: _fewer(found[key], ids, stays.get(key, {})) for key, ids in asked.items()}
    gone = [key for key, one in after.items() if key not in wanted and not one.fetches]
    fewer = {key: one for key, one in after.items() if key not in gone and one != known.get(key)}
    waiting = {need.charge_date for key, need in wanted.items() if need.open_ids(after.get(key))}
    forced = {day for day in lost if work.request.forces(day)}
    settled = lost - (waiting if has_metrics else charged_of_lost(work.root, work.store, tenant.id) - forced)
    if not gone and not fewer and not settled:
        return known
    kept = dict[str, dict[str, list[str]]]()
    for (day, metric), ids in [
        *((key, need.ids) for key, need in wanted.items()),
        *((key, unasked(one)) for key, one in after.items()),
    ]:
        kept.setdefault(day, {}).setdefault(metric, []).extend(ids)
    published, withdrawn, rows = list[gather_state.UsageDay](), list[str](), list[DayMetric]()
    for day in sorted(({day for day, _ in (*gone, *fewer)} - lost) | settled):
        usage = usage_left(work, day)
        if has_metrics:
            usage = _only_of(usage, kept.get(day, {}))
        rows += [one._replace(rows=_rows_of(one, usage)) for key, one in fewer.items() if key[0] == day]
        done = publish_usage(work, day, usage)
        published += [done] if done else []
        withdrawn += [] if done else [day]
    rewritten = {one.charge_date for one in published} | set(withdrawn)
    rows += [one for key, one in fewer.items() if key[0] not in rewritten]
    with work.store.transaction():
        gather_state.save_usage_days(work.store, tenant.id, published, withdrawn)
        gather_state.save_day_metrics(work.store, tenant.id, rows, gone)
    return gather_state.day_metrics(work.store, tenant.id)


def _unknown(work: Work, tenant: ConfluentTenant) -> set[str]:
    """Days before the window of which only the lake knows; what a run begins of the others is in it at once."""
    first = str(window(tenant, work.now().date())[0])
    return {day for day in only_in_lake(work.root, work.store, tenant.id) if day < first}


def _with_found(
    work: Work, known: Mapping[Key, DayMetric], wanted: Mapping[Key, Need], lost: Iterable[str]
) -> dict[Key, DayMetric]:
    """What is known, and what files of lost usage have that nobody knows of or asks for: the lake alone has it.

    The state that knew it was lost, or is an older one.
    """
    found = dict(known)
    for day in sorted(lost):
        usage = usage_left(work, day).filter(pl.col("metric").is_in(list(METRICS)))
        for metric, name in usage.select("metric", "resource_id").unique().sort("metric", "resource_id").rows():
            one, need = found.get((day, metric)), wanted.get((day, metric))
            if name in (need.ids if need is not None else ()) or (one is not None and name in one.fetches):
                continue
            one = one or DayMetric(day, metric, "failed", (), need.billing_digest if need is not None else "")
            found[day, metric] = one._replace(
                fetch_id=one.fetch_id or AS_STORED, fetches={**one.fetches, name: AS_STORED}
            )
    return dict(sorted(found.items()))


def _staying(
    work: Work,
    tenant: ConfluentTenant,
    known: Iterable[DayMetric],
    asked: Mapping[Key, Collection[str]],
    lost: Collection[str],
) -> dict[Key, dict[str, int]]:
    """The resources that are not asked for any more, and stay known, with the numbers of their answers.

    On days of the window, those of which no landed answer says what the lake does: from now on the lake alone has it.
    Before it, all: their bill is not revised, and answers that are kept today may not be tomorrow (nor are those of the
    window, if they are not kept for longer than it is). What was answered without values leaves nothing to take out. Of
    a day whose usage is lost, those stay of which the lake has something.
    """
    outlive = tenant.retention_days > tenant.lookback_days
    first = str(window(tenant, work.now().date())[0] if outlive else date.max)
    unsure, found = list[DayMetric](), dict[Key, dict[str, int]]()
    for one in known:
        ids = asked[one.charge_date, one.metric]
        fetches = {name: number for name, number in one.fetches.items() if name not in ids}
        is_sure = one.charge_date < first and one.charge_date not in lost
        found[one.charge_date, one.metric] = {
            name: number for name, number in fetches.items() if is_sure or number == AS_STORED
        }
        left = {name: number for name, number in fetches.items() if not is_sure and number != AS_STORED}
        unsure += [one._replace(fetches=left)] if left else []
    for day, of_day in _landed_usage(work, tenant, unsure) if unsure else ():
        usage = usage_left(work, day)
        for one, by_resource in of_day:
            stored = usage.filter(pl.col("metric") == one.metric, pl.col("resource_id").is_in(list(one.fetches)))
            landed, _ = _reread(empty(USAGE), one, by_resource)
            there = set(stored["resource_id"])
            names = (there - by_resource.keys()) | set(_less_known(landed, stored))
            if day < first:
                names = there
            elif day not in lost:
                names |= one.fetches.keys() - there
            found[day, one.metric].update(dict.fromkeys(names, AS_STORED))
    return found


def _fewer(one: DayMetric, asked: tuple[str, ...], stays: Mapping[str, int]) -> DayMetric:
    """What is known of a metric of which no more is asked for; all of it may be answered then."""
    fetches = {name: number for name, number in one.fetches.items() if name in asked} | dict(stays)
    if set(asked) <= fetches.keys():
        return one._replace(status="fetched", ids=asked, fetches=fetches, attempts=0, error=None)
    return one._replace(fetches=fetches)


def _only_of(usage: pl.DataFrame, kept: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """USAGE of a day, of metrics that Prometheus answers only some resources."""
    wanted = pl.DataFrame(
        [(metric, one) for metric, ids in kept.items() for one in ids],
        schema={"metric": pl.String, "resource_id": pl.String},
        orient="row",
    )
    is_metric = pl.col("metric").is_in(list(METRICS))
    ours = usage.filter(is_metric).join(wanted, on=["metric", "resource_id"], how="semi")
    return pl.concat([usage.filter(~is_metric), ours])
