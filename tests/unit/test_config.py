"""The configuration file: what is read, and every way in which it can be wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from engine import globs, rules
from engine.config import Config, Rulebook, load, load_rulebook
from engine.errors import ConfigError

ECOSYSTEMS = "'aws', 'confluent_cloud', 'self_managed_kafka', 'generic_metrics'"
BASE = """\
root: ./data
tenants:
  - id: acme
    ecosystem: aws
    source: {kind: aws_cur, path: ./cur}
    owner: {tags: [team]}
"""


class Folder:
    """A folder with a configuration in it."""

    def __init__(self, path: Path) -> None:
        self.file = path / "prorata.yaml"

    def faults(self, text: str | bytes) -> list[str]:
        """Every fault of the form and of the rules, without the folder's name. A fault is one line."""
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            config, document, faults = load(self.file)
        except ConfigError as error:
            config, faults = None, list(error.faults)
        else:
            faults = [*faults, *(rules.faults(config, document) if config else [])]
            assert config or faults
        for line in faults:
            assert line.isprintable(), "one line, nothing a terminal would obey"
            assert re.match(rf"{re.escape(str(self.file))}(:\d+)?(: [^:]+)?: .+; expected .+\Z", line)
            assert "Input should be" not in line
            assert "<class" not in line
        return [line.replace(f"{self.file.parent}/", "") for line in faults]

    def config(self, text: str | bytes) -> Config:
        """The configuration of a file without faults."""
        assert self.faults(text) == []
        config, _, _ = load(self.file)
        assert config is not None
        return config


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def with_tenant(*lines: str) -> str:
    """The plain configuration with more lines of its tenant."""
    return BASE + "".join(f"    {line}\n" for line in lines)


def with_pools(*pools: str, more: tuple[str, ...] = ()) -> str:
    return with_tenant(*more, "pools:", *(f"  - {pool}" for pool in pools))


def with_rung(rung: str, *more: str) -> str:
    """A pool whose ladder starts with this rung, in line 7 + the number of `more`."""
    return with_tenant(*more, f"pools: [{{name: p, match: {{}}, ladder: [{rung}, {{basis: unallocated}}]}}]")


# ------------------------------------------------------------------------------------------------ what is read


def test_a_plain_configuration_has_defaults(folder: Folder) -> None:
    config = folder.config(BASE)
    (tenant,) = config.tenants
    assert config.max_parallel_days == 2
    assert (tenant.operator, tenant.keys, tenant.ladders, tenant.pools, tenant.emitters) == (
        None,
        [],
        {},
        [],
        ["sqlite"],
    )


def test_paths_are_relative_to_the_file_and_home_is_known(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    config = folder.config(with_tenant("keys: [k/../x.csv, ~/keys.csv, /abs/keys.csv]").replace("./data", "../data"))
    assert config.root == tmp_path.parent / "data"
    assert config.tenants[0].source.path == tmp_path / "cur"
    assert config.tenants[0].keys == [tmp_path / "x.csv", Path("/somewhere/keys.csv"), Path("/abs/keys.csv")]


def test_a_file_given_by_a_relative_path_gives_absolute_ones(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.file.write_text(BASE)
    monkeypatch.chdir(tmp_path)
    config, _, _ = load(Path("prorata.yaml"))
    assert config is not None
    assert config.root == tmp_path / "data"


def test_one_text_is_a_list_of_one(folder: Folder) -> None:
    tenant = folder.config(
        with_pools("{name: p, match: {service: A}, ladder: tax_default}", more=("keys: k.csv",)).replace(
            "[team]", "team"
        )
    ).tenants[0]
    assert tenant.owner.tags == ["team"]
    assert tenant.pools[0].match.service == ["A"]
    assert [path.name for path in tenant.keys] == ["k.csv"]


def test_scalars_stay_the_text_that_was_written(folder: Folder) -> None:
    accounts = "[0123, 0x10, 1e3, yes, no, 2025-01-01, 1_000, 12:30:45, 'null', '~', '', .5, '*']".replace("'', ", "")
    match = (
        folder.config(with_pools(f"{{name: p, match: {{account: {accounts}}}, ladder: tax_default}}"))
        .tenants[0]
        .pools[0]
        .match
    )
    assert match.account == [
        "0123", "0x10", "1e3", "yes", "no", "2025-01-01", "1_000", "12:30:45", "null", "~", ".5", "*",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "share"),
    [("0.10", "0.10"), ("1e-1", "0.1"), ("0.1", "0.1"), ("+0.1", "0.1"), ("'0.1'", "0.1")],
)
def test_a_share_is_the_decimal_that_was_written(folder: Folder, written: str, share: str) -> None:
    text = with_pools(
        f"{{name: p, match: {{}}, parts: [{{share: {written}, ladder: own}}, {{share: 0.9, ladder: own}}]}}",
        more=("ladders: {own: [{basis: unallocated}]}",),
    )
    parts = folder.config(text).tenants[0].pools[0].parts
    assert parts is not None
    assert parts[0].share == Decimal(share)


@pytest.mark.parametrize("written", ["100", "1e2", "1E+2", "100.", "100.000000000000", "10e1"])
def test_a_percentage_may_be_written_in_any_decimal_form(folder: Folder, written: str) -> None:
    folder.config(with_rung(f"{{basis: fixed, percentages: {{a: {written}}}}}"))


def test_thirds_of_twelve_decimals_total_100(folder: Folder) -> None:
    thirds = "{a: 33.333333333333, b: 33.333333333333, c: 33.333333333334}"
    folder.config(with_rung(f"{{basis: fixed, percentages: {thirds}}}"))


def test_a_byte_order_mark_a_document_mark_and_comments_are_fine(folder: Folder) -> None:
    folder.config(b"\xef\xbb\xbf# mine\n---\n" + BASE.encode() + b"...\n")


def test_anchors_and_aliases_repeat_what_they_name(folder: Folder) -> None:
    text = with_tenant(
        "ladders: {own: &own [{basis: even}, {basis: unallocated}], other: *own}",
        "pools: [{name: p, match: {}, ladder: *own}]",
    )
    tenant = folder.config(text).tenants[0]
    assert tenant.ladders["own"] == tenant.ladders["other"] == tenant.pools[0].ladder


def test_a_tag_of_yaml_neither_converts_nor_runs_anything(folder: Folder, tmp_path: Path) -> None:
    assert folder.config(BASE.replace("./data", "!!int data")).root == tmp_path / "data"
    bait = tmp_path / "bait"
    attack = BASE.replace("./data", f"!!python/object/apply:os.mkdir ['{bait}']")
    assert folder.faults(attack)
    assert not bait.exists()


def test_a_value_of_a_megabyte_is_taken_or_refused_in_a_short_line(folder: Folder) -> None:
    folder.config(with_tenant(f"operator: {'x' * 1_000_000}"))
    (line,) = folder.faults(BASE.replace("acme", "X" * 1_000_000))
    assert len(line) < 300


# ------------------------------------------------------------------------------------------------ no YAML at all


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "absent.yaml", "No such file or directory"), (tmp_path, "Is a directory")]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.faults == [f"{path}: cannot be read ({reason}); expected a configuration file"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BASE + "\tx: []\n", "prorata.yaml:7: found character '\\t' that cannot start any token; expected valid YAML"),
        ("root: [a\n", "prorata.yaml:2: expected ',' or ']', but got '<stream end>'; expected valid YAML"),
        ("root: *nowhere\n", "prorata.yaml:1: found undefined alias (not shown); expected valid YAML"),
        (BASE + "---\n" + BASE, "prorata.yaml:7: but found another document; expected valid YAML"),
        (BASE.encode("utf-16"), "prorata.yaml: byte 0 is not UTF-8; expected a YAML file in UTF-8"),
        (BASE.encode() + b"#\xe9\n", f"prorata.yaml: byte {len(BASE) + 1} is not UTF-8; expected a YAML file in UTF-8"),
    ],
    ids=["tab", "open list", "alias of nothing", "two documents", "utf-16", "latin-1"],
)  # fmt: skip
def test_what_is_no_yaml_is_one_line(folder: Folder, text: str | bytes, line: str) -> None:
    assert folder.faults(text) == [line]


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x85\x0b"])
def test_a_control_character_is_one_line(folder: Folder, character: str) -> None:
    (line,) = folder.faults(f"{BASE}# {character}\n")
    assert line.endswith("expected valid YAML")


