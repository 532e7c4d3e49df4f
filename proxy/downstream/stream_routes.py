"""The stream routes over HTTP: a stage as server-sent events, or in one JSON answer.

What a stage is and how it is opened is `stages`'; the same over a WebSocket, `stage_session`'s.
"""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from proxy.access.origins import OriginPolicy
from proxy.downstream.answering import stream_headers, whole_answer
from proxy.downstream.body import BodyLimits, read_body
from proxy.downstream.cors import cors_headers
from proxy.downstream.early_head import EarlyHead
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate
from proxy.downstream.opened import opened_stage
from proxy.downstream.resumable import ResumableRequest, StreamsApi, told_already
from proxy.downstream.stages import STREAM_PATHS, Client, OpenStage, StageRefused, Stages, StageTurn
from proxy.downstream.streamed import StreamedAnswer
from proxy.downstream.written import WrittenResponse
from proxy.errors import GatewayError
from proxy.protocols.stages import STAGES
from proxy.relay import Answer
from proxy.streams.numbered import Screen
from proxy.wire.sse import Event

COMPLETION_PATHS = ("/completion/v1/chat", "/completion/v1/toolchain")


class StreamRoutes:
    """The handlers of `/stream/v1` and `/completion/v1`."""

    def __init__(self, stages: Stages, gate: Gate, limits: BodyLimits, streams: StreamsApi) -> None:
        self._stages = stages
        self._gate = gate
        self._limits = limits
        self._streams = streams

    def add_to(self, router: web.UrlDispatcher) -> None:
        for path in STREAM_PATHS:
            router.add_post(path, self.stream)
        for path in COMPLETION_PATHS:
            router.add_post(path, self.complete)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with the stage's events."""
        turn = await self._turn(request)
        way = _Way(request, turn, self._gate.origins)
        resumable = self._streams.of_stage(request, turn.route)
        try:
            begun, opened = await self._open(way, resumable)
        except StageRefused as refused:
            return way.whole(refused.answer)
        try:
            return await self._give(way, resumable, opened, begun)
        finally:
            if resumable.is_kept:
                resumable.leave()
            else:
                self._stages.close(opened, turn.record)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer with the whole stage."""
        turn = await self._turn(request)
        way = _Way(request, turn, self._gate.origins)
        try:
            return way.whole(await self._stages.complete(turn))
        except StageRefused as refused:
            return way.whole(refused.answer)

    async def _give(
        self, way: _Way, resumable: ResumableRequest, opened: OpenStage, begun: StreamedAnswer | None
    ) -> web.StreamResponse:
        """Give the stage's events to the client, to the last one."""
        record = way.turn.record
        record.status = web.HTTPOk.status_code
        streamed = begun or way.streamed(opened.first, resumable)
        try:
            if begun is None:
                streamed.begin()
            stage = opened_stage(opened, way.turn.route, lambda: self._stages.close(opened, record))
            stage = replace(stage, screen=_mended(stage.screen))
            streamed.follow(resumable.keep(stage, way.request.path).stream, told_already)
            await streamed.finished
        finally:
            record.bytes_out = streamed.close()
        return streamed.response

    async def _open(self, way: _Way, resumable: ResumableRequest) -> tuple[StreamedAnswer | None, OpenStage]:
        """The stage, and the event stream that has begun because it took long; then a refusal is in the stage."""
        opening = self._stages.open(way.turn)
        keepalive_s = way.turn.route.keepalive_s
        if keepalive_s is None:
            return None, await opening
        begun, opened = await EarlyHead(lambda first: way.streamed(first, resumable), keepalive_s).cover(opening)
        if isinstance(opened, GatewayError):
            return begun, self._stages.failed(way.turn, opened)
        return begun, opened

    async def _turn(self, request: web.Request) -> StageTurn:
        record = request[RECORD]
        visitor = self._gate.let_in(request)
        if visitor.key is not None:
            record.key = visitor.key.name
        raw = await read_body(request, self._limits)
        client = Client(visitor.key, visitor.headers, visitor.forwarded, visitor.crossing)
        return self._stages.turn(raw, request.path, client, record)


class _Way(Struct, frozen=True):
    """One stage's way back to its client."""

    request: web.Request
    turn: StageTurn
    origins: OriginPolicy

    def streamed(self, answer: Answer | None, resumable: ResumableRequest) -> StreamedAnswer:
        """The response that events flow through; without an answer, one begun before anything is known."""
        self.turn.record.transport = "sse"
        headers = [*stream_headers(answer, self.turn.record), resumable.header]
        return StreamedAnswer(
            self.request,
            web.HTTPOk.status_code,
            [*headers, *cors_headers(self.origins, self.request)],
            keepalive=STAGES.keepalive,
            keepalive_s=self.turn.route.keepalive_s,
        )

    def whole(self, answer: Answer) -> web.StreamResponse:
        """An answer in one piece: all of a stage, or the upstream's refusal."""
        record = self.turn.record
        headers, body = whole_answer(answer, self.request.path, record)
        record.status = answer.status
        record.bytes_out = len(body)
        headers += cors_headers(self.origins, self.request)
        return WrittenResponse(self.request, answer.status, headers, body)


def _mended(screen: Screen) -> Screen:
    """The same, with the bytes that are no UTF-8 replaced, as each reader of server-sent events does it."""

    def screened(events: list[Event]) -> list[Event]:
        events = screen(events)
        for event in events:
            if not event.data.isascii():
                _mend(event)
        return events

    return screened


def _mend(event: Event) -> None:
    data = event.data.decode("utf-8", "replace").encode()
    if data != event.data:
        event.data = event.wire = data
