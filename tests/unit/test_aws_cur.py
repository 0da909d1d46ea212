"""AWS Cost and Usage Reports: which files are the bill, what their lines become, and what each bad input says."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from engine.errors import ContractError, SourceError
from engine.frames import BILLING, shape, tag_key
from engine.sources.aws_cur import LINE_KEY, Assembly, Load, discover, fingerprint, load

COST = "lineItem/UnblendedCost"
START = "lineItem/UsageStartDate"
ACCOUNT = "lineItem/UsageAccountId"
TYPE = "lineItem/LineItemType"
CURRENCY = "lineItem/CurrencyCode"
AMOUNT = "lineItem/UsageAmount"
UNIT = "pricing/unit"
TEAM = "resourceTags/user:team"
APP = "resourceTags/user:app"

DEFAULTS = {
    "identity/LineItemId": "x1",
    "bill/InvoiceId": "inv-1",
    "bill/PayerAccountId": "999999999999",
    ACCOUNT: "111111111111",
    TYPE: "Usage",
    START: "2025-10-01T00:00:00Z",
    "lineItem/ProductCode": "AmazonEC2",
    "lineItem/UsageType": "BoxUsage:m5.large",
    "lineItem/Operation": "RunInstances",
    "lineItem/ResourceId": "i-1",
    AMOUNT: "1",
    CURRENCY: "USD",
    COST: "0.1",
    "lineItem/LineItemDescription": "$0.1 per hour",
    "lineItem/LegalEntity": "Amazon Web Services, Inc.",
    "product/productFamily": "Compute Instance",
    "product/region": "us-east-1",
    UNIT: "Hrs",
    "reservation/EffectiveCost": "",
    "savingsPlan/SavingsPlanEffectiveCost": "",
    "resourceTags/aws:createdBy": "somebody",
    APP: "",
    TEAM: "payments",
    "costCategory/env": "prod",
}
MONTH = "20251001-20251101"
Line = dict[str, str]


def line(values: Mapping[str, str] | None = None, **short: str) -> Line:
    """A line with every column, of which some are given."""
    names = {"cost": COST, "start": START, "team": TEAM, "app": APP, "quantity": AMOUNT, "unit": UNIT, "type": TYPE}
    return DEFAULTS | dict(values or {}) | {names[name]: value for name, value in short.items()}


def csv_text(lines: Sequence[Line], names: Sequence[str] = tuple(DEFAULTS)) -> str:
    """The lines as a report has them; names decide which columns and in which order."""
    with tempfile.TemporaryFile("w+", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([entry.get(name, "") for name in names] for entry in lines)
        file.seek(0)
        return file.read()


def write_report(
    root: Path,
    *parts: str | bytes,
    assembly: str = "a1",
    report: str = "cur",
    month: str = MONTH,
    suffix: str = ".csv.gz",
    manifest: Mapping[str, Any] | None = None,
    month_manifest: bool = True,
) -> Path:
    """A month's delivery below root/REPORT/MONTH/ASSEMBLY; gives the folder of the month."""
    folder = root / report / month
    (folder / assembly).mkdir(parents=True, exist_ok=True)
    names = [f"{report}-{number}{suffix}" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        data = part.encode() if isinstance(part, str) else part
        packed = gzip.compress(data) if suffix == ".csv.gz" and isinstance(part, str) else data
        (folder / assembly / name).write_bytes(packed)
    start, end = month.split("-")
    document = {
        "assemblyId": assembly,
        "reportName": report,
        "compression": "GZIP" if suffix == ".csv.gz" else None,
        "billingPeriod": {"start": f"{start}T000000.000Z", "end": f"{end}T000000.000Z"},
        "reportKeys": [f"/prefix/{report}/{month}/{assembly}/{name}" for name in names],
    }
    text = json.dumps({**document, **(manifest or {})})
    (folder / assembly / f"{report}-Manifest.json").write_text(text)
    if month_manifest:
        (folder / f"{report}-Manifest.json").write_text(text)
    return folder


def only(root: Path, report: str | None = None) -> Assembly:
    (assembly,) = discover(root, report)
    return assembly


def loaded(root: Path) -> Load:
    return load(only(root), "acme")


def load_lines(root: Path, *lines: Line) -> Load:
    write_report(root, csv_text(lines))
    return loaded(root)


def source_faults(root: Path, report: str | None = None) -> list[str]:
    with pytest.raises(SourceError) as caught:
        discover(root, report)
    return one_liners(caught.value.faults)


def load_faults(kind: type[SourceError | ContractError], root: Path) -> list[str]:
    with pytest.raises(kind) as caught:
        loaded(root)
    return one_liners(caught.value.faults)


def one_liners(faults: Iterable[str]) -> list[str]:
    faults = list(faults)
    assert all(said.isprintable() for said in faults), faults
    return faults


# --- which files are the bill


def test_an_assembly_per_period_in_the_order_of_periods(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line()]), csv_text([line()]), assembly="b2", month="20251001-20251101")
    write_report(tmp_path, csv_text([line()]), assembly="b1", month="20250901-20251001")
    write_report(tmp_path, csv_text([]), assembly="b3", month="20251201-20260101")
    september, october, december = discover(tmp_path, None)
    folder = tmp_path / "cur" / "20251001-20251101"
    assert october == Assembly(
        billing_period="2025-10",
        assembly_id="b2",
        manifest=folder / "cur-Manifest.json",
        files=(folder / "b2" / "cur-1.csv.gz", folder / "b2" / "cur-2.csv.gz"),
        period_start=date(2025, 10, 1),
        period_end=date(2025, 11, 1),
        warnings=(),
    )
    assert (september.billing_period, december.billing_period) == ("2025-09", "2025-12")
    assert december.period_end == date(2026, 1, 1)


def test_the_folder_may_be_any_above_or_the_month_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    month = write_report(tmp_path / "prefix", csv_text([line()]))
    assert only(tmp_path) == only(month) == only(month.parent)
    monkeypatch.chdir(tmp_path)
    assert only(Path("prefix")) == only(tmp_path)


def test_the_month_folders_manifest_decides_between_assemblies(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line(cost="1")]), assembly="old")
    write_report(tmp_path, csv_text([line(cost="2")]), assembly="effective")
    write_report(tmp_path, csv_text([line(cost="3")]), assembly="zzz-newer", month_manifest=False)
    assert only(tmp_path).assembly_id == "effective"
    assert only(tmp_path).warnings == ()
    assert loaded(tmp_path).amounts == {"USD": Decimal(2)}


def test_without_a_month_manifest_the_newest_assembly_counts_with_a_warning(tmp_path: Path) -> None:
    ages = {"a": 100, "b": 300, "c": 200}
    for assembly, age in ages.items():
        month = write_report(tmp_path, csv_text([line()]), assembly=assembly, month_manifest=False)
        os.utime(month / assembly / "cur-Manifest.json", (age, age))
    assembly = only(tmp_path)
    assert assembly.assembly_id == "b"
    assert assembly.files == (month / "b" / "cur-1.csv.gz",)
    (warning,) = assembly.warnings
    assert str(month) in warning
    assert "assembly b was taken" in warning


