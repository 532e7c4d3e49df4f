"""A page with nothing on it but the client: it asks the gateway several things at once, and tells what came of them.

What the page and the gateway say to each other is the watched page's to show.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tests.support.browser import WatchedPage, watched_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from playwright.async_api import Browser, Page

BLANK: Final = "/healthz"

_CONNECT: Final = """async (options) => {
  const { connect, textOf } = await import("/client.js");
  Math.random = () => 0.02; // else it waits for up to half a minute, by chance, until it dials again
  const gateway = connect("/v1/ws", options);
  window.here = { gateway, textOf, streams: [], texts: [], came: 0, lost: 0, hit: 0 };
  here.running = () => here.streams.filter(({ state }) => !["done", "cancelled", "failed"].includes(state)).length;
  gateway.addEventListener("state", () => {
    if (gateway.state !== "lost") return;
    here.lost += 1;
    here.hit += here.running() > 0;
  });
}"""
_ASK: Final = """({ model, prompts, reads }) => {
  const ask = (content) => here.gateway.chat({ model, messages: [{ role: "user", content }] });
  here.streams = prompts.map(ask);
  here.texts = prompts.map(() => "");
  here.mayRead = new Promise((resolve) => { here.readOn = resolve; });
  here.outcome = Promise.all(here.streams.map(async (stream, at) => {
    for await (const chunk of stream) {
      here.texts[at] += here.textOf(chunk);
      here.came += 1;
      if (!reads) await here.mayRead;
    }
    return here.texts[at];
  }));
}"""


class MuxPage:
    """One page and its connection. `asked` are the streams of its last `ask`."""

    def __init__(self, watched: WatchedPage) -> None:
        self.watched = watched

    @property
    def page(self) -> Page:
        return self.watched.page

    async def ask(self, model: str, prompts: Sequence[str], *, reads: bool = True) -> None:
        """Asks them all at once. With `reads` False it takes one item of each, and the others only after `read_on`."""
        await self.page.evaluate(_ASK, {"model": model, "prompts": list(prompts), "reads": reads})

    async def read_on(self) -> None:
        await self.page.evaluate("here.readOn()")

    async def texts(self) -> list[str]:
        """The answers, when all are over. Fails as the first of them that does."""
        texts: list[str] = await self.page.evaluate("here.outcome")
        return texts

    async def ask_beside(self, model: str, prompts: Sequence[str]) -> list[str]:
        """The answers to these, on the same connection, whatever becomes of the others."""
        ask = """([model, prompts]) => Promise.all(prompts.map((content) =>
          here.gateway.chat({ model, messages: [{ role: "user", content }] }).text()))"""
        texts: list[str] = await self.page.evaluate(ask, [model, list(prompts)])
        return texts

    async def more(self, items: int) -> None:
        """Waits until so many more have come, or nothing runs."""
        came = await self.number("here.came")
        await self.page.wait_for_function(f"here.came >= {came + items} || !here.running()")

    async def number(self, what: str) -> int:
        found: int = await self.page.evaluate(what)
        return found

    async def open_again(self, lost: int) -> None:
        """Waits until the connection was lost once more than `lost` times, and is there again."""
        await self.page.wait_for_function(f"here.lost > {lost} && here.gateway.state === 'open'")


@asynccontextmanager
async def mux_page(browser: Browser, url: str, *, clock: bool = False, **options: Any) -> AsyncIterator[MuxPage]:
    """A page of the gateway at `url` that has a connection; `options` are `connect`'s. With `clock`, the page's time is
    Playwright's: it goes on by itself, and can be put forward."""
    async with watched_page(browser) as watched:
        if clock:
            await watched.page.clock.install()
        await watched.page.goto(url + BLANK)
        await watched.page.evaluate(_CONNECT, options)
        yield MuxPage(watched)
