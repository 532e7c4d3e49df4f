"""WebSocket sessions: the upgrade, and which dialect the session then speaks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

from aiohttp import web

from proxy.access.keys import Key
from proxy.downstream.bare import BareSession
from proxy.downstream.connection import ClientConnection
from proxy.downstream.edge import RECORD
from proxy.downstream.frame_outlet import Socket
from proxy.downstream.gate import Gate, raw_headers
from proxy.downstream.handshake import MUX, Offer, read_offer, without_credentials
from proxy.downstream.mux import MuxSession
from proxy.downstream.mux_turns import Turns
from proxy.downstream.stage_session import StageSession
from proxy.downstream.stages import COMPLETIONS, STREAM_PATHS, Client, Stages
from proxy.downstream.tickets import TICKET, TicketApi
from proxy.errors import InvalidRequest, MethodNotAllowed, UpgradeRequired
from proxy.relay import Relay
from proxy.telemetry.record import Dialect, RequestRecord

BARE_PATHS = {
    "/v1/ws": "/v1/chat/completions",
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
}
"""Where the bare dialect is spoken, and the endpoint whose body its messages are."""
MUX_ONLY_PATHS = ("/v1/responses", "/v1/realtime")
"""Whose own dialects are not spoken yet."""
UPGRADABLE_PATHS = frozenset((*BARE_PATHS, *STREAM_PATHS, *MUX_ONLY_PATHS))

WRITER_LIMIT_BYTES = 32 * 1024
CLOSE_WITHIN_S = 1.0
"""How long the client may take to answer our Close."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The largest message in bytes; seconds between pings, and until a mux session is asked to go (None: never); the
    live streams of one."""

    message_bytes: int
    ping_s: float | None
    age_s: float | None
    streams: int


class WebSocketApi:
    """The WebSocket endpoints. `turns` are the mux sessions' requests, which may outlive them."""

    def __init__(
        self,
        relay: Relay,
        stages: Stages,
        gate: Gate,
        tickets: TicketApi,
        limits: SessionLimits,
        turns: Turns,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self._relay = relay
        self._stages = stages
        self._gate = gate
        self._tickets = tickets
        self._limits = limits
        self._turns = turns
        self._publish = publish
        self._sessions: set[BareSession | MuxSession] = set()

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
        if request.path in MUX_ONLY_PATHS and not offer.is_mux:
            raise UpgradeRequired(f"This path speaks {MUX} only.")
        key = self._key(request, offer)
        record = request[RECORD]
        record.transport = "ws"
        record.dialect = "mux" if offer.is_mux else "bare"
        record.key = key.name if key is not None else None
        socket = Socket(
            protocols=(offer.selected,) if offer.selected is not None else (),
            compress=False,
            max_msg_size=self._limits.message_bytes,
            heartbeat=self._limits.ping_s,
            writer_limit=WRITER_LIMIT_BYTES,
            timeout=CLOSE_WITHIN_S,
        )
        cast("ClientConnection", request.protocol).require_masks()
        await socket.prepare(without_credentials(request, offer))
        record.is_session = True
        session = self._mux_session(socket, request, key) if offer.is_mux else self._session(socket, request, key)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
        return socket

    def _key(self, request: web.Request, offer: Offer) -> Key | None:
        """Whose socket it will be: None where nobody is asked, and where a mux client has yet to say."""
        if offer.credential is None and not self._gate.keys.open:
            if TICKET in request.query:
                return self._tickets.redeem(request)
            if offer.is_mux:
                return None
        return self._gate.admit(request, offer.credential)

    def _mux_session(self, socket: Socket, request: web.Request, key: Key | None) -> MuxSession:
        client = Client(key, raw_headers(request), self._gate.forwarded(request))
        return MuxSession(socket, request, client=client, keys=self._gate.keys, limits=self._limits, turns=self._turns)

    def _session(self, socket: Socket, request: web.Request, key: Key | None) -> BareSession:
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
            publish=self._publish,
        )

    def sessions(self) -> Counter[Dialect]:
        """How many are open, by what they speak."""
        return Counter(session.dialect for session in self._sessions)

    def go_away(self, in_s: float | None) -> None:
        """Tell the sessions that can be told that they will be closed in so many seconds."""
        for session in self._sessions:
            if isinstance(session, MuxSession):
                session.go_away(in_s)

    async def close_all(self, within_s: float) -> None:
        """Tell every session that the gateway goes away, all at once; those that take longer are left to `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(session.leave() for session in self._sessions))
