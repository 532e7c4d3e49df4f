"""The playground as a person uses it: open, ask, wait for the end, read a gauge; and a cable that can be cut."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tests.support.browser import WatchedPage, watched_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Locator, Page

ROUTES: Final = """
routes:
  measured: demo://?tokens=60&interval=20ms&first=50ms
  long: demo://?tokens=2000&interval=20ms&first=20ms
  refused: http://127.0.0.1:9
"""


class Playground:
    """One open page; `watched` has what it asked for and what went over its socket."""

    def __init__(self, watched: WatchedPage) -> None:
        self.watched = watched

    @property
    def page(self) -> Page:
        return self.watched.page

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_label("Prompt", exact=True)

    async def connected(self) -> None:
        await self.page.locator("[data-state=connected]").wait_for()

    async def ask(self, model: str, prompt: str) -> None:
        await self.page.get_by_label("Model").select_option(model)
        await self.prompt.fill(prompt)
        await self.page.keyboard.press("Enter")

    async def growing(self) -> None:
        """Waits until the answer has some text."""
        await self.page.locator(".turn:last-child .answer-text p").wait_for()

    async def ended(self) -> str:
        """Waits for the last turn's end and returns how it ended."""
        await self.page.locator(".turn:last-child .again").wait_for()
        return await self.page.locator(".turn:last-child .outcome").inner_text()

    def asked(self) -> list[dict[str, Any]]:
        """The bodies that the page sent, in order."""
        sent = map(json.loads, self.watched.sent)
        return [frame["body"] for frame in sent if frame["type"] == "start"]

    def answer(self, number: int) -> str:
        """The text that came for the page's request number `number` (1, 2, …). A frame may come on two sockets: what
        reaches one that the page has left is seen here, and not by the page."""
        frames = [frame for frame in self.watched.heard() if frame.get("rid") == f"r{number}"]
        chunks = {frame["seq"]: frame["data"]["chunk"] for frame in frames if "chunk" in frame.get("data", {})}
        return "".join(choice["delta"].get("content") or "" for chunk in chunks.values() for choice in chunk["choices"])

    def sockets(self) -> int:
        """How many sockets the page opened."""
        return sum(frame.startswith('{"type":"init"') for frame in self.watched.sent)

    async def anew(self) -> None:
        """Starts another conversation."""
        await self.page.get_by_role("button", name="New", exact=True).click()
        await self.page.get_by_text("Open the gate").wait_for()

    async def gauge(self, name: str) -> float:
        return float((await self.page.locator(f"[data-gauge={name}] output").inner_text()).replace(",", ""))

    async def drawn(self) -> None:
        """Waits until the browser has drawn what changed so far."""
        await self.page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


@asynccontextmanager
async def open_playground(browser: Browser, url: str, **kind: Any) -> AsyncIterator[Playground]:
    """The gateway's page, opened and connected; `kind` as `watched_page` takes it."""
    async with watched_page(browser, **kind) as watched:
        await watched.page.goto(url)
        opened = Playground(watched)
        await opened.connected()
        yield opened
