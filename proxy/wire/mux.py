"""What a client may say in the `llm-mux.v1` dialect: each message's members, and what is wrong with any other.

What the gateway says is in `mux_frames`; what a message leads to is the session's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from proxy.errors import InvalidRequest

VERSION: Final = 1
FEATURES: Final = ("ack", "ndjson")
"""`ack`: the client acknowledges, and no more than a window is on its way. `ndjson`: under backpressure several
objects, a line each, may share a frame."""
DEFAULT_WINDOW: Final = 512
MOST_RESUMED: Final = 64
"""So many streams one `init` may resume; each costs more than its words. More go into messages of their own."""
LONGEST_REWRITTEN: Final = 64 * 1024
"""So many characters a message with half a surrogate pair in it may have: it is read the slow way, for up to 20 ms."""

Rid = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
Seq = Annotated[int, Meta(ge=0)]
Window = Annotated[int, Meta(ge=1)]


class Auth(Struct, frozen=True):
    """A credential, for clients that could not send one with the upgrade."""

    bearer: str

    def __repr__(self) -> str:
        return "Auth(***)"


class Resuming(Struct, frozen=True):
    """`stream` goes on as `rid`, with the frame behind number `after`."""

    rid: Rid
    stream: str
    after: Seq = 0
    window: Window = DEFAULT_WINDOW


class Init(Struct, tag="init", frozen=True):
    v: Literal[1] = VERSION
    auth: Auth | None = None
    features: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    resume: Annotated[tuple[Resuming, ...], Meta(max_length=MOST_RESUMED)] = ()


class Start(Struct, tag="start", frozen=True):
    """`body` is the JSON of an HTTP request's body, as it was written; `window` counts for clients that acknowledge."""

    rid: Rid
    path: Annotated[str, Meta(max_length=2048)]
    body: Raw
    resumable: bool = False
    window: Window = DEFAULT_WINDOW


class Cancel(Struct, tag="cancel", frozen=True):
    rid: Rid


class Resume(Resuming, tag="resume", frozen=True):
    pass


class Ack(Struct, tag="ack", frozen=True):
    """Every frame of `rid` up to `seq` has been taken in."""

    rid: Rid
    seq: Seq


class Ping(Struct, tag="ping", frozen=True):
    t: int | float | Annotated[str, Meta(max_length=256)] | None = None


class Pong(Struct, tag="pong", frozen=True):
    pass


class _Named(Struct):
    rid: Rid


Message = Init | Start | Cancel | Resume | Ack | Ping | Pong
_read: Final[Callable[[str], Message]] = msgspec.json.Decoder(Message).decode
_read_rid: Final[Callable[[str], _Named]] = msgspec.json.Decoder(_Named).decode


class BadMessage(InvalidRequest):
    """A message that is none. `rid` is the one it names, if that much can be told."""

    def __init__(self, message: str, rid: str | None = None) -> None:
        super().__init__(message)
        self.rid = rid


def parse_message(text: str) -> Message:
    """The message; members it does not know are ignored. Raises BadMessage, whose words repeat nothing of it."""
    try:
        return _read(text)
    except msgspec.ValidationError as error:
        raise BadMessage(_explained(str(error)), _rid_of(text)) from None
    except (msgspec.DecodeError, RecursionError):
        return _with_half_pairs(text)


def _explained(problem: str) -> str:
    if problem.endswith("`$.type`"):  # which quotes it
        return "Give the message a `type`: init, start, cancel, resume, ack, ping or pong."
    what, _, where = problem.partition(" - at `$.")
    return f"The message is not valid: {where.rstrip('`')}: {what}." if where else f"The message is not valid: {what}."


def _rid_of(text: str) -> str | None:
    try:
        return _read_rid(text).rid
    except (msgspec.DecodeError, RecursionError):
        return None


def _with_half_pairs(text: str) -> Message:
    r"""JavaScript writes half of a surrogate pair as `\ud83d`, which the decoder does not take: a prompt may be cut
    there. Such a body is written anew."""
    has_some = "\\ud" in text or "\\uD" in text
    if has_some and len(text) > LONGEST_REWRITTEN:
        raise BadMessage("The message is not one JSON object, or too long for half a surrogate pair in it.")
    try:
        value = json.loads(text) if has_some else None
        if isinstance(value, dict):
            body = json.dumps(value.get("body"), allow_nan=False)
            message: Message = msgspec.convert({**value, "body": Raw(body.encode())}, Message)
            return message
    except msgspec.ValidationError as error:
        raise BadMessage(_explained(str(error))) from None
    except (ValueError, RecursionError):
        pass
    raise BadMessage("A message is one JSON object, not too deeply nested, with nothing before or after it.")
