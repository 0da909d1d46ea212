"""Which questions a day of a cost model needs, when they are asked again, and what a day that has lines never loses."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import polars as pl
import pytest

from tests.doubles.exporter import DAY, GIB, MINUTE, START, Cluster
from tests.doubles.prometheus import Row, prometheus
from tests.functional.bills import prorata
from tests.integration.cost_tenants import FIRST, RATES, Between, Root, kafka, metrics
from tests.unit import scripted
from tests.unit.scripted import Reply

COMPUTE, STORAGE, INGRESS, EGRESS = (
    f"SELF_KAFKA_{name}" for name in ("COMPUTE", "STORAGE", "NETWORK_INGRESS", "NETWORK_EGRESS")
)
FIVE = {"scrape_seconds": "300"}
DAYS = 6
WHOLE = Decimal("9.60")
"""What a day of the cluster costs at RATES."""
WITHOUT_EGRESS = {name: price for name, price in RATES.items() if "egress" not in name}
NOTHING = Reply(200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": []}}))
REFUSED = Reply(422, '{"status": "error", "errorType": "execution", "error": "too many samples"}')
TYPO = {"selector": 'cluster="ue"'}
"""Prometheus is made to refuse it, as it does what is no regular expression (see `mistyped`)."""


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def sizes() -> Iterator[Row]:
    """What a server has by database, what it had on its first two days, and what lies there by namespace."""
    for moment in range(0, DAYS * DAY, 5 * MINUTE):
        for name, size in (("shop", 75), ("crm", 25)):
            yield Row("pg_size", {"datname": name}, START + moment, size * GIB)
            if moment < 2 * DAY:
                yield Row("old_size", {"datname": name}, START + moment, size * GIB)
        for name in ("a", "b", "c"):
            yield Row("ns_size", {"ns": name}, START + moment, GIB)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rows = chain(Cluster("eu", DAYS, step=5 * MINUTE).rows(), sizes())
    with prometheus(rows, tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.fixture
def between(url: str) -> Between:
    return Between(url)


def answering_nothing(between: Between, *words: str) -> None:
    """Nothing is found for what asks for one of these words, or without words, for any question."""

    def reply(request: scripted.Request) -> Reply:
        asked = unquote_plus(request.body) if "query_range" in request.target else ""
        return NOTHING if asked and (not words or any(word in asked for word in words)) else between.passed(request)

    between.reply = reply


def mistyped(between: Between) -> None:
    between.failing('cluster="ue"', REFUSED)


def answering_in_part(
    between: Between, share: Callable[[str, dict[str, str]], float], warnings: Sequence[str] = ()
) -> None:
    """Each value comes only to a share, by what is asked and by the labels of its series; at 0 it is not there."""

    def reply(request: scripted.Request) -> Reply:
        asked, found = unquote_plus(request.body), between.passed(request)
        if "step=" not in asked:
            return found
        content = json.loads(found.body)
        rows = [(row, share(asked, row["metric"])) for row in content["data"]["result"]]
        for row, part in rows:
            row["values"] = [[moment, str(float(value) * part)] for moment, value in row["values"]]
        content["data"]["result"] = [row for row, part in rows if part or COUNTS in asked]
        content["warnings"] = list(warnings)
        return Reply(200, json.dumps(content))

    between.reply = reply


COUNTS = "max by"
"""In what asks how many samples came, and in nothing else."""


def half_arrived(between: Between) -> None:
    """Half of a day's samples are there, and nothing of bob, whose come late."""

    def share(asked: str, labels: dict[str, str]) -> float:
        return 0 if labels.get("principal") == "User:bob" else 0.5 if COUNTS in asked else 1

    answering_in_part(between, share)


def without_bob(between: Between, warnings: Sequence[str] = ()) -> None:
    answering_in_part(between, lambda _, labels: labels.get("principal") != "User:bob", warnings)


def broker_joined(between: Between) -> None:
    """The second broker has no samples, as if it were to join on the day after."""
    answering_in_part(between, lambda asked, labels: not (COUNTS in asked and labels.get("broker") == "2"))


def half_forgotten(between: Between) -> None:
    """The same when a half is forgotten, and more than that of what bob sent."""

    def share(asked: str, labels: dict[str, str]) -> float:
        second = COUNTS in asked and labels.get("broker") == "2"
        return 0 if second else 0.2 if labels.get("principal") == "User:bob" else 0.5

    answering_in_part(between, share)


def eu(url: str, *, days: int = 4, rates: Any = RATES, **settings: Any) -> dict[str, Any]:
    source = {"rates": rates, **settings.pop("source", {})}
    asked = {**FIVE, **settings.pop("metrics", {})}
    return kafka("eu", url, lookback_days=str(days), metrics=asked, source=source, **settings)


def pg(url: str, *types: dict[str, Any], days: int = 4, **settings: Any) -> dict[str, Any]:
    found = {"label": "datname", "discovery_query": "pg_size"}
    source = {"kind": "cost_model", "cluster_id": "pg", "identity_source": found, "cost_types": list(types)}
    tenant = {"id": "pg", "ecosystem": "generic_metrics", "source": source, "metrics": metrics(url, **FIVE)}
    return {**tenant, "lookback_days": str(days), "cutoff_days": "0", **settings}


def stored(name: str, query: str, rate: Any, **settings: Any) -> dict[str, Any]:
    quantity = {"storage_gib": query}
    given = {"name": name, "product_category": "x", "rate": rate, "quantity": quantity, "allocation": "even_split"}
    return {**given, **settings}


FIXED = {"name": "FIX", "product_category": "x", "rate": "1", "quantity": {"fixed": "1"}, "allocation": "even_split"}


def billed(root: Root) -> Decimal:
    return Decimal(str(root.table("billing")["amount"].sum()))


def charged(root: Root) -> Decimal:
    return Decimal(str(root.table("chargeback")["amount"].sum()))


def lake(root: Root) -> dict[Path, bytes]:
    names = ("billing", "usage", "chargeback")
    return {file: file.read_bytes() for name in names for file in (root.root / "lake" / name).glob("**/*.parquet")}


def payers(root: Root, of: date) -> set[tuple[str, str, Decimal]]:
    rows = root.table("chargeback").filter(pl.col("charge_date") == of)
    return set(rows.select("product_type", "identity_id", "amount").rows())


def warned(root: Root, *words: str) -> list[str]:
    return [text for text in root.logged if "warning: " in text and all(word in text for word in words)]


# A day with lines is not made of less.


def test_a_change_that_is_taken_back_finds_its_answers(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url))
        root.run(day(6))
        before = lake(root)
        mistyped(between)
        root.write(eu(script.url, source=TYPO))
        assert root.run(day(6)).exit_code == 11
        root.write(eu(script.url))
        answering_nothing(between)  # As when its retention is over.
        planned = [root.plan(day(6))[str(day(number))] for number in range(2, 6)]
        assert {(one.gather_reason, one.calculate_reason) for one in planned} == {("made", "up_to_date")}
        summary = root.run(day(6))
        assert (summary.exit_code, summary.requests, summary.days_pending, summary.warnings) == (0, 0, 0, ())
        assert lake(root) == before
        assert {one.metrics_gathered for one in root.days("eu").values()} == {1}


