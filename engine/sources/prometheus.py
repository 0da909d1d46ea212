"""Prometheus over HTTP: values of series by UTC day, landed as they were answered, then parsed exactly.

A day is the half-open [00:00, 24:00) of UTC: a sample at midnight belongs to the day that begins there. Times of
Prometheus are whole milliseconds, and a range selector holds [t - range, t] in 2.x but (t - range, t] from 3.0 on:
evaluated at t = end - 1 ms, a range of the step less 1 ms in the one and of the step in the other is [start, end).
What could not be asked raises SourceError; a series that is not there is only missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, time, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

import polars as pl

from engine.errors import ContractError, SourceError, fault, shown
from engine.money import check_sum_fits, largest, parse_amount, to_amount, to_units
from engine.sources.answers import Answer
from engine.sources.http import Client
from engine.sources.landing import Landing
from engine.sources.promql import DAY_SECONDS, Query, Window, quoted
from engine.text import printable

POINTS_MAX = 11_000
"""Points a series that Prometheus gives in one answer."""
SERIES_MAX = 100_000
"""Series in one answer, unless the caller says otherwise: what bounds the memory that an answer takes."""

SAMPLES_FAILED_MAX = 3
"""After so many questions for samples in a row that failed, no more are asked: each may wait as long as it can."""
SAMPLED_SERIES_MAX = 50
"""Series whose samples of a day are asked for at once; a sample a second makes some 100 MB of them."""

_MILLISECOND = timedelta(milliseconds=1)
_PLACEHOLDER = re.compile(r"\{matcher\}|\{range\}")
_RE2_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_COLUMNS = ("window", "value", "points")
_NOT_NUMBERS = ("NaN", "+Inf", "-Inf")
_PROBE = "count_over_time(vector(1)[1m:1m])"
"""2 at every whole minute where range selectors are closed, 1 where they are left-open; needs no data."""
_TOLD_SHOWN = 300
_TOO_MUCH = re.compile(r"too many|timed out|no whole answer|answer of more than|max[a-z]* (number|resolution|series)")
_ASK_LESS = "set days_per_query or ids_per_query lower, or the server's limits higher"
_RANGE_PATH = "api/v1/query_range"
_INSTANT_PATH = "api/v1/query"


class Version(NamedTuple):
    """What a server says it is, and whether its range selectors are left-open."""

    text: str
    left_open: bool


class Samples(NamedTuple):
    """What answers say.

    `values` has the columns window (YYYY-MM-DD), those of `by` ('' where a series lacks the label), value (the sum of
    the points that are numbers, DECIMAL(38,12)) and points (how many they are), in key order. `dropped` has the same
    but for value: the points that are no numbers (NaN, +Inf, -Inf). One such sample makes the point that sums it no
    number either; `mended` tells them apart. `warnings` are in Prometheus's own words.
    """

    values: pl.DataFrame
    dropped: pl.DataFrame
    warnings: tuple[str, ...]
    unseen: frozenset[str] = frozenset()


def sum_of_samples(name: str, series: str, by: Sequence[str], id_label: str) -> Query:
    """All samples of a day, for series whose every sample says what came in since the one before."""
    return _aggregated(name, "sum", "sum_over_time", series, by, id_label)


def sample_counts(name: str, series: str, by: Sequence[str], id_label: str) -> Query:
    """How many samples of a day there are of the series that has most; `gaps` says what is lacking."""
    return _aggregated(name, "max", "count_over_time", series, by, id_label)


def increases(name: str, series: str, by: Sequence[str], id_label: str, *, step_seconds: int = 3600) -> Query:
    """By how much counters rose in each step, resets seen to. Prometheus extrapolates to the ends of a step."""
    return _aggregated(name, "sum", "increase", series, by, id_label)._replace(step_seconds=step_seconds)


def _aggregated(name: str, aggregation: str, function: str, series: str, by: Sequence[str], id_label: str) -> Query:
    if not _METRIC.fullmatch(series):
        raise ValueError(f"{series!r} is not the name of a metric")
    expression = f"{aggregation} by ({', '.join(by)}) ({function}({series}{{matcher}}[{{range}}]))"
    return _checked(Query(name, expression, tuple(by), id_label))


def _checked(query: Query) -> Query:
    """The query itself; ValueError if its labels could be anything but labels, or batches of ids could mix."""
    wrong = [label for label in (*query.by, query.id_label or "_") if not _LABEL.fullmatch(label) or label in _COLUMNS]
    if wrong or (query.id_label and query.id_label not in query.by):
        raise ValueError(f"query {query.name!r}: by {query.by!r}, id_label {query.id_label!r}")
    return query


def buildinfo(client: Client) -> Version:
    """What the server is; if it does not say that it is a Prometheus of 2.0 or later, what it does is tried."""
    answer = client.get("api/v1/status/buildinfo", absent_ok=True)
    body = None if answer.status == 404 else answer.body
    data = body.get("data") if isinstance(body, dict) else None
    told = data if isinstance(data, dict) else {}
    text = str(told.get("version", ""))
    major = re.match(r"v?([0-9]{1,4})\.", text)
    # Other programs with this interface (Mimir, Thanos) number their versions otherwise.
    if major and int(major[1]) >= 2 and "application" not in told:
        return Version(text, left_open=int(major[1]) >= 3)
    return Version(text, left_open=is_left_open(client))


def is_left_open(client: Client) -> bool:
    """Whether range selectors are left-open, by a question that costs a server nothing; SourceError if it fails."""
    where = f"{_INSTANT_PATH}: {_PROBE}"
    data = _data(client.post(_INSTANT_PATH, {"query": _PROBE, "time": "2020-01-01T00:00:00Z"}).body, where)
    try:
        count = data["result"][0]["value"][1]
    except (LookupError, TypeError):
        count = None
    if count not in {"1", "2"}:
        raise SourceError(fault(where, f"value {shown(count)}", "1 or 2, as a Prometheus answers"))
    return bool(count == "1")


def windows(query: Query, days: Window, days_per_query: int) -> list[Window]:
    """The days in as few pieces as can be asked for at once: of `days_per_query`, and of POINTS_MAX points a series."""
    first, end = days
    length = min(days_per_query, POINTS_MAX // _points_a_day(query))
    starts = [first + timedelta(days=day) for day in range(0, (end - first).days, length)]
    return [(start, min(end, start + timedelta(days=length))) for start in starts]


def _points_a_day(query: Query) -> int:
    points, rest = divmod(DAY_SECONDS, query.step_seconds)
    if rest or points > POINTS_MAX:
        raise ValueError(f"query {query.name!r}: a step of {query.step_seconds} s does not divide a day, or too finely")
    return points


def landed_name(query: Query, window: Window) -> str:
    """The name under which the answers for a window are landed."""
    return f"{query.name}-{window[0]}-{window[1]}"


def fetch_days(
    client: Client,
    landing: Landing,
    query: Query,
    window: Window,
    version: Version,
    *,
    ids: Iterable[str] = (),
    ids_per_query: int = 50,
    series_max: int = SERIES_MAX,
) -> None:
    """Land what a query says of the ids on the days of one of its `windows`, whole or not at all.

    A query without `id_label` is one request; one with it is one for every `ids_per_query` ids, and none for no ids.
    Raises SourceError, naming the query and the days, if any of the answers could not be had.
    """
    forms = range_forms(query, window, version, ids, ids_per_query)
    where = _place(query, window)
    landing.write(landed_name(query, window), (_answer(client, form, where, series_max) for form in forms))


def _place(query: Query, window: Window) -> str:
    return f"{query.name}, {window[0]} to {window[1] - timedelta(days=1)}"


def range_forms(
    query: Query, window: Window, version: Version, ids: Iterable[str], ids_per_query: int
) -> list[dict[str, str]]:
    """What is posted for a window: a point at the last millisecond of each of its steps, for all the ids."""
    first, end = window
    points = (end - first).days * _points_a_day(query)
    if not 0 < points <= POINTS_MAX:
        raise ValueError(f"{_place(query, window)}: {points} points a series; expected a piece of `windows`")
    milliseconds = query.step_seconds * 1000
    duration = f"{milliseconds if version.left_open else milliseconds - 1}ms"
    step = timedelta(seconds=query.step_seconds)
    return [
        {
            "query": _filled(query.expression, {"{matcher}": matcher, "{range}": duration}),
            "start": _last_millisecond(datetime.combine(first, time()) + step),
            "end": _last_millisecond(datetime.combine(end, time())),
            "step": str(query.step_seconds),
        }
        for matcher in _matchers(_checked(query), ids, ids_per_query)
    ]


def _filled(expression: str, texts: dict[str, str]) -> str:
    """The expression with its placeholders filled in one pass, so that none is seen inside of an id."""
    return _PLACEHOLDER.sub(lambda found: texts[found[0]], expression)


def _last_millisecond(end: datetime) -> str:
    # Not as a number of seconds: Prometheus reads those as floats.
    return f"{(end - _MILLISECOND).isoformat(timespec='milliseconds')}Z"


def _matchers(query: Query, ids: Iterable[str], ids_per_query: int) -> list[str]:
    """The matchers that choose the ids, `ids_per_query` at a time; '{}', which chooses all, of a query without."""
    wanted = sorted(set(ids))
    if not query.id_label:
        if wanted:
            raise ValueError(f"query {query.name!r} has no id_label, and cannot choose ids")
        return ["{}"]
    batches = [wanted[start : start + ids_per_query] for start in range(0, len(wanted), ids_per_query)]
    return [f"{{{query.id_label}=~{quoted('|'.join(map(re2_literal, batch)))}}}" for batch in batches]


def re2_literal(text: str) -> str:
    """A regular expression of RE2 that matches this text and no other.

    ContractError on '', which would match series without the label, and on what is no Unicode text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ContractError(fault("an id to ask for", shown(ascii(text)), "Unicode text")) from None
    if not text:
        raise ContractError(fault("an id to ask for", "''", "a text that is not empty"))
    return _RE2_SPECIAL.sub(r"\\\g<0>", text)


