"""The command line answers at once: what takes long to import is imported by the command that needs it.

Looks at the modules that were loaded and not at a clock, which would depend on the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("init", "run", "recalculate", "status", "check", "explain", "report", "sql")
HEAVY = {"duckdb", "numpy", "polars", "polars_hash", "pyarrow", "pydantic", "rich", "yaml"}

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
import cli
try:
    cli.main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_and_version_load_nothing_heavy(words: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert HEAVY & set(json.loads(done.stderr)) == set()
