"""Bad input, from the command line to the store: one line for each fault, an exit code, and what was stored stays.

A disk that is full and a root that may not be written: tests/integration/test_store_failures.py. A kill between rename
and commit: tests/integration/test_kill.py.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.functional.bills import ROOT, environment, prorata
from tests.integration.killing.stores import Store, differences, store
from tests.integration.reports import (
    NOVEMBER,
    OCTOBER,
    Line,
    line,
    report_text,
    write_bill,
    write_config,
    write_manifest,
)

PATIENCE = 120
"""Seconds after which something that should happen at once counts as never; nothing takes a hundredth of it."""
CONFIG_WRONG, SOURCE_WRONG, DATA_WRONG, BUSY, NOT_EMITTED = 10, 11, 12, 75, 1

GOOD = [line(1, "10", "ants"), line(1, "5.5", "bees"), line(1, "2"), line(2, "3", "ants"), line(3, "-1", "cats")]
POOLS = [{"name": "rest", "match": {"service": "AmazonEC2"}, "ladder": [{"basis": "even"}, {"basis": "unallocated"}]}]


class Place:
    """A folder in which a good bill of October was read; bad ones come after."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cur, self.root = folder, folder / "cur", folder / "out"
        self.config = write_config(folder / "prorata.yaml", root=Path("out"), cur=Path("cur"), pools=POOLS)
        self.month = self.cur / OCTOBER

    def run(self, command: str = "run", *words: str) -> subprocess.CompletedProcess[str]:
        return prorata(self.folder, command, *words)

    def runs(self) -> str:
        """What a run that must succeed says on stderr."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        return done.stderr

    def store(self) -> Store:
        return store(self.root)


@pytest.fixture(scope="session")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The good bill, read; for copies."""
    made = Place(tmp_path_factory.mktemp("good"))
    write_bill(made.cur, GOOD)
    made.runs()
    return made


