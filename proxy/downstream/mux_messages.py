"""What each message of a mux client leads to: who it is, what may run, and when it has gone too far.

What messages look like is `wire.mux`'s, what the gateway answers `wire.mux_frames`'s; what becomes of a request is its
channel's, and of the socket the session's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol, assert_never

from proxy.access.keys import Key
from proxy.access.patience import Flooded, Patience
from proxy.downstream.mux_channels import Channels
from proxy.downstream.mux_outlet import MuxOutlet
from proxy.errors import Forbidden, GatewayError, Unauthorized, Unavailable
from proxy.streams.store import StoreLimits
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
    Resuming,
    Start,
    parse_message,
)

STRIKES: Final = 3
VAIN: Final = 1
VAIN_REQUEST: Final = 10
RESUMPTION: Final = 10
"""What messages cost of a session's patience: those that lead to nothing, requests that are not begun and leave but a
record, and resumptions, for which a stream is gone through from its beginning."""


class SessionOver(Exception):
    """The client has gone too far: it has been told why, and the socket is to be closed for this `error`."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.code)
        self.error = error


class Door(Protocol):
    """Who may speak on a socket that is open already."""

    def let_in(self, bearer: str | None) -> Key:
        """The key that this credential is. Raises `Unauthorized` or `Forbidden`."""

    def check(self, key: Key | None) -> None:
        """Raises `Unauthorized` where the key that a session was let in with is good no longer."""


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


class Messages:
    """One session's. `known` is False where keys are asked for and the upgrade did not show any: then `init` does.

    Once the session is `old`, nothing new begins.
    """

    def __init__(
        self,
        outlet: MuxOutlet,
        channels: Channels,
        *,
        known: bool,
        door: Door,
        limits: MuxLimits,
        kept_for: StoreLimits,
    ) -> None:
        self.known = known
        self.old = False
        self._outlet = outlet
        self._channels = channels
        self._door = door
        self._limits = limits
        self._kept_for = kept_for
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(self._loop.time())
        self._ready = False
        self._strikes = 0

    async def obey(self, text: str) -> None:
        """Do what the message says, and answer it. Raises `SessionOver`."""
        try:
            for each in self._expected(parse_message(text)):
                self._obey(each)
                if isinstance(each, Resuming):
                    await asyncio.sleep(0)  # others have their turn
        except BadMessage as error:
            self._strike(error)
        except (Unauthorized, Forbidden, Flooded) as error:
            self._outlet.say(mux_frames.refusal(error))
            raise SessionOver(error) from None

    def _expected(self, message: Message) -> Sequence[Message | Resuming]:
        """What is to be done, now that the session has begun, which is what an `init` asks for. Raises `Unauthorized`,
        `Forbidden` or `BadMessage`."""
        if isinstance(message, Init):
            self._begin(message)
            return message.resume
        if not self.known:
            self._door.let_in(None)
        if not self._ready:
            self._say_ready(())
        return (message,)

    def _obey(self, message: Message | Resuming) -> None:
        """Raises `Unauthorized`, or `Flooded`."""
        match message:
            case Start():
                self._door.check(self._channels.client.key)
                self._spend(0 if self._channels.start(message, self._refusal()) else VAIN_REQUEST)
            case Resuming():
                self._door.check(self._channels.client.key)
                self._spend(RESUMPTION)
                self._channels.resume(message)
            case Cancel():
                self._spend(0 if self._channels.cancel(message.rid) else VAIN)
            case Ack():
                self._spend(0 if self._channels.acknowledge(message.rid, message.seq) else VAIN)
            case Ping():
                self._spend(VAIN)
                self._outlet.say(mux_frames.pong(message.t))
            case Pong() | Init():
                self._spend(VAIN)
            case _:
                assert_never(message)

    def _begin(self, init: Init) -> None:
        if self._ready:
            raise BadMessage("Send `init` once, before anything else.")
        if not self.known:
            key = self._door.let_in(init.auth.bearer if init.auth is not None else None)
            self._channels.client = replace(self._channels.client, key=key)
            self.known = True
        features = tuple(feature for feature in FEATURES if feature in init.features)
        self._channels.acknowledges = "ack" in features
        self._outlet.joins_lines = "ndjson" in features
        self._say_ready(features)

    def _refusal(self) -> GatewayError | None:
        """Why no request may begin here any more."""
        if not self.old:
            return None
        return Unavailable("This connection is too old for more: open another.", code="draining", retry_after_s=1)

    def _spend(self, cost: int) -> None:
        if cost:
            self._patience.spend(cost, self._loop.time())

    def _strike(self, error: BadMessage) -> None:
        self._outlet.say(mux_frames.refusal(error, about=error.rid))
        self._strikes += 1
        if self._strikes >= STRIKES:
            raise SessionOver(error)

    def _say_ready(self, features: Sequence[str]) -> None:
        self._ready = True
        limits = self._limits
        told = {
            "streams": limits.streams,
            "message_bytes": limits.message_bytes,
            "age_s": _plain(limits.age_s),
            "detach_s": _plain(self._kept_for.detach_s),
            "replay_s": _plain(self._kept_for.replay_s),
        }
        self._outlet.say(mux_frames.ready("c_" + secrets.token_hex(8), features, _plain(limits.ping_s), told))


def _plain(seconds: float | None) -> float | None:
    """Whole seconds without a fraction, as people write them."""
    return int(seconds) if seconds is not None and seconds == int(seconds) else seconds