def test_of_equally_new_assemblies_the_greatest_id_counts(tmp_path: Path) -> None:
    for assembly in ("b", "c", "a"):
        month = write_report(tmp_path, csv_text([line()]), assembly=assembly, month_manifest=False)
        os.utime(month / assembly / "cur-Manifest.json", (100, 100))
    assert only(tmp_path).assembly_id == "c"


def test_two_reports_for_a_period_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    daily = write_report(tmp_path, csv_text([line()]), report="daily", assembly="d")
    hourly = write_report(tmp_path, csv_text([line()]), report="hourly", assembly="h")
    (said,) = source_faults(tmp_path)
    assert said.startswith("billing period 2025-10: 2 manifests, ")
    assert str(daily / "daily-Manifest.json") in said
    assert str(hourly / "hourly-Manifest.json") in said
    assert "`report:`" in said
    assert only(tmp_path, "hourly").assembly_id == "h"


def test_two_reports_in_one_month_folder_are_refused_too(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    text = (month / "cur-Manifest.json").read_text()
    (month / "other-Manifest.json").write_text(text.replace('"cur"', '"other"'))
    (said,) = source_faults(tmp_path)
    assert "'cur'" in said
    assert "'other'" in said
    assert only(tmp_path, "cur").manifest.name == "cur-Manifest.json"


def test_a_copy_of_a_report_is_refused_even_if_the_report_is_named(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line()]))
    shutil.copytree(tmp_path / "cur", tmp_path / "backup" / "cur")
    (said,) = source_faults(tmp_path, "cur")
    assert "2 manifests" in said


def test_manifests_of_other_reports_may_be_broken(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    (month / "other-Manifest.json").write_text("{")
    assert only(tmp_path, "cur").assembly_id == "a1"
    assert "not JSON" in source_faults(tmp_path)[0]


def test_no_manifest(tmp_path: Path) -> None:
    (said,) = source_faults(tmp_path)
    assert said.startswith(f"{tmp_path}: no manifest; expected REPORT/YYYYMMDD-YYYYMMDD/")
    write_report(tmp_path, csv_text([line()]))
    (said,) = source_faults(tmp_path, "weekly")
    assert "no manifest of report 'weekly'" in said


def test_a_month_with_data_and_no_manifest_is_not_passed_over(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line()]), month="20250901-20251001")
    month = write_report(tmp_path, csv_text([line()]))
    for manifest in month.rglob("*-Manifest.json"):
        manifest.unlink()
    (said,) = source_faults(tmp_path)
    assert said.startswith(f"{month}: data files without a manifest")


def test_a_folder_that_is_not_there_and_one_that_is_a_file(tmp_path: Path) -> None:
    (said,) = source_faults(tmp_path / "nowhere")
    assert "No such file" in said
    (tmp_path / "file").write_text("")
    (said,) = source_faults(tmp_path / "file")
    assert "Not a directory" in said


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_manifest_without_read_permission(public_folder: Path) -> None:
    manifest = write_report(public_folder, csv_text([line()])) / "cur-Manifest.json"
    manifest.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        (said,) = source_faults(public_folder)
    finally:
        os.seteuid(user)
    assert said == f"{manifest}: cannot be read (Permission denied); expected a readable report"


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    (month / "cur-Manifest.json").unlink()
    (month / "cur-Manifest.json").mkdir()
    assert "cannot be read" in source_faults(tmp_path)[0]


def test_files_may_lie_where_the_key_says(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]), csv_text([line()]))
    elsewhere = tmp_path / "prefix" / "cur" / MONTH / "a1"
    elsewhere.mkdir(parents=True)
    (month / "a1" / "cur-2.csv.gz").rename(elsewhere / "cur-2.csv.gz")
    assert only(tmp_path).files == (month / "a1" / "cur-1.csv.gz", elsewhere / "cur-2.csv.gz")


@pytest.mark.parametrize("folder", ["", "a0", ".."])
def test_a_file_of_the_same_name_in_another_folder_is_not_the_part_that_is_missing(tmp_path: Path, folder: str) -> None:
    month = write_report(tmp_path, csv_text([line()]), csv_text([line()]))
    (month / folder).mkdir(exist_ok=True)
    (month / "a1" / "cur-2.csv.gz").rename(month / folder / "cur-2.csv.gz")
    (fault_said,) = source_faults(tmp_path)
    assert "cur-2.csv.gz' is missing" in fault_said


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    month = write_report(tmp_path, *[csv_text([line()])] * 3)
    (month / "a1" / "cur-1.csv.gz").unlink()
    (month / "a1" / "cur-3.csv.gz").unlink()
    first, second = source_faults(tmp_path)
    assert first == (
        f"{month}/cur-Manifest.json: reportKeys: file '/prefix/cur/{MONTH}/a1/cur-1.csv.gz' is missing; "
        "expected all 3 files of the assembly: it is read whole or not at all"
    )
    assert "cur-3.csv.gz" in second


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"assemblyId": None}, "assemblyId: is missing"),
        ({"assemblyId": "../b"}, "assemblyId: value '../b'"),
        ({"assemblyId": 7}, "assemblyId: value 7"),
        ({"reportKeys": []}, "reportKeys: value []"),
        ({"reportKeys": "x.csv.gz"}, "reportKeys: value 'x.csv.gz'"),
        ({"reportKeys": None}, "reportKeys: is missing"),
        ({"reportKeys": [3]}, "reportKeys: value [3]"),
        ({"reportKeys": ["cur/../../etc/x.csv.gz"]}, "key 'cur/../../etc/x.csv.gz'; expected a key that stays"),
        ({"reportKeys": ["cur/\nx.csv.gz"]}, r"key 'cur/\nx.csv.gz'; expected a key that stays"),
        ({"reportKeys": ["cur/x.snappy.parquet"]}, "expected a file that ends in .csv or .csv.gz"),
        ({"reportKeys": ["a1/cur-1.csv.gz", "other/a1/cur-1.csv.gz"]}, "cur-1.csv.gz is listed twice"),
        ({"compression": "ZIP"}, "compression: value 'ZIP'"),
        ({"compression": ["GZIP"]}, "compression: value ['GZIP']"),
        ({"billingPeriod": None}, "billingPeriod: is missing"),
        ({"billingPeriod": "2025-10"}, "billingPeriod: value '2025-10'"),
        ({"billingPeriod": {"start": "20251001T000000.000Z"}}, "billingPeriod: value"),
        ({"billingPeriod": {"start": "20251001", "end": "20251101"}}, "billingPeriod: value"),
        ({"billingPeriod": {"start": "20251001T000000.000Z", "end": "20251002T000000.000Z"}}, "billingPeriod: value"),
        ({"billingPeriod": {"start": "20251301T000000.000Z", "end": "20260101T000000.000Z"}}, "billingPeriod: value"),
        ({"billingPeriod": {"start": "20250901T000000.000Z", "end": "20251001T000000.000Z"}}, "is that of 20250901-"),
    ],
)
def test_an_odd_manifest(tmp_path: Path, manifest: dict[str, Any], said: str) -> None:
    month = write_report(tmp_path, csv_text([line()]), manifest=manifest)
    (fault,) = source_faults(tmp_path)
    assert fault.startswith(f"{month}/cur-Manifest.json: ")
    assert said in fault


