"""Days of UTC from a real Prometheus (2.x, closed range selectors), and from a stand-in for 3.x (left-open ones)."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.landing import Landing
from engine.sources.prometheus import (
    Query,
    Samples,
    Version,
    absent,
    buildinfo,
    fetch_days,
    fetch_samples,
    gaps,
    increases,
    landed_name,
    mended,
    parse_days,
    sample_counts,
    samples_name,
    sum_of_samples,
    windows,
)
from tests.doubles.front import front
from tests.doubles.left_open import left_open
from tests.doubles.prometheus import Row, prometheus
from tests.unit.scripted import client

DAY, HOUR, MINUTE = 86_400_000, 3_600_000, 60_000
FIRST = date(2025, 10, 1)
START = 1_759_276_800_000
"""FIRST, in milliseconds since 1970."""
FORTY_DAYS = (FIRST, date(2025, 11, 10))
CLUSTERS = ("lkc-a", "lkc-b", "lkc-c")
ODD_IDS = (
    *("a|b", "a", "b", ".*", "lkc-.", "lkc-x", "lkc.x", '"', "\\", "a\\b", '\\"', "{matcher}", "{range}", "$", "^a$"),
    *('"} or {kafka_id=~"', "a\nb", "\t", "é", "😀", "(?i)A", "[ab]", "a+", "'", "`", "#", "\x7f"),
)

BYTES = sum_of_samples("bytes_in", "request_bytes", ["kafka_id", "principal_id"], "kafka_id")
EDGES = BYTES._replace(expression=BYTES.expression.replace("request_bytes", "edge_bytes"))


def at(day: int, milliseconds: int = 0) -> int:
    return START + day * DAY + milliseconds


def minutes(day: int, offset: int = 0) -> Iterator[int]:
    """The scrapes of a day, one a minute, so many milliseconds after the full minute."""
    return iter(range(at(day, offset), at(day + 1, offset), MINUTE))


EDGE_ROWS = [
    Row("edge_bytes", {"kafka_id": "lkc-a", "principal_id": "sa-1", "instance": instance}, at(1, milliseconds), value)
    for instance, milliseconds, value in [
        ("i", -1, 1),
        ("i", 0, 10),
        ("i", 1, 100),
        ("i", DAY - 1, 1000),
        ("i", DAY, 10_000),
        ("i", DAY + 1, 100_000),
        ("j", 0, 1_000_000),
    ]
]
"""Around both ends of 2025-10-02; of two series of one principal."""


def regular_rows() -> Iterator[Row]:
    """Forty days of three clusters, two principals each, every ten minutes."""
    for number, cluster in enumerate(CLUSTERS):
        for principal in ("sa-1", "u-2"):
            labels = {"kafka_id": cluster, "principal_id": principal, "type": "Produce"}
            for step in range(40 * 144):
                yield Row("request_bytes", labels, at(0, step * 10 * MINUTE + number * 17_333), step % 144 + number)


def many_rows() -> Iterator[Row]:
    """Three days of three clusters, five hundred principals each, every hour."""
    for cluster in CLUSTERS:
        for principal in range(500):
            labels = {"kafka_id": cluster, "principal_id": f"sa-{principal:03}"}
            for hour in range(3 * 24):
                yield Row("many_bytes", labels, at(0, hour * HOUR + 11), principal * 1_000_003 + hour)


def scraped_rows() -> Iterator[Row]:
    """Scrapes at an odd offset, of which an hour of the second day and all of the third are missing, and zeros.

    Another principal is seen only once, which is no gap of the scrapes.
    """
    for moment in (moment for day in (0, 1, 3) for moment in minutes(day, 17_123)):
        if not at(1, 5 * HOUR) <= moment < at(1, 6 * HOUR):
            yield Row("scraped_bytes", {"kafka_id": "lkc-a", "principal_id": "sa-1"}, moment, 3)
    for moment in minutes(0):
        yield Row("scraped_bytes", {"kafka_id": "lkc-b", "principal_id": "sa-1"}, moment, 0)
    yield Row("scraped_bytes", {"kafka_id": "lkc-b", "principal_id": "sa-2"}, at(0, 7), 5)


def strange_rows() -> Iterator[Row]:
    """Values that are no numbers, or written in other ways."""
    for cluster, value in (("lkc-a", "NaN"), ("lkc-b", "+Inf"), ("lkc-c", "1.5e+10"), ("lkc-d", "0.1")):
        labels = {"kafka_id": cluster, "principal_id": "sa-1"}
        for day, first in ((0, value), (1, 7)):
            yield Row("strange_bytes", labels, at(day, 5), first)
            yield Row("strange_bytes", labels, at(day, 6), 1)


def other_rows() -> Iterator[Row]:
    """Ids of odd letters; a counter scraped at :17 that is set back at half past eleven; sizes."""
    for number, name in enumerate(ODD_IDS):
        yield Row("odd_bytes", {"kafka_id": name, "principal_id": "sa"}, at(0, HOUR), 2**number)
    for number, moment in enumerate(minutes(0, 17_000)):
        yield Row("rising_total", {"broker": "1"}, moment, 60 * (number if number < 690 else number - 690))
    for hour in range(24):
        yield Row("log_size", {"topic": "t"}, at(0, hour * HOUR + 59 * MINUTE), 1000 + hour)
        yield Row("log_size", {"topic": "u"}, at(0, hour * HOUR + 59 * MINUTE), "0.25")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that serves under a path, as behind a gateway."""
    rows = chain(EDGE_ROWS, regular_rows(), many_rows(), scraped_rows(), strange_rows(), other_rows())
    with prometheus(rows, tmp_path_factory.mktemp("prometheus"), prefix="/metrics/eu") as address:
        yield address