def samples_name(query: Query, window: Window) -> str:
    """The name under which the samples themselves of a window are landed (`fetch_samples`)."""
    return f"{query.name}_raw-{window[0]}-{window[1]}"


def fetch_samples(
    client: Client,
    landing: Landing,
    query: Query,
    series: Sequence[str],
    window: Window,
    version: Version,
    found: Samples,
    *,
    series_max: int = SERIES_MAX,
) -> dict[str, str]:
    """Land the samples themselves of the points of a sum over days that are no numbers, as far as they can be had.

    One sample that is no number makes its whole day none; what the others say is in the samples only. `series` are the
    metrics that `query` sums. Returns the days of which not all could be had, each with the error.
    """
    if query.step_seconds != DAY_SECONDS or not query.id_label:
        raise ValueError(f"query {query.name!r} is no sum over days by ids")
    where, key = f"{_place(query, window)}, samples", ["window", query.id_label]
    of_one = found.dropped.sort("window", *query.by).partition_by(key, maintain_order=True)
    batches = (batch for points in of_one for batch in points.iter_slices(SAMPLED_SERIES_MAX))

    def answers(batch: pl.DataFrame) -> Iterator[Answer]:
        try:
            answer = _answer(client, _sample_form(query, series, version, batch), where, series_max, _INSTANT_PATH)
        except SourceError as error:
            if batch.height == 1 or _ASK_LESS not in str(error):
                raise
        else:
            yield answer
            return
        # Nobody knows before how many series and samples there are.
        middle = batch.height // 2
        yield from answers(batch[:middle])
        yield from answers(batch[middle:])

    failed = dict[str, str]()
    landing.write(samples_name(query, window), _as_far_as_had(batches, answers, failed))
    return failed


