"""One SQLite file of ours: opened, brought to the newest schema, written in transactions, its errors in one line.

state.db and results.db are both this. Every write is durable when its transaction returns (WAL, synchronous FULL).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Self, TypeAlias

from engine.errors import StoreError, fault, shown
from engine.sqlfiles import names, read_sql

BUSY_SECONDS = 60.0
"""How long a writer waits for another process's transaction; ours take milliseconds."""

Parameters: TypeAlias = Sequence[object] | dict[str, Any]

_FAULTS: tuple[tuple[str, str, str], ...] = (
    ("SQLITE_FULL", "the disk is full", "free space on its file system"),
    ("SQLITE_READONLY", "cannot be written", "a file and a folder that this user may write"),
    ("SQLITE_PERM", "cannot be opened", "a file and a folder that this user may write"),
    ("SQLITE_CANTOPEN", "cannot be opened", "a file and a folder that this user may write"),
    ("SQLITE_NOTADB", "not an SQLite database", "a database that prorata wrote"),
    ("SQLITE_CORRUPT", "damaged", "an undamaged database (restore it from a backup)"),
    ("SQLITE_BUSY", "locked by another process", f"a lock that ends within {BUSY_SECONDS:.0f} s"),
    ("SQLITE_LOCKED", "locked by another process", f"a lock that ends within {BUSY_SECONDS:.0f} s"),
    ("SQLITE_IOERR", "cannot be read or written", "a working disk with free space"),
)


@contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """Errors of SQLite become StoreError naming the file; those that only a bug causes stay as they are."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        seen, expected = next(
            ((seen, expected) for prefix, seen, expected in _FAULTS if code.startswith(prefix)),
            ("cannot be used", "a database that prorata wrote"),
        )
        raise StoreError(fault(str(file), f"{seen} ({shown(str(error))})", expected)) from error
    except UnicodeEncodeError as error:
        raise StoreError(fault(str(file), f"text {shown(ascii(error.object))} is not Unicode", "UTF-8 text")) from error


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """The folder exists meanwhile; errors of the system in the block become StoreError naming the path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place = str(error.filename or folder)
        raise StoreError(
            fault(place, f"cannot be used ({error.strerror})", "free space and a path that this user may write")
        ) from error


class Database:
    """An open SQLite file. Several threads may share it: one at a time reads or writes."""

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.file = file
        self._connection = connection
        self._lock = RLock()

    def rows(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, as tuples; StoreError if the file cannot be read."""
        with self._lock, one_line_errors(self.file):
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All writes of the block or none; a block inside another is part of it. StoreError if they cannot be made."""
        with self._lock, one_line_errors(self.file):
            if self._connection.in_transaction:
                yield self._connection
            else:
                with _transaction(self._connection):
                    yield self._connection

    def close(self) -> None:
        """Close the file; what was committed is safe with or without it."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connected(file: Path, kind: str) -> sqlite3.Connection:
    """A connection for writing to `file`, created if need be and brought to the newest schema of `sql/<kind>/`.

    Raises StoreError if the file cannot be opened or written, is no database of this kind, or is newer than we know.
    """
    with (
        writable_folder(file.parent),
        one_line_errors(file),
        _alone(file.parent),
        _closed_on_error(_connection(file)) as connection,
    ):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, file, kind)
        return connection


def connected_for_reading(file: Path, kind: str) -> sqlite3.Connection:
    """A connection that only reads. A file that is not there (or was never filled) reads as empty and is not created.

    Raises StoreError if the file cannot be read, is no database of this kind, or is older or newer than we know, and if
    its folder could not even be made.
    """
    # To SQLite, a file below a file is only one that is not there.
    there = next((folder for folder in file.parents if folder.exists()), None)
    if there is not None and not there.is_dir():
        raise StoreError(fault(str(there), "not a folder", "a folder, or a path at which one can be made"))
    with one_line_errors(file), _closed_on_error(_reading(file, kind)) as connection:
        version = _version(connection, file, kind)
        if version < _newest(kind):
            raise StoreError(
                fault(str(file), f"schema version {version}", f"version {_newest(kind)} (any run brings it there)")
            )
        connection.execute("PRAGMA query_only = ON")
        return connection


def _connection(file: Path, mode: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.absolute().as_uri()}{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _reading(file: Path, kind: str) -> sqlite3.Connection:
    if os.path.lexists(file):
        connection = _opened_for_reading(file)
        with _closed_on_error(connection):
            if _version(connection, file, kind):
                return connection
        connection.close()
    empty = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _migrate(empty, file, kind)
    return empty


def _opened_for_reading(file: Path) -> sqlite3.Connection:
    try:
        with _closed_on_error(_connection(file, "?mode=ro")) as connection:
            connection.execute("PRAGMA user_version")
            return connection
    except sqlite3.OperationalError:
        # A reader of a WAL database needs files beside it, which a folder that may not be written does not allow.
        # Without a log nobody is writing, and the file alone is the truth.
        if file.with_name(f"{file.name}-wal").exists():
            raise
        return _connection(file, "?mode=ro&immutable=1")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process opens a database in the folder for writing meanwhile: of two that find it new, one fills it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself where the disk was full.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def _newest(kind: str) -> int:
    return int(names(kind)[-1])


def _version(connection: sqlite3.Connection, file: Path, kind: str) -> int:
    # One statement, so that a file which another process is just filling is not seen half-way.
    version, tables = connection.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version"
    ).fetchone()
    if version > _newest(kind):
        raise StoreError(
            fault(str(file), f"schema version {version}, of a newer prorata", f"version {_newest(kind)} or older")
        )
    if version == 0 and tables:
        raise StoreError(fault(str(file), "an SQLite database of another program", "a database that prorata wrote"))
    return int(version)


def _migrate(connection: sqlite3.Connection, file: Path, kind: str) -> None:
    """Apply the migrations that are missing, each in one transaction; each sets `user_version` to its own number.

    A new file gets all of them in one, so that nobody who reads it meanwhile sees one that is old already.
    """
    version = _version(connection, file, kind)
    missing = [name for name in names(kind) if int(name) > version]
    for group in [missing] if not version else [[name] for name in missing]:
        with _transaction(connection):
            # Not executescript, which would commit before it starts.
            for statement in (one for name in group for one in _statements(read_sql(kind, name))):
                connection.execute(statement)


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
