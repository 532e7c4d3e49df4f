"""Whatever bytes, frames and JSON a client sends on a WebSocket, of whatever dialect: it is the client's own trouble.

No session fails with a traceback, none outlives its client, and the next client is served.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import websockets
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tests.support.raw_client import raw_client
from tests.support.realtime_server import realtime_server
from tests.support.served import served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.served import Served

pytestmark = pytest.mark.slow

ANSWERS_WITHIN_S = 0.03
GONE_WITHIN_S = 5.0
MAX_BODY = 4096


@dataclass(frozen=True, slots=True)
class Spoken:
    """Where a dialect is spoken, and messages that are good in it: what is sent is made of these."""

    target: str
    subprotocol: str | None
    good: tuple[str, ...]


CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}]}'
DIALECTS = {
    "bare": Spoken("/v1/ws", None, (CHAT, '{"type":"cancel"}')),
    "completions": Spoken("/v1/completions", None, ('{"model":"m","prompt":"x"}', '{"type":"cancel"}')),
    "stages": Spoken(
        "/stream/v1/chat",
        None,
        ('{"stage_id":"s","model":"m","messages":[{"role":"user","content":"x"}]}', '{"type":"cancel"}'),
    ),
    "mux": Spoken(
        "/v1/ws",
        "llm-mux.v1",
        (
            '{"type":"init","v":1,"features":["ack","ndjson"],"resume":[{"rid":"r0","stream":"s_x","after":0}]}',
            '{"type":"start","rid":"r1","path":"/v1/chat/completions","resumable":true,"window":1,"body":' + CHAT + "}",
            '{"type":"cancel","rid":"r1"}',
            '{"type":"resume","rid":"r2","stream":"s_x","after":41}',
            '{"type":"ack","rid":"r1","seq":1}',
            '{"type":"ping","t":1}',
        ),
    ),
    "responses": Spoken(
        "/v1/responses",
        None,
        (
            '{"type":"response.create","model":"m","input":"x","stream_id":"main"}',
            '{"type":"response.create","response":{"model":"m","input":[],"previous_response_id":"r"}}',
            '{"type":"response.create","model":"m","generate":false}',
            '{"type":"response.cancel","stream_id":"main"}',
            '{"type":"response.processed"}',
        ),
    ),
    "realtime": Spoken("/v1/realtime?model=voice", "realtime", ('{"type":"session.update"}',)),
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(10**400),
    st.just(float("nan")),
    st.just(float("inf")),
    st.text(max_size=4),
    st.just("\ud800"),
    st.just("r1"),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@st.composite
def changed(draw: st.DrawFn, good: str) -> bytes:
    """A good message with a few members of it changed or gone, at any depth; or with some of its bytes."""
    if draw(st.integers(0, 3)):
        message = json.loads(good)
        for members in draw(st.lists(st.sampled_from(list(objects(message))), min_size=1, max_size=3)):
            name = draw(st.sampled_from([*members, "type", "extra"]))
            if draw(st.booleans()):
                members[name] = draw(VALUES)
            else:
                members.pop(name, None)
        return json.dumps(message).encode("utf-8", "surrogatepass")
    raw = bytearray(good.encode())
    for at in draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[at] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))])


def objects(value: object) -> Iterator[dict[str, object]]:
    """Every object in decoded JSON."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


NESTED = b"[" * 2000
HUGE = b'{"model":"' + b"m" * MAX_BODY + b'"}'


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, rsv: int = 0, claims: int = 0) -> bytes:
    """A masked frame that says it is `claims` bytes longer than it is."""
    whole = Frame(Opcode.BINARY, payload + b"\x00" * claims).serialize(mask=True)
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + whole[1 : len(whole) - claims]