Ask = Callable[..., Samples]


@pytest.fixture
def ask(url: str, tmp_path: Path) -> Ask:
    def asked(
        query: Query, ids: Sequence[str], days: tuple[date, date], *, at_url: str = url, **auth: object
    ) -> Samples:
        with client(at_url, **auth) as http:  # type: ignore[arg-type]
            landing, version = Landing(tmp_path / "landed"), buildinfo(http)
            [window] = windows(query, days, 366)
            fetch_days(http, landing, query, window, version, ids=ids)
            return parse_days(landing.read(landed_name(query, window)), query, window)

    return asked


def like(query: Query, series: str) -> Query:
    return query._replace(expression=query.expression.replace("request_bytes", series))


def days(first: int, end: int) -> tuple[date, date]:
    return FIRST + timedelta(days=first), FIRST + timedelta(days=end)


def summed(rows: Iterable[Row], window: tuple[date, date]) -> dict[tuple[str, str, str], Decimal]:
    """The sums of a plain reader: by the UTC day that a sample's time lies in."""
    sums = defaultdict[tuple[str, str, str], Decimal](Decimal)
    for row in rows:
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row.milliseconds)).date()
        if window[0] <= day < window[1]:
            sums[str(day), row.labels["kafka_id"], row.labels["principal_id"]] += Decimal(row.value)
    return dict(sums)


def by_key(samples: Samples) -> dict[tuple[str, ...], Decimal]:
    return {row[:-2]: row[-2] for row in samples.values.rows()}


# Days.


def test_a_sample_at_midnight_belongs_to_the_day_that_begins_there(ask: Ask) -> None:
    with left_open(EDGE_ROWS) as newer:
        found = [ask(EDGES, ["lkc-a"], days(0, 4)), ask(EDGES, ["lkc-a"], days(0, 4), at_url=newer)]
    for samples in found:
        assert by_key(samples) == {
            ("2025-10-01", "lkc-a", "sa-1"): Decimal(1),
            ("2025-10-02", "lkc-a", "sa-1"): Decimal(1_001_110),
            ("2025-10-03", "lkc-a", "sa-1"): Decimal(110_000),
        }


