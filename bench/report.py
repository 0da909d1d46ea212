"""Figures as a table on the terminal, as lines of results.csv, and in README.md."""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import CHECKOUT, Figure, Report, SizeName, Target

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results.csv"
LIBRARIES = ("polars", "duckdb", "pyarrow")
_MANY, _FEW = 1e6, 1e3
HEADER = ["", "rows", "seconds", "median", "rows/s", "prorata takes", "peak MB"]


def commit() -> str:
    """The commit that is checked out, with a plus if the tree holds anything else."""
    head = _git("rev-parse", "--short", "HEAD") or "uncommitted"
    return head + "+" * bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """Processor, cores that this process may use, and memory."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def versions() -> str:
    """Python and the libraries that do the work."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def rows_of(report: Report) -> Iterator[list[str]]:
    """A table's rows, under HEADER: one per variant."""
    for name, figure in report.figures.items():
        ratio = report.ratio(name)
        has_rate = bool(report.case.unit)
        yield [
            name,
            f"{figure.rows:,}" if has_rate else "",
            f"{figure.seconds:.3f}",
            f"{figure.median:.3f}",
            _rate(figure) if has_rate else "",
            f"{ratio:.2f} x" if ratio else "",
            f"{figure.peak_mb:,.0f}",
        ]


def _rate(figure: Figure) -> str:
    rate = figure.value("rate")
    return f"{rate / _MANY:.2f} M" if rate >= _MANY else f"{rate / _FEW:,.0f} k"


def verdict(report: Report, target: Target) -> tuple[bool, str]:
    """Whether a target is met, and what was reached."""
    value = report.reached(target)
    if target.against:
        reached = f"{value:.2f} x"
    elif target.quantity == "rate":
        reached = f"{_rate(report.figures[target.variant])}/s"
    else:
        reached = f"{value:.3f} s" if target.quantity == "seconds" else f"{value:,.0f} MB"
    return target.at_least <= value <= target.at_most, reached


def show(report: Report, size: SizeName, console: Console) -> None:
    """One case's table, and its targets if it was run at full size."""
    title = report.case.title if size == "full" else f"{report.case.title}; but of {size} size"
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(HEADER):
        table.add_column(name.replace("rows", report.case.unit or "rows"), justify="right" if number else "left")
    for row in rows_of(report):
        table.add_row(*row)
    console.print(table)
    for target in report.case.targets if size == "full" else ():
        met, reached = verdict(report, target)
        console.print(f"  {'reached' if met else 'MISSED '}  {target.text}: {reached}", highlight=False)
    console.print()


def append(reports: Sequence[Report], size: SizeName, file: Path = RESULTS) -> None:
    """One line per variant at the end of results.csv."""
    new = not file.exists()
    stamp = [f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", commit(), size]
    with file.open("a", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        if new:
            writer.writerow(
                ["time", "commit", "size", "case", "variant", "rows", "seconds", "median_seconds", "rows_per_second",
                 "peak_mb", "machine", "versions"]
            )  # fmt: skip
        for report in reports:
            for name, figure in report.figures.items():
                seconds = [f"{figure.seconds:.4f}", f"{figure.median:.4f}", f"{figure.value('rate'):.0f}"]
                measured = [report.case.name, name, figure.rows, *seconds, f"{figure.peak_mb:.0f}"]
                writer.writerow([*stamp, *measured, machine(), versions()])


def write_readme(reports: Sequence[Report], file: Path = README) -> None:
    """Put figures and targets between the marks of their case in README.md; other cases keep what they have."""
    text = file.read_text(encoding="utf-8")
    for report in reports:
        begin, end = f"<!-- figures: {report.case.name} -->", f"<!-- end: {report.case.name} -->"
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise SystemExit(f"{file}: no line {begin} followed by {end}; expected both")
        text = f"{before}{begin}\n{_markdown(report)}\n{mark}{after}"
    file.write_text(text, encoding="utf-8")


def _markdown(report: Report) -> str:
    names = [name.replace("rows", report.case.unit or "rows") for name in HEADER]
    keep = [number for number in range(len(HEADER)) if report.case.unit or number not in {1, 4}]
    lines = [[names[number] for number in keep], ["---", *["---:"] * (len(keep) - 1)]]
    lines += [[row[number] for number in keep] for row in rows_of(report)]
    verdicts = [(target.text, *verdict(report, target)) for target in report.case.targets]
    return "\n".join(
        [
            f"{report.case.title}. Commit {commit()}, {datetime.now(UTC):%Y-%m-%d}; {machine()}; {versions()}.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            "| target | reached | |",
            "| --- | ---: | --- |",
            *(f"| {text} | {reached} | {'yes' if met else '**no**'} |" for text, met, reached in verdicts),
        ]
    )
