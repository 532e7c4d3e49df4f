"""Answers that break off and go on elsewhere: what their client sees, what is asked, and what is told of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import GatewayError, UpstreamIdle, UpstreamTruncated
from proxy.relay import Answer, Relay, draining
from proxy.request import ProxyRequest
from proxy.routing.retry_budget import LEAST, RetryBudget
from proxy.routing.table import Route
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import EndState, RequestRecord
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.answers import (
    block_events,
    body_of,
    chat_events,
    chat_text,
    chunk_event,
    completion_events,
    data_of,
    message_end,
    message_start,
    message_text,
)
from tests.support.dispatching import CHAT, Hurried, table_of
from tests.support.memory_line import Heard, turns
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    Peer,
    Script,
    ScriptedUpstream,
    answer,
    answering,
    chunk,
    event,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from proxy.wire.sse import Event

PATIENCE_S = 10.0
SETTINGS = ", balance: round_robin, breaker: none"
BEGINNING = chat_events("first", "Hello", " wor", finish=None)
AGAIN = chat_events("second", "Hell", "o world", "!", usage=(10, 3))


def breaking(beginning: bytes = BEGINNING, end: str = "reset") -> Script:
    return saying(OK_EVENTS, chunk(beginning), end=end)


def whole(wire: bytes = AGAIN) -> Script:
    return answering(OK_EVENTS + chunk(wire) + LAST_CHUNK)


class House:
    """A relay over scripted replicas, and one request through it."""

    def __init__(self, relay: Relay, upstreams: list[ScriptedUpstream]) -> None:
        self.relay = relay
        self.upstreams = upstreams
        self.record = RequestRecord("req_1", "POST", CHAT, asyncio.get_running_loop().time())

    async def open(self, path: str = CHAT, **members: Any) -> Answer:
        members = members or {"messages": [{"role": "user", "content": "Hi"}]}
        request = ProxyRequest(path, "", (), (), body_of(**members), "req_1")
        route = self.relay.route(request, None, self.record)
        return await self.relay.open(request, route, self.record)

    async def give(self, path: str = CHAT, **members: Any) -> Heard:
        """An answer to its end, as its client hears it."""
        answer = await self.open(path, **members)
        heard = Heard(answer.stream)
        async with asyncio.timeout(PATIENCE_S):
            await heard.over.wait()
        self.relay.close(answer, self.record)
        self.nothing_is_left()
        return heard

    def asked(self, replica: int, request: int = 0) -> Any:
        """The body that a replica got."""
        return json.loads(self.upstreams[replica].requests[request].body)

    def nothing_is_left(self) -> None:
        routes: list[Route] = list(self.relay.table.routes)
        assert [each.in_flight for route in routes for each in route.replicas if each.in_flight] == []
        assert self.relay.in_flight() == {}


@asynccontextmanager
async def house(
    tmp_path: Path,
    *scripts: Script,
    settings: str = "",
    on_break: str = "continue",
    continues: str = "replay",
    fallback: Script | None = None,
    budget: RetryBudget | None = None,
) -> AsyncIterator[House]:
    """A route `chat` with a replica for each script, asked in turn; `fallback` is another route's only replica."""
    async with _upstreams(*scripts, *([fallback] if fallback else [])) as upstreams:
        here = upstreams[: len(scripts)]
        listed = ", ".join(f'{{url: "{upstream.url}", continues: {continues}}}' for upstream in here)
        others = ", fallbacks: [small]" if fallback else ""
        routes = f"chat: {{replicas: [{listed}], on_break: {on_break}{SETTINGS}{settings}{others}}}"
        if fallback:
            routes += f', small: {{replicas: ["{upstreams[-1].url}"]}}'
        pool = Pool()
        dispatch = Dispatch(pool, max_event_bytes=1 << 20, on_malformed=lambda _: None, budget=budget, rng=Hurried())
        try:
            yield House(Relay(table_of(tmp_path, routes), dispatch), upstreams)
        finally:
            await pool.close()