def pieces_of(good: tuple[str, ...]) -> st.SearchStrategy[list[bytes]]:
    """Messages that are hardly right, and at last perhaps something that is no message at all."""
    payloads = st.one_of(
        st.sampled_from(good).flatmap(changed),
        st.sampled_from(good).flatmap(changed),
        st.sampled_from(good).map(str.encode),
        VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
        st.sampled_from([NESTED, HUGE, b"", b"{}", b"[]", b'"x"']),
    )
    odd = st.builds(
        frame,
        payloads | st.binary(max_size=40),
        st.sampled_from([0, 1, 2, 3, 8, 9, 10, 15]),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 4]),
        claims=st.sampled_from([0, 0, 1, 300]),
    )
    unmasked = payloads.map(lambda payload: Frame(Opcode.TEXT, payload).serialize(mask=False))
    ends = st.lists(odd | unmasked | st.binary(max_size=40), max_size=2)
    return st.builds(lambda sent, end: [*map(frame, sent), *end], st.lists(payloads, max_size=6), ends)


class Troubles(logging.Handler):
    """Keeps every record that is an error or has a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.said.append(self.format(record))


@dataclass(slots=True)
class House:
    """A gateway that lives as long as the tests here do, and the loop it lives in."""

    runner: asyncio.Runner
    gateway: Served
    troubles: Troubles
    idle_tasks: int = 0
    failures: list[object] = field(default_factory=list)

    def tasks(self) -> int:
        return len(asyncio.all_tasks())

    def sessions(self) -> float:
        figures = self.gateway.gateway.figures()["penstock_websocket_sessions"]
        return sum(value for row in figures.values() for value in row)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    troubles = Troubles()
    logging.getLogger().addHandler(troubles)
    stack = AsyncExitStack()

    async def begin() -> Served:
        voice = await stack.enter_async_context(realtime_server())
        routes = (
            f"server: {{port: 0, max_body: {MAX_BODY}, websocket: {{detach: 0s, replay: 0s}}}}\n"
            f"routes: {{m: 'demo://?tokens=2&interval=1ms&first=1ms', voice: '{voice.url}'}}\n"
        )
        return await stack.enter_async_context(served(routes, tmp_path_factory.mktemp("house")))

    with asyncio.Runner() as runner:
        built = House(runner, runner.run(begin()), troubles)
        runner.get_loop().set_exception_handler(lambda _, context: built.failures.append(context))
        built.idle_tasks = runner.run(count_tasks(built))
        yield built
        runner.run(stack.aclose())
    logging.getLogger().removeHandler(troubles)


async def count_tasks(house: House) -> int:
    return house.tasks()


def upgrade(spoken: Spoken) -> bytes:
    lines = [
        f"GET {spoken.target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Sec-WebSocket-Protocol: {spoken.subprotocol}"] if spoken.subprotocol else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def misbehave(house: House, spoken: Spoken, pieces: list[bytes]) -> None:
    """Send all of it, wait a moment for answers, and go."""
    async with raw_client(house.gateway.port) as raw:
        await raw.send(upgrade(spoken))
        assert b" 101 " in await raw.reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError, TimeoutError):
            for piece in pieces:
                await raw.send(piece)
            await raw.send(Frame(Opcode.CLOSE, (1000).to_bytes(2)).serialize(mask=True))
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await raw.reader.read()
        raw.leave(reset=True)
    async with asyncio.timeout(GONE_WITHIN_S):
        while house.sessions() or house.tasks() > house.idle_tasks:
            await asyncio.sleep(0.001)


async def behave(house: House) -> None:
    async with websockets.connect(f"{house.gateway.ws_url}/v1/ws") as socket:
        await socket.send(CHAT)
        async with asyncio.timeout(5):
            while await socket.recv() != "[DONE]":
                pass


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_frame_and_no_message_breaks_more_than_its_own_session(dialect: str, house: House) -> None:
    spoken = DIALECTS[dialect]

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(pieces_of(spoken.good))
    @example([frame(good.encode()) for good in spoken.good])
    @example([frame(good.encode(), 2) for good in spoken.good])
    @example([frame(spoken.good[0].encode()[:5], fin=False), frame(spoken.good[0].encode()[5:], 0)])
    @example([frame(NESTED)])
    @example([frame(b"", 9)] * 500)
    @example([frame(b"x", fin=False), *[frame(b"", 0, fin=False)] * 500])
    def misbehaves(pieces: list[bytes]) -> None:
        house.runner.run(misbehave(house, spoken, pieces))
        assert house.troubles.said == []
        assert house.failures == []

    misbehaves()
    house.runner.run(behave(house))