def test_a_recalculation_finds_them_too(between: Between, tmp_path: Path) -> None:
    mistyped(between)
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url))
        root.run(day(6))
        root.write(eu(script.url, source=TYPO))
        assert root.run(day(6)).exit_code == 11
        root.write(eu(script.url, rates={**RATES, "compute_hourly_rate": "0.2"}))
        assert root.run(day(6), "recalculate").days_calculated == 4
    assert billed(root) == charged(root) == 4 * (WHOLE + Decimal("7.2"))


def test_days_keep_what_they_were_made_of_when_questions_are_given_up(between: Between, tmp_path: Path) -> None:
    mistyped(between)
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url))
        root.run(day(6))
        before = lake(root)
        root.write(eu(script.url, source=TYPO))
        codes = [root.run(day(6)).exit_code for _ in range(4)]
        assert codes == [11, 11, 11, 0]
        assert lake(root) == before
        [told] = set(warned(root, "4 days", "left as made before"))
        assert "storage was given up" in told
        assert "`prorata run --force`" in told
        assert root.plan(day(6))[str(day(2))].gather_reason == "answers_poorer"
        # Rules still reach them, with the usage that they have.
        root.write(eu(script.url, source=TYPO, ladders={"kafka_presence": [{"basis": "unallocated"}]}))
        root.run(day(6))
    assert {payer for product, payer, _ in payers(root, day(3)) if product == STORAGE} == {"UNALLOCATED"}
    assert {payer for product, payer, _ in payers(root, day(3)) if product == INGRESS} == {"User:alice", "User:bob"}


def test_days_that_are_named_are_made_of_what_there_is(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url))
    root.run(day(6))
    root.write(eu(url, source={"selector": 'cluster="nobody"'}))
    summary = root.run(day(6))
    assert (summary.exit_code, billed(root)) == (0, 4 * WHOLE)
    assert warned(root, "4 days", "left as made before", "storage: 0 of 288 samples, 288 of 288 before")
    # Whoever only asks again loses nothing.
    assert root.run(day(6), lift=True).requests > 1
    assert billed(root) == 4 * WHOLE
    root.run(day(6), lift=True, first=day(3), end=day(4))
    assert root.amounts(day(3)) == {COMPUTE: Decimal("7.2")}
    assert billed(root) == charged(root) == 3 * WHOLE + Decimal("7.2")
    root.run(day(6))
    assert billed(root) == charged(root) == 3 * WHOLE + Decimal("7.2")


def test_days_that_are_named_wait_for_no_samples(between: Between, tmp_path: Path) -> None:
    given = {"incomplete_below": "0.9"}
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, **given))
        root.run(day(6))
        root.write(eu(script.url, source={"selector": 'cluster="nobody"'}, **given))
        root.run(day(6))
        assert billed(root) == 4 * WHOLE
        summary = root.run(day(6), lift=True, first=day(3), end=day(4))
        assert (summary.days_calculated, summary.days_pending) == (1, 0)
        assert root.amounts(day(3)) == {COMPUTE: Decimal("7.2")}
        assert billed(root) == charged(root) == 3 * WHOLE + Decimal("7.2")
        root.logged.clear()
        summary = root.run(day(6))
        assert (summary.days_calculated, summary.days_pending) == (0, 3)
        assert warned(root, "3 of the days 2025-10-03 to 2025-10-06 left as made before")
        assert root.plan(day(6))[str(day(3))].calculate_reason == "up_to_date"
        # A rate that changes reaches it, without waiting.
        rates = {**RATES, "compute_hourly_rate": "0.2"}
        root.write(eu(script.url, rates=rates, source={"selector": 'cluster="nobody"'}, **given))
        root.run(day(6))
        assert root.amounts(day(3)) == {COMPUTE: Decimal("14.4")}
        # What is stored is charged.
        assert billed(root) == charged(root) == 3 * WHOLE + Decimal("14.4")


def test_a_day_that_waits_is_made_of_what_there_is_when_it_is_named(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2, incomplete_below="0.9"))
        answering_nothing(between)
        assert root.run(day(2)).days_pending == 2
        summary = root.run(day(2), lift=True, first=day(0), end=day(1))
        assert (summary.days_calculated, summary.days_pending) == (1, 0)
        root.logged.clear()
        summary = root.run(day(2))
        assert (summary.days_calculated, summary.days_pending) == (0, 1)
    assert charged(root) == Decimal("7.2")


def test_answers_that_are_lost_take_no_line_with_them(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url))
        root.run(day(6))
        before = lake(root)
        shutil.rmtree(root.root / "raw")
        answering_nothing(between)
        summary = root.run(day(6))
        assert (summary.exit_code, lake(root)) == (0, before)
        assert warned(root, "4 days", "left as made before")
        # Nor does who received what: an answer without anybody would leave it to nobody.
        root.write(eu(script.url, rates={**RATES, "compute_hourly_rate": "0.2"}))
        root.run(day(6))
        assert lake(root) == before


def test_an_answer_with_less_does_not_take_the_place_of_one_to_the_same_question(
    between: Between, tmp_path: Path
) -> None:
    with between.serving() as script:
        answering_nothing(between, "bytesout_total")
        root = Root(tmp_path, eu(script.url, days=1, incomplete_below="0.9"))
        assert root.run(day(6)).days_pending == 1
        answering_nothing(between)
        root.run(day(6))
        between.reply = between.passed
        answering_nothing(between, "bytesin_total", "log_size")
        assert root.run(day(6)).days_calculated == 1
        assert billed(root) == charged(root) == WHOLE


def test_a_day_of_which_half_is_forgotten_keeps_its_principals_too(tmp_path: Path) -> None:
    rows = [row for row in Cluster("eu", 1, step=5 * MINUTE).rows() if row.milliseconds != START + 5 * MINUTE]
    left = [row for row in rows if row.milliseconds > START + DAY // 2 and row.labels.get("principal") != "User:bob"]
    root = Root(tmp_path / "root")
    with prometheus(rows, tmp_path / "whole") as found:
        root.write(eu(found, days=1))
        root.run(day(1))
    before = lake(root)
    with prometheus(left, tmp_path / "left") as found:
        root.write(eu(found, days=1))
        assert root.run(day(1), lift=True).requests > 1
        assert lake(root) == before
        # Nor does it find them among what was landed and refused, when a change is taken back.
        for source in ({"selector": 'cluster="nobody"'}, {}):
            root.write(eu(found, days=1, source=source))
            root.run(day(1))
    assert lake(root) == before
    assert {payer for _, payer, _ in payers(root, day(0))} == {"User:alice", "User:bob"}


@pytest.mark.parametrize("how", ["asked again", "lost"])
def test_a_day_on_which_a_broker_came_is_not_made_of_less(between: Between, tmp_path: Path, how: str) -> None:
    """Of that broker none or few of the samples are there; what is less is told by all of them."""
    given = {"identity_source": "static", "static_identities": ["ops"]}
    broker_joined(between)
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1, rates={"network_ingress_per_gib": "0.01"}, source=given))
        root.run(day(6))
        assert ([one.came for one in root.incomplete()], billed(root)) == ([0], Decimal("0.24"))
        with closing(sqlite3.connect(root.root / "state.db")) as connection:
            # As of a day of before there were totals: it is counted again.
            connection.execute("UPDATE day_metrics SET total = ''")
            connection.commit()
        half_forgotten(between)
        if how == "lost":
            shutil.rmtree(root.root / "raw")
        assert root.run(day(6), lift=how != "lost").requests > 1
    assert (billed(root), charged(root)) == (Decimal("0.24"), Decimal("0.24"))
    assert len(warned(root, "left as made before", "ingress: 144 samples, 288 before")) == (how == "lost")
    assert len(warned(root, f"ingress: less came than before for 1 day ({day(5)}), and is not used")) == (how != "lost")


