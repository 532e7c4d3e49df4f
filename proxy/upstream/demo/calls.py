"""Whether the built-in model calls tools, which, and with what: decided from the prompt alone.

It calls a tool whose name the prompt says, and the tools it was told to use; once they have answered, it speaks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.upstream.demo.answer import encoded
from proxy.upstream.demo.arguments import Material, arguments_for

if TYPE_CHECKING:
    from proxy.upstream.demo.conversation import Conversation, JsonObject, Tool

MOST_CALLS = 8
READ_CHARACTERS = 4000
FRAGMENT_CHARACTERS = 8
USE_TOOLS = re.compile(r"\b(?:use|using|call|try|run|with)\s+(?:\w+\s+){0,2}?tool(s?)\b", re.IGNORECASE)
PLAIN_NAME = re.compile(r"[A-Z]?[^\W\d_A-Z]+")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, with the values of its arguments."""

    name: str
    values: JsonObject

    @property
    def arguments(self) -> str:
        """The values as the text of a JSON object."""
        return encoded(self.values).decode()

    @property
    def fragments(self) -> tuple[str, ...]:
        """The arguments in the pieces a stream carries them in."""
        text, size = self.arguments, FRAGMENT_CHARACTERS
        return tuple(text[at : at + size] for at in range(0, len(text), size))


def calls_for(conversation: Conversation) -> tuple[ToolCall, ...]:
    """The calls to make now; none when the answer is to be prose."""
    if conversation.results and not conversation.must_call:
        return ()
    chosen = _chosen(conversation)[: MOST_CALLS if conversation.parallel_calls else 1]
    material = Material(conversation.prompt, tuple(tool.name for tool in chosen))
    return tuple(ToolCall(tool.name, arguments_for(tool.schema, material)) for tool in chosen)


def _chosen(conversation: Conversation) -> tuple[Tool, ...]:
    prompt = conversation.prompt[:READ_CHARACTERS]
    named = tuple(tool for tool in conversation.tools if _mentions(prompt, tool.name))
    told = USE_TOOLS.search(prompt)
    if named:
        return named
    if told:
        return conversation.tools if told[1] else conversation.tools[:1]
    return conversation.tools[:1] if conversation.must_call else ()


def _mentions(prompt: str, name: str) -> bool:
    """Whether the prompt says the tool's name. `get_weather` may be said with blanks; a capitalised plain word
    (`Read`, `Task`) must be said exactly so, for it stands in many a sentence that means something else."""
    exact = bool(PLAIN_NAME.fullmatch(name)) and name[:1].isupper()
    said = re.escape(name) if exact else r"[\s_-]".join(re.escape(part) for part in re.split(r"[_-]", name))
    return bool(re.search(rf"(?<!\w){said}(?!\w)", prompt, 0 if exact else re.IGNORECASE))
