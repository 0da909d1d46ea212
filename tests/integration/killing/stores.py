"""What a store holds, in a form in which two can be compared."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

DAYS = """
SELECT tenant_id, billing_period, charge_date, billing_gathered, chargeback_calculated, billing_digest, billing_rows,
    billing_bytes, cause_digest, input_digest, output_digest, calculation_id, chargeback_rows, chargeback_bytes,
    empty_key_rows, attempts, error
FROM pipeline_state ORDER BY 1, 2, 3
"""
LOADS = """
SELECT tenant_id, billing_period, assembly_id, fingerprint, lines, billing_rows, amounts, status,
    (SELECT count(*) FROM ingestion_files AS files WHERE files.load_id = loads.load_id)
FROM ingestion_assemblies AS loads ORDER BY 1, 2, 3, 8
"""
EMISSIONS = """
SELECT tenant_id, emitter, billing_period, charge_date, output_digest, outcome, rows, error
FROM emission_records ORDER BY 1, 2, 3, 4
"""
RUNNING = "SELECT run_id FROM pipeline_runs WHERE status = 'running'"
FACTS = "SELECT * FROM chargeback_facts ORDER BY 1, 2, 3, 4"
DIMENSIONS = "SELECT * FROM chargeback_dimensions ORDER BY 1"
TOTALS = "SELECT * FROM chargeback_totals ORDER BY 1, 2, 3, 4"
PAYERS = "SELECT * FROM payers ORDER BY 1, 2"


class Store(NamedTuple):
    """All that a run leaves behind but for times, run ids and how often something was tried.

    `lake` and `history`: path -> SHA-256 of every file. `left`: everything else that lies below the root.
    """

    lake: dict[str, str]
    history: dict[str, str]
    left: tuple[str, ...]
    state: dict[str, list[Any]]
    results: dict[str, list[Any]]


def store(root: Path) -> Store:
    """What is stored below a root."""
    lake, history = digests(root / "lake"), digests(root / "history")
    left = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    return Store(
        lake,
        history,
        tuple(sorted(str(path) for path in left if path.parts[0] not in {"lake", "history"})),
        queried(
            root / "state.db",
            days=DAYS,
            loads=LOADS,
            emissions=EMISSIONS,
            running=RUNNING,
            claims="SELECT * FROM claims",
            tags="SELECT * FROM custom_tags ORDER BY 1, 2, 3",
            teams="SELECT * FROM tenant_teams ORDER BY 1",
        ),
        queried(root / "results.db", facts=FACTS, dimensions=DIMENSIONS, totals=TOTALS, payers=PAYERS),
    )


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def queried(database: Path, **queries: str) -> dict[str, list[Any]]:
    """The rows of each query, from a copy of the database and its log: to look must not mend or change anything."""
    with TemporaryDirectory() as folder:
        for file in (database, database.with_name(f"{database.name}-wal")):
            if file.exists():
                shutil.copy(file, folder)
        connection = sqlite3.connect(Path(folder, database.name))
        try:
            return {name: connection.execute(query).fetchall() for name, query in queries.items()}
        finally:
            connection.close()


def differences(found: Store, expected: Store) -> list[str]:
    """What is not as it should be, in words; nothing if the two are alike."""
    return [
        f"{name}: {word} {item}"
        for name in Store._fields
        for word, items in (
            ("without", _items(getattr(expected, name)) - _items(getattr(found, name))),
            ("with", _items(getattr(found, name)) - _items(getattr(expected, name))),
        )
        for item in sorted(items)
    ]


def _items(part: Any) -> set[str]:
    if not isinstance(part, dict):
        return {str(item) for item in part}
    return {f"{key}: {item}" for key, value in part.items() for item in (value if isinstance(value, list) else [value])}
