"""From a route to its fallbacks: which other route is asked when everything at one fails before the commit point.

A request is admitted at each of them first. What is tried within a route is dispatch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.admission import OnQueued, Stay, refused
from proxy.errors import NoReplica
from proxy.protocols.account import Account
from proxy.request import ProxyRequest
from proxy.routing.failure_kind import FailureKind
from proxy.routing.retry import fallback_routes
from proxy.routing.table import Route, RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.attempt import Failed, Opened, Tried
from proxy.upstream.dispatch import Dispatch


@dataclass(frozen=True, slots=True)
class Asking:
    """One exchange that is asked for: the request, its hold on limits, where its answer flows and what is noted of it.

    `table`: where fallbacks are looked up. `told`: what the client has of the answer already, where that broke off.
    """

    request: ProxyRequest
    table: RoutingTable
    stay: Stay
    stream: Stream
    record: RequestRecord
    on_queued: OnQueued | None = None
    told: Account | None = None


async def open_with_fallbacks(asking: Asking, route: Route, dispatch: Dispatch) -> Opened:
    """The answer of `route`, or of the first of its fallbacks that has a better one, at its commit point.

    Where all fail: the last failure of a replica, as an answer with its `kind`, or raised. Raises `GatewayError`.
    """
    ticket = asking.stay.enter(route)
    if ticket is not None and (refusal := await asking.stay.wait(ticket, asking.stream, asking.on_queued)) is not None:
        raise refused(refusal)
    tried: Tried | NoReplica
    try:
        tried = await dispatch.open(asking.request, route, asking.stream, asking.record)
    except NoReplica as error:
        tried = error
    kind = None
    if not isinstance(tried, NoReplica):
        if tried.kind is None:
            return _answer(tried)
        kind = tried.kind
    return _answer(await fall_back(asking, route, dispatch, kind, [route.name]) or tried)


async def fall_back(
    asking: Asking, route: Route, dispatch: Dispatch, kind: FailureKind | None, passed: list[str]
) -> Tried | None:
    """What came of the fallbacks of `route`, which has failed in this way (None: no replica could be asked); None,
    where none of them was. `passed`: the routes that were asked, of which none is asked again."""
    tried: Tried | None = None
    while (other := _next(route, kind, passed, asking.table)) is not None:
        passed.append(other.name)
        ticket = asking.stay.enter(other)
        if ticket is not None and await asking.stay.wait(ticket, asking.stream, asking.on_queued) is not None:
            continue
        try:
            tried = await dispatch.open(
                asking.request, other, asking.stream, asking.record, told=asking.told, is_first=False
            )
        except NoReplica:
            continue
        if tried.kind is None:
            return tried
        kind = tried.kind
    return tried


def _next(route: Route, kind: FailureKind | None, passed: Sequence[str], table: RoutingTable) -> Route | None:
    """The fallback to ask after this failure: one that is ready, and speaks as the route does."""
    for name in fallback_routes(route.fallbacks, kind):
        other = table.find(name, None)
        if name not in passed and other.upstream_model and other.replicas and other.protocol == route.protocol:
            return other
    return None


def _answer(tried: Tried | NoReplica) -> Opened:
    """What the client is told of the last failure, where it is one."""
    match tried:
        case Opened():
            return tried
        case Failed():
            raise tried.error
        case NoReplica():
            raise tried