@pytest.mark.parametrize("text", ["{", "", "[1]", "\xff", "[" * 100_000])
def test_a_manifest_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    (month / "cur-Manifest.json").write_text(text, encoding="latin-1")
    (said,) = source_faults(tmp_path)
    assert said.startswith(f"{month}/cur-Manifest.json: not ")


def test_all_faults_of_all_manifests_at_once(tmp_path: Path) -> None:
    write_report(tmp_path, manifest={"assemblyId": "", "compression": "ZIP"})
    write_report(tmp_path, csv_text([]), month="20250901-20251001", manifest={"reportKeys": ["gone.csv"]})
    said = "\n".join(source_faults(tmp_path))
    for part in ("assemblyId", "compression", "reportKeys: value []", "'gone.csv' is missing"):
        assert part in said


def test_the_fingerprint_changes_with_the_files_and_the_assembly_only(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    before = fingerprint(only(tmp_path))
    assert fingerprint(only(tmp_path)) == before
    (month / "notes.txt").write_text("x")
    assert fingerprint(only(tmp_path)) == before
    file = month / "a1" / "cur-1.csv.gz"
    os.utime(file, (1, 1))
    touched = fingerprint(only(tmp_path))
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, (1, 1))
    write_report(tmp_path, csv_text([line()]), assembly="a2")
    assert len({before, touched, fingerprint(only(tmp_path))}) == 3
    assembly = only(tmp_path)
    (month / "a2" / "cur-1.csv.gz").unlink()
    with pytest.raises(SourceError, match=r"cur-1\.csv\.gz: cannot be read"):
        fingerprint(assembly)


# --- what lines become


def test_a_line_of_billing(tmp_path: Path) -> None:
    result = load_lines(tmp_path, line(cost="0.25", quantity="2", app='a "b"'))
    shape(result.billing.lazy(), BILLING)
    (row,) = result.billing.iter_rows(named=True)
    assert row == {
        "tenant_id": "acme",
        "charge_date": date(2025, 10, 1),
        "line_id": row["line_id"],
        "ecosystem": "aws",
        "billing_period": "2025-10",
        "env_id": "111111111111",
        "resource_id": "i-1",
        "product_category": "AmazonEC2",
        "product_type": "BoxUsage:m5.large",
        "line_item_type": "Usage",
        "region": "us-east-1",
        "operation": "RunInstances",
        "sub_account_id": "111111111111",
        "invoice_id": "inv-1",
        "quantity": Decimal(2),
        "unit": "Hrs",
        "currency": "USD",
        "tags": '{"app":"a \\"b\\"","team":"payments"}',
        "amount": Decimal("0.25"),
        "effective_amount": None,
        "list_amount": None,
        "contracted_amount": None,
    }
    assert result.amounts == {"USD": Decimal("0.25")}
    assert result.lines == 1
    assert result.residue == 0
    assert result.schema_differences == ()
    assert result.warnings == ()
    (file,) = result.files
    assert file.path == only(tmp_path).files[0]
    assert (file.size, file.mtime_ns) == (file.path.stat().st_size, file.path.stat().st_mtime_ns)
    assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert file.lines == 1


def test_hours_pool_to_days(tmp_path: Path) -> None:
    hours = [line(start=f"2025-10-{day:02d}T{hour:02d}:00:00Z") for day in (1, 2) for hour in range(24)]
    result = load_lines(tmp_path, *hours)
    assert result.billing["charge_date"].to_list() == [date(2025, 10, 1), date(2025, 10, 2)]
    assert result.billing["amount"].to_list() == [Decimal("2.4")] * 2
    assert result.billing["quantity"].to_list() == [Decimal(24)] * 2
    assert result.lines == 48


@pytest.mark.parametrize(
    "name",
    [
        "bill/InvoiceId",
        ACCOUNT,
        TYPE,
        "lineItem/ProductCode",
        "lineItem/UsageType",
        "lineItem/Operation",
        "lineItem/ResourceId",
        CURRENCY,
        "product/region",
        APP,
        TEAM,
    ],
)
def test_each_key_column_makes_a_line_of_its_own(tmp_path: Path, name: str) -> None:
    other = "EUR" if name == CURRENCY else "other"
    result = load_lines(tmp_path, line(), line(), line({name: other}))
    assert sorted(result.billing["amount"]) == [Decimal("0.1"), Decimal("0.2")]
    assert result.billing["line_id"].n_unique() == 2


@pytest.mark.parametrize("name", ["identity/LineItemId", "lineItem/LineItemDescription", "resourceTags/aws:createdBy"])
def test_other_columns_do_not(tmp_path: Path, name: str) -> None:
    assert load_lines(tmp_path, line(), line({name: "other"})).billing.height == 1


def test_the_line_id_is_what_its_definition_says(tmp_path: Path) -> None:
    billing = load_lines(tmp_path, line(team="Zoë 😀\n"), line({"lineItem/ResourceId": ""}), line(cost="7")).billing
    for row in billing.iter_rows(named=True):
        values = [str(row[name]) for name in LINE_KEY]
        key = "".join(f"{len(value.encode())}:{value}," for value in values)
        digest = hashlib.sha256(key.encode()).digest()
        assert row["line_id"] == int.from_bytes(digest[:8], "big", signed=True)


def test_the_line_id_can_be_had_from_duckdb(tmp_path: Path) -> None:
    file = tmp_path / "billing.parquet"
    load_lines(tmp_path, line(team="Zoë 😀\n"), line(start="2025-10-03T00:00:00Z")).billing.write_parquet(file)
    fields = ", ".join(f"{name}::varchar" for name in LINE_KEY)
    differing = duckdb.sql(
        f"""
        with keyed as (
            select line_id, sha256(list_aggregate([strlen(x) || ':' || x || ',' for x in [{fields}]], 'string_agg', ''))
                as digest
            from '{file}'
        )
        select count(*) filter (hex(line_id) <> ltrim(upper(digest[:16]), '0')), count(*) from keyed
        """
    ).fetchall()
    assert differing == [(0, 2)]


def snake(text: str) -> str:
    """The report with the column names of the other dialect."""
    first, rest = text.split("\n", maxsplit=1)
    return ",".join(tag_key(name) for name in first.split(",")) + "\n" + rest


MIXED_LINES = [
    line(
        cost=f"{number}.{number:019d}",
        team=f"team {number % 3}",
        start=f"2025-10-{number % 5 + 1:02d}T0{number % 9}:00:00Z",
    )
    for number in range(40)
]


