"""Asking the built-in model in tests: one request in, its JSON or events out; a way in for official clients."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from proxy.upstream.demo.answer import Answer, Stamp, Streamed, Whole
from proxy.upstream.demo.model import answer
from proxy.upstream.demo.settings import DemoSettings

M = TypeVar("M", bound=BaseModel)

STAMP = Stamp("0123456789abcdef" * 2, 1_700_000_000)
SETTINGS = DemoSettings()


def ask(path: str, body: dict[str, Any], settings: DemoSettings = SETTINGS) -> Answer:
    return answer("POST", path, json.dumps(body).encode(), settings, STAMP)


def whole(path: str, body: dict[str, Any], settings: DemoSettings = SETTINGS) -> dict[str, Any]:
    """The JSON of an answer in one piece, which has to be a good one."""
    said = ask(path, body, settings)
    assert isinstance(said, Whole)
    assert said.status == 200, said.body
    found: dict[str, Any] = json.loads(said.body)
    return found


def refused(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    said = ask(path, body)
    assert isinstance(said, Whole)
    return said.status, json.loads(said.body)["error"]


def timed(path: str, body: dict[str, Any], settings: DemoSettings = SETTINGS) -> list[tuple[float, str]]:
    """A streamed answer: for each event the seconds since the one before, and its data."""
    said = ask(path, {**body, "stream": True}, settings)
    assert isinstance(said, Streamed), said
    return [(delay_s, _data(piece.decode())) for delay_s, piece in said.pieces]


def streamed(path: str, body: dict[str, Any], settings: DemoSettings = SETTINGS) -> list[str]:
    return [data for _, data in timed(path, body, settings)]


def _data(piece: str) -> str:
    """The data of exactly one event, whose `event:` line, if it has one, agrees with its type."""
    assert piece.endswith("\n\n")
    *named, line = piece[:-2].split("\n")
    data = line.removeprefix("data: ")
    assert named in ([], [f"event: {json.loads(data).get('type')}"] if data != "[DONE]" else [])
    return data


def checked(kind: type[M], data: str) -> M:
    """Parse with an official type, strictly, and let no member pass that the type does not know."""
    found = kind.model_validate_json(data, strict=True)
    assert not strangers(found)
    return found


def strangers(value: object) -> list[str]:
    """The members anywhere inside that no type knows."""
    if isinstance(value, BaseModel):
        inside = [name for member in dict(value).values() for name in strangers(member)]
        return [*(value.model_extra or {}), *inside]
    if isinstance(value, list):
        return [name for member in value for name in strangers(member)]
    return []


class ModelTransport(httpx2.BaseTransport):
    """Lets an official client speak to the model with no network between."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        said = answer(request.method, request.url.path, request.read(), SETTINGS, STAMP)
        content_type = {"content-type": said.content_type}
        if isinstance(said, Whole):
            return httpx2.Response(said.status, headers=content_type, content=said.body)
        return httpx2.Response(200, headers=content_type, content=b"".join(piece for _, piece in said.pieces))
