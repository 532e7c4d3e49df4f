"""A stream kept until it is whole: for an answer that came as bytes, where one message or one object must hold it."""

from __future__ import annotations

import asyncio

from proxy.errors import GatewayError, UpstreamInvalid
from proxy.relay import Answer
from proxy.wire.sse import Event


class Whole:
    """The listener of an answer that is no event stream. `finished` gets how it ended; `pieces` are what came."""

    __slots__ = ("_room_bytes", "finished", "pieces")

    def __init__(self, most_bytes: int) -> None:
        self._room_bytes = most_bytes
        self.finished: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self.pieces: list[bytes] = []

    def write(self, events: list[Event]) -> bool:
        self.pieces += [event.wire for event in events]
        self._room_bytes -= sum(len(event.wire) for event in events)
        if self._room_bytes < 0:
            self.end(UpstreamInvalid("the answer is too large for one message"))
        return self._room_bytes < 0

    def end(self, error: GatewayError | None) -> None:
        if not self.finished.done():
            self.finished.set_result(error)


async def whole_body(answer: Answer, most_bytes: int) -> bytes | None:
    """The body of an answer, also of one so long that it flows; None of an event stream. Raises `GatewayError`."""
    if answer.body is not None or answer.events:
        return answer.body
    whole = Whole(most_bytes)
    answer.stream.attach(whole)
    error = await whole.finished
    if error is not None:
        raise error
    return b"".join(whole.pieces)