def _as_far_as_had(
    batches: Iterable[pl.DataFrame], answers: Callable[[pl.DataFrame], Iterator[Answer]], failed: dict[str, str]
) -> Iterator[Answer]:
    """The answers of all batches, each of one day, that could be had; the days of the others are `failed`."""
    in_a_row, error = 0, ""
    for batch in batches:
        found = list[Answer]()
        try:
            if in_a_row < SAMPLES_FAILED_MAX:
                found, in_a_row = list(answers(batch)), 0
        except (SourceError, ContractError) as one:
            error, in_a_row = "; ".join(one.faults), in_a_row + 1
        if not found:
            failed.setdefault(batch["window"][0], error)
        yield from found


def _sample_form(query: Query, series: Sequence[str], version: Version, batch: pl.DataFrame) -> dict[str, str]:
    """What is posted for the samples of points (window and the labels of `by`) of one day."""
    milliseconds = DAY_SECONDS * 1000
    duration = f"{milliseconds if version.left_open else milliseconds - 1}ms"
    # May choose more than the points where there are several labels besides; `mended` leaves those out.
    matchers = [f"{label}=~{quoted(_any_of(batch[label]))}" for label in query.by]
    chosen = ",".join([f'__name__=~"{"|".join(series)}"', *matchers])
    end = datetime.fromisoformat(batch["window"][0]) + timedelta(days=1)
    return {"query": f"{{{chosen}}}[{duration}]", "time": _last_millisecond(end)}


def _any_of(texts: pl.Series) -> str:
    """A regular expression of RE2 that matches these texts and no other; '' stands for a label that is not there."""
    return "|".join(re2_literal(text) if text else "" for text in texts.unique().sort())


