"""A real page that was away: its machine slept, it stood in the background, it hung. It finds out that its socket is
dead, however open that looks, and goes on with its streams on another."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from tests.support.browser import running_browser
from tests.support.cable import laid_cable
from tests.support.gateway import running_gateway
from tests.support.mux_page import mux_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.cable import Cable
    from tests.support.mux_page import MuxPage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]

ROUTES: Final = """
discover: false
routes:
  paced: demo://?tokens=100&interval=10ms&first=10ms
"""
PROMPTS: Final = tuple(f"Tell me about sea {at}." for at in range(4))
NEWS: Final = {
    "visibilitychange": "document",
    "resume": "document",
    "pageshow": "window",
    "online": "window",
}
"""What a browser tells a page that is back, and where."""
ANSWER_WITHIN: Final = "00:05"
"""The client's patience with a socket that it doubts is four seconds."""


@dataclass(frozen=True, slots=True)
class Journey:
    """A page in the middle of its streams, and what these are to say."""

    cable: Cable
    page: MuxPage
    texts: list[str]

    async def leaves(self) -> None:
        """Asks, and is in the middle of its streams."""
        await self.page.page.evaluate("here.lost = 0")
        await self.page.ask("paced", PROMPTS)
        await self.page.more(10)

    async def arrives(self) -> None:
        """Everything came, after one loss."""
        assert await self.page.texts() == self.texts
        assert await self.page.number("here.lost") == 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@asynccontextmanager
async def under_way(browser: Browser, tmp_path: Path, *, clock: bool = True) -> AsyncIterator[Journey]:
    async with (
        running_gateway(ROUTES, tmp_path) as gateway,
        laid_cable(gateway.url) as cable,
        mux_page(browser, cable.url, clock=clock) as page,
    ):
        texts = await page.ask_beside("paced", PROMPTS)
        journey = Journey(cable, page, texts)
        await journey.leaves()
        yield journey


async def test_a_page_whose_machine_slept_goes_on_with_its_streams(browser: Browser, tmp_path: Path) -> None:
    async with under_way(browser, tmp_path) as journey:
        journey.cable.swallow()
        clock = journey.page.page.clock
        await clock.fast_forward("01:00:00")  # its timers are late by an hour, as after a night
        assert await journey.page.page.evaluate("here.gateway.state") == "open"  # it asks first
        await clock.fast_forward(ANSWER_WITHIN)
        await journey.arrives()


async def test_a_page_that_comes_back_asks_whether_its_socket_lives(browser: Browser, tmp_path: Path) -> None:
    async with under_way(browser, tmp_path) as journey:
        for news, where in NEWS.items():
            journey.cable.swallow()
            await journey.page.page.evaluate(f"{where}.dispatchEvent(new Event('{news}'))")
            assert journey.page.watched.sent[-1].startswith('{"type":"ping"')
            await journey.page.page.clock.fast_forward(ANSWER_WITHIN)
            await journey.arrives()
            await journey.leaves()


async def test_a_page_that_comes_back_to_a_socket_that_lives_keeps_it(browser: Browser, tmp_path: Path) -> None:
    async with under_way(browser, tmp_path) as journey:
        for news, where in NEWS.items():
            await journey.page.page.evaluate(f"{where}.dispatchEvent(new Event('{news}'))")
        assert await journey.page.texts() == journey.texts
        await journey.page.page.clock.fast_forward(ANSWER_WITHIN)
        assert await journey.page.ask_beside("paced", PROMPTS[:1]) == journey.texts[:1]
        assert await journey.page.number("here.lost") == 0


async def test_a_page_that_hung_while_its_socket_was_lost_goes_on(browser: Browser, tmp_path: Path) -> None:
    async with under_way(browser, tmp_path, clock=False) as journey:
        async with journey.page.watched.hung():
            await journey.cable.cut()
            await journey.cable.lay()
        await journey.arrives()
