"""What the lines of every bill have in common: their ids, and their tags as one text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import polars as pl
import polars_hash as plh


def tags_json(tags: Mapping[str, str]) -> pl.Expr:
    """Columns by tag key -> a JSON object, keys sorted, no blanks, no empty values."""

    def member(key: str, name: str) -> pl.Expr:
        # Polars escapes as JSON asks only when it writes a whole object, so one is written and cut out of its braces.
        written = pl.struct(pl.col(name).alias("")).struct.json_encode()
        value = written.str.slice(len('{"":')).str.strip_suffix("}")
        return pl.when(pl.col(name) != "").then(pl.concat_str(pl.lit(json.dumps(key, ensure_ascii=False) + ":"), value))

    members = [member(key, tags[key]) for key in sorted(tags)]
    listed = pl.concat_str(members, separator=",", ignore_nulls=True) if members else pl.lit("")
    return pl.concat_str(pl.lit("{"), listed, pl.lit("}"))


def line_id(key: Sequence[str]) -> pl.Expr:
    """Text columns that make a line -> its id, Int64.

    It is the first 8 bytes, big-endian and signed, of the SHA-256 of the values in the order of `key`, each written as
    its length in UTF-8 bytes, a colon, the value and a comma (a date as YYYY-MM-DD):

        text = "".join(f"{len(value.encode())}:{value}," for value in values)
        line_id = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
    """
    fields = [
        part
        for name in key
        for part in (pl.col(name).str.len_bytes().cast(pl.String), pl.lit(":"), pl.col(name), pl.lit(","))
    ]
    digest = plh.concat_str(*fields).chash.sha2_256()
    halves = [digest.str.slice(start, 8).str.to_integer(base=16, dtype=pl.UInt64) for start in (0, 8)]
    return (halves[0] * 2**32 + halves[1]).reinterpret(signed=True)