@pytest.mark.parametrize("how", ["a new price", "torn", "refused, and torn"])
def test_a_half_forgotten_day_keeps_who_pays(between: Between, tmp_path: Path, how: str) -> None:
    broker_joined(between)
    with between.serving() as script:
        rates = WITHOUT_EGRESS if how == "a new price" else RATES
        root = Root(tmp_path, eu(script.url, days=1, rates=rates))
        root.run(day(6))
        half_forgotten(between)
        if "refused" in how:
            assert root.run(day(6), lift=True).requests > 1
        if "torn" in how:
            torn(min((root.root / "raw").glob("**/bytes_in-*.zst")))
        root.write(eu(script.url, days=1, rates={**RATES, "compute_hourly_rate": "0.2"}))
        assert root.run(day(6)).requests > 1
        assert root.run(day(6)).requests == 0
    assert pays_for_ingress(root, day(5)) == BOTH_PAY
    assert billed(root) == charged(root)
    assert bool(warned(root, "left as made before", "bytes_in")) == ("torn" in how)


def test_what_failed_and_is_forgotten_is_not_missing(between: Between, tmp_path: Path) -> None:
    """Else what nobody could tell whose it is would be that of those whom the configuration names."""
    given = {"identity_source": "both", "static_identities": ["ops"]}
    between.failing(WHO, REFUSED)
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1, source=given, allocation_retry_limit="1"))
        root.run(day(6))
        before = lake(root)
        answering_nothing(between)
        for lift in (True, False):
            assert (root.run(day(6), lift=lift).requests > 1) == lift
            assert lake(root) == before
            assert root.plan(day(6))[str(day(5))].calculate_reason == "given_up"
            said = warned(root, "nobody is in the samples", str(day(5)), "--force` with --from and --to")
            assert bool(said) == lift
            root.logged.clear()
        root.run(day(6), lift=True, first=day(5), end=day(6))
    assert {payer for _, payer, _ in payers(root, day(5))} == {"ops"}


def test_what_was_given_up_is_said_as_long_as_days_are_made_without_it(between: Between, tmp_path: Path) -> None:
    between.reply = lambda _: Reply(503, "busy")
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url))
        assert [root.run(day(6)).exit_code for _ in range(4)] == [11, 11, 11, 0]
        assert billed(root) == charged(root) == 4 * Decimal("7.2")
        plan = root.plan(day(6))[str(day(3))]
        assert (plan.calculate_reason, plan.gather, plan.calculate) == ("given_up", False, False)
        assert plan.detail.startswith("bytes_in, attempt 3 of 3: ")
        checked = prorata(tmp_path, "check").stdout
        [told] = [line for line in checked.splitlines() if "given up" in line]
        assert "warning" in told
        assert f"bytes_in, bytes_out, egress, ingress, storage: given up for 4 days ({day(2)} to {day(5)})" in told
        assert "503" in told
        assert "none are missing" not in checked
        between.reply = between.passed
        root.run(day(6), lift=True)
        assert "none are missing" in prorata(tmp_path, "check").stdout
        assert root.plan(day(6))[str(day(3))].calculate_reason == "up_to_date"
    assert billed(root) == charged(root) == 4 * WHOLE


@pytest.mark.parametrize("table", ["billing", "usage"])
def test_days_that_are_lost_and_cannot_be_had_again_are_told_and_keep_their_charges(
    url: str, tmp_path: Path, table: str
) -> None:
    root = Root(tmp_path, eu(url))
    root.run(day(4))
    before = root.table("chargeback")
    shutil.rmtree(root.root / "raw")
    shutil.rmtree(root.root / "lake" / table)
    root.write(eu(url, days=1))
    plan = root.plan(day(6))[str(day(3))]
    assert (plan.gather_reason, plan.calculate_reason, plan.calculate) == ("answers_gone", "lost", False)
    summary = root.run(day(6))
    assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (0, 1, 0)
    [told] = warned(root, "lost from the lake")
    assert f"4 days ({day(0)} to {day(3)})" in told
    assert "days that lookback_days reaches are asked for again by each run" in told
    assert not warned(root, "left as made before")
    [told] = [line for line in prorata(tmp_path, "check").stdout.splitlines() if "lost from the lake" in line]
    assert f"4 days ({day(0)} to {day(3)})" in told
    # Another ladder would change what they charge, and a recalculation does all: they wait, and hold up no other.
    for command, settings in (
        ("run", {"ladders": {"kafka_presence": [{"basis": "unallocated"}]}}),
        ("recalculate", {}),
    ):
        root.write(eu(url, days=1, **settings))
        summary = root.run(day(6), command)
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (0, 1, 4)
    assert root.table("chargeback").filter(pl.col("charge_date") < day(4)).equals(before)
    # Once they may be asked for, all is as it was.
    root.write(eu(url, days=6))
    root.logged.clear()
    assert root.run(day(6)).exit_code == 0
    assert not warned(root, "lost from the lake")
    assert billed(root) == charged(root) == 6 * WHOLE


def test_days_that_a_lost_state_does_not_know_are_told_and_made_again_once_they_are_reached(
    url: str, tmp_path: Path
) -> None:
    root = Root(tmp_path, eu(url, days=3))
    for number in (3, 4, 5):
        root.run(day(number))
    before = lake(root)
    (root.root / "state.db").unlink()
    for _ in range(2):
        root.logged.clear()
        assert root.run(day(5)).exit_code == 0
        [told] = warned(root, "not known to state.db")
        assert f"2 days ({day(0)} to {day(1)})" in told
        assert not warned(root, "lost from the lake")
    [told] = [line for line in prorata(tmp_path, "check").stdout.splitlines() if "not known to state.db" in line]
    assert "a run with a lookback_days that reaches them makes them again" in told
    root.write(eu(url, days=5))
    root.logged.clear()
    assert (root.run(day(5)).exit_code, lake(root), warned(root)) == (0, before, [])
    assert prorata(tmp_path, "check").returncode == 0


