"""Gathering: a busy loop's turn waits a moment for more sockets, and serves them together.

A turn costs the same whether it finds one socket ready or ten, so at thousands of events a second a pause of a
millisecond saves a quarter of an event's cost. A first event is never held up: the pause ends when one comes.
"""

from __future__ import annotations

import asyncio
import select
from typing import Literal

AUTO_PAUSE_S = 0.001
BUSY_READS_A_SECOND = 4000.0
"""Below that a turn's cost is nobody's trouble, and a pause would only delay."""
ENOUGH_READS = 16
"""A turn that found as many sockets ready needs no pause."""
WINDOW_S = 0.1
"""The time over which reads are counted to tell whether the loop is busy."""


class Gatherer:
    """One loop's. Times are the running loop's, in seconds.

    `reads` counts the flowing sockets read in this turn: whoever reads one adds it, and before the first calls
    `begin_turn`. Those that are awaited do not count: small answers in one piece are all first and no flow.
    """

    __slots__ = ("_awaited", "_busy", "_loop", "_pause_ms", "_since", "_window_reads", "reads")

    def __init__(self, pause_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause_ms = pause_s * 1000
        self._awaited = select.poll()
        self._busy = False
        self.reads = 0
        self._window_reads = 0
        self._since = self._loop.time()

    def begin_turn(self) -> None:
        self._loop.call_soon(self._end_turn)  # by then this turn's writes are on their way

    def await_first(self, descriptor: int) -> None:
        """Something is about to come from this socket that must not wait."""
        self._awaited.register(descriptor, select.POLLIN)

    def first_came(self, descriptor: int) -> None:
        """From now on the socket may wait. The caller's duty: once for each `await_first`, before the socket closes."""
        self._awaited.unregister(descriptor)

    def _end_turn(self) -> None:
        reads, self.reads = self.reads, 0
        self._window_reads += reads
        now = self._loop.time()
        passed_s = now - self._since
        if passed_s >= WINDOW_S:
            self._busy = self._window_reads > BUSY_READS_A_SECOND * passed_s
            self._window_reads = 0
            self._since = now
        if self._busy and reads < ENOUGH_READS:
            self._awaited.poll(self._pause_ms)


def gatherer(setting: float | Literal["off", "auto"]) -> Gatherer | None:
    """What `server.gather` asks for; None where it is off, or this system has no `poll`."""
    if setting == "off" or not hasattr(select, "poll"):
        return None
    return Gatherer(AUTO_PAUSE_S if setting == "auto" else setting)
