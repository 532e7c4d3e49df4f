"""The line of a Realtime session: request → route → admission → a model server that agrees to it.

Where `relay` gives an answer, this gives a socket. Both are under way for a drain, and count against the same limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proxy.access.keys import Key
from proxy.access.refusal import Refusal
from proxy.admission import Stay, refused
from proxy.errors import GatewayError, NoReplica, UpstreamError
from proxy.relay import Relay
from proxy.request import ProxyRequest
from proxy.routing.retry import fallback_routes
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.dialler import Dialler, kind_of
from proxy.upstream.websocket import UpstreamSocket
from proxy.wire.upgrade import UpgradeRefused

Failure = UpgradeRefused | UpstreamError | NoReplica


class Interruptible(Protocol):
    """Who is told that a drain's time is over."""

    def interrupt(self, error: GatewayError) -> None: ...


class Line:
    """One session, from its admission to its end, in the eyes of a drain. Who runs it becomes its `session`.

    The owner's duty: `Realtime.end`, and to close the `socket`.
    """

    def __init__(self, stay: Stay) -> None:
        self.stay = stay
        self.waiting = Stream()
        """Flows nowhere: what waits for a place does so on its behalf."""
        self.session: Interruptible = self.waiting
        self._socket: UpstreamSocket | None = None

    @property
    def socket(self) -> UpstreamSocket:
        """To the model server that has agreed."""
        assert self._socket is not None
        return self._socket

    def reached(self, socket: UpstreamSocket) -> None:
        self._socket = socket

    def interrupt(self, error: GatewayError) -> None:
        self.session.interrupt(error)


class Realtime:
    """Opens lines."""

    def __init__(self, relay: Relay, dialler: Dialler) -> None:
        self._relay = relay
        self._dialler = dialler

    async def open(self, request: ProxyRequest, offered: Sequence[str], key: Key | None, record: RequestRecord) -> Line:
        """A line to the model server that the request means. `offered` are the client's subprotocols.

        Raises `GatewayError`, or `UpgradeRefused` with a model server's answer. The caller's duty: `end`.
        """
        route = self._relay.route(request, key, record)
        line = Line(self._relay.take_on(request, record))
        try:
            line.reached(await self._dial(line, route, request, offered, record))
        except BaseException:
            self.end(line)
            raise
        return line

    def end(self, line: Line) -> None:
        """The session is over. Once only: later calls change nothing."""
        line.stay.end(0)  # nobody knows what it has cost
        self._relay.leave(line)

    async def _dial(
        self, line: Line, route: Route, request: ProxyRequest, offered: Sequence[str], record: RequestRecord
    ) -> UpstreamSocket:
        """A socket to one of the route's replicas, or of its fallbacks'. Where all fail: the last failure."""
        passed: list[str] = []
        failure: Failure | None = None
        at: Route | None = route
        while at is not None:
            passed.append(at.name)
            refusal = await self._take_place(line, at)
            if refusal is None:
                try:
                    return await self._dialler.dial(request, offered, at, record)
                except NoReplica as error:
                    failure = failure or error
                except (UpgradeRefused, UpstreamError) as error:
                    failure = error
            elif failure is None:
                raise refused(refusal)
            assert failure is not None
            at = self._next(route, failure, passed)
        assert failure is not None
        raise failure

    async def _take_place(self, line: Line, route: Route) -> Refusal | None:
        """Wait for a place at the route, and give up any other; or why there is none."""
        self._relay.enter(line, route)
        ticket = line.stay.enter(route)
        return None if ticket is None else await line.stay.wait(ticket, line.waiting)

    def _next(self, route: Route, failure: Failure, passed: Sequence[str]) -> Route | None:
        """The fallback to ask after this failure: one that is ready, and speaks as the route does."""
        kind = None if isinstance(failure, NoReplica) else kind_of(failure)
        for name in fallback_routes(route.fallbacks, kind):
            other = route.table.find(name, None)
            if name not in passed and other.upstream_model and other.replicas and other.protocol == route.protocol:
                return other
        return None
