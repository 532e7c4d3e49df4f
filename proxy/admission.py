"""Admission: whether a request is taken on now, after a wait, or not at all.

What its key may use is `access/limits`' to say, what its route takes on at once `routing/limiter`'s; here is who waits,
and who is woken up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from proxy.access.limits import Allowance, Allowances, KeyRules
from proxy.access.refusal import Refusal
from proxy.errors import GatewayError, TooManyRequests, Unavailable
from proxy.request import RequestBody
from proxy.routing.limiter import Limiter, Stage, Ticket
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import Phase, RequestRecord
from proxy.telemetry.usage import prompt_tokens
from proxy.upstream.waiting import Waiting

OnQueued = Callable[[int, float], None]
"""Told the place in the queue of a request that waits (1 is next), and about how many seconds that is: at once, and
whenever it has changed."""
TOLD_EVERY_S = 1.0


class Admission:
    """All limits of this process. `rules`: those of the keys that have any, by name."""

    def __init__(self, rules: Mapping[str, KeyRules] | None = None) -> None:
        self.now = asyncio.get_running_loop().time
        self._allowances = Allowances()
        self._waiting: dict[Ticket, Waiting] = {}
        self.change(rules or {})

    def change(self, rules: Mapping[str, KeyRules]) -> None:
        """From now on keys have these limits."""
        self._allowances.change(rules, self.now())

    def begin(self, body: RequestBody, record: RequestRecord) -> Stay:
        """Take on a request of `record.key`; it has no place at a route yet. The caller's duty: `Stay.end`.

        Raises `TooManyRequests` where its key may not send it.
        """
        allowance = self._allowances.of(record.key)
        if allowance is None:
            return Stay(self, record, None, 0)
        estimated_tokens = prompt_tokens(body)
        refusal = allowance.take(estimated_tokens, self.now())
        if refusal is not None:
            raise refused(refusal)
        return Stay(self, record, allowance, estimated_tokens)

    async def wait(self, ticket: Ticket, limiter: Limiter, stream: Stream, on_queued: OnQueued | None) -> None:
        """Until the ticket is admitted or refused. Raises what the stream was interrupted with."""
        waiting = self._waiting[ticket] = Waiting(stream)
        try:
            timeout_s = limiter.rules.queue_timeout_s
            if on_queued is None:
                await waiting.last(timeout_s)
            else:
                await self._wait_telling(waiting, ticket, limiter, on_queued)
            limiter.time_out(ticket, self.now())
        finally:
            del self._waiting[ticket]

    async def _wait_telling(self, waiting: Waiting, ticket: Ticket, limiter: Limiter, on_queued: OnQueued) -> None:
        timeout_s = limiter.rules.queue_timeout_s
        until = None if timeout_s is None else ticket.entered + timeout_s
        told = 0
        while ticket.stage is Stage.WAITING:
            now = self.now()
            if until is not None and until <= now:
                return
            position = limiter.position(ticket)
            if position != told:
                told = position
                on_queued(position, limiter.wait_s(ticket, now))
            await waiting.last(TOLD_EVERY_S if until is None else min(TOLD_EVERY_S, until - now))

    def wake(self, tickets: list[Ticket]) -> None:
        """Their stage has changed while they waited."""
        for ticket in tickets:
            waiting = self._waiting.get(ticket)
            if waiting is not None:
                waiting.release()


class Stay:
    """One exchange's hold on what is limited: its key's allowance, and a place at the route that it is at now.

    The owner's duty: `end`, always.
    """

    __slots__ = ("_admission", "_allowance", "_estimated_tokens", "_limiter", "_record", "_ticket")

    def __init__(
        self, admission: Admission, record: RequestRecord, allowance: Allowance | None, estimated_tokens: int
    ) -> None:
        self._admission = admission
        self._record = record
        self._allowance = allowance
        self._estimated_tokens = estimated_tokens
        self._limiter: Limiter | None = None
        self._ticket: Ticket | None = None

    def enter(self, route: Route) -> Ticket | None:
        """Ask for a place at `route`, giving up the one before; one that it has there is kept (a request of several
        exchanges). None: it has one; else its ticket, to `wait` with."""
        if self._ticket is not None:
            if self._limiter is route.limiter and self._ticket.stage is Stage.ADMITTED:
                return None
            self.leave()
        limiter = self._limiter = route.limiter
        ticket, displaced = limiter.enter(self._record.key or "", self._admission.now())
        self._ticket = ticket
        if displaced:
            self._admission.wake(displaced)
        return None if ticket.stage is Stage.ADMITTED else ticket

    async def wait(self, ticket: Ticket, stream: Stream, on_queued: OnQueued | None = None) -> Refusal | None:
        """Wait for the place; or why there is none. Raises what the stream was interrupted with."""
        record, limiter = self._record, self._limiter
        assert limiter is not None
        if ticket.stage is Stage.WAITING:
            record.phase = Phase.QUEUE
            try:
                await self._admission.wait(ticket, limiter, stream, on_queued)
            finally:
                record.add_queue_time(ticket.entered, self._admission.now())
        return ticket.refusal

    def leave(self) -> None:
        """Give up the place, whatever became of it: nothing is asked of its route any more."""
        if self._ticket is not None and self._limiter is not None:
            admitted = self._limiter.leave(self._ticket, self._admission.now())
            self._ticket = None
            if admitted:
                self._admission.wake(admitted)

    def end(self, used_tokens: int | None) -> None:
        """It is over, and has cost so many tokens, read and written (None: what was expected). Once only: later calls
        change nothing."""
        self.leave()
        allowance, self._allowance = self._allowance, None
        if allowance is not None:
            used = self._estimated_tokens if used_tokens is None else used_tokens
            allowance.give_back(self._estimated_tokens, used, self._admission.now())


def refused(refusal: Refusal) -> GatewayError:
    """The error that says so."""
    kind = TooManyRequests if refusal.status == TooManyRequests.status else Unavailable
    return kind(refusal.message, code=refusal.code, retry_after_s=refusal.retry_after_s)
