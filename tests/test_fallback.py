"""From a route to its fallbacks: when one is asked, which, and what the client gets where all fail."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from proxy.admission import Admission
from proxy.errors import (
    GatewayError,
    NoReplica,
    TooManyRequests,
    Unavailable,
    UpstreamInvalid,
    UpstreamUnreachable,
)
from proxy.fallback import Asking, open_with_fallbacks
from proxy.request import RequestBody
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.table import RoutingTable
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.attempt import Opened
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.dispatching import CHAT, Hurried, request_of, table_of
from tests.support.memory_line import turns
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    answer,
    answering,
    chunk,
    content,
    event,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOBODY = "http://127.0.0.1:9"
HELLO = OK_EVENTS + chunk(ROLE + content("hello") + DONE) + LAST_CHUNK
TOO_LONG = answer(400, b'{"error":{"code":"context_length_exceeded","message":"no"}}')
FAILING = answer(500, b'{"error":"mine"}')


class House:
    """Routes, and requests for the route `chat`. `record`, `stream` and `stay` are the last one's."""

    def __init__(self, pool: Pool, budget: RetryBudget | None = None) -> None:
        self._dispatch = Dispatch(
            pool, max_event_bytes=1 << 20, on_malformed=lambda _: None, budget=budget, rng=Hurried()
        )
        self._admission = Admission()

    async def open(self, table: RoutingTable) -> Opened:
        self.record = RequestRecord("req_1", "POST", CHAT, 0.0)
        self.stream = Stream()
        self.stay = self._admission.begin(RequestBody.parse(b'{"model":"chat"}'), self.record)
        asking = Asking(request_of(), table, self.stay, self.stream, self.record)
        return await open_with_fallbacks(asking, table.find("chat", None), self._dispatch)

    async def failure(self, table: RoutingTable) -> GatewayError:
        with pytest.raises(GatewayError) as raised:
            await self.open(table)
        return raised.value

    def way(self) -> list[str]:
        """The routes that were asked, in order, and the one that the record names in the end."""
        return [*dict.fromkeys(attempt.route for attempt in self.record.attempted), self.record.route]


@pytest.fixture
async def there() -> AsyncIterator[House]:
    pool = Pool()
    yield House(pool)
    async with asyncio.timeout(5):
        await pool.close()


def routes(tmp_path: Path, *chain: str, chat: str = "", other: str = "") -> RoutingTable:
    """`chat` on the first address, and fallbacks `b`, `c`, … on the others; all are asked once."""
    names = ["chat", "b", "c", "d"][: len(chain)]
    more = {"chat": f", fallbacks: [{', '.join(names[1:])}]{chat}"}
    once = "retry: {attempts: 1}, health: {fall: 1}"
    listed = [
        f'{name}: {{replicas: ["{url}"], {once}{more.get(name, other)}}}'
        for name, url in zip(names, chain, strict=True)
    ]
    return table_of(tmp_path, ", ".join(listed))


@pytest.mark.parametrize(
    "script",
    [
        answering(FAILING),
        answering(answer(429, b"{}")),
        saying(end="reset"),
        saying(end="stall"),
        answering(OK_EVENTS, chunk(event(b'{"error":{"message":"no"}}')), LAST_CHUNK),
    ],
    ids=["500", "429", "reset", "silence", "error event"],
)
async def test_a_route_that_fails_falls_back(script: object, there: House, tmp_path: Path) -> None:
    async with scripted_upstream(script) as bad, scripted_upstream(answering(HELLO)) as good:  # type: ignore[arg-type]
        table = routes(tmp_path, bad.url, good.url, chat=", timeouts: {first_token: 150ms}")
        opened = await there.open(table)
        assert (opened.kind, opened.route.name, there.way()) == (None, "b", ["chat", "b"])
        assert there.record.attempts == 2
        there.stream.cancel()


async def test_a_route_without_a_replica_that_may_be_asked_falls_back(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as good:
        table = routes(tmp_path, NOBODY, good.url)
        table.find("chat", None).replicas[0].standing.probed(well=False, now=0.0)
        opened = await there.open(table)
        assert (opened.route.name, there.record.attempts, there.record.route) == ("b", 1, "b")


@pytest.mark.parametrize("said", [answer(400, b"{}"), answer(404, b"{}"), answer(302, b""), b"garbage\r\n", TOO_LONG])
async def test_what_another_route_would_not_mend_does_not(said: bytes, there: House, tmp_path: Path) -> None:
    async with scripted_upstream(saying(said)) as bad, scripted_upstream(answering(HELLO)) as good:
        table = routes(tmp_path, bad.url, good.url)
        with suppress(UpstreamInvalid):
            assert (await there.open(table)).opening.status == int(said[9:12])
        assert (good.connections, there.record.route) == (0, "chat")


async def test_a_prompt_that_is_too_long_goes_where_the_file_says(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(TOO_LONG)) as short, scripted_upstream(answering(HELLO)) as long:
        table = table_of(
            tmp_path,
            f'chat: {{replicas: ["{short.url}"], fallbacks: [b, {{route: c, for: [context_length]}}]}}, '
            f'b: "{NOBODY}", c: "{long.url}"',
        )
        opened = await there.open(table)
        assert (opened.route.name, there.way()) == ("c", ["chat", "c"])


async def test_fallbacks_are_asked_in_their_order_until_one_answers(there: House, tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(FAILING)) as bad,
        scripted_upstream(saying(end="reset")) as worse,
        scripted_upstream(answering(HELLO)) as good,
    ):
        await there.open(routes(tmp_path, bad.url, worse.url, good.url, NOBODY))
        assert there.way() == ["chat", "b", "c"]


