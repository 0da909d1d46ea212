"""SQL files are found by name, and only by names that are there."""

from __future__ import annotations

import pytest

from engine.errors import StoreError
from engine.sqlfiles import names, read_sql, sql_folder


def test_names_are_sorted_and_each_is_read() -> None:
    assert names("state")[0] == "0001"
    assert names("state") == sorted(names("state"))
    assert read_sql("state", "0001") == (sql_folder() / "state" / "0001.sql").read_text(encoding="utf-8")
    assert names("nothing") == []


@pytest.mark.parametrize("name", ["../state/0001", "0001.sql", "", "'; --\n"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(StoreError, match=r"^sql/results: no SQL file named .*; expected one of 0001") as raised:
        read_sql("results", name)
    assert "\n" not in str(raised.value)
