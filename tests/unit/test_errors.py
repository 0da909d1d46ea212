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