async def test_a_fallbacks_refusal_is_passed_on(there: House, tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(FAILING)) as bad,
        scripted_upstream(answering(answer(400, b'{"b":1}'))) as strict,
        scripted_upstream(answering(HELLO)) as good,
    ):
        opened = await there.open(routes(tmp_path, bad.url, strict.url, good.url))
        assert (opened.opening.status, opened.opening.body, good.connections) == (400, b'{"b":1}', 0)


async def test_where_all_fail_the_last_failure_of_a_replica_is_told(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(FAILING)) as bad:
        error = await there.failure(routes(tmp_path, bad.url, NOBODY))
        assert type(error) is UpstreamUnreachable
        assert error.message.startswith('route "b": replica 0: ')
        opened = await there.open(routes(tmp_path, NOBODY, bad.url))
        assert (opened.opening.status, opened.opening.body) == (500, b'{"error":"mine"}')
        assert (there.record.route, there.record.replica) == ("b", 0)


async def test_a_fallback_that_nobody_may_ask_hides_no_failure(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(FAILING)) as bad:
        table = routes(tmp_path, bad.url, NOBODY)
        table.find("b", None).replicas[0].standing.probed(well=False, now=0.0)
        assert (await there.open(table)).opening.body == b'{"error":"mine"}'
        table.find("chat", None).replicas[0].standing.probed(well=False, now=0.0)
        error = await there.failure(table)
        assert type(error) is NoReplica
        assert error.message.startswith('route "chat": no replica available (1 down)')


async def test_a_fallback_that_is_not_ready_or_speaks_otherwise_is_passed_over(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as good:
        table = table_of(
            tmp_path,
            f'chat: {{replicas: ["{NOBODY}"], retry: {{attempts: 1}}, fallbacks: [a, e, u, b]}}, '
            f'a: {{replicas: ["{good.url}"], protocol: anthropic}}, e: {{replicas: []}}, '
            f'u: {{replicas: ["{good.url}"], model: "${{NOBODY_SET_THIS:-}}"}}, b: "{good.url}"',
        )
        await there.open(table)
        assert there.way() == ["chat", "b"]


async def test_each_route_on_the_way_has_its_own_attempts(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(FAILING)) as bad:
        table = table_of(
            tmp_path,
            f'chat: {{replicas: ["{bad.url}"], retry: {{attempts: 2}}, fallbacks: [b]}}, '
            f'b: {{replicas: ["{bad.url}"], retry: {{attempts: 3}}}}',
        )
        await there.open(table)
        assert [attempt.route for attempt in there.record.attempted] == ["chat"] * 2 + ["b"] * 3


async def test_a_full_queue_is_no_reason_to_fall_back(there: House, tmp_path: Path) -> None:
    table = routes(tmp_path, NOBODY, NOBODY, chat=", limits: {streams: 1, queue: 0}")
    table.find("chat", None).limiter.enter("", 0.0)
    error = await there.failure(table)
    assert type(error) is TooManyRequests
    assert (error.code, error.status, there.record.attempts) == ("queue_full", 429, 0)
    assert error.retry_after_s is not None


async def test_a_full_fallback_is_passed_over(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as good:
        table = routes(tmp_path, NOBODY, NOBODY, good.url, other=", limits: {streams: 1, queue: 0}")
        table.find("b", None).limiter.enter("", 0.0)
        await there.open(table)
        assert there.way() == ["chat", "c"]
        in_flight = [table.find(name, None).limiter.in_flight for name in ("chat", "b", "c")]
        assert in_flight == [0, 1, 1]
        there.stream.cancel()
        there.stay.end(0)
        assert table.find("c", None).limiter.in_flight == 0


async def test_who_waits_too_long_is_told(there: House, tmp_path: Path) -> None:
    table = routes(tmp_path, NOBODY, chat=", limits: {streams: 1, queue_timeout: 10ms}")
    table.find("chat", None).limiter.enter("", 0.0)
    error = await there.failure(table)
    assert type(error) is Unavailable
    assert (error.code, error.status) == ("queue_timeout", 503)
    assert there.record.queue_ms >= 10


async def test_a_drain_that_ends_a_wait_is_no_reason_to_fall_back(there: House, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as good:
        table = routes(tmp_path, NOBODY, good.url, chat=", limits: {streams: 1}")
        table.find("chat", None).limiter.enter("", 0.0)
        task = asyncio.create_task(there.open(table))
        await turns()
        there.stream.interrupt(Unavailable("shutting down", code="draining"))
        with pytest.raises(Unavailable) as raised:
            await task
        assert (raised.value.code, good.connections) == ("draining", 0)


async def test_a_request_that_falls_back_is_one_request_of_the_budget(tmp_path: Path) -> None:
    counted: list[float] = []

    class Counting(RetryBudget):
        def request(self, now: float) -> None:
            counted.append(now)
            super().request(now)

    async with scripted_upstream(answering(FAILING)) as bad, scripted_upstream(answering(HELLO)) as good:
        pool = Pool()
        there = House(pool, Counting())
        opened = await there.open(routes(tmp_path, bad.url, good.url))
        assert (opened.route.name, len(counted)) == ("b", 1)
        there.stream.cancel()
        await pool.close()
