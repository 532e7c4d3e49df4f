"""Runs of the tool loop: opened, collected, refused, stopped; one record each."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.loader import load
from proxy.downstream.tool_runs import RunRefused, ToolRuns, ToolTurn
from proxy.errors import Unavailable, UpstreamError
from proxy.relay import Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import build_table
from proxy.streams.stages import StageStream
from proxy.telemetry.record import EndState, RequestRecord
from proxy.toolchain.servers import ToolServers
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard
from tests.support.served import one_route
from tests.support.stages import lines
from tests.support.tool_rounds import BASE, call, calls, rounds_script, said, streamed, texts, whole
from tests.support.tool_servers import noted, with_quick_tools
from tests.support.upstream import OK_EVENTS, answer, chunk, event, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ECHO = call("echo", '{"text":"hello"}', id="a")
REFUSED = answer(429, b'{"error":{"message":"slow down"}}')


@dataclass
class House:
    """A relay to one scripted replica, its tools, and one request."""

    relay: Relay
    runs: ToolRuns
    record: RequestRecord

    def turn(self, **members: Any) -> ToolTurn:
        base = {**BASE, **members}
        body = RequestBody.parse(b'{"model":"m","stream":true}')
        request = ProxyRequest("/v1/chat/completions", "", (), (), body, "req_1")
        return ToolTurn(request, self.relay.route(request, None, self.record), self.record, base)

    def nothing_is_left(self) -> None:
        assert self.relay.in_flight() == {}
        assert [replica.in_flight for route in self.relay.table.routes for replica in route.replicas] == [0]


@asynccontextmanager
async def house(
    tmp_path: Path, *answers: bytes, then: str = "close", words: tuple[str, ...] = (), loop: str = "{}"
) -> AsyncIterator[House]:
    async with scripted_upstream(rounds_script(*answers, then=then)) as upstream:
        settings = ("retry: {attempts: 1}", "health: none", "tools: [bench]", f"toolchain: {loop}")
        file = tmp_path / "routes.yaml"
        file.write_text(with_quick_tools(one_route(upstream.url, *settings), *words))
        config = load(file, {})
        pool, servers = Pool(), ToolServers.of(config)
        relay = Relay(build_table(config), Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda _: None))
        runs = ToolRuns(relay, servers, 1 << 20)
        record = RequestRecord("req_1", "POST", "/stream/v1/toolchain", asyncio.get_running_loop().time())
        there = House(relay, runs, record)
        try:
            yield there
            there.nothing_is_left()
        finally:
            await runs.close()
            await servers.close()
            await pool.close()


async def test_a_run_goes_into_its_sink_and_is_settled_when_closed(tmp_path: Path) -> None:
    async with house(tmp_path, streamed(calls(ECHO)), streamed(texts("ok", number=1))) as there:
        stage = StageStream("s")
        run = await there.runs.open(there.turn(), stage)
        assert run.answer.status == 200
        heard = Heard(stage.stream)
        await heard.over.wait()
        assert there.relay.in_flight() == {"m": 1}
        run.close()
        record = there.record
    assert [line.split(" ")[0] for line in lines(heard.wire)][-1] == "done"
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.COMPLETED, 2, 1)


async def test_the_routes_settings_bound_the_loop(tmp_path: Path) -> None:
    rounds = [streamed(calls(ECHO, number=number)) for number in range(3)]
    async with house(tmp_path, *rounds, loop="{max_rounds: 2, parallel: 1}") as there:
        stage = StageStream("s")
        turn = there.turn()
        assert (turn.asked.max_rounds, turn.asked.parallel, turn.asked.total_s) == (2, 1, None)
        run = await there.runs.open(turn, stage)
        await Heard(stage.stream).over.wait()
        run.close()
    assert (there.record.rounds, there.record.tool_calls) == (2, 2)


async def test_a_run_that_is_closed_early_was_left_by_its_client(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with house(tmp_path, streamed(calls(call("hold"))), words=(f"notes={notes}",)) as there:
        stage = StageStream("s")
        run = await there.runs.open(there.turn(), stage)
        heard = Heard(stage.stream)
        await noted(notes, "hold")
        run.close()
        there.nothing_is_left()
        record = there.record
        told = (record.end_state, record.rounds, record.tool_calls)
        await there.runs.close()
        await noted(notes, "cancelled")
    assert told == (EndState.CLIENT_CLOSED, 1, 1)
    assert heard.ends == []


async def test_a_run_that_failed_ends_as_its_error_says(tmp_path: Path) -> None:
    cut = OK_EVENTS + chunk(event(said(content="a")))
    async with house(tmp_path, cut, then="reset") as there:
        stage = StageStream("s")
        run = await there.runs.open(there.turn(), stage)
        await Heard(stage.stream).over.wait()
        run.close()
    assert there.record.end_state is EndState.UPSTREAM_TRUNCATED


async def test_a_drain_that_is_over_ends_a_run(tmp_path: Path) -> None:
    async with house(tmp_path, streamed(calls(call("hold")))) as there:
        stage = StageStream("s")
        run = await there.runs.open(there.turn(), stage)
        heard = Heard(stage.stream)
        await there.relay.drain(0.02)
        run.close()
    assert lines(heard.wire)[-1] == "cancel {}"
    assert there.record.end_state is EndState.DRAINED


@pytest.mark.parametrize("streams", [True, False])
async def test_a_first_round_that_is_refused_is_raised_with_its_answer(streams: bool, tmp_path: Path) -> None:
    async with house(tmp_path, REFUSED) as there:
        turn = there.turn(stream=streams)
        with pytest.raises(RunRefused) as refused:
            await (there.runs.open(turn, StageStream("s")) if streams else there.runs.collect(turn))
    assert (refused.value.answer.status, refused.value.answer.body) == (429, b'{"error":{"message":"slow down"}}')
    assert (there.record.end_state, there.record.rounds) == (EndState.UPSTREAM_REJECTED, 1)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_first_round_that_fails_is_raised_and_the_record_left_to_the_caller(
    streams: bool, tmp_path: Path
) -> None:
    async with house(tmp_path) as there:
        turn = there.turn(stream=streams)
        with pytest.raises(UpstreamError):
            await (there.runs.open(turn, StageStream("s")) if streams else there.runs.collect(turn))
    assert (there.record.end_state, there.record.attempts) == (None, 1)


async def test_tools_that_are_out_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    async with house(tmp_path, streamed(texts("hi")), words=("dies=1",)) as there:
        with pytest.raises(Unavailable) as raised:
            await there.runs.open(there.turn(), StageStream("s"))
    assert raised.value.code == "tools_unavailable"
    assert there.record.attempts == 0


async def test_a_collection_is_whole_and_settled(tmp_path: Path) -> None:
    rounds = (whole(None, ECHO), whole("Hello it is."))
    async with house(tmp_path, *rounds) as there:
        collected, first = await there.runs.collect(there.turn(stream=False))
    assert (len(collected.completions), len(collected.summaries), first.status) == (2, 1, 200)
    record = there.record
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.COMPLETED, 2, 1)


async def test_a_collection_that_is_cancelled_stops_its_tools(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with house(tmp_path, whole(None, call("hold")), words=(f"notes={notes}",)) as there:
        collecting = asyncio.create_task(there.runs.collect(there.turn(stream=False)))
        await noted(notes, "hold")
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        await noted(notes, "cancelled")
    assert (there.record.rounds, there.record.tool_calls) == (1, 1)
