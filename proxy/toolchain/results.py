"""What a tool call gave: the text a model is told, and the line of it in a round's summary.

Chat completions know text only in a tool's message: images, sounds and files that a tool returns become a note that
they were there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from proxy.toolchain.calls import Call, JsonObject

RESULT_CHARACTERS = 256 * 1024
"""The longest text a model, or a summary, is given of one result."""


class Outcome(Struct, frozen=True):
    """What a tool, or the attempt to run it, came to: text for the model."""

    text: str
    is_error: bool = False


class CallResult(Struct, frozen=True):
    """A call and its outcome, `duration_ms` after it began."""

    call: Call
    outcome: Outcome
    duration_ms: float

    @property
    def message(self) -> JsonObject:
        """The message that gives it to the model, which has no other way to tell an error than to be told."""
        text = self.outcome.text
        content = f"Error: {text}" if self.outcome.is_error else text
        return {"role": "tool", "tool_call_id": self.call.id, "content": content}

    @property
    def summary(self) -> JsonObject:
        """Its entry in a `tool_summary`: the arguments as JSON where they are, else as the model wrote them."""
        arguments = self.call.arguments
        return {
            "id": self.call.id,
            "name": self.call.name,
            "arguments": self.call.text if arguments is None else arguments,
            "result": self.outcome.text,
            "is_error": self.outcome.is_error,
            "duration_ms": self.duration_ms,
        }


def failed(text: str) -> Outcome:
    return Outcome(text, is_error=True)


def outcome_of(blocks: Sequence[Mapping[str, object]], structured: object, *, is_error: bool) -> Outcome:
    """An MCP result as text. `blocks` is its content, as JSON has it; `structured` counts only where no block has text,
    since a server is asked to give both."""
    texts = [_text_of(block) for block in blocks]
    has_text = any(block.get("type") == "text" for block in blocks)
    if structured is not None and not has_text:
        texts.append(json.dumps(structured, ensure_ascii=False))
    return Outcome(cut("\n".join(texts)), is_error)


def cut(text: str) -> str:
    """At most `RESULT_CHARACTERS` of it, saying so where it is less than all."""
    if len(text) <= RESULT_CHARACTERS:
        return text
    return f"{text[:RESULT_CHARACTERS]}\n[cut: the first {RESULT_CHARACTERS} of {len(text)} characters]"


def _text_of(block: Mapping[str, object]) -> str:
    """A content block as text; what is none becomes a note in brackets."""
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text
        case {"type": "resource", "resource": {"uri": uri}}:
            return f"[a file, not shown here: {uri}]"
        case {"type": "resource_link", "uri": uri}:
            return f"[a link: {uri}]"
        case {"type": "image" | "audio" as kind, "data": str(data), **others}:
            return f"[{kind} of type {others.get('mimeType')}, {len(data) * 3 // 4} bytes, not shown here]"
        case _:
            return f"[{block.get('type')}, not shown here]"
