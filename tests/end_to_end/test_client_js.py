"""The browser client: its own tests, its package, and many streams at once in a real page whose line is cut."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import pytest_asyncio

from tests.support.browser import running_browser, watched_page
from tests.support.cable import laid_cable
from tests.support.gateway import running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.browser import WatchedPage
    from tests.support.cable import Cable
    from tests.support.gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT: Final = Path(__file__).parents[2]
NODE_TIMEOUT_S: Final = 120.0
STREAMS: Final = 20
BLANK: Final = "/healthz"  # a page with nothing on it
ROUTES: Final = """
discover: false
server: {websocket: {streams: %d}}
routes:
  quick: demo://?tokens=50&interval=5ms&first=10ms
  long: demo://?tokens=150&interval=10ms&first=10ms
  slow: demo://?tokens=50&interval=60ms&first=500ms
"""

# Asks `model` so many prompts at once on one connection; `window.outcome` has their texts, in order, when all are over.
ASK: Final = """async ([model, count]) => {
  const { connect, textOf } = await import("/client.js");
  const gateway = window.gateway = connect("/v1/ws");
  window.lost = 0;
  gateway.addEventListener("state", () => { window.lost += gateway.state === "lost"; });
  window.streams = Array.from({ length: count }, (_, at) =>
    gateway.chat({ model, messages: [{ role: "user", content: `Tell me about river ${at}.` }] }));
  window.got = window.streams.map(() => "");
  window.outcome = Promise.all(window.streams.map(async (stream, at) => {
    for await (const chunk of stream) window.got[at] += textOf(chunk);
    return window.got[at];
  }));
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ROUTES % 32, tmp_path_factory.mktemp("client")) as gateway:
        yield gateway


# ---- node ----


async def test_the_client_s_own_tests_pass() -> None:
    output = await finished("npm", "test", "--silent", place=ROOT / "clients" / "js")
    counted = dict(re.findall(r"^# (\w+) (\d+)$", output, re.MULTILINE))
    assert int(counted["pass"]) > 80
    assert (counted["fail"], counted["skipped"], counted["todo"]) == ("0", "0", "0")


async def test_the_package_is_the_served_file_and_works_in_node(gateway: RunningGateway, tmp_path: Path) -> None:
    made = await finished("npm", "pack", "--silent", "--pack-destination", str(tmp_path), place=ROOT / "clients" / "js")
    with tarfile.open(tmp_path / made.split()[-1]) as packed:
        packed.extractall(tmp_path, filter="data")
    package = tmp_path / "package"
    assert {file.name for file in package.iterdir()} == {"package.json", "README.md", "client.js", "client.d.ts"}
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        for name in ("client.js", "client.d.ts"):
            assert (package / name).read_bytes() == (await http.get(f"/{name}")).content

    request = json.dumps(chat("quick", "What is a penstock? ¿Y en español? 🌊"))
    output = await finished(
        *("node", str(ROOT / "tests" / "node" / "mux_chat.mjs"), str(package / "client.js")),
        *(f"{gateway.url}/v1/ws", request, str(STREAMS)),
        place=tmp_path,
    )
    answers = [json.loads(line) for line in output.splitlines()]
    assert answers == [await whole(gateway, json.loads(request))] * STREAMS


# ---- a page ----


@pytest.mark.browser
async def test_twenty_streams_share_a_socket_and_each_is_exact(browser: Browser, gateway: RunningGateway) -> None:
    async with watched_page(browser) as watched:
        texts = await asked(watched, gateway.url, "slow")
        assert texts == await expected(gateway, "slow")
        assert sockets(watched) == 1
        assert most_at_once(watched) == STREAMS
        assert [complaint for complaint in watched.complaints if "404" not in complaint] == []  # there is no icon


@pytest.mark.browser
async def test_streams_that_the_gateway_does_not_take_at_once_wait_for_a_place(
    browser: Browser, tmp_path: Path
) -> None:
    async with running_gateway(ROUTES % 3, tmp_path) as gateway, watched_page(browser) as watched:
        texts = await asked(watched, gateway.url, "quick")
        assert texts == await expected(gateway, "quick")
        assert most_at_once(watched) == 3
        assert [frame for frame in watched.received if "too_many_streams" in frame] == []


@pytest.mark.browser
@pytest.mark.parametrize("seed", [1])  # many more cuts: test_page_cuts
async def test_the_line_may_be_cut_at_any_moment(browser: Browser, gateway: RunningGateway, seed: int) -> None:
    chance = random.Random(seed)
    async with laid_cable(gateway.url) as cable, watched_page(browser) as watched:
        await watched.page.goto(cable.url + BLANK)
        await watched.page.evaluate("Math.random = () => 0.1")  # else it waits for up to half a minute, by chance
        await watched.page.evaluate(ASK, ["long", STREAMS])
        await watched.page.wait_for_function("streams.every(({ streamId }) => streamId)")
        for _ in range(5):
            await asyncio.sleep(chance.uniform(0.02, 0.25))
            await cut_for_a_moment(cable, watched)

        assert await watched.page.evaluate("outcome") == await expected(gateway, "long")
        assert await watched.page.evaluate("lost") >= 5
        assert len([frame for frame in watched.sent if frame.startswith('{"type":"start"')]) == STREAMS
        assert sockets(watched) > 5


