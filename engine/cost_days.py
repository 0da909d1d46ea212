"""The days of a tenant without a bill, as far as they are stored: what they are made of, and lack. Asks nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from fractions import Fraction
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

import polars as pl

from engine import gather_state, lake, rules, state, wanted
from engine.config import CostModelTenant, GenericTenant
from engine.errors import shown
from engine.frames import BILLING, CHARGEBACK, RESOURCES
from engine.gather_state import ConstructedDay, DayMetric, MadeOf
from engine.sources import cost_questions, cost_rates
from engine.sources.cost_questions import Question
from engine.sources.promql import DAY_SECONDS, Window
from engine.text import counted
from engine.wanted import Key
from engine.work import raw_folder


def window(tenant: CostModelTenant, today: date) -> Window:
    """The days that a run of today makes."""
    return today - timedelta(days=tenant.lookback_days), today - timedelta(days=tenant.cutoff_days)


def is_incomplete(tenant: CostModelTenant, known: DayMetric) -> bool:
    """Whether too few of the expected samples came for the day to be calculated."""
    expected = known.rows + known.gaps
    return known.status == "fetched" and expected > 0 and known.rows < tenant.incomplete_below * expected


def share_came(rows: int, gaps: int) -> Fraction:
    """Which part of what was expected came; of what nobody counts, whether anything did."""
    return Fraction(rows, rows + gaps) if rows else Fraction(0)


def made_of(made: ConstructedDay | None, question: Question) -> MadeOf | None:
    """The answer that a day was made of: to just this question under any name, else to what has its name."""
    answers = {} if made is None else made.answers
    same = (one for one in answers.values() if one.digest == question.digest)
    return next(same, answers.get(question.name))


ROUNDED = Fraction(1, 10**9)
"""By how much a server's sum of floats differs at most with the order in which it adds: less than a sample of a day."""


def is_less(now: DayMetric, before: DayMetric | MadeOf) -> bool:
    """Whether an answer says less than another one to the same question: fewer values, or a smaller total.

    The total is of the samples of all brokers: of a broker that comes or goes there are few, or none, on a day of which
    all others have all of theirs. Of what nobody counts it is of the values of all principals.
    """
    if now.total and before.total:
        return now.points < before.points or Fraction(now.total) < Fraction(before.total) * (1 - ROUNDED)
    # What days were made of before totals were known has only shares, and of one opinion of how many there should be.
    if now.rows + now.gaps == before.rows + before.gaps and now.points:
        return share_came(now.rows, now.gaps) < share_came(before.rows, before.gaps)
    return now.points == 0 < before.points


def is_poorer(now: DayMetric, before: MadeOf) -> bool:
    """Whether less came than a day was made of; of another question, nothing where something did.

    Samples of two questions say nothing of each other.
    """
    if now.fetch_id == before.fetch_id:
        return False
    return is_less(now, before) if now.ids == (before.digest,) else now.points == 0 < before.points


def landed_in(root: Path, tenant: CostModelTenant, fetch_id: int) -> Path:
    """Where the answers to one question are landed."""
    return raw_folder(root, tenant) / "metrics" / f"{fetch_id:06}"


QUANTITIES = frozenset({"mean", "sum"})
"""The uses of questions that ask how much there was."""
Asked: TypeAlias = Callable[[str], tuple[Question, ...]]
"""Charge date -> questions."""


def asker(tenant: CostModelTenant) -> Asked:
    """What the amounts of a day depend on: the quantities of its lines, and what their ladders weigh by."""
    questions = cost_questions.questions(tenant)
    metrics_of = rules.metrics_of(rules.resolve(tenant))

    @cache
    def asked(day: str) -> tuple[Question, ...]:
        charges = cost_rates.charges(tenant.source, date.fromisoformat(day))
        products, quantities = {one.product_type for one in charges}, {one.question for one in charges}
        weighed = {metric for name in products for metric in metrics_of.get(f"product:{name}", ())}
        return tuple(one for one in questions if one.name in quantities or _is_weighed(one, products, weighed))

    return asked


