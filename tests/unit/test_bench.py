"""Benchmarks check what they time: each variant gives the right result, and a wrong one is refused."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bench import report
from bench.measure import (
    CASES,
    CHECKOUT,
    Answer,
    Case,
    Figure,
    Report,
    Target,
    Variant,
    Watch,
    WrongResultError,
    case_named,
    child,
)


@pytest.fixture(scope="module", params=CASES)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case, folder = case_named(request.param), tmp_path_factory.mktemp(request.param)
    case.prepare(folder, "tiny")
    return case, folder


def test_every_variant_gives_the_right_result_and_a_wrong_one_is_refused(prepared: tuple[Case, Path]) -> None:
    case, folder = prepared
    for name, variant in case.variants.items():
        watch = Watch()
        answer = variant.run(folder, watch)
        assert answer.rows > 0
        assert watch.seconds > 0
        case.check(folder, name, answer)
        wrong = answer._replace(found=partial(_spoiled, answer.found()))
        with pytest.raises(WrongResultError):
            case.check(folder, name, wrong)


def _spoiled(found: Any) -> Any:
    """The result with the least error that it may not have."""
    match found:
        case pl.DataFrame() if "digest" in found.columns:
            return found.with_columns(digest=pl.col("digest").str.reverse())
        case pl.DataFrame() | pl.LazyFrame():
            off = 1e-6 if found.lazy().collect_schema()["amount"] == pl.Float64 else Decimal("0.000000000001")
            first = pl.int_range(pl.len()) == 0
            return found.with_columns(pl.when(first).then(pl.col("amount") + off).otherwise("amount").alias("amount"))
        case list():
            return found[:-1]
        case int():
            return found + 1
        case _:
            return "" if found else "something"


def test_what_start_up_times_is_compiled_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "bytecode"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    case_named("start_up").prepare(tmp_path, "tiny")
    command = [sys.executable, "-v", "-c", "import cli, engine.pipeline"]
    said = subprocess.run(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, check=True).stderr
    compiled_now = re.findall(f"code object from {re.escape(str(CHECKOUT))}/((?:cli|engine).*)", said)
    assert (compiled_now, "import 'engine.pipeline'" in said) == ([], True)


def test_variants_and_targets_name_variants_of_their_case(prepared: tuple[Case, Path]) -> None:
    case, _ = prepared
    for variant in case.variants.values():
        assert variant.like in {"", *case.variants}
    for target in case.targets:
        assert {target.variant, target.against or target.variant} <= case.variants.keys()


def test_a_variant_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    child("kernel", "prepare", tmp_path, "tiny")
    figure = Figure(**child("kernel", "time", tmp_path, "prorata"))
    assert figure.rows == 500 * 20
    assert 0 < figure.seconds <= figure.median
    assert figure.peak_mb > 1


def _report() -> Report:
    def nothing(_folder: Path, _watch: Watch) -> Answer:
        return Answer(0, lambda: None)

    variants = {"ours": Variant(nothing), "theirs, sample": Variant(nothing, like="ours")}
    targets = (
        Target("at least 2 M rows/s", "ours", "rate", at_least=2e6),
        Target("twice as fast", "ours", "seconds", "theirs, sample", at_most=0.5),
        Target("under 100 MB", "ours", "peak", at_most=100),
    )
    case = Case("demo", "A demonstration", "rows", lambda *_: None, variants, lambda *_: None, targets)
    figures = {"ours": Figure(10**6, 1.0, 1.5, 99.6), "theirs, sample": Figure(10**5, 0.4, 0.4, 200.0)}
    return Report(case, figures)


def test_samples_are_compared_row_for_row_and_targets_that_are_missed_say_so() -> None:
    demo = _report()
    assert demo.ratio("ours") is None
    assert demo.ratio("theirs, sample") == pytest.approx(0.25)
    assert [report.verdict(demo, target) for target in demo.case.targets] == [
        (False, "1.00 M/s"),
        (True, "0.25 x"),
        (True, "100 MB"),
    ]


def test_figures_go_between_their_marks_in_the_readme_and_below_each_other_in_the_csv(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- figures: demo -->\nold\n<!-- end: demo -->\nafter\n", encoding="utf-8")
    report.write_readme([_report()], readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- figures: demo -->\nA demonstration. Commit ")
    assert text.endswith("<!-- end: demo -->\nafter\n")
    assert "| theirs, sample | 100,000 | 0.400 | 0.400 | 250 k | 0.25 x | 200 |" in text
    assert "| at least 2 M rows/s | 1.00 M/s | **no** |" in text
    assert "old" not in text

    results = tmp_path / "results.csv"
    for _ in range(2):
        report.append([_report()], "full", results)
    with results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["ours", "theirs, sample"] * 2
    assert rows[0]["rows_per_second"] == "1000000"


def test_the_readme_has_a_place_for_every_case() -> None:
    text = report.README.read_text(encoding="utf-8")
    for name in CASES:
        assert f"<!-- figures: {name} -->" in text
        assert f"<!-- end: {name} -->" in text
