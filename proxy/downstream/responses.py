"""A session of OpenAI's WebSocket mode of Responses: many requests on one socket, in lanes.

What messages say is `wire.responses`'; which request may run, `streams.lanes`'; serving one, the turns'. Here is when a
session refuses, waits and closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, assert_never

from aiohttp import WSCloseCode, WSMsgType

from proxy.downstream.responses_outlet import ResponsesOutlet
from proxy.downstream.responses_turn import ResponseTurn
from proxy.downstream.session_socket import Socket
from proxy.downstream.stages import Client
from proxy.errors import ClientError, GatewayError
from proxy.relay import Relay
from proxy.streams.conversations import Conversations
from proxy.streams.lanes import Lanes
from proxy.telemetry.record import Dialect, RequestRecord
from proxy.wire.responses import BadMessage, Cancel, Create, Processed, parse_message
from proxy.wire.responses_frames import error_payload, in_lane, lane_member

IN_FLIGHT: Final = 16
NAMED_LANES: Final = 32
WAITING: Final = 256
"""So many more may wait; together they are no larger than one message may be."""
WEBSOCKETS_BETA: Final = "responses_websockets="
"""What a client says in `OpenAI-Beta` about this socket: an upstream asked over HTTP has no use for it."""


class ConnectionLimitReached(ClientError):
    """The connection is as old as it may be."""

    default_code = "websocket_connection_limit_reached"


class ResponsesLimits(Protocol):
    """The largest message in bytes; seconds until a session ends (None: never)."""

    @property
    def message_bytes(self) -> int: ...
    @property
    def age_s(self) -> float | None: ...


class ResponsesSession:
    """One socket. `publish` gets the record of each response that was asked for."""

    dialect: Dialect = "responses"

    def __init__(
        self,
        socket: Socket,
        *,
        client: Client,
        relay: Relay,
        limits: ResponsesLimits,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self._socket = socket
        self._publish = publish
        self._age_s = limits.age_s
        self._loop = asyncio.get_running_loop()
        self._outlet = ResponsesOutlet(socket)
        self._lanes: Lanes[ResponseTurn] = Lanes(
            in_flight=IN_FLIGHT, named=NAMED_LANES, waiting=WAITING, waiting_bytes=limits.message_bytes
        )
        self._turn = partial(
            ResponseTurn,
            client=replace(client, headers=[header for header in client.headers if not _is_about_the_socket(*header)]),
            relay=relay,
            outlet=self._outlet,
            conversations=Conversations(limits.message_bytes),
        )
        self._model: bytes | None = None
        self._old = False
        self._running: set[ResponseTurn] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Read messages until one side leaves; then stop what runs."""
        age = self._loop.call_later(self._age_s, self._grow_old) if self._age_s is not None else None
        try:
            while (message := await self._socket.receive()) is not None:
                if message.type is WSMsgType.TEXT:
                    await self._hear(message.data)
                else:
                    await self._stop()
                    self._socket.close(WSCloseCode.UNSUPPORTED_DATA, "binary")
        finally:
            if age is not None:
                age.cancel()
            await self._stop()
            self._outlet.close()

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""
        await self._idle.wait()
        self._socket.close(WSCloseCode.GOING_AWAY, "draining")
        await self._socket.over()

    # ---- what the client says ----

    async def _hear(self, text: str) -> None:
        try:
            message = parse_message(text)
        except BadMessage as error:
            self._refuse(error, error.stream_id)
        else:
            match message:
                case Create():
                    self._ask(message)
                case Cancel():
                    self._cancel(message)
                case Processed():
                    pass
                case _:
                    assert_never(message)
        await self._outlet.catch_up()

    def _ask(self, create: Create) -> None:
        turn = self._turn(self._with_model(create))
        try:
            if self._old:
                raise self._too_old()
            begins = self._lanes.add(create.stream_id, turn, create.size_bytes)
        except GatewayError as error:
            self._refuse(error, create.stream_id)
            return
        self._idle.clear()
        if begins:
            self._begin(turn)

    def _with_model(self, create: Create) -> Create:
        """A request that does not name its model means the one of the connection's first."""
        if self._model is None:
            self._model = create.members.get("model")
        if self._model is None or "model" in create.members:
            return create
        return replace(create, members={"model": self._model, **create.members})

    def _cancel(self, cancel: Cancel) -> None:
        turn = self._lanes.current(cancel.stream_id)
        if turn is None:
            return
        if turn.task is not None:
            turn.cancel(cancel.response_id)
        elif cancel.response_id is None:
            self._lanes.withdraw(cancel.stream_id)
            turn.withdraw(told=True)
            self._publish(turn.record)

    def _refuse(self, error: GatewayError, stream_id: str | None) -> None:
        self._outlet.say(in_lane(error_payload(error), lane_member(stream_id)))

    # ---- turns ----

    def _begin(self, turn: ResponseTurn) -> None:
        turn.task = self._loop.create_task(self._serve(turn))
        self._running.add(turn)

    async def _serve(self, turn: ResponseTurn) -> None:
        try:
            await turn.run()
        finally:
            self._running.discard(turn)
            self._publish(turn.record)
            self._proceed(turn)

    def _proceed(self, turn: ResponseTurn) -> None:
        """Its end is another's beginning, or the session's rest."""
        following = self._lanes.ended(turn.lane)
        if following is not None:
            self._begin(following)
        elif self._lanes.idle:
            self._outlet.break_silence(None, _nothing)
            self._idle.set()
            if self._old:
                self._close_for_age()

    async def _stop(self) -> None:
        """The client has gone, or is sent away: nothing that waits begins, and what runs ends."""
        self._old = False
        for turn in self._lanes.clear():
            turn.withdraw(told=False)
            self._publish(turn.record)
        running = list(self._running)
        for turn in running:
            turn.stop()
        await asyncio.gather(*[turn.task for turn in running if turn.task is not None], return_exceptions=True)

    # ---- age ----

    def _grow_old(self) -> None:
        self._old = True
        if self._lanes.idle:
            self._close_for_age()

    def _close_for_age(self) -> None:
        """Said when nothing runs any more: clients take it for the end of whatever does."""
        error = self._too_old()
        self._outlet.say(error_payload(error))
        self._socket.close(WSCloseCode.OK, error.code)

    def _too_old(self) -> ConnectionLimitReached:
        minutes = (self._age_s or 0) / 60
        return ConnectionLimitReached(
            f"This connection has lasted its {minutes:g} minutes: open another, and go on there."
        )


def _is_about_the_socket(name: str, value: str) -> bool:
    return name.lower() == "openai-beta" and value.strip().startswith(WEBSOCKETS_BETA)


def _nothing() -> None:
    """Silence is not broken while nothing runs."""
