"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.doubles import demo

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


def copied(example: str, target: Path) -> Path:
    """A bundled example with results of its own, in a folder like the checkout: its configuration."""
    folder = target / example
    shutil.copytree(CHECKOUT / example, folder)
    file = folder / "prorata.yaml"
    up = "/".join([".."] * (1 + example.count("/")))
    assert f"root: {up}/prorata-data" in file.read_text(encoding="utf-8")
    return file


def toured(folder: Path, sessions: list[tuple[str, str]], environment: dict[str, str]) -> None:
    for command, output in sessions:
        _, *arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=folder,
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout.replace(f"{folder.resolve()}/", "./")
        assert without_time(printed) == without_time(output), command


def sessions_of(example: str) -> list[tuple[str, str]]:
    """What the README shows of an example."""
    found = [session(console) for console in fenced("console", README)]
    return [(command, output) for command, output in found if example in command]


def test_every_session_is_of_an_example() -> None:
    assert len(sessions_of(EXAMPLE)) + len(sessions_of(STREAMING)) == len(fenced("console", README))


def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    copied(EXAMPLE, tmp_path)
    sessions = sessions_of(EXAMPLE)
    assert len(sessions) >= 4
    toured(tmp_path, sessions, {})


def test_the_tour_of_confluent_cloud_prints_what_it_says(tmp_path: Path) -> None:
    file = copied(STREAMING, tmp_path)
    where = demo.place(file)
    sessions = sessions_of(STREAMING)
    assert len(sessions) >= 4
    # On ports that are free, as tests run side by side.
    with demo.running(demo.Place(0, 0)) as servers:
        text = file.read_text(encoding="utf-8").replace(f"http://127.0.0.1:{where.api}", servers.api.url)
        text = text.replace(f"http://127.0.0.1:{where.metrics}", str(servers.metrics))
        file.write_text(text, encoding="utf-8")
        toured(tmp_path, sessions, demo.credentials(servers.api.organization))


def test_make_run_shows_what_the_readme_does() -> None:
    """The same commands; what they print is tested once."""
    shown = [command.removeprefix("prorata ") for command, _ in sessions_of(STREAMING)]
    assert {command.partition(" ")[0] for command in demo.COMMANDS} <= {command.partition(" ")[0] for command in shown}
    assert demo.COMMANDS[0] == shown[0]


def test_without_prometheus_the_example_runs_without_metrics(tmp_path: Path) -> None:
    file = copied(STREAMING, tmp_path)
    with demo.running(demo.Place(0, 0), metrics=False) as servers:
        text = file.read_text(encoding="utf-8").replace(f"127.0.0.1:{demo.place(file).api}", servers.api.url[7:])
        file.write_text(text, encoding="utf-8")
        config = demo.without_metrics(file, tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "cli", "run", "-c", str(config), "--today", str(demo.TODAY)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(CHECKOUT), **demo.credentials(servers.api.organization)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("streaming: 40 days calculated; ")
    assert "\ndifference        0            USD\n" in done.stdout


def test_the_library_example_prints_what_it_says() -> None:
    _, example = README.split("<!-- example -->")
    (code,) = fenced("python", example)
    (output,) = re.findall(r"^```\n(shape: .*?)^```$", example, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
