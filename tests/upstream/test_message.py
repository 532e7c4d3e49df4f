"""What exactly a replica is sent, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route
from proxy.upstream.message import COPIED_BYTES, upstream_message
from tests.support.dispatching import request_of, route_of

if TYPE_CHECKING:
    from pathlib import Path


def message_of(request: ProxyRequest, route: Route, *, asks_for_usage: bool = False) -> bytes:
    message = upstream_message(request, route, route.replicas[0], asks_for_usage=asks_for_usage)
    return message if isinstance(message, bytes) else b"".join(message)


def lines_of(message: bytes) -> list[str]:
    return message.partition(b"\r\n\r\n")[0].decode("utf-8", "surrogateescape").split("\r\n")


def test_the_message_byte_for_byte(tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://gpu-1:8000/api/v1", api_key="sk-own", headers="{X-Team: red}")
    raw = b'{ "messages":[{"content":"gr\xc3\xbc\xc3\x9fe, chat"}],\n  "model" : "chat", "seed":1e400 ,"x":[ ] }'
    request = request_of(
        raw,
        ("Host", "gw.test"),
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer sk-client"),
        ("Cookie", "a=b"),
        ("anthropic-beta", "x"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Content-Length", "999"),
        query="beta=true&x=%20",
    )
    body = raw.replace(b'"model" : "chat"', b'"model" : "llama"')
    assert message_of(request, route) == (
        b"POST /api/v1/chat/completions?beta=true&x=%%20 HTTP/1.1\r\n"
        b"Host: gpu-1:8000\r\n"
        b"Content-Type: application/json\r\n"
        b"anthropic-beta: x\r\n"
        b"X-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: gw.test\r\n"
        b"X-Team: red\r\n"
        b"Authorization: Bearer sk-own\r\n"
        b"Accept-Encoding: identity\r\n"
        b"x-request-id: req_1\r\n"
        b"Content-Length: %d\r\n"
        b"\r\n%b" % (len(body), body)
    )


def test_a_body_that_needs_no_change_is_the_clients_own(tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://gpu-1")
    raw = b'{"model" :  "llama", "stream":true,"n":1.50}'
    assert message_of(request_of(raw), route).endswith(b"\r\n\r\n" + raw)


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        (
            b'{ "model":"chat", "stream":true}',
            b'{"stream_options":{"include_usage":true}, "model":"llama", "stream":true}',
        ),
        (
            b'{"stream_options": null,"model":"llama","stream":true}',
            b'{"stream_options": {"include_usage":true},"model":"llama","stream":true}',
        ),
        (
            b'{"model":"llama","stream":true,"stream_options":{ "include_obfuscation":false, "x":1e400 }}',
            b'{"model":"llama","stream":true,'
            b'"stream_options":{"include_usage":true, "include_obfuscation":false, "x":1e400 }}',
        ),
        (
            b'{"model":"chat","stream_options":{"include_usage" : false},"stream":true}',
            b'{"model":"llama","stream_options":{"include_usage" : true},"stream":true}',
        ),
    ],
)
def test_asking_for_usage_moves_no_other_byte(raw: bytes, sent: bytes, tmp_path: Path) -> None:
    message = message_of(request_of(raw), route_of(tmp_path, "http://gpu-1"), asks_for_usage=True)
    assert message.endswith(b"\r\nContent-Length: %d\r\n\r\n%b" % (len(sent), sent))


@pytest.mark.parametrize("model", ["chat", "llama"])
def test_a_long_body_is_sent_as_it_lies_there_with_the_same_bytes_around_it(model: str, tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://gpu-1")
    short = b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"word"}]}' % model.encode()
    long = short.replace(b"word", b"word " * COPIED_BYTES)
    request, asked_long = request_of(short), request_of(long)
    pieces = upstream_message(asked_long, route, route.replicas[0], asks_for_usage=True)
    assert not isinstance(pieces, bytes)
    longest = max(pieces, key=len)
    assert isinstance(longest, memoryview)
    assert longest.obj is asked_long.body.raw
    expected = message_of(request, route, asks_for_usage=True).replace(b"word", b"word " * COPIED_BYTES)
    _, _, body = expected.partition(b"\r\n\r\n")
    assert lines_of(b"".join(pieces)) == [*lines_of(expected)[:-1], f"Content-Length: {len(body)}"]
    assert b"".join(pieces).endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key", "X-API-KEY"])
def test_the_clients_credentials_reach_a_replica_only_by_passthrough(name: str, tmp_path: Path) -> None:
    request = request_of(b'{"model":"chat"}', (name, "client-canary"))
    assert b"client-canary" not in message_of(request, route_of(tmp_path, "http://gpu-1"))
    passing = message_of(request, route_of(tmp_path, "http://gpu-1", ", auth: passthrough"))
    assert f"{name}: client-canary" in lines_of(passing)


def test_a_replicas_own_headers_replace_the_clients_and_the_gateways(tmp_path: Path) -> None:
    own = "{X-Team: red, X-Request-Id: fixed, X-Forwarded-For: none, Accept-Encoding: gzip}"
    route = route_of(tmp_path, "http://gpu-1", headers=own)
    lines = lines_of(message_of(request_of(b'{"model":"chat"}', ("x-team", "blue"), ("X-TEAM", "green")), route))
    found = {line.partition(":")[0].lower(): line for line in lines[1:]}
    assert len(found) == len(lines) - 1, "no header stands there twice"
    assert found["x-team"] == "X-Team: red"
    assert found["x-request-id"] == "X-Request-Id: fixed"
    assert found["x-forwarded-for"] == "X-Forwarded-For: none"
    assert found["accept-encoding"] == "Accept-Encoding: identity"


def test_what_crosses_may_be_kept_for_the_next_request_but_for_its_id_and_its_length(tmp_path: Path) -> None:
    first, second = (route_of(tmp_path, url, api_key=key) for url, key in (("http://a", "sk-a"), ("http://b", "sk-b")))
    request = request_of(b'{"model":"chat"}', ("X-A", "1"))
    again = replace(request, request_id="req_2", body=RequestBody.parse(b'{"model":"chat","n":1}'))
    assert again.crossing is request.crossing
    for route in (first, second):
        before, after = lines_of(message_of(request, route)), lines_of(message_of(again, route))
        assert [line.replace("req_1", "req_2") for line in before[:-1]] == after[:-1]
        assert (before[-1], after[-1]) == ("Content-Length: 17", "Content-Length: 23")
    assert "Authorization: Bearer sk-b" in lines_of(message_of(again, second))
    assert "sk-b" not in repr(again)


def test_a_replica_learns_nothing_it_need_not_know(tmp_path: Path) -> None:
    hidden = ["Cookie", "Origin", "Referer", "Proxy-Authorization", "X-Forwarded-For", "X-Real-IP", "TE", "X_Under"]
    request = request_of(b'{"model":"chat"}', *((name, "canary") for name in hidden))
    assert b"canary" not in message_of(request, route_of(tmp_path, "http://gpu-1"))


def test_a_message_cannot_be_split_by_a_header(tmp_path: Path) -> None:
    request = request_of(b'{"model":"chat"}', ("X-A", "b\r\nX-Evil: 1"))
    with pytest.raises(ValueError, match="control character"):
        message_of(request, route_of(tmp_path, "http://gpu-1"))


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([], ["application/json"]),
        ([("content-type", "application/x-www-form-urlencoded")], ["application/json"]),
        ([("Content-Type", "application/json; charset=utf-8")], ["application/json; charset=utf-8"]),
    ],
)
def test_the_body_is_always_said_to_be_json(sent: list[tuple[str, str]], received: list[str], tmp_path: Path) -> None:
    message = message_of(request_of(b'{"model":"chat"}', *sent), route_of(tmp_path, "http://gpu-1:8000"))
    said = [line.partition(": ")[::2] for line in lines_of(message)]
    assert [value for name, value in said if name.lower() == "content-type"] == received
