"""Heads of HTTP messages that say how long their body is, taken apart without a parser: for telling whether two are the
same but for that."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,9})\r\n")


class SizedHead(NamedTuple):
    """`rest`: the head less the digits of the body's length; the body begins at `body_at`, and has `length` bytes."""

    rest: bytes
    body_at: int
    length: int


def sized_head(data: bytes) -> SizedHead | None:
    """The head that `data` begins with; None if it is not whole, or does not say how long its body is."""
    end = data.find(b"\r\n\r\n")
    found = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if found is None:
        return None
    start, stop = found.span(1)
    return SizedHead(data[:start] + data[stop:end], end + 4, int(found[1]))
