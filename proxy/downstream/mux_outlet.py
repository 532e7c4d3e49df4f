"""The writer of a mux session: frames go out at once while the client keeps up, else each channel in its turn.

What a channel's next frame is, the channel knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import web

from proxy.downstream.frame_outlet import Socket
from proxy.downstream.outlet import Outlet
from proxy.wire.frames import text_frame

QUEUE_BYTES: Final = 1024 * 1024
"""When so much waits for a client, the streams that fill the queue are paused."""
BATCH_BYTES: Final = 32 * 1024
"""So much is gathered for one write, when frames have waited."""
UNREAD_BYTES: Final = 256 * 1024
"""A client that has not read so much of what was said to it, streams aside, is not listened to."""


class Waiting(Protocol):
    """A channel in line. `waiting_bytes` is its share of the queue."""

    waiting_bytes: int

    @property
    def waits(self) -> bool:
        """Whether it has a next frame."""

    def next_payload(self) -> bytes | None:
        """Its next frame's payload; None when it must not, or need not, send one now."""


class MuxOutlet(Outlet):
    """One client's transport, and the line of channels that wait for it. `channels` counts all that are open.

    With `joins_lines`, frames that have waited share one, a line each.
    """

    __slots__ = ("_line", "_said_bytes", "_when_sent", "channels", "joins_lines", "queued_bytes")

    def __init__(self, request: web.BaseRequest, socket: Socket) -> None:
        super().__init__(request)
        socket.before_close = self.shut
        self._line: deque[Waiting] = deque()
        self._said_bytes = 0  # since the client fell behind
        self._when_sent: Callable[[], None] | None = None
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

    def say(self, payload: bytes) -> None:
        """A frame of the connection's own, which does not wait."""
        if self._full:
            self._said_bytes += len(payload)
        self.put(text_frame(payload))

    @property
    def clogged(self) -> bool:
        """More has been said than the client cares to read."""
        return self._said_bytes > UNREAD_BYTES

    def when_sent(self, callback: Callable[[], None] | None) -> None:
        """Call this the next time the client has caught up."""
        self._when_sent = callback

    def line_up(self, channel: Waiting, more_bytes: int) -> bool:
        """`channel` has so much more that waits, and a place in the line. True: its share of the queue is full."""
        channel.waiting_bytes += more_bytes
        self.queued_bytes += more_bytes
        if channel not in self._line:
            self._line.append(channel)
        if not self.behind:
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

    def _change(self, paused: bool) -> None:
        super()._change(paused)
        if not paused:
            self._said_bytes = 0
            if self._when_sent is not None:
                self._when_sent()
            self._serve_line()

    def _serve_line(self) -> None:
        """A frame of each channel in turn, until the client is behind again or nothing waits."""
        while self._line and not self.behind:
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