@asynccontextmanager
async def _upstreams(*scripts: Script) -> AsyncIterator[list[ScriptedUpstream]]:
    if not scripts:
        yield []
        return
    async with scripted_upstream(scripts[0]) as first, _upstreams(*scripts[1:]) as others:
        yield [first, *others]


def events(heard: Heard) -> list[Event]:
    return [each for batch in heard.batches for each in batch]


def told(heard: Heard) -> str:
    return chat_text(events(heard))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


# ---- one answer out of two ----


async def test_a_reset_in_the_middle_is_not_seen_by_the_client(tmp_path: Path) -> None:
    async with house(tmp_path, breaking(), whole()) as there:
        heard = await there.give()
    assert told(heard) == "Hello world!"
    assert heard.ends == [None]
    found = [data for data in data_of(events(heard)) if data != b"[DONE]"]
    assert {(data["id"], data["created"], data["model"]) for data in found} == {("first", 5, "model-first")}
    roles = [choice["delta"].get("role") for data in found for choice in data["choices"]]
    assert roles.count("assistant") == 1
    assert events(heard)[-1].data == b"[DONE]"


@pytest.mark.parametrize("end", ["end", "stall"])
async def test_an_end_too_early_and_a_silence_are_not_seen_either(end: str, tmp_path: Path) -> None:
    async with house(tmp_path, breaking(end=end), whole(), settings=", timeouts: {idle: 100ms}") as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world!", [None])
    outcome = Outcome.TIMEOUT if end == "stall" else Outcome.TRUNCATED
    assert there.record.attempted == [("chat", 0, outcome), ("chat", 1, Outcome.OK)]


async def test_what_is_told_of_it(tmp_path: Path) -> None:
    async with house(tmp_path, breaking(), whole()) as there:
        await there.give()
    record = there.record
    assert (record.continued, record.attempts, record.replica, record.route) == (1, 2, 1, "chat")
    assert record.end_state is EndState.COMPLETED
    assert record.ttft_ms is not None
    assert record.last_event_ms is not None


async def test_tokens_are_those_of_both(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "x" * 400}],
        "stream_options": {"include_usage": True},
    }
    async with house(tmp_path, breaking(), whole()) as there:
        heard = await there.give(**asked)
    [usage] = [data["usage"] for data in data_of(events(heard)[:-1]) if data.get("usage")]
    first_read = usage["prompt_tokens"] - 10
    assert 100 <= first_read <= 115
    assert usage["completion_tokens"] == 2 + 3
    record = there.record
    assert (record.tokens_in, record.tokens_out) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert record.tokens_estimated


async def test_a_prefill_goes_on_behind_the_text(tmp_path: Path) -> None:
    rest = chat_events("second", "ld", "!")
    async with house(tmp_path, breaking(), whole(rest), continues="prefill") as there:
        heard = await there.give(messages=[], max_tokens=9)
        assert there.asked(1)["messages"] == [{"role": "assistant", "content": "Hello wor"}]
        assert (there.asked(1)["continue_final_message"], there.asked(1)["max_tokens"]) == (True, 7)
    assert (told(heard), heard.ends) == ("Hello world!", [None])


async def test_completions_go_on(tmp_path: Path) -> None:
    first, second = completion_events("a", "once", " up", finish=None), completion_events("b", "on a", " time")
    async with house(tmp_path, breaking(first), whole(second), continues="prefill") as there:
        heard = await there.give("/v1/completions", prompt="Tell: ")
        assert there.asked(1)["prompt"] == "Tell: once up"
    found = data_of(events(heard)[:-1])
    assert "".join(data["choices"][0]["text"] for data in found) == "once upon a time"


