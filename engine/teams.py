"""Who belongs to which team: the table of teams and tags of a tenant over its identities, as expressions.

A team is a way to look at amounts. Nothing here changes one, and no digest depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import polars as pl

from engine import globs
from engine.config import Config, Document, TeamRow, Tenant
from engine.errors import fault, shown
from engine.frames import TEAMS, UNALLOCATED, normalised, shape

KEY = "team"
"""The tag whose value is a team."""
NEVER_PAY = ("api_key", "identity_provider")
"""Types of identities that are never charged: they have no team."""


def teams(tenant: Tenant, identities: pl.DataFrame, tags: pl.DataFrame) -> pl.DataFrame:
    """IDENTITIES and TAGS of a tenant -> its TEAMS: one row for each identity that may pay, and '' for all others.

    The first row of the table that fits the id or the display name, else the tag `team`, else the default. UNALLOCATED
    is a team of its own; other sentinels are nobody's, so they have the default.
    """
    named = current(identities).filter(~pl.col("type").is_in(NEVER_PAY))
    tagged = tags.filter(pl.col("key") == KEY).select("id", tagged="value")
    default = pl.lit(tenant.teams.default)
    team = (
        pl.when(pl.col("id") == UNALLOCATED)
        .then(pl.lit(UNALLOCATED))
        .when(pl.col("type") == "system")
        .then(default)
        .otherwise(
            pl.coalesce(*(pl.when(fits(row)).then(pl.lit(row.team)) for row in tenant.teams.members), "tagged", default)
        )
    )
    everybody_else = pl.LazyFrame({"id": [""], "team": [tenant.teams.default]})
    found = pl.concat(
        [
            named.lazy().join(tagged.lazy(), on="id", how="left", validate="1:1").select("id", team=team),
            everybody_else,
        ]
    )
    return shape(
        found.select(tenant_id=pl.lit(tenant.id), identity_id="id", team="team").sort(TEAMS.key), TEAMS
    ).collect()


def payers(identities: pl.DataFrame, teams: pl.DataFrame) -> pl.DataFrame:
    """IDENTITIES and TEAMS of a tenant -> identity_id, identity_name (the id where there is none) and team, by id."""
    names = current(identities).select(identity_id="id", identity_name="display_name")
    named = pl.when(pl.col("identity_name") != "").then("identity_name").otherwise("identity_id")
    return (
        teams.join(names, on="identity_id", how="left", validate="1:1")
        .select("identity_id", identity_name=named, team="team")
        .sort("identity_id")
    )


def current(identities: pl.DataFrame) -> pl.DataFrame:
    """IDENTITIES -> one row per id, that of its last interval: id, type, display_name."""
    return (
        identities.sort("id", pl.col("valid_from"), nulls_last=False)
        .unique("id", keep="last", maintain_order=True)
        .select("id", "type", "display_name")
    )


def fits(row: TeamRow) -> pl.Expr:
    """Whether an identity (`id`, `display_name`) fits a row of the table: by one or by the other."""
    tests = [
        globs.fits(pl.col(column), patterns)
        for column, patterns in (("id", row.id), ("display_name", row.name))
        if patterns
    ]
    return reduce(lambda left, right: left | right, tests)


def faults(config: Config, document: Document) -> list[str]:
    """Every row of a table of teams that cannot work, with its place in the file."""
    return [
        text
        for number, tenant in enumerate(config.tenants)
        for text in _faults(tenant, ("tenants", number, "teams"), document)
    ]


def _faults(tenant: Tenant, path: tuple[str | int, ...], document: Document) -> Iterator[str]:
    members = tenant.teams.members
    named = [
        (("default",), tenant.teams.default),
        *((("members", n, "team"), row.team) for n, row in enumerate(members)),
    ]
    for place, team in named:
        if pl.select(is_reserved(pl.lit(team))).item():
            yield fault(document.where((*path, *place)), f"team {shown(team)} is reserved", "another name")
    for number, row in enumerate(members):
        where = document.where((*path, "members", number))
        if row.id is None and row.name is None:
            yield fault(where, f"the row of team {shown(row.team)} has neither id nor name", "one of them, or both")
        elif _covered(members[:number], row):
            yield fault(
                where,
                f"the row of team {shown(row.team)} can never fit, rows before it take all that it names",
                "a pattern that they leave open, or another order",
            )


def is_reserved(team: pl.Expr) -> pl.Expr:
    """Whether a team would be taken for what nobody bears."""
    return normalised(team) == UNALLOCATED.lower()


def _covered(earlier: Sequence[TeamRow], row: TeamRow) -> bool:
    """Whether every identity that fits the row fits an earlier one."""
    ids = [pattern for one in earlier for pattern in one.id or []]
    display_names = [pattern for one in earlier for pattern in one.name or []]
    # What fits any text fits every identity: each has an id and a display name, were it ''.
    if any(globs.covers(pattern, "*") for pattern in [*ids, *display_names]):
        return True
    return all(
        globs.patterns_cover(before, patterns)
        for before, patterns in ((ids, row.id), (display_names, row.name))
        if patterns
    )
