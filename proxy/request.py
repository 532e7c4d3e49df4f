"""One client request, free of transport: whether it came over HTTP or a WebSocket, this is what the relay is given.

Here: the body, checked once and edited in place. Looking its model up, counting its tokens and wording its refusal in
a protocol belong to `routing`, `telemetry` and `protocols`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from proxy.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

# A second one of these could mean one thing to the gateway and another to the replica. Any other duplicate passes.
MEMBERS_SENT_ONCE = frozenset({"model", "stream", "stream_options", "n", "prompt", "tools"})
# Each top-level member costs a microsecond or two of Python; no API knows more than some dozens.
MOST_MEMBERS = 4096


class Member(NamedTuple):
    """A top-level member: its name, and where its value stands in the body (byte offsets, end exclusive)."""

    name: str
    start: int
    end: int


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
        members, values = _members(raw)
        model, stream = values.get("model"), values.get("stream")
        if not isinstance(model, str) or not model:
            message = "The body has no model: give `model` the name of a route, as a string."
            raise InvalidRequest(message, code="missing_model", param="model")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidRequest("`stream` is neither true nor false: send one of them.", param="stream")
        return cls(raw, model, stream is True, members)

    def value(self, name: str, default: object = None) -> object:
        """The decoded value of a top-level member (None for null), or `default` where there is none."""
        for member in reversed(self.members):
            if member.name == name:
                return _decoded(self.raw[member.start : member.end])
        return default

    def replaced(self, changes: Mapping[str, object]) -> bytes:
        """The body with these top-level members' values changed, or put in front if absent; the rest as it is."""
        raw = memoryview(self.raw)
        present = [member for member in self.members if member.name in changes]
        absent = [name for name in changes if all(member.name != name for member in present)]
        at = self.raw.index(b"{") + 1
        pieces: list[bytes | memoryview] = [raw[:at]]
        # The comma is always right: at least `model` follows.
        pieces += [_encoded(name) + b":" + _encoded(changes[name]) + b"," for name in absent]
        for name, start, end in present:
            pieces += (raw[at:start], _encoded(changes[name]))
            at = end
        pieces.append(raw[at:])
        return b"".join(pieces)


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
    crossing: dict[Hashable, list[tuple[str, str]]] = field(default_factory=dict, repr=False, compare=False)
    """What of the headers crosses, for each replica: whoever sends the same headers again may keep it."""


def _members(raw: bytes) -> tuple[tuple[Member, ...], dict[str, object]]:
    """The top-level members in their order, and the values of those that are sent once.

    Raises InvalidRequest unless `raw` is one JSON object and nothing else.
    """
    members: list[Member] = []
    once: dict[str, object] = {}
    try:
        for member, value in _walk(raw):
            if len(members) == MOST_MEMBERS:
                raise InvalidRequest(f"The body has more than {MOST_MEMBERS} members: send fewer.")
            if member.name in once:
                raise InvalidRequest(f"The body has two members `{member.name}`: send one.", param=member.name)
            if member.name in MEMBERS_SENT_ONCE:
                once[member.name] = value
            members.append(member)
    except (ValueError, RecursionError):
        raise _not_json() from None  # without its cause, which holds the body
    return tuple(members), once


_opening = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*").match
_plain_name = re.compile(r'"(\w*)"[ \t\n\r]*:[ \t\n\r]*', re.ASCII).match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_comma = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match
_closing = re.compile(r"[ \t\n\r]*\}[ \t\n\r]*\Z").match


def _walk(raw: bytes) -> Iterator[tuple[Member, object]]:
    """Each top-level member and its value as they are found (see `_member`).

    Raises ValueError or RecursionError where `raw` is no JSON object.
    """
    if not raw.isascii():
        raw.decode("utf-8")
    # Read as Latin-1 a text's offsets are the bytes' own, and what gives JSON its structure is ASCII in both.
    text = raw.decode("latin-1")
    at = _past(_opening(text))
    if _closing(text, at):
        return
    while True:
        member, value = _member(raw, text, at)
        yield member, value
        comma = _comma(text, member.end)
        if comma is None:
            break
        at = comma.end()
    _past(_closing(text, member.end))


def _member(raw: bytes, text: str, at: int) -> tuple[Member, object]:
    """The member that begins at `at`, and its value: texts within an array or an object are Latin-1's, if not ASCII."""
    plain = _plain_name(text, at)
    name, start = (plain[1], plain.end()) if plain else _name(raw, text, at)
    value, end = _strict.raw_decode(text, start)
    if isinstance(value, str) and not value.isascii():
        value = _decoded(raw[start:end])
    return Member(name, start, end), value


def _name(raw: bytes, text: str, at: int) -> tuple[str, int]:
    """A member's name, however it is written, and where its value begins."""
    if not text.startswith('"', at):
        raise ValueError("a member begins with its name, in quotes")
    name, end = _strict.raw_decode(text, at)
    return name if name.isascii() else _decoded(raw[at:end]), _past(_colon(text, end))


def _past(match: re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("a brace or a colon is missing")
    return match.end()


def _refuse(constant: str) -> NoReturn:
    raise ValueError("JSON has no such number")


_strict = json.JSONDecoder(parse_constant=_refuse)


def _decoded(value: bytes) -> Any:
    try:
        return json.loads(value)
    except RecursionError:  # its nesting just fitted the stack of `parse`
        raise _not_json() from None


def _not_json() -> InvalidRequest:
    message = (
        "The body is not a JSON object: send one, in UTF-8, not too deeply nested, with nothing before or after it."
    )
    return InvalidRequest(message, code="invalid_json")


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
