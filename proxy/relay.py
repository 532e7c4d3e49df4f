"""The line every request takes, whatever it came over: request → route → exchange → stream.

Both sides meet here and nowhere else: `downstream` asks for an answer, `upstream` gives one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from proxy.access.keys import Key
from proxy.errors import GatewayError, Unavailable
from proxy.protocols import endpoints
from proxy.protocols.failure import Failure
from proxy.protocols.protocol import StreamProtocol, Watcher
from proxy.request import ProxyRequest
from proxy.routing.table import Route, RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.record import EndState, RequestRecord, end_state_of
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.exchange import Opening

Headers = tuple[tuple[str, str], ...]


@dataclass(slots=True, eq=False)
class Answer:
    """An answer at its commit point.

    `body` is the whole of it, or None where it flows through `stream`: as server-sent events (`events`), or as bytes
    of whatever `headers` say. The holder's duty: attach a listener to the stream, and `Relay.close` the answer.
    """

    status: int
    headers: Headers
    body: bytes | None
    events: bool
    stream: Stream
    watcher: Watcher
    failure: Failure | None
    """An event or a body under status 200 said that the request failed; `body` is empty, `status` the failure's."""


class Relay:
    """Opens answers, and knows which are under way."""

    def __init__(self, table: RoutingTable, dispatch: Dispatch) -> None:
        self.table = table
        self.draining = False
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._under_way: set[Stream] = set()
        self._all_done = asyncio.Event()

    def route(self, request: ProxyRequest, key: Key | None, record: RequestRecord) -> Route:
        """The request's route, ready to be used by the holder of `key` (None: nobody is asked for one).

        Raises `GatewayError`.
        """
        if self.draining:
            raise draining()
        route = self.table.find(request.body.model, key)
        record.route = route.name
        record.model = request.body.model
        route.require_ready()
        return route

    async def open(self, request: ProxyRequest, route: Route, record: RequestRecord) -> Answer:
        """The answer at its commit point. Raises `GatewayError`; cancelling closes the upstream connection.

        The caller's duty: `close` the answer when it has been given, or when nobody wants it any more.
        """
        protocol: StreamProtocol = endpoints.for_path(request.path)
        watcher = protocol.watcher(request.body)
        stream = Stream()
        self._under_way.add(stream)
        try:
            opening: Opening = await self._dispatch.open(request, route, stream, watcher, record)
        except BaseException:
            self._leave(stream)
            raise
        return Answer(
            opening.status,
            opening.headers,
            opening.body,
            opening.events,
            stream,
            watcher,
            opening.failure,
        )

    def close(self, answer: Answer, record: RequestRecord) -> None:
        """The answer is over, one way or the other: what still runs upstream is stopped, and the record is finished."""
        stream = answer.stream
        left = answer.body is None and not stream.ended
        stream.cancel()
        self._leave(stream)
        record.events = stream.events
        if stream.first_content_at is not None:
            record.mark_first_token(stream.first_content_at)
        record.tokens_in = answer.watcher.tokens_in
        record.tokens_out = answer.watcher.tokens_out
        record.finish(EndState.CLIENT_CLOSED if left else _end_state(answer), self._loop.time())

    async def drain(self, within_s: float | None) -> None:
        """Take nothing new, let what is under way finish for `within_s` seconds, then end it with an error."""
        self.draining = True
        if not self._under_way:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._all_done.wait()
        except TimeoutError:
            for stream in list(self._under_way):
                stream.interrupt(draining())

    def _leave(self, stream: Stream) -> None:
        self._under_way.discard(stream)
        if self.draining and not self._under_way:
            self._all_done.set()


def draining() -> Unavailable:
    return Unavailable("The gateway is shutting down; send the request again.", code="draining", retry_after_s=1)


def _end_state(answer: Answer) -> EndState:
    """How an answer that was given to its end has ended."""
    error: GatewayError | None = answer.stream.error if answer.body is None else None
    if error is not None:
        return EndState.DRAINED if error.code == "draining" else end_state_of(error)
    if answer.failure is not None or answer.watcher.failure is not None:
        return EndState.UPSTREAM_ERROR
    return end_state_of(answer.status)
