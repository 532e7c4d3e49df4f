"""An exchange: when its answer opens, how it ends, and that deadlines and counts come out even.

The connection is the real one, over a line in memory and a clock that stands still: what comes when is the test's.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    Unavailable,
    UpstreamError,
    UpstreamIdle,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.protocols import endpoints
from proxy.request import RequestBody
from proxy.routing.table import Timeouts
from proxy.streams.stream import Stream
from proxy.upstream.exchange import PREAMBLE_S, WHOLE_BYTES, Exchange, Opening
from proxy.wire.sse import Parser
from tests.support.memory_line import Clock, Heard, Line, cuts, turns
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, ROLE, STOP, answer, chunk, content, event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.wire.sse import Event

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gpu\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ERROR = event(b'{"error":{"message":"overloaded","type":"server_error","code":503}}')
USAGE = event(b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
BROKEN = event(b"{half")
NO_TIMEOUTS = Timeouts(None, None, None, None)
MAX_EVENT_BYTES = 1 << 20
KEY = "sk-replica-canary"


class Scene:
    """An exchange that has sent its request; the upstream's words are `arrive`d."""

    def __init__(
        self,
        path: str = "/v1/chat/completions",
        *,
        streaming: bool = True,
        timeouts: Timeouts = NO_TIMEOUTS,
        max_event_bytes: int = MAX_EVENT_BYTES,
        line: Line | None = None,
    ) -> None:
        self.line = line or Line()
        self.stream = Stream()
        self.watcher = endpoints.for_path(path).watcher(RequestBody.parse(b'{"model":"m"}'))
        self.in_flight = 1
        self.malformed = 0
        self.exchange = Exchange(
            stream=self.stream,
            watcher=self.watcher,
            streaming=streaming,
            max_event_bytes=max_event_bytes,
            timeouts=timeouts,
            credentials=(("Authorization", f"Bearer {KEY}"),),
            on_closed=self._on_closed,
            on_malformed=self._on_malformed,
        )
        self.exchange.begin(self.line.connection, REQUEST)

    def arrive(self, *reads: bytes) -> None:
        self.line.transport.arrive(*reads)

    def events(self, *reads: bytes) -> None:
        """The head of an event stream, then each of these as a chunk and a read of its own."""
        self.arrive(OK_EVENTS, *map(chunk, reads))

    @property
    def opening(self) -> Opening:
        assert self.exchange.opened.done(), "the commit point has not come"
        return self.exchange.opened.result()

    @property
    def failed(self) -> BaseException | None:
        assert self.exchange.opened.done(), "the commit point has not come"
        return self.exchange.opened.exception()

    @property
    def waiting(self) -> bool:
        return not self.exchange.opened.done()

    def hear(self, *, full: bool = False) -> Heard:
        """A listener, from the commit point on."""
        assert self.opening.body is None
        return Heard(self.stream, full=full)

    def _on_closed(self) -> None:
        self.in_flight -= 1

    def _on_malformed(self) -> None:
        self.malformed += 1


def kinds(ends: Sequence[GatewayError | None]) -> list[type | None]:
    return [None if error is None else type(error) for error in ends]


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- the commit point ----


async def test_the_first_content_commits_with_the_preamble_before_it(clock: Clock) -> None:
    scene = Scene()
    scene.events(ROLE)
    assert scene.waiting
    scene.arrive(chunk(content("a")), chunk(content("b") + content("c")))
    assert (scene.opening.status, scene.opening.body, scene.opening.events) == (200, None, True)
    assert scene.opening.headers[0] == ("Content-Type", "text/event-stream")
    assert scene.hear().wire == ROLE + content("a") + content("b") + content("c")


async def test_events_of_one_read_are_one_batch(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(content("b") + content("c")), chunk(content("d") + STOP + USAGE))
    assert [len(batch) for batch in heard.batches] == [1, 2, 3]


async def test_preamble_goes_alone_when_no_content_comes_in_time(clock: Clock) -> None:
    scene = Scene()
    scene.events(ROLE)
    await clock.advance(PREAMBLE_S * 0.9)
    scene.arrive(chunk(ROLE))
    assert scene.waiting
    await clock.advance(PREAMBLE_S * 0.2)
    assert scene.hear().wire == ROLE + ROLE
    assert (scene.line.transport.closed, scene.in_flight) == (False, 1)


async def test_no_preamble_no_early_commit(clock: Clock) -> None:
    scene = Scene()
    scene.events(b": working\n\n", b": still\n\n")
    await clock.advance(PREAMBLE_S * 10)
    assert scene.waiting


