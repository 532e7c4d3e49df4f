"""What of a batch of events can stand in frames of ours: one JSON object each, on one line.

Most batches can as they are (`json_object.splices`, the question of every event); here is what becomes of the others.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.protocols.event_data import is_done
from proxy.wire.json_object import object_payload
from proxy.wire.sse import Event


def readable(events: list[Event], *, known: bool, on_malformed: Callable[[], None]) -> list[Event]:
    """The events that can stand in a frame, their data as it stands there. `[DONE]` is for those that read SSE.

    `known`: the protocol has only JSON objects, so that anything else has no place in it, and `on_malformed` is told.
    """
    made = []
    for event in events:
        if is_done(event.data):
            continue
        data = object_payload(event.data, known=known)
        if data is None:
            on_malformed()
        else:
            made.append(event if data is event.data else Event(data, data, data, event.type))
    return made