def test_both_dialects_are_one_report(tmp_path: Path) -> None:
    write_report(tmp_path / "slash", csv_text(MIXED_LINES))
    write_report(tmp_path / "snake", snake(csv_text(MIXED_LINES)))
    slash, snaky = loaded(tmp_path / "slash"), loaded(tmp_path / "snake")
    assert_frame_equal(slash.billing, snaky.billing)
    assert slash._replace(billing=snaky.billing, files=()) == snaky._replace(files=())
    assert slash.billing.height == 15


def test_the_order_of_lines_files_and_columns_does_not_matter(tmp_path: Path) -> None:
    write_report(tmp_path / "whole", csv_text(MIXED_LINES))
    expected = loaded(tmp_path / "whole")
    shuffled = random.Random(1).sample(MIXED_LINES, len(MIXED_LINES))
    names = random.Random(2).sample(list(DEFAULTS), len(DEFAULTS))
    parts = [csv_text(shuffled[start : start + 9], names) for start in range(0, 40, 9)]
    write_report(tmp_path / "parts", *parts)
    write_report(tmp_path / "plain", *reversed(parts), suffix=".csv")
    for other in (loaded(tmp_path / "parts"), loaded(tmp_path / "plain")):
        assert_frame_equal(other.billing, expected.billing)
        assert other.residue == expected.residue
        assert [file.lines for file in other.files] in ([9, 9, 9, 9, 4], [4, 9, 9, 9, 9])


@pytest.mark.parametrize(
    "start",
    [
        "2025-10-01T00:00:00Z",
        "2025-10-01 00:00:00+00:00",
        "2025-10-01T23:59:59.999Z",
        "2025-10-01T00:00:00.000000+00:00",
        "2025-10-01 07:00:00Z",
    ],
)
def test_ways_to_write_a_time(tmp_path: Path, start: str) -> None:
    assert load_lines(tmp_path, line(start=start)).billing["charge_date"].to_list() == [date(2025, 10, 1)]


@pytest.mark.parametrize(
    ("cost", "amount"),
    [
        ("4e-07", "0.0000004"),
        ("1.5E+3", "1500"),
        ("-3", "-3"),
        ("+0.5", "0.5"),
        (".5", "0.5"),
        ("0", "0"),
        ("-0.0", "0"),
        ("99999999999999999999999999", "99999999999999999999999999"),
        ("-99999999999999999999999999.999999999999", "-99999999999999999999999999.999999999999"),
        ("0.1234567890125", "0.123456789012"),
        ("0.1234567890135", "0.123456789014"),
    ],
)
def test_ways_to_write_an_amount(tmp_path: Path, cost: str, amount: str) -> None:
    assert load_lines(tmp_path, line(cost=cost)).billing["amount"].to_list() == [Decimal(amount)]


def test_what_rounding_moved_is_recorded(tmp_path: Path) -> None:
    costs = ["0.1234567890123456789", "0.0000000000006", "0.0000000000016", "-1.0000000000004", "2"]
    result = load_lines(tmp_path, *(line(cost=cost, app=cost) for cost in costs))
    total = sum((Decimal(cost) for cost in costs), Decimal(0))
    assert result.amounts["USD"] + result.residue == total
    assert result.residue == Decimal("-0.0000000000008543211")