@pytest.fixture
def place(tmp_path: Path, read_once: Place) -> Place:
    # Times of files are kept, so the bill is the one that was read.
    shutil.copytree(read_once.folder, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


def faults(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The faults on stderr. Beside them there is only what a run says of its work."""
    lines = done.stderr.splitlines()
    assert [text for text in lines if not text.startswith(("prorata: ", "acme: "))] == []
    return [text.removeprefix("prorata: ") for text in lines if text.startswith("prorata: ")]


def refused(place: Place, code: int, *expected: str, command: str = "run") -> None:
    """A run ends with this code and with faults that fit these patterns, and the store is as it was."""
    before = place.store()
    done = place.run(command)
    assert done.returncode == code, done.stderr
    said = faults(done)
    assert len(said) == len(expected), said
    for text, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(pattern, text), f"{text!r} does not fit {pattern!r}"
    assert differences(place.store(), before) == []


def q(path: Path) -> str:
    return re.escape(str(path))


# Columns, values, files


def test_a_required_column_that_is_missing(place: Place) -> None:
    (file,) = write_bill(place.cur, report_text(GOOD, without=["cost", "currency"]), assembly="a2")
    where = rf"{q(file)} \(of {q(place.month / 'cur-Manifest.json')}\)"
    refused(
        place,
        DATA_WRONG,
        *(
            rf"{where}: column {column} is missing; expected every required column"
            for column in (
                r"lineItem/UnblendedCost \(line_item_unblended_cost\)",
                r"lineItem/CurrencyCode \(line_item_currency_code\)",
            )
        ),
    )


@pytest.mark.parametrize("cost", ["abc", "1e309", "NaN", "", "1,5", "inf", "0x10"])
def test_a_cost_that_is_no_amount(place: Place, cost: str) -> None:
    file, _ = write_bill(place.cur, [line(1, "1", "ants"), line(1, cost, "ants")], GOOD, assembly="a2")
    refused(
        place,
        DATA_WRONG,
        rf"{q(file)}:3: column lineItem/UnblendedCost: value '{re.escape(cost)}'; expected a decimal number of .*",
    )


def test_all_bad_values_of_all_parts_at_once(place: Place) -> None:
    bad = [line(1, "abc"), line(1, "1"), line(1, "NaN", time="yesterday"), line(1, "1", currency="")]
    first, second = write_bill(place.cur, bad, [line(1, "1e309")], assembly="a2", suffix=".csv.gz")
    refused(
        place,
        DATA_WRONG,
        rf"{q(first)}:2: column lineItem/UnblendedCost: value 'abc'; .*",
        rf"{q(first)}:4: column lineItem/UnblendedCost: value 'NaN'; .*",
        rf"{q(first)}:4: column lineItem/UsageStartDate: value 'yesterday'; expected a UTC time such as .*",
        rf"{q(first)}:5: column lineItem/CurrencyCode: value ''; expected three capital letters, such as USD",
        rf"{q(second)}:2: column lineItem/UnblendedCost: value '1e309'; .*",
    )


@pytest.mark.parametrize("amount", ["1e26", "100000000000000000000000000", "-1e30"])
def test_an_amount_beyond_the_exact_range(place: Place, amount: str) -> None:
    (file,) = write_bill(place.cur, [line(1, amount, "ants")], assembly="a2")
    refused(
        place,
        DATA_WRONG,
        rf"{q(file)}:2: column lineItem/UnblendedCost: value '{amount}'; expected a decimal number of at most 26 .*",
    )


def test_amounts_whose_sum_is_beyond_the_exact_range(place: Place) -> None:
    write_bill(place.cur, [line(1, "9" * 26, "ants")] * 12, assembly="a2")
    refused(
        place, DATA_WRONG, rf"{q(place.month / 'cur-Manifest.json')}: column lineItem/UnblendedCost: .*; expected .*"
    )


def test_an_amount_that_the_lake_holds_and_results_db_does_not(place: Place) -> None:
    """Its whole part needs more than 64 bits. The chargeback is stored; one emitter could not be given one day."""
    before = place.store()
    amount = "12345678901234567890123.000000000001"
    write_bill(place.cur, [*GOOD, line(4, amount, "ants"), line(5, "1", "ants")], assembly="a2")
    done = place.run()
    assert done.returncode == NOT_EMITTED
    (said,) = faults(done)
    assert re.fullmatch(rf".*results\.db: tenant acme, .*2025-10-04: amount {re.escape(amount)} .*; expected .*", said)
    found = place.store()
    assert {path: digest for path, digest in found.lake.items() if path in before.lake and "acme/month" in path} == {
        path: digest for path, digest in before.lake.items() if "acme/month" in path
    }
    assert charges(place).filter(pl.col("charge_date") == pl.date(2025, 10, 4))["amount"].to_list() == [Decimal(amount)]
    # The days around it are there.
    assert {fact[2] for fact in found.results["facts"]} == {f"2025-10-0{day}" for day in (1, 2, 3, 5)}
    assert place.run().returncode == NOT_EMITTED
    write_bill(place.cur, GOOD, assembly="a3")
    place.runs()
    assert place.store().results["totals"] == before.results["totals"]


def charges(place: Place) -> pl.DataFrame:
    """All rows of the chargeback, as any reader of Parquet sees them."""
    return pl.read_parquet(place.root / "lake" / "chargeback" / "**" / "*.parquet", hive_partitioning=False)


def test_gzip_that_is_cut_off(place: Place) -> None:
    packed = gzip.compress(report_text([line(1, f"{number}.5", "ants") for number in range(2_000)]).encode(), mtime=0)
    (file,) = write_bill(place.cur, packed[: len(packed) // 2], assembly="a2", suffix=".csv.gz")
    refused(place, SOURCE_WRONG, rf"{q(file)}: the gzip data end too soon; expected a whole file")


def test_a_part_that_the_manifest_lists_and_that_is_not_there(place: Place) -> None:
    first, second, third = write_bill(place.cur, GOOD, GOOD, GOOD, assembly="a2")
    first.unlink()
    third.unlink()
    refused(
        place,
        SOURCE_WRONG,
        *(
            rf"{q(place.month)}/cur-Manifest\.json: reportKeys: file '.*/a2/{file.name}' is missing; expected all 3 .*"
            for file in (first, third)
        ),
    )
    assert second.exists()


def test_two_manifests_for_a_month(place: Place) -> None:
    write_bill(place.cur, GOOD, assembly="a2")
    manifest = json.loads((place.month / "cur-Manifest.json").read_text())
    (place.month / "other-Manifest.json").write_text(json.dumps({**manifest, "reportName": "other"}))
    refused(place, SOURCE_WRONG, r"billing period 2025-10: 2 manifests, .*cur-Manifest\.json.*other-Manifest\.json.*")


def test_a_header_that_differs_between_parts(place: Place) -> None:
    first, second = write_bill(place.cur, GOOD, report_text(GOOD, without=["resource"]), assembly="a2")
    refused(
        place,
        DATA_WRONG,
        rf"{q(second)}: its header differs from that of {q(first)} \(without 'lineItem/ResourceId'\); expected one .*",
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_file_that_grows_while_it_is_read(place: Place, suffix: str) -> None:
    """The reader is held where it first opens the file, which is after it has noted its size; then, and until the run
    ends, another thread appends lines to it. Left alone the two might miss each other; so they never do.
    """
    (file,) = write_bill(place.cur, GOOD, assembly="a2", suffix=suffix)
    before, size = place.store(), file.stat().st_size
    more = report_text([line(9, "1", "ants")]).splitlines(keepends=True)[1].encode()
    ended = threading.Event()

    def append() -> None:
        while not ended.is_set():
            with file.open("ab") as opened:
                opened.write(gzip.compress(more) if suffix == ".csv.gz" else more)
            release.touch()
            time.sleep(0.001)

    with held(place, "open", f"{re.escape(str(file))}$") as (child, release):
        writer = threading.Thread(target=append)
        writer.start()
        try:
            _, stderr = child.communicate(timeout=PATIENCE)
        finally:
            ended.set()
            writer.join()
    done = subprocess.CompletedProcess((), child.returncode, "", stderr)
    assert done.returncode == SOURCE_WRONG, stderr
    (said,) = faults(done)
    expected = rf"{q(file)}: changed while it was read \({size} bytes before, \d+ after\); expected a finished delivery"
    assert re.fullmatch(expected, said), said
    assert differences(place.store(), before) == []
    write_bill(place.cur, GOOD, assembly="a2", suffix=suffix)
    place.runs()


@contextmanager
def held(place: Place, event: str, pattern: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run that waits at an event (see killing/waiting.py) until a file is made; the run, and the file."""
    marker, release = place.folder / "reached", place.folder / "release"
    words = [event, pattern, str(marker), str(release), "run", "-c", str(place.config)]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.killing.waiting", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: marker.exists() or child.poll() is not None)
        assert marker.exists(), child.communicate()
        yield child, release
    finally:
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# Two processes


@pytest.mark.parametrize("command", ["run", "recalculate"])
def test_a_second_process_on_the_tenant(place: Place, command: str) -> None:
    write_bill(place.cur, [*GOOD, line(4, "1", "ants")], assembly="a2")
    with held(place, "os.rename", "lake/billing") as (child, release):
        refused(
            place,
            BUSY,
            rf"tenant acme: busy, held by pid {child.pid} on host .* since .*; expected no other run",
            command=command,
        )
        release.touch()
        _, stderr = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, stderr
    assert totals(place) == {"USD": Decimal("20.5")}
    place.runs()


def totals(place: Place) -> dict[str, Decimal]:
    """Charged amounts by currency."""
    return dict(charges(place).group_by("currency").agg(pl.col("amount").sum()).iter_rows())


# Odd but allowed


def test_currencies_are_kept_apart_and_never_summed(place: Place) -> None:
    more = [
        line(1, "7", "ants", currency="EUR"),
        line(1, "4", currency="EUR"),
        line(1, "0.3", currency="JPY"),
        line(4, "0.1", currency="EUR"),
    ]
    write_bill(place.cur, [*GOOD, *more], assembly="a2")
    said = place.runs()
    assert "0.300000000000 JPY" in said
    assert totals(place) == {"USD": Decimal("19.5"), "EUR": Decimal("11.1"), "JPY": Decimal("0.3")}
    billed = pl.read_parquet(place.root / "lake" / "billing" / "**" / "*.parquet", hive_partitioning=False)
    lines = billed.select("charge_date", "line_id", "currency", pl.col("amount").alias("billed"))
    per_line = charges(place).group_by("charge_date", "line_id", "currency").agg(pl.col("amount").sum())
    joined = per_line.join(lines, on=["charge_date", "line_id", "currency"], how="full")
    assert joined.filter(~pl.col("amount").eq_missing(pl.col("billed"))).is_empty()
    found = {(row[2], row[3]): row[6] for row in place.store().results["totals"]}
    assert {currency for _, currency in found} == {"USD", "EUR", "JPY"}
    assert sum(Decimal(amount) for (_, currency), amount in found.items() if currency == "EUR") == Decimal("11.1")
    shown = {row["currency"]: row["billed"] for row in summary(place)}
    assert {currency: Decimal(billed) for currency, billed in shown.items()} == totals(place)


def summary(place: Place) -> list[dict[str, Any]]:
    query = "SELECT currency, CAST(sum(amount) AS VARCHAR) AS billed FROM billing GROUP BY currency"
    done = place.run("sql", "--format", "json", query)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


HOSTILE = [
    "o'brien",
    'the "best" team',
    "two\nlines",
    "../../../etc/passwd",
    "..",
    "=cmd()",
    "@sum(1)",
    "a;drop table chargeback_facts;--",
    "tenant_id=other",
    "a,b",
    "%s {0} $x [red]",
    "<script>",
    "mañana \u202e.",
]


def test_hostile_tag_values_are_owners_like_others(place: Place) -> None:
    lines = [line(1, f"1.{number:02d}", name, resource=name) for number, name in enumerate(HOSTILE, start=1)]
    write_bill(place.cur, lines, assembly="a2")
    place.runs()
    # White space within a name is one blank, and case does not matter; all else stays.
    expected = {
        " ".join(name.lower().split()): Decimal(f"1.{number:02d}") for number, name in enumerate(HOSTILE, start=1)
    }
    charged = charges(place).filter(pl.col("charge_date") == pl.date(2025, 10, 1))
    assert dict(charged.select("identity_id", "amount").iter_rows()) == expected
    assert set(charged["resource_id"]) == set(HOSTILE)
    with closing(sqlite3.connect(place.root / "results.db")) as results:
        found = results.execute("SELECT identity_id, amount FROM chargeback_totals WHERE tenant_id = 'acme'").fetchall()
    assert {name: Decimal(amount) for name, amount in found} == expected
    # Nothing became a path, a file or a tenant.
    below = {path.relative_to(place.root).parts[0] for path in place.root.rglob("*") if path.is_file()}
    assert below <= {"lake", "history", "claims", "state.db", "results.db", "state.db-wal", "state.db-shm"}
    assert {path.name for path in (place.root / "lake" / "chargeback").iterdir()} == {"tenant_id=_", "tenant_id=acme"}
    done = place.run("status")
    assert done.returncode == 0, done.stderr


def test_hostile_tag_values_in_csv_are_quoted_and_never_formulas(place: Place) -> None:
    write_bill(place.cur, [line(1, "1", name, resource=name) for name in HOSTILE], assembly="a2")
    place.runs()
    query = "SELECT identity_id, resource_id FROM chargeback WHERE charge_date = DATE '2025-10-01'"
    done = place.run("sql", "--format", "csv", query)
    assert done.returncode == 0, done.stderr
    _, *rows = csv.reader(io.StringIO(done.stdout, newline=""))
    assert {resource.removeprefix("'") for _, resource in rows} == set(HOSTILE)
    assert [value for row in rows for value in row if value.startswith(("=", "@", "+", "-"))] == []
    # As JSON they are what they are.
    exact = place.run("sql", "--format", "json", query)
    assert {row["resource_id"] for row in json.loads(exact.stdout)} == set(HOSTILE)


def test_dates_outside_the_month_stay_in_its_bill_and_are_counted(place: Place) -> None:
    late = [line(1, "0.25", "ants", time="2025-09-30T23:00:00Z"), line(1, "0.5", "bees", time="2025-11-02T00:00:00Z")]
    write_bill(place.cur, [*GOOD, *late], assembly="a2")
    write_bill(place.cur, [line(1, "9", "ants", time="2025-11-02T00:00:00Z")], month=NOVEMBER)
    said = place.runs()
    assert "billing period 2025-10: 2 charge date(s) outside the month are kept in its bill" in said
    months = place.root / "lake" / "billing" / "tenant_id=acme"
    assert sorted(str(path.relative_to(months)) for path in months.rglob("*.parquet")) == [
        "month=2025-10/2025-09-30.parquet",
        *(f"month=2025-10/2025-10-0{day}.parquet" for day in (1, 2, 3)),
        "month=2025-10/2025-11-02.parquet",
        "month=2025-11/2025-11-02.parquet",
    ]
    # Two bills have the same day; neither takes the other's place.
    on_day = charges(place).filter(pl.col("charge_date") == pl.date(2025, 11, 2))
    assert dict(on_day.select("billing_period", "amount").iter_rows()) == {
        "2025-10": Decimal("0.5"),
        "2025-11": Decimal(9),
    }
    assert totals(place) == {"USD": Decimal("29.25")}


def test_an_empty_month_before_any_other(tmp_path: Path) -> None:
    made = Place(tmp_path)
    write_bill(made.cur, [], suffix=".csv.gz")
    assert "0 line(s)" in made.runs()
    found = made.store()
    assert (found.state["days"], found.results["facts"]) == ([], [])
    assert [path for path in found.lake if "acme/month" in path] == []
    again = made.run()
    assert (again.returncode, faults(again)) == (0, [])


def test_an_empty_month_takes_the_place_of_a_full_one(place: Place) -> None:
    """The newest delivery is the bill, whatever it says; what it replaced is kept in history."""
    before = place.store()
    write_bill(place.cur, [], assembly="a2")
    assert "3 withdrawn" in place.runs()
    found = place.store()
    assert [path for path in found.lake if "acme/month" in path] == []
    assert (found.state["days"], found.results["facts"], found.results["totals"]) == ([], [], [])
    assert set(before.lake.values()) - {*found.lake.values(), *found.history.values()} == {
        digest
        for path, digest in before.lake.items()
        if path.endswith("current.parquet") and found.lake[path] != digest
    }
    write_bill(place.cur, GOOD, assembly="a3")
    place.runs()
    assert place.store().lake == before.lake
    assert place.store().results["totals"] == before.results["totals"]


def test_a_month_without_a_file_is_not_empty_but_wrong(place: Place) -> None:
    write_manifest(place.cur, [], assembly="a2")
    refused(
        place, SOURCE_WRONG, rf"{q(place.month / 'cur-Manifest.json')}: reportKeys: .*; expected the keys of one .*"
    )


# One bill is wrong, others are not


def billed(place: Place) -> dict[str, Decimal]:
    """Amounts of billing by day."""
    stored = pl.read_parquet(place.root / "lake/billing/tenant_id=acme/**/*.parquet", hive_partitioning=False)
    return dict(stored.group_by(pl.col("charge_date").cast(str)).agg(pl.col("amount").sum()).iter_rows())


def charged(place: Place) -> dict[str, Decimal]:
    """Amounts of chargeback by day."""
    return dict(charges(place).group_by(pl.col("charge_date").cast(str)).agg(pl.col("amount").sum()).iter_rows())


BAD_NOVEMBER = [line(1, "x", time="2025-11-01T00:00:00Z")]


def test_a_bad_bill_keeps_no_other_from_being_calculated(place: Place) -> None:
    """The good bill before the bad one is stored, calculated, checked and emitted; only then is the bad one told of."""
    write_bill(place.cur, [*GOOD, line(4, "1", "ants")], assembly="a2")
    write_bill(place.cur, BAD_NOVEMBER, month=NOVEMBER)
    done = place.run()
    assert done.returncode == DATA_WRONG
    (told,) = faults(done)
    assert "cur-1.csv:2: column lineItem/UnblendedCost: value 'x'; expected a decimal number" in told
    found = place.store()
    assert not [path for path in found.lake if "month=2025-11" in path]
    assert found.state["running"] == []
    assert {load[7] for load in found.state["loads"]} <= {"loaded", "replaced"}
    assert billed(place) == charged(place)
    assert charged(place)["2025-10-04"] == 1
    emitted = {tuple(row[:4]): row[4:6] for row in found.results["totals"]}
    assert emitted["acme", "2025-10", "ants", "USD"] == (15, 0)
    checked = place.run("check")
    assert checked.returncode == DATA_WRONG
    assert faults(checked) == [f"acme: {told}"]
    write_bill(place.cur, [line(1, "1", "bees", time="2025-11-01T00:00:00Z")], month=NOVEMBER, assembly="a2")
    place.runs()
    assert totals(place) == {"USD": Decimal("21.5")}


def test_what_is_wrong_with_several_bills_is_told_at_once(place: Place) -> None:
    """A file that is missing hides neither a bad value nor a missing column of other bills."""
    december = "20251201-20260101"
    (bad,) = write_bill(place.cur, [line(1, "x")], assembly="a2")
    (other,) = write_bill(place.cur, report_text(GOOD, without=["cost"]), month=NOVEMBER)
    _, missing = write_bill(place.cur, GOOD, GOOD, month=december)
    missing.unlink()
    patterns = (
        rf"{q(place.cur / december / 'cur-Manifest.json')}: reportKeys: file '.*cur-2\.csv' is missing; expected .*",
        rf"{q(bad)}:2: column lineItem/UnblendedCost: value 'x'; expected .*",
        rf"{q(other)} .*: column lineItem/UnblendedCost .* is missing; expected .*",
    )
    refused(place, SOURCE_WRONG, *patterns)
    checked = place.run("check")
    assert len(faults(checked)) == 3, checked.stderr
    for text, pattern in zip(faults(checked), patterns, strict=True):
        assert re.fullmatch(f"acme: {pattern}", text)


def test_a_bad_table_keeps_every_new_bill_out(place: Place) -> None:
    """Without its tables no day can be calculated: the bills of the lake stay those that its chargeback is of."""
    (place.folder / "keys.csv").write_text("identity,date,key,value\nants,2025-10-01,gb,x\n")
    (place.folder / "more.csv").write_text("identity,date,key,value\nants,2025-10-01,gb,-1\n")
    (place.folder / "tags.csv").write_text("identity,key,value\n,team,one\n")
    tables = {"keys": [Path("keys.csv"), Path("more.csv")], "teams": {"tags": ["tags.csv"]}}
    write_config(place.config, root=Path("out"), cur=Path("cur"), pools=POOLS, **tables)
    write_bill(place.cur, [*GOOD, line(1, "100")], assembly="a2")
    write_bill(place.cur, BAD_NOVEMBER, month=NOVEMBER)
    refused(
        place,
        DATA_WRONG,
        r".*keys\.csv:2: column value: value 'x'; expected .*",
        r".*more\.csv:2: column value: value '-1'; expected .*",
        r".*tags\.csv:2: column identity: value ''; expected .*",
        r".*cur-1\.csv:2: column lineItem/UnblendedCost: value 'x'; expected .*",
    )
    assert billed(place) == charged(place)


def test_what_was_wrong_before_is_told_with_what_ends_the_run(place: Place) -> None:
    """A day whose billing is lost cannot be calculated; that the bill could not be read again is why."""
    (place.root / "lake/billing/tenant_id=acme/month=2025-10/2025-10-01.parquet").unlink()
    write_bill(place.cur, [line(1, "x")], assembly="a2")
    config = place.config.read_text()
    place.config.write_text(config.replace("operator: platform", "operator: boss"))
    done = place.run()
    assert done.returncode == DATA_WRONG, done.stderr
    bad, lost = faults(done)
    assert "value 'x'" in bad
    assert "2025-10-01.parquet" in lost


def test_a_tenant_that_fails_does_not_keep_others_from_their_work(tmp_path: Path) -> None:
    made = Place(tmp_path)
    write_bill(made.cur, [line(1, "x")])
    write_bill(tmp_path / "other", GOOD)
    document = made.config.read_text()
    entry = document.partition("tenants:\n")[2].replace("id: acme", "id: zebra").replace("path: cur", "path: other")
    made.config.write_text(document + entry)
    done = made.run()
    assert done.returncode == 1, done.stderr
    assert len([text for text in done.stderr.splitlines() if text.startswith("prorata: ")]) == 1
    assert {path.name for path in (made.root / "lake" / "chargeback").iterdir()} == {"tenant_id=_", "tenant_id=zebra"}


# The configuration


def test_yaml_with_duplicate_and_unknown_keys(place: Place) -> None:
    text = place.config.read_text()
    place.config.write_text(
        text.replace("  operator: platform\n", "  operator: platform\n  operator: nobody\n  oparator: platform\n")
        + "rot: elsewhere\n"
    )
    assert place.config.read_text() != text + "rot: elsewhere\n"
    where = q(Path("prorata.yaml"))
    before = place.store()
    for command in ("run", "recalculate", "check", "status"):
        done = place.run(command)
        assert done.returncode == CONFIG_WRONG, done.stderr
        said = sorted(faults(done))
        assert len(said) == 3, said
        for pattern in (
            rf"{where}:\d+: tenants\[0\]\.operator: key 'operator' stands twice \(first in line \d+\); expected .*",
            rf"{where}:\d+: tenants\[0\]\.oparator: unknown key 'oparator'; expected one of id, operator, .*",
            rf"{where}:\d+: rot: unknown key 'rot'; expected one of root, max_parallel_days, .*",
        ):
            assert [text for text in said if re.fullmatch(pattern, text)], f"{pattern} not in {said}"
    assert differences(place.store(), before) == []


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (("root: out", "root: [out"), r".*; expected valid YAML"),
        (
            ("basis: even", "basis: evenly"),
            r".*: tenants\[0\]\.pools\[0\]\.ladder\[0\]\.basis: value 'evenly'; expected one of .*",
        ),
        (("basis: unallocated", "basis: even"), r".*ladder.*; expected .*"),
        (("path: cur", "path: nowhere"), r".*/nowhere: .*; expected .*"),
    ],
)
def test_other_mistakes_in_the_configuration(place: Place, change: tuple[str, str], pattern: str) -> None:
    text = place.config.read_text()
    place.config.write_text(text.replace(*change))
    assert place.config.read_text() != text
    refused(place, SOURCE_WRONG if "nowhere" in pattern else CONFIG_WRONG, pattern)


