"""One `response.create` over a WebSocket: what the replica is asked, what the client hears, what is remembered."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import websockets
from websockets.frames import Frame, Opcode

from proxy.downstream.responses_turn import ResponseTurn
from proxy.telemetry.record import EndState
from proxy.upstream.exchange import Exchange
from tests.support.responses import (
    CODEX_HEADERS,
    CODEX_REQUEST,
    Gated,
    ResponsesClient,
    completed,
    create,
    created,
    data_of,
    delta,
    eventually,
    give,
    numbered,
    responses_session,
    said,
    sse,
    user,
)
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, Script, answer, answering, answering_once, chunk, event

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
WHOLE = answering(OK_EVENTS, chunk(created() + delta() + completed()), LAST_CHUNK)


def kinds(frames: list[Any]) -> list[str]:
    return [frame["type"] for frame in frames]


# ---- the request ----


async def test_the_replica_gets_a_post_of_the_same_request_as_a_stream(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path, "model: upstream-name") as client:
        assert await client.ask("hi", temperature=0, stream_id="a", stream=False, background=True)
        [request] = client.upstream.requests
        record = await client.gateway.record()
    assert request.head.startswith(b"POST /v1/responses HTTP/1.1\r\n")
    assert request.header("content-type") == "application/json"
    assert json.loads(request.body) == {
        "model": "upstream-name",
        "input": [user("hi")],
        "temperature": 0,
        "stream": True,
    }
    assert not [line for line in request.head.lower().split(b"\r\n") if line.startswith((b"sec-", b"upgrade", b"conn"))]
    assert (record.path, record.status, record.end_state) == ("/v1/responses", 200, EndState.COMPLETED)
    assert (record.transport, record.dialect, record.route, record.events) == ("ws", "responses", "m", 3)
    assert (record.tokens_in, record.tokens_out) == (3, 2)


async def test_a_request_without_a_model_means_the_connections_first(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        await client.send(json.dumps({"type": "response.create", "input": "hi"}))
        assert (await client.frame())["error"]["code"] == "missing_model"
        await client.ask()
        await client.send(json.dumps({"type": "response.create", "input": "hi"}))
        assert kinds(await client.answer())[-1] == "response.completed"
        assert client.asked() == {"model": "m", "input": "hi", "stream": True}
        await client.send(json.dumps({"type": "response.create", "input": "hi", "model": "other"}))
        assert (await client.frame())["error"]["code"] == "model_not_found"


async def test_codex_is_served(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path, headers=CODEX_HEADERS) as client:
        await client.send(json.dumps({**CODEX_REQUEST, "previous_response_id": None}))
        prepared = await client.answer()
        assert kinds(prepared) == ["response.created", "response.completed"]
        id = prepared[-1]["response"]["id"]
        await client.send(json.dumps({**CODEX_REQUEST, "generate": None, "input": [], "previous_response_id": id}))
        assert kinds(await client.answer())[-1] == "response.completed"
        await client.send(json.dumps({"type": "response.processed", "response_id": "resp_1"}))
        assert await client.silent()
        [request] = client.upstream.requests
    own = ("type", "generate", "previous_response_id")
    assert json.loads(request.body) == {name: value for name, value in CODEX_REQUEST.items() if name not in own}
    sent = {name.lower(): value for name, value in CODEX_HEADERS.items()}
    assert request.header("openai-beta") is None
    for name in ("originator", "version", "x-codex-turn-state", "x-codex-turn-metadata"):
        assert request.header(name) == sent[name]


# ---- what is remembered ----


async def test_a_continuation_is_the_whole_conversation_to_the_replica(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        await client.send(create(input="one"))
        await client.answer()
        await client.ask("two", previous_response_id="resp_1", instructions="new ones")
        await client.ask("three", previous_response_id="resp_2")
        first, second, third = (client.asked(number) for number in range(3))
    assert first["input"] == "one"
    spelled_out = {"type": "message", **user("one")}
    assert second == {
        "model": "m",
        "input": [spelled_out, said("1"), user("two")],
        "instructions": "new ones",
        "stream": True,
    }
    assert third["input"] == [spelled_out, said("1"), user("two"), said("2"), user("three")]


async def test_without_a_previous_response_nothing_is_put_in_front(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        await client.ask("one")
        await client.ask("two", previous_response_id=None)
        assert client.asked()["input"] == [user("two")]


async def unknown(client: ResponsesClient, id: str, **members: Any) -> None:
    [frame] = await client.ask("x", previous_response_id=id, **members)
    assert (frame["status"], frame["error"]["code"]) == (400, "previous_response_not_found")
    assert frame["error"]["param"] == "previous_response_id"
    assert id not in frame["error"]["message"]


async def test_only_the_latest_response_of_a_lane_is_known(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        await unknown(client, "resp_1")
        await client.ask("one")
        await client.ask("two")
        await unknown(client, "resp_1", stream_id="a")
        await client.ask("three", previous_response_id="resp_2")
        assert client.asked()["input"] == [user("two"), said("2"), user("three")]
        assert len(client.upstream.requests) == 3


async def test_a_lane_can_be_forked_and_both_branches_go_on(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        await client.ask("plan", stream_id="planner")
        await client.ask("gaps", stream_id="critic", previous_response_id="resp_1")
        await client.ask("roll back", stream_id="planner", previous_response_id="resp_1")
        await client.ask("more", stream_id="critic", previous_response_id="resp_2")
        inputs = [client.asked(number)["input"] for number in range(4)]
    plan = [user("plan"), said("1")]
    assert inputs[1] == [*plan, user("gaps")]
    assert inputs[2] == [*plan, user("roll back")]
    assert inputs[3] == [*plan, user("gaps"), said("2"), user("more")]


async def test_another_connection_knows_nothing_of_it(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        await client.ask("one")
        async with websockets.connect(client.gateway.ws_url + "/v1/responses") as socket:
            await unknown(ResponsesClient(socket, client.gateway, client.upstream), "resp_1")


def failing(*, status: int) -> Script:
    """A script that fails each request that says so, and answers the others as resp_ and their prompt."""

    async def script(peer: Peer) -> None:
        while True:
            text = json.loads((await peer.request()).body)["input"][-1]["content"]
            if text == "fail":
                await peer.send(answer(status, b'{"error":{"message":"no"}}'))
            else:
                await give(peer, created(f"resp_{text}"), delta(text), completed(f"resp_{text}", text))

    return script


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_a_failure_in_a_lane_makes_it_forget_and_no_other(status: int, tmp_path: Path) -> None:
    async with responses_session(failing(status=status), tmp_path) as client:
        await client.ask("a", stream_id="a")
        await client.ask("b", stream_id="b")
        [frame] = await client.ask("fail", stream_id="a", previous_response_id="resp_a")
        assert (frame["status"], frame["stream_id"]) == (status, "a")
        await unknown(client, "resp_a", stream_id="a")
        assert kinds(await client.ask("c", stream_id="a", previous_response_id="resp_b"))[-1] == "response.completed"


async def test_a_fork_that_fails_leaves_its_parent(tmp_path: Path) -> None:
    async with responses_session(failing(status=500), tmp_path) as client:
        await client.ask("a", stream_id="a")
        await client.ask("fail", stream_id="b", previous_response_id="resp_a")
        assert kinds(await client.ask("c", stream_id="a", previous_response_id="resp_a"))[-1] == "response.completed"


async def test_an_incomplete_response_can_be_gone_on_from(tmp_path: Path) -> None:
    last = sse("response.incomplete", response={"id": "resp_1", "status": "incomplete", "output": [said("cut")]})
    async with responses_session(answering(OK_EVENTS, chunk(created() + last), LAST_CHUNK), tmp_path) as client:
        assert kinds(await client.ask("one")) == ["response.created", "response.incomplete"]
        await client.ask("two", previous_response_id="resp_1")
        assert client.asked()["input"] == [user("one"), said("cut"), user("two")]


async def test_an_output_that_the_last_event_leaves_out_is_remembered_from_its_items(tmp_path: Path) -> None:
    item = sse("response.output_item.done", output_index=0, item=said("hello"))
    last = sse("response.completed", response={"id": "resp_1", "status": "completed", "output": []})
    script = answering(OK_EVENTS, chunk(created() + item + last), LAST_CHUNK)
    async with responses_session(script, tmp_path) as client:
        await client.ask("one")
        await client.ask("two", previous_response_id="resp_1")
        assert client.asked()["input"] == [user("one"), said("hello"), user("two")]


async def test_a_conversation_larger_than_a_message_is_refused(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path, server="port: 0\nmax_body: 1000") as client:
        await client.ask("x" * 400)
        [frame] = await client.ask("y" * 400, previous_response_id="resp_1")
        assert (frame["status"], frame["error"]["code"]) == (413, "body_too_large")
        await client.ask("z")
        await client.ask("short", previous_response_id="resp_2")
        assert len(client.upstream.requests) == 3


# ---- warming up ----


async def test_a_warm_up_asks_no_replica_and_can_be_gone_on_from(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        first = await client.ask("one", generate=False, stream_id="a")
        assert kinds(first) == ["response.created", "response.completed"]
        assert {frame["stream_id"] for frame in first} == {"a"}
        assert first[-1]["response"]["output"] == []
        assert first[-1]["response"]["usage"]["total_tokens"] == 0
        second = await client.ask("two", generate=False, previous_response_id=first[-1]["response"]["id"])
        assert second[-1]["response"]["id"] != first[-1]["response"]["id"]
        assert client.upstream.requests == []
        await client.ask("three", previous_response_id=second[-1]["response"]["id"])
        assert client.asked()["input"] == [user("one"), user("two"), user("three")]
        record = await client.gateway.record()
    assert (record.status, record.end_state, record.route, record.attempts) == (200, EndState.COMPLETED, "m", 0)


async def test_a_warm_up_of_an_unknown_model_is_refused(tmp_path: Path) -> None:
    async with responses_session(numbered(), tmp_path) as client:
        [frame] = await client.ask(model="other", generate=False)
        assert (frame["status"], frame["error"]["code"]) == (404, "model_not_found")


# ---- refusals ----

REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no model": ({"model": None}, 400, "missing_model"),
    "an unknown model": ({"model": "canary"}, 404, "model_not_found"),
    "an input that is none": ({"input": 7}, 400, "invalid_request"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_of_ours_is_an_error_frame_and_the_socket_lives(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    members, status, code = REFUSALS[case]
    async with responses_session(WHOLE, tmp_path) as client:
        [frame] = await client.ask(**members, stream_id="a")
        assert list(frame) == ["type", "status", "error", "stream_id"]
        assert list(frame["error"]) == ["type", "code", "message", "param"]
        assert (frame["status"], frame["error"]["code"]) == (status, code)
        assert kinds(await client.ask())[-1] == "response.completed"
        record = await client.gateway.record()
    assert (record.status, record.end_state) == (status, EndState.REJECTED)
    assert "canary" not in json.dumps(frame) + quiet_log.text + repr(record)


UNEXPLAINED = {
    "type": "upstream_error",
    "code": None,
    "message": "The model server answered with status 404.",
    "param": None,
}
UPSTREAM_ANSWERS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "a 429 with when to retry": (
        answer(429, b'{"error":{"message":"slow down","code":"rate","type":"t"}}', b"Retry-After: 7"),
        {
            "status": 429,
            "error": {"message": "slow down", "code": "rate", "type": "t", "param": None},
            "headers": {"retry-after": "7"},
        },
        "upstream_rejected",
    ),
    "a 404 of a server that speaks only chat": (
        answer(404, b'{"detail":"Not Found"}'),
        {"status": 404, "error": UNEXPLAINED},
        "upstream_rejected",
    ),
    "a 400 with a number for a code": (
        answer(400, b'{"error":{"message":"m","type":"BadRequestError","param":null,"code":400}}'),
        {"status": 400, "error": {"message": "m", "type": "BadRequestError", "param": None, "code": "400"}},
        "upstream_rejected",
    ),
    "an error under status 200": (
        answer(200, b'{"error":{"message":"m","status":503}}'),
        {
            "status": 503,
            "error": {"message": "m", "status": 503, "type": "upstream_error", "code": None, "param": None},
        },
        "upstream_error",
    ),
    "an error event first": (
        OK_EVENTS + chunk(created() + event(b'{"type":"error","code":"c","message":"m","param":null}')) + LAST_CHUNK,
        {"status": 502, "error": {"code": "c", "message": "m", "param": None, "type": "upstream_error"}},
        "upstream_error",
    ),
    "neither events nor a response": (
        answer(200, b'{"object":"list"}'),
        {
            "status": 502,
            "error": {
                "type": "upstream_error",
                "code": "upstream_invalid",
                "message": "The model server answered with neither events nor a response.",
                "param": None,
            },
        },
        "upstream_error",
    ),
}


@pytest.mark.parametrize("case", UPSTREAM_ANSWERS)
async def test_an_upstreams_refusal_is_an_error_frame_with_its_status(case: str, tmp_path: Path) -> None:
    sent, expected, end_state = UPSTREAM_ANSWERS[case]
    async with responses_session(answering(sent), tmp_path) as client:
        for _ in range(2):
            assert await client.ask(stream_id="a") == [{"type": "error", **expected, "stream_id": "a"}]
        record = await client.gateway.record()
    assert (record.status, record.end_state) == (expected["status"], end_state)


async def test_nobody_there_is_a_502_frame(tmp_path: Path) -> None:
    async with responses_session(answering_once(b""), tmp_path) as client:
        [frame] = await client.ask()
        assert (frame["status"], frame["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("first", [b"", created()], ids=["at once", "after its beginning"])
async def test_a_failed_response_without_content_ends_as_its_protocol_has_it(first: bytes, tmp_path: Path) -> None:
    error = {"code": "context_length_exceeded", "message": "too long"}
    failed = sse("response.failed", sequence_number=1, response={"id": "resp_1", "status": "failed", "error": error})
    async with responses_session(answering(OK_EVENTS, chunk(first + failed), LAST_CHUNK), tmp_path) as client:
        [frame] = await client.ask(stream_id="a")
        assert (frame["type"], frame["stream_id"]) == ("response.failed", "a")
        assert frame["response"]["error"] == error
        assert (await client.gateway.record()).end_state == EndState.UPSTREAM_ERROR


async def test_a_failed_response_after_content_passes_and_is_forgotten(tmp_path: Path) -> None:
    failed = sse(
        "response.failed", response={"id": "resp_1", "status": "failed", "error": {"code": "c", "message": "m"}}
    )
    async with responses_session(
        answering(OK_EVENTS, chunk(created() + delta() + failed), LAST_CHUNK), tmp_path
    ) as client:
        assert await client.ask() == data_of(created(), delta(), failed)
        await unknown(client, "resp_1")


# ---- answers in one piece ----


@pytest.mark.parametrize("size", [10, 300_000])
async def test_an_answer_in_one_piece_is_told_in_events(size: int, tmp_path: Path) -> None:
    response = {"id": "resp_1", "object": "response", "status": "completed", "output": [said("é" * size)]}
    body = json.dumps(response, ensure_ascii=False).encode()
    async with responses_session(answering(answer(200, body)), tmp_path) as client:
        frames = await client.ask("one")
        assert kinds(frames) == ["response.created", "response.output_item.done", "response.completed"]
        assert frames[-1]["response"] == response
        await client.ask("two", previous_response_id="resp_1")
        assert client.asked()["input"] == [user("one"), said("é" * size), user("two")]
    assert client.gateway.records[0].end_state is EndState.COMPLETED


async def test_an_answer_in_one_piece_larger_than_any_message_is_an_error(tmp_path: Path) -> None:
    body = json.dumps({"id": "resp_1", "output": [], "text": "x" * 300_000}).encode()
    async with responses_session(answering(answer(200, body)), tmp_path, server="port: 0\nmax_body: 1000") as client:
        [frame] = await client.ask()
        assert (frame["status"], frame["error"]["code"]) == (502, "upstream_invalid")
        assert (await client.gateway.record()).end_state is EndState.UPSTREAM_ERROR


# ---- answers that break off ----


@pytest.mark.parametrize("way", ["reset", "end", "inside an event"])
async def test_a_truncation_after_the_beginning_is_a_failed_response(way: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(created() + delta()))
        await asyncio.sleep(0.02)
        if way == "reset":
            peer.reset()
        elif way == "end":
            await peer.send(LAST_CHUNK)
        else:
            await peer.send(b"100\r\ndata: {")

    async with responses_session(script, tmp_path) as client:
        *frames, last = await client.ask(stream_id="a")
        assert kinds(frames) == ["response.created", "response.output_text.delta"]
        assert (last["type"], last["sequence_number"], last["stream_id"]) == ("response.failed", 2, "a")
        assert (last["response"]["id"], last["response"]["status"]) == ("resp_1", "failed")
        assert last["response"]["error"]["code"] == "upstream_truncated"
        assert await client.silent()
        await unknown(client, "resp_1")
    assert client.gateway.records[0].end_state is EndState.UPSTREAM_TRUNCATED


async def test_a_truncation_before_the_beginning_is_an_error_frame(tmp_path: Path) -> None:
    script = answering_once(OK_EVENTS, chunk(created()))
    async with responses_session(script, tmp_path) as client:
        [frame] = await client.ask()
        assert (frame["type"], frame["status"], frame["error"]["code"]) == ("error", 502, "upstream_truncated")


async def test_a_stall_is_a_failed_response(tmp_path: Path) -> None:
    async with responses_session(Gated(), tmp_path, "timeouts: {idle: 50ms}") as client:
        *_, last = await client.ask("x")
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "upstream_idle")


# ---- answers that are no longer wanted ----


async def until_left(peer: Peer, left: asyncio.Event) -> None:
    await peer.closed()
    left.set()


@pytest.mark.parametrize("named", [{}, {"response_id": "resp_1"}], ids=["whatever runs", "by its id"])
async def test_a_cancelled_response_ends_as_failed_and_its_upstream_is_closed(
    named: dict[str, str], tmp_path: Path
) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(created() + delta()))
        await until_left(peer, left)

    async with responses_session(script, tmp_path) as client:
        await client.send(create(stream_id="a"))
        await client.until("response.output_text.delta")
        await client.send(json.dumps({"type": "response.cancel", "stream_id": "a", **named}))
        [last] = await client.answer()
        async with asyncio.timeout(0.1):
            await left.wait()
        assert (last["type"], last["stream_id"]) == ("response.failed", "a")
        assert (last["response"]["id"], last["response"]["error"]["code"]) == ("resp_1", "cancelled")
        record = await client.gateway.record()
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_a_request_cancelled_before_its_beginning_is_an_error_frame(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await until_left(peer, left)

    async with responses_session(script, tmp_path) as client:
        await client.send(create())
        await eventually(lambda: len(client.upstream.requests) == 1)
        await client.send('{"type":"response.cancel"}')
        assert [(frame["status"], frame["error"]["code"]) for frame in await client.answer()] == [(499, "cancelled")]
        async with asyncio.timeout(0.1):
            await left.wait()


async def test_a_request_cancelled_in_the_same_breath_ends_and_the_lane_goes_on(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        messages = [create(), '{"type":"response.cancel"}', create()]
        frames = [Frame(Opcode.TEXT, message.encode()).serialize(mask=True) for message in messages]
        client.socket.transport.write(b"".join(frames))
        [cancelled] = await client.answer()
        assert (cancelled["status"], cancelled["error"]["code"]) == (499, "cancelled")
        assert kinds(await client.answer())[-1] == "response.completed"
        record = await client.gateway.record()
        assert len(client.upstream.requests) == 1
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


def alive(kind: type[T]) -> list[T]:
    """All of this kind, those of other tests among them."""
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


async def test_an_end_that_overtakes_a_cancel_is_the_only_one(tmp_path: Path) -> None:
    """The cancel is carried out one turn of the loop later; meanwhile the model server's last event comes."""
    model = Gated()
    earlier = alive(ResponseTurn), alive(Exchange)
    async with responses_session(model, tmp_path) as client:
        await client.send(create("one"))
        await client.until("response.output_text.delta")
        [turn] = [each for each in alive(ResponseTurn) if each not in earlier[0]]
        [exchange] = [each for each in alive(Exchange) if each not in earlier[1]]
        turn.cancel(None)
        exchange.body_received(completed("resp_one", "one"))
        assert kinds(await client.answer()) == ["response.completed"]
        assert await client.silent()


