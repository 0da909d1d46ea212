"""A value that cannot be read makes no fault of what depends on it, whatever else is wrong with the configuration."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine import rules
from engine.config import load
from tests.property.strategies import DETERMINED

names = st.sampled_from(["ants", "Ants ", "bees", "bugs", "ops", "unallocated"])
shares = st.dictionaries(names, st.sampled_from(["20", "50", "100"]), min_size=1, max_size=4)
lasts = st.sampled_from(["operator", "unallocated", "even"])
pools = st.lists(st.tuples(st.sampled_from("AB"), shares, lasts), max_size=3).map(
    lambda drawn: [
        {
            "name": f"p{number}",
            "match": {"service": service},
            "ladder": [{"basis": "fixed", "percentages": percentages}, {"basis": last}],
        }
        for number, (service, percentages, last) in enumerate(drawn)
    ]
)
tenants = st.fixed_dictionaries(
    {
        "owner": st.fixed_dictionaries(
            {
                "tags": st.just(["team"]),
                "identities": st.lists(names, max_size=3),
                # An alias for nobody's name is a fault itself, without which his name is reserved wherever it stands.
                "aliases": st.dictionaries(names.filter(lambda name: name != "unallocated"), names, max_size=4),
            }
        ),
        "operator": names,
        "pools": pools,
    }
)


def faults(tenant: dict[str, Any]) -> set[str]:
    """Place and expectation of every fault; what is seen there may name another value."""
    whole = {"id": "acme", "ecosystem": "aws", "source": {"kind": "aws_cur", "path": "cur"}, **tenant}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prorata.yaml"
        file.write_text(json.dumps({"root": "data", "tenants": [whole]}), encoding="utf-8")
        config, document, found = load(file)
    assert config is not None
    lines = [*found, *rules.faults(config, document)]
    return {f"{line.split(' ')[1]} {line.rpartition('; expected ')[2]}" for line in lines}


broken = st.sampled_from(
    [
        (("owner",), "5"),
        (("owner", "tags"), {"a": "b"}),
        (("owner", "identities"), "ants"),
        (("owner", "aliases"), ["a"]),
        (("owner", "aliases"), {"ants": ["x"]}),
        (("operator",), ["x"]),
        (("id",), "A b"),
        (("ladders",), ["p0"]),
        (("pools",), "p0"),
        (("pools", 0), "p0"),
        (("pools", 0, "name"), ["p0"]),
        (("pools", 0, "match"), "A"),
        (("pools", 0, "match", "service"), {"A": "B"}),
        (("pools", 0, "match", "tag"), ["A"]),
        (("pools", 0, "window"), "year"),
    ]
)


@settings(DETERMINED, max_examples=150)
@given(broken, tenants)
def test_no_fault_is_told_that_was_none_before(wrong: tuple[tuple[str | int, ...], object], tenant: Any) -> None:
    path, value = wrong
    assume(path[:2] != ("pools", 0) or tenant["pools"])
    changed = json.loads(json.dumps(tenant))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    new = faults(changed) - faults(tenant)
    assert new, "the value itself is told"
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    assert [line for line in new if not line.startswith(f"tenants[0]{place}")] == []
