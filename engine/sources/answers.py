"""Answers of an API as they came: raw text, and its JSON with every number exact."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

_DIGITS_OF_INT = 40
"""Whole numbers of more digits stay decimals: Python takes long over them, or refuses them."""


class Answer(NamedTuple):
    """One answer: path and query of what was asked, without host and secrets, and the raw text that came.

    A status of 404 stands for a list that is not there, where that may be; its text means nothing.
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

    NaN and Infinity are not JSON. A number whose exponent not even Decimal can hold stays text.
    """
    return json.loads(text, parse_float=_decimal, parse_int=_integer, parse_constant=_refused)


def _decimal(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _DIGITS_OF_INT else Decimal(text)


def _refused(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