async def test_a_failure_while_preamble_is_held_is_none_of_the_streams_business(clock: Clock) -> None:
    scene = Scene()
    scene.events(ROLE)
    scene.line.transport.reset()
    await turns()
    assert isinstance(scene.failed, UpstreamTruncated)
    await clock.advance(PREAMBLE_S * 2)
    assert (scene.stream.events, scene.stream.ended, scene.in_flight) == (0, False, 0)


@pytest.mark.parametrize("preamble", [b"", ROLE])
async def test_an_error_event_before_content_is_the_answer(preamble: bytes, clock: Clock) -> None:
    scene = Scene()
    scene.events(preamble + ERROR + content("never seen"))
    opening = scene.opening
    assert (opening.status, opening.body, opening.events) == (503, b"", False)
    assert opening.failure is not None
    assert opening.failure.message == "overloaded"
    assert (scene.stream.events, scene.in_flight) == (0, 0)
    scene.arrive(LAST_CHUNK)
    assert scene.line.idle == 1


async def test_an_error_event_that_names_no_status_is_a_502(clock: Clock) -> None:
    scene = Scene()
    scene.events(event(b'{"error":{"message":"no"}}'))
    assert scene.opening.status == 502


async def test_an_error_event_after_content_passes_and_is_the_only_error(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(ERROR))
    scene.line.transport.reset()
    await turns()
    assert heard.wire == content("a") + ERROR
    assert heard.ends == [None]
    assert scene.watcher.failure is not None
    assert scene.watcher.failure.message == "overloaded"


async def test_after_an_error_event_silence_is_no_second_error(clock: Clock) -> None:
    scene = Scene(timeouts=Timeouts(None, None, 1.0, None))
    scene.events(content("a"), ERROR)
    heard = scene.hear()
    await clock.advance(1.1)
    assert heard.ends == [None]
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


# ---- ends ----


@pytest.mark.parametrize("separately", [False, True])
async def test_done_ends_the_stream_at_once_and_the_connection_is_kept(separately: bool, clock: Clock) -> None:
    scene = Scene()
    scene.events(*([content("a"), STOP, DONE] if separately else [content("a") + STOP + DONE]))
    heard = scene.hear()
    await turns()
    assert (heard.wire, heard.ends) == (content("a") + STOP + DONE, [None])
    assert (scene.in_flight, scene.line.idle) == (0, 0)
    scene.arrive(LAST_CHUNK)
    assert (scene.line.idle, scene.line.connection.usable) == (1, True)


async def test_done_ends_the_stream_though_the_upstream_never_ends_its_answer(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(DONE))
    assert (heard.ends, scene.in_flight) == ([None], 0)
    await clock.advance(2.0)
    assert scene.line.transport.closed


async def test_nothing_that_follows_done_is_passed(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(DONE + content("late")), chunk(content("later")))
    assert (heard.wire, heard.ends) == (content("a") + DONE, [None])


async def test_done_alone_is_an_answer(clock: Clock) -> None:
    scene = Scene()
    scene.events(DONE)
    heard = scene.hear()
    assert (heard.wire, heard.ends) == (DONE, [None])


@pytest.mark.parametrize("loss", ["half_close", "reset"])
async def test_a_finish_reason_is_an_end_without_done(loss: str, clock: Clock) -> None:
    scene = Scene()
    scene.arrive(UNTIL_CLOSE, content("a") + STOP)
    heard = scene.hear()
    assert heard.ends == []
    getattr(scene.line.transport, loss)()
    await turns()
    assert (heard.wire, heard.ends) == (content("a") + STOP, [None])


async def test_after_a_finish_reason_silence_is_no_error(clock: Clock) -> None:
    scene = Scene(timeouts=Timeouts(None, None, 1.0, None))
    scene.events(content("a"), STOP)
    heard = scene.hear()
    await clock.advance(1.1)
    assert heard.ends == [None]