@pytest.mark.parametrize(
    "text",
    ["[" * 5000 + "]" * 5000, "{a: " * 5000 + "}" * 5000, "root: " + "[" * 400 + "]" * 400, "- " * 3000 + "a"],
    ids=["lists", "mappings", "a few hundred", "block"],
)
def test_nesting_without_end_is_a_fault_not_a_crash(folder: Folder, text: str) -> None:
    assert folder.faults(text)


@pytest.mark.parametrize(
    "text",
    ["root: &r [*r]\n", "root: &r {a: *r}\n", BASE.replace("{tags: [team]}", "&o {tags: *o}")],
    ids=["list", "mapping", "owner"],
)
def test_an_alias_inside_itself_is_a_fault_not_a_crash(folder: Folder, text: str) -> None:
    assert folder.faults(text)


CHECKED_WITHIN_LIMITS = """
import resource, sys
from pathlib import Path
from engine import rules
from engine.config import load
from engine.errors import ConfigError
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))
try:
    config, document, faults = load(Path(sys.argv[1]))
    faults = [*faults, *(rules.faults(config, document) if config else [])]
except ConfigError as error:
    faults = error.faults
print(len(faults), end="")
"""


def faults_within_limits(folder: Folder, text: str) -> int:
    """How many faults are found with 5 seconds and a gigabyte to find them, a hundred times what it takes."""
    folder.file.write_text(text)
    finished = subprocess.run(
        [sys.executable, "-c", CHECKED_WITHIN_LIMITS, folder.file],
        cwd=Path(rules.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, f"killed or failed ({finished.returncode}): {finished.stderr[-500:]}"
    return int(finished.stdout)


def test_aliases_of_aliases_do_not_explode(folder: Folder) -> None:
    """A billion laughs: 10 lines that stand for 9**9 values are refused before they are spelled out."""
    levels = [f"l{number}: &l{number} [{', '.join([f'*l{number - 1}'] * 9)}]" for number in range(1, 10)]
    assert faults_within_limits(folder, "\n".join(["l0: &l0 [x]", *levels, BASE])) > 0


def test_patterns_with_many_wild_cards_are_compared_in_no_time(folder: Folder) -> None:
    """Whether `*a*a*a…*b` covers `aaa…` has an answer that needs no trying of all ways to spread the letters."""
    pools = ["*a" * 12 + "*b", "a" * 60, "?" * 60, "*a" * 30]
    named = [f"{{name: p{n}, match: {{usage_type: '{glob}'}}, ladder: tax_default}}" for n, glob in enumerate(pools)]
    assert faults_within_limits(folder, with_pools(*named)) == 0


# ------------------------------------------------------------------------------------------------ form


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n"])
def test_an_empty_file_says_what_is_missing(folder: Folder, text: str) -> None:
    faults = folder.faults(text)
    assert [line.split("; ")[0] for line in faults] == [
        "prorata.yaml:1: root: missing",
        "prorata.yaml:1: tenants: missing",
    ]


@pytest.mark.parametrize(
    ("text", "seen"), [("- a\n", "a list"), ("hello\n", "a text"), ("[]\n", "a list"), ("''\n", "a text")]
)
def test_a_file_that_is_no_mapping(folder: Folder, text: str, seen: str) -> None:
    assert folder.faults(text) == [f"prorata.yaml:1: value {seen}; expected a mapping"]


def test_what_is_missing_is_told_at_its_nearest_ancestor(folder: Folder) -> None:
    assert folder.faults("root: a\ntenants:\n  - id: acme\n    source: {kind: aws_cur}\n") == [
        f"prorata.yaml:3: tenants[0].ecosystem: missing; expected one of {ECOSYSTEMS}",
    ]
    assert folder.faults("root: a\ntenants:\n  - id: acme\n    ecosystem: aws\n    source: {kind: aws_cur}\n") == [
        "prorata.yaml:5: tenants[0].source.path: missing; expected a value",
        "prorata.yaml:3: tenants[0].owner: missing; expected a value",
    ]


@pytest.mark.parametrize(
    ("text", "fault", "expected"),
    [
        (
            BASE.replace("./data", ""),
            "1: root: value nothing",
            "a path",
        ),
        (
            BASE.replace("./data", "[a]"),
            "1: root: value a list",
            "a path",
        ),
        (
            BASE.replace("./data", "{a: b}"),
            "1: root: value a mapping",
            "a path",
        ),
        (
            "root: a\ntenants:\n",
            "2: tenants: value nothing",
            "a list",
        ),
        (
            "root: a\ntenants: []\n",
            "2: tenants: value a list",
            "at least one entry",
        ),
        (
            "root: a\ntenants: {a: b}\n",
            "2: tenants: value a mapping",
            "a list",
        ),
        (
            "root: a\ntenants: [~]\n",
            "2: tenants[0]: value nothing",
            "a mapping",
        ),
        (
            "root: a\ntenants: [acme]\n",
            "2: tenants[0]: value a text",
            "a mapping",
        ),
        (
            BASE.replace("[team]", "[]"),
            "6: tenants[0].owner.tags: value a list",
            "at least one entry",
        ),
        (
            BASE.replace("[team]", "[~]"),
            "6: tenants[0].owner.tags[0]: value nothing",
            "text",
        ),
        (
            BASE.replace("[team]", "['']"),
            "6: tenants[0].owner.tags[0]: value ''",
            "a text that is not empty",
        ),
        (
            BASE.replace("[team]", "{a: b}"),
            "6: tenants[0].owner.tags: value a mapping",
            "a list",
        ),
        (
            BASE.replace("aws_cur", "gcp"),
            "5: tenants[0].source.kind: value 'gcp'",
            "one of 'aws_cur'",
        ),
        (
            BASE.replace("ecosystem: aws", "ecosystem: AWS"),
            "4: tenants[0].ecosystem: value 'AWS'",
            f"one of {ECOSYSTEMS}",
        ),
        (
            with_tenant("operator: '  '"),
            "7: tenants[0].operator: value '  '",
            "a text that is not empty",
        ),
        (
            with_tenant("operator: [a]"),
            "7: tenants[0].operator: value a list",
            "text",
        ),
        (
            with_tenant("pools:"),
            "7: tenants[0].pools: value nothing",
            "a list",
        ),
        (
            with_tenant("ladders:"),
            "7: tenants[0].ladders: value nothing",
            "a mapping",
        ),
        (
            with_tenant("keys: ~"),
            "7: tenants[0].keys: value nothing",
            "a list",
        ),
        (
            with_tenant("emitters: sqlite"),
            "7: tenants[0].emitters: value a text",
            "a list",
        ),
        (
            with_tenant("emitters: [kafka]"),
            "7: tenants[0].emitters[0]: value 'kafka'",
            "one of 'sqlite'",
        ),
        (
            with_pools("{name: p, ladder: tax_default}"),
            "8: tenants[0].pools[0].match: missing",
            "a value",
        ),
        (
            with_pools("{name: p, match: , ladder: tax_default}"),
            "8: tenants[0].pools[0].match: value nothing",
            "a mapping",
        ),
        (
            with_pools("{name: p, match: {service: []}, ladder: tax_default}"),
            "8: tenants[0].pools[0].match.service: value a list",
            "at least one entry",
        ),
        (
            with_pools("{name: p, match: {region: ''}, ladder: tax_default}"),
            "8: tenants[0].pools[0].match.region: value ''",
            "a text that is not empty",
        ),
        (
            with_pools("{name: p, match: {tag: {}}, ladder: tax_default}"),
            "8: tenants[0].pools[0].match.tag: value a mapping",
            "at least one entry",
        ),
        (
            with_pools("{name: p, match: {tag: {app: []}}, ladder: tax_default}"),
            "8: tenants[0].pools[0].match.tag.app: value a list",
            "at least one entry",
        ),
        (
            with_pools("{name: p, match: {}, window: week, ladder: tax_default}"),
            "8: tenants[0].pools[0].window: value 'week'",
            "one of 'day' or 'month'",
        ),
        (
            with_pools("{name: p, match: {}, ladder: []}"),
            "8: tenants[0].pools[0].ladder: value a list",
            "at least one entry",
        ),
        (
            with_pools("{name: p, match: {}, ladder: {basis: even}}"),
            "8: tenants[0].pools[0].ladder: value a mapping",
            "a list",
        ),
        (
            with_rung("even"),
            "7: tenants[0].pools[0].ladder[0]: value a text",
            "a mapping",
        ),
        (
            with_rung("{basis: magic}"),
            "7: tenants[0].pools[0].ladder[0].basis: value 'magic'",
            "one of 'direct', 'even', 'cost', 'fixed', 'usage', 'weighted', 'operator', 'resource' or 'unallocated'",
        ),
        (
            with_rung("{basis: cost, scope: region}"),
            "7: tenants[0].pools[0].ladder[0].scope: value 'region'",
            "one of 'service_account', 'account' or 'all'",
        ),
    ],
)
def test_a_wrong_value_is_told_with_line_path_value_and_expectation(
    folder: Folder, text: str, fault: str, expected: str
) -> None:
    assert folder.faults(text) == [f"prorata.yaml:{fault}; expected {expected}"]


@pytest.mark.parametrize(
    "name", ["Acme", "../x", "a b", "", "_a", "-a", "a/b", "a" * 64, "acme\\n", "\u0663", "\u00e9", "tenant_id=a", "."]
)
def test_a_tenant_id_is_fit_for_a_path(folder: Folder, name: str) -> None:
    (line,) = folder.faults(BASE.replace("acme", f'"{name}"'))
    assert line.startswith("prorata.yaml:3: tenants[0].id: value '")
    assert line.endswith("'; expected text like ^[a-z0-9][a-z0-9_-]{0,62}$") or name == ""


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 63])
def test_a_plain_tenant_id_is_taken(folder: Folder, name: str) -> None:
    assert folder.config(BASE.replace("acme", f"'{name}'")).tenants[0].id == name


