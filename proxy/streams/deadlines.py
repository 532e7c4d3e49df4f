"""When what is due: a time for each of many things, which may be changed or taken back. Pure, and told the time."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

_STALE: Final = 64
"""So many entries that count no more may be there before they are cleared out."""


class Deadlines(Generic[Item]):
    """Each item has one deadline, or none. Those of one time are due in the order they were set."""

    __slots__ = ("_heap", "_serial", "_set")

    def __init__(self) -> None:
        self._set: dict[Item, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Item]] = []  # also what was set once, and is no more
        self._serial = count()

    def __len__(self) -> int:
        return len(self._set)

    def set(self, item: Item, at: float) -> None:
        """From now on it is due at `at`, and no more at what was said before."""
        entry = self._set[item] = at, next(self._serial)
        heapq.heappush(self._heap, (*entry, item))
        if len(self._heap) > 2 * len(self._set) + _STALE:
            self._heap = [(*entry, item) for item, entry in self._set.items()]
            heapq.heapify(self._heap)

    def drop(self, item: Item) -> None:
        """It is due no more. Nothing, where it never was."""
        self._set.pop(item, None)

    def next(self) -> float | None:
        """When the first one is due."""
        first = self._first()
        return None if first is None else first[0]

    def pop(self, now: float | None = None) -> Item | None:
        """Take the one that is due first, if it is by `now` (None: whenever it is)."""
        first = self._first()
        if first is None or (now is not None and first[0] > now):
            return None
        heapq.heappop(self._heap)
        del self._set[first[2]]
        return first[2]

    def _first(self) -> tuple[float, int, Item] | None:
        heap = self._heap
        while heap and self._set.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        return heap[0] if heap else None
