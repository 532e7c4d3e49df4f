"""The playground when things are not as they should be, its frames, and how it builds markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from tests.support.browser import running_browser, watched_page
from tests.support.cable import laid_cable
from tests.support.gateway import running_gateway
from tests.support.playground import ROUTES, Playground, open_playground

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.gateway import RunningGateway

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

KEY: Final = "sk-playground-ünïcode"

RENDER: Final = """async ([text, step]) => {
  const { MarkdownStream } = await import("/playground/markdown.js");
  const host = document.createElement("div");
  const stream = new MarkdownStream(host);
  for (let at = 0; at < text.length; at += step) { stream.append(text.slice(at, at + step)); stream.paint(); }
  return host.innerHTML;
}"""

MARKDOWN: Final = {
    "**bold** and *it* and `a*b*`": "<p><strong>bold</strong> and <em>it</em> and <code>a*b*</code></p>",
    "# One\ntext": "<h3>One</h3><p>text</p>",
    "- a\n- b\n  - c\n- d\n\nend": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul><p>end</p>",
    "3. x\n4. y": '<ol start="3"><li>x</li><li>y</li></ol>',
    "1. x\n2.": '<ol start="1"><li>x</li><li></li></ol>',
    "2.": "<p>2.</p>",
    "- x\n  on\n* y": "<ul><li>x on</li><li>y</li></ul>",
    "> q\n\n---\n": "<blockquote>q</blockquote><hr>",
    "see:\n```py\nif a:\n  **b**\n\n```\nafter": (
        '<p>see:</p><pre data-language="py" tabindex="0"><code>if a:\n  **b**\n\n</code></pre><p>after</p>'
    ),
    "```\nopen <b>": '<pre tabindex="0"><code>open &lt;b&gt;</code></pre>',
    "1. do\n   ```sh\n   ls\n   ```\n": (
        '<ol start="1"><li>do</li></ol><pre data-language="sh" tabindex="0"><code>ls\n</code></pre>'
    ),
    "<img src=x onerror=alert(1)> **<script>x</script>**": (
        "<p>&lt;img src=x onerror=alert(1)&gt; <strong>&lt;script&gt;x&lt;/script&gt;</strong></p>"
    ),
    "[a](javascript:alert(1)) 2 * 3 * 4 **": "<p>[a](javascript:alert(1)) 2 * 3 * 4 **</p>",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all of them; each has a page of its own."""
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ROUTES, tmp_path_factory.mktemp("playground")) as gateway:
        yield gateway


