"""The API over HTTP: every `POST /v1/*` with a model is relayed, and the models are listed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from proxy.access.keys import Key
from proxy.access.origins import OriginPolicy
from proxy.downstream.answering import stream_headers, whole_answer
from proxy.downstream.body import BodyLimits, read_body
from proxy.downstream.cors import cors_headers
from proxy.downstream.early_head import EarlyHead
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate, Visitor
from proxy.downstream.opened import opened_events
from proxy.downstream.resumable import ResumableRequest, StreamsApi, told_already
from proxy.downstream.streamed import StreamedAnswer
from proxy.downstream.tool_chats import ToolChats, leaves_tools_to_us
from proxy.downstream.written import WrittenResponse
from proxy.errors import GatewayError, ModelNotFound, NotFound, UpstreamError
from proxy.protocols import endpoints
from proxy.protocols.failure import answer_error
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route
from proxy.telemetry.record import RequestRecord, end_state_of
from proxy.wire.headers import Header

SERVABLE_PATH = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9._~-]*)+")
"""What may become a request target upstream: plain segments, none of which is `.` or `..`."""


class HttpApi:
    """The handlers of `/v1`."""

    def __init__(
        self, relay: Relay, tool_chats: ToolChats, gate: Gate, limits: BodyLimits, streams: StreamsApi
    ) -> None:
        self._relay = relay
        self._tool_chats = tool_chats
        self._gate = gate
        self._limits = limits
        self._streams = streams
        self._started = int(time.time())

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/models", self.models)
        router.add_get("/v1/models/{model:.+}", self.model)
        router.add_post("/v1/{rest:.+}", self.relay)

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Relay one request, whichever way its answer comes."""
        record = request[RECORD]
        visitor = self._gate.let_in(request)
        if visitor.key is not None:
            record.key = visitor.key.name
        proxied = await self._read(request, visitor, record)
        route = self._relay.route(proxied, visitor.key, record)
        answers = self._tool_chats if leaves_tools_to_us(proxied) else self._relay
        keeps = proxied.body.stream or route.keep_s is not None
        resumable = self._streams.asked_for(request, route) if keeps else None
        turn = _Turn(request, proxied, route, record, self._gate.origins, answers, resumable)
        if proxied.body.stream and route.keepalive_s is not None:
            return await self._relay_after_silence(turn, route.keepalive_s)
        return await self._give(turn, await answers.open(proxied, route, record), None)

    async def _relay_after_silence(self, turn: _Turn, keepalive_s: float) -> web.StreamResponse:
        """The same; the head goes out when the upstream has said nothing for `keepalive_s` seconds."""
        opening = turn.answers.open(turn.proxied, turn.route, turn.record)
        begun, answer = await EarlyHead(turn.streamed, keepalive_s).cover(opening)
        if isinstance(answer, GatewayError):
            assert begun is not None
            return turn.fail(begun, answer)
        return await self._give(turn, answer, begun)

    async def _give(self, turn: _Turn, answer: Answer, begun: StreamedAnswer | None) -> web.StreamResponse:
        try:
            return await turn.give(answer, begun)
        finally:
            if turn.resumable is not None and turn.resumable.is_kept:
                turn.resumable.leave()
            else:
                turn.answers.close(answer, turn.record)

    async def models(self, request: web.Request) -> web.Response:
        """The routes and aliases this key may use: OpenAI's shape, or Anthropic's for its clients."""
        names = self._relay.table.models(self._admit(request))
        if "anthropic-version" in request.headers:
            entries = [self._anthropic_model(name) for name in names]
            ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
            return web.json_response({"data": entries, "has_more": False, **ends})
        return web.json_response({"object": "list", "data": [self._openai_model(name) for name in names]})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        name = request.match_info["model"]
        names = self._relay.table.models(self._admit(request))
        if name not in names:
            raise ModelNotFound(f"The model does not exist here. Available models: {', '.join(names)}.", param="model")
        anthropic = "anthropic-version" in request.headers
        return web.json_response(self._anthropic_model(name) if anthropic else self._openai_model(name))

    def _admit(self, request: web.Request) -> Key | None:
        key = self._gate.admit(request)
        request[RECORD].key = key.name if key is not None else None
        return key

    async def _read(self, request: web.Request, visitor: Visitor, record: RequestRecord) -> ProxyRequest:
        path = request.rel_url.raw_path
        if SERVABLE_PATH.fullmatch(path) is None:
            raise NotFound("There is nothing at this path.")
        raw = await read_body(request, self._limits)
        record.bytes_in = len(raw)
        return ProxyRequest(
            path=path,
            query=request.rel_url.raw_query_string,
            headers=visitor.headers,
            forwarded=visitor.forwarded,
            body=RequestBody.parse(raw),
            request_id=record.request_id,
            crossing=visitor.crossing,
        )

    def _openai_model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "penstock"}

    def _anthropic_model(self, name: str) -> dict[str, object]:
        created = datetime.fromtimestamp(self._started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"type": "model", "id": name, "display_name": name, "created_at": created}


