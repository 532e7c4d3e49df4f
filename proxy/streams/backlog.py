"""The last events of a stream: what its follower has yet to take, and what is kept for who comes back.

Which numbers they have, and who takes them when, is `numbered`'s; how much of all streams may be kept, the shelf's.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final, Protocol

from msgspec import Struct

from proxy.wire.sse import Event

FRAME_COST_BYTES: Final = 100
"""What a frame costs beyond its data: in memory while it waits, and on the wire around it."""


class Shelf(Protocol):
    """Room for what is kept of all streams."""

    def hold(self, more_bytes: int) -> bool:
        """So many more (or fewer) are kept. True: that is too much."""


class Keeping(Struct, frozen=True):
    """How much of a stream is kept for who comes back, besides what its follower has not taken yet."""

    frames: int
    bytes: int
    shelf: Shelf


class Backlog:
    """Events in their order, the oldest first. `keeping` None: nothing is kept but what waits for the follower.

    `wanted` is always how many of the last events the follower has yet to take: those never go.
    """

    __slots__ = ("_data", "_held_bytes", "_names", "keeping")

    def __init__(self, keeping: Keeping | None) -> None:
        self.keeping = keeping
        self._data: deque[bytes] = deque()  # of the events, and their names: nothing here for the collector
        self._names: deque[bytes] = deque()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._data)

    def add(self, events: list[Event]) -> bool:
        """Events behind those that are there. True: it is too much now, so `make_room`."""
        cost = 0
        for event in events:
            data = event.data
            self._data.append(data)
            self._names.append(event.type)
            cost += len(data) + FRAME_COST_BYTES
        self._held_bytes += cost
        keeping = self.keeping
        if keeping is None:
            return False
        too_much = keeping.shelf.hold(cost)
        return too_much or self._held_bytes > keeping.bytes or len(self._data) > keeping.frames

    def cost_from(self, start: int) -> int:
        """Of the events from position `start` on, in bytes."""
        return sum(len(data) + FRAME_COST_BYTES for data in islice(self._data, start, None))

    def fetch(self, start: int, count: int) -> list[Event]:
        """So many events from position `start` on; on the wire they are nothing but their data. Where nothing is kept
        they are gone then (and `start` is 0)."""
        if self.keeping is None:
            return [self._drop_oldest() for _ in range(count)]
        data, names = self._data, self._names  # by position: walking there takes 90 µs in a full buffer, for each event
        return [Event(each := data[at], each, each, names[at]) for at in range(start, start + count)]

    def make_room(self, wanted: int) -> None:
        """Let the oldest go, until no more is kept than may be."""
        keeping = self.keeping
        while keeping is not None and len(self._data) > wanted and self._is_too_much(keeping):
            self._drop_oldest()

    def stop_keeping(self, wanted: int) -> None:
        """From now on only what waits for the follower is there."""
        keeping, self.keeping = self.keeping, None
        if keeping is not None:
            keeping.shelf.hold(-self._held_bytes)
        while len(self._data) > wanted:
            self._drop_oldest()

    def clear(self) -> None:
        """Nobody wants any of it. Only where nothing is kept."""
        assert self.keeping is None
        self._data.clear()
        self._names.clear()
        self._held_bytes = 0

    def _is_too_much(self, keeping: Keeping) -> bool:
        return len(self._data) > keeping.frames or self._held_bytes > keeping.bytes or keeping.shelf.hold(0)

    def _drop_oldest(self) -> Event:
        data = self._data.popleft()
        cost = len(data) + FRAME_COST_BYTES
        self._held_bytes -= cost
        if self.keeping is not None:
            self.keeping.shelf.hold(-cost)
        return Event(data, data, data, self._names.popleft())
