"""A session's socket: a client's connection behind its upgrade, read as messages, with fairness between clients and an
end from outside for one that breaks the rules.

What is said on it, and how it ends otherwise, is the sessions'. Frames are parsed by aiohttp's compiled reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from aiohttp import EofStream, WSCloseCode, WSMessage, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue  # the only one that the compiled reader feeds
from aiohttp.http import WS_CLOSING_MESSAGE, WebSocketError, WebSocketReader

from proxy.downstream.client_socket import ClientSocket
from proxy.downstream.connection import Upgraded
from proxy.downstream.heartbeat import Heartbeat
from proxy.wire.client_frames import Broken, FrameWatch
from proxy.wire.frames import close_frame, pong_frame

MESSAGES_A_TURN: Final = 16
"""After so many messages other clients have their turn: up to 0.3 ms, at 20 µs a message."""
QUEUE_BYTES: Final = 256 * 1024
"""When twice as much has come that the session has not taken, the client is not read."""
FLOODED: Final = 4429
"""The close code for a flood, in the dialects that have codes of their own."""
CLOSE_WITHIN_S = 1.0
"""How long the client may take to answer our Close."""
LINGER_S = 1.0
"""How long one that breaks the rules may take to read why: what it has sent meanwhile, and nobody will read, makes the
system reset the connection as soon as it is closed."""


class Socket(ClientSocket):
    """One client's, open. Its first message may have `first_bytes` (None: as many as any); a flood of frames is closed
    with `flood_code`. Where the session `answers_close` itself, the client's Close is a message to it.

    `before_close` is called when our Close frame is about to go: nothing may follow that. The owner's duty: `begin`.
    Towards the server it stands for aiohttp's connection: what is asked of it has aiohttp's names.
    """

    __slots__ = (
        "_answers_close",
        "_client_closed",
        "_close_timer",
        "_early",
        "_flood_code",
        "_frames",
        "_heartbeat",
        "_is_closing",
        "_is_deaf",
        "_is_resting",
        "_messages",
        "_on_writing",
        "_owed_pong",
        "_reader",
        "_received",
        "_server",
        "_stalled",
        "_task_handler",
        "before_close",
        "now",
    )
    awaits_request = False

    def __init__(
        self,
        upgraded: Upgraded,
        *,
        message_bytes: int,
        ping_s: float | None,
        first_bytes: int | None = None,
        flood_code: int = WSCloseCode.POLICY_VIOLATION,
        answers_close: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop)
        self.now = upgraded.now
        self.before_close: Callable[[], None] | None = None
        self._server = upgraded.server
        self._on_writing = None
        self._stalled = None
        self._task_handler: asyncio.Task[None] | None = None  # the session's
        self._frames = FrameWatch(self.now(), first_bytes)
        self._messages = WebSocketDataQueue(self, QUEUE_BYTES, loop=loop)
        largest = message_bytes + 1  # the first size that aiohttp refuses
        self._reader = WebSocketReader(self._messages, largest, compress=False, decode_text=True)
        self._heartbeat = Heartbeat(loop, upgraded.transport, ping_s)
        self._early = upgraded.early
        self._flood_code = flood_code
        self._answers_close = answers_close
        self._received = 0
        self._owed_pong: bytes | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._client_closed = False
        self._is_closing = False  # our Close has gone
        self._is_deaf = False  # what the client sends is not looked at any more
        self._is_resting = False  # the session is over
        upgraded.transport.set_protocol(self)
        self.connection_made(upgraded.transport)
        if upgraded.paused:
            self.pause_writing()

    # ---- the session's side ----

    def begin(self, session: Coroutine[Any, Any, None]) -> None:
        """Run the session, which is cancelled when the connection is lost; at its end it has to `rest`."""
        self._task_handler = self._loop.create_task(session)
        self._heartbeat.begin()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    async def receive(self) -> WSMessage | None:
        """The next message, or None: it is over. Where many came together, others are served in between."""
        self._received += 1
        if self._received % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        while not self._is_closing:
            try:
                message = await self._messages.read()
            except EofStream:
                break
            except WebSocketError as error:
                self._close(error.code, "", 0.0)
                break
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    return cast("WSMessage", message)
                case WSMsgType.CLOSE:
                    self._client_closed = True
                    if self._answers_close:
                        return cast("WSMessage", message)
                    self.close(WSCloseCode.OK)
                case WSMsgType.PING:
                    self._answer_ping(cast("bytes", message.data))
        return None

    def close(self, code: int = WSCloseCode.GOING_AWAY, reason: str = "") -> None:
        """Say that it is over, the first time; the session hears of it from `receive`."""
        self._close(code, reason, CLOSE_WITHIN_S)

    def break_off(self, broken: Broken) -> None:
        """The client has broken a rule: nothing more of it is looked at."""
        self._is_deaf = True
        match broken:
            case Broken.UNMASKED:
                self._close(WSCloseCode.PROTOCOL_ERROR, broken.value, 0.0)
            case Broken.TOO_LARGE:
                self._close(WSCloseCode.MESSAGE_TOO_BIG, broken.value, LINGER_S)
            case Broken.TOO_MANY:
                self._close(self._flood_code, broken.value, LINGER_S)
        self._pause_transport_reading()

    async def rest(self) -> None:
        """The session is over: close, and wait until the client has closed, too, or has had the time for it."""
        self._is_resting = True
        self.close()
        try:
            while (await self._messages.read()).type is not WSMsgType.CLOSE or self._is_deaf:
                pass
        except (EofStream, WebSocketError):
            pass
        self.force_close()

    async def over(self) -> None:
        """Wait until the session has come to rest."""
        if self._task_handler is not None:
            await asyncio.wait([self._task_handler])

    # ---- the server's calls, as aiohttp names them ----

    def force_close(self) -> None:
        """Wait no more for the client; what was written still goes out."""
        self._stop_close_timer()
        if self.transport is not None:
            self.transport.close()
        self._messages.feed_eof()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close; the session may take `timeout` seconds more."""
        self.close()
        if self._task_handler is not None:
            await asyncio.wait([self._task_handler], timeout=timeout)
            self._task_handler.cancel()
        self.force_close()

    # ---- the transport's and the queue's calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connection_made(cast("Any", self), cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        now = self.now()
        broken = self._frames.look(data, now)
        if broken is not None:
            self.break_off(broken)
        else:
            self._heartbeat.heard(now)
            self._reader.feed_data(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.connection_lost(cast("Any", self), exc)
        self._heartbeat.stop()
        self._stop_close_timer()
        if self._is_resting or self._task_handler is None:
            self._messages.feed_eof()
        else:
            self._loop.call_soon(self._task_handler.cancel)  # it has begun then, and can end what it was given
        super().connection_lost(exc)

    def pause_reading(self) -> None:
        self._reading_paused = True
        self._heartbeat.stop()
        self._pause_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        self._reading_paused = False
        if not self._is_deaf:
            self._resume_transport_reading()
        if not self._is_closing:
            self._heartbeat.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owed_pong is not None:
            payload, self._owed_pong = self._owed_pong, None
            self._answer_ping(payload)

    # ---- within ----

    def _answer_ping(self, payload: bytes) -> None:
        """A client that does not read is owed an answer to its last ping only (RFC 6455, 5.5.3)."""
        if self._paused:
            self._owed_pong = payload
        elif self.transport is not None and not self._is_closing:
            self.transport.write(pong_frame(payload))

    def _close(self, code: int, reason: str, within_s: float) -> None:
        """Our last word, unless it is said. The client may take so long to answer."""
        if self._is_closing or self.transport is None:
            return
        self._is_closing = True
        self._heartbeat.stop()
        if self.before_close is not None:
            self.before_close()
        if not self.transport.is_closing():
            self.transport.write(close_frame(code, reason))
        if within_s and not self._client_closed:
            self._close_timer = self._loop.call_later(within_s, self.force_close)
            self._messages.feed_data(WS_CLOSING_MESSAGE, 0)  # for who waits in `receive`
        else:
            self.force_close()

    def _stop_close_timer(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
