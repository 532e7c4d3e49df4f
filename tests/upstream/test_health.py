"""Health checks against scripted replicas: what takes one out, and what brings it back."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.routing.breaker import State
from proxy.routing.failure_kind import FailureKind
from proxy.routing.standing import Visit
from proxy.upstream import health, probe
from proxy.upstream.health import HealthChecks
from proxy.upstream.pool import Pool
from tests.support.dispatching import replicated, table_of
from tests.support.upstream import Peer, Script, answer, answering, saying, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path
    from types import ModuleType

    from proxy.routing.table import Route

OFTEN = ", health: {every: 10ms, timeout: 40ms, fall: 3, rise: 2}, breaker: {failures: 1, open_for: 60s}"
PATIENCE_S = 10.0


@asynccontextmanager
async def checking(routes: Iterable[Route]) -> AsyncIterator[HealthChecks]:
    pool = Pool()
    checks = HealthChecks(pool)
    checks.watch(routes)
    yield checks
    await checks.close()
    await pool.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (answering(answer(500, b"{}")), "it answers 500"),
        (answering(answer(503, b"{}")), "it answers 503"),
        (saying(end="reset"), "the connection was closed before an answer came"),
        (saying(b"garbage\r\n"), "the answer is not HTTP/1.1"),
        (saying(end="stall"), "no answer within 0.04 s"),
    ],
)
async def test_a_replica_that_does_not_answer_well_is_taken_out(
    script: Script, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_upstream(script) as upstream:
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
        standing = route.replicas[0].standing
        async with checking([route]):
            await until(lambda: not standing.up())
            assert not standing.available(asyncio.get_running_loop().time())
            assert upstream.connections >= 3
    assert [record.getMessage() for record in caplog.records] == [f'route "chat": replica 0 is down: {told}']


async def test_a_replica_that_refuses_connections_is_taken_out_and_comes_back_with_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    async with scripted_upstream(answering(answer(200, b""))) as upstream:
        port = int(upstream.url.rpartition(":")[2])
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
    standing = route.replicas[0].standing
    async with checking([route]):
        await until(lambda: not standing.up())
        async with scripted_upstream(answering(answer(200, b"")), ("127.0.0.1", port)):
            await until(standing.up)
    assert caplog.messages[0].startswith('route "chat": replica 0 is down: the connection was refused')
    assert caplog.messages[1:] == ['route "chat": replica 0 is up again']


@pytest.mark.parametrize("status", [200, 204, 301, 401, 404, 405])
async def test_a_replica_that_answers_lives_whatever_it_says_of_the_path(status: int, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(status, b""))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
        async with checking([route]):
            await until(lambda: len(upstream.requests) >= 4)
            assert route.replicas[0].standing.up()


async def test_a_probe_says_what_the_replica_needs_and_nothing_more(tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        own = f'{{url: "{upstream.url}/api", api_key: sk-own, headers: {{X-Team: red}}}}'
        health = "health: {every: 10ms, path: /ready?deep=1}"
        table = table_of(tmp_path, f"chat: {{replicas: [{own}], {health}}}")
        async with checking(table.routes):
            await until(lambda: len(upstream.requests) >= 2)
        host = upstream.url.removeprefix("http://")
        assert upstream.requests[0].head.decode().split("\r\n") == [
            "GET /api/ready?deep=1 HTTP/1.1",
            f"Host: {host}",
            "X-Team: red",
            "Authorization: Bearer sk-own",
            "Accept-Encoding: identity",
            "",
            "",
        ]


async def test_only_what_is_to_be_checked_is(tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        table = table_of(
            tmp_path,
            f'off: {{replicas: ["{upstream.url}"], health: none}}, demo: "demo://", '
            f'on: {{replicas: ["{upstream.url}"], health: {{every: 10ms, path: /on}}}}',
        )
        async with checking(table.routes) as checks:
            await until(lambda: len(upstream.requests) >= 3)
            assert {received.target for received in upstream.requests} == {"/on"}
            checks.watch(())
            await asyncio.sleep(0.03)
            before = upstream.connections
            await asyncio.sleep(0.03)
            assert upstream.connections == before


async def test_a_replica_that_comes_back_need_not_wait_for_its_breaker(tmp_path: Path) -> None:
    well = False

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200 if well else 500, b""))

    async with scripted_upstream(script) as upstream:
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
        standing = route.replicas[0].standing
        visit = Visit(standing, asyncio.get_running_loop().time())
        visit.failed(FailureKind.UNREACHABLE, asyncio.get_running_loop().time())
        visit.over()
        async with checking([route]):
            await until(lambda: not standing.up())
            well = True
            await until(standing.up)
        now = asyncio.get_running_loop().time()
        assert standing.breaker_state(now) is State.HALF_OPEN
        assert standing.available(now)


async def test_checks_that_are_closed_leave_nothing_behind(tmp_path: Path) -> None:
    async with scripted_upstream(saying(end="stall")) as upstream:
        route = replicated(tmp_path, upstream.url, upstream.url, settings=", health: {every: 1ms, timeout: 60s}")
        before = len(asyncio.all_tasks())
        async with checking([route]):
            await until(lambda: upstream.connections == 2)
        await until(lambda: len(asyncio.all_tasks()) <= before)


@pytest.mark.parametrize(
    "said", [[], [answer(200, b"{}")], [b"HTTP/1.1 200 OK\r\n\r\n"]], ids=["silence", "whole", "open"]
)
async def test_a_probes_connection_is_closed_whatever_it_came_to(said: list[bytes], tmp_path: Path) -> None:
    closed = 0

    async def script(peer: Peer) -> None:
        nonlocal closed
        await peer.request()
        await peer.send(*said)
        await peer.closed()
        closed += 1

    async with scripted_upstream(script) as upstream:
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
        async with checking([route]):
            await until(lambda: closed >= 2)
            assert upstream.connections - closed <= 1


@pytest.mark.parametrize("receiver", [(health, "_Answer"), (probe, "_Listing")], ids=["check", "probe"])
async def test_a_probe_closes_its_connection_before_anybody_else_can_have_it(
    receiver: tuple[ModuleType, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the pool has it back, a request may take it before the probe's task runs again."""
    usable: list[bool] = []

    class Watched(getattr(*receiver)):  # type: ignore[misc]
        def answer_ended(self) -> None:
            connection = self._connection
            super().answer_ended()
            usable.append(connection.usable)

    monkeypatch.setattr(*receiver, Watched)
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=OFTEN)
        await probe.probe([route])
        async with checking([route]):
            await until(lambda: bool(usable))
    assert not any(usable)
