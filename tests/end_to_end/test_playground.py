"""The playground in a real browser, against the real gateway: a prompt is sent, its answer grows, is stopped, fails."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.support.browser import DESK, PHONE, WatchedPage, running_browser, watched_page
from tests.support.gateway import running_gateway
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    ScriptedUpstream,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

KEY: Final = "sk-playground-ünïcode"
ROUTES: Final = """
routes:
  measured: demo://?tokens=60&interval=20ms&first=50ms
  long: demo://?tokens=2000&interval=20ms&first=20ms
  refused: http://127.0.0.1:9
"""

FRAME_DRAWN: Final = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
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
    """One Chromium for all journeys; each has a page, and a gateway, of its own."""
    async with running_browser() as browser:
        yield browser


def one_route(upstream: ScriptedUpstream) -> str:
    return f"routes:\n  scripted: {{replicas: ['{upstream.url}'], health: none}}\n"


async def opened(watched: WatchedPage, url: str) -> None:
    """Opens the playground and waits until its line to the gateway stands."""
    await watched.page.goto(url)
    await watched.page.locator("[data-state=connected]").wait_for()


async def ask(watched: WatchedPage, model: str, prompt: str) -> None:
    await watched.page.get_by_label("Model").select_option(model)
    await watched.page.get_by_label("Prompt", exact=True).fill(prompt)
    await watched.page.keyboard.press("Enter")


async def ended(watched: WatchedPage) -> str:
    """Waits for the last turn's end and returns how it ended."""
    await watched.page.locator(".turn:last-child .again").wait_for()
    return await watched.page.locator(".turn:last-child .outcome").inner_text()


async def gauge(watched: WatchedPage, name: str) -> float:
    return float((await watched.page.locator(f"[data-gauge={name}] output").inner_text()).replace(",", ""))