@pytest.mark.parametrize(
    "number",
    ["1_00", ".5", "-1", "nan", "inf", "Infinity", "0x64", "' 100 '", "'1,5'", "'100%'", "''", "~", "[100]", "{a: 1}",
     "1e999999999999999999999", "1e1000000", "1e-1000000", "33.3333333333333", "100.000000000001", "'1\n\n   00'",
     "\u0661\u0660\u0660", "\uff11\uff10\uff10"],
)  # fmt: skip
def test_what_is_no_plain_decimal_is_no_percentage(folder: Folder, number: str) -> None:
    faults = folder.faults(with_rung(f"{{basis: fixed, percentages: {{a: {number}}}}}"))
    assert len(faults) == 1
    assert re.match(r"prorata.yaml:\d+: tenants\[0\].pools\[0\].ladder\[0\].percentages.a: value ", faults[0])


@pytest.mark.parametrize("number", ["0", "1.000000000001", "1e-13", "-0.5", "1_0", "abc"])
def test_a_share_lies_between_0_and_1_with_12_decimals(folder: Folder, number: str) -> None:
    text = with_pools(f"{{name: p, match: {{}}, parts: [{{share: {number}, ladder: tax_default}}]}}")
    (line,) = folder.faults(text)
    assert line.startswith(f"prorata.yaml:8: tenants[0].pools[0].parts[0].share: value '{number}'; expected ")


@pytest.mark.parametrize("number", ["0", "1000000", "-1", "1e-13", "1_0"])
def test_a_ratio_of_keys_is_above_0_and_below_a_million(folder: Folder, number: str) -> None:
    (line,) = folder.faults(with_rung(f"{{basis: weighted, keys: {{a: {number}}}}}", "keys: [k.csv]"))
    assert line.startswith(f"prorata.yaml:8: tenants[0].pools[0].ladder[0].keys.a: value '{number}'; expected ")


@pytest.mark.parametrize(
    "number", ["0", "65", "1.5", "-1", "two", "1e1", "0x10", "", "[2]", "99999999999999999999999", "9" * 5000, "1_0"]
)
def test_days_in_parallel_are_a_number_from_1_to_64(folder: Folder, number: str) -> None:
    (line,) = folder.faults(f"{BASE}max_parallel_days: {number}\n")
    assert line.startswith("prorata.yaml:7: max_parallel_days: value ")
    assert len(line) < 250


@pytest.mark.parametrize("path", ['"a\\0b"', "~nobody-of-that-name/x", '""'])
@pytest.mark.parametrize("place", ["root", "source", "keys"])
def test_a_path_that_no_file_can_have_is_a_fault(folder: Folder, path: str, place: str) -> None:
    text = {
        "root": BASE.replace("./data", path),
        "source": BASE.replace("./cur", path),
        "keys": with_tenant(f"keys: [{path}]"),
    }[place]
    assert len(folder.faults(text)) == 1


# ------------------------------------------------------------------------------------------------ keys


def test_an_unknown_key_is_told_at_every_level_with_the_known_ones(folder: Folder) -> None:
    text = """\
root: ./data
zzz: 1
tenants:
  - id: acme
    ecosystem: aws
    zz: 1
    source: {kind: aws_cur, path: ./cur, q: 1}
    owner: {tags: [team], tag: x}
    ladders: {own: [{basis: unallocated, Basis: 1}]}
    pools:
      - {name: p, match: {Service: a}, ladder: [{basis: unallocated, ky: 1}], wndow: day}
      - {name: q, match: {service: a}, parts: [{share: 1, ladder: own, lader: x}]}
"""
    assert sorted(folder.faults(text), key=lambda line: int(line.split(":")[1])) == [
        (
            "prorata.yaml:2: zzz: unknown key 'zzz'; expected one of"
            " root, max_parallel_days, max_parallel_tenants, tenants"
        ),
        (
            "prorata.yaml:6: tenants[0].zz: unknown key 'zz'; expected one of"
            " id, operator, ladders, teams, emitters, ecosystem, source, owner, keys, pools"
        ),
        "prorata.yaml:7: tenants[0].source.q: unknown key 'q'; expected one of kind, path, report",
        "prorata.yaml:8: tenants[0].owner.tag: unknown key 'tag'; expected one of tags, identities, aliases",
        (
            "prorata.yaml:9: tenants[0].ladders.own[0].Basis: unknown key 'Basis';"
            " expected one of basis, key, keys, metrics, population, percentages, scope, cost_type, detail"
        ),
        (
            "prorata.yaml:11: tenants[0].pools[0].match.Service: unknown key 'Service';"
            " expected one of service, usage_type, line_item_type, account, region, tag"
        ),
        (
            "prorata.yaml:11: tenants[0].pools[0].ladder[0].ky: unknown key 'ky';"
            " expected one of basis, key, keys, metrics, population, percentages, scope, cost_type, detail"
        ),
        (
            "prorata.yaml:11: tenants[0].pools[0].wndow: unknown key 'wndow';"
            " expected one of name, match, window, ladder, parts"
        ),
        "prorata.yaml:12: tenants[0].pools[1].parts[0].lader: unknown key 'lader'; expected one of share, ladder",
    ]


