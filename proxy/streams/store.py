"""Streams that outlive their connection: who may come back to one, until when, and how much of all is kept.

Pure, and told the time. In this process's memory; a stream's numbers and what is left of it are `numbered`'s, going on
with one is the session's that resumes it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from proxy.errors import NotFound
from proxy.streams.backlog import Keeping
from proxy.streams.deadlines import Deadlines
from proxy.streams.numbered import NumberedStream
from proxy.wire.mux_frames import Form

FRAMES: Final = 16_384
BYTES: Final = 8 * 1024 * 1024
ALL_BYTES: Final = 256 * 1024 * 1024
STREAM_COST_BYTES: Final = 2048
"""What a stream costs beyond its frames."""
STREAM_NOT_FOUND: Final = "stream_not_found"
_ID_BYTES: Final = 18


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """`detach_s`: how long a stream goes on alone, if nothing else is said of it. `replay_s`: how long it can be had
    after its end."""

    detach_s: float
    replay_s: float
    frames: int = FRAMES
    bytes: int = BYTES
    all_bytes: int = ALL_BYTES


@dataclass(slots=True, eq=False)
class KeptStream:
    """One stream in the store. `owner` is the name of the key that started it (None: nobody was asked for one).

    `cancel` stops it; `form`, `stage_id` and `path` are what its frames and its events over HTTP are made with.
    `keep_s` is how long it goes on alone (None: as long as any, `StoreLimits.detach_s`; 0: not at all). `keepalive_s`:
    after so many seconds of silence who follows it over HTTP gets a sign of life (None: never).
    """

    id: str
    owner: str | None
    numbered: NumberedStream
    form: Form
    stage_id: str
    path: str
    cancel: Callable[[str], None]
    keep_s: float | None
    keepalive_s: float | None


class StreamStore:
    """All of them. The owner's duty: `keep` what is to be kept, say when it is `attached`, `detached` and `ended`, and
    call `expire` when `next_deadline` has come."""

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self._streams: dict[str, KeptStream] = {}
        # When one is cancelled for being alone, and when one is forgotten.
        self._alone: Deadlines[KeptStream] = Deadlines()
        self._ended: Deadlines[KeptStream] = Deadlines()
        self._held_bytes = 0
        self._most_bytes = limits.all_bytes

    def keeping(self) -> Keeping:
        """How much of a stream is kept, for making one."""
        return Keeping(self.limits.frames, self.limits.bytes, self)

    def keep(self, kept: KeptStream) -> None:
        self._streams[kept.id] = kept
        self.hold(STREAM_COST_BYTES)

    def find(self, id: str, owner: str | None) -> KeptStream:
        """The stream of this id, for the holder of the key named `owner`. Raises NotFound: another key's is none."""
        kept = self._streams.get(id)
        if kept is None or kept.owner != owner:
            raise NotFound("There is no such stream: it never was, or is too long over.", code=STREAM_NOT_FOUND)
        return kept

    def live(self) -> list[KeptStream]:
        """Those that have not ended."""
        return [kept for kept in self._streams.values() if kept.numbered.live]

    def attached(self, kept: KeptStream) -> None:
        """It has a follower: as long as it does, it stays."""
        self._alone.drop(kept)

    def detached(self, kept: KeptStream, now: float) -> None:
        """It has lost its follower."""
        if kept.numbered.live:
            self._alone.set(kept, now + (self.limits.detach_s if kept.keep_s is None else kept.keep_s))

    def ended(self, kept: KeptStream, now: float) -> None:
        """It has come to its end."""
        self._alone.drop(kept)
        if kept.id in self._streams:
            self._ended.set(kept, now + self.limits.replay_s)
            self.hold(0)

    def next_deadline(self) -> float | None:
        return min((at for each in (self._alone, self._ended) if (at := each.next()) is not None), default=None)

    def expire(self, now: float) -> list[KeptStream]:
        """Forget what ended long enough ago. Those that live and were alone for too long: the caller cancels them."""
        for kept in _due(self._ended, now):
            self._forget(kept)
        return list(_due(self._alone, now))

    # ---- the shelf's side ----

    def hold(self, more_bytes: int) -> bool:
        """So much more is kept; True where that is too much. Then those that ended go, the first one first."""
        self._held_bytes += more_bytes
        while self._held_bytes > self._most_bytes:
            first = self._ended.pop()
            if first is None:
                return True
            self._forget(first)
        return False

    def _forget(self, kept: KeptStream) -> None:
        del self._streams[kept.id]
        self._held_bytes -= STREAM_COST_BYTES
        kept.numbered.close()


def _due(deadlines: Deadlines[KeptStream], now: float) -> Iterator[KeptStream]:
    while (kept := deadlines.pop(now)) is not None:
        yield kept


def new_stream_id() -> str:
    """`s_` and 144 random bits: whoever knows one of a gateway without keys may follow it."""
    return "s_" + secrets.token_urlsafe(_ID_BYTES)
