"""Stages: from an `LLMRequest` to events that flow, the same over HTTP and WebSocket.

Refusals here have the words that clients of the stream routes know. How events and errors reach a client is
`stream_routes`' and `stage_session`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from msgspec import Struct

from proxy.access.keys import Key
from proxy.admission import OnQueued
from proxy.downstream.stage_refusals import failure_in, refuse_model
from proxy.downstream.tool_runs import RunRefused, ToolRun, ToolRuns, ToolTurn
from proxy.downstream.whole import whole_body
from proxy.errors import (
    ClientError,
    GatewayError,
    Unavailable,
    UpstreamError,
    UpstreamInvalid,
)
from proxy.protocols.event_data import compact, decoded
from proxy.protocols.failure import Failure, answer_error
from proxy.protocols.stage_request import LLMRequest, Unsupported
from proxy.relay import Answer, Relay
from proxy.request import Heads, ProxyRequest, RequestBody
from proxy.routing.table import Route
from proxy.streams.stages import StageStream
from proxy.telemetry.record import RequestRecord, end_state_of
from proxy.wire.headers import Header
from proxy.wire.stages import CHAT_CHUNK, StageWording

STREAM_PATHS = ("/stream/v1/chat", "/stream/v1/toolchain")
COMPLETIONS = "/v1/chat/completions"
"""What a stage is upstream."""
USABLE_PROTOCOLS = frozenset({"openai"})
_NO_TOOLS_RAN = (("tool_summary", b"[]"), ("tool_completion", b"null"))
_JSON: Header = ("Content-Type", "application/json")

Completed = tuple[Answer, bytes, tuple[tuple[str, bytes], ...]]
"""The answer whose headers a whole stage has, its completion, and the members that come after that."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: the key it showed, and what the upstream gets to know of it (as `ProxyRequest` has it)."""

    key: Key | None
    headers: Sequence[Header] = field(repr=False)
    forwarded: Sequence[Header]
    crossing: Heads = field(default_factory=dict, repr=False)


class StageTurn(Struct, frozen=True):
    """One request, ready to be sent: what was asked, its route, and the chat completion it begins with.

    `at_toolchain`: it came to an endpoint that offers the route's tools.
    """

    asked: LLMRequest
    request: ProxyRequest
    route: Route
    record: RequestRecord
    at_toolchain: bool

    @property
    def tools(self) -> ToolTurn | None:
        """The request as one of several rounds; None where one completion is all of it."""
        if not self.at_toolchain or not (self.route.tools or self.asked.synthesis):
            return None
        base = self.asked.chat_completion(stream=self.request.body.stream)
        synthesis = self.asked.synthesis_numbers() if self.asked.synthesis else None
        return ToolTurn(self.request, self.route, self.record, base, synthesis)


class OpenStage(Struct, frozen=True):
    """A stage at its commit point, and the one answer all its events come from, or the run that asks for one after the
    other (neither: it failed before)."""

    stage: StageStream
    answer: Answer | None = None
    run: ToolRun | None = None

    @property
    def first(self) -> Answer | None:
        """The answer its first events come from."""
        return self.answer if self.run is None else self.run.answer


class StageRefused(GatewayError):
    """The upstream refused: `answer` is the refusal, its body and headers fit to be passed on, its record settled."""

    default_code = "upstream_error"
    default_type = "upstream_error"

    def __init__(self, failure: Failure, answer: Answer) -> None:
        super().__init__(failure.message)
        self.answer = replace(answer, body=b"", failure=failure)


