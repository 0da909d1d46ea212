"""Teams and reports, as processes: another way to look at the same amounts, and what a bad table says."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.sqlfiles import names
from tests.functional.bills import CONFIG, answered, asked, line, prorata, ran, write_all
from tests.integration.killing.stores import store

TEAMS = """    teams:
      default: others
      members:
        - {team: money, id: "pay*"}
        - {team: platform group, name: [platform]}
      tags: [tags.csv]
"""
TAGS = "identity,key,value\nsearch,team,finders\nsearch,cost-center,12\n"


def write_teams(folder: Path, *, teams: str = TEAMS, tags: str = TAGS) -> None:
    (folder / "prorata.yaml").write_text(CONFIG + teams, encoding="utf-8")
    (folder / "tags.csv").write_text(tags, encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was made, without teams; nobody changes it."""
    folder = tmp_path_factory.mktemp("plain")
    write_all(folder)
    ran(folder, "run")
    return folder


@pytest.fixture(scope="module")
def once(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it in which a second run met teams; nobody changes it."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("once") / "copy"))
    write_teams(folder)
    ran(folder, "run")
    return folder


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "copy"))


def chargeback_files(folder: Path) -> dict[str, str]:
    found = store(folder / "out").lake
    return {path: digest for path, digest in found.items() if "teams/" not in path and "tags/" not in path}


def teams_of(folder: Path) -> dict[str, str]:
    rows = asked(folder, "SELECT identity_id, team FROM teams WHERE identity_id <> ''")
    return {row["identity_id"]: row["team"] for row in rows}


def test_a_run_ends_with_costs_by_team_of_the_same_total(tmp_path: Path) -> None:
    write_all(tmp_path)
    write_teams(tmp_path)
    done = prorata(tmp_path, "run", "--by", "team")
    assert done.returncode == 0, done.stderr
    assert "acme: teams: 4 payers in 4 teams" in done.stderr.splitlines()
    table = {row[0]: row[1:] for text in done.stdout.splitlines() if (row := text.split())}
    assert table["money"] == ["70", "3.333333333333", "1.5", "74.833333333333"]
    assert table["finders"] == ["23.5", "6.666666666667", "30.166666666667"]
    assert table["others"] == ["1", "1.5", "2.5"]
    assert table["UNALLOCATED"] == ["0.000000000001", "0.000000000001"]
    assert table["total"][-1] == table["billed"][0] == table["allocated"][0] == "114.500000000001"
    assert table["difference"] == ["0", "USD"]
    by_identity = ran(tmp_path, "recalculate").splitlines()
    by_team = ran(tmp_path, "recalculate", "--by", "team").splitlines()
    assert [text.split() for text in by_team if text.startswith(("total", "billed", "unallocated"))] == [
        text.split() for text in by_identity if text.startswith(("total", "billed", "unallocated"))
    ]


def test_json_has_both_whatever_is_shown(folder: Path) -> None:
    for by in ("identity", "team"):
        (tenant,) = answered(folder, "recalculate", "--by", by)["tenants"]
        mobile = next(row for row in tenant["cost_by_identity"] if row["identity_id"] == "mobile")
        assert (mobile["identity_name"], mobile["team"], mobile["total"]) == ("mobile", "others", "2.5")
        assert [row["team"] for row in tenant["cost_by_team"]] == [
            "money", "finders", "platform group", "others", "UNALLOCATED",
        ]  # fmt: skip
        sums = [sum(Decimal(row["total"]) for row in tenant[f"cost_by_{one}"]) for one in ("identity", "team")]
        assert sums == [Decimal("114.500000000001")] * 2


def test_an_unknown_way_to_look_is_a_usage_error(folder: Path) -> None:
    done = prorata(folder, "run", "--by", "boss")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'boss' is not one of 'identity', 'team'" in done.stderr


def test_teams_change_no_day_no_amount_and_no_digest(plain: Path, once: Path, folder: Path) -> None:
    assert chargeback_files(once) == chargeback_files(plain)
    before = store(once / "out")
    write_teams(folder, teams=TEAMS.replace("money", "purse").replace("others", "rest"), tags=f"{TAGS}mobile,team,x\n")
    done = prorata(folder, "run")
    assert done.stdout == "acme: nothing to do: 3 days up to date\n"
    assert "acme: teams: 4 payers in 4 teams" in done.stderr
    assert teams_of(folder) == {
        "UNALLOCATED": "UNALLOCATED",
        "mobile": "x",
        "payments": "purse",
        "platform": "platform group",
        "search": "finders",
    }
    assert chargeback_files(folder) == chargeback_files(once)
    after = store(folder / "out")
    # Names and teams are another table, and the only one that is another.
    assert after.results | {"payers": ()} == before.results | {"payers": ()}
    assert after.results["payers"] != before.results["payers"]
    (tenant,) = answered(folder, "recalculate")["tenants"]
    assert tenant["outputs_changed"] == 0
    assert chargeback_files(folder) == chargeback_files(once)