async def test_what_a_lane_knew_before_a_cancel_it_still_knows(tmp_path: Path) -> None:
    gated = Gated()
    gated.let("one", "three")
    async with responses_session(gated, tmp_path) as client:
        await client.ask("one")
        await client.send(create("two", previous_response_id="resp_one"))
        await client.until("response.output_text.delta")
        await client.send('{"type":"response.cancel"}')
        await client.answer()
        assert kinds(await client.ask("three", previous_response_id="resp_one"))[-1] == "response.completed"


@pytest.mark.parametrize(
    "cancel",
    [
        {"type": "response.cancel", "response_id": "resp_other"},
        {"type": "response.cancel", "stream_id": "other"},
    ],
)
async def test_a_cancel_of_something_else_stops_nothing(cancel: dict[str, str], tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("x"), json.dumps(cancel))
        await client.until("response.output_text.delta")
        await client.send(json.dumps(cancel))
        assert await client.silent()
        gated.let("x")
        assert kinds(await client.answer()) == ["response.completed"]


async def test_a_client_that_leaves_closes_all_its_upstreams(tmp_path: Path) -> None:
    left = [asyncio.Event(), asyncio.Event()]
    waiting = iter(left)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(created() + delta()))
        await until_left(peer, next(waiting))

    async with responses_session(script, tmp_path) as client:
        await client.send(create(stream_id="a"), create(stream_id="b"), create(stream_id="b"))
        for _ in range(2):
            await client.until("response.output_text.delta")
        client.socket.transport.abort()
        async with asyncio.timeout(0.1):
            for each in left:
                await each.wait()
        session = await client.gateway.record(3)
    assert [record.end_state for record in client.gateway.records[:3]] == [EndState.CLIENT_CLOSED] * 3
    assert (session.is_session, session.dialect) == (True, "responses")
    assert client.gateway.gateway._relay.in_flight().total() == 0
