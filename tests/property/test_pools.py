"""Pools that can never match, against every line of a small world, matched by the product's own rules."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import rules
from engine.config import AwsTenant, Config, Document
from engine.frames import BILLING
from tests.property.strategies import DETERMINED

LITERALS = ("", "a", "b", "ab", "ba", "aba")
"""Every text of the world; no pattern names the first or the last, as there are always texts that none names."""
ABSENT = None
WORLD = [
    {"product_category": service, "line_item_type": kind, "tags": {"x": tag} if tag else {}}
    for service, kind, tag in product(LITERALS, LITERALS, (ABSENT, *LITERALS[1:]))
]

literal = st.sampled_from(LITERALS[1:-1])
pattern = st.one_of(literal, st.sampled_from(["*", "?", "a*", "*b", "??", "?*", "a?"]))


def matches(one: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    patterns = st.lists(one, min_size=1, max_size=4)
    conditions = {"service": patterns, "line_item_type": patterns, "tag": st.fixed_dictionaries({"X": patterns})}
    return st.fixed_dictionaries({}, optional=conditions)


def tenant(matches: list[dict[str, Any]]) -> AwsTenant:
    last = [{"basis": "unallocated"}]
    pools = [{"name": f"p{number}", "match": match, "ladder": last} for number, match in enumerate(matches)]
    return AwsTenant.model_validate(
        {
            "id": "acme",
            "ecosystem": "aws",
            "source": {"kind": "aws_cur", "path": "cur"},
            "owner": {"tags": ["team"]},
            "pools": pools,
        }
    )


def told(given_: AwsTenant) -> list[str]:
    config = Config.model_validate({"root": "data", "tenants": [given_]})
    return rules.faults(config, Document(Path("prorata.yaml"), Config))


def refused(given_: AwsTenant) -> set[str]:
    """The rules of the pools that are said never to match."""
    faults = told(given_)
    assert all("can never match" in fault for fault in faults)
    return {f"pool:{fault.split(chr(39))[1]}" for fault in faults}


def matched(given_: AwsTenant) -> set[str]:
    """The rules that any line of the world gets."""
    texts = dict.fromkeys((name for name, dtype in BILLING.schema.items() if dtype == pl.String), "")
    rows = [{**texts, "owner": "", "charge_date": dt.date(2025, 9, 1), **line, "tags": _json(line)} for line in WORLD]
    return set(rules.match(pl.LazyFrame(rows), rules.resolve(given_)).collect()["rule_id"])


def _json(line: Mapping[str, Any]) -> str:
    return "".join(["{", *(f'"{key}":"{text}"' for key, text in line["tags"].items()), "}"])


@DETERMINED
@given(st.lists(matches(pattern), min_size=2, max_size=6))
def test_no_pool_is_refused_that_a_line_could_get(given_: list[dict[str, Any]]) -> None:
    acme = tenant(given_)
    assert not refused(acme) & matched(acme)


@DETERMINED
@given(st.lists(matches(literal), min_size=2, max_size=6))
def test_of_pools_without_globs_each_that_can_never_match_is_refused(given_: list[dict[str, Any]]) -> None:
    acme = tenant(given_)
    own = {f"pool:p{number}" for number in range(len(given_))}
    assert refused(acme) == own - matched(acme)


KINDS = ["Usage", "Tax", "Credit", "Fee"]


@pytest.mark.parametrize(
    ("earlier", "later", "takers"),
    [
        ([{"line_item_type": ["Usage"]}, {"line_item_type": ["Tax", "Credit", "Fee"]}], {"line_item_type": KINDS},
         "pools 'p0', 'p1' take"),
        ([{"account": "1"}, {"account": "3"}, {"account": "2"}], {"account": ["1", "2"], "service": "A"},
         "pools 'p0', 'p2' take"),
        ([{"account": "1"}, {"account": ["1", "2"]}], {"account": ["1", "2"]}, "pool 'p1' takes"),
        ([{"account": "1", "service": "A"}, {"account": "1", "service": "B"}, {"account": "2"}],
         {"account": ["1", "2"], "service": ["A", "B"]}, "pools 'p0', 'p1', 'p2' take"),
        ([{"tag": {"App": "a"}}, {"tag": {"app": "b*"}}], {"tag": {"app": ["a", "b", "bb*"]}}, "pools 'p0', 'p1' take"),
        ([{"service": "*"}], {}, "pool 'p0' takes"),
        ([{"account": "1", "service": "A"}, {"account": "2"}], {"account": ["1", "2"]}, ""),
        ([{"service": "A"}, {"account": "1"}], {"service": ["A", "B"], "account": ["1", "2"]}, ""),
        ([{"tag": {"app": "*"}}], {}, ""),
        ([{"service": "?*"}], {"service": "*"}, ""),
    ],
)  # fmt: skip
def test_pools_that_together_take_all_lines(earlier: list[dict[str, Any]], later: dict[str, Any], takers: str) -> None:
    faults = told(tenant([*earlier, later]))
    seen = f"pool 'p{len(earlier)}' can never match, {takers} all its lines"
    expected = "a condition that an earlier pool leaves open, or another order"
    where = "prorata.yaml:1: tenants[0].pools"
    assert faults == ([f"{where}[{len(earlier)}].match: {seen}; expected {expected}"] if takers else [])


def test_what_is_left_may_take_too_many_conditions_to_tell() -> None:
    """Then only a pool that takes all by itself is seen, so that many pools are looked at in little time."""
    numbers = [f"{number}" for number in range(150)]
    later = {"service": numbers, "region": numbers}
    each = [{"service": number, "region": number} for number in numbers]
    halves = [{"service": numbers[:75]}, {"service": numbers[75:]}]
    assert refused(tenant([*halves, later])) == {"pool:p2"}
    assert refused(tenant([*each, *halves, later])) == set()
    assert refused(tenant([*each, {"region": "*"}, later])) == {"pool:p151"}