def test_teams_that_did_not_change_are_not_derived_again(folder: Path) -> None:
    files = sorted((folder / "out/lake").glob("t*/tenant_id=acme/current.parquet"))
    assert [file.parts[-3] for file in files] == ["tags", "teams"]
    times = [file.stat().st_mtime_ns for file in files]
    (folder / "tags.csv").write_text(TAGS, encoding="utf-8")
    assert prorata(folder, "run").stderr == ""
    assert [file.stat().st_mtime_ns for file in files] == times
    # Another order of rows is another file, and the same tags.
    header, *rows = TAGS.splitlines()
    (folder / "tags.csv").write_text("\n".join([header, *reversed(rows), ""]), encoding="utf-8")
    ran(folder, "run")
    assert [file.stat().st_mtime_ns for file in files] == times


def test_tags_lie_in_the_state_and_in_the_lake_and_go_with_their_rows(folder: Path) -> None:
    expected = [("search", "cost-center", "12"), ("search", "team", "finders")]
    for tags in (TAGS, "identity,key,value\n"):
        (folder / "tags.csv").write_text(tags, encoding="utf-8")
        ran(folder, "run")
        with closing(sqlite3.connect(folder / "out/state.db")) as state:
            assert state.execute("SELECT entity_id, key, value FROM custom_tags").fetchall() == expected
        lake = asked(folder, "SELECT id, key, value FROM tags ORDER BY ALL")
        assert [tuple(row.values()) for row in lake] == expected
        expected = []
    assert teams_of(folder)["search"] == "others"


def test_results_db_knows_the_teams_of_now(folder: Path) -> None:
    def totals() -> list[Any]:
        with closing(sqlite3.connect(folder / "out/results.db")) as results:
            return results.execute("SELECT team, amount FROM chargeback_team_totals ORDER BY 1").fetchall()

    view = "SELECT team, sum(amount) AS amount FROM chargeback_monthly GROUP BY ALL ORDER BY ALL"
    assert totals() == [(row["team"], row["amount"]) for row in asked(folder, view)]
    write_teams(folder, teams=TEAMS.replace("money", "finders"))
    ran(folder, "run")
    assert totals()[1] == ("finders", "105.000000000000")


@pytest.mark.parametrize(
    ("tags", "code", "said"),
    [
        (f"{TAGS}search,team,x\n", 12, "tags.csv:4: key 'team' of 'search' stands in {}/tags.csv:2 already; "),
        (f"{TAGS}mobile,team,\n", 12, "tags.csv:4: column value: value ''; expected a text that is not blank"),
        ("identity,value\n", 12, "tags.csv: column key is missing; expected identity, key, value"),
        ("", 11, "tags.csv: the file is empty; expected a header"),
    ],
)  # fmt: skip
def test_a_bad_tag_table_is_told_by_run_and_check_and_changes_nothing(
    folder: Path, tags: str, code: int, said: str
) -> None:
    before = chargeback_files(folder), teams_of(folder)
    (folder / "tags.csv").write_text(tags, encoding="utf-8")
    for command in ("run", "check"):
        done = prorata(folder, command)
        assert done.returncode == code
        assert said.format(folder) in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (chargeback_files(folder), teams_of(folder)) == before


def test_a_tag_table_that_is_not_there(folder: Path) -> None:
    (folder / "tags.csv").unlink()
    done = prorata(folder, "run")
    assert done.returncode == 11
    assert "tags.csv: cannot be read (No such file or directory); expected a tag table" in done.stderr


def test_a_bad_table_of_teams_is_a_fault_of_the_configuration(folder: Path) -> None:
    rows = "        - {team: lost}\n        - {team: late, id: payments}\n      tags"
    write_teams(folder, teams=TEAMS.replace("      tags", rows))
    done = prorata(folder, "run")
    assert (done.returncode, done.stdout) == (10, "")
    first, second = done.stderr.splitlines()
    assert "tenants[0].teams.members[2]: the row of team 'lost' has neither id nor name" in first
    assert "tenants[0].teams.members[3]: the row of team 'late' can never fit" in second


def test_check_says_what_concerns_nobody(folder: Path) -> None:
    write_teams(folder, teams=TEAMS.replace("platform]", "Platform]"), tags=f"{TAGS}Search,team,x\nnobody,note,x\n")
    said = ran(folder, "check").splitlines()
    assert "ok       acme: 1 tag table: 4 tags" in said
    assert "warning  acme: teams: 1 tagged that no identity is named: 'Search'" in said
    assert "warning  acme: teams: row 2, of team 'platform group', fits no identity yet" in said


