"""What all tests share: reproducible Hypothesis, larger data where there is some, and a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

# The same cases in every run, on slow machines too: what fails here fails everywhere.
settings.register_profile("prorata", database=None, deadline=None, derandomize=True)
settings.load_profile("prorata")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of larger data on machines that have none; pytest counts them as deselected."""
    if os.environ.get("PRORATA_TEST_DATA"):
        return
    left_out = [item for item in items if item.get_closest_marker("big_data")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def big_data() -> Path:
    """The folder of larger reports, for tests marked `big_data`."""
    return Path(os.environ["PRORATA_TEST_DATA"])


class SmallDisk(Protocol):
    """Runs a command while `folder` lies on a disk of `size` (like `300k`)."""

    def __call__(self, folder: Path, size: str, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]: ...


# The mounts live in a namespace of this one process, so they need no cleaning up, whatever happens to it.
_ON_SMALL_DISK = """
set -eu
folder=$1 disk=$2 size=$3
shift 3
mount -t tmpfs -o "size=$size" tmpfs "$disk"
cp -a "$folder/." "$disk"
mount --bind "$disk" "$folder"
status=0
"$@" || status=$?
umount "$folder"
find "$folder" -mindepth 1 -delete
cp -a "$disk/." "$folder"
exit "$status"
"""


@pytest.fixture
def on_small_disk(tmp_path_factory: pytest.TempPathFactory) -> SmallDisk:
    """A real full disk: what `folder` held is on it before the command, and what it holds after is in `folder`.

    Only root may mount; others do it as root of a user namespace. Where neither is allowed the test fails, and the
    message of unshare or mount is in stderr.
    """

    def run(folder: Path, size: str, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        disk = tmp_path_factory.mktemp("disk")
        namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        shell = ["sh", "-c", _ON_SMALL_DISK, "sh", str(folder), str(disk), size]
        return subprocess.run([*namespace, *shell, *command], capture_output=True, text=True, check=False)

    return run
