"""From a request and its route to an open answer: which replica is asked, and who after it when that fails before the
commit point. What is tried when is `routing/retry`'s table; one try is an attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from proxy.protocols import endpoints
from proxy.request import ProxyRequest
from proxy.routing.availability import unavailable
from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica
from proxy.routing.retry import Attempts, Next, Step
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.attempt import Asked, Attempting, Failed, Opened
from proxy.upstream.pool import Pool
from proxy.upstream.waiting import Waiting

WELL = Step(Next.PASS_ON)

logger = logging.getLogger("penstock")


class Dispatch:
    """Opens exchanges. `on_malformed(route)` is told of each event that was dropped."""

    def __init__(
        self,
        pool: Pool,
        *,
        max_event_bytes: int,
        on_malformed: Callable[[Route], None],
        rng: Random | None = None,
    ) -> None:
        self.on_malformed = on_malformed
        self._attempting = Attempting(pool, max_event_bytes, on_malformed)
        self._budget = RetryBudget()
        self._rng = rng or Random()
        self._now = asyncio.get_running_loop().time

    async def open(self, request: ProxyRequest, route: Route, stream: Stream, record: RequestRecord) -> Opened | Failed:
        """The answer of one of the route's replicas at its commit point; what follows flows into `stream`. If all that
        may be tried fails: the last failure.

        Raises `NoReplica` where none may be asked, or what the stream was interrupted with. Cancelling closes the
        connection.
        """
        self._budget.request(self._now())
        asked = Asked(request, route, endpoints.for_path(request.path), stream, record)
        facts = RequestFacts(request, record.key)
        attempts = Attempts(route.retry, self._budget, self._rng)
        tried: Opened | Failed | None = None
        while candidates := attempts.candidates(route.replicas, self._now()):
            replica = route.balancer.pick(candidates, facts, self._now())
            tried, step = await self._ask(asked, replica, attempts)
            if step.next is not Next.TRY:
                return tried
            if step.wait_s:
                record.phase = Phase.CONNECT
                await Waiting(stream).last(step.wait_s)
        if tried is None:
            raise unavailable(route.name, route.replicas, self._now())
        return tried

    async def _ask(self, asked: Asked, replica: Replica, attempts: Attempts) -> tuple[Opened | Failed, Step]:
        """What this replica says, and what to do about it."""
        attempt = self._attempting.attempt
        asks_for_usage = replica.takes_stream_options and asked.protocol.asks_for_usage(asked.request.body)
        fresh = False
        while True:
            tried = await attempt(asked, replica, fresh=fresh, asks_for_usage=asks_for_usage)
            if asks_for_usage and _refuses_stream_options(tried):
                tried = await attempt(asked, replica, fresh=fresh, asks_for_usage=False)
                _learn(asked.route, replica, tried)
            if tried.kind is None:
                return tried, WELL
            step = attempts.after(tried.kind, replica, asked.route.replicas, self._now(), retry_after_s=tried.wait_s)
            if step.next is not Next.FRESH:
                return tried, step
            fresh = True


def _refuses_stream_options(tried: Opened | Failed) -> bool:
    """Whether what we put into the request may be what is wrong with it. Its name may also stand in a refusal that
    repeats the whole body: trying without it tells."""
    if tried.kind is None or isinstance(tried, Failed):
        return False
    return tried.opening.status in (400, 422) and b"stream_options" in (tried.opening.body or b"")


def _learn(route: Route, replica: Replica, tried: Opened | Failed) -> None:
    """Without `stream_options` it came to this."""
    if tried.kind is None:
        replica.takes_stream_options = False
        logger.info('route "%s": replica %d takes no `stream_options`', route.name, replica.index)
