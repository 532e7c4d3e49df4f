"""An open WebSocket to a model server: what is told, what is sent, how it ends, over a transport in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from websockets import frames
from websockets.protocol import SERVER, Protocol

from proxy.errors import UpstreamIdle, UpstreamInvalid, UpstreamTruncated
from proxy.upstream.websocket import CLOSE_WITHIN_S, UpstreamSocket
from proxy.wire.messages import Opcode
from tests.support.memory_line import Clock, MemoryTransport, turns

if TYPE_CHECKING:
    from proxy.errors import UpstreamError

PING_S = 20.0


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """As a server sends it."""
    return frames.Frame(frames.Opcode(opcode), payload).serialize(mask=False)


def close(code: int, reason: str = "") -> bytes:
    return frame(8, frames.Close(code, reason).serialize())


class Told:
    """A listener that keeps what it is told; `full` is what it says to each message."""

    def __init__(self) -> None:
        self.messages: list[tuple[Opcode, bytes]] = []
        self.ends: list[tuple[int | None, str] | UpstreamError] = []
        self.full = False

    def message(self, opcode: Opcode, payload: bytes) -> bool:
        assert not self.ends
        self.messages.append((opcode, payload))
        return self.full

    def closed(self, code: int | None, reason: str) -> None:
        self.ends.append((code, reason))

    def lost(self, error: UpstreamError) -> None:
        self.ends.append(error)


class End:
    """One side of a socket, with the server's side in a transport to play with."""

    def __init__(self, *, ping_s: float | None = None, unread: bytes = b"", largest: int = 1000) -> None:
        self.over: list[UpstreamError | None] = []
        self.told = Told()
        self.transport = MemoryTransport(asyncio.Protocol())
        self.transport.pause_reading()
        self.socket = UpstreamSocket(
            self.transport, None, max_message_bytes=largest, ping_s=ping_s, on_over=self.over.append, unread=unread
        )

    def listen(self) -> End:
        self.socket.listen(self.told)
        return self

    def said(self) -> list[frames.Frame]:
        """What the server has been sent so far, as a strict one reads it."""
        server = Protocol(SERVER, max_size=None)
        server.receive_data(self.transport.sent)
        assert server.parser_exc is None
        return [event for event in server.events_received() if isinstance(event, frames.Frame)]

    def said_close(self) -> tuple[int, str]:
        last = self.said()[-1]
        assert last.opcode is frames.Opcode.CLOSE
        close = frames.Close.parse(last.data)
        return close.code, close.reason


# ---- messages ----


async def test_what_came_behind_the_handshake_is_told_first_and_nothing_before_somebody_listens() -> None:
    end = End(unread=frame(1, b"one") + frame(2, b"tw")[:-1])
    end.transport.arrive(b"w", frame(1, b"three"))
    await turns()
    assert end.told.messages == []
    end.listen()
    await turns()
    assert end.told.messages == [(Opcode.TEXT, b"one"), (Opcode.BINARY, b"tw"), (Opcode.TEXT, b"three")]


async def test_messages_go_out_as_they_are() -> None:
    end = End().listen()
    end.socket.send(Opcode.TEXT, "ü".encode())
    end.socket.send(Opcode.BINARY, b"\x00\xff")
    assert end.said() == [
        frames.Frame(frames.Opcode.TEXT, "ü".encode()),
        frames.Frame(frames.Opcode.BINARY, b"\x00\xff"),
    ]


async def test_a_full_listener_stops_the_reading_until_it_says_so() -> None:
    end = End().listen()
    end.told.full = True
    end.transport.arrive(frame(1, b"one"), frame(1, b"two"))
    await turns()
    assert [payload for _, payload in end.told.messages] == [b"one"]
    assert not end.transport.reading
    end.told.full = False
    end.socket.resume()
    await turns()
    assert [payload for _, payload in end.told.messages] == [b"one", b"two"]


async def test_a_listener_that_is_full_at_once_is_not_given_more() -> None:
    end = End(unread=frame(1, b"one"))
    end.told.full = True
    end.listen()
    end.transport.arrive(frame(1, b"two"))
    await turns()
    assert [payload for _, payload in end.told.messages] == [b"one"]


async def test_whoever_sends_waits_for_a_server_that_does_not_read() -> None:
    end = End().listen()
    await end.socket.drained()  # it reads
    end.socket.pause_writing()
    assert end.socket.full
    waiting = asyncio.ensure_future(end.socket.drained())
    await turns()
    assert not waiting.done()
    end.socket.resume_writing()
    await waiting
    assert not end.socket.full


@pytest.mark.parametrize("how", ["reset", "close", "their close"])
async def test_nobody_waits_for_a_server_that_is_gone(how: str) -> None:
    end = End().listen()
    end.socket.pause_writing()
    waiting = asyncio.ensure_future(end.socket.drained())
    await turns()
    if how == "reset":
        end.transport.reset()
    elif how == "close":
        end.socket.close(1000, "")
    else:
        end.transport.arrive(close(1000))
    async with asyncio.timeout(1):
        await waiting
        await end.socket.drained()


# ---- pings ----


async def test_a_ping_is_answered() -> None:
    end = End().listen()
    end.transport.arrive(frame(9, b"there?"), frame(10, b"unasked"))
    await turns()
    assert end.said() == [frames.Frame(frames.Opcode.PONG, b"there?")]
    assert end.told.messages == []


