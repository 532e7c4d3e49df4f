"""Whether the gateway lives, and whether it takes requests: for load balancers and supervisors. Asks for no key."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


def add_health(router: web.UrlDispatcher, is_ready: Callable[[], bool]) -> None:
    """`/healthz` says 200 while the program runs, `/readyz` 503 once it drains."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        ready = is_ready()
        return web.json_response({"status": "ready" if ready else "draining"}, status=200 if ready else 503)

    router.add_get("/healthz", healthz)
    router.add_get("/readyz", readyz)
