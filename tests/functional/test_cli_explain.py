"""`explain`, as a process: the arithmetic of lines and rows, recomputed and compared."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.functional.bills import CONFIG, OCTOBER, answered, asked, line, prorata, ran, write_all, write_bill

PARTS = CONFIG.replace(
    "ladder: [{basis: usage, key: nat_gb}, {basis: even}, {basis: unallocated}]",
    "parts: [{share: 0.7, ladder: [{basis: usage, key: nat_gb}, {basis: unallocated}]}, "
    "{share: 0.3, ladder: [{basis: weighted, keys: {nat_gb: 1, cores: 1}}, {basis: operator}]}]",
)


@pytest.fixture(scope="module")
def calculated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made; nobody changes it."""
    folder = tmp_path_factory.mktemp("calculated")
    write_all(folder)
    ran(folder, "run")
    return folder


@pytest.fixture
def folder(calculated: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(calculated, tmp_path / "copy"))


def line_id(folder: Path, where: str) -> str:
    """The id of the one line for which a condition holds."""
    (row,) = asked(folder, f"SELECT line_id::VARCHAR AS line_id FROM billing WHERE {where}")
    return str(row["line_id"])


def nat(folder: Path, day: str) -> str:
    return line_id(folder, f"product_type LIKE '%NatGateway%' AND charge_date = '{day}'")


def test_a_line_is_shown_with_its_arithmetic(folder: Path) -> None:
    said = ran(folder, "explain", nat(folder, "2025-10-01"))
    assert "product   AmazonEC2 / EUC1-NatGateway-Bytes / RunInstances" in said
    assert "rung 0  usage nat_gb: took it; usage, usage_ratio, nat" in said
    assert "r * (b + w) div W = 1 * 1 div 3 = 0" in said
    assert "(3333333333333 + 0 - 0) = 3333333333333" in said
    assert "recomputed 3.333333333333, stored 3.333333333333: equal" in said
    assert "line 10, sum of its 2 rows 10: equal" in said


def test_a_row_is_shown_with_its_own_numbers(folder: Path) -> None:
    said = ran(folder, "explain", f"{nat(folder, '2025-10-01')}/0/search")
    assert "C = 10000000000000, w = 2, b = 1, W = 3, q = 3333333333333, r = 1" in said
    assert "(6666666666666 + 1 - 0) = 6666666666667" in said
    assert "recomputed 6.666666666667, stored 6.666666666667: equal" in said


def test_the_rung_that_did_not_hold_is_named_with_its_reason(folder: Path) -> None:
    said = ran(folder, "explain", nat(folder, "2025-10-02"))
    assert "rung 0  usage nat_gb: did not hold (empty_key: nobody has a value)" in said
    assert "rung 1  even owners: took it" in said


def test_every_line_can_be_explained_whatever_its_sign(calculated: Path) -> None:
    ids = [str(row["line_id"]) for row in asked(calculated, "SELECT line_id::VARCHAR AS line_id FROM billing")]
    negative, positive = min(ids, key=int), max(ids, key=int)
    assert negative.startswith("-")
    for one in (negative, positive):
        found = answered(calculated, "explain", one)
        assert found["equal"]
        assert found["line"]["line_id"] == one
        assert found["allocated"] == found["line"]["amount"]


def test_a_negative_id_is_no_option_whatever_follows(calculated: Path) -> None:
    ids = [str(row["line_id"]) for row in asked(calculated, "SELECT line_id::VARCHAR AS line_id FROM billing")]
    one = min(ids, key=int)
    assert ran(calculated, "explain", "--tenant", "acme", "--", one) == ran(calculated, "explain", one)
    # The `c` in what follows the number does not ask for a configuration. The least id is a line of search.
    assert "sum of its 1 row " in ran(calculated, "explain", f"{one}/0/search")


def test_parts_are_recomputed_from_their_shares(folder: Path) -> None:
    (folder / "prorata.yaml").write_text(PARTS, encoding="utf-8")
    ran(folder, "run")
    found = answered(folder, "explain", nat(folder, "2025-10-01"))
    first, second = found["parts"]
    assert (first["share"], first["amount"], second["share"], second["amount"]) == ("0.7", "7", "0.3", "3")
    assert [one["metric"] for one in second["empty_keys"]] == ["cores"]
    said = ran(folder, "explain", nat(folder, "2025-10-01"))
    assert "part 0: 7, share 0.7 of the line" in said
    assert "without key cores (empty_key: nobody has a value); the other keys took its weight" in said
    only = ran(folder, "explain", f"{nat(folder, '2025-10-01')}/1/search")
    assert "part 1: 3" in only
    assert "part 0: 7" not in only


