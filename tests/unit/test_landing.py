"""Landed answers: whole or not there, read back as they came, and what a file that is none says."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SourceError, StoreError
from engine.sources.answers import Answer
from engine.sources.landing import Landing

PAGES = [Answer("/a?x=1", 200, '{"data": [0.10,\r\n "\u2028\ud800ü"]}'), Answer("/b", 404, "")]


def test_pages_come_back_as_they_were(tmp_path: Path) -> None:
    landing = Landing(tmp_path / "raw" / "acme")
    assert not landing.has("costs-2025-10-01-2025-11-01")
    assert landing.names() == []
    assert landing.write("costs-2025-10-01-2025-11-01", iter(PAGES)) == 2
    assert landing.write("empty", []) == 0
    assert landing.has("empty")
    assert landing.names() == ["costs-2025-10-01-2025-11-01", "empty"]
    assert landing.read("costs-2025-10-01-2025-11-01") == PAGES
    assert landing.read("empty") == []


@given(st.lists(st.builds(Answer, st.text(max_size=20), st.integers(100, 599), st.text()), max_size=5))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, pages: list[Answer]) -> None:
    landing = Landing(tmp_path_factory.mktemp("landing"))
    landing.write("x", pages)
    assert landing.read("x") == pages


def test_the_same_pages_make_the_same_bytes(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    landing.write("a", PAGES)
    landing.write("b", PAGES)
    assert landing.path("a").read_bytes() == landing.path("b").read_bytes()


def test_what_fails_in_between_leaves_what_was(tmp_path: Path) -> None:
    def failing() -> Iterator[Answer]:
        yield PAGES[0]
        raise SourceError("the API went away")

    landing = Landing(tmp_path)
    with pytest.raises(SourceError, match="went away"):
        landing.write("x", failing())
    assert list(tmp_path.iterdir()) == []
    landing.write("x", PAGES)
    with pytest.raises(SourceError, match="went away"):
        landing.write("x", failing())
    assert landing.read("x") == PAGES
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl.zst"]


def test_a_file_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, landing, fsync = [], Landing(tmp_path), os.fsync

    def noted(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((target.name, landing.has("x")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    landing.write("x", PAGES)
    assert seen == [("x.jsonl.zst.part", False), (tmp_path.name, True)]


def test_what_a_killed_run_left_is_no_landed_file(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    (tmp_path / "x.jsonl.zst.part").write_bytes(b"half")
    assert (landing.has("x"), landing.names()) == (False, [])
    landing.write("x", PAGES)
    assert landing.read("x") == PAGES
    assert len(list(tmp_path.iterdir())) == 1


def compressed(path: Path, content: bytes) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)


def test_every_torn_file_is_named(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    landing.write("x", PAGES)
    path = landing.path("x")
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError, match=r"x\.jsonl\.zst: .*; expected landed answers, whole") as caught:
            landing.read("x")
        assert "\n" not in str(caught.value)


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    landing.write("x", PAGES)
    path = landing.path("x")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert landing.read("x") == PAGES, place
        except StoreError as error:
            assert str(path) in str(error)  # noqa: PT017 - a bit that means nothing may pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"no json\n",
        b'{"pages": 1, "sha256": "00"}\n',
        b'{"url": "/", "status": 200, "body": ""}\n',
        b'{"url": "/", "status": 200, "body": {}}\n{"pages": 1, "sha256": "00"}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: bytes) -> None:
    compressed(tmp_path / "x.jsonl.zst", content)
    with pytest.raises(StoreError, match=r"x\.jsonl\.zst: is torn, or of another make; expected landed answers, whole"):
        Landing(tmp_path).read("x")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.jsonl\.zst: No such file or directory"):
        Landing(tmp_path).read("x")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Landing(tmp_path / "file" / "raw").write("x", PAGES)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../x", "a\0", "a\n", "ü", "a b", "x" * 201])
def test_no_text_from_outside_becomes_a_path(tmp_path: Path, name: str) -> None:
    landing = Landing(tmp_path)
    for use in (landing.has, landing.read, landing.path, lambda given: landing.write(given, PAGES)):
        with pytest.raises(StoreError, match="is no name of landed answers"):
            use(name)


def test_threads_land_beside_each_other(tmp_path: Path) -> None:
    landing = Landing(tmp_path)
    threads = [threading.Thread(target=landing.write, args=(f"x{number}", PAGES * 50)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [landing.read(name) for name in landing.names()] == [PAGES * 50] * 8
