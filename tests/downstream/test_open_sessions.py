"""How many sessions may be open, and what one more is told."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.downstream.open_sessions import most_sessions
from proxy.telemetry.record import EndState
from tests.support.raw_client import chat
from tests.support.served import served

if TYPE_CHECKING:
    from pathlib import Path

DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"
DIALECTS = {"bare": ("/v1/ws", None), "mux": ("/v1/ws", "llm-mux.v1"), "responses": ("/v1/responses", None)}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_one_session_more_than_there_may_be_is_closed_with_1013(dialect: str, tmp_path: Path) -> None:
    path, subprotocol = DIALECTS[dialect]
    offered = [websockets.Subprotocol(subprotocol)] if subprotocol else None
    async with served(DEMO, tmp_path) as gateway:
        gateway.gateway._websockets._sessions.most = 1
        async with websockets.connect(f"{gateway.ws_url}/v1/ws") as first:
            async with websockets.connect(f"{gateway.ws_url}{path}", subprotocols=offered) as more:
                with pytest.raises(websockets.ConnectionClosedError):
                    await more.recv()
                assert (more.close_code, more.close_reason) == (1013, "overloaded")
            record = await gateway.record()
            await first.send(json.dumps(chat()))
            assert "delta" in str(await first.recv())
        await gateway.record(2)
        async with websockets.connect(f"{gateway.ws_url}{path}", subprotocols=offered):
            assert gateway.gateway._websockets.sessions() == {dialect: 1}
    assert (record.is_session, record.dialect, record.end_state) == (True, dialect, EndState.SHED)


async def test_a_realtime_session_more_is_refused_before_anybody_is_dialled(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        gateway.gateway._websockets._sessions.most = 0
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{gateway.ws_url}/v1/realtime?model=m")
        record = await gateway.record()
    response = refused.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(response.body or b"")["error"]["code"] == "overloaded"
    assert (record.end_state, record.attempts) == (EndState.SHED, 0)


def test_sessions_leave_descriptors_for_what_they_ask_for() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < most_sessions() < soft


def test_where_descriptors_have_no_limit_sessions_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert most_sessions() > 1_000_000