def test_a_value_that_cannot_be_read_hides_no_rule_that_cannot_work(place: Place) -> None:
    last = {"basis": "unallocated"}
    pools = [
        {"name": "a", "match": {}, "ladder": [{"basis": "fixed", "percentages": {"ants": "50", "bees": "49,5"}}, last]},
        {
            "name": "b",
            "match": {"service": "X"},
            "ladder": [{"basis": "fixed", "percentages": {"platform": "100"}}, last],
        },
        {"name": "c", "match": {"service": "Y"}, "parts": [{"share": "all", "ladder": [last]}]},
    ]
    write_config(place.config, root=Path("out"), cur=Path("cur"), pools=pools, ladders={"mine": [{"basis": "evenly"}]})
    where = r"prorata\.yaml:\d+: tenants\[0\]"
    refused(
        place,
        CONFIG_WRONG,
        rf"{where}\.ladders\.mine\[0\]\.basis: value 'evenly'; expected .*",
        rf"{where}\.pools\[0\]\.ladder\[0\]\.percentages\.bees: value '49,5'; expected a decimal number",
        rf"{where}\.pools\[2\]\.parts\[0\]\.share: value 'all'; expected a decimal number",
        rf"{where}\.pools\[1\].*'platform'.*; expected .*",
        rf"{where}\.pools\[1\].*'a'.*; expected .*",
        rf"{where}\.pools\[2\].*'a'.*; expected .*",
    )


