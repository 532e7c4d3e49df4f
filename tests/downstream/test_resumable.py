"""Streams over HTTP that outlive their connection, as clients on raw sockets see them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.telemetry.record import EndState
from tests.support.mux import content_of, mux
from tests.support.passing_time import PATIENCE_S, alone, pass_time, store_of
from tests.support.raw_client import RawAnswer, RawClient, ask, chat, get, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    answer,
    answering,
    chunk,
    content,
    event,
    saying,
    scripted_upstream,
)
from tests.support.word_by_word import KEYS, Model, begun, world

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from proxy.streams.store import KeptStream

RESUMABLE = "x-penstock-resumable: true"
ASKING = post("/v1/chat/completions", chat(), RESUMABLE)
WEB, OTHER = "Authorization: Bearer sk-w3b", "Authorization: Bearer sk-0th3r"


async def started(model: Model, client: RawClient, words: str, *headers: str) -> str:
    """A resumable request that has said these words; its stream's id."""
    await client.send(post("/v1/chat/completions", chat(), RESUMABLE, *headers))
    model.say(words)
    head = await client.reader.readuntil(b"\r\n\r\n")
    await client.reader.readuntil(words.split()[-1].encode() + b'"}')
    return re.search(rb"x-penstock-stream: (\S+)", head)[1].decode()  # type: ignore[index]


async def left(gateway: Served, client: RawClient) -> None:
    """The client leaves, and the gateway has seen it."""
    client.leave()
    await alone(gateway)


async def followed(gateway: Served, id: str, *headers: str, query: str = "") -> RawAnswer:
    return await ask(gateway.port, get(f"/v1/streams/{id}{query}", *headers), "GET")


def code_of(got: RawAnswer) -> str:
    code: str = json.loads(got.body)["error"]["code"]
    return code


def ids(body: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^id: (\d+)$", body, re.MULTILINE)]


def words(body: bytes) -> str:
    return " ".join(word.decode() for word in re.findall(rb'"content":"(\w+)"', body))


async def test_every_event_of_a_resumable_answer_has_its_number(tmp_path: Path) -> None:
    script = answering(OK_EVENTS, chunk(ROLE + content("one") + STOP + DONE), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, ASKING)
        again = await followed(gateway, got.headers["x-penstock-stream"])
        record = await gateway.record()
        told_upstream = upstream.requests[0].header("x-penstock-resumable")
    assert got.status == 200
    assert len(got.headers["x-penstock-stream"]) >= 24
    assert got.body == b"".join(
        b"id: %d\n%b" % (seq, each) for seq, each in enumerate((ROLE, content("one"), STOP, DONE), 1)
    )
    assert again.body == got.body
    assert again.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (record.status, record.end_state, record.events) == (200, EndState.COMPLETED, 4)
    assert told_upstream is None


@pytest.mark.parametrize("headers", [(), ("x-penstock-resumable: false",)])
async def test_others_get_neither_a_name_nor_numbers(headers: tuple[str, ...], tmp_path: Path) -> None:
    script = answering(OK_EVENTS, chunk(content("one") + STOP + DONE), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, post("/v1/chat/completions", chat(), *headers))
    assert got.body == content("one") + STOP + DONE
    assert "x-penstock-stream" not in got.headers


@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_in_one_piece_has_no_name(status: int, tmp_path: Path) -> None:
    script = answering(answer(status, b'{"choices":[]}'))
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, ASKING)
        assert store_of(gateway).live() == []
    assert (got.status, got.body) == (status, b'{"choices":[]}')
    assert "x-penstock-stream" not in got.headers


async def test_a_client_that_left_comes_back_without_a_gap_or_a_double(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await started(model, client, "a b c")
            await left(gateway, client)
        model.say("d")
        async with raw_client(gateway.port) as back:
            await back.send(get(f"/v1/streams/{id}", "Last-Event-ID: 2"))
            model.say("e")
            model.stop()
            got = await back.answer("GET")
        records = [await gateway.record(0), await gateway.record(1)]
    assert words(got.body) == "c d e"
    assert ids(got.body) == [3, 4, 5, 6, 7]
    assert got.body.endswith(b"id: 7\ndata: [DONE]\n\n")
    assert got.headers["x-penstock-stream"] == id
    by_path = {record.path: record for record in records}
    assert by_path.keys() == {"/v1/chat/completions", "/v1/streams"}
    asked = by_path["/v1/chat/completions"]
    assert (asked.status, asked.end_state, asked.events) == (200, EndState.COMPLETED, 6)


async def test_nobody_who_comes_back_in_time_is_a_stop(tmp_path: Path) -> None:
    async with world(tmp_path, "{detach: 60s}") as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await started(model, client, "a")
            await left(gateway, client)
        pass_time(gateway, 30)
        assert not gateway.records
        assert len(store_of(gateway).live()) == 1
        pass_time(gateway, 60)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        record = await gateway.record()
        got = await followed(gateway, id, query="?after=1")
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)
    assert json.loads(got.body.split(b"data: ")[1])["error"]["code"] == "cancelled"
    assert ids(got.body) == [2]


