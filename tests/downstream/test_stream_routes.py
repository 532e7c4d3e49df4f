"""The stream routes over HTTP, as transcripts: a request in, upstream bytes in, events out."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.passing_time import PATIENCE_S, alone, pass_time, store_of
from tests.support.raw_client import ask, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.stages import lines, stage
from tests.support.tool_servers import with_quick_tools
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    Script,
    answer,
    answering,
    answering_once,
    chunk,
    content,
    event,
    scripted_upstream,
)
from tests.support.word_by_word import Model, world

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_client import RawAnswer, RawClient

PATHS = ("/stream/v1/chat", "/stream/v1/toolchain")
ONE, TWO = content("one"), content("two")
USAGE = event(b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
COMPLETION = b'{ "id":"c", "choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}'


def chunks(*events: bytes) -> list[str]:
    """The lines of these upstream events."""
    return [
        "chat_completion_chunk "
        + json.dumps({"chunk": json.loads(each[6:])}, ensure_ascii=False, separators=(",", ":"))
        for each in events
    ]


def error(sentence: str) -> str:
    return "error " + json.dumps({"error": sentence}, separators=(",", ":"))


def streaming(*events: bytes) -> Script:
    return answering(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


async def asked(port: int, path: str = PATHS[0], **members: object) -> RawAnswer:
    return await ask(port, post(path, stage(**members)))


def detail(answered: RawAnswer) -> object:
    told = json.loads(answered.body)
    assert list(told) == ["detail"]
    return told["detail"]


# ---- what is asked ----


@pytest.mark.parametrize("path", PATHS)
async def test_a_stage_is_a_chat_completion_upstream(path: str, tmp_path: Path) -> None:
    settings = ("model: real-name", "aliases: [other]")
    async with (
        scripted_upstream(streaming(ROLE, ONE, STOP, DONE)) as upstream,
        served(one_route(upstream.url, *settings), tmp_path) as gateway,
    ):
        request = stage(
            model_container="other", system_prompt="Be brief.", max_tokens=[10, 20], temperature=0, unknown=1
        )
        sent = post(
            f"{path}?canary=1", request, "Authorization: Bearer canary", "X-Request-Id: r-1", "traceparent: 00-x"
        )
        answered = await ask(gateway.port, sent)
        [received] = upstream.requests
    assert answered.status == 200
    assert received.target == "/v1/chat/completions"
    body = json.loads(received.body)
    body.pop("stream_options", None)  # what the gateway asks for itself
    assert body == {
        "model": "real-name",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_tokens": 10,
        "temperature": 0,
        "stream": True,
    }
    assert received.header("content-type") == "application/json"
    assert received.header("x-request-id") == "r-1"
    assert b"canary" not in received.head + received.body
    assert gateway.records[0].path == path


# ---- what comes ----


@pytest.mark.parametrize("path", PATHS)
async def test_each_chunk_is_an_event_and_the_last_event_is_done(path: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream(streaming(ROLE, ONE, TWO, STOP, DONE)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        for _ in range(2):  # on one connection
            await client.send(post(path, stage()))
            got = await client.answer()
            assert (got.status, got.whole) == (200, True)
            assert lines(got.body) == [*chunks(ROLE, ONE, TWO, STOP), "done {}"]
    assert got.body.startswith(
        b'id: s-chunk-0\nevent: chat_completion_chunk\ndata: {"stage_id":"s","chunk":' + ROLE[6:-2]
    )
    assert got.body.endswith(b'\n\nid: s-chunk-4\nevent: done\ndata: {"stage_id":"s"}\n\n')
    assert b"\n\n\n" not in got.body
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["cache-control"] == "no-cache, no-transform"
    assert got.headers["x-accel-buffering"] == "no"
    assert (got.headers["x-penstock-route"], got.headers["x-penstock-source"]) == ("m", "upstream")
    assert len(got.headers["x-request-id"]) > 8
    for record in gateway.records:
        assert (record.status, record.end_state, record.transport) == (200, EndState.COMPLETED, "sse")
        assert (record.route, record.path) == ("m", path)
        assert record.bytes_in == len(json.dumps(stage()))
        assert record.bytes_out > len(got.body)
        assert record.ttft_ms is not None


TRANSCRIPTS: dict[str, tuple[bytes, list[str]]] = {
    "without [DONE]": (ONE + STOP, [*chunks(ONE, STOP), "done {}"]),
    "usage nobody asked for": (ONE + STOP + USAGE + DONE, [*chunks(ONE, STOP), "done {}"]),
    "[DONE] in the text": (content("[DONE]") + STOP + DONE, [*chunks(content("[DONE]"), STOP), "done {}"]),
    "comments, ids and retries": (
        b": hello\n\nid: 7\nretry: 5\n" + ONE + STOP + DONE,
        [*chunks(ONE, STOP), "done {}"],
    ),
    "CRLF": ((ONE + STOP + DONE).replace(b"\n", b"\r\n"), [*chunks(ONE, STOP), "done {}"]),
    "data over several lines": (
        b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n' + STOP + DONE,
        [*chunks(b'data: {"choices":[{"delta":{"content":"a"}}]}', STOP), "done {}"],
    ),
    "an event that is no JSON": (ONE + event(b"oops") + STOP + DONE, [*chunks(ONE, STOP), "done {}"]),
    "beyond ASCII": (content("über 🌊 \u2028") + STOP, [*chunks(content("über 🌊 \u2028"), STOP), "done {}"]),
    "large": (content("x" * 70_000) + STOP, [*chunks(content("x" * 70_000), STOP), "done {}"]),
    "an error event": (
        ONE + event(b'{"error":{"message":"Out of memory.","code":500}}') + TWO + DONE,
        [*chunks(ONE), error("Out of memory.")],
    ),
    "cut between events": (ONE, [*chunks(ONE), error("The answer stopped before its end. Send the request again.")]),
    "cut inside an event": (
        ONE + TWO[:-3],
        [*chunks(ONE), error("The answer stopped before its end. Send the request again.")],
    ),
}


@pytest.mark.parametrize("case", TRANSCRIPTS)
@pytest.mark.parametrize("at_once", [True, False], ids=["in one read", "byte by byte"])
async def test_transcript(case: str, at_once: bool, tmp_path: Path) -> None:
    sent, expected = TRANSCRIPTS[case]
    pieces = [sent] if at_once or len(sent) > 10_000 else [sent[at : at + 1] for at in range(len(sent))]
    script = answering_once(OK_EVENTS, *map(chunk, pieces), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await asked(gateway.port)
        assert (got.status, got.whole) == (200, True)
        assert lines(got.body) == expected
        record = await gateway.record()
    ends = {"an error event": EndState.UPSTREAM_ERROR} | {
        name: EndState.UPSTREAM_TRUNCATED for name in TRANSCRIPTS if "cut" in name
    }
    assert (record.status, record.end_state) == (200, ends.get(case, EndState.COMPLETED))


async def test_bytes_that_are_no_utf8_are_replaced_as_every_reader_of_events_does_it(tmp_path: Path) -> None:
    bad = event(b'{"choices":[{"delta":{"content":"\xff"}}]}')
    async with (
        scripted_upstream(streaming(ONE, bad, STOP, DONE)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        got = await asked(gateway.port)
    assert b'data: {"stage_id":"s","chunk":' + bad[6:-2].replace(b"\xff", b"\xef\xbf\xbd") + b"}\n\n" in got.body


async def test_a_connection_that_is_reset_is_told_as_the_last_event(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await asyncio.sleep(0.02)
        peer.reset()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await asked(gateway.port)
    *said, last = lines(got.body)
    assert said == chunks(ONE)
    assert last.startswith("error ")
    assert got.whole


async def test_a_stall_is_an_error_after_timeouts_idle(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await peer.closed()

    settings = ("timeouts: {idle: 50ms}",)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url, *settings), tmp_path) as gateway:
        got = await asked(gateway.port)
        record = await gateway.record()
    assert lines(got.body) == [
        *chunks(ONE),
        error("Nothing came for timeouts.idle (0.05 s). Send the request again."),
    ]
    assert record.end_state is EndState.UPSTREAM_IDLE


# ---- silence ----

KEEPALIVE = "keepalive: 15ms"


def after_silence(*pieces: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.05)
        await peer.send(*pieces)

    return script


async def test_a_long_silence_is_filled_with_comments_without_a_blank_line(tmp_path: Path) -> None:
    script = after_silence(OK_EVENTS, chunk(ONE + STOP + DONE), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway:
        got = await asked(gateway.port)
    silence, first, rest = got.body.partition(b"id: s-chunk-0\n")
    assert silence.startswith(b": ping\n" * 2)
    assert silence.replace(b": ping\n", b"") == b""
    assert lines(first + rest) == [*chunks(ONE, STOP), "done {}"]


LATE: dict[str, tuple[tuple[bytes, ...], str, EndState]] = {
    "a refusal": ((answer(400, b'{"error":{"message":"too long"}}'),), "too long", EndState.UPSTREAM_REJECTED),
    "a failure": ((answer(500, b"<html>"),), "The model server answered with status 500.", EndState.UPSTREAM_ERROR),
    "an error event": (
        (OK_EVENTS, chunk(event(b'{"error":{"message":"overloaded"}}')), LAST_CHUNK),
        "overloaded",
        EndState.UPSTREAM_ERROR,
    ),
    "an answer in one piece": (
        (answer(200, COMPLETION),),
        "The model server did not answer with an event stream.",
        EndState.UPSTREAM_ERROR,
    ),
    "no event": ((OK_EVENTS, LAST_CHUNK), "stopped before its end", EndState.UPSTREAM_TRUNCATED),
}


@pytest.mark.parametrize("case", LATE)
async def test_a_late_failure_is_the_stages_only_event(case: str, tmp_path: Path) -> None:
    pieces, said, end_state = LATE[case]
    async with (
        scripted_upstream(after_silence(*pieces)) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
    ):
        got = await asked(gateway.port)
        record = await gateway.record()
    assert (got.status, got.whole) == (200, True)
    silence, first, rest = got.body.partition(b"id: ")
    assert silence.replace(b": ping\n", b"") == b""
    [line] = lines(first + rest)
    assert line.startswith("error ")
    assert said.lower() in line.lower()
    assert (record.status, record.end_state) == (200, end_state)


@pytest.mark.parametrize("path", [*PATHS, "/completion/v1/chat"])
@pytest.mark.parametrize("case", LATE)
async def test_a_quick_failure_has_its_status(case: str, path: str, tmp_path: Path) -> None:
    pieces, said, _ = LATE[case]
    async with (
        scripted_upstream(answering_once(*pieces)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        got = await asked(gateway.port, path)
        record = await gateway.record()
    whole_is_good = path.startswith("/completion") and case == "an answer in one piece"
    if whole_is_good:
        assert got.status == 200
        return
    status = {"a refusal": 400, "a failure": 500}.get(case, 502)
    assert got.status == status
    told = detail(got)
    if path.startswith("/stream"):
        assert said.lower() in str(told).lower()
        assert record.end_state is LATE[case][2]
    assert record.status == status


async def test_an_upstreams_refusal_keeps_its_headers_and_says_who_speaks(tmp_path: Path) -> None:
    sent = answer(429, b'{"error":{"message":"slow down"}}', b"Retry-After: 7", b"Set-Cookie: a=b")
    async with scripted_upstream(answering(sent)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await asked(gateway.port)
    assert (got.status, detail(got)) == (429, "slow down")
    assert got.headers["content-type"] == "application/json"
    assert (got.headers["retry-after"], got.headers["x-penstock-source"]) == ("7", "upstream")
    assert "set-cookie" not in got.headers


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"object":"error","message":"no such model","code":404}', "no such model"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"msg":"x"}]}', "The model server answered with status 404."),
        (b"", "The model server answered with status 404."),
    ],
)
async def test_a_refusal_in_other_words_is_understood(body: bytes, said: str, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(404, body))) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            got = await asked(gateway.port)
    assert (got.status, detail(got)) == (404, said)


async def test_an_upstream_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    async with served(one_route("http://127.0.0.1:9"), tmp_path) as gateway:
        got = await asked(gateway.port)
    assert got.status in (502, 503)
    assert "127.0.0.1" not in str(detail(got))


# ---- refusals ----

ROUTES = """
server: {port: 0, max_body: 2000}
routes:
  b: {replicas: ['demo://'], aliases: [other]}
  a: 'demo://'
  unset: {model: '${NOWHERE}', replicas: ['demo://']}
  bare: {model: x}
  claude: {protocol: anthropic, replicas: ['demo://']}
  ollama: {protocol: ollama, replicas: ['demo://']}