@pytest.mark.parametrize(
    ("content", "code", "pattern"),
    [
        ("identity,date,key,value\nants,2025-10-01,gb,x\n", DATA_WRONG, r":2: column value: value 'x'; expected .*"),
        ("identity,date,key,value\nants,2025-10-01,gb,-1\n", DATA_WRONG, r":2: column value: value '-1'; expected .*"),
        ("identity,date,value\nants,2025-10-01,1\n", DATA_WRONG, r": column key is missing; expected .*"),
        (
            "identity,date,key,value\nants,2025-10-01,gb,1\n Platform ,2025-10-01,gb,1\n",
            DATA_WRONG,
            r":3: column identity: 1 row\(s\) of 'Platform'; expected .*",
        ),
        (
            "identity,date,key,value\n" + f"ants,2025-10-01,gb,{'9' * 26}\n" * 12,
            DATA_WRONG,
            r": key 'gb': column value: 12 amounts of up to '9{26}' could pass the exact range; expected .*",
        ),
        (None, SOURCE_WRONG, r": cannot be read \(No such file or directory\); expected .*"),
    ],
)
def test_key_tables(place: Place, content: str | None, code: int, pattern: str) -> None:
    keys = place.folder / "keys.csv"
    if content is not None:
        keys.write_text(content)
    pools = [{**POOLS[0], "ladder": [{"basis": "usage", "key": "gb"}, {"basis": "unallocated"}]}]
    write_config(place.config, root=Path("out"), cur=Path("cur"), pools=pools, keys=[Path("keys.csv")])
    refused(place, code, rf"{q(keys)}{pattern}")


