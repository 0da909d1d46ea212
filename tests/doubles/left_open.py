"""A stand-in for Prometheus 3.x, of which Debian has no package: range selectors that are left-open, (t - range, t].

It answers nothing but queries of the form `sum by (a, b) (sum_over_time(name{a=~"x|y"}[5ms]))`, with sum_over_time,
count_over_time and sum or max, from the samples it is given, instant queries for those samples themselves, and what an
instant query of `count_over_time` over vector(1) says there. It shows what is asked and that the days are right, not
what 3.x really does.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.doubles.prometheus import Row
from tests.doubles.serving import served

VERSION = "3.5.0"
_QUERY = re.compile(
    r"(?P<fold>sum|max) by \((?P<by>[\w, ]+)\) \((?P<over>sum|count)_over_time"
    r'\((?P<name>\w+)\{(?P<label>\w+)=~"(?P<ids>[^"]*)"\}\[(?P<range>[0-9]+)ms\]\)\)'
)


@contextmanager
def left_open(rows: Iterable[Row]) -> Iterator[str]:
    """The URL of a server that holds the rows."""
    samples = list(rows)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({"version": VERSION})

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked = {name: values[0] for name, values in form.items()}
            if self.path.endswith("/query_range"):
                self.answer(matrix(samples, asked))
            else:
                self.answer(raw(samples, asked) if asked["query"].startswith("{") else one_minute(asked))

        def answer(self, data: Any) -> None:
            content = json.dumps({"status": "success", "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def _written(value: Decimal) -> str:
    if value.is_nan():
        return "NaN"
    return str(value) if value.is_finite() else f"{'+' if value > 0 else '-'}Inf"


def one_minute(asked: dict[str, str]) -> dict[str, Any]:
    assert asked["query"] == "count_over_time(vector(1)[1m:1m])"
    return {"resultType": "vector", "result": [{"metric": {}, "value": [1577836800, "1"]}]}


def raw(samples: list[Row], asked: dict[str, str]) -> dict[str, Any]:
    """The samples of `{a=~"x|y",b=~"z"}[5ms]` at a time."""
    chosen, _, width = asked["query"].removesuffix("ms]").partition("}[")
    matchers = {label: json.loads(text) for label, text in re.findall(r'(\w+)=~("(?:[^"\\]|\\.)*")', chosen)}
    moment = round(datetime.fromisoformat(asked["time"]).timestamp() * 1000)
    series = defaultdict[tuple[tuple[str, str], ...], list[Any]](list)
    for row in sorted(samples, key=lambda one: one.milliseconds):
        labels = {"__name__": row.name, **row.labels}
        fits = all(re.fullmatch(text, labels.get(label, "")) for label, text in matchers.items())
        if fits and moment - int(width) < row.milliseconds <= moment:
            series[tuple(labels.items())].append([row.milliseconds / 1000, str(row.value)])
    return {"resultType": "matrix", "result": [{"metric": dict(key), "values": said} for key, said in series.items()]}


def matrix(samples: list[Row], asked: dict[str, str]) -> dict[str, Any]:
    query = _QUERY.fullmatch(asked["query"])
    assert query is not None, asked["query"]
    by, ids = query["by"].split(", "), query["ids"].split("|")
    start, end = (round(datetime.fromisoformat(asked[edge]).timestamp() * 1000) for edge in ("start", "end"))
    points = defaultdict[tuple[str, ...], dict[int, str]](dict)
    for moment in range(start, end + 1, int(asked["step"]) * 1000):
        series = defaultdict[tuple[tuple[str, str], ...], list[Decimal]](list)
        for row in samples:
            inside = moment - int(query["range"]) < row.milliseconds <= moment
            if inside and row.name == query["name"] and row.labels.get(query["label"]) in ids:
                series[tuple(sorted(row.labels.items()))].append(Decimal(row.value))
        groups = defaultdict[tuple[str, ...], list[Decimal]](list)
        for labels, values in series.items():
            key = tuple(dict(labels).get(label, "") for label in by)
            groups[key].append(sum(values, Decimal()) if query["over"] == "sum" else Decimal(len(values)))
        for key, values in groups.items():
            points[key][moment] = _written(max(values) if query["fold"] == "max" else sum(values, Decimal()))
    result = [
        {"metric": dict(zip(by, key, strict=True)), "values": [[moment / 1000, text] for moment, text in said.items()]}
        for key, said in points.items()
    ]
    return {"resultType": "matrix", "result": result}
