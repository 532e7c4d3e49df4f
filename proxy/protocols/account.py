"""An account: what a client has been told of one answer, so that another replica can go on with it where it broke off.

It is heard event by event; only the text is kept, as it stands in the events. How a request reads that asks for the
rest is each protocol's own (`chat_account`, `messages_account`); what of the rest goes on to the client, its splice's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from proxy.protocols.splice import Spent, Splice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.request import RequestBody
    from proxy.wire.sse import Event

LONGEST_TEXT_BYTES: Final = 1 << 20
"""An answer with more text than this ends where it breaks off: some 250,000 tokens."""
MOST_LESSONS: Final = 8
"""A stream whose events keep differing around their text is not worth learning."""
UNLIKE_ANY: Final = b"none yet"
QUOTE: Final = 0x22

Continues = Literal["prefill", "replay"]


class Prefill(NamedTuple):
    """The text that the model is to go on from, and what the client has behind it: a blank, or half a stop word, which
    the model has to say again. `lenient`: or something else, which may well stand there too."""

    text: str
    behind: str
    lenient: bool = False


class Account:
    """The owner's duty: `hear` every event that goes to the client while the answer is `continuable`, and go on with it
    only if `can_go_on`.

    `failure` is the upstream's error event, once there was one. `texts` counts the events with text: about as many
    tokens.
    """

    __slots__ = (
        "_channels",
        "_current",
        "_head",
        "_head_bytes",
        "_lessons_left",
        "_tail",
        "_tail_bytes",
        "body",
        "continuable",
        "failure",
        "texts",
    )

    def __init__(self, body: RequestBody) -> None:
        self.body = body
        self.continuable = True
        self.failure: Event | None = None
        self.texts = 0
        self._channels: dict[str, bytearray] = {}
        """By what the text is: an answer, a thought. As in the events, with JSON's escapes."""
        self._current = bytearray()
        self._head = self._tail = UNLIKE_ANY
        self._head_bytes = self._tail_bytes = 1
        self._lessons_left = MOST_LESSONS

    def hear(self, event: Event) -> None:
        data = event.data
        if data[: self._head_bytes] == self._head and data[-self._tail_bytes :] == self._tail:
            text = data[self._head_bytes : -self._tail_bytes]
            if QUOTE not in text:  # like the last one but for its text
                self._current += text
                self.texts += 1
                if len(self._current) > LONGEST_TEXT_BYTES:
                    self._give_up()
                return
        self._look(event)

    def can_go_on(self) -> bool:
        """Whether what the client has can be told to a model, or be expected of one."""
        try:
            return self.continuable and all(self.text(channel) for channel in self._channels)
        except ValueError:  # events are passed on as they are: what is quoted in them may be no JSON
            return False

    def body_for(self, continues: Continues) -> RequestBody:
        """The request for the rest of the answer: by prefill, if the replica can do that and the answer allows it."""
        prefill = self._prefill() if continues == "prefill" else None
        return self.body if prefill is None else self._prefilled(prefill)

    def splice(self, continues: Continues, spent: Spent) -> Splice:
        """What makes one answer of the first part and the rest, for the request that `body_for` gave."""
        prefill = self._prefill() if continues == "prefill" else None
        if prefill is None:
            return self._splice({name: self.text(name) for name in self._channels}, spent)
        behind = {name: prefill.behind for name in self._channels if prefill.behind}
        return self._splice(behind, spent, is_prefill=True, lenient=prefill.lenient)

    def text(self, channel: str) -> str:
        """What was said so far."""
        written = self._channels[channel].decode("utf-8", "replace")
        said = json.loads(f'"{written}"', strict=False)
        assert isinstance(said, str)
        return said

    # ---- each protocol's own ----

    def _look(self, event: Event) -> None:
        """Hear an event that is not like the last one."""
        raise NotImplementedError

    def _prefill(self) -> Prefill | None:
        """What a model is to go on from, where it can."""
        raise NotImplementedError

    def _prefilled(self, prefill: Prefill) -> RequestBody:
        raise NotImplementedError

    def _splice(self, told: dict[str, str], spent: Spent, *, is_prefill: bool = False, lenient: bool = False) -> Splice:
        raise NotImplementedError

    # ---- for them ----

    def _said(self, channel: str, text: str) -> None:
        """Text came that was decoded."""
        if not self.continuable:
            return
        kept = self._channels.setdefault(channel, bytearray())
        kept += json.dumps(text)[1:-1].encode("ascii")
        self._current = kept
        self.texts += 1
        if len(kept) > LONGEST_TEXT_BYTES:
            self._give_up()

    def _learn(self, data: bytes, text: str) -> None:
        """What stood around the text of the event that was just looked at; later ones may differ in nothing else."""
        if data.startswith(self._head) and data.endswith(self._tail):
            return
        self._unlearn()
        if self._lessons_left and (around := around_text(data, text)) is not None:
            self._lessons_left -= 1
            self._head, self._tail = around
            self._head_bytes, self._tail_bytes = map(len, around)

    def _unlearn(self) -> None:
        self._head = self._tail = UNLIKE_ANY
        self._head_bytes = self._tail_bytes = 1

    def _give_up(self) -> None:
        """It cannot be continued: nothing of it needs to be kept."""
        self.continuable = False
        self._lessons_left = 0
        self._unlearn()
        self._channels.clear()
        self._current = bytearray()

    def _less_used(self, *limits: tuple[str, int]) -> dict[str, object]:
        """These members, by how much of their tokens the first part has used up; never less than their least."""
        given = {name: self.body.value(name) for name, _ in limits}
        least = dict(limits)
        return {
            name: max(least[name], value - self.texts)
            for name, value in given.items()
            if type(value) is int and self.texts
        }


def around_text(data: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What stands before and behind `text` in an event's JSON, where it is the only place it can be in."""
    written = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    if data.count(written) != 1:
        return None
    head, _, tail = data.partition(written)
    return head + b'"', b'"' + tail


def half_stop(text: str, stops: object) -> str:
    """The longest end of `text` that one of the request's stop words begins with: whether it was one, only the model
    that goes on can tell."""
    words = [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else []
    halves = [word[:size] for word in words if isinstance(word, str) for size in range(1, len(word))]
    return max((half for half in halves if text.endswith(half)), key=len, default="")


def with_members(body: RequestBody, changes: Mapping[str, object]) -> RequestBody:
    """The body with these members changed or added."""
    return type(body).parse(body.replaced(changes))