def mended(found: Samples, pages: Iterable[Answer], query: Query, series: Sequence[str], window: Window) -> Samples:
    """What answers say, with the points that are no numbers made again from the landed samples (`fetch_samples`).

    A point is then the sum of its samples that are numbers, and what is dropped are the others. Of several `series` the
    first that has samples of a point counts. A point whose samples did not come stays dropped.
    """
    where, warnings, key = f"{_place(query, window)}, samples", dict.fromkeys(found.warnings), ("window", *query.by)
    result = list[Any]()
    for page in pages:
        body = page.body
        result += _matrix(body, where)
        warnings |= _warnings(body)
    points = _points(result, query._replace(by=(*query.by, "__name__")), where)
    _check_points(points, window, where)
    order = pl.col("__name__").replace_strict(list(series), range(len(series)), default=len(series))
    used = points.join(found.dropped, on=key, how="semi").filter(order == order.min().over(key))
    is_number = pl.col(".number").is_not_null()
    again = _summed(used.filter(is_number), key, where).with_columns(points=pl.lit(1, found.values.schema["points"]))
    lost = used.filter(~is_number).group_by(key).agg(points=pl.len())
    unseen = found.dropped.join(used, on=key, how="anti")
    values, dropped = pl.concat([found.values, again]).sort(key), pl.concat([lost, unseen]).sort(key)
    return Samples(values, dropped, tuple(warnings), frozenset(unseen["window"]))


def told(warning: str) -> str:
    """A warning of `Samples` for people: one line, and not too long. No answer has our own secrets (`http.Client`)."""
    return f"Prometheus warns: {shown(printable(' '.join(warning.split())), limit=_TOLD_SHOWN)}"


def _warnings(body: Any) -> dict[str, None]:
    given = [body.get(kind) or [] for kind in ("warnings", "infos")]
    return dict.fromkeys(str(said) for texts in given for said in (texts if isinstance(texts, list) else [texts]))


def _answer(client: Client, form: dict[str, str], where: str, series_max: int, path: str = _RANGE_PATH) -> Answer:
    """One answer, whole and understood, with what was asked in its url."""
    try:
        answer = client.post(path, form)
    except SourceError as error:
        less = f" ({_ASK_LESS})" if _TOO_MUCH.search(str(error)) else ""
        raise SourceError([f"{where}: {line}{less}" for line in error.faults]) from error
    series = len(_matrix(answer.body, where))
    if series > series_max:
        raise SourceError(fault(where, f"{series:,} series in one answer", f"at most {series_max:,}: {_ASK_LESS}"))
    # Of a form the client shows nothing, and here is nothing to hide.
    return answer._replace(url=f"{answer.url}?{urlencode(form)}")


def _data(body: Any, where: str) -> dict[str, Any]:
    """What is in the envelope; SourceError with Prometheus's own words if it says that it failed."""
    if not isinstance(body, dict) or body.get("status") not in {"success", "error"}:
        raise SourceError(fault(where, f"answer {shown(body)}", "an answer of Prometheus"))
    if body["status"] == "error":
        said = f"{body.get('errorType', '')}: {body.get('error', '')}"
        expected = _ASK_LESS if _TOO_MUCH.search(said) else "an answer without error"
        raise SourceError(fault(where, f"error {shown(said, limit=_TOLD_SHOWN)}", expected))
    data = body.get("data")
    return data if isinstance(data, dict) else {}


def _matrix(body: Any, where: str) -> list[Any]:
    """The series of an answer to a range query."""
    data = _data(body, where)
    kind, result = data.get("resultType"), data.get("result")
    if kind != "matrix" or not isinstance(result, list):
        raise SourceError(fault(where, f"a result of type {shown(kind)}", "'matrix', a list of series"))
    return result


def parse_days(pages: Iterable[Answer], query: Query, window: Window, *, negative: bool = True) -> Samples:
    """What the landed answers for a window say; no number becomes a float on its way.

    Raises ContractError on a value that is no number and cannot be counted as none, on one below 0 unless there may be
    `negative` ones, and on a point of another day.
    """
    where, warnings, series = _place(query, window), dict[str, None](), list[Any]()
    for page in pages:
        body = page.body
        series += _matrix(body, where)
        warnings |= _warnings(body)
    points = _points(series, query, where)
    _check_points(points, window, where, negative=negative)
    key = ("window", *query.by)
    is_number = pl.col(".number").is_not_null()
    dropped = points.filter(~is_number).group_by(key).agg(points=pl.len()).sort(key)
    values = _summed(points.filter(is_number), key, where)
    return Samples(values, dropped, tuple(warnings), frozenset(dropped["window"]))


