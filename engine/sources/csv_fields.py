"""Whether all records of a CSV text have as many fields as they should, told by its bytes.

A record has one field more than it has commas outside quotes. They are counted block by block, as sums of a mask over
the bytes from one quote or line feed to the next: a fraction of what it takes to cut the fields out.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import pyarrow as pa

BLOCK_BYTES = 1 << 22
"""How long a block should be: each takes a quarter of a millisecond, however short it is."""

_COMMA, _QUOTE, _LINE_FEED = b',"\n'


def surely_even(blocks: Iterable[pa.Buffer], width: int) -> bool:
    """Whether each record has `width` fields. No if one has not, and where quotes leave doubt about it.

    Quotes toggle: what stands between the first and the second of a record is quoted, and so on; two in a row, which
    stand for one, toggle twice. A quote that opens in the midst of a field leaves doubt, since it is a letter for
    readers of CSV, as does one that is never closed. Every line feed that is not quoted ends a record.
    """
    commas, quoted, before = 0, False, _LINE_FEED
    for block in blocks:
        text = pl.Series(pa.Array.from_buffers(pa.uint8(), block.size, [None, block]))
        marks = ((text == _QUOTE) | (text == _LINE_FEED)).arg_true()
        stretches = _sums(text == _COMMA, marks)
        toggles = text.gather(marks) == _QUOTE
        quoted_after = ((toggles.cum_sum() + int(quoted)) & 1) == 1
        # Before a mark it is not quoted if the mark opens a quote, or neither toggles nor is quoted.
        counted = stretches.head(marks.len()) * (toggles == quoted_after).cast(pl.UInt32)
        seen = counted.cum_sum() + commas
        ended = seen.filter(~(toggles | quoted_after))
        if (ended != pl.int_range(1, ended.len() + 1, eager=True) * (width - 1)).any():
            return False
        if not _begin_fields(marks.filter(toggles & quoted_after), text, before):
            return False
        if marks.len():
            commas, quoted = seen[-1] - ended.len() * (width - 1), quoted_after[-1]
        commas += 0 if quoted else stretches[-1]
        before = text[-1]
    return not quoted and (before == _LINE_FEED or commas == width - 1)


def _begin_fields(opening: pl.Series, text: pl.Series, before: int) -> bool:
    """Whether each of these quotes begins a field, or is the second of two; `before` stands before the text."""
    inside = opening.filter(opening > 0)
    known = text.gather(inside - 1)
    at_edge = inside.len() < opening.len()
    begin = (known == _COMMA) | (known == _LINE_FEED) | (known == _QUOTE)
    return begin.all() and (not at_edge or before in {_COMMA, _LINE_FEED, _QUOTE})


def _sums(mask: pl.Series, places: pl.Series) -> pl.Series:
    """How often the mask is true before the first place, from each place to the next, and from the last to the end."""
    offsets = pl.concat([pl.Series([0]), places.cast(pl.Int64), pl.Series([mask.len()])])
    return pl.Series(pa.LargeListArray.from_arrays(offsets.to_arrow(), mask.to_arrow())).list.sum()
