"""Runs the command line and stops it at one place until it is told to go on.

    python -m tests.integration.killing.waiting EVENT PATTERN MARKER RELEASE run -c CONFIG

At the first audit event EVENT one of whose arguments fits PATTERN, the file MARKER is made; when RELEASE is there, the
run goes on. So what happens to the run meanwhile happens at this place every time.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import cli


def wait_at(event: str, pattern: str, marker: Path, release: Path) -> None:
    """Wait at the first event that fits."""
    reached: list[bool] = []

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name != event or reached or not _fits(pattern, arguments):
            return
        reached.append(True)
        marker.touch()
        while not release.exists():
            time.sleep(0.005)

    sys.addaudithook(hook)


def _fits(pattern: str, arguments: tuple[Any, ...]) -> bool:
    texts = [os.fsdecode(value) for value in arguments if isinstance(value, str | bytes | os.PathLike)]
    return any(re.search(pattern, text) for text in texts)


if __name__ == "__main__":
    name, expression, marker_path, release_path, *words = sys.argv[1:]
    wait_at(name, expression, Path(marker_path), Path(release_path))
    sys.argv = ["prorata", *words]
    cli.main()
