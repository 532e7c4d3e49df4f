"""Opening stages: what a turn is, what a stage holds while it is open, and what its record says in the end."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from proxy.access.keys import Key
from proxy.config.loader import load
from proxy.downstream.stages import Client, OpenStage, StageRefused, Stages, StageTurn
from proxy.downstream.tool_runs import ToolRuns
from proxy.errors import Forbidden, InvalidRequest, Unavailable, UpstreamInvalid
from proxy.relay import Relay
from proxy.routing.table import build_table
from proxy.telemetry.record import EndState, RequestRecord
from proxy.toolchain.servers import ToolServers
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard
from tests.support.served import one_route
from tests.support.stages import lines, stage
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Script,
    answer,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT, WHOLE = "/stream/v1/chat", "/completion/v1/chat"
STREAM = (OK_EVENTS, chunk(content("hi") + STOP), LAST_CHUNK)


@dataclass
class House:
    """A relay to one scripted replica, and the stages on it."""

    relay: Relay
    stages: Stages
    records: list[RequestRecord] = field(default_factory=list)

    def turn(self, path: str = CHAT, key: Key | None = None, **members: object) -> StageTurn:
        record = RequestRecord("r", "POST", path, 0.0)
        self.records.append(record)
        return self.stages.turn(json.dumps(stage(**members)).encode(), path, Client(key, (), ()), record)

    async def open(self) -> tuple[OpenStage, RequestRecord]:
        turn = self.turn()
        return await self.stages.open(turn), turn.record

    def nothing_is_left(self) -> None:
        assert not self.relay.in_flight()
        [replica] = self.relay.table.routes[0].replicas
        assert replica.in_flight == 0


@asynccontextmanager
async def house_of(tmp_path: Path, *pieces: bytes, script: Script | None = None) -> AsyncIterator[House]:
    async with scripted_upstream(script or answering(*pieces)) as upstream:
        file = tmp_path / "routes.yaml"
        file.write_text(one_route(upstream.url, "aliases: [other]"))
        pool = Pool()
        dispatch = Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda route: None)
        relay = Relay(build_table(load(file, {})), dispatch)
        try:
            yield House(relay, Stages(relay, ToolRuns(relay, ToolServers({}), 1000), 1000))
        finally:
            await pool.close()


async def test_a_turn_knows_its_route_and_its_completion(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        turn = house.turn(model_container="other", max_tokens=[1, 2])
    assert (turn.route.name, turn.record.route, turn.record.model) == ("m", "m", "other")
    assert turn.request.path == "/v1/chat/completions"
    assert turn.request.body.stream
    assert turn.request.body.value("max_tokens") == 1
    assert turn.record.bytes_in > 0


async def test_a_completions_turn_does_not_stream(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        assert not house.turn(WHOLE).request.body.stream


async def test_a_drain_is_told_to_who_could_have_been_served_only(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        await house.relay.drain(0)
        with pytest.raises(Unavailable) as draining:
            house.turn()
        assert draining.value.code == "draining"
        with pytest.raises(InvalidRequest, match="Unknown model"):
            house.turn(model_container="x")


async def test_a_key_is_told_its_models_by_their_routes_names(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        with pytest.raises(InvalidRequest, match=r"Available models: \['m'\]$"):
            house.turn(key=Key("web", ("m",)), model_container="x")
        with pytest.raises(InvalidRequest, match=r"Available models: \[\]$"):
            house.turn(key=Key("web", ("elsewhere",)), model_container="x")
        with pytest.raises(Forbidden):
            house.turn(key=Key("web", ("elsewhere",)))


async def test_an_open_stage_gives_its_events_and_is_settled_when_closed(tmp_path: Path) -> None:
    async with house_of(tmp_path, *STREAM) as house:
        opened, record = await house.open()
        assert opened.answer is not None
        heard = Heard(opened.stage.stream)
        await heard.over.wait()
        house.stages.close(opened, record)
        house.nothing_is_left()
    assert [line.split(" ")[0] for line in lines(heard.wire)] == [*["chat_completion_chunk"] * 2, "done"]
    assert (record.end_state, record.events) == (EndState.COMPLETED, 2)


async def test_a_stage_that_is_closed_early_was_left_by_its_client(tmp_path: Path) -> None:
    async with house_of(tmp_path, OK_EVENTS, chunk(content("hi"))) as house:
        opened, record = await house.open()
        heard = Heard(opened.stage.stream)
        house.stages.close(opened, record)
        house.nothing_is_left()
        assert opened.stage.over
    assert (record.end_state, heard.ends) == (EndState.CLIENT_CLOSED, [])


@pytest.mark.parametrize("path", [CHAT, WHOLE])
async def test_an_upstreams_refusal_keeps_its_status_and_words(path: str, tmp_path: Path) -> None:
    async with house_of(tmp_path, answer(429, b'{"error":{"message":"slow down"}}')) as house:
        turn = house.turn(path)
        with pytest.raises(StageRefused, match=r"^slow down$") as refused:
            await (house.stages.open(turn) if path == CHAT else house.stages.complete(turn))
        house.nothing_is_left()
    assert refused.value.answer.status == 429
    assert turn.record.end_state is EndState.UPSTREAM_REJECTED


async def test_what_is_no_stream_is_an_error_of_the_upstreams(tmp_path: Path) -> None:
    async with house_of(tmp_path, answer(200, b"{}")) as house:
        turn = house.turn()
        with pytest.raises(UpstreamInvalid):
            await house.stages.open(turn)
        house.nothing_is_left()
    assert turn.record.end_state is EndState.UPSTREAM_ERROR


async def test_a_stage_that_failed_before_it_began_says_so_as_its_only_event(tmp_path: Path) -> None:
    async with house_of(tmp_path) as house:
        turn = house.turn()
        opened = house.stages.failed(turn, UpstreamInvalid("bad"))
        heard = Heard(opened.stage.stream)
        house.stages.close(opened, turn.record)
    assert lines(heard.wire) == ['error {"error":"Bad"}']
    assert heard.ends == [None]
    assert (turn.record.status, turn.record.end_state) == (200, EndState.UPSTREAM_ERROR)


async def test_a_completion_has_the_stages_id_and_a_content_type(tmp_path: Path) -> None:
    async with house_of(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + b'{"n":1}') as house:
        turn = house.turn(WHOLE)
        given = await house.stages.complete(turn)
        house.nothing_is_left()
    assert given.body == b'{"stage_id":"s","chat_completion":{"n":1}}'
    assert ("Content-Type", "application/json") in given.headers
    assert turn.record.end_state is EndState.COMPLETED
