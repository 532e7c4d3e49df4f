"""Lanes: which of one connection's requests may run now. In order within a lane, side by side between lanes.

What a request is and how it runs is its owner's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from proxy.errors import ClientError

Item = TypeVar("Item")
Lane = str | None
"""A lane's name; None is the one without."""


class LaneLimitReached(ClientError):
    """The connection has as many named lanes as it may."""

    default_code = "websocket_stream_limit_reached"


class LanesFull(ClientError):
    """As many requests wait as may."""

    status = 429
    default_code = "queue_full"
    default_type = "rate_limit_error"


class Lanes(Generic[Item]):
    """`in_flight` run at once; `named` lanes have names, for good; `waiting` wait, of `waiting_bytes` together."""

    def __init__(self, *, in_flight: int, named: int, waiting: int, waiting_bytes: int) -> None:
        self._in_flight = in_flight
        self._most_named = named
        self._most_waiting = waiting
        self._most_waiting_bytes = waiting_bytes
        self._named: set[str] = set()
        self._running: dict[Lane, Item] = {}
        self._queues: dict[Lane, deque[tuple[Item, int]]] = {}
        self._ready: deque[Lane] = deque()
        """Lanes in which nothing runs and something waits: for one of those in flight to end."""
        self._waiting = 0
        self._waiting_bytes = 0

    @property
    def idle(self) -> bool:
        """Nothing runs, so nothing waits."""
        return not self._running

    def add(self, lane: Lane, item: Item, size_bytes: int) -> bool:
        """True: it may begin at once. False: it waits. Raises LaneLimitReached or LanesFull."""
        self._name(lane)
        if lane not in self._running and len(self._running) < self._in_flight:
            self._running[lane] = item
            return True
        if self._waiting >= self._most_waiting or self._waiting_bytes + size_bytes > self._most_waiting_bytes:
            raise LanesFull("Too much waits on this connection: let some of it end first.")
        queue = self._queues.setdefault(lane, deque())
        if not queue and lane not in self._running:
            self._ready.append(lane)
        queue.append((item, size_bytes))
        self._waiting += 1
        self._waiting_bytes += size_bytes
        return False

    def ended(self, lane: Lane) -> Item | None:
        """What ran in `lane` is over. The one that may begin now, of whichever lane has waited longest."""
        del self._running[lane]
        if lane in self._queues:
            self._ready.append(lane)
        if not self._ready:
            return None
        ready = self._ready.popleft()
        self._running[ready] = item = self._take(ready)
        return item

    def current(self, lane: Lane) -> Item | None:
        """What runs in `lane`; else what waits there first."""
        if lane in self._running:
            return self._running[lane]
        return self._queues[lane][0][0] if lane in self._queues else None

    def withdraw(self, lane: Lane) -> None:
        """What waits first in `lane`, where nothing runs, is no longer wanted."""
        self._take(lane)
        if lane not in self._queues:
            self._ready.remove(lane)

    def clear(self) -> Iterator[Item]:
        """All that waits, which is no longer wanted."""
        self._ready.clear()
        for lane in list(self._queues):
            while lane in self._queues:
                yield self._take(lane)

    def _name(self, lane: Lane) -> None:
        if lane is None or lane in self._named:
            return
        if len(self._named) >= self._most_named:
            message = f"This connection has its {self._most_named} named streams: use one of them, or open another."
            raise LaneLimitReached(message, param="stream_id")
        self._named.add(lane)

    def _take(self, lane: Lane) -> Item:
        queue = self._queues[lane]
        item, size_bytes = queue.popleft()
        if not queue:
            del self._queues[lane]
        self._waiting -= 1
        self._waiting_bytes -= size_bytes
        return item
