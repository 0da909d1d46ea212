"""Raw answers on disk, as they came, so that nothing is fetched twice and a better parser can read them again.

A file is JSON lines compressed with zstd: one object a page, `{"url": ..., "status": ..., "body": <raw text>}`, and a
last one, `{"pages": <how many>, "sha256": <of the lines before>}`, without which a file is not whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from engine.errors import StoreError, fault, shown
from engine.sources.answers import Answer

_NAME = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]{0,199}")
_SUFFIX = ".jsonl.zst"
_EXPECTED = "landed answers, whole"


def raw_folder(root: Path, kind: str, tenant_id: str) -> Path:
    """Where the answers of a kind of source that a tenant's gathers landed lie."""
    return root / "raw" / kind / tenant_id


class Landing:
    """A folder of landed answers, one file a name. A name that is there is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the answers of a name lie; StoreError if the name could be more than the name of a file."""
        if not _NAME.fullmatch(name):
            raise StoreError(
                fault(f"{self.folder}: name {shown(name)}", "is no name of landed answers", "letters, digits and _.=-")
            )
        return self.folder / f"{name}{_SUFFIX}"

    def has(self, name: str) -> bool:
        """Whether answers of this name were landed."""
        path = self.path(name)
        with _store_errors(path):
            return path.is_file()

    def names(self) -> list[str]:
        """The names of all that was landed, in order."""
        with _store_errors(self.folder):
            found = [file.name for file in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))

    def remove(self) -> None:
        """Take the folder away with all that was landed in it; StoreError if that cannot be done."""
        with _store_errors(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def write(self, name: str, pages: Iterable[Answer]) -> int:
        """Land the pages, as they come, whole or not at all; how many there were.

        What was landed under the name before is replaced in one step. An error of `pages` leaves nothing behind.
        """
        path = self.path(name)
        temporary = path.with_name(f"{path.name}.part")
        with _store_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            count = _write(temporary, pages)
            with _store_errors(path):
                temporary.replace(path)
                _sync_folder(self.folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return count

    def drop(self, name: str) -> None:
        """Take away what was landed under a name; StoreError if that cannot be done."""
        path = self.path(name)
        with _store_errors(path):
            path.unlink(missing_ok=True)

    def content(self, name: str) -> bytes:
        """The file landed under a name, as it is; StoreError that names it if it cannot be read."""
        path = self.path(name)
        with _store_errors(path):
            return path.read_bytes()

    def read(self, name: str) -> list[Answer]:
        """The pages landed under a name; StoreError that names the file if it is not there, torn or of another make."""
        path = self.path(name)
        with (
            _store_errors(path),
            pa.BufferReader(self.content(name)) as file,
            pa.CompressedInputStream(file, "zstd") as stream,
        ):
            content: bytes = stream.read()
        lines = content.splitlines(keepends=True)
        try:
            end = json.loads(lines[-1])
            pages = [_page(line) for line in lines[:-1]]
            whole = end == _end(len(pages), hashlib.sha256(b"".join(lines[:-1])))
        except (LookupError, TypeError, ValueError):
            whole, pages = False, []
        if not whole:
            raise StoreError(fault(str(path), "is torn, or of another make", _EXPECTED))
        return pages


def _write(path: Path, pages: Iterable[Answer]) -> int:
    sha256, count = hashlib.sha256(), 0
    with _store_errors(path), path.open("wb") as file:
        with pa.OSFile(str(path), "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
            for page in pages:
                line = _line({"url": page.url, "status": page.status, "body": page.text})
                sha256.update(line)
                stream.write(line)
                count += 1
            stream.write(_line(_end(count, sha256)))
        os.fsync(file.fileno())
    return count


def _line(value: object) -> bytes:
    # ASCII, so that no other line break than ours is one, and half a surrogate pair does no harm.
    return f"{json.dumps(value)}\n".encode()


def _end(pages: int, sha256: hashlib._Hash) -> dict[str, object]:
    return {"pages": pages, "sha256": sha256.hexdigest()}


def _page(line: bytes) -> Answer:
    value = json.loads(line)
    url, status, text = value["url"], value["status"], value["body"]
    if not (isinstance(url, str) and isinstance(status, int) and isinstance(text, str)):
        raise TypeError("not a page")
    return Answer(url, status, text)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Errors of the file system and of the codec as a StoreError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StoreError(fault(str(path), reason, _EXPECTED)) from error
