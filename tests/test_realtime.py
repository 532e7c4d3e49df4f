"""The line of a Realtime session: its limits, its fallbacks, and what a drain sees of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.access.keys import Key
from proxy.access.limits import KeyRules
from proxy.admission import Admission
from proxy.config.loader import load
from proxy.errors import ModelNotFound, NoReplica, TooManyRequests, Unavailable, UpstreamUnreachable
from proxy.realtime import Line, Realtime
from proxy.relay import Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import build_table
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.dialler import Dialler
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from proxy.upstream.upgrade import SocketLimits
from proxy.wire.upgrade import UpgradeRefused
from tests.support.memory_line import turns
from tests.support.realtime_server import realtime_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.errors import GatewayError

NOBODY = "http://127.0.0.1:1"
WEB = Key("web")
ONCE = "retry: {attempts: 1}"


class House:
    """Lines through routes of a file; `record` is the last one's."""

    def __init__(self, relay: Relay, dialler: Dialler) -> None:
        self.relay = relay
        self._realtime = Realtime(relay, dialler)

    async def open(self, model: str = "voice") -> Line:
        body = RequestBody.parse(b'{"model":"%b","stream":true}' % model.encode())
        request = ProxyRequest("/v1/realtime", f"model={model}", (), (), body, "req_1")
        self.record = RequestRecord("req_1", "GET", "/v1/realtime", 0.0, key=WEB.name)
        return await self._realtime.open(request, (), WEB, self.record)

    def end(self, line: Line) -> None:
        line.socket.close(1000, "")
        self._realtime.end(line)


@asynccontextmanager
async def house(tmp_path: Path, *routes: str, rules: KeyRules | None = None) -> AsyncIterator[House]:
    file = tmp_path / "routes.yaml"
    file.write_text("\n".join(["routes:", *(f"  {route}" for route in routes)]), encoding="utf-8")
    pool = Pool()
    dispatch = Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda _: None)
    dialler = Dialler(SocketLimits(1 << 20, None))
    try:
        yield House(Relay(build_table(load(file, {})), dispatch, Admission({WEB.name: rules or KeyRules()})), dialler)
    finally:
        await dialler.close()
        await pool.close()


def route(name: str, url: str, *settings: str) -> str:
    return f"{name}: {{replicas: ['{url}'], {', '.join([ONCE, *settings])}}}"


async def test_a_line_is_under_way_until_it_ends(tmp_path: Path) -> None:
    async with realtime_server() as server, house(tmp_path, route("voice", server.url)) as built:
        line = await built.open()
        assert built.relay.in_flight() == {"voice": 1}
        assert (built.record.route, built.record.phase) == ("voice", Phase.STREAM)
        built.end(line)
        built.end(line)
        assert built.relay.in_flight() == {}


async def test_a_model_that_is_not_there_dials_nobody(tmp_path: Path) -> None:
    async with realtime_server() as server, house(tmp_path, route("voice", server.url)) as built:
        with pytest.raises(ModelNotFound):
            await built.open("other")
        assert (server.requests, built.relay.in_flight()) == ([], {})


async def test_a_key_holds_no_more_sessions_than_it_may(tmp_path: Path) -> None:
    async with (
        realtime_server() as server,
        house(tmp_path, route("voice", server.url), rules=KeyRules(streams=1)) as built,
    ):
        line = await built.open()
        with pytest.raises(TooManyRequests) as raised:
            await built.open()
        assert raised.value.code == "too_many_streams"
        built.end(line)
        built.end(await built.open())


async def test_a_key_opens_no_more_sessions_a_minute_than_it_may(tmp_path: Path) -> None:
    async with (
        realtime_server() as server,
        house(tmp_path, route("voice", server.url), rules=KeyRules(requests_per_minute=1)) as built,
    ):
        built.end(await built.open())
        with pytest.raises(TooManyRequests) as raised:
            await built.open()
        assert raised.value.code == "rate_limit_exceeded"


async def test_a_session_waits_for_its_place_at_a_full_route(tmp_path: Path) -> None:
    limits = "limits: {streams: 1, queue: 1, queue_timeout: 20s}"
    async with realtime_server() as server, house(tmp_path, route("voice", server.url, limits)) as built:
        line = await built.open()
        waiting = asyncio.ensure_future(built.open())
        await turns()
        assert (built.record.phase, len(server.requests)) == (Phase.QUEUE, 1)
        with pytest.raises(TooManyRequests) as raised:
            await built.open()
        assert raised.value.code == "queue_full"
        built.end(line)
        built.end(await waiting)
        assert built.relay.in_flight() == {}


