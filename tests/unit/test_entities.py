"""Inventories folded into intervals: owner changes, deletions with their threshold, reappearance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta

import polars as pl
import pytest

from engine.entities import IDENTITY, IDENTITY_TYPES, RESOURCE, Folded, Kind, Seen, fold
from engine.frames import IDENTITIES, IDENTITY_SNAPSHOT, empty, from_rows

START = datetime(2026, 10, 1, 12)
WHOLE = frozenset({"connector", *IDENTITY_TYPES})


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 10, day, hour)


def connector(owner: str = "sa-1", **more: object) -> dict[str, object]:
    return {"id": "lcc-1", "type": "connector", "display_name": "sink", "parent": "lkc-1", "owner": owner, **more}


def account(identity: str = "sa-1", **more: object) -> dict[str, object]:
    return {"id": identity, "type": "service_account", "display_name": identity, **more}


class History:
    """One kind of entities through its gathers."""

    def __init__(self, kind: Kind, threshold: int = 2) -> None:
        self.kind, self.threshold = kind, threshold
        self.folded = Folded(empty(kind.table), {}, pl.DataFrame())

    def sees(
        self,
        when: datetime,
        *rows: Mapping[str, object],
        gathered: frozenset[str] = WHOLE,
        seen_before: frozenset[str] = frozenset(),
    ) -> list[str]:
        """What a gather changed."""
        seen = Seen(from_rows(self.kind.snapshot, *rows), when, gathered, seen_before)
        known, counts = self.folded.intervals, self.folded.zero_counts
        self.folded = fold(self.kind, known, seen, counts, tenant_id="acme", threshold=self.threshold)
        return [f"{entity} {change}" for entity, change in self.folded.changes.select("id", "change").rows()]

    def rows(self, *columns: str) -> list[tuple[object, ...]]:
        return self.folded.intervals.select("valid_from", "valid_to", *columns).rows()


def resources(threshold: int = 2) -> History:
    return History(RESOURCE, threshold)


def identities(threshold: int = 2) -> History:
    return History(IDENTITY, threshold)


def test_what_the_first_gather_sees_was_there_always_or_since_it_was_created() -> None:
    seen = identities()
    seen.sees(at(1), account("sa-1"), account("sa-2", created_at=datetime(2026, 9, 3, 4)))
    assert seen.rows("id", "created_at") == [(None, None, "sa-1", None), (None, None, "sa-2", datetime(2026, 9, 3, 4))]


def test_what_comes_later_is_there_since_it_was_created_or_first_seen() -> None:
    seen = identities()
    seen.sees(at(1), account("sa-1"))
    seen.sees(at(5), account("sa-1"), account("sa-2"), account("sa-3", created_at=at(3, 7)))
    assert seen.rows("id", "created_at") == [
        (None, None, "sa-1", None),
        (date(2026, 10, 5), None, "sa-2", at(5)),
        (date(2026, 10, 3), None, "sa-3", at(3, 7)),
    ]


def test_a_type_that_failed_has_its_first_gather_still_before_it() -> None:
    seen = resources()
    seen.sees(at(1), gathered=frozenset())
    seen.sees(at(5), connector(), connector(id="lcc-2"))
    assert seen.rows("id", "created_at") == [(None, None, "lcc-1", None), (None, None, "lcc-2", None)]


def test_a_type_of_which_a_part_was_seen_before_has_had_its_first_gather() -> None:
    seen = resources()
    seen.sees(at(1), connector(), gathered=frozenset())
    told = frozenset({"connector"})
    seen.sees(at(5), connector(), connector(id="lcc-2"), gathered=frozenset(), seen_before=told)
    assert seen.rows("id", "created_at") == [(None, None, "lcc-1", None), (date(2026, 10, 5), None, "lcc-2", at(5))]


@pytest.mark.parametrize(
    "change", [{"owner": "sa-2"}, {"parent": "lkc-2"}, {"scope": "env-2"}, {"type": "ksqldb"}], ids=str
)
def test_an_attribute_that_changes_makes_a_new_interval_from_the_day_of_the_gather(change: dict[str, object]) -> None:
    seen = resources()
    seen.sees(at(1), connector(created_at=at(1, 3)))
    assert seen.sees(at(4, 23), connector(**change)) == ["lcc-1 changed"]
    name, value = next(iter(change.items()))
    before = connector(scope="")[name]
    assert seen.rows(name, "created_at", "first_seen_at") == [
        (None, date(2026, 10, 4), before, at(1, 3), at(1)),
        (date(2026, 10, 4), None, value, at(1, 3), at(1)),
    ]


def test_a_display_name_changes_in_place() -> None:
    seen = resources()
    seen.sees(at(1), connector())
    assert seen.sees(at(2), connector(display_name="other")) == []
    assert seen.rows("display_name", "last_seen_at") == [(None, None, "other", at(2))]


def test_two_changes_of_one_day_are_one_interval() -> None:
    seen = resources()
    seen.sees(at(1), connector("sa-1"))
    seen.sees(at(4, 1), connector("sa-2"))
    seen.sees(at(4, 9), connector("sa-3"))
    assert seen.rows("owner") == [(None, date(2026, 10, 4), "sa-1"), (date(2026, 10, 4), None, "sa-3")]


def test_what_is_missing_from_a_whole_gather_is_deleted_from_then_on() -> None:
    seen = resources()
    seen.sees(at(1), connector(), connector(id="lcc-2"))
    assert seen.sees(at(3), connector(id="lcc-2")) == ["lcc-1 deleted"]
    assert seen.rows("id", "deleted_at", "last_seen_at") == [
        (None, None, "lcc-1", at(3), at(1)),
        (None, None, "lcc-2", None, at(3)),
    ]
    assert seen.sees(at(4), connector(id="lcc-2")) == []
    assert seen.rows("deleted_at")[0] == (None, None, at(3))


def test_what_comes_back_is_a_new_interval_since_then() -> None:
    seen = resources()
    seen.sees(at(1), connector(created_at=at(1, 1)), connector(id="lcc-2"))
    seen.sees(at(3), connector(id="lcc-2"))
    assert seen.sees(at(6), connector(created_at=at(1, 1)), connector(id="lcc-2")) == ["lcc-1 back"]
    assert seen.rows("id", "created_at", "deleted_at", "first_seen_at")[:2] == [
        (None, date(2026, 10, 6), "lcc-1", at(1, 1), at(3), at(1)),
        (date(2026, 10, 6), None, "lcc-1", at(6), None, at(6)),
    ]


def test_gone_and_back_twice_on_one_day_leaves_one_interval_of_that_day() -> None:
    seen = resources()
    seen.sees(at(1), connector(), connector(id="lcc-2"))
    for hour in (1, 5):
        seen.sees(at(3, hour), connector(id="lcc-2"))
        seen.sees(at(3, hour + 1), connector(), connector(id="lcc-2"))
    assert seen.rows("id", "created_at", "deleted_at")[:2] == [
        (None, date(2026, 10, 3), "lcc-1", None, at(3, 1)),
        (date(2026, 10, 3), None, "lcc-1", at(3, 6), None),
    ]


def test_a_type_that_was_not_gathered_whole_is_not_scanned() -> None:
    seen = resources()
    seen.sees(at(1), connector(), connector(id="lcc-2"))
    assert seen.sees(at(3), connector(id="lcc-2"), gathered=WHOLE - {"connector"}) == []
    assert seen.rows("deleted_at") == [(None, None, None)] * 2


def test_identities_are_scanned_only_if_all_their_kinds_were_gathered() -> None:
    seen = identities()
    user = {"id": "u-1", "type": "user"}
    seen.sees(at(1), account("sa-1"), account("sa-2"), user)
    assert seen.sees(at(2), account("sa-2"), user, gathered=WHOLE - {"api_key"}) == []
    assert seen.sees(at(3), account("sa-2"), user) == ["sa-1 deleted"]


def test_an_empty_inventory_deletes_only_at_the_threshold_and_each_type_has_a_count_of_its_own() -> None:
    seen = resources(threshold=3)
    pool = {"id": "lfcp-1", "type": "flink_pool"}
    both = frozenset({"connector", "flink_pool"})
    seen.sees(at(1), connector(), pool, gathered=both)
    for day, changes in ((2, []), (3, []), (4, ["lcc-1 deleted"])):
        assert seen.sees(at(day), pool, gathered=both) == changes
    assert seen.folded.zero_counts == {"connector": 3, "flink_pool": 0}
    assert seen.sees(at(5), connector(), pool, gathered=both) == ["lcc-1 back"]
    assert seen.folded.zero_counts == {"connector": 0, "flink_pool": 0}


def test_a_gather_that_is_not_empty_resets_the_count_and_one_that_failed_does_not_count() -> None:
    seen = resources(threshold=2)
    seen.sees(at(1), connector())
    seen.sees(at(2))
    seen.sees(at(3), gathered=frozenset())
    assert seen.folded.zero_counts == {"connector": 1}
    seen.sees(at(4), connector())
    assert seen.folded.zero_counts == {"connector": 0}
    assert seen.sees(at(5)) == []
    assert seen.sees(at(6)) == ["lcc-1 deleted"]


def test_a_threshold_of_minus_one_never_deletes_what_came_back_empty() -> None:
    seen = resources(threshold=-1)
    seen.sees(at(1), connector())
    assert [seen.sees(at(day)) for day in range(2, 20)] == [[]] * 18


def test_sentinels_and_unallocated_are_never_deleted() -> None:
    known = from_rows(IDENTITIES, *({"id": name, "type": "system"} for name in ("UNALLOCATED", "ksqldb_owner_unknown")))
    seen = Seen(empty(IDENTITY_SNAPSHOT), at(2), WHOLE | {"system", "principal"})
    found = fold(IDENTITY, known, seen, {}, tenant_id="acme", threshold=1)
    assert found.intervals.sort("id").equals(known.sort("id"))


@pytest.mark.parametrize("days", [1, 30])
def test_the_same_inventory_again_changes_nothing_but_when_it_was_last_seen(days: int) -> None:
    seen = resources()
    seen.sees(START, connector(), connector(id="lcc-2"))
    seen.sees(at(2), connector("sa-9"))
    before = seen.folded.intervals
    assert seen.sees(at(2) + timedelta(days=days), connector("sa-9")) == []
    assert seen.folded.intervals.drop("last_seen_at").equals(before.drop("last_seen_at"))


def test_a_clock_that_goes_back_ends_no_interval_before_it_began() -> None:
    seen = resources()
    seen.sees(at(1), connector("sa-1"))
    seen.sees(at(9), connector("sa-2"))
    seen.sees(at(5), connector("sa-3"))
    assert seen.rows("owner") == [(None, date(2026, 10, 9), "sa-1"), (date(2026, 10, 9), None, "sa-3")]


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [connector(id=f"lcc-{number}", owner=f"sa-{number}") for number in range(9)]
    one, other = resources(), resources()
    one.sees(at(1), *rows)
    other.sees(at(1), *rows[::-1])
    assert one.sees(at(2), *rows[:4]) == other.sees(at(2), *rows[3::-1])
    assert one.folded.intervals.equals(other.folded.intervals)