"""
REFUSALS = {
    "unknown": (400, "Unknown model: unknown. Available models: ['b', 'a', 'unset', 'bare', 'claude', 'ollama']"),
    "": (400, "Unknown model: . Available models: ['b', 'a', 'unset', 'bare', 'claude', 'ollama']"),
    "unset": (400, "Model unset is not configured. Check environment variables."),
    "bare": (400, "No service configured for model: bare"),
    "claude": (501, "Unsupported protocol: anthropic"),
    "ollama": (501, "Unsupported protocol: ollama"),
}


@pytest.mark.parametrize("path", [*PATHS, "/completion/v1/chat", "/completion/v1/toolchain"])
@pytest.mark.parametrize("model", REFUSALS)
async def test_a_model_that_cannot_be_used_is_refused_in_the_originals_words(
    model: str, path: str, tmp_path: Path
) -> None:
    async with served(ROUTES, tmp_path) as gateway:
        got = await asked(gateway.port, path, model_container=model)
        record = await gateway.record()
    assert (got.status, detail(got)) == REFUSALS[model]
    assert got.headers["x-penstock-source"] == "gateway"
    assert (record.status, record.end_state) == (got.status, EndState.REJECTED)


async def test_chat_does_not_offer_the_routes_tools(tmp_path: Path) -> None:
    async with (
        scripted_upstream(streaming(ONE, STOP, DONE)) as upstream,
        served(with_quick_tools(one_route(upstream.url, "tools: [bench]"), "dies=1"), tmp_path) as gateway,
    ):
        assert (await asked(gateway.port)).status == 200
    assert "tools" not in json.loads(upstream.requests[0].body)


async def test_a_tool_server_that_does_not_start_is_told_with_a_status(tmp_path: Path) -> None:
    config = with_quick_tools(one_route("demo://", "tools: [bench]"), "dies=3")
    async with served(config, tmp_path) as gateway:
        got = await asked(gateway.port, PATHS[1])
        record = await gateway.record()
    assert (got.status, record.end_state) == (503, EndState.SHED)
    assert str(detail(got)).startswith('tool server "bench": its program ended (exit code 3)')
    assert got.headers["retry-after"] == "1"


@pytest.mark.parametrize("name", ["http://10.0.0.1/", "a@b", "a\r\nb", "../a", "\u0430", "x" * 10_000])
async def test_a_strange_model_name_is_told_and_nothing_more(name: str, tmp_path: Path) -> None:
    async with served(ROUTES.replace("2000", "20000"), tmp_path) as gateway:
        got = await asked(gateway.port, model_container=name)
        assert (await gateway.record()).model == "unknown"
    shown = name if len(name) < 257 else "x" * 256 + "…"
    assert got.status == 400
    assert str(detail(got)).startswith(f"Unknown model: {shown}. Available models: ['b', ")


KEYS = """
auth:
  keys:
    - {name: web, key: sk-web, models: [a, other]}