async def test_delete_stops_it_and_tells_who_follows(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), raw_client(gateway.port) as client:
        id = await started(model, client, "a")
        stopped = await ask(gateway.port, get(f"/v1/streams/{id}", method="DELETE"), "DELETE")
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        rest = await client.reader.readuntil(LAST_CHUNK)
        again = await ask(gateway.port, get(f"/v1/streams/{id}", method="DELETE"), "DELETE")
        replayed = await followed(gateway, id)
    assert (stopped.status, stopped.body, again.status) == (204, b"", 204)
    assert b'"code":"cancelled"' in rest
    assert b"[DONE]" not in rest
    assert words(replayed.body) == "a"


async def test_a_second_follower_takes_over(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as (model, gateway),
        raw_client(gateway.port) as first,
        raw_client(gateway.port) as second,
    ):
        id = await started(model, first, "a")
        await second.send(get(f"/v1/streams/{id}"))
        rest = await first.reader.readuntil(LAST_CHUNK)
        model.say("b")
        model.stop()
        got = await second.answer("GET")
        record = await gateway.record(1)
    assert b'"code":"taken_over"' in rest
    assert b"[DONE]" not in rest
    assert words(got.body) == "a b"
    assert {each.path: each.end_state for each in gateway.records}["/v1/chat/completions"] is EndState.COMPLETED
    assert record.end_state is EndState.COMPLETED


async def test_a_stream_is_its_keys(tmp_path: Path) -> None:
    async with world(tmp_path, more=KEYS) as (model, gateway), raw_client(gateway.port) as client:
        id = await started(model, client, "a", WEB)
        others = [await followed(gateway, id, OTHER), await followed(gateway, "s_nothing", WEB)]
        stopping = await ask(gateway.port, get(f"/v1/streams/{id}", OTHER, method="DELETE"), "DELETE")
        without = await followed(gateway, id)
        model.stop()
        await client.reader.readuntil(LAST_CHUNK)
        own = await followed(gateway, id, WEB)
    assert [(each.status, code_of(each)) for each in [*others, stopping]] == [(404, "stream_not_found")] * 3
    assert (without.status, code_of(without)) == (401, "invalid_api_key")
    assert words(own.body) == "a"


async def test_what_cannot_be_had_is_refused_with_a_status(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), raw_client(gateway.port) as client:
        store = store_of(gateway)
        store.limits = type(store.limits)(30, 120, frames=2)
        id = await started(model, client, "a b c d")
        model.stop()
        await client.reader.readuntil(LAST_CHUNK)
        gap = await followed(gateway, id, "Last-Event-ID: 1")
        ahead = await followed(gateway, id, query="?after=99")
        nonsense = [await followed(gateway, id, query=f"?after={said}") for said in ("x", "-1", "9" * 30, "%C2%B2")]
        over = await followed(gateway, id, "Last-Event-ID: 6")
        oldest = await followed(gateway, id, query="?after=3")
    assert (gap.status, code_of(gap)) == (410, "replay_gap")
    assert (ahead.status, code_of(ahead)) == (400, "invalid_request")
    assert [each.status for each in nonsense] == [400, 400, 400, 400]
    assert (over.status, over.body) == (204, b"")
    assert ids(oldest.body) == [4, 5, 6]


async def test_after_its_time_it_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path, "{replay: 60s}") as (model, gateway), raw_client(gateway.port) as client:
        id = await started(model, client, "a")
        model.stop()
        await client.reader.readuntil(LAST_CHUNK)
        await gateway.record()
        pass_time(gateway, 30)
        there = await followed(gateway, id)
        pass_time(gateway, 60)
        got = await followed(gateway, id)
    assert (there.status, words(there.body)) == (200, "a")
    assert (got.status, code_of(got)) == (404, "stream_not_found")


