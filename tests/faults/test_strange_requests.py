"""Requests that want to be more than they are: models named like URLs, paths and headers; pages of elsewhere; names
that are not ours. They are refused in each dialect's own words, reach no replica, and stand in no log or metric.

Smuggled and malformed requests, heads without an end and slow bodies are `downstream/test_connection`'s and
`downstream/test_body`'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.dialects import DIALECTS, SOCKETS, Dialect, ask
from tests.support.model_words import well
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import get
from tests.support.raw_socket import UPGRADE
from tests.support.records import request_record
from tests.support.served import one_route, served
from tests.support.upstream import scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "a URL": "http://127.0.0.1:9/canary",
    "somebody at a host": "m@canary.test",
    "two lines": "canary\r\nX-Evil: 1",
    "a way up": "../../canary",
    "encoded": "%2e%2e%2fcanary",
    "10 kB": "canary" * 1700,
    "a look-alike": "canary\u043c",
    "NUL": "canary\0",
    "markup": "<script>canary</script>",
    "a label": 'canary",route="m"} 1\n',
    "a wildcard": "*canary",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_strange_model_name_is_an_unknown_model(
    name: str, dialect: Dialect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_upstream(well(dialect.words)) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            seen = await ask(gateway, dialect, NAMES[name])
            record = await request_record(gateway)
            metrics = await ask_raw(gateway.port, get("/metrics"), "GET")
        assert upstream.connections == 0
    if "code" in dialect.tells:
        assert (seen.status, seen.code) == (404, "model_not_found")
        assert "canary" not in str(seen)
    elif "status" in dialect.tells:  # the stream routes' first clients were told 400, and the name, cut
        assert seen.status == (404 if dialect.path == "/v1/messages" else 400)
        assert len(seen.error["message"]) < 400
    assert (record.end_state, record.route, record.model) == ("rejected", "unknown", "unknown")
    assert b"canary" not in metrics.body
    assert "canary" not in repr(record)
    assert "canary" not in "".join(entry.getMessage() for entry in caplog.records if entry.name.startswith("penstock"))


STRANGERS = {
    "a page of elsewhere": (("Origin: https://evil.test",), "origin_not_allowed"),
    "a page of nowhere": (("Origin: null",), "origin_not_allowed"),
    "a page under our name": (("Origin: http://127.0.0.1.evil.test",), "origin_not_allowed"),
    "a rebound name": (("Host: evil.test",), "host_not_allowed"),
    "a rebound page": (("Host: evil.test", "Origin: http://evil.test"), "host_not_allowed"),
}


def from_elsewhere(request: bytes, headers: tuple[str, ...]) -> bytes:
    """The same request with these headers; a `Host` among them instead of ours."""
    if any(header.startswith("Host:") for header in headers):
        request = request.replace(b"Host: 127.0.0.1\r\n", b"", 1)
    line, rest = request.split(b"\r\n", 1)
    return b"\r\n".join([line, *(header.encode() for header in headers), rest])


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize(
    "target",
    [*sorted({dialect.path for dialect in SOCKETS}), "/v1/realtime?model=m", "/v1/ws as mux"],
)
async def test_a_stranger_opens_no_socket(stranger: str, target: str, tmp_path: Path) -> None:
    headers, code = STRANGERS[stranger]
    path, _, mux = target.partition(" ")
    offer = ["Sec-WebSocket-Protocol: llm-mux.v1"] if mux else []
    async with scripted_upstream(well(DIALECTS[0].words)) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            answer = await ask_raw(gateway.port, from_elsewhere(get(path, *UPGRADE, *offer), headers), "GET")
        assert upstream.connections == 0
    assert_refused(answer.status, answer.body, code)
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize(
    "dialect", [dialect for dialect in DIALECTS if not dialect.is_socket], ids=lambda dialect: dialect.name
)
async def test_a_stranger_asks_no_model(stranger: str, dialect: Dialect, tmp_path: Path) -> None:
    headers, code = STRANGERS[stranger]
    async with scripted_upstream(well(dialect.words)) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            answer = await ask_raw(gateway.port, from_elsewhere(dialect.request(), headers))
        assert upstream.connections == 0
    assert_refused(answer.status, answer.body, code if "code" in dialect.tells else None)
    assert not any(name.startswith("access-control") for name in answer.headers)


def assert_refused(status: int, body: bytes, code: str | None) -> None:
    """A 403 in JSON, with this code where the endpoint tells codes; it repeats nothing."""
    said = json.loads(body)
    detail = said.get("error", said.get("detail"))
    assert status == 403
    assert code is None or not isinstance(detail, dict) or detail.get("code") == code
    assert b"evil" not in body
