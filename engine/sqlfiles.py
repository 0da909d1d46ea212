"""Where the SQL files lie, and their text. SQL is read from files and never assembled."""

from __future__ import annotations

from pathlib import Path

from engine.errors import StoreError, fault, shown


def sql_folder() -> Path:
    """The folder of all SQL files: beside this module when installed, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "sql"
    return installed if installed.is_dir() else here.parent / "sql"


def names(kind: str) -> list[str]:
    """The names (without `.sql`) in one folder of `sql/`: state, results, views, ..., sorted; [] if there is none."""
    return sorted(file.stem for file in (sql_folder() / kind).glob("*.sql"))


def read_sql(kind: str, name: str) -> str:
    """The text of `sql/<kind>/<name>.sql`; StoreError if it cannot be read.

    Only names that `names` lists are read, so a name that a user typed never becomes a path.
    """
    known = names(kind)
    file = sql_folder() / kind / f"{name}.sql"
    if name not in known:
        raise StoreError(
            fault(f"sql/{kind}", f"no SQL file named {shown(name)}", f"one of {', '.join(known) or 'none'}")
        )
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(fault(str(file), f"cannot be read ({error.strerror})", "a SQL file")) from error
