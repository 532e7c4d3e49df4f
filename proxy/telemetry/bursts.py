"""Whether a route's streams arrive in bursts: many events at once, then nothing for a while.

A model server says its tokens one by one; when they come together, something on the way (a proxy that buffers) holds
them back, and what the clients see stutters though every figure of the gateway's own looks well.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LEAST_EVENTS: Final = 16
"""A shorter stream tells nothing."""
EVENTS_A_READ: Final = 8
PAUSE_S: Final = 0.05
STREAMS: Final = 8
"""How many of the latest streams count."""


def came_in_bursts(events: int, reads: int, taken_s: float) -> bool:
    """Whether a stream of so many events, that came by so many reads of the upstream's socket, stuttered.

    `taken_s`: from the request to the last event, for a stream that was held back to its end comes in one read. Eight
    events a read are a burst only if the reads lie 50 ms apart: a busy gateway, or a very fast model, has as many.
    """
    if events < LEAST_EVENTS or reads < 1:
        return False
    return events >= reads * EVENTS_A_READ and taken_s >= reads * PAUSE_S


class Bursts:
    """One route's latest streams."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: deque[bool] = deque(maxlen=STREAMS)

    def add(self, events: int, reads: int, taken_s: float) -> bool:
        """One more stream has ended; one that is too short changes nothing. Whether most of the latest were bursts."""
        if events >= LEAST_EVENTS:
            self._latest.append(came_in_bursts(events, reads, taken_s))
        return 2 * sum(self._latest) > len(self._latest)
