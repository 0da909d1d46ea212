"""Hypothesis strategies for what the kernel takes: one rule, its weights and its lines, small enough to be read."""

from __future__ import annotations

import datetime as dt
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st

from engine.frames import MEASURES
from tests.differential.kernel_cases import CARRIED, LABELS, LAST_BASES, WEIGHING_BASES, WIDE, KernelInput, Row

DETERMINED = settings(derandomize=True, deadline=None, max_examples=60, database=None)
"""The same examples in every run, however slow the machine."""

units = st.one_of(
    st.sampled_from([0, 1, -1, WIDE.units, -WIDE.units]),
    st.integers(-(10**15), 10**15),
    st.integers(-WIDE.units, WIDE.units),
)
"""Any amount a table can hold, in units of 1e-12."""


def integer_weights(largest_total: int = WIDE.weight_total, max_size: int = 8) -> st.SearchStrategy[list[int]]:
    """Weights that total at most `largest_total`, some of them zero, at least one of them not."""
    each = st.one_of(
        st.sampled_from([0, 1, largest_total // max_size]),
        st.integers(0, min(1000, largest_total // max_size)),
        st.integers(0, largest_total // max_size),
    )
    return st.lists(each, min_size=1, max_size=max_size).filter(any)


@st.composite
def kernel_inputs(draw: st.DrawFn, *, largest_weight_total: int = WIDE.weight_total) -> KernelInput:
    """One rule of one to three parts, one or two weight scopes, up to four lines."""
    shares = draw(st.lists(st.integers(1, 10**12), min_size=1, max_size=3))
    scopes = ["s", "t"]
    found = KernelInput([], [], [], Counter())
    for part, share in enumerate(shares):
        rungs = [*draw(st.lists(st.sampled_from(WEIGHING_BASES), max_size=2)), draw(st.sampled_from(LAST_BASES))]
        found.rules.extend(_rule(part, share, rung, basis) for rung, basis in enumerate(rungs))
        for rung in range(len(rungs) - 1):
            for scope in scopes:
                weights = draw(st.one_of(st.just([]), st.just([0, 0]), integer_weights(largest_weight_total)))
                names = draw(st.permutations([f"identity {number}" for number in range(len(weights))]))
                group = f"ladder {part}@{scope}"
                found.weights.extend(
                    {"weight_group": group, "rung": rung, "identity_id": name, "weight": weight}
                    for name, weight in zip(names, weights, strict=True)
                )
    for number in range(draw(st.integers(1, 4))):
        found.lines.append(
            {
                **dict.fromkeys(CARRIED, "text"),
                "tenant_id": "acme",
                "charge_date": dt.date(2025, 9, draw(st.integers(1, 2))),
                "line_id": number,
                "resource_id": draw(st.sampled_from(["", "i-1"])),
                "quantity": None,
                "unit": "",
                "currency": "USD",
                "tags": "{}",
                "amount": draw(units),
                **{measure: draw(st.none() | units) for measure in MEASURES[1:]},
                "rule_id": "rule",
                "weight_scope": draw(st.sampled_from(scopes)),
            }
        )
    return found


def _rule(part: int, share: int, rung: int, basis: str) -> Row:
    cost_type, method = LABELS[basis]
    return {
        "rule_id": "rule",
        "part": part,
        "share": share,
        "ladder": f"ladder {part}",
        "rung": rung,
        "basis": basis,
        "metric": "",
        "payer": {"operator": "platform", "unallocated": "UNALLOCATED"}.get(basis, ""),
        "cost_type": cost_type,
        "allocation_method": method,
        "allocation_detail": "" if basis == "unallocated" and rung else "pool",
        "version": f"version {rung}",
    }
