"""A real headless Chromium for the pages' tests, and a watch over what a page does: its requests and its complaints."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, ConsoleMessage, Page, WebSocket

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ARTEFACTS: Final = Path(__file__).parents[1] / "artefacts"

DESK: Final = (1440, 900)
PHONE: Final = (360, 740)


@dataclass
class WatchedPage:
    """A page and everything it asked for and complained about since it was opened.

    `complaints` are console errors and warnings (a broken content security policy is one) and uncaught exceptions;
    `sent` and `received` are the WebSocket's text frames.
    """

    page: Page
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("websocket", self._dialled)

    def hosts(self) -> set[str]:
        """`host:port` of every request and WebSocket; `data:` and the like have none and are left out."""
        return {place for url in self.requested if (place := urlsplit(url).netloc)}

    def heard(self) -> list[Any]:
        """The JSON objects received, decoded: several may share a frame, a line each."""
        return [json.loads(line) for frame in self.received for line in frame.splitlines()]

    async def keep_picture(self, name: str) -> None:
        """Keeps what is to be seen as `tests/artefacts/<name>.png`, for people to look at."""
        ARTEFACTS.mkdir(exist_ok=True)
        await self.page.screenshot(path=ARTEFACTS / f"{name}.png")

    @asynccontextmanager
    async def hung(self) -> AsyncIterator[None]:
        """Within, no script of the page runs, as in one that hangs; so it takes nothing from its sockets, either."""
        debugger = await self.page.context.new_cdp_session(self.page)
        stands = asyncio.Event()
        debugger.on("Debugger.paused", lambda _: stands.set())
        await debugger.send("Debugger.enable")
        await debugger.send("Debugger.pause")
        ran_into_it = asyncio.create_task(self.page.evaluate("0"))  # it stands at the next script
        try:
            await stands.wait()
            yield
        finally:
            await debugger.send("Debugger.resume")
            await ran_into_it
            await debugger.detach()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _dialled(self, socket: WebSocket) -> None:
        self.requested.append(socket.url)
        socket.on("framesent", lambda frame: self.sent.append(str(frame)))
        socket.on("framereceived", lambda frame: self.received.append(str(frame)))


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Starts Chromium with a fresh profile and ends it. Skips the test where either part is not installed."""
    driver: Any = pytest.importorskip("playwright.async_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    async with driver.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def watched_page(
    browser: Browser, *, size: tuple[int, int] = DESK, scheme: Literal["light", "dark"] = "light"
) -> AsyncIterator[WatchedPage]:
    """An empty page with storage of its own, closed with the block; `size` in CSS pixels."""
    width, height = size
    context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        yield WatchedPage(await context.new_page())
    finally:
        await context.close()