def test_a_rule_that_has_changed_since_is_said(folder: Path) -> None:
    line = nat(folder, "2025-10-01")
    assert answered(folder, "explain", line)["today"]["same"]
    (folder / "prorata.yaml").write_text(PARTS, encoding="utf-8")
    found = answered(folder, "explain", line)
    assert not found["today"]["same"]
    assert found["parts"][0]["share"] is None
    said = ran(folder, "explain", line)
    assert "decided otherwise by the configuration as it is now: pool:nat, version" in said
    assert "recomputed 3.333333333333, stored 3.333333333333: equal" in said


def test_an_owner_that_has_changed_since_is_said(folder: Path) -> None:
    line = line_id(folder, "tags LIKE '%mobile%'")
    changed = CONFIG.replace("identities: [payments, search, mobile]", "aliases: {mobile: search}")
    (folder / "prorata.yaml").write_text(changed, encoding="utf-8")
    assert answered(folder, "explain", line)["today"] | {"rule_version": ""} == {
        "rule_id": "direct",
        "rule_version": "",
        "owner": "search",
        "window": "",
        "same": False,
    }


def tampered(folder: Path, column: str, change: pl.Expr) -> None:
    """Change what is stored of 1 October, as a bug or a hand would."""
    (file,) = (folder / "out/lake/chargeback/tenant_id=acme").glob("*/2025-10-01.parquet")
    rows = pl.read_parquet(file, hive_partitioning=False)
    rows.with_columns(change.cast(rows.schema[column]).alias(column)).write_parquet(file)


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ("amount", "row 0/'payments': stored 4.333333333333; expected 3.333333333333, as recomputed"),
        ("part_amount", "row 0/'payments': stored 3.333333333333; expected 3.666666666666, as recomputed"),
    ],
)
def test_what_does_not_add_up_is_an_error_of_the_ledger(folder: Path, column: str, complaint: str) -> None:
    line = nat(folder, "2025-10-01")
    of_line = pl.col("line_id") == int(line)
    tampered(folder, column, pl.when(of_line).then(pl.col(column) + Decimal(1)).otherwise(pl.col(column)))
    done = prorata(folder, "explain", line)
    assert done.returncode == 13
    assert complaint in done.stderr
    assert "DIFFERENT" in done.stdout
    assert prorata(folder, "check").returncode == 13


def test_a_line_that_is_not_there_is_a_usage_error_with_a_hint(folder: Path) -> None:
    for word, complaint in (
        ("12", "line 12: not among the billing of tenant acme; expected a line_id of `prorata sql"),
        ("twelve", "LINE_OR_ROW: value 'twelve'; expected a line_id"),
        ("99999999999999999999", "LINE_OR_ROW: value '99999999999999999999'; expected a line_id"),
        (f"{nat(folder, '2025-10-01')}/0/nobody", "no row '0/nobody'; expected one of 0/payments, 0/search"),
    ):
        done = prorata(folder, "explain", word)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert complaint in done.stderr


def test_a_day_that_is_not_calculated_yet_is_said(folder: Path) -> None:
    write_bill(folder / "cur", [*OCTOBER, line("1", day="2025-10-09", team="search")], assembly="second")
    ran(folder, "run", "--to", "2025-10-09")
    done = prorata(folder, "explain", line_id(folder, "charge_date = '2025-10-09'"))
    assert done.returncode == 2
    assert "its day is not calculated from its newest bill; expected `prorata run` first" in done.stderr


def test_a_line_of_two_tenants_asks_for_one(folder: Path) -> None:
    second = CONFIG.partition("tenants:")[2].replace("id: acme", "id: beta")
    (folder / "prorata.yaml").write_text(CONFIG + second, encoding="utf-8")
    ran(folder, "run")
    (row,) = asked(folder, "SELECT DISTINCT line_id::VARCHAR AS id FROM billing WHERE line_item_type = 'Credit'")
    done = prorata(folder, "explain", row["id"])
    assert done.returncode == 2
    assert "is one of several tenants: acme, beta; expected --tenant with one" in done.stderr
    assert answered(folder, "explain", row["id"], "--tenant", "beta")["tenant_id"] == "beta"


def test_before_the_first_run_there_is_nothing_to_explain(tmp_path: Path) -> None:
    write_all(tmp_path)
    done = prorata(tmp_path, "explain", "12")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_amounts_of_38_digits_are_recomputed_exactly(tmp_path: Path) -> None:
    # results.db has 64 bits for the whole part of an amount.
    config = f"{CONFIG}    emitters: []\n"
    write_all(tmp_path, config=config, lines=[line("1", team="search"), line("98765432109876543210.123456789012")])
    ran(tmp_path, "run")
    found: Any = answered(tmp_path, "explain", line_id(tmp_path, "tags = '{}'"))
    assert (
        found["line"]["amount"] == found["parts"][0]["payers"][0]["recomputed"] == "98765432109876543210.123456789012"
    )
