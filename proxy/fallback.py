"""From a route to its fallbacks: which other route is asked when everything at one fails before the commit point.

A request is admitted at each of them first. What is tried within a route is dispatch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.admission import OnQueued, Stay, refused
from proxy.errors import NoReplica
from proxy.request import ProxyRequest
from proxy.routing.retry import fallback_routes
from proxy.routing.table import Route, RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.attempt import Failed, Opened
from proxy.upstream.dispatch import Dispatch

Tried = Opened | Failed | NoReplica


@dataclass(frozen=True, slots=True)
class Asking:
    """One exchange that is asked for: the request, its hold on limits, where its answer flows and what is noted of it.

    `table`: where fallbacks are looked up.
    """

    request: ProxyRequest
    table: RoutingTable
    stay: Stay
    stream: Stream
    record: RequestRecord
    on_queued: OnQueued | None = None


async def open_with_fallbacks(asking: Asking, route: Route, dispatch: Dispatch) -> Opened:
    """The answer of `route`, or of the first of its fallbacks that has a better one, at its commit point.

    Where all fail: the last failure of a replica, as an answer with its `kind`, or raised. Raises `GatewayError`.
    """
    ticket = asking.stay.enter(route)
    if ticket is not None and (refusal := await asking.stay.wait(ticket, asking.stream, asking.on_queued)) is not None:
        raise refused(refusal)
    tried: Tried
    try:
        tried = await dispatch.open(asking.request, route, asking.stream, asking.record)
    except NoReplica as error:
        tried = error
    if isinstance(tried, Opened) and tried.kind is None:
        return tried
    return _answer(await _fall_back(asking, route, dispatch, tried))


async def _fall_back(asking: Asking, route: Route, dispatch: Dispatch, tried: Tried) -> Tried:
    """What came of the fallbacks of `route`, which has failed: `tried` itself, where none is asked."""
    passed = [route.name]
    while (other := _next(route, tried, passed, asking.table)) is not None:
        passed.append(other.name)
        ticket = asking.stay.enter(other)
        if ticket is not None and await asking.stay.wait(ticket, asking.stream, asking.on_queued) is not None:
            continue
        try:
            tried = await dispatch.open(asking.request, other, asking.stream, asking.record)
        except NoReplica:
            continue
    return tried


def _next(route: Route, tried: Tried, passed: Sequence[str], table: RoutingTable) -> Route | None:
    """The fallback to ask after this, if it is a failure: one that is ready, and speaks as the route does."""
    kind = None if isinstance(tried, NoReplica) else tried.kind
    if isinstance(tried, Opened) and kind is None:
        return None
    for name in fallback_routes(route.fallbacks, kind):
        other = table.find(name, None)
        if name not in passed and other.upstream_model and other.replicas and other.protocol == route.protocol:
            return other
    return None


def _answer(tried: Tried) -> Opened:
    """What the client is told of the last failure, where it is one."""
    match tried:
        case Opened():
            return tried
        case Failed():
            raise tried.error
        case NoReplica():
            raise tried
