"""Streamed answers as model servers of each protocol write them, under names of their own and cut as one likes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from proxy.request import RequestBody
from proxy.wire.sse import Event, Parser

DONE = b"data: [DONE]\n\n"


def body_of(**members: Any) -> RequestBody:
    return RequestBody.parse(json.dumps({"model": "chat", "stream": True, **members}).encode())


def events_of(wire: bytes) -> list[Event]:
    return Parser(1 << 20).feed(wire)


def data_of(events: Iterable[Event]) -> list[Any]:
    """What the events say, decoded; `[DONE]` as it is."""
    return [event.data if event.data == b"[DONE]" else json.loads(event.data) for event in events]


def chunk_event(name: str, delta: dict[str, Any] | None = None, finish: str | None = None, **members: Any) -> bytes:
    """A chat chunk of the answer called `name`; of a delta, with these more `members`."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    shape = {"id": name, "object": "chat.completion.chunk", "created": len(name), "model": f"model-{name}"}
    return b"data: " + json.dumps({**shape, "choices": choices, **members}, ensure_ascii=False).encode() + b"\n\n"


def chat_events(name: str, *texts: str, usage: tuple[int, int] | None = None, finish: str | None = "stop") -> bytes:
    """A whole answer of these texts, a chunk each: a role before them, and its end. Without `finish`, it breaks off."""
    said = [
        chunk_event(name, {"role": "assistant", "content": ""}),
        *(chunk_event(name, {"content": t}) for t in texts),
    ]
    if finish is not None:
        said.append(chunk_event(name, {}, finish))
        if usage is not None:
            read, written = usage
            counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            said.append(chunk_event(name, usage=counts))
        said.append(DONE)
    return b"".join(said)


def completion_events(name: str, *texts: str, finish: str | None = "stop") -> bytes:
    """The same of OpenAI's older endpoint."""
    ends = [None] * len(texts) + ([finish] if finish else [])
    said = []
    for text, end in zip([*texts, *([""] if finish else [])], ends, strict=True):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": end}
        chunk = {"id": name, "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
        said.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    return b"".join(said) + (DONE if finish else b"")


def message_event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members}, ensure_ascii=False)}\n\n".encode()


def message_start(name: str, tokens_in: int = 7) -> bytes:
    message = {"id": name, "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": tokens_in}}
    return message_event("message_start", message=message)


def block_events(index: int, *texts: str, kind: str = "text", closed: bool = True) -> bytes:
    delta, member = ("text_delta", "text") if kind == "text" else ("thinking_delta", "thinking")
    said = [message_event("content_block_start", index=index, content_block={"type": kind, member: ""})]
    said += [message_event("content_block_delta", index=index, delta={"type": delta, member: text}) for text in texts]
    return b"".join(said) + (message_event("content_block_stop", index=index) if closed else b"")


def message_end(tokens_out: int) -> bytes:
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return message_event("message_delta", delta=delta, usage={"output_tokens": tokens_out}) + message_event(
        "message_stop"
    )


def chat_text(events: Iterable[Event], name: str = "content") -> str:
    """What a client of chat completions reads of them."""
    found = [data for data in data_of(events) if data != b"[DONE]"]
    return "".join(choice["delta"].get(name) or "" for data in found for choice in data["choices"])


def message_text(events: Iterable[Event]) -> str:
    """What a client of messages reads of them."""
    deltas = [data["delta"] for data in data_of(events) if data["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)
