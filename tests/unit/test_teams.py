"""Who belongs to which team, and what of a table of teams is refused."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine import teams
from engine.config import ConfluentTenant, load
from engine.frames import IDENTITIES, TAGS, TEAMS, check_rows
from tests.unit.cases import HOSTILE, rows, tenant


def identities(*given: dict[str, Any] | str) -> pl.DataFrame:
    """IDENTITIES, service accounts unless a row says otherwise; a text is an id."""
    open_ends = {"tenant_id": "acme", "type": "service_account", "valid_from": None, "valid_to": None}
    return rows(IDENTITIES, *({**open_ends, **({"id": one} if isinstance(one, str) else one)} for one in given))


def tags(**teams_of: str) -> pl.DataFrame:
    return rows(
        TAGS, *({"tenant_id": "acme", "id": who, "key": "team", "value": team} for who, team in teams_of.items())
    )


def mapped(known: pl.DataFrame, tagged: pl.DataFrame | None = None, **fields: Any) -> dict[str, str]:
    """identity -> team."""
    found = teams.teams(tenant(teams=fields), known, tags() if tagged is None else tagged)
    check_rows(found, TEAMS)
    assert found["tenant_id"].unique().to_list() == ["acme"]
    return dict(found.select("identity_id", "team").rows())


def test_the_first_row_that_fits_wins_then_the_tag_then_the_default() -> None:
    known = identities("sa-1", "sa-2", "u-1", "u-2", "pool-9")
    members = [
        {"team": "first", "id": "sa-1"},
        {"team": "accounts", "id": ["sa-?", "nobody"]},
        {"team": "named", "id": "u-1"},
    ]
    tagged = tags(**{"sa-1": "tagged", "u-1": "tagged", "u-2": "tagged"})
    assert mapped(known, tagged, members=members, default="others") == {
        "": "others",
        "pool-9": "others",
        "sa-1": "first",
        "sa-2": "accounts",
        "u-1": "named",
        "u-2": "tagged",
    }


def test_a_row_fits_by_id_or_by_name_and_letters_count() -> None:
    known = identities(
        {"id": "sa-1", "display_name": "Pay producer"},
        {"id": "sa-2", "display_name": "pay producer"},
        {"id": "SA-3", "display_name": "(none)"},
        {"id": "sa-4", "display_name": ""},
    )
    members = [{"team": "pay", "name": "Pay *", "id": "sa-3"}, {"team": "quiet", "name": ["(none)", "?"]}]
    assert mapped(known, members=members) == {
        "": "UNASSIGNED",
        "SA-3": "quiet",
        "sa-1": "pay",
        "sa-2": "UNASSIGNED",
        "sa-4": "UNASSIGNED",
    }


def test_nobody_is_a_team_of_its_own_and_sentinels_are_nobodys() -> None:
    known = identities(
        {"id": "UNALLOCATED", "type": "system"},
        {"id": "connector_credentials_unknown", "type": "system"},
        {"id": "platform", "type": "operator"},
        {"id": "KEY", "type": "api_key", "owner": "sa-1"},
        {"id": "op-1", "type": "identity_provider"},
    )
    tagged = tags(UNALLOCATED="tagged", connector_credentials_unknown="tagged")
    assert mapped(known, tagged, members=[{"team": "all", "id": "*"}]) == {
        "": "UNASSIGNED",
        "UNALLOCATED": "UNALLOCATED",
        "connector_credentials_unknown": "UNASSIGNED",
        "platform": "all",
    }


def test_the_name_of_the_last_interval_counts_whatever_the_order_of_rows() -> None:
    days: list[dt.date | None] = [None, dt.date(2025, 1, 1), dt.date(2025, 6, 1)]
    known = identities(
        *({"id": "sa-1", "valid_from": day, "display_name": f"name {place}"} for place, day in enumerate(days))
    )
    members = [{"team": f"team {place}", "name": f"name {place}"} for place in range(3)]
    expected = {"": "UNASSIGNED", "sa-1": "team 2"}
    assert mapped(known, members=members) == mapped(known.reverse(), members=members) == expected
    named = teams.payers(known, teams.teams(tenant(teams={"members": members}), known, tags()))
    assert named.rows() == [("", "", "UNASSIGNED"), ("sa-1", "name 2", "team 2")]


def test_tags_of_other_keys_and_of_strangers_are_no_teams() -> None:
    tagged = pl.concat(
        [tags(stranger="x"), rows(TAGS, {"tenant_id": "acme", "id": "sa-1", "key": "Team", "value": "x"})]
    )
    assert mapped(identities("sa-1"), tagged) == {"": "UNASSIGNED", "sa-1": "UNASSIGNED"}


def test_nothing_in_a_name_is_special_and_a_name_that_is_a_pattern_fits_itself() -> None:
    names = sorted({text for text in HOSTILE if text} | {"a.c", "[a]", "^$", "a(b"})
    known = identities(*names)
    literal = [{"team": f"team {place}", "id": name} for place, name in enumerate(names)]
    assert list(mapped(known, members=literal).items())[1:] == [
        (name, f"team {place}") for place, name in enumerate(names)
    ]


def test_without_identities_there_is_only_the_default() -> None:
    assert mapped(identities(), members=[{"team": "x", "id": "*"}], default="d") == {"": "d"}


def test_a_team_may_be_named_like_anything() -> None:
    for name in [text for text in HOSTILE if text.strip()]:
        assert mapped(identities("sa-1"), members=[{"team": name, "id": "sa-*"}])["sa-1"] == name


def test_tenants_of_every_ecosystem_have_teams() -> None:
    one = ConfluentTenant.model_validate(
        {
            "id": "org",
            "ecosystem": "confluent_cloud",
            "source": {"kind": "confluent_cloud", "api_key": "${K}", "api_secret": "${S}"},
            "teams": {"members": [{"team": "pay", "id": "sa-*"}]},
        }
    )
    found = teams.teams(one, identities("sa-1"), tags())
    assert found.rows() == [("org", "", "UNASSIGNED"), ("org", "sa-1", "pay")]


# Faults


BASE = """\
root: ./data
tenants:
  - id: acme
    ecosystem: aws
    source: {kind: aws_cur, path: ./cur}
    owner: {tags: [team]}
    teams:
      default: rest
      members:
