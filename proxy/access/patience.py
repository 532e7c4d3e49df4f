"""How much a session puts up with that leads to nothing: pings, cancels of what is not there, requests it cannot begin.

Pure, and told the time. Frames that carry no message are counted before there is a session (`wire/client_frames`).
"""

from __future__ import annotations

from typing import Final

from proxy.access.limits import Bucket
from proxy.errors import TooManyRequests

IDLE_A_MINUTE: Final = 3000
"""At once, or 50 a second: each costs us up to 20 µs."""


class Flooded(TooManyRequests):
    """The session says more than anybody has a use for."""

    default_code = "too_many_messages"


class Patience:
    """One session's."""

    __slots__ = ("_bucket",)

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(IDLE_A_MINUTE, now)

    def spend(self, cost: int, now: float) -> None:
        """For one message, which cost as much as so many cheap ones. Raises `Flooded` where there is none left:
        then the session should end."""
        self._bucket.draw(cost, now)
        if self._bucket.level(now) < 0:
            raise Flooded("Too many messages that lead to nothing: connect again, and send fewer.")
