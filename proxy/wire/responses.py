"""What a client may say in OpenAI's WebSocket mode of Responses: `response.create`, and the little there is besides.

What the gateway answers is in `responses_frames`; which request waits for which, and what one goes on from, is
`streams`' to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.wire.json_members import decoded_value, encoded_value, find_members

_NULL: Final = b"null"
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
# What is about the connection, and what a request over this one has no say in.
_NOT_RELAYED = frozenset(
    {"type", "event_id", "stream_id", "generate", "previous_response_id", "stream", "background", "background_options"}
)


class BadMessage(InvalidRequest):
    """A message that is none. `stream_id` is the lane it names, if that much can be told."""

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, stream_id: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.stream_id = stream_id


@dataclass(frozen=True, slots=True)
class Create:
    """A response is asked for, in the lane `stream_id` (None: the one without a name).

    `members` are the request's, each value as it was written; `generate` is false where it only prepares the next one.
    """

    stream_id: str | None
    members: Mapping[str, bytes] = field(repr=False)
    previous_response_id: str | None = None
    generate: bool = True

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.members.values()))

    def body(self, **instead: bytes) -> bytes:
        """The body of the HTTP request that asks for the same, as a stream, with these members in their places."""
        members = {**self.members, **instead, "stream": b"true"}
        return b"{" + b",".join([encoded_value(name) + b":" + members[name] for name in members]) + b"}"


class Cancel(Struct, frozen=True):
    """No more is wanted of what the lane is at; of the response `response_id` only, if one is named."""

    stream_id: str | None
    response_id: str | None = None


class Processed(Struct, frozen=True):
    """The client is done with a response: its own book-keeping, and nothing to us."""


Message = Create | Cancel | Processed


def parse_message(text: str) -> Message:
    """The message, flat or with the request in its member `response`; of a member that is there twice the last counts.

    Raises BadMessage, whose words repeat nothing of it.
    """
    said = _members(text.encode())
    kind = decoded_value(said.get("type", _NULL))
    nested = said.pop("response", _NULL)
    if kind == "response.create" and nested != _NULL:
        said |= _members(nested)
    stream_id = _stream_id(said)
    if kind == "response.create":
        return _create(said, stream_id)
    if kind == "response.cancel":
        return Cancel(stream_id, _text(said, "response_id", stream_id))
    if kind == "response.processed":
        return Processed()
    message = "Give the message a `type`: response.create, response.cancel or response.processed."
    raise BadMessage(message, param="type", stream_id=stream_id)


def _create(said: Mapping[str, bytes], stream_id: str | None) -> Create:
    generate = decoded_value(said.get("generate", _NULL))
    if not (generate is None or isinstance(generate, bool)):
        raise BadMessage("`generate` is neither true nor false.", param="generate", stream_id=stream_id)
    members = {name: value for name, value in said.items() if name not in _NOT_RELAYED}
    return Create(stream_id, members, _text(said, "previous_response_id", stream_id), generate is not False)


def _members(raw: bytes) -> dict[str, bytes]:
    try:
        return {name: raw[start:end] for name, start, end in find_members(raw, ())}
    except InvalidRequest as error:
        message = "A message is one JSON object, in UTF-8, not too deeply nested, with nothing before or after it."
        raise BadMessage(message, code=error.code) from None


def _stream_id(said: Mapping[str, bytes]) -> str | None:
    value = decoded_value(said.get("stream_id", _NULL))
    if value is None or (isinstance(value, str) and _STREAM_ID.fullmatch(value)):
        return value
    message = "A `stream_id` has 1 to 256 characters: letters, digits, underscores, hyphens and periods."
    raise BadMessage(message, code="invalid_stream_id", param="stream_id")


def _text(said: Mapping[str, bytes], name: str, stream_id: str | None) -> str | None:
    value = decoded_value(said.get(name, _NULL))
    if value is None or isinstance(value, str):
        return value
    raise BadMessage(f"`{name}` is not a string.", param=name, stream_id=stream_id)
