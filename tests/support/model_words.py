"""What a model server says in each protocol, as bytes: the same few things in chat completions', Anthropic's and
Responses' words, so that a fault is written once for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.responses import completed, created, delta, sse
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    Script,
    answer,
    chunk,
    content,
    event,
)

ITS_OWN: dict[str, Any] = {"message": "mine", "type": "t", "param": None, "code": "its_own"}
"""A model server's own error."""
ERROR_BODY = json.dumps({"error": ITS_OWN}).encode()


@dataclass(frozen=True, slots=True)
class Words:
    """`preamble`: what comes before any content. `content`: an event that says a text. `end`: the protocol's own end.
    `error`: an error event."""

    preamble: bytes
    content: Callable[[str], bytes]
    end: bytes
    error: Callable[[dict[str, Any]], bytes]


def _message_start() -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
    block = {"type": "text", "text": ""}
    return sse("message_start", message=message) + sse("content_block_start", index=0, content_block=block)


def _text_delta(text: str) -> bytes:
    """With the text as it is written, not as `\\u` escapes."""
    event = sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "TEXT"})
    return event.replace(b"TEXT", text.encode())


def _response_begins() -> bytes:
    response = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
    item = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    begins = sse("response.in_progress", sequence_number=1, response=response)
    begins += sse("response.output_item.added", sequence_number=2, output_index=0, item=item)
    return created() + begins + sse("response.content_part.added", sequence_number=3, item_id="i", part=part)


def _output_delta(text: str) -> bytes:
    return delta("TEXT").replace(b"TEXT", text.encode())


CHAT = Words(
    ROLE,
    content,
    STOP + DONE,
    lambda error: event(json.dumps({"error": error}).encode()),
)
MESSAGES = Words(
    _message_start(),
    _text_delta,
    sse("message_stop"),
    lambda error: sse("error", error=error),
)
RESPONSES = Words(
    _response_begins(),
    _output_delta,
    completed(),
    lambda error: sse("error", **{name: value for name, value in error.items() if name != "type"}),
)
WELL = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"well"},"finish_reason":"stop"}]}'
"""A chat in one piece."""


def well(words: Words) -> Script:
    """A model server that answers every request with "well": as a stream of two events where that is asked for. What
    has no body asks for its health."""

    async def script(peer: Peer) -> None:
        while True:
            streams = json.loads((await peer.request()).body or b"{}").get("stream")
            events = words.preamble + words.content("we") + words.content("ll") + words.end
            await peer.send(OK_EVENTS + chunk(events) + LAST_CHUNK if streams else answer(200, WELL))

    return script
