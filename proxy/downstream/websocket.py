"""WebSocket sessions: the upgrade, and which dialect the session then speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import WSCloseCode, web

from proxy.access.keys import Key
from proxy.downstream.answering import names
from proxy.downstream.bare import BareSession
from proxy.downstream.connection import ClientConnection
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate
from proxy.downstream.handshake import Door, Offer, check_handshake, lasting_headers, read_offer, switching
from proxy.downstream.mux import MuxSession
from proxy.downstream.mux_turns import Turns
from proxy.downstream.open_sessions import OVERLOADED, OpenSessions, most_sessions
from proxy.downstream.realtime import RealtimeSession, asked, refusal
from proxy.downstream.responses import ResponsesSession
from proxy.downstream.responses_turn import PATH as RESPONSES_PATH
from proxy.downstream.session_socket import FLOODED, Socket
from proxy.downstream.stage_session import StageSession
from proxy.downstream.stages import COMPLETIONS, STREAM_PATHS, Client, Stages
from proxy.downstream.tickets import TICKET, TicketApi
from proxy.downstream.tool_chats import ToolChats
from proxy.downstream.written import PushedResponse, head_of
from proxy.errors import InvalidRequest, MethodNotAllowed, Unavailable
from proxy.realtime import Line, Realtime
from proxy.relay import Relay
from proxy.telemetry.record import Dialect, RequestRecord
from proxy.wire.headers import Header
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

INIT_BYTES = 64 * 1024
"""What a client may say before anybody knows who it is."""
OWN_CODES_IN: tuple[Dialect, ...] = ("bare", "mux")
"""The dialects that have close codes of the gateway's own, from 4400 on."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The largest message in bytes; seconds between pings, and until a session is asked to go (None: never); the live
    streams of a mux one."""

    message_bytes: int
    ping_s: float | None
    age_s: float | None
    streams: int


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
        self._sessions = OpenSessions(most_sessions(), publish)
        self._door = Door(relay)

    def add_to(self, router: web.UrlDispatcher) -> None:
        for path in sorted(UPGRADABLE_PATHS):
            router.add_get(path, self.connect, allow_head=False)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Upgrade. The dialect that was agreed on is then spoken until one side leaves, in a task of its own: aiohttp
        has nothing more to do with the connection."""
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
        check_handshake(request)
        client = Client(key, lasting_headers(request), self._gate.forwarded(request))
        said = [*switching(request, offer.selected), *names(record, "gateway")]
        socket = self._upgrade(request, said, first_bytes=None if self._knows(key) else INIT_BYTES)
        record.is_session = True
        if self._sessions.full:
            self._sessions.turn_away(socket, record)
        else:
            self._sessions.serve(self._session(record.dialect, socket, request.path, client), socket, record)
        return PushedResponse(101, stays=False)  # for aiohttp to let go of

    async def _connect_realtime(self, request: web.Request, offer: Offer, key: Key | None) -> web.StreamResponse:
        """The same, once a model server has agreed to it: until then its refusal can be the answer."""
        record = request[RECORD]
        if self._sessions.full:
            raise Unavailable("Too many sessions are open here: come back later.", code=OVERLOADED, retry_after_s=1)
        proxied = asked(request, offer, self._gate.forwarded(request), record.request_id)
        check_handshake(request)
        try:
            line = await self._realtime.open(proxied, offer.others, key, record)
        except UpgradeRefused as refused:
            return refusal(refused, record)
        try:
            selected = selection(line.socket.subprotocol, offer.others)
            said = [*switching(request, selected), *names(record, "upstream")]
            socket = self._upgrade(request, said, answers_close=True)
        except BaseException:
            self._end(line)
            raise
        session = RealtimeSession(socket, line, age_s=self._limits.age_s, record=record)
        self._sessions.serve(session, socket, record, lambda: self._end(line))
        return PushedResponse(101, stays=False)  # for aiohttp to let go of

    def _upgrade(
        self,
        request: web.Request,
        said: Sequence[Header],
        *,
        first_bytes: int | None = None,
        answers_close: bool = False,
    ) -> Socket:
        """The client's socket, which has been told this. The record is then settled with the session.

        Raises `ConnectionError` when the client has left.
        """
        record = request[RECORD]
        head = head_of(request, 101, said, stays=True)
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        upgraded = connection.upgraded()
        record.status, record.goes_on = 101, True
        socket = Socket(
            upgraded,
            message_bytes=self._limits.message_bytes,
            ping_s=self._limits.ping_s,
            first_bytes=first_bytes,
            flood_code=FLOODED if record.dialect in OWN_CODES_IN else WSCloseCode.POLICY_VIOLATION,
            answers_close=answers_close,
        )
        upgraded.transport.write(head)
        return socket

    def _end(self, line: Line) -> None:
        line.socket.close(GOING_AWAY, CLIENT_CLOSED)
        self._realtime.end(line)

    def _key(self, request: web.Request, offer: Offer) -> Key | None:
        """Whose socket it will be: None where nobody is asked, and where a mux client has yet to say."""
        if offer.credential is None and not self._gate.keys.open:
            if TICKET in request.query:
                return self._tickets.redeem(request)
            if offer.is_mux:
                return None
        return self._gate.admit(request, offer.credential)

    def _knows(self, key: Key | None) -> bool:
        """Whether it is settled who speaks."""
        return key is not None or self._gate.keys.open

    def _session(
        self, dialect: Dialect, socket: Socket, path: str, client: Client
    ) -> BareSession | MuxSession | ResponsesSession:
        if dialect == "bare":
            return self._bare_session(socket, path, client)
        if dialect == "mux":
            known = self._knows(client.key)
            return MuxSession(
                socket, client=client, known=known, door=self._door, limits=self._limits, turns=self._turns
            )
        return ResponsesSession(socket, client=client, relay=self._relay, limits=self._limits, publish=self._publish)

    def _bare_session(self, socket: Socket, path: str, client: Client) -> BareSession:
        """The session of this path: one that relays bodies, or one that opens stages."""
        kind = partial(StageSession, stages=self._stages) if path in STREAM_PATHS else BareSession
        return kind(
            socket,
            opened_at=path,
            path=BARE_PATHS.get(path, COMPLETIONS),
            client=client,
            longest_answer_bytes=self._limits.message_bytes,
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


def _dialect(path: str, offer: Offer) -> Dialect:
    """What the session will speak."""
    if offer.is_mux:
        return "mux"
    if path == REALTIME_PATH:
        return "realtime"
    return "responses" if path == RESPONSES_PATH else "bare"
