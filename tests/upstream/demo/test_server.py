import json

import h11
import pytest

from proxy.upstream.demo.answer import Stamp, Streamed, Whole
from proxy.upstream.demo.server import Malformed, Request, RequestReader, answered, response
from proxy.upstream.demo.settings import DemoSettings

POST = b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: demo\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /health HTTP/1.1\r\nHost: demo\r\n\r\n"
READ_POST = Request("POST", "/v1/chat/completions", b"hello", keep_alive=True)
READ_GET = Request("GET", "/health", b"", keep_alive=True)


def parsed(data: bytes) -> tuple[h11.Response, bytes]:
    """One response, read by an independent client; nothing may follow it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "demo")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return head, body


def test_requests_are_read_one_after_another() -> None:
    assert RequestReader().feed(POST + GET + POST) == [READ_POST, READ_GET, READ_POST]


def test_requests_cut_at_every_byte_are_the_same_requests() -> None:
    data = POST + GET
    for at in range(len(data)):
        reader = RequestReader()
        assert reader.feed(data[:at]) + reader.feed(data[at:]) == [READ_POST, READ_GET]


def test_a_chunked_body_is_read_too() -> None:
    data = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert RequestReader().feed(data) == [Request("POST", "/", b"abcde", keep_alive=True)]


@pytest.mark.parametrize("header", [b"Connection: close", b"Connection: upgrade\r\nUpgrade: websocket"])
def test_a_request_may_be_the_last(header: bytes) -> None:
    data = b"GET /health HTTP/1.1\r\n" + header + b"\r\n\r\n"
    assert RequestReader().feed(data) == [Request("GET", "/health", b"", keep_alive=False)]


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00", b"GET\r\n\r\n"])
def test_what_is_no_http_is_noticed_once_and_nothing_read_after_it(data: bytes) -> None:
    reader = RequestReader()
    assert reader.feed(GET + data) == [READ_GET, Malformed()]
    assert reader.feed(GET) == []


def test_a_whole_answer_is_framed_by_its_length() -> None:
    ((delay_s, data),) = response(Whole(404, b'{"a":1}', delay_s=2.0))
    head, body = parsed(data)
    assert (delay_s, head.status_code, head.reason, body) == (2.0, 404, b"Not Found", b'{"a":1}')
    assert dict(head.headers) == {b"content-type": b"application/json", b"content-length": b"7"}


def test_a_stream_is_a_head_at_once_and_a_chunk_for_each_piece() -> None:
    pieces = list(response(Streamed(iter([(1.0, b"data: 1\n\n"), (0.5, b"data: 2\n\n")]))))
    assert [delay_s for delay_s, _ in pieces] == [0.0, 1.0, 0.5, 0.0]
    assert pieces[1][1] == b"9\r\ndata: 1\n\n\r\n"
    head, body = parsed(b"".join(data for _, data in pieces))
    assert body == b"data: 1\n\ndata: 2\n\n"
    assert dict(head.headers) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"transfer-encoding": b"chunked",
    }


@pytest.mark.parametrize("said", [Whole(200, b"{}"), Streamed(iter(()))])
def test_the_last_answer_says_that_it_is(said: Whole | Streamed) -> None:
    head, _ = parsed(b"".join(data for _, data in response(said, keep_alive=False)))
    assert (b"connection", b"close") in list(head.headers)


def test_a_request_gets_the_models_answer_and_bytes_that_are_none_a_refusal() -> None:
    stamp = Stamp("0" * 32, 1)
    good, bad = (b"".join(d for _, d in answered(r, DemoSettings(), stamp)) for r in (READ_GET, Malformed()))
    assert parsed(good)[1] == b'{"status":"ok"}'
    head, body = parsed(bad)
    assert (head.status_code, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    assert (b"connection", b"close") in list(head.headers)