@hypothesis_settings(max_examples=30)
@given(
    st.lists(
        st.decimals(min_value=-(10**12), max_value=10**12, places=19, allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=20,
    )
)
def test_amounts_and_residue_are_the_exact_sum(costs: list[Decimal]) -> None:
    with tempfile.TemporaryDirectory() as folder, localcontext(prec=60):
        result = load_lines(Path(folder), *(line(cost=str(cost)) for cost in costs))
        assert result.amounts["USD"] + result.residue == sum(costs, Decimal(0))


def test_a_residue_that_cannot_be_held_is_said(tmp_path: Path) -> None:
    result = load_lines(tmp_path, line(cost="123456789012345.0000000000004"), line(cost="0.0000000000001"))
    assert result.residue == Decimal("0.0000000000001")
    assert result.warnings == ("billing period 2025-10: 1 line(s) of 1e14 or more have no rounding residue",)


def test_credits_refunds_taxes_and_fees_are_lines_like_others(tmp_path: Path) -> None:
    types = {
        "Usage": "10",
        "Credit": "-2.5",
        "Refund": "-10",
        "Tax": "1.9",
        "Fee": "100",
        "RIFee": "0",
        "EdpDiscount": "-1",
    }
    billing = load_lines(tmp_path, *(line(type=kind, cost=cost) for kind, cost in types.items())).billing
    assert dict(billing.select("line_item_type", "amount").iter_rows()) == {k: Decimal(v) for k, v in types.items()}


def test_currencies_are_kept_apart(tmp_path: Path) -> None:
    result = load_lines(tmp_path, line(), line({CURRENCY: "EUR"}, cost="0.7"), line())
    assert result.amounts == {"EUR": Decimal("0.7"), "USD": Decimal("0.2")}
    assert list(result.amounts) == ["EUR", "USD"]
    assert result.billing.height == 2


def test_dates_outside_the_month_stay_and_are_counted(tmp_path: Path) -> None:
    days = ["2025-09-30", "2025-09-30", "2025-10-01", "2025-10-31", "2025-11-01", "2025-11-02"]
    result = load_lines(tmp_path, *(line(start=f"{day}T05:00:00Z") for day in days))
    assert result.days_outside_period == 3
    assert result.warnings == ("billing period 2025-10: 3 charge date(s) outside the month are kept in its bill",)
    assert set(result.billing["billing_period"]) == {"2025-10"}
    assert result.lines == 6


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_an_empty_month_has_no_lines(tmp_path: Path, suffix: str) -> None:
    write_report(tmp_path, csv_text([]), csv_text([]).rstrip("\n"), suffix=suffix)
    result = loaded(tmp_path)
    assert result.billing.height == 0
    shape(result.billing.lazy(), BILLING)
    assert (result.lines, result.amounts, result.residue, result.days_outside_period) == (0, {}, 0, 0)
    assert [file.lines for file in result.files] == [0, 0]


def test_one_part_may_be_empty(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([]), csv_text([line()]))
    assert [file.lines for file in loaded(tmp_path).files] == [0, 1]


TAG_TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@hypothesis_settings(max_examples=40)
@given(st.lists(st.tuples(TAG_TEXTS, TAG_TEXTS), min_size=1, max_size=8))
def test_tags_are_canonical_json(tags: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        billing = load_lines(Path(folder), *(line(team=team, app=app) for team, app in tags)).billing
    named = [{key: value for key, value in (("team", team), ("app", app)) if value} for team, app in tags]
    expected = {json.dumps(pair, ensure_ascii=False, separators=(",", ":"), sort_keys=True) for pair in named}
    assert set(billing["tags"]) == expected
    assert billing.height == len(expected)


def test_nasty_tag_values_are_values(tmp_path: Path) -> None:
    values = ['say "hi"', "two\nlines", "../../etc", "=cmd()|'/c'!A1", "a,b", "\\", "\x00\x1f", " ", "None", "{}"]
    billing = load_lines(tmp_path, *(line(team=value) for value in values)).billing
    assert {json.loads(tags)["team"] for tags in billing["tags"]} == set(values)


def test_a_line_without_tags_and_a_report_without_tag_columns(tmp_path: Path) -> None:
    assert load_lines(tmp_path / "a", line(team="")).billing["tags"].to_list() == ["{}"]
    names = [name for name in DEFAULTS if not name.startswith("resourceTags/")]
    write_report(tmp_path / "b", csv_text([line()], names))
    result = loaded(tmp_path / "b")
    assert result.billing["tags"].to_list() == ["{}"]
    assert result.schema_differences == ("recommended columns resourceTags/user:* (resource_tags_user_*) are missing",)


def test_columns_of_one_tag_give_the_first_value_that_is_not_empty(tmp_path: Path) -> None:
    names = [*DEFAULTS, "resourceTags/user:Team", "resourceTags/user:Cost-Center"]
    lines = [
        line({"resourceTags/user:Team": "b", "resourceTags/user:Cost-Center": "9"}, team="c"),
        line({"resourceTags/user:Team": ""}, team="c"),
        line({"resourceTags/user:Team": "b"}, team=""),
    ]
    write_report(tmp_path, csv_text(lines, names))
    result = loaded(tmp_path)
    assert sorted(result.billing["tags"]) == ['{"cost_center":"9","team":"b"}', '{"team":"b"}', '{"team":"c"}']
    (said,) = result.schema_differences
    assert said.startswith("columns 'resourceTags/user:Team', 'resourceTags/user:team' are one tag, team: the first")


def test_only_user_tags_are_the_customers(tmp_path: Path) -> None:
    (tags,) = load_lines(tmp_path, line()).billing["tags"]
    assert tags == '{"team":"payments"}'


def test_optional_columns_may_say_none(tmp_path: Path) -> None:
    blank = {"lineItem/ResourceId": "None", "lineItem/Operation": "None", "bill/InvoiceId": "None", UNIT: "None"}
    empty = dict.fromkeys(blank, "")
    billing = load_lines(tmp_path, line(blank), line(empty)).billing
    assert billing.select("resource_id", "operation", "invoice_id", "unit").rows() == [("", "", "", "")]


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    required = [ACCOUNT, START, TYPE, "lineItem/ProductCode", "lineItem/UsageType", COST, CURRENCY]
    write_report(tmp_path, csv_text([line()], [*required, "extra", "resource_tags"]))
    result = loaded(tmp_path)
    (row,) = result.billing.iter_rows(named=True)
    assert (row["resource_id"], row["operation"], row["invoice_id"], row["region"], row["unit"]) == ("",) * 5
    assert row["quantity"] is None
    assert result.schema_differences == (
        "recommended column lineItem/ResourceId (line_item_resource_id) is missing",
        "recommended column lineItem/Operation (line_item_operation) is missing",
        "recommended column bill/InvoiceId (bill_invoice_id) is missing",
        "recommended column product/region (product_region) is missing",
        "recommended column product/regionCode (product_region_code) is missing",
        "recommended column pricing/unit (pricing_unit) is missing",
        "recommended column lineItem/UsageAmount (line_item_usage_amount) is missing",
        "recommended column bill/PayerAccountId (bill_payer_account_id) is missing",
        "recommended column lineItem/LegalEntity (line_item_legal_entity) is missing",
        "recommended column lineItem/LineItemDescription (line_item_line_item_description) is missing",
        "recommended column product/productFamily (product_product_family) is missing",
        "recommended column savingsPlan/SavingsPlanEffectiveCost (savings_plan_savings_plan_effective_cost) is missing",
        "recommended column reservation/EffectiveCost (reservation_effective_cost) is missing",
        "recommended columns resourceTags/user:* (resource_tags_user_*) are missing",
        "recommended columns costCategory/* (cost_category_*) are missing",
        "column 'extra' is of no known kind",
        "column 'resource_tags' is of no known kind",
    )


def test_product_code_and_usage_type_may_be_blank(tmp_path: Path) -> None:
    billing = load_lines(tmp_path, line({"lineItem/ProductCode": "", "lineItem/UsageType": ""}, type="Tax")).billing
    assert billing.select("product_category", "product_type").rows() == [("", "")]


def test_the_region_is_the_code_where_there_is_no_name(tmp_path: Path) -> None:
    names = [*DEFAULTS, "product/regionCode"]
    lines = [
        line({"product/region": region, "product/regionCode": code})
        for region, code in (("eu-west-1", "us-east-1"), ("", "us-east-1"), ("None", "ap-1"), ("None", "None"))
    ]
    write_report(tmp_path, csv_text(lines, names))
    assert sorted(loaded(tmp_path).billing["region"]) == ["", "ap-1", "eu-west-1", "us-east-1"]
    write_report(tmp_path / "code", csv_text(lines, [name for name in names if name != "product/region"]))
    assert sorted(loaded(tmp_path / "code").billing["region"]) == ["", "ap-1", "us-east-1"]


def test_quantities(tmp_path: Path) -> None:
    quantities = {"a": ["1.5", "2"], "b": ["", "None"], "c": ["", "4"], "d": ["convertible", "1e309"], "e": ["-1", "0"]}
    lines = [line(app=app, quantity=quantity) for app, several in quantities.items() for quantity in several]
    result = load_lines(tmp_path, *lines)
    by_app = {
        json.loads(tags)["app"]: quantity for tags, quantity in result.billing.select("tags", "quantity").iter_rows()
    }
    assert by_app == {"a": Decimal("3.5"), "b": None, "c": Decimal(4), "d": None, "e": Decimal(-1)}
    assert result.warnings == (
        "billing period 2025-10: 2 line(s) whose lineItem/UsageAmount is no number have no quantity",
    )


def test_mixed_units_have_no_quantity(tmp_path: Path) -> None:
    lines = [line(unit="Hrs"), line(unit="GB"), line(unit="Hrs", app="x"), line(unit="Hrs", app="x")]
    billing = load_lines(tmp_path, *lines).billing.sort("tags")
    assert billing.select("unit", "quantity", "amount").rows() == [
        ("Hrs", Decimal(2), Decimal("0.2")),
        ("", None, Decimal("0.2")),
    ]


def test_many_lines_with_line_breaks_and_commas_in_quotes(tmp_path: Path) -> None:
    lines = [
        line(
            {"lineItem/LineItemDescription": f'{"x" * (number % 70)},\n"{number}"\n'},
            cost="0.01",
            app=f"a{number % 7}\n",
        )
        for number in range(30_000)
    ]
    result = load_lines(tmp_path, *lines)
    assert result.lines == 30_000
    assert result.amounts == {"USD": Decimal(300)}
    assert result.billing.height == 7


def test_windows_line_ends_byte_order_mark_and_no_last_line_end(tmp_path: Path) -> None:
    text = csv_text([line(), line(cost="0.2", app="x")])
    write_report(tmp_path / "a", "\ufeff" + text.replace("\n", "\r\n"))
    write_report(tmp_path / "b", text.removesuffix("\n"))
    names = [name for name in DEFAULTS if name != APP] + [APP]
    write_report(tmp_path / "c", csv_text([line(app="x", cost="0.2"), line()], names).removesuffix("\n"))
    first = loaded(tmp_path / "a").billing
    assert first.height == 2
    assert_frame_equal(loaded(tmp_path / "b").billing, first)
    assert_frame_equal(loaded(tmp_path / "c").billing, first)


# --- what each bad input says

NUMBER = "a decimal number of at most 26 digits before the point"
TIME = "a UTC time such as 2025-10-01T00:00:00Z"


def test_missing_required_columns_are_named_with_file_and_manifest(tmp_path: Path) -> None:
    names = [name for name in DEFAULTS if name not in {COST, CURRENCY}]
    broken = "\n".join([csv_text([], names).strip(), "not,a,line"])
    month = write_report(tmp_path, broken)
    cost, currency = load_faults(ContractError, tmp_path)
    assert cost == (
        f"{month}/a1/cur-1.csv.gz (of {month}/cur-Manifest.json): column lineItem/UnblendedCost "
        "(line_item_unblended_cost) is missing; expected every required column"
    )
    assert "lineItem/CurrencyCode (line_item_currency_code)" in currency


def test_two_columns_that_are_one(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line()], [*DEFAULTS, "line_item_unblended_cost"]))
    (said,) = load_faults(ContractError, tmp_path)
    assert "columns 'lineItem/UnblendedCost', 'line_item_unblended_cost' are the same" in said


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        ([name for name in DEFAULTS if name != TEAM], "(without 'resourceTags/user:team')"),
        ([*DEFAULTS, "new"], "(with 'new')"),
        (["x/y", *list(DEFAULTS)[1:]], "(without 'identity/LineItemId', with 'x/y')"),
        (list(reversed(DEFAULTS)), "(its columns are in another order or repeat)"),
    ],
)
def test_a_header_that_differs_between_parts(tmp_path: Path, names: list[str], seen: str) -> None:
    month = write_report(tmp_path, csv_text([line()]), csv_text([line()], names))
    (said,) = load_faults(ContractError, tmp_path)
    assert said == (
        f"{month}/a1/cur-2.csv.gz: its header differs from that of {month}/a1/cur-1.csv.gz {seen}; "
        "expected one header in all files of an assembly"
    )