def test_a_key_that_stands_twice_is_told_with_both_lines(folder: Folder) -> None:
    text = with_tenant(
        "pools:",
        "  - name: a",
        "    name: b",
        "    match: {tag: {app: x, team: y, app: z}}",
        "    ladder: tax_default",
        "owner: {tags: [other]}",
    )
    assert folder.faults(text) == [
        "prorata.yaml:9: tenants[0].pools[0].name: key 'name' stands twice (first in line 8); expected every key once",
        (
            "prorata.yaml:10: tenants[0].pools[0].match.tag.app: key 'app' stands twice (first in line 10);"
            " expected every key once"
        ),
        "prorata.yaml:12: tenants[0].owner: key 'owner' stands twice (first in line 6); expected every key once",
    ]


@pytest.mark.parametrize(
    "names", ["{'a ': 40, a: 60, b: 40}", "{a: 60, ' a': 40, b: 40}", '{a: 60, "a\\t": 40, b: 40}']
)
def test_names_that_only_blanks_tell_apart_never_swallow_each_other(folder: Folder, names: str) -> None:
    assert folder.faults(with_rung(f"{{basis: fixed, percentages: {names}}}"))


def test_aliases_that_only_blanks_tell_apart_never_swallow_each_other(folder: Folder) -> None:
    assert folder.faults(BASE.replace("{tags: [team]}", "{tags: [team], aliases: {'p ': payments, p: search}}"))


def test_a_key_that_is_no_text_is_a_fault(folder: Folder) -> None:
    assert folder.faults(BASE + "? [a, b]\n: 1\n") == ["prorata.yaml:7: a key that is not text; expected a name"]


def test_merge_keys_are_not_followed_but_refused(folder: Folder) -> None:
    text = with_tenant("<<: {operator: platform}")
    assert [line.split(";")[0] for line in folder.faults(text)] == ["prorata.yaml:7: tenants[0].<<: unknown key '<<'"]


@pytest.mark.parametrize("key", ['"a\\nb"', '"\\e[31mred"', '"\\u2028"', '"\\u202e"', "x" * 1000])
def test_a_hostile_key_stays_in_one_short_line(folder: Folder, key: str) -> None:
    """`Folder.faults` looks at what may be printed."""
    for text in (
        f"{BASE}{key}: 1\n",
        f"{BASE}{key}: 1\n{key}: 1\n",
        with_rung(f"{{basis: fixed, percentages: {{{key}: x}}}}"),
    ):
        faults = folder.faults(text)
        assert faults
        assert all(len(line) < 400 for line in faults)


def test_keys_that_look_like_steps_of_a_path_are_told_as_they_are(folder: Folder) -> None:
    names = "{'[key]': x, '<name>': y, '<rungs>': z, 'a.b[0]': q}"
    faults = folder.faults(with_rung(f"{{basis: fixed, percentages: {names}}}"))
    assert [line.split(": ")[1].split("percentages.")[1] for line in faults] == ["[key]", "<name>", "<rungs>", "a.b[0]"]


# ------------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("text", "fault", "expected"),
    [
        (
            with_pools("{name: p, match: {}, ladder: nowhere}"),
            "8: tenants[0].pools[0].ladder: unknown ladder 'nowhere'",
            "one of tax_default",
        ),
        (
            with_pools("{name: p, match: {}}"),
            "8: tenants[0].pools[0]: pool 'p' has neither ladder nor parts",
            "one of them",
        ),
        (
            with_pools("{name: p, match: {}, ladder: ~}"),
            "8: tenants[0].pools[0]: pool 'p' has neither ladder nor parts",
            "one of them",
        ),
        (
            with_pools("{name: p, match: {}, ladder: tax_default, parts: [{share: 1, ladder: tax_default}]}"),
            "8: tenants[0].pools[0]: pool 'p' has both ladder and parts",
            "one of them",
        ),
        (
            with_pools(
                "{name: p, match: {}, parts: [{share: 0.7, ladder: tax_default}, {share: 0.29, ladder: tax_default}]}"
            ),
            "8: tenants[0].pools[0].parts: shares total 0.99",
            "a total of 1",
        ),
        (
            with_pools(
                "{name: p, match: {service: a}, ladder: tax_default}",
                "{name: p, match: {service: b}, ladder: tax_default}",
            ),
            "9: tenants[0].pools[1].name: pool 'p' stands twice",
            "every pool once",
        ),
        (
            BASE + BASE.partition("tenants:\n")[2],
            "7: tenants[1].id: tenant 'acme' stands twice",
            "every tenant once",
        ),
        (
            with_rung("{basis: fixed, percentages: {a: 60, b: 39.999999999999}}"),
            "7: tenants[0].pools[0].ladder[0].percentages: percentages total 99.999999999999",
            "a total of 100",
        ),
        (
            with_rung("{basis: fixed, percentages: {A: 60, a: 40}}"),
            "7: tenants[0].pools[0].ladder[0].percentages.a: 'a' is 'A' again",
            "every identity once",
        ),
        (
            with_rung("{basis: fixed, percentages: {Platform: 60, a: 40}}", "operator: platform"),
            "8: tenants[0].pools[0].ladder[0].percentages.Platform: 'Platform' in a denominator",
            "an identity that is neither operator nor UNALLOCATED",
        ),
        (
            with_rung("{basis: fixed, percentages: {unallocated: 60, a: 40}}"),
            "7: tenants[0].pools[0].ladder[0].percentages.unallocated: 'unallocated' in a denominator",
            "an identity that is neither operator nor UNALLOCATED",
        ),
        (
            with_rung("{basis: direct}"),
            "7: tenants[0].pools[0].ladder[0]: basis 'direct'",
            "a basis for lines without an owner (tagged lines are direct by themselves)",
        ),
        (
            with_rung("{basis: resource}"),
            "7: tenants[0].pools[0].ladder[0]: basis 'resource' takes all, no later rung can hold",
            "it to be the last rung",
        ),
        (
            with_rung("{basis: cost}"),
            "7: tenants[0].pools[0].ladder[0]: basis 'cost' without scope",
            "scope",
        ),
        (
            with_rung("{basis: even, scope: all}"),
            "7: tenants[0].pools[0].ladder[0]: basis 'even' with scope",
            "only basis",
        ),
        (
            with_rung("{basis: usage, key: k, scope: all}", "keys: [k.csv]"),
            "8: tenants[0].pools[0].ladder[0]: basis 'usage' with scope",
            "only key",
        ),
        (
            with_rung("{basis: usage, key: k}"),
            "7: tenants[0].pools[0].ladder[0]: basis 'usage', but the tenant has no key table",
            "keys: [FILE] in the tenant",
        ),
        (
            with_pools("{name: p, match: {}, ladder: [{basis: operator}]}"),
            "8: tenants[0].pools[0].ladder[0]: basis 'operator', but the tenant has no operator",
            "operator: NAME in the tenant",
        ),
        (
            with_pools("{name: p, match: {}, ladder: [{basis: even}]}"),
            "8: tenants[0].pools[0].ladder[0]: the last rung is 'even', which may weigh nothing",
            "a last rung of operator, resource, unallocated",
        ),
        (
            with_tenant("operator: ' unAllocated'"),
            "7: tenants[0].operator: operator ' unAllocated'",
            "a name that is not reserved",
        ),
        (
            BASE.replace("[team]", "[team], identities: [a, b], aliases: {A: b}"),
            "6: tenants[0].owner.aliases.A: alias 'A' is an identity itself",
            "another spelling of one",
        ),
        (
            BASE.replace("[team]", "[team], aliases: {X: a, x: b}"),
            "6: tenants[0].owner.aliases.x: alias 'x' stands for 'a' already",
            "one identity",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_told(folder: Folder, text: str, fault: str, expected: str) -> None:
    assert folder.faults(text) == [f"prorata.yaml:{fault}; expected {expected}"]


@pytest.mark.parametrize("spelled", ["ops", "OPS ", "Platform"])
def test_the_operator_is_found_behind_an_alias(folder: Folder, spelled: str) -> None:
    text = with_rung(f"{{basis: fixed, percentages: {{'{spelled}': 50, a: 50}}}}", "operator: platform")
    (line,) = folder.faults(text.replace("[team]", "[team], aliases: {ops: platform}"))
    assert "in a denominator" in line


@pytest.mark.parametrize(
    "aliases", ["{a: b, b: c}", "{B: c, a: ' b'}", "{a: b, b: a}"], ids=["chain", "spelled", "ring"]
)
def test_an_alias_leads_to_an_identity_not_to_another_alias(folder: Folder, aliases: str) -> None:
    """`a: b, b: c` would charge b's lines to c and a's to b: whoever writes that means something else."""
    assert folder.faults(BASE.replace("[team]", f"[team], aliases: {aliases}"))


def test_an_alias_may_stand_for_nobody(folder: Folder) -> None:
    folder.config(BASE.replace("[team]", "[team], aliases: {shared: UNALLOCATED, none: unallocated}"))


def test_nobody_is_not_an_identity(folder: Folder) -> None:
    assert folder.faults(BASE.replace("[team]", "[team], identities: [payments, UnAllocated]"))


@pytest.mark.parametrize("name", ["direct", "untagged"])
def test_a_ladder_of_a_built_in_name_is_the_tenants_own_or_refused(folder: Folder, name: str) -> None:
    text = with_tenant(
        f"ladders: {{{name}: [{{basis: even}}, {{basis: unallocated}}]}}",
        f"pools: [{{name: p, match: {{}}, ladder: {name}}}]",
    )
    if not folder.faults(text):
        frame = rules.resolve(folder.config(text).tenants[0]).frame
        assert frame.filter(rule_id="pool:p")["basis"].to_list() == ["even", "unallocated"]
        assert frame.filter(rule_id="direct")["basis"].to_list() == ["direct", "unallocated"]
        assert frame.filter(rule_id="untagged")["basis"].to_list() == ["unallocated"]


def covered(folder: Folder, earlier: str, later: str) -> bool:
    """Whether the later pool is refused because the earlier one takes all its lines."""
    faults = folder.faults(
        with_pools(
            f"{{name: p, match: {{{earlier}}}, ladder: tax_default}}",
            f"{{name: q, match: {{{later}}}, ladder: tax_default}}",
        )
    )
    assert faults in (
        [],
        [("prorata.yaml:9: tenants[0].pools[1].match: pool 'q' can never match, pool 'p' takes all its lines;"
         " expected a condition that an earlier pool leaves open, or another order")],
    )  # fmt: skip
    return bool(faults)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("", ""),
        ("", "service: a"),
        ("service: a", "service: a"),
        ("service: [a, b]", "service: b"),
        ("service: [a, b]", "service: [b, a]"),
        ("service: '*'", "service: a"),
        ("service: '*'", "service: '?*'"),
        ("service: '**'", "service: '*'"),
        ("service: 'a*'", "service: 'ab*'"),
        ("service: 'a*'", "service: ['ab', 'ac*', 'a?']"),
        ("service: ['a*', 'b*']", "service: ['b?', 'a']"),
        ("service: '?'", "service: 'x'"),
        ("service: '?'", "service: '?'"),
        ("service: 'a?c'", "service: 'abc'"),
        ("service: '*NatGateway*'", "service: 'EU-NatGateway-Bytes'"),
        ("service: 'a.b'", "service: 'a.b'"),
        ("service: a", "service: a, region: eu"),
        ("service: a, region: 'eu-*'", "service: a, region: 'eu-west-?'"),
        ("tag: {app: x}", "tag: {App: x}, service: a"),
        ("tag: {app: '*'}", "tag: {app: x}"),
        ("tag: {app: x}", "tag: {app: x, env: y}"),
        ("usage_type: '*\u00e9'", "usage_type: 'caf\u00e9'"),
    ],
)
def test_a_pool_that_an_earlier_one_leaves_nothing_is_refused(folder: Folder, earlier: str, later: str) -> None:
    assert covered(folder, earlier, later)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("service: a", ""),
        ("service: a", "service: '*'"),
        ("service: a", "service: [a, b]"),
        ("service: 'ab*'", "service: 'a*'"),
        ("service: '?'", "service: '*'"),
        ("service: '??'", "service: '?*'"),
        ("service: 'a?'", "service: 'a*'"),
        ("service: '*a'", "service: 'a*'"),
        ("service: A", "service: a"),
        ("service: 'a.c'", "service: 'abc'"),
        ("service: a, region: eu", "service: a"),
        ("service: a", "region: a"),
        ("account: a", "service: a"),
        ("service: '\ue000'", "service: '*'"),
        ("service: '\ue001'", "service: '?'"),
        ("tag: {app: x}", "service: a"),
        ("tag: {app: x}", "tag: {env: x}"),
        ("tag: {app: x, env: y}", "tag: {app: x}"),
        ("tag: {app: '*'}", "service: '*'"),
    ],
)
def test_a_pool_that_an_earlier_one_leaves_something_is_fine(folder: Folder, earlier: str, later: str) -> None:
    assert not covered(folder, earlier, later)


