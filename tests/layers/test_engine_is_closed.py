"""engine/ neither prints, exits, nor looks at the environment or the clock: cli.py does, and passes on what it saw."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "engine").rglob("*.py"))
FORBIDDEN = (
    "print",
    "input",
    "exit",
    "quit",
    "SystemExit",
    "sys.exit",
    "sys.stdin",
    "sys.stdout",
    "sys.stderr",
    "sys.argv",
    "os._exit",
    "os.abort",
    "os.environ",
    "os.environb",
    "os.getenv",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.perf_counter_ns",
    "time.process_time",
    "time.localtime",
    "time.gmtime",
    "time.strftime",
)


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module mentions, under whatever name it was imported."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            yield node.lineno, f"{names.get(first, first)}.{rest}".rstrip(".")


def offences(source: str) -> list[tuple[int, str]]:
    return sorted({(line, name) for line, name in used(ast.parse(source)) if name in FORBIDDEN})


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_of_engine_has_an_effect_that_belongs_to_the_command_line(module: Path) -> None:
    assert offences(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("print('done')", "print"),
        ("import sys\nsys.exit(1)", "sys.exit"),
        ("import sys\nsys.stderr.write('oops')", "sys.stderr"),
        ("raise SystemExit(2)", "SystemExit"),
        ("import os\nos.environ.get('HOME')", "os.environ"),
        ("from os import environ as e\ne['HOME']", "os.environ"),
        ("import datetime as dt\ndt.datetime.now(dt.UTC)", "datetime.datetime.now"),
        ("from datetime import datetime\ndatetime.now(UTC)", "datetime.datetime.now"),
        ("from datetime import date\ndate.today()", "datetime.date.today"),
        ("from time import perf_counter\nperf_counter()", "time.perf_counter"),
        ("import time\nclock = time.monotonic", "time.monotonic"),
    ],
)
def test_each_offence_is_seen(source: str, name: str) -> None:
    assert name in [offence for _, offence in offences(source)]


def test_what_only_looks_like_an_offence_is_none() -> None:
    source = "from datetime import date\nreport.print()\nclock.now()\ndate.fromisoformat(text)\nself.time.time()"
    assert offences(source) == []
