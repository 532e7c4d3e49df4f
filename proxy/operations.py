"""What operators find at `/healthz`, `/readyz`, `/metrics` and `/admin/config`: on the main port, or on one of their
own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web
from msgspec import Struct

from proxy.access.keys import KeyEntry, Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.config.addresses import is_loopback
from proxy.config.model import Config
from proxy.config.summary import shown
from proxy.downstream.admin import AdminGate, add_config, add_metrics
from proxy.downstream.edge import add_request_id, edge
from proxy.downstream.gate import Gate
from proxy.downstream.health import add_health
from proxy.reload import Reload
from proxy.telemetry.record import RequestRecord


class Told(Struct, frozen=True):
    """What can be asked for: the metrics' page, what came of reading the configuration last, and whether we serve."""

    metrics: Callable[[], Awaitable[str]]
    configuration: Callable[[], Reload]
    is_ready: Callable[[], bool]


class Operations:
    """The operators' endpoints, on a port that listens on `host`, for pages of these `origins`."""

    def __init__(self, config: Config, host: str, origins: OriginPolicy, told: Told) -> None:
        self._gate = AdminGate(is_loopback(host), _keys(config), origins)
        self._told = told

    def add_to(self, router: web.UrlDispatcher) -> None:
        add_health(router, self._told.is_ready)
        add_metrics(router, self._gate, self._told.metrics)
        add_config(router, self._gate, lambda: described(self._told.configuration()))

    def change(self, config: Config, origins: OriginPolicy | None = None) -> None:
        """A reload's key and, where they stand with the API, its origins."""
        self._gate.keys = _keys(config)
        self._gate.origins = origins or self._gate.origins


def operations_app(
    config: Config, host: str, told: Told, publish: Callable[[RequestRecord], None]
) -> tuple[web.Application, Operations]:
    """The endpoints by themselves, for a port of their own that listens on `host`."""
    loopback = is_loopback(host)
    hosts = HostPolicy(config.server.allowed_hosts if loopback else (), loopback_bind=loopback)
    origins = OriginPolicy((), loopback_bind=loopback)
    app = web.Application(middlewares=[edge(Gate(hosts, origins, Keyring()), (), publish)])
    operations = Operations(config, host, origins, told)
    operations.add_to(app.router)
    app.on_response_prepare.append(add_request_id)
    return app, operations


def described(reload: Reload) -> dict[str, object]:
    """The configuration in use, as JSON, and what came of reading it last."""
    return {
        "read_at": datetime.fromtimestamp(reload.at, UTC).isoformat(timespec="seconds"),
        "taken_up": not reload.complaints,
        "complaints": list(reload.complaints),
        "needs_restart": list(reload.needs_restart),
        "configuration": shown(reload.config),
    }


def _keys(config: Config) -> Keyring:
    key = config.admin.key
    return Keyring(() if key is None else [KeyEntry.from_key("admin", key.get_secret_value())])
