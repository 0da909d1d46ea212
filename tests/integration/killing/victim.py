"""Runs the command line and ends it, with SIGKILL, right before the n-th time it would change the store.

`forked` calls it with the arguments LOG N ROOT run -c CONFIG        (N counts from 1; 0: never)

What changes the store (an *event*) is written to LOG, one line each, before it happens; so the last line of a run that
was killed says what did not happen any more:

    open|rename|link|remove <path below ROOT>        by Python
    commit <database> <statements since BEGIN>       a transaction, before any of it is durable
    write|truncate|unlink <path below ROOT>          by SQLite, inside a commit or a checkpoint
    check query                                      a file of sql/checks is about to be read

SQLite writes through functions of its own, which no audit hook sees: its VFS lets us put others in their place.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Events:
    """Counts and logs what happens below a folder, and dies before the n-th."""

    def __init__(self, log: Path, fatal: int, root: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._fatal, self._root, self._count = fatal, f"{root}/", 0
        self._lock = threading.Lock()

    def below(self, path: object) -> str | None:
        """The path below the root; None if it is elsewhere."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.path.realpath(os.fsdecode(path))
        return text.removeprefix(self._root) if text.startswith(self._root) else None

    def happens(self, kind: str, what: str | None) -> None:
        """Something is about to change the store."""
        if what is None:
            return
        with self._lock:
            self._count += 1
            os.write(self._log, f"{kind} {what}\n".encode())
            if self._count == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def watch_python(events: Events) -> None:
    """Files that Python opens for writing, renames, links and removes; and what is read of sql/checks."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "open":
                path, mode, flags = arguments
                if flags & _WRITES or set(mode or "") & set("wax+"):
                    events.happens("open", events.below(path))
                elif _is_check(path):
                    # Not which: several are made at a time.
                    events.happens("check", "query")
            case "os.rename":
                events.happens("rename", events.below(arguments[1]))
            case "os.link":
                events.happens("link", events.below(arguments[1]))
            case "os.remove":
                events.happens("remove", events.below(arguments[0]))

    sys.addaudithook(hook)


def _is_check(path: object) -> bool:
    return isinstance(path, str | os.PathLike) and bool(re.search(r"/sql/checks/\w+\.sql$", os.fsdecode(path)))


def watch_connections(events: Events) -> None:
    """Every connection of Python's SQLite, from its beginning. (The audit event comes before it can be used.)"""
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        watch_transactions(events, connection)
        return connection

    vars(sqlite3)["connect"] = watched


def watch_transactions(events: Events, connection: sqlite3.Connection) -> None:
    """Every COMMIT of a connection, with what it commits: verb and table of each statement, and a run's stage."""
    said: list[str] = []

    def trace(statement: str) -> None:
        text = " ".join(line for line in statement.split("\n") if not line.lstrip().startswith("--")).strip()
        verb = text.partition(" ")[0]
        if verb == "BEGIN":
            said.clear()
        elif verb in {"CREATE", "DELETE", "INSERT", "UPDATE"}:
            said.append(_summary(text))
        elif verb == "COMMIT":
            events.happens("commit", f"{file} {', '.join(dict.fromkeys(said))}")

    # Only what is in a file can be lost: PRAGMA names it, and a database in memory has no name.
    [(_, _, path), *_] = connection.execute("PRAGMA database_list").fetchall()
    file = events.below(path) if path else None
    if file is not None:
        connection.set_trace_callback(trace)


def _summary(text: str) -> str:
    words = re.sub(r"\b(INTO|FROM|UNIQUE)\b", "", text).split()
    stage = re.search(r"\b(?:stage|status) = '(\w+)'", text.partition("WHERE")[0])
    return " ".join(words[:2] if words[0] != "CREATE" else words[:3]) + (f" {stage[1]}" if stage else "")


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs as far as its third version, of which the two functions at its end are used."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("path_max", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 13),
        ("set_system_call", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)),
        ("get_system_call", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)),
    ]


_WRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_PWRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_UNLINK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_CALLS: dict[bytes, tuple[str, Any]] = {
    b"write": ("write", _WRITE),
    b"pwrite": ("write", _PWRITE),
    b"pwrite64": ("write", _PWRITE),
    b"ftruncate": ("truncate", _TRUNCATE),
    b"unlink": ("unlink", _UNLINK),
}
_kept: list[object] = []
"""What SQLite calls must not be collected."""


def watch_sqlite(events: Events) -> None:
    """Every system call by which SQLite changes a file."""
    import _sqlite3  # noqa: PLC0415  # only to find the library that it uses

    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    vfs = library.sqlite3_vfs_find(None)
    address = ctypes.cast(vfs, ctypes.c_void_p)
    replaced = 0
    for name, (kind, prototype) in _CALLS.items():
        original = vfs.contents.get_system_call(address, name)
        if original:
            call = prototype(_watched(events, kind, prototype(original)))
            _kept.append(call)
            replaced += vfs.contents.set_system_call(address, name, ctypes.cast(call, ctypes.c_void_p)) == 0
    if replaced < 3:
        raise SystemExit("SQLite's system calls cannot be watched")


def _watched(events: Events, kind: str, original: Callable[..., int]) -> Callable[..., int]:
    def call(file: int | bytes, *rest: Any) -> int:
        path = file if isinstance(file, bytes) else Path(f"/proc/self/fd/{file}").readlink()
        events.happens(kind, events.below(path))
        return original(file, *rest)

    return call


def main() -> None:
    """The command line, watched. Whatever it imports is imported by the process that is to be killed, if not before."""
    log, fatal, root, *words = sys.argv[1:]
    import cli  # noqa: PLC0415  # not by those who only want to know what an event is

    events = Events(Path(log), int(fatal), Path(root).resolve())
    watch_python(events)
    watch_connections(events)
    watch_sqlite(events)
    sys.argv = ["prorata", *words]
    cli.main()
