"""Anthropic messages that broke off: how the rest is asked for, and what of it goes on.

By prefill the text so far is the last message, the assistant's; servers want it without a blank at its end. That is
done for an answer of one block of text; by replay thoughts are continued too. Tool use is not continued at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.protocols.account import Account, Prefill, around_text, half_stop, with_members
from proxy.protocols.event_data import compact, decoded, event_type
from proxy.protocols.splice import DIFFERENT, Differs, Spent, Splice, reworded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.request import RequestBody
    from proxy.wire.sse import Event

_TEXTS: Final = {"text": "text", "thinking": "thinking"}
"""The member of a block, and of its deltas, that has its text."""
_DELTAS: Final = {"text_delta": "text", "thinking_delta": "thinking"}

Json = dict[str, object]


class Block:
    """A block that the client has the beginning of, or all (`closed`)."""

    __slots__ = ("closed", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.closed = False


class MessagesAccount(Account):
    """The account of one message's blocks, each under its index."""

    __slots__ = ("_blocks",)

    def __init__(self, body: RequestBody) -> None:
        super().__init__(body)
        self._blocks: dict[str, Block] = {}

    def _look(self, event: Event) -> None:
        kind = event.type or event_type(event.data)
        if kind == b"error":
            self.failure = event
            return
        found = decoded(event.data) or {}
        index = str(found.get("index"))
        match kind:
            case b"content_block_start":
                self._begin(index, found.get("content_block"))
            case b"content_block_delta":
                self._delta(event, index, found.get("delta"))
            case b"content_block_stop" if index in self._blocks:
                self._blocks[index].closed = True
            case b"message_delta":
                self._give_up()  # it has come to its end
            case _:
                pass

    def _begin(self, index: str, block: object) -> None:
        kind = str(block.get("type")) if isinstance(block, dict) else ""
        self._blocks[index] = Block(kind)
        if not isinstance(block, dict) or kind not in _TEXTS:
            self._give_up()
        elif isinstance(text := block.get(_TEXTS[kind]), str) and text:
            self._said(index, text)

    def _delta(self, event: Event, index: str, delta: object) -> None:
        kind = str(delta.get("type")) if isinstance(delta, dict) else ""
        text = delta.get(_DELTAS[kind]) if isinstance(delta, dict) and kind in _DELTAS else None
        if isinstance(text, str) and text:
            self._said(index, text)
            self._learn(event.data, text)
        elif text is None and kind != "signature_delta":
            self._give_up()

    def _prefill(self) -> Prefill | None:
        if list(self._channels) != ["0"] or list(self._blocks) != ["0"]:
            return None
        block = self._blocks["0"]
        if block.closed or block.kind != "text":
            return None
        text = self.text("0")
        half = half_stop(text, self.body.value("stop_sequences"))
        bare = text.removesuffix(half).rstrip()
        return Prefill(bare, text[len(bare) :], lenient=not half) if bare else None

    def _prefilled(self, prefill: Prefill) -> RequestBody:
        messages = self.body.value("messages")
        said = [*messages] if isinstance(messages, list) else []
        last = said[-1] if said else None
        if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            said[-1] = {**last, "content": last["content"] + prefill.text}  # the client's own prefill
        else:
            said.append({"role": "assistant", "content": prefill.text})
        return with_members(self.body, {**self._less_used(("max_tokens", 1)), "messages": said})

    def _splice(self, told: dict[str, str], spent: Spent, *, is_prefill: bool = False, lenient: bool = False) -> Splice:
        return MessagesSplice(told, spent, self._blocks, is_prefill=is_prefill, lenient=lenient)


class MessagesSplice(Splice):
    """Events behind those of the first answer: its blocks begin once, and end once."""

    __slots__ = ("_closed", "_kinds", "_open")

    def __init__(
        self,
        told: Mapping[str, str],
        spent: Spent,
        blocks: Mapping[str, Block],
        *,
        is_prefill: bool = False,
        lenient: bool = False,
    ) -> None:
        super().__init__(told, spent, is_prefill=is_prefill, lenient=lenient)
        self._kinds = {index: block.kind for index, block in blocks.items()}
        self._closed = {index for index, block in blocks.items() if block.closed}
        self._open = set(blocks) - self._closed

    def _take(self, event: Event, found: Json) -> list[Event]:
        index = str(found.get("index"))
        match event.type or event_type(event.data):
            case b"message_start" | b"ping":
                return []
            case b"content_block_start":
                return self._begin(event, index, found.get("content_block"))
            case b"content_block_delta":
                return self._delta(event, found, index)
            case b"content_block_stop":
                return self._stop(event, index)
            case b"message_delta":
                return self._end(event, found)
            case _:
                return [event]

    def _begin(self, event: Event, index: str, block: object) -> list[Event]:
        if index not in self._kinds:
            self._require_all()
            if self._open:
                raise Differs(DIFFERENT)
            return [event]
        if not isinstance(block, dict) or block.get("type") != self._kinds[index]:
            raise Differs(DIFFERENT)
        if block.get(_TEXTS[self._kinds[index]]):
            raise Differs(DIFFERENT)  # text in an event that the client does not get
        return []

    def _delta(self, event: Event, found: Json, index: str) -> list[Event]:
        delta = found.get("delta")
        member = _DELTAS.get(str(delta.get("type"))) if isinstance(delta, dict) else None
        text = delta.get(member) if isinstance(delta, dict) and member else None
        if not isinstance(delta, dict) or not isinstance(text, str) or member is None:
            return [] if index in self._closed else [event]  # a thought's signature
        new = self._new_text(index, text)
        if not new:
            return []
        if index in self._closed:
            raise Differs(DIFFERENT)
        self._require_all()
        if new == text:
            self._learn(around := around_text(event.data, text), around)
            return [event]
        delta[member] = new
        return [reworded(compact(found), event.type)]

    def _stop(self, event: Event, index: str) -> list[Event]:
        if index in self._told and not self._is_prefill:
            raise Differs(DIFFERENT)
        if index in self._closed:
            return []
        self._open.discard(index)
        self._closed.add(index)
        return [event]

    def _end(self, event: Event, found: Json) -> list[Event]:
        """The end of the message, and of a block that the model had nothing to add to."""
        self._require_all()
        self._add_spent(found.get("usage"), ("input_tokens",), ("output_tokens",))
        stops = [compact({"type": "content_block_stop", "index": int(index)}) for index in sorted(self._open)]
        self._open.clear()
        end = reworded(compact(found), event.type)
        return [*(reworded(stop, b"content_block_stop") for stop in stops), end]