"""


def faults(folder: Path, *members: str, base: str = BASE) -> list[str]:
    """Every fault of a table of teams, without the folder's name. Its first row stands in line 10."""
    file = folder / "prorata.yaml"
    file.write_text(base + "".join(f"      - {row}\n" for row in members), encoding="utf-8")
    config, document, form = load(file)
    assert config is not None
    assert form == []
    return [text.removeprefix(f"{folder}/") for text in teams.faults(config, document)]


def test_a_row_needs_an_id_or_a_name(tmp_path: Path) -> None:
    assert faults(tmp_path, "{team: a, id: x}", "{team: b}", "{team: c, name: y}", "{team: d, id: z, name: z}") == [
        "prorata.yaml:11: tenants[0].teams.members[1]: the row of team 'b' has neither id nor name;"
        " expected one of them, or both"
    ]


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        ("id: [a, b]", "id: b", True),
        ("id: 'sa-*'", "id: [sa-1, 'sa-2?']", True),
        ("id: 'sa-*'", "id: [sa-1, u-1]", False),
        ("id: 'sa-?'", "id: 'sa-*'", False),
        ("id: x", "name: x", False),
        ("name: x", "id: x", False),
        ("id: '*'", "name: x", True),
        ("name: '**'", "id: x", True),
        ("id: '?*'", "name: x", False),
        ("id: x", "{id: x, name: y}", False),
        ("{id: x, name: 'y*'}", "{id: x, name: yy}", True),
        ("id: A", "id: a", False),
    ],
)
def test_a_row_that_earlier_ones_cover_is_refused(tmp_path: Path, earlier: str, later: str, covered: bool) -> None:
    written = [f"{{team: t, {text.strip('{}')}}}" for text in (earlier, later)]
    assert faults(tmp_path, *written) == (
        [
            "prorata.yaml:11: tenants[0].teams.members[1]: the row of team 't' can never fit, rows before it take all"
            " that it names; expected a pattern that they leave open, or another order"
        ]
        if covered
        else []
    )


def test_several_rows_may_cover_one_together(tmp_path: Path) -> None:
    (said,) = faults(tmp_path, "{team: a, id: x}", "{team: b, id: y}", "{team: c, id: [x, y]}", "{team: d, id: z}")
    assert said.startswith("prorata.yaml:12: tenants[0].teams.members[2]: the row of team 'c' can never fit")


def test_the_team_of_nobody_is_reserved(tmp_path: Path) -> None:
    base = BASE.replace("default: rest", "default: unallocated")
    assert faults(tmp_path, "{team: ' UNALLOCATED', id: x}", base=base) == [
        "prorata.yaml:8: tenants[0].teams.default: team 'unallocated' is reserved; expected another name",
        "prorata.yaml:10: tenants[0].teams.members[0].team: team ' UNALLOCATED' is reserved; expected another name",
    ]
