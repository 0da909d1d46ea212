"""Errors a user can act on: one class per "who must act", each with the exit code of the command line.

A fault is one line: where, what is wrong with the value seen, what was expected. An error carries all
faults that were found, so that a user mends them in one go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

_USER = re.compile(r"(?<=[A-Za-z0-9+.-]:)(/{1,2})[^/\s'\"]*@")
_KEY = re.compile(
    r"([?&](?=[\w.-]*?(?:token|key|secret|passw|signature|auth|credential))[\w.-]*+=)[^&\s'\"]*[^&\s'\":;,]",
    re.IGNORECASE,
)
"""Both go through a text once, from places that do not overlap: it may be as long as servers like."""


def shown(value: object, *, limit: int = 80) -> str:
    """A value from outside as it may stand in a one-line message: quoted, control characters escaped, shortened."""
    text = _without_passwords(ascii(value) if not isinstance(value, str) else repr(value))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def fault(where: str, seen: str, expected: str) -> str:
    """One line of an error message."""
    return _without_passwords(f"{where}: {seen}; expected {expected}")


def _without_passwords(text: str) -> str:
    """The text without the users of URLs, or of paths made of them, and what opens something in their queries."""
    return _KEY.sub(r"\1***", _USER.sub(r"\1***@", text))


class ProrataError(Exception):
    """Base of every error that is shown to the user as lines instead of a traceback."""

    exit_code: ClassVar[int] = 70

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: Sequence[str] = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


def together(errors: Sequence[ProrataError]) -> ProrataError:
    """Errors, one or more, as one of the kind of the first, with the faults of all."""
    first = errors[0]
    return first if len(errors) == 1 else type(first)(text for error in errors for text in error.faults)


class UsageError(ProrataError):
    """The command was called with words that do not fit."""

    exit_code = 2


class ConfigError(ProrataError):
    """The configuration is wrong; its author must act."""

    exit_code = 10


class SourceError(ProrataError):
    """A source cannot be read (missing file, truncated, changed while read); its operator must act."""

    exit_code = 11


class ContractError(ProrataError):
    """The data breaks the contract of its table (missing column, bad value); its producer must act."""

    exit_code = 12


class LedgerError(ProrataError):
    """Money does not add up; we must act. Nothing is written."""

    exit_code = 13


class StoreError(ProrataError):
    """The lake or the state cannot be read or written; the machine's operator must act."""

    exit_code = 14


class EmissionError(ProrataError):
    """An emitter could not be given some days; the chargeback itself is calculated and stored."""

    exit_code = 1


class TenantBusyError(ProrataError):
    """Another process works on the tenant."""

    exit_code = 75


class StoppedError(ProrataError):
    """SIGTERM came; everything published so far stands, the next run goes on from there."""

    exit_code = 143
