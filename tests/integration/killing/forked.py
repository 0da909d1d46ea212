"""Victims that share the time it takes to import everything: each is a fork of this process, watched like `victim`.

    python -m tests.integration.killing.forked

For each line of JSON on stdin, [log, n-th event or 0, root, seconds or null, out, err, [words]], a child runs the
command line until its n-th event, or until so many seconds after its start, or to its end; a line of JSON on stdout
says [exit code, seconds]. This process itself only imports: it never has threads that a child would lack.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

# What takes long to import, in the order in which a run needs it.
import duckdb  # noqa: F401

import cli  # noqa: F401
import engine.construct
import engine.gather
import engine.metered
import engine.metrics
import engine.pipeline  # noqa: F401
from tests.integration.killing import victim

PATIENCE = 300
"""Seconds after which a victim counts as hung; none takes a hundredth of it."""


def child(log: str, fatal: int, root: str, out: str, err: str, words: list[str]) -> None:
    """Never returns."""
    # Who hangs is ended, and has another exit code than those who were to be killed.
    signal.alarm(PATIENCE)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = ["victim", log, str(fatal), root, *words]
    code = 70
    try:
        victim.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve victims until stdin ends."""
    for line in sys.stdin:
        log, fatal, root, seconds, out, err, words = json.loads(line)
        if threading.active_count() > 1:
            raise SystemExit("this process must not have threads")
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(log, fatal, root, out, err, words)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
