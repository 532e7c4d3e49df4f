"""A session's socket: what it reads, how it ends and with whom; and one that is flooded, which is closed with a code,
at its neighbours' expense by no more than a turn each."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import WSMessage, web
from websockets.frames import Frame, Opcode

from proxy.downstream import session_socket
from proxy.downstream.connection import ClientConnection, Upgraded
from proxy.downstream.server import ClientServer
from proxy.downstream.session_socket import CLOSE_WITHIN_S, LINGER_S, MESSAGES_A_TURN, QUEUE_BYTES, Socket
from proxy.telemetry.record import EndState
from proxy.wire.client_frames import IDLE_AT_ONCE
from tests.support.client_line import ClientTransport
from tests.support.memory_line import Clock, turns
from tests.support.mux import mux
from tests.support.raw_client import RawClient, get, raw_client
from tests.support.realtime_server import realtime_server
from tests.support.served import served
from tests.support.socket_server import socket_server

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 10.0
DIALECTS = {
    "bare": ("/v1/ws", None, 4429),
    "stages": ("/stream/v1/chat", None, 4429),
    "mux": ("/v1/ws", "llm-mux.v1", 4429),
    "responses": ("/v1/responses", None, 1008),
    "realtime": ("/v1/realtime?model=voice", None, 1008),
}
FLOODS = {
    "pings": Frame(Opcode.PING, b""),
    "pongs": Frame(Opcode.PONG, b"x" * 100),
    "fragments": Frame(Opcode.TEXT, b"", fin=False),
}


def upgrade(path: str = "/v1/ws", subprotocol: str | None = None) -> bytes:
    offered = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
    head = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    return get(path, *head, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *offered)


def flood(kind: str, count: int) -> bytes:
    """So many frames; of a fragmented message the first begins it."""
    first = FLOODS[kind]
    if kind != "fragments":
        return first.serialize(mask=True) * count
    return first.serialize(mask=True) + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * (count - 1)


async def is_closed_with(client: RawClient, code: int, reason: bytes = b"too_many_frames") -> bool:
    """Whether the gateway says so; what it says before that is skipped."""
    async with asyncio.timeout(PATIENCE_S):
        await client.reader.readuntil(bytes([0x88, 2 + len(reason)]) + code.to_bytes(2) + reason)
    return True


class Listening:
    """A session on a `socket` whose client is in memory (`line`): it keeps what it hears, and rests at the end.

    While it `may_hear` nothing, it is busy with what it has heard.
    """

    def __init__(self, *, early: bytes = b"", paused: bool = False, ping_s: float | None = None, **rules: Any) -> None:
        loop = asyncio.get_running_loop()
        self.server = ClientServer(_nobody, None)
        self.line = ClientTransport(asyncio.Protocol())
        upgraded = Upgraded(self.server, self.line, early, paused, loop.time)
        self.socket = Socket(upgraded, message_bytes=1 << 20, ping_s=ping_s, **rules)
        self.heard: list[WSMessage] = []
        self.may_hear = asyncio.Event()
        self.may_hear.set()
        self.ended = asyncio.Event()
        self.socket.begin(self._listen())

    async def _listen(self) -> None:
        try:
            while (message := await self.socket.receive()) is not None:
                self.heard.append(message)
                await self.may_hear.wait()
            await self.socket.rest()
        finally:
            self.ended.set()

    @property
    def said(self) -> list[object]:
        return [message.data for message in self.heard]


async def _nobody(request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError


def text(payload: str) -> bytes:
    return Frame(Opcode.TEXT, payload.encode()).serialize(mask=True)


def ping(payload: bytes) -> bytes:
    return Frame(Opcode.PING, payload).serialize(mask=True)


def close(code: int, reason: bytes = b"", *, mask: bool = True) -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2) + reason).serialize(mask=mask)


async def test_what_came_with_the_upgrade_is_read_before_what_comes_then() -> None:
    two = text("two")
    there = Listening(early=text("one") + two[:5])
    there.line.arrive(two[5:] + text("three"))
    await turns()
    assert there.said == ["one", "two", "three"]


async def test_a_ping_is_answered_and_one_who_does_not_read_is_owed_an_answer_to_the_last_only() -> None:
    there = Listening(paused=True)
    there.line.arrive(ping(b"a"), ping(b"b"))
    await turns()
    assert there.line.sent == b""
    there.line.catch_up()
    assert there.line.sent == b"\x8a\x01b"
    there.line.arrive(ping(b"c"))
    await turns()
    assert there.line.sent == b"\x8a\x01b\x8a\x01c"


async def test_a_close_is_answered_and_ends_the_session_and_the_connection() -> None:
    there = Listening()
    shut: list[bytes] = []
    there.socket.before_close = lambda: shut.append(there.line.sent)
    there.line.arrive(text("one") + close(1000) + text("late"))
    await turns()
    assert there.said == ["one"]
    assert (there.line.sent, shut) == (close(1000, mask=False), [b""])
    assert there.line.closed
    assert there.ended.is_set()


async def test_a_session_that_answers_the_clients_close_itself_gets_it() -> None:
    there = Listening(answers_close=True)
    there.line.arrive(close(4001, b"enough"))
    await turns()
    assert [(each.data, each.extra) for each in there.heard] == [(4001, "enough")]
    assert there.line.sent == b""
    there.socket.close(4002, "indeed")
    await turns()
    assert there.line.sent == close(4002, b"indeed", mask=False)
    assert there.line.closed
    assert there.ended.is_set()


@pytest.mark.parametrize("answers", [True, False])
async def test_our_close_is_the_last_word_and_has_a_moment_to_be_answered(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    there = Listening()
    await turns()
    there.socket.close(1012, "age")
    there.socket.close(1001, "late")
    there.line.arrive(text("late"), ping(b"late"))
    await turns()
    assert there.line.sent == close(1012, b"age", mask=False)
    assert (there.said, there.line.closed) == ([], False)
    if answers:
        there.line.arrive(close(1012))
        await turns()
    else:
        await clock.advance(CLOSE_WITHIN_S - 0.1)
        assert not there.line.closed
        await clock.advance(0.2)
    assert there.line.closed
    assert there.ended.is_set()


async def test_frames_that_cannot_be_read_close_the_connection_behind_what_could() -> None:
    there = Listening()
    there.line.arrive(text("one") + Frame(Opcode.TEXT, b"\xff").serialize(mask=True) + text("late"))
    await turns()
    assert there.said == ["one"]
    assert there.line.sent == close(1007, mask=False)
    assert there.line.closed


async def test_one_that_breaks_a_rule_is_told_and_not_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    there = Listening(first_bytes=3, flood_code=4429)
    there.line.arrive(text("four"), close(1000))
    await turns()
    assert (there.line.sent, there.said) == (close(1009, b"message_too_large", mask=False), [])
    assert not there.line.reading
    await clock.advance(LINGER_S - 0.1)
    assert not there.line.closed
    await clock.advance(0.2)
    assert there.line.closed
    assert there.ended.is_set()


async def test_a_session_that_is_behind_stops_the_reading_and_nobody_is_asked_for_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    there = Listening(ping_s=20.0)
    there.may_hear.clear()
    message = "x" * QUEUE_BYTES
    there.line.arrive(*[text(message)] * 5)
    await turns()
    assert not there.line.reading
    await clock.advance(100.0)
    assert (there.line.sent, there.line.closed) == (b"", False)
    there.may_hear.set()
    await turns(20)
    assert there.said == [message] * 5
    assert there.line.reading
    await clock.advance(20.0)
    assert there.line.sent == b"\x89\x00"


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_lost_connection_cancels_the_session_which_can_end_what_it_was_given(has_begun: bool) -> None:
    there = Listening()
    there.may_hear.clear()
    if has_begun:
        there.line.arrive(text("one"))
        await turns()
    there.socket.connection_lost(None)
    await turns()
    assert there.ended.is_set()
    serving = there.socket._task_handler
    assert serving is not None
    assert serving.cancelled()
    assert there.server.connections == []


async def test_a_server_that_stops_says_so_and_gives_the_session_a_moment() -> None:
    quick, slow = Listening(), Listening()
    slow.may_hear.clear()
    slow.line.arrive(text("one"))
    await turns()
    for there in (quick, slow):
        there.server.pre_shutdown()
        assert there.line.sent == close(1001, mask=False)
    await asyncio.gather(quick.server.shutdown(0.01), slow.server.shutdown(0.01))
    await turns()
    assert quick.line.closed
    assert slow.line.closed
    assert slow.ended.is_set()


async def test_nothing_of_the_upgrades_handling_stays_with_an_open_session(tmp_path: Path) -> None:
    def kept() -> list[str]:
        gc.collect()
        return [
            type(each).__name__ for each in gc.get_objects() if isinstance(each, web.BaseRequest | ClientConnection)
        ]

    async with served("server: {port: 0}\nroutes: {m: 'demo://'}\n", tmp_path) as gateway:
        before = len(kept())
        async with raw_client(gateway.port) as bare, raw_client(gateway.port) as responses, mux(gateway) as muxed:
            for client, path in ((bare, "/v1/ws"), (responses, "/v1/responses")):
                await client.send(upgrade(path))
                await client.reader.readuntil(b"\r\n\r\n")
            await muxed.start()
            await muxed.until("done")
            assert gateway.gateway._websockets.sessions() == {"bare": 1, "responses": 1, "mux": 1}
            assert len(kept()) == before


@pytest.mark.parametrize(
    ("dialect", "kind"), [*[(dialect, "pings") for dialect in DIALECTS], ("mux", "pongs"), ("mux", "fragments")]
)
async def test_a_flood_of_frames_is_closed_with_a_code_while_it_goes_on(
    dialect: str, kind: str, tmp_path: Path
) -> None:
    path, subprotocol, code = DIALECTS[dialect]
    async with realtime_server() as voice:
        routes = f"server: {{port: 0}}\nroutes: {{m: 'demo://', voice: '{voice.url}'}}\n"
        async with served(routes, tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(upgrade(path, subprotocol))
            await client.reader.readuntil(b"\r\n\r\n")
            closed = asyncio.create_task(is_closed_with(client, code))
            client.writer.write(flood(kind, 200 * IDLE_AT_ONCE))  # more than any buffer takes: most is never read
            assert await closed
            client.leave(reset=True)


async def test_a_flood_that_comes_with_the_upgrade_is_none_less(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: 'demo://'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade() + flood("pings", 2 * IDLE_AT_ONCE))
            assert await is_closed_with(client, 4429)


async def test_the_session_of_a_flood_is_over_though_its_client_is_still_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_socket, "LINGER_S", 0.05)
    async with served("server: {port: 0}\nroutes: {m: 'demo://'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade())
            await client.reader.readuntil(b"\r\n\r\n")
            assert gateway.gateway._websockets.sessions() == {"bare": 1}
            client.writer.write(flood("pings", 2 * IDLE_AT_ONCE))
            record = await gateway.record()
            assert not gateway.gateway._websockets.sessions()
            assert await client.rest()
    assert (record.is_session, record.status) == (True, 101)


async def test_a_flood_ends_what_runs_and_what_can_be_resumed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_socket, "LINGER_S", 0.05)
    routes = "server: {port: 0}\nroutes: {m: 'demo://?tokens=1000&interval=20ms&first=1ms'}\n"
    async with served(routes, tmp_path) as gateway:
        async with mux(gateway) as client:
            await client.start("r1")
            await client.until("accepted")
            await client.start("r2", resumable=True)
            stream = (await client.until("accepted"))[-1]["stream"]
            client.socket.transport.write(flood("pings", 2 * IDLE_AT_ONCE))
            assert await client.closed() == (4429, "too_many_frames")
        async with mux(gateway) as client:
            await client.say("resume", rid="r2", stream=stream)
            assert (await client.until("resumed"))[-1]["live"] is True
            ended = [record for record in gateway.records if record.path == "/v1/chat/completions"]
            assert [record.end_state for record in ended] == [EndState.CLIENT_CLOSED]


async def test_a_few_pings_and_fragments_are_no_flood(tmp_path: Path) -> None:
    message = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    pieces = [message[at : at + 3] for at in range(0, len(message), 3)]
    frames = [Frame(Opcode.CONT if at else Opcode.TEXT, each, fin=False) for at, each in enumerate(pieces)]
    sent = b"".join(each.serialize(mask=True) + flood("pings", 1) for each in frames)
    async with served("server: {port: 0}\nroutes: {m: 'demo://?tokens=2&first=1ms'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade() + sent + Frame(Opcode.CONT, b"").serialize(mask=True))
            async with asyncio.timeout(PATIENCE_S):
                await client.reader.readuntil(b"[DONE]")


async def test_others_have_their_turn_between_the_messages_of_one_client() -> None:
    """Counted in turns of the event loop, not in time."""
    handled, most_in_a_turn, over = 0, 0, asyncio.Event()
    count = 5000

    async def swallow(socket: Socket) -> None:
        nonlocal handled
        while await socket.receive() is not None:
            handled += 1
            if handled == count:
                over.set()

    async def watch() -> None:
        nonlocal most_in_a_turn
        while not over.is_set():
            before = handled
            await asyncio.sleep(0)
            most_in_a_turn = max(most_in_a_turn, handled - before)

    async with socket_server(swallow) as port, raw_client(port) as client:
        await client.send(upgrade("/"))
        await client.reader.readuntil(b"\r\n\r\n")
        watching = asyncio.create_task(watch())
        await client.send(Frame(Opcode.TEXT, b"{}").serialize(mask=True) * count)
        async with asyncio.timeout(PATIENCE_S):
            await watching
    assert handled == count
    assert most_in_a_turn <= 2 * MESSAGES_A_TURN
