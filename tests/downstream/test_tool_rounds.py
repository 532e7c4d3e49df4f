"""The exchanges of one request: each with its own body, all under one record, and ended as one."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from proxy.access.limits import KeyRules
from proxy.admission import Admission
from proxy.config.loader import load
from proxy.downstream.tool_rounds import ToolRounds
from proxy.errors import TooManyRequests, Unavailable, UpstreamError, UpstreamInvalid
from proxy.relay import Relay, draining
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import build_table
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import RequestRecord
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard
from tests.support.served import one_route
from tests.support.tool_rounds import piece, rounds_script, streamed, texts, whole
from tests.support.upstream import OK_EVENTS, ScriptedUpstream, answer, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from proxy.admission import Stay
    from proxy.toolchain.rounds import RoundAnswer

USAGE = {"prompt_tokens": 10, "completion_tokens": 2}
ROUND = streamed([*texts("Hi."), piece(0, usage=USAGE)])


@dataclass(frozen=True)
class Count:
    rounds: int = 2
    tool_calls: int = 3


@dataclass
class House:
    """A relay to one scripted replica, and one request of several rounds."""

    relay: Relay
    rounds: ToolRounds
    request: ProxyRequest
    record: RequestRecord
    upstream: ScriptedUpstream
    hung_up: asyncio.Event

    def ask(self, **members: object) -> Awaitable[RoundAnswer]:
        return self.rounds.exchanges._open(json.dumps({"model": "m", "stream": True, **members}).encode())

    def another(self) -> Stay:
        """Another request of the same key's."""
        record = RequestRecord("req_2", "POST", "/", 0.0, key="web")
        return self.relay.take_on(self.request, record)

    async def give(self, **members: object) -> None:
        """One round, to its end."""
        given = await self.ask(**members)
        if given.body is None:
            await Heard(given.stream).over.wait()
        self.rounds.exchanges.close(given)


@asynccontextmanager
async def house(
    tmp_path: Path, *answers: bytes, then: str = "close", longest: int = 1 << 20, rules: KeyRules | None = None
) -> AsyncIterator[House]:
    hung_up = asyncio.Event()
    async with scripted_upstream(rounds_script(*answers, then=then, hung_up=hung_up)) as upstream:
        file = tmp_path / "routes.yaml"
        limits = "limits: {streams: 1, queue: 0}"
        file.write_text(one_route(upstream.url, "retry: {attempts: 1}", "health: none", "model: big", limits))
        pool = Pool()
        dispatch = Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda _: None)
        relay = Relay(build_table(load(file, {})), dispatch, Admission({"web": rules or KeyRules()}))
        body = RequestBody.parse(b'{"model":"m","stream":true}')
        headers = (("X-Team", "search"),)
        request = ProxyRequest("/v1/chat/completions", "", headers, (), body, "req_1")
        record = RequestRecord("req_1", "POST", "/stream/v1/toolchain", asyncio.get_running_loop().time())
        record.key = "web"
        route = relay.route(request, None, record)
        rounds = ToolRounds(relay, request, route, record, longest)
        try:
            yield House(relay, rounds, request, record, upstream, hung_up)
        finally:
            rounds.close(None)
            await pool.close()
        assert relay.in_flight() == {}
        assert [replica.in_flight for replica in route.replicas] == [0]
        assert route.limiter.in_flight == 0


async def test_every_round_is_sent_as_the_request_is_with_a_body_of_its_own(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND, ROUND) as there:
        await there.give(messages=[1])
        await there.give(messages=[1, 2])
        requests = there.upstream.requests
    assert [json.loads(request.body)["messages"] for request in requests] == [[1], [1, 2]]
    assert {json.loads(request.body)["model"] for request in requests} == {"big"}
    assert [request.header("x-team") for request in requests] == ["search"] * 2
    assert [request.header("x-request-id") for request in requests] == ["req_1"] * 2


async def test_the_record_has_what_all_rounds_took(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND, ROUND) as there:
        await there.give()
        first_token_ms = there.record.ttft_ms
        await there.give()
        there.rounds.close(Count())
        record = there.record
    assert (record.rounds, record.tool_calls) == (2, 3)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (20, 4, False)
    assert (record.attempts, record.replica) == (2, 0)
    assert record.attempted == [("m", 0, Outcome.OK)] * 2
    assert record.events == 2 * 4  # the chunks with something in them, and [DONE]
    assert record.ttft_ms == first_token_ms is not None
    assert (record.reads, record.last_event_ms, record.end_state) == (None, None, None)


async def test_one_round_keeps_its_pace(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND) as there:
        await there.give()
    assert there.record.last_event_ms is not None


async def test_a_round_that_failed_counts_too(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND) as there:
        await there.give()
        with pytest.raises(UpstreamError):
            await there.ask()
        record = there.record
    assert record.attempts == 3  # a kept connection, then a fresh one
    assert record.attempted == [("m", 0, Outcome.OK), ("m", 0, Outcome.RESET), ("m", 0, Outcome.RESET)]
    assert record.tokens_in == 10


