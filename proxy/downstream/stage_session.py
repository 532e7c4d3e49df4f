"""A session of the bare dialect on the stream routes: an `LLMRequest` a message, each event of its stage as a frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.downstream.bare import BareSession
from proxy.downstream.session_socket import Socket
from proxy.downstream.stages import OpenStage, StageRefused, Stages
from proxy.errors import GatewayError
from proxy.protocols.stage_request import stage_id_of
from proxy.streams.stages import StageStream, sentence
from proxy.telemetry.record import EndState, RequestRecord
from proxy.wire.frames import text_frame
from proxy.wire.sse import Event
from proxy.wire.stages import CANCEL, ERROR, StageWording


class StageSession(BareSession):
    """One socket; `settings` are `BareSession`'s."""

    __slots__ = ("_stage", "_stages")

    def __init__(self, socket: Socket, *, stages: Stages, **settings: Any) -> None:
        super().__init__(socket, **settings)
        self._stages = stages
        self._stage: StageStream | None = None

    async def _relay_one(self, record: RequestRecord) -> None:
        turn = self._stages.turn(self._message, self._opened_at, self._client, record)
        self._outlet.break_silence(turn.route.keepalive_s, self._ping)
        try:
            opened = await self._stages.open(turn)
            try:
                await self._push_stage(opened, record)
            finally:
                self._stages.close(opened, record)
        except StageRefused as refused:
            record.status = refused.answer.status
            self._refuse(refused, self._message)
        finally:
            self._outlet.break_silence(None, self._ping)

    async def _push_stage(self, opened: OpenStage, record: RequestRecord) -> None:
        stage = self._stage = opened.stage
        frames = _Frames(StageWording(stage.stage_id), self._outlet.put)
        self._outlet.serve(stage.stream)
        try:
            stage.stream.attach(frames)
            await frames.finished
        finally:
            self._stage = None
            self._outlet.serve(None)
        if stage.cancelled_for == "client":
            record.finish(EndState.CLIENT_CLOSED, self._loop.time())

    async def _cancel(self) -> None:
        """The stage that runs says so in its last event, if it has not had that yet; the turn then ends by itself."""
        if self._stage is not None:
            self._stage.cancel("client")
            await self._ended()
        else:
            message = self._message
            await self._stop()
            self._say(message, CANCEL, {})

    def _refuse(self, error: GatewayError, message: bytes) -> None:
        self._say(message, ERROR, {"error": sentence(error)})

    def _say(self, message: bytes, kind: str, members: dict[str, object]) -> None:
        """The only event of a stage that never began."""
        wording = StageWording(stage_id_of(message.decode()))
        self._send(wording.frame_payload(wording.event(kind, 0, members)))


class _Frames:
    """A stage's listener: one frame an event, all of a batch in one write. `finished` is done with the last one."""

    __slots__ = ("_payload", "_put", "finished")

    def __init__(self, wording: StageWording, put: Callable[[bytes], bool]) -> None:
        self._payload = wording.frame_payload
        self._put = put
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, events: list[Event]) -> bool:
        payload = self._payload
        return self._put(b"".join([text_frame(payload(event)) for event in events]))

    def end(self, error: GatewayError | None) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
