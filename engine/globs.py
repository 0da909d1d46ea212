"""Patterns of the configuration: globs (`*` any text, `?` one character), case-sensitive, that fit whole texts.

A pattern without either is a text that must be equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, reduce

import polars as pl


def fits(text: pl.Expr, patterns: Sequence[str]) -> pl.Expr:
    """Whether a text fits one of the patterns, of which there is at least one."""
    literal = [pattern for pattern in patterns if not _is_glob(pattern)]
    globs = [f"(?s)^{_regex(pattern)}$" for pattern in patterns if _is_glob(pattern)]
    tests = [text.str.contains(glob) for glob in globs] + ([text.is_in(literal)] if literal else [])
    return reduce(lambda left, right: left | right, tests)


def _is_glob(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def _regex(pattern: str) -> str:
    """A glob as a regular expression of Rust's."""
    return "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) if c.isascii() else c for c in pattern)


@cache
def _letters(glob: str) -> list[str]:
    """What stands between the wild cards of a glob: it must stand in any pattern that the glob covers."""
    return [letters for letters in re.split("[*?]+", glob) if letters]


def covers(glob: str, pattern: str) -> bool:
    """Whether every text that fits `pattern` fits `glob`.

    A walk over both at once, from the end: `covered[j]` says whether what is left of the glob covers `pattern[j:]`.
    """
    # Most globs have nothing to do with most patterns, and are told apart a hundred times as fast by their letters.
    if not all(letters in pattern for letters in _letters(glob)):
        return False
    covered = [False] * len(pattern) + [True]
    for part in reversed(glob):
        longer = covered
        covered = [False] * len(pattern) + [part == "*" and longer[-1]]
        for place in reversed(range(len(pattern))):
            if part == "*":
                covered[place] = longer[place] or covered[place + 1]
            elif pattern[place] == part or (part == "?" and pattern[place] != "*"):
                covered[place] = longer[place + 1]
    return covered[0]


def any_covers(globs: Sequence[str], pattern: str) -> bool:
    """Whether every text that fits `pattern` fits one and the same of the globs."""
    return pattern in globs or any(_is_glob(glob) and covers(glob, pattern) for glob in globs)


def patterns_cover(earlier: Sequence[str], later: Sequence[str]) -> bool:
    """Whether every text that fits one of the later patterns fits an earlier one."""
    return all(any_covers(earlier, pattern) for pattern in later)
