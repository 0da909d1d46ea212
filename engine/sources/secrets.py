r"""Our own secrets in texts from outside, as these usually spell them. What is found is hidden, or the text is refused.

Known is each sign of a secret, by itself: plain; behind backslashes, as JSON, YAML, shells and expressions write it; by
its code (`\u00df`, `\xdf`, any case); percent-encoded UTF-8; as an entity of HTML; a quote doubled, as SQL and CSV have
it; a blank as any white space, `+`, `%20` or `&nbsp;`. Each also escaped once more, and JSON in HTML or in a URL. And
what HTTP Basic makes of a key and its secret. Not known are other codes (base64 of a secret alone, octal,
quoted-printable), a secret that is cut in two, and a sign behind more than ESCAPES_MAX escapes.
"""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from pydantic import SecretStr

HIDDEN = "***"
"""Stands for a secret in what is said."""
ESCAPES_MAX = 32
"""So many escapes of one sign are known. They are taken at once: each place of a run tried anew would take hours."""


class Credential(NamedTuple):
    """What opens an endpoint: a secret and, where HTTP Basic may make one text of both, the key it belongs to.

    `name`: where it comes from, for people.
    """

    secret: SecretStr
    key: SecretStr | None = None
    name: str = ""

    @property
    def texts(self) -> list[str]:
        """What must not be in any text: the secret, and what HTTP Basic makes of key and secret."""
        secret = self.secret.get_secret_value()
        if self.key is None:
            return [secret]
        basic = base64.b64encode(f"{self.key.get_secret_value()}:{secret}".encode(errors="surrogateescape")).decode()
        return [secret, basic]


class Secrets:
    """Credentials to look for in texts from outside, all in one search."""

    def __init__(self, credentials: Iterable[Credential] = ()) -> None:
        self._credentials = tuple(credentials)
        self._names = dict[str, str]()
        for one in self._credentials:
            for text in one.texts:
                self._names.setdefault(text, one.name)

    def __repr__(self) -> str:
        return f"Secrets of {len(self._credentials)} credentials"

    def including(self, credential: Credential) -> Secrets:
        """These and another one."""
        is_known = self._names.keys() >= {*credential.texts}
        return self if is_known else Secrets((*self._credentials, credential))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return spellings(self._names)

    def met(self, text: str) -> str | None:
        """The name of the first one in a text, however it is spelled; None if there is none."""
        found = self._pattern.search(text)
        return self._names[_in_order(self._names)[found.lastindex - 1]] if found and found.lastindex else None

    def hidden(self, text: str) -> str:
        """The text with HIDDEN in the place of each."""
        return self._pattern.sub(HIDDEN, text)


def in_brackets(name: str) -> str:
    """A credential's name, if it has one, behind what is said of it."""
    return f" ({name})" if name else ""


def spellings(secrets: Iterable[str]) -> re.Pattern[str]:
    """What finds these secrets in a text, each in a group of its own (`_in_order`)."""
    ordered = _in_order(secrets)
    if not ordered:
        return re.compile(_NOTHING)
    # Answers are large, and where one of a few letters stands is found fast: a secret's first, or one that escapes it.
    begins = "".join(sorted({secret[0] for secret in ordered}))
    found = (
        f"(?={_begun(first)})(?:{'|'.join(f'({_spelled(secret)})' for secret in found)})"
        for first, found in groupby(ordered, key=lambda secret: secret[0])
    )
    return re.compile(f"(?={_begun(begins)})(?:{'|'.join(found)})")


def _in_order(secrets: Iterable[str]) -> list[str]:
    """By their first letter; of one letter the longest first, since a shorter one may be its beginning."""
    return sorted({secret for secret in secrets if secret}, key=lambda one: (one[0], -len(one), one))


def _begun(letters: str) -> str:
    """With what a spelling of one of these letters begins."""
    blanks = r"\s+" if any(letter == "+" or letter.isspace() for letter in letters) else ""
    return rf"[{re.escape(letters)}{blanks}\\%&]"


_RUNS = re.compile(r"\\+|'+|\"+|[\s+]*\s[\s+]*|.", re.DOTALL)


