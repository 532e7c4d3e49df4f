"""An answer at its commit point, as who numbers its events takes it: which of them go on, under which names, and how
its end reads. What differs from protocol to protocol is here; how the answer came to be is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from proxy.downstream.stages import OpenStage
from proxy.errors import GatewayError, UpstreamError
from proxy.protocols import endpoints
from proxy.protocols.event_data import compact, decoded, event_type
from proxy.protocols.protocol import Watcher
from proxy.relay import Answer
from proxy.routing.table import Route
from proxy.streams.numbered import Screen
from proxy.streams.stream import Stream
from proxy.telemetry.usage import usage_of_answer
from proxy.wire.mux_frames import STAGE_MEMBERS, Ending, Form
from proxy.wire.sse import Event, encode


class Opened(Struct, frozen=True):
    """An answer of this `route`'s at its commit point. The holder's duty: attach a listener to `stream`, and `close`,
    once.

    `form`, `stage_id` (None: the request has none of its own), `known` and `screen` are what its frames are made by;
    `on_malformed` is to be told of each event that cannot be one; `conclude` words the end.
    """

    stream: Stream
    route: Route
    form: Form
    stage_id: str | None
    known: bool
    screen: Screen
    on_malformed: Callable[[], None]
    conclude: Callable[[GatewayError | None], Ending]
    close: Callable[[], None]


class Counts(Protocol):
    """The tokens of an answer, as far as they are known at its end."""

    @property
    def tokens_in(self) -> int | None: ...
    @property
    def tokens_out(self) -> int | None: ...


def opened_events(answer: Answer, route: Route, close: Callable[[], None], counts: Counts | None = None) -> Opened:
    """An answer of events, to a request for `route`; `close` is how to let go of it. `counts` has its tokens where the
    answer's watcher has not seen them all (None: it has)."""
    protocol = endpoints.for_path(answer.request.path)
    watcher = answer.watcher
    known = protocol.name != "unknown"
    chunks = protocol.name == "openai"
    return Opened(
        answer.stream,
        route,
        Form.CHUNKS if chunks else Form.EVENTS,
        None,
        known,
        _without_failures(watcher) if chunks else _named if known else _as_they_are,
        answer.on_malformed,
        lambda error: _ending(watcher, error, counts or watcher, protocol.name),
        close,
    )


def opened_whole(answer: Answer, route: Route, body: bytes, close: Callable[[], None]) -> Opened:
    """An answer in one piece, as the one event of a stream that has ended; `close` is how to let go of it."""
    protocol = endpoints.for_path(answer.request.path)
    usage = usage_of_answer(body)
    stream = Stream()
    stream.publish([Event(body, body, body)])
    stream.end()
    return Opened(
        stream,
        route,
        Form.RESULT,
        None,
        False,
        _as_they_are,
        answer.on_malformed,
        lambda error: Ending.done(_told_usage(usage.tokens_in, usage.tokens_out, protocol.name)),
        close,
    )


def opened_stage(opened: OpenStage, route: Route, close: Callable[[], None]) -> Opened:
    """A stage, asked of `route`; `close` is how to let go of it."""
    stage = opened.stage
    return Opened(
        stage.stream,
        route,
        Form.STAGES,
        stage.stage_id,
        True,
        _stage_data(stage.stage_id),
        opened.answer.on_malformed if opened.answer is not None else _uncounted,
        lambda error: _stage_ending(opened, error),
        close,
    )


def _uncounted() -> None:
    """No upstream, so no event of one."""


def _ending(watcher: Watcher, error: GatewayError | None, counts: Counts, protocol: str) -> Ending:
    if error is not None:
        return Ending.failed(error, watcher.terminal_error(error) or None)
    if watcher.failure is not None:
        error_object = watcher.failure.error
        told = encode(compact({"error": error_object})) if protocol == "openai" else b""
        return Ending.refused(error_object, watcher.failure.status or UpstreamError.status, event=told)
    return Ending.done(_told_usage(counts.tokens_in, counts.tokens_out, protocol))


def _told_usage(tokens_in: int | None, tokens_out: int | None, protocol: str) -> dict[str, int] | None:
    """The counts under the names that the protocol has for them; None where nobody counted."""
    openai = protocol in ("openai", "unknown", "stages")
    names = ("prompt_tokens", "completion_tokens") if openai else ("input_tokens", "output_tokens")
    counted = zip(names, (tokens_in, tokens_out), strict=True)
    return {name: count for name, count in counted if count is not None} or None


# ---- screens: which events of a batch a client gets, under which names ----


def _as_they_are(events: list[Event]) -> list[Event]:
    return events


def _named(events: list[Event]) -> list[Event]:
    """Some servers send no `event:` lines: then the data says it."""
    for event in events:
        if not event.type:
            event.type = event_type(event.data)
    return events


def _without_failures(watcher: Watcher) -> Screen:
    """A chunk that tells of the upstream's failure is none: the end tells of it."""

    def screen(events: list[Event]) -> list[Event]:
        if watcher.failure is None:
            return events
        return [event for event in events if event.type != b"error" and not (decoded(event.data) or {}).get("error")]

    return screen


def _stage_data(stage_id: str) -> Screen:
    """What a stage's events carry, without what its wording puts around it. The stage's last event is its end."""
    opening = b'{"stage_id":' + json.dumps(stage_id).encode("ascii")
    around = {type.encode(): len(opening) + len(f',"{member}":') for type, member in STAGE_MEMBERS.items()}

    def screen(events: list[Event]) -> list[Event]:
        carried = []
        for event in events:
            start = around.get(event.type)
            if start is not None:
                event.data = event.data[start:-1]  # its wire stays the stage's own
                carried.append(event)
        return carried

    return screen


def _stage_ending(opened: OpenStage, error: GatewayError | None) -> Ending:
    stage = opened.stage
    failed = stage.error or error
    if failed is not None:
        return Ending.failed(failed)
    if stage.cancelled_for is not None:
        return Ending.cancelled(stage.cancelled_for)
    watcher = opened.answer.watcher if opened.answer is not None else None
    return Ending.done(None if watcher is None else _told_usage(watcher.tokens_in, watcher.tokens_out, "stages"))
