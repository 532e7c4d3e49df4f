"""The tool loop as one chat completion: what a client sees that lets the gateway run the tools.

The rounds' texts come as one answer under one id, with one end and the sum of their usage; what the model says to its
tools is left out. A chunk is only decoded where there is something in it to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import GatewayError, UpstreamError
from proxy.protocols.event_data import compact, decoded, is_set
from proxy.protocols.failure import failure_of
from proxy.streams.joined import JoinedStream
from proxy.toolchain.merged import CUT, summed
from proxy.wire.sse import Event, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.toolchain.calls import JsonObject

_LOOKED_AT = (b'"tool_calls"', b'"finish_reason"', b'"usage"', b'"error"')
_SHARED = ("id", "object", "created", "model")
_NO_ID = b"none"
_FINISH: JsonObject = {"index": 0, "delta": {}, "finish_reason": CUT}


class ChatSink(JoinedStream):
    """One chat completion's stream, made of several; they are all of one kind. Has the interface of a stage's stream.

    `include_usage`: the client asked for the sum.
    """

    __slots__ = (
        "_called",
        "_finished",
        "_first_id",
        "_id",
        "_include_usage",
        "_round_usage",
        "_shape",
        "_usage",
    )

    def __init__(self, *, include_usage: bool, on_cancelled: Callable[[], None] | None = None) -> None:
        super().__init__(on_cancelled)
        self._include_usage = include_usage
        self._shape: JsonObject = {}  # the members all chunks share, from the first one
        self._first_id = self._id = b""  # the answer's id and the round's, each as JSON spells it
        self._usage: JsonObject = {}
        self._round_usage: JsonObject = {}
        self._called = False
        self._finished = False

    # ---- the owner's side ----

    def summary(self, round: int, calls: list[JsonObject]) -> None:
        """A chat completion has no place for it."""

    def done(self) -> None:
        """The end: the finish that is still owed, the usage if it was asked for, `[DONE]`."""
        if self.over:
            return
        last = [] if self._finished else [self._own({"choices": [_FINISH]})]
        if self._include_usage and self._usage:
            last.append(self._own({"choices": [], "usage": self._usage}))
        self.over = True
        self.stream.publish([*last, _event(b"[DONE]")])
        self.stream.end()

    def stop_for(self, error: GatewayError | None) -> None:
        """The end, or the error that comes instead; its wording is the client's side's."""
        if error is None:
            self.done()
        elif not self.over:
            self.error = error
            self.over = True
            self.stream.end(error)
            self._let_go()

    # ---- the followed stream's side (its listener) ----

    def write(self, events: list[Event]) -> bool:
        see = self._see
        passed: list[Event] = []
        failure: UpstreamError | None = None
        for event in events:
            if see is not None:
                see(event)
            data = event.data
            if self._id and not event.type and _is_plain(data):
                renamed = self._renamed(data)
                passed.append(event if renamed is data else _event(renamed))
                continue
            chunk = decoded(data)  # None for [DONE]
            if chunk is None:
                continue
            if chunk.get("error") or event.type == b"error":
                failure = UpstreamError(failure_of(chunk).message, code="upstream_error")
                break
            if self._says_more(chunk):
                passed.append(_event(self._renamed(compact(chunk))))
        if passed and not self.over:
            self.stream.publish(passed)
        if failure is not None and not self.over:
            self._fail_within(failure)
        return self._paused

    def end(self, error: GatewayError | None) -> None:
        self._usage = summed([self._usage, self._round_usage])
        super().end(error)

    # ---- chunks ----

    def _begin(self, kind: str) -> None:
        self._id = b""
        self._round_usage = {}
        self._called = False

    def _says_more(self, chunk: JsonObject) -> bool:
        """Takes out of a chunk what does not go on; whether anything is left."""
        begins, first = not self._id, not self._first_id
        if begins:
            self._id = _spelled(chunk.get("id"))
        if first:
            self._first_id = self._id
            self._shape = {name: chunk[name] for name in _SHARED if name in chunk}
        if isinstance(usage := chunk.pop("usage", None), dict):
            self._round_usage = usage
        listed = chunk.get("choices")
        choices = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
        chunk["choices"] = kept = [choice for choice in choices if self._goes_on(choice, first or not begins)]
        return bool(kept)

    def _goes_on(self, choice: JsonObject, keeps_role: bool) -> bool:
        """Takes the calls out of a choice, its finish where calls came before it, and a role that was told already."""
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        calls = delta.pop("tool_calls", None)
        self._called = self._called or bool(calls)
        if not keeps_role or calls:
            choice["delta"] = delta = {name: value for name, value in delta.items() if value}
        if not keeps_role:
            delta.pop("role", None)
        if self._called:
            choice["finish_reason"] = None
        self._finished = self._finished or bool(choice.get("finish_reason"))
        return bool(delta) or bool(choice.get("finish_reason"))

    def _renamed(self, data: bytes) -> bytes:
        """Under the answer's id. Its quotes make it the member's value: within a text they would be escaped."""
        return data if self._id in (self._first_id, _NO_ID) else data.replace(self._id, self._first_id, 1)

    def _own(self, members: JsonObject) -> Event:
        return _event(compact({**self._shape, **members}))


def _is_plain(data: bytes) -> bool:
    """A chunk of text, with nothing in it to change."""
    return data[:1] == b"{" and not any((at := data.find(name)) >= 0 and is_set(data, name, at) for name in _LOOKED_AT)


def _spelled(id: object) -> bytes:
    return compact(id) if isinstance(id, str) and id else _NO_ID


def _event(data: bytes) -> Event:
    wire = encode(data)
    return Event(wire, wire, data)
