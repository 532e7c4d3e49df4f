"""Stages as tests ask for them and read them: an `LLMRequest`, and an event stream as `event data` lines."""

from __future__ import annotations

import json
from typing import Any

from proxy.wire.sse import Parser


def stage(**members: object) -> dict[str, Any]:
    """A request for the stage `s` of the route `m`."""
    return {"stage_id": "s", "model_container": "m", "user_prompt": "hi", **members}


def lines(body: bytes, stage_id: str = "s", *, first: int = 0) -> list[str]:
    """The events of a stage, a line each; their ids must count from `first`, and each has the stage's id in it."""
    parsed = Parser(1 << 24).feed(body)
    said = []
    for number, event in enumerate(parsed, first):
        assert event.id == f"{stage_id}-chunk-{number}".encode()
        said.append(_line(event.type.decode(), json.loads(event.data), stage_id))
    return said


def framed(frames: list[str], stage_id: str = "s") -> list[str]:
    """The same of a WebSocket's frames."""
    said = []
    for number, frame in enumerate(frames):
        message = json.loads(frame)
        assert list(message) == ["event", "id", "data"]
        assert message["id"] == f"{stage_id}-chunk-{number}"
        said.append(_line(message["event"], message["data"], stage_id))
    return said


def _line(event: str, data: dict[str, Any], stage_id: str) -> str:
    assert data.pop("stage_id") == stage_id
    return f"{event} {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}"
