"""Questions to a Prometheus as data: what is needed to say what is asked, without asking it."""

from __future__ import annotations

import json
import re
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


_PIECE = re.compile(r"\\Q.*?(?:\\E|\Z)|\\.|\[\^?+\]?+(?:\[:\^?\w+:\]|\\.|[^\]\\])*+\]|[^\\\[]", re.DOTALL)
"""What a regular expression of RE2 is made of: literals, escapes, classes, and single characters."""


def regular_expression_fault(text: str) -> str | None:
    """From where on a text is certainly no regular expression of RE2: brackets left open, nothing to be repeated.

    None if it may be one; what else may be wrong with it, Prometheus says.
    """
    if text[:1] in set("*+?"):
        return text
    place, opened = 0, list[int]()
    while place < len(text):
        piece = _PIECE.match(text, place)
        if piece is None or (piece[0] == ")" and not opened):
            return text[place:]
        if piece[0] == "(":
            opened.append(place)
        elif piece[0] == ")":
            opened.pop()
        place = piece.end()
    return text[opened[0] :] if opened else None


def quoted(text: str) -> str:
    """A string of PromQL, whose escapes are Go's; JSON's are among them."""
    return json.dumps(text, ensure_ascii=False)