class Cable:
    """A TCP line to the gateway that can be cut and laid again on the same port."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def lay(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._ends |= {writer, far_writer}
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        writer.transport.abort()


@asynccontextmanager
async def laid_cable(target: str) -> AsyncIterator[Cable]:
    cable = Cable(target)
    await cable.lay()
    try:
        yield cable
    finally:
        await cable.cut()


@asynccontextmanager
async def playground(browser: Browser, tmp_path: Path, routes: str = ROUTES, **kind: Any) -> AsyncIterator[WatchedPage]:
    """The page, connected to a gateway of its own; both end with the block."""
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser, **kind) as watched:
        await opened(watched, gateway.url)
        yield watched


async def test_answer_grows_in_many_steps_and_is_measured(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await watched.keep_picture("playground-opening")
        await watched.page.evaluate(WATCH_GROWTH)
        await ask(watched, "measured", "Tell me about the water in the pipe.")

        assert await ended(watched) == "stop"
        lengths = await watched.page.evaluate("window.lengths")
        assert len(lengths) >= 10
        assert lengths[-1] > 100
        assert await gauge(watched, "tokens") == 60
        assert 50 <= await gauge(watched, "first") < 5000
        assert 2 < await gauge(watched, "rate") <= 60
        assert 1.2 <= await gauge(watched, "time") < 30
        assert "median" in await watched.page.locator("#gap-words").inner_text()
        assert "60 tokens" in await watched.page.locator(".measured").inner_text()
        assert watched.complaints == []


async def test_page_asks_nothing_of_any_other_host(browser: Browser, tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path) as gateway, watched_page(browser) as watched:
        await opened(watched, gateway.url)
        await ask(watched, "measured", "Look at https://elsewhere.example/image.png")
        await ended(watched)

        assert len(watched.requested) > 15
        assert watched.hosts() == {urlsplit(gateway.url).netloc}
        assert watched.complaints == []


async def test_earlier_turns_and_settings_are_sent_along(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "measured", "First question")
        await ended(watched)
        await watched.page.locator("#tuning summary").click()
        await watched.page.get_by_label("System prompt").fill("Be brief.")
        await watched.page.get_by_label("Temperature").fill("0.5")
        await watched.page.get_by_label("Max tokens").fill("20")
        await watched.page.get_by_label("More members").fill('{"top_p": 0.9}')
        await ask(watched, "measured", "Second question")

        assert await ended(watched) == "length"
        body = json.loads(watched.sent[-1])
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["messages"][0]["content"] == "Be brief."
        assert body["messages"][1]["content"] == "First question"
        told = [json.loads(frame) for frame in watched.received[: watched.received.index("[DONE]")]]
        first_answer = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told if chunk["choices"])
        assert body["messages"][2]["content"] == first_answer
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.5, 20, 0.9)
        assert await gauge(watched, "tokens") == 20
        assert watched.complaints == []


async def test_again_asks_the_last_prompt_in_place_of_its_answer(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "measured", "Only question")
        await ended(watched)
        await watched.page.get_by_role("button", name="Again").click()
        await watched.page.locator(".running").wait_for()

        assert await ended(watched) == "stop"
        assert await watched.page.locator(".turn").count() == 1
        assert json.loads(watched.sent[1])["messages"] == [{"role": "user", "content": "Only question"}]


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

    async with scripted_upstream(go_on) as upstream, playground(browser, tmp_path, one_route(upstream)) as watched:
        await ask(watched, "scripted", "Go on")
        await watched.page.get_by_text("on on on on").wait_for()
        assert not lost.is_set()

        if way == "Stop":
            await watched.page.get_by_role("button", name="Stop").click()
        else:
            await watched.page.keyboard.press("Escape")
        await asyncio.wait_for(lost.wait(), 1)

        assert await ended(watched) == "stopped"
        assert watched.sent[-1] == watched.received[-1] == '{"type":"cancel"}'
        assert await watched.page.get_by_role("button", name="Send").is_enabled()
        assert watched.complaints == []


async def test_reasoning_stands_apart_and_is_not_sent_along(browser: Browser, tmp_path: Path) -> None:
    thought = content("").replace(b'"content":""', b'"reasoning_content":"Let me *think*."')
    answer = OK_EVENTS + b"".join(chunk(piece) for piece in (ROLE, thought, content("Forty-two."), STOP, DONE))
    script = answering(answer + LAST_CHUNK)
    async with scripted_upstream(script) as upstream, playground(browser, tmp_path, one_route(upstream)) as watched:
        await ask(watched, "scripted", "What is it?")
        assert await ended(watched) == "stop"
        assert await watched.page.locator(".reasoning p").inner_text() == "Let me *think*."
        assert await watched.page.locator(".answer-text").inner_text() == "Forty-two."
        assert await watched.page.locator("[data-gauge=tokens] dd").inner_text() == "2 deltas"

        await ask(watched, "scripted", "Sure?")
        await watched.page.locator(".turn").nth(1).wait_for()
        assert await ended(watched) == "stop"
        assert json.loads(watched.sent[1])["messages"][1] == {"role": "assistant", "content": "Forty-two."}


async def test_tool_calls_are_shown_with_their_whole_arguments(browser: Browser, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"reservoir": {"type": "string"}}, "required": ["reservoir"]}
    tool = {"type": "function", "function": {"name": "water_level", "parameters": schema}}
    async with playground(browser, tmp_path) as watched:
        await watched.page.locator("#tuning summary").click()
        await watched.page.get_by_label("More members").fill(json.dumps({"tools": [tool]}))
        await ask(watched, "measured", "Please use the tool water_level.")

        assert await ended(watched) == "tool_calls"
        assert await watched.page.locator(".tool-call b").inner_text() == "water_level"
        arguments = json.loads(await watched.page.locator(".tool-call code").inner_text())
        assert set(arguments) == {"reservoir"}


async def test_settings_that_make_no_sense_are_not_sent(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await watched.page.locator("#tuning summary").click()
        await watched.page.get_by_label("More members").fill("[1]")
        await ask(watched, "measured", "Kept")

        await watched.page.get_by_text("More members must be a JSON object.").wait_for()
        assert watched.sent == []
        assert await watched.page.get_by_label("Prompt", exact=True).input_value() == "Kept"


async def test_new_conversation_forgets_the_turns_even_while_one_runs(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "long", "Go on")
        await watched.page.locator(".answer-text p").wait_for()
        await watched.page.get_by_role("button", name="New").click()
        await watched.page.get_by_text("Open the gate").wait_for()
        await watched.page.get_by_role("button", name="Send").wait_for()
        await ask(watched, "measured", "Fresh")

        assert await ended(watched) == "stop"
        assert await watched.page.locator(".turn").count() == 1
        assert json.loads(watched.sent[-1])["messages"] == [{"role": "user", "content": "Fresh"}]
        assert watched.complaints == []


async def test_stopped_socket_serves_the_next_prompt(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "long", "Go on")
        await watched.page.locator(".answer-text p").wait_for()
        await watched.page.keyboard.press("Escape")
        assert await ended(watched) == "stopped"
        await ask(watched, "measured", "And now?")

        assert await ended(watched) == "stop"
        assert await gauge(watched, "tokens") == 60


async def test_failed_upstream_is_a_readable_message_with_its_code(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "refused", "Anyone there?")

        assert await ended(watched) == "failed"
        facts = await watched.page.locator(".failure-facts").inner_text()
        assert facts in ("502 · upstream_unreachable", "503 · no_replica_available")
        assert "127.0.0.1" not in await watched.page.locator(".failure").inner_text()
        assert watched.complaints == []


async def test_unknown_key_is_asked_for_and_the_right_one_connects(browser: Browser, tmp_path: Path) -> None:
    routes = f"auth: {{keys: [{{name: web, key: {KEY}}}]}}\n{ROUTES}"
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
        dialog = watched.page.get_by_role("dialog")
        await watched.page.goto(gateway.url)
        await dialog.wait_for()
        await dialog.get_by_label("Key").fill("sk-wrong")
        await watched.page.keyboard.press("Enter")
        await watched.page.get_by_text("does not know").wait_for()
        assert await watched.page.locator("#key-reason").inner_text() == "The gateway does not know this key."
        assert await watched.page.locator("[data-state=refused]").is_visible()
        assert "401" in await watched.page.locator("#notice").inner_text()
        await watched.keep_picture("playground-key")
        assert not [url for url in watched.requested if url.startswith("ws:")]

        await dialog.get_by_label("Key").fill(KEY)
        await watched.page.keyboard.press("Enter")
        await watched.page.locator("[data-state=connected]").wait_for()
        assert await watched.page.locator("#notice").is_hidden()
        await ask(watched, "measured", "Now?")
        assert await ended(watched) == "stop"
        assert await watched.page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert KEY not in await watched.page.evaluate("JSON.stringify([document.cookie, {...localStorage}])")
        assert KEY not in await watched.page.locator("#frame-rows").inner_text()
        assert all("401" in complaint for complaint in watched.complaints)  # the browser's own word for each refusal


async def test_lost_line_is_said_and_comes_back(browser: Browser, tmp_path: Path) -> None:
    async with (
        running_gateway(ROUTES, tmp_path) as gateway,
        laid_cable(gateway.url) as cable,
        watched_page(browser) as watched,
    ):
        await opened(watched, cable.url)
        await ask(watched, "long", "Go on")
        await watched.page.locator(".answer-text p").wait_for()
        await cable.cut()

        assert await ended(watched) == "connection lost"
        await watched.page.get_by_text("again in").wait_for()
        await watched.keep_picture("playground-lost")
        await cable.lay()
        await watched.page.locator("[data-state=connected]").wait_for()
        await ask(watched, "measured", "Are you there?")
        assert await ended(watched) == "stop"


async def test_frames_show_both_ways_and_can_be_filtered(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await ask(watched, "measured", "Frames, please")
        await ended(watched)
        rows = watched.page.locator("#frame-rows li")

        assert await rows.last.locator("code").inner_text() == "[DONE]"
        shown = await rows.locator("code").all_text_contents()
        assert shown == ["connected", watched.sent[0], *watched.received]
        await watched.page.get_by_label("Direction").select_option("out")
        assert await rows.locator("code").all_text_contents() == watched.sent
        await watched.page.get_by_label("Direction").select_option("")
        await watched.page.get_by_label("Filter frames").fill('finish_reason":"STOP')
        assert await rows.count() == 1
        await watched.page.get_by_role("button", name="clear").click()
        assert await rows.count() == 0


async def test_frames_kept_and_shown_are_bounded(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        live, settled, count, length = await watched.page.evaluate(
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

        assert (live, settled, count) == (80, 600, "5,000")
        assert length < 4100


async def test_frames_hold_still_while_the_reader_looks_back(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        rows = watched.page.locator("#frame-rows li")
        await ask(watched, "measured", "Many frames, please")
        await ended(watched)
        await watched.page.locator("#frame-rows").evaluate("rows => rows.scrollTo(0, 0)")
        await watched.page.evaluate(FRAME_DRAWN)
        before = await rows.count()
        await ask(watched, "measured", "Many more")
        await ended(watched)
        assert await rows.count() == before

        await watched.page.locator("#frame-rows").evaluate("rows => rows.scrollTo(0, rows.scrollHeight)")
        await watched.page.evaluate(FRAME_DRAWN)
        assert await rows.count() == len(watched.sent) + len(watched.received) + 1


async def test_keyboard_reaches_the_prompt_and_breaks_lines(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        await watched.page.locator("#talk").focus()
        await watched.page.keyboard.press("/")
        await watched.page.keyboard.type("one/")
        await watched.page.keyboard.press("Shift+Enter")
        await watched.page.keyboard.type("two")
        assert await watched.page.get_by_label("Prompt", exact=True).input_value() == "one/\ntwo"
        await watched.page.get_by_label("Model").select_option("measured")
        await watched.page.get_by_label("Prompt", exact=True).press("Enter")

        assert await ended(watched) == "stop"
        assert await watched.page.locator(".asked-text").inner_text() == "one/\ntwo"
        assert await watched.page.get_by_label("Prompt", exact=True).input_value() == ""


async def test_gateway_without_models_says_so(browser: Browser, tmp_path: Path) -> None:
    routes = f"auth: {{keys: [{{name: web, key: {KEY}, models: [nothing]}}]}}\n{ROUTES}"
    async with running_gateway(routes, tmp_path) as gateway, watched_page(browser) as watched:
        await watched.page.goto(gateway.url)
        await watched.page.get_by_role("dialog").get_by_label("Key").fill(KEY)
        await watched.page.keyboard.press("Enter")
        await watched.page.get_by_text("No models").wait_for()

        assert await watched.page.get_by_role("button", name="Send").is_disabled()


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")],
)
async def test_page_fits_and_is_pictured(
    browser: Browser, tmp_path: Path, name: str, size: tuple[int, int], scheme: str
) -> None:
    async with playground(browser, tmp_path, size=size, scheme=scheme) as watched:
        await ask(watched, "measured", "What is a penstock, and what sets its flow?")
        await watched.page.locator(".answer-text p").wait_for()
        await watched.keep_picture(f"playground-{name}-running")
        await ended(watched)
        await watched.keep_picture(f"playground-{name}")

        overflow = await watched.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow == 0
        send = await watched.page.get_by_role("button", name="Send").bounding_box()
        assert send is not None
        assert send["x"] + send["width"] <= size[0]
        assert send["y"] + send["height"] <= size[1]
        dark = await watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(13, 20, 19)") == (scheme == "dark")
        assert watched.complaints == []


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


async def test_markdown_is_built_alike_however_it_is_cut(browser: Browser, tmp_path: Path) -> None:
    async with playground(browser, tmp_path) as watched:
        for text, expected in MARKDOWN.items():
            for step in (1, 2, 3, 7, len(text)):
                assert await watched.page.evaluate(RENDER, [text, step]) == expected, (text, step)
        assert watched.complaints == []