def _is_weighed(question: Question, products: set[str], weighed: set[str]) -> bool:
    """Whether lines of these products weigh by its values; or, of one of them, by whom its values name."""
    own = question.metrics[:1]
    return bool(weighed.intersection(own) or (products.intersection(own) and weighed.intersection(question.metrics)))


def lost(root: Path, store: state.State, tenant_id: str) -> set[str]:
    """Days of which the billing or the usage in the lake is not what was written."""
    sizes = lake.sizes(root, BILLING, tenant_id)
    unread = {key[1] for key, row in state.days(store, tenant_id).items() if sizes.get(key) != row.billing_bytes}
    return unread | wanted.lost_usage(root, store, tenant_id)


def told_unknown(days: Iterable[str]) -> Iterator[str]:
    """A line for days of which only the lake knows."""
    if found := sorted(days):
        yield (
            f"{told_span(found)} in the lake, and not known to state.db, which was lost or is an older one: what they"
            " charge stays, unchecked; a run with a lookback_days that reaches them makes them again"
        )


def told_lost(days: Iterable[str]) -> Iterator[str]:
    """A line for days that are lost and were not made again."""
    if found := sorted(days):
        yield (
            f"{told_span(found)} lost from the lake, billing or usage, and not to be made again from landed answers;"
            " what they charge stays; put their files back; days that lookback_days reaches are asked for again by each"
            " run"
        )


def without_rules(root: Path, store: state.State, tenant: CostModelTenant) -> dict[str, tuple[str, ...]]:
    """Charge date -> the products of its lines that the cost model has no more, of days that keep what they charge.

    They could not be made anew, so their lines are those of an older cost model, and no rule is left that splits them.
    """
    if not isinstance(tenant, GenericTenant):
        return {}  # The products of the others stand in the rulebook.
    made, unread = gather_state.constructed_days(store, tenant.id), lost(root, store, tenant.id)
    named, found = {one.name for one in tenant.source.cost_types}, dict[str, tuple[str, ...]]()
    for day in _charged(root, store, tenant.id):
        if day not in made or day in unread:
            continue
        # Reading the lake takes long, and days of the cost model as it is now have none but its products.
        charge_date = date.fromisoformat(day)
        if made[day].model == cost_rates.model_digest(tenant, charge_date):
            continue
        lines = lake.read(root, lake.Place(BILLING, tenant.id, day[:7], charge_date))
        if gone := sorted(set(lines["product_type"].cast(pl.String)) - named):
            found[day] = tuple(gone)
    return found


def _charged(root: Path, store: state.State, tenant_id: str) -> Iterator[str]:
    """Days whose chargeback is there, and of their billing."""
    sizes = lake.sizes(root, CHARGEBACK, tenant_id)
    for key, row in state.days(store, tenant_id).items():
        if row.chargeback_calculated and row.chargeback_bytes == sizes.get(key):
            yield key[1]