"""


async def test_a_key_sees_and_uses_only_its_models(tmp_path: Path) -> None:
    async with served(ROUTES + KEYS, tmp_path) as gateway:
        answers = [
            await ask(gateway.port, post(PATHS[0], stage(model_container=model), *headers))
            for model, headers in [
                ("a", ("Authorization: Bearer sk-web",)),
                ("other", ("x-api-key: sk-web",)),
                ("unknown", ("x-api-key: sk-web",)),
                ("b", ("x-api-key: sk-web",)),
                ("a", ("x-api-key: sk-canary",)),
                ("a", ()),
            ]
        ]
    assert [got.status for got in answers] == [200, 200, 400, 403, 401, 401]
    assert detail(answers[2]) == "Unknown model: unknown. Available models: ['a']"
    assert str(detail(answers[3])).startswith("This key may not use the model.")
    assert str(detail(answers[4])).startswith("Give a valid API key")
    assert "canary" not in str(answers)
    assert [record.key for record in gateway.records] == ["web", "web", "web", "web", None, None]


async def test_every_other_error_is_a_detail_too(tmp_path: Path) -> None:
    requests: dict[bytes, tuple[int, str]] = {
        post("/stream/v1/chat", b"{"): (422, "POST"),
        post("/stream/v1/chat", stage(max_tokens=True)): (422, "POST"),
        post("/stream/v1/chat", stage(stream=False)): (400, "POST"),
        post("/completion/v1/chat", stage(strategy="tool_call")): (400, "POST"),
        post("/stream/v1/chat", stage(user_prompt="x" * 3000)): (413, "POST"),
        post("/stream/v1/chat", stage(), "Content-Encoding: gzip"): (415, "POST"),
        post("/stream/v1/chat", stage(), "Origin: https://evil.example"): (403, "POST"),
        post("/stream/v1/chat", stage()).replace(b"Host: 127.0.0.1", b"Host: evil.example"): (403, "POST"),
        post("/stream/v1/nothing", stage()): (404, "POST"),
        get("/stream/v1/chat"): (405, "GET"),
        get("/completion/v1/chat"): (405, "GET"),
        get("/completion/v1/chat", "Connection: Upgrade", "Upgrade: websocket"): (426, "GET"),
    }
    async with served(ROUTES, tmp_path) as gateway:
        for request, (status, method) in requests.items():
            got = await ask(gateway.port, request, method)
            assert got.status == status, request
            assert detail(got), request
            assert got.headers["content-type"].startswith("application/json")
            assert got.headers["x-request-id"]
    assert [record.status for record in gateway.records] == [status for status, _ in requests.values()]


async def test_what_is_wrong_with_a_body_is_listed(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway:
        got = await ask(gateway.port, post(PATHS[0], {"stage_id": "s", "max_tokens": "9"}))
    assert detail(got) == [
        {"loc": ["body", "model_container"], "msg": "Field required", "type": "missing"},
        {"loc": ["body", "user_prompt"], "msg": "Field required", "type": "missing"},
        {
            "loc": ["body", "max_tokens"],
            "msg": "Give one whole number, or a pair of them: [first, synthesis].",
            "type": "number_or_pair",
        },
    ]


async def test_pages_of_this_machine_may_ask(tmp_path: Path) -> None:
    origin = "Origin: http://localhost:3000"
    wants = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
    async with served(ROUTES, tmp_path) as gateway:
        preflight = await ask(gateway.port, get(PATHS[0], origin, *wants, method="OPTIONS"), "OPTIONS")
        streamed = await ask(gateway.port, post(PATHS[0], stage(model_container="a"), origin))
        whole = await ask(gateway.port, post("/completion/v1/chat", stage(model_container="a"), origin))
        refused = await ask(gateway.port, post(PATHS[0], stage(model_container="x"), origin))
    assert preflight.status == 200
    for answered in (preflight, streamed, whole, refused):
        assert answered.headers["access-control-allow-origin"] == "http://localhost:3000"


# ---- clients that leave, and a gateway that does ----


STREAM, WHOLE = "/stream/v1/chat", "/completion/v1/chat"
PHASES: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "a stream before its head": (STREAM, ()),
    "a stream before its first event": (STREAM, (OK_EVENTS,)),
    "a stream": (STREAM, (OK_EVENTS, chunk(ONE))),
    "an answer before its head": (WHOLE, ()),
    "an answer": (WHOLE, (answer(200, b"x" * 1000)[:-1],)),
    "a large answer": (WHOLE, (answer(200, b"x" * 1_000_000)[:-1],)),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_that_leaves_closes_its_upstream(phase: str, reset: bool, tmp_path: Path) -> None:
    path, pieces = PHASES[phase]
    sent, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        sent.set()
        await peer.closed()
        closed.set()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post(path, stage()))
            await sent.wait()
            if phase == "a stream":
                await client.reader.readuntil(b"}\n\n")
            client.leave(reset=reset)
            async with asyncio.timeout(PATIENCE_S):
                await closed.wait()
        record = await gateway.record()
    assert (record.status, record.end_state, record.path) == (499, EndState.CLIENT_CLOSED, path)


# ---- stages that are followed, stopped, and come back to ----


WANTS = "x-penstock-resumable: true"
KEEPS = "on_disconnect: {keep: 2m}"


async def begun(model: Model, client: RawClient, *headers: str) -> str:
    """A stage that has said `a`; its stream's id."""
    await client.send(post(STREAM, stage(), *headers))
    model.say("a")
    head = await client.reader.readuntil(b"\r\n\r\n")
    await client.reader.readuntil(b'"a"}')
    return re.search(rb"x-penstock-stream: (\S+)", head)[1].decode()  # type: ignore[index]


