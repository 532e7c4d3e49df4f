"""A session of the bare dialect: one request at a time, each event's data as a text frame.

How messages and errors read is `wire.bare`'s; what happens between a request and its events, the relay's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import WSCloseCode, WSMsgType

from proxy.access.patience import Flooded, Patience
from proxy.downstream.frame_outlet import FrameOutlet
from proxy.downstream.session_socket import FLOODED, Socket
from proxy.downstream.stages import Client
from proxy.downstream.tool_chats import ToolChats, leaves_tools_to_us
from proxy.downstream.whole import Whole
from proxy.errors import GatewayError, InternalError, RequestInProgress
from proxy.protocols.failure import answer_error
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.telemetry.record import Dialect, EndState, RequestRecord, end_state_of
from proxy.wire.bare import CANCELLED, DONE, error_payload, failure_payload, is_cancel, unexplained
from proxy.wire.frames import ping_frame, text_payload
from proxy.wire.headers import new_request_id

logger = logging.getLogger("penstock")


class BareSession:
    """One socket, opened at `opened_at`; its messages are bodies for the endpoint `path`.

    Its reader always runs, so that a cancel, a close or a second request is seen at once.
    """

    __slots__ = (
        "_client",
        "_longest_answer_bytes",
        "_loop",
        "_message",
        "_opened_at",
        "_outlet",
        "_path",
        "_patience",
        "_publish",
        "_record",
        "_relay",
        "_socket",
        "_tool_chats",
        "_turn",
    )
    dialect: Dialect = "bare"

    def __init__(
        self,
        socket: Socket,
        *,
        opened_at: str,
        path: str,
        client: Client,
        longest_answer_bytes: int,
        relay: Relay,
        tool_chats: ToolChats,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self._socket = socket
        self._opened_at = opened_at
        self._path = path
        self._client = client
        self._longest_answer_bytes = longest_answer_bytes
        self._relay = relay
        self._tool_chats = tool_chats
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Task[None] | None = None
        self._message = b""  # what runs, or is about to, was asked for by this
        self._record: RequestRecord | None = None
        self._outlet = FrameOutlet(socket)
        self._patience = Patience(self._loop.time())

    async def run(self) -> None:
        """Read messages until the client leaves; then stop what runs."""
        try:
            await self._hear()
        except Flooded as error:
            await self._stop()
            self._refuse(error, b"")
            self._socket.close(FLOODED, error.code)
        finally:
            await self._stop()
            self._outlet.close()

    async def _hear(self) -> None:
        while (message := await self._socket.receive()) is not None:
            if message.type is WSMsgType.TEXT:
                await self._take(message.data)
            else:
                await self._stop()
                self._socket.close(WSCloseCode.UNSUPPORTED_DATA, "binary")
            del message  # may be large, and the next one long in coming
            await self._outlet.catch_up()

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""
        await self._ended()
        self._socket.close(WSCloseCode.GOING_AWAY, "draining")
        await self._socket.over()

    async def _take(self, message: str) -> None:
        """Raises `Flooded`."""
        running = self._turn is not None and not self._turn.done()
        cancels = is_cancel(message)
        if cancels != running:  # to no avail
            self._patience.spend(1, self._loop.time())
        if cancels:
            if running:
                await self._cancel()
        elif running:
            error = RequestInProgress("One request at a time: wait for the end of the one that runs, or cancel it.")
            self._refuse(error, message.encode())
        else:
            self._message = message.encode()
            self._begin()

    async def _cancel(self) -> None:
        """The client wants no more of what runs."""
        await self._stop()
        self._send(CANCELLED)

    def _refuse(self, error: GatewayError, message: bytes) -> None:
        """Say why there is no answer to `message`, or no more of it."""
        self._send(error_payload(error))

    async def _stop(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.cancel()
            await self._ended()

    async def _ended(self) -> None:
        """Wait until nothing runs."""
        if self._turn is not None and not self._turn.done():
            await asyncio.wait([self._turn])

    def _begin(self) -> None:
        """Serve the request, in a task of its own."""
        record = RequestRecord(
            new_request_id(), "GET", self._opened_at, self._loop.time(), transport="ws", dialect="bare"
        )
        record.key = self._client.key.name if self._client.key is not None else None
        record.status = 200
        record.bytes_in = len(self._message)
        self._record = record
        self._turn = self._loop.create_task(self._serve(record))
        # One that is cancelled before it begins:
        self._turn.add_done_callback(lambda _: self._finish(record, self._outlet.bytes_out))

    def _finish(self, record: RequestRecord, sent_before: int) -> None:
        """A request is over. Once."""
        if self._record is not record:
            return
        self._record = None
        self._message = b""
        record.finish(EndState.CLIENT_CLOSED, self._loop.time())
        record.bytes_out = self._outlet.bytes_out - sent_before
        self._publish(record)

    async def _serve(self, record: RequestRecord) -> None:
        """One request, to its end."""
        sent_before = self._outlet.bytes_out
        try:
            await self._relay_one(record)
        except Exception as error:
            named = error if isinstance(error, GatewayError) else InternalError("The gateway failed; its log says why.")
            if named is not error:
                logger.exception("request %s failed", record.request_id)
            self._refuse(named, self._message)
            record.status = named.status
            record.finish(end_state_of(named), self._loop.time())
        finally:
            self._finish(record, sent_before)

    async def _relay_one(self, record: RequestRecord) -> None:
        body = RequestBody.parse(self._message)
        self._message = b""  # may be large, and the body has it, or one that reads otherwise
        if not body.stream:
            body = RequestBody.parse(body.replaced({"stream": True}))
        client = self._client
        request = ProxyRequest(self._path, "", client.headers, client.forwarded, body, record.request_id)
        route = self._relay.route(request, client.key, record)
        answers = self._tool_chats if leaves_tools_to_us(request) else self._relay
        self._outlet.break_silence(route.keepalive_s, self._ping)
        try:
            answer = await answers.open(request, route, record)
            record.status = answer.status
            try:
                await self._give(answer, record)
            finally:
                answers.close(answer, record)
        finally:
            self._outlet.break_silence(None, self._ping)

    async def _give(self, answer: Answer, record: RequestRecord) -> None:
        if answer.body is None:
            await (self._push(answer, record) if answer.events else self._send_whole(answer, record))
        elif answer.failure is not None:
            self._send(failure_payload(answer.failure.error, answer.status))
        elif answer.status >= 400:
            failure = answer_error(answer.body)
            said = failure.error if failure is not None else unexplained(answer.status)
            self._send(failure_payload(said, answer.status))
        else:
            self._send(text_payload(answer.body))
            self._send(DONE)

    async def _push(self, answer: Answer, record: RequestRecord) -> None:
        try:
            error = await self._outlet.follow(answer.stream, answer.on_malformed)
        finally:
            self._outlet.serve(None)
        if error is not None:
            self._send(error_payload(error))
        elif answer.watcher.failure is None:  # else the upstream's own error event was the last frame
            self._send(DONE)

    async def _send_whole(self, answer: Answer, record: RequestRecord) -> None:
        """An answer that flows and is no event stream: it is kept until its end, and is one message."""
        whole = Whole(self._longest_answer_bytes)
        answer.stream.attach(whole)
        error = await whole.finished
        if error is None:
            self._send(text_payload(b"".join(whole.pieces)))
            self._send(DONE)
            return
        self._send(error_payload(error))
        if answer.stream.error is None:  # not the answer's fault: it may have come to a good end
            record.finish(end_state_of(error), self._loop.time())

    def _ping(self) -> None:
        self._outlet.put(ping_frame())

    def _send(self, payload: bytes) -> None:
        self._outlet.say(payload)
