"""A session of the `llm-mux.v1` dialect: many requests on one socket, each of which can be resumed on another.

Here is a socket's life: how long it may last, who is told to leave, with which code it closes. What a client's messages
lead to is `mux_messages`', what becomes of a request its channel's.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

from aiohttp import WSCloseCode, WSMsgType

from proxy.downstream.mux_channels import Channels
from proxy.downstream.mux_messages import Door, Messages, MuxLimits, SessionOver
from proxy.downstream.mux_outlet import MuxOutlet
from proxy.downstream.mux_turns import Turns
from proxy.downstream.session_socket import Socket
from proxy.downstream.stages import Client
from proxy.errors import RequestTimeout
from proxy.telemetry.record import Dialect
from proxy.wire import mux_frames

INIT_WITHIN_S: Final = 10.0
LAST_WORDS_S: Final = 0.5
"""How long a slow client may still read what ran, when the gateway goes away."""
RECONNECT_MS: Final = (500, 2500)
"""Clients that are sent away come back at different times."""
OWN_CODES: Final = 4000
"""A close code of ours is an HTTP status and this."""


class MuxSession:
    """One socket. `known` is False where keys are asked for and the upgrade did not show any: then `init` does."""

    dialect: Dialect = "mux"

    def __init__(
        self,
        socket: Socket,
        *,
        client: Client,
        known: bool,
        door: Door,
        limits: MuxLimits,
        turns: Turns,
    ) -> None:
        self._socket = socket
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._outlet = MuxOutlet(socket)
        self._channels = Channels(self._outlet, turns, client, most=limits.streams, on_idle=self._fall_idle)
        self._messages = Messages(
            self._outlet,
            self._channels,
            known=known,
            door=door,
            limits=limits,
            kept_for=turns.streams.store.limits,
        )
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self) -> None:
        """Read messages until one side leaves; what can be resumed then goes on without it."""
        self._outlet.break_silence(self._limits.ping_s, self._ping)
        if not self._messages.known:
            self._timers.append(self._loop.call_later(INIT_WITHIN_S, self._miss_init))
        if self._limits.age_s is not None:
            self._timers.append(self._loop.call_later(self._limits.age_s, self._grow_old))
        try:
            await self._hear()
        except SessionOver as over:
            self._close(OWN_CODES + over.error.status, over.error.code)
        finally:
            self._channels.leave()
            self._outlet.close()
            for timer in self._timers:
                timer.cancel()

    async def _hear(self) -> None:
        while (message := await self._socket.receive()) is not None:
            if message.type is WSMsgType.TEXT:
                await self._messages.obey(message.data)
            else:
                self._close(WSCloseCode.UNSUPPORTED_DATA, "binary")
            del message  # may be large, and the next one long in coming
            await self._outlet.catch_up()

    def go_away(self, in_s: float | None) -> None:
        """Tell the client that the gateway shuts down, and closes the socket in so many seconds."""
        self._say_goaway("drain", in_s)

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._channels.idle.wait()
        self._close(WSCloseCode.GOING_AWAY, "draining")
        await self._socket.over()

    # ---- what the gateway says ----

    def _ping(self) -> None:
        self._outlet.say(mux_frames.ping(round(self._loop.time() * 1000)))

    def _say_goaway(self, reason: str, in_s: float | None) -> None:
        in_ms = None if in_s is None else round(in_s * 1000)
        self._outlet.say(mux_frames.goaway(reason, in_ms, random.randint(*RECONNECT_MS)))

    # ---- the connection ----

    def _grow_old(self) -> None:
        self._messages.old = True
        self._say_goaway("age", None)
        if self._channels.idle.is_set():
            self._fall_idle()

    def _fall_idle(self) -> None:
        """Nothing runs any more."""
        if self._messages.old:
            # soon: the last frame of what ran may be on its way to the socket
            self._loop.call_soon(self._close, WSCloseCode.SERVICE_RESTART, "age")

    def _miss_init(self) -> None:
        if not self._messages.known:
            error = RequestTimeout("`init` did not come in time.")
            self._outlet.say(mux_frames.refusal(error))
            self._close(OWN_CODES + error.status, error.code)

    def _close(self, code: int, reason: str) -> None:
        self._channels.leave()
        self._socket.close(code, reason)
