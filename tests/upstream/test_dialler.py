"""Who is dialled, and who after it; what is known of the replicas afterwards."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest

from proxy.downstream.server import server_tls
from proxy.errors import FirstTokenTimeout, Unavailable, UpstreamInvalid, UpstreamUnreachable
from proxy.request import ProxyRequest, RequestBody
from proxy.routing import retry
from proxy.routing.balancer import RoundRobin
from proxy.routing.breaker import BreakerRules, State
from proxy.routing.replica import Replica, parse_origin
from proxy.routing.retry import RetryRules
from proxy.routing.retry_budget import LEAST, RetryBudget
from proxy.routing.standing import Standing
from proxy.routing.table import Route, Timeouts
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.dialler import Dialler
from proxy.upstream.upgrade import SocketLimits
from proxy.wire.messages import Opcode
from proxy.wire.upgrade import UpgradeRefused
from tests.support.realtime_server import realtime_server
from tests.support.tls import certificate
from tests.support.upstream import Peer, answering_once, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.errors import UpstreamError
    from proxy.upstream.websocket import UpstreamSocket

REFUSED_PORT = "http://127.0.0.1:1"
BREAKER = BreakerRules(failures=1, within_s=30.0, open_for_s=60.0)


class Silent:
    """A listener that hears nothing."""

    def message(self, opcode: int, payload: bytes) -> bool:
        return False

    def closed(self, code: int | None, reason: str) -> None: ...
    def lost(self, error: UpstreamError) -> None: ...


class Call:
    """A route to these URLs, and one request to it."""

    def __init__(self, *urls: str, attempts: int = 3, first_token_s: float | None = None) -> None:
        self.replicas = [
            Replica(index, parse_origin(url)[0], "", standing=Standing(BREAKER)) for index, url in enumerate(urls)
        ]
        self.route = Route(
            "m",
            "voice",
            (),
            self.replicas,
            RoundRobin(),
            Timeouts(5.0, first_token_s, None, None),
            None,
            passthrough=False,
            retry=RetryRules(attempts, 5.0),
        )
        self.record = RequestRecord("req_1", "GET", "/v1/realtime", 0.0)
        body = RequestBody.parse(b'{"model":"m","stream":true}')
        self.request = ProxyRequest("/v1/realtime", "model=m", (), (), body, "req_1")

    async def dial(self, dialler: Dialler) -> UpstreamSocket:
        return await dialler.dial(self.request, (), self.route, self.record)

    @property
    def in_flight(self) -> list[int]:
        return [replica.in_flight for replica in self.replicas]

    def states(self) -> list[State]:
        now = asyncio.get_running_loop().time()
        return [replica.standing.breaker_state(now) for replica in self.replicas]

    def outcomes(self) -> list[tuple[int, Outcome]]:
        return [(attempt.replica, attempt.outcome) for attempt in self.record.attempted]


@asynccontextmanager
async def a_dialler(budget: RetryBudget | None = None) -> AsyncIterator[Dialler]:
    dialler = Dialler(SocketLimits(1 << 20, None), budget, Random(1))
    try:
        yield dialler
    finally:
        async with asyncio.timeout(5):
            await dialler.close()


async def test_a_socket_is_in_flight_at_its_replica_until_it_is_over() -> None:
    async with realtime_server() as server, a_dialler() as dialler:
        call = Call(server.url)
        socket = await call.dial(dialler)
        assert (call.in_flight, call.record.phase, call.record.attempts) == ([1], Phase.STREAM, 1)
        socket.close(1000, "done")
        assert await server.closed() == (1000, "done")
        async with asyncio.timeout(5):
            while call.in_flight != [0]:
                await asyncio.sleep(0)
        assert call.states() == [State.CLOSED]


async def test_a_replica_behind_tls_is_dialled_where_its_certificate_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, key = certificate(tmp_path)
    async with realtime_server(tls=server_tls(str(own), str(key))) as server, a_dialler() as dialler:
        assert server.url.startswith("https://")
        with pytest.raises(UpstreamUnreachable, match="TLS failed"):
            await Call(server.url, attempts=1).dial(dialler)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    async with realtime_server(tls=server_tls(str(own), str(key))) as server, a_dialler() as dialler:
        socket = await Call(server.url).dial(dialler)
        socket.listen(Silent())
        socket.send(Opcode.TEXT, b"x" * 100_000)
        socket.close(4000, "done")
        assert await server.closed() == (4000, "done")


async def test_the_next_replica_is_dialled_where_one_refuses_the_connection() -> None:
    async with realtime_server() as server, a_dialler() as dialler:
        call = Call(REFUSED_PORT, server.url)
        await call.dial(dialler)
        assert (call.record.replica, call.record.attempts, call.in_flight) == (1, 2, [0, 1])
        assert call.outcomes() == [(0, Outcome.REFUSED)]
        assert call.states() == [State.OPEN, State.CLOSED]


async def test_tries_draw_on_the_budget_that_others_have_too() -> None:
    budget = RetryBudget()
    async with realtime_server() as server, a_dialler(budget) as dialler:
        now = asyncio.get_running_loop().time()
        assert sum(budget.spend(now) for _ in range(LEAST + 1)) == LEAST
        call = Call(REFUSED_PORT, server.url)
        with pytest.raises(UpstreamUnreachable):
            await call.dial(dialler)
        assert (call.record.attempts, call.in_flight) == (1, [0, 0])


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_the_next_replica_is_dialled_where_one_cannot_serve_now(status: int) -> None:
    async with realtime_server() as busy, realtime_server() as server, a_dialler() as dialler:
        busy.refuses = (status, {}, b"later")
        call = Call(busy.url, server.url)
        await call.dial(dialler)
        assert (call.record.replica, call.outcomes()) == (1, [(0, Outcome.STATUS)])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 501])
async def test_a_refusal_of_the_request_itself_is_passed_on(status: int) -> None:
    async with realtime_server() as first, realtime_server() as second, a_dialler() as dialler:
        first.refuses = (status, {}, b"no")
        call = Call(first.url, second.url)
        with pytest.raises(UpgradeRefused) as raised:
            await call.dial(dialler)
        assert (raised.value.status, raised.value.body) == (status, b"no")
        assert (second.requests, call.in_flight, call.record.attempts) == ([], [0, 0], 1)
        assert call.states() == [State.CLOSED, State.CLOSED]


async def test_the_last_refusal_is_passed_on_where_all_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.0)
    async with realtime_server() as server, a_dialler() as dialler:
        server.refuses = (503, {"Retry-After": "1"}, b"busy")
        call = Call(server.url, server.url, attempts=2)
        with pytest.raises(UpgradeRefused) as raised:
            await call.dial(dialler)
        assert ("Retry-After", "1") in raised.value.headers
        assert (len(server.requests), call.in_flight) == (2, [0, 0])


async def test_silence_is_never_asked_again_but_another_replica_is() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with scripted_upstream(script) as silent, realtime_server() as server, a_dialler() as dialler:
        call = Call(silent.url, server.url, first_token_s=0.05)
        await call.dial(dialler)
        assert (call.record.replica, call.outcomes()) == (1, [(0, Outcome.TIMEOUT)])
        alone = Call(silent.url, first_token_s=0.05)
        with pytest.raises(FirstTokenTimeout) as raised:
            await alone.dial(dialler)
        assert raised.value.message.startswith('route "m": replica 0: nothing came')
        assert silent.connections == 2


async def test_an_answer_that_is_none_is_the_clients_to_know() -> None:
    async with scripted_upstream(answering_once(b"SSH-2.0\r\n\r\n")) as upstream, a_dialler() as dialler:
        call = Call(upstream.url)
        with pytest.raises(UpstreamInvalid):
            await call.dial(dialler)
        assert (call.outcomes(), call.states()) == ([(0, Outcome.INVALID)], [State.OPEN])


async def test_where_no_replica_may_be_asked_the_client_is_told_when_to_come_back() -> None:
    async with a_dialler() as dialler:
        call = Call(REFUSED_PORT, attempts=1)
        with pytest.raises(UpstreamUnreachable):
            await call.dial(dialler)
        with pytest.raises(Unavailable) as raised:
            await call.dial(dialler)
        assert raised.value.retry_after_s is not None
        assert 50 < raised.value.retry_after_s <= 60


async def test_a_server_that_vanishes_later_speaks_against_its_replica() -> None:
    async with realtime_server() as server, a_dialler() as dialler:
        call = Call(server.url)
        socket = await call.dial(dialler)
        socket.listen(Silent())
        server.sockets[0].transport.abort()
        async with asyncio.timeout(5):
            while call.in_flight != [0]:
                await asyncio.sleep(0)
        assert call.states() == [State.OPEN]


async def test_a_client_that_leaves_while_dialling_leaves_nothing_behind() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    async with scripted_upstream(script) as upstream, a_dialler() as dialler:
        call = Call(upstream.url)
        task = asyncio.ensure_future(call.dial(dialler))
        await asked.wait()
        assert (call.in_flight, call.record.phase) == ([1], Phase.HEADERS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (call.in_flight, call.states(), call.outcomes()) == ([0], [State.CLOSED], [])


async def test_the_built_in_model_has_no_sessions_and_says_so() -> None:
    async with a_dialler() as dialler:
        with pytest.raises(UpgradeRefused) as raised:
            await Call("demo://").dial(dialler)
    error = json.loads(raised.value.body)["error"]
    assert (raised.value.status, error["code"]) == (501, "not_implemented")
    assert 'route "m"' in error["message"]


async def test_what_is_open_is_closed_with_the_dialler() -> None:
    async with realtime_server() as server:
        async with a_dialler() as dialler:
            calls = [Call(server.url) for _ in range(3)]
            for call in calls:
                await call.dial(dialler)
        assert [call.in_flight for call in calls] == [[0]] * 3