async def test_a_place_that_does_not_come_is_a_503(tmp_path: Path) -> None:
    limits = "limits: {streams: 1, queue: 1, queue_timeout: 20ms}"
    async with realtime_server() as server, house(tmp_path, route("voice", server.url, limits)) as built:
        line = await built.open()
        with pytest.raises(Unavailable) as raised:
            await built.open()
        assert raised.value.code == "queue_timeout"
        built.end(line)


async def test_a_client_that_leaves_the_queue_leaves_its_place(tmp_path: Path) -> None:
    limits = "limits: {streams: 1, queue: 1, queue_timeout: 20s}"
    async with realtime_server() as server, house(tmp_path, route("voice", server.url, limits)) as built:
        line = await built.open()
        waiting = asyncio.ensure_future(built.open())
        await turns()
        waiting.cancel()
        await turns()
        assert built.relay.in_flight() == {"voice": 1}
        built.end(line)
        built.end(await built.open())


async def test_a_fallback_is_dialled_where_the_route_is_not_there(tmp_path: Path) -> None:
    async with realtime_server() as server:
        routes = route("voice", NOBODY, "fallbacks: [gone, spare]"), route("gone", NOBODY)
        async with house(tmp_path, *routes, route("spare", server.url, "model: own")) as built:
            line = await built.open()
            assert (built.record.route, built.record.attempts) == ("spare", 3)
            assert built.relay.in_flight() == {"spare": 1}
            assert server.requests[0].path == "/v1/realtime?model=own"
            built.end(line)


async def test_a_fallback_without_room_is_passed_over(tmp_path: Path) -> None:
    full = "limits: {streams: 1, queue: 0}"
    async with realtime_server() as server:
        routes = route("voice", NOBODY, "fallbacks: [full, spare]"), route("full", server.url, full)
        async with house(tmp_path, *routes, route("spare", server.url)) as built:
            held = await built.open("full")
            line = await built.open()
            assert built.record.route == "spare"
            built.end(line)
            built.end(held)


async def test_where_the_fallbacks_fail_too_the_last_failure_counts(tmp_path: Path) -> None:
    async with realtime_server() as server:
        server.refuses = (503, {}, b"full")
        async with house(tmp_path, route("voice", NOBODY, "fallbacks: [spare]"), route("spare", server.url)) as built:
            with pytest.raises(UpgradeRefused) as raised:
                await built.open()
            assert (raised.value.status, raised.value.body, built.relay.in_flight()) == (503, b"full", {})


async def test_a_refusal_of_the_request_itself_asks_no_fallback(tmp_path: Path) -> None:
    async with realtime_server() as server, realtime_server() as spare:
        server.refuses = (403, {}, b"no")
        async with house(
            tmp_path, route("voice", server.url, "fallbacks: [spare]"), route("spare", spare.url)
        ) as built:
            with pytest.raises(UpgradeRefused):
                await built.open()
            assert spare.requests == []


async def test_where_nobody_may_be_asked_the_client_is_told_so(tmp_path: Path) -> None:
    breaker = "breaker: {failures: 1, within: 30s, open_for: 30s}"
    async with house(tmp_path, route("voice", NOBODY, breaker)) as built:
        with pytest.raises(UpstreamUnreachable):
            await built.open()
        with pytest.raises(NoReplica):
            await built.open()


class Told:
    """A session that a drain may interrupt."""

    def __init__(self) -> None:
        self.errors: list[GatewayError] = []

    def interrupt(self, error: GatewayError) -> None:
        self.errors.append(error)


async def test_a_drains_deadline_reaches_the_session_and_who_still_waits(tmp_path: Path) -> None:
    limits = "limits: {streams: 1, queue: 1, queue_timeout: 20s}"
    async with realtime_server() as server, house(tmp_path, route("voice", server.url, limits)) as built:
        line = await built.open()
        session = Told()
        line.session = session
        waiting = asyncio.ensure_future(built.open())
        await turns()
        await built.relay.drain(0.01)
        assert [error.code for error in session.errors] == ["draining"]
        with pytest.raises(Unavailable) as raised:
            await waiting
        assert raised.value.code == "draining"
        built.end(line)


async def test_a_drain_waits_for_a_line_to_end(tmp_path: Path) -> None:
    async with realtime_server() as server, house(tmp_path, route("voice", server.url)) as built:
        line = await built.open()
        draining = asyncio.ensure_future(built.relay.drain(20.0))
        await turns()
        assert not draining.done()
        built.end(line)
        async with asyncio.timeout(5):
            await draining
