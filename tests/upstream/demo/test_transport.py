from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import h11
import pytest

from proxy.upstream.demo import DemoSettings, DemoTransport, connect
from proxy.upstream.demo.transport import READ_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

PACE = DemoSettings(tokens=4, interval_s=0.5, first_s=2.0)
HEALTH = b"GET /health HTTP/1.1\r\nHost: demo\r\n\r\n"


def chat(*, stream: bool = True, extra: bytes = b"") -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi, 水车"}], "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: demo\r\n%bContent-Length: %d\r\n\r\n" % (extra, len(body))
    return head + body


class Timer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualLoop:
    """A loop whose clock moves when it is told to; what is due then runs at its time, or late if the loop is `late`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        return self.call_at(self.now, lambda: callback(*args))

    def pending(self) -> list[Timer]:
        return sorted((timer for timer in self.timers if not timer.cancelled), key=lambda timer: timer.when)

    def advance(self, seconds: float, late_s: float = 0.0) -> None:
        until = self.now + seconds
        while (pending := self.pending()) and pending[0].when + late_s <= until + 1e-9:
            self.timers.remove(pending[0])
            self.now = max(self.now, pending[0].when + late_s)
            pending[0].callback()
        self.now = max(self.now, until)


class Recorder(asyncio.Protocol):
    """Writes down what a protocol is told and when."""

    def __init__(self, loop: ManualLoop) -> None:
        self.loop = loop
        self.told: list[tuple[float, str | bytes | None]] = []
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.keeps_open = False
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append((self.loop.now, "made"))

    def data_received(self, data: bytes) -> None:
        self.told.append((self.loop.now, data))
        self.on_data(data)

    def eof_received(self) -> bool:
        self.told.append((self.loop.now, "eof"))
        return self.keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @property
    def reads(self) -> list[tuple[float, bytes]]:
        """Seconds since the start, and what came then."""
        return [(round(at - 100.0, 6), data) for at, data in self.told if isinstance(data, bytes)]

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.reads)


def connected(settings: DemoSettings = PACE) -> tuple[ManualLoop, DemoTransport, Recorder]:
    loop = ManualLoop()
    nonces = iter(f"{n:032x}" for n in range(100))
    transport, protocol = connect(
        lambda: Recorder(loop), settings, loop=loop, wall_clock=lambda: 1_700_000_000.5, nonce=lambda: next(nonces)
    )
    return loop, transport, protocol


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """All the answers in these bytes, read by an independent client; they have to be whole."""
    found = []
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    while client.trailing_data[0]:
        client.send(h11.Request(method="GET", target="/", headers=[("host", "demo")]))
        client.send(h11.EndOfMessage())
        head, body = client.next_event(), b""
        assert isinstance(head, h11.Response)
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        found.append((head.status_code, body))
        if client.their_state is h11.DONE and client.our_state is h11.DONE:
            client.start_next_cycle()
        else:
            assert client.trailing_data[0] == b""  # nothing after an answer that said it was the last
            break
    return found


def content(body: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def test_the_protocol_hears_of_its_connection_before_connect_returns() -> None:
    _, _, protocol = connected()
    assert protocol.told == [(100.0, "made")]


def test_a_stream_arrives_head_first_then_token_by_token_at_its_pace() -> None:
    loop, transport, protocol = connected()
    transport.write(chat())
    assert protocol.data == b""
    loop.advance(10)
    assert [at for at, _ in protocol.reads] == [0.0, 2.0, 2.5, 3.0, 3.5]
    ((status, body),) = answers(protocol.data)
    assert (status, body[-14:]) == (200, b"data: [DONE]\n\n")
    assert content(body)
    assert loop.pending() == []


def test_a_whole_answer_arrives_in_one_read_when_its_tokens_would_be_done() -> None:
    loop, transport, protocol = connected()
    transport.write(chat(stream=False))
    loop.advance(10)
    ((at, data),) = protocol.reads
    assert at == 3.5
    ((status, body),) = answers(data)
    assert status == 200
    assert json.loads(body)["created"] == 1_700_000_000


def test_a_request_written_byte_by_byte_is_answered_once_it_is_whole() -> None:
    loop, transport, protocol = connected()
    *first, last = (bytes([byte]) for byte in chat())
    for byte in first:
        transport.write(byte)
    loop.advance(10)
    assert protocol.reads == []
    transport.write(last)
    loop.advance(10)
    assert len(answers(protocol.data)) == 1


def test_late_timers_do_not_make_the_pace_drift() -> None:
    loop, transport, protocol = connected(DemoSettings(tokens=50, interval_s=0.02, first_s=0.1))
    transport.write(chat())
    loop.advance(10, late_s=0.005)
    times = [at for at, _ in protocol.reads]
    assert len(times) == 51
    assert times[-1] == pytest.approx(0.1 + 49 * 0.02 + 0.005)


def test_what_became_due_while_the_loop_was_late_arrives_in_one_read() -> None:
    loop, transport, protocol = connected()
    transport.write(chat())
    loop.advance(2.0)
    loop.advance(1.2, late_s=1.2)
    assert [at for at, _ in protocol.reads] == [0.0, 2.0]
    loop.advance(0.6, late_s=1.2)
    assert [at for at, _ in protocol.reads] == [0.0, 2.0, 3.7]
    assert protocol.reads[-1][1].count(b"data: {") == 4  # three tokens and the end
    assert len(answers(protocol.data)) == 1


def test_answers_on_one_connection_come_one_after_another_with_ids_of_their_own() -> None:
    loop, transport, protocol = connected()
    for _ in range(3):
        transport.write(chat())
        loop.advance(10)
    found = answers(protocol.data)
    assert [status for status, _ in found] == [200, 200, 200]
    assert len({json.loads(body.split(b"\n")[0][6:])["id"] for _, body in found}) == 3
    assert len({content(body) for _, body in found}) == 1


def test_requests_written_together_are_answered_in_order() -> None:
    loop, transport, protocol = connected()
    transport.write(chat() + HEALTH + b"GET /nowhere HTTP/1.1\r\nHost: demo\r\n\r\n")
    loop.advance(20)
    assert [status for status, _ in answers(protocol.data)] == [200, 200, 404]
    assert answers(protocol.data)[1][1] == b'{"status":"ok"}'


def test_the_next_request_may_be_written_inside_data_received() -> None:
    loop, transport, protocol = connected()
    requests = [HEALTH, HEALTH]
    protocol.on_data = lambda data: transport.write(requests.pop()) if requests else None
    transport.write(HEALTH)
    loop.advance(1)
    assert len(answers(protocol.data)) == 3


def test_nothing_is_delivered_while_reading_is_paused_and_all_that_was_due_after_it() -> None:
    loop, transport, protocol = connected()
    transport.write(chat())
    loop.advance(2.6)
    transport.pause_reading()
    assert not transport.is_reading()
    loop.advance(0.5)
    assert [at for at, _ in protocol.reads] == [0.0, 2.0, 2.5]
    transport.resume_reading()
    assert [at for at, _ in protocol.reads] == [0.0, 2.0, 2.5]  # never inside resume_reading
    loop.advance(5)
    assert [at for at, _ in protocol.reads] == [0.0, 2.0, 2.5, 3.1, 3.5]
    assert len(answers(protocol.data)) == 1


def test_a_pause_inside_data_received_holds_the_rest_back() -> None:
    loop, transport, protocol = connected()
    protocol.on_data = lambda data: transport.pause_reading()
    transport.write(chat())
    loop.advance(10)
    assert len(protocol.reads) == 1
    transport.resume_reading()
    loop.advance(10)
    assert len(protocol.reads) == 2
    assert len(answers(protocol.data)) == 1


def test_one_read_brings_a_bounded_amount() -> None:
    loop, transport, protocol = connected(DemoSettings(tokens=2000, interval_s=0.0, first_s=0.0))
    transport.write(chat())
    loop.advance(0.0)
    sizes = [len(data) for _, data in protocol.reads]
    assert len(sizes) > 3
    assert max(sizes) < READ_BYTES + 1000
    assert len(answers(protocol.data)) == 1


@pytest.mark.parametrize("leave", [DemoTransport.close, DemoTransport.abort])
def test_a_connection_that_is_left_ends_in_the_loops_next_turn_and_only_once(
    leave: Callable[[DemoTransport], None],
) -> None:
    loop, transport, protocol = connected()
    transport.write(chat() + HEALTH)
    loop.advance(2.5)
    leave(transport)
    leave(transport)
    assert transport.is_closing()
    assert protocol.lost == []
    assert len(loop.pending()) == 1  # the news of it, and no timer
    heard = len(protocol.told)
    loop.advance(10)
    assert protocol.lost == [None]
    assert len(protocol.told) == heard
    transport.write(HEALTH)
    transport.resume_reading()
    assert loop.pending() == []


def test_closing_inside_data_received_is_the_end_of_it() -> None:
    loop, transport, protocol = connected()
    protocol.on_data = lambda data: transport.close()
    transport.write(chat() + HEALTH)
    loop.advance(10)
    assert len(protocol.reads) == 1
    assert protocol.lost == [None]
    assert loop.pending() == []


def test_the_model_closes_after_an_answer_that_was_to_be_the_last() -> None:
    loop, transport, protocol = connected()
    transport.write(chat(extra=b"Connection: close\r\n") + HEALTH)
    loop.advance(10)
    assert protocol.told[-1][1] == "eof"
    assert protocol.lost == [None]
    assert len(answers(protocol.data)) == 1


def test_the_end_too_waits_while_reading_is_paused() -> None:
    loop, transport, protocol = connected()
    protocol.on_data = lambda data: transport.pause_reading()
    transport.write(HEALTH.replace(b"Host: demo", b"Connection: close"))
    loop.advance(10)
    assert protocol.told[-1][1] != "eof"
    transport.resume_reading()
    loop.advance(10)
    assert protocol.told[-1][1] == "eof"


def test_a_protocol_may_keep_its_side_open_after_the_end() -> None:
    loop, transport, protocol = connected()
    protocol.keeps_open = True
    transport.write(HEALTH.replace(b"Host: demo", b"Connection: close"))
    loop.advance(10)
    transport.write(HEALTH)
    loop.advance(10)
    assert [word for _, word in protocol.told].count("eof") == 1
    assert len(protocol.reads) == 1
    assert not transport.is_closing()


def test_bytes_that_are_no_request_are_refused_after_the_answers_before_them_and_the_connection_closed() -> None:
    loop, transport, protocol = connected()
    transport.write(HEALTH + b"hello\r\n\r\n")
    loop.advance(10)
    assert [status for status, _ in answers(protocol.data)] == [200, 400]
    assert protocol.lost == [None]


def test_a_protocol_that_raises_loses_its_connection_with_its_error() -> None:
    loop, transport, protocol = connected()
    error = RuntimeError("no more")

    def fail(data: bytes) -> None:
        raise error

    protocol.on_data = fail
    transport.write(chat())
    with pytest.raises(RuntimeError):
        loop.advance(1)
    loop.advance(10)
    assert protocol.lost == [error]


def test_it_has_no_peer_and_its_writes_are_never_buffered() -> None:
    _, transport, protocol = connected()
    assert transport.get_extra_info("peername") is None
    assert transport.get_extra_info("socket", "none") == "none"
    transport.set_write_buffer_limits(high=1)
    assert (transport.get_write_buffer_size(), transport.get_write_buffer_limits()) == (0, (0, 0))
    assert not transport.can_write_eof()
    assert transport.get_protocol() is protocol


def test_another_protocol_may_take_over() -> None:
    loop, transport, protocol = connected()
    transport.set_protocol(taker := Recorder(loop))
    transport.write(HEALTH)
    loop.advance(1)
    assert (protocol.data, len(answers(taker.data))) == (b"", 1)
    with pytest.raises(TypeError):
        transport.set_protocol(asyncio.BaseProtocol())


async def test_on_a_real_loop_it_streams_and_ends() -> None:
    loop = asyncio.get_running_loop()
    lost = loop.create_future()
    data = bytearray()

    class Real(asyncio.Protocol):
        def data_received(self, received: bytes) -> None:
            data.extend(received)

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    transport, _ = connect(Real, DemoSettings(tokens=5, interval_s=0.001, first_s=0.001))
    transport.write(chat(extra=b"Connection: close\r\n"))
    assert await asyncio.wait_for(lost, 5) is None
    ((status, body),) = answers(bytes(data))
    assert (status, body[-14:]) == (200, b"data: [DONE]\n\n")
