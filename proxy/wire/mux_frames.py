"""What the gateway says in the `llm-mux.v1` dialect, as payloads of text frames.

A stream's frames put an upstream's bytes between ready-made ones: `data` first, and what the gateway vouches for behind
it, so that a reader that takes the last of two members is never told otherwise. Which data may be spliced at all is
`json_object`'s to say; who gets which frame when, the session's.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Self, assert_never

from msgspec import Struct

from proxy.errors import GatewayError
from proxy.wire.mux import VERSION
from proxy.wire.stages import CHUNK_MEMBERS, SUMMARY

UNNAMED: Final = b"message"
"""The type of an event that names none (WHATWG HTML, "Server-sent events")."""
MOST_NAMES: Final = 64
"""So many event names are remembered; protocols have some dozens."""


class Form(enum.Enum):
    """What a stream's frames are: chat chunks, events under the upstream's names, an answer in one piece, or a stage's
    events, each under its own type."""

    CHUNKS = "chat_completion_chunk"
    EVENTS = "event"
    RESULT = "result"
    STAGES = "stages"


STAGE_MEMBERS: Final = {**CHUNK_MEMBERS, SUMMARY: SUMMARY}
"""Where the data of a stage's event stands, by its type."""


class Ending(Struct, frozen=True):
    """How a stream ended, as its one terminal frame says it. `data` is what stands beside the `stage_id`.

    `event` tells of it in the stream's own protocol, as bytes on the wire: b"" where the events have told it already,
    None where nobody has worded it.
    """

    type: Literal["done", "cancel", "error"]
    data: Mapping[str, object]
    status: int | None = None
    retry_after_s: float | None = None
    event: bytes | None = None

    @classmethod
    def done(cls, usage: Mapping[str, int] | None) -> Self:
        return cls("done", {} if usage is None else {"usage": usage})

    @classmethod
    def cancelled(cls, reason: str) -> Self:
        return cls("cancel", {"reason": reason})

    @classmethod
    def failed(cls, error: GatewayError, event: bytes | None = None) -> Self:
        return cls("error", {"error": described(error)}, error.status, error.retry_after_s, event)

    @classmethod
    def refused(
        cls, error: Mapping[str, object], status: int, retry_after_s: float | None = None, event: bytes | None = None
    ) -> Self:
        """An upstream's own error object."""
        return cls("error", {"error": error}, status, retry_after_s, event)


class Envelope:
    """What stands around one stream's data for one `rid`. `stage_id` stays the stream's when its `rid` changes."""

    __slots__ = ("_around", "_form", "_rid", "_stage_id", "rid")

    def __init__(self, rid: str, stage_id: str, form: Form) -> None:
        self.rid = rid
        self._rid = _json(rid)
        self._stage_id = _json(stage_id)
        self._form = form
        self._around: dict[bytes, tuple[bytes, bytes]] = {}

    def payload(self, data: bytes, name: bytes, seq: int) -> bytes:
        """A frame of `data`, which is one line and one JSON object; `name` is the event's, where the form has names."""
        around = self._around.get(name)
        if around is None:
            around = self._remember(name)
        return b"%b%b%b%d}" % (around[0], data, around[1], seq)

    def terminal(self, ending: Ending, seq: int) -> bytes:
        """The stream's last frame."""
        data = {**ending.data, "stage_id": json.loads(self._stage_id)}
        if ending.type != "error":  # as the protocol's examples have it
            data = {"stage_id": data.pop("stage_id"), **data}
        return _payload({"data": data, "type": ending.type, "rid": self.rid, "seq": seq, **_status(ending)})

    def _remember(self, name: bytes) -> tuple[bytes, bytes]:
        member, type = self._words(name)
        tail = b',"stage_id":%b},"type":%b,"rid":%b,"seq":' % (self._stage_id, type, self._rid)
        around = (b'{"data":{%b:' % member, tail)
        if len(self._around) < MOST_NAMES:
            self._around[name] = around
        return around

    def _words(self, name: bytes) -> tuple[bytes, bytes]:
        """The member that the data is, and the frame's type with what goes with it."""
        match self._form:
            case Form.CHUNKS:
                return b'"chunk"', _json(Form.CHUNKS.value)
            case Form.RESULT:
                return b'"result"', _json(Form.RESULT.value)
            case Form.EVENTS:
                said = _json((name or UNNAMED).decode("utf-8", "replace"))
                return b'"chunk"', b'"event","event":' + said
            case Form.STAGES:
                return _json(STAGE_MEMBERS[name.decode()]), _json(name.decode())
            case _:
                assert_never(self._form)


def described(error: GatewayError) -> dict[str, object]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def refusal(
    error: GatewayError, *, rid: str | None = None, about: str | None = None, oldest: int | None = None
) -> bytes:
    """An error that is not part of a stream: no `seq`. `rid` is the request that will not be served, `about` one that
    may be somebody else's; `oldest` is the first frame that can still be had."""
    status = _status(Ending.failed(error))
    said = {"data": {"error": described(error)}, "type": "error", "rid": rid, "about": about, **status}
    return _payload({name: value for name, value in {**said, "oldest": oldest}.items() if value is not None})


def ready(conn: str, features: Sequence[str], heartbeat_s: float | None, limits: Mapping[str, float | None]) -> bytes:
    said = {"type": "ready", "v": VERSION, "conn": conn, "features": features, "heartbeat_s": heartbeat_s}
    return _payload({**said, "limits": limits})


def queued(rid: str, position: int) -> bytes:
    return _payload({"type": "queued", "rid": rid, "position": position})


def accepted(rid: str, stream: str | None, model: str, status: int, request_id: str) -> bytes:
    """`stream` is the id to resume by (None: it cannot be)."""
    resumable = {} if stream is None else {"stream": stream}
    said = {"model": model, "status": status, "request_id": request_id}
    return _payload({"type": "accepted", "rid": rid, **resumable, **said})


def resumed(rid: str, stream: str, *, first: int, head: int, live: bool) -> bytes:
    """`first` is the number of the next frame, `head` of the last there is so far."""
    return _payload({"type": "resumed", "rid": rid, "stream": stream, "from": first, "head": head, "live": live})


def ping(t: float) -> bytes:
    return _payload({"type": "ping", "t": t})


def pong(t: float | str | None) -> bytes:
    return _payload({"type": "pong", "t": t})


def goaway(reason: str, in_ms: int | None, reconnect_ms: int) -> bytes:
    """`in_ms`: the socket is closed by then (None: when its streams are done)."""
    return _payload({"type": "goaway", "reason": reason, "in_ms": in_ms, "reconnect_ms": reconnect_ms})


def _status(ending: Ending) -> dict[str, int]:
    said = {} if ending.status is None else {"status": ending.status}
    if ending.retry_after_s is not None:
        said["retry_after_ms"] = round(ending.retry_after_s * 1000)
    return said


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _payload(frame: Mapping[str, object]) -> bytes:
    return _encode(frame).encode("ascii")


def _json(text: str) -> bytes:
    return _encode(text).encode("ascii")
