"""Where victims come from that share the time it takes to import everything; see `forked`. And before what they die."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]

OF_SQLITE = re.compile(r"(write|truncate|unlink) (state|results)[.]db.*")
"""Inside of commits; `test_kill` tears SQLite's logs."""


def fatal(events: Sequence[str]) -> list[int]:
    """The numbers, from 1, of the events before which a run is killed: all up to the SQL checks."""
    end = next(number for number, event in enumerate(events) if event == "commit state.db UPDATE pipeline_runs check")
    return [number for number, event in enumerate(events[:end], start=1) if not OF_SQLITE.fullmatch(event)]


class Forks:
    """A process whose forks are the victims."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.integration.killing.forked"]
        self.process = subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def run(
        self,
        config: Path,
        root: Path,
        today: date | None = None,
        *,
        before_event: int = 0,
        after_seconds: float | None = None,
    ) -> tuple[int, float]:
        """Exit code (SIGKILL if killed) and seconds of one run of the command line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        places = [str(config.with_suffix(suffix)) for suffix in (".events", ".out", ".err")]
        words = ["run", "-c", str(config), *(["--today", str(today)] if today else [])]
        asked = [places[0], before_event, str(root), after_seconds, *places[1:], words]
        self.process.stdin.write(f"{json.dumps(asked)}\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return code, seconds

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0