def test_key_values_too_large_to_be_summed_name_file_and_key(place: Place) -> None:
    head = "identity,date,key,value\n"
    (place.folder / "small.csv").write_text(f"{head}ants,2025-10-01,gb,1\n")
    large = place.folder / "large.csv"
    large.write_text(f"{head}ants,2025-10-01,gb,2\n" + f"bees,2025-10-02,seats,{'9' * 26}\n" * 10)
    keys = [Path("small.csv"), Path("large.csv")]
    write_config(place.config, root=Path("out"), cur=Path("cur"), pools=POOLS, keys=keys)
    refused(place, DATA_WRONG, rf"{q(large)}: key 'seats': column value: 12 amounts of up to '9+' could pass .*")


def test_after_bad_input_is_mended_a_run_reaches_what_it_would_have(place: Place, tmp_path: Path) -> None:
    lines: list[Line] = [*GOOD, line(2, "0.7"), line(4, "8", "dogs")]
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Place(tmp_path / "undisturbed")
    write_bill(undisturbed.cur, GOOD)
    undisturbed.runs()
    write_bill(undisturbed.cur, lines, assembly="a2")
    undisturbed.runs()
    for bad in ([line(1, "abc")], report_text(lines, without=["cost"]), ""):
        write_bill(place.cur, bad, assembly="bad")
        assert place.run().returncode in {SOURCE_WRONG, DATA_WRONG}
    write_bill(place.cur, lines, assembly="a2")
    place.runs()
    found, expected = place.store(), undisturbed.store()
    assert (found.lake, found.history, found.results) == (expected.lake, expected.history, expected.results)
