"""A real page that takes nothing more, because its reader has stopped or because it hangs: it costs the gateway little
and others nothing; and when it goes on, its own streams are whole."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from tests.support.browser import running_browser
from tests.support.census import resident_kib
from tests.support.gateway import running_gateway
from tests.support.mux_page import mux_page
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, ROLE, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.gateway import RunningGateway
    from tests.support.mux_page import MuxPage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]

EVENTS: Final = 2_500
EVENT_BYTES: Final = 4_000
TORRENTS: Final = 2
GROWTH_KIB: Final = 12 * 1024
"""What the gateway may hold for the page that stands still, of the 20 MB that are meant for it: twice what was seen."""
STILL_S: Final = 0.3
PATIENCE_S: Final = 30.0
ROUTES: Final = """
discover: false
routes:
  torrent: '%s'
  paced: demo://?tokens=50&interval=5ms&first=10ms
"""
PROMPTS: Final = tuple(f"Tell me about lake {at}." for at in range(8))

# Whether the torrents' texts are whole: too much to send it here.
WHOLE: Final = """([events, bytes]) => {
  const whole = Array.from({ length: events }, (_, at) => String(at).padStart(bytes, ".")).join("");
  return here.outcome.then((texts) => texts.map((text) => text === whole));
}"""


@dataclass(slots=True)
class Torrents:
    """An upstream that sends as fast as it is taken, once the gates are `open`; and how much that was."""

    sent: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ROLE))
        await self.open.wait()
        for at in range(EVENTS):
            await peer.send(chunk(content(f"{at:.>{EVENT_BYTES}}")))
            self.sent += 1
        await peer.send(chunk(STOP), chunk(DONE), LAST_CHUNK)

    async def stopped(self) -> None:
        """Waits until hardly anything more is taken: the system's buffers may still grow a little."""
        async with asyncio.timeout(PATIENCE_S):
            before = 0
            while before != self.sent or not before:
                before = self.sent
                await asyncio.sleep(STILL_S)


@dataclass(frozen=True, slots=True)
class House:
    """A gateway with a page that is about to stand still, and another that has its answers already."""

    gateway: RunningGateway
    torrents: Torrents
    page: MuxPage
    neighbour: MuxPage
    texts: list[str]
    resident_kib: int

    async def holds_up_nobody(self) -> None:
        """While the page stands still, the gateway holds little for it, and the neighbour is answered as before."""
        self.torrents.open.set()
        await self.torrents.stopped()
        assert await self.neighbour.ask_beside("paced", PROMPTS) == self.texts
        assert self.torrents.sent < TORRENTS * EVENTS
        assert resident_kib(self.gateway.process.pid) - self.resident_kib < GROWTH_KIB

    async def are_whole(self) -> bool:
        """Whether the torrents end as they should, each of them."""
        whole: list[bool] = await self.page.page.evaluate(WHOLE, [EVENTS, EVENT_BYTES])
        return whole == [True] * TORRENTS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@asynccontextmanager
async def inhabited(browser: Browser, tmp_path: Path) -> AsyncIterator[House]:
    torrents = Torrents()
    async with (
        scripted_upstream(torrents.script) as upstream,
        running_gateway(ROUTES % upstream.url, tmp_path) as gateway,
        mux_page(browser, gateway.url) as page,
        mux_page(browser, gateway.url) as neighbour,
    ):
        texts = await neighbour.ask_beside("paced", PROMPTS)
        yield House(gateway, torrents, page, neighbour, texts, resident_kib(gateway.process.pid))


async def test_a_page_that_acknowledges_nothing_holds_up_nobody(browser: Browser, tmp_path: Path) -> None:
    async with inhabited(browser, tmp_path) as house:
        await house.page.ask("torrent", ["Go on and on."] * TORRENTS, reads=False)
        await house.holds_up_nobody()
        assert await house.page.number("here.came") == TORRENTS
        assert acknowledged(house.page) == 0
        assert await house.page.ask_beside("paced", PROMPTS) == house.texts  # on the same socket
        await house.page.read_on()
        assert await house.are_whole()
        assert acknowledged(house.page) > TORRENTS


async def test_a_page_that_hangs_holds_up_nobody(browser: Browser, tmp_path: Path) -> None:
    async with inhabited(browser, tmp_path) as house:
        await house.page.ask("torrent", ["Go on and on."] * TORRENTS)
        await house.page.page.wait_for_function(f"here.came === {TORRENTS}")  # what they begin with
        async with house.page.watched.hung():
            await house.holds_up_nobody()
        assert await house.are_whole()


def acknowledged(page: MuxPage) -> int:
    return len([frame for frame in page.watched.sent if frame.startswith('{"type":"ack"')])