def test_a_tag_under_two_spellings_of_its_key_is_refused(folder: Folder) -> None:
    """Both conditions would look at one value, so the pool could never match."""
    assert folder.faults(with_pools("{name: p, match: {tag: {App: x, app: y}}, ladder: tax_default}"))


@pytest.mark.parametrize(
    "pattern", ["?" * 30_000, "*a" * 2000, "x" * 100_000, "*" * 100_000], ids=["?", "*a", "x", "*"]
)
def test_a_pattern_is_refused_or_can_be_matched(folder: Folder, pattern: str) -> None:
    """A pattern that the regular expressions of the match cannot hold is a fault here, not a crash in the night."""
    text = with_pools(f"{{name: p, match: {{usage_type: '{pattern}'}}, ladder: tax_default}}")
    if not folder.faults(text):
        fits = globs.fits(pl.lit("x"), [pattern])
        assert pl.select(fits).item() in (True, False)


def test_all_faults_are_told_at_once(folder: Folder) -> None:
    text = """\
root: ./data
root: ./other
zzz: 1
tenants:
  - id: acme
    ecosystem: aws
    source: {kind: aws_cur, path: ./cur}
    owner: {tags: [team]}
    operator: platform
    pools:
      - name: p
        match: {service: A*}
        ladder: [{basis: fixed, percentages: {a: 60, platform: 30}}, {basis: unallocated}]
      - name: q
        match: {service: AB*}
        ladder: tax_default
"""
    assert folder.faults(text) == [
        "prorata.yaml:2: root: key 'root' stands twice (first in line 1); expected every key once",
        (
            "prorata.yaml:3: zzz: unknown key 'zzz'; expected one of"
            " root, max_parallel_days, max_parallel_tenants, tenants"
        ),
        "prorata.yaml:13: tenants[0].pools[0].ladder[0].percentages: percentages total 90; expected a total of 100",
        (
            "prorata.yaml:13: tenants[0].pools[0].ladder[0].percentages.platform: 'platform' in a denominator;"
            " expected an identity that is neither operator nor UNALLOCATED"
        ),
        (
            "prorata.yaml:15: tenants[0].pools[1].match: pool 'q' can never match, pool 'p' takes all its lines;"
            " expected a condition that an earlier pool leaves open, or another order"
        ),
    ]


def test_faults_of_two_tenants_are_told_at_once(folder: Folder) -> None:
    second = BASE.partition("tenants:\n")[2].replace("acme", "Other") + "    pools: [{name: p, match: {}}]\n"
    faults = folder.faults(with_tenant("emitters: [kafka]") + second)
    assert [line.split(": value")[0] for line in faults] == [
        "prorata.yaml:7: tenants[0].emitters[0]",
        "prorata.yaml:8: tenants[1].id",
        "prorata.yaml:12: tenants[1].pools[0]: pool 'p' has neither ladder nor parts; expected one of them",
    ]


