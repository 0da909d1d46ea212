"""Files of the lake that are not what prorata wrote: found, put right or refused, and never counted."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.functional.bills import OCTOBER, line, prorata, write_all, write_bill

STORE_WRONG, LEDGER_WRONG = 14, 13
MONTH = "tenant_id=acme/month=2025-10"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path)
    done = prorata(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    return tmp_path


def day_file(folder: Path, table: str, day: str = "2025-10-02") -> Path:
    return folder / "out" / "lake" / table / MONTH / f"{day}.parquet"


def with_other_amounts(path: Path) -> None:
    """The file with every amount 999, saying of itself what it said before."""
    metadata, rows = pq.read_metadata(path).metadata, pq.read_table(path, partitioning=None)
    place = rows.schema.get_field_index("amount")
    field = rows.schema.field(place)
    wrong = rows.set_column(place, field, pa.array([Decimal(999)] * rows.num_rows, type=field.type))
    pq.write_table(wrong.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("command", ["run", "recalculate"])
def test_a_chargeback_that_only_says_it_is_right_is_made_again(folder: Path, command: str) -> None:
    path = day_file(folder, "chargeback")
    right = path.read_bytes()
    with_other_amounts(path)
    assert prorata(folder, "check").returncode == LEDGER_WRONG
    done = prorata(folder, command)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == right
    assert prorata(folder, "check").returncode == 0
    assert not list((folder / "out" / "history").rglob("*.parquet"))
    assert "nothing to do" in prorata(folder, "run").stdout


def test_a_flipped_bit_is_made_good_by_a_recalculation(folder: Path) -> None:
    path = day_file(folder, "chargeback")
    right = path.read_bytes()
    place = len(right) // 3
    path.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
    done = prorata(folder, "recalculate")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == right


@pytest.mark.parametrize("table", ["billing", "chargeback"])
def test_a_file_of_another_name_among_the_days_is_not_counted_but_told(folder: Path, table: str) -> None:
    shutil.copy(day_file(folder, table), day_file(folder, table, "copy"))
    write_bill(folder / "cur", [*OCTOBER, line("100", team="search")], assembly="second")
    done = prorata(folder, "run")
    assert done.returncode == LEDGER_WRONG, done.stderr
    assert "check files_vs_log" in done.stderr
    assert "copy.parquet" in done.stderr
    day_file(folder, table, "copy").unlink()
    assert prorata(folder, "run").returncode == 0
    assert prorata(folder, "check").returncode == 0


@pytest.mark.parametrize("command", ["recalculate", "check"])
def test_a_bill_in_the_lake_that_cannot_be_read_is_told_in_a_line(folder: Path, command: str) -> None:
    path = day_file(folder, "billing")
    path.write_bytes(b"x" * path.stat().st_size)
    done = prorata(folder, command)
    assert done.returncode == STORE_WRONG, done.stderr
    assert "billing" in done.stderr + done.stdout
    assert "internal error" not in done.stderr
