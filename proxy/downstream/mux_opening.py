"""From a mux client's request to a stream of events: which endpoints it reaches, and in which form they answer.

Numbering, framing and resuming are others'; here is what differs from endpoint to endpoint.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.downstream.stages import STREAM_PATHS, Client, OpenStage, StageRefused, Stages
from proxy.downstream.whole import Whole
from proxy.errors import GatewayError, UpstreamError
from proxy.protocols import endpoints
from proxy.protocols.event_data import compact, decoded, event_type
from proxy.protocols.failure import answer_error
from proxy.protocols.protocol import Watcher
from proxy.relay import Answer, Headers, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.streams.numbered import Screen
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord, end_state_of
from proxy.telemetry.usage import usage_of_answer
from proxy.wire.bare import unexplained
from proxy.wire.mux_frames import STAGE_MEMBERS, Ending, Form
from proxy.wire.sse import Event, encode


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer at its commit point. The holder's duty: attach a listener to `stream`, and `close`, once.

    `form`, `stage_id` (None: the request has none of its own), `known` and `screen` are what its frames are made by;
    `on_malformed` is to be told of each event that cannot be one; `conclude` words the end.
    """

    stream: Stream
    form: Form
    stage_id: str | None
    known: bool
    screen: Screen
    on_malformed: Callable[[], None]
    conclude: Callable[[GatewayError | None], Ending]
    close: Callable[[], None]


class Opener(Protocol):
    async def open(self, raw: bytes, path: str, client: Client, record: RequestRecord) -> Opened | Ending:
        """The answer to the body `raw` at the endpoint `path`, or how an upstream refused it. Raises `GatewayError`;
        cancelling closes the upstream connection. Only what was opened leaves the record unfinished."""


class RelayOpener:
    """Everything under `/v1`. An answer that is no event stream may have `longest_answer_bytes`."""

    def __init__(self, relay: Relay, longest_answer_bytes: int) -> None:
        self._relay = relay
        self._longest_answer_bytes = longest_answer_bytes

    async def open(self, raw: bytes, path: str, client: Client, record: RequestRecord) -> Opened | Ending:
        record.bytes_in = len(raw)
        body = _streaming(RequestBody.parse(raw), path)
        request = ProxyRequest(path, "", client.headers, client.forwarded, body, record.request_id, client.crossing)
        route = self._relay.route(request, client.key, record)
        answer = await self._relay.open(request, route, record)
        record.status = answer.status

        def close() -> None:
            self._relay.close(answer, record)

        try:
            refusal = _refusal(answer)
            if refusal is None:
                return opened_events(answer, close) if answer.events else await self._whole(answer, record, close)
        except BaseException as error:
            if isinstance(error, GatewayError) and answer.stream.error is None:
                record.finish(end_state_of(error), asyncio.get_running_loop().time())
            close()
            raise
        close()
        return refusal

    async def _whole(self, answer: Answer, record: RequestRecord, close: Callable[[], None]) -> Opened:
        """The answer in one piece, as the one event of a stream that has ended."""
        body = answer.body
        if body is None:
            whole = Whole(self._longest_answer_bytes)
            answer.stream.attach(whole)
            error = await whole.finished
            if error is not None:
                raise error
            body = b"".join(whole.pieces)
        protocol = endpoints.for_path(answer.request.path)
        usage = usage_of_answer(body)
        stream = Stream()
        stream.publish([Event(body, body, body)])
        stream.end()
        return Opened(
            stream,
            Form.RESULT,
            None,
            False,
            _as_they_are,
            answer.on_malformed,
            lambda error: Ending.done(_told_usage(usage.tokens_in, usage.tokens_out, protocol.name)),
            close,
        )


def opened_events(answer: Answer, close: Callable[[], None]) -> Opened:
    """An answer of events; `close` is how to let go of it."""
    protocol = endpoints.for_path(answer.request.path)
    watcher = answer.watcher
    known = protocol.name != "unknown"
    chunks = protocol.name == "openai"
    return Opened(
        answer.stream,
        Form.CHUNKS if chunks else Form.EVENTS,
        None,
        known,
        _without_failures(watcher) if chunks else _named if known else _as_they_are,
        answer.on_malformed,
        lambda error: _ending(watcher, error, protocol.name),
        close,
    )


