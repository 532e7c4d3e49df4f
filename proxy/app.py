"""The composition root: builds each object once, wires the endpoints, starts, drains and stops."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.access.keys import KeyEntry, Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.config.addresses import Address, is_loopback
from proxy.config.model import Config
from proxy.config.pending import pending
from proxy.downstream.body import BodyLimits
from proxy.downstream.connection import ClientRunner, server_tls
from proxy.downstream.cors import setup_cors
from proxy.downstream.edge import add_request_id, edge
from proxy.downstream.gate import Gate
from proxy.downstream.health import add_health
from proxy.downstream.http import HttpApi
from proxy.downstream.lane import RelayLane
from proxy.downstream.pages import add_pages
from proxy.downstream.websocket import BARE_PATHS, SessionLimits, WebSocketApi
from proxy.relay import Relay
from proxy.routing.table import Route, build_table
from proxy.telemetry.record import RequestRecord
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.gather import gatherer
from proxy.upstream.pool import Pool

BACKLOG = 4096
CLOSE_WITHIN_S = 1.0
"""How long sessions may take to say their last words, once a drain is over, and to close."""

logger = logging.getLogger("penstock")


class CannotListen(Exception):
    """A port cannot be had. `setting` is the part of the file that asks for it; `__cause__` is the `OSError`."""

    def __init__(self, setting: str, address: Address) -> None:
        super().__init__(f"{setting}: cannot listen on {address}")
        self.setting = setting
        self.address = address


class Gateway:
    """The whole program, less its command line. `publish` gets each request's record at its end.

    Made inside a running event loop. The owner's duty: `start`, then `drain` (or not), then `stop`.
    """

    def __init__(self, config: Config, publish: Callable[[RequestRecord], None]) -> None:
        self._config = config
        self._publish = publish
        self._pool = Pool(gatherer(config.server.gather))
        self._malformed = _MalformedEvents()
        dispatch = Dispatch(
            self._pool, max_event_bytes=config.server.max_event_bytes, on_malformed=self._malformed.dropped
        )
        self._relay = Relay(build_table(config), dispatch)
        self._gate = _gate(config)
        self._websockets = WebSocketApi(
            self._relay,
            self._gate,
            SessionLimits(config.server.max_body_bytes, config.server.websocket.ping_s),
            publish,
        )
        self._runners: list[ClientRunner] = []
        self._main_site: web.TCPSite | None = None

    async def start(self, *, shares_ports: bool = False) -> str:
        """Listen, and give the main port's URL. Raises `CannotListen`, or `OSError` for bad TLS files.

        `shares_ports`: other processes listen on the same ports, and whoever started them all has called `say_pending`.
        """
        if not shares_ports:
            say_pending(self._config)
        server, admin = self._config.server, self._config.admin
        tls = None if server.tls is None else server_tls(str(server.tls.certificate), str(server.tls.key))
        runner = await self._main_runner()
        self._main_site = await _listen(runner, "server", Address(server.host, server.port), tls, shares_ports)
        if admin.listen is not None:
            await _listen(await self._runner(self._admin_app()), "admin.listen", admin.listen, None, shares_ports)
        port = runner.addresses[0][1]
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{'http' if tls is None else 'https'}://{host}:{port}"

    async def drain(self) -> None:
        """Stop listening, let what is under way finish within `server.drain`, then end it with an error."""
        if self._main_site is not None:
            await self._main_site.stop()
            self._main_site = None
        await self._relay.drain(self._config.server.drain_s)
        await self._websockets.close_all(CLOSE_WITHIN_S)

    async def stop(self) -> None:
        """Close everything at once."""
        for runner in self._runners:
            await runner.cleanup()
        await self._pool.close()

    async def _runner(self, app: web.Application, lane: RelayLane | None = None) -> ClientRunner:
        runner = ClientRunner(app, self._config.server.timeouts.headers_s, lane)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _main_runner(self) -> ClientRunner:
        server = self._config.server
        outermost = edge(self._gate, BARE_PATHS, self._publish)
        api = HttpApi(self._relay, self._gate, BodyLimits(server.max_body_bytes, server.timeouts.body_s))
        lane = RelayLane(outermost, api.relay, lambda: self._gate.origins)
        return await self._runner(self._main_app(outermost, api), lane)

    def _main_app(self, outermost: Middleware, api: HttpApi) -> web.Application:
        app = web.Application(middlewares=[outermost], client_max_size=self._config.server.max_body_bytes)
        if self._config.admin.listen is None:
            add_health(app.router, self._is_ready)
        add_pages(app.router)
        self._websockets.add_to(app.router)
        api.add_to(app.router)
        setup_cors(app, lambda: self._gate.origins)
        app.on_response_prepare.append(add_request_id)
        return app

    def _admin_app(self) -> web.Application:
        app = web.Application()
        add_health(app.router, self._is_ready)
        app.on_response_prepare.append(add_request_id)
        return app

    def _is_ready(self) -> bool:
        return not self._relay.draining


def say_pending(config: Config) -> None:
    """Log which settings of the file do nothing yet."""
    for place in pending(config):
        logger.warning("%s is accepted but does nothing yet", place)


async def _listen(
    runner: ClientRunner, setting: str, address: Address, tls: ssl.SSLContext | None, shared: bool
) -> web.TCPSite:
    reuse_port = shared or None  # None: aiohttp's word for the system's default
    site = web.TCPSite(runner, *address, ssl_context=tls, backlog=BACKLOG, reuse_port=reuse_port)
    try:
        await site.start()
    except OSError as error:
        raise CannotListen(setting, address) from error
    return site


def _gate(config: Config) -> Gate:
    server = config.server
    loopback = is_loopback(server.host)
    return Gate(
        hosts=HostPolicy(server.allowed_hosts, loopback_bind=loopback),
        origins=OriginPolicy(config.cors.origins, loopback_bind=loopback),
        keys=Keyring(KeyEntry.from_sha256(key.name, key.digest(), key.models) for key in config.auth_keys),
        trusted_proxies=server.trusted_proxies,
    )


class _MalformedEvents:
    """Says once a minute and route that events were dropped, not once an event."""

    EVERY_S = 60.0

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def dropped(self, route: Route) -> None:
        now = time.monotonic()
        if now - self._said.get(route.name, -self.EVERY_S) >= self.EVERY_S:
            self._said[route.name] = now
            logger.warning('route "%s": an event that is not a JSON object was dropped', route.name)
