"""A real Prometheus on a free port of this machine, with given samples in it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

READY_SECONDS = 30
STARTS = 3


class Row(NamedTuple):
    """One sample; the time in milliseconds since 1970, since whole milliseconds are what Prometheus keeps."""

    name: str
    labels: Mapping[str, str]
    milliseconds: int
    value: int | str


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def has_programs() -> bool:
    """Whether prometheus and promtool are there."""
    return all(map(_found, ("prometheus", "promtool")))


def program(name: str) -> str:
    """The path of prometheus or promtool: beside this Python, where `make` puts it, or in PATH."""
    found = _found(name)
    if found is None:
        raise RuntimeError(f"{name} is missing; `make test` brings it on Debian (package prometheus)")
    return found


def open_metrics(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of the rows, series by series in the order of time, as promtool wants them."""
    series: dict[str, list[tuple[int, int | str]]] = defaultdict(list)
    for row in rows:
        labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in sorted(row.labels.items()))
        series[f"{row.name}{{{labels}}}"].append((row.milliseconds, row.value))
    for name, samples in sorted(series.items()):
        for milliseconds, value in sorted(samples):
            # promtool cuts to milliseconds after a multiplication of floats: a bit more than the time stays the time.
            yield f"{name} {value} {milliseconds // 1000}.{milliseconds % 1000:03}3\n"
    yield "# EOF\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def back_fill(rows: Iterable[Row], folder: Path) -> Path:
    """Blocks of the rows in `folder`, which a Prometheus can serve."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "samples.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(open_metrics(rows))
    blocks = folder / "blocks"
    blocks.mkdir()
    # The file is read once for each block, so blocks are few.
    command = [program("promtool"), "tsdb", "create-blocks-from", "--quiet", "--max-block-duration=4800h"]
    done = subprocess.run([*command, "openmetrics", text, blocks], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"promtool: {done.stdout}{done.stderr}")
    text.unlink()
    return blocks


@contextmanager
def prometheus(
    rows: Iterable[Row], folder: Path, *, prefix: str = "", options: Iterable[str] = (), port: int = 0
) -> Iterator[str]:
    """The URL of a Prometheus that holds the rows until the context ends; it serves under the path `prefix`.

    Port 0 takes any that is free.
    """
    with serving(back_fill(rows, folder), prefix=prefix, options=options, port=port) as url:
        yield url


@contextmanager
def serving(blocks: Path, *, prefix: str = "", options: Iterable[str] = (), port: int = 0) -> Iterator[str]:
    """The same for blocks that there are."""
    config, log = blocks.parent / "empty.yml", blocks.parent / "prometheus.log"
    config.write_text("")
    process, url = _started(blocks, config, log, prefix, list(options), port)
    try:
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _started(
    blocks: Path, config: Path, log: Path, prefix: str, options: list[str], asked_port: int
) -> tuple[subprocess.Popen[bytes], str]:
    """A Prometheus that is ready. Another program may take the free port first, so it is tried more than once."""
    for _ in range(STARTS):
        port = asked_port or _free_port()
        url = f"http://127.0.0.1:{port}{prefix}"
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={blocks}",
            # Without it old blocks are dropped.
            "--storage.tsdb.retention.time=10y",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--web.external-url={url}/",
            *options,
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if _ready(process, url):
            return process, url
        process.kill()
        process.wait()
    raise RuntimeError(f"prometheus did not start: {log.read_text(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with opener.open(f"{url}/-/ready", timeout=5):
                # Else it was another one's answer, and ours found the port taken.
                return process.poll() is None
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False