@pytest.mark.parametrize(
    "cost",
    ["", "abc", "NaN", "inf", "1e309", "100000000000000000000000000", " 1", "1,5", "0x1", "1_000", "None", "--1"],
)
def test_a_bad_cost(tmp_path: Path, cost: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line(cost=cost)]))
    assert load_faults(ContractError, tmp_path) == [
        f"{month}/a1/cur-1.csv.gz:3: column lineItem/UnblendedCost: value {cost!r}; expected {NUMBER}"
    ]


@pytest.mark.parametrize(
    "start",
    [
        "",
        "2025-10-01",
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-10-01T24:00:00Z",
        "2025-10-01T00:00:00",
        "2025-10-01T00:00:00+02:00",
        "2025-10-01T00:00:00Z\n",
        "0000-10-01T00:00:00Z",
        "01/10/2025",
        "٢025-10-01T00:00:00Z",
    ],
)
def test_a_bad_time(tmp_path: Path, start: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line(start=start)]))
    assert load_faults(ContractError, tmp_path) == [
        f"{month}/a1/cur-1.csv.gz:3: column lineItem/UsageStartDate: value {start!r}; expected {TIME}"
    ]


@pytest.mark.parametrize("value", ["", "  ", "usd", "USD ", "../x", "=1", "USDT", "USD\n"])
def test_a_currency_that_is_none(tmp_path: Path, value: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line({CURRENCY: value})]), suffix=".csv")
    assert load_faults(ContractError, tmp_path) == [
        f"{month}/a1/cur-1.csv:3: column {CURRENCY}: value {value!r}; expected three capital letters, such as USD"
    ]


@pytest.mark.parametrize("tail", [b"\0" * 512, b"junk", b"\0junk"])
def test_something_behind_gzip_data(tmp_path: Path, tail: bytes) -> None:
    write_report(tmp_path, gzip.compress(csv_text([line()]).encode()) + tail)
    (said,) = load_faults(SourceError, tmp_path)
    assert "cur-1.csv.gz: the gzip data are damaged (" in said


@pytest.mark.parametrize("name", [ACCOUNT, TYPE])
@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_in_a_required_column(tmp_path: Path, name: str, value: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line({name: value})]), suffix=".csv")
    assert load_faults(ContractError, tmp_path) == [
        f"{month}/a1/cur-1.csv:3: column {name}: value {value!r}; expected a text that is not blank"
    ]


def test_faults_name_the_columns_as_the_file_does(tmp_path: Path) -> None:
    write_report(tmp_path, snake(csv_text([line(cost="x")])))
    (said,) = load_faults(ContractError, tmp_path)
    assert "column line_item_unblended_cost: value 'x'" in said


def test_all_faults_of_a_line_and_of_all_files(tmp_path: Path) -> None:
    month = write_report(
        tmp_path,
        csv_text([line({CURRENCY: ""}, cost="x", start="y")]),
        csv_text([line()]),
        csv_text([line(), line(cost="z")]),
    )
    faults = load_faults(ContractError, tmp_path)
    assert [said.split("; ")[0] for said in faults] == [
        f"{month}/a1/cur-1.csv.gz:2: column lineItem/CurrencyCode: value ''",
        f"{month}/a1/cur-1.csv.gz:2: column lineItem/UnblendedCost: value 'x'",
        f"{month}/a1/cur-1.csv.gz:2: column lineItem/UsageStartDate: value 'y'",
        f"{month}/a1/cur-3.csv.gz:3: column lineItem/UnblendedCost: value 'z'",
    ]


def test_physical_lines_count_line_breaks_in_quotes(tmp_path: Path) -> None:
    fine = line({"lineItem/LineItemDescription": 'three\n"physical"\nlines'})
    lines = [line(cost="abc") if number % 5_000 == 4_999 else fine for number in range(20_000)]
    month = write_report(tmp_path, csv_text(lines))
    numbers = [
        int(said.removeprefix(f"{month}/a1/cur-1.csv.gz:").split(":")[0])
        for said in load_faults(ContractError, tmp_path)
    ]
    text = csv_text(lines).split("\n")
    assert [number for number, content in enumerate(text, start=1) if ",abc," in content] == numbers
    assert numbers[0] == 1 + 3 * 4_999 + 1


