"""Chat completions whose client leaves the tools to the gateway: `"tools": "gateway"` instead of a list of them.

It gets one completion, streamed or whole, made of the rounds'. Has the relay's `open` and `close`.
"""

from __future__ import annotations

import json
from dataclasses import replace

from proxy.admission import OnQueued
from proxy.downstream.tool_runs import RunRefused, ToolRun, ToolRuns, ToolTurn
from proxy.errors import InvalidRequest
from proxy.protocols import endpoints
from proxy.relay import Answer
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.toolchain.chat_sink import ChatSink
from proxy.toolchain.merged import merged
from proxy.wire.headers import Header

CHAT = "/v1/chat/completions"
_MARK = b'"gateway"'
_JSON: Header = ("Content-Type", "application/json")


def leaves_tools_to_us(request: ProxyRequest) -> bool:
    """Whether the client asks the gateway to run the route's tools."""
    return request.path == CHAT and request.body.opening("tools") == _MARK


class ToolChats:
    """Opens them."""

    def __init__(self, runs: ToolRuns) -> None:
        self._runs = runs
        self._under_way: dict[Stream, ToolRun] = {}

    async def open(
        self, request: ProxyRequest, route: Route, record: RequestRecord, on_queued: OnQueued | None = None
    ) -> Answer:
        """The answer at its commit point; one that is not to be streamed is whole, and its record finished.

        Raises `GatewayError`; cancelling closes the upstream connection. The caller's duty: `close` the answer.
        """
        turn = _turn(request, route, record)
        try:
            if not request.body.stream:
                return await self._whole(turn, on_queued)
            sink = ChatSink(include_usage=_wants_usage(request.body))
            run = await self._runs.open(turn, sink, on_queued)
        except RunRefused as refused:
            return refused.answer
        self._under_way[sink.stream] = run
        watcher = endpoints.for_path(CHAT).watcher(request.body)
        return replace(run.answer, request=request, body=None, events=True, stream=sink.stream, watcher=watcher)

    def close(self, answer: Answer, record: RequestRecord) -> None:
        """The answer is over, one way or the other: what still runs is stopped, and the record is finished."""
        run = self._under_way.pop(answer.stream, None)
        if run is not None:
            run.close()

    async def _whole(self, turn: ToolTurn, on_queued: OnQueued | None) -> Answer:
        collected, first = await self._runs.collect(turn, on_queued)
        headers = [header for header in first.headers if header[0].lower() != "content-type"]
        body = merged(collected.completions, cut=collected.cut)
        return replace(first, request=turn.request, headers=(*headers, _JSON), body=body)


def _turn(request: ProxyRequest, route: Route, record: RequestRecord) -> ToolTurn:
    """Raises `InvalidRequest` where there are no tools to run, or no way to."""
    if not route.tools:
        message = f"Model {route.name} has no tools here: name some under its `tools` in routes.yaml, or send your own."
        raise InvalidRequest(message, param="tools")
    base = json.loads(request.body.raw)
    if base.get("n") not in (None, 1):
        raise InvalidRequest("With tools that the gateway runs there is one choice: leave `n` out.", param="n")
    if not isinstance(base.get("messages"), list):
        raise InvalidRequest("`messages` is not a list: send one.", param="messages")
    del base["tools"]
    return ToolTurn(request, route, record, base)


def _wants_usage(body: RequestBody) -> bool:
    options = body.value("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