@pytest.mark.parametrize("how", ["empty", "refused"])
def test_a_cost_type_that_is_renamed_keeps_its_line(between: Between, tmp_path: Path, how: str) -> None:
    by_size = {"allocation": "usage_ratio", "allocation_query": "pg_size", "allocation_label": "datname"}
    with between.serving() as script:
        root = Root(tmp_path, pg(script.url, FIXED, stored("STO", "sum(pg_size)", "0.001", **by_size)))
        root.run(day(6))
        before = billed(root)
        if how == "empty":
            answering_nothing(between)
        else:
            between.failing("pg_size", REFUSED)
        root.write(pg(script.url, FIXED, stored("STORAGE", "sum(pg_size)", "0.001", **by_size)))
        summary = root.run(day(6))
        assert (summary.exit_code, summary.requests, summary.days_pending) == (0, 0, 0)
    assert billed(root) == charged(root) == before
    storage = {(product, payer, amount) for product, payer, amount in payers(root, day(3)) if product != "FIX"}
    assert storage == {("STORAGE", "shop", Decimal("1.8")), ("STORAGE", "crm", Decimal("0.6"))}


def test_samples_of_two_questions_are_not_compared(tmp_path: Path) -> None:
    """A broker that joined on the day after makes a day 0 of 288 samples, when it is asked in another way."""
    rows = list(Cluster("eu", 2, step=5 * MINUTE).rows())
    joined = [row for row in rows if row.labels["broker"] == "1" or row.milliseconds >= START + DAY + DAY // 2]
    root = Root(tmp_path / "root")
    with prometheus([row for row in joined if row.milliseconds <= START + DAY], tmp_path / "early") as found:
        root.write(eu(found, days=1))
        root.run(day(1))
    assert root.incomplete() == []
    chosen = {"selector": 'cluster="eu", topic!=""'}
    with prometheus(joined, tmp_path / "whole") as found:
        root.write(eu(found, days=1, rates={**RATES, "compute_hourly_rate": "0.2"}, source=chosen))
        root.run(day(1))
    assert {one.came for one in root.incomplete()} == {0}
    assert root.amounts(day(0))[COMPUTE] == Decimal("14.4")
    assert not warned(root, "left as made before")


# What comes late.


def test_a_day_that_waited_for_samples_gets_its_principals_with_them(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1, incomplete_below="0.95"))
        answering_nothing(between)
        summary = root.run(day(1))
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (0, 0, 1)
        between.reply = between.passed
        summary = root.run(day(1))
        assert (summary.days_calculated, summary.days_pending) == (1, 0)
    assert billed(root) == charged(root) == WHOLE
    assert {(product, payer) for product, payer, _ in payers(root, day(0))} == {
        (product, payer) for product in (COMPUTE, STORAGE, INGRESS, EGRESS) for payer in ("User:alice", "User:bob")
    }
    assert set(root.table("resources")["type"]) == {"kafka_cluster", "broker", "topic"}
    assert root.run(day(1)).requests == 0


def test_new_samples_heal_a_day_at_a_real_prometheus(tmp_path: Path) -> None:
    """Half a day was there when it was asked first, and nothing of one of its principals."""
    rows = list(Cluster("eu", 1, step=5 * MINUTE).rows())
    early = [row for row in rows if row.milliseconds < START + DAY // 2 and row.labels.get("principal") != "User:bob"]
    root = Root(tmp_path / "root")
    with prometheus(early, tmp_path / "early") as found:
        root.write(eu(found, days=1, incomplete_below="0.95"))
        assert root.run(day(1)).days_pending == 1
    with prometheus(rows, tmp_path / "whole") as found:
        root.write(eu(found, days=1, incomplete_below="0.95"))
        assert root.run(day(1)).days_calculated == 1
    assert billed(root) == charged(root) == WHOLE
    shares = {payer: amount for product, payer, amount in payers(root, day(0)) if product == INGRESS}
    assert shares == {"User:alice": Decimal("0.18"), "User:bob": Decimal("0.06")}


WHO = "sum by (principal)"
"""In what asks who sent and received, and in nothing else."""
BOTH_PAY = {("User:alice", Decimal("0.18")), ("User:bob", Decimal("0.06"))}
"""Who pays for what came in on a day."""


def pays_for_ingress(root: Root, of: date) -> set[tuple[str, Decimal]]:
    return {(payer, amount) for product, payer, amount in payers(root, of) if product == INGRESS}


def test_who_is_in_late_samples_is_asked_until_it_is_answered(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2, incomplete_below="0.9"))
        half_arrived(between)
        assert root.run(day(2)).days_pending == 2
        between.failing(WHO, REFUSED)
        summary = root.run(day(2))
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (11, 0, 2)
        between.reply = between.passed
        summary = root.run(day(2))
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (0, 2, 0)
        assert pays_for_ingress(root, day(1)) == BOTH_PAY
        assert root.run(day(2)).requests == 0
    assert billed(root) == charged(root) == 2 * WHOLE


def test_a_charged_day_waits_for_who_is_in_samples_that_force_asked_for(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2))
        half_arrived(between)
        root.run(day(2))
        before = lake(root)
        between.failing(WHO, Reply(503, "busy"))
        summary = root.run(day(2), lift=True)
        assert (summary.exit_code, summary.days_pending, lake(root)) == (11, 2, before)
        assert root.plan(day(2))[str(day(1))].calculate_reason == "metrics_failed"
        between.reply = between.passed
        assert root.run(day(2)).exit_code == 0
    assert pays_for_ingress(root, day(1)) == BOTH_PAY


def test_who_is_in_late_samples_is_given_up_for_who_was_in_the_first(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1, incomplete_below="0.9", allocation_retry_limit="2"))
        half_arrived(between)
        root.run(day(1))
        between.failing(WHO, REFUSED)
        assert [root.run(day(1)).days_pending for _ in range(2)] == [1, 0]
        assert warned(root, "bytes_in: given up for 1 day", "what was answered before stays")
        assert pays_for_ingress(root, day(0)) == {("User:alice", Decimal("0.24"))}
        between.reply = between.passed
        assert root.run(day(1)).requests == 0
        told = f"bytes_in: given up for 1 day ({day(0)}), those in the first samples bear it ("
        checked = prorata(tmp_path, "check").stdout
        assert told in checked
        assert "none are missing" not in checked
        assert root.plan(day(1))[str(day(0))].calculate_reason == "given_up"
        root.run(day(1), lift=True)
        assert "none are missing" in prorata(tmp_path, "check").stdout
    assert pays_for_ingress(root, day(0)) == BOTH_PAY


def test_an_empty_answer_to_who_is_in_late_samples_is_asked_no_more(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1, incomplete_below="0.9"))
        half_arrived(between)
        root.run(day(1))
        answering_nothing(between, WHO)
        assert root.run(day(1)).days_pending == 0
        assert root.run(day(1)).requests == 0
    assert pays_for_ingress(root, day(0)) == {("User:alice", Decimal("0.24"))}


