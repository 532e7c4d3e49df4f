"""A stage's stream: what one chat completion after another gives, under one numbering, with one end.

How several streams become one is `joined`'s. What is asked next, and when it is over, the owner says: an endpoint, or
the loop that runs tools.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.errors import GatewayError, UpstreamError
from proxy.protocols.event_data import decoded, is_set
from proxy.protocols.failure import failure_of
from proxy.streams.joined import JoinedStream
from proxy.wire.json_object import is_json_object
from proxy.wire.sse import Event
from proxy.wire.stages import CANCEL, DONE, ERROR, SUMMARY, StageWording

_ERROR = b'"error"'
_THEIRS = "upstream_error"
_ASK_AGAIN = "Send the request again."
_HINTS = {
    "upstream_truncated": _ASK_AGAIN,
    "upstream_idle": _ASK_AGAIN,
    "upstream_timeout": _ASK_AGAIN,
    "upstream_unreachable": _ASK_AGAIN,
    "first_token_timeout": _ASK_AGAIN,
}


class StageStream(JoinedStream):
    """One stage; its events are made by `wire.stages`, an upstream's chunks under the kind's name, less its `[DONE]`.

    It ends with one terminal event. `error` is what an `error` event told, `cancelled_for` why a `cancel` came.
    """

    __slots__ = ("_make", "_number", "_wording", "cancelled_for", "stage_id")

    def __init__(self, stage_id: str, on_cancelled: Callable[[], None] | None = None) -> None:
        super().__init__(on_cancelled)
        self.stage_id = stage_id
        self._wording = StageWording(stage_id)
        self._number = 0
        self._make: Callable[[bytes, int], Event] = _no_chunk
        self.cancelled_for: str | None = None

    # ---- the owner's side ----

    def summary(self, round: int, calls: list[dict[str, object]]) -> None:
        """What the tools of a round gave, once it is over."""
        if not self.over:
            self._publish(SUMMARY, {"tool_summary": {"round": round, "calls": calls}})

    def done(self) -> None:
        self._end(DONE)

    def stop_for(self, error: GatewayError | None) -> None:
        if error is None:
            self.done()
        elif error.code == "draining":
            self.cancel("draining")
        else:
            self.fail(error)

    def cancel(self, reason: str) -> None:
        """Stopped on purpose: `reason` is "client", or "draining" when the gateway shuts down."""
        if not self.over:
            self.cancelled_for = reason
            self._end(CANCEL)

    def fail(self, error: GatewayError) -> None:
        if not self.over:
            self.error = error
            self._end(ERROR, {"error": sentence(error)})

    # ---- the followed stream's side (its listener) ----

    def write(self, events: list[Event]) -> bool:
        """The way of every event: what is no object ends here, and so does the stage on an error."""
        make, see, number = self._make, self._see, self._number
        made: list[Event] = []
        failure: UpstreamError | None = None
        for event in events:
            if see is not None:
                see(event)
            data = event.data
            if not is_json_object(data) and not _is_object_in_other_bytes(data):
                continue  # [DONE], or what would say something else where it is spliced in
            if _ERROR in data or event.type:
                failure = _failure_in(event)
                if failure is not None:
                    break
            made.append(make(data, number))
            number += 1
        if made and not self.over:
            self._number = number
            self.stream.publish(made)
        if failure is not None and not self.over:
            self._fail_within(failure)
        return self._paused

    # ---- within ----

    def _begin(self, kind: str) -> None:
        self._make = self._wording.chunks(kind)

    def _end(self, kind: str, members: dict[str, object] | None = None) -> None:
        if not self.over:
            self.over = True
            self._publish(kind, members)
            self.stream.end()
            self._let_go()

    def _publish(self, kind: str, members: dict[str, object] | None) -> None:
        event = self._wording.event(kind, self._number, members)
        self._number += 1
        self.stream.publish([event])


def sentence(error: GatewayError) -> str:
    """The error as a sentence for a person, with what to do about it where that is known; an upstream's own words as
    they are."""
    return worded(error.message, error.type, error.code)


def worded(message: str, type: str, code: str) -> str:
    """The same, of an error that is told by these three."""
    if type != UpstreamError.default_type or code == _THEIRS:
        return message
    message = message[:1].upper() + message[1:]
    hint = _HINTS.get(code)
    if hint is None:
        return message
    return f"{message} {hint}" if message.endswith((".", "!", "?")) else f"{message}. {hint}"


def _is_object_in_other_bytes(data: bytes) -> bool:
    """Whether it would be one JSON object, were the bytes that are no UTF-8 replaced."""
    text = data.decode("utf-8", "replace").encode()
    return text != data and is_json_object(text)


def _failure_in(event: Event) -> UpstreamError | None:
    """The upstream's own error, if this event is one."""
    named = event.type == b"error"
    if not named and not is_set(event.data, _ERROR, event.data.find(_ERROR)):
        return None
    chunk = decoded(event.data)
    if chunk is None or not (named or chunk.get("error")):
        return None
    return UpstreamError(failure_of(chunk).message, code=_THEIRS)


def _no_chunk(chunk: bytes, number: int) -> Event:
    raise AssertionError("nothing is followed")