class StageOpener:
    """The stream routes."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    async def open(self, raw: bytes, path: str, client: Client, record: RequestRecord) -> Opened | Ending:
        turn = self._stages.turn(raw, path, client, record)
        try:
            opened = await self._stages.open(turn)
        except StageRefused as refused:
            record.status = refused.answer.status
            return Ending.refused(
                {"message": refused.message, "type": refused.type, "param": None, "code": refused.code},
                refused.answer.status,
                _retry_after_s(refused.answer.headers),
            )
        record.status = 200
        stage = opened.stage
        return Opened(
            stage.stream,
            Form.STAGES,
            stage.stage_id,
            True,
            _stage_data(stage.stage_id),
            opened.answer.on_malformed if opened.answer is not None else _uncounted,
            lambda error: _stage_ending(opened, error),
            lambda: self._stages.close(opened, record),
        )


def _uncounted() -> None:
    """No upstream, so no event of one."""


def openers(relay: Relay, stages: Stages, longest_answer_bytes: int) -> Mapping[str, Opener]:
    """By path; "" stands for every other one under `/v1`."""
    return {"": RelayOpener(relay, longest_answer_bytes), **dict.fromkeys(STREAM_PATHS, StageOpener(stages))}


def _streaming(body: RequestBody, path: str) -> RequestBody:
    """A request that does not say streams, at endpoints of which it is known that they can."""
    if endpoints.for_path(path).name != "unknown" and body.value("stream") is None:
        return RequestBody.parse(body.replaced({"stream": True}))
    return body


def _refusal(answer: Answer) -> Ending | None:
    if answer.failure is not None:
        return Ending.refused(answer.failure.error, answer.status, _retry_after_s(answer.headers))
    if answer.status < 400:
        return None
    failure = answer_error(answer.body or b"")
    said = failure.error if failure is not None else unexplained(answer.status)
    return Ending.refused(said, answer.status, _retry_after_s(answer.headers))


def _retry_after_s(headers: Headers) -> float | None:
    said = next((value.strip() for name, value in headers if name.lower() == "retry-after"), "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 10 else None


def _ending(watcher: Watcher, error: GatewayError | None, protocol: str) -> Ending:
    if error is not None:
        return Ending.failed(error, watcher.terminal_error(error) or None)
    if watcher.failure is not None:
        error_object = watcher.failure.error
        told = encode(compact({"error": error_object})) if protocol == "openai" else b""
        return Ending.refused(error_object, watcher.failure.status or UpstreamError.status, event=told)
    return Ending.done(_told_usage(watcher.tokens_in, watcher.tokens_out, protocol))


def _told_usage(tokens_in: int | None, tokens_out: int | None, protocol: str) -> dict[str, int] | None:
    """The counts under the names that the protocol has for them; None where nobody counted."""
    openai = protocol in ("openai", "unknown", "stages")
    names = ("prompt_tokens", "completion_tokens") if openai else ("input_tokens", "output_tokens")
    counted = zip(names, (tokens_in, tokens_out), strict=True)
    return {name: count for name, count in counted if count is not None} or None


# ---- screens: which events of a batch a client gets, under which names ----


def _as_they_are(events: list[Event]) -> list[Event]:
    return events


def _named(events: list[Event]) -> list[Event]:
    """Some servers send no `event:` lines: then the data says it."""
    for event in events:
        if not event.type:
            event.type = event_type(event.data)
    return events


def _without_failures(watcher: Watcher) -> Screen:
    """A chunk that tells of the upstream's failure is none: the end tells of it."""

    def screen(events: list[Event]) -> list[Event]:
        if watcher.failure is None:
            return events
        return [event for event in events if event.type != b"error" and not (decoded(event.data) or {}).get("error")]

    return screen


def _stage_data(stage_id: str) -> Screen:
    """What a stage's events carry, without what its wording puts around it. The stage's last event is its end."""
    opening = b'{"stage_id":' + json.dumps(stage_id).encode("ascii")
    around = {type.encode(): len(opening) + len(f',"{member}":') for type, member in STAGE_MEMBERS.items()}

    def screen(events: list[Event]) -> list[Event]:
        carried = []
        for event in events:
            start = around.get(event.type)
            if start is not None:
                data = event.data[start:-1]
                carried.append(Event(data, data, data, event.type))
        return carried

    return screen


def _stage_ending(opened: OpenStage, error: GatewayError | None) -> Ending:
    stage = opened.stage
    failed = stage.error or error
    if failed is not None:
        return Ending.failed(failed)
    if stage.cancelled_for is not None:
        return Ending.cancelled(stage.cancelled_for)
    watcher = opened.answer.watcher if opened.answer is not None else None
    return Ending.done(None if watcher is None else _told_usage(watcher.tokens_in, watcher.tokens_out, "stages"))