def test_force_asks_again_for_days_whose_samples_are_missing(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2))
        answering_nothing(between)
        root.run(day(6))
        assert billed(root) == 2 * Decimal("7.2")
        between.reply = between.passed
        assert root.run(day(6)).requests == 0
        root.run(day(6), lift=True, first=day(5), end=day(6))
        assert billed(root) == Decimal("7.2") + WHOLE
        root.run(day(6), lift=True)
        assert billed(root) == charged(root) == 2 * WHOLE
        assert "UNALLOCATED" not in set(root.table("chargeback")["identity_id"])
        assert root.run(day(6), lift=True).requests == 0


@pytest.mark.parametrize("how", ["warned of", "named"])
def test_an_answer_in_part_can_be_asked_for_again(between: Between, tmp_path: Path, how: str) -> None:
    """Nobody counts who is in samples: that all are there is not known, unless Prometheus says that they are not."""
    warnings = ["partial response"] if how == "warned of" else []
    without_bob(between, warnings)
    named = {"first": day(5), "end": day(6)} if how == "named" else {}
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2, rates={"network_ingress_per_gib": "0.01"}))
        root.run(day(6))
        assert pays_for_ingress(root, day(5)) == {("User:alice", Decimal("0.24"))}
        between.reply = between.passed
        assert root.run(day(6)).requests == 0
        assert root.run(day(6), lift=True, **named).days_calculated == (1 if named else 2)
        assert pays_for_ingress(root, day(5)) == BOTH_PAY
        # What was answered whole is asked again by no one but by name.
        assert root.run(day(6), lift=True).requests == 0
    assert billed(root) == charged(root) == Decimal("0.48")


def test_a_day_that_stays_since_there_is_less_is_asked_for_again(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=1))
        root.run(day(6))
        torn(min((root.root / "raw").glob("**/bytes_in-*.zst")))
        root.write(eu(script.url, days=1, rates={**RATES, "compute_hourly_rate": "0.2"}))
        without_bob(between)
        root.run(day(6))
        assert warned(root, "left as made before", "bytes_in: 1 value, 2 before", "`prorata run --force` asks again")
        between.reply = between.passed
        assert (root.run(day(6)).requests, billed(root)) == (0, WHOLE)
        assert root.run(day(6), lift=True).days_calculated == 1
    assert billed(root) == charged(root) == WHOLE + Decimal("7.2")
    assert pays_for_ingress(root, day(5)) == BOTH_PAY


def test_missing_samples_are_told_by_the_run_that_asks_or_makes_and_by_check(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2))
        half_arrived(between)
        root.run(day(2))
        told = "storage: samples are missing on 2 days"
        assert warned(root, told)
        root.logged.clear()
        assert root.run(day(2)).requests == 0
        assert not warned(root)
        assert told in prorata(tmp_path, "check").stdout
        assert told in prorata(tmp_path, "status").stdout
        # Whoever asks again hears it again.
        root.run(day(2), lift=True, first=day(1), end=day(2))
        assert warned(root, "storage: samples are missing on 1 day")
        root.logged.clear()
        # Whoever waits for them, too.
        root.write(eu(script.url, days=2, incomplete_below="0.9", source={"selector": 'cluster="eu", topic!=""'}))
        for _ in range(2):
            root.logged.clear()
            root.run(day(2))
            assert warned(root, told)


def test_scrape_seconds_that_are_mended_end_what_is_missing(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url, days=2, incomplete_below="0.9"))
    minutely = {**eu(url, days=2, incomplete_below="0.9"), "metrics": metrics(url, scrape_seconds="60")}
    root.write(minutely)
    assert root.run(day(2)).days_pending == 2
    assert {one.expected for one in root.incomplete()} == {1440}
    root.write(eu(url, days=2, incomplete_below="0.9"))
    planned = root.plan(day(2))[str(day(1))]
    assert (planned.gather_reason, planned.calculate_reason) == ("made", "never_calculated")
    root.logged.clear()
    summary = root.run(day(5))
    assert (summary.days_calculated, root.incomplete(), warned(root)) == (4, [], [])
    # A mistake that would make them incomplete takes nothing from a day that is charged.
    root.write({**minutely, "source": {**minutely["source"], "rates": {**RATES, "compute_hourly_rate": "0.2"}}})
    summary = root.run(day(5))
    assert (summary.days_calculated, summary.days_pending) == (4, 0)


def test_more_samples_than_scrape_seconds_says_are_told(url: str, tmp_path: Path) -> None:
    """They would hide that others are missing."""
    given = eu(url, days=2)
    root = Root(tmp_path, {**given, "metrics": metrics(url, scrape_seconds="900")})
    root.run(day(2))
    [told] = warned(root, "storage: 288 samples of a day came where scrape_seconds 900 lets expect 96")
    assert "it is to be that of the job in Prometheus" in told
    root.logged.clear()
    root.write(given)
    root.run(day(3))
    assert not warned(root, "scrape_seconds")


# A day asks for what its own lines need.


def test_a_price_of_the_future_asks_nothing_of_days_before_it(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        given = {"incomplete_below": "0.95"}
        root = Root(tmp_path, eu(script.url, rates=WITHOUT_EGRESS, **given))
        root.run(day(6))
        answering_nothing(between, "sum(increase(kafka_server_brokertopicmetrics_bytesout")
        future = [{"to": str(day(10)), **WITHOUT_EGRESS}, {"from": str(day(10)), **RATES}]
        root.write(eu(script.url, rates=future, **given))
        summary = root.run(day(6))
        assert (summary.requests, summary.days_calculated, summary.days_pending) == (0, 0, 0)
        future[0]["compute_hourly_rate"] = "0.2"
        root.write(eu(script.url, rates=future, **given))
        assert root.run(day(6)).days_calculated == 4
        assert root.incomplete() == []
    assert billed(root) == charged(root) == 4 * Decimal("15.84")


def test_a_rate_is_corrected_while_prometheus_is_down(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url, rates=WITHOUT_EGRESS))
    root.run(day(6))
    rates = {**WITHOUT_EGRESS, "compute_hourly_rate": "0.2"}
    future = [{"to": str(day(10)), **rates}, {"from": str(day(10)), **RATES}]
    root.write(eu("http://127.0.0.1:9/", rates=future))
    summary = root.run(day(6))
    assert (summary.faults, summary.days_calculated) == ((), 4)


def test_a_cost_type_that_ended_holds_up_no_later_day(url: str, tmp_path: Path) -> None:
    ended = stored("OLD", "sum(old_size)", [{"to": str(day(2)), "rate": "1"}])
    root = Root(tmp_path, pg(url, FIXED, ended, days=6, incomplete_below="0.9"))
    summary = root.run(day(6))
    assert (summary.days_calculated, summary.days_pending) == (6, 0)
    assert root.run(day(6)).requests == 0


def test_lines_that_weigh_by_nothing_ask_for_no_principals(between: Between, tmp_path: Path) -> None:
    """By whom a day's lines are split is said by their ladders, the tenant's own too."""
    with between.serving() as script:
        alone = {"network_ingress_per_gib": "0.01"}
        root = Root(tmp_path, eu(script.url, days=1, rates=alone))
        root.run(day(1))
        assert not any("bytesout" in unquote_plus(one.body) for one in script.asked)
        assert set(root.table("usage")["metric"]) == {"bytes_in"}
        own = {"SELF_KAFKA_NETWORK_INGRESS": {"ladder": "kafka_egress"}}
        root.write(eu(script.url, days=1, rates=alone, products=own))
        root.run(day(1))
        assert set(root.table("usage")["metric"]) == {"bytes_out"}
        assert {payer for _, payer, _ in payers(root, day(0))} == {"User:alice", "User:bob"}


