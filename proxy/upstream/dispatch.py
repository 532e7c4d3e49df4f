"""From a request and its route to an open answer: which replica is asked, and who after it when that fails before the
commit point; and who goes on with an answer that broke off after it. What is tried when is `routing/retry`'s table; one
try is an attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any

from proxy.protocols import endpoints
from proxy.protocols.account import Account
from proxy.request import ProxyRequest
from proxy.routing.availability import unavailable
from proxy.routing.facts import RequestFacts
from proxy.routing.failure_kind import FailureKind
from proxy.routing.replica import Replica
from proxy.routing.retry import Attempts, Next
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.attempt import Asked, Attempting, Failed, Tried
from proxy.upstream.hedge import Race, hedged
from proxy.upstream.pool import Pool
from proxy.upstream.waiting import Waiting

logger = logging.getLogger("penstock")


class Dispatch:
    """Opens exchanges. `on_malformed(route)` is told of each event that was dropped. `budget`: for tries on top of the
    first, of this and of whoever else has it."""

    def __init__(
        self,
        pool: Pool,
        *,
        max_event_bytes: int,
        on_malformed: Callable[[Route], None],
        budget: RetryBudget | None = None,
        rng: Random | None = None,
    ) -> None:
        self.on_malformed = on_malformed
        self._attempting = Attempting(pool, max_event_bytes, on_malformed)
        self._budget = budget or RetryBudget()
        self._rng = rng or Random()
        self._now = asyncio.get_running_loop().time

    def open(
        self,
        request: ProxyRequest,
        route: Route,
        stream: Stream,
        record: RequestRecord,
        *,
        told: Account | None = None,
        is_first: bool = True,
    ) -> Coroutine[Any, Any, Tried]:
        """The answer of one of the route's replicas at its commit point; what follows flows into `stream`. If all that
        may be tried fails: the last failure.

        `told`: what its client has of it already. `is_first`: no other route was asked before, so this is a request
        more, of which tries again are a part.

        Raises `NoReplica` where none may be asked, or what the stream was interrupted with. Cancelling closes the
        connection.
        """
        if is_first:
            self._budget.request(self._now())
        attempts = Attempts(route.retry, self._budget, self._rng)
        asked = Asked(request, route, endpoints.for_path(request.path), stream, record, attempts, told)
        return self._first_answer(asked, route.hedge_s if is_first and request.body.stream else None)

    async def open_again(self, asked: Asked, broken: Replica, kind: FailureKind) -> Tried | None:
        """As `open`, for the rest of an answer of which `asked.told` has the beginning: `broken` failed in the middle
        of it. It is one of the request's tries. None where no other may be made at this route.

        Raises as `open` does.
        """
        step = asked.attempts.after(kind, broken, asked.route.replicas, self._now())
        if step.next is not Next.TRY:
            return None
        if step.wait_s:
            await Waiting(asked.stream).last(step.wait_s)
        return await self._first_answer(asked, None)

    async def _first_answer(self, asked: Asked, hedge_s: float | None) -> Tried:
        """Ask one replica after the other: the first answer, or the last failure."""
        route, attempts = asked.route, asked.attempts
        facts = RequestFacts(asked.request, asked.record.key)
        tried: Tried | None = None
        while candidates := attempts.candidates(route.replicas, self._now()):
            replica = route.balancer.pick(candidates, facts, self._now())
            if hedge_s is None:
                tried = await self._ask(asked, replica)
            else:
                race = Race(asked.stream)
                tried = await self._ask_two(asked, race, replica, facts, hedge_s)
                hedge_s = None if race.hedged else hedge_s
            if tried.kind is None:
                return tried
            step = attempts.after(tried.kind, tried.replica, route.replicas, self._now(), retry_after_s=tried.wait_s)
            if step.next is not Next.TRY:
                return tried
            if step.wait_s:
                asked.record.phase = Phase.CONNECT
                await Waiting(asked.stream).last(step.wait_s)
        if tried is None:
            raise unavailable(route.name, route.replicas, self._now())
        return tried

    async def _ask_two(self, asked: Asked, race: Race, replica: Replica, facts: RequestFacts, hedge_s: float) -> Tried:
        """What this replica says, or another one beside it when it has said nothing for `hedge_s` seconds."""
        route, attempts = asked.route, asked.attempts
        racing = replace(asked, race=race)

        def second() -> Coroutine[Any, Any, Tried] | None:
            others = () if race.won else attempts.beside(replica, route.replicas, self._now())
            if not others:
                return None
            race.hedged = True
            return self._ask(racing, route.balancer.pick(others, facts, self._now()))

        def failed(tried: Tried) -> None:
            assert tried.kind is not None
            attempts.failed(tried.kind, tried.replica)

        try:
            tried = await hedged(self._ask(racing, replica), second, hedge_s, failed)
        except BaseException:
            race.close()  # one may have won that nobody has heard of yet
            raise
        asked.record.replica = tried.replica.index
        if tried.kind is None:
            asked.record.attempt_goes_on(route.name, tried.replica.index)
        return tried

    async def _ask(self, asked: Asked, replica: Replica) -> Tried:
        """What this replica says."""
        attempt = self._attempting.attempt
        asks_for_usage = replica.takes_stream_options and asked.protocol.asks_for_usage(asked.request.body)
        fresh = False
        while True:
            tried = await attempt(asked, replica, fresh=fresh, asks_for_usage=asks_for_usage)
            if asks_for_usage and _refuses_stream_options(tried):
                tried = await attempt(asked, replica, fresh=fresh, asks_for_usage=False)
                _learn(asked.route, replica, tried)
            if tried.kind is None or not asked.attempts.wants_fresh(tried.kind, replica):
                return tried
            fresh = True


def _refuses_stream_options(tried: Tried) -> bool:
    """Whether what we put into the request may be what is wrong with it. Its name may also stand in a refusal that
    repeats the whole body: trying without it tells."""
    if tried.kind is None or isinstance(tried, Failed):
        return False
    return tried.opening.status in (400, 422) and b"stream_options" in (tried.opening.body or b"")


def _learn(route: Route, replica: Replica, tried: Tried) -> None:
    """Without `stream_options` it came to this."""
    if tried.kind is None:
        replica.takes_stream_options = False
        logger.info('route "%s": replica %d takes no `stream_options`', route.name, replica.index)
