"""Names, tag keys and patterns, against plain readings of their rules, for every text."""

from __future__ import annotations

import datetime as dt

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from engine import rules
from engine.config import AwsTenant
from engine.frames import BILLING, normalised, normalised_text, tag_key
from tests.property.strategies import DETERMINED
from tests.reference.allocation import canonical_tag_key, glob, normal

# No surrogates, which no UTF-8 holds, and no code points that one library's Unicode tables may not know yet.
texts = st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"]), max_size=12)
spellings = st.text("aAbBé\u00c9e\u0301J\u030cß\u03a3\u03c3 \t\n\u00a0\u2003", max_size=10)


@DETERMINED
@given(st.lists(st.one_of(texts, spellings), min_size=1, max_size=50))
def test_names_are_normalised_alike(names: list[str]) -> None:
    found = pl.select(normalised(pl.lit(pl.Series(names, dtype=pl.String)))).to_series().to_list()
    assert found == [normal(name) for name in names]


@DETERMINED
@given(spellings)
def test_a_normalised_name_is_its_own_normal_form(name: str) -> None:
    assert normalised_text(normalised_text(name)) == normalised_text(name)


@DETERMINED
@given(st.text("abzABZ019 _-.:/", max_size=12))
def test_tag_keys_are_canonical_alike(key: str) -> None:
    assert tag_key(key) == canonical_tag_key(key)
    assert tag_key(tag_key(key)) == tag_key(key)


def tenant(pattern: str) -> AwsTenant:
    return AwsTenant.model_validate(
        {
            "id": "acme",
            "ecosystem": "aws",
            "source": {"kind": "aws_cur", "path": "cur"},
            "owner": {"tags": ["team"]},
            "pools": [{"name": "p", "match": {"usage_type": pattern}, "ladder": [{"basis": "unallocated"}]}],
        }
    )


def fitting(pattern: str, usage_types: list[str]) -> list[bool]:
    """Which usage types the product's rules send to a pool with this pattern."""
    texts_ = dict.fromkeys((name for name, dtype in BILLING.schema.items() if dtype == pl.String), "")
    lines = pl.DataFrame({"product_type": usage_types}, schema={"product_type": pl.String}).with_columns(
        *(pl.lit(text).alias(name) for name, text in texts_.items() if name not in ("product_type", "tags")),
        tags=pl.lit("{}"),
        owner=pl.lit(""),
        charge_date=pl.lit(dt.date(2025, 9, 1)),
    )
    matched = rules.match(lines.lazy(), rules.resolve(tenant(pattern))).collect()
    return [rule_id == "pool:p" for rule_id in matched["rule_id"]]


pattern_texts = st.text("ab*?.[]()^$|\\+{}é\n-", min_size=1, max_size=7)
literal_texts = st.text("ab.[]()^$|\\+{}é\n-", max_size=7)


@DETERMINED
@given(pattern_texts, st.lists(literal_texts, max_size=12), st.text("ab.\n", max_size=3))
def test_patterns_fit_alike(pattern: str, usage_types: list[str], filler: str) -> None:
    # Random texts hardly ever fit, so the pattern's own wild cards are filled in too.
    likely = [pattern.replace("*", filler).replace("?", letter) for letter in ("a", "é", "", "bb")]
    seen = [*usage_types, *likely]
    assert fitting(pattern, seen) == [glob(pattern, usage_type) for usage_type in seen]
