"""A gateway whose file descriptors run short: newcomers are told to come back later, in every dialect, and who is
inside is served. What happens when there is none left at all is `test_house`'s."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.downstream.descriptors import Left, left_of
from tests.support.census import descriptors
from tests.support.crowd import crowd
from tests.support.dialects import DIALECTS, Dialect, Place, ask
from tests.support.gateway import running_file
from tests.support.model_words import CHAT, WELL, well
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import chat, get, post, raw_client
from tests.support.raw_socket import UPGRADE
from tests.support.served import PATIENCE_S
from tests.support.upstream import scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.crowd import Crowd

MOST = 96
FEW = next(number for number in range(MOST) if left_of(MOST, number) is Left.FEW)
RESERVED = next(number for number in range(MOST) if left_of(MOST, number) is Left.RESERVED)
CODED = {"/v1/chat/completions", "/v1/responses", "/v1/ws"}
"""The paths whose errors have codes."""
WHOLE = post("/v1/chat/completions", chat(stream=False))


class Full:
    """A gateway in which `idle` clients sit. The lowest free descriptor is always the next, so that the number of those
    in use says which one a newcomer gets."""

    def __init__(self, url: str, process: int, idle: Crowd) -> None:
        self.place = Place(url)
        self.fresh = descriptors(process)
        self.idle = idle
        self._process = process

    async def fill(self, in_use: int) -> None:
        """Let so many clients in that so many descriptors are in use."""
        start, have = descriptors(self._process), len(self.idle.sockets)
        await self.idle.grow(in_use - start, lambda came: descriptors(self._process) == start + came - have)

    async def in_use(self, many: int) -> None:
        """Wait until just so many are."""
        async with asyncio.timeout(PATIENCE_S):
            while descriptors(self._process) != many:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def full(tmp_path: Path) -> AsyncIterator[Full]:
    async with scripted_upstream(well(CHAT)) as model:
        file = tmp_path / "routes.yaml"
        file.write_text(f"discover: false\nroutes: {{m: {{replicas: ['{model.url}'], health: none}}}}\n")
        few = running_file(file, tmp_path, module="tests.support.few_files", MOST_FILES=str(MOST))
        async with few as gateway:
            async with crowd(Place(gateway.url).port) as idle:
                yield Full(gateway.url, gateway.process.pid, idle)
            assert "Traceback" not in gateway.log()


def request_of(dialect: Dialect) -> tuple[bytes, str]:
    """What a newcomer sends first, and with which method."""
    if not dialect.is_socket:
        return dialect.request(), "POST"
    offer = [f"Sec-WebSocket-Protocol: {dialect.subprotocol}"] if dialect.subprotocol else []
    return get(dialect.path, *UPGRADE, *offer), "GET"


async def test_newcomers_are_told_to_come_back_and_are_served_when_others_have_left(tmp_path: Path) -> None:
    async with full(tmp_path) as gateway:
        await gateway.fill(FEW)
        for dialect in DIALECTS:
            told = await ask_raw(gateway.place.port, *request_of(dialect))
            assert (dialect.name, told.status, told.whole) == (dialect.name, 503, True)
            assert (told.headers["retry-after"], told.headers["connection"]) == ("1", "close")
            assert told.headers["x-penstock-source"] == "gateway"
            assert b"come back later" in told.body
            assert (b'"code":"overloaded"' in told.body) == (dialect.path in CODED)
            await gateway.in_use(FEW)
        gateway.idle.leave()
        await gateway.in_use(gateway.fresh)
        for dialect in DIALECTS:
            if dialect.words is CHAT:
                assert "".join((await ask(gateway.place, dialect)).said) == "well"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_whether_the_gateway_is_well_may_always_be_asked(path: str, tmp_path: Path) -> None:
    async with full(tmp_path) as gateway:
        await gateway.fill(FEW)
        assert (await ask_raw(gateway.place.port, get(path), "GET")).status == 200


async def test_who_is_inside_finds_a_descriptor_for_a_model_server_however_many_come(tmp_path: Path) -> None:
    async with full(tmp_path) as gateway, raw_client(gateway.place.port) as inside, crowd(gateway.place.port) as more:
        await gateway.in_use(gateway.fresh + 1)
        await gateway.fill(RESERVED)
        for _ in range(2 * MOST):
            await more.grow(1, lambda came: True)
        async with raw_client(gateway.place.port) as last:
            assert await last.rest() == b""  # there is none to tell it with
        await inside.send(WHOLE)
        answer = await inside.answer()
        assert (answer.status, answer.body) == (200, WELL)