def test_many_faults_are_counted(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line(cost=f"bad{number}", start="") for number in range(1_000)]))
    faults = load_faults(ContractError, tmp_path)
    assert len(faults) == 21
    assert ":2: column lineItem/UnblendedCost: value 'bad0'" in faults[0]
    assert ":11: column" in faults[19]
    assert faults[20] == "... and 1980 more"


@pytest.mark.parametrize("cost", ["60000000000000000000000000", "-60000000000000000000000000"])
@pytest.mark.parametrize("parts", [1, 2])
def test_amounts_whose_sum_could_wrap(tmp_path: Path, cost: str, parts: int) -> None:
    lines = [line(cost=cost), line(cost=cost)]
    month = write_report(tmp_path, *([csv_text(lines)] if parts == 1 else [csv_text([entry]) for entry in lines]))
    (said,) = load_faults(ContractError, tmp_path)
    assert said.startswith(f"{month}/cur-Manifest.json: column lineItem/UnblendedCost: 2 amounts of up to")


def test_quantities_whose_sum_could_wrap(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line(quantity="6e25"), line(quantity="6e25")]))
    (said,) = load_faults(ContractError, tmp_path)
    assert "column lineItem/UsageAmount: 2 amounts of up to" in said


@pytest.mark.parametrize("cut", [1, 4, 8, 30])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(csv_text([line()] * 5_000).encode())
    month = write_report(tmp_path, packed[:-cut])
    assert load_faults(SourceError, tmp_path) == [
        f"{month}/a1/cur-1.csv.gz: the gzip data end too soon; expected a whole file"
    ]


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(csv_text([line()] * 5_000).encode()))
    packed[-6] ^= 1
    month = write_report(tmp_path, bytes(packed))
    (said,) = load_faults(SourceError, tmp_path)
    assert said.startswith(f"{month}/a1/cur-1.csv.gz: the gzip data are damaged (CRC check failed")


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    head, *rest = csv_text([line()] * 3).splitlines(keepends=True)
    write_report(tmp_path, gzip.compress((head + rest[0]).encode()) + gzip.compress("".join(rest[1:]).encode()))
    assert loaded(tmp_path).lines == 3


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        (".csv.gz", csv_text([line()]).encode(), "not gzip; expected what the name ends in"),
        (".csv", gzip.compress(csv_text([line()]).encode()), "gzip; expected plain text, or a name that ends in .gz"),
        (".csv", b"", "the file is empty; expected a header"),
        (".csv.gz", b"", "the file is empty; expected a header"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, suffix: str, data: bytes, said: str) -> None:
    month = write_report(tmp_path, data, suffix=suffix)
    assert load_faults(SourceError, tmp_path) == [f"{month}/a1/cur-1{suffix}: {said}"]


def test_a_part_that_is_a_folder(tmp_path: Path) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    assembly = only(tmp_path)
    (month / "a1" / "cur-1.csv.gz").unlink()
    (month / "a1" / "cur-1.csv.gz").mkdir()
    with pytest.raises(SourceError, match="Is a directory"):
        load(assembly, "acme")


@pytest.mark.parametrize("extra", ["", "x", '"a,b"', ",,"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_lines_that_are_too_long(tmp_path: Path, extra: str, suffix: str) -> None:
    head, first, second, third, _ = (
        csv_text([line(app="two\nlines")] * 2 + [line()]).replace("two\nlines", "two\\lines").split("\n")
    )
    text = "\n".join([head, first, f"{second},{extra}", third, ""]).replace("two\\lines", "two lines")
    month = write_report(tmp_path, text, suffix=suffix)
    count = 26 if extra == ",," else 25
    count += extra == ",,"
    assert load_faults(ContractError, tmp_path) == [
        f"{month}/a1/cur-1{suffix}:3: {count} fields; expected 24, as in the header"
    ]


def test_a_comma_that_should_be_in_quotes(tmp_path: Path) -> None:
    text = csv_text([line(), line()]).replace('"Amazon Web Services, Inc."', "Amazon Web Services, Inc.", 1)
    write_report(tmp_path, text)
    (said,) = load_faults(ContractError, tmp_path)
    assert ":2: 25 fields; expected 24" in said


AWS_ORDER = {
    "identity/LineItemId": "x1", "identity/TimeInterval": "2025-10-01T00:00:00Z/2025-10-01T01:00:00Z",
    "bill/InvoiceId": "inv-1", "bill/BillingEntity": "AWS", "bill/BillType": "Anniversary",
    "bill/PayerAccountId": "999999999999", "bill/BillingPeriodStartDate": "2025-10-01T00:00:00Z",
    "bill/BillingPeriodEndDate": "2025-11-01T00:00:00Z", ACCOUNT: "111111111111", TYPE: "Usage",
    START: "2025-10-01T00:00:00Z", "lineItem/UsageEndDate": "2025-10-01T01:00:00Z",
    "lineItem/ProductCode": "AmazonEC2", "lineItem/UsageType": "BoxUsage:m5.large",
    "lineItem/Operation": "RunInstances", "lineItem/AvailabilityZone": "us-east-1a", "lineItem/ResourceId": "i-1",
    AMOUNT: "1", "lineItem/NormalizationFactor": "4", "lineItem/NormalizedUsageAmount": "4", CURRENCY: "USD",
    "lineItem/UnblendedRate": "0.2", COST: "0.1", "lineItem/BlendedRate": "0.3", "lineItem/BlendedCost": "0.4",
    "lineItem/LineItemDescription": "$0.1 per hour", "lineItem/TaxType": "", "lineItem/LegalEntity": "Amazon",
    "product/region": "us-east-1", UNIT: "Hrs", APP: "shop", TEAM: "payments", "resourceTags/user:version": "",
}  # fmt: skip
"""The columns in the order in which AWS writes them."""


def uneven(folder: Path, *lines: Sequence[str]) -> list[tuple[int, int]]:
    """Line and number of fields of each fault of a report of a whole line and these, of as many fields in all."""
    whole = list(AWS_ORDER.values())
    assert sum(len(fields) for fields in lines) == len(lines) * len(whole)
    text = "\n".join(",".join(fields) for fields in (AWS_ORDER, whole, *lines)) + "\n"
    where = re.escape(str(write_report(folder, text, suffix=".csv") / "a1" / "cur-1.csv"))
    said = re.compile(rf"{where}:(\d+): (\d+) fields; expected {len(whole)}, as in the header")
    found = [said.fullmatch(fault_) for fault_ in load_faults(ContractError, folder)]
    return [(int(match[1]), int(match[2])) for match in found if match]


def test_a_field_too_few_here_and_one_too_many_there(tmp_path: Path) -> None:
    """Wherever it is missing and wherever it is too much: not every shifted value is of a wrong kind."""
    whole = list(AWS_ORDER.values())
    width = len(whole)
    for place in range(width):
        fewer, more = [*whole[:place], *whole[place + 1 :]], [*whole[:place], "x", *whole[place:]]
        extra = ("", "x", '""', '"a,b"', '"a ""b"", c"')[place % 5]
        assert uneven(tmp_path, fewer, whole, [*whole, extra]) == [(3, width - 1), (5, width + 1)]
        assert uneven(tmp_path, more, whole[:-1]) == [(3, width + 1), (4, width - 1)]


def test_a_line_break_in_another_place(tmp_path: Path) -> None:
    whole = list(AWS_ORDER.values())
    width = len(whole)
    for place in range(1, width):
        assert uneven(tmp_path, whole[:place], [*whole[place:], *whole]) == [(3, place), (4, 2 * width - place)]


@pytest.mark.parametrize("tail", ["111111111111,Usage", "", "\n"])
def test_lines_that_are_too_short(tmp_path: Path, tail: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line()]) + tail + "\n", suffix=".csv")
    faults = load_faults(ContractError, tmp_path)
    assert faults[0].startswith(
        f"{month}/a1/cur-1.csv:4: {len(tail.split(',')) if tail.strip() else 0} fields; expected 24"
    )


