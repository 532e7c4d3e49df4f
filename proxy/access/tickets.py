"""Tickets: how a page that cannot set headers on a WebSocket shows that it holds a key, without the key in a URL.

Pure, and told the time. Who may have a ticket is the gate's to say; it is good once, soon, and for the same origin.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final

from msgspec import Struct

from proxy.access.keys import Key

LIFETIME_S: Final = 30.0
MOST: Final = 10_000
"""So many are out at once; the oldest goes for one more."""
_BYTES: Final = 24


class _Ticket(Struct, frozen=True):
    key: Key | None
    origin: str | None
    deadline: float


class Tickets:
    """Those that are out."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out: OrderedDict[str, _Ticket] = OrderedDict()  # their deadlines come in this order

    def issue(self, key: Key | None, origin: str | None, now: float) -> str:
        """A ticket for the holder of `key` (None: nobody is asked for one), in a page of `origin` (None: no page)."""
        self._forget_late(now)
        if len(self._out) >= MOST:
            self._out.popitem(last=False)
        ticket = secrets.token_urlsafe(_BYTES)
        self._out[ticket] = _Ticket(key, origin, now + LIFETIME_S)
        return ticket

    def redeem(self, ticket: str, origin: str | None, now: float) -> tuple[bool, Key | None]:
        """Whether the ticket is good, and whose it is. It is used up by being asked for, whatever the answer.

        192 random bits are looked up as they are: what the time of a look-up tells of them helps nobody guess.
        """
        held = self._out.pop(ticket, None)
        if held is None or held.deadline <= now or held.origin != origin:
            return False, None
        return True, held.key

    def _forget_late(self, now: float) -> None:
        while self._out and next(iter(self._out.values())).deadline <= now:
            self._out.popitem(last=False)
