"""Recorded answers of a Prometheus, served again: `python -m tests.doubles.recorded FILE PORT COMMAND...`.

The command runs while they are. What was not recorded is a bad request. `recording` makes such answers: it passes on
what it is asked to a real Prometheus, and keeps what that said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.doubles.serving import served

Answers = dict[str, str]
"""What was asked (path and form) -> the body that came."""


@contextmanager
def replaying(answers: Answers, port: int = 0) -> Iterator[str]:
    """The URL of a server that gives recorded answers."""
    with _serving(answers.get, port) as url:
        yield url


@contextmanager
def recording(target: str, answers: Answers) -> Iterator[str]:
    """The URL of a server that passes on what it is asked to `target`, and keeps the answers."""
    opener, lock = urllib.request.build_opener(urllib.request.ProxyHandler({})), threading.Lock()

    def passed(asked: str) -> str | None:
        path, _, form = asked.partition(" ")
        try:
            with opener.open(f"{target}{path}", form.encode() or None, timeout=30) as response:
                body: str = response.read().decode()
        except urllib.error.HTTPError:
            return None
        with lock:
            answers[asked] = body
        return body

    with _serving(passed, 0) as url:
        yield url


@contextmanager
def _serving(answer: Callable[[str], str | None], port: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            body = answer(f"{self.path} {form}")
            content = (body or json.dumps({"status": "error", "error": "this was not recorded"})).encode()
            self.send_response(200 if body else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", port), Handler)) as url:
        yield url


def read(file: Path) -> Answers:
    """A file of recorded answers: one JSON object a line, what was asked and what came."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(json.loads(line) for line in lines)


def write(file: Path, answers: Answers) -> None:
    lines = (json.dumps([asked, body], ensure_ascii=False) for asked, body in sorted(answers.items()))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> int:
    file, port, *command = sys.argv[1:]
    with replaying(read(Path(file)), int(port)):
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
