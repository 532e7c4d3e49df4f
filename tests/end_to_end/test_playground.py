"""The playground in a real browser, against the real gateway: an answer is asked for, watched and stopped."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.support.browser import DESK, PHONE, running_browser
from tests.support.gateway import running_gateway
from tests.support.playground import ROUTES, Playground, open_playground
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    Script,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.gateway import RunningGateway

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

# Notes each length of the last answer's text as it changes, once per change of the document.
WATCH_GROWTH: Final = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const length = [...document.querySelectorAll(".answer-text")].at(-1)?.textContent.length ?? 0;
    if (length !== window.lengths.at(-1)) window.lengths.push(length);
  }).observe(document.getElementById("turns"), { childList: true, subtree: true, characterData: true });
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all of them; each has a page of its own."""
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ROUTES, tmp_path_factory.mktemp("playground")) as gateway:
        yield gateway


@asynccontextmanager
async def scripted_journey(script: Script, browser: Browser, tmp_path: Path) -> AsyncIterator[Playground]:
    """The page of a gateway whose one route, `scripted`, is a model server that answers by `script`."""
    async with scripted_upstream(script) as upstream:
        routes = f"routes:\n  scripted: {{replicas: ['{upstream.url}'], health: none}}\n"
        async with running_gateway(routes, tmp_path) as gateway, open_playground(browser, gateway.url) as playground:
            yield playground


