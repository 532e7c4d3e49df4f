"""A real page whose streams are cut at fifty random moments, by the gateway, between both, and by the browser: each of
them ends whole, with no token lost and none doubled."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import pytest_asyncio

from proxy.downstream.mux import MuxSession
from tests.support.browser import running_browser
from tests.support.cable import laid_cable
from tests.support.mux_page import mux_page
from tests.support.served import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.cable import Cable
    from tests.support.mux_page import MuxPage
    from tests.support.served import Served

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]

TOKENS: Final = 200
ROUTES: Final = f"""
discover: false
server: {{port: 0, websocket: {{streams: 8}}}}
routes:
  paced: demo://?tokens={TOKENS}&interval=10ms&first=10ms
  whole: demo://?tokens={TOKENS}&interval=0ms&first=0ms
"""
PROMPTS: Final = tuple(f"Tell me about river {at}." for at in range(8))
MOST_ITEMS: Final = 100
"""So many may come between two cuts."""
CODES: Final = (1001, 1011, 1012, 1013, 4429)
"""With which a socket may be closed whose client is meant to come back."""
STILL_S: Final = 0.05
PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Scene:
    gateway: Served
    cable: Cable
    page: MuxPage
    chance: random.Random


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


# ---- three ways to cut ----


async def close_at_the_gateway(scene: Scene) -> None:
    """With a Close frame, or without a word."""
    lost = await scene.page.number("here.lost")
    await leave_the_page(scene)
    await scene.page.open_again(lost)


async def cut_between(scene: Scene) -> None:
    """What is between them dies, and is started again when the page has noticed."""
    lost = await scene.page.number("here.lost")
    await scene.cable.cut()
    await scene.page.page.wait_for_function(f"here.lost > {lost}")
    await scene.cable.lay()
    await scene.page.open_again(lost)


async def go_offline(scene: Scene) -> None:
    """The browser has no network for a moment. That stalls what is open and closes nothing; so in two of three cases
    the socket is lost meanwhile, which the page can see only when it is back."""
    context = scene.page.page.context
    hit = await scene.page.number("here.hit")
    await context.set_offline(True)
    came = await standstill(scene.page)
    meanwhile = scene.chance.randrange(3)
    if meanwhile == 1:
        await leave_the_page(scene)
    elif meanwhile == 2:
        await scene.cable.cut()
        await scene.cable.lay()
    await context.set_offline(False)
    goes_on = f"here.came > {came} && here.gateway.state === 'open'"
    await scene.page.page.wait_for_function(f"({goes_on}) || !here.running()")
    await scene.page.page.evaluate(f"here.hit = {hit} + (here.running() > 0)")  # one cut, however often it was lost


async def leave_the_page(scene: Scene) -> None:
    """The session goes; and one before it, where that is still about to."""
    code = scene.chance.choice([None, None, *CODES])
    for session in list(scene.gateway.gateway._websockets._sessions):
        assert isinstance(session, MuxSession)
        transport = session._outlet._transport
        if code is not None:
            session._close(code, "test")
        elif transport is not None:
            transport.abort()


async def standstill(page: MuxPage) -> int:
    """Waits until nothing more comes; how much there was until then."""
    async with asyncio.timeout(PATIENCE_S):
        came, now = -1, await page.number("here.came")
        while now != came:
            await asyncio.sleep(STILL_S)
            came, now = now, await page.number("here.came")
    return came


# ---- the test ----


@pytest.mark.parametrize(
    ("way", "cuts"),
    [
        pytest.param(close_at_the_gateway, 17, id="closed by the gateway"),
        pytest.param(cut_between, 17, id="cut between both"),
        pytest.param(go_offline, 16, id="the browser is offline"),
    ],
)
async def test_streams_that_are_cut_end_whole(
    browser: Browser, tmp_path: Path, way: Callable[[Scene], Awaitable[None]], cuts: int
) -> None:
    async with (
        served(ROUTES, tmp_path) as gateway,
        laid_cable(gateway.url) as cable,
        mux_page(browser, cable.url) as page,
    ):
        texts = await asyncio.gather(*(whole(gateway, prompt) for prompt in PROMPTS))
        scene = Scene(gateway, cable, page, random.Random(cuts))
        for asked in range(1, 4 * cuts + 1):  # the first time is nearly enough, where the machine keeps up
            await page.ask("paced", PROMPTS)
            await page.page.wait_for_function("here.streams.every(({ streamId }) => streamId)")
            hit = await cut_while_they_run(scene, way, cuts)
            assert await page.texts() == texts
            assert started(page) == asked * len(PROMPTS)  # what was lost was resumed, not asked for again
            if hit >= cuts:
                break
        assert hit >= cuts


async def cut_while_they_run(scene: Scene, way: Callable[[Scene], Awaitable[None]], cuts: int) -> int:
    """How many cuts have hit running streams so far."""
    page = scene.page
    while (hit := await page.number("here.hit")) < cuts:
        await page.more(scene.chance.randint(1, MOST_ITEMS))
        if not await page.number("here.running()"):
            break
        await way(scene)
    return hit


def started(page: MuxPage) -> int:
    return len([frame for frame in page.watched.sent if frame.startswith('{"type":"start"')])


async def whole(gateway: Served, prompt: str) -> str:
    request: dict[str, Any] = {"model": "whole", "messages": [{"role": "user", "content": prompt}]}
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        answer = (await http.post("/v1/chat/completions", json=request)).raise_for_status().json()
    text: str = answer["choices"][0]["message"]["content"]
    return text
