"""One client request, free of transport: whether it came over HTTP or a WebSocket, this is what the relay is given.

Here: the body, checked once and edited in place. Looking its model up, counting its tokens and wording its refusal in
a protocol belong to `routing`, `telemetry` and `protocols`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.errors import InvalidRequest
from proxy.wire.json_members import Member, Piece, decoded_value, edited, edited_pieces, encoded_value, find_members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A second one of these could mean one thing to the gateway and another to the replica. Any other duplicate passes.
MEMBERS_SENT_ONCE = frozenset({"model", "stream", "stream_options", "n", "prompt", "tools"})
OPENING_BYTES = 64
"""Blanks aside, more than enough to tell one kind of value from another."""


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A JSON object with a `model`, kept as the bytes it came in.

    Decoded values are not kept: `value` decodes the one that is asked for, each time.
    """

    raw: bytes = field(repr=False)
    model: str
    stream: bool
    members: tuple[Member, ...] = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> RequestBody:
        """Check the whole body and find its top-level members, in one pass. Raises InvalidRequest."""
        members = find_members(raw, MEMBERS_SENT_ONCE)
        model = stream = None
        for name, start, end in members:
            if name == "model":
                model = decoded_value(raw[start:end])
            elif name == "stream":
                stream = decoded_value(raw[start:end])
        if not isinstance(model, str) or not model:
            message = "The body has no model: give `model` the name of a route, as a string."
            raise InvalidRequest(message, code="missing_model", param="model")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidRequest("`stream` is neither true nor false: send one of them.", param="stream")
        return cls(raw, model, stream is True, members)

    def value(self, name: str, default: object = None) -> object:
        """The decoded value of a top-level member (None for null), or `default` where there is none."""
        written = self._written(name)
        return default if written is None else decoded_value(written)

    def opening(self, name: str) -> bytes:
        """How the value of a top-level member begins, which tells its kind; empty where there is none."""
        found = self._member(name)
        return b"" if found is None else self.raw[found.start : min(found.end, found.start + OPENING_BYTES)]

    def replaced(self, changes: Mapping[str, object]) -> bytes:
        """The body with these top-level members' values changed, or put in front if absent; the rest as it is.

        A value in bytes is JSON already.
        """
        return edited(self.raw, self.members, changes)

    def pieces(self, changes: Mapping[str, object]) -> list[Piece]:
        """As `replaced`, not joined: of a long body nothing is copied."""
        return edited_pieces(self.raw, self.members, changes)

    def object_with(self, name: str, changes: Mapping[str, object]) -> bytes:
        """The value of `name`, an object, with members of its own changed likewise; `changes` alone where it is absent
        or null. Raises InvalidRequest where it is something else."""
        written = self._written(name)
        if written is None or written == b"null":
            return encoded_value(changes)
        return edited(written, find_members(written, ()), changes)

    def _written(self, name: str) -> bytes | None:
        """A top-level member's value as it was written."""
        found = self._member(name)
        return None if found is None else self.raw[found.start : found.end]

    def _member(self, name: str) -> Member | None:
        """The last one of this name."""
        for member in reversed(self.members):
            if member.name == name:
                return member
        return None


Heads = dict[tuple[object, str], tuple[bytes, bool]]
"""What a replica is sent in front of a body, and whether a name for the request is in it."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One client request, whatever it came over.

    `path` is the endpoint's (`/v1/chat/completions`), `query` the raw query without `?`; `headers` are the client's, as
    sent; `forwarded` the `X-Forwarded-*` lines the upstream gets.
    """

    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    forwarded: Sequence[tuple[str, str]]
    body: RequestBody
    request_id: str
    crossing: Heads = field(default_factory=dict, repr=False, compare=False)
    """The head with what crosses of the headers, for each replica: whoever sends the same again may keep it."""
