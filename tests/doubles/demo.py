"""`python -m tests.doubles.demo`: the Confluent Cloud example of `make run`, from the organization to who pays.

It serves the bundled organization and a Prometheus with its metrics where the example's configuration says, runs
prorata as a user would, shows it, and stops both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml

from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served
from tests.doubles.confluent_metrics import Metrics
from tests.doubles.organization import Organization
from tests.doubles.prometheus import Row, has_programs, prometheus

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = Path("data/fixtures/confluent_cloud/prorata.yaml")
FIRST, DAYS = date(2025, 9, 1), 40
TODAY = FIRST + timedelta(days=DAYS + 5)
"""The first day whose run sees all costs, if the last five days are left out."""
STEP_MINUTES = 15
COMMANDS = (
    f"run -c {CONFIG} --today {TODAY} --by team",
    f"run -c {CONFIG} --today {TODAY} --by team",
    f"plan -c {CONFIG} --today {TODAY + timedelta(days=1)}",
)


class Place(NamedTuple):
    """The ports on which the example's configuration expects the API and Prometheus; 0 is any that is free."""

    api: int
    metrics: int


class Servers(NamedTuple):
    """The organization, and the URL of its metrics if it has any."""

    api: Server
    metrics: str | None


def place(config: Path) -> Place:
    """What the configuration of the example says."""
    (tenant,) = yaml.safe_load(config.read_text(encoding="utf-8"))["tenants"]
    ports = [urlsplit(tenant[part]["url"]).port for part in ("source", "metrics")]
    return Place._make(int(port) for port in ports if port is not None)


def credentials(organization: Organization) -> dict[str, str]:
    """The variables that the configuration of the example names; the keys open nothing else."""
    found = {
        "CONFLUENT_CLOUD_API_KEY": organization.credential.key,
        "CONFLUENT_CLOUD_API_SECRET": organization.credential.secret,
    }
    for region, one in organization.flink.items():
        name = f"FLINK_{region.upper().replace('-', '_')}"
        found |= {f"{name}_API_KEY": one.key, f"{name}_API_SECRET": one.secret}
    return found


@contextmanager
def running(where: Place, *, metrics: bool = True) -> Iterator[Servers]:
    """The organization and, if asked for, its metrics, while the context lasts."""
    with ExitStack() as stack:
        api, url = stack.enter_context(served(bundled(FIRST, DAYS), port=where.api)), None
        if metrics:
            samples = Metrics(FIRST, DAYS, STEP_MINUTES).samples()
            rows = (Row(one.name, one.labels, one.milliseconds, one.value) for one in samples)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prorata-demo-")))
            url = stack.enter_context(prometheus(rows, folder, port=where.metrics))
        yield Servers(api, url)


def without_metrics(config: Path, folder: Path) -> Path:
    """A copy of the configuration that asks no Prometheus."""
    text = yaml.safe_load(config.read_text(encoding="utf-8"))
    del text["tenants"][0]["metrics"]
    text["root"] = str((config.parent / text["root"]).resolve())
    copy = folder / config.name
    copy.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
    return copy


def prorata(arguments: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a process of its own, as a user would; its exit code."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def started(stack: ExitStack, where: Place) -> Servers:
    """The servers; without metrics, and a line that says so, if there can be no Prometheus."""
    if not has_programs():
        say("no Prometheus here (Debian: apt-get install prometheus), so this example runs without metrics")
        return stack.enter_context(running(where, metrics=False))
    try:
        return stack.enter_context(running(where))
    except RuntimeError:
        say(f"no Prometheus starts on 127.0.0.1:{where.metrics}, so this example runs without metrics")
        return stack.enter_context(running(where, metrics=False))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.doubles.demo", description=__doc__)
    parser.parse_args()
    os.chdir(CHECKOUT)
    where, config = place(CONFIG), CONFIG
    with ExitStack() as stack:
        try:
            servers = started(stack, where)
        except OSError as error:
            say(f"127.0.0.1:{where.api} cannot be listened to ({error.strerror}); {CONFIG} says which port it is")
            return 1
        if servers.metrics is None:
            config = without_metrics(CONFIG, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for text in COMMANDS:
            sys.stdout.write(f"\n$ prorata {text}\n")
            arguments = shlex.split(text.replace(str(CONFIG), str(config)))
            if code := prorata(arguments, credentials(servers.api.organization)):
                return code
    return 0


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
