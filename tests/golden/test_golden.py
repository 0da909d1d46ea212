"""A small bill with everything in it gives what it gave before: every amount, line id, rule version and digest.

An upgrade of a library, or of ours, that changes any of them would calculate all of everybody's history again, or
differently: this test says so first.
"""

from __future__ import annotations

from pathlib import Path

from tests.golden.bill import EXPECTED, described


def test_the_bill_gives_what_it_gave_before(tmp_path: Path) -> None:
    assert described(tmp_path).splitlines() == EXPECTED.read_text(encoding="utf-8").splitlines()