async def test_another_gateway_does_not_know_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), raw_client(gateway.port) as client:
        id = await started(model, client, "a")
        model.stop()
        await client.reader.readuntil(LAST_CHUNK)
    async with world(tmp_path) as (_, restarted):
        got = await followed(restarted, id)
    assert (got.status, code_of(got)) == (404, "stream_not_found")


async def test_a_truncated_answer_ends_with_its_error_whenever_it_is_read(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), chunk(b"data: {"), end="reset")
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, ASKING)
        again = await followed(gateway, got.headers["x-penstock-stream"])
        record = await gateway.record()
    assert again.body == got.body
    assert got.body.startswith(b"id: 1\n" + content("a") + b"id: 2\ndata: ")
    assert json.loads(got.body.split(b"data: ")[2])["error"]["code"] == "upstream_truncated"
    assert record.end_state is EndState.UPSTREAM_TRUNCATED


async def test_an_error_event_of_the_upstreams_is_told_once(tmp_path: Path) -> None:
    failure = event(b'{"error":{"message":"out of memory","code":500}}')
    script = answering(OK_EVENTS, chunk(content("a") + failure), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, ASKING)
    assert got.body == b"id: 1\n" + content("a") + b"id: 2\n" + failure


async def test_anthropics_own_end_is_the_last_event(tmp_path: Path) -> None:
    delta = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}\n\n'
    )
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    script = answering(OK_EVENTS, chunk(delta + stop), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, post("/v1/messages", {**chat(), "max_tokens": 5}, RESUMABLE))
        id = got.headers["x-penstock-stream"]
        seen = await followed(gateway, id, "Last-Event-ID: 2")
    assert got.body == b"id: 1\n" + delta + b"id: 2\n" + stop
    assert seen.status == 204


async def test_a_body_of_an_unknown_protocol_is_cut_again_where_it_was_cut(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(event(b'{"a":1}')), end="reset")
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, post("/v1/other", {"model": "m", "stream": True}, RESUMABLE))
        again = await followed(gateway, got.headers["x-penstock-stream"])
    assert (got.whole, again.whole) == (False, False)
    assert got.body == again.body == b"id: 1\n" + event(b'{"a":1}')


