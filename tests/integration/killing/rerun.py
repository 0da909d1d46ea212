"""Runs the command line once for each configuration, one after the other, as one process would be started for each.

    python -m tests.integration.killing.rerun CONFIG ...

Prints one line of JSON for each: [exit code, what it wrote to stderr].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

import cli


def exit_code(words: list[str]) -> tuple[int, str]:
    """How one command ended."""
    said = io.StringIO()
    sys.argv = ["prorata", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
            return (code if isinstance(code, int) else int(code is not None)), said.getvalue()
    return 0, said.getvalue()


if __name__ == "__main__":
    for config in sys.argv[1:]:
        print(json.dumps(exit_code(["run", "-c", config])), flush=True)  # noqa: T201
