"""A session of the bare dialect: one request at a time, each event's data as a text frame.

How messages and errors read is `wire.bare`'s; what happens between a request and its events, the relay's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiohttp import WSCloseCode, WSMsgType, web

from proxy.access.keys import Key
from proxy.downstream.gate import raw_headers
from proxy.downstream.outlet import Outlet
from proxy.errors import GatewayError, InternalError, RequestInProgress, UpstreamInvalid
from proxy.protocols.event_data import is_done
from proxy.protocols.failure import answer_error
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.telemetry.record import EndState, RequestRecord, end_state_of
from proxy.wire.bare import CANCELLED, DONE, error_payload, failure_payload, is_cancel, unexplained
from proxy.wire.frames import event_frame, ping_frame, text_frame, text_payload
from proxy.wire.headers import new_request_id
from proxy.wire.sse import Event

logger = logging.getLogger("penstock")


class BareSession:
    """One socket. Its reader always runs, so that a cancel, a close or a second request is seen at once."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        request: web.Request,
        *,
        path: str,
        longest_answer_bytes: int,
        key: Key | None,
        forwarded: Sequence[tuple[str, str]],
        relay: Relay,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self._socket = socket
        self._request = request
        self._headers = raw_headers(request)
        self._path = path
        self._longest_answer_bytes = longest_answer_bytes
        self._key = key
        self._forwarded = forwarded
        self._relay = relay
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Task[None] | None = None
        self._outlet = Outlet(request)

    async def run(self) -> None:
        """Read messages until the client leaves; then stop what runs."""
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self._take(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self._stop()
                    await self._socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"binary")
        finally:
            await self._stop()
            self._outlet.close()

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""
        if self._turn is not None and not self._turn.done():
            await asyncio.wait([self._turn])
        await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"draining")

    async def _take(self, message: str) -> None:
        running = self._turn is not None and not self._turn.done()
        if is_cancel(message):
            if running:
                await self._stop()
                self._send(CANCELLED)
        elif running:
            error = RequestInProgress("One request at a time: wait for the end of the one that runs, or cancel it.")
            self._send(error_payload(error))
        else:
            self._turn = self._loop.create_task(self._serve(message))

    async def _stop(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.cancel()
            await asyncio.wait([self._turn])

    async def _serve(self, message: str) -> None:
        """One request, to its end."""
        record = RequestRecord(
            new_request_id(), "GET", self._request.path, self._loop.time(), transport="ws", dialect="bare"
        )
        record.key = self._key.name if self._key is not None else None
        record.status = web.HTTPOk.status_code
        sent_before = self._outlet.bytes_out
        try:
            await self._relay_one(message.encode(), record)
        except asyncio.CancelledError:
            record.finish(EndState.CLIENT_CLOSED, self._loop.time())
            raise
        except Exception as error:
            named = error if isinstance(error, GatewayError) else InternalError("The gateway failed; its log says why.")
            if named is not error:
                logger.exception("request %s failed", record.request_id)
            self._send(error_payload(named))
            record.status = named.status
            record.finish(end_state_of(named), self._loop.time())
        finally:
            record.bytes_out = self._outlet.bytes_out - sent_before
            self._publish(record)

    async def _relay_one(self, raw: bytes, record: RequestRecord) -> None:
        record.bytes_in = len(raw)
        body = RequestBody.parse(raw)
        if not body.stream:
            body = RequestBody.parse(body.replaced({"stream": True}))
        request = ProxyRequest(self._path, "", self._headers, self._forwarded, body, record.request_id)
        route = self._relay.route(request, self._key, record)
        self._outlet.break_silence(route.keepalive_s, self._ping)
        try:
            answer = await self._relay.open(request, route, record)
            record.status = answer.status
            try:
                await self._give(answer, record)
            finally:
                self._relay.close(answer, record)
        finally:
            self._outlet.break_silence(None, self._ping)

    async def _give(self, answer: Answer, record: RequestRecord) -> None:
        if answer.body is None:
            await self._push(answer, record)
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
        self._outlet.serve(answer.stream)
        finished: asyncio.Future[GatewayError | None] = self._loop.create_future()
        whole = _Whole(self._longest_answer_bytes, finished)
        try:
            answer.stream.attach(_Frames(self._put, finished) if answer.events else whole)
            error = await finished
        finally:
            self._outlet.serve(None)
        if error is not None:
            self._send(error_payload(error))
            if answer.stream.error is None:  # not the answer's fault: it may have come to a good end
                record.finish(end_state_of(error), self._loop.time())
            return
        if not answer.events:
            self._send(text_payload(b"".join(whole.pieces)))
        if answer.watcher.failure is None:  # else the upstream's own error event was the last frame
            self._send(DONE)

    def _ping(self) -> None:
        self._put(ping_frame())

    def _send(self, payload: bytes) -> None:
        self._put(text_frame(payload))

    def _put(self, frames: bytes) -> bool:
        """Write them at once; none after our Close."""
        return not self._socket.closed and self._outlet.put(frames)


class _Frames:
    """A stream's listener: one frame an event, all of a batch in one write. `finished` gets how the stream ended."""

    __slots__ = ("_finished", "_put")

    def __init__(self, put: Callable[[bytes], bool], finished: asyncio.Future[GatewayError | None]) -> None:
        self._put = put
        self._finished = finished

    def write(self, events: list[Event]) -> bool:
        put = self._put
        spoken = [event.data for event in events if event.data[:1] == b"{" or not is_done(event.data)]
        if len(spoken) == 1:  # by far the commonest batch
            return put(event_frame(spoken[0]))
        return put(b"".join([event_frame(data) for data in spoken])) if spoken else False

    def end(self, error: GatewayError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(error)


class _Whole:
    """The listener of an answer that is no event stream: one message holds all of it, so it is kept until its end."""

    __slots__ = ("_finished", "_room_bytes", "pieces")

    def __init__(self, most_bytes: int, finished: asyncio.Future[GatewayError | None]) -> None:
        self._room_bytes = most_bytes
        self._finished = finished
        self.pieces: list[bytes] = []

    def write(self, events: list[Event]) -> bool:
        self.pieces += [event.wire for event in events]
        self._room_bytes -= sum(len(event.wire) for event in events)
        if self._room_bytes < 0:
            self.end(UpstreamInvalid("the answer is too large for one message"))
        return self._room_bytes < 0

    def end(self, error: GatewayError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(error)
