"""The line every request takes, whatever it came over: request → route → admission → exchange → stream.

Both sides meet here and nowhere else: `downstream` asks for an answer, `upstream` gives one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from proxy.access.keys import Key
from proxy.admission import Admission, OnQueued, Stay
from proxy.continuation import Continuation
from proxy.errors import GatewayError, Unavailable
from proxy.fallback import Asking, open_with_fallbacks
from proxy.protocols import endpoints
from proxy.protocols.failure import Failure
from proxy.protocols.protocol import Watcher
from proxy.request import ProxyRequest
from proxy.routing.table import Route, RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import EndState, Phase, RequestRecord, end_state_of
from proxy.telemetry.usage import Usage, usage_of_answer, usage_of_stream
from proxy.upstream.dispatch import Dispatch

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
    stay: Stay | None = None
    """What it holds of what is limited."""
    continuation: Continuation | None = None
    """Has it go on elsewhere where it breaks off."""


class UnderWay(Protocol):
    """A request that is being served: a drain waits for its end, and ends it when it takes too long."""

    def interrupt(self, error: GatewayError) -> None: ...


class Relay:
    """Opens answers, and knows which are under way."""

    def __init__(self, table: RoutingTable, dispatch: Dispatch, admission: Admission | None = None) -> None:
        self.table = table
        self._admission = admission or Admission()
        self.draining = False
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[UnderWay, str] = {}  # and their routes' names
        self._all_done = asyncio.Event()

    def route(self, request: ProxyRequest, key: Key | None, record: RequestRecord) -> Route:
        """The request's route, ready to be used by the holder of `key` (None: nobody is asked for one).

        Raises `GatewayError`.
        """
        if self.draining:
            raise draining()
        table = self.table
        route = table.find(request.body.model, table.holder(key))
        record.route = route.name
        record.model = request.body.model
        route.require_ready()
        return route

    async def open(
        self, request: ProxyRequest, route: Route, record: RequestRecord, on_queued: OnQueued | None = None
    ) -> Answer:
        """The answer at its commit point. Raises `GatewayError`; cancelling closes the upstream connection.

        The caller's duty: `close` the answer when it has been given, or when nobody wants it any more.
        """
        stay = self.take_on(request, record)
        stream = Stream()
        self.enter(stream, route)
        try:
            answer = await self._exchange(request, route, stream, record, stay, on_queued)
        except BaseException as error:
            left = isinstance(error, asyncio.CancelledError) and record.phase not in (Phase.QUEUE, Phase.CONNECT)
            stay.end(None if left else 0)  # a client that left: a replica has read its prompt
            self.leave(stream)
            raise
        answer.stay = stay
        return answer

    def close(self, answer: Answer, record: RequestRecord) -> None:
        """The answer is over, one way or the other: what still runs upstream is stopped, and the record is finished."""
        told = answer.watcher.failure is not None  # the upstream's error event: a client may leave after it
        left = answer.body is None and not answer.stream.ended and not told
        self.close_round(answer, record)
        self.leave(answer.stream)
        record.finish(EndState.CLIENT_CLOSED if left else _end_state(answer), self._loop.time())

    # ---- requests of several exchanges ----

    def take_on(self, request: ProxyRequest, record: RequestRecord) -> Stay:
        """Its hold on what is limited; no place at a route yet. The caller's duty: `Stay.end`.

        Raises `TooManyRequests`.
        """
        return self._admission.begin(request.body, record)

    def enter(self, request: UnderWay, route: Route) -> None:
        """`request` is under way, also while none of its exchanges is. The caller's duty: `leave`."""
        self._under_way[request] = route.name

    def leave(self, request: UnderWay) -> None:
        self._under_way.pop(request, None)
        if self.draining and not self._under_way:
            self._all_done.set()

    async def open_round(
        self,
        request: ProxyRequest,
        route: Route,
        record: RequestRecord,
        stay: Stay,
        on_queued: OnQueued | None = None,
    ) -> Answer:
        """As `open`, for one exchange of a request that has entered, and keeps its `stay` from the first to the last.
        The caller's duty: `close_round`."""
        return await self._exchange(request, route, Stream(), record, stay, on_queued)

    def close_round(self, answer: Answer, record: RequestRecord) -> None:
        """As `close`; the record gets this exchange's figures, and goes on."""
        stream = answer.stream
        stream.cancel()
        record.events = stream.events
        if stream.first_content_at is not None:
            record.mark_first_token(stream.first_content_at)
        usage = record.tokens_in, record.tokens_out, record.tokens_estimated = _usage(answer)
        if answer.stay is not None:
            answer.stay.end((usage.tokens_in or 0) + (usage.tokens_out or 0))
        record.end_attempt(_outcome(answer))
        if answer.continuation is not None:
            answer.continuation.tell(record, _outcome(answer))
        if answer.body is None and stream.last_read_at is not None:
            record.reads = stream.batches
            record.mark_last_event(stream.last_read_at)

    async def _exchange(
        self,
        request: ProxyRequest,
        route: Route,
        stream: Stream,
        record: RequestRecord,
        stay: Stay,
        on_queued: OnQueued | None = None,
    ) -> Answer:
        continuation = self._continuation(request, stream) if route.on_break == "continue" else None
        upstream = stream if continuation is None else continuation.upstream
        asking = Asking(request, route.table, stay, upstream, record, on_queued)
        opened = await open_with_fallbacks(asking, route, self._dispatch)
        if opened.route is not route:
            self._move(stream, opened.route)
        if continuation is not None:
            continuation.begin(opened, asking, route)
        opening = opened.opening
        record.phase = Phase.STREAM if opening.events else Phase.RESPONSE
        return Answer(
            request,
            opening.status,
            opening.headers,
            opening.body,
            opening.events,
            stream,
            opened.watcher,
            opening.failure,
            partial(self._dispatch.on_malformed, opened.route),
            continuation=continuation,
        )

    def _continuation(self, request: ProxyRequest, stream: Stream) -> Continuation | None:
        """What `stream` flows through, if it is one that could go on elsewhere."""
        account = endpoints.account_for(request.path, request.body)
        return None if account is None else Continuation(stream, account, self._dispatch, partial(self._move, stream))

    def _move(self, stream: Stream, route: Route) -> None:
        """It is another route that serves it."""
        if stream in self._under_way:
            self._under_way[stream] = route.name

    # ---- all of them ----

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
            for request in list(self._under_way):
                request.interrupt(draining())


def draining() -> Unavailable:
    return Unavailable("The gateway is shutting down; send the request again.", code="draining", retry_after_s=1)


def _usage(answer: Answer) -> Usage:
    """The tokens of an answer that came, or of as much of it as did."""
    if answer.body is not None:
        return usage_of_answer(answer.body)
    if not answer.events:
        return Usage()
    continued = answer.continuation.usage() if answer.continuation is not None else None
    if continued is not None:
        return continued
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
