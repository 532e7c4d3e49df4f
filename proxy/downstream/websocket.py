"""WebSocket sessions: the upgrade, and which dialect the session then speaks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from aiohttp import WSCloseCode, web

from proxy.access.keys import Key
from proxy.downstream.answering import names
from proxy.downstream.bare import BareSession
from proxy.downstream.connection import ClientConnection
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate, raw_headers
from proxy.downstream.handshake import Door, Offer, read_offer, without_credentials
from proxy.downstream.mux import MuxSession
from proxy.downstream.mux_turns import Turns
from proxy.downstream.open_sessions import OpenSessions, most_sessions
from proxy.downstream.realtime import RealtimeSession, asked, refusal
from proxy.downstream.responses import ResponsesSession
from proxy.downstream.responses_turn import PATH as RESPONSES_PATH
from proxy.downstream.session_socket import FLOODED, Socket
from proxy.downstream.stage_session import StageSession
from proxy.downstream.stages import COMPLETIONS, STREAM_PATHS, Client, Stages
from proxy.downstream.tickets import TICKET, TicketApi
from proxy.downstream.tool_chats import ToolChats
from proxy.errors import InternalError, InvalidRequest, MethodNotAllowed, Unavailable
from proxy.realtime import Realtime
from proxy.relay import Relay
from proxy.telemetry.record import Dialect, EndState, RequestRecord
from proxy.wire.realtime import CLIENT_CLOSED, GOING_AWAY, selection
from proxy.wire.realtime import PATH as REALTIME_PATH
from proxy.wire.upgrade import UpgradeRefused

BARE_PATHS = {
    "/v1/ws": "/v1/chat/completions",
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
}
"""Where the bare dialect is spoken, and the endpoint whose body its messages are."""
UPGRADABLE_PATHS = frozenset((*BARE_PATHS, *STREAM_PATHS, RESPONSES_PATH, REALTIME_PATH))

WRITER_LIMIT_BYTES = 32 * 1024
INIT_BYTES = 64 * 1024
"""What a client may say before anybody knows who it is."""
OVERLOADED = "overloaded"
"""Said instead of a status where the upgrade has to be accepted first: a page is not told why one was refused."""
OWN_CODES_IN: tuple[Dialect, ...] = ("bare", "mux")
"""The dialects that have close codes of the gateway's own, from 4400 on."""
CLOSE_WITHIN_S = 1.0
"""How long the client may take to answer our Close."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The largest message in bytes; seconds between pings, and until a session is asked to go (None: never); the live
    streams of a mux one."""

    message_bytes: int
    ping_s: float | None
    age_s: float | None
    streams: int


Session = BareSession | MuxSession | ResponsesSession | RealtimeSession