def never_asked(
    root: Path, store: state.State, tenant: CostModelTenant, days: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Charge date -> the metrics that its ladders weigh by and that nobody was asked for, of days that are charged.

    Their usage has nothing of them, so they would be charged as if nobody had used anything.
    """
    if not days:
        return {}
    made, known = gather_state.constructed_days(store, tenant.id), gather_state.day_metrics(store, tenant.id)
    weighed_by, found = rules.metrics_of(rules.resolve(tenant)), dict[str, tuple[str, ...]]()
    asked = [one for one in cost_questions.questions(tenant) if one.use == "weights"]

    def was_asked(day: str, question: Question) -> bool:
        """Whether a day was made with an answer, or without one that was given up."""
        now = known.get((day, question.name))
        is_given_up = question.name in made[day].given_up or (now is not None and now.status == "given_up")
        return is_given_up or made_of(made[day], question) is not None

    for day in {*_charged(root, store, tenant.id)}.intersection(days, made):
        products = {one.product_type for one in cost_rates.charges(tenant.source, date.fromisoformat(day))}
        weighed = {metric for name in products for metric in weighed_by.get(f"product:{name}", ())}
        lacking = sorted(one.metrics[0] for one in asked if not was_asked(day, one))
        if metrics := tuple(name for name in lacking if name in weighed):
            found[day] = metrics
    return found


def told_never_asked(found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for days whose charges stay since their ladders weigh by what nobody was asked for."""
    if found:
        named = ", ".join(sorted({name for names in found.values() for name in names}))
        yield (
            f"{told_span(sorted(found))} keep what they charge: their ladders weigh by {named}, which nobody was asked"
            " for; a larger lookback_days asks for it"
        )


def told_without_rules(found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for days whose charges stay since no rule is left for some of their lines."""
    if not found:
        return
    products = sorted({name for names in found.values() for name in names})
    listed = ", ".join([*map(shown, products[:5]), *([f"{len(products) - 5} more"] if products[5:] else [])])
    yield (
        f"{told_span(sorted(found))} keep what they charge: they have lines of {listed}, which their cost model no"
        " longer has, so no rule splits them anew; a cost type whose rate ends (`to`) keeps its rule"
    )


class Kept(NamedTuple):
    """Why a day stays as it was made, although it would be made of something else now: a code, and in words."""

    code: str
    told: str


class Known:
    """What is known of a tenant's days when they are made; a class only to read each table once.

    `span`: the days of which questions may be asked. `unreadable`: the numbers of landed answers that cannot be read.
    `forced`: says of which days to make what there is, be it less than they were made of.
    """

    def __init__(
        self,
        root: Path,
        store: state.State,
        tenant: CostModelTenant,
        span: Window,
        *,
        unreadable: Collection[int] = (),
        forced: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.tenant, self.forced = tenant, forced
        self.first, self.end = map(str, span)
        self.questions = {one.name: one for one in cost_questions.questions(tenant)}
        self.asked_of = asker(tenant)
        self._digests = {name: one.digest for name, one in self.questions.items()}
        self.day_metrics = gather_state.day_metrics(store, tenant.id)
        found = gather_state.metric_fetches(store, tenant.id).items()
        self.fetches = {
            number: one
            for number, one in found
            if number not in unreadable and landed_in(root, tenant, number).is_dir()
        }
        self._landed = dict[tuple[str, ...], list[int]]()
        for number, one in self.fetches.items():
            self._landed.setdefault(one.ids, []).append(number)
        self.made = gather_state.constructed_days(store, tenant.id)
        days = state.days(store, tenant.id)
        self.billed = {day for _, day in days}
        self.charged = {key[1] for key, row in days.items() if row.output_digest is not None}
        self.lost = lost(root, store, tenant.id)

    def is_in_window(self, day: str) -> bool:
        """Whether questions may be asked for a day."""
        return self.first <= day < self.end

    def has_charges(self, day: str) -> bool:
        """Whether the cost model has anything for a day."""
        return bool(cost_rates.charges(self.tenant.source, date.fromisoformat(day)))

    def is_wanted(self, question: Question, day: str) -> bool:
        """Whether a day has any use for a question: what there is in a cluster is listed, whatever it costs."""
        if question.use == "resources":
            return self.has_charges(day)
        return question.name in {one.name for one in self.asked_of(day)}

    def is_open(self, question: Question, day: str, *, lift: bool = False) -> bool:
        """Whether a question is to be asked for a day; with `lift` what was given up is, and what may be incomplete."""
        if not self.is_wanted(question, day):
            return False
        known = self.metric(day, question.name)
        if known is not None and known.status == "given_up":
            return lift
        if self._is_unanswered(question, day, lift=lift):
            return True
        if question.use in QUANTITIES:
            return False
        # Samples that come late come late for all: who is in them is asked for along with how much there was.
        is_late = any(self._is_unanswered(one, day, lift=lift) for one in self._quantities(day))
        return is_late or self.is_behind(question, day, lift=lift)

    def _quantities(self, day: str) -> list[Question]:
        return [one for one in self.asked_of(day) if one.use in QUANTITIES]

    def is_behind(self, question: Question, day: str, *, lift: bool = False) -> bool:
        """Whether who is in a day's samples was answered before how much there was, and is still to be asked again.

        Who was in the first samples of a day is not everybody in all of them.
        """
        known = self.metric(day, question.name)
        if question.use in QUANTITIES or known is None or known.fetch_id is None or not self.is_kept(known):
            return False
        if known.attempts >= self.tenant.allocation_retry_limit and not lift:
            return False
        found = [self.metric(day, one.name) for one in self._quantities(day)]
        return any(one is not None and self.is_kept(one) and (one.fetch_id or 0) > known.fetch_id for one in found)

    def of_first_samples(self) -> list[DayMetric]:
        """Who is in samples, of days of which more came, since when it was given up to ask again; in order."""
        found = ((day, one, self.metric(day, one.name)) for day in sorted(self.made) for one in self.asked_of(day))
        return [
            known
            for day, question, known in found
            if known is not None and known.error and self._is_of_first(question, day, known.fetch_id or 0)
        ]

    def _is_of_first(self, question: Question, day: str, number: int) -> bool:
        """Whether samples of a day came before and after this answer, which is asked again no more."""
        if not self.is_behind(question, day, lift=True) or self.is_behind(question, day):
            return False
        came = [(self.landed_before(one, day), self.metric(day, one.name)) for one in self._quantities(day)]
        return any(landed[0] < number < (now.fetch_id or 0) for landed, now in came if landed and now is not None)

    def _is_unanswered(self, question: Question, day: str, *, lift: bool) -> bool:
        known = self.metric(day, question.name)
        if known is None or known.status == "failed":
            return True
        if known.status == "given_up":
            return lift
        lacks = lift and (self.forced(day) or self._may_be_more(question, day, known))
        return lacks or not self.is_kept(known) or self._is_awaited(question, day)

    def _may_be_more(self, question: Question, day: str, known: DayMetric) -> bool:
        """Whether an answer lacks samples, is less than the day was made of, or a part only, as Prometheus said."""
        before, fetch = made_of(self.made.get(day), question), self.fetches.get(known.fetch_id or 0)
        is_less_now = before is not None and is_poorer(known, before)
        return share_came(known.rows, known.gaps) < 1 or is_less_now or (fetch is not None and bool(fetch.warned))

    def _is_awaited(self, question: Question, day: str) -> bool:
        """Whether a day waits for samples that are missing; one that was charged of the same answer does no more."""
        known, before = self.metric(day, question.name), made_of(self.made.get(day), question)
        if known is None or not is_incomplete(self.tenant, known) or self.forced(day):
            return False
        return day not in self.charged or before is None or before.fetch_id != known.fetch_id

    def is_kept(self, known: DayMetric | None) -> bool:
        """Whether a question was answered and the answer is still there."""
        return known is not None and known.status == "fetched" and known.fetch_id in self.fetches

    def metric(self, day: str, name: str) -> DayMetric | None:
        """What is known of a question that is asked now; None of another one."""
        known = self.day_metrics.get((day, name))
        return known if known is not None and known.ids == (self._digests[name],) else None

    def landed_before(self, question: Question, day: str) -> list[int]:
        """The numbers under which answers for a day to a question as it is asked now are landed, whatever its name."""
        landed = self._landed.get((self._digests[question.name],), [])
        return [number for number in landed if self.fetches[number].first_day <= day < self.fetches[number].end_day]

    def recall(self) -> None:
        """Give days the landed answers that a run will find again: those to questions of now that they were made of.

        Their samples are compared with as many as are expected by now, as a run will count them again.
        """
        for day, made in self.made.items():
            for question in self.questions.values():
                known = self.metric(day, question.name)
                if known is not None and self.is_kept(known):
                    self.day_metrics[day, question.name] = self._recounted(known, question)
                    continue
                before, landed = made_of(made, question), self.landed_before(question, day)
                answered = DayMetric(day, question.name, "fetched", (question.digest,), "")
                if before is not None and before.fetch_id in landed:
                    counts = {name: getattr(before, name) for name in ("rows", "gaps", "points", "total", "fetch_id")}
                    self.day_metrics[day, question.name] = answered._replace(**counts)
                elif question.use == "resources" and landed:
                    self.day_metrics[day, question.name] = answered._replace(fetch_id=landed[-1])

    def _recounted(self, known: DayMetric, question: Question) -> DayMetric:
        """An answer with its samples counted as of now; where more are expected than before, as whole as it was."""
        assert self.tenant.metrics is not None  # else nothing was asked
        expected, before = question.expected(self.tenant.metrics.scrape_seconds), known.rows + known.gaps
        if expected == before:
            return known
        # No more count than of the hours that were answered (`cost_model.came`).
        whole = DAY_SECONDS // question.values.step_seconds
        most, most_before = (number * known.points // whole for number in (expected, before))
        rows = most if known.rows >= most_before else min(known.rows, most)
        return known._replace(rows=rows, gaps=expected - rows)

    def waits(self, day: str) -> tuple[str, str] | None:
        """Why a day is not to be calculated yet, as a code and in words; None if it is.

        A day that was calculated and that nothing is asked for any more waits for nothing.
        """
        if day in self.charged and not self.is_in_window(day):
            return None
        for question in self.asked_of(day):
            name, one = question.name, self.metric(day, question.name)
            if one is None:
                return "metrics_wanted", ""
            is_behind = self.is_behind(question, day) and not self.forced(day)
            if is_behind and not one.attempts:
                return "metrics_wanted", ""
            if is_behind or one.status == "failed":
                limit = self.tenant.allocation_retry_limit
                return "metrics_failed", f"{name}, attempt {one.attempts} of {limit}: {one.error}"
            if self._is_awaited(question, day):
                return "incomplete", f"{name}: {one.rows} of {one.rows + one.gaps} samples"
        return None

    def keeps(self, day: str) -> Kept | None:
        """Why a day that was made is not to be made anew; None if it may be, or waits for an answer that may come.

        A question that failed for good, or to which less came than what the day was made of, takes nothing away:
        Prometheus keeps what it knows for a while, and a selector is soon mistyped.
        """
        made = self.made.get(day)
        if made is None:
            return None
        if not self.has_charges(day):
            return self._keeps_without_rates(day, made)
        for question in self.asked_of(day):
            name, now = question.name, self.metric(day, question.name)
            # A day without lines has nothing to lose.
            before = made_of(made, question) if day in self.billed else None
            if now is None or now.status == "failed" or self.is_behind(question, day):
                if not self.is_in_window(day):
                    return Kept("before_window", f"{name} was not answered")
            elif now.status == "fetched" and not self.is_kept(now):
                return Kept("answers_gone", f"the answer to {name}")
            elif before is not None and not self.forced(day):
                if now.status == "given_up":
                    return Kept("answers_poorer", f"{name} was given up: {first_line(now)}")
                if is_poorer(now, before):
                    return Kept("answers_poorer", f"{name}: {_told_counts(before, now)}")
        return None

    def _keeps_without_rates(self, day: str, made: ConstructedDay) -> Kept | None:
        """Why a day that no rate reaches any more keeps its lines: nobody could bring them back."""
        gone = [name for name, one in made.answers.items() if one.fetch_id not in self.fetches]
        if gone and day in self.billed and not self.forced(day):
            return Kept("rates_gone", f"the answer to {gone[0]}")
        return None

    def can_be_made(self, day: str) -> bool:
        """Not where a day would lose something, or is charged and waits: it is not billed ahead of what it charges."""
        if self.keeps(day) is not None:
            return False
        if not self.has_charges(day):
            return True
        if day in self.charged and day not in self.lost and self.waits(day) is not None:
            return False
        known = [self.metric(day, one.name) for one in self.asked_of(day)]
        if any(one is not None and one.status == "fetched" and not self.is_kept(one) for one in known):
            return False
        return day not in self.billed or all(one is not None and one.status != "failed" for one in known)

    def fetches_of(self, day: str) -> tuple[tuple[str, int], ...]:
        """The questions that were answered for a day, and under which numbers the answers are landed."""
        found = ((one.name, self.metric(day, one.name)) for one in self.asked_of(day))
        return tuple((name, one.fetch_id) for name, one in found if one is not None and one.fetch_id is not None)

    def answers_of(self, day: str) -> dict[str, MadeOf]:
        """The questions that were answered for a day, with their answers."""
        found = ((one, self.metric(day, one.name)) for one in self.asked_of(day))
        return {
            question.name: MadeOf(one.rows, one.gaps, one.points, question.digest, one.fetch_id or 0, one.total)
            for question, one in found
            if one is not None and one.status == "fetched"
        }

    def given_up_of(self, day: str) -> dict[str, tuple[str, ...]]:
        """The questions that failed for good on a day, each with the metrics of USAGE that it lacks for that."""
        found = ((one, self.metric(day, one.name)) for one in self.asked_of(day))
        return {asked.name: asked.metrics for asked, one in found if one is not None and one.status == "given_up"}

    def cause(self, day: str) -> str:
        """A digest of all that a day's lines and usage are made of, and without."""
        content = [self.model(day), *map(str, self.fetches_of(day)), *self.given_up_of(day)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def model(self, day: str) -> str:
        """A digest of what of the cost model holds on a day."""
        return cost_rates.model_digest(self.tenant, date.fromisoformat(day))

    def has_changed(self, day: str) -> bool:
        """Whether a day is to be made of something else than it was."""
        before = self.made.get(day)
        return before is None or before.cause != self.cause(day) or day in self.lost

    def is_asked_anew(self, day: str) -> bool:
        """Whether something that a day depends on is to be asked for, be it that its answer is there no more."""
        return self.is_in_window(day) and any(self.is_open(one, day) for one in self.asked_of(day))

    def is_of_older_model(self, day: str) -> bool:
        """Whether a day was made of another cost model than the one that holds on it now."""
        before = self.made.get(day)
        return before is not None and before.model not in {"", self.model(day)}


def _told_counts(before: MadeOf, now: DayMetric) -> str:
    if share_came(now.rows, now.gaps) < share_came(before.rows, before.gaps):
        return f"{now.rows} of {now.rows + now.gaps} samples, {before.rows} of {before.rows + before.gaps} before"
    if now.points < before.points:
        return f"{counted(now.points, 'value')}, {before.points} before"
    what = "samples" if before.gaps or now.gaps else "in all"
    return f"{now.total} {what}, {before.total} before"


_KEPT = {
    "answers_poorer": (
        "since there is less now than they were made of",
        "`prorata run --force` asks again, and with --from and --to makes the days that they name of what there is",
    ),
    "answers_gone": (
        "since answers are no longer kept",
        "they are asked for again on days of the last lookback_days",
    ),
    "rates_gone": (
        "although no rate holds on them any more, since answers are no longer kept and nobody could bring them back",
        "`prorata run --force` with --from and --to removes the days that they name",
    ),
    "before_window": (
        "since they are older than lookback_days, and their cost model now asks for more",
        "a larger lookback_days asks for it",
    ),
}
"""Code of a day that is kept -> why, and what can be done."""


def told_kept(known: Known, days: Iterable[str]) -> Iterator[str]:
    """A line for each reason why some of these days stay as they were made, though a change would make them anew.

    Of days before the window only those that the cost model itself would change; not those that are lost (`told_lost`).
    """
    found = dict[str, list[tuple[str, Kept]]]()
    for day in sorted(days):
        kept = known.keeps(day) if known.has_changed(day) and day not in known.lost else None
        if kept is not None and (known.is_in_window(day) or known.is_of_older_model(day)):
            found.setdefault(kept.code, []).append((day, kept))
    for code, of_code in found.items():
        why, what = _KEPT[code]
        span, told = told_span([day for day, _ in of_code]), of_code[0][1].told
        yield f"{span} left as made before, {why} ({told}); {what}"


def told_removed(days: Sequence[str]) -> Iterator[str]:
    """A line for days that lost their lines since no rate reaches them any more."""
    if days:
        yield f"{told_span(days)} removed, since no rate holds on them any more; with one they come back as they were"


def told_span(days: Sequence[str]) -> str:
    """How many days there are, and from which to which; whether others lie between them."""
    first, last = days[0], days[-1]
    if (date.fromisoformat(last) - date.fromisoformat(first)).days >= len(days):
        return f"{len(days)} of the days {first} to {last}"
    return f"{counted(len(days), 'day')} ({first} to {last})" if days[1:] else f"1 day ({first})"


class Incomplete(NamedTuple):
    """A day of which samples are missing: of which question how many came, and how many were expected."""

    charge_date: str
    question: str
    came: int
    expected: int


def asked_now(tenant: CostModelTenant, known: Mapping[Key, DayMetric]) -> list[DayMetric]:
    """What became of the questions that are asked now, on the days whose amounts depend on them, in order."""
    asked = asker(tenant)
    return [
        one
        for (day, name), one in sorted(known.items())
        if any(question.name == name and one.ids == (question.digest,) for question in asked(day))
    ]


def incomplete(
    tenant: CostModelTenant, known: Mapping[Key, DayMetric], days: set[str] | None = None
) -> list[Incomplete]:  # fmt: skip
    """The days, of these or of all, on which not all of the expected samples came, in order."""
    return [
        Incomplete(one.charge_date, one.metric, one.rows, one.rows + one.gaps)
        for one in asked_now(tenant, known)
        if one.gaps and (days is None or one.charge_date in days)
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


def made_without(
    tenant: CostModelTenant, known: Mapping[Key, DayMetric], made: Mapping[str, ConstructedDay]
) -> list[DayMetric]:  # fmt: skip
    """The questions that were given up on days whose amounts depend on them and that have no earlier answer to them.

    Whatever is asked now: what failed when a day was made fails as long as it is not made anew.
    """
    questions = {one.name: one for one in cost_questions.questions(tenant)}
    now = {
        (one.charge_date, one.metric): one
        for one in asked_now(tenant, known)
        if one.status == "given_up" and made_of(made.get(one.charge_date), questions[one.metric]) is None
    }
    before = {
        (day, name): known.get((day, name), DayMetric(day, name, "given_up", (), ""))
        for day, one in made.items()
        for name in one.given_up
    }
    return [one for _, one in sorted((before | now).items())]


def first_line(failed: DayMetric) -> str:
    """How a question failed, in one line."""
    return (failed.error or "").partition("\n")[0]


def told_given_up(found: Sequence[DayMetric], what: str = "made without") -> Iterator[str]:
    """A line for questions that were given up on the same days for the same reason, and what became of those days."""
    days_of = dict[tuple[str, str], list[str]]()
    for one in sorted(found, key=lambda one: (one.metric, one.charge_date)):
        days_of.setdefault((one.metric, first_line(one)), []).append(one.charge_date)
    questions = dict[tuple[str, str], list[str]]()
    for (question, why), days in days_of.items():
        questions.setdefault((told_span(days), why), []).append(question)
    for (span, why), named in questions.items():
        yield f"{', '.join(named)}: given up for {span}, {what} ({why}); `prorata run --force` asks again"


def failed_metrics(store: state.State, tenant: CostModelTenant) -> dict[str, frozenset[str]]:
    """Charge date -> the metrics of USAGE that it was made without since their questions were given up, if any."""
    lacking = {one.name: one.metrics for one in cost_questions.questions(tenant)}
    made, found = gather_state.constructed_days(store, tenant.id), dict[str, set[str]]()
    for one in made_without(tenant, gather_state.day_metrics(store, tenant.id), made):
        day = made.get(one.charge_date)
        of_day = {**lacking, **(day.given_up if day is not None else {})}
        found.setdefault(one.charge_date, set()).update(of_day[one.metric])
    return {day: frozenset(metrics) for day, metrics in found.items()}


def entities(store: state.State, tenant: CostModelTenant) -> tuple[pl.DataFrame, pl.DataFrame]:
    """RESOURCES (the cluster, and what is in it), and id and display name of the identities that are named."""
    found = gather_state.entities(store, RESOURCES, tenant.id)
    own = pl.concat([cost_rates.cluster(tenant), found.filter(pl.col("parent") == tenant.source.cluster_id)])
    named = cost_rates.names(tenant.source)
    return own.sort(RESOURCES.key), pl.DataFrame(
        list(named.items()), schema={"id": pl.String, "display_name": pl.String}, orient="row"
    )
