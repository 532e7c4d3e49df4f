"""A page runs a prompt through a stage: with fetch, with a WebSocket, from another origin, and stops one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from tests.support.browser import running_browser, watched_page
from tests.support.gateway import running_gateway
from tests.support.stages import framed, lines, stage
from tests.support.tool_servers import with_quick_tools
from tests.support.upstream import answer, answering, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.gateway import RunningGateway

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ROUTES: Final = """
routes:
  m: demo://?tokens=12&interval=50ms&first=10ms
  long: demo://?tokens=2000&interval=10ms
  tools: {replicas: ["demo://?tokens=12&interval=10ms&first=10ms"], tools: [bench]}
"""

FETCH: Final = """async ([url, asked]) => {
  const answer = await fetch(url, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const reads = [];
  for (let read = await reader.read(); !read.done; read = await reader.read()) reads.push(read.value);
  return { status: answer.status, reads, route: answer.headers.get("x-penstock-route") };
}"""

SOCKET: Final = """([url, asked, cancelAfter]) => new Promise((resolve) => {
  const socket = new WebSocket(url), frames = [];
  socket.onopen = () => socket.send(JSON.stringify(asked));
  socket.onmessage = ({ data }) => {
    frames.push(data);
    if (frames.length === cancelAfter) socket.send('{"type":"cancel"}');
    if (["done", "cancel", "error"].includes(JSON.parse(data).event)) { socket.close(); resolve(frames); }
  };
})"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(with_quick_tools(ROUTES), tmp_path_factory.mktemp("stages")) as gateway:
        yield gateway


def kinds(said: list[str]) -> list[str]:
    return [line.split(" ")[0] for line in said]


async def test_fetch_reads_a_stage_as_it_comes(browser: Browser, gateway: RunningGateway) -> None:
    async with watched_page(browser) as watched:
        await watched.page.goto(gateway.url)
        got: dict[str, Any] = await watched.page.evaluate(FETCH, [f"{gateway.url}/stream/v1/chat", stage()])
        assert watched.complaints == []
    said = kinds(lines("".join(got["reads"]).encode()))
    assert (got["status"], got["route"]) == (200, "m")
    assert said == [*["chat_completion_chunk"] * (len(said) - 1), "done"]
    assert len(got["reads"]) > 5  # not in one piece


async def test_fetch_reads_a_stage_whose_tools_the_gateway_runs(browser: Browser, gateway: RunningGateway) -> None:
    asked = stage(model_container="tools", user_prompt='Use echo for "a page".', synthesis=True)
    async with watched_page(browser) as watched:
        await watched.page.goto(gateway.url)
        got: dict[str, Any] = await watched.page.evaluate(FETCH, [f"{gateway.url}/stream/v1/toolchain", asked])
        assert watched.complaints == []
    said = lines("".join(got["reads"]).encode())
    summary = next(line for line in said if line.startswith("tool_summary "))
    [call] = json.loads(summary.partition(" ")[2])["tool_summary"]["calls"]
    assert (got["status"], got["route"]) == (200, "tools")
    assert list(dict.fromkeys(kinds(said))) == [
        *("chat_completion_chunk", "tool_summary", "tool_completion_chunk", "done")
    ]
    assert (call["name"], call["is_error"], call["arguments"]) == ("echo", False, {})
    assert len(got["reads"]) > 5


async def test_a_page_of_another_origin_may_fetch_too(browser: Browser, gateway: RunningGateway) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as elsewhere, watched_page(browser) as watched:
        await watched.page.goto(elsewhere.url)
        got: dict[str, Any] = await watched.page.evaluate(FETCH, [f"{gateway.url}/stream/v1/chat", stage()])
        assert watched.complaints == []
    assert kinds(lines("".join(got["reads"]).encode()))[-1] == "done"
    assert got["route"] == "m"  # an exposed header


async def test_a_websocket_gets_a_stage_frame_by_frame(browser: Browser, gateway: RunningGateway) -> None:
    async with watched_page(browser) as watched:
        await watched.page.goto(gateway.url)
        frames: list[str] = await watched.page.evaluate(SOCKET, [f"{gateway.ws_url}/stream/v1/chat", stage(), 0])
        assert watched.complaints == []
    said = kinds(framed(frames))
    assert said == [*["chat_completion_chunk"] * (len(said) - 1), "done"]


async def test_a_websocket_stops_a_stage(browser: Browser, gateway: RunningGateway) -> None:
    async with watched_page(browser) as watched:
        await watched.page.goto(gateway.url)
        asked = [f"{gateway.ws_url}/stream/v1/chat", stage(model_container="long"), 3]
        frames: list[str] = await watched.page.evaluate(SOCKET, asked)
    said = kinds(framed(frames))
    assert said[-1] == "cancel"
    assert len(said) < 500