@dataclass(frozen=True, slots=True)
class _Turn:
    """One request's way back to its client; `answers` opens and closes its answer."""

    request: web.Request
    proxied: ProxyRequest
    route: Route
    record: RequestRecord
    origins: OriginPolicy
    answers: Relay | ToolChats
    resumable: ResumableRequest | None

    def streamed(self, answer: Answer | None) -> StreamedAnswer:
        """The response an answer flows through; without one, an event stream begun before anything is known."""
        events = answer is None or answer.events
        if events:
            self.record.transport = "sse"
        return StreamedAnswer(
            self.request,
            200 if answer is None else answer.status,
            stream_headers(answer, self.record) + self._more_headers(events),
            keepalive=endpoints.for_path(self.proxied.path).keepalive,
            keepalive_s=self.route.keepalive_s if events else None,
        )

    async def give(self, answer: Answer, begun: StreamedAnswer | None) -> web.StreamResponse:
        """Give the answer to the client, to its end; in the event stream that has begun, if one has."""
        self.record.status = answer.status
        if begun is None and answer.body is not None:
            headers, body = whole_answer(answer, self.proxied.path, self.record)
            self.record.bytes_out = len(body)
            headers += cors_headers(self.origins, self.request)
            return WrittenResponse(self.request, answer.status, headers, body)
        if begun is not None and not answer.events:
            if answer.failure is None and answer.status >= 400:
                self.record.finish(end_state_of(answer.status), asyncio.get_running_loop().time())
            return self.fail(begun, _in_stream(answer))
        streamed = begun or self.streamed(answer)
        try:
            if begun is None:
                streamed.begin()
            if self.resumable is not None and answer.events:
                opened = opened_events(answer, self.route, self._close_with(answer))
                streamed.follow(self.resumable.keep(opened, answer.request.path).stream, told_already)
            else:
                streamed.follow(answer.stream, answer.watcher.terminal_error if answer.events else _cut)
            await streamed.finished
        finally:
            self.record.bytes_out = streamed.close()
        return streamed.response

    def _more_headers(self, events: bool) -> list[Header]:
        named = [self.resumable.header] if self.resumable is not None and events else []
        return [*named, *cors_headers(self.origins, self.request)]

    def _close_with(self, answer: Answer) -> Callable[[], None]:
        return lambda: self.answers.close(answer, self.record)

    def fail(self, begun: StreamedAnswer, error: GatewayError) -> web.StreamResponse:
        """The head went out before anything was known: the error is the stream's only event."""
        watcher = endpoints.for_path(self.proxied.path).watcher(self.proxied.body)
        begun.end_with(watcher.terminal_error(error))
        self.record.bytes_out = begun.close()
        self.record.status = 200
        self.record.finish(end_state_of(error), asyncio.get_running_loop().time())
        return begun.response


def _cut(error: GatewayError) -> bytes:
    """Nothing can be said inside a body of unknown type."""
    return b""


def _in_stream(answer: Answer) -> UpstreamError:
    """An answer with a status of its own, told in a stream that has begun already."""
    failure = answer.failure or answer_error(answer.body or b"")
    if failure is not None:
        code = failure.error.get("code")
        return UpstreamError(failure.message, code=code if isinstance(code, str) else None)
    return UpstreamError(f"The upstream answered with status {answer.status}, not with an event stream.")