@pytest.mark.parametrize("marker", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n"])
async def test_done_without_its_blank_line_ends_the_answer_but_is_not_passed_on(marker: bytes, clock: Clock) -> None:
    scene = Scene()
    scene.arrive(UNTIL_CLOSE, content("a"), marker)
    heard = scene.hear()
    scene.line.transport.half_close()
    assert (heard.wire, heard.ends) == (content("a"), [None])


@pytest.mark.parametrize("loss", ["last chunk", "half_close", "reset"])
@pytest.mark.parametrize("half", [b"", b"da", content("é")[:-1], content("é")[:-30], b"\xc3"])
async def test_a_truncation_gives_whole_events_so_far_and_then_its_error(half: bytes, loss: str, clock: Clock) -> None:
    scene = Scene()
    scene.events(ROLE + content("a"), content("b") + half)
    heard = scene.hear()
    if loss == "last chunk":
        scene.arrive(LAST_CHUNK)
    else:
        getattr(scene.line.transport, loss)()
    await turns()
    assert heard.wire == ROLE + content("a") + content("b")
    assert kinds(heard.ends) == [UpstreamTruncated]
    assert scene.in_flight == 0


async def test_a_truncation_at_any_byte_before_content_fails_the_attempt() -> None:
    raw = OK_EVENTS + chunk(ROLE + content("é"))
    for at in range(raw.rindex(b"\n\n")):
        scene = Scene()
        scene.arrive(*([raw[:at]] if at else []))
        scene.line.transport.half_close()
        assert isinstance(scene.failed, UpstreamTruncated if at >= len(OK_EVENTS) else UpstreamUnreachable), at
        await turns(1)
        assert (scene.in_flight, scene.stream.ended) == (0, False)


@pytest.mark.parametrize("rest", [b"zz\r\n", LAST_CHUNK + b"extra"])
async def test_bad_framing_after_content_is_an_error_in_the_stream(rest: bytes, clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(content("b")) + rest)
    assert heard.wire == content("a") + content("b")
    assert kinds(heard.ends) == [UpstreamInvalid]


async def test_an_unknown_protocol_is_complete_when_its_body_is(clock: Clock) -> None:
    scene = Scene("/v1/other")
    scene.events(event(b"anything"))
    heard = scene.hear()
    scene.arrive(LAST_CHUNK)
    assert (heard.wire, heard.ends) == (event(b"anything"), [None])


async def test_an_unknown_protocol_cut_off_is_not_complete(clock: Clock) -> None:
    scene = Scene("/v1/other")
    scene.events(event(b"anything"))
    heard = scene.hear()
    scene.line.transport.reset()
    await turns()
    assert kinds(heard.ends) == [UpstreamTruncated]


async def test_an_empty_event_stream_is_a_failure_on_a_known_protocol_only(clock: Clock) -> None:
    known, unknown = Scene(), Scene("/v1/other")
    known.events()
    known.arrive(LAST_CHUNK)
    assert isinstance(known.failed, UpstreamTruncated)
    unknown.events()
    unknown.arrive(LAST_CHUNK)
    heard = unknown.hear()
    assert (heard.wire, heard.ends) == (b"", [None])


# ---- malformed and oversized events ----


# ---- reads that are like the one before ----

USUAL = content("usual")
READS = st.sampled_from(
    [
        USUAL,
        content("another text"),
        content(""),
        content('a \\"quote\\"'),
        content("C:\\\\"),
        content("line one\ndata: line two"),
        content("ends here\n\ndata: "),
        content("carriage\rreturn"),
        USUAL + USUAL,
        USUAL[:40],
        USUAL[40:],
        USUAL[:-1],
        b"\n",
        USUAL.replace(b"\n", b"\r\n"),
        USUAL.replace(b'"usual"', b'"usual","usage":{"completion_tokens":7}'),
        USUAL.replace(b"data: ", b"event: error\ndata: "),
        USUAL.replace(b"data: ", b": comment\ndata: "),
        USUAL.replace(b"data: ", b"id: 7\ndata: "),
        USUAL[:-2] + b"\ndata: more\n\n",
        BROKEN,
        USAGE,
        STOP,
        DONE,
    ]
)


def told(reads: list[bytes]) -> tuple[list[tuple[bytes, bytes, bytes]], list[type | None], int, bool, int | None]:
    """What a listener, and who is told of malformed events, get from an answer that comes in these reads."""
    scene = Scene()
    scene.events(content("first"))
    heard = scene.hear()
    scene.arrive(*map(chunk, reads))
    scene.arrive(LAST_CHUNK)
    events = [(event.wire.rstrip(), event.data, event.type) for batch in heard.batches for event in batch]
    return events, kinds(heard.ends), scene.malformed, scene.watcher.complete, scene.watcher.tokens_out


@given(st.lists(READS, max_size=8))
@settings(deadline=None)
def test_what_a_read_means_does_not_depend_on_those_that_were_like_it(reads: list[bytes]) -> None:
    async def both_ways() -> None:
        usual = told([USUAL, USUAL, USUAL, *reads])
        byte_by_byte = told([b"%c" % byte for byte in b"".join([USUAL, USUAL, USUAL, *reads])])
        assert usual == byte_by_byte

    asyncio.run(both_ways())


async def test_a_read_like_the_one_before_is_not_parsed(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"), content("b"))
    heard = scene.hear()
    monkeypatch.setattr(Parser, "feed", None)
    scene.arrive(chunk(content("c")), chunk(content("as long as it likes to be")))
    assert heard.wire == content("a") + content("b") + content("c") + content("as long as it likes to be")
    assert scene.stream.events == 4


async def test_malformed_events_are_dropped_and_told_before_and_after_content(clock: Clock) -> None:
    scene = Scene()
    scene.events(BROKEN, BROKEN + content("a") + BROKEN)
    heard = scene.hear()
    scene.arrive(chunk(content("b") + BROKEN + content("c")), chunk(BROKEN), chunk(BROKEN + DONE))
    assert scene.malformed == 6
    assert heard.wire == content("a") + content("b") + content("c") + DONE
    assert heard.ends == [None]


async def test_nothing_but_malformed_events_is_no_answer(clock: Clock) -> None:
    scene = Scene()
    scene.events(BROKEN, LAST_CHUNK)
    scene.arrive(LAST_CHUNK)
    assert isinstance(scene.failed, UpstreamTruncated)


async def test_an_event_that_is_too_large_fails_the_attempt(clock: Clock) -> None:
    scene = Scene(max_event_bytes=500)
    scene.events(b"data: " + b"x" * 600)
    assert isinstance(scene.failed, UpstreamInvalid)
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


async def test_whole_events_before_one_that_is_too_large_are_passed(clock: Clock) -> None:
    scene = Scene(max_event_bytes=500)
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(content("b") + b"data: " + b"x" * 600))
    assert heard.wire == content("a") + content("b")
    assert kinds(heard.ends) == [UpstreamInvalid]
    assert heard.ends[0] is not None
    assert "server.max_event" in heard.ends[0].message


async def test_a_stream_that_ended_before_too_large_an_event_has_ended_well(clock: Clock) -> None:
    scene = Scene(max_event_bytes=500)
    scene.events(content("a") + DONE + b"data: " + b"x" * 600)
    heard = scene.hear()
    assert (heard.wire, heard.ends) == (content("a") + DONE, [None])


async def test_a_large_event_is_the_same_as_small_reads_and_whole(clock: Clock) -> None:
    large = content("x" * 300_000)
    for reads in ([large], [large[at : at + 1000] for at in range(0, len(large), 1000)]):
        scene = Scene()
        scene.events(*reads)
        assert scene.hear().wire == large


# ---- answers that are no event stream ----


@pytest.mark.parametrize("status", [200, 201, 400, 404, 429, 500, 503])
async def test_a_whole_json_answer_opens_at_its_end(status: int, clock: Clock) -> None:
    body = b'{"id":"c","choices":[]}'
    for reads in cuts(answer(status, body, b"Retry-After: 3")):
        scene = Scene(streaming=False)
        scene.arrive(*reads[:-1])
        assert scene.waiting
        scene.arrive(reads[-1])
        assert (scene.opening.status, scene.opening.body, scene.opening.failure) == (status, body, None)
        assert ("Retry-After", "3") in scene.opening.headers
        assert (scene.in_flight, scene.line.idle) == (0, 1)


async def test_an_answer_without_a_body_is_whole(clock: Clock) -> None:
    scene = Scene(streaming=False)
    scene.arrive(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (scene.opening.status, scene.opening.body) == (204, b"")


async def test_a_json_answer_that_breaks_off_is_a_failure(clock: Clock) -> None:
    scene = Scene(streaming=False)
    scene.arrive(answer(200, b'{"id":"c"}')[:-1])
    scene.line.transport.half_close()
    assert isinstance(scene.failed, UpstreamTruncated)


async def test_a_large_json_answer_flows(clock: Clock) -> None:
    body = json.dumps({"data": "x" * (WHOLE_BYTES * 2)}).encode()
    raw = answer(200, body)
    scene = Scene(streaming=False)
    scene.arrive(raw[:WHOLE_BYTES])
    assert scene.waiting
    scene.arrive(raw[WHOLE_BYTES : WHOLE_BYTES + 1000])
    assert (scene.opening.body, scene.opening.events) == (None, False)
    heard = scene.hear()
    scene.arrive(raw[WHOLE_BYTES + 1000 :])
    assert (heard.wire, heard.ends) == (body, [None])


async def test_a_large_answer_that_breaks_off_ends_with_an_error(clock: Clock) -> None:
    scene = Scene(streaming=False)
    scene.arrive(answer(200, b"x" * (WHOLE_BYTES * 2))[: WHOLE_BYTES + 1000])
    heard = scene.hear()
    scene.line.transport.reset()
    await turns()
    assert kinds(heard.ends) == [UpstreamTruncated]


@pytest.mark.parametrize("content_type", [b"audio/mpeg", b"application/x-ndjson", b"text/plain; charset=utf-8"])
async def test_other_content_types_flow_at_once(content_type: bytes, clock: Clock) -> None:
    scene = Scene("/v1/audio/speech", streaming=False)
    scene.arrive(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 4\r\n\r\n" % content_type)
    assert (scene.opening.body, scene.opening.events) == (None, False)
    heard = scene.hear()
    scene.arrive(b"\xff\xfb", b"\x90\x00")
    assert [batch[0].wire for batch in heard.batches] == [b"\xff\xfb", b"\x90\x00"]
    assert heard.ends == [None]


async def test_a_compressed_answer_of_another_type_is_refused_before_it_opens(clock: Clock) -> None:
    scene = Scene("/v1/audio/speech", streaming=False)
    scene.arrive(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Encoding: gzip\r\n\r\nabc")
    assert isinstance(scene.failed, UpstreamInvalid)


@pytest.mark.parametrize("status", [301, 302, 304, 307, 308])
async def test_a_redirect_is_refused_and_not_kept(status: int, clock: Clock) -> None:
    scene = Scene()
    scene.arrive(b"HTTP/1.1 %d R\r\nLocation: http://elsewhere\r\nContent-Length: 0\r\n\r\n" % status)
    assert isinstance(scene.failed, UpstreamInvalid)
    assert "elsewhere" not in str(scene.failed)
    assert (scene.line.transport.closed, scene.line.idle, scene.in_flight) == (True, 0, 0)


@pytest.mark.parametrize(("code", "status"), [(b"429", 429), (b'"rate_limited"', 502), (b"200", 502)])
async def test_a_json_error_under_200_to_a_streaming_request_is_a_failure(
    code: bytes, status: int, clock: Clock
) -> None:
    scene = Scene()
    scene.arrive(answer(200, b'{"error":{"message":"slow down","code":%b}}' % code))
    opening = scene.opening
    assert (opening.status, opening.body) == (status, b"")
    assert opening.failure is not None
    assert opening.failure.message == "slow down"


async def test_json_under_200_that_is_no_error_is_an_answer_in_one_piece(clock: Clock) -> None:
    scene = Scene()
    scene.arrive(answer(200, b'{"choices":[],"error":null}'))
    assert (scene.opening.body, scene.opening.failure) == (b'{"choices":[],"error":null}', None)


async def test_an_event_stream_under_an_error_status_is_a_whole_answer(clock: Clock) -> None:
    scene = Scene()
    scene.arrive(b"HTTP/1.1 500 No\r\nContent-Type: text/event-stream\r\n\r\n" + ERROR)
    scene.line.transport.half_close()
    assert (scene.opening.status, scene.opening.body) == (500, ERROR)


# ---- credentials ----


async def test_an_error_answer_does_not_show_the_replicas_key(clock: Clock) -> None:
    scene = Scene()
    said = b'{"error":{"message":"Incorrect API key: %b"}}' % KEY.encode()
    scene.arrive(answer(401, said, b"WWW-Authenticate: Bearer error=%b" % KEY.encode()))
    assert (scene.opening.status, scene.opening.body) == (401, b'{"error":{"message":"Incorrect API key: ***"}}')
    assert ("WWW-Authenticate", "Bearer error=***") in scene.opening.headers


async def test_a_large_error_answer_is_still_redacted_as_a_whole(clock: Clock) -> None:
    scene = Scene(streaming=False)
    said = b"x" * (WHOLE_BYTES - 8) + KEY.encode() + b"y" * WHOLE_BYTES
    raw = answer(500, said)
    scene.arrive(*(raw[at : at + 5000] for at in range(0, len(raw), 5000)))
    assert scene.opening.body == said.replace(KEY.encode(), b"***")


async def test_an_endless_error_answer_is_refused(clock: Clock) -> None:
    scene = Scene(streaming=False, max_event_bytes=2000)
    scene.arrive(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 1500)
    assert scene.waiting
    scene.arrive(b"x" * 1500, b"x" * 1500)
    assert isinstance(scene.failed, UpstreamInvalid)
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_failure_before_content_does_not_show_the_replicas_key(as_event: bool, clock: Clock) -> None:
    scene = Scene()
    said = b'{"error":{"message":"bad key %b","details":["%b"]}}' % (KEY.encode(), KEY.encode())
    scene.arrive(*([OK_EVENTS, chunk(event(said))] if as_event else [answer(200, said)]))
    assert scene.opening.failure is not None
    assert scene.opening.failure.error == {"message": "bad key ***", "details": ["***"]}


async def test_an_error_event_in_the_stream_does_not_show_the_replicas_key(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.arrive(chunk(content("b") + event(b'{"error":{"message":"bad key %b"}}' % KEY.encode()) + DONE))
    assert heard.wire == content("a") + content("b") + event(b'{"error":{"message":"bad key ***"}}') + DONE
    assert scene.watcher.failure is not None
    assert scene.watcher.failure.message == "bad key ***"


# ---- deadlines ----


def within(*, first: float | None = None, idle: float | None = None, total: float | None = None) -> Timeouts:
    return Timeouts(None, first, idle, total)


@pytest.mark.parametrize("said", [[], [b"HTTP/1.1 100 Continue\r\n\r\n"], [OK_EVENTS], [b"HTTP/1.1 200 OK\r\n"]])
async def test_nothing_in_time_is_a_first_token_timeout(said: list[bytes], clock: Clock) -> None:
    scene = Scene(timeouts=within(first=2.0, idle=0.5))
    scene.arrive(*said)
    await clock.advance(1.9)
    assert scene.waiting
    await clock.advance(0.2)
    assert isinstance(scene.failed, FirstTokenTimeout)
    assert "timeouts.first_token (2 s)" in str(scene.failed)
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


async def test_comments_are_signs_of_life_before_and_after_content(clock: Clock) -> None:
    scene = Scene(timeouts=within(first=2.0, idle=2.0))
    scene.events()
    for _ in range(3):
        await clock.advance(1.5)
        scene.arrive(chunk(b": working\n\n"))
    assert scene.waiting
    scene.arrive(chunk(content("a")))
    heard = scene.hear()
    for _ in range(3):
        await clock.advance(1.5)
        scene.arrive(chunk(b": working\n\n"))
    assert (heard.wire, heard.ends) == (content("a"), [])
    await clock.advance(1.9)
    assert heard.ends == []
    await clock.advance(0.2)
    assert kinds(heard.ends) == [UpstreamIdle]


async def test_silence_in_the_middle_is_told_in_the_stream(clock: Clock) -> None:
    scene = Scene(timeouts=within(first=1.0, idle=3.0))
    scene.events(content("a"))
    heard = scene.hear()
    await clock.advance(2.9)
    assert heard.ends == []
    await clock.advance(0.2)
    assert kinds(heard.ends) == [UpstreamIdle]
    assert heard.ends[0] is not None
    assert "timeouts.idle (3 s)" in heard.ends[0].message
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


async def test_silence_counts_from_the_last_byte(clock: Clock) -> None:
    scene = Scene(timeouts=within(idle=2.0))
    scene.events(content("a"))
    heard = scene.hear()
    for _ in range(5):
        await clock.advance(1.5)
        scene.arrive(chunk(content("b")))
    await clock.advance(1.9)
    assert heard.ends == []
    await clock.advance(0.2)
    assert kinds(heard.ends) == [UpstreamIdle]


async def test_a_late_head_of_another_type_is_not_idle_from_the_start(clock: Clock) -> None:
    scene = Scene("/v1/audio/speech", streaming=False, timeouts=within(first=10.0, idle=1.0))
    await clock.advance(5.0)
    scene.arrive(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 1\r\n\r\n")
    heard = scene.hear()
    assert heard.ends == []
    await clock.advance(0.9)
    scene.arrive(b"x")
    assert heard.ends == [None]


async def test_a_pausing_client_is_not_an_idle_upstream(clock: Clock) -> None:
    scene = Scene(timeouts=within(idle=2.0))
    scene.events(content("a"))
    heard = scene.hear(full=True)
    assert not scene.line.transport.reading
    for _ in range(5):
        await clock.advance(1.5)
    assert heard.ends == []
    scene.stream.drained()
    assert scene.line.transport.reading
    await clock.advance(1.9)
    assert heard.ends == []
    await clock.advance(0.2)
    assert kinds(heard.ends) == [UpstreamIdle]


@pytest.mark.parametrize("committed", [False, True])
async def test_the_total_counts_whatever_comes(committed: bool, clock: Clock) -> None:
    scene = Scene(timeouts=within(first=2.0, idle=2.0, total=5.0))
    piece = chunk(content("a") if committed else b": working\n\n")
    scene.events()
    for _ in range(4):
        await clock.advance(1.2)
        scene.arrive(piece)
    heard = scene.hear() if committed else None
    await clock.advance(0.3)
    if heard is None:
        assert isinstance(scene.failed, UpstreamTimeout)
    else:
        assert kinds(heard.ends) == [UpstreamTimeout]
    assert scene.in_flight == 0


async def test_the_total_counts_for_a_pausing_client_too(clock: Clock) -> None:
    scene = Scene(timeouts=within(idle=2.0, total=5.0))
    scene.events(content("a"))
    heard = scene.hear(full=True)
    for _ in range(4):
        await clock.advance(1.5)
    assert kinds(heard.ends) == [UpstreamTimeout]


async def test_no_deadline_outlives_its_exchange(clock: Clock) -> None:
    scene = Scene(timeouts=within(first=1.0, idle=1.0, total=1.0))
    scene.events(ROLE + content("a") + DONE)
    scene.arrive(LAST_CHUNK)
    heard = scene.hear()
    following = Scene(line=scene.line)
    await clock.advance(5.0)
    assert (heard.ends, scene.in_flight) == ([None], 0)
    following.arrive(answer(200, b"{}"))
    assert following.opening.body == b"{}"


# ---- pause, close, interrupt ----


async def test_a_full_listener_pauses_the_upstream_and_a_drained_one_reads_on(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear(full=True)
    scene.arrive(chunk(content("b")), chunk(content("c")))
    assert heard.wire == content("a")
    heard.full = False
    scene.stream.drained()
    await turns()
    assert heard.wire == content("a") + content("b") + content("c")


async def test_an_unheard_stream_holds_two_reads_and_then_pauses(clock: Clock) -> None:
    scene = Scene()
    scene.events(*(content(letter) for letter in "abcd"))
    assert scene.stream.events == 2
    heard = scene.hear()
    await turns()
    assert heard.wire == b"".join(content(letter) for letter in "abcd")


@pytest.mark.parametrize("end", [DONE, b""])
async def test_an_answer_that_ends_on_a_full_listener_leaves_the_connection_reading(end: bytes, clock: Clock) -> None:
    scene = Scene("/v1/chat/completions" if end else "/v1/other")
    scene.events(content("a"))
    heard = scene.hear(full=True)
    heard.full = False
    scene.stream.drained()
    heard.full = True
    scene.arrive(chunk(content("b") + end) + LAST_CHUNK)
    assert heard.ends == [None]
    assert (scene.line.idle, scene.line.transport.reading) == (1, True)
    following = Scene(line=scene.line)
    following.arrive(answer(200, b"{}"))
    assert following.opening.body == b"{}"
    scene.stream.drained()
    assert scene.line.transport.reading


async def test_the_pause_of_an_exchange_that_is_over_does_not_touch_the_next_one(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a") + DONE)
    scene.arrive(LAST_CHUNK)
    following = Scene(line=scene.line)
    scene.exchange.pause()
    assert scene.line.transport.reading
    following.exchange.pause()
    scene.exchange.resume()
    assert not scene.line.transport.reading
    scene.exchange.close()
    assert not scene.line.transport.closed


@pytest.mark.parametrize("arrived", [[], [OK_EVENTS], [OK_EVENTS, chunk(ROLE)], [OK_EVENTS, chunk(content("a"))]])
async def test_closing_drops_the_connection_in_every_phase(arrived: list[bytes], clock: Clock) -> None:
    scene = Scene(timeouts=within(first=1.0, idle=1.0))
    scene.arrive(*arrived)
    scene.exchange.close()
    scene.exchange.close()
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)
    await clock.advance(5.0)
    assert (scene.stream.ended, scene.line.lost) == (False, 1)


async def test_a_listener_may_cancel_from_within_write(clock: Clock) -> None:
    scene = Scene()

    class Quitter(Heard):
        def write(self, events: list[Event]) -> bool:
            self.batches.append(events)
            scene.stream.cancel()
            return True

    scene.events(content("a"))
    quitter = Quitter()
    scene.stream.attach(quitter)
    assert scene.line.transport.closed
    await turns()
    assert (len(quitter.batches), quitter.ends, scene.in_flight) == (1, [], 0)


@pytest.mark.parametrize("last", [content("b"), content("b") + DONE, BROKEN + content("b") + ERROR])
async def test_a_listener_may_cancel_from_within_a_later_write(last: bytes, clock: Clock) -> None:
    scene = Scene()

    class Quitter(Heard):
        def write(self, events: list[Event]) -> bool:
            self.batches.append(events)
            if len(self.batches) == 2:
                scene.stream.cancel()
            return False

    scene.events(content("a"))
    quitter = Quitter(scene.stream)
    scene.arrive(chunk(last) + LAST_CHUNK)
    await turns()
    assert (len(quitter.batches), quitter.ends, scene.in_flight) == (2, [], 0)
    assert (scene.line.transport.closed, scene.line.idle, scene.line.lost) == (True, 0, 1)


async def test_an_interrupt_before_the_commit_point_fails_the_attempt(clock: Clock) -> None:
    scene = Scene()
    scene.events(ROLE)
    scene.stream.interrupt(Unavailable("shutting down", code="draining"))
    assert isinstance(scene.failed, Unavailable)
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


async def test_an_interrupt_after_it_is_the_streams_end(clock: Clock) -> None:
    scene = Scene()
    scene.events(content("a"))
    heard = scene.hear()
    scene.stream.interrupt(Unavailable("shutting down", code="draining"))
    assert kinds(heard.ends) == [Unavailable]
    assert (scene.line.transport.closed, scene.in_flight) == (True, 0)


async def test_a_request_is_not_sent_for_a_stream_that_was_interrupted(clock: Clock) -> None:
    line, stream = Line(), Stream()
    stream.interrupt(Unavailable("shutting down", code="draining"))
    closed: list[int] = []
    exchange = Exchange(
        stream=stream,
        watcher=endpoints.for_path("/v1/chat/completions").watcher(RequestBody.parse(b'{"model":"m"}')),
        streaming=True,
        max_event_bytes=1000,
        timeouts=within(first=1.0),
        credentials=(),
        on_closed=lambda: closed.append(1),
        on_malformed=lambda: None,
    )
    with pytest.raises(Unavailable):
        exchange.begin(line.connection, REQUEST)
    exchange.close()
    assert (line.transport.sent, line.transport.closed, closed) == (b"", True, [1])


async def test_an_answer_nobody_waits_for_any_more_opens_nothing(clock: Clock) -> None:
    scene = Scene()
    scene.exchange.opened.cancel()
    scene.events(content("a"))
    scene.arrive(LAST_CHUNK)
    assert (scene.stream.events, scene.in_flight) == (0, 0)


# ---- the same events, however they are cut ----

TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n', exclude_categories=["Cc"]), max_size=12)
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


def said(texts: list[str], eol: bytes, comments: bool) -> list[bytes]:
    """A chat answer's events as bytes."""
    events = [ROLE, *(content(text or "-") for text in texts), STOP, USAGE, DONE]
    events = [each.replace(b"\n", eol) for each in events]
    return [b": working" + eol + eol + each for each in events] if comments else events


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, eol=LINE_ENDS, comments=st.booleans(), data=st.data())
def test_any_split_of_a_chunked_answer_gives_the_same_events(
    texts: list[str], eol: bytes, comments: bool, data: st.DataObject
) -> None:
    events = said(texts, eol, comments)
    body = b"".join(events)
    chunks = split(body, data)
    raw = OK_EVENTS + b"".join(map(chunk, chunks)) + LAST_CHUNK
    reads = split(raw, data)
    asyncio.run(_same(events, eol, comments, reads))


def split(whole: bytes, data: st.DataObject) -> list[bytes]:
    at = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    return [whole[start:end] for start, end in zip([0, *at], [*at, len(whole)], strict=True)]


async def _same(events: list[bytes], eol: bytes, comments: bool, reads: list[bytes]) -> None:
    scene = Scene()
    heard = Heard()
    pending = list(reads)
    while pending:
        scene.arrive(pending.pop(0))
        if scene.exchange.opened.done() and not heard.over.is_set() and not heard.batches:
            scene.stream.attach(heard)
    await turns()
    comment_bytes = len(b": working" + eol + eol) if comments else 0
    expected = [each[comment_bytes:] for each in events]
    assert [event.data for batch in heard.batches for event in batch] == [each[6:].rstrip() for each in expected]
    if eol == b"\n":  # an LF that was cut off its CR is not passed on
        assert heard.wire == b"".join(expected)
    assert heard.ends == [None]
    assert (scene.watcher.tokens_in, scene.watcher.tokens_out) == (3, 2)
    assert (scene.line.idle, scene.in_flight, scene.malformed) == (1, 0, 0)
    scene.line.connection.close()
    await turns(1)


async def test_one_byte_a_read_gives_the_same_events() -> None:
    events = said(["Grüße", "🙂"], b"\n", comments=False)
    raw = OK_EVENTS + chunk(b"".join(events)) + LAST_CHUNK
    await _same(events, b"\n", False, [raw[at : at + 1] for at in range(len(raw))])


async def test_an_upstream_error_is_never_raised_into_the_event_loop(clock: Clock) -> None:
    """Every way an answer can fail, none of which may surface in a callback."""
    caught: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    for raw in (b"garbage\r\n", OK_EVENTS + b"zz\r\n", OK_EVENTS + chunk(content("a")) + b"zz\r\n", answer(302, b"")):
        for reads in cuts(raw):
            scene = Scene()
            scene.arrive(*reads)
            await turns(1)
            assert scene.failed is None or isinstance(scene.failed, UpstreamError)
            assert scene.in_flight == 0
    assert caught == []


async def test_a_model_that_thinks_after_its_preamble_has_its_first_token_time(clock: Clock) -> None:
    scene = Scene(timeouts=within(first=100.0, idle=2.0))
    scene.events(ROLE)
    await clock.advance(PREAMBLE_S)
    heard = scene.hear()
    assert heard.wire == ROLE
    await clock.advance(50.0)
    assert (heard.ends, scene.stream.first_content_at) == ([], None)
    scene.arrive(chunk(content("a")))
    assert scene.stream.first_content_at is not None
    await clock.advance(2.1)
    assert kinds(heard.ends) == [UpstreamIdle]