def test_what_cannot_be_read_of_one_tenant_hides_no_rule_of_another(folder: Folder) -> None:
    alone = BASE.partition("tenants:\n")[2]
    third = (
        alone.replace("acme", "third") + "    pools: [{name: p, match: {service: A}, ladder: [{basis: operator}]}]\n"
    )
    text = with_tenant("emitters: [kafka]") + alone.replace("acme", "second") + "    pools: 7\n" + third
    faults = folder.faults(text)
    assert [line.split(" ")[1] for line in faults] == [
        "tenants[0].emitters[0]:",
        "tenants[1].pools:",
        "tenants[2].pools[0].ladder[0]:",
    ]
    assert "the tenant has no operator" in faults[2]


def test_what_no_rule_looks_at_hides_no_rule_of_its_own_tenant(folder: Folder) -> None:
    pools = "pools: [{name: p, match: {}, ladder: [{basis: operator}]}]"
    wrong = BASE.replace("kind: aws_cur", "kind: aws_curr") + f"    emitters: [kafka]\n    keys: {{}}\n    {pools}\n"
    found = [line.split(" ")[1] for line in folder.faults(wrong)]
    assert found == [f"tenants[0].{name}:" for name in ("emitters[0]", "source.kind", "keys", "pools[0].ladder[0]")]
    wrong = API.replace('"${SECRET}"', "hunter2hunter2") + (
        "    lookback_days: many\n    cutoff_days: 300\n    metrics: here\n    teams: 7\n"
        "    products: {SUPPORT: {ladder: [{basis: usage}]}}\n"
    )
    found = [line.split(" ")[1] for line in folder.faults(wrong)]
    assert found == [
        *(f"tenants[0].{name}:" for name in ("teams", "source.api_secret", "metrics", "lookback_days")),
        "tenants[0].products.SUPPORT.ladder[0]:",
        "tenants[0].products.SUPPORT.ladder[0]:",
    ]


@pytest.mark.parametrize(
    ("owner", "operator", "wrong"),
    [
        ("5", "ops", ["owner"]),
        ("[team]", "ops", ["owner"]),
        ("", "ops", ["owner"]),
        ("{}", "ops", ["owner.tags"]),
        ("{tags: {a: b}}", "ops", ["owner.tags"]),
        ("{tags: [team], identities: 5x, aliases: [a]}", "ops", ["owner.identities", "owner.aliases"]),
        ("{tags: [[team], ''], aliases: {a: [b], c: }}", "ops",
         ["owner.tags[0]", "owner.tags[1]", "owner.aliases.a", "owner.aliases.c"]),
        ("{tags: [team]}", "[x]", ["operator"]),
        ("{tags: [team]}", "{x: y}", ["operator"]),
        ("{tags: [team]}", "' '", ["operator"]),
        ("team", "[x]", ["operator", "owner"]),
    ],
)  # fmt: skip
def test_an_owner_or_operator_of_another_type_hides_no_rule(
    folder: Folder, owner: str, operator: str, wrong: list[str]
) -> None:
    """And no fault is told that there is only because they could not be read: of `basis: operator`, say."""
    pools = (
        "[{name: p, match: {service: A}, ladder: [{basis: usage, key: gb}, {basis: operator}]},"
        " {name: q, match: {service: B},"
        " ladder: [{basis: fixed, percentages: {ants: 60, bugs: 30}}, {basis: operator}]}]"
    )
    base = BASE.replace("{tags: [team]}", owner)
    faults = folder.faults(base + f"    operator: {operator}\n    pools: {pools}\n")
    assert [line.split(" ")[1] for line in faults] == [
        *(f"tenants[0].{name}:" for name in wrong),
        "tenants[0].pools[0].ladder[0]:",
        "tenants[0].pools[1].ladder[0].percentages:",
    ]


def test_what_can_be_read_of_an_owner_is_still_looked_at(folder: Folder) -> None:
    """Each of tags, identities and aliases by itself; without aliases, names that they make one are two."""
    owner = "{tags: 5x, tagz: [], identities: [[ants]], aliases: {Bugs: ants, ants: bees}}"
    shares = "{ants: 50, bugs: 50}"
    pool = f"{{name: p, match: {{}}, ladder: [{{basis: fixed, percentages: {shares}}}, {{basis: unallocated}}]}}"
    faults = folder.faults(BASE.replace("{tags: [team]}", owner) + f"    pools: [{pool}]\n")
    assert [line.split(" ")[1] for line in faults] == [
        f"tenants[0].{name}:" for name in ("owner.identities[0]", "owner.tagz", "owner.aliases.Bugs")
    ]
    owner = "{tags: [team], identities: ants, aliases: {Bugs: [ants]}}"
    found = folder.faults(BASE.replace("{tags: [team]}", owner) + f"    pools: [{pool}]\n")
    assert [line.split(" ")[1] for line in found] == ["tenants[0].owner.identities:", "tenants[0].owner.aliases.Bugs:"]


@pytest.mark.parametrize(
    ("was", "becomes", "wrong"),
    [
        ("id: acme", "id: [acme]", ["id"]),
        ("id: acme", "id: Acme Inc", ["id"]),
        ("id: acme", "id:", ["id"]),
        ("id: acme", "operator: ops", ["id"]),
        ("name: p,", "name: [p],", ["pools[0].name"]),
        ("name: p,", "name: a b,", ["pools[0].name"]),
        ("name: p,", "", ["pools[0].name"]),
        ("match: {service: A}", "match: A", ["pools[0].match"]),
        ("match: {service: A}", "match: [A]", ["pools[0].match"]),
        ("match: {service: A}", "match:", ["pools[0].match"]),
        ("match: {service: A}, ", "", ["pools[0].match"]),
        ("{service: A}", "{service: {a: b}}", ["pools[0].match.service"]),
        ("{service: A}", "{service: }", ["pools[0].match.service"]),
        ("{service: A}", "{service: ['', A], region: []}",
         ["pools[0].match.service[0]", "pools[0].match.region"]),
        ("{service: A}", "{tag: 5}", ["pools[0].match.tag"]),
        ("{service: A}", "{service: [], tag: }", ["pools[0].match.service", "pools[0].match.tag"]),
        ("{service: A}", "{tag: {app: [[x]], '': y}}",
         ["pools[0].match.tag.app[0]", "pools[0].match.tag."]),
        ("{service: A}", "{tag: {app: , a: b}, servcie: A}",
         ["pools[0].match.tag.app", "pools[0].match.servcie"]),
        ("window: day", "window: week", ["pools[0].window"]),
        ("window: day", "window: [day]", ["pools[0].window"]),
        ("name: p, match: {service: A}, window: day", "name: 'p ', match: , window: 1",
         ["pools[0].name", "pools[0].match", "pools[0].window"]),
    ],
)  # fmt: skip
def test_a_name_or_condition_of_another_type_hides_no_rule(
    folder: Folder, was: str, becomes: str, wrong: list[str]
) -> None:
    """Of its own tenant or pool; nor does it make a fault of another pool's name or match."""
    base = with_pools(
        "{name: p, match: {service: A}, window: day, ladder: [{basis: operator}]}",
        "{name: q, match: {region: B}, ladder: tax_default}",
        "{name: q, match: {region: BB}, ladder: tax_default}",
        "{name: r, match: {region: B}, ladder: tax_default}",
    )
    assert was in base
    faults = folder.faults(base.replace(was, becomes))
    found = [line.partition("tenants[0].")[2].split(": ")[0] for line in faults]
    rules = [] if becomes.startswith("operator") else ["pools[0].ladder[0]"]
    assert sorted(found[: len(wrong)]) == sorted(wrong)
    assert found[len(wrong) :] == [*rules, "pools[2].name", "pools[3].match"]