def _spelled(secret: str) -> str:
    """A secret as it is, or each of its signs in one of the ways to write it. What fills base64 up may be missing."""
    body = secret.rstrip("=") or secret
    filling = f"(?:{_spelling('=')}){{0,{len(secret) - len(body)}}}+" if body != secret else ""
    return f"(?:{re.escape(body)}|{''.join(map(_run, _RUNS.findall(body)))}){filling}"


def _run(signs: str) -> str:
    """Each way to write signs in a row that are escaped by more of their kind, or one sign.

    Such a run is taken whole, or there would be as many ways to read a text as there are to divide it among them.
    """
    first, count = signs[0], len(signs)
    if first == "\\":
        return rf"(?:\\{{{count},{count + ESCAPES_MAX}}}+|(?:{_spelling(first)}){{{count}}})"
    if first in "\"'":
        return rf"(?>{_ESCAPED}{first}{{{count},{2 * count}}}+|(?:{_spelling(first)}){{{count}}})"
    if any(sign.isspace() for sign in signs):
        ways = (_spelling("+"), _spelling(" "), _spelling("\xa0"), rf"\\{{1,{ESCAPES_MAX}}}+[nrt]", r"\s")
        return f"(?:{'|'.join(ways)}){{1,{count + 100}}}+"
    return f"(?:{_spelling(first)})"


def _spelling(sign: str) -> str:
    """Each way to write a sign: behind what escapes it, plain or by its code."""
    percent = _percent(sign)
    if sign == "%":
        # What escapes it once more looks as what follows it may.
        percent = f"%(?:25){{0,{ESCAPES_MAX}}}"
    plain = "[+ ]" if sign == "+" else re.escape(sign)
    ways = [*_codes(sign), percent, f"(?:&|u0026){_in_html(sign)}", plain]
    return f"{_BACKSLASHES if sign in _ESCAPES else _ESCAPED}(?:{'|'.join(ways)})"


def _codes(sign: str) -> Iterator[str]:
    """As JSON and Python write it, without the first backslash."""
    encoded = sign.encode("utf-16-be", errors="surrogatepass").hex()
    yield _ESCAPED.join(f"u{_any_case(encoded[at : at + 4])}" for at in range(0, len(encoded), 4))
    if ord(sign) < 0x100:
        yield f"x{_any_case(f'{ord(sign):02x}')}"
    if len(encoded) > 4:
        yield f"U{_any_case(f'{ord(sign):08x}')}"


def _percent(sign: str) -> str:
    """As URLs write it."""
    encoded = sign.encode(errors="surrogateescape")
    return "".join(f"%(?:25){{0,{ESCAPES_MAX}}}+{_any_case(f'{byte:02x}')}" for byte in encoded)


def _in_html(sign: str) -> str:
    """As HTML writes it, without the first `&`. Old names, and numbers, are read without `;` as well."""
    code = ord(sign)
    ways = [f"#0{{0,{ESCAPES_MAX}}}+{code};?", f"#[xX]0{{0,{ESCAPES_MAX}}}+{_any_case(f'{code:x}')};?"]
    ways += _HTML_NAMES.get(sign, ())
    return f"(?:amp;?){{0,{ESCAPES_MAX}}}{'' if sign == '&' else '+'}(?:{'|'.join(ways)})"


def _any_case(digits: str) -> str:
    return "".join(digit if digit.isdecimal() else f"[{digit}{digit.upper()}]" for digit in digits)


_ESCAPES = "\\%&"
"""Signs that escape others: what escapes them once more may be their own."""
_BACKSLASHES = rf"\\{{0,{ESCAPES_MAX}}}+"
_ESCAPED = rf"(?:\\|{_percent(chr(92))}){{0,{ESCAPES_MAX}}}+"
"""What may stand before a sign or its code; in a URL that is escaped, too."""
_HTML_NAMES: dict[str, list[str]] = {}
"""Sign -> its names in HTML, with `;` where browsers insist on it."""
for _name, _sign in html.entities.html5.items():
    if _name.endswith(";") and len(_sign) == 1:
        _has_old = _name.removesuffix(";") in html.entities.html5
        _HTML_NAMES.setdefault(_sign, []).append(f"{_name}?" if _has_old else _name)


_NOTHING = "(?!)"
"""Is found in no text."""
