"""The streams that are kept, on the event loop's clock: forgotten, and stopped for being alone, when their time is up.

Who may have one, and until when, is `streams.store`'s.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.streams.store import KeptStream, StreamStore

DETACHED: Final = "detached"
"""Why a request was cancelled whose client did not come back in time."""
SHUT_DOWN: Final = "draining"


class KeptStreams:
    """The store and its one timer. The owner's duty: `close`."""

    def __init__(self, store: StreamStore) -> None:
        self.store = store
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = 0.0  # uvloop's handle of what is due at once does not say when

    def detach(self, kept: KeptStream) -> None:
        """Its client has gone; it may come back."""
        self.store.detached(kept, self._loop.time())
        self._watch_deadlines()

    def ended(self, kept: KeptStream) -> None:
        """It has come to its end."""
        self.store.ended(kept, self._loop.time())
        self._watch_deadlines()

    def expire(self, now: float) -> None:
        """Forget those whose time after their end is up at `now`, and stop those that were alone for too long."""
        for kept in self.store.expire(now):
            kept.cancel(DETACHED)

    def close(self) -> None:
        """Stop what still runs."""
        for kept in self.store.live():
            kept.cancel(SHUT_DOWN)
        if self._expiry is not None:
            self._expiry.cancel()

    def _watch_deadlines(self) -> None:
        deadline = self.store.next_deadline()
        if deadline is None or (self._expiry is not None and self._expires_at <= deadline):
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        self._expiry = self._loop.call_at(deadline, self._meet_deadline)

    def _meet_deadline(self) -> None:
        self._expiry = None
        self.expire(self._loop.time())
        self._watch_deadlines()
