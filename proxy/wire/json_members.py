"""The top-level members of a JSON object in bytes: where they stand, and edits that move no other byte.

Values are not built unless somebody asks for one. What a member means is the request's business.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec

from proxy.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

Piece = bytes | memoryview
# Each top-level member costs a microsecond or two of Python; no API knows more than some dozens.
MOST_MEMBERS = 4096
_BACKSLASH = 0x5C


class Member(NamedTuple):
    """A top-level member: its name, and where its value stands in the body (byte offsets, end exclusive)."""

    name: str
    start: int
    end: int


def find_members(raw: bytes, sent_once: Collection[str]) -> tuple[Member, ...]:
    """The top-level members in their order.

    Raises InvalidRequest unless `raw` is one JSON object and nothing else, in UTF-8, and has each of `sent_once` once
    at the most.
    """
    try:
        if not raw.isascii():
            raw.decode("utf-8")
        found = _find_quickly(raw)
        if found is None:
            found = [*_walk(raw, sent_once)]
    except (ValueError, RecursionError):
        raise not_json() from None  # without its cause, which holds the body
    if len(found) > MOST_MEMBERS:
        raise InvalidRequest(f"The body has more than {MOST_MEMBERS} members: send fewer.")
    return tuple(found)


# A pass of compiled code that checks everything and builds nothing: 0.5 µs for a small body, 1 ms for a megabyte, where
# a decoder that builds the values takes ten times as long.
_raw_values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_next_value = re.compile(rb'[ \t\n\r]*[{,][ \t\n\r]*"([!#-\[\]-~]*)"[ \t\n\r]*:[ \t\n\r]*').match
_end = re.compile(rb"[ \t\n\r]*\}[ \t\n\r]*\Z").match


def _find_quickly(raw: bytes) -> list[Member] | None:
    """The members, or None where that takes a closer look: one is there twice, or oddly written, or is no JSON."""
    try:
        values = _raw_values(raw)
    except (ValueError, RecursionError):
        return None
    members: list[Member] = []
    at = 0
    for name, value in values.items():
        found = _next_value(raw, at)
        if found is None or found[1] != name.encode("utf-8", "replace"):
            return None
        start = found.end()
        at = start + len(memoryview(value))
        members.append(Member(name, start, at))
    return members if _end(raw, at) and members else None


_opening = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*").match
_plain_name = re.compile(r'"(\w*)"[ \t\n\r]*:[ \t\n\r]*', re.ASCII).match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_comma = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match
_closing = re.compile(r"[ \t\n\r]*\}[ \t\n\r]*\Z").match


def _walk(raw: bytes, sent_once: Collection[str]) -> Iterator[Member]:
    """Each top-level member as it is found, by a decoder that takes all JSON. `raw` is UTF-8.

    Raises ValueError or RecursionError where it is no JSON object.
    """
    # Read as Latin-1 a text's offsets are the bytes' own, and what gives JSON its structure is ASCII in both.
    text = raw.decode("latin-1")
    at = _past(_opening(text))
    if _closing(text, at):
        return
    seen: set[str] = set()
    for _ in range(MOST_MEMBERS + 1):
        member = _member(raw, text, at)
        if member.name in sent_once and member.name in seen:
            raise InvalidRequest(f"The body has two members `{member.name}`: send one.", param=member.name)
        seen.add(member.name)
        yield member
        comma = _comma(text, member.end)
        if comma is None:
            break
        at = comma.end()
    else:
        return  # too many: whoever counts them will say so
    _past(_closing(text, member.end))


def _member(raw: bytes, text: str, at: int) -> Member:
    """The member that begins at `at`."""
    plain = _plain_name(text, at)
    name, start = (plain[1], plain.end()) if plain else _name(raw, text, at)
    return Member(name, start, _strict.raw_decode(text, start)[1])


def _name(raw: bytes, text: str, at: int) -> tuple[str, int]:
    """A member's name, however it is written, and where its value begins."""
    if not text.startswith('"', at):
        raise ValueError("a member begins with its name, in quotes")
    name, end = _strict.raw_decode(text, at)
    return name if name.isascii() else decoded_value(raw[at:end]), _past(_colon(text, end))


def _past(match: re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("a brace or a colon is missing")
    return match.end()


def _refuse(constant: str) -> NoReturn:
    raise ValueError("JSON has no such number")


_strict = json.JSONDecoder(parse_constant=_refuse)


def decoded_value(value: bytes) -> Any:
    """A member's value. Raises InvalidRequest where Python has no room for it."""
    if value[:1] == b'"' and _BACKSLASH not in value and value.isascii():
        return value[1:-1].decode()
    try:
        return json.loads(value)
    except (RecursionError, ValueError):  # it just fitted the stack of who checked it, or is a number of 5,000 digits
        raise not_json() from None


def not_json() -> InvalidRequest:
    message = (
        "The body is not a JSON object: send one, in UTF-8, not too deeply nested, with nothing before or after it."
    )
    return InvalidRequest(message, code="invalid_json")


def edited(raw: bytes, members: Sequence[Member], changes: Mapping[str, object]) -> bytes:
    """The object `raw`, whose members these are, with `changes` made to it and no other byte moved."""
    return b"".join(edited_pieces(raw, members, changes))


def edited_pieces(raw: bytes, members: Sequence[Member], changes: Mapping[str, object]) -> list[Piece]:
    """The same in pieces: what stays as it is, is not copied."""
    view = memoryview(raw)
    present = [member for member in members if member.name in changes]
    names = {member.name for member in present}
    added = b",".join(
        [encoded_value(name) + b":" + encoded_value(changes[name]) for name in changes if name not in names]
    )
    at = raw.index(b"{") + 1
    pieces: list[Piece] = [view[:at], added]
    if added and members:
        pieces.append(b",")
    for name, start, end in present:
        pieces += (view[at:start], encoded_value(changes[name]))
        at = end
    pieces.append(view[at:])
    return pieces


# Kept: `json.dumps` with separators of our own makes an encoder each time, which takes longer than its work.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encoded_value(value: object) -> bytes:
    """As it stands in a body; bytes are JSON already."""
    return value if isinstance(value, bytes) else _encode(value).encode("ascii")
