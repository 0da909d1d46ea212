"""Teams are a way to look: whatever they are, no total changes, in any currency, to the last digit."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import teams, warehouse
from engine.frames import CHARGEBACK, IDENTITIES, TAGS, TEAMS, check_rows
from engine.money import format_units
from tests.property.strategies import DETERMINED
from tests.sql.lakes import stored
from tests.unit.cases import rows, tenant

names = st.sampled_from(["a", "b", "ab", "A", "lkc-1", "UNALLOCATED", "=x", "\u00e9"])
patterns = st.sampled_from(["a", "a*", "?", "b", "*\u00e9", "=x", "lkc-?"])
team_names = st.sampled_from(["red", "blue", "a", "=1+1"])
members = st.lists(
    st.one_of(
        st.fixed_dictionaries({"team": team_names, "id": patterns}),
        st.fixed_dictionaries({"team": team_names, "name": patterns}),
        st.fixed_dictionaries({"team": team_names, "id": patterns, "name": patterns}),
    ),
    max_size=4,
)
charges = st.lists(st.tuples(names, st.sampled_from(["USD", "EUR"]), st.integers(-(10**20), 10**20)), max_size=12)


def fits(pattern: str, text: str) -> bool:
    """A glob, letter by letter."""
    if not pattern or not text:
        return pattern.strip("*") == "" and not text
    if pattern[0] == "*":
        return fits(pattern[1:], text) or fits(pattern, text[1:])
    return pattern[0] in {"?", text[0]} and fits(pattern[1:], text[1:])


def expected_team(who: str, known: dict[str, str], tagged: dict[str, str], table: list[dict[str, str]]) -> str:
    """The rule once more, one payer at a time."""
    if who == "UNALLOCATED":
        return "UNALLOCATED"
    if who not in known:
        return "rest"
    for row in table:
        if fits(row.get("id", "-"), who) or ("name" in row and fits(row["name"], known[who])):
            return row["team"]
    return tagged.get(who, "rest")


@settings(DETERMINED, max_examples=25)
@given(
    charges,
    st.dictionaries(names.filter(lambda name: name != "UNALLOCATED"), st.sampled_from(["", "a", "abc", "\u00e9"])),
    st.dictionaries(names, team_names),
    members,
)
def test_totals_by_team_are_totals_by_identity(
    charged: list[tuple[str, str, int]], known: dict[str, str], tagged: dict[str, str], table: list[dict[str, str]]
) -> None:
    plain: dict[str, Any] = {"tenant_id": "acme", "billing_period": "2025-09", "cost_type": "usage"}
    chargeback = rows(
        CHARGEBACK,
        *(
            {**plain, "line_id": number, "identity_id": who, "currency": currency, "amount": format_units(units)}
            for number, (who, currency, units) in enumerate(charged)
        ),
    )
    open_ends = {"tenant_id": "acme", "type": "user", "valid_from": None, "valid_to": None}
    identities = rows(IDENTITIES, *({**open_ends, "id": who, "display_name": name} for who, name in known.items()))
    tags = rows(TAGS, *({"tenant_id": "acme", "id": who, "key": "team", "value": team} for who, team in tagged.items()))
    given_teams = {"default": "rest", "members": table}
    found = check_rows(teams.teams(tenant(teams=given_teams), identities, tags), TEAMS)
    by_team: dict[tuple[str, str], int] = defaultdict(int)
    for who, currency, units in charged:
        by_team[expected_team(who, known, tagged, table), currency] += units
    with tempfile.TemporaryDirectory() as folder:
        root = stored(Path(folder), (CHARGEBACK, chargeback), (IDENTITIES, identities), (TEAMS, found))
        with warehouse.open_lake(root) as lake:
            asked = {"tenant_id": None, "from_date": None, "to_date": None}
            teams_charged = warehouse.report(lake, "cost_by_team", **asked)
            identities_charged = warehouse.report(lake, "cost_by_identity", **asked)
    totals = {
        (team, currency): total for team, currency, total in teams_charged.select("team", "currency", "total").rows()
    }
    assert {key: int(total.scaleb(12)) for key, total in totals.items()} == dict(by_team)
    classes = ["direct", "usage", "shared", "operator", "unallocated", "total"]
    sums = [
        frame.group_by("currency").agg(pl.col(classes).sum()).sort("currency")
        for frame in (identities_charged, teams_charged)
    ]
    assert sums[0].equals(sums[1])
