"""`status` and `check`, as processes: what they say of a store and of its inputs, and that they write nothing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.functional.bills import CONFIG, KEYS, OCTOBER, answered, line, prorata, ran, write_all, write_bill


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made; nobody changes it."""
    folder = tmp_path_factory.mktemp("once")
    write_all(folder, lines=[*OCTOBER, line("0.25", team="Growth\x1b[31m Lab", day="2025-10-03")])
    ran(folder, "run")
    return folder


@pytest.fixture
def calculated(once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "copy"))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, but for what SQLite keeps beside a database for its readers."""
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file() and ".db-" not in path.name)
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


def status(folder: Path) -> Any:
    (tenant,) = answered(folder, "status")["tenants"]
    return tenant


def findings(folder: Path, code: int = 0) -> list[tuple[str, str]]:
    """Level and text of what `check` finds."""
    return [(one["level"], one["text"]) for one in answered(folder, "check", code=code)["findings"]]


def test_status_of_a_complete_store(once: Path) -> None:
    tenant = status(once)
    (bill,) = tenant["bills"]
    assert (bill["billing_period"], bill["assembly_id"], bill["complete"]) == ("2025-10", "first", True)
    assert (bill["lines"], bill["files"], bill["amounts"]) == (11, 1, {"USD": "114.750000000001"})
    assert tenant["days"] == {
        "gathered": 3, "calculated": 3, "pending": 0, "first": "2025-10-01", "last": "2025-10-03",
    }  # fmt: skip
    assert [(run["status"], run["rows_written"]) for run in tenant["runs"]] == [("done", 13)]
    assert [(one["emitter"], one["done"], one["pending"]) for one in tenant["emissions"]] == [("sqlite", 3, 0)]
    assert tenant["unknown_owners"] == ["growth\x1b[31m lab"]


def test_status_for_people_obeys_no_control_character(once: Path) -> None:
    said = ran(once, "status")
    assert "\x1b" not in said
    assert r"growth\x1b[31m lab" in said
    assert said.startswith("acme (aws): 3 days, 2025-10-01 to 2025-10-03; 0 to calculate\n")
    assert "complete" in said


def test_status_and_check_write_nothing(calculated: Path) -> None:
    before = files(calculated)
    for command in ("status", "check"):
        ran(calculated, command)
    assert files(calculated) == before


def test_status_and_check_before_the_first_run(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = files(tmp_path)
    tenant = status(tmp_path)
    assert (tenant["days"]["gathered"], tenant["runs"]) == (0, [])
    assert tenant["bills"][0]["missing"] == ["assembly first is not read yet"]
    assert not tenant["bills"][0]["complete"]
    assert findings(tmp_path)[1:] == [
        ("ok", "bill 2025-10, assembly first, 1 file: 10 lines, 114.500000000001 USD"),
        ("ok", "1 key table: 2 rows, 1 key: nat_gb"),
        ("ok", "store: nothing is stored yet"),
    ]
    assert files(tmp_path) == before


def test_status_tells_what_keeps_a_bill_from_being_complete(calculated: Path) -> None:
    write_bill(calculated / "cur", OCTOBER, assembly="second")
    write_bill(calculated / "cur", [line("1", day="2025-11-01")], month="20251101-20251201")
    assert {bill["billing_period"]: bill["missing"] for bill in status(calculated)["bills"]} == {
        "2025-10": ["a newer assembly, second, is not read yet"],
        "2025-11": ["assembly first is not read yet"],
    }
    ran(calculated, "run", "--to", "2025-11-01")
    (october, november) = status(calculated)["bills"]
    assert october["complete"]
    assert november["missing"] == ["1 day to calculate"]
    shutil.rmtree(calculated / "cur/20251001-20251101")
    assert status(calculated)["bills"][0]["missing"] == ["no longer among the reports on disk (what was read stays)"]


def test_status_tells_of_files_that_are_missing(calculated: Path) -> None:
    (calculated / "cur/20251001-20251101/first/cur-1.csv").unlink()
    tenant = status(calculated)
    assert "is missing; expected all 1 files of the assembly" in tenant["faults"][0]
    assert tenant["bills"][0]["missing"] == ["the reports on disk cannot be read"]


def test_a_report_that_cannot_be_read_hides_no_other(calculated: Path) -> None:
    write_bill(calculated / "cur", [line("1", day="2025-11-01")], month="20251101-20251201")
    ran(calculated, "run")
    (calculated / "cur/20251101-20251201/first/cur-1.csv").unlink()
    tenant = status(calculated)
    assert len(tenant["faults"]) == 1
    assert {bill["billing_period"]: bill["missing"] for bill in tenant["bills"]} == {
        "2025-10": [],
        "2025-11": ["the reports on disk cannot be read"],
    }
    (plan,) = answered(calculated, "plan")["tenants"]
    assert len(plan["notes"]) == 1
    assert {(day["billing_period"], day["gather_reason"]) for day in plan["days"]} == {
        ("2025-10", "bill_unchanged"),
        ("2025-11", "bills_unreadable"),
    }


def test_check_of_a_store_that_is_in_order(once: Path) -> None:
    assert [level for level, _ in findings(once)] == ["ok"] * 4
    said = ran(once, "check")
    assert "acme: store: 3 days of 1 bill, all checks pass" in said


def test_days_that_wait_are_no_fault_of_the_ledger(tmp_path: Path) -> None:
    """Their billing is stored and their chargeback is not, or is that of an older bill."""
    write_all(tmp_path)
    ran(tmp_path, "run", "--from", "2026-01-01")
    assert ("warning", "store: 3 days more to calculate") in findings(tmp_path)
    ran(tmp_path, "run", "--from", "2025-10-01", "--to", "2025-10-02")
    said = findings(tmp_path)
    assert ("ok", "store: 1 day of 1 bill, all checks pass") in said
    assert ("warning", "store: 2 days more to calculate") in said
    # As after a run that died before its checks: the next one checks from the first day to the last, and one waits.
    with closing(sqlite3.connect(tmp_path / "out" / "state.db")) as database:
        database.execute("UPDATE pipeline_state SET checked_digest = NULL")
        database.commit()
    ran(tmp_path, "run", "--from", "2025-10-03")
    write_bill(tmp_path / "cur", [*OCTOBER, line("1", team="search"), line("2", day="2025-10-02")], assembly="second")
    ran(tmp_path, "run", "--from", "2026-01-01")
    said = findings(tmp_path)
    assert ("ok", "store: 1 day of 1 bill, all checks pass") in said
    assert ("warning", "store: 2 days more to calculate") in said
    ran(tmp_path, "run")
    assert ("ok", "store: 3 days of 1 bill, all checks pass") in findings(tmp_path)


def test_check_finds_a_bad_value_in_the_last_line(tmp_path: Path) -> None:
    write_all(tmp_path, lines=[*OCTOBER, line("1e309")])
    done = prorata(tmp_path, "check")
    assert done.returncode == 12
    assert "prorata: acme: " in done.stderr
    assert "cur-1.csv:12: column lineItem/UnblendedCost: value '1e309'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_finds_all_that_is_wrong_and_ends_with_the_worst(calculated: Path) -> None:
    (calculated / "cur/20251001-20251101/cur-Manifest.json").write_text("{", encoding="utf-8")
    (calculated / "keys.csv").write_text(f"{KEYS}search,2025-10-01,nat_gb,abc\n", encoding="utf-8")
    (lake_file,) = (calculated / "out/lake/chargeback/tenant_id=acme").glob("*/2025-10-03.parquet")
    lake_file.unlink()
    found = answered(calculated, "check", code=13)["findings"]
    errors = [(one["exit_code"], one["text"]) for one in found if one["level"] == "error"]
    assert [code for code, _ in errors] == [11, 12, 13, 13, 13]
    assert "cur-Manifest.json: not JSON" in errors[0][1]
    assert "keys.csv:4: column value: value 'abc'" in errors[1][1]
    assert [text.partition(" for example")[0] for _, text in errors[2:]] == [
        "check day_sum: 1 row,",
        "check files_vs_log: 1 row,",
        "check line_sum: 3 rows,",
    ]


def test_check_warns_of_pools_and_keys_that_do_nothing(calculated: Path) -> None:
    extra = """
      - name: queues
        match: {service: AWSQueueService}
        ladder: [{basis: usage, key: messages}, {basis: weighted, keys: {nat_gb: 1, cores: 1}}, {basis: unallocated}]
