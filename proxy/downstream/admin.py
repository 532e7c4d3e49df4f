"""What operators ask for, and who may: `/metrics` and `/admin/config`. Health, which all may ask for, is `health`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from proxy.access.keys import Keyring
from proxy.access.origins import OriginPolicy
from proxy.downstream.gate import raw_headers
from proxy.errors import Forbidden, Unauthorized
from proxy.telemetry.exposition import CONTENT_TYPE
from proxy.wire.headers import client_credential

METRICS_PATH = "/metrics"
CONFIG_PATH = "/admin/config"
QUIET_PATHS = frozenset((METRICS_PATH, CONFIG_PATH))
"""Asking for these is no request that is counted or logged, unless it is refused."""


@dataclass(slots=True, eq=False)
class AdminGate:
    """Who may ask: on a loopback port whoever reaches it, but no page of a foreign origin; elsewhere who has a key.

    `keys` is `admin.key` alone, and empty where the file gives none: then nobody may. A reload sets `keys` and
    `origins` anew.
    """

    on_loopback: bool
    keys: Keyring
    origins: OriginPolicy

    def admit(self, request: web.Request) -> None:
        """Raise `Unauthorized` or `Forbidden` for anybody else."""
        if self.on_loopback:
            origin = request.headers.get("Origin")
            if not self.origins.allows_request(origin, request.headers.get("Host", ""), request.scheme):
                raise Forbidden("Pages of this origin may not read this; see cors.origins.", code="origin_not_allowed")
        elif self.keys.open:
            raise Unauthorized(
                "Set admin.key to read this from elsewhere, or let admin.listen be a loopback port.",
                code="invalid_api_key",
            )
        elif self.keys.find(client_credential(raw_headers(request))) is None:
            raise Unauthorized("Give the admin key: Authorization: Bearer <key>.")


def add_metrics(router: web.UrlDispatcher, gate: AdminGate, exposition: Callable[[], Awaitable[str]]) -> None:
    """`GET /metrics`, in Prometheus' text format."""

    async def metrics(request: web.Request) -> web.Response:
        gate.admit(request)
        body = (await exposition()).encode()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    router.add_get(METRICS_PATH, metrics)


def add_config(router: web.UrlDispatcher, gate: AdminGate, configuration: Callable[[], Mapping[str, object]]) -> None:
    """`GET /admin/config`: what is in use, as JSON, without its secrets."""

    async def config(request: web.Request) -> web.Response:
        gate.admit(request)
        return web.json_response(configuration(), headers={"Cache-Control": "no-store"})

    router.add_get(CONFIG_PATH, config)
