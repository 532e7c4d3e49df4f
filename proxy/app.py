"""The composition root: builds each object once, wires the endpoints, starts, drains and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy import __version__
from proxy.access.keys import Keyring
from proxy.admission import Admission
from proxy.config.model import Config
from proxy.downstream.admin import QUIET_PATHS
from proxy.downstream.body import BodyLimits
from proxy.downstream.cors import setup_cors
from proxy.downstream.edge import add_request_id, edge
from proxy.downstream.http import HttpApi
from proxy.downstream.kept_streams import KeptStreams
from proxy.downstream.known_heads import KnownHeads
from proxy.downstream.lane import RelayLane
from proxy.downstream.mux_opening import openers
from proxy.downstream.mux_turns import Turns
from proxy.downstream.pages import add_pages
from proxy.downstream.resumable import StreamsApi
from proxy.downstream.server import ClientRunner, ClientServer, server_tls
from proxy.downstream.stages import Stages
from proxy.downstream.stream_routes import StreamRoutes
from proxy.downstream.tickets import TicketApi
from proxy.downstream.tool_chats import ToolChats
from proxy.downstream.tool_runs import ToolRuns
from proxy.downstream.websocket import UPGRADABLE_PATHS, SessionLimits, WebSocketApi
from proxy.listener import Listener
from proxy.loop_lag import LoopLag
from proxy.operations import Operations, Told, operations_app
from proxy.policies import gate_of, key_rules, origins_of
from proxy.ports import CannotListen, Ports, open_ports
from proxy.realtime import Realtime
from proxy.relay import Relay
from proxy.reload import Reload
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.table import build_table
from proxy.streams.store import StoreLimits, StreamStore
from proxy.telemetry.exposition import exposition
from proxy.telemetry.families import FAMILIES
from proxy.telemetry.malformed_events import MalformedEvents
from proxy.telemetry.metrics import Figures
from proxy.telemetry.record import EndState, RequestRecord
from proxy.telemetry.request_metrics import Metrics
from proxy.telemetry.routing_metrics import show_routes
from proxy.toolchain.servers import ToolServers, require_library
from proxy.upstream.dialler import Dialler
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.gather import gatherer
from proxy.upstream.health import HealthChecks
from proxy.upstream.pool import Pool
from proxy.upstream.upgrade import SocketLimits

Gather = Callable[[], Awaitable[Figures]]

FIRST_REQUEST_WITHIN_S = 1.0
"""How long a drain goes on serving for those who are connected, but have not said all of what they want."""
LOOK_AGAIN_S = 0.01
CLOSE_WITHIN_S = 1.0
"""How long sessions may take to say their last words, once a drain is over, and to close."""


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
        self._last = Reload(config, time.time())
        self._publish = publish
        self._gather = gather
        self._tool_servers = ToolServers.of(config)
        self._metrics = Metrics(__version__)
        self._lag = LoopLag()
        self._pool = Pool(gatherer(config.server.gather))
        self._malformed = MalformedEvents(self._metrics)
        budget = RetryBudget()
        dispatch = Dispatch(
            self._pool,
            max_event_bytes=config.server.max_event_bytes,
            on_malformed=self._malformed.dropped,
            budget=budget,
        )
        self._admission = Admission(key_rules(config))
        self._relay = Relay(build_table(config), dispatch, self._admission)
        self._health = HealthChecks(self._pool)
        self._metrics.know({route.name: len(route.replicas) for route in self._relay.table.routes})
        self._gate = gate_of(config, self._relay.table.keys)
        self._tool_runs = ToolRuns(self._relay, self._tool_servers, config.server.max_event_bytes)
        self._tool_chats = ToolChats(self._tool_runs)
        self._stages = Stages(self._relay, self._tool_runs, config.server.max_event_bytes)
        self._tickets = TicketApi(self._gate)
        self._streams = KeptStreams(StreamStore(_store_limits(config)))
        self._streams_api = StreamsApi(self._gate, self._streams, self._finished)
        self._turns = self._mux_turns()
        sockets = config.server.websocket
        self._dialler = Dialler(SocketLimits(config.server.max_body_bytes, sockets.ping_s), budget)
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
        self._main: Listener | None = None
        self._operations: Operations | None = None
        self._draining = False

    async def start(self, ports: Ports | None = None) -> str:
        """Listen, and give the main port's URL. `ports` are the configuration's, if they are open already.

        Raises `CannotListen`, or `OSError` for bad TLS files.
        """
        server = self._config.server
        self._health.watch(self._relay.table.routes)
        ports = ports or open_ports(self._config)
        try:
            tls = None if server.tls is None else server_tls(str(server.tls.certificate), str(server.tls.key))
            self._main = Listener(ports.main, await self._main_runner(), tls)
            await self._main.start()
            if ports.admin is not None:
                await Listener(ports.admin, await self._admin_runner(ports.admin.address.host)).start()
        except (CannotListen, OSError):
            await self._stop_listening()
            ports.close()
            raise
        address = ports.main.address
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{'http' if tls is None else 'https'}://{host}:{address.port}"

    def take_up(self, reload: Reload) -> None:
        """What came of reading the file again: a good one is used from now on. What runs goes on as it began.

        If this raises, the configuration is the one before.
        """
        if not reload.complaints and reload.config != self._config:
            self._change(reload.config)
        self._last = reload
        self._metrics.config_last_reload_success.value = int(not reload.complaints)

    def count_reload(self) -> None:
        """Whoever has read the file counts it: one of several processes."""
        self._metrics.config_reloads.value += 1

    def _change(self, config: Config) -> None:
        """First what may fail; then all of it at once, as far as any request can see."""
        origins = origins_of(config)
        require_library(config)
        self._relay.table = table = build_table(config, self._relay.table)
        self._gate.change(origins, table.keys or Keyring())
        self._admission.change(key_rules(config))
        for route in table.routes:
            self._admission.wake(route.limiter.admit())
        self._tool_servers = self._tool_servers.succeed(config)
        self._tool_runs.change(self._tool_servers)
        self._metrics.know({route.name: len(route.replicas) for route in table.routes})
        self._health.watch(table.routes)
        self._pool.keep_only({replica.origin for route in table.routes for replica in route.replicas})
        if self._operations is not None:
            self._operations.change(config, origins if self._config.admin.listen is None else None)
        self._config = config

    async def drain(self) -> None:
        """Stop listening, let what is under way finish within `server.drain`, then end it with an error."""
        self._draining = True
        if self._main is not None:
            await self._main.stop()
            await self._hear_all(self._main.server)
        self._websockets.go_away(self._config.server.drain_s)
        await self._relay.drain(self._config.server.drain_s)
        await self._websockets.close_all(CLOSE_WITHIN_S)

    async def _hear_all(self, server: ClientServer) -> None:
        """Serve the requests of those who are connected, and cannot know that it is too late."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_REQUEST_WITHIN_S):
                while server.awaits_request():
                    await asyncio.sleep(LOOK_AGAIN_S)
        for _ in range(3):  # what was read last is on its way to the relay
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Close everything at once."""
        await self._stop_listening()
        self._streams.close()
        await self._turns.close()
        await self._tool_runs.close()
        await self._tool_servers.close()
        await self._dialler.close()
        await self._health.close()
        await self._pool.close()
        self._lag.stop()

    async def _stop_listening(self) -> None:
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    def figures(self) -> Figures:
        """What this process has measured, as of now."""
        self._metrics.show_in_flight(self._relay.in_flight())
        show_routes(self._metrics, self._relay.table.routes, asyncio.get_running_loop().time())
        self._metrics.show_sessions(self._websockets.sessions())
        self._metrics.event_loop_lag.value = self._lag.worst_s()
        return self._metrics.figures()

    def _mux_turns(self) -> Turns:
        reached = openers(self._relay, self._tool_chats, self._stages, self._config.server.max_body_bytes)
        return Turns(reached, self._streams, self._finished)

    async def _runner(self, app: web.Application, lane: RelayLane | None = None) -> ClientRunner:
        server = self._config.server
        heads = None if lane is None else KnownHeads(server.max_body_bytes)
        runner = ClientRunner(app, server.timeouts.headers_s, lane, heads)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def _main_runner(self) -> ClientRunner:
        server = self._config.server
        outermost = edge(self._gate, UPGRADABLE_PATHS, self._finished)
        limits = BodyLimits(server.max_body_bytes, server.timeouts.body_s)
        api = HttpApi(self._relay, self._tool_chats, self._gate, limits, self._streams_api)
        lane = RelayLane(outermost, api.relay, lambda: self._gate.origins)
        stream_routes = StreamRoutes(self._stages, self._gate, limits, self._streams_api)
        return await self._runner(self._main_app(outermost, api, stream_routes), lane)

    def _main_app(self, outermost: Middleware, api: HttpApi, stream_routes: StreamRoutes) -> web.Application:
        app = web.Application(middlewares=[outermost], client_max_size=self._config.server.max_body_bytes)
        if self._config.admin.listen is None:
            self._operations = Operations(self._config, self._config.server.host, self._gate.origins, self._told())
            self._operations.add_to(app.router)
        add_pages(app.router)
        self._websockets.add_to(app.router)
        self._tickets.add_to(app.router)
        self._streams_api.add_to(app.router)
        stream_routes.add_to(app.router)
        api.add_to(app.router)
        setup_cors(app, lambda: self._gate.origins)
        app.on_response_prepare.append(add_request_id)
        return app

    async def _admin_runner(self, host: str) -> ClientRunner:
        """What a port of the operators' own is served with; it listens on `host`."""
        app, self._operations = operations_app(self._config, host, self._told(), self._finished)
        return await self._runner(app)

    def _told(self) -> Told:
        return Told(self._exposition, lambda: self._last, self._is_ready)

    async def _exposition(self) -> str:
        figures = self.figures() if self._gather is None else await self._gather()
        return exposition(FAMILIES, figures)

    def _finished(self, record: RequestRecord) -> None:
        """A request's end, to be counted and told. An operator's question is neither."""
        if record.path not in QUIET_PATHS or record.end_state is not EndState.COMPLETED:
            self._metrics.add(record)
            self._publish(record)

    def _is_ready(self) -> bool:
        return not self._draining


def _store_limits(config: Config) -> StoreLimits:
    sockets = config.server.websocket
    return StoreLimits(sockets.detach_s, sockets.replay_s)
