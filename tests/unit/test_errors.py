"""Texts of errors: one line each, and without passwords."""

from __future__ import annotations

import pytest

from engine.errors import fault, shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://billing:canary@db/x", "postgresql://***@db/x"),
        ("https:/reader:canary@git.example/tags.csv", "https:/***@git.example/tags.csv"),
        ("https://a:can@ary@git.example/tags.csv", "https://***@git.example/tags.csv"),
        ("https://git.example/a?x=1&Private_Token=canary&y=2 z", "https://git.example/a?x=1&Private_Token=***&y=2 z"),
        ("https://api.example/v1?page_size=100&x=1", "https://api.example/v1?page_size=100&x=1"),
        (f"https://reader:{'canary' * 20}@git.example", "https://***@git.example"),
        ("https://prom.example:9090/api", "https://prom.example:9090/api"),
        ("arn:aws:s3:::bucket/a@b", "arn:aws:s3:::bucket/a@b"),
        ("/data/me@home/tags.csv?", "/data/me@home/tags.csv?"),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, told: str) -> None:
    assert shown(text) == repr(told)
    assert fault(text, f"value {text}", text) == f"{told}: value {told}; expected {told}"


@pytest.mark.parametrize(
    "text",
    [
        "a." * 2_000_000,
        "?" + "token" * 1_000_000,
        "?token=" * 500_000,
        "0f3a9c1e-aaaa-4bbb-8ccc-deadbeef0001-" * 100_000,
        "c:/x" * 1_000_000,
    ],
    ids=["words", "a long name", "names", "UUIDs", "paths"],
)
def test_a_long_text_is_looked_through_once(text: str) -> None:
    # From each of its words anew, it would take hours.
    said = fault("here", shown(text), f"less than {text}")
    assert said.startswith(f"here: '{text[:7]}")
    assert len(shown(text)) <= 80
