"""What is asked of a Prometheus, to the letter, and what answers become. Servers here say what they are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from engine.errors import ContractError, SourceError
from engine.sources.answers import Answer
from engine.sources.landing import Landing
from engine.sources.prometheus import (
    Query,
    Samples,
    Version,
    absent,
    buildinfo,
    fetch_days,
    gaps,
    increases,
    landed_name,
    parse_days,
    quoted,
    range_forms,
    re2_literal,
    sample_counts,
    sum_of_samples,
    windows,
)
from tests.unit.scripted import Reply, client, serving

CLOSED, LEFT_OPEN = Version("2.42.0", left_open=False), Version("3.5.0", left_open=True)
BYTES_IN = sum_of_samples("bytes_in", "request_bytes", ["kafka_id", "principal_id"], "kafka_id")
OCTOBER = (date(2025, 10, 1), date(2025, 11, 1))
TWO_DAYS = (date(2025, 10, 1), date(2025, 10, 3))
FIRST_END, SECOND_END = 1759363199.999, 1759449599.999
"""A millisecond before the ends of 2025-10-01 and 2025-10-02."""

Point = tuple[float, str]


def series(labels: dict[str, str], *points: Point) -> dict[str, Any]:
    return {"metric": labels, "values": [list(point) for point in points]}


def matrix(*result: Any, **more: Any) -> str:
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(result)}, **more})


def error(kind: str, said: str) -> str:
    return json.dumps({"status": "error", "errorType": kind, "error": said})


def parsed(*texts: str, query: Query = BYTES_IN) -> Samples:
    return parse_days([Answer("/api/v1/query_range", 200, text) for text in texts], query, TWO_DAYS)


def of_one(*points: Point) -> Samples:
    return parsed(matrix(series({"kafka_id": "lkc-a", "principal_id": "sa-1"}, *points)))


def ids_of(count: int) -> list[str]:
    return [f"lkc-{number:03}" for number in range(count)]


# What is asked.


@pytest.mark.parametrize(("version", "duration"), [(CLOSED, "86399999ms"), (LEFT_OPEN, "86400000ms")])
def test_a_day_is_a_point_at_its_last_millisecond_on_both_kinds_of_selectors(version: Version, duration: str) -> None:
    assert range_forms(BYTES_IN, OCTOBER, version, ["lkc-b", "lkc-a", "lkc-b"], 50) == [
        {
            "query": "sum by (kafka_id, principal_id) "
            f'(sum_over_time(request_bytes{{kafka_id=~"lkc-a|lkc-b"}}[{duration}]))',
            "start": "2025-10-01T23:59:59.999Z",
            "end": "2025-10-31T23:59:59.999Z",
            "step": "86400",
        }
    ]


def test_smaller_steps_end_in_their_last_milliseconds_too() -> None:
    [form] = range_forms(increases("rise", "total", ["broker"], ""), TWO_DAYS, CLOSED, [], 50)
    assert form == {
        "query": "sum by (broker) (increase(total{}[3599999ms]))",
        "start": "2025-10-01T00:59:59.999Z",
        "end": "2025-10-02T23:59:59.999Z",
        "step": "3600",
    }


def test_an_expression_without_placeholders_is_sent_as_it_is() -> None:
    query = Query("size", 'sum(log_size{topic=~"a{1,2}$"})', (), step_seconds=60)
    assert range_forms(query, TWO_DAYS, CLOSED, [], 50)[0]["query"] == 'sum(log_size{topic=~"a{1,2}$"})'


def test_ids_are_batched_and_of_none_nothing_is_asked() -> None:
    forms = range_forms(BYTES_IN, TWO_DAYS, CLOSED, ids_of(5), 2)
    assert [form["query"].partition('"')[2].partition('"')[0] for form in forms] == [
        "lkc-000|lkc-001",
        "lkc-002|lkc-003",
        "lkc-004",
    ]
    assert range_forms(BYTES_IN, TWO_DAYS, CLOSED, [], 2) == []


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("lkc-a_1", "lkc-a_1"),
        (".*", r"\.\*"),
        ("a|b", r"a\|b"),
        ("^(a+)?[b]{2}$", r"\^\(a\+\)\?\[b\]\{2\}\$"),
        ("\\", "\\\\"),
        ('é"\n', 'é"\n'),
    ],
)
def test_an_id_is_a_literal_of_re2(text: str, literal: str) -> None:
    assert re2_literal(text) == literal


def test_a_string_of_promql_ends_where_it_should() -> None:
    assert quoted('a"} or x{b="\\\n\t\x00é') == r'"a\"} or x{b=\"\\\n\t\u0000é"'


def test_no_id_becomes_a_placeholder() -> None:
    [form] = range_forms(BYTES_IN, TWO_DAYS, CLOSED, ["{range}", "{matcher}"], 50)
    assert r'{kafka_id=~"\\{matcher\\}|\\{range\\}"}[86399999ms]' in form["query"]


@pytest.mark.parametrize("text", ["", "lkc-\ud800"])
def test_an_id_that_cannot_be_asked_for_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match=r"an id to ask for: .*; expected") as caught:
        range_forms(BYTES_IN, TWO_DAYS, CLOSED, [text], 50)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("query", "days", "pieces"),
    [
        (BYTES_IN, 31, [31, 9]),
        (BYTES_IN, 366, [40]),
        (BYTES_IN, 1, [1] * 40),
        (BYTES_IN._replace(step_seconds=3600), 366, [40]),
        (BYTES_IN._replace(step_seconds=60), 31, [7, 7, 7, 7, 7, 5]),
        (BYTES_IN._replace(step_seconds=8), 31, [1] * 40),
    ],
)
def test_days_are_asked_for_in_as_few_pieces_as_fit(query: Query, days: int, pieces: list[int]) -> None:
    first, end = date(2025, 10, 1), date(2025, 11, 10)
    found = windows(query, (first, end), days)
    assert [(stop - start).days for start, stop in found] == pieces
    assert [start for start, _ in found] == [first, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == end
    for window in found:
        form = range_forms(query, window, CLOSED, ["a"], 50)[0]
        assert form["start"] > str(window[0])
        assert form["end"] < str(window[1])


def test_of_no_days_nothing_is_asked() -> None:
    assert windows(BYTES_IN, (date(2025, 10, 1), date(2025, 10, 1)), 31) == []


def test_what_cannot_be_a_query_is_our_own_mistake() -> None:
    for series_name, by, id_label in [
        ("x} or y{", ["a"], "a"),
        ("x", ["a) (y"], "a) (y"),
        ("x", ["a"], "b"),
        ("x", ["window"], ""),
    ]:
        with pytest.raises(ValueError, match=r"name of a metric|query"):
            sum_of_samples("q", series_name, by, id_label)
    for step in (7, 7000, 4, 172_800):
        with pytest.raises(ValueError, match="step"):
            windows(BYTES_IN._replace(step_seconds=step), TWO_DAYS, 31)
    with pytest.raises(ValueError, match="44640 points"):
        range_forms(BYTES_IN._replace(step_seconds=60), OCTOBER, CLOSED, ["a"], 50)
    with pytest.raises(ValueError, match="id_label"):
        range_forms(Query("q", "x", ("a",)), TWO_DAYS, CLOSED, ["a"], 50)


# The kind of server.


@pytest.mark.parametrize(
    ("text", "left_open"), [("2.42.0+ds", False), ("2.55.1", False), ("3.0.0", True), ("v3.5.0-rc.1", True)]
)
def test_the_version_decides(text: str, left_open: bool) -> None:
    told = json.dumps({"status": "success", "data": {"version": text, "revision": "abc"}})
    with serving(Reply(body=told)) as server, client(f"{server.url}/prefix/") as http:
        assert buildinfo(http) == Version(text, left_open)
    assert [request.target for request in server.asked] == ["/prefix/api/v1/status/buildinfo"]


def vector(value: str) -> Reply:
    point = {"metric": {}, "value": [1577836800, value]}
    return Reply(body=json.dumps({"status": "success", "data": {"resultType": "vector", "result": [point]}}))


@pytest.mark.parametrize(
    "told",
    [
        Reply(404, "page not found"),
        Reply(body=json.dumps({"status": "success", "data": {"version": "2.14.0", "application": "Grafana Mimir"}})),
        Reply(body=json.dumps({"status": "success", "data": {"version": "0.37.2"}})),
        Reply(body="[]"),
        Reply(body='{"data": null}'),
    ],
)
def test_a_server_that_is_no_known_prometheus_is_tried(told: Reply) -> None:
    for value, left_open in (("1", True), ("2", False)):
        with serving(told, vector(value)) as server, client(server.url) as http:
            assert buildinfo(http).left_open is left_open
        assert parse_qs(server.asked[1].body)["query"] == ["count_over_time(vector(1)[1m:1m])"]


@pytest.mark.parametrize("answer", [vector("61"), Reply(body=matrix()), Reply(body='{"status": "success"}')])
def test_a_server_that_cannot_be_told_is_an_error(answer: Reply) -> None:
    with serving(Reply(404), answer) as server, client(server.url) as http, pytest.raises(SourceError, match="1 or 2"):
        buildinfo(http)


# Answers.


def test_values_are_the_texts_that_came() -> None:
    found = parsed(
        matrix(
            series({"kafka_id": "lkc-b", "principal_id": "sa-2"}, (FIRST_END, "12345678901.25"), (SECOND_END, "0")),
            series({"kafka_id": "lkc-a"}, (SECOND_END, "3")),
        )
    )
    assert found.values.rows() == [
        ("2025-10-01", "lkc-b", "sa-2", Decimal("12345678901.25"), 1),
        ("2025-10-02", "lkc-a", "", Decimal(3), 1),
        ("2025-10-02", "lkc-b", "sa-2", Decimal(0), 1),
    ]
    assert found.values.columns == ["window", "kafka_id", "principal_id", "value", "points"]
    assert found.dropped.is_empty()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.2e+10", "12000000000"),
        ("1.2e10", "12000000000"),
        ("1e+21", "1000000000000000000000"),
        ("9.007199254740993e+15", "9007199254740993"),
        ("1.5e-7", "0.00000015"),
        ("0.1", "0.1"),
        ("23.99999998", "23.99999998"),
        ("0.30000000000000004", "0.3"),
        ("0.0000000000005", "0"),
        ("0.0000000000015", "0.000000000002"),
        ("1e-300", "0"),
        ("-3.5", "-3.5"),
        ("-0", "0"),
        ("99999999999999999999999999", "99999999999999999999999999"),
    ],
)
def test_numbers_are_exact_to_twelve_decimals_and_half_even_beyond(text: str, value: str) -> None:
    assert of_one((FIRST_END, text)).values["value"].to_list() == [Decimal(value)]


@pytest.mark.parametrize("text", ["1e+26", "1e+300", "abc", "", " 1", "1,5", "nan", "Inf", "1_000", "0x10"])
def test_a_value_that_is_no_number_is_an_error_not_0(text: str) -> None:
    with pytest.raises(ContractError, match=r"^bytes_in, 2025-10-01 to 2025-10-02: 1 value\(s\) like '") as caught:
        of_one((FIRST_END, text), (SECOND_END, "1"))
    assert str(caught.value).isprintable()


def test_a_value_that_is_nothing_is_an_error() -> None:
    with pytest.raises(ContractError, match=r"1 value\(s\) like None"):
        parsed(matrix({"metric": {}, "values": [[FIRST_END, None]]}))


def test_labels_may_have_any_name_but_those_of_our_columns() -> None:
    query = Query("q", "x", ("text", "number", "date", "units", "time", "__name__"))
    found = parsed(
        matrix(series({"text": "a", "number": "b", "date": "c", "units": "d"}, (FIRST_END, "1"))), query=query
    )
    assert found.values.rows() == [("2025-10-01", "a", "b", "c", "d", "", "", Decimal(1), 1)]


def test_points_that_are_no_numbers_are_dropped_and_counted() -> None:
    labels = [{"kafka_id": "lkc-a", "principal_id": f"sa-{number}"} for number in range(4)]
    found = parsed(
        matrix(
            series(labels[0], (FIRST_END, "NaN"), (SECOND_END, "1")),
            series(labels[1], (FIRST_END, "+Inf"), (SECOND_END, "-Inf")),
            series(labels[2], (FIRST_END, "0")),
        )
    )
    assert [row[0:3:2] for row in found.values.rows()] == [("2025-10-01", "sa-2"), ("2025-10-02", "sa-0")]
    assert found.dropped.rows() == [
        ("2025-10-01", "lkc-a", "sa-0", 1),
        ("2025-10-01", "lkc-a", "sa-1", 1),
        ("2025-10-02", "lkc-a", "sa-1", 1),
    ]


def test_the_points_of_a_day_are_summed_and_counted_so_that_a_mean_can_be_made() -> None:
    query = Query("size", "sum(log_size)", (), step_seconds=21_600)
    hours = [(1759276800 + 21_600 * step - 0.001, text) for step, text in enumerate(["0.1", "0.2", "NaN", "0.4"], 1)]
    found = parsed(matrix(series({}, *hours)), query=query)
    assert found.values.rows() == [("2025-10-01", Decimal("0.7"), 3)]
    assert found.dropped.rows() == [("2025-10-01", 1)]


def test_a_sum_that_could_wrap_is_an_error() -> None:
    query = Query("size", "x", (), step_seconds=43_200)
    huge = "9" * 26
    with pytest.raises(ContractError, match="could pass the exact range"):
        parsed(matrix(series({}, (1759319999.999, huge), (FIRST_END, huge))), query=query)


def test_the_pages_of_several_batches_are_one_and_warnings_are_passed_on_once() -> None:
    pages = [
        matrix(series({"kafka_id": name, "principal_id": "p"}, (FIRST_END, "1")), warnings=["slow store"], infos=[said])
        for name, said in (("b", "no counter"), ("a", "no counter"))
    ]
    found = parsed(*pages)
    assert found.values["kafka_id"].to_list() == ["a", "b"]
    assert found.warnings == ("slow store", "no counter")


def test_nothing_known_is_no_rows_and_no_error() -> None:
    for found in (parsed(), parsed(matrix()), parsed(matrix(series({"kafka_id": "a"})))):
        assert found.values.is_empty()
        assert found.dropped.is_empty()
        assert found.values.columns == ["window", "kafka_id", "principal_id", "value", "points"]


@pytest.mark.parametrize("said", [5, "x", {"a": 1}, [], None])
def test_warnings_of_another_form_are_told_as_they_are(said: Any) -> None:
    assert parsed(matrix(warnings=said)).warnings == ((str(said),) if said else ())


@pytest.mark.parametrize("moment", [1759276799.999, 1759449600, 1759449600.0])
def test_a_point_of_another_day_is_an_error(moment: float) -> None:
    with pytest.raises(ContractError, match=r"1 point\(s\) like one of 2025-(09-30|10-03); expected"):
        of_one((moment, "1"), (FIRST_END, "1"))


@pytest.mark.parametrize(
    "one",
    [
        {"metric": {}, "histograms": []},
        {"values": []},
        {"metric": {}, "values": [[FIRST_END]]},
        {"metric": {}, "values": [[FIRST_END, 1]]},
        {"metric": {}, "values": [["soon", "1"]]},
        *({"metric": {}, "values": [[moment, "1"]]} for moment in (1e300, -1e13, 1e17)),
        {"metric": {}, "values": [[None, "1"]]},
        {"metric": [], "values": [[FIRST_END, "1"]]},
        {"metric": {"kafka_id": 7}, "values": [[FIRST_END, "1"]]},
        {"metric": {}, "values": [[FIRST_END, "1"], None]},
        7,
    ],
)
def test_a_series_of_another_form_is_an_error(one: Any) -> None:
    with pytest.raises(ContractError, match="series without labels or values; expected"):
        parsed(matrix(one))


def test_what_was_asked_for_and_is_not_there_is_told_by_day() -> None:
    found = parsed(
        matrix(
            series({"kafka_id": "a", "principal_id": "p"}, (FIRST_END, "0"), (SECOND_END, "1")),
            series({"kafka_id": "b", "principal_id": "p"}, (SECOND_END, "NaN")),
        )
    )
    assert absent(found, BYTES_IN, TWO_DAYS, ["b", "a", "c"]).rows() == [
        ("2025-10-01", "b"),
        ("2025-10-01", "c"),
        ("2025-10-02", "b"),
        ("2025-10-02", "c"),
    ]
    assert absent(found, BYTES_IN, TWO_DAYS, []).is_empty()


def test_gaps_are_what_is_short_of_a_sample_every_scrape() -> None:
    counts = sample_counts("bytes_in_samples", "request_bytes", ["kafka_id"], "kafka_id")
    assert counts.expression == "max by (kafka_id) (count_over_time(request_bytes{matcher}[{range}]))"
    found = parsed(
        matrix(
            series({"kafka_id": "a"}, (FIRST_END, "1440"), (SECOND_END, "1400")),
            series({"kafka_id": "b"}, (FIRST_END, "1441")),
        ),
        query=counts,
    )
    assert gaps(found, counts, TWO_DAYS, ["a", "b", "c"], 60).rows() == [
        ("2025-10-01", "c", 1440, 0, 1440),
        ("2025-10-02", "a", 1440, 1400, 40),
        ("2025-10-02", "b", 1440, 0, 1440),
        ("2025-10-02", "c", 1440, 0, 1440),
    ]


# Fetching, and what goes wrong with it.


def fetched(folder: Path, url: str, ids: Sequence[str] = ("lkc-a",), **settings: Any) -> Landing:
    landing = Landing(folder)
    with client(url, attempts=2) as http:
        fetch_days(http, landing, BYTES_IN, TWO_DAYS, CLOSED, ids=ids, **settings)
    return landing


def test_answers_are_landed_as_they_came_with_what_was_asked(tmp_path: Path) -> None:
    text = matrix(series({"kafka_id": "lkc-000", "principal_id": "sa"}, (FIRST_END, "1")))
    with serving(Reply(body=text)) as server:
        landing = fetched(tmp_path, f"{server.url}/prom/", ids_of(3), ids_per_query=2)
    assert landing.names() == [landed_name(BYTES_IN, TWO_DAYS)] == ["bytes_in-2025-10-01-2025-10-03"]
    pages = landing.read("bytes_in-2025-10-01-2025-10-03")
    assert [page.text for page in pages] == [text, text]
    assert [request.target for request in server.asked] == ["/prom/api/v1/query_range"] * 2
    for page, request in zip(pages, server.asked, strict=True):
        assert urlsplit(page.url).path == "/prom/api/v1/query_range"
        assert parse_qs(urlsplit(page.url).query) == parse_qs(request.body)
    assert parse_days(pages, BYTES_IN, TWO_DAYS).values.height == 1


def test_of_no_ids_an_answer_without_pages_is_landed_and_nothing_is_asked(tmp_path: Path) -> None:
    with serving(Reply()) as server:
        landing = fetched(tmp_path, server.url, [])
    assert server.asked == []
    assert landing.read(landed_name(BYTES_IN, TWO_DAYS)) == []


def failure(folder: Path, *replies: Reply, ids: Sequence[str] = ("lkc-a",), **settings: Any) -> str:
    """The one line that is said when a fetch fails, which lands nothing."""
    with serving(*replies) as server, pytest.raises(SourceError) as caught:
        fetched(folder, server.url, ids, **settings)
    assert Landing(folder).names() == []
    said = str(caught.value)
    assert said.startswith("bytes_in, 2025-10-01 to 2025-10-02: ")
    assert said.isprintable()
    return said


ASK_LESS = "set days_per_query or ids_per_query lower, or the server's limits higher"
TOO_MANY = "query processing would load too many samples into memory in query execution"


def test_a_window_is_landed_whole_or_not_at_all(tmp_path: Path) -> None:
    said = failure(tmp_path, Reply(body=matrix()), Reply(422, error("execution", "no")), ids=ids_of(2), ids_per_query=1)
    assert "422" in said


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(400, error("bad_data", "parse error: no")), ['400 Bad Request \'{"status": "error"', "parse error: no"]),
        (Reply(422, error("execution", TOO_MANY)), ["422", TOO_MANY, ASK_LESS]),
        (Reply(422, error("execution", "the query hit the max number of series limit (1)")), [ASK_LESS]),
        (Reply(503, error("timeout", "query timed out in expression evaluation")), ["503", "timed out", ASK_LESS]),
        (Reply(500, "oops\x1b[2J"), ["500", "oops", "(2 attempts)"]),
        (Reply(body=error("execution", TOO_MANY)), [f"error 'execution: {TOO_MANY}'", ASK_LESS]),
        (Reply(body=error("internal", "a\nb\x1b")), [r"error 'internal: a\nb\x1b'; expected an answer without error"]),
        (Reply(body='{"status": "error"}'), ["error ': '"]),
        (Reply(body='{"message": "welcome"}'), ["answer {'message': 'welcome'}; expected an answer of Prometheus"]),
        (Reply(body="[]"), ["answer []"]),
        (Reply(body="<html>sign in</html>"), ["<html>sign in</html>"]),
        (Reply(body='{"status": "success"}'), ["a result of type None; expected 'matrix', a list of series"]),
        (
            Reply(body=json.dumps({"status": "success", "data": {"resultType": "scalar"}})),
            ["a result of type 'scalar'"],
        ),
    ],
)
def test_what_is_said_when_an_answer_is_none(tmp_path: Path, reply: Reply, told: list[str]) -> None:
    said = failure(tmp_path, reply)
    assert [text for text in told if text not in said] == [], said


def test_an_answer_with_more_series_than_memory_is_meant_for_is_an_error(tmp_path: Path) -> None:
    many = [series({"kafka_id": "a", "principal_id": f"sa-{number}"}, (FIRST_END, "1")) for number in range(1001)]
    said = failure(tmp_path, Reply(body=matrix(*many)), series_max=1000)
    assert said.endswith(f"1,001 series in one answer; expected at most 1,000: {ASK_LESS}")


def test_credentials_are_in_nothing_that_is_landed_or_said(tmp_path: Path) -> None:
    refusal = "who is bearer-canary?"
    repeated = Reply(body=matrix(warnings=["hello bearer-canary"]))
    with (
        serving(repeated, Reply(403, refusal), Reply(body=matrix())) as server,
        client(server.url, bearer=SecretStr("bearer-canary")) as http,
    ):
        landing, said = Landing(tmp_path), list[str]()
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                fetch_days(http, landing, BYTES_IN, TWO_DAYS, CLOSED, ids=["a"])
            said.append(str(caught.value))
        assert landing.names() == []
        fetch_days(http, landing, BYTES_IN, TWO_DAYS, CLOSED, ids=["a"])
        pages = landing.read(landed_name(BYTES_IN, TWO_DAYS))
    assert server.asked[0].headers["Authorization"] == "Bearer bearer-canary"
    assert "canary" not in f"{pages}{said}"