def test_a_cost_type_of_the_future_is_nobodys_on_days_before_it(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, pg(url, FIXED))
    root.run(day(6))
    before = lake(root)
    assert payers(root, day(3)) == {("FIX", "crm", Decimal(12)), ("FIX", "shop", Decimal(12))}
    by_namespace = {"allocation": "usage_ratio", "allocation_query": "ns_size", "allocation_label": "ns"}
    rate = [{"from": str(day(5)), "rate": "1"}]
    root.write(pg(url, FIXED, stored("NS", "sum(ns_size)", rate, **by_namespace)))
    root.run(day(6))
    of_before = {file: content for file, content in lake(root).items() if str(day(5)) not in file.name}
    assert of_before == {file: content for file, content in before.items() if str(day(5)) not in file.name}
    # On its own day those whom it names are there, for the other cost type too.
    assert {payer for product, payer, _ in payers(root, day(5)) if product == "FIX"} == {"a", "b", "c", "crm", "shop"}


# What waits is left as it is, and said.


def test_a_day_that_is_charged_is_not_billed_ahead_while_it_waits(between: Between, tmp_path: Path) -> None:
    given = {"incomplete_below": "0.95"}
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, rates=WITHOUT_EGRESS, **given))
        root.run(day(6))
        before = lake(root)
        answering_nothing(between, "bytesout_total")
        root.write(eu(script.url, rates={**RATES, "compute_hourly_rate": "0.2"}, **given))
        summary = root.run(day(6))
        assert (summary.exit_code, summary.days_calculated, summary.days_pending) == (0, 0, 4)
        assert lake(root) == before
        done = prorata(tmp_path, "run", "--today", str(day(6)))
        assert done.returncode == 0
        assert done.stdout == "eu: nothing written: 0 days up to date, 4 wait for inventory or metrics\n"
        report = prorata(tmp_path, "report", "billed_and_allocated", "--format", "json")
        assert {Decimal(row["difference"]) for row in json.loads(report.stdout)} == {Decimal(0)}
        between.reply = between.passed
        assert root.run(day(6)).days_calculated == 4
    assert billed(root) == charged(root) == 4 * (WHOLE + Decimal("7.2"))


def test_days_before_the_window_stay_and_a_model_that_does_not_reach_them_says_so(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url, days=6, rates=WITHOUT_EGRESS))
    root.run(day(6))
    root.write(eu(url, days=2, rates={**RATES, "compute_hourly_rate": "0.2"}))
    summary = root.run(day(6))
    assert (summary.days_calculated, summary.days_pending) == (2, 0)
    assert dict(root.lines(product=COMPUTE))[day(3)] == Decimal("7.2")
    assert {(one.metrics_gathered, one.error) for one in root.days("eu").values()} == {(1, None)}
    assert warned(root, "4 days", str(day(0)), str(day(3)), "lookback_days")
    assert root.plan(day(6))[str(day(0))].gather_reason == "before_window"
    assert root.plan(day(6))[str(day(0))].calculate_reason == "up_to_date"
    [told] = [line for line in prorata(tmp_path, "check").stdout.splitlines() if "older cost model" in line]
    assert "4 days" in told
    # What needs no new answer reaches them.
    root.write(eu(url, days=2, rates={**WITHOUT_EGRESS, "compute_hourly_rate": "0.2"}))
    assert root.run(day(6)).days_calculated == 6
    assert not any("older cost model" in line for line in prorata(tmp_path, "check").stdout.splitlines())


# A cost type that is no longer there.

SIZES = "sum(pg_size)"


def test_days_of_a_cost_type_that_has_another_name_keep_their_charges_and_hold_up_no_other(
    url: str, tmp_path: Path
) -> None:
    root = Root(tmp_path, pg(url, FIXED, stored("STO", SIZES, "1"), days=3))
    root.run(day(4))
    before = lake(root)
    # By another query, too: to the same one the answers would be found, and the days be made anew.
    root.write(pg(url, FIXED, stored("STORAGE", f"1 * {SIZES}", "1"), days=2))
    assert root.plan(day(6))[str(day(1))].calculate_reason == "rules_gone"
    summary = root.run(day(6))
    assert (summary.exit_code, summary.faults, summary.days_calculated, summary.days_pending) == (0, (), 2, 0)
    assert {file: content for file, content in lake(root).items() if file in before} == before
    assert {product for product, *_ in payers(root, day(3))} == {"FIX", "STO"}
    assert {product for product, *_ in payers(root, day(5))} == {"FIX", "STORAGE"}
    assert billed(root) == charged(root)
    [told] = warned(root, "keep what they charge")
    assert f"3 days ({day(1)} to {day(3)})" in told
    assert "'STO'" in told
    found = root.plan(day(6))
    assert {name for name, one in found.items() if one.calculate_reason == "rules_gone"} == {
        str(day(number)) for number in (1, 2, 3)
    }
    assert not any(one.calculate for one in found.values() if one.charge_date < str(day(6)))
    checked = prorata(tmp_path, "check")
    assert checked.returncode == 0
    assert [line for line in checked.stdout.splitlines() if "keep what they charge" in line and "'STO'" in line]
    assert "0 to calculate" in prorata(tmp_path, "status").stdout.splitlines()[0]
    assert (root.run(day(6), "recalculate").days_calculated, root.run(day(6)).days_calculated) == (2, 0)
    assert {file: content for file, content in lake(root).items() if file in before} == before
    # Under its old name it is found again.
    root.write(pg(url, FIXED, stored("STO", SIZES, "1"), days=2))
    root.run(day(6))
    assert root.run(day(6), "recalculate").days_calculated == 5
    assert not any("keep what they charge" in line for line in prorata(tmp_path, "check").stdout.splitlines())
    assert billed(root) == charged(root)


def test_a_cost_type_may_be_removed_after_the_answers_of_older_days_are_gone(url: str, tmp_path: Path) -> None:
    licence = {**FIXED, "name": "LICENCE"}
    root = Root(tmp_path, pg(url, FIXED, licence, stored("STO", SIZES, "1")))
    root.run(day(4))
    shutil.rmtree(root.root / "raw")
    before = lake(root)
    root.write(pg(url, FIXED, stored("STO", SIZES, "1"), days=1))
    summary = root.run(day(6))
    assert (summary.exit_code, summary.faults, summary.days_calculated) == (0, (), 1)
    assert {file: content for file, content in lake(root).items() if file in before} == before
    assert warned(root, "4 days", "keep what they charge", "'LICENCE'")


