"""The channels of one mux session: which `rid`s are live, how one is begun, gone on with and stopped.

What a request does behind its channel is the turns'; when the socket opens and closes, the session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.downstream.mux_channel import Channel
from proxy.downstream.mux_outlet import MuxOutlet
from proxy.downstream.mux_turns import Asked, Turns
from proxy.downstream.stages import Client
from proxy.errors import ClientError, GatewayError, RequestInProgress
from proxy.streams.numbered import ReplayGap
from proxy.wire import mux_frames
from proxy.wire.mux import Resuming, Start


class TooManyStreams(ClientError):
    """The session has as many live streams as it may."""

    status = 429
    default_code = "too_many_streams"
    default_type = "rate_limit_error"


class Channels:
    """Those of `client`, at most so many. `acknowledges`: each has its window. `on_idle` is called when the last one is
    over. What a client asks for in vain is answered here, and told by False."""

    def __init__(
        self, outlet: MuxOutlet, turns: Turns, client: Client, *, most: int, on_idle: Callable[[], None]
    ) -> None:
        self.client = client
        self.acknowledges = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._outlet = outlet
        self._turns = turns
        self._most = most
        self._on_idle = on_idle
        self._open: dict[str, Channel] = {}
        self._left = False

    def start(self, start: Start, refused: GatewayError | None) -> bool:
        """Begin a request, unless it is to be `refused`."""
        if self._left or self._is_in_use(start.rid):
            return False
        if refused is None and len(self._open) >= self._most:
            refused = self._too_many()
        asked = Asked(start.rid, start.path, start.resumable, self.client, self._outlet.say)
        if refused is not None:
            self._turns.refuse(asked, refused)
            return False
        self._turns.begin(asked, bytes(start.body), self._open_channel(start.rid, start.window))
        return True

    def resume(self, resuming: Resuming) -> bool:
        """Go on with a stream that is kept."""
        rid, after, store = resuming.rid, resuming.after, self._turns.streams.store
        if self._left or self._is_in_use(rid):
            return False
        try:
            kept = store.find(resuming.stream, self.client.key.name if self.client.key else None)
            numbered = kept.numbered
            numbered.require(after)
            if len(self._open) >= self._most:
                raise self._too_many()
        except GatewayError as error:
            oldest = error.oldest if isinstance(error, ReplayGap) else None
            self._outlet.say(mux_frames.refusal(error, rid=rid, oldest=oldest))
            return False
        self._outlet.say(mux_frames.resumed(rid, kept.id, first=after + 1, head=numbered.head, live=numbered.live))
        store.attached(kept)
        if numbered.live or after < numbered.head:
            channel = self._open_channel(rid, resuming.window)
            channel.kept, channel.cancel = kept, kept.cancel
            channel.follow(numbered, kept.form, kept.stage_id, after)
        return True

    def cancel(self, rid: str) -> bool:
        """Stop a request; one that is not there is nothing to speak of."""
        channel = self._open.get(rid)
        if channel is not None:
            channel.cancel("client")
        return channel is not None

    def acknowledge(self, rid: str, seq: int) -> bool:
        """The client has taken in so much of it."""
        channel = self._open.get(rid) if self.acknowledges else None
        return channel is not None and channel.acknowledge(seq)

    def leave(self) -> None:
        """The client has gone, or is sent away: what is kept goes on without it, anything else ends."""
        self._left = True
        for channel in list(self._open.values()):
            kept = channel.kept
            channel.leave()
            if kept is not None and kept.numbered.live:
                self._turns.streams.detach(kept)
            elif kept is None:
                channel.cancel("client")

    def _open_channel(self, rid: str, window: int) -> Channel:
        channel = Channel(rid, self._outlet, window if self.acknowledges else None, self._over)
        self._open[rid] = channel
        self.idle.clear()
        return channel

    def _over(self, channel: Channel) -> None:
        del self._open[channel.rid]
        if not self._open:
            self.idle.set()
            if not self._left:
                self._on_idle()

    def _too_many(self) -> TooManyStreams:
        return TooManyStreams(f"{self._most} streams run on this connection: end one, or wait for one.")

    def _is_in_use(self, rid: str) -> bool:
        if rid not in self._open:
            return False
        error = RequestInProgress("This `rid` has a live request: give another.", code="rid_in_use", param="rid")
        self._outlet.say(mux_frames.refusal(error, about=rid))
        return True
