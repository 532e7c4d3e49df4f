"""The requests of mux clients that are under way, each from its start to its record, connected or not.

What a client sees of one is its channel's; how long one goes on without a client, the store's to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from msgspec import Struct

from proxy.downstream.http import SERVABLE_PATH
from proxy.downstream.kept_streams import KeptStreams
from proxy.downstream.mux_channel import Channel
from proxy.downstream.mux_opening import Opener
from proxy.downstream.opened import Opened
from proxy.downstream.stages import Client
from proxy.errors import GatewayError, InternalError, NotFound
from proxy.streams.numbered import NumberedStream
from proxy.streams.store import KeptStream, new_stream_id
from proxy.telemetry.record import EndState, RequestRecord, end_state_of
from proxy.wire.headers import new_request_id
from proxy.wire.mux_frames import Ending, Envelope, Form, accepted, queued

logger = logging.getLogger("penstock")


class Asked(Struct, frozen=True):
    """One `start`, less the body: what was asked, and by whom. `say` sends a frame beside the stream's."""

    rid: str
    path: str
    resumable: bool
    client: Client
    say: Callable[[bytes], object]

    def record(self, now: float) -> RequestRecord:
        """The request's, as it begins."""
        record = RequestRecord(new_request_id(), "GET", self.path, now, transport="ws", dialect="mux", status=200)
        record.key = self.client.key.name if self.client.key is not None else None
        return record


class Turns:
    """Begins them, and ends those that still run. `streams` keeps those that can be resumed; `publish` gets each
    one's record.

    The owner's duty: `close`.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        streams: KeptStreams,
        publish: Callable[[RequestRecord], None],
    ) -> None:
        self.streams = streams
        self._openers = openers
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, asked: Asked, body: bytes, channel: Channel) -> None:
        """Serve it, in a task of its own; `channel` waits for it."""
        turn = _Turn(asked, body, channel, self)
        task = turn.task = self._loop.create_task(turn.run())
        channel.cancel = turn.cancel
        self._tasks.add(task)
        task.add_done_callback(lambda _: turn.finish())  # of one that was cancelled before it began
        task.add_done_callback(self._tasks.discard)

    def refuse(self, asked: Asked, error: GatewayError) -> None:
        """The session itself does not let it through."""
        asked.say(Envelope(asked.rid, asked.rid, Form.CHUNKS).terminal(Ending.failed(error), 1))
        record = asked.record(self._loop.time())
        record.status = error.status
        record.finish(end_state_of(error), self._loop.time())
        self._publish(record)

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the turns' side ----

    def publish(self, record: RequestRecord) -> None:
        self._publish(record)

    def opener(self, path: str) -> Opener:
        """Raises NotFound for a path that is not served."""
        if path in self._openers and path:
            return self._openers[path]
        if SERVABLE_PATH.fullmatch(path) is None:
            raise NotFound("There is nothing at this path: give one that the gateway serves.", code="path_not_found")
        return self._openers[""]


class _Turn:
    """One request. It ends by its answer's end, or by `cancel`."""

    def __init__(self, asked: Asked, body: bytes, channel: Channel, turns: Turns) -> None:
        self.task: asyncio.Task[None] | None = None
        self._asked = asked
        self._body = body
        self._channel = channel
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._opened: Opened | None = None
        self._numbered: NumberedStream | None = None
        self._kept: KeptStream | None = None
        self._is_finished = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._record = asked.record(self._loop.time())

    async def run(self) -> None:
        record = self._record
        try:
            opened = await self._open()
            if isinstance(opened, Ending):
                self._channel.refuse(opened)
            else:
                self._opened = opened
                self._follow(opened)
                await self._over
        except Exception as error:
            named = error if isinstance(error, GatewayError) else InternalError("The gateway failed; its log says why.")
            if named is not error:
                logger.exception("request %s failed", record.request_id)
            self._end(Ending.failed(named))
            record.status = named.status
            record.finish(end_state_of(named), self._loop.time())
        finally:
            self.finish()

    def finish(self) -> None:
        """It is over: stop what runs, and publish the record. Once."""
        if self._is_finished:
            return
        self._is_finished = True
        self._close()
        self._record.finish(EndState.CLIENT_CLOSED, self._loop.time())
        self._record.bytes_out = self._channel.bytes_out
        self._turns.publish(self._record)

    def cancel(self, reason: str) -> None:
        """Nobody wants it any more: stop it, wherever it is, and say so to who still listens."""
        if self._numbered is not None and not self._numbered.live:
            return
        if self._opened is None and self.task is not None:
            self.task.cancel()
        self._close()
        if self._numbered is not None:
            self._numbered.forget_waiting()
        self._end(Ending.cancelled(reason))

    async def _open(self) -> Opened | Ending:
        asked = self._asked
        body, self._body = self._body, b""  # whoever is asked keeps it for as long as it is needed
        opener = self._turns.opener(asked.path)
        return await opener.open(body, asked.path, asked.client, self._record, self._tell_place)

    def _tell_place(self, position: int, wait_s: float) -> None:
        """It waits in a queue."""
        if not self._channel.is_over:
            self._asked.say(queued(self._asked.rid, position))

    def _follow(self, opened: Opened) -> None:
        """Give the answer its numbers, its channel, and, if that was asked for, its place in the store."""
        asked, channel, store = self._asked, self._channel, self._turns.streams.store
        numbered = self._numbered = NumberedStream(
            screen=opened.screen,
            known=opened.known,
            keeping=store.keeping() if asked.resumable else None,
            conclude=self._conclude,
            on_malformed=opened.on_malformed,
        )
        stage_id = asked.rid if opened.stage_id is None else opened.stage_id
        if asked.resumable:
            kept = KeptStream(
                new_stream_id(),
                self._record.key,
                numbered,
                opened.form,
                stage_id,
                asked.path,
                self.cancel,
                opened.route.keep_s,
                opened.route.keepalive_s,
            )
            self._kept = channel.kept = kept
            store.keep(kept)
        id = self._kept.id if self._kept is not None else None
        status = self._record.status or 200
        asked.say(accepted(asked.rid, id, self._record.model, status, self._record.request_id))
        channel.follow(numbered, opened.form, stage_id)
        numbered.listen(opened.stream)

    def _conclude(self, error: GatewayError | None) -> Ending:
        """The answer is over."""
        assert self._opened is not None
        ending = self._opened.conclude(error)
        self._settle()
        return ending

    def _end(self, ending: Ending) -> None:
        if self._numbered is None:
            self._channel.refuse(ending)
        else:
            self._numbered.finish(ending)
        self._settle()

    def _settle(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _close(self) -> None:
        """Stop what runs upstream, and settle the record. Once."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        if self._kept is not None and not self._kept.numbered.live:
            kept, self._kept = self._kept, None
            kept.cancel = _over
            self._turns.streams.ended(kept)


def _over(reason: str) -> None:
    """There is nothing left to cancel."""