def test_lines_of_a_cost_type_that_is_gone_are_nobodys_where_their_charges_are_lost(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, pg(url, FIXED, stored("STO", SIZES, "1")))
    root.run(day(4))
    [file] = (root.root / "lake" / "chargeback").glob(f"**/{day(2)}.parquet")
    file.unlink()
    root.write(pg(url, FIXED, stored("STORAGE", f"1 * {SIZES}", "1"), days=1))
    summary = root.run(day(6))
    assert (summary.exit_code, summary.days_calculated) == (0, 2)
    assert billed(root) == charged(root)
    assert {payer for product, payer, _ in payers(root, day(2)) if product == "STO"} == {"UNALLOCATED"}
    assert warned(root, "no rule for product 'STO'", "1 line of 2,400 USD borne by nobody")


# What no amount depends on.


def test_topics_that_cannot_be_had_hold_up_no_day(between: Between, tmp_path: Path) -> None:
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, days=2))
        between.failing("group by (topic)", REFUSED)
        found = [root.run(day(6)) for _ in range(4)]
        assert [(one.exit_code, one.days_calculated, one.days_pending) for one in found] == [
            (11, 2, 0),
            (11, 0, 0),
            (11, 0, 0),
            (0, 0, 0),
        ]
        assert billed(root) == charged(root) == 2 * WHOLE
        [told] = warned(root, "topics: given up")
        assert "no amount depends on it" in told


# Landed answers that cannot be read.


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def test_answers_that_a_lost_state_does_not_know_are_known_again(between: Between, tmp_path: Path) -> None:
    given = {"days": 2, "metrics": {"days_per_query": "1"}}
    with between.serving() as script:
        root = Root(tmp_path, eu(script.url, **given))
        root.run(day(6))
        landed = {file: file.read_bytes() for file in (root.root / "raw").glob("**/*.zst")}
        for file in root.root.glob("state.db*"):
            file.unlink()
        # Nor are they overwritten by answers to another question.
        root.write(eu(script.url, source={"selector": 'cluster="eu", topic!=""'}, **given))
        assert root.run(day(6)).requests > 1
        assert {file: file.read_bytes() for file in landed} == landed
        answering_nothing(between)
        spoiled = min(file for file in landed if file.name.startswith("topics-"))
        torn(spoiled)
        root.write(eu(script.url, **given))
        for file in root.root.glob("state.db*"):
            file.unlink()
        before = len(script.asked)
        root.run(day(6))
        # Only what cannot be read.
        assert len([one for one in script.asked[before:] if "step=" in one.body]) == 1
        assert len(warned(root, str(spoiled))) == 1
        assert root.run(day(6)).requests == 0
        assert len(warned(root, str(spoiled))) == 1
    assert billed(root) == charged(root) == 2 * WHOLE


@pytest.mark.parametrize("spoil", [torn, Path.unlink], ids=["torn", "gone"])
def test_answers_that_cannot_be_read_are_asked_for_again(
    url: str, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    root = Root(tmp_path, eu(url, days=2))
    root.run(day(6))
    [file] = (root.root / "raw").glob("**/ingress-*.zst")
    spoil(file)
    root.write(eu(url, days=2, rates={**RATES, "compute_hourly_rate": "0.2"}))
    summary = root.run(day(6))
    assert (summary.faults, summary.days_calculated) == ((), 2)
    assert warned(root, str(file), "asked for again")
    assert billed(root) == charged(root) == 2 * (WHOLE + Decimal("7.2"))


def test_answers_that_cannot_be_read_nor_had_again_leave_their_days(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url, days=2))
    root.run(day(6))
    before = lake(root)
    [file] = (root.root / "raw").glob("**/ingress-*.zst")
    torn(file)
    root.write(eu("http://127.0.0.1:9/", days=2, rates={**RATES, "compute_hourly_rate": "0.2"}))
    assert root.run(day(6)).exit_code == 11
    assert root.run(day(6), "recalculate").exit_code == 0
    assert lake(root) == before
    assert warned(root, "2 days", "left as made before", "no longer kept")


# What was not asked has not failed.


def test_a_question_that_is_too_heavy_takes_no_answer_of_another(between: Between, tmp_path: Path) -> None:
    between.failing(WHO, Reply(503, '{"status": "error", "errorType": "timeout", "error": "query timed out"}'))
    with between.serving() as script:
        tenant = kafka("eu", script.url, lookback_days="6", metrics={**FIVE, "days_per_query": "2"})
        root = Root(tmp_path, tenant)
        # Each of the two is given up for the run when it was not answered twice; what failed before is tried again.
        for tries, left_out in ((4, 2), (6, 0), (6, 0)):
            asked = len(script.asked)
            summary = root.run(day(6))
            assert (summary.exit_code, billed(root)) == (11, 6 * WHOLE)
            assert sum(WHO in unquote_plus(one.body) for one in script.asked[asked:]) == tries
            told = [text for text in summary.faults if "bytes_in" in text and "not asked for" in text]
            assert [f"{left_out} more days" in text for text in told] == [True] * (left_out > 0)
        # The last two days were asked for twice, the others three times.
        assert root.plan(day(6))[str(day(0))].calculate_reason == "given_up"
        between.reply = between.passed
        root.run(day(6))
    assert billed(root) == charged(root) == 6 * WHOLE
    allocated = {
        (when, payer) for when, payer, _ in root.table("chargeback").select("charge_date", "identity_id", "part").rows()
    }
    assert {when for when, payer in allocated if payer == "UNALLOCATED"} == {day(0), day(1), day(2), day(3)}


def test_days_whose_questions_are_never_answered_are_given_up_as_fast_as_they_come(
    between: Between, tmp_path: Path
) -> None:
    between.failing(WHO, Reply(503, '{"status": "error", "errorType": "timeout", "error": "query timed out"}'))
    with between.serving() as script:
        tenant = kafka("eu", script.url, lookback_days="6", metrics={**FIVE, "days_per_query": "1"})
        root = Root(tmp_path, tenant)
        for number in range(2, 13):
            root.run(day(number))
        charged_days = set(root.table("chargeback")["charge_date"])
    assert {day(number) for number in range(9)} <= charged_days


def test_a_gateway_that_refuses_instant_questions_is_asked_for_ranges(between: Between, tmp_path: Path) -> None:
    between.failing("count_over_time(vector(1)", Reply(403, "only ranges"))
    with between.serving() as script:
        root = Root(tmp_path, kafka("eu", script.url, lookback_days="6", metrics=FIVE))
        assert root.run(day(6)).exit_code == 0
    assert billed(root) == charged(root) == 6 * WHOLE


# What failed stays failed, whatever is asked later.

OPS = {"identity_source": "both", "static_identities": ["ops"]}
BY_SIZE = {"allocation": "usage_ratio", "allocation_label": "datname"}


