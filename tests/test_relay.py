"""The line every request takes: who is turned away, what its record says in the end, and how a drain ends it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.access.keys import Key
from proxy.config.loader import load
from proxy.errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    TooManyRequests,
    Unavailable,
    UpstreamInvalid,
)
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import build_table
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import UNKNOWN, EndState, Phase, RequestRecord, end_state_of
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard
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
    chunk,
    content,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USAGE = event(b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
ERROR = event(b'{"error":{"message":"overloaded","code":503}}')
WHOLE_ANSWER = OK_EVENTS + chunk(ROLE + content("a")) + chunk(content("b") + STOP + USAGE + DONE) + LAST_CHUNK


class House:
    """A relay with all that is below it, and requests that go through it."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    async def open(self, model: str = "chat", path: str = "/v1/chat/completions") -> tuple[Answer, RequestRecord]:
        request = request_for(model, path)
        record = new_record(path)
        route = self.relay.route(request, None, record)
        return await self.relay.open(request, route, record), record

    async def give(self, model: str = "chat") -> tuple[Heard | None, RequestRecord]:
        """A request to its very end, as its client hears it (None: an answer in one piece)."""
        answer, record = await self.open(model)
        heard = None
        try:
            if answer.body is None:
                heard = Heard(answer.stream)
                await heard.over.wait()
        finally:
            self.relay.close(answer, record)
        self.nothing_is_left()
        return heard, record

    async def refused(self) -> GatewayError:
        with pytest.raises(GatewayError) as raised:
            await self.open()
        self.nothing_is_left()
        return raised.value

    def nothing_is_left(self) -> None:
        assert [
            replica.in_flight for route in self.relay.table.routes for replica in route.replicas if replica.in_flight
        ] == []


def request_for(model: str, path: str = "/v1/chat/completions") -> ProxyRequest:
    raw = b'{"model":"%b","stream":true}' % model.encode()
    return ProxyRequest(path, "", (), (), RequestBody.parse(raw), "req_1")


def new_record(path: str = "/v1/chat/completions") -> RequestRecord:
    return RequestRecord("req_1", "POST", path, asyncio.get_running_loop().time())


@asynccontextmanager
async def house(tmp_path: Path, routes: str) -> AsyncIterator[House]:
    file = tmp_path / "routes.yaml"
    file.write_text(routes, encoding="utf-8")
    pool = Pool()
    dispatch = Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda _: None)
    try:
        yield House(Relay(build_table(load(file, {})), dispatch))
    finally:
        await pool.close()


@asynccontextmanager
async def house_of(tmp_path: Path, script: Script, settings: str = "") -> AsyncIterator[House]:
    """A house whose route `chat` has this one scripted replica, which is asked once unless `settings` say more."""
    settings = settings if "retry" in settings else settings + ", retry: {attempts: 1}"
    async with scripted_upstream(script) as upstream:
        routes = f'routes: {{chat: {{replicas: ["{upstream.url}"]{settings}}}}}'
        async with house(tmp_path, routes) as built:
            yield built


def saying(*pieces: bytes, end: str) -> Script:
    """A script that says these pieces and then stalls, resets, or ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if end == "stall":
            await peer.closed()
        elif end == "reset":
            peer.reset()

    return script


# ---- who is turned away ----

ROUTES = """
routes:
  chat: {replicas: ["http://127.0.0.1:9"], aliases: [gpt]}
  empty: {replicas: []}
  unset: {model: "${MODEL_NOBODY_SET:-}", replicas: ["http://127.0.0.1:9"]}