@pytest.mark.browser
async def test_the_line_may_be_cut_before_anything_was_answered(browser: Browser, gateway: RunningGateway) -> None:
    async with laid_cable(gateway.url) as cable, watched_page(browser) as watched:
        await watched.page.goto(cable.url + BLANK)
        await watched.page.evaluate("Math.random = () => 0.1")
        await watched.page.evaluate(ASK, ["quick", STREAMS])
        for _ in range(3):
            await cut_for_a_moment(cable, watched)
        assert await watched.page.evaluate("outcome") == await expected(gateway, "quick")


@pytest.mark.browser
async def test_a_page_that_is_reloaded_goes_on_with_its_stream(browser: Browser, gateway: RunningGateway) -> None:
    async with watched_page(browser) as watched:
        await watched.page.goto(gateway.url + BLANK)
        await watched.page.evaluate(ASK, ["long", 1])
        await watched.page.wait_for_function("got[0].length > 50")
        first, stream, after = await watched.page.evaluate("[got[0], streams[0].streamId, streams[0].seq]")
        await watched.page.reload()
        rest = await watched.page.evaluate(
            """async ([stream, after]) => {
              const { connect } = await import("/client.js");
              return connect("/v1/ws").resume(stream, { after }).text();
            }""",
            [stream, after],
        )
        assert [first + rest] == await expected(gateway, "long", count=1)


@pytest.mark.browser
async def test_a_network_that_comes_back_is_tried_at_once(browser: Browser, gateway: RunningGateway) -> None:
    async with laid_cable(gateway.url) as cable, watched_page(browser) as watched:
        await watched.page.goto(cable.url + BLANK)
        await watched.page.evaluate("Math.random = () => 0.999")
        await watched.page.evaluate(ASK, ["long", 2])
        await watched.page.wait_for_function("streams.every(({ streamId }) => streamId)")
        await cable.cut()
        await watched.page.wait_for_function("gateway.retryInMs > 3000")
        await cable.lay()
        await watched.page.evaluate("dispatchEvent(new Event('online'))")
        await watched.page.wait_for_function("gateway.state === 'open'", timeout=2500)
        assert await watched.page.evaluate("outcome") == await expected(gateway, "long", count=2)


@pytest.mark.browser
async def test_a_key_that_is_unknown_is_said_in_words(browser: Browser, tmp_path: Path) -> None:
    routes = f"auth: {{keys: [{{name: web, key: sk-right-ü}}]}}\n{ROUTES % 16}"
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
        await watched.page.goto(gateway.url + BLANK)
        told = await watched.page.evaluate(CONNECT_WITH, ["sk-wrong", chat("quick", "Hello")])
        assert (told["state"], told["error"]["code"], told["error"]["status"]) == ("refused", "invalid_api_key", 401)
        told = await watched.page.evaluate(CONNECT_WITH, ["sk-right-ü", chat("quick", "Hello")])
        assert told["state"] == "open"
        assert len(told["text"]) > 100
        assert "sk-right" not in gateway.log()


CONNECT_WITH: Final = """async ([key, body]) => {
  const { connect } = await import("/client.js");
  const gateway = connect("/v1/ws", { key });
  try {
    return { text: await gateway.chat(body).text(), state: gateway.state };
  } catch ({ code, status, message }) {
    return { error: { code, status, message }, state: gateway.state };
  } finally {
    gateway.close();
  }
}"""


def chat(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


async def asked(watched: WatchedPage, url: str, model: str) -> list[str]:
    """What the page got for its prompts."""
    await watched.page.goto(url + BLANK)
    await watched.page.evaluate(ASK, [model, STREAMS])
    texts: list[str] = await watched.page.evaluate("outcome")
    return texts


async def cut_for_a_moment(cable: Cable, watched: WatchedPage) -> None:
    """Cuts the line, lays it again once the page has noticed, and waits until it is back."""
    lost = await watched.page.evaluate("lost")
    await cable.cut()
    await watched.page.wait_for_function(f"lost > {lost}")
    await cable.lay()
    await watched.page.wait_for_function("gateway.state === 'open'")


async def expected(gateway: RunningGateway, model: str, count: int = STREAMS) -> list[str]:
    """The same answers over HTTP, each in one piece."""
    return await asyncio.gather(*(whole(gateway, chat(model, f"Tell me about river {at}.")) for at in range(count)))


async def whole(gateway: RunningGateway, request: dict[str, Any]) -> str:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        answer = (await http.post("/v1/chat/completions", json=request)).raise_for_status().json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def sockets(watched: WatchedPage) -> int:
    """How many mux sockets the page opened."""
    return len([frame for frame in watched.sent if frame.startswith('{"type":"init"')])


def most_at_once(watched: WatchedPage) -> int:
    """How many streams ran at once, by what the gateway accepted and ended."""
    running = most = 0
    for frame in watched.heard():
        running += (frame.get("type") == "accepted") - (frame.get("type") == "done")
        most = max(most, running)
    return most


async def finished(program: str, *arguments: str, place: Path) -> str:
    """What a program of node's writes to its standard output, once it has ended well."""
    found = shutil.which(program)
    if found is None or not (ROOT / "tests" / "node" / "node_modules" / "ws").exists():
        pytest.fail("no node, or no npm packages here: run scripts/install node", pytrace=False)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(found, *arguments, cwd=place, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(NODE_TIMEOUT_S):
        output, complaints = await process.communicate()
    assert process.returncode == 0, output.decode() + complaints.decode()
    return output.decode()