def test_a_question_that_changes_makes_no_failure_an_answer(between: Between, tmp_path: Path) -> None:
    between.failing(WHO, REFUSED)
    with between.serving() as script:
        given = {"allocation_retry_limit": "1"}
        root = Root(tmp_path / "kafka", eu(script.url, source=OPS, **given))
        root.run(day(6))
        before = lake(root)
        assert {payer for _, payer, _ in payers(root, day(2))} == {"UNALLOCATED"}
        between.reply = between.passed
        chosen = {**OPS, "selector": 'cluster="eu", topic!=""'}
        root.write(eu(script.url, days=1, source=chosen, **given))
        root.run(day(6))
        assert {file: text for file, text in lake(root).items() if str(day(5)) not in file.name} == {
            file: text for file, text in before.items() if str(day(5)) not in file.name
        }
        assert root.plan(day(6))[str(day(2))].calculate_reason == "given_up"
        assert f"given up for 3 days ({day(2)} to {day(4)})" in prorata(tmp_path / "kafka", "check").stdout
        # Under another id of the cluster, too.
        shutil.rmtree(root.root / "raw")
        root.write(eu(script.url, days=1, source={**chosen, "cluster_id": "eu-2"}, **given))
        root.run(day(6), "recalculate")
        assert {payer for _, payer, _ in payers(root, day(2))} == {"UNALLOCATED"}
        # An answer ends it.
        root.write(eu(script.url, days=4, source=chosen, **given))
        root.run(day(6))
        assert pays_for_ingress(root, day(2)) == BOTH_PAY


def test_a_query_that_is_mended_reaches_no_day_that_is_not_asked_again(url: str, tmp_path: Path) -> None:
    refused, mended = (
        stored("STO", SIZES, "0.001", **BY_SIZE, allocation_query=one) for one in ("rate(pg_size)", "pg_size")
    )
    root = Root(tmp_path, pg(url, refused, allocation_retry_limit="1"))
    root.run(day(6))
    before = payers(root, day(2))
    assert {payer for _, payer, _ in before} == {"UNALLOCATED"}
    root.write(pg(url, mended, days=1, allocation_retry_limit="1"))
    root.run(day(6))
    assert payers(root, day(2)) == before
    assert {payer for _, payer, _ in payers(root, day(5))} == {"shop", "crm"}


# Rates that no longer reach a day.


def test_rates_that_are_dropped_take_no_day_that_could_not_be_made_again(url: str, tmp_path: Path) -> None:
    root, later = Root(tmp_path, eu(url)), [{"from": str(day(5)), **RATES}]
    root.run(day(6))
    before = lake(root)
    # As long as their answers are kept days come and go.
    root.write(eu(url, days=1, rates=later))
    root.run(day(6))
    assert billed(root) == charged(root) == WHOLE
    assert warned(root, f"3 days ({day(2)} to {day(4)})", "no rate holds on them")
    root.write(eu(url, days=1))
    root.run(day(6))
    assert lake(root) == before
    # Where they are not, nobody could bring them back.
    shutil.move(root.root / "raw", tmp_path / "raw")
    root.write(eu(url, days=1, rates=later))
    assert root.plan(day(6))[str(day(2))].gather_reason == "rates_gone"
    root.run(day(6))
    assert lake(root) == before
    assert warned(root, f"3 days ({day(2)} to {day(4)})", "left as made before", "no rate holds on them")
    root.run(day(6), lift=True, first=day(2), end=day(3))
    assert billed(root) == charged(root) == 3 * WHOLE
    root.logged.clear()
    root.write(eu(url, days=1))
    root.run(day(6))
    assert warned(root, f"1 day ({day(2)})", "answers are no longer kept")
    assert root.plan(day(6))[str(day(2))].gather_reason == "answers_gone"
    shutil.rmtree(root.root / "raw")
    shutil.move(tmp_path / "raw", root.root / "raw")
    root.run(day(6))
    assert lake(root) == before


def test_rates_that_reach_days_that_nobody_asks_for_bill_nothing_of_them(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url, rates=[{"from": str(day(4)), **RATES}]))
    root.run(day(6))
    root.write(eu(url, days=1))
    assert {root.plan(day(6))[str(day(2))][2:4]} == {("before_window", "no_billing")}
    for _ in range(2):
        root.logged.clear()
        assert root.run(day(6)).days_pending == 0
        assert billed(root) == charged(root) == 2 * WHOLE
        assert warned(root, f"2 days ({day(2)} to {day(3)})", "a larger lookback_days asks for it")
    root.write(eu(url, days=4))
    root.run(day(6))
    assert billed(root) == charged(root) == 4 * WHOLE


def test_plan_says_that_answers_that_are_gone_are_asked_for(url: str, tmp_path: Path) -> None:
    root = Root(tmp_path, eu(url))
    root.run(day(6))
    shutil.rmtree(root.root / "raw")
    for price, calculated in (("0.1", 0), ("0.2", 4)):
        root.write(eu(url, rates={**RATES, "compute_hourly_rate": price}))
        assert root.plan(day(6))[str(day(2))][2:4] == ("in_window", "metrics_wanted")
        assert root.run(day(6)).days_calculated == calculated
        shutil.rmtree(root.root / "raw")


# Some of the days.


@pytest.mark.parametrize("command", ["run", "recalculate"])
def test_days_that_are_not_named_are_not_billed_ahead(url: str, tmp_path: Path, command: str) -> None:
    root = Root(tmp_path, eu(url))
    root.run(day(6))
    root.write(eu(url, rates={**RATES, "compute_hourly_rate": "0.2"}))
    assert root.run(day(6), command, first=day(5), end=day(6)).days_calculated == 1
    assert billed(root) == charged(root) == 4 * WHOLE + Decimal("7.2")
    assert root.run(day(6)).days_calculated == 3
    assert billed(root) == charged(root) == 4 * (WHOLE + Decimal("7.2"))


# Ladders that weigh by what nobody asked for.


@pytest.mark.parametrize("ladder", ["kafka_egress", "kafka_presence"])
def test_a_ladder_that_weighs_by_what_was_never_asked_leaves_older_days(url: str, tmp_path: Path, ladder: str) -> None:
    given = {"rates": {"network_ingress_per_gib": "0.01"}}
    root = Root(tmp_path, eu(url, **given))
    root.run(day(6))
    before = payers(root, day(2))
    given["products"] = {"SELF_KAFKA_NETWORK_INGRESS": {"ladder": ladder}}
    root.write(eu(url, days=1, **given))
    told = f"3 days ({day(2)} to {day(4)}) keep what they charge"
    for command, count in (("run", 1), ("recalculate", 1)):
        root.logged.clear()
        plan = root.plan(day(6))[str(day(2))]
        assert (plan.calculate_reason, plan.detail, plan.calculate) == ("never_asked", "bytes_out", False)
        assert root.run(day(6), command).days_calculated == count
        assert payers(root, day(2)) == before
        assert warned(root, told, "bytes_out")
        assert told in prorata(tmp_path, "check").stdout
    root.write(eu(url, days=4, **given))
    root.logged.clear()
    assert root.run(day(6)).days_calculated == 3
    assert not warned(root, told)
    # Without charges there is nothing to keep.
    [file] = (root.root / "lake" / "chargeback").glob(f"**/{day(2)}.parquet")
    file.unlink()
    assert root.run(day(6)).days_calculated == 1
    assert billed(root) == charged(root)