@pytest.mark.parametrize("pools", ["p", "{p: q}", "7", ""])
def test_pools_of_another_type_hide_no_rule(folder: Folder, pools: str) -> None:
    ladders = "ladders: {own: [{basis: operator}]}"
    owner = BASE.replace("{tags: [team]}", "{tags: [team], aliases: {a: b, b: c}}")
    faults = folder.faults(f"{owner}    {ladders}\n    pools: {pools}\n")
    assert [line.split(" ")[1] for line in faults] == [
        f"tenants[0].{name}:" for name in ("pools", "owner.aliases.a", "ladders.own[0]")
    ]


def test_a_pool_that_is_none_hides_no_rule_of_others(folder: Folder) -> None:
    faults = folder.faults(with_pools("p", "{name: q, match: {region: A}, ladder: [{basis: operator}]}", "[]"))
    assert [line.split(" ")[1] for line in faults] == [
        f"tenants[0].{name}:" for name in ("pools[0]", "pools[2]", "pools[1].ladder[0]")
    ]


@pytest.mark.parametrize(
    ("products", "wrong"),
    [
        ("KAFKA_BASE: 5", ["products.KAFKA_BASE"]),
        ("KAFKA_BASE: {ladder: {a: b}}", ["products.KAFKA_BASE.ladder"]),
        ("KAFKA_BASE: {parts: half}", ["products.KAFKA_BASE.parts"]),
        ("KAFKA_BASE: {ladder: even, partial_life: half}", ["products.KAFKA_BASE.partial_life"]),
        ("'a b': {ladder: even}", ["products.a b"]),
        ("'a b': {ladder: {zzz: 1}, zzz: 1}", ["products.a b", "products.a b.ladder", "products.a b.zzz"]),
    ],
)
def test_a_product_that_cannot_be_read_hides_no_rule_of_others(folder: Folder, products: str, wrong: list[str]) -> None:
    ladders = "{even: [{basis: unallocated}], 'a b': [{basis: unallocated}]}"
    products = f"{{{products}, SUPPORT: {{ladder: [{{basis: usage}}, {{basis: unallocated}}]}}}}"
    faults = folder.faults(f"{API}    ladders: {ladders}\n    products: {products}\n")
    assert [line.partition("tenants[0].")[2].split(": ")[0] for line in faults] == [
        "ladders.a b",
        *wrong,
        "products.SUPPORT.ladder[0]",
    ]


def test_products_of_another_type_hide_no_rule(folder: Folder) -> None:
    faults = folder.faults(f"{API}    ladders: {{own: [{{basis: operator}}]}}\n    products: [SUPPORT]\n")
    assert [line.split(" ")[1] for line in faults] == ["tenants[0].products:", "tenants[0].ladders.own[0]:"]


@pytest.mark.parametrize("ladders", ["own", "[own]", "7", ""])
def test_ladders_of_another_type_hide_no_rule(folder: Folder, ladders: str) -> None:
    """And no ladder is unknown for them that may be one of theirs."""
    pools = (
        "{name: p, match: {service: A}, ladder: own}",
        "{name: q, match: {service: AA}, parts: [{share: 0.5, ladder: own}, {share: 0.4, ladder: [{basis: usage}]}]}",
        "{name: r, match: {service: B}, ladder: 'a b'}",
    )
    faults = folder.faults(with_pools(*pools, more=(f"ladders: {ladders}",)))
    assert [line.split(": ")[1] for line in faults] == [
        f"tenants[0].{name}"
        for name in (
            "ladders",
            "pools[2].ladder",
            *3 * ("pools[1].parts[1].ladder[0]",),
            "pools[1].parts",
        )
    ]
    products = "{A: {ladder: own}, B: {ladder: [{basis: operator}]}, C: {parts: [{share: 1, ladder: own}]}}"
    faults = folder.faults(f"{API}    ladders: {ladders}\n    products: {products}\n")
    assert [line.split(" ")[1] for line in faults] == ["tenants[0].ladders:", "tenants[0].products.B.ladder[0]:"]


def test_a_name_that_is_none_is_told_beside_a_key_that_looks_like_its_fault(folder: Folder) -> None:
    """Pydantic calls the place of a wrong key `[key]`."""
    more = (
        "    ladders: {'a b': {'[key]': 1}}\n    products: {'a b': {'[key]': 1, ladder: own}, '[key]': {ladder: 5x!}}\n"
    )
    assert [line.partition("tenants[0].")[2].split("; ")[0] for line in folder.faults(API + more)] == [
        "ladders.a b: value 'a b'",
        "ladders.a b: value a mapping",
        "products.a b: value 'a b'",
        "products.a b.[key]: unknown key '[key]'",
        "products.[key]: value '[key]'",
        "products.[key].ladder: value '5x!'",
    ]


def test_a_condition_with_a_name_that_there_is_not_takes_no_lines_of_other_pools(folder: Folder) -> None:
    """Without it the pool would take all lines of the later ones. Of what an earlier one takes, it has none anyway."""
    matches = ("{servcie: A}", "{servcie: B, tag: {a: x}}", "{region: C}", "{region: C, servcie: A}")
    pools = (f"{{name: p{n}, match: {match}, ladder: tax_default}}" for n, match in enumerate(matches))
    assert [line.split("; ")[0] for line in folder.faults(with_pools(*pools))] == [
        "prorata.yaml:8: tenants[0].pools[0].match.servcie: unknown key 'servcie'",
        "prorata.yaml:9: tenants[0].pools[1].match.servcie: unknown key 'servcie'",
        "prorata.yaml:11: tenants[0].pools[3].match.servcie: unknown key 'servcie'",
        "prorata.yaml:11: tenants[0].pools[3].match: pool 'p3' can never match, pool 'p2' takes all its lines",
    ]


@pytest.mark.parametrize("operator", ["[x]", "''"])
def test_an_operator_of_another_type_hides_no_rule_of_products(folder: Folder, operator: str) -> None:
    products = "{SUPPORT: {ladder: [{basis: usage}, {basis: operator}]}}"
    faults = folder.faults(f"{API}    operator: {operator}\n    products: {products}\n")
    assert [line.split(" ")[1] for line in faults] == [
        "tenants[0].operator:",
        "tenants[0].products.SUPPORT.ladder[0]:",
    ]


# ------------------------------------------------------------------------------------------------ the rulebook


def test_a_rulebook_is_read_as_strictly(tmp_path: Path) -> None:
    file = tmp_path / "book.yaml"
    file.write_text("ladders: {a: [{basis: even}]}\npols: []\nladders: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_rulebook(file)
    assert [line.removeprefix(f"{file}:") for line in caught.value.faults] == [
        "3: ladders: key 'ladders' stands twice (first in line 1); expected every key once",
        "2: pols: unknown key 'pols'; expected one of ladders, pools, month_window, products, default_product",
    ]


def test_an_empty_rulebook_has_nothing(tmp_path: Path) -> None:
    file = tmp_path / "book.yaml"
    file.write_text("")
    assert load_rulebook(file) == Rulebook()


API = """\
root: data
tenants:
  - id: streaming
    ecosystem: confluent_cloud
    source: {kind: confluent_cloud, api_key: "${KEY}", api_secret: "${SECRET}"}
"""
UNSHOWN = "(not shown, since it may be a secret)"
HIDDEN = "a value that may hold a secret, and is not shown"
NAMED = "${NAME}, an environment variable (or a line of .env) that holds it"
URL = "an http or https URL without user, password, query and fragment"


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ('"${SECRET}"', "hunter2hunter2", f"source.api_secret: {HIDDEN}; expected {NAMED}"),
        ('"${KEY}"', '"${}"', f"source.api_key: {HIDDEN}; expected {NAMED}"),
        ('"${KEY}"', "$KEY", f"source.api_key: {HIDDEN}; expected {NAMED}"),
        ('"${KEY}"', "[hunter2hunter2]", f"source.api_key: value a list; expected {NAMED}"),
        ('"${SECRET}"}', '"${SECRET}", url: "https://me:hunter2@x"}', f"source.url: {HIDDEN}; expected {URL}"),
        ('"${SECRET}"}', '"${SECRET}", url: "https://x?t=hunter2"}', f"source.url: {HIDDEN}; expected {URL}"),
        ('"${SECRET}"}', '"${SECRET}", url: ftp://x}', f"source.url: {HIDDEN}; expected {URL}"),
        (
            '"${SECRET}"}',
            '"${SECRET}", currency: usd}',
            f"source.currency: {HIDDEN}; expected three capital letters, such as USD",
        ),
        (
            '"${SECRET}"}',
            '"${SECRET}", flink: {url: "https://{regoin}", keys: {r: {api_key: "${A}", api_secret: "${B}"}}}}',
            f"source.flink.url: {HIDDEN}; expected a URL with no other braces than {{region}} and {{cloud}}",
        ),
    ],
)
def test_what_may_be_a_secret_is_not_shown(folder: Folder, was: str, becomes: str, fault: str) -> None:
    assert folder.faults(API.replace(was, becomes)) == [f"prorata.yaml:5: tenants[0].{fault}"]