"""
    (calculated / "prorata.yaml").write_text(CONFIG.rstrip() + extra, encoding="utf-8")
    assert [text for level, text in findings(calculated) if level == "warning"] == [
        "pool 'queues': key 'messages' is in no key table",
        "pool 'queues': key 'cores' is in no key table",
        "pool 'queues' matches no line of any bill yet",
    ]
    # A run says so once it has looked at all days, as after a change of rules; when nothing is to do it does not know.
    for day, told in (("2025-10-03", False), ("2025-10-01", True)):
        text = CONFIG.rstrip().replace("operator: platform", f"operator: {'boss' if told else 'chief'}") + extra
        (calculated / "prorata.yaml").write_text(text, encoding="utf-8")
        done = prorata(calculated, "run", "--from", day)
        assert done.returncode == 0, done.stderr
        assert ("warning: pool 'queues' matches no line of any bill yet" in done.stderr) == told
    assert "queues" not in prorata(calculated, "run").stderr


@pytest.mark.parametrize("root", ["taken", "taken/below"])
def test_a_root_that_is_a_file(tmp_path: Path, root: str) -> None:
    write_all(tmp_path, config=CONFIG.replace("./out", root))
    (tmp_path / "taken").write_text("")
    for command in ("run", "status", "check"):
        done = prorata(tmp_path, command)
        assert done.returncode == 14, f"{command}: {done.stdout} {done.stderr}"
        assert f"{tmp_path / 'taken'}" in done.stderr


def test_check_of_a_store_that_is_no_store(calculated: Path) -> None:
    (calculated / "out/state.db").write_text("no database at all, but long enough to be looked at", encoding="utf-8")
    for side in (calculated / "out").glob("state.db-*"):
        side.unlink()
    assert {text.partition(":")[0] for level, text in findings(calculated, code=14) if level == "error"} == {
        str(calculated / "out/state.db")
    }
    assert prorata(calculated, "status").returncode == 14