@pytest.mark.parametrize("how", ["prefill", "replay"])
async def test_messages_go_on(how: str, tmp_path: Path) -> None:
    first = message_start("a") + block_events(0, "Hello", " wor", closed=False)
    pieces = ["ld", "!"] if how == "prefill" else ["Hello world", "!"]
    second = message_start("b") + block_events(0, *pieces) + message_end(4)
    async with house(tmp_path, breaking(first), whole(second), continues=how) as there:
        heard = await there.give("/v1/messages", messages=[], max_tokens=9)
        assert len(there.asked(1)["messages"]) == (1 if how == "prefill" else 0)
    assert (message_text(events(heard)), heard.ends) == ("Hello world!", [None])
    kinds = [each.type for each in events(heard)]
    assert kinds.count(b"message_start") == kinds.count(b"content_block_start") == 1
    assert kinds[-3:] == [b"content_block_stop", b"message_delta", b"message_stop"]
    assert (there.record.tokens_out, there.record.continued) == (2 + 4, 1)


async def test_a_thing_that_breaks_off_twice_goes_on_twice(tmp_path: Path) -> None:
    second = breaking(chat_events("second", "Hello world", ", how", finish=None))
    async with house(tmp_path, breaking(), second, whole(chat_events("c", "Hello world, how", " are you"))) as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world, how are you", [None])
    assert (there.record.continued, there.record.attempts) == (2, 3)
    assert [attempt.replica for attempt in there.record.attempted] == [0, 1, 2]


async def test_one_that_dies_while_it_repeats_is_followed_by_another(tmp_path: Path) -> None:
    second = breaking(chat_events("second", "Hel", finish=None))
    async with house(tmp_path, breaking(), second, whole()) as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world!", [None])
    assert (there.record.continued, there.record.attempts) == (1, 3)


