"""A WebSocket to a model server, once it is open: messages out, and in to a listener as they come.

Bounded both ways: a listener that is full stops the reading, and whoever sends waits for the server to read. How it
came to be open is `upgrade`'s, what its messages mean nobody's here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

from proxy.errors import UpstreamError, UpstreamIdle, UpstreamInvalid, UpstreamTruncated
from proxy.wire.frames import close_frame
from proxy.wire.messages import MASK_BYTES, FrameError, Message, MessageReader, Opcode, closing, masked_frame

CLOSE_WITHIN_S: Final = 1.0
"""How long the server may take to answer our Close, and to read what waits before it."""


class Listener(Protocol):
    """Who gets what the server says. Calls come from the event loop's read; one of the last two comes once, at the end,
    unless the socket was closed from our side."""

    def message(self, opcode: Opcode, payload: bytes) -> bool:
        """A text, in valid UTF-8, or a binary message. True: take a break, until `UpstreamSocket.resume`."""

    def closed(self, code: int | None, reason: str) -> None:
        """The server has closed, with this code or without one."""

    def lost(self, error: UpstreamError) -> None:
        """The server is gone without a word, or what it says cannot be understood."""


class UpstreamSocket(asyncio.Protocol):
    """One open WebSocket. `on_over` is called once, when the connection is gone: with what went wrong, or None.

    The owner's duty: `listen`, and `close` when nobody listens any more.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        subprotocol: str | None,
        *,
        max_message_bytes: int,
        ping_s: float | None,
        on_over: Callable[[UpstreamError | None], None],
        unread: bytes = b"",
    ) -> None:
        """`transport` is not reading, and does not before `listen`; `unread` is what came behind the handshake."""
        self.subprotocol = subprotocol
        """The one the server has selected."""
        self.full = False
        """The server is behind with reading: `drained` before more is sent."""
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._reader = MessageReader(max_message_bytes)
        self._ping_s = ping_s
        self._on_over = on_over
        self._unread = unread
        self._listener: Listener | None = None
        self._ended = False
        self._error: UpstreamError | None = None
        self._paused = True
        self._drained: asyncio.Future[None] | None = None
        self._owed_pong: bytes | None = None
        self._heard = self._loop.time()
        self._pinged = False
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)

    # ---- the session's side ----

    def listen(self, listener: Listener) -> None:
        """From now on what the server says is told."""
        self._listener = listener
        if self._ended:
            listener.lost(self._error or _gone())
            return
        if self._ping_s is not None:
            self._timer = self._loop.call_later(self._ping_s, self._check_life)
        self._paused = False
        unread, self._unread = self._unread, b""
        if unread:
            self.data_received(unread)
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, opcode: Opcode, payload: bytes) -> None:
        """One message. The caller's duty: `drained` when this leaves the socket `full`."""
        if not self._ended and not self._transport.is_closing():
            self._transport.write(masked_frame(opcode, payload, os.urandom(MASK_BYTES)))

    async def drained(self) -> None:
        """Wait until the server has read, or is gone."""
        if self.full and not self._ended:
            self._drained = self._loop.create_future()
            await self._drained

    def pause(self) -> None:
        """Read no more until `resume`: the listener is full."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._listener is not None and not self._transport.is_closing():
            self._paused = False
            self._pinged = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """Say that it is over; what the server says from now on is not told any more."""
        if not self._ended:
            self._end(None)
            self._say_close(code, reason)
            if self._paused and not self._transport.is_closing():
                self._transport.resume_reading()  # for its answer

    def abort(self) -> None:
        """Drop the connection at once."""
        self._end(None)
        self._transport.abort()

    # ---- asyncio's side ----

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._heard = self._loop.time()
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except FrameError as error:
            self._lose(UpstreamInvalid(f"its WebSocket breaks the protocol: {error}"))
            self._say_close(error.code, "")
            self._transport.close()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._owed_pong is not None:
            pong, self._owed_pong = self._owed_pong, None
            self.send(Opcode.PONG, pong)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(_gone())
        if self._timer is not None:
            self._timer.cancel()
        self._on_over(self._error)

    # ---- within ----

    def _take(self, message: Message) -> None:
        match message.opcode:
            case Opcode.CLOSE:
                self._answer_close(message.payload)
            case _ if self._ended:
                pass
            case Opcode.PING:
                self._answer_ping(message.payload)
            case Opcode.TEXT | Opcode.BINARY:
                if self._listener is not None and self._listener.message(message.opcode, message.payload):
                    self.pause()

    def _answer_ping(self, payload: bytes) -> None:
        """A server that does not read is owed an answer to its last ping only (RFC 6455, 5.5.3)."""
        if self.full:
            self._owed_pong = payload
        else:
            self.send(Opcode.PONG, payload)

    def _answer_close(self, payload: bytes) -> None:
        if not self._ended:
            code, reason = closing(payload)
            self._end(None)
            self._say_close(code, reason)
            if self._listener is not None:
                self._listener.closed(code, reason)
        self._transport.close()

    def _say_close(self, code: int | None, reason: str) -> None:
        """The last word. It, and what waits before it, must be read in time."""
        payload = b"" if code is None else close_frame(code, reason)[2:]  # without the head a server gives it
        if not self._transport.is_closing():
            self._transport.write(masked_frame(Opcode.CLOSE, payload, os.urandom(MASK_BYTES)))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_WITHIN_S, self._transport.abort)

    def _lose(self, error: UpstreamError) -> None:
        if not self._ended:
            self._end(error)
            if self._listener is not None:
                self._listener.lost(error)

    def _end(self, error: UpstreamError | None) -> None:
        """Nothing is told or sent any more."""
        if not self._ended:
            self._ended = True
            self._error = error
            if self._timer is not None:
                self._timer.cancel()
            self._wake()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _check_life(self) -> None:
        """A server that says nothing is asked whether it is there; one that we do not listen to cannot answer."""
        assert self._ping_s is not None
        now = self._loop.time()
        if self._paused or now - self._heard < self._ping_s:
            self._pinged = False
            due = now + self._ping_s if self._paused else self._heard + self._ping_s
        elif not self._pinged:
            self._pinged = True
            self.send(Opcode.PING, b"")
            due = now + self._ping_s / 2
        else:
            self._lose(UpstreamIdle("it answers no ping"))
            self._transport.abort()
            return
        self._timer = self._loop.call_at(due, self._check_life)


def _gone() -> UpstreamTruncated:
    return UpstreamTruncated("the connection was lost")
