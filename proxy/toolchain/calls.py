"""What the model said in one round: its message, as the next round's request repeats it, and the tools it calls.

Servers spell calls in many ways: arguments in fragments or whole, as text or as an object, without an index, without an
id. All of them come out the same here. Which tool a name means is `catalogue`'s; what comes next, `loop`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import Struct

from proxy.protocols.event_data import compact, decoded, is_set

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.wire.sse import Event

JsonObject = dict[str, object]

_TOOL_CALLS = b'"tool_calls"'
# Some servers want their model's thoughts back with its calls, and refuse to go on without them.
_THOUGHTS = ("reasoning_content", "reasoning")


class Call(Struct, frozen=True):
    """One tool call: `name` as the model wrote it, `text` its arguments as it wrote them."""

    id: str
    name: str
    text: str

    @property
    def arguments(self) -> JsonObject | None:
        """The arguments; None where they are no JSON object. No text at all means none are given."""
        return decoded(self.text.encode("utf-8", "replace")) if self.text.strip() else {}


class Said(Struct, frozen=True):
    """One round of the model's: `calls` in its order, `message` the assistant's message that goes with them."""

    message: JsonObject
    calls: tuple[Call, ...] = ()


@dataclass(slots=True, eq=False)
class _Draft:
    """A call as its pieces come in."""

    index: object = None
    id: str = ""
    name: str = ""
    text: str = ""
    more: JsonObject = field(default_factory=dict)
    """Members of the server's own, which it may want to see again (a signature)."""

    def add(self, piece: Mapping[str, object]) -> None:
        self.id = self.id or _text(piece.get("id"))
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name = _text(function.get("name"))
        if name != self.name:
            self.name += name
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            self.text = json.dumps(arguments, ensure_ascii=False)
        else:
            self.text += _text(arguments)
        known = ("index", "id", "type", "function")
        self.more |= {member: value for member, value in piece.items() if member not in known}


class RoundReader:
    """Reads one round's answer from its chunks. Nothing is decoded before the end, and then only if a tool was called:
    most answers are text, and cost one search an event."""

    __slots__ = ("_kept", "may_call")

    def __init__(self) -> None:
        self.may_call = False
        """Whether some chunk spoke of tool calls."""
        self._kept: list[bytes] = []

    def see(self, event: Event) -> None:
        data = event.data
        self._kept.append(data)
        if not self.may_call and (at := data.find(_TOOL_CALLS)) >= 0 and is_set(data, _TOOL_CALLS, at):
            self.may_call = True

    def said(self, number: int) -> Said:
        """What was said in round `number`; of a round that called nothing, not even its text is kept."""
        if not self.may_call:
            return Said({})
        drafts: list[_Draft] = []
        texts: dict[str, list[str]] = {}
        for data in self._kept:
            _read(_delta(decoded(data) or {}, "delta"), drafts, texts)
        return _said(number, drafts, {name: "".join(pieces) for name, pieces in texts.items()})


def said_in(completion: Mapping[str, object], number: int) -> Said:
    """What a completion in one piece, round `number`'s answer, says."""
    drafts: list[_Draft] = []
    texts: dict[str, list[str]] = {}
    _read(_delta(completion, "message"), drafts, texts)
    return _said(number, drafts, {name: "".join(pieces) for name, pieces in texts.items()})


def chunk_of(completion: Mapping[str, object]) -> bytes:
    """A completion in one piece as the one chunk of a stream: for servers that answer so though asked for a stream."""
    chunk: JsonObject = {**completion, "object": "chat.completion.chunk"}
    listed = completion.get("choices")
    choices = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
    chunk["choices"] = [_streamed(choice) for choice in choices]
    return compact(chunk)


def _streamed(choice: JsonObject) -> JsonObject:
    delta = choice.get("message")
    delta = dict(delta) if isinstance(delta, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [
            {"index": at, **call} if isinstance(call, dict) else call for at, call in enumerate(calls)
        ]
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": delta}


def _delta(answer: Mapping[str, object], member: str) -> Mapping[str, object]:
    """The first choice's `delta` or `message`."""
    listed = answer.get("choices")
    for choice in listed if isinstance(listed, list) else []:
        if isinstance(choice, dict) and choice.get("index") in (0, None):
            delta = choice.get(member)
            return delta if isinstance(delta, dict) else {}
    return {}


def _read(delta: Mapping[str, object], drafts: list[_Draft], texts: dict[str, list[str]]) -> None:
    for name in ("content", *_THOUGHTS):
        if piece := _text(delta.get(name)):
            texts.setdefault(name, []).append(piece)
    pieces = delta.get("tool_calls")
    for piece in pieces if isinstance(pieces, list) else []:
        if isinstance(piece, dict):
            _draft_for(piece, drafts).add(piece)


def _draft_for(piece: Mapping[str, object], drafts: list[_Draft]) -> _Draft:
    """The call a piece belongs to: by index, unless its id says that it is another one; else by id; else the last one,
    unless it brings a name of its own."""
    index, id = piece.get("index"), _text(piece.get("id"))
    function = piece.get("function")
    named = isinstance(function, dict) and bool(function.get("name"))
    if index is not None:
        found = [draft for draft in drafts if draft.index == index]
        if found and not (id and named and found[-1].id and id != found[-1].id):
            return found[-1]
    elif id and any(draft.id == id for draft in drafts):
        found = [draft for draft in drafts if draft.id == id]
        if not named or _text(function.get("name") if isinstance(function, dict) else "") == found[-1].name:
            return found[-1]
    elif drafts and not id and not named:
        return drafts[-1]
    drafts.append(_Draft(index))
    return drafts[-1]


def _said(number: int, drafts: list[_Draft], texts: Mapping[str, str]) -> Said:
    ids: set[str] = set()
    calls: list[Call] = []
    for at, draft in enumerate(drafts):
        id = draft.id if draft.id and draft.id not in ids else f"call_{number}_{at}"
        ids.add(id)
        calls.append(Call(id, draft.name, draft.text))
    message: JsonObject = {"role": "assistant", "content": texts.get("content")}
    message |= {name: texts[name] for name in _THOUGHTS if name in texts}
    if calls:
        message["tool_calls"] = [_repeated(call, draft.more) for call, draft in zip(calls, drafts, strict=True)]
    return Said(message, tuple(calls))


def _repeated(call: Call, more: JsonObject) -> JsonObject:
    """A call as the next request repeats it. Servers parse its arguments, and refuse what is no object."""
    text = call.text if call.text.strip() and call.arguments is not None else "{}"
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": text}, **more}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
