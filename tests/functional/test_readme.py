"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
EXAMPLE = "data/fixtures/aws/acme"
STREAMING = "data/fixtures/confluent_cloud"


def fenced(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def session(console: str) -> tuple[str, str]:
    command, _, output = console.partition("\n")
    return command.removeprefix("$ "), output


def without_time(output: str) -> str:
    """Seconds and rows per second are not the same twice."""
    return re.sub(r"in [\d.]+ s, [\d,]+ rows/s", "in a while", output)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The bundled example with results of its own, in a folder like the checkout."""
    folder = tmp_path / EXAMPLE
    shutil.copytree(CHECKOUT / EXAMPLE, folder)
    assert "root: ../../../../prorata-data" in (folder / "prorata.yaml").read_text(encoding="utf-8")
    return tmp_path


def test_the_tour_prints_what_it_says(example: Path) -> None:
    sessions = [session(console) for console in fenced("console", README)]
    assert len(sessions) >= 4
    for command, output in sessions:
        _, *arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=example,
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout.replace(f"{example.resolve()}/", "./")
        assert without_time(printed) == without_time(output), command


def test_the_library_example_prints_what_it_says() -> None:
    _, example = README.split("<!-- example -->")
    (code,) = fenced("python", example)
    (output,) = re.findall(r"^```\n(shape: .*?)^```$", example, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
