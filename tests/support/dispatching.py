"""Requests sent through a real dispatch to scripted replicas: to their answer's commit point, or to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from proxy.config.loader import load
from proxy.errors import GatewayError
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route, RoutingTable, build_table
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.attempt import Failed, Opened
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.exchange import Opening
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard

CHAT = "/v1/chat/completions"
MAX_EVENT_BYTES = 1 << 20
ONCE = ", retry: {attempts: 1}"


def table_of(tmp_path: Path, routes: str) -> RoutingTable:
    """The table of these routes: `chat: {replicas: [...]}`."""
    file = tmp_path / "routes.yaml"
    file.write_text(f"routes: {{{routes}}}", encoding="utf-8")
    return build_table(load(file, {}))


def route_of(tmp_path: Path, url: str, settings: str = ONCE, **replica: str) -> Route:
    """A route `chat`, whose replica at `url` knows the model as `llama`. It is asked once, unless `retry` is set."""
    own = "".join(f", {name}: {value}" for name, value in replica.items())
    settings = settings if "retry" in settings else settings + ONCE
    routes = f'chat: {{model: llama, replicas: [{{url: "{url}"{own}}}]{settings}}}'
    return table_of(tmp_path, routes).find("chat", None)


def replicated(tmp_path: Path, *urls: str, settings: str = "", balance: str = "round_robin") -> Route:
    """A route `chat` with these replicas, asked in turn from the first on."""
    listed = ", ".join(f'"{url}"' for url in urls)
    return table_of(tmp_path, f"chat: {{replicas: [{listed}], balance: {balance}{settings}}}").find("chat", None)


def request_of(
    raw: bytes = b'{"model":"chat","stream":true}',
    *headers: tuple[str, str],
    path: str = CHAT,
    query: str = "",
) -> ProxyRequest:
    forwarded = (("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "gw.test"))
    return ProxyRequest(path, query, headers, forwarded, RequestBody.parse(raw), "req_1")


class Hurried(Random):
    """Chance that leaves nothing of a backoff."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Gateway:
    """A dispatch with its pool, and one request after another sent through it to its answer's commit point.

    `opened`, `stream` and `record` are the last request's.
    """

    def __init__(self, pool: Pool, rng: Random | None = None) -> None:
        self._dispatch = Dispatch(pool, max_event_bytes=MAX_EVENT_BYTES, on_malformed=self._on_malformed, rng=rng)
        self.malformed: list[str] = []
        self.stream = Stream()
        self.record = RequestRecord("req_1", "POST", CHAT, 0.0)
        self.opened: Opened | None = None

    async def open(self, route: Route, request: ProxyRequest | None = None, key: str | None = None) -> Opening:
        request = request or request_of()
        self.stream = Stream()
        self.record = RequestRecord("req_1", "POST", request.path, 0.0)
        self.record.key = key
        tried = await self._dispatch.open(request, route, self.stream, self.record)
        if isinstance(tried, Failed):
            raise tried.error
        self.opened = tried
        return tried.opening

    async def heard(self, route: Route) -> Heard:
        """A streamed answer, to its end."""
        assert (await self.open(route)).body is None
        heard = Heard(self.stream)
        await heard.over.wait()
        return heard

    def _on_malformed(self, route: Route) -> None:
        self.malformed.append(route.name)


@asynccontextmanager
async def dispatching(rng: Random | None = None) -> AsyncIterator[Gateway]:
    """Without a word about chance, no backoff takes any time."""
    pool = Pool()
    yield Gateway(pool, rng or Hurried())
    async with asyncio.timeout(5):
        await pool.close()


async def failure(gateway: Gateway, route: Route, request: ProxyRequest | None = None) -> GatewayError:
    """The error an attempt comes to: it names route and replica, and no address; nothing stays in flight."""
    with pytest.raises(GatewayError) as raised:
        await gateway.open(route, request)
    error = raised.value
    replica = route.replicas[gateway.record.replica or 0]
    assert error.message.startswith(f'route "chat": replica {replica.index}: ')
    assert replica.origin.host not in error.message
    assert str(replica.origin.port) not in error.message
    assert [each.in_flight for each in route.replicas if each.in_flight] == []
    return error
