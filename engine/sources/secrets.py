"""Our own secrets in texts from outside, however these spell them. What is found is hidden, or the text is refused."""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from pydantic import SecretStr

HIDDEN = "***"
"""Stands for a secret in what is said."""


class Credential(NamedTuple):
    """What opens an endpoint: a secret and, where HTTP Basic may make one text of both, the key it belongs to."""

    secret: SecretStr
    key: SecretStr | None = None

    @property
    def texts(self) -> list[str]:
        """What must not be in any text: the secret, and what HTTP Basic makes of key and secret, filled up or not."""
        secret = self.secret.get_secret_value()
        if self.key is None:
            return [secret]
        basic = base64.b64encode(f"{self.key.get_secret_value()}:{secret}".encode(errors="surrogateescape")).decode()
        return [secret, basic, basic.rstrip("=")]


class Secrets:
    """Credentials to look for in texts from outside, all in one search."""

    def __init__(self, credentials: Iterable[Credential] = ()) -> None:
        self._credentials = frozenset(credentials)

    def __repr__(self) -> str:
        return f"Secrets of {len(self._credentials)} credentials"

    def including(self, credential: Credential) -> Secrets:
        """These and another one."""
        return self if credential in self._credentials else Secrets({*self._credentials, credential})

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return spellings(text for credential in self._credentials for text in credential.texts)

    def are_in(self, text: str) -> bool:
        """Whether one of them is, however it is spelled."""
        return self._pattern.search(text) is not None

    def hidden(self, text: str) -> str:
        """The text with HIDDEN in the place of each."""
        return self._pattern.sub(HIDDEN, text)


def spellings(secrets: Iterable[str]) -> re.Pattern[str]:
    """What finds these secrets in a text: the longest first, as they are, or written for JSON, a URL, HTML or a log."""
    ordered = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
    if not ordered:
        return re.compile(_NOTHING)
    begins = "".join(sorted({secret[0] for secret in ordered}))
    # Answers are large, and where one of a few letters stands is found fast: a secret's first, or one that escapes it.
    first = re.escape(f"{begins}{' ' if '+' in begins else ''}\\%&")
    return re.compile(rf"(?=[{first}])(?:{'|'.join(map(_spelled, ordered))})")


def _spelled(secret: str) -> str:
    """Each way to write a secret."""
    parts = re.findall(r"\\+|[^\\]", secret)
    return "".join(_backslashes(len(part)) if part[0] == "\\" else _spelling(part) for part in parts)


def _backslashes(count: int) -> str:
    """Each way to write backslashes in a row: more of them may escape them, and are one run, not one for each."""
    return rf"(?:\\{{{count},{count + _ESCAPES_MAX}}}|{_spelling(chr(92))}{{{count}}})"


def _spelling(letter: str) -> str:
    """Each way to write a letter. What is escaped once more, such as JSON in a string of JSON, is found as well."""
    code = "".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(letter):02x}")
    in_html = rf"(?:amp;)*(?:{'|'.join([f'#0*{ord(letter)}', f'#[xX]0*{code}', *_HTML_NAMES.get(letter, ())])});"
    ways = [re.escape(letter), rf"{_ESCAPED}+(?:u00|x){code}", rf"%(?:25)*{code}", f"&{in_html}"]
    ways.append(rf"{_ESCAPED}+u0026{in_html}")
    if letter in "\"'/":
        ways.append(rf"{_ESCAPED}+{re.escape(letter)}")
    if letter == "+":
        # It stands for one in forms.
        ways.append(" ")
    return f"(?:{'|'.join(ways)})"


_ESCAPES_MAX = 32
_ESCAPED = rf"\\{{1,{_ESCAPES_MAX}}}"
"""What escapes a letter. No more, and with `+` no fewer: a long run of them would be tried from each of its places."""
_HTML_NAMES: dict[str, list[str]] = {}
"""Letter -> its names in HTML."""
for _name, _letter in html.entities.html5.items():
    if _name.endswith(";") and _letter.isascii() and len(_letter) == 1:
        _HTML_NAMES.setdefault(_letter, []).append(_name.removesuffix(";"))


_NOTHING = "(?!)"
"""Is found in no text."""
