"""A splice: what goes on to a client of a second answer that takes up where the first one broke off.

What the client has already is swallowed, as long as it is the same; events cut it up in ways of their own. What follows
is given the first answer's name, and token counts are those of both. How events read is each protocol's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.protocols.event_data import decoded, is_done
from proxy.wire.sse import encode, plain_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.wire.sse import Event

UNLIKE_ANY: Final = b"none yet"
QUOTE: Final = 0x22
DIFFERENT: Final = "the other replica's answer is another one"


class Differs(Exception):
    """The second answer does not go on where the first one broke off."""


class Spent(NamedTuple):
    """Tokens that earlier parts of the answer have taken, as far as is known."""

    tokens_in: int
    tokens_out: int


class Splice:
    """For one second answer. `told` is what the client has of each text, and the second one says again. `is_prefill`:
    the model was given it and need not; `lenient`: it may also say something else.

    `through`: something of it has gone on.
    """

    __slots__ = (
        "_head",
        "_head_bytes",
        "_is_prefill",
        "_lenient",
        "_new_head",
        "_new_tail",
        "_spent",
        "_tail",
        "_tail_bytes",
        "_told",
        "through",
    )

    def __init__(
        self, told: Mapping[str, str], spent: Spent, *, is_prefill: bool = False, lenient: bool = False
    ) -> None:
        self._told = {name: text for name, text in told.items() if text}
        self._spent = spent
        self._is_prefill = is_prefill
        self._lenient = lenient
        self.through = False
        self._head = self._tail = UNLIKE_ANY
        self._head_bytes = self._tail_bytes = 1
        self._new_head = self._new_tail = b""

    def passed(self, events: list[Event]) -> list[Event]:
        """What goes on of these. Raises Differs."""
        passed: list[Event] = []
        for event in events:
            data = event.data
            if data[: self._head_bytes] == self._head and data[-self._tail_bytes :] == self._tail:
                text = data[self._head_bytes : -self._tail_bytes]
                if QUOTE not in text:  # like the last one but for its text
                    new = self._new_head + text + self._new_tail
                    passed.append(event if new == data else reworded(new, event.type))
                    continue
            passed += self._look(event)
        if passed:
            self.through = True
        return passed

    def _look(self, event: Event) -> list[Event]:
        if is_done(event.data):
            self._require_all()
            return [event]
        found = decoded(event.data)
        return [] if found is None else self._take(event, found)

    def _take(self, event: Event, found: dict[str, object]) -> list[Event]:
        """Each protocol's own: what goes on of an event, as decoded."""
        raise NotImplementedError

    # ---- for them ----

    def _new_text(self, channel: str, text: str) -> str:
        """What the client does not have yet of a piece of text. Raises Differs."""
        told = self._told.get(channel)
        if told is None:
            return text
        if told.startswith(text):
            self._told[channel] = told[len(text) :]
            if len(told) == len(text):
                del self._told[channel]
            return ""
        if not text.startswith(told) and not self._lenient:
            raise Differs(DIFFERENT)
        del self._told[channel]
        return text[len(told) :] if text.startswith(told) else text

    def _require_all(self) -> None:
        """The second answer goes on, or ends. Raises Differs where the client has more of it than it has said."""
        if self._told and not self._is_prefill:
            raise Differs(DIFFERENT)
        self._told.clear()

    def _learn(self, before: tuple[bytes, bytes] | None, after: tuple[bytes, bytes] | None) -> None:
        """What stands around a text as it came, and as it went on: events that are like it are not looked at."""
        if before is not None and after is not None and not self._told:
            self._head, self._tail = before
            self._head_bytes, self._tail_bytes = map(len, before)
            self._new_head, self._new_tail = after

    def _add_spent(self, usage: object, into: tuple[str, ...], out: tuple[str, ...]) -> None:
        """Add what earlier parts have taken to the counts of a usage object, under whichever of these names it has."""
        if isinstance(usage, dict):
            for names, tokens in ((into, self._spent.tokens_in), (out, self._spent.tokens_out)):
                for name in names:
                    if type(usage.get(name)) is int:
                        usage[name] += tokens


def reworded(data: bytes, type: bytes) -> Event:
    """An event of our own that takes the place of one."""
    if type:
        return plain_event(encode(data, type), data, type)
    return plain_event(b"data: " + data + b"\n\n", data)
