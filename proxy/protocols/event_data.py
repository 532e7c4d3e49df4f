"""What can be told about one event's data: is it an object, of which type, is a member set in it.

The questions that are asked for every event look at bytes; only `decoded` parses.
"""

from __future__ import annotations

import json

_UNSET = (b":null", b": null", b':""', b': ""')


def could_be_object(data: bytes) -> bool:
    """By its first and last byte, blanks aside."""
    bare = data.strip()
    return bare[:1] == b"{" and bare[-1:] == b"}"


def is_done(data: bytes) -> bool:
    """`[DONE]` as the whole data: the text may stand inside an answer."""
    return data.strip() == b"[DONE]"


def is_set(data: bytes, member: bytes, at: int) -> bool:
    """Whether `member` may have a value somewhere in `data`; it is a name in its quotes, first found at `at`.

    False is certain: it is null or an empty string wherever it stands. True asks for a closer look, since what stands
    in quotes may be a value too.
    """
    while at >= 0:
        at += len(member)
        if not data.startswith(_UNSET, at):
            return True
        at = data.find(member, at)
    return False


def decoded(data: bytes) -> dict[str, object] | None:
    """The object `data` is, or None. Bytes that are not UTF-8 do not make it less of one."""
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def event_type(data: bytes) -> bytes:
    """The object's own `type`, for servers that send no `event:` lines; fast where it comes first.

    An object without one is b"error" if it has an `error`, else b"".
    """
    if data[:9] == b'{"type":"':
        return data[9 : data.find(b'"', 9)]
    if data[:10] == b'{"type": "':
        return data[10 : data.find(b'"', 10)]
    event = decoded(data) or {}
    named = event.get("type") or (event.get("error") and "error")
    return named.encode("utf-8", "replace") if isinstance(named, str) else b""


def compact(value: object) -> bytes:
    """JSON as the gateway writes it: one line, ASCII."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def count(before: int | None, usage: object, *names: str) -> int | None:
    """`before`, or the sum of the token counts a usage object has under `names`, if that is more: counts only grow."""
    found = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    counts = [number for number in found if type(number) is int]
    return max(sum(counts), before or 0) if counts else before
