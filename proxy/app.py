"""The composition root: builds each object once, wires the endpoints, starts, drains and stops."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy import __version__
from proxy.access.keys import KeyEntry, Keyring
from proxy.access.limits import KeyRules
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.admission import Admission
from proxy.config.addresses import Address, is_loopback
from proxy.config.model import Config
from proxy.config.pending import pending
from proxy.downstream.admin import METRICS_PATH, AdminGate, add_metrics
from proxy.downstream.body import BodyLimits
from proxy.downstream.connection import ClientRunner, server_tls
from proxy.downstream.cors import setup_cors
from proxy.downstream.edge import add_request_id, edge
from proxy.downstream.gate import Gate
from proxy.downstream.health import add_health
from proxy.downstream.http import HttpApi
from proxy.downstream.kept_streams import KeptStreams
from proxy.downstream.lane import RelayLane
from proxy.downstream.mux_opening import openers
from proxy.downstream.mux_turns import Turns
from proxy.downstream.pages import add_pages
from proxy.downstream.resumable import StreamsApi
from proxy.downstream.stages import Stages
from proxy.downstream.stream_routes import StreamRoutes
from proxy.downstream.tickets import TicketApi
from proxy.downstream.tool_chats import ToolChats
from proxy.downstream.tool_runs import ToolRuns
from proxy.downstream.websocket import UPGRADABLE_PATHS, SessionLimits, WebSocketApi
from proxy.loop_lag import LoopLag
from proxy.realtime import Realtime
from proxy.relay import Relay
from proxy.routing.table import Route, build_table
from proxy.streams.store import StoreLimits, StreamStore
from proxy.telemetry.exposition import exposition
from proxy.telemetry.families import FAMILIES
from proxy.telemetry.metrics import Figures
from proxy.telemetry.record import EndState, RequestRecord
from proxy.telemetry.request_metrics import Metrics
from proxy.telemetry.routing_metrics import show_routes
from proxy.toolchain.servers import ToolServers
from proxy.upstream.dialler import Dialler
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.gather import gatherer
from proxy.upstream.health import HealthChecks
from proxy.upstream.pool import Pool
from proxy.upstream.upgrade import SocketLimits

Gather = Callable[[], Awaitable[Figures]]

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
    """The whole program, less its command line. `publish` gets each request's record at its end. `gather` gives the
    figures of all processes that serve together, where this is one of several.

    Made inside a running event loop. Raises `LibraryMissing` where routes have tools that nothing here can run.
    The owner's duty: `start`, then `drain` (or not), then `stop`.
    """

    def __init__(
        self,
        config: Config,
        publish: Callable[[RequestRecord], None],
        gather: Gather | None = None,
    ) -> None:
        self._config = config
        self._publish = publish
        self._gather = gather
        self._tool_servers = ToolServers.of(config)
        self._metrics = Metrics(__version__)
        self._lag = LoopLag()
        self._pool = Pool(gatherer(config.server.gather))
        self._malformed = _MalformedEvents(self._metrics)
        dispatch = Dispatch(
            self._pool, max_event_bytes=config.server.max_event_bytes, on_malformed=self._malformed.dropped
        )
        self._relay = Relay(build_table(config), dispatch, Admission(_key_rules(config)))
        self._health = HealthChecks(self._pool)
        self._metrics.know({route.name: len(route.replicas) for route in self._relay.table.routes})
        self._gate = _gate(config)
        self._tool_runs = ToolRuns(self._relay, self._tool_servers, config.server.max_event_bytes)
        self._tool_chats = ToolChats(self._tool_runs)
        self._stages = Stages(self._relay, self._tool_runs, config.server.max_event_bytes)
        self._tickets = TicketApi(self._gate)
        self._streams = KeptStreams(StreamStore(_store_limits(config)))
        self._streams_api = StreamsApi(self._gate, self._streams, self._finished)
        self._turns = self._mux_turns()
        sockets = config.server.websocket
        self._dialler = Dialler(SocketLimits(config.server.max_body_bytes, sockets.ping_s))
        self._websockets = WebSocketApi(
            self._relay,
            self._tool_chats,
            self._stages,
            self._gate,
            self._tickets,
            SessionLimits(config.server.max_body_bytes, sockets.ping_s, sockets.age_s, sockets.streams),
            self._turns,
            self._finished,
            Realtime(self._relay, self._dialler),
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
        self._health.watch(self._relay.table.routes)
        tls = None if server.tls is None else server_tls(str(server.tls.certificate), str(server.tls.key))
        runner = await self._main_runner()
        self._main_site = await _listen(runner, "server", Address(server.host, server.port), tls, shares_ports)
        if admin.listen is not None:
            operations = await self._runner(self._admin_app(admin.listen.host))
            await _listen(operations, "admin.listen", admin.listen, None, shares_ports)
        port = runner.addresses[0][1]
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{'http' if tls is None else 'https'}://{host}:{port}"

    async def drain(self) -> None:
        """Stop listening, let what is under way finish within `server.drain`, then end it with an error."""
        if self._main_site is not None:
            await self._main_site.stop()
            self._main_site = None
        self._websockets.go_away(self._config.server.drain_s)
        await self._relay.drain(self._config.server.drain_s)
        await self._websockets.close_all(CLOSE_WITHIN_S)

    async def stop(self) -> None:
        """Close everything at once."""
        for runner in self._runners:
            await runner.cleanup()
        self._streams.close()
        await self._turns.close()
        await self._tool_runs.close()
        await self._tool_servers.close()
        await self._dialler.close()
        await self._health.close()
        await self._pool.close()
        self._lag.stop()

    def figures(self) -> Figures:
        """What this process has measured, as of now."""
        self._metrics.show_in_flight(self._relay.in_flight())
        show_routes(self._metrics, self._relay.table.routes, asyncio.get_running_loop().time())
        self._metrics.show_sessions(self._websockets.sessions())
        self._metrics.event_loop_lag.value = self._lag.worst_s()
        return self._metrics.figures()

    def _mux_turns(self) -> Turns:
        reached = openers(self._relay, self._stages, self._config.server.max_body_bytes)
        return Turns(reached, self._streams, self._finished)

    async def _runner(self, app: web.Application, lane: RelayLane | None = None) -> ClientRunner:
        runner = ClientRunner(app, self._config.server.timeouts.headers_s, lane)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _main_runner(self) -> ClientRunner:
        server = self._config.server
        outermost = edge(self._gate, UPGRADABLE_PATHS, self._finished)
        limits = BodyLimits(server.max_body_bytes, server.timeouts.body_s)
        api = HttpApi(self._relay, self._tool_chats, self._gate, limits, self._streams_api)
        lane = RelayLane(outermost, api.relay, lambda: self._gate.origins)
        return await self._runner(self._main_app(outermost, api, StreamRoutes(self._stages, self._gate, limits)), lane)

    def _main_app(self, outermost: Middleware, api: HttpApi, stream_routes: StreamRoutes) -> web.Application:
        app = web.Application(middlewares=[outermost], client_max_size=self._config.server.max_body_bytes)
        if self._config.admin.listen is None:
            self._add_operations(app.router, self._config.server.host, self._gate.origins)
        add_pages(app.router)
        self._websockets.add_to(app.router)
        self._tickets.add_to(app.router)
        self._streams_api.add_to(app.router)
        stream_routes.add_to(app.router)
        api.add_to(app.router)
        setup_cors(app, lambda: self._gate.origins)
        app.on_response_prepare.append(add_request_id)
        return app

    def _admin_app(self, host: str) -> web.Application:
        loopback = is_loopback(host)
        hosts = HostPolicy(self._config.server.allowed_hosts if loopback else (), loopback_bind=loopback)
        origins = OriginPolicy((), loopback_bind=loopback)
        app = web.Application(middlewares=[edge(Gate(hosts, origins, Keyring()), (), self._finished)])
        self._add_operations(app.router, host, origins)
        app.on_response_prepare.append(add_request_id)
        return app

    def _add_operations(self, router: web.UrlDispatcher, host: str, origins: OriginPolicy) -> None:
        """What a port that listens on `host` has for operators."""
        add_health(router, self._is_ready)
        key = self._config.admin.key
        keys = Keyring(() if key is None else [KeyEntry.from_key("admin", key.get_secret_value())])
        add_metrics(router, AdminGate(is_loopback(host), keys, origins), self._exposition)

    async def _exposition(self) -> str:
        figures = self.figures() if self._gather is None else await self._gather()
        return exposition(FAMILIES, figures)

    def _finished(self, record: RequestRecord) -> None:
        """A request's end, to be counted and told. Being asked for the metrics is neither."""
        if record.path != METRICS_PATH or record.end_state is not EndState.COMPLETED:
            self._metrics.add(record)
            self._publish(record)

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


