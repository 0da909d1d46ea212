"""Tag tables: CSV in, TAGS out, and what each bad row says."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ContractError, SourceError
from engine.frames import TAGS, check_rows
from engine.sources.tag_table import read_tag_tables

HEADER = "identity,key,value\n"
KEY = "a name of letters, digits, _ and -, of at most 63"
SHORT = "a text of at most 500 letters, without control characters"


def written(folder: Path, text: str | bytes, name: str = "tags.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(*paths: Path, kind: type[ContractError | SourceError] = ContractError) -> list[str]:
    """What is said, without the folder's name."""
    with pytest.raises(kind) as caught:
        read_tag_tables(paths, "acme")
    assert all(said.isprintable() for said in caught.value.faults)
    return [said.replace(f"{paths[0].parent}/", "") for said in caught.value.faults]


def test_rows_become_tags_in_the_order_of_their_key(tmp_path: Path) -> None:
    first = written(tmp_path, HEADER + ' sa-2 ,team, pay \nsa-1,team,"a, ""b"""\n')
    second = written(tmp_path, "value,identity,key\n=1+1,sa-1,cost-center\n", "more.csv")
    found = check_rows(read_tag_tables([first, second], "acme"), TAGS)
    assert found.rows() == [
        ("acme", "sa-1", "cost-center", "=1+1"),
        ("acme", "sa-1", "team", 'a, "b"'),
        ("acme", "sa-2", "team", "pay"),
    ]


def test_no_table_and_a_table_without_rows(tmp_path: Path) -> None:
    assert read_tag_tables([], "acme").schema == read_tag_tables([written(tmp_path, HEADER)], "acme").schema
    assert read_tag_tables([written(tmp_path, "\ufeff" + HEADER)], "acme").is_empty()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("identity,key", ["tags.csv: column value is missing; expected identity, key, value"]),
        ("identity,key,value,team", ["tags.csv: unknown column 'team'; expected identity, key, value"]),
        ("identity,key,value,key", ["tags.csv: column key stands 2 times; expected it once"]),
        ("Identity,key,value", [
            "tags.csv: column identity is missing; expected identity, key, value",
            "tags.csv: unknown column 'Identity'; expected identity, key, value",
        ]),
    ],
)  # fmt: skip
def test_a_wrong_header(tmp_path: Path, header: str, said: list[str]) -> None:
    assert faults(written(tmp_path, f"{header}\n")) == said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (" ,team,x", "column identity: value ''; expected an id that is not blank"),
        ("a,,x", f"column key: value ''; expected {KEY}"),
        ("a,cost center,x", f"column key: value 'cost center'; expected {KEY}"),
        (f"a,{'k' * 64},x", f"column key: value '{'k' * 64}'; expected {KEY}"),
        ("a,team, ", "column value: value ''; expected a text that is not blank"),
        ('a,team,"x\x1by"', f"column value: value 'x\\x1by'; expected {SHORT}"),
        ("a,team,UnAllocated", "column value: value 'UnAllocated'; expected a team whose name is not reserved"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_file_and_line(tmp_path: Path, row: str, said: str) -> None:
    text = f"{HEADER}b,note,fine\n"
    assert faults(written(tmp_path, f"{text}{row}\nc,team,x\n")) == [f"tags.csv:3: {said}"]


def test_a_value_that_is_too_long(tmp_path: Path) -> None:
    assert read_tag_tables([written(tmp_path, f"{HEADER}a,k,{'x' * 500}\n")], "acme").height == 1
    (said,) = faults(written(tmp_path, f"{HEADER}a,k,{'x' * 501}\n"))
    assert said.endswith(f"expected {SHORT}")
    assert len(said) < 250


def test_nobody_may_be_the_value_of_another_key(tmp_path: Path) -> None:
    assert read_tag_tables([written(tmp_path, f"{HEADER}a,note,unallocated\n")], "acme").height == 1


def test_all_faults_at_once_and_of_many_the_first(tmp_path: Path) -> None:
    said = faults(written(tmp_path, HEADER + "a,,\n" * 30))
    assert len(said) == 20 + 1
    assert said[-1] == "... and 40 more"


def test_a_key_that_stands_twice_is_refused_be_it_the_same_value(tmp_path: Path) -> None:
    first = written(tmp_path, HEADER + "a,team,x\na,note,x\nb,team,x\n a ,team,x\n")
    second = written(tmp_path, HEADER + "b,team,y\nB,team,y\n", "more.csv")
    assert faults(first, second) == [
        "tags.csv:5: key 'team' of 'a' stands in tags.csv:2 already; expected every key of an identity once",
        "more.csv:2: key 'team' of 'b' stands in tags.csv:4 already; expected every key of an identity once",
    ]
    assert len(faults(first, first)) == 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in faults(tmp_path / "none.csv", kind=SourceError)[0]
    assert "the file is empty" in faults(written(tmp_path, ""), kind=SourceError)[0]
    assert "expected UTF-8" in faults(written(tmp_path, HEADER.encode() + b"a,team,\xff\n"))[0]
    assert faults(written(tmp_path, HEADER + "a,team\n")) == ["tags.csv:2: 2 fields; expected 3, as in the header"]
    assert faults(written(tmp_path, HEADER + "a,team,x,y\n")) == ["tags.csv:2: 4 fields; expected 3, as in the header"]
