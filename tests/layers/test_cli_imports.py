"""What cli.py imports. import-linter looks at packages only, and cli.py is a module, so this file looks at it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CLI = Path(__file__).parents[2] / "cli.py"
LIGHT = ("click", "engine.errors")
"""Besides the standard library, all that may be imported before it is known which command was called."""


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that are imported when the module is, and not only inside a function or for type checkers."""
    open_nodes: list[ast.AST] = list(tree.body)
    while open_nodes:
        match open_nodes.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                open_nodes += otherwise
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ([module] if module != "engine" else [f"engine.{alias.name}" for alias in names])
            case node:
                open_nodes += ast.iter_child_nodes(node)


def heavy(source: str) -> list[str]:
    return [
        name
        for name in imported(ast.parse(source))
        if name not in LIGHT and name.partition(".")[0] not in sys.stdlib_module_names
    ]


def test_cli_imports_only_what_is_light_at_its_top() -> None:
    assert heavy(CLI.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import polars as pl", ["polars"]),
        ("from engine import errors, lake", ["engine.lake"]),
        ("from engine.pipeline import run", ["engine.pipeline"]),
        ("if True:\n    import rich.console", ["rich.console"]),
        ("class Run:\n    import duckdb", ["duckdb"]),
    ],
)
def test_each_heavy_import_is_seen(source: str, names: list[str]) -> None:
    assert heavy(source) == names


def test_imports_inside_a_command_and_for_type_checkers_are_free() -> None:
    source = "if TYPE_CHECKING:\n    import polars\ndef run() -> None:\n    import polars\nimport click\nimport json"
    assert heavy(source) == []
