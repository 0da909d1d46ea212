"""Where victims come from that share the time it takes to import everything; see `forked`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


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
