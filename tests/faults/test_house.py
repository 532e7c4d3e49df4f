"""Faults of the gateway's own house: told to stop under load, out of file descriptors.

A killed worker is `test_workers`'; a second signal, `test_serving`'s.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from tests.support.dialects import SSE, STREAMING, Dialect, Place, ask
from tests.support.gateway import running_file, running_gateway
from tests.support.leaving import Asked, asked
from tests.support.model_words import CHAT, MESSAGES, RESPONSES, Words, well
from tests.support.raw_client import RawAnswer, RawClient, chat, get, post, raw_client
from tests.support.raw_client import ask as ask_raw
from tests.support.served import PATIENCE_S
from tests.support.steps import pieces
from tests.support.upstream import LAST_CHUNK, Peer, chunk, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.clients import Seen


class Held:
    """A model server of all protocols that says one thing, and the end when it may; a request for `stuck` never."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun = 0

    async def script(self, peer: Peer) -> None:
        request = await peer.request()
        words = _words(request.target)
        await peer.send(*pieces(words, ("head", "one")))
        self.begun += 1
        if b"stuck" in request.body:
            await peer.closed()
        await self.go_on.wait()
        await peer.send(chunk(words.end), LAST_CHUNK)


def _words(target: str) -> Words:
    return {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}.get(target, CHAT)


async def refused(port: int) -> bool:
    """Whether nobody listens there any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return True
    writer.close()
    return False


async def test_sigterm_under_load_lets_streams_end_and_ends_the_others_with_one_error(tmp_path: Path) -> None:
    held = Held()
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted_upstream(held.script))
        routes = f"server: {{drain: 1s}}\nroutes: {{m: '{upstream.url}', stuck: '{upstream.url}'}}\n"
        gateway = await stack.enter_async_context(running_gateway(routes, tmp_path))
        place = Place(gateway.url)
        ends = [await _begun(stack, place, dialect, "m") for dialect in STREAMING]
        stuck = [await _begun(stack, place, dialect, "stuck") for dialect in STREAMING]
        while held.begun < len(ends) + len(stuck):
            await asyncio.sleep(0.001)
        gateway.process.terminate()
        while not await refused(place.port):
            await asyncio.sleep(0.005)
        held.go_on.set()
        for dialect, seen in zip(STREAMING, await _ends(ends), strict=True):
            assert (dialect.name, seen.said, seen.done, seen.errors) == (dialect.name, ["one"], True, [])
        for dialect, seen in zip(STREAMING, await _ends(stuck), strict=True):
            assert (dialect.name, seen.said, seen.done, seen.whole) == (dialect.name, ["one"], False, True)
            assert seen.cancelled or len(seen.errors) == 1
            assert "code" not in dialect.tells or seen.code == "draining"
        assert await gateway.process.wait() == 0
        assert "Traceback" not in gateway.log()


async def _begun(stack: AsyncExitStack, place: Place, dialect: Dialect, model: str) -> Asked:
    return await stack.enter_async_context(asked(place, dialect, model))


async def _ends(requests: list[Asked]) -> list[Seen]:
    return await asyncio.gather(*(request.read_on() for request in requests))


MOST_FILES = 64
CLIENTS = 90


async def test_out_of_file_descriptors_the_gateway_sheds_and_recovers(tmp_path: Path) -> None:
    """Who was let in is told 503; who could not be is closed. No replica is blamed for it."""
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(well(CHAT)) as upstream,
        AsyncExitStack() as stack,
    ):
        configuration = tmp_path / "routes.yaml"
        configuration.write_text(
            f"routes: {{m: {{replicas: ['{upstream.url}'], health: {{every: 50ms, fall: 1}}, "
            "breaker: {failures: 1, open_for: 60s}}}\n"
        )
        gateway = await stack.enter_async_context(
            running_file(configuration, tmp_path, module="tests.support.few_files", MOST_FILES=str(MOST_FILES))
        )
        place = Place(gateway.url)
        async with AsyncExitStack() as crowd:
            clients = [await crowd.enter_async_context(raw_client(place.port)) for _ in range(CLIENTS)]
            answers = await asyncio.gather(*map(_asks, clients))
            told = [answer for answer in answers if answer.status]
            assert {answer.status for answer in told} <= {200, 503}
            shed = [answer for answer in told if answer.status == 503]
            assert len(shed) > MOST_FILES // 2
            assert {answer.headers["retry-after"] for answer in shed} == {"1"}
            codes = {json.loads(answer.body)["error"]["code"] for answer in shed}
            assert codes <= {"no_replica_available", "overloaded"}
        while not await _is_well(place):
            await asyncio.sleep(0.01)
        metrics = (await ask_raw(place.port, get("/metrics"), "GET")).body
        assert b'penstock_replica_up{route="m",replica="0"} 1' in metrics
        assert b'penstock_breaker_state{route="m",replica="0"} 0' in metrics
        assert "Traceback" not in gateway.log()


async def _asks(client: RawClient) -> RawAnswer:
    """The answer, whose status is 0 where the connection was closed instead."""
    with suppress(ConnectionError):
        await client.send(post("/v1/chat/completions", chat()))
        return await client.answer()
    return RawAnswer(0, {}, b"", whole=False)


async def _is_well(place: Place) -> bool:
    with suppress(ConnectionError, KeyError):
        return (await ask(place, SSE)).said == ["we", "ll"]
    return False
