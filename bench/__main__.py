"""Measure prorata against what it is compared with: `python -m bench [--quick] [--only NAME]`; see README.md."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bench import report
from bench.measure import CASES, CHECKOUT, Report, SizeName, measured

GUARD = "guard"
"""The name, among those of cases, of the kernel's regression benchmark."""
SLOWER_FAILS = "min:50%"
"""How much slower than at first the kernel may be. Less would be noise on a busy machine."""


def main() -> int:
    """Run what is asked for; 1 if the guard fails."""
    arguments = _arguments()
    size: SizeName = "quick" if arguments.quick else "full"
    console = Console(width=None if sys.stdout.isatty() else 140)
    progress = Console(stderr=True)
    chosen = list(dict.fromkeys(arguments.only or [*CASES, GUARD]))
    place = Path(tempfile.mkdtemp(prefix="prorata-bench-", dir=arguments.folder))
    reports: list[Report] = []
    try:
        for name in chosen:
            if name != GUARD:
                folder = place / name
                folder.mkdir()
                reports.append(measured(name, folder, size, arguments.rounds, progress.print))
                shutil.rmtree(folder)
                report.append(reports[-1:], size)
                report.show(reports[-1], size, console)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if arguments.write_readme:
        report.write_readme(reports)
    return _guard() if GUARD in chosen else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data and no targets, in a minute or two")
    parser.add_argument("--only", action="append", choices=[*CASES, GUARD], help="only this case (repeatable)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is timed (default 5)")
    parser.add_argument("--folder", type=Path, help="where the data are made, 5 GB of them (default: that of TMPDIR)")
    parser.add_argument("--write-readme", action="store_true", help="put the figures into bench/README.md")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    if arguments.quick and arguments.write_readme:
        parser.error("--write-readme: not with --quick, the targets are for the full size")
    return arguments


def _guard() -> int:
    """pytest-benchmark over the kernel at a small size: its result, and that it is not much slower than at first here.

    Compared is always the first run on this machine, so that a loss cannot creep in; `make clean` forgets it.
    """
    known = any((CHECKOUT / ".benchmarks").rglob("0001_*.json"))
    compare = ["--benchmark-compare=0001", f"--benchmark-compare-fail={SLOWER_FAILS}"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "bench/test_kernel_benchmark.py"),
            "--benchmark-columns=min,median,stddev,rounds",
            *(compare if known else ["--benchmark-autosave"]),
        ],
        cwd=CHECKOUT,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
