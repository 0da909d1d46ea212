"""What a benchmark is made of, and how one variant of it is timed in a process of its own.

A case prepares its data once, in a folder. Each of its variants does the same work in its own way: one of them is what
prorata does, the others are what it is compared with. A variant is first run for its result, which is checked, and
then for its time; each run is a process of its own, so that its peak memory is its own and no cache is handed on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from cli import MEMORY_KEPT

CASES = {
    "kernel": "bench.kernel",
    "lake": "bench.lake_to_lake",
    "cur": "bench.cur",
    "cost_models": "bench.cost_models",
    "start_up": "bench.start_up",
    "gather": "bench.gather",
    "tenant_year": "bench.tenant_year",
}
"""Name of a case -> its module, whose CASE it is."""
CHECKOUT = Path(__file__).resolve().parent.parent

SizeName = Literal["full", "quick", "tiny"]


class WrongResultError(AssertionError):
    """A variant's result is not what it should be: its time would mean nothing."""


class Watch:
    """Adds up the seconds of the blocks it times; what a variant prepares for itself stays outside of them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class Answer(NamedTuple):
    """What a variant gives: how many rows it made (or lines it read), what there is to check, and how to get at it.

    A variant that times another program gives that one's peak memory; else it is that of the process.
    """

    rows: int
    found: Callable[[], Any]
    peak_mb: float | None = None


class Variant(NamedTuple):
    """One way to do a case's work. `like`: prorata's variant that does the same work ('' for prorata's own).

    A slow one is timed in fewer `rounds` than the others; `repeats` times in each of its processes.
    """

    run: Callable[[Path, Watch], Answer]
    like: str = ""
    rounds: int = 9
    repeats: int = 1


class Target(NamedTuple):
    """A figure to reach, at full size: the `quantity` of a variant (or of it per `against`) at least or at most."""

    text: str
    variant: str
    quantity: Literal["rate", "seconds", "peak"]
    against: str = ""
    at_least: float = 0.0
    at_most: float = float("inf")


class Case(NamedTuple):
    """A benchmark: `prepare(folder, size)`, variants by name, and `check(folder, variant, answer)`.

    `check` raises WrongResultError. `unit` is what rows are, '' where a rate says nothing.
    """

    name: str
    title: str
    unit: str
    prepare: Callable[[Path, SizeName], None]
    variants: Mapping[str, Variant]
    check: Callable[[Path, str, Answer], None]
    targets: tuple[Target, ...] = ()


class Figure(NamedTuple):
    """What was measured of one variant: the best and the median seconds of its runs, and the highest peak."""

    rows: int
    seconds: float
    median: float
    peak_mb: float

    def value(self, quantity: str) -> float:
        """The figure that a target is about."""
        return {"rate": self.rows / self.seconds, "seconds": self.seconds, "peak": self.peak_mb}[quantity]


class Report(NamedTuple):
    """A case with its figures by variant."""

    case: Case
    figures: dict[str, Figure]

    def ratio(self, variant: str) -> float | None:
        """The time of prorata's like variant per this one's, row for row; None for prorata's own."""
        like = self.case.variants[variant].like
        return self.per_row(like) / self.per_row(variant) if like else None

    def per_row(self, variant: str) -> float:
        """Seconds per row: a sample's scale with it."""
        figure = self.figures[variant]
        return figure.seconds / figure.rows

    def reached(self, target: Target) -> float:
        """What was reached of a target. Times are compared row for row."""
        own = self.figures[target.variant]
        if not target.against:
            return own.value(target.quantity)
        if target.quantity == "seconds":
            return self.per_row(target.variant) / self.per_row(target.against)
        return own.value(target.quantity) / self.figures[target.against].value(target.quantity)


def case_named(name: str) -> Case:
    """A case, by the name that the command line takes."""
    case = import_module(CASES[name]).CASE
    assert isinstance(case, Case)
    return case


def measured(name: str, folder: Path, size: SizeName, rounds: int, say: Callable[[str], None]) -> Report:
    """Prepare, check and time a case. Variants take turns, so that noise on the machine meets all of them."""
    case = case_named(name)
    say(f"{name}: preparing")
    child(name, "prepare", folder, size)
    for variant in case.variants:
        say(f"{name}: checking {variant}")
        child(name, "check", folder, variant)
    runs: dict[str, list[Figure]] = {variant: [] for variant in case.variants}
    for number in range(rounds):
        for variant, what in case.variants.items():
            if number < what.rounds:
                say(f"{name}: round {number + 1} of {rounds}, {variant}")
                runs[variant].append(Figure(**child(name, "time", folder, variant)))
    return Report(case, {variant: _best(figures) for variant, figures in runs.items()})


def _best(figures: Sequence[Figure]) -> Figure:
    return Figure(
        figures[0].rows,
        min(figure.seconds for figure in figures),
        statistics.median(figure.median for figure in figures),
        max(figure.peak_mb for figure in figures),
    )


def child(case: str, task: str, folder: Path, argument: str) -> dict[str, Any]:
    """`perform` in a process of its own, whose memory and caches end with it."""
    command = [sys.executable, "-m", "bench.child", case, task, str(folder), argument]
    # As the command line has it: Polars is the same for all variants.
    environment = {**MEMORY_KEPT, **os.environ}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {case}: {task} {argument} failed (see above)")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def perform(case: Case, task: str, folder: Path, argument: str) -> dict[str, Any]:
    """What a child process does: prepare a size, or check or time a variant."""
    if task == "prepare":
        case.prepare(folder, cast(SizeName, argument))
        return {}
    variant = case.variants[argument]
    if task == "check":
        case.check(folder, argument, variant.run(folder, Watch()))
        return {}
    seconds, rows, peak = [], 0, 0.0
    for _ in range(variant.repeats):
        watch = Watch()
        answer = variant.run(folder, watch)
        seconds.append(watch.seconds)
        rows, peak = answer.rows, max(peak, peak_mb() if answer.peak_mb is None else answer.peak_mb)
        del answer
    return Figure(rows, min(seconds), statistics.median(seconds), peak)._asdict()


def peak_mb() -> float:
    """The most memory that this process has had in RAM, in MB of 10**6 bytes.

    From the memory map itself: `ru_maxrss` would begin with that of the process which started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / 1e6
