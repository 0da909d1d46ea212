"""A disk that is full, a root that may not be written: one line says so, and what was stored stays as it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from tests.conftest import SmallDisk
from tests.integration.killing.stores import Store, differences, store
from tests.integration.reports import Line, line, write_bill, write_config

CHECKOUT = Path(__file__).parents[2]
STORE_FAILED, NOT_EMITTED = 14, 1
DAYS, LINES = 3, 2_500
SLACK = 100 * 1024
"""What a run needs besides its files, roughly: logs and indexes of SQLite, folders."""


def report(version: str) -> list[Line]:
    """Lines that hardly compress, so that a day's files are large beside SQLite's log; versions share none."""
    return [
        line(day, f"{number}.{int(name[:6], 16)}", "ants" if number % 3 else "", resource=f"i-{name}")
        for day in range(1, DAYS + 1)
        for number in range(LINES)
        for name in [hashlib.sha256(f"{version}/{day}/{number}".encode()).hexdigest()[:24]]
    ]


class Start(NamedTuple):
    """A folder with the first delivery stored; `expected` is the store after the second, read undisturbed."""

    folder: Path
    before: Store
    expected: Store
    sizes: dict[str, int]


def command(config: Path) -> list[str | Path]:
    return [sys.executable, "-m", "cli", "run", "-c", config]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def run(config: Path) -> None:
    """Run the command line, which must succeed."""
    ended = subprocess.run(command(config), env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def copied(start: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of a store: its root, and a configuration that reads the second delivery into it."""
    folder.mkdir()
    shutil.copytree(start / "data", folder / "data")
    config = write_config(folder / "second.yaml", root=folder / "data", cur=start / "second", workers=1, pools=POOLS)
    return folder / "data", config


POOLS = [{"name": "rest", "match": {"service": "AmazonEC2"}, "ladder": [{"basis": "even"}, {"basis": "unallocated"}]}]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("start")
    for number, name in enumerate(("first", "second")):
        write_bill(folder / name, report(name), assembly=f"a{number}")
    run(write_config(folder / "first.yaml", root=folder / "data", cur=folder / "first", workers=1, pools=POOLS))
    root, config = copied(folder, folder / "undisturbed")
    run(config)
    sizes = {name: size(root / "lake" / name / "tenant_id=acme") for name in ("billing", "chargeback", "resources")}
    sizes["results.db"] = (root / "results.db").stat().st_size - (folder / "data" / "results.db").stat().st_size
    return Start(folder, store(folder / "data"), store(root), sizes)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def faults(ended: subprocess.CompletedProcess[str], code: int) -> list[str]:
    """The faults that ended a run: a line for each, and nothing but what a run says of its work beside them."""
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    lines = ended.stderr.splitlines()
    assert [text for text in lines if not text.startswith(("prorata: ", "acme: "))] == []
    return [text.removeprefix("prorata: ") for text in lines if text.startswith("prorata: ")]


def one_fault(ended: subprocess.CompletedProcess[str], code: int) -> str:
    (said,) = faults(ended, code)
    return said


def whole_days(found: Store, start: Start) -> Iterator[str]:
    """Files of the lake that are neither as before nor as they are to become."""
    for path, digest in found.lake.items():
        if digest not in {start.before.lake.get(path), start.expected.lake.get(path)}:
            yield path


# How much of the files of a run finds room, and which file does not.
LEVELS = {
    "state.db": (),
    "billing": ("billing",),
    "chargeback": ("billing", "chargeback"),
    "resources": ("billing", "chargeback", "resources"),
    "results.db": ("billing", "chargeback", "resources", "results.db"),
}


@pytest.mark.parametrize("full", LEVELS)
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    start: Start, tmp_path: Path, on_small_disk: SmallDisk, full: str
) -> None:
    root, config = copied(start.folder, tmp_path / "case")
    *before, last = LEVELS[full] or [""]
    room = 4096 if not last else SLACK + sum(start.sizes[name] for name in before) + start.sizes[last] // 2
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in root.rglob("*") if not path.is_dir())
    ended = on_small_disk(root, str(used + room), ["env", f"PYTHONPATH={CHECKOUT}", *command(config)])
    # A lake without results.db is a lake: every day that does not fit is a fault, and the days that do are there.
    said = faults(ended, NOT_EMITTED) if full == "results.db" else [one_fault(ended, STORE_FAILED)]
    assert [text for text in said if full not in text.split(": ")[0] or "; expected " not in text] == []
    assert said
    # Nothing is half there: every day is as before or as it is to become, and no part of a file is left.
    found = store(root)
    assert list(whole_days(found, start)) == []
    assert [path for path in found.left if path.startswith("tmp/")] == []
    for path in (root / "lake").rglob("*.parquet"):
        pl.read_parquet(path)
    run(config)
    assert differences(store(root), start.expected) == []


WITHOUT_PRIVILEGE = """
import ctypes, os, sys
# 24 PR_CAPBSET_DROP, 1 CAP_DAC_OVERRIDE: root after this is bound by the modes of files like anybody else, but still
# reads the checkout wherever it lies. Anybody else is bound already.
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_without_privilege(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGE, *command(config)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_root_that_may_not_be_written(start: Start, tmp_path: Path) -> None:
    root, config = copied(start.folder, tmp_path / "case")
    paths = [root, *root.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        said = one_fault(run_without_privilege(config), STORE_FAILED)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert said.startswith(str(root))
    assert "; expected " in said
    assert store(root) == start.before
    run(config)
    assert differences(store(root), start.expected) == []


def test_a_root_that_cannot_be_made(start: Start, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    config = write_config(tmp_path / "prorata.yaml", root=closed / "data", cur=start.folder / "first")
    said = one_fault(run_without_privilege(config), STORE_FAILED)
    assert said.startswith(f"{closed / 'data'}: ")
    assert "Permission denied" in said
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize(
    "folder",
    [
        "tmp/acme",
        "lake/billing/tenant_id=acme/month=2025-10",
        "lake/chargeback/tenant_id=acme/month=2025-10",
        "lake/resources/tenant_id=acme",
        "claims",
    ],
)
def test_a_folder_of_the_store_that_may_not_be_written(start: Start, tmp_path: Path, folder: str) -> None:
    root, config = copied(start.folder, tmp_path / "case")
    if folder == "claims":
        (root / "claims" / "acme.lock").chmod(0o444)
    (root / folder).chmod(0o555)
    try:
        said = one_fault(run_without_privilege(config), STORE_FAILED)
    finally:
        (root / folder).chmod(0o755)
        if folder == "claims":
            (root / "claims" / "acme.lock").chmod(0o644)
    assert said.startswith(str(root))
    assert "Permission denied; expected " in said or "(Permission denied); expected " in said
    assert list(whole_days(store(root), start)) == []
    run(config)
    assert differences(store(root), start.expected) == []
