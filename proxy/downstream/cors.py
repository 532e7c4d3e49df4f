"""What pages of other origins are told: aiohttp-cors and the answers it does not see, both led by one `OriginPolicy`.

aiohttp-cors answers preflights and adds the headers on registered endpoints; a hook behind it fills them in on what
has no endpoint (404s). Refusing a request for its origin is left to the handlers and the WebSocket upgrade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import aiohttp_cors
from aiohttp import hdrs
from aiohttp_cors.urldispatcher_router_adapter import ResourcesUrlDispatcherRouterAdapter

if TYPE_CHECKING:
    from aiohttp import web

    from proxy.access.origins import OriginPolicy

EXPOSED_HEADERS: Final = (
    "retry-after",
    "x-penstock-attempts",
    "x-penstock-replica",
    "x-penstock-route",
    "x-penstock-source",
    "x-penstock-stream",
    "x-request-id",
)
ALLOWED_METHODS: Final = ("GET", "HEAD", "POST", "DELETE")
_EXPOSED: Final = ",".join(EXPOSED_HEADERS)
# The answer differs by origin: a cache must not give one page what was meant for another, or for none.
_VARIES: Final = (hdrs.VARY, hdrs.ORIGIN)
PREFLIGHT_MAX_AGE_S: Final = 7200  # the longest Chrome keeps one; what it permits is checked again on every request

# No credentials: keys travel in headers that pages set themselves, and cookies mean nothing here. So no browser lends
# a page what its user is logged in with (a cookie, a client certificate) at something in front of the gateway.
_OPTIONS: Final = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
    allow_credentials=False,
    expose_headers=EXPOSED_HEADERS,
    allow_headers="*",
    allow_methods=ALLOWED_METHODS,
    max_age=PREFLIGHT_MAX_AGE_S,
)


class _OriginTable(Mapping[str, aiohttp_cors.ResourceOptions]):
    """The policy in the shape aiohttp-cors asks: a mapping in which every allowed origin is a key, and `*` never is.

    Wildcard ports and sub-domains make the keys uncountable; the ones that can be listed are the patterns.
    """

    def __init__(self, current_policy: Callable[[], OriginPolicy]) -> None:
        self._current_policy = current_policy

    def __getitem__(self, origin: str) -> aiohttp_cors.ResourceOptions:
        if not self._current_policy().allows(origin):
            raise KeyError(origin)
        return _OPTIONS

    def __iter__(self) -> Iterator[str]:
        return iter(self._current_policy().patterns)

    def __len__(self) -> int:
        return len(self._current_policy().patterns)


def setup_cors(app: web.Application, current_policy: Callable[[], OriginPolicy]) -> None:
    """Let the pages the policy allows use every endpoint of `app`. Call it once, after the last endpoint was added.

    `current_policy` is asked on every request, so that a reload can exchange the policy. Raises `ValueError` for an
    endpoint that answers any method (`*`) or OPTIONS itself: preflights could not be told from its own requests.
    """
    adapter = ResourcesUrlDispatcherRouterAdapter(app.router, _OriginTable(current_policy))
    cors = aiohttp_cors.CorsConfig(app, router_adapter=adapter)
    for resource in list(app.router.resources()):
        cors.add(resource)

    async def hook(request: web.Request, response: web.StreamResponse) -> None:
        fill_in(current_policy(), request, response)

    # After aiohttp-cors has put its own hook there: it asserts that nobody was before it.
    app.on_response_prepare.append(hook)


def cors_headers(policy: OriginPolicy, request: web.BaseRequest) -> Sequence[tuple[str, str]]:
    """What an answer tells the page that asked, and the caches on the way to it."""
    if not policy.patterns:
        return ()
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not policy.allows(origin):
        return (_VARIES,)
    return (
        _VARIES,
        (hdrs.ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, _EXPOSED),
    )


def fill_in(policy: OriginPolicy, request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Give `response` what aiohttp-cors has left out; where it has answered (a preflight, too), that is only Vary."""
    said = cors_headers(policy, request)
    response.headers.extend(said[:1] if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in response.headers else said)
