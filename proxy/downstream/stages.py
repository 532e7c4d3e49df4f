"""Stages: from an `LLMRequest` to events that flow, the same over HTTP and WebSocket.

Refusals here have the words that clients of the stream routes know. How events and errors reach a client is
`stream_routes`' and `stage_session`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from proxy.access.keys import Key
from proxy.downstream.whole import Whole
from proxy.errors import (
    ClientError,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
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
_LONGEST_NAME_SHOWN = 256
_NO_TOOLS_RAN = (("tool_summary", b"[]"), ("tool_completion", b"null"))
_JSON: Header = ("Content-Type", "application/json")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: the key it showed, and what the upstream gets to know of it (as `ProxyRequest` has it)."""

    key: Key | None
    headers: Sequence[Header] = field(repr=False)
    forwarded: Sequence[Header]
    crossing: Heads = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class StageTurn:
    """One request, ready to be sent: what was asked, its route, and the chat completion it begins with.

    `runs_tools`: it came to an endpoint that offers the route's tools.
    """

    asked: LLMRequest
    request: ProxyRequest
    route: Route
    record: RequestRecord
    runs_tools: bool


@dataclass(frozen=True, slots=True)
class OpenStage:
    """A stage at its commit point, and the answer its first events come from (None: it failed before)."""

    stage: StageStream
    answer: Answer | None


class StageRefused(GatewayError):
    """The upstream refused: `answer` is the refusal, its body and headers fit to be passed on, its record settled."""

    default_code = "upstream_error"
    default_type = "upstream_error"

    def __init__(self, failure: Failure, answer: Answer) -> None:
        super().__init__(failure.message)
        self.answer = replace(answer, body=b"", failure=failure)


class Stages:
    """Opens stages. A whole answer may have `longest_answer_bytes`."""

    def __init__(self, relay: Relay, longest_answer_bytes: int) -> None:
        self._relay = relay
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
            self._refuse(asked.model_container, client.key)
            raise
        if route.protocol not in USABLE_PROTOCOLS:
            raise Unsupported(f"Unsupported protocol: {route.protocol}", param="model_container")
        runs_tools = path.endswith("/toolchain")
        if runs_tools and route.tools:
            chat = path.removesuffix("/toolchain") + "/chat"
            raise Unsupported(f"Tools are not run here yet: send this request to {chat}.", param="model_container")
        return StageTurn(asked, request, route, record, runs_tools)

    async def open(self, turn: StageTurn) -> OpenStage:
        """The stage at its commit point. Raises `StageRefused` or another `GatewayError`; cancelling closes upstream.

        The caller's duty: attach a listener to the stage's stream, and `close`.
        """
        answer = await self._relay.open(turn.request, turn.route, turn.record)
        if not answer.events:
            raise self._refusal(answer, turn.record, "with an event stream")
        stage = StageStream(turn.asked.stage_id)
        stage.follow(answer.stream, CHAT_CHUNK, stage.stop_for)
        return OpenStage(stage, answer)

    def failed(self, turn: StageTurn, error: GatewayError) -> OpenStage:
        """A stage that is over before it began, for a client that has been told 200 already: `error` is its event."""
        stage = StageStream(turn.asked.stage_id)
        stage.stop_for(error)
        turn.record.status = 200
        turn.record.finish(end_state_of(error), self._loop.time())
        return OpenStage(stage, None)

    def close(self, opened: OpenStage, record: RequestRecord) -> None:
        """The stage is over, one way or the other: what still runs is stopped, and the record is finished."""
        if opened.answer is not None:
            self._relay.close(opened.answer, record)
        opened.stage.stream.cancel()

    async def complete(self, turn: StageTurn) -> Answer:
        """The stage in one piece: the upstream's answer within `{"stage_id","chat_completion"}` as its body.

        Raises `StageRefused` or another `GatewayError`.
        """
        answer = await self._relay.open(turn.request, turn.route, turn.record)
        try:
            completion = await self._whole(answer)
        except BaseException as error:
            if isinstance(error, GatewayError):
                turn.record.finish(end_state_of(error), self._loop.time())
            self._relay.close(answer, turn.record)
            raise
        told = answer_error(completion)
        if told is not None and answer.status < 400:
            answer = replace(answer, status=told.status or UpstreamError.status, failure=told)
        if _failure_in(answer) is not None or decoded(completion) is None:
            raise self._refusal(answer, turn.record, "with one JSON object")
        self._relay.close(answer, turn.record)
        headers = tuple(header for header in answer.headers if header[0].lower() != "content-type")
        more = _NO_TOOLS_RAN if turn.runs_tools else ()
        body = StageWording(turn.asked.stage_id).whole(completion, *more)
        return replace(answer, headers=(*headers, _JSON), body=body)

    async def _whole(self, answer: Answer) -> bytes:
        if answer.body is not None:
            return answer.body
        if answer.events:
            return b""
        whole = Whole(self._longest_answer_bytes)
        answer.stream.attach(whole)
        error = await whole.finished
        if error is not None:
            raise error
        return b"".join(whole.pieces)

    def _refusal(self, answer: Answer, record: RequestRecord, wanted: str) -> GatewayError:
        """Close an answer that is not what was `wanted`; the error to say so with."""
        failure = _failure_in(answer)
        if failure is not None:
            self._relay.close(answer, record)
            return StageRefused(failure, answer)
        error = UpstreamInvalid(f"The model server did not answer {wanted}.")
        record.finish(end_state_of(error), self._loop.time())
        self._relay.close(answer, record)
        return error

    def _refuse(self, model: str, key: Key | None) -> None:
        """Raise why there is no such model for the holder of `key`; nothing where the reason is another one."""
        table = self._relay.table
        shown = model if len(model) <= _LONGEST_NAME_SHOWN else model[:_LONGEST_NAME_SHOWN] + "…"
        try:
            route = table.find(model, key)
        except ModelNotFound as error:
            names = {route.name for route in table.routes}
            usable = [name for name in table.models(key) if name in names]
            message = f"Unknown model: {shown}. Available models: {usable}"
            raise InvalidRequest(message, code=error.code, param="model_container") from None
        if not route.upstream_model:
            message = f"Model {shown} is not configured. Check environment variables."
            raise InvalidRequest(message, param="model_container")
        if not route.replicas:
            message = f"No service configured for model: {shown}"
            raise InvalidRequest(message, param="model_container")


def _failure_in(answer: Answer) -> Failure | None:
    """The failure that an answer is, if it is one: told under 200, or by its status, in whatever words it has."""
    if answer.failure is not None or answer.status < 400:
        return answer.failure
    body = answer.body or b""
    told = answer_error(body)
    if told is not None:
        return Failure(answer.status, told.error)
    words = decoded(body) or {}
    said = next((text for name in ("message", "detail") if isinstance(text := words.get(name), str) and text), None)
    return Failure(answer.status, {"message": said or f"The model server answered with status {answer.status}."})