async def test_the_only_replica_is_asked_again(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await (breaking() if not there.upstreams[0].requests else whole())(peer)

    async with house(tmp_path, script) as there:
        heard = await there.give()
    assert (told(heard), there.record.attempts) == ("Hello world!", 2)


async def test_a_fallback_goes_on(tmp_path: Path) -> None:
    settings = ", timeouts: {idle: 100ms}"
    async with house(tmp_path, breaking(end="stall"), settings=settings, fallback=whole()) as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world!", [None])
    assert (there.record.route, there.record.replica, there.record.continued) == ("small", 0, 1)
    assert there.record.attempted == [("chat", 0, Outcome.TIMEOUT), ("small", 0, Outcome.OK)]


async def test_an_error_event_in_the_middle_is_a_break_too(tmp_path: Path) -> None:
    error = event(b'{"error":{"message":"the engine died"}}')
    async with house(tmp_path, breaking(BEGINNING + error, end="stall"), whole()) as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world!", [None])
    assert there.record.end_state is EndState.COMPLETED
    assert there.record.attempted == [("chat", 0, Outcome.ERROR_EVENT), ("chat", 1, Outcome.OK)]


async def test_what_comes_behind_an_error_event_is_nothing_that_was_told(tmp_path: Path) -> None:
    error = event(b'{"error":{"message":"the engine died"}}') + chunk_event("first", {"content": "nonsense"})
    async with house(tmp_path, breaking(BEGINNING + error, end="stall"), whole()) as there:
        heard = await there.give()
    assert (told(heard), heard.ends) == ("Hello world!", [None])


async def test_an_answer_that_had_only_begun_goes_on(tmp_path: Path) -> None:
    preamble = chat_events("first", finish=None)
    async with house(
        tmp_path, breaking(preamble, end="stall"), whole(), settings=", timeouts: {first_token: 200ms}"
    ) as there:
        heard = await there.give()
    assert (told(heard), heard.ends, there.record.continued) == ("Hello world!", [None], 1)
    assert there.record.ttft_ms is not None
    names = [data["id"] for data in data_of(events(heard)[:-1])]
    assert set(names) == {"first"}


async def test_whoever_is_full_is_given_no_more_of_the_rest(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(chat_events("second", "Hello wor", "ld", finish=None)))
        await go_on.wait()
        await peer.send(chunk(chat_events("second", "!")), LAST_CHUNK)

    async with house(tmp_path, breaking(), script) as there:
        answered = await there.open()
        heard = Heard(answered.stream, full=True)
        await until(lambda: told(heard) == "Hello world")
        go_on.set()
        await turns(50)
        assert told(heard) == "Hello world"
        heard.full = False
        answered.stream.drained()
        await until(lambda: heard.ends == [None])
        there.relay.close(answered, there.record)
    assert told(heard) == "Hello world!"


# ---- answers that do not go on ----


async def ended_as_it_broke(there: House, **members: Any) -> GatewayError:
    heard = await there.give(**members)
    [error] = heard.ends
    assert error is not None
    assert heard.wire.startswith(BEGINNING)
    assert there.record.continued == 0
    return error


@pytest.mark.parametrize(
    "second",
    [
        whole(chat_events("second", "Hallo", " Welt")),
        whole(chat_events("second", "Hello")),
        answering(answer(400, b'{"error":{"message":"no prefill"}}')),
        answering(answer(200, b'{"choices":[]}')),
        answering(answer(500, b"{}")),
        saying(),
        breaking(chat_events("second", "Hel", finish=None)),
    ],
    ids=["differs", "is shorter", "is refused", "is whole", "fails", "is refused a connection", "breaks off too"],
)
async def test_the_error_is_the_break_itself(second: Script, tmp_path: Path) -> None:
    settings = ", timeouts: {idle: 100ms}, retry: {attempts: 2}"
    async with house(tmp_path, breaking(end="stall"), second, settings=settings) as there:
        error = await ended_as_it_broke(there)
    assert type(error) is UpstreamIdle
    assert there.record.end_state is EndState.UPSTREAM_IDLE
    assert there.record.attempts == 2
    assert there.record.events == 3


async def test_a_replay_that_differs_is_closed(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(chat_events("second", "Hallo", finish=None)))
        await peer.closed()
        gone.set()

    async with house(tmp_path, breaking(), script) as there:
        await ended_as_it_broke(there)
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()


async def test_an_error_event_that_nobody_heals_is_told_as_it_is(tmp_path: Path) -> None:
    error = event(b'{"error":{"message":"the engine died"}}')
    first = breaking(BEGINNING + error, end="stall")
    async with house(tmp_path, first, answering(answer(500, b"{}")), settings=", retry: {attempts: 2}") as there:
        heard = await there.give()
    assert heard.wire == BEGINNING + error
    assert heard.ends == [None]
    assert (there.record.end_state, there.record.continued) == (EndState.UPSTREAM_ERROR, 0)


@pytest.mark.parametrize(
    "beginning",
    [
        BEGINNING + chunk_event("first", {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        BEGINNING.replace(b"wor", rb"\x"),
    ],
    ids=["a tool call", "no JSON"],
)
async def test_some_answers_cannot_be_continued(beginning: bytes, tmp_path: Path) -> None:
    async with house(tmp_path, breaking(beginning), whole()) as there:
        heard = await there.give()
        assert there.upstreams[1].connections == 0
    assert [type(error) for error in heard.ends] == [UpstreamTruncated]
    assert heard.wire == beginning


@pytest.mark.parametrize("beginning", [BEGINNING + event(b'{"error":{"message":"no","code":"content_filter"}}')])
async def test_a_refusal_in_the_middle_is_nobodys_to_heal(beginning: bytes, tmp_path: Path) -> None:
    async with house(tmp_path, breaking(beginning, end="end"), whole()) as there:
        heard = await there.give()
        assert there.upstreams[1].connections == 0
    assert heard.wire == beginning


async def test_tries_in_all_are_the_routes_attempts(tmp_path: Path) -> None:
    async with house(tmp_path, breaking(), whole(), settings=", retry: {attempts: 1}") as there:
        assert type(await ended_as_it_broke(there)) is UpstreamTruncated
        assert there.upstreams[1].connections == 0


async def test_going_on_draws_on_the_budget(tmp_path: Path) -> None:
    budget = RetryBudget()
    async with house(tmp_path, breaking(), whole(), budget=budget) as there:
        now = asyncio.get_running_loop().time()
        assert sum(budget.spend(now) for _ in range(LEAST)) == LEAST
        await ended_as_it_broke(there)
        assert there.upstreams[1].connections == 0


async def test_without_the_setting_nothing_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, breaking(), whole(), on_break="error") as there:
        await ended_as_it_broke(there)
        assert there.upstreams[1].connections == 0


@pytest.mark.parametrize("members", [{"messages": [], "n": 2}, {"messages": [], "stream": False}])
async def test_what_cannot_be_continued_is_not_accounted(members: dict[str, Any], tmp_path: Path) -> None:
    async with house(tmp_path, answering(answer(200, b"{}"))) as there:
        answered = await there.open(**members)
        assert answered.continuation is None
        there.relay.close(answered, there.record)


async def test_an_answer_in_one_piece_passes_as_it_is(tmp_path: Path) -> None:
    async with house(tmp_path, answering(answer(200, b'{"choices":[]}'))) as there:
        answered = await there.open()
        assert answered.body == b'{"choices":[]}'
        there.relay.close(answered, there.record)
        there.nothing_is_left()
    assert (there.record.end_state, there.record.continued) == (EndState.COMPLETED, 0)


# ---- who leaves meanwhile ----


def silent(asked: asyncio.Event, gone: asyncio.Event) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        gone.set()

    return script


async def test_a_client_that_leaves_while_it_goes_on_closes_what_runs(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    async with house(tmp_path, breaking(), silent(asked, gone)) as there:
        answered = await there.open()
        Heard(answered.stream)
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
            there.relay.close(answered, there.record)
            await gone.wait()
        await until(lambda: not any(each.in_flight for each in there.relay.table.routes[0].replicas))
        there.nothing_is_left()
    assert there.record.end_state is EndState.CLIENT_CLOSED
    assert (there.record.attempts, there.record.continued) == (2, 0)
    assert there.record.tokens_out == 2


async def test_a_client_that_leaves_a_continued_answer_closes_it(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(chat_events("second", "Hello wor", "ld", finish=None)))
        await peer.closed()
        gone.set()

    async with house(tmp_path, breaking(), script) as there:
        answered = await there.open()
        heard = Heard(answered.stream)
        await until(lambda: told(heard) == "Hello world")
        there.relay.close(answered, there.record)
        there.nothing_is_left()
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    assert (there.record.end_state, there.record.continued) == (EndState.CLIENT_CLOSED, 1)


@pytest.mark.parametrize("when", ["while it goes on", "before it breaks off"])
async def test_a_drain_ends_it(when: str, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    first = breaking(end="reset" if when == "while it goes on" else "stall")
    async with house(tmp_path, first, silent(asked, gone)) as there:
        answered = await there.open()
        heard = Heard(answered.stream)
        if when == "while it goes on":
            async with asyncio.timeout(PATIENCE_S):
                await asked.wait()
        answered.stream.interrupt(draining())
        await until(lambda: bool(heard.ends))
        there.relay.close(answered, there.record)
        await until(lambda: not any(each.in_flight for each in there.relay.table.routes[0].replicas))
    assert [error.code for error in heard.ends if error is not None] == ["draining"]
    assert there.record.end_state is EndState.DRAINED


async def test_a_drain_ends_an_answer_that_has_not_begun(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    async with house(tmp_path, silent(asked, gone)) as there:
        task = asyncio.create_task(there.open())
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
            await there.relay.drain(0.0)
            with pytest.raises(GatewayError) as raised:
                await task
    assert raised.value.code == "draining"
