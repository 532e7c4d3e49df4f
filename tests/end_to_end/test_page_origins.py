"""Real pages of several origins: those on `cors.origins` may use the gateway, and no other may, whatever it tries."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from tests.support.browser import running_browser, watched_page
from tests.support.gateway import running_gateway
from tests.support.upstream import Peer, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.browser import WatchedPage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]

CLIENT: Final = (Path(__file__).parents[2] / "proxy" / "web" / "client.js").read_bytes()
KEY: Final = "sk-of-the-page"
ROUTES: Final = """
discover: false
%s
cors: {origins: ['%s']}
routes: {m: 'demo://?tokens=20&interval=0ms&first=0ms'}
"""
REFUSED: Final = "Unexpected response code: 403"

# Each is asked with the gateway's URL and perhaps a key, and tells what came of it.
FETCH: Final = """async ([url, key]) => {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const body = JSON.stringify({ model: "m", messages: [{ role: "user", content: "Hello" }] });
  try {
    const answer = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body });
    return (await answer.json()).choices[0].message.content;
  } catch ({ name }) {
    return name;
  }
}"""
CONNECT: Final = """async ([url, key]) => {
  const { connect } = await import("/client.js"); // this page has its own
  const gateway = connect(`${url}/v1/ws`, key ? { key } : {});
  try {
    return await Promise.race([
      gateway.chat({ model: "m", messages: [{ role: "user", content: "Hello" }] }).text(),
      new Promise((resolve) => gateway.addEventListener("state", () => gateway.state === "lost" && resolve("lost"))),
    ]);
  } finally {
    gateway.close();
  }
}"""
IMPORT: Final = """([url]) => import(`${url}/client.js`).then(() => "imported", ({ name }) => name)"""


@dataclass(frozen=True, slots=True)
class Guest:
    """A page of an origin of its own."""

    watched: WatchedPage
    gateway: str

    async def tries(self, what: str, key: str | None = None) -> Any:
        return await self.watched.page.evaluate(what, [self.gateway, key])

    @property
    def refusals(self) -> int:
        """How many handshakes were answered with 403: the browser tells its console, and the page nothing."""
        return sum(REFUSED in complaint for complaint in self.watched.complaints)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


async def site(peer: Peer) -> None:
    """Another server on this machine: an empty page, and the client."""
    while True:
        asked = await peer.request()
        kind, body = (
            (b"text/javascript", CLIENT) if asked.target == "/client.js" else (b"text/html", b"<!doctype html>")
        )
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
        )


@asynccontextmanager
async def guest(browser: Browser, tmp_path: Path, *, listed: bool, auth: str = "") -> AsyncIterator[Guest]:
    """A page of another port, which is an origin of its own, `listed` in `cors.origins` or not."""
    async with scripted_upstream(site) as home:
        routes = ROUTES % (auth, home.url if listed else "http://127.0.0.1:9")
        async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
            await watched.page.goto(home.url)
            yield Guest(watched, gateway.url)


async def test_a_listed_page_may_fetch_connect_and_take_the_client_from_us(browser: Browser, tmp_path: Path) -> None:
    async with guest(browser, tmp_path, listed=True) as page:
        text = await page.tries(FETCH)
        assert len(text) > 20
        assert await page.tries(CONNECT) == text
        assert await page.tries(IMPORT) == "imported"
        assert page.refusals == 0


async def test_another_page_may_do_none_of_it(browser: Browser, tmp_path: Path) -> None:
    async with guest(browser, tmp_path, listed=False) as page:
        assert await page.tries(FETCH) == "TypeError"
        assert await page.tries(CONNECT) == "lost"
        assert await page.tries(IMPORT) == "TypeError"
        assert page.refusals == 1


async def test_another_page_has_no_use_for_a_key_either(browser: Browser, tmp_path: Path) -> None:
    auth = f"auth: {{keys: [{{name: web, key: {KEY}}}]}}"
    async with guest(browser, tmp_path, listed=False, auth=auth) as page:
        assert await page.tries(FETCH, KEY) == "TypeError"
        assert await page.tries(CONNECT, KEY) == "lost"
        assert page.refusals == 1


async def test_a_listed_page_needs_its_key_all_the_same(browser: Browser, tmp_path: Path) -> None:
    auth = f"auth: {{keys: [{{name: web, key: {KEY}}}]}}"
    async with guest(browser, tmp_path, listed=True, auth=auth) as page:
        assert await page.tries(CONNECT, "sk-wrong") == "lost"
        text = await page.tries(FETCH, KEY)
        assert len(text) > 20
        assert await page.tries(CONNECT, KEY) == text