class WebSocketApi:
    """The WebSocket endpoints. `turns` are the mux sessions' requests, which may outlive them."""

    def __init__(
        self,
        relay: Relay,
        tool_chats: ToolChats,
        stages: Stages,
        gate: Gate,
        tickets: TicketApi,
        limits: SessionLimits,
        turns: Turns,
        publish: Callable[[RequestRecord], None],
        realtime: Realtime,
    ) -> None:
        self._relay = relay
        self._tool_chats = tool_chats
        self._stages = stages
        self._gate = gate
        self._tickets = tickets
        self._limits = limits
        self._turns = turns
        self._publish = publish
        self._realtime = realtime
        self._sessions = OpenSessions(most_sessions())
        self._door = Door(relay)

    def add_to(self, router: web.UrlDispatcher) -> None:
        for path in sorted(UPGRADABLE_PATHS):
            router.add_get(path, self.connect, allow_head=False)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Upgrade, and speak the dialect that was agreed on until one side leaves."""
        if request.headers.get("Upgrade", "").strip().lower() != "websocket":
            raise MethodNotAllowed("Send a POST, or a GET that upgrades to WebSocket.")
        if request.body_exists:
            raise InvalidRequest("An upgrade has no body.")
        self._gate.check_origin(request)
        offer = read_offer(request)
        key = self._key(request, offer)
        record = request[RECORD]
        record.transport = "ws"
        record.dialect = _dialect(request.path, offer)
        record.key = key.name if key is not None else None
        if record.dialect == "realtime":
            return await self._connect_realtime(request, offer, key)
        socket = self._socket(offer.selected)
        known = key is not None or self._gate.keys.open
        await _upgrade(socket, request, offer, record.dialect, None if known else INIT_BYTES)
        record.is_session = True
        if self._sessions.full:
            record.finish(EndState.SHED, asyncio.get_running_loop().time())
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=OVERLOADED.encode())
        else:
            await self._run(self._session(record.dialect, socket, request, key), socket)
        return socket

    async def _run(self, session: Session, socket: Socket) -> None:
        self._sessions.add(session)
        try:
            await session.run()
        except Exception:  # the edge logs it
            await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=InternalError.default_code.encode())
            raise
        finally:
            self._sessions.discard(session)
            await socket.rest()

    async def _connect_realtime(self, request: web.Request, offer: Offer, key: Key | None) -> web.StreamResponse:
        """The same, once a model server has agreed to it: until then its refusal can be the answer."""
        record = request[RECORD]
        if self._sessions.full:
            raise Unavailable("Too many sessions are open here: come back later.", code=OVERLOADED, retry_after_s=1)
        proxied = asked(request, offer, self._gate.forwarded(request), record.request_id)
        if not self._socket().can_prepare(without_credentials(request, Offer(None, None))):
            raise InvalidRequest("The upgrade is no valid WebSocket handshake.")
        try:
            line = await self._realtime.open(proxied, offer.others, key, record)
        except UpgradeRefused as refused:
            return refusal(refused, record)
        try:
            selected = selection(line.socket.subprotocol, offer.others)
            socket = self._socket(selected, answers_close=False)
            socket.headers.extend(names(record, "upstream"))
            await _upgrade(socket, request, replace(offer, selected=selected), "realtime")
            session = RealtimeSession(socket, request, line, age_s=self._limits.age_s, record=record)
            await self._run(session, socket)
        finally:
            line.socket.close(GOING_AWAY, CLIENT_CLOSED)
            self._realtime.end(line)
        return socket

    def _socket(self, subprotocol: str | None = None, *, answers_close: bool = True) -> Socket:
        """A client's socket, not open yet. Without `answers_close`, the session does so itself."""
        return Socket(
            autoclose=answers_close,
            protocols=(subprotocol,) if subprotocol is not None else (),
            compress=False,
            max_msg_size=self._limits.message_bytes + 1,  # the first size that aiohttp refuses
            heartbeat=self._limits.ping_s,
            writer_limit=WRITER_LIMIT_BYTES,
            timeout=CLOSE_WITHIN_S,
        )

    def _key(self, request: web.Request, offer: Offer) -> Key | None:
        """Whose socket it will be: None where nobody is asked, and where a mux client has yet to say."""
        if offer.credential is None and not self._gate.keys.open:
            if TICKET in request.query:
                return self._tickets.redeem(request)
            if offer.is_mux:
                return None
        return self._gate.admit(request, offer.credential)

    def _session(
        self, dialect: Dialect, socket: Socket, request: web.Request, key: Key | None
    ) -> BareSession | MuxSession | ResponsesSession:
        if dialect == "bare":
            return self._bare_session(socket, request, key)
        client = Client(key, raw_headers(request), self._gate.forwarded(request))
        if dialect == "mux":
            known = key is not None or self._gate.keys.open
            return MuxSession(
                socket, request, client=client, known=known, door=self._door, limits=self._limits, turns=self._turns
            )
        return ResponsesSession(
            socket, request, client=client, relay=self._relay, limits=self._limits, publish=self._publish
        )

    def _bare_session(self, socket: Socket, request: web.Request, key: Key | None) -> BareSession:
        """The session of this path: one that relays bodies, or one that opens stages."""
        kind = partial(StageSession, stages=self._stages) if request.path in STREAM_PATHS else BareSession
        return kind(
            socket,
            request,
            path=BARE_PATHS.get(request.path, COMPLETIONS),
            longest_answer_bytes=self._limits.message_bytes,
            key=key,
            forwarded=self._gate.forwarded(request),
            relay=self._relay,
            tool_chats=self._tool_chats,
            publish=self._publish,
        )

    def sessions(self) -> Counter[Dialect]:
        """How many are open, by what they speak."""
        return self._sessions.counted()

    def go_away(self, in_s: float | None) -> None:
        """Tell the sessions that can be told that they will be closed in so many seconds."""
        for session in self._sessions:
            if isinstance(session, MuxSession):
                session.go_away(in_s)

    async def close_all(self, within_s: float) -> None:
        """Tell every session that the gateway goes away, all at once; those that take longer are left to `stop`."""
        await self._sessions.close_all(within_s)


async def _upgrade(
    socket: Socket, request: web.Request, offer: Offer, dialect: Dialect, first_bytes: int | None = None
) -> None:
    """Open the client's socket. Its first message may have so many bytes (None: as many as any)."""
    if dialect in OWN_CODES_IN:
        socket.flood_code = FLOODED
    cast("ClientConnection", request.protocol).watch_frames(first_bytes, socket.break_off)
    await socket.prepare(without_credentials(request, offer))


def _dialect(path: str, offer: Offer) -> Dialect:
    """What the session will speak."""
    if offer.is_mux:
        return "mux"
    if path == REALTIME_PATH:
        return "realtime"
    return "responses" if path == RESPONSES_PATH else "bare"
