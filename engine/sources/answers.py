"""Answers of an API as they came: raw text, and its JSON with every number exact."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from engine.errors import ContractError, fault, shown

_DIGITS_OF_INT = 40
"""Whole numbers of more digits stay decimals: Python takes long over them, or refuses them."""


NESTED_MAX = 100
"""Levels of lists and objects in an answer. No API has so many, and what walks through them calls itself."""


class TooDeepError(ValueError):
    """JSON of more than NESTED_MAX levels."""


class Answer(NamedTuple):
    """One answer: path and query of what was asked, without host and secrets, and the raw text that came.

    A status of 404 stands for a list that is not there, where that may be; it has no text.
    """

    url: str
    status: int
    text: str

    @property
    def body(self) -> Any:
        """The text's JSON, see `decoded`."""
        return decoded(self.text)


def decoded(text: str) -> Any:
    """JSON with whole numbers as int and others as Decimal, never as float; ValueError if the text is none.

    NaN and Infinity are not JSON. A number whose exponent not even Decimal can hold stays text. What is nested too
    deeply to be read raises TooDeepError.
    """
    try:
        value = json.loads(text, parse_float=_decimal, parse_int=_integer, parse_constant=_refused)
    except RecursionError:
        raise TooDeepError(f"more than {NESTED_MAX} levels") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(NESTED_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise TooDeepError(f"more than {NESTED_MAX} levels")


def _decimal(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _DIGITS_OF_INT else Decimal(text)


def _refused(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def canonical(value: Any) -> str:
    """A decoded value as JSON of one form: keys sorted, no blanks, nothing escaped that need not be, numbers exact."""
    match value:
        case dict():
            members = (f"{json.dumps(key, ensure_ascii=False)}:{canonical(value[key])}" for key in sorted(value))
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(canonical(member) for member in value) + "]"
        case Decimal():
            return str(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def clean(text: str) -> str:
    """The text, with a question mark for every half of a surrogate pair: such are allowed in JSON, and nowhere else."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def shown_value(value: Any) -> str:
    """A decoded value as it may stand in a message."""
    return shown(value if isinstance(value, str) else canonical(value))


def listed(answer: Answer) -> list[Any]:
    """The members of a page, `{"data": [...]}`; none of a list that is not there. ContractError if it is no page."""
    if answer.status == 404:
        return []
    try:
        body = answer.body
    except ValueError:
        body = None
    data = body.get("data", 0) if isinstance(body, dict) else 0
    if not isinstance(data, list | None):
        raise ContractError(fault(f"answer to {answer.url}", "is of another form", "an object with a list, data"))
    return data or []