CANARY = "S3cr3tPassw0rd"
OF_REGION = "{api_key: '${A}', api_secret: '${B}'}"


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (f"source: https://key:{CANARY}@api", "source: value a text; expected a mapping"),
        (f"metrics: https://reader:{CANARY}@prom:9090", "metrics: value a text; expected a mapping"),
        (f"metrics: [https://reader:{CANARY}@prom]", "metrics: value a list; expected a mapping"),
        (f"metrics:\n      https://reader:{CANARY}@prom:9090", "metrics: value a text; expected a mapping"),
        (f"metrics: {{url: http://p, timeout_seconds: {CANARY}}}", f"metrics.timeout_seconds: {HIDDEN}; expected a"),
        (f"metrics: {{url: http://p, {CANARY}: bearer}}", f"metrics.*: unknown key {UNSHOWN}; expected one of url,"),
        (f"metrics: {{url: http://p, {{{CANARY}}}: bearer}}", "a key that is not text; expected a name"),
        (f"metrics: {{url: http://p, bearer: *{CANARY}}}", "found undefined alias (not shown); expected valid YAML"),
        (f"metrics: {{url: http://p, bearer: !{CANARY}!x y}}", "found undefined tag handle (not shown); expected"),
        (
            f"metrics: {{url: http://p, {CANARY}, {CANARY}}}",
            f"metrics.*: key {UNSHOWN} stands twice (first in line 6); expected every key once",
        ),
        (f"flink: https://k:{CANARY}@flink", "source.flink: value a text; expected a mapping"),
        (f"flink: {{keys: {{us: 'KEY:{CANARY}'}}}}", "source.flink.keys.*: value a text; expected a mapping"),
        (f"flink: {{keys: {{{CANARY}: KEY}}}}", "source.flink.keys.*: value a text; expected a mapping"),
        (f"flink: {{keys: {{'{CANARY}!': {OF_REGION}}}}}", f"source.flink.keys.*: {HIDDEN}; expected text like"),
        (f"flink: {{keys: {{us: {{api_key: '${{A}}', KEY: {CANARY}}}}}}}", "source.flink.keys.*.api_secret: missing;"),
    ],
)
def test_no_text_and_no_key_beside_credentials_is_shown(folder: Folder, lines: str, fault: str) -> None:
    if lines.startswith("flink"):
        text = API.replace('${SECRET}"', f'${{SECRET}}", {lines}')
    else:
        rest = [line for line in API.splitlines() if not line.strip().startswith(lines.partition(":")[0])]
        text = "\n".join([*rest, f"    {lines}", ""])
    found = folder.faults(text)
    assert any(fault in line for line in found), found
    assert CANARY not in "".join(found)


NO_URL = "a path on this machine, and no URL"
ADDRESS = "a host, and behind a colon its port, a number up to 65535"
AWS = """\
root: data
tenants:
  - id: t
    ecosystem: aws
    source: {kind: aws_cur, path: bills}
    owner: {tags: [owner]}
"""


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIAX:{CANARY}@bucket/x",
        f"s3://AKIAX:wJal/{CANARY}@bucket/x",
        f"https://u:{CANARY}'s@x/t.csv",
        f"https://u: {CANARY}@x/t.csv",
        f"https:/u:{CANARY}@x",
        f"https://x/t.csv?sig={CANARY}",
        f"https://x/t.csv#access_token={CANARY}",
        f"jdbc+x.y-1://db;password={CANARY}",
    ],
)
def test_a_url_in_the_place_of_a_path_or_a_name_is_refused_and_not_shown(folder: Folder, url: str) -> None:
    text = json.dumps(url)
    for was, becomes, where, expected in (
        ("data", text, "1: root", NO_URL),
        ("bills", text, "5: tenants[0].source.path", NO_URL),
        ("[owner]}\n", f"[owner]}}\n    keys: [{text}]\n", "7: tenants[0].keys[0]", NO_URL),
        ("[owner]}\n", f"[owner]}}\n    teams: {{tags: {text}}}\n", "7: tenants[0].teams.tags", NO_URL),
        ("[owner]}\n", f"[owner]}}\n    emitters: [{text}]\n", "7: tenants[0].emitters[0]", "one of 'sqlite'"),
        ("id: t\n", f"id: {text}\n", "3: tenants[0].id", "text like"),
        ("aws\n", f"{text}\n", "4: tenants[0].ecosystem", "one of 'aws'"),
        ("[owner]}\n", f"[owner]}}\n    {text}: x\n", "7: tenants[0].*", "one of id,"),
    ):
        found = folder.faults(AWS.replace(was, becomes))
        assert found[0].startswith(f"prorata.yaml:{where}: "), found
        assert f"; expected {expected}" in found[0]
        assert CANARY not in "".join(found)
    api = API.replace('${SECRET}"', f'${{SECRET}}", ca_bundle: {text}')
    assert folder.faults(api) == [f"prorata.yaml:5: tenants[0].source.ca_bundle: {HIDDEN}; expected {NO_URL}"]


@pytest.mark.parametrize(
    "url",
    [
        f"https://reader:{CANARY}",
        f"http://reader:{CANARY}/x",
        f"http://reader;{CANARY}",
        "http://h:65536",
        "http://h:",
        "http://[::1",
        "http://h:1:2",
    ],
)
def test_a_port_that_is_no_number_is_refused_and_not_shown(folder: Folder, url: str) -> None:
    api = API.replace('${SECRET}"', f'${{SECRET}}", url: "{url}"')
    assert folder.faults(api) == [f"prorata.yaml:5: tenants[0].source.url: {HIDDEN}; expected {ADDRESS}"]


@pytest.mark.parametrize(
    "url", ["http://h:1", "http://[::1]:9090/x", "https://[fe80::1]", "http://pröm.example/a:b", "http://h_1"]
)
def test_a_url_may_have_a_port(folder: Folder, url: str) -> None:
    assert folder.faults(API.replace('${SECRET}"', f'${{SECRET}}", url: "{url}"')) == []


def test_no_text_and_no_key_beside_the_credentials_of_a_kafka_cluster_is_shown(folder: Folder) -> None:
    source = (
        f"{{kind: cost_model, cluster_id: {{x: 1}}, admin: {{password: {CANARY}, {CANARY}: password}}, regoin: eu}}"
    )
    text = API.replace("confluent_cloud\n", "self_managed_kafka\n").replace(API.splitlines()[4][12:], source)
    found = folder.faults(text)
    assert CANARY not in "".join(found)
    assert [line.partition("source.")[2].partition(";")[0] for line in found[:6]] == [
        "cluster_id: value a mapping",
        "broker_count: missing",
        "rates: missing",
        "admin.bootstrap_servers: missing",
        f"admin.password: {HIDDEN}",
        f"admin.*: unknown key {UNSHOWN}",
    ]
    assert "unknown key 'regoin'" in found[6]