class Stages:
    """Opens stages. A whole answer may have `longest_answer_bytes`."""

    def __init__(self, relay: Relay, runs: ToolRuns, longest_answer_bytes: int) -> None:
        self._relay = relay
        self._runs = runs
        self._longest_answer_bytes = longest_answer_bytes
        self._loop = asyncio.get_running_loop()

    def turn(self, raw: bytes, path: str, client: Client, record: RequestRecord) -> StageTurn:
        """The request in a body that came to the endpoint `path`. Raises `GatewayError`."""
        record.bytes_in = len(raw)
        asked = LLMRequest.parse(raw)
        asked.refuse_misuse(path)
        body = compact(asked.chat_completion(stream=path.startswith("/stream/")))
        try:
            parsed = RequestBody.parse(body)
            request = ProxyRequest(
                COMPLETIONS, "", client.headers, client.forwarded, parsed, record.request_id, client.crossing
            )
            route = self._relay.route(request, client.key, record)
        except (ClientError, Unavailable):
            refuse_model(self._relay.table, asked.model_container, client.key)
            raise
        if route.protocol not in USABLE_PROTOCOLS:
            raise Unsupported(f"Unsupported protocol: {route.protocol}", param="model_container")
        return StageTurn(asked, request, route, record, path.endswith("/toolchain"))

    async def open(self, turn: StageTurn, on_queued: OnQueued | None = None) -> OpenStage:
        """The stage at its commit point. Raises `StageRefused` or another `GatewayError`; cancelling closes upstream.

        The caller's duty: attach a listener to the stage's stream, and `close`.
        """
        stage = StageStream(turn.asked.stage_id)
        if (tools := turn.tools) is not None:
            try:
                return OpenStage(stage, run=await self._runs.open(tools, stage, on_queued))
            except RunRefused as refused:
                raise _refused(refused.answer) from None
        answer = await self._relay.open(turn.request, turn.route, turn.record, on_queued)
        if not answer.events:
            raise self._refusal(answer, turn.record, "with an event stream")
        stage.follow(answer.stream, CHAT_CHUNK, stage.stop_for)
        return OpenStage(stage, answer)

    def failed(self, turn: StageTurn, error: GatewayError) -> OpenStage:
        """A stage that is over before it began, for a client that has been told 200 already: `error` is its event."""
        stage = StageStream(turn.asked.stage_id)
        stage.stop_for(error)
        turn.record.status = 200
        turn.record.finish(end_state_of(error), self._loop.time())
        return OpenStage(stage)

    def close(self, opened: OpenStage, record: RequestRecord) -> None:
        """The stage is over, one way or the other: what still runs is stopped, and the record is finished."""
        if opened.answer is not None:
            self._relay.close(opened.answer, record)
        if opened.run is not None:
            opened.run.close()
        opened.stage.stream.cancel()

    async def complete(self, turn: StageTurn) -> Answer:
        """The stage in one piece: the upstream's answer within `{"stage_id","chat_completion"}` as its body.

        Raises `StageRefused` or another `GatewayError`.
        """
        tools = turn.tools
        answer, completion, more = await (self._complete(turn) if tools is None else self._run(tools))
        headers = tuple(header for header in answer.headers if header[0].lower() != "content-type")
        body = StageWording(turn.asked.stage_id).whole(completion, *more)
        return replace(answer, headers=(*headers, _JSON), body=body)

    async def _run(self, tools: ToolTurn) -> Completed:
        try:
            collected, first = await self._runs.collect(tools)
        except RunRefused as refused:
            raise _refused(refused.answer) from None
        synthesis = collected.synthesis or b"null"
        more = (("tool_summary", compact(collected.summaries)), ("tool_completion", synthesis))
        return first, collected.completion, more

    async def _complete(self, turn: StageTurn) -> Completed:
        answer = await self._relay.open(turn.request, turn.route, turn.record)
        try:
            completion = await whole_body(answer, self._longest_answer_bytes) or b""
        except BaseException as error:
            if isinstance(error, GatewayError):
                turn.record.finish(end_state_of(error), self._loop.time())
            self._relay.close(answer, turn.record)
            raise
        told = answer_error(completion)
        if told is not None and answer.status < 400:
            answer = replace(answer, status=told.status or UpstreamError.status, failure=told)
        if failure_in(answer) is not None or decoded(completion) is None:
            raise self._refusal(answer, turn.record, "with one JSON object")
        self._relay.close(answer, turn.record)
        return answer, completion, _NO_TOOLS_RAN if turn.at_toolchain else ()

    def _refusal(self, answer: Answer, record: RequestRecord, wanted: str) -> GatewayError:
        """Close an answer that is not what was `wanted`; the error to say so with."""
        if failure_in(answer) is not None:
            self._relay.close(answer, record)
            return _refused(answer)
        error = UpstreamInvalid(f"The model server did not answer {wanted}.")
        record.finish(end_state_of(error), self._loop.time())
        self._relay.close(answer, record)
        return error


def _refused(answer: Answer) -> StageRefused:
    """`answer` is a failure."""
    failure = failure_in(answer)
    assert failure is not None
    return StageRefused(failure, answer)