async def followed(port: int, id: str, *headers: str) -> RawAnswer:
    return await ask(port, get(f"/v1/streams/{id}", *headers), "GET")


@pytest.mark.parametrize("path", PATHS)
async def test_every_stage_has_a_name_under_which_all_of_it_can_be_had_again(path: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream(streaming(ROLE, ONE, content("über"), STOP, DONE)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        got = await asked(gateway.port, path)
        id = got.headers["x-penstock-stream"]
        again = await followed(gateway.port, id)
        rest = await followed(gateway.port, id, "Last-Event-ID: s-chunk-2")
        nothing = await followed(gateway.port, id, "Last-Event-ID: s-chunk-4")
        [record, *_] = gateway.records
    assert (again.status, again.body) == (200, got.body)
    assert rest.body == got.body[got.body.index(b"id: s-chunk-3") :]
    assert nothing.status == 204
    assert again.headers["x-penstock-stream"] == id
    assert (record.end_state, record.bytes_out > len(got.body)) == (EndState.COMPLETED, True)


async def test_a_tools_rounds_can_be_had_again_too(tmp_path: Path) -> None:
    config = with_quick_tools(one_route("demo://?interval=0ms", "tools: [bench]"))
    async with served(config, tmp_path) as gateway:
        got = await asked(gateway.port, PATHS[1], user_prompt="Use the tool, please.", synthesis=True)
        again = await followed(gateway.port, got.headers["x-penstock-stream"])
    kinds = [line.split(" ")[0] for line in lines(got.body)]
    assert {"chat_completion_chunk", "tool_summary", "tool_completion_chunk", "done"} <= set(kinds)
    assert again.body == got.body


@pytest.mark.parametrize("case", TRANSCRIPTS)
async def test_what_was_told_is_told_again_to_the_byte(case: str, tmp_path: Path) -> None:
    script = answering_once(OK_EVENTS, chunk(TRANSCRIPTS[case][0]), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await asked(gateway.port)
        again = await followed(gateway.port, got.headers["x-penstock-stream"])
    assert again.body == got.body


@pytest.mark.parametrize(("headers", "route"), [((WANTS,), ()), ((), (KEEPS,)), ((WANTS,), (KEEPS,))])
async def test_a_client_that_left_a_stage_comes_back_to_it(
    headers: tuple[str, ...], route: tuple[str, ...], tmp_path: Path
) -> None:
    async with world(tmp_path, route=route) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await begun(model, client, *headers)
            client.leave()
            await alone(gateway)
        pass_time(gateway, 60 if route else 10)
        model.say("b")
        model.stop()
        got = await followed(gateway.port, id, "Last-Event-ID: s-chunk-0")
        records = [await gateway.record(0), await gateway.record(1)]
    assert lines(got.body, first=1) == [*chunks(content("b"), STOP), "done {}"]
    [record] = [each for each in records if each.path == STREAM]
    assert (record.status, record.end_state, record.transport) == (200, EndState.COMPLETED, "sse")


async def test_nobody_who_comes_back_to_a_stage_in_time_is_a_cancel(tmp_path: Path) -> None:
    async with world(tmp_path, route=(KEEPS,)) as (model, gateway):
        async with raw_client(gateway.port) as client:
            id = await begun(model, client)
            client.leave()
            await alone(gateway)
        pass_time(gateway, 120)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        record = await gateway.record()
        got = await followed(gateway.port, id, "Last-Event-ID: s-chunk-0")
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)
    assert lines(got.body, first=1) == ["cancel {}"]


async def test_a_stage_can_be_stopped_from_elsewhere_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), raw_client(gateway.port) as client:
        id = await begun(model, client)
        stopped = await ask(gateway.port, get(f"/v1/streams/{id}", method="DELETE"), "DELETE")
        rest = await client.reader.readuntil(LAST_CHUNK)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        records = [await gateway.record(0), await gateway.record(1)]
    assert stopped.status == 204
    assert b'id: s-chunk-1\nevent: cancel\ndata: {"stage_id":"s"}\n\n' in rest
    assert {each.path: each.end_state for each in records}[STREAM] is EndState.CLIENT_CLOSED


async def test_a_stage_that_was_taken_over_is_the_new_followers(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), raw_client(gateway.port) as first:
        id = await begun(model, first)
        async with raw_client(gateway.port) as second:
            await second.send(get(f"/v1/streams/{id}", "Last-Event-ID: s-chunk-0"))
            rest = await first.reader.readuntil(LAST_CHUNK)
            model.say("b")
            await second.reader.readuntil(b'"b"}')
            assert len(store_of(gateway).live()) == 1
            second.leave()
            async with asyncio.timeout(PATIENCE_S):
                await model.left.wait()
    assert b"event: error\n" in rest
    assert b"id:" not in rest


async def test_a_stage_that_began_late_is_kept_under_the_name_it_was_given(tmp_path: Path) -> None:
    pinged = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await pinged.wait()
        await peer.send(OK_EVENTS, chunk(ONE + STOP + DONE), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post(STREAM, stage()))
        head = await client.reader.readuntil(b": ping\n")
        pinged.set()
        rest = await client.reader.readuntil(LAST_CHUNK)
        id = re.search(rb"x-penstock-stream: (\S+)", head)[1].decode()  # type: ignore[index]
        again = await followed(gateway.port, id)
    assert b"id: s-chunk-0\n" in rest
    assert lines(again.body) == [*chunks(ONE, STOP), "done {}"]


async def test_a_drain_ends_an_open_stage_with_cancel_and_refuses_new_ones(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        async with served(one_route(upstream.url, server="port: 0\ndrain: 50ms"), tmp_path) as gateway:
            async with raw_client(gateway.port) as client, raw_client(gateway.port) as other:
                await other.send(get("/v1/models"))  # so that the gateway waits for nothing more from it
                await other.answer("GET")
                await client.send(post(PATHS[0], stage()))
                head = await client.reader.readuntil(b'"one"')
                draining = asyncio.create_task(gateway.gateway.drain())
                async with asyncio.timeout(PATIENCE_S):
                    while not gateway.gateway._relay.draining:
                        await asyncio.sleep(0.001)
                await other.send(post(PATHS[0], stage()))
                refused = await other.answer()
                await draining
                rest = await client.reader.readuntil(b"0\r\n\r\n")
            records = [await gateway.record(number) for number in range(3)]
    assert head.count(b"event: ") == 1
    assert b'id: s-chunk-1\nevent: cancel\ndata: {"stage_id":"s"}\n\n' in rest
    assert [each.end_state for each in records if each.status == 200 and each.path == STREAM] == [EndState.DRAINED]
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert "shutting down" in str(detail(refused))


async def test_a_reader_that_never_reads_pauses_its_upstream(tmp_path: Path) -> None:
    """64 MiB of chunks do not fit anywhere between: the upstream must notice that nobody takes them."""
    blocked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        large = chunk(content("x" * (1 << 20)))
        for _ in range(64):
            try:
                async with asyncio.timeout(0.3):
                    await peer.send(large)
            except TimeoutError:
                blocked.set()
                return

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(post(PATHS[0], stage()))
            async with asyncio.timeout(20):
                await blocked.wait()


# ---- one JSON answer ----


async def test_a_completion_holds_the_upstreams_answer_as_it_came(tmp_path: Path) -> None:
    sent = answer(200, COMPLETION, b"X-Vendor: 1", b"Server: vendor")
    async with scripted_upstream(answering(sent)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await asked(gateway.port, "/completion/v1/chat", max_tokens=[3, 4])
        [received] = upstream.requests
        record = await gateway.record()
    assert got.body == b'{"stage_id":"s","chat_completion":' + COMPLETION + b"}"
    assert (got.status, got.headers["content-type"], got.headers["x-vendor"]) == (200, "application/json", "1")
    assert got.headers["server"] == "penstock"
    body = json.loads(received.body)
    assert (body["stream"], body["max_tokens"]) == (False, 3)
    assert (record.end_state, record.transport, record.path) == (EndState.COMPLETED, "http", "/completion/v1/chat")
    assert record.bytes_out == len(got.body)


async def test_the_toolchains_completion_says_that_no_tools_ran(tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, COMPLETION))) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            got = await asked(gateway.port, "/completion/v1/toolchain")
    tail = b',"tool_summary":[],"tool_completion":null}'
    assert got.body == b'{"stage_id":"s","chat_completion":' + COMPLETION + tail


async def test_a_completion_may_be_larger_than_what_is_held_in_one_piece(tmp_path: Path) -> None:
    large = b'{"x":"' + b"y" * 1_000_000 + b'"}'
    async with scripted_upstream(answering(answer(200, large))) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            got = await asked(gateway.port, "/completion/v1/chat")
    assert got.body == b'{"stage_id":"s","chat_completion":' + large + b"}"


UNUSABLE: dict[str, tuple[tuple[bytes, ...], int, str]] = {
    "events": ((OK_EVENTS, chunk(ONE + STOP + DONE), LAST_CHUNK), 502, "did not answer with one JSON object"),
    "no JSON": ((answer(200, b"canary"),), 502, "did not answer with one JSON object"),
    "a list": ((answer(200, b"[]"),), 502, "did not answer with one JSON object"),
    "an error under 200": ((answer(200, b'{"error":{"message":"sorry"}}'),), 502, "sorry"),
    "an error that names its status": ((answer(200, b'{"error":{"message":"full","code":503}}'),), 503, "full"),
    "too much": ((answer(200, b'{"x":"' + b"y" * 1_100_000 + b'"}'),), 502, "too large"),
    "half of it": ((answer(200, b"x" * 300_000)[:-9],), 502, ""),
}


@pytest.mark.parametrize("case", UNUSABLE)
async def test_what_cannot_be_a_completion_is_an_error(case: str, tmp_path: Path) -> None:
    pieces, status, said = UNUSABLE[case]
    async with scripted_upstream(answering_once(*pieces)) as upstream:
        async with served(one_route(upstream.url, server="port: 0\nmax_event: 1MiB"), tmp_path) as gateway:
            got = await asked(gateway.port, "/completion/v1/chat")
            record = await gateway.record()
    assert got.status == status
    told = detail(got)
    assert said in str(told)
    assert "canary" not in str(told)
    assert record.end_state in (EndState.UPSTREAM_ERROR, EndState.UPSTREAM_TRUNCATED)
