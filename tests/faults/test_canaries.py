"""Secrets, each of them a canary: in every key, header, prompt and environment variable. None of them is ever seen in a
log, an error, a metric, a page, or another replica's traffic, whatever goes wrong, in every dialect."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.dialects import DIALECTS, Dialect, Place, ask
from tests.support.gateway import running_file
from tests.support.model_words import CHAT, MESSAGES, RESPONSES, WELL, Words
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import get, post
from tests.support.served import PATIENCE_S
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, Received, answer, chunk, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {
    "CLIENT_KEY": "canary-client-key",
    "ONE_KEY": "canary-key-of-one",
    "ONE_TEAM": "canary-team-of-one",
    "TWO_KEY": "canary-key-of-two",
    "ADMIN_KEY": "canary-admin-key",
    "UNUSED": "canary-unused",
}
PROMPT = "canary-prompt"
ONLY_ONE = (ENVIRONMENT["ONE_KEY"], ENVIRONMENT["ONE_TEAM"], PROMPT)
"""What the first replica may see."""
ONLY_TWO = (ENVIRONMENT["TWO_KEY"], PROMPT)

CROSSING = {
    "Authorization": f"Bearer {ENVIRONMENT['CLIENT_KEY']}",
    "Cookie": "session=canary-cookie",
    "Referer": "http://127.0.0.1/canary-referer",
    "x_secret": "canary-underscore",
    "api-key": ENVIRONMENT["CLIENT_KEY"],
}
WRONG = {"Authorization": "Bearer canary-wrong-key"}


class Gossip:
    """A model server that tells what it was sent in many ways, in turn, and answers well in between."""

    def __init__(self, *secrets: str) -> None:
        self._said = f"your {' of your '.join(secrets)} is known"
        self.answers = 0

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            self.answers += 1
            await peer.send(*_tales(request, self._said)[self.answers % 6])
            if self.answers % 6 == 5:
                peer.reset()


def _tales(request: Received, said: str) -> list[list[bytes]]:
    words = _words(request.target)
    error: dict[str, Any] = {"message": said, "type": said, "param": None, "code": "gossip", said: said}
    told = json.dumps({"error": error}).encode()
    streams = json.loads(request.body).get("stream")
    good = [OK_EVENTS, chunk(words.content("well") + words.end), LAST_CHUNK]
    return [
        good if streams else [answer(200, WELL)],
        [answer(401, told, b"X-Told: " + said.encode())],
        [OK_EVENTS, chunk(words.error(error)), LAST_CHUNK] if streams else [answer(200, told)],
        [OK_EVENTS, chunk(words.content("well") + words.error(error)), LAST_CHUNK] if streams else [answer(500, told)],
        [f"HTTP/9 {said}\r\nX-Told: {said}\r\n\r\n".encode()],
        [OK_EVENTS, chunk(words.content("well"))],
    ]


def _words(target: str) -> Words:
    return {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}.get(target, CHAT)


def routes(one: str, two: str) -> str:
    settings = "health: none, retry: {attempts: 1}, breaker: {failures: 1000}"
    return (
        "admin: {key: '${ADMIN_KEY}'}\n"
        "auth: {keys: [{name: web, key: '${CLIENT_KEY}'}]}\n"
        "routes:\n"
        f"  m: {{replicas: [{{url: '{one}', api_key: '${{ONE_KEY}}', headers: {{X-Team: '${{ONE_TEAM}}'}}}}], "
        f"{settings}}}\n"
        f"  two: {{replicas: [{{url: '{two}', api_key: '${{TWO_KEY}}'}}], {settings}}}\n"
    )


def prompting(dialect: Dialect) -> Dialect:
    """The same, with a prompt that nobody else should see."""
    asks = json.loads(json.dumps(dialect.asks).replace('"hi"', f'"{PROMPT}"').replace("Say something.", PROMPT))
    assert PROMPT in str(asks)
    return replace(dialect, asks=asks)


async def everything_told(place: Place) -> list[str]:
    """All that clients are told, in every dialect: well, badly, by both replicas, and with a wrong key."""
    told: list[str] = []
    for dialect in map(prompting, DIALECTS):
        told += [repr(await ask(place, dialect, "m", CROSSING)) for _ in range(6)]
        told.append(repr(await ask(place, dialect, "two", CROSSING)))
        told.append(repr(await ask(place, dialect, "no-such-model", CROSSING)))
        if dialect.is_socket:
            with pytest.raises(InvalidStatus) as refused:
                await ask(place, dialect, "m", {**CROSSING, **WRONG, "api-key": "canary-wrong-key"})
            told.append(f"{refused.value.response.headers} {refused.value.response.body!r}")
        else:
            told.append(repr(await ask(place, dialect, "m", WRONG)))
    return told


PAGES = ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/client.js", "/admin/config", "/nothing"]


async def everything_shown(place: Place) -> list[str]:
    """All pages, to those who have a key and those who have none, and what malformed requests are answered."""
    visitors = ("Accept: */*", f"Authorization: {CROSSING['Authorization']}", "x-api-key: canary-wrong-key")
    asked = [get(f"{page}?q=canary-query", visitor) for page in PAGES for visitor in visitors]
    told = [repr(await ask_raw(place.port, request, "GET")) for request in asked]
    malformed = (
        get("/v1/models", "Authorization: Bearer canary-\x01"),
        get("/v1/models", "X-canary no colon"),
        post("/v1/chat/completions", b'{"model": "canary-model', f"Authorization: {CROSSING['Authorization']}"),
        post("/v1/other", {"canary-member": 1}, f"Authorization: {CROSSING['Authorization']}"),
    )
    return told + [repr(await ask_raw(place.port, request)) for request in malformed]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_is_seen_where_it_does_not_belong(log_format: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(2 * PATIENCE_S),
        scripted_upstream(Gossip(*ONLY_ONE[:2]).script) as one,
        scripted_upstream(Gossip(*ONLY_TWO[:1]).script) as two,
    ):
        configuration = tmp_path / "routes.yaml"
        configuration.write_text(routes(one.url, two.url))
        options = ("--log-format", log_format, "--log-level", "debug")
        async with running_file(configuration, tmp_path, *options, **ENVIRONMENT) as gateway:
            place = Place(gateway.url)
            told = await everything_told(place) + await everything_shown(place)
            metrics = get("/metrics", f"Authorization: Bearer {ENVIRONMENT['ADMIN_KEY']}")
            told.append(repr(await ask_raw(place.port, metrics, "GET")))
        log = gateway.log()
    assert len(one.requests) >= 6 * len(DIALECTS)
    assert len(two.requests) == len(DIALECTS)
    assert log.count("\n") > len(told) / 2
    assert [line for line in told if "canary" in line] == []
    assert [line for line in log.splitlines() if "canary" in line] == []
    assert strangers(one.requests, ONLY_ONE) == []
    assert strangers(two.requests, ONLY_TWO) == []


def strangers(requests: list[Received], own: tuple[str, ...]) -> list[str]:
    """Requests in which a canary stands that is not the replica's own."""
    seen = []
    for request in requests:
        text = (request.head + request.body).decode()
        assert all(secret in text for secret in own)
        for secret in own:
            text = text.replace(secret, "")
        if "canary" in text:
            seen.append(text)
    return seen
