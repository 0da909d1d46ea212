"""A local HTTP server that answers as it is told, and notes what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from engine.sources.http import Client, Clock, Endpoint


class Reply(NamedTuple):
    """What the server says; `length` in the header if it lies about the body's."""

    status: int = 200
    body: str | bytes = '{"data": []}'
    headers: Mapping[str, str] = {}
    length: int | None = None
    before: Callable[[], object] | None = None
    reason: str | None = None


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: str


class Script(NamedTuple):
    """The server's URL, and what it was asked so far."""

    url: str
    asked: list[Request]


def serving(*replies: Reply) -> AbstractContextManager[Script]:
    """Gives one reply after the other, the last one for ever."""
    left = list(replies)
    return answering(lambda _: left.pop(0) if len(left) > 1 else left[0])


@contextmanager
def answering(answer: Callable[[Request], Reply]) -> Iterator[Script]:
    """Gives to each request what `answer` says."""
    asked, lock = list[Request](), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            with lock:
                asked.append(Request(self.command, self.path, dict(self.headers), body))
                reply = answer(asked[-1])
            if reply.before is not None:
                reply.before()
            content = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self.send_response(reply.status, reply.reason)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if reply.length is None else reply.length))
            if reply.length is not None:
                self.close_connection = True
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Script(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Time:
    """A clock that only goes on when somebody sleeps."""

    def __init__(self, unix: float = 1_760_000_000) -> None:
        self.seconds, self.start, self.slept = 0.0, unix, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    @property
    def clock(self) -> Clock:
        return Clock(unix=lambda: self.start + self.seconds, monotonic=lambda: self.seconds, sleep=self.sleep)


def client(
    url: str, time: Time | Clock | None = None, *, stop: threading.Event | None = None, **fields: object
) -> Client:
    """A client that never sleeps for real and, unless told, is not polite."""
    settings = {"requests_per_second": 1e9, "timeout_seconds": 5, "attempts": 3} | fields
    clock = time if isinstance(time, Clock) else (time or Time()).clock
    return Client(Endpoint(url, **settings), clock, stop)  # type: ignore[arg-type]