async def test_a_stream_of_a_mux_session_can_be_followed_over_http(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as client:
        id = await begun(model, client, "a b")
        model.stop()
        await client.until("done")
        got = await followed(gateway, id, query="?after=1")
    assert words(got.body) == "b"
    assert ids(got.body) == [2, 3, 4]


async def test_a_stream_over_http_can_be_resumed_in_a_mux_session(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with raw_client(gateway.port) as http:
            id = await started(model, http, "a b")
            await left(gateway, http)
        async with mux(gateway) as client:
            await client.say("resume", rid="r1", stream=id, after=1)
            await client.until("resumed")
            model.say("c")
            model.stop()
            frames = await client.ended()
    assert content_of(frames) == ["b", "c"]
    assert [frame["seq"] for frame in frames] == [2, 3, 4, 5]


async def test_a_result_of_a_mux_session_is_one_event(tmp_path: Path) -> None:
    body = b'{"choices":[]}'
    script = answering(answer(200, body))
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(body={**chat(), "stream": False}, resumable=True)
        frames = await client.until("done")
        got = await followed(gateway, frames[1]["stream"])
    assert got.body == b"id: 1\nevent: result\ndata: " + body + b"\n\n"


async def test_a_stage_of_a_mux_session_has_its_own_ids(tmp_path: Path) -> None:
    body = {"stage_id": "st 2", "model_container": "m", "user_prompt": "hi"}
    script = answering(OK_EVENTS, chunk(content("a") + STOP + DONE), LAST_CHUNK)
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(path="/stream/v1/chat", body=body, resumable=True)
        frames = await client.until("done")
        got = await followed(gateway, frames[1]["stream"])
        direct = await ask(gateway.port, post("/stream/v1/chat", body))
        rest = await followed(gateway, frames[1]["stream"], "Last-Event-ID: st 2-chunk-0")
    assert got.body == direct.body
    assert rest.body == direct.body[direct.body.index(b"id: st 2-chunk-1") :]


async def test_a_slow_follower_gets_everything_and_holds_little(tmp_path: Path) -> None:
    big = content("x" * 20_000)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, *[chunk(big)] * 300, chunk(STOP + DONE), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(ASKING)
        head = await client.reader.readuntil(b"\r\n\r\n")
        id = re.search(rb"x-penstock-stream: (\S+)", head)[1].decode()  # type: ignore[index]
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        held = store_of(gateway)._held_bytes
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            body = await client.reader.readuntil(LAST_CHUNK)
        assert store_of(gateway).find(id, None).numbered.head == 302
    assert ids(body) == list(range(1, 303))
    assert held <= 9 * 1024 * 1024


async def test_nothing_is_left_when_the_gateway_stops(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with raw_client(gateway.port) as client:
            await started(model, client, "a")
            await left(gateway, client)
        await gateway.gateway.stop()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        record = await gateway.record()
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_a_head_that_went_out_early_names_the_stream_all_the_same(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.08)
        await peer.send(OK_EVENTS, chunk(content("a") + STOP + DONE), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, "keepalive: 20ms"), tmp_path) as gateway,
    ):
        got = await ask(gateway.port, ASKING)
        again = await followed(gateway, got.headers["x-penstock-stream"])
    assert got.body.startswith(b": ping\n")
    assert (
        got.body.replace(b": ping\n", b"")
        == again.body
        == b"id: 1\n" + content("a") + b"id: 2\n" + STOP + (b"id: 3\n" + DONE)
    )


async def test_a_client_that_leaves_before_there_is_an_answer_takes_its_request_along(tmp_path: Path) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        closed.set()

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(ASKING)
        await asked.wait()
        client.leave()
        async with asyncio.timeout(PATIENCE_S):
            await closed.wait()
        record = await gateway.record()
    assert record.end_state is EndState.CLIENT_CLOSED


# ---- routes that keep every stream ----

KEEPS = ("on_disconnect: {keep: 2m}",)
PLAIN = post("/v1/chat/completions", chat())


async def begun_by(model: Model, client: RawClient, request: bytes) -> str:
    """A stream that was begun by this request and has said `a`; its id."""
    await client.send(request)
    model.say("a")
    head = await client.reader.readuntil(b"\r\n\r\n")
    await client.reader.readuntil(b'"a"}')
    return re.search(rb"x-penstock-stream: (\S+)", head)[1].decode()  # type: ignore[index]


@pytest.mark.parametrize("asked", [PLAIN, ASKING])
async def test_a_route_that_keeps_goes_on_for_whoever_comes_back(asked: bytes, tmp_path: Path) -> None:
    async with world(tmp_path, "{detach: 5s}", route=KEEPS) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await begun_by(model, client, asked)
            await left(gateway, client)
        pass_time(gateway, 60)
        model.say("b")
        async with raw_client(gateway.port) as back:
            await back.send(get(f"/v1/streams/{id}", "Last-Event-ID: 1"))
            await back.reader.readuntil(b'"b"}')
            pass_time(gateway, 3600)  # as long as somebody follows
            model.stop()
            rest = await back.reader.readuntil(LAST_CHUNK)
        records = [await gateway.record(0), await gateway.record(1)]
        assert gateway.gateway._relay.in_flight() == {}
    assert ids(rest) == [3, 4]
    [record] = [each for each in records if each.path == "/v1/chat/completions"]
    assert (record.status, record.end_state, record.events) == (200, EndState.COMPLETED, 3)


async def test_who_does_not_come_back_to_it_in_time_has_left(tmp_path: Path) -> None:
    async with world(tmp_path, route=KEEPS) as (model, gateway), raw_client(gateway.port) as client:
        await begun_by(model, client, PLAIN)
        await left(gateway, client)
        pass_time(gateway, 90)
        assert len(store_of(gateway).live()) == 1
        assert not gateway.records
        pass_time(gateway, 120)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        record = await gateway.record()
        assert gateway.gateway._relay.in_flight() == {}
        told = await gateway.gateway._exposition()
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)
    assert len(gateway.records) == 1
    assert 'penstock_client_disconnects_total{route="m",phase="stream"} 1' in told
    assert 'outcome="client_closed"} 1' in told


async def test_a_stream_that_ends_while_nobody_listens_has_completed(tmp_path: Path) -> None:
    async with world(tmp_path, route=KEEPS) as (model, gateway), raw_client(gateway.port) as client:
        id = await begun_by(model, client, PLAIN)
        await left(gateway, client)
        model.say("b")
        model.stop()
        record = await gateway.record()
        pass_time(gateway, 60)
        got = await followed(gateway, id, "Last-Event-ID: 1")
    assert record.end_state is EndState.COMPLETED
    assert (words(got.body), ids(got.body)) == ("b", [2, 3, 4])


