"""Asking replicas whether they are there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.config.loader import load
from proxy.routing.table import RoutingTable, build_table
from proxy.upstream import probe as room
from proxy.upstream.probe import ProbeResult, probe
from tests.support.upstream import Peer, answer, answering, answering_once, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

LISTED = b'{"object":"list","data":[{"id":"llama"},{"id":"other"}]}'


def table(tmp_path: Path, *lines: str) -> RoutingTable:
    file = tmp_path / "routes.yaml"
    file.write_text("\n".join(["routes:", *(f"  {line}" for line in lines)]), encoding="utf-8")
    return build_table(load(file, {}))


async def ask(url: str, tmp_path: Path) -> ProbeResult:
    [result] = await probe(table(tmp_path, f'chat: {{model: llama, replicas: ["{url}"]}}').routes)
    assert (result.route, result.replica) == ("chat", 0)
    assert url.removeprefix("http://") not in result.finding
    return result


@pytest.mark.parametrize(
    ("said", "reachable", "finding"),
    [
        (answer(200, LISTED), True, "answers 200"),
        (answer(200, b'{"data":[{"id":"other"}]}'), True, 'answers, but does not list the model "llama"'),
        (answer(200, b'{"data":[]}'), True, "answers 200"),
        (answer(200, b"no JSON"), True, "answers 200"),
        (answer(200, b'[{"id":"llama"}]'), True, "answers 200"),
        (answer(404, b"{}"), True, "answers 404"),
        (answer(401, b"{}"), False, "refuses the credentials (401)"),
        (answer(403, b"{}"), False, "refuses the credentials (403)"),
        (
            answer(307, b"", b"Location: https://elsewhere"),
            False,
            "answers with a redirect, which is never followed (307)",
        ),
        (answer(500, b"{}"), False, "answers 500"),
        (answer(503, LISTED), False, "answers 503"),
        (b"SSH-2.0-OpenSSH\r\n", False, "the answer is not HTTP/1.1"),
        (b"", False, "the connection was closed before an answer came"),
        (answer(200, LISTED)[:-1], False, "the connection was lost before the answer was whole"),
    ],
)
async def test_a_replica_is_judged_by_what_it_says(said: bytes, reachable: bool, finding: str, tmp_path: Path) -> None:
    async with scripted_upstream(answering_once(*([said] if said else []))) as upstream:
        result = await ask(upstream.url, tmp_path)
    assert (result.reachable, result.finding) == (reachable, finding)


async def test_a_replica_is_asked_for_its_models_with_its_own_credentials(tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, LISTED))) as upstream:
        own = "api_key: sk-1, headers: {X-Team: red}"
        routes = table(tmp_path, f'chat: {{model: llama, replicas: [{{url: "{upstream.url}/api/v1", {own}}}]}}')
        await probe(routes.routes)
    [request] = upstream.requests
    assert request.head.startswith(b"GET /api/v1/models HTTP/1.1\r\n")
    assert request.headers("Host") == [upstream.url.removeprefix("http://")]
    assert request.headers("Authorization") == ["Bearer sk-1"]
    assert request.headers("X-Team") == ["red"]


async def test_a_replica_that_is_not_there_is_not_reachable(tmp_path: Path) -> None:
    async with scripted_upstream(answering()) as upstream:
        pass
    result = await ask(upstream.url, tmp_path)
    assert (result.reachable, result.finding) == (False, "the connection was refused; is the model server running?")


async def test_a_replica_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROBE_TIMEOUT_S", 0.05)
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        result = await ask(upstream.url, tmp_path)
        async with asyncio.timeout(5):
            await gone.wait()
    assert (result.reachable, result.finding) == (False, "no answer within 0.05 s")


async def test_an_endless_listing_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_LISTING_BYTES", 1000)
    body = b"[" + b" " * 300_000 + b"]"
    async with scripted_upstream(answering(answer(200, body))) as upstream:
        result = await ask(upstream.url, tmp_path)
    assert (result.reachable, result.finding) == (True, "answers 200")


async def test_every_replica_is_asked_and_told_apart(tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(answer(200, LISTED))) as good,
        scripted_upstream(answering(answer(500, b""))) as bad,
    ):
        routes = table(
            tmp_path,
            f'chat: {{model: llama, replicas: ["{good.url}", "{bad.url}"]}}',
            f"other: {good.url}",
            "tour: demo://",
        )
        results = await probe(routes.routes)
    assert [(result.route, result.replica, result.reachable) for result in results] == [
        ("chat", 0, True),
        ("chat", 1, False),
        ("other", 0, True),
        ("tour", 0, True),
    ]
    assert results[3].finding == "answers 200"


async def test_without_routes_there_is_nothing_to_ask() -> None:
    assert await probe([]) == []
