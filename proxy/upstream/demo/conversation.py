"""What any protocol's request comes down to for the built-in model: the words to answer, the tools it may call and what
they said. Reading a protocol's body into this is that protocol's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from proxy.upstream.demo.answer import Refusal

JsonObject = dict[str, Any]


class Shape(BaseModel, defer_build=True):
    """A part of a client's request: only the members that the built-in model minds, any others pass unread.

    Built when first used, because a gateway without a `demo://` route has no use for it."""


class Part(Shape):
    """A piece of a message's content, of any type; only text is minded."""

    text: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `schema` is the JSON Schema of its arguments."""

    name: str
    schema: JsonObject


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a called tool answered, as text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request. `prompt` is what the user said last; `results` are the tools' answers since then.

    `must_call`: the next answer has to be a tool call (a required or named `tool_choice`).
    `json_schema`: the answer has to be JSON of this shape.
    """

    prompt: str
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    parallel_calls: bool = True
    results: tuple[ToolResult, ...] = ()
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    json_schema: JsonObject | None = None
    input_tokens: int = 0


def offered(tools: tuple[Tool, ...], choice: str, name: str | None = None) -> tuple[tuple[Tool, ...], bool]:
    """The tools that `choice` (none, auto, required, or named with `name`) leaves, and whether one must be called.

    Raises Refusal (400) when the choice names a tool that is not there, or asks for one and there is none."""
    if choice == "none":
        return (), False
    if choice == "named":
        tools = tuple(tool for tool in tools if tool.name == name)
    if choice in ("required", "named") and not tools:
        raise Refusal(400, "tool_choice asks for a tool that is not in tools.", param="tool_choice")
    return tools, choice in ("required", "named")


def wanted_shape(kind: str, schema: JsonObject | None) -> JsonObject | None:
    """The JSON Schema that a response format asks for: its own, any object's, or none for text."""
    match kind:
        case "json_schema":
            return schema or {}
        case "json_object":
            return {"properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        case _:
            return None


def text_of(content: str | list[Part] | None) -> str:
    """The text of a message's content, a line for each part that has some."""
    content = content or ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content if part.text)


def counted(text: str) -> int:
    """Tokens in a text, as the built-in model counts what it is given: one for each four bytes begun."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4
