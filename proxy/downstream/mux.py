"""A session of the `llm-mux.v1` dialect: many requests on one socket, each of which can be resumed on another.

What messages say is `wire.mux`'s, what the gateway answers `wire.mux_frames`'s. Here is what a client may do when: who
it is, which of its channels are open, when the socket closes. Requests themselves are the turns'.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol, assert_never

from aiohttp import WSCloseCode, WSMsgType, web

from proxy.access.keys import Keyring
from proxy.downstream.frame_outlet import Socket
from proxy.downstream.mux_channel import Channel
from proxy.downstream.mux_outlet import MuxOutlet
from proxy.downstream.mux_turns import Asked, Turns
from proxy.downstream.stages import Client
from proxy.errors import ClientError, GatewayError, RequestInProgress, RequestTimeout, Unauthorized
from proxy.errors import Unavailable as Draining
from proxy.streams.numbered import ReplayGap
from proxy.telemetry.record import Dialect
from proxy.wire import mux_frames
from proxy.wire.mux import (
    FEATURES,
    Ack,
    BadMessage,
    Cancel,
    Init,
    Message,
    Ping,
    Pong,
    Resume,
    Resuming,
    Start,
    parse_message,
)

INIT_WITHIN_S: Final = 10.0
STRIKES: Final = 3
LAST_WORDS_S: Final = 0.5
"""How long a slow client may still read what ran, when the gateway goes away."""
RECONNECT_MS: Final = (500, 2500)
"""Clients that are sent away come back at different times."""


class TooManyStreams(ClientError):
    """The session has as many live streams as it may."""

    status = 429
    default_code = "too_many_streams"
    default_type = "rate_limit_error"


class MuxLimits(Protocol):
    """`streams` live at once; the largest message in bytes; seconds between pings, and until a session is asked to go
    (None: never)."""

    @property
    def streams(self) -> int: ...
    @property
    def message_bytes(self) -> int: ...
    @property
    def ping_s(self) -> float | None: ...
    @property
    def age_s(self) -> float | None: ...


class MuxSession:
    """One socket. `client` has no key where `keys` ask for one and the upgrade did not show any: then `init` does."""

    dialect: Dialect = "mux"

    def __init__(
        self,
        socket: Socket,
        request: web.Request,
        *,
        client: Client,
        keys: Keyring,
        limits: MuxLimits,
        turns: Turns,
    ) -> None:
        self._socket = socket
        self._client = client
        self._keys = keys
        self._known = keys.open or client.key is not None
        self._limits = limits
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._outlet = MuxOutlet(request, socket)
        self._channels: dict[str, Channel] = {}
        self._acknowledges = False
        self._ready = False
        self._strikes = 0
        self._old = False
        self._timers: list[asyncio.TimerHandle] = []
        self._closing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Read messages until one side leaves; what can be resumed then goes on without it."""
        self._outlet.break_silence(self._limits.ping_s, self._ping)
        if not self._known:
            self._timers.append(self._loop.call_later(INIT_WITHIN_S, self._miss_init))
        if self._limits.age_s is not None:
            self._timers.append(self._loop.call_later(self._limits.age_s, self._grow_old))
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self._hear(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self._close(WSCloseCode.UNSUPPORTED_DATA, "binary")
        except Exception:  # the edge logs it
            await self._close(WSCloseCode.INTERNAL_ERROR, "internal_error")
            raise
        finally:
            self._leave_channels()
            self._outlet.close()
            for timer in self._timers:
                timer.cancel()
            if self._closing is not None:
                await asyncio.wait([self._closing])

    def go_away(self, in_s: float | None) -> None:
        """Tell the client that the gateway shuts down, and closes the socket in so many seconds."""
        self._say_goaway("drain", in_s)

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._idle.wait()
        await self._close(WSCloseCode.GOING_AWAY, "draining")

    # ---- what the client says ----

    async def _hear(self, text: str) -> None:
        try:
            message = parse_message(text)
            if self._is_expected(message):
                self._obey(message)
        except BadMessage as error:
            await self._strike(error)
        except Unauthorized as error:
            self._outlet.say(mux_frames.refusal(error))
            await self._close(4401, error.code)
        while self._outlet.clogged and not self._socket.closed:
            await self._sent()

    def _is_expected(self, message: Message) -> bool:
        """Whether the session has begun, which is what an `init` asks for. Raises Unauthorized, or BadMessage."""
        if isinstance(message, Init):
            self._begin(message)
            return False
        if not self._known:
            raise _unknown_key()
        if not self._ready:
            self._say_ready(())
        return True

    def _obey(self, message: Message) -> None:
        match message:
            case Start():
                self._start(message)
            case Resume():
                self._resume(message)
            case Cancel():
                channel = self._channels.get(message.rid)
                if channel is not None:
                    channel.cancel("client")
            case Ack():
                if self._acknowledges and message.rid in self._channels:
                    self._channels[message.rid].acknowledge(message.seq)
            case Ping():
                self._outlet.say(mux_frames.pong(message.t))
            case Pong() | Init():
                pass
            case _:
                assert_never(message)

    def _begin(self, init: Init) -> None:
        if self._ready:
            raise BadMessage("Send `init` once, before anything else.")
        if not self._known:
            key = self._keys.find(init.auth.bearer if init.auth is not None else None)
            if key is None:
                raise _unknown_key()
            self._client = replace(self._client, key=key)
            self._known = True
        features = tuple(feature for feature in FEATURES if feature in init.features)
        self._acknowledges = "ack" in features
        self._outlet.joins_lines = "ndjson" in features
        self._say_ready(features)
        for resuming in init.resume:
            self._resume(resuming)

    def _say_ready(self, features: Sequence[str]) -> None:
        self._ready = True
        limits, store = self._limits, self._turns.streams.store.limits
        told = {
            "streams": limits.streams,
            "message_bytes": limits.message_bytes,
            "age_s": _plain(limits.age_s),
            "detach_s": _plain(store.detach_s),
            "replay_s": _plain(store.replay_s),
        }
        self._outlet.say(mux_frames.ready("c_" + secrets.token_hex(8), features, _plain(limits.ping_s), told))

    def _start(self, start: Start) -> None:
        if self._is_in_use(start.rid):
            return
        refused: GatewayError | None = None
        if self._old:
            refused = Draining("This connection is too old for more: open another.", code="draining", retry_after_s=1)
        elif len(self._channels) >= self._limits.streams:
            refused = self._too_many()
        channel = self._open_channel(start.rid, start.window)
        self._turns.begin(Asked(start, self._client, channel, self._outlet.say, refused))

    def _resume(self, resuming: Resuming) -> None:
        rid, after = resuming.rid, resuming.after
        if self._is_in_use(rid):
            return
        try:
            kept = self._turns.streams.store.find(resuming.stream, self._client.key.name if self._client.key else None)
            numbered = kept.numbered
            numbered.require(after)
            if len(self._channels) >= self._limits.streams:
                raise self._too_many()
        except GatewayError as error:
            oldest = error.oldest if isinstance(error, ReplayGap) else None
            self._outlet.say(mux_frames.refusal(error, rid=rid, oldest=oldest))
            return
        self._outlet.say(mux_frames.resumed(rid, kept.id, first=after + 1, head=numbered.head, live=numbered.live))
        self._turns.streams.store.attached(kept)
        if numbered.live or after < numbered.head:
            channel = self._open_channel(rid, resuming.window)
            channel.kept, channel.cancel = kept, kept.cancel
            channel.follow(numbered, kept.form, kept.stage_id, after)

    def _too_many(self) -> TooManyStreams:
        return TooManyStreams(f"{self._limits.streams} streams run on this connection: end one, or wait for one.")

    def _is_in_use(self, rid: str) -> bool:
        if rid not in self._channels:
            return False
        error = RequestInProgress("This `rid` has a live request: give another.", code="rid_in_use", param="rid")
        self._outlet.say(mux_frames.refusal(error, about=rid))
        return True

    async def _strike(self, error: BadMessage) -> None:
        self._outlet.say(mux_frames.refusal(error, about=error.rid))
        self._strikes += 1
        if self._strikes >= STRIKES:
            await self._close(4400, error.code)

    # ---- channels ----

    def _open_channel(self, rid: str, window: int) -> Channel:
        channel = Channel(rid, self._outlet, window if self._acknowledges else None, self._channel_over)
        self._channels[rid] = channel
        self._idle.clear()
        return channel

    def _channel_over(self, channel: Channel) -> None:
        del self._channels[channel.rid]
        if not self._channels:
            self._idle.set()
            if self._old:
                self._close_soon(WSCloseCode.SERVICE_RESTART, "age")

    def _leave_channels(self) -> None:
        """The client has gone, or is sent away."""
        self._old = False
        for channel in list(self._channels.values()):
            kept = channel.kept
            channel.leave()
            if kept is not None and kept.numbered.live:
                self._turns.streams.detach(kept)
            elif kept is None:
                channel.cancel("client")

    # ---- the connection ----

    async def _sent(self) -> None:
        """Wait until the client has read some of what it was sent."""
        sent = asyncio.Event()
        self._outlet.when_sent(sent.set)
        try:
            await sent.wait()
        finally:
            self._outlet.when_sent(None)

    def _ping(self) -> None:
        self._outlet.say(mux_frames.ping(round(self._loop.time() * 1000)))

    def _say_goaway(self, reason: str, in_s: float | None) -> None:
        in_ms = None if in_s is None else round(in_s * 1000)
        self._outlet.say(mux_frames.goaway(reason, in_ms, random.randint(*RECONNECT_MS)))

    def _grow_old(self) -> None:
        self._old = True
        self._say_goaway("age", None)
        if not self._channels:
            self._close_soon(WSCloseCode.SERVICE_RESTART, "age")

    def _miss_init(self) -> None:
        if not self._known:
            error = RequestTimeout("`init` did not come in time.")
            self._outlet.say(mux_frames.refusal(error))
            self._close_soon(4408, error.code)

    def _close_soon(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        self._leave_channels()
        await self._socket.close(code=code, message=reason.encode())


def _unknown_key() -> Unauthorized:
    return Unauthorized('Give a valid API key: {"type":"init","v":1,"auth":{"bearer":"<key>"}}.')


def _plain(seconds: float | None) -> float | None:
    """Whole seconds without a fraction, as people write them."""
    return int(seconds) if seconds is not None and seconds == int(seconds) else seconds
