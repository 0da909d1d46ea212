"""The command line as a process, over tenants of any kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from tests.integration.confluent import VARIABLES

CHECKOUT = Path(__file__).parents[2]


class Configured(Protocol):
    """What has a configuration: a `Tenant`, or a `Root`."""

    file: Path


class Said:
    """What a command wrote, and how it ended."""

    def __init__(self, place: Configured, *words: str, **environment: str) -> None:
        known = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words, "-c", str(place.file)],
            cwd=CHECKOUT,
            env=known | {"PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8"} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def document(self) -> Any:
        return json.loads(self.out)
