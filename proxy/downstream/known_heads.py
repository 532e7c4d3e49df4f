"""Heads of requests that were parsed and let in before: one that comes again means the same, and needs no parser.

The same is: byte for byte, but for the digits of the body's length. What a parser is there to refuse was refused, or
let in, when the head came first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.wire.sized_heads import sized_head

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

    from proxy.wire.sized_heads import SizedHead

_NEVER_KNOWN: Final = (b"connection", b"content-encoding", b"expect", b"transfer-encoding", b"upgrade")
"""Headers that say something of this one request, or of the connection."""
_MOST: Final = 256
_MOST_BYTES: Final = 4096


@dataclass(slots=True, eq=False)
class KnownHead:
    """What a head means: `message` is aiohttp's, `visitor` the gate's (it may find another one later)."""

    message: RawRequestMessage
    visitor: object


class KnownHeads:
    """A few hundred of one port's clients, by the address they come from. Bodies have at most `max_body_bytes`.

    What is in them is secret: credentials among it.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._known: dict[tuple[str, bytes], KnownHead] = {}

    def find(self, peer: str, head: SizedHead) -> KnownHead | None:
        """The known head that this one is, sent from `peer`; None for a new one, and for a body that is too large."""
        return self._known.get((peer, head.rest)) if head.length <= self._max_body_bytes else None

    def learn(self, peer: str, data: bytes, message: RawRequestMessage, visitor: object) -> None:
        """`data`, read from `peer` between two requests, began with the head of this `message`, and was let in."""
        head = sized_head(data)
        if head is None or head.body_at > _MOST_BYTES:
            return
        if any(name.lower() in _NEVER_KNOWN for name, _ in message.raw_headers):
            return
        if len(self._known) >= _MOST:  # of clients whose heads are never the same
            self._known.clear()
        self._known[peer, head.rest] = KnownHead(message, visitor)