HOSTILE = ["=cmd()", "+1", "@SUM(A1)", "-2", "'; DROP TABLE payers; --", '"', "../x", "{}", "$team"]


def test_hostile_teams_are_text_everywhere(tmp_path: Path) -> None:
    write_all(tmp_path, lines=[line("1", team=f"t{number}") for number in range(len(HOSTILE) + 1)])
    tags = io.StringIO()
    rows = [(f"t{number}", "team", team) for number, team in enumerate(HOSTILE)]
    csv.writer(tags).writerows([("identity", "key", "value"), *rows])
    members = f"    teams:\n      members: [{{team: {json.dumps(chr(27) + '[31mred')}, id: t{len(HOSTILE)}}}]\n"
    write_teams(tmp_path, teams=f"{members}      tags: tags.csv\n", tags=tags.getvalue())
    shown = ran(tmp_path, "run", "--by", "team")
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown
    exact = {row["team"] for row in json.loads(ran(tmp_path, "report", "cost_by_team", "--format", "json"))}
    assert exact == {*HOSTILE, "\x1b[31mred"}
    spreadsheet = list(csv.DictReader(io.StringIO(ran(tmp_path, "report", "cost_by_team", "--format", "csv"))))
    written = {row["team"] for row in spreadsheet}
    assert {"'=cmd()", "'+1", "'@SUM(A1)", "'-2", "'; DROP TABLE payers; --"} <= written
    assert not {team for team in written if team[0] in "=+-@"}
    with closing(sqlite3.connect(tmp_path / "out/results.db")) as results:
        teams = {team for (team,) in results.execute("SELECT team FROM chargeback_team_totals")}
    assert teams == exact


# report


@pytest.mark.parametrize("name", names("reports"))
def test_every_report_can_be_asked_for_and_is_named_in_the_help(once: Path, name: str) -> None:
    rows = json.loads(ran(once, "report", name, "--format", "json", "--tenant", "acme"))
    assert rows
    assert {row.get("tenant_id", "acme") for row in rows} == {"acme"}
    assert ran(once, "report", name).startswith("tenant_id")
    assert name in ran(once, "report", "--help")


def test_a_report_is_limited_to_days(once: Path) -> None:
    words = ("report", "cost_by_team", "--format", "json", "--from", "2025-10-02", "--to", "2025-10-03")
    rows = {row["team"]: row["total"] for row in json.loads(ran(once, *words))}
    assert rows == {"money": "41.500000000000", "others": "2.500000000000"}
    done = prorata(once, "report", "cost_by_team", "--from", "2025-10-03", "--to", "2025-10-03")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prorata: --to: 2025-10-03; expected a date after --from, 2025-10-03\n"


def test_a_report_goes_to_a_file_in_every_form(folder: Path) -> None:
    for form in ("csv", "json", "table", "parquet"):
        assert ran(folder, "report", "cost_by_team", "--tenant", "acme", "--format", form, "-o", f"of.{form}") == ""
    assert pl.read_parquet(folder / "of.parquet")["total"].sum() == Decimal("114.500000000001")
    rows = list(csv.DictReader(io.StringIO((folder / "of.csv").read_text(encoding="utf-8"))))
    assert sum(Decimal(row["total"]) for row in rows) == Decimal("114.500000000001")
    done = prorata(folder, "report", "cost_by_team", "--format", "parquet")
    assert done.stderr == "prorata: --format parquet: without --output; expected a file to write\n"


@pytest.mark.parametrize(
    "name", ["", "cost", "../views/billing", "cost_by_team.sql", "SELECT 1", "COST_BY_TEAM", "\x1b[2J"]
)
def test_an_unknown_report_is_a_usage_error_that_lists_them(once: Path, name: str) -> None:
    done = prorata(once, "report", name)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.endswith(f"; expected one of {', '.join(names('reports'))}")
    assert said.isprintable()


def test_the_tenant_of_a_report_is_one_of_the_configuration(once: Path) -> None:
    done = prorata(once, "report", "cost_by_team", "--tenant", "' OR 1 = 1 --")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--tenant: unknown tenant" in done.stderr


def test_a_report_of_no_lake_or_of_a_broken_one_is_the_stores_fault(folder: Path, tmp_path: Path) -> None:
    (file, *_) = (folder / "out/lake/chargeback/tenant_id=acme").glob("*/2025-10-01.parquet")
    file.write_bytes(b"PAR1 not any more PAR1")
    done = prorata(folder, "report", "cost_by_team")
    assert (done.returncode, done.stdout) == (14, "")
    assert done.stderr.startswith("prorata: report cost_by_team: ")
    (tmp_path / "new").mkdir()
    write_all(tmp_path / "new")
    assert prorata(tmp_path / "new", "report", "cost_by_team").returncode == 14
    assert not (tmp_path / "new/out").exists()
