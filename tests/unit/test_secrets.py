"""In which spellings a secret of ours is known, and that the search for it ends."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from pydantic import SecretStr

from engine.sources.secrets import HIDDEN, Credential, Secrets


def known(*texts: str) -> Secrets:
    return Secrets(Credential(SecretStr(text)) for text in texts)


def in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def in_php(text: str) -> str:
    return in_json(text).replace("/", "\\/")


WAYS: dict[str, Callable[[str], str]] = {
    "Java's properties": lambda text: re.sub(r"([\\=:!# ])", r"\\\1", text),
    "an expression": re.escape,
    "Markdown": lambda text: re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text),
    "SQL": lambda text: text.replace("'", "''"),
    "CSV": lambda text: text.replace('"', '""'),
    "HTML of old": lambda text: re.sub("&(amp|lt|gt|quot);", r"&\1", html.escape(text, quote=True)),
    "HTML, by numbers": lambda text: "".join(f"&#{ord(sign)}" for sign in text if sign != ";"),
    "JSON": in_json,
    "JSON, in capitals": lambda text: re.sub(r"(?<=\\u)....", lambda code: code[0].upper(), in_json(text)),
    "JSON in JSON in JSON": lambda text: in_json(in_json(in_json(text))),
    "Python": lambda text: ascii(text)[1:-1],
    "YAML": lambda text: "".join(f"\\U{ord(sign):08X}" if ord(sign) > 0xFFFF else sign for sign in text),
    "a URL": quote,
    "a form": quote_plus,
    "a form in a URL": lambda text: quote(quote_plus(text)),
    "HTML": lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    "HTML, by name": lambda text: html.escape(text).replace("ß", "&szlig;").replace("€", "&euro;"),
    "JSON in HTML": lambda text: html.escape(in_json(text)),
    "PHP's JSON in a URL": lambda text: quote(in_php(text)),
    "JSON in a form": lambda text: quote_plus(in_json(text)),
}


@pytest.mark.parametrize(
    "secret", ["p&s<'w\"o>r=d!#", 'it\'\'s"""=\\\\:+$.-', "a/b+c/d==", "Straße €5, 😀!", "%5Cx_%20y+%25%"]
)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_secret_is_known_as_it_is_usually_written(way: Callable[[str], str], secret: str) -> None:
    assert known(secret).hidden(f"<{way(secret)}>") == f"<{HIDDEN}>"


@pytest.mark.parametrize(
    "blank",
    [" ", "  ", "\n   ", "\\n", "\\r\\n\\t", "+", "%20", "&nbsp;", "&#160;", "&#xA0;", "\xa0", "\\u00a0", "&#32;"],
)
def test_a_blank_in_a_secret_is_any_white_space(blank: str) -> None:
    assert known("correct horse  battery").hidden(f"<correct{blank}horse{blank}battery>") == f"<{HIDDEN}>"


@pytest.mark.parametrize("fill", ["", "x", "xx"])
def test_what_fills_base64_up_may_be_missing(fill: str) -> None:
    secrets = Secrets([Credential(SecretStr(f"canary-77{fill}"), SecretStr("reader"))])
    basic = base64.b64encode(f"reader:canary-77{fill}".encode()).decode()
    assert secrets.hidden(f"<{basic}> <{basic.rstrip('=')}> <{quote(basic)}>") == f"<{HIDDEN}> <{HIDDEN}> <{HIDDEN}>"


def test_which_credential_is_met_is_told_by_its_name() -> None:
    mine = Credential(SecretStr("canary-77"), SecretStr("reader"), "mine")
    yours, ours = (
        Credential(SecretStr("+canary-of-yours"), name="yours"),
        Credential(SecretStr("canary-77"), name="ours"),
    )
    secrets = Secrets([mine, yours, ours])
    basic = base64.b64encode(b"reader:canary-77").decode()
    texts = ["canary-77", basic, f"x{in_json(basic)}", "%2Bcanary-of-yours", "canary-7", ""]
    assert [secrets.met(text) for text in texts] == ["mine", "mine", "mine", "yours", None, None]
    assert secrets.including(mine._replace(name="")) is secrets
    assert secrets.including(Credential(SecretStr("another"))).met("another") == ""


def test_of_two_secrets_the_longer_is_hidden() -> None:
    assert known("canary77", "canary77-and-more").hidden("<canary77-and-more> <canary77>") == f"<{HIDDEN}> <{HIDDEN}>"


@pytest.mark.parametrize(
    ("secret", "near"),
    [
        ("\\'" * 7 + "x", ("\\" * 30 + "'") * 10_000),
        ('\\"' * 8 + "x", ("\\" * 30 + '"') * 10_000),
        ("'" * 16 + "x", "'" * 100_000),
        ("+ " * 12 + "x", " " * 100_000),
        ("a b" * 8 + "x", ("a" + " " * 40 + "b") * 10_000),
        ("%" * 12 + "x", "%25" * 100_000),
        ("&" * 12 + "x", "&amp;amp" * 50_000),
        ("\\" * 12 + "x", "\\u005c" * 50_000),
        ("canary-77", "\\" * 100_000 + "%25" * 50_000 + "&amp;" * 50_000),
    ],
)
def test_what_is_nearly_a_secret_many_times_over_is_not_tried_in_every_way(secret: str, near: str) -> None:
    # Each of its runs divided in every way, it would take years.
    secrets = known(secret)
    assert secrets.met(near) is None
    assert secrets.hidden(f"{near}<{secret}>").endswith(f"<{HIDDEN}>")
