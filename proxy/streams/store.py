"""Streams that outlive their connection: who may come back to one, until when, and how much of all is kept.

Pure, and told the time. In this process's memory; a stream's numbers and what is left of it are `numbered`'s, going on
with one is the session's that resumes it.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from proxy.errors import NotFound
from proxy.streams.numbered import Keeping, NumberedStream
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
    """`detach_s`: how long a stream goes on alone. `replay_s`: how long it can be had after its end."""

    detach_s: float
    replay_s: float
    frames: int = FRAMES
    bytes: int = BYTES
    all_bytes: int = ALL_BYTES


@dataclass(slots=True, eq=False)
class KeptStream:
    """One stream in the store. `owner` is the name of the key that started it (None: nobody was asked for one).

    `cancel` stops it; `form`, `stage_id` and `path` are what its frames and its events over HTTP are made with.
    """

    id: str
    owner: str | None
    numbered: NumberedStream
    form: Form
    stage_id: str
    path: str
    cancel: Callable[[str], None]


class StreamStore:
    """All of them. The owner's duty: `keep` what is to be kept, say when it is `attached`, `detached` and `ended`, and
    call `expire` when `next_deadline` has come."""

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self._streams: dict[str, KeptStream] = {}
        # With their deadlines, which come in this order: when one is cancelled for being alone, and one forgotten.
        self._alone: OrderedDict[KeptStream, float] = OrderedDict()
        self._ended: OrderedDict[KeptStream, float] = OrderedDict()
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
        self._alone.pop(kept, None)

    def detached(self, kept: KeptStream, now: float) -> None:
        """It has lost its follower."""
        if kept.numbered.live:
            self._alone[kept] = now + self.limits.detach_s

    def ended(self, kept: KeptStream, now: float) -> None:
        """It has come to its end."""
        self._alone.pop(kept, None)
        if kept.id in self._streams:
            self._ended[kept] = now + self.limits.replay_s
            self.hold(0)

    def next_deadline(self) -> float | None:
        return min((next(iter(each.values())) for each in (self._alone, self._ended) if each), default=None)

    def expire(self, now: float) -> list[KeptStream]:
        """Forget what ended long enough ago. Those that live and were alone for too long: the caller cancels them."""
        for kept in _due(self._ended, now):
            self._forget(kept)
        alone = _due(self._alone, now)
        for kept in alone:
            del self._alone[kept]
        return alone

    # ---- the shelf's side ----

    def hold(self, more_bytes: int) -> bool:
        """So much more is kept; True where that is too much. Then those that ended go, the first one first."""
        self._held_bytes += more_bytes
        while self._held_bytes > self._most_bytes:
            if not self._ended:
                return True
            self._forget(next(iter(self._ended)))
        return False

    def _forget(self, kept: KeptStream) -> None:
        del self._streams[kept.id], self._ended[kept]
        self._held_bytes -= STREAM_COST_BYTES
        kept.numbered.close()


def _due(deadlines: OrderedDict[KeptStream, float], now: float) -> list[KeptStream]:
    return [kept for kept, _ in takewhile(lambda each: each[1] <= now, deadlines.items())]


def new_stream_id() -> str:
    """`s_` and 144 random bits: whoever knows one of a gateway without keys may follow it."""
    return "s_" + secrets.token_urlsafe(_ID_BYTES)
