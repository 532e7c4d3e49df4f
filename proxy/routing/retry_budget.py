"""The retry budget: however many requests fail, the tries on top of them stay a small part of all.

Without it, a failing upstream gets several times the traffic that made it fail.
"""

from __future__ import annotations

from collections import deque

SHARE = 0.2
LEAST = 10
WINDOW_S = 10.0
BUCKET_S = 1.0
"""A request is forgotten this much late at the most."""


class RetryBudget:
    """Tries again in ten seconds: a fifth of the requests, or ten where that is more. One for the whole gateway."""

    __slots__ = ("_buckets", "_requests", "_retries")

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()
        """Which second, its requests, its retries."""
        self._requests = 0
        self._retries = 0

    def request(self, now: float) -> None:
        """A client's request came."""
        self._bucket(now)[1] += 1
        self._requests += 1

    def spend(self, now: float) -> bool:
        """Whether one more try may be made. If so, it is counted."""
        bucket = self._bucket(now)
        if self._retries >= max(LEAST, self._requests * SHARE):
            return False
        bucket[2] += 1
        self._retries += 1
        return True

    def _bucket(self, now: float) -> list[int]:
        second = int(now / BUCKET_S)
        buckets = self._buckets
        while buckets and buckets[0][0] <= second - WINDOW_S / BUCKET_S:
            _, requests, retries = buckets.popleft()
            self._requests -= requests
            self._retries -= retries
        if not buckets or buckets[-1][0] != second:
            buckets.append([second, 0, 0])
        return buckets[-1]
