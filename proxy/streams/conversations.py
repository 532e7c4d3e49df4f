"""Conversations: what the next request of a connection may go on from, without sending it all again.

Kept are the items of input and output, as bytes that a request's `input` is put together from. Nothing is stored: with
its connection a conversation is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.errors import ClientError, InvalidRequest
from proxy.protocols.event_data import decoded
from proxy.wire.json_members import encoded_value


class PreviousResponseNotFound(ClientError):
    """There is no such conversation, or no more."""

    default_code = "previous_response_not_found"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A response, and all that was said up to it: `items` are JSON, with commas between them."""

    response_id: str
    items: bytes = field(repr=False)


class Conversations:
    """The latest conversation of each lane of one connection (so of one key), `most_bytes` of them all.

    Where they are more, those that have not moved for longest are forgotten.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._latest: dict[str | None, Conversation] = {}
        self._bytes = 0

    def keep(self, lane: str | None, conversation: Conversation) -> None:
        """It is the latest of this lane."""
        self.forget(lane)
        self._latest[lane] = conversation
        self._bytes += len(conversation.items)
        while self._bytes > self.most_bytes:
            self.forget(next(iter(self._latest)))

    def forget(self, lane: str | None) -> None:
        """The lane's latest, if it has one, is not to be gone on from."""
        known = self._latest.pop(lane, None)
        if known is not None:
            self._bytes -= len(known.items)

    def find(self, response_id: str) -> Conversation:
        """Raises PreviousResponseNotFound."""
        for conversation in self._latest.values():
            if conversation.response_id == response_id:
                return conversation
        raise PreviousResponseNotFound(
            "The previous response is not known on this connection, or no longer the latest of its lane: "
            "send the whole input, without `previous_response_id`.",
            param="previous_response_id",
        )


class Unfolding:
    """A conversation while its next response comes in; told of the events that matter to it, in order.

    `before`: the items up to the response.
    """

    __slots__ = ("_before", "_done", "_room_bytes")

    def __init__(self, before: bytes, most_bytes: int) -> None:
        self._before = before
        self._done: list[bytes] = []
        self._room_bytes = most_bytes - len(before)

    def item_done(self, event: bytes) -> None:
        """A `response.output_item.done`."""
        self._room_bytes -= len(event)
        if self._room_bytes >= 0:
            self._done.append(event)

    def over(self, event: bytes) -> Conversation | None:
        """A `response.completed` or `.incomplete`: the conversation, if the response has an id to go on from.

        Some servers leave the output out of it, and tell it item by item only.
        """
        response = (decoded(event) or {}).get("response")
        if not isinstance(response, dict) or not isinstance(response.get("id"), str):
            return None
        try:
            return Conversation(response["id"], joined(self._before, self._output(response)))
        except (ValueError, RecursionError):  # Python reads more than it writes
            return None

    def _output(self, response: Mapping[str, object]) -> bytes:
        output = response.get("output")
        if not isinstance(output, list) or not output:
            output = [(decoded(event) or {}).get("item") for event in self._done]
        return joined(*[encoded_value(item) for item in output if isinstance(item, dict)])


def items_of(input: bytes | None) -> bytes:
    """The items of a request's `input`, JSON as it was written: a list of them, or one text.

    Raises InvalidRequest for anything else.
    """
    written = (input or b"null").strip()
    if written[:1] == b"[":
        return written[1:-1].strip()
    if written[:1] == b'"':
        return b'{"type":"message","role":"user","content":%b}' % written
    if written == b"null":
        return b""
    raise InvalidRequest("`input` is neither a text nor a list of items.", param="input")


def joined(*items: bytes) -> bytes:
    """Runs of items as one."""
    return b",".join(filter(None, items))
