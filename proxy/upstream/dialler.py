"""From a WebSocket's upgrade and its route to an open socket: which replica is asked, and who after it when that fails.

What is tried when is `routing/retry`'s table; one try is `upgrade`'s. What comes of a try, also long after, is told to
the replica's standing and to the request's record.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

from proxy.errors import UpstreamError
from proxy.request import ProxyRequest
from proxy.routing.availability import unavailable
from proxy.routing.facts import RequestFacts
from proxy.routing.failure_kind import FailureKind, kind_of_error, kind_of_status
from proxy.routing.replica import Origin, Replica
from proxy.routing.retry import Attempts, Next
from proxy.routing.retry_after import retry_after_s
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.standing import Visit
from proxy.routing.table import Route
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.upgrade import SocketLimits, upgrade
from proxy.upstream.websocket import UpstreamSocket
from proxy.wire.upgrade import UpgradeRefused

Failure = UpgradeRefused | UpstreamError


class Dialler:
    """Opens sockets, and knows which are open. `budget`: for tries on top of the first, of this and of whoever else has
    it. The owner's duty: `close`."""

    def __init__(self, limits: SocketLimits, budget: RetryBudget | None = None, rng: Random | None = None) -> None:
        self._limits = limits
        self._budget = budget or RetryBudget()
        self._rng = rng or Random()
        self._now = asyncio.get_running_loop().time
        self._tls: ssl.SSLContext | None = None
        self._open: set[UpstreamSocket] = set()

    async def dial(
        self, request: ProxyRequest, offered: Sequence[str], route: Route, record: RequestRecord
    ) -> UpstreamSocket:
        """A socket to one of the route's replicas, which has agreed to speak. `offered` are subprotocols.

        Raises, if all that may be tried fails, the last failure: `UpgradeRefused` or `UpstreamError`; or `Unavailable`
        where no replica may be asked. Cancelling closes the connection.
        """
        self._budget.request(self._now())
        facts = RequestFacts(request, record.key)
        attempts = Attempts(route.retry, self._budget, self._rng)
        failure: Failure | None = None
        while candidates := attempts.candidates(route.replicas, self._now()):
            replica = route.balancer.pick(candidates, facts, self._now())
            try:
                return await self._attempt(request, offered, route, replica, record)
            except (UpgradeRefused, UpstreamError) as error:
                failure = error
            wait_s = _asked_wait_s(failure)
            step = attempts.after(kind_of(failure), replica, route.replicas, self._now(), retry_after_s=wait_s)
            if step.next is not Next.TRY:
                break
            await asyncio.sleep(step.wait_s)
        raise failure or unavailable(route.name, route.replicas, self._now())

    async def close(self) -> None:
        """Drop every connection."""
        for socket in list(self._open):
            socket.abort()
        while self._open:  # each one's connection_lost comes in one of the next turns
            await asyncio.sleep(0)

    async def _attempt(
        self, request: ProxyRequest, offered: Sequence[str], route: Route, replica: Replica, record: RequestRecord
    ) -> UpstreamSocket:
        visit = Visit(replica.standing, self._now())  # before anything is awaited: a breaker may admit only one
        record.route = route.name
        record.begin_attempt(route.name, replica.index)
        try:
            socket = await self._upgrade(request, offered, route, replica, record, visit)
        except UpgradeRefused as refused:
            record.end_attempt(Outcome.STATUS)
            visit.failed(kind_of(refused), self._now(), _asked_wait_s(refused))
            visit.over()
            raise
        except UpstreamError as error:
            record.end_attempt(outcome_of(error, connected=record.phase is not Phase.CONNECT))
            visit.failed(kind_of(error), self._now())
            visit.over()
            raise error.about(f'route "{route.name}": replica {replica.index}') from error
        except BaseException:
            visit.left()
            visit.over()
            raise
        visit.content(self._now())
        record.phase = Phase.STREAM
        return socket

    async def _upgrade(
        self,
        request: ProxyRequest,
        offered: Sequence[str],
        route: Route,
        replica: Replica,
        record: RequestRecord,
        visit: Visit,
    ) -> UpstreamSocket:
        if replica.origin.scheme == "demo":
            raise _not_there(route)

        def connected() -> None:
            record.phase = Phase.HEADERS

        def over(error: UpstreamError | None) -> None:
            self._open.discard(socket)
            if error is not None:
                visit.failed(kind_of(error), self._now())
            visit.over()

        socket = await upgrade(
            request,
            offered,
            route,
            replica,
            self._limits,
            tls=self._tls_for(replica.origin),
            on_connected=connected,
            on_over=over,
        )
        self._open.add(socket)
        return socket

    def _tls_for(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.scheme != "https":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def kind_of(failure: Failure) -> FailureKind:
    """What kind of failure an attempt came to."""
    if isinstance(failure, UpgradeRefused):
        return kind_of_status(failure.status, failure.body) or FailureKind.INVALID
    return kind_of_error(failure) or FailureKind.INVALID


def _asked_wait_s(failure: Failure) -> float | None:
    """How long the replica asks to be left alone."""
    if not isinstance(failure, UpgradeRefused):
        return None
    said = next((value for name, value in failure.headers if name.lower() == "retry-after"), None)
    return retry_after_s(said, datetime.now(UTC))


def _not_there(route: Route) -> UpgradeRefused:
    """What the built-in model says: it has no voice."""
    told = f'The built-in model has no Realtime sessions: give route "{route.name}" a replica that has.'
    error = {"message": told, "type": "invalid_request_error", "param": "model", "code": "not_implemented"}
    body = json.dumps({"error": error}).encode()
    return UpgradeRefused(501, (("Content-Type", "application/json"),), body)
