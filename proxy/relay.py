"""The line every request takes, whatever it came over: request → route → exchange → stream.

Both sides meet here and nowhere else: `downstream` asks for an answer, `upstream` gives one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from proxy.access.keys import Key
from proxy.errors import GatewayError, Unavailable
from proxy.protocols import endpoints
from proxy.protocols.failure import Failure
from proxy.protocols.protocol import StreamProtocol, Watcher
from proxy.request import ProxyRequest
from proxy.routing.table import Route, RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import EndState, Phase, RequestRecord, end_state_of
from proxy.telemetry.usage import Usage, usage_of_answer, usage_of_stream
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.exchange import Opening

Headers = tuple[tuple[str, str], ...]


@dataclass(slots=True, eq=False)
class Answer:
    """An answer at its commit point.

    `body` is the whole of it, or None where it flows through `stream`: as server-sent events (`events`), or as bytes
    of whatever `headers` say. The holder's duty: attach a listener to the stream, and `Relay.close` the answer.
    """

    request: ProxyRequest
    status: int
    headers: Headers
    body: bytes | None
    events: bool
    stream: Stream
    watcher: Watcher
    failure: Failure | None
    """An event or a body under status 200 said that the request failed; `body` is empty, `status` the failure's."""
    on_malformed: Callable[[], None]
    """To be told of each event that is dropped on the way to the client."""


class Relay:
    """Opens answers, and knows which are under way."""

    def __init__(self, table: RoutingTable, dispatch: Dispatch) -> None:
        self.table = table
        self.draining = False
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[Stream, str] = {}  # and their routes' names
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
        self._under_way[stream] = route.name
        try:
            opening: Opening = await self._dispatch.open(request, route, stream, watcher, record)
        except BaseException:
            self._leave(stream)
            raise
        record.phase = Phase.STREAM if opening.events else Phase.RESPONSE
        return Answer(
            request,
            opening.status,
            opening.headers,
            opening.body,
            opening.events,
            stream,
            watcher,
            opening.failure,
            partial(self._dispatch.on_malformed, route),
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
        record.tokens_in, record.tokens_out, record.tokens_estimated = _usage(answer)
        record.end_attempt(_outcome(answer))
        if answer.body is None and stream.last_read_at is not None:
            record.reads = stream.batches
            record.mark_last_event(stream.last_read_at)
        record.finish(EndState.CLIENT_CLOSED if left else _end_state(answer), self._loop.time())

    def in_flight(self) -> Counter[str]:
        """How many answers are under way, by the route's name; none where nothing is."""
        return Counter(self._under_way.values())

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
        self._under_way.pop(stream, None)
        if self.draining and not self._under_way:
            self._all_done.set()


def draining() -> Unavailable:
    return Unavailable("The gateway is shutting down; send the request again.", code="draining", retry_after_s=1)


def _usage(answer: Answer) -> Usage:
    """The tokens of an answer that came, or of as much of it as did."""
    if answer.body is not None:
        return usage_of_answer(answer.body)
    if not answer.events:
        return Usage()
    protocol = endpoints.for_path(answer.request.path)
    return usage_of_stream(protocol, answer.watcher, answer.stream.events, answer.request.body)


def _outcome(answer: Answer) -> Outcome:
    """What came of the attempt that gave this answer, as far as it was wanted."""
    if answer.stream.error is not None:
        return outcome_of(answer.stream.error, connected=True)
    if answer.failure is not None or answer.watcher.failure is not None:
        return Outcome.ERROR_EVENT
    return Outcome.STATUS if answer.status >= 400 else Outcome.OK


def _end_state(answer: Answer) -> EndState:
    """How an answer that was given to its end has ended."""
    error: GatewayError | None = answer.stream.error if answer.body is None else None
    if error is not None:
        return EndState.DRAINED if error.code == "draining" else end_state_of(error)
    if answer.failure is not None or answer.watcher.failure is not None:
        return EndState.UPSTREAM_ERROR
    return end_state_of(answer.status)