async def test_a_server_that_pings_and_does_not_read_is_owed_one_answer() -> None:
    end = End().listen()
    end.socket.pause_writing()
    end.transport.arrive(*(frame(9, b"%d" % number) for number in range(1000)))
    await turns()
    assert end.transport.sent == b""
    end.socket.resume_writing()
    assert end.said() == [frames.Frame(frames.Opcode.PONG, b"999")]


async def test_a_silent_server_is_pinged_and_given_up_when_it_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    end = End(ping_s=PING_S).listen()
    await clock.advance(PING_S)
    assert end.said() == [frames.Frame(frames.Opcode.PING, b"")]
    await clock.advance(PING_S / 2)
    assert [type(ended) for ended in end.told.ends] == [UpstreamIdle]
    assert end.transport.closed
    await turns()
    assert [type(error) for error in end.over] == [UpstreamIdle]


async def test_any_byte_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    end = End(ping_s=PING_S).listen()
    large = frame(2, b"x" * 300)
    for at in range(30):
        await clock.advance(PING_S / 2 - 1)
        end.transport.arrive(large[at : at + 1])
    assert (end.told.ends, end.transport.sent) == ([], b"")


async def test_a_server_that_is_not_read_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    end = End(ping_s=PING_S).listen()
    end.socket.pause()
    for _ in range(10):
        await clock.advance(PING_S)
    assert end.told.ends == []
    end.socket.resume()
    for _ in range(4):
        await clock.advance(PING_S / 2 - 1)
        end.transport.arrive(frame(10))
    assert end.told.ends == []


async def test_without_pings_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    end = End(ping_s=None).listen()
    await clock.advance(1_000_000)
    assert (end.told.ends, end.transport.sent) == ([], b"")


# ---- the end ----


@pytest.mark.parametrize(("sent", "told"), [(close(4000, "why"), (4000, "why")), (frame(8), (None, ""))])
async def test_the_servers_close_is_answered_alike_and_told_once(sent: bytes, told: tuple[int | None, str]) -> None:
    end = End().listen()
    end.transport.arrive(frame(1, b"last") + sent + frame(1, b"after"), close(1000))
    await turns()
    assert end.told.messages == [(Opcode.TEXT, b"last")]
    assert end.told.ends == [told]
    assert end.said()[-1].data == sent[2:]
    await turns()
    assert end.over == [None]
    end.socket.send(Opcode.TEXT, b"too late")
    assert len(end.said()) == 1


async def test_our_close_waits_for_the_servers_and_tells_nobody() -> None:
    end = End().listen()
    end.socket.close(1001, "draining")
    assert end.said_close() == (1001, "draining")
    end.transport.arrive(frame(1, b"meanwhile"))
    await turns()
    assert not end.transport.closed
    end.transport.arrive(close(1001))
    await turns()
    assert (end.transport.closed, end.told.messages, end.told.ends, end.over) == (True, [], [], [None])


@pytest.mark.parametrize("listens", [True, False])
async def test_a_server_that_does_not_answer_our_close_is_dropped(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    end = End(ping_s=PING_S)
    if listens:
        end.listen()
    end.socket.close(1000, "")
    await clock.advance(CLOSE_WITHIN_S - 0.1)
    assert not end.transport.closed
    await clock.advance(0.2)
    assert end.transport.closed
    assert end.over == [None]


async def test_a_close_before_anybody_listens_is_made_with_the_server_too() -> None:
    end = End()
    end.socket.close(1001, "client_closed")
    end.transport.arrive(frame(1, b"hello"), close(1001))
    await turns()
    assert end.said_close() == (1001, "client_closed")
    assert end.over == [None]


async def test_a_server_that_vanishes_is_told_as_lost() -> None:
    end = End().listen()
    end.transport.arrive(frame(1, b"last"), frame(1, b"half a fra")[:-3])
    end.transport.reset()
    await turns()
    assert end.told.messages == [(Opcode.TEXT, b"last")]
    assert [type(ended) for ended in end.told.ends] == [UpstreamTruncated]
    assert [type(error) for error in end.over] == [UpstreamTruncated]


async def test_a_server_that_vanished_before_anybody_listened_is_told_then() -> None:
    end = End()
    end.transport.reset()
    await turns()
    end.listen()
    assert [type(ended) for ended in end.told.ends] == [UpstreamTruncated]


@pytest.mark.parametrize(
    ("sent", "code"),
    [(b"\x83\x00", 1002), (frame(1, b"\xff"), 1007), (frame(2, b"x" * 1001), 1009)],
    ids=["a frame of no kind", "no UTF-8", "too large"],
)
async def test_a_server_that_breaks_the_protocol_is_told_so_and_is_lost(sent: bytes, code: int) -> None:
    end = End().listen()
    end.transport.arrive(frame(1, b"last") + sent, frame(1, b"after"))
    await turns()
    assert end.said_close() == (code, "")
    assert end.told.messages == [(Opcode.TEXT, b"last")]
    assert [type(ended) for ended in end.told.ends] == [UpstreamInvalid]
    assert [type(error) for error in end.over] == [UpstreamInvalid]


async def test_what_is_wrong_behind_our_close_is_nobodys_trouble() -> None:
    end = End().listen()
    end.socket.close(1000, "")
    end.transport.arrive(b"\x83\x00")
    await turns()
    assert (end.told.ends, end.over) == ([], [None])


async def test_an_aborted_socket_is_over_and_tells_nobody() -> None:
    end = End().listen()
    end.socket.abort()
    await turns()
    assert (end.transport.sent, end.told.ends, end.over) == (b"", [], [None])
