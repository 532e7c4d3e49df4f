"""The stream routes over HTTP: a stage as server-sent events, or in one JSON answer.

What a stage is and how it is opened is `stages`'; the same over a WebSocket, `stage_session`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from proxy.access.origins import OriginPolicy
from proxy.downstream.answering import stream_headers, whole_answer
from proxy.downstream.body import BodyLimits, read_body
from proxy.downstream.cors import cors_headers
from proxy.downstream.early_head import EarlyHead
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate
from proxy.downstream.stages import STREAM_PATHS, Client, OpenStage, StageRefused, Stages, StageTurn
from proxy.downstream.streamed import StreamedAnswer
from proxy.downstream.written import WrittenResponse
from proxy.errors import GatewayError
from proxy.protocols.stages import STAGES
from proxy.relay import Answer

COMPLETION_PATHS = ("/completion/v1/chat", "/completion/v1/toolchain")


class StreamRoutes:
    """The handlers of `/stream/v1` and `/completion/v1`."""

    def __init__(self, stages: Stages, gate: Gate, limits: BodyLimits) -> None:
        self._stages = stages
        self._gate = gate
        self._limits = limits

    def add_to(self, router: web.UrlDispatcher) -> None:
        for path in STREAM_PATHS:
            router.add_post(path, self.stream)
        for path in COMPLETION_PATHS:
            router.add_post(path, self.complete)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with the stage's events."""
        turn = await self._turn(request)
        way = _Way(request, turn, self._gate.origins)
        try:
            begun, opened = await self._open(way)
        except StageRefused as refused:
            return way.whole(refused.answer)
        try:
            return await way.give(opened, begun)
        finally:
            self._stages.close(opened, turn.record)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer with the whole stage."""
        turn = await self._turn(request)
        way = _Way(request, turn, self._gate.origins)
        try:
            return way.whole(await self._stages.complete(turn))
        except StageRefused as refused:
            return way.whole(refused.answer)

    async def _open(self, way: _Way) -> tuple[StreamedAnswer | None, OpenStage]:
        """The stage, and the event stream that has begun because it took long; then a refusal is in the stage."""
        opening = self._stages.open(way.turn)
        keepalive_s = way.turn.route.keepalive_s
        if keepalive_s is None:
            return None, await opening
        begun, opened = await EarlyHead(way.streamed, keepalive_s).cover(opening)
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


@dataclass(frozen=True, slots=True)
class _Way:
    """One stage's way back to its client."""

    request: web.Request
    turn: StageTurn
    origins: OriginPolicy

    def streamed(self, answer: Answer | None) -> StreamedAnswer:
        """The response that events flow through; without an answer, one begun before anything is known."""
        self.turn.record.transport = "sse"
        return StreamedAnswer(
            self.request,
            web.HTTPOk.status_code,
            [*stream_headers(answer, self.turn.record), *cors_headers(self.origins, self.request)],
            keepalive=STAGES.keepalive,
            keepalive_s=self.turn.route.keepalive_s,
        )

    async def give(self, opened: OpenStage, begun: StreamedAnswer | None) -> web.StreamResponse:
        """Give the stage's events to the client, to the last one."""
        self.turn.record.status = web.HTTPOk.status_code
        streamed = begun or self.streamed(opened.first)
        try:
            if begun is None:
                streamed.begin()
            streamed.follow(opened.stage.stream, _told_already)
            await streamed.finished
        finally:
            self.turn.record.bytes_out = streamed.close()
        return streamed.response

    def whole(self, answer: Answer) -> web.StreamResponse:
        """An answer in one piece: all of a stage, or the upstream's refusal."""
        record = self.turn.record
        headers, body = whole_answer(answer, self.request.path, record)
        record.status = answer.status
        record.bytes_out = len(body)
        headers += cors_headers(self.origins, self.request)
        return WrittenResponse(self.request, answer.status, headers, body)


def _told_already(error: GatewayError) -> bytes:
    """A stage's last event has told its error."""
    return b""
