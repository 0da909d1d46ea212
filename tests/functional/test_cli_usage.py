"""What the command line does before any work: start, `init`, options, configuration errors, bugs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import config, pipeline, rules, teams
from tests.functional.bills import CONFIG, OCTOBER, ROOT, asked, environment, line, prorata, ran, write_all

COMMANDS = ("init", "run", "recalculate", "plan", "status", "check", "explain", "report", "sql")


def test_help_names_every_command(tmp_path: Path) -> None:
    said = ran(tmp_path, "--help")
    assert all(f"\n  {command} " in said for command in COMMANDS)


def test_the_command_line_starts_with_click_and_little_else(tmp_path: Path) -> None:
    script = "import sys; before = set(sys.modules); import cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) - {"__editable___prorata_finder"} == {"cli", "click", "engine"}


def test_init_writes_a_configuration_that_is_valid_as_it_is(tmp_path: Path) -> None:
    assert ran(tmp_path, "init").splitlines() == [
        "wrote prorata.yaml",
        "edit next: source.path (where the reports are), owner.tags (the tag that names a team), operator",
        "then: prorata check, prorata run",
    ]
    found, document, faults = config.load(tmp_path / "prorata.yaml")
    assert found is not None
    assert [*faults, *rules.faults(found, document)] == []


def test_init_for_confluent_cloud_is_valid_as_it_is_and_with_all_that_it_offers(tmp_path: Path) -> None:
    assert ran(tmp_path, "init", "--ecosystem", "confluent_cloud").splitlines() == [
        "wrote prorata.yaml",
        "edit next: metrics (where the Prometheus is), teams, operator; and set the variables that ${...} names",
        "then: prorata check, prorata run",
    ]
    file = tmp_path / "prorata.yaml"
    text = file.read_text(encoding="utf-8")
    # What is commented out begins with a key or an entry of a list; all else are sentences.
    offered = re.sub(r"^( +)# (?=( *- | *[a-zA-Z0-9_-]+: ?))", r"\1", text, flags=re.MULTILINE)
    assert offered.count("metrics:") == 1 + text.count("  metrics:")
    for written in (text, offered):
        file.write_text(written, encoding="utf-8")
        found, document, faults = config.load(file)
        assert found is not None
        assert [*faults, *rules.faults(found, document), *teams.faults(found, document)] == []
    (tenant,) = found.tenants
    assert isinstance(tenant, config.ConfluentTenant)
    assert tenant.metrics is not None
    assert tenant.source.flink is not None
    assert tenant.products
    assert tenant.teams.members


@pytest.mark.parametrize("ecosystem", ["self_managed_kafka", "generic_metrics"])
def test_init_for_a_cost_model_is_valid_as_it_is_and_with_all_that_it_offers(tmp_path: Path, ecosystem: str) -> None:
    said = ran(tmp_path, "init", "--ecosystem", ecosystem)
    assert "edit next: metrics (where the Prometheus is), source (" in said
    file = tmp_path / "prorata.yaml"
    text = file.read_text(encoding="utf-8")
    offered = re.sub(r"^( +)# (?=( *- \{| *[a-z_]+:( |$)))", r"\1", text, flags=re.MULTILINE)
    offered = offered.replace("label: datname\n", "source: both\n        label: datname\n", 1)
    offered = offered.replace("identity_source: prometheus", "identity_source: both")
    for written in (text, offered):
        file.write_text(written, encoding="utf-8")
        (tenant,) = pipeline.configured(file).tenants
        assert isinstance(tenant, config.KafkaTenant | config.GenericTenant)
        assert tenant.ecosystem == ecosystem
    assert tenant.metrics is not None
    assert tenant.metrics.password
    assert tenant.teams.members
    assert tenant.incomplete_below


def test_the_configuration_of_init_runs_once_its_path_is_filled_in(tmp_path: Path) -> None:
    write_all(tmp_path, lines=[*OCTOBER, line("8", line_item_type="Tax")])
    (tmp_path / "prorata.yaml").unlink()
    ran(tmp_path, "init", "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    (tmp_path / "prorata.yaml").write_text(text.replace("path: ./cur", f"path: {tmp_path / 'cur'}"), encoding="utf-8")
    ran(tmp_path, "run")
    assert asked(tmp_path, "SELECT sum(amount) AS left_over FROM unallocated") == [{"left_over": None}]
    rows = asked(tmp_path, "SELECT DISTINCT rule_id FROM chargeback ORDER BY ALL")
    assert [row["rule_id"] for row in rows] == ["direct", "pool:fees", "pool:rest", "pool:support"]


def test_init_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "prorata.yaml").write_text("mine", encoding="utf-8")
    done = prorata(tmp_path, "init")
    assert (done.returncode, done.stderr) == (
        2,
        "prorata: prorata.yaml: exists already; expected a path without a file\n",
    )
    assert (tmp_path / "prorata.yaml").read_text(encoding="utf-8") == "mine"
    assert prorata(tmp_path, "init", "nowhere/prorata.yaml").returncode == 14


def test_an_unknown_tenant_is_told_the_known_ones(tmp_path: Path) -> None:
    write_all(tmp_path)
    for command in ("run", "recalculate", "status", "check"):
        done = prorata(tmp_path, command, "--tenant", "acme", "--tenant", "amce\n")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "prorata: --tenant: unknown tenant 'amce\\n'; expected one of acme\n"


@pytest.mark.parametrize(
    "words",
    [
        ["walk"],
        ["run", "--forever"],
        ["run", "--from", "2025-13-01"],
        ["run", "--from", "2025-10-02", "--to", "2025-10-02"],
        ["explain"],
        ["sql", "--format", "xml", "SELECT 1"],
    ],
    ids=" ".join,
)
def test_wrong_words_are_usage_errors(tmp_path: Path, words: list[str]) -> None:
    write_all(tmp_path)
    done = prorata(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_all_faults_of_a_configuration_come_at_once(tmp_path: Path) -> None:
    wrong = CONFIG.replace("operator: platform", "opertor: platform").replace(
        "ladder: [{basis: operator}]", "ladder: [{basis: operator}]\n        windw: day\n        name: twice"
    )
    write_all(tmp_path, config=wrong)
    done = prorata(tmp_path, "run")
    assert (done.returncode, done.stdout) == (10, "")
    lines = done.stderr.splitlines()
    assert all(text.startswith(f"prorata: {Path('prorata.yaml')}:") for text in lines)
    complaints = [
        "unknown key 'opertor'",
        "unknown key 'windw'",
        "key 'name' stands twice",
        "the tenant has no operator",
    ]
    assert all(any(complaint in text for text in lines) for complaint in complaints)
    assert not (tmp_path / "out").exists()
    done = prorata(tmp_path, "check")
    assert (done.returncode, sorted(done.stderr.splitlines())) == (10, sorted(lines))


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = prorata(tmp_path, "run", "-c", "nowhere.yaml")
    assert done.returncode == 10
    assert done.stderr == (
        "prorata: nowhere.yaml: cannot be read (No such file or directory); expected a configuration file\n"
    )


HOSTILE = [
    '"; DROP TABLE chargeback; --',
    "two\nlines",
    "../../etc/passwd",
    "=cmd()",
    "\x1b]0;owned\x07\x1b[2J",
    "\u202egnp",
]


def test_hostile_tag_values_are_told_safely_and_stored_as_they_are(tmp_path: Path) -> None:
    write_all(tmp_path, lines=[line("1", team=team) for team in HOSTILE])
    done = prorata(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    for said in (done.stdout, done.stderr, ran(tmp_path, "status")):
        assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert r"\x1b]0;owned\x07\x1b[2j" in done.stdout
    stored = {row["identity_id"] for row in asked(tmp_path, "SELECT DISTINCT identity_id FROM chargeback")}
    # Case and blanks never matter in a name; all else is kept.
    assert stored == {" ".join(team.lower().split()) for team in HOSTILE}
    assert {path.name for path in tmp_path.iterdir()} == {"prorata.yaml", "keys.csv", "cur", "out"}
    (row,) = asked(tmp_path, "SELECT line_id::VARCHAR AS id FROM billing WHERE tags LIKE '%owned%'")
    assert "\x1b" not in ran(tmp_path, "explain", row["id"])


def test_a_bug_is_one_line_and_a_traceback_only_if_asked_for(tmp_path: Path) -> None:
    """A Python that has lost DuckDB is as broken as a bug would make it."""
    write_all(tmp_path)
    ran(tmp_path, "run")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/duckdb.py").write_text("raise RuntimeError('out of\\nducks')", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    done = prorata(tmp_path, "sql", "SELECT 1", PYTHONPATH=paths)
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr == (
        "prorata: internal error, a bug in prorata (RuntimeError: out of\\nducks);"
        " `prorata --debug ...` or PRORATA_DEBUG=1 says where\n"
    )
    for words, variables in ((["--debug"], {}), ([], {"PRORATA_DEBUG": "1"})):
        told = subprocess.run(
            [sys.executable, "-m", "cli", *words, "sql", "SELECT 1"],
            cwd=tmp_path,
            env=environment(PYTHONPATH=paths, **variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 70
        assert "Traceback" in told.stderr