async def test_settings_that_make_no_sense_are_not_sent(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.page.locator("#tuning summary").click()
        await playground.page.get_by_label("More members").fill("[1]")
        await playground.ask("measured", "Kept")

        await playground.page.get_by_text("More members must be a JSON object.").wait_for()
        assert playground.asked() == []
        assert await playground.prompt.input_value() == "Kept"


async def test_failed_upstream_is_a_readable_message_with_its_code(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("refused", "Anyone there?")

        assert await playground.ended() == "failed"
        facts = await playground.page.locator(".failure-facts").inner_text()
        assert facts in ("502 · upstream_unreachable", "503 · no_replica_available")
        assert "127.0.0.1" not in await playground.page.locator(".failure").inner_text()
        assert playground.watched.complaints == []


async def test_unknown_key_is_asked_for_and_the_right_one_connects(browser: Browser, tmp_path: Path) -> None:
    routes = f"auth: {{keys: [{{name: web, key: {KEY}}}]}}\n{ROUTES}"
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
        playground = Playground(watched)
        dialog = playground.page.get_by_role("dialog")
        await playground.page.goto(gateway.url)
        await dialog.wait_for()
        await dialog.get_by_label("Key").fill("sk-wrong")
        await playground.page.keyboard.press("Enter")
        await playground.page.get_by_text("does not know").wait_for()
        assert await playground.page.locator("#key-reason").inner_text() == "The gateway does not know this key."
        assert await playground.page.locator("[data-state=refused]").is_visible()
        assert "401" in await playground.page.locator("#notice").inner_text()
        await playground.watched.keep_picture("playground-key")
        assert not [url for url in playground.watched.requested if url.startswith("ws:")]

        await dialog.get_by_label("Key").fill(KEY)
        await playground.page.keyboard.press("Enter")
        await playground.connected()
        assert await playground.page.locator("#notice").is_hidden()
        await playground.ask("measured", "Now?")
        assert await playground.ended() == "stop"
        assert await playground.page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert KEY not in await playground.page.evaluate("JSON.stringify([document.cookie, {...localStorage}])")
        assert KEY not in await playground.page.locator("#frame-rows").inner_text()
        # The browser itself notes each refusal on its console, and nothing else is there.
        assert all("401" in complaint for complaint in playground.watched.complaints)


async def test_lost_line_is_said_and_comes_back(browser: Browser, gateway: RunningGateway) -> None:
    async with laid_cable(gateway.url) as cable, open_playground(browser, cable.url) as playground:
        await playground.ask("long", "Go on")
        await playground.growing()
        await cable.cut()

        await playground.page.get_by_text("the connection is lost; the answer goes on").wait_for()
        await playground.page.get_by_text("again in").wait_for()
        await playground.watched.keep_picture("playground-lost")
        had = len(playground.answer(1))
        await cable.lay()
        await playground.connected()
        while len(playground.answer(1)) <= had:
            await playground.drawn()
        await playground.page.keyboard.press("Escape")
        assert await playground.ended() == "stopped"
        assert await playground.page.locator(".resumed").inner_text() == "resumed once"
        await playground.ask("measured", "Are you there?")
        assert await playground.ended() == "stop"


async def test_answers_survive_a_cut_and_nothing_is_lost_or_doubled(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("measured", "Whole, please")
        await playground.ended()
        whole = await playground.page.locator(".answer-text").inner_text()
        await playground.page.get_by_role("button", name="Again").click()
        await playground.page.locator(".running .answer-text p").wait_for()
        await playground.page.get_by_role("button", name="cut").click()

        assert await playground.ended() == "stop"
        assert await playground.page.locator(".resumed").inner_text() == "resumed once"
        assert await playground.gauge("tokens") == 60
        assert await playground.page.locator(".answer-text").inner_text() == whole
        assert len(whole) > 100
        assert playground.sockets() == 2
        assert playground.watched.complaints == []


async def test_several_conversations_run_at_once_on_one_socket(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        tabs = playground.page.locator(".talk-tab")
        assert await playground.page.locator("#talks").is_hidden()
        for prompt in ("First river", "Second river", "Third river"):
            if prompt != "First river":
                await playground.anew()
            await playground.ask("long", prompt)
            await playground.growing()
        await playground.page.locator(".talk-tab [data-state=streaming]").nth(2).wait_for()
        await playground.watched.keep_picture("playground-several")
        assert await playground.page.locator(".turn").count() == 1
        assert playground.sockets() == 1

        await tabs.get_by_text("First river").click()
        assert await playground.page.locator(".asked-text").inner_text() == "First river"
        await playground.page.keyboard.press("Escape")
        assert await playground.ended() == "stopped"
        await playground.ask("measured", "And on")
        await playground.page.locator(".turn").nth(1).wait_for()
        assert await playground.ended() == "stop"
        assert [message["role"] for message in playground.asked()[-1]["messages"]] == ["user", "assistant", "user"]
        assert await playground.page.locator(".talk-tab [data-state=streaming]").count() == 2
        assert playground.watched.complaints == []


async def test_a_conversation_keeps_its_draft_and_is_stopped_when_it_is_closed(
    browser: Browser, gateway: RunningGateway
) -> None:
    async with open_playground(browser, gateway.url) as playground:
        tabs = playground.page.locator(".talk-tab")
        await playground.ask("long", "One")
        await playground.growing()
        await playground.prompt.fill("half a thought")
        await playground.anew()
        assert await playground.prompt.input_value() == ""
        await playground.ask("long", "Two")
        await playground.growing()
        await tabs.nth(1).get_by_role("button", name="Close conversation").click()

        assert await playground.page.locator("#talks").is_hidden()
        assert await playground.page.locator(".asked-text").inner_text() == "One"
        assert await playground.prompt.input_value() == "half a thought"
        assert playground.watched.sent[-1] == '{"type":"cancel","rid":"r2"}'
        assert await playground.page.get_by_role("button", name="Stop").is_enabled()


async def test_frames_show_both_ways_and_can_be_filtered(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        await playground.ask("measured", "Frames, please")
        await playground.ended()
        await playground.drawn()
        rows = playground.page.locator("#frame-rows li")

        sent, received = playground.watched.sent, playground.watched.received
        assert json.loads(await rows.last.locator("code").inner_text())["type"] == "done"
        shown = await rows.locator("code").all_text_contents()
        assert shown == ["connected", sent[0], received[0], sent[1], *received[1:]]  # init, ready, start
        await playground.page.get_by_label("Direction").select_option("out")
        assert await rows.locator("code").all_text_contents() == sent
        await playground.page.get_by_label("Direction").select_option("")
        await playground.page.get_by_label("Filter frames").fill('finish_reason":"STOP')
        assert await rows.count() == 1
        await playground.page.get_by_role("button", name="clear").click()
        assert await rows.count() == 0


async def test_frames_kept_and_shown_are_bounded(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        live, settled, count, length = await playground.page.evaluate(
            """async () => {
                const { Frames } = await import("/playground/frames.js");
                const frames = new Frames(document);
                const rows = document.getElementById("frame-rows");
                for (let at = 0; at < 5000; at++) frames.add("in", `frame ${at} ` + "x".repeat(9000), at);
                frames.paint(true);
                const live = rows.childElementCount;
                frames.paint(false);
                const count = document.getElementById("frame-count").value;
                return [live, rows.childElementCount, count, rows.lastElementChild.textContent.length];
            }"""
        )

        assert (live, settled, count) == (80, 240, "5,000")
        assert length < 4100


async def test_frames_hold_still_while_the_reader_looks_back(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        rows = playground.page.locator("#frame-rows li")
        await playground.ask("measured", "Many frames, please")
        await playground.ended()
        await playground.drawn()
        await playground.page.locator("#frame-rows").evaluate("rows => rows.scrollTo(0, 0)")
        await playground.drawn()
        before = await rows.count()
        await playground.ask("measured", "Many more")
        await playground.ended()
        await playground.drawn()
        assert await rows.count() == before

        await playground.page.locator("#frame-rows").evaluate("rows => rows.scrollTo(0, rows.scrollHeight)")
        await playground.drawn()
        assert await rows.count() == len(playground.watched.sent) + len(playground.watched.received) + 1


async def test_gateway_without_models_says_so(browser: Browser, tmp_path: Path) -> None:
    routes = f"auth: {{keys: [{{name: web, key: {KEY}, models: [nothing]}}]}}\n{ROUTES}"
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
        playground = Playground(watched)
        await playground.page.goto(gateway.url)
        await playground.page.get_by_role("dialog").get_by_label("Key").fill(KEY)
        await playground.page.keyboard.press("Enter")
        await playground.page.get_by_text("No models").wait_for()

        assert await playground.page.get_by_role("button", name="Send").is_disabled()


async def test_markdown_is_built_alike_however_it_is_cut(browser: Browser, gateway: RunningGateway) -> None:
    async with open_playground(browser, gateway.url) as playground:
        for text, expected in MARKDOWN.items():
            for step in (1, 2, 3, 7, len(text)):
                assert await playground.page.evaluate(RENDER, [text, step]) == expected, (text, step)
        assert playground.watched.complaints == []
