"""The heads of answers: exact names and values, for streams and for what came in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.downstream.answering import CLOSING_CODES, error_response, stream_headers
from proxy.errors import BodyTooLarge, Forbidden, ModelNotFound, Unauthorized, Unavailable
from proxy.telemetry.record import RequestRecord
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import DONE, LAST_CHUNK, STOP, answering, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path


def record() -> RequestRecord:
    return RequestRecord("req_1", "POST", "/v1/chat/completions", 0.0)


async def test_a_streams_head_is_exactly_what_crosses_and_ours(tmp_path: Path) -> None:
    head = (
        b"HTTP/1.1 200 Sure\r\nContent-Type: text/event-stream\r\nCache-Control: private\r\nX-Vendor: 1\r\n"
        b"X-Accel-Buffering: yes\r\nServer: v\r\nDate: then\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with (
        scripted_upstream(answering(head, chunk(content("x") + STOP + DONE), LAST_CHUNK)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat(), "x-request-id: mine"))
        raw = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = raw.rstrip().split("\r\n")
    headers = sorted(line for line in lines if not line.startswith("Date: "))
    assert status == "HTTP/1.1 200 OK"
    assert len(lines) == len(headers) + 1
    assert "then" not in raw
    assert headers == [
        "Cache-Control: no-cache, no-transform",
        "Content-Type: text/event-stream; charset=utf-8",
        "Server: penstock",
        "Transfer-Encoding: chunked",
        "Vary: Origin",
        "X-Accel-Buffering: no",
        "X-Vendor: 1",
        "x-penstock-attempts: 1",
        "x-penstock-replica: 0",
        "x-penstock-route: m",
        "x-penstock-source: upstream",
        "x-request-id: mine",
    ]


def test_a_stream_begun_before_anything_is_known_names_no_replica() -> None:
    known = record()
    known.route = "m"
    assert dict(stream_headers(None, known)) == {
        "x-request-id": "req_1",
        "x-penstock-source": "upstream",
        "x-penstock-route": "m",
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }


def test_a_wrong_key_is_not_to_be_tried_again() -> None:
    assert error_response(Unauthorized("no"), "/v1/messages", record()).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_response(Forbidden("no"), "/v1/messages", record()).headers


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1"), (1, "1"), (2.4, "3"), (None, None)])
def test_retry_after_is_whole_seconds_and_never_too_few(seconds: float | None, said: str | None) -> None:
    response = error_response(Unavailable("busy", retry_after_s=seconds), "/v1/messages", record())
    assert response.headers.get("Retry-After") == said


def test_what_ends_a_connection_is_what_may_have_more_to_say() -> None:
    assert error_response(BodyTooLarge("large"), "/", record()).keep_alive is False
    assert error_response(ModelNotFound("none"), "/", record()).keep_alive is None
    assert not CLOSING_CODES & {"invalid_json", "missing_model", "invalid_api_key", "model_not_found"}
