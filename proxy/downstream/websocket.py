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
from proxy.downstream.gate import Gate
from proxy.downstream.handshake import read_offer, without_credentials
from proxy.downstream.stage_session import StageSession
from proxy.downstream.stages import COMPLETIONS, STREAM_PATHS, Stages
from proxy.errors import InvalidRequest, MethodNotAllowed
from proxy.relay import Relay
from proxy.telemetry.record import Dialect, RequestRecord

BARE_PATHS = {
    "/v1/ws": "/v1/chat/completions",
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
}
"""Where the bare dialect is spoken, and the endpoint whose body its messages are."""
UPGRADABLE_PATHS = frozenset((*BARE_PATHS, *STREAM_PATHS))

WRITER_LIMIT_BYTES = 32 * 1024
CLOSE_WITHIN_S = 1.0
"""How long the client may take to answer our Close."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The largest message in bytes; seconds between pings (None: never)."""

    message_bytes: int
    ping_s: float | None


class WebSocketApi:
    """The WebSocket endpoints."""

    def __init__(
        self,
        relay: Relay,
        stages: Stages,
        gate: Gate,
        limits: SessionLimits,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self._relay = relay
        self._stages = stages
        self._gate = gate
        self._limits = limits
        self._publish = publish
        self._sessions: set[BareSession] = set()

    def add_to(self, router: web.UrlDispatcher) -> None:
        for path in sorted(UPGRADABLE_PATHS):
            router.add_get(path, self.connect, allow_head=False)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Upgrade, and speak the bare dialect until one side leaves."""
        if request.headers.get("Upgrade", "").strip().lower() != "websocket":
            raise MethodNotAllowed("Send a POST, or a GET that upgrades to WebSocket.")
        if request.body_exists:
            raise InvalidRequest("An upgrade has no body.")
        self._gate.check_origin(request)
        offer = read_offer(request)
        key = self._gate.admit(request, offer.credential)
        record = request[RECORD]
        record.transport = "ws"
        record.dialect = "bare"
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
        session = self._session(socket, request, key)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
        return socket

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

    async def close_all(self, within_s: float) -> None:
        """Tell every session that the gateway goes away, all at once; those that take longer are left to `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(session.leave() for session in self._sessions))