async def test_alone_it_keeps_its_place_at_its_route(tmp_path: Path) -> None:
    route = (*KEEPS, "limits: {streams: 1, queue: 0}")
    async with world(tmp_path, route=route) as (model, gateway), raw_client(gateway.port) as client:
        id = await begun_by(model, client, PLAIN)
        await left(gateway, client)
        relay = gateway.gateway._relay
        [place] = relay.table.routes
        held = (relay.in_flight()["m"], place.replicas[0].in_flight, place.limiter.in_flight)
        full = await ask(gateway.port, PLAIN)
        model.stop()
        await followed(gateway, id)
        left_over = (relay.in_flight()["m"], place.replicas[0].in_flight, place.limiter.in_flight)
    assert (held, full.status, left_over) == ((1, 1, 1), 429, (0, 0, 0))


async def test_a_follower_that_leaves_leaves_it_alone_for_as_long_again(tmp_path: Path) -> None:
    async with world(tmp_path, route=KEEPS) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await begun_by(model, client, PLAIN)
            await left(gateway, client)
        pass_time(gateway, 90)
        async with raw_client(gateway.port) as back:
            await back.send(get(f"/v1/streams/{id}"))
            await back.reader.readuntil(b'"a"}')
            await left(gateway, back)
        pass_time(gateway, 90)
        assert len(store_of(gateway).live()) == 1
        pass_time(gateway, 120)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()


async def test_a_follower_that_is_gone_before_it_has_begun_leaves_it_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, route=KEEPS) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await begun_by(model, client, PLAIN)
            await left(gateway, client)
        api = gateway.gateway._streams_api
        find = api._find

        def find_and_lose(request: web.Request) -> KeptStream:
            assert request.transport is not None
            request.transport.abort()
            return find(request)

        monkeypatch.setattr(api, "_find", find_and_lose)
        async with raw_client(gateway.port) as back:
            await back.send(get(f"/v1/streams/{id}"))
            await gateway.record()
        await alone(gateway)
        pass_time(gateway, 120)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()


UNKEPT: dict[str, tuple[dict[str, object], tuple[bytes, ...]]] = {
    "an answer in one piece": ({"stream": False}, (answer(200, b"x" * 1000)[:-1],)),
    "a large one": ({"stream": False}, (answer(200, b"x" * 1_000_000)[:-1],)),
    "bytes that are no events": (
        {"stream": True},
        (b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"x" * 1000)),
    ),
    "nothing yet": ({"stream": True}, ()),
}


@pytest.mark.parametrize("case", UNKEPT)
async def test_what_is_no_stream_of_events_goes_with_its_client_whatever_the_route_says(
    case: str, tmp_path: Path
) -> None:
    members, pieces = UNKEPT[case]
    sent, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        sent.set()
        await peer.closed()
        closed.set()

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *KEEPS), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", {**chat(), **members}))
        await sent.wait()
        if case == "bytes that are no events":
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"x-penstock-stream" not in head
        client.leave()
        async with asyncio.timeout(PATIENCE_S):
            await closed.wait()
        record = await gateway.record()
        assert store_of(gateway).live() == []
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


@pytest.mark.parametrize("path", ["/v1/ws", "/v1/responses"])
async def test_a_socket_whose_streams_have_no_names_takes_its_request_along_whatever_the_route_says(
    path: str, tmp_path: Path
) -> None:
    started, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")))
        started.set()
        await peer.closed()
        closed.set()

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *KEEPS), tmp_path) as gateway,
        websockets.connect(gateway.ws_url + path, compression=None) as socket,
    ):
        asked = {"type": "response.create", "model": "m", "input": "hi"} if path == "/v1/responses" else chat()
        await socket.send(json.dumps(asked))
        await started.wait()
        socket.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await closed.wait()
        assert store_of(gateway).live() == []


# ---- silence ----


@pytest.mark.parametrize(("said", "keepalive_s"), [("20ms", 0.02), ("none", None)])
async def test_a_follower_hears_signs_of_life_as_often_as_the_route_says(
    said: str, keepalive_s: float | None, tmp_path: Path
) -> None:
    async with world(tmp_path, route=(f"keepalive: {said}",)) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await started(model, client, "a")
            await left(gateway, client)
        kept = store_of(gateway).find(id, None)
        async with raw_client(gateway.port) as back:
            await back.send(get(f"/v1/streams/{id}"))
            await back.reader.readuntil(b'"a"}')
            if keepalive_s is not None:
                await back.reader.readuntil(b": ping\n")
            model.stop()
            rest = await back.reader.readuntil(LAST_CHUNK)
    assert kept.keepalive_s == keepalive_s
    assert rest.replace(b": ping\n", b"").count(b"\n\n") >= 2
    assert said != "none" or b"ping" not in rest
