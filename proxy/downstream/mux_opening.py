"""From a mux client's request to its answer: which endpoints it reaches, and what is a refusal.

Numbering, framing and resuming are others'; how an answer's events and its end read is `opened`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from proxy.admission import OnQueued
from proxy.downstream.opened import Opened, opened_events, opened_stage, opened_whole
from proxy.downstream.stages import STREAM_PATHS, Client, StageRefused, Stages
from proxy.downstream.tool_chats import ToolChats, leaves_tools_to_us
from proxy.downstream.whole import Whole
from proxy.errors import GatewayError
from proxy.protocols import endpoints
from proxy.protocols.failure import answer_error
from proxy.relay import Answer, Headers, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.telemetry.record import RequestRecord, end_state_of
from proxy.wire.bare import unexplained
from proxy.wire.mux_frames import Ending


class Opener(Protocol):
    async def open(
        self, raw: bytes, path: str, client: Client, record: RequestRecord, on_queued: OnQueued
    ) -> Opened | Ending:
        """The answer to the body `raw` at the endpoint `path`, or how an upstream refused it; `on_queued` is told when
        that waits. Raises `GatewayError`; cancelling closes the upstream connection. Only what was opened leaves the
        record unfinished."""


class _Summed(Struct, frozen=True):
    """The tokens of all rounds, unless they were only estimated."""

    record: RequestRecord

    @property
    def tokens_in(self) -> int | None:
        return None if self.record.tokens_estimated else self.record.tokens_in

    @property
    def tokens_out(self) -> int | None:
        return None if self.record.tokens_estimated else self.record.tokens_out


class RelayOpener:
    """Everything under `/v1`. An answer that is no event stream may have `longest_answer_bytes`."""

    def __init__(self, relay: Relay, tool_chats: ToolChats, longest_answer_bytes: int) -> None:
        self._relay = relay
        self._tool_chats = tool_chats
        self._longest_answer_bytes = longest_answer_bytes

    async def open(
        self, raw: bytes, path: str, client: Client, record: RequestRecord, on_queued: OnQueued
    ) -> Opened | Ending:
        record.bytes_in = len(raw)
        body = _streaming(RequestBody.parse(raw), path)
        request = ProxyRequest(path, "", client.headers, client.forwarded, body, record.request_id, client.crossing)
        route = self._relay.route(request, client.key, record)
        answers = self._tool_chats if leaves_tools_to_us(request) else self._relay
        answer = await answers.open(request, route, record, on_queued)
        record.status = answer.status

        def close() -> None:
            answers.close(answer, record)

        try:
            refusal = _refusal(answer)
            if refusal is None:
                if answer.events:
                    return opened_events(answer, route, close, _Summed(record) if answers is self._tool_chats else None)
                return opened_whole(answer, route, await self._whole(answer), close)
        except BaseException as error:
            if isinstance(error, GatewayError) and answer.stream.error is None:
                record.finish(end_state_of(error), asyncio.get_running_loop().time())
            close()
            raise
        close()
        return refusal

    async def _whole(self, answer: Answer) -> bytes:
        """An answer in one piece, however it comes."""
        if answer.body is not None:
            return answer.body
        whole = Whole(self._longest_answer_bytes)
        answer.stream.attach(whole)
        error = await whole.finished
        if error is not None:
            raise error
        return b"".join(whole.pieces)


class StageOpener:
    """The stream routes."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    async def open(
        self, raw: bytes, path: str, client: Client, record: RequestRecord, on_queued: OnQueued
    ) -> Opened | Ending:
        turn = self._stages.turn(raw, path, client, record)
        try:
            opened = await self._stages.open(turn, on_queued)
        except StageRefused as refused:
            record.status = refused.answer.status
            return Ending.refused(
                {"message": refused.message, "type": refused.type, "param": None, "code": refused.code},
                refused.answer.status,
                _retry_after_s(refused.answer.headers),
            )
        record.status = 200
        return opened_stage(opened, turn.route, lambda: self._stages.close(opened, record))


def openers(relay: Relay, tool_chats: ToolChats, stages: Stages, longest_answer_bytes: int) -> Mapping[str, Opener]:
    """By path; "" stands for every other one under `/v1`."""
    return {
        "": RelayOpener(relay, tool_chats, longest_answer_bytes),
        **dict.fromkeys(STREAM_PATHS, StageOpener(stages)),
    }


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
