"""The relayed endpoints' own lane: from the connection to the handler, past aiohttp's router and middlewares.

It is only shorter: the edge and the handler are the application's, which answers whatever the lane does not take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.access.origins import OriginPolicy
from proxy.downstream.cors import fill_in
from proxy.downstream.edge import Handler, add_request_id
from proxy.downstream.http import SERVABLE_PATH
from proxy.downstream.tickets import TICKETS_PATH


class RelayLane:
    """Takes each `POST` of a path that may be relayed, and gives it to `relay` within `edge`.

    `current_policy` is asked for each answer that aiohttp writes, as the application's hooks do.
    """

    def __init__(self, edge: Middleware, relay: Handler, current_policy: Callable[[], OriginPolicy]) -> None:
        self._edge = edge
        self._relay = relay
        self._current_policy = current_policy

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse] | None:
        """The answer to be awaited; None for a request that is not for this lane."""
        assert isinstance(request, web.Request)
        path = request.raw_path.partition("?")[0]
        if request.method != "POST" or path == TICKETS_PATH or SERVABLE_PATH.fullmatch(path) is None:
            return None
        return self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        response = await self._edge(request, self._relay)
        if isinstance(response, web.Response):  # an error; what was relayed has these headers already
            fill_in(self._current_policy(), request, response)
            await add_request_id(request, response)
        return response