def _store_limits(config: Config) -> StoreLimits:
    sockets = config.server.websocket
    return StoreLimits(sockets.detach_s, sockets.replay_s)


def _gate(config: Config) -> Gate:
    server = config.server
    loopback = is_loopback(server.host)
    return Gate(
        hosts=HostPolicy(server.allowed_hosts, loopback_bind=loopback),
        origins=OriginPolicy(config.cors.origins, loopback_bind=loopback),
        keys=Keyring(KeyEntry.from_sha256(key.name, key.digest(), key.models) for key in config.auth_keys),
        trusted_proxies=server.trusted_proxies,
    )


def _key_rules(config: Config) -> dict[str, KeyRules]:
    limits = {key.name: key.limits for key in config.auth_keys}
    return {name: KeyRules(its.requests_per_minute, its.tokens_per_minute, its.streams) for name, its in limits.items()}


class _MalformedEvents:
    """Counts the events that were dropped; says so once a minute and route, not once an event."""

    EVERY_S = 60.0

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._said: dict[str, float] = {}

    def dropped(self, route: Route) -> None:
        self._metrics.malformed_events.of(route.name).value += 1
        now = time.monotonic()
        if now - self._said.get(route.name, -self.EVERY_S) >= self.EVERY_S:
            self._said[route.name] = now
            logger.warning('route "%s": an event that is not a JSON object was dropped', route.name)