def test_many_lines_that_are_too_long_are_counted(tmp_path: Path) -> None:
    head, *lines = csv_text([line()] * 100).strip().split("\n")
    write_report(tmp_path, "\n".join([head, *(f"{text},more" for text in lines)]))
    faults = load_faults(ContractError, tmp_path)
    assert (len(faults), faults[-1]) == (21, "... and 80 more")


def test_not_utf_8(tmp_path: Path) -> None:
    data = csv_text([line(), line(team="Zoë"), line()]).encode("latin-1")
    month = write_report(tmp_path, gzip.compress(data))
    assert load_faults(ContractError, tmp_path) == [f"{month}/a1/cur-1.csv.gz:3: bytes eb; expected UTF-8"]


def test_a_header_that_is_not_utf_8(tmp_path: Path) -> None:
    write_report(tmp_path, csv_text([line()]).replace("user:app", "user:appé").encode("latin-1"), suffix=".csv")
    (said,) = load_faults(ContractError, tmp_path)
    assert "cur-1.csv:1: bytes e9; expected UTF-8" in said


@pytest.mark.parametrize("text", ['5" disk', '"5" disk', '"never closed'])
def test_quotes_where_none_may_be(tmp_path: Path, text: str) -> None:
    month = write_report(tmp_path, csv_text([line(), line()]).replace("i-1", text, 1))
    for said in load_faults(ContractError, tmp_path):
        assert said.startswith(f"{month}/a1/cur-1.csv.gz:")


def test_parts_in_both_dialects(tmp_path: Path) -> None:
    text = csv_text([line()])
    write_report(tmp_path, text, snake(text))
    (said,) = load_faults(ContractError, tmp_path)
    assert "(without 'identity/LineItemId', without 'bill/InvoiceId', " in said
    assert "... and 28 more" in said


def test_broken_files_and_bad_values_are_told_together(tmp_path: Path) -> None:
    """File by file, as an error of the kind of the first."""
    packed = gzip.compress(csv_text([line()] * 5_000).encode())
    bad = gzip.compress(csv_text([line(cost="x")]).encode())
    write_report(tmp_path / "value", bad, packed[:-9], packed[:-9])
    faults = load_faults(ContractError, tmp_path / "value")
    assert [fault.partition("cur-")[2][:1] for fault in faults] == ["1", "2", "3"]
    write_report(tmp_path / "file", packed[:-9], bad)
    faults = load_faults(SourceError, tmp_path / "file")
    assert ["too soon" in faults[0], "value 'x'" in faults[1], len(faults)] == [True, True, 2]


def test_another_header_hides_no_bad_value_and_no_broken_file(tmp_path: Path) -> None:
    packed = gzip.compress(csv_text([line()] * 5_000).encode())
    other = csv_text([line()]).replace("lineItem/Operation", "lineItem/Other")
    assert other != csv_text([line()])
    bad = csv_text([line(cost="x")])
    write_report(tmp_path, packed[:-9], *(gzip.compress(text.encode()) for text in (other, bad)), b"")
    faults = load_faults(SourceError, tmp_path)
    assert [fault.partition("cur-")[2][:1] for fault in faults] == ["1", "2", "3", "4"]
    told = ["too soon", "its header differs", "value 'x'", "the file is empty"]
    assert [text in fault for text, fault in zip(told, faults, strict=True)] == [True] * 4


# --- files that change while they are read


@pytest.fixture
def during_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is put into the list is called once, in the middle of a load: when the first file's digest is taken."""
    pending: list[Any] = []
    digest = hashlib.file_digest

    def interrupted(*arguments: Any) -> Any:
        while pending:
            pending.pop()()
        return digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", interrupted)
    yield pending
    assert pending == []


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_file_that_grows_while_it_is_read(tmp_path: Path, during_load: list[Any], suffix: str) -> None:
    month = write_report(tmp_path, csv_text([line()]), csv_text([line()]), suffix=suffix)
    file = month / "a1" / f"cur-2{suffix}"
    more = ("\n".join(csv_text([line()] * 3).split("\n")[1:])).encode()
    before = file.stat().st_size

    def grow() -> None:
        with file.open("ab") as opened:
            opened.write(gzip.compress(more) if suffix == ".csv.gz" else more)

    during_load.append(grow)
    (said,) = load_faults(SourceError, tmp_path)
    assert said == (
        f"{file}: changed while it was read ({before} bytes before, {file.stat().st_size} after); "
        "expected a finished delivery"
    )


def test_a_file_that_is_replaced_by_another_of_its_size(tmp_path: Path, during_load: list[Any]) -> None:
    month = write_report(tmp_path, csv_text([line(cost="1")]), suffix=".csv")
    file = month / "a1" / "cur-1.csv"

    def replace() -> None:
        state = file.stat()
        other = tmp_path / "other.csv"
        other.write_text(csv_text([line(cost="2")]))
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.replace(file)

    during_load.append(replace)
    (said,) = load_faults(SourceError, tmp_path)
    assert f"{file}: changed while it was read" in said


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, during_load: list[Any]) -> None:
    month = write_report(tmp_path, csv_text([line()] * 2_000))
    file = month / "a1" / "cur-1.csv.gz"
    during_load.append(lambda: file.write_bytes(file.read_bytes()[:-100]))
    (said,) = load_faults(SourceError, tmp_path)
    assert f"{file}: changed while it was read" in said


def test_a_file_that_goes_while_it_is_read(tmp_path: Path, during_load: list[Any]) -> None:
    month = write_report(tmp_path, csv_text([line()]))
    file = month / "a1" / "cur-1.csv.gz"
    during_load.append(file.unlink)
    (said,) = load_faults(SourceError, tmp_path)
    assert said.startswith(f"{file}: cannot be read (No such file")


def test_billing_is_sorted_by_its_key(tmp_path: Path) -> None:
    billing = load_lines(tmp_path, *MIXED_LINES).billing
    assert_frame_equal(billing, billing.sort(BILLING.key))
    assert isinstance(billing, pl.DataFrame)
