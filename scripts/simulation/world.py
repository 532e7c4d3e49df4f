"""Simulated time: things that happen at their moment, in order, as fast as the machine can do them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class World:
    """`now` is in seconds and begins at 0. What is due at the same moment happens in the order it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = count()
        self._due: list[tuple[float, int, Action]] = []

    def at(self, moment: float, action: Action) -> None:
        heapq.heappush(self._due, (max(moment, self.now), next(self._order), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now + delay_s, action)

    def run(self, until: float = float("inf")) -> None:
        """Until nothing is left to happen, or that moment has come."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            action()
