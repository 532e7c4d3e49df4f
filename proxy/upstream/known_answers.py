"""Heads of answers that were parsed before: the same bytes mean the same, and need no parser.

A model server says the same head again and again, but for the length of a body and the date. What a parser is there to
refuse is never in here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.wire.sized_heads import sized_head

if TYPE_CHECKING:
    from proxy.upstream.answer_head import AnswerHead

_MOST: Final = 256
_MOST_BYTES: Final = 4096
_BODILESS: Final = (204, 304)
"""Whatever length they name, nothing follows."""


class KnownAnswer(NamedTuple):
    """What a head means. The body begins at `body_at`; it is all that follows in the read, or it is `chunked`."""

    head: AnswerHead
    keep_alive: bool
    chunked: bool
    body_at: int


class KnownAnswers:
    """A few hundred of them."""

    def __init__(self) -> None:
        self._sized: dict[bytes, KnownAnswer] = {}
        self._chunked: dict[bytes, KnownAnswer] = {}

    def find(self, data: bytes) -> KnownAnswer | None:
        """The known head that `data`, an answer's first read, begins with, and all of its body if that has a length."""
        head = sized_head(data)
        if head is None:
            return self._chunked.get(data[: data.find(b"\r\n\r\n") + 4])
        known = self._sized.get(head.rest)
        if known is None or len(data) != head.body_at + head.length:
            return None
        return known if known.body_at == head.body_at else known._replace(body_at=head.body_at)

    def learn(self, data: bytes, body_at: int, meaning: AnswerHead, *, keep_alive: bool, chunked: bool) -> None:
        """`data`, an answer's first read, began with a head of this meaning; its body has a length or is `chunked`."""
        head = sized_head(data)
        alone = body_at == data.find(b"\r\n\r\n") + 4  # no interim answer in front of it
        if not alone or body_at > _MOST_BYTES or (head is None) != chunked or meaning.status in _BODILESS:
            return
        known, key = (self._chunked, data[:body_at]) if head is None else (self._sized, head.rest)
        if len(known) >= _MOST // 2:  # of servers whose heads are never the same
            known.clear()
        known[key] = KnownAnswer(meaning, keep_alive, chunked, body_at)
