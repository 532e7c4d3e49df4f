"""The writer of a mux session: frames go out at once while the client keeps up, else each channel in its turn.

What a channel's next frame is, the channel knows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from proxy.downstream.session_socket import Socket
from proxy.downstream.spoken_outlet import SpokenOutlet
from proxy.wire.frames import text_frame

QUEUE_BYTES: Final = 1024 * 1024
"""When so much waits for a client, the streams that fill the queue are paused."""
BATCH_BYTES: Final = 32 * 1024
"""So much is gathered for one write, when frames have waited."""
TURN_BYTES: Final = 256 * 1024
"""So much of what waited is written before other clients have their turn: a long replay to a quick reader takes 1 ms
for it, at 1.5 µs a frame."""


class Waiting(Protocol):
    """A channel in line. `waiting_bytes` is its share of the queue."""

    waiting_bytes: int

    @property
    def waits(self) -> bool:
        """Whether it has a next frame."""

    def next_payload(self) -> bytes | None:
        """Its next frame's payload; None when it must not, or need not, send one now."""


class MuxOutlet(SpokenOutlet):
    """One client's transport, and the line of channels that wait for it. `channels` counts all that are open.

    With `joins_lines`, frames that have waited share one, a line each.
    """

    __slots__ = ("_later", "_line", "channels", "joins_lines", "queued_bytes")

    def __init__(self, socket: Socket) -> None:
        super().__init__(socket)
        self._line: deque[Waiting] = deque()
        self._later: asyncio.Handle | None = None
        self.channels = 0
        self.queued_bytes = 0
        self.joins_lines = False

    @property
    def behind(self) -> bool:
        """Frames must wait: the client is, or the socket is being closed."""
        return self._full or self._transport is None

    def send(self, payload: bytes) -> bool:
        """A stream's frame, now. False: it has to wait."""
        transport, now = self._transport, self._now
        if self._full or transport is None or transport.is_closing():
            return False
        frame = text_frame(payload)
        self._last_put = now()
        self.bytes_out += len(frame)
        transport.write(frame)
        return True

    def line_up(self, channel: Waiting, more_bytes: int) -> bool:
        """`channel` has so much more that waits, and a place in the line. True: its share of the queue is full."""
        channel.waiting_bytes += more_bytes
        self.queued_bytes += more_bytes
        if channel not in self._line:
            self._line.append(channel)
        self._serve_line()
        return self.queued_bytes >= QUEUE_BYTES and channel.waiting_bytes >= QUEUE_BYTES // max(self.channels, 1)

    def took(self, channel: Waiting, bytes: int) -> None:
        """So much of what waited is taken out of the queue."""
        channel.waiting_bytes -= bytes
        self.queued_bytes -= bytes

    def drop(self, channel: Waiting) -> None:
        """`channel` wants nothing more."""
        self.took(channel, channel.waiting_bytes)
        if channel in self._line:
            self._line.remove(channel)

    def close(self) -> None:
        super().close()
        if self._later is not None:
            self._later.cancel()

    def _change(self, paused: bool) -> None:
        super()._change(paused)
        self._serve_line()

    def _serve_line(self) -> None:
        """A frame of each channel in turn, until the client is behind again or nothing waits; not all of it at once, so
        that other clients have their turns."""
        left_bytes = TURN_BYTES
        while self._line and not self.behind and self._later is None:
            if left_bytes <= 0:
                self._later = self._loop.call_soon(self._go_on)
                return
            left_bytes -= self._put_batch()

    def _go_on(self) -> None:
        self._later = None
        self._serve_line()

    def _put_batch(self) -> int:
        """One write of what the line has next; how many bytes that took."""
        payloads: list[bytes] = []
        room_bytes = BATCH_BYTES
        while self._line and room_bytes > 0:
            channel = self._line.popleft()
            payload = channel.next_payload()
            if payload is not None:
                payloads.append(payload)
                room_bytes -= len(payload)
                if channel.waits and channel not in self._line:
                    self._line.append(channel)
        if self.joins_lines and payloads:
            self.put(text_frame(b"\n".join(payloads)))
        elif payloads:
            self.put(b"".join([text_frame(payload) for payload in payloads]))
        return BATCH_BYTES - room_bytes
