"""Questions to a Prometheus as data: what is needed to say what is asked, without asking it."""

from __future__ import annotations

import json
from datetime import date
from typing import NamedTuple

DAY_SECONDS = 86_400

Window = tuple[date, date]
"""The days from the first one to before the second."""


class Query(NamedTuple):
    """What is asked of a Prometheus.

    `expression` is PromQL in which `{matcher}` stands for the braces that choose the ids to be asked for, by their
    label `id_label`, and `{range}` for a step: `sum by (id) (sum_over_time(x{matcher}[{range}]))`. `by` are the labels
    that are kept. There is one point a step, and those of a day are summed.
    """

    name: str
    expression: str
    by: tuple[str, ...]
    id_label: str = ""
    step_seconds: int = DAY_SECONDS


def quoted(text: str) -> str:
    """A string of PromQL, whose escapes are Go's; JSON's are among them."""
    return json.dumps(text, ensure_ascii=False)