async def test_the_request_is_under_way_between_its_rounds_and_counts_once(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND) as there:
        assert there.relay.in_flight() == {"m": 1}
        given = await there.ask()
        assert there.relay.in_flight() == {"m": 1}
        there.rounds.exchanges.close(given)
        assert there.relay.in_flight() == {"m": 1}
        there.rounds.close(None)
        assert there.relay.in_flight() == {}


async def test_the_request_keeps_its_place_at_the_route_between_its_rounds(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND, ROUND) as there:
        limiter = there.relay.table.routes[0].limiter
        assert limiter.in_flight == 0
        for _ in range(2):
            await there.give()
            assert limiter.in_flight == 1


@pytest.mark.parametrize(
    ("rules", "refused_after"),
    [
        (KeyRules(requests_per_minute=2), False),
        (KeyRules(tokens_per_minute=20), True),  # a round takes 12
        (KeyRules(tokens_per_minute=40), False),
        (KeyRules(streams=1), False),
    ],
)
async def test_the_request_counts_once_for_its_key_and_the_tokens_of_all_rounds(
    rules: KeyRules, refused_after: bool, tmp_path: Path
) -> None:
    async with house(tmp_path, ROUND, ROUND, rules=rules) as there:
        for _ in range(2):
            await there.give()
        if rules.streams is not None:
            with pytest.raises(TooManyRequests):
                there.another()
        there.rounds.close(Count())
        if refused_after:
            with pytest.raises(TooManyRequests):
                there.another()
        else:
            there.another().end(0)


async def test_a_key_that_may_not_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    async with house(tmp_path, ROUND, rules=KeyRules(streams=0)) as there:
        with pytest.raises(TooManyRequests):
            await there.ask()
    assert there.record.attempts == 0


async def test_an_answer_that_is_no_stream_has_all_of_its_body(tmp_path: Path) -> None:
    async with house(tmp_path, whole("x" * 500_000)) as there:
        given = await there.ask(stream=False)
        assert len(given.body or b"") > 500_000
        assert given.events is False


async def test_an_answer_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async with house(tmp_path, whole("x" * 1_000_000), longest=400_000) as there:
        with pytest.raises(UpstreamInvalid, match="too large"):
            await there.ask(stream=False)


async def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    async with house(tmp_path, answer(400, b'{"error":{"message":"no"}}')) as there:
        given = await there.rounds._open(b'{"model":"m","stream":true}')
        assert there.rounds.current() is given is there.rounds.first
    assert given.status == 400


# ---- how it is ended ----


@pytest.mark.parametrize("first", [(), (ROUND,)], ids=["first round", "second round"])
async def test_what_nobody_waits_for_is_stopped_and_its_prompt_counted(
    first: tuple[bytes, ...], tmp_path: Path
) -> None:
    async with house(tmp_path, *first, b"", then="hang") as there:
        for _ in first:
            await there.give()
        asking = asyncio.ensure_future(there.ask(messages=["x" * 400]))
        async with asyncio.timeout(5):
            while len(there.upstream.requests) <= len(first):
                await asyncio.sleep(0.001)
        asking.cancel()
        there.rounds.close(Count())
        assert there.relay.in_flight() == {}
        told = (there.record.attempts, there.record.tokens_in, there.record.tokens_estimated)
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(0.1):
            await there.hung_up.wait()
    assert told == (1 + len(first), 10 * len(first) + 100, True)


async def test_a_drain_that_is_over_ends_what_was_not_answered_yet(tmp_path: Path) -> None:
    async with house(tmp_path, b"", then="hang") as there:
        opening = asyncio.create_task(there.rounds.before_commit(there.ask()))
        async with asyncio.timeout(5):
            while not there.upstream.requests:
                await asyncio.sleep(0.001)
        await there.relay.drain(0.01)
        with pytest.raises(Unavailable) as raised:
            await opening
        async with asyncio.timeout(0.1):
            await there.hung_up.wait()
    assert raised.value.code == "draining"
    assert there.rounds.interruption is raised.value


async def test_a_drain_that_is_over_is_told_to_the_client_once_there_is_a_stream(tmp_path: Path) -> None:
    async with house(tmp_path, OK_EVENTS, then="hang") as there:
        stream = Stream()
        heard = Heard(stream)
        there.rounds.commit(stream)
        await there.relay.drain(0.01)
        assert there.rounds.interruption is heard.ends[0]
        there.rounds.interrupt(draining())
    assert len(heard.ends) == 1


async def test_what_has_ended_already_is_not_interrupted(tmp_path: Path) -> None:
    async with house(tmp_path) as there:
        stream = Stream()
        stream.end()
        there.rounds.commit(stream)
        await there.relay.drain(0.01)
    assert there.rounds.interruption is None


async def test_a_timeout_that_is_nobodys_goes_through(tmp_path: Path) -> None:
    async def late() -> None:
        raise TimeoutError

    async with house(tmp_path) as there:
        with pytest.raises(TimeoutError):
            await there.rounds.before_commit(late())