"""


@pytest.mark.parametrize(
    ("model", "key", "kind", "status", "code"),
    [
        ("nothing", None, ModelNotFound, 404, "model_not_found"),
        ("chat", Key("team", ("other",)), Forbidden, 403, "model_not_allowed"),
        ("unset", None, InvalidRequest, 400, "invalid_request"),
        ("empty", None, Unavailable, 503, "no_replica_available"),
    ],
)
async def test_a_request_without_a_usable_route_is_turned_away(
    model: str, key: Key | None, kind: type[GatewayError], status: int, code: str, tmp_path: Path
) -> None:
    async with house(tmp_path, ROUTES) as there:
        record = new_record()
        with pytest.raises(kind) as raised:
            there.relay.route(request_for(model), key, record)
    assert (raised.value.status, raised.value.code) == (status, code)
    named = model in ("unset", "empty")
    assert (record.route, record.model) == ((model, model) if named else (UNKNOWN, UNKNOWN))


async def test_the_record_names_the_route_and_the_alias_that_was_asked_for(tmp_path: Path) -> None:
    async with house(tmp_path, ROUTES) as there:
        record = new_record()
        route = there.relay.route(request_for("gpt"), Key("team", ("gpt",)), record)
    assert (route.name, record.route, record.model) == ("chat", "chat", "gpt")


# ---- the record ----


async def test_a_complete_stream_is_recorded(tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(WHOLE_ANSWER)) as there:
        heard, record = await there.give()
    assert heard is not None
    assert heard.wire == ROLE + content("a") + content("b") + STOP + DONE  # nobody asked for USAGE
    assert record.end_state is EndState.COMPLETED
    assert (record.attempts, record.replica, record.events) == (1, 0, 5)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (3, 2, False)
    assert record.ttft_ms is not None
    assert record.duration_ms is not None
    assert 0 <= record.ttft_ms <= record.duration_ms


async def test_an_answer_in_one_piece_is_recorded(tmp_path: Path) -> None:
    said = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}'
    async with house_of(tmp_path, answering(answer(200, said))) as there:
        opened, record = await there.open()
        assert (opened.status, opened.body, opened.events) == (200, said, False)
        there.relay.close(opened, record)
    assert (record.end_state, record.events, record.ttft_ms) == (EndState.COMPLETED, 0, None)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (7, 4, False)


async def test_a_stream_without_usage_is_estimated(tmp_path: Path) -> None:
    said = OK_EVENTS + chunk(ROLE + content("a") + content("b") + content("c") + STOP + DONE) + LAST_CHUNK
    async with house_of(tmp_path, answering(said)) as there:
        _, record = await there.give()
    assert record.end_state is EndState.COMPLETED
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (0, 3, True)


@pytest.mark.parametrize(
    ("script", "settings", "end_state", "code"),
    [
        (saying(OK_EVENTS, chunk(content("a")), end="reset"), "", EndState.UPSTREAM_TRUNCATED, "upstream_truncated"),
        (saying(OK_EVENTS, chunk(content("a")), end="end"), "", EndState.UPSTREAM_TRUNCATED, "upstream_truncated"),
        (
            saying(OK_EVENTS, chunk(content("a")), end="stall"),
            ", timeouts: {idle: 30ms}",
            EndState.UPSTREAM_IDLE,
            "upstream_idle",
        ),
        (
            saying(OK_EVENTS, chunk(content("a")), end="stall"),
            ", timeouts: {total: 30ms}",
            EndState.UPSTREAM_ERROR,
            "upstream_timeout",
        ),
        (
            saying(OK_EVENTS, chunk(content("a")) + b"zz\r\n", end="stall"),
            "",
            EndState.UPSTREAM_ERROR,
            "upstream_invalid",
        ),
    ],
)
async def test_a_stream_that_breaks_off_is_recorded_as_what_it_was(
    script: Script, settings: str, end_state: EndState, code: str, tmp_path: Path
) -> None:
    async with house_of(tmp_path, script, settings) as there:
        heard, record = await there.give()
    assert heard is not None
    assert heard.wire == content("a")
    [error] = heard.ends
    assert error is not None
    assert (error.code, record.end_state, record.events) == (code, end_state, 1)


@pytest.mark.parametrize(
    ("said", "end_state"),
    [
        ([answer(404, b"{}")], EndState.UPSTREAM_REJECTED),
        ([answer(429, b"{}")], EndState.UPSTREAM_REJECTED),
        ([answer(500, b"{}")], EndState.UPSTREAM_ERROR),
        ([answer(200, b'{"error":{"message":"no"}}')], EndState.UPSTREAM_ERROR),
        ([OK_EVENTS, chunk(ROLE + ERROR), LAST_CHUNK], EndState.UPSTREAM_ERROR),
        ([OK_EVENTS, chunk(content("a")), chunk(ERROR), LAST_CHUNK], EndState.UPSTREAM_ERROR),
    ],
)
async def test_an_upstreams_own_error_is_recorded(said: list[bytes], end_state: EndState, tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(*said)) as there:
        _, record = await there.give()
    assert record.end_state is end_state


@pytest.mark.parametrize(
    ("script", "settings", "end_state", "code"),
    [
        (saying(end="stall"), ", timeouts: {first_token: 30ms}", EndState.FIRST_TOKEN_TIMEOUT, "first_token_timeout"),
        (
            saying(OK_EVENTS, end="stall"),
            ", timeouts: {first_token: 30ms}",
            EndState.FIRST_TOKEN_TIMEOUT,
            "first_token_timeout",
        ),
        (saying(OK_EVENTS, chunk(ROLE), end="end"), "", EndState.UPSTREAM_TRUNCATED, "upstream_truncated"),
        (saying(end="end"), "", EndState.UPSTREAM_ERROR, "upstream_unreachable"),
        (saying(answer(302, b""), end="end"), "", EndState.UPSTREAM_ERROR, "upstream_invalid"),
    ],
)
async def test_a_request_that_fails_before_its_commit_point_tells_how_it_ends(
    script: Script, settings: str, end_state: EndState, code: str, tmp_path: Path
) -> None:
    async with house_of(tmp_path, script, settings) as there:
        error = await there.refused()
        assert (error.code, end_state_of(error)) == (code, end_state)
        async with asyncio.timeout(5):
            await there.relay.drain(None)


async def test_a_client_that_leaves_is_recorded_and_its_upstream_closed(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")))
        await peer.closed()
        gone.set()

    async with house_of(tmp_path, script) as there:
        opened, record = await there.open()
        heard = Heard(opened.stream)
        there.relay.close(opened, record)
        there.nothing_is_left()
        async with asyncio.timeout(0.1):
            await gone.wait()
        assert (heard.wire, heard.ends) == (content("a"), [])
        assert (record.end_state, record.status, record.events) == (EndState.CLIENT_CLOSED, 499, 1)
        assert (record.tokens_out, record.tokens_estimated) == (0, True)
        there.relay.close(opened, record)
        assert record.end_state is EndState.CLIENT_CLOSED


async def test_a_client_that_leaves_before_the_commit_point_leaves_nothing(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        gone.set()

    async with house_of(tmp_path, script) as there:
        task = asyncio.create_task(there.open())
        async with asyncio.timeout(5):
            await asked.wait()
        task.cancel()
        async with asyncio.timeout(0.1):
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        there.nothing_is_left()
        async with asyncio.timeout(5):
            await there.relay.drain(None)


async def test_a_stale_connection_counts_as_an_attempt(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(WHOLE_ANSWER)
        await peer.request()

    async with house_of(tmp_path, script) as there:
        await there.give()
        heard, record = await there.give()
    assert heard is not None
    assert heard.ends == [None]
    assert (record.end_state, record.attempts, record.replica) == (EndState.COMPLETED, 2, 0)


async def test_an_unknown_endpoint_is_complete_when_its_body_is(tmp_path: Path) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 4\r\n\r\n\xff\xfb\x90\x00"
    async with house_of(tmp_path, answering(raw)) as there:
        opened, record = await there.open(path="/v1/audio/speech")
        assert (opened.body, opened.events) == (None, False)
        heard = Heard(opened.stream)
        await heard.over.wait()
        there.relay.close(opened, record)
    assert (heard.wire, heard.ends, record.end_state) == (b"\xff\xfb\x90\x00", [None], EndState.COMPLETED)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (None, None, False)


async def test_the_built_in_model_answers_without_a_network(tmp_path: Path) -> None:
    async with house(tmp_path, "routes: {tour: 'demo://?interval=0&first=0'}") as there:
        request = ProxyRequest(
            "/v1/chat/completions",
            "",
            (),
            (),
            RequestBody.parse(b'{"model":"tour","stream":true,"messages":[{"role":"user","content":"hello"}]}'),
            "req_1",
        )
        record = new_record()
        opened = await there.relay.open(request, there.relay.route(request, None, record), record)
        heard = Heard(opened.stream)
        async with asyncio.timeout(20):
            await heard.over.wait()
        there.relay.close(opened, record)
        there.nothing_is_left()
    assert (heard.ends, record.end_state) == ([None], EndState.COMPLETED)
    assert heard.wire.endswith(DONE)


# ---- attempts, phases, paces ----


@pytest.mark.parametrize(
    ("script", "settings", "outcome"),
    [
        (answering(WHOLE_ANSWER), "", Outcome.OK),
        (answering(answer(200, b"{}")), "", Outcome.OK),
        (answering(answer(404, b"{}")), "", Outcome.STATUS),
        (answering(answer(503, b"{}")), "", Outcome.STATUS),
        (answering(answer(200, b'{"error":{"message":"no"}}')), "", Outcome.ERROR_EVENT),
        (answering(OK_EVENTS, chunk(content("a")), chunk(ERROR), LAST_CHUNK), "", Outcome.ERROR_EVENT),
        (saying(OK_EVENTS, chunk(content("a")), end="reset"), "", Outcome.TRUNCATED),
        (saying(OK_EVENTS, chunk(content("a")) + b"zz\r\n", end="stall"), "", Outcome.INVALID),
        (saying(OK_EVENTS, chunk(content("a")), end="stall"), ", timeouts: {idle: 30ms}", Outcome.TIMEOUT),
    ],
)
async def test_an_attempt_that_was_answered_comes_to_what_its_answer_did(
    script: Script, settings: str, outcome: Outcome, tmp_path: Path
) -> None:
    async with house_of(tmp_path, script, settings) as there:
        _, record = await there.give()
    assert record.attempted == [("chat", 0, outcome)]


async def test_an_answer_that_its_client_leaves_is_well_as_far_as_it_came(tmp_path: Path) -> None:
    async with house_of(tmp_path, saying(OK_EVENTS, chunk(content("a")), end="stall")) as there:
        opened, record = await there.open()
        there.relay.close(opened, record)
        there.relay.close(opened, record)
    assert record.attempted == [("chat", 0, Outcome.OK)]


@pytest.mark.parametrize(("said", "phase"), [(WHOLE_ANSWER, Phase.STREAM), (answer(200, b"{}"), Phase.RESPONSE)])
async def test_an_opened_answer_is_in_the_phase_of_its_kind(said: bytes, phase: Phase, tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(said)) as there:
        opened, record = await there.open()
        assert record.phase is phase
        there.relay.close(opened, record)


async def test_the_last_event_of_a_stream_is_recorded(tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(WHOLE_ANSWER)) as there:
        _, record = await there.give()
    assert record.ttft_ms is not None
    assert record.last_event_ms is not None
    assert record.duration_ms is not None
    assert record.ttft_ms <= record.last_event_ms <= record.duration_ms


async def test_the_reads_that_events_came_by_are_recorded(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a") + content("b") + content("c")))
        await release.wait()
        await peer.send(chunk(content("d") + STOP + DONE) + LAST_CHUNK)

    async with house_of(tmp_path, script) as there:
        opened, record = await there.open()
        heard = Heard(opened.stream)
        release.set()
        await heard.over.wait()
        there.relay.close(opened, record)
    assert (record.events, record.reads) == (6, 2)


async def test_a_silence_after_the_last_event_is_not_its_time(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), end="stall")
    async with house_of(tmp_path, script, ", timeouts: {idle: 200ms}") as there:
        _, record = await there.give()
    assert record.last_event_ms is not None
    assert record.duration_ms is not None
    assert record.last_event_ms < 100 < 200 <= record.duration_ms + 1


async def test_what_is_in_flight_is_told_by_route(tmp_path: Path) -> None:
    async with house_of(tmp_path, saying(OK_EVENTS, chunk(content("a")), end="stall")) as there:
        assert there.relay.in_flight() == {}
        answers = [await there.open() for _ in range(2)]
        assert there.relay.in_flight() == {"chat": 2}
        for opened, record in answers:
            there.relay.close(opened, record)
        assert there.relay.in_flight() == {}


# ---- drain ----


async def test_an_idle_house_drains_at_once_and_takes_nothing_new(tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(WHOLE_ANSWER)) as there:
        await there.relay.drain(None)
        with pytest.raises(Unavailable) as raised:
            await there.open()
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (503, "draining", 1)


async def test_a_drain_waits_for_what_is_under_way(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")))
        await release.wait()
        await peer.send(chunk(DONE), LAST_CHUNK)

    async with house_of(tmp_path, script) as there:
        opened, record = await there.open()
        heard = Heard(opened.stream)
        drained = asyncio.create_task(there.relay.drain(5.0))
        await asyncio.sleep(0)
        assert not drained.done()
        release.set()
        await heard.over.wait()
        assert not drained.done()
        there.relay.close(opened, record)
        async with asyncio.timeout(5):
            await drained
    assert (heard.ends, record.end_state) == ([None], EndState.COMPLETED)


async def test_a_drain_ends_open_streams_at_its_deadline(tmp_path: Path) -> None:
    async with house_of(tmp_path, saying(OK_EVENTS, chunk(content("a")), end="stall")) as there:
        opened, record = await there.open()
        heard = Heard(opened.stream)
        await there.relay.drain(0.02)
        assert heard.wire == content("a")
        [error] = heard.ends
        assert error is not None
        assert error.code == "draining"
        there.relay.close(opened, record)
        there.nothing_is_left()
    assert record.end_state is EndState.DRAINED


async def test_a_drain_answers_a_request_that_still_waits(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    async with house_of(tmp_path, script) as there:
        task = asyncio.create_task(there.open())
        async with asyncio.timeout(5):
            await asked.wait()
        await there.relay.drain(0.02)
        with pytest.raises(Unavailable) as raised:
            await task
        assert (raised.value.code, raised.value.status) == ("draining", 503)
        there.nothing_is_left()


async def test_a_drain_answers_a_request_that_still_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house_of(tmp_path, saying(end="stall")) as there:
        connecting, go_on = asyncio.Event(), asyncio.Event()
        connect = asyncio.get_running_loop().sock_connect

        async def slow(*args: object) -> None:
            connecting.set()
            await go_on.wait()
            await connect(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", slow)
        task = asyncio.create_task(there.open())
        async with asyncio.timeout(5):
            await connecting.wait()
        await there.relay.drain(0.02)
        go_on.set()
        with pytest.raises(Unavailable) as raised:
            await task
        assert raised.value.code == "draining"
        there.nothing_is_left()


async def test_a_whole_answer_that_is_given_while_the_drain_ends_is_complete(tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(answer(200, b"{}"))) as there:
        opened, record = await there.open()
        await there.relay.drain(0.02)
        there.relay.close(opened, record)
    assert record.end_state is EndState.COMPLETED


async def test_the_error_of_a_failed_open_is_the_replicas_not_the_drains(tmp_path: Path) -> None:
    async with house_of(tmp_path, saying(b"garbage\r\n", end="end")) as there:
        assert type(await there.refused()) is UpstreamInvalid


# ---- requests of several exchanges ----


async def test_a_round_is_not_under_way_by_itself_and_does_not_finish_the_record(tmp_path: Path) -> None:
    async with house_of(tmp_path, answering(WHOLE_ANSWER)) as there:
        request, record = request_for("chat"), new_record()
        stay = there.relay.take_on(request, record)
        opened = await there.relay.open_round(request, there.relay.route(request, None, record), record, stay)
        assert there.relay.in_flight() == {}
        heard = Heard(opened.stream)
        await heard.over.wait()
        there.relay.close_round(opened, record)
        there.nothing_is_left()
    assert (record.end_state, record.events, record.tokens_in, record.attempts) == (None, 5, 3, 1)
    assert record.attempted == [("chat", 0, Outcome.OK)]


async def test_a_round_that_is_closed_early_is_stopped_upstream(tmp_path: Path) -> None:
    async with house_of(tmp_path, saying(OK_EVENTS, chunk(content("a")), end="stall")) as there:
        request, record = request_for("chat"), new_record()
        stay = there.relay.take_on(request, record)
        opened = await there.relay.open_round(request, there.relay.route(request, None, record), record, stay)
        there.relay.close_round(opened, record)
        there.nothing_is_left()


async def test_what_has_entered_is_waited_for_and_ended_by_a_drain(tmp_path: Path) -> None:
    class Request:
        def __init__(self) -> None:
            self.errors: list[GatewayError] = []

        def interrupt(self, error: GatewayError) -> None:
            self.errors.append(error)

    async with house_of(tmp_path, answering(WHOLE_ANSWER)) as there:
        left, stays = Request(), Request()
        route = there.relay.table.routes[0]
        for request in (left, stays):
            there.relay.enter(request, route)
        assert there.relay.in_flight() == {"chat": 2}
        there.relay.leave(left)
        drained = asyncio.create_task(there.relay.drain(0.02))
        await asyncio.sleep(0)
        assert not drained.done()
        await drained
    assert (left.errors, [error.code for error in stays.errors]) == ([], ["draining"])


# ---- admission and fallbacks ----


async def test_an_answer_holds_its_place_until_it_is_closed(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), end="stall")
    async with house_of(tmp_path, script, ", limits: {streams: 1, queue: 0}") as there:
        opened, record = await there.open()
        with pytest.raises(TooManyRequests) as raised:
            await there.open()
        assert end_state_of(raised.value) is EndState.SHED
        there.relay.close(opened, record)
        again, its_record = await there.open()
        there.relay.close(again, its_record)
        assert there.relay.table.find("chat", None).limiter.in_flight == 0


@pytest.mark.parametrize("settings", ["", ", timeouts: {first_token: 20ms}"])
async def test_a_request_that_fails_holds_no_place(settings: str, tmp_path: Path) -> None:
    limits = ", limits: {streams: 1, queue: 0}"
    async with house_of(tmp_path, saying(end="stall" if settings else "end"), limits + settings) as there:
        await there.refused()
        assert there.relay.table.find("chat", None).limiter.in_flight == 0


async def test_who_waits_in_the_queue_is_under_way_and_told_of_a_drain(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), end="stall")
    async with house_of(tmp_path, script, ", limits: {streams: 1}") as there:
        opened, record = await there.open()
        waiting = asyncio.create_task(there.open())
        await asyncio.sleep(0)
        assert there.relay.in_flight() == {"chat": 2}
        await there.relay.drain(0.02)
        with pytest.raises(Unavailable) as raised:
            await waiting
        assert raised.value.code == "draining"
        there.relay.close(opened, record)
        there.nothing_is_left()


async def test_who_waits_is_told_where_in_the_queue(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), end="stall")
    async with house_of(tmp_path, script, ", limits: {streams: 1}") as there:
        opened, record = await there.open()
        told: list[int] = []
        request, later = request_for("chat"), new_record()
        route = there.relay.route(request, None, later)
        waiting = asyncio.create_task(there.relay.open(request, route, later, lambda place, _: told.append(place)))
        await asyncio.sleep(0)
        assert told == [1]
        there.relay.close(opened, record)
        there.relay.close(await waiting, later)


async def test_an_answer_of_a_fallback_is_in_flight_and_recorded_there(tmp_path: Path) -> None:
    async with scripted_upstream(saying(OK_EVENTS, chunk(content("a")), end="stall")) as upstream:
        routes = f"""
routes:
  chat: {{replicas: ["http://127.0.0.1:9"], retry: {{attempts: 1}}, fallbacks: [small]}}
  small: {upstream.url}
"""
        async with house(tmp_path, routes) as there:
            opened, record = await there.open()
            assert there.relay.in_flight() == {"small": 1}
            assert (record.route, record.model, record.attempts) == ("small", "chat", 2)
            there.relay.close(opened, record)
            assert there.relay.in_flight() == {}
            there.nothing_is_left()
