"""A session of the Realtime dialect: what the client says goes to a model server, and back, message by message.

Nothing is looked into, and nothing is kept: a side that does not read stops the other's reading. What a URL, a
subprotocol and a close mean is `wire.realtime`'s; how a model server comes to be at the other end, the dialler's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from aiohttp import WSMsgType, web

from proxy.downstream.answering import names
from proxy.downstream.gate import raw_headers
from proxy.downstream.handshake import Offer
from proxy.downstream.outlet import LARGE_BYTES, Outlet
from proxy.downstream.session_socket import Socket
from proxy.errors import GatewayError, InvalidRequest, UpstreamError
from proxy.realtime import Line
from proxy.relay import draining
from proxy.request import ProxyRequest, RequestBody
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import Dialect, EndState, RequestRecord, end_state_of
from proxy.wire.frames import text_frame_head
from proxy.wire.headers import client_credential, towards_client
from proxy.wire.messages import Opcode
from proxy.wire.realtime import (
    BREAKS_RULES,
    CLIENT_CLOSED,
    FAILED,
    GOING_AWAY,
    PATH,
    RESTARTS,
    is_failure,
    model_of,
    passed_close,
    passes,
)
from proxy.wire.upgrade import UpgradeRefused

_BINARY = b"\x82"


def asked(request: web.Request, offer: Offer, forwarded: Sequence[tuple[str, str]], request_id: str) -> ProxyRequest:
    """The upgrade as a request to a model, with the body that its URL stands for. Raises `InvalidRequest`."""
    query = request.rel_url.raw_query_string
    body = RequestBody.parse(json.dumps({"model": model_of(query), "stream": True}).encode())
    headers = raw_headers(request)
    if offer.credential is not None and client_credential(headers) is None:  # a replica may want it, by `passthrough`
        if not (offer.credential.isascii() and offer.credential.isprintable()):
            raise InvalidRequest("The key in the offered subprotocols could not stand in a header.")
        headers.append(("Authorization", f"Bearer {offer.credential}"))
    return ProxyRequest(PATH, query, headers, forwarded, body, request_id)


def refusal(refused: UpgradeRefused, record: RequestRecord) -> web.Response:
    """The model server's refusal as the answer to the client's upgrade."""
    response = web.Response(status=refused.status, body=refused.body)
    response.headers.extend([*towards_client(refused.headers), *names(record, "upstream")])
    record.status = refused.status
    record.bytes_out = len(refused.body)
    return response


class RealtimeSession:
    """One client's socket and the line behind it. `age_s` is how long they last (None: for ever).

    The maker's duty: `run`; the model server's side is closed by its end.
    """

    dialect: Dialect = "realtime"

    def __init__(
        self,
        socket: Socket,
        line: Line,
        *,
        age_s: float | None,
        record: RequestRecord,
    ) -> None:
        self._socket = socket
        self._line = line
        self._upstream = line.socket
        self._age_s = age_s
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._outlet = _Outlet(socket, line)
        socket.before_close = self._outlet.shut
        self._reading: asyncio.Task[None] | None = None
        self._last_word: tuple[int, str] | None = None
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Pass on what either side says, until one of them leaves."""
        self._line.session = self
        self._record.status = 101
        self._reading = self._loop.create_task(self._read())
        aged = None if self._age_s is None else self._loop.call_later(self._age_s, self._grow_old)
        self._upstream.listen(self)
        try:
            await asyncio.wait([self._reading])
            if self._last_word is None:
                self._reading.result()  # the client has gone; or what went wrong here
                self._record.finish(EndState.CLIENT_CLOSED, self._loop.time())
            else:
                self._socket.close(*self._last_word)
        finally:
            self._reading.cancel()
            if aged is not None:
                aged.cancel()
            self._upstream.close(GOING_AWAY, CLIENT_CLOSED)
            self._outlet.close()
            self._record.bytes_out = self._outlet.bytes_out
            self._record.end_attempt(Outcome.OK)
            self._over.set()

    def interrupt(self, error: GatewayError) -> None:
        """The gateway goes away."""
        self._upstream.close(GOING_AWAY, error.code)
        self._end(RESTARTS, error.code, EndState.DRAINED)

    async def leave(self) -> None:
        """Close because the gateway goes away."""
        self.interrupt(draining())
        await self._over.wait()

    # ---- what the model server says ----

    def message(self, opcode: Opcode, payload: bytes) -> bool:
        self._record.events += 1
        head = text_frame_head(len(payload))
        if opcode is Opcode.BINARY:
            head = _BINARY + head[1:]
        if len(payload) > LARGE_BYTES:
            return self._outlet.put_pieces(head, payload)
        return self._outlet.put(head + payload)

    def closed(self, code: int | None, reason: str) -> None:
        code, reason = passed_close(code, reason)
        self._end(code, reason, EndState.UPSTREAM_ERROR if is_failure(code) else EndState.COMPLETED)

    def lost(self, error: UpstreamError) -> None:
        self._record.end_attempt(outcome_of(error, connected=True))
        self._end(FAILED, error.code, end_state_of(error))

    # ---- what the client says ----

    async def _read(self) -> None:
        while (message := await self._socket.receive()) is not None:
            match message.type:
                case WSMsgType.TEXT:
                    await self._pass(Opcode.TEXT, message.data.encode())
                case WSMsgType.BINARY:
                    await self._pass(Opcode.BINARY, message.data)
                case _:
                    self._client_closes(message.data or None, message.extra or "")
                    return

    async def _pass(self, opcode: Opcode, payload: bytes) -> None:
        self._record.bytes_in += len(payload)
        self._upstream.send(opcode, payload)
        if self._upstream.full:
            await self._upstream.drained()

    def _client_closes(self, code: int | None, reason: str) -> None:
        if code is not None and not passes(code):  # aiohttp lets some through that never stand in a frame
            self._upstream.close(GOING_AWAY, CLIENT_CLOSED)
            self._conclude(BREAKS_RULES, "", EndState.REJECTED)
            return
        code, reason = passed_close(code, reason)
        self._upstream.close(code, reason)
        self._conclude(code, reason, EndState.COMPLETED)

    # ---- within ----

    def _end(self, code: int, reason: str, end_state: EndState) -> None:
        """The client is told, and not listened to any more."""
        self._conclude(code, reason, end_state)
        if self._reading is not None:
            self._reading.cancel()

    def _conclude(self, code: int, reason: str, end_state: EndState) -> None:
        """What the client will be told last; the first reason counts."""
        if self._last_word is None:
            self._last_word = (code, reason)
            self._record.finish(end_state, self._loop.time())

    def _grow_old(self) -> None:
        self._upstream.close(GOING_AWAY, "age")
        self._end(RESTARTS, "age", EndState.COMPLETED)


class _Outlet(Outlet):
    """The client's transport; while it is behind, the model server is not read."""

    __slots__ = ("_line",)

    def __init__(self, socket: Socket, line: Line) -> None:
        super().__init__(socket)
        self._line = line

    def _change(self, paused: bool) -> None:
        super()._change(paused)
        if paused:
            self._line.socket.pause()
        else:
            self._line.socket.resume()