async def test_answer_grows_in_many_steps_and_is_measured(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.watched.keep_picture("playground-opening")
        await playground.page.evaluate(WATCH_GROWTH)
        await playground.ask("measured", "Tell me about the water in the pipe.")

        assert await playground.ended() == "stop"
        lengths = await playground.page.evaluate("window.lengths")
        assert len(lengths) >= 10
        assert lengths[-1] > 100
        assert await playground.gauge("tokens") == 60
        assert 50 <= await playground.gauge("first") < 5000
        assert 2 < await playground.gauge("rate") <= 60
        assert 1.2 <= await playground.gauge("time") < 30
        assert "median" in await playground.page.locator("#gap-words").inner_text()
        assert "60 tokens" in await playground.page.locator(".measured").inner_text()
        assert playground.watched.complaints == []


async def test_page_asks_nothing_of_any_other_host(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("measured", "Look at https://elsewhere.example/image.png")
        await playground.ended()

        assert len(playground.watched.requested) > 15
        assert playground.watched.hosts() == {urlsplit(gateway.url).netloc}
        assert playground.watched.complaints == []


async def test_earlier_turns_and_settings_are_sent_along(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("measured", "First question")
        await playground.ended()
        await playground.page.locator("#tuning summary").click()
        await playground.page.get_by_label("System prompt").fill("Be brief.")
        await playground.page.get_by_label("Temperature").fill("0.5")
        await playground.page.get_by_label("Max tokens").fill("20")
        await playground.page.get_by_label("More members").fill('{"top_p": 0.9}')
        await playground.ask("measured", "Second question")

        assert await playground.ended() == "length"
        body = playground.asked()[-1]
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["messages"][0]["content"] == "Be brief."
        assert body["messages"][1]["content"] == "First question"
        assert body["messages"][2]["content"] == playground.answer(1) != ""
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.5, 20, 0.9)
        assert await playground.gauge("tokens") == 20
        assert playground.watched.complaints == []


async def test_again_asks_the_last_prompt_in_place_of_its_answer(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("measured", "Only question")
        await playground.ended()
        await playground.page.get_by_role("button", name="Again").click()
        await playground.page.locator(".running").wait_for()

        assert await playground.ended() == "stop"
        assert await playground.page.locator(".turn").count() == 1
        assert playground.asked()[1]["messages"] == [{"role": "user", "content": "Only question"}]


async def test_new_conversation_knows_nothing_of_the_turns_of_one_that_runs(
    browser: Browser, gateway: RunningGateway
) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("long", "Go on")
        await playground.growing()
        await playground.page.get_by_role("button", name="New").click()
        await playground.page.get_by_text("Open the gate").wait_for()
        await playground.page.get_by_role("button", name="Send").wait_for()
        await playground.ask("measured", "Fresh")

        assert await playground.ended() == "stop"
        assert await playground.page.locator(".turn").count() == 1
        assert playground.asked()[-1]["messages"] == [{"role": "user", "content": "Fresh"}]
        assert playground.watched.complaints == []


@pytest.mark.parametrize("way", ["Escape", "Stop"])
async def test_stopping_closes_the_upstream_connection_within_a_second(
    browser: Browser, tmp_path: Path, way: str
) -> None:
    lost = asyncio.Event()

    async def go_on(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        closed = asyncio.ensure_future(peer.closed())
        try:
            while not closed.done():
                await peer.send(chunk(content("on ")))
                await asyncio.wait([closed], timeout=0.01)
        finally:
            lost.set()

    async with scripted_journey(go_on, browser, tmp_path) as playground:
        await playground.ask("scripted", "Go on")
        await playground.page.get_by_text("on on on on").wait_for()
        assert not lost.is_set()

        if way == "Stop":
            await playground.page.get_by_role("button", name="Stop").click()
        else:
            await playground.page.keyboard.press("Escape")
        await asyncio.wait_for(lost.wait(), 1)

        assert await playground.ended() == "stopped"
        assert playground.watched.sent[-1] == '{"type":"cancel","rid":"r1"}'
        assert await playground.page.get_by_role("button", name="Send").is_enabled()
        assert playground.watched.complaints == []


async def test_stopped_socket_serves_the_next_prompt(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("long", "Go on")
        await playground.growing()
        await playground.page.keyboard.press("Escape")
        assert await playground.ended() == "stopped"
        await playground.ask("measured", "And now?")

        assert await playground.ended() == "stop"
        assert await playground.gauge("tokens") == 60


async def test_reasoning_stands_apart_and_is_not_sent_along(browser: Browser, tmp_path: Path) -> None:
    thought = content("").replace(b'"content":""', b'"reasoning_content":"Let me *think*."')
    answer = OK_EVENTS + b"".join(chunk(piece) for piece in (ROLE, thought, content("Forty-two."), STOP, DONE))
    script = answering(answer + LAST_CHUNK)
    async with scripted_journey(script, browser, tmp_path) as playground:
        await playground.ask("scripted", "What is it?")
        assert await playground.ended() == "stop"
        assert await playground.page.locator(".reasoning p").inner_text() == "Let me *think*."
        assert await playground.page.locator(".answer-text").inner_text() == "Forty-two."
        assert await playground.page.locator("[data-gauge=tokens] dd").inner_text() == "2 deltas"

        await playground.ask("scripted", "Sure?")
        await playground.page.locator(".turn").nth(1).wait_for()
        assert await playground.ended() == "stop"
        assert playground.asked()[1]["messages"][1] == {"role": "assistant", "content": "Forty-two."}


async def test_tool_calls_are_shown_with_their_whole_arguments(browser: Browser, gateway: RunningGateway) -> None:
    schema = {"type": "object", "properties": {"reservoir": {"type": "string"}}, "required": ["reservoir"]}
    tool = {"type": "function", "function": {"name": "water_level", "parameters": schema}}
    async with open_playground(browser, gateway.url) as playground:
        await playground.page.locator("#tuning summary").click()
        await playground.page.get_by_label("More members").fill(json.dumps({"tools": [tool]}))
        await playground.ask("measured", "Please use the tool water_level.")

        assert await playground.ended() == "tool_calls"
        assert await playground.page.locator(".tool-call b").inner_text() == "water_level"
        arguments = json.loads(await playground.page.locator(".tool-call code").inner_text())
        assert set(arguments) == {"reservoir"}


async def test_keyboard_reaches_the_prompt_and_breaks_lines(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.page.locator("#talk").focus()
        await playground.page.keyboard.press("/")
        await playground.page.keyboard.type("one/")
        await playground.page.keyboard.press("Shift+Enter")
        await playground.page.keyboard.type("two")
        assert await playground.prompt.input_value() == "one/\ntwo"
        await playground.page.get_by_label("Model").select_option("measured")
        await playground.prompt.press("Enter")

        assert await playground.ended() == "stop"
        assert await playground.page.locator(".asked-text").inner_text() == "one/\ntwo"
        assert await playground.prompt.input_value() == ""


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")],
)
async def test_page_fits_and_is_pictured(
    browser: Browser, gateway: RunningGateway, name: str, size: tuple[int, int], scheme: str
) -> None:
    async with open_playground(browser, gateway.url, size=size, scheme=scheme) as playground:
        await playground.ask("measured", "What is a penstock, and what sets its flow?")
        await playground.growing()
        await playground.watched.keep_picture(f"playground-{name}-running")
        await playground.ended()
        await playground.watched.keep_picture(f"playground-{name}")

        overflow = await playground.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow == 0
        send = await playground.page.get_by_role("button", name="Send").bounding_box()
        assert send is not None
        assert send["x"] + send["width"] <= size[0]
        assert send["y"] + send["height"] <= size[1]
        dark = await playground.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(13, 20, 19)") == (scheme == "dark")
        assert playground.watched.complaints == []
