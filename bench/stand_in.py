"""A stand-in for Prometheus in a process of its own: it answers the questions for Kafka clusters from formulas.

`python -m bench.stand_in PRINCIPALS` writes its URL to stdout and serves until its stdin ends. It shows what asking,
landing and parsing take here, not what the answers cost a Prometheus.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST = 10**11


def hourly(cluster: int, day: int, number: int) -> int:
    """Bytes of an hour: stored (0), in (1) or out (2); the same in all hours of a day."""
    return (cluster * 7 + day % 11 + number + 1) * 2**32 + day * 977


def daily(cluster: int, day: int, principal: int, number: int) -> int:
    """Bytes that a principal sent (1) or received (2) on a day; one in ten none."""
    luck = ((cluster * 1009 + principal) * 2654435761 + day * 40503 + number * 97) % LARGEST
    return 0 if luck % 10 == 0 else luck


def name_of(principal: int) -> str:
    return f"User:service-{principal:04}"


def answer(form: dict[str, str], principals: int) -> dict[str, Any]:
    query = form["query"]
    if "vector(1)" in query:
        return {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [0, "2"]}]}}
    found = re.search(r'cluster="c([0-9]+)"', query)
    if found is None:
        raise ValueError(query)
    cluster, number = int(found[1]), 2 if "bytesout" in query else 1
    moments = list(_moments(form))
    if query.startswith("sum(sum_over_time"):
        return _matrix([({}, [(moment, hourly(cluster, day, 0)) for moment, day in moments])])
    if query.startswith("sum(increase"):
        return _matrix([({}, [(moment, 24 * hourly(cluster, day, number)) for moment, day in moments])])
    if query.startswith("max by (broker, instance)"):
        brokers = [{"broker": str(broker), "instance": f"10.0.0.{broker}:9404"} for broker in range(6)]
        return _matrix([(broker, [(moment, 60) for moment, _ in moments]) for broker in brokers])
    if query.startswith("group by (broker)"):
        return _matrix([({"broker": str(broker)}, [(moment, 1) for moment, _ in moments]) for broker in range(6)])
    if query.startswith("group by (topic)"):
        return _matrix([({"topic": f"topic-{topic}"}, [(moment, 1) for moment, _ in moments]) for topic in range(50)])
    return _matrix(
        [
            (
                {"principal": name_of(principal)},
                [(moment, daily(cluster, day, principal, number)) for moment, day in moments],
            )
            for principal in range(principals)
        ]
    )


def _moments(form: dict[str, str]) -> list[tuple[float, int]]:
    start, end = (datetime.fromisoformat(form[name]) for name in ("start", "end"))
    step, found = timedelta(seconds=int(form["step"])), []
    while start <= end:
        found.append(((start - EPOCH) / timedelta(seconds=1), (start - EPOCH).days))
        start += step
    return found


def _matrix(series: list[tuple[dict[str, str], list[tuple[float, int]]]]) -> dict[str, Any]:
    result = [
        {"metric": labels, "values": [[moment, str(value)] for moment, value in points]} for labels, points in series
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def main() -> None:
    principals = int(sys.argv[1])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({"status": "success", "data": {"version": "2.42.0"}})

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._send(answer({name: values[0] for name, values in form.items()}, principals))

        def _send(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