@pytest.mark.parametrize("step_seconds", [43_200, 3600, 600])
def test_smaller_steps_add_up_to_the_same_day(ask: Ask, step_seconds: int) -> None:
    samples = ask(EDGES._replace(step_seconds=step_seconds), ["lkc-a"], days(0, 4))
    assert by_key(samples) == by_key(ask(EDGES, ["lkc-a"], days(0, 4)))


def test_a_range_ends_where_the_next_begins(ask: Ask) -> None:
    parts = [ask(EDGES, ["lkc-a"], days(day, day + 1)) for day in range(4)]
    assert [samples.values["value"].to_list() for samples in parts] == [[1], [1_001_110], [110_000], []]


def test_forty_days_of_three_clusters_in_one_request(url: str, tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    with client(url) as http:
        version = buildinfo(http)
        http.requests = 0
        [window] = windows(BYTES, FORTY_DAYS, 366)
        fetch_days(http, landing, BYTES, window, version, ids=CLUSTERS)
        assert http.requests == 1
    found = by_key(parse_days(landing.read(landed_name(BYTES, window)), BYTES, window))
    assert found == {
        (str(FIRST + timedelta(days=day)), cluster, principal): Decimal(sum(range(144)) + 144 * number)
        for day in range(40)
        for number, cluster in enumerate(CLUSTERS)
        for principal in ("sa-1", "u-2")
    }


def test_pieces_and_batches_say_what_one_answer_says(url: str, ask: Ask, tmp_path: Path) -> None:
    landing, found = Landing(tmp_path), dict[tuple[str, ...], Decimal]()
    with client(url) as http:
        version = buildinfo(http)
        http.requests = 0
        pieces = windows(BYTES, FORTY_DAYS, 31)
        for window in pieces:
            fetch_days(http, landing, BYTES, window, version, ids=CLUSTERS, ids_per_query=2)
            found |= by_key(parse_days(landing.read(landed_name(BYTES, window)), BYTES, window))
        assert http.requests == 2 * len(pieces) == 4
    assert found == by_key(ask(BYTES, CLUSTERS, FORTY_DAYS))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
def test_the_clocks_of_no_zone_matter(ask: Ask, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    """The forty days hold the changes of Lord Howe (5 October), Berlin (26 October) and New York (2 November)."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        values = ask(BYTES, ["lkc-b"], FORTY_DAYS).values
    finally:
        monkeypatch.undo()
        time.tzset()
    assert values["window"].unique().sort().to_list() == [str(FIRST + timedelta(days=day)) for day in range(40)]
    assert values["value"].unique().to_list() == [sum(range(144)) + 144]


def test_five_hundred_principals_on_three_clusters(ask: Ask) -> None:
    samples = ask(like(BYTES, "many_bytes"), CLUSTERS, days(0, 3))
    assert by_key(samples) == summed(many_rows(), days(0, 3))
    assert samples.values.height == 4500


# What is there and what is not.


def test_gaps_zeros_and_missing_days(ask: Ask) -> None:
    ids = ["lkc-a", "lkc-b", "lkc-z"]
    query = like(BYTES, "scraped_bytes")
    samples = ask(query, ids, days(0, 4))
    assert by_key(samples) == {
        ("2025-10-01", "lkc-a", "sa-1"): Decimal(3 * 1440),
        ("2025-10-01", "lkc-b", "sa-1"): Decimal(0),
        ("2025-10-01", "lkc-b", "sa-2"): Decimal(5),
        ("2025-10-02", "lkc-a", "sa-1"): Decimal(3 * 1380),
        ("2025-10-04", "lkc-a", "sa-1"): Decimal(3 * 1440),
    }
    assert absent(samples, query, days(0, 4), ids).rows() == [
        ("2025-10-01", "lkc-z"),
        ("2025-10-02", "lkc-b"),
        ("2025-10-02", "lkc-z"),
        ("2025-10-03", "lkc-a"),
        ("2025-10-03", "lkc-b"),
        ("2025-10-03", "lkc-z"),
        ("2025-10-04", "lkc-b"),
        ("2025-10-04", "lkc-z"),
    ]
    query = sample_counts("samples", "scraped_bytes", ["kafka_id"], "kafka_id")
    counts = ask(query, ids[:1], days(0, 4))
    assert gaps(counts, query, days(0, 4), ids[:1], 60).rows() == [
        ("2025-10-02", "lkc-a", 1440, 1380, 60),
        ("2025-10-03", "lkc-a", 1440, 0, 1440),
    ]
    counts = ask(query, ids, days(2, 3))
    assert [row[1:] for row in gaps(counts, query, days(2, 3), ids, 60).rows()] == [(one, 1440, 0, 1440) for one in ids]


def test_values_that_are_no_numbers_are_dropped_and_counted(ask: Ask) -> None:
    samples = ask(like(BYTES, "strange_bytes"), ["lkc-a", "lkc-b", "lkc-c", "lkc-d"], days(0, 2))
    assert by_key(samples) == {
        ("2025-10-01", "lkc-c", "sa-1"): Decimal(15_000_000_001),
        ("2025-10-01", "lkc-d", "sa-1"): Decimal("1.1"),
        **{("2025-10-02", f"lkc-{letter}", "sa-1"): Decimal(8) for letter in "abcd"},
    }
    assert samples.dropped.rows() == [("2025-10-01", "lkc-a", "sa-1", 1), ("2025-10-01", "lkc-b", "sa-1", 1)]


def halves(number: int) -> Iterator[Row]:
    """Samples of two series of one principal around both ends of a day, of which some are no numbers."""
    for name in ("i", "j"):
        labels = {"kafka_id": "lkc-a", "principal_id": f"sa|{number}", "instance": name}
        for milliseconds, value in ((-1, 1), (0, 10), (HOUR, "NaN"), (DAY - 1, 1000), (DAY, 10_000)):
            yield Row("half_bytes", labels, at(1, milliseconds), value)
    yield Row("half_bytes", {"kafka_id": "lkc-a", "principal_id": f"sa|{number}", "instance": "i"}, at(1, 7), "+Inf")


def half_rows() -> Iterator[Row]:
    for number in range(60):
        yield from halves(number)
    for moment, value in ((at(1), "0.5"), (at(1, 1), "-Inf")):
        yield Row("half_bytes", {"kafka_id": "lkc-a"}, moment, value)
        yield Row("second_bytes", {"kafka_id": "lkc-a"}, moment, 99)
    yield Row("half_bytes", {"kafka_id": "lkc-b", "principal_id": "sa|0"}, at(1), 3)
    yield Row("half_bytes", {"kafka_id": "lkc-c", "principal_id": "sa|0"}, at(1), "NaN")


def test_of_a_day_only_the_samples_that_are_no_numbers_are_dropped(tmp_path: Path) -> None:
    query, series = like(BYTES, "half_bytes"), ("half_bytes", "second_bytes")
    ids, window = ["lkc-a", "lkc-b", "lkc-c"], days(0, 4)
    with prometheus(half_rows(), tmp_path / "data") as closed, left_open(half_rows()) as newer:
        for number, server in enumerate((closed, newer)):
            landing = Landing(tmp_path / f"landed {number}")
            with client(server) as http:
                version = buildinfo(http)
                fetch_days(http, landing, query, window, version, ids=ids)
                found = parse_days(landing.read(landed_name(query, window)), query, window)
                assert found.values.filter(window="2025-10-02").height == 1
                http.requests = 0
                assert fetch_samples(http, landing, query, series, window, version, found) == {}
                assert http.requests == 3
                pages = landing.read(samples_name(query, window))
                # 50 are too much then, and so are half as many.
                fetch_samples(http, landing, query, series, window, version, found, series_max=30)
                assert http.requests > 3 + 7
                in_parts = mended(found, landing.read(samples_name(query, window)), query, series, window)
                # What cannot be had is named, and stays dropped.
                failed = fetch_samples(http, landing, query, series, window, version, found, series_max=1)
                assert list(failed) == ["2025-10-02"]
                assert "2 series in one answer; expected at most 1" in failed["2025-10-02"]
                left = mended(found, landing.read(samples_name(query, window)), query, series, window)
                assert left.unseen == {"2025-10-02"}
            whole = mended(found, pages, query, series, window)
            assert in_parts.values.equals(whole.values)
            assert in_parts.dropped.equals(whole.dropped)
            assert not whole.unseen
            of_day = whole.values.filter(window="2025-10-02")
            assert {row[1:] for row in of_day.rows()} == {
                *(("lkc-a", f"sa|{number}", Decimal(2020), 1) for number in range(60)),
                ("lkc-a", "", Decimal("0.5"), 1),
                ("lkc-b", "sa|0", Decimal(3), 1),
            }
            assert set(whole.dropped.rows()) == {
                *(("2025-10-02", "lkc-a", f"sa|{number}", 3) for number in range(60)),
                ("2025-10-02", "lkc-a", "", 1),
                ("2025-10-02", "lkc-c", "sa|0", 1),
            }
            others = [one.filter(pl.col("window") != "2025-10-02") for one in (whole.values, found.values)]
            assert others[0].equals(others[1])
            assert others[0].height == 2 * 60


def test_each_odd_id_is_found_by_its_own_name_and_by_no_other(ask: Ask) -> None:
    query = like(BYTES, "odd_bytes")
    for number, name in enumerate(ODD_IDS):
        assert by_key(ask(query, [name], days(0, 1))) == {("2025-10-01", name, "sa"): Decimal(2**number)}
    assert ask(query, ODD_IDS, days(0, 1)).values.height == len(ODD_IDS)
    assert ask(query, ["lkc-\\w", "A", "a.b"], days(0, 1)).values.is_empty()


# Other kinds of questions.


def test_a_counter_that_is_set_back_rises_on_and_never_falls(ask: Ask, tmp_path: Path) -> None:
    query = increases("rise", "rising_total", ["broker"], "")
    [row] = ask(query, [], days(0, 1)).values.rows()
    # A minute's rise is lost with the setting back, and the ends of an hour are extrapolated.
    assert row[:2] == ("2025-10-01", "1")
    assert abs(row[2] - 60 * 1440) < 200
    assert row[3] == 24
    # To the last digit what Prometheus said.
    landed = Landing(tmp_path / "landed").read(landed_name(query, days(0, 1)))
    texts = [text for _, text in json.loads(landed[0].text)["data"]["result"][0]["values"]]
    assert row[2] == sum(round(Decimal(text), 12) for text in texts)
    assert all(Decimal(text) > 0 for text in texts)


def test_a_mean_is_made_of_the_sum_and_the_number_of_points(ask: Ask) -> None:
    query = Query("size", "sum(log_size{matcher})", (), step_seconds=3600)
    assert ask(query, [], days(0, 1)).values.rows() == [("2025-10-01", Decimal(24 * 1000 + sum(range(24)) + 6), 24)]


def test_what_there_is_by_its_labels(ask: Ask) -> None:
    query = Query("found", "group by (topic, broker) (present_over_time(log_size[{range}]))", ("topic", "broker"))
    assert ask(query, [], days(0, 2)).values.rows() == [("2025-10-01", "t", "", 1, 1), ("2025-10-01", "u", "", 1, 1)]


def test_as_many_points_are_asked_for_as_are_given(ask: Ask, url: str) -> None:
    query = Query("fine", "vector(1)", (), step_seconds=16)
    assert ask(query, [], days(0, 2)).values["points"].to_list() == [5400, 5400]
    form = {"query": "log_size", "start": "2025-10-01T00:00:00Z", "end": "2025-10-03T00:00:00Z", "step": "15"}
    with client(url) as http, pytest.raises(SourceError, match="exceeded maximum resolution of 11,000 points"):
        http.post("api/v1/query_range", form)


# Doors and failures.


def test_what_the_servers_say_they_are(url: str) -> None:
    with client(url) as http, left_open([]) as newer, client(newer) as http_newer:
        assert buildinfo(http).left_open is False
        assert buildinfo(http).text.startswith("2.")
        assert buildinfo(http_newer) == Version("3.5.0", left_open=True)


@pytest.mark.parametrize("name", ["basic", "bearer"])
def test_credentials_open_the_door(ask: Ask, url: str, name: str) -> None:
    accepted = {
        "basic": f"Basic {base64.b64encode(b'reader:pa/ss:word').decode()}",
        "bearer": "Bearer to/ken+1",
    }
    given = {
        "basic": {"key": SecretStr("reader"), "secret": SecretStr("pa/ss:word")},
        "bearer": {"bearer": SecretStr("to/ken+1")},
    }
    with front(url, accepted[name]) as door:
        assert by_key(ask(EDGES, ["lkc-a"], days(0, 1), at_url=door, **given[name])) == {
            ("2025-10-01", "lkc-a", "sa-1"): Decimal(1)
        }
        for wrong in ({}, {"bearer": SecretStr("another-one")}):
            with pytest.raises(SourceError, match="401 Unauthorized") as caught:
                ask(EDGES, ["lkc-a"], days(0, 1), at_url=door, **wrong)
            assert "another-one" not in str(caught.value)


def failure(folder: Path, url: str, query: Query = BYTES, ids: Sequence[str] = ("lkc-a",), **settings: object) -> str:
    """What is said when a fetch fails, which lands nothing."""
    landing = Landing(folder)
    with client(url, **settings) as http, pytest.raises(SourceError) as caught:  # type: ignore[arg-type]
        fetch_days(http, landing, query, days(0, 1), Version("", left_open=False), ids=ids)
    assert landing.names() == []
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_prometheus_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        said = failure(tmp_path, f"http://127.0.0.1:{free.getsockname()[1]}")
    assert "bytes_in, 2025-10-01 to 2025-10-01: POST http://127.0.0.1:" in said
    assert "no answer" in said


SLOW = Query("slow", "sum(sum_over_time(vector(1)[1d:50ms]))", ())
"""Takes about a second."""


def test_a_prometheus_that_takes_too_long(tmp_path: Path, url: str) -> None:
    said = failure(tmp_path, url, SLOW, [], timeout_seconds=0.1, attempts=2)
    assert "no whole answer within 0.1 s (2 attempts)" in said
    assert "set days_per_query or ids_per_query lower" in said


def test_a_path_that_is_not_prometheus(tmp_path: Path, url: str) -> None:
    assert "404 Not Found" in failure(tmp_path, url.replace("/eu", "/us"))


def test_an_expression_that_is_none_is_told_in_the_words_of_prometheus(tmp_path: Path, url: str) -> None:
    said = failure(tmp_path, url, Query("bad", "sum by (", ()), [])
    assert "400 Bad Request" in said
    assert "parse error" in said


@pytest.mark.parametrize(
    ("option", "query", "ids", "told"),
    [
        ("--query.max-samples=500", EDGES, ["lkc-a"], "too many samples"),
        ("--query.timeout=10ms", SLOW, [], "timed out"),
    ],
)
def test_a_question_that_is_too_much_for_the_server(
    tmp_path: Path, option: str, query: Query, ids: Sequence[str], told: str
) -> None:
    rows = [EDGE_ROWS[0]._replace(milliseconds=at(0, second * 1000)) for second in range(1000)]
    with prometheus(rows, tmp_path / "data", options=[option]) as limited:
        said = failure(tmp_path / "landed", limited, query, ids)
    assert told in said
    assert "set days_per_query or ids_per_query lower, or the server's limits higher" in said