def _points(series: list[Any], query: Query, where: str) -> pl.DataFrame:
    """The points of all series: window, the labels of `by`, `.date`, `.text` and `.number` (null where text is none).

    Columns with a point in front are never labels.
    """
    try:
        labels = {label: [one["metric"].get(label, "") for one in series] for label in query.by}
        times = [[_milliseconds(seconds) for seconds, _ in one["values"]] for one in series]
        texts = [[text for _, text in one["values"]] for one in series]
        frame = pl.DataFrame(
            {**labels, ".time": times, ".text": texts},
            schema={
                **dict.fromkeys(query.by, pl.String()),
                ".time": pl.List(pl.Int64()),
                ".text": pl.List(pl.String()),
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
        raise ContractError(fault(where, "series without labels or values", "a matrix of Prometheus")) from error
    moment = pl.from_epoch(".time", time_unit="ms")
    return (
        frame.filter(pl.col(".time").list.len() > 0)
        .explode(".time", ".text")
        .select(
            moment.dt.strftime("%Y-%m-%d").alias("window"),
            *query.by,
            moment.dt.date().alias(".date"),
            ".text",
            parse_amount(pl.col(".text")).alias(".number"),
        )
    )


def _milliseconds(seconds: float) -> int:
    """A time of Prometheus; ValueError if it is in no year that a date can have."""
    if not 0 <= seconds < _END_OF_DATES:
        raise ValueError
    return int(seconds * 1000)


_END_OF_DATES = 253_402_300_800
"""The year 10,000, in seconds since 1970."""


def _check_points(points: pl.DataFrame, window: Window, where: str, *, negative: bool = True) -> None:
    known = pl.col(".text").is_in(_NOT_NUMBERS).fill_null(value=False)
    bad = points.filter(pl.col(".number").is_null() & ~known)
    outside = points.filter(~pl.col(".date").is_between(*window, closed="left"))
    faults = []
    if bad.height:
        example = f"{bad.height} value(s) like {shown(bad['.text'][0])}"
        faults.append(fault(where, example, "decimal numbers of at most 26 digits before the point"))
    below = points.filter(pl.col(".number") < 0)
    if below.height and not negative:
        example = f"{below.height} value(s) like {shown(below['.text'][0])}"
        faults.append(fault(where, example, "0 or more, since there is no less than nothing"))
    if outside.height:
        faults.append(fault(where, f"{outside.height} point(s) like one of {outside['window'][0]}", "these days only"))
    if faults:
        raise ContractError(faults)


def _summed(points: pl.DataFrame, key: Sequence[str], where: str) -> pl.DataFrame:
    units = points.select(*key, to_units(pl.col(".number")).alias(".units"))
    summed = units.group_by(key).agg(pl.col(".units").sum(), points=pl.len()).sort(key)
    check_sum_fits(where, largest(units[".units"]), max(summed["points"], default=0))
    return summed.select(*key, to_amount(pl.col(".units")).alias("value"), "points")


def absent(samples: Samples, query: Query, window: Window, ids: Iterable[str]) -> pl.DataFrame:
    """The ids that were asked for and of which there is no number, by day: the columns window and `id_label`."""
    first, end = window
    days = pl.date_range(first, end, closed="left", eager=True).dt.strftime("%Y-%m-%d").to_frame("window")
    wanted = pl.DataFrame({query.id_label: sorted(set(ids))}, schema={query.id_label: pl.String()})
    asked = days.join(wanted, how="cross").sort("window", query.id_label)
    return asked.join(samples.values, on=["window", query.id_label], how="anti", maintain_order="left")


def gaps(samples: Samples, query: Query, window: Window, ids: Iterable[str], scrape_seconds: int) -> pl.DataFrame:
    """What is short of a sample every `scrape_seconds`, by the answer to `sample_counts`: expected, seen, missing.

    An id that was asked for and has no sample on a day lacks all of them: of a day without scrapes nothing is answered.
    """
    expected = DAY_SECONDS // scrape_seconds
    key = ("window", query.id_label)
    counted = samples.values.group_by(key).agg(pl.col("value").max().cast(pl.Int64).alias("seen"))
    nothing = absent(samples, query, window, ids).with_columns(seen=pl.lit(0, pl.Int64))
    return (
        pl.concat([counted.select(*key, "seen"), nothing])
        .select(*key, expected=pl.lit(expected, pl.Int64), seen="seen", missing=expected - pl.col("seen"))
        .filter(pl.col("missing") > 0)
        .sort(key)
    )
