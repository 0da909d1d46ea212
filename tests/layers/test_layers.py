"""The layers of engine/ are declared in pyproject.toml and checked by `make check`; here, that the check would trip."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of engine/ and of its declared layers, to be spoilt."""
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    # The program looks for engine/ in its working directory before anywhere else.
    program = str(Path(sys.executable).with_name("lint-imports"))
    command = [program, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_layers_are_kept(copy: Path) -> None:
    result = lint_imports(copy)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("stray.py", "", "engine.stray"),
        ("sources/stray.py", "", "engine.sources.stray"),
        ("errors.py", "import engine.money\n", "engine.errors -> engine.money"),
        ("money.py", "import engine.frames\n", "engine.money -> engine.frames"),
        ("lake.py", "import engine.state\n", "engine.lake -> engine.state"),
        ("allocate.py", "import engine.lake\n", "engine.allocate -> engine.lake"),
        ("emitters/stray.py", "import engine.emitters.sqlite\n", "engine.emitters.stray -> engine.emitters.sqlite"),
    ],
)
def test_a_module_without_a_place_and_an_import_upwards_or_sideways_are_refused(
    copy: Path, module: str, text: str, complaint: str
) -> None:
    with (copy / "engine" / module).open("a", encoding="utf-8") as file:
        file.write(text)
    result = lint_imports(copy)
    assert result.returncode == 1
    assert complaint in result.stdout + result.stderr
