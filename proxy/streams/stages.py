"""A stage's stream: what one chat completion after another gives, under one numbering, with one end.

It listens to the streams of the completions and is the source of its own, which the client's side listens to. What is
asked next, and when it is over, the owner says: an endpoint, or the loop that runs tools.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.errors import GatewayError, UpstreamError
from proxy.protocols.event_data import decoded, is_set
from proxy.protocols.failure import failure_of
from proxy.streams.stream import Stream
from proxy.wire.json_object import is_json_object
from proxy.wire.sse import Event
from proxy.wire.stages import CANCEL, DONE, ERROR, SUMMARY, StageWording

Ended = Callable[[GatewayError | None], None]
See = Callable[[Event], None]

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


class StageStream:
    """One stage. `stream` is what the client's side attaches to; its events are made by `wire.stages`.

    `on_cancelled` is called when that side has gone, so that the owner stops what it does; nothing is published then.
    `over`: the one terminal event went out, or nobody listens any more. `error` is what an `error` event told,
    `cancelled_for` why a `cancel` came.
    """

    __slots__ = (
        "_ended",
        "_inner",
        "_make",
        "_number",
        "_on_cancelled",
        "_paused",
        "_see",
        "_wording",
        "cancelled_for",
        "error",
        "over",
        "stage_id",
        "stream",
    )

    def __init__(self, stage_id: str, on_cancelled: Callable[[], None] | None = None) -> None:
        self.stage_id = stage_id
        self._wording = StageWording(stage_id)
        self._on_cancelled = on_cancelled
        self._number = 0
        self._inner: Stream | None = None
        self._make: Callable[[bytes, int], Event] = _no_chunk
        self._ended: Ended = _nobody
        self._see: See | None = None
        self._paused = False
        self.over = False
        self.error: GatewayError | None = None
        self.cancelled_for: str | None = None
        self.stream = Stream()
        self.stream.flow_from(self)

    # ---- the owner's side ----

    def follow(self, inner: Stream, kind: str, ended: Ended, see: See | None = None) -> None:
        """Pass on each chunk of `inner` as an event of this kind, less its `[DONE]`; `see` gets every event first.

        `ended` is called once, when `inner` has ended (perhaps within this call): with the error that broke it off. An
        error event of the upstream's is one: it ends the stage, and `ended` is told. Once the stage is over, `inner` is
        only cancelled. One at a time.
        """
        assert self._inner is None
        if self.over:
            inner.cancel()
            return
        self._make = self._wording.chunks(kind)
        self._ended, self._see = ended, see
        self._inner = inner
        inner.attach(self)

    def summary(self, round: int, calls: list[dict[str, object]]) -> None:
        """What the tools of a round gave, once it is over."""
        if not self.over:
            self._publish(SUMMARY, {"tool_summary": {"round": round, "calls": calls}})

    def done(self) -> None:
        self._end(DONE)

    def stop_for(self, error: GatewayError | None) -> None:
        """The end that a completion's own end asks for, where nothing comes after it."""
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

    def end(self, error: GatewayError | None) -> None:
        self._inner = None
        ended, self._ended = self._ended, _nobody
        ended(error)

    # ---- the stage's own stream's side (its source) ----

    def pause(self) -> None:
        """The followed stream hears of it as the answer to its next batch."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._inner is not None:
            self._inner.drained()

    def interrupt(self, error: GatewayError) -> None:
        if self._inner is not None:
            self._inner.interrupt(error)
        self.stop_for(error)

    def close(self) -> None:
        self.over = True
        self._let_go()
        if self._on_cancelled is not None:
            self._on_cancelled()

    # ---- within ----

    def _fail_within(self, failure: UpstreamError) -> None:
        ended, self._ended = self._ended, _nobody
        self.fail(failure)
        ended(failure)

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

    def _let_go(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.cancel()


def sentence(error: GatewayError) -> str:
    """The error as a sentence for a person, with what to do about it where that is known; an upstream's own words as
    they are."""
    if not isinstance(error, UpstreamError) or error.code == _THEIRS:
        return error.message
    message = error.message[:1].upper() + error.message[1:]
    hint = _HINTS.get(error.code)
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


def _nobody(error: GatewayError | None) -> None:
    """Nobody waits for it."""
