"""A proxy in front of a server, which lets in only who brings the right credentials, as many operators have one."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.doubles.organization import Credential
from tests.doubles.serving import served

REFUSED = b'{"status":"error","errorType":"execution","error":"query processing would load too many samples"}'


class Reader(NamedTuple):
    """Who may read a Prometheus: settings of `metrics`, what their variables stand for, and the header they make.

    `canaries` must not be in any log, error, file or output.
    """

    settings: dict[str, str]
    environment: dict[str, str]
    authorization: str
    canaries: list[str]


def reader(way: str, name: str) -> Reader:
    """A reader of a name, in one of WAYS, whose credentials are easily found in a text that they should not be in."""
    settings = WAYS[way]
    one = Credential(f"CANARYREADER-{name}", f"CANARY-PASSWORD-{name}/0123456789+abc")
    values = {"username": one.key, "password": one.secret, "bearer": one.secret}
    environment = {variable.strip("${}"): values[setting] for setting, variable in settings.items()}
    return Reader(
        settings, environment, f"Basic {one.basic}" if way == "basic" else f"Bearer {one.secret}", one.canaries
    )


WAYS = {
    "basic": {"username": "${READER_NAME}", "password": "${READER_PASSWORD}"},
    "bearer": {"bearer": "${READER_TOKEN}"},
}
"""The ways in which a configuration opens a Prometheus."""


@contextmanager
def front(
    target: str, authorization: str | None, warnings: Sequence[str] = (), refused: Collection[str] = ()
) -> Iterator[str]:
    """The URL of a proxy to `target` for requests whose Authorization header is `authorization`; others get 401.

    Then it repeats the header, and all that is in it.

    It adds `warnings` to what a Prometheus answers to questions for a range, as one does that asks others in turn, and
    refuses questions for samples (422) that have one of `refused` in them.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != authorization:
                self.answer(401, f"who is {told(self.headers.get('Authorization', ''))}?".encode(), "text/plain")
                return
            if self.path.endswith("/query") and any(one.encode() in content for one in refused):
                self.answer(422, REFUSED, "application/json")
                return
            kind = {"Content-Type": self.headers.get("Content-Type", "")}
            passed = urllib.request.Request(f"{target}{self.path}", content or None, kind, method=self.command)
            try:
                with opener.open(passed, timeout=30) as response:
                    content = response.read()
                    if warnings and self.path.endswith("/query_range"):
                        content = json.dumps(json.loads(content) | {"warnings": list(warnings)}).encode()
                    self.answer(response.status, content, response.headers["Content-Type"])
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read(), error.headers["Content-Type"])

        def do_POST(self) -> None:
            self.do_GET()

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def told(authorization: str) -> str:
    """A header, and what it says once it is read."""
    way, _, given = authorization.partition(" ")
    return f"{authorization} {base64.b64decode(given).decode()}" if way == "Basic" else authorization
