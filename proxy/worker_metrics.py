"""The figures of several processes as one page: a worker that is asked for its metrics gathers those of all.

A worker has a line for this to the supervisor. One asks; the supervisor asks all, the asking one too, and gives it what
they said. Adding up is the asking worker's work. What metrics there are is telemetry's.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, cast

from proxy.errors import Unavailable
from proxy.telemetry.families import FAMILIES
from proxy.telemetry.metrics import Figures, from_json, merged, to_json, without_gauges

ROUND_S: Final = 1.0
"""How long workers may take to tell their figures; those of who is silent for longer are its last ones."""
ANSWER_WITHIN_S: Final = 3.0
"""How long an asking worker waits for its supervisor: two rounds, when another worker has just asked."""

GATHER, FIGURES = b"g", b"f"
"""What a worker says: give me everybody's; these are mine."""
ASK, ALL = b"a", b"e"
"""What the supervisor says: give me yours; these are everybody's."""

_HEAD = struct.Struct("!cI")


def message(kind: bytes, content: bytes = b"") -> bytes:
    """As it goes over a line; `Messages` is the way back."""
    return _HEAD.pack(kind, len(content)) + content


class Messages:
    """Finds messages in what comes, however it is cut."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Each one that is whole by now: its kind and its content."""
        self._unread += data
        while len(self._unread) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._unread)
            end = _HEAD.size + length
            if len(self._unread) < end:
                return
            content = bytes(self._unread[_HEAD.size : end])
            del self._unread[:end]
            yield kind, content


class FiguresLine(asyncio.Protocol):
    """A worker's side. `attend` it before anybody can ask."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._messages = Messages()
        self._transport: asyncio.WriteTransport | None = None
        self._own: Callable[[], Figures] = dict
        self._awaited: deque[asyncio.Future[Figures]] = deque()

    async def attend(self, figures: Callable[[], Figures]) -> None:
        """From here on tell the supervisor the `figures` of this worker when it asks."""
        self._own = figures
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._line)

    async def gather(self) -> Figures:
        """Those of all workers, as one. Raises `Unavailable` when the supervisor does not answer: the figures of one
        worker alone would look as if what was counted had been lost."""
        if self._transport is None:
            raise _unanswered()
        answer: asyncio.Future[Figures] = asyncio.get_running_loop().create_future()
        self._awaited.append(answer)  # and it stays there when nobody waits any more: answers come in order
        self._transport.write(message(GATHER))
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await answer
        except TimeoutError:
            raise _unanswered() from None

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for kind, content in self._messages.feed(data):
            if kind == ASK:
                self._transport.write(message(FIGURES, to_json(self._own())))
            elif kind == ALL:
                answer = self._awaited.popleft()
                if not answer.done():
                    answer.set_result(_added_up(content))

    def connection_lost(self, exc: Exception | None) -> None:
        """The supervisor is gone."""
        self._transport = None
        while self._awaited:
            answer = self._awaited.popleft()
            if not answer.done():
                answer.set_exception(_unanswered())


def _added_up(everybody: bytes) -> Figures:
    said = json.loads(everybody)
    last = [without_gauges(FAMILIES, from_json(figures)) for figures in said["last"]]
    return merged(FAMILIES, [*(from_json(figures) for figures in said["now"]), *last])


def _unanswered() -> Unavailable:
    return Unavailable("The other workers cannot be asked now.", code="metrics_unavailable", retry_after_s=1)


class _Worker:
    """One worker's line, as the supervisor holds it."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.messages = Messages()
        self.unsent = bytearray()
        self.is_asked = False
        self.last = b"{}"
        """What it said last; it may have said nothing yet."""


class Gathering:
    """The supervisor's side: asks all workers when one of them wants to know, a round at a time.

    What is counted never falls: a worker that is silent, or that has died, counts with what it said last, less its
    gauges. Nobody is waited for on a line: a worker that reads nothing stops nothing.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._workers: dict[int, _Worker] = {}
        self._departed = b"{}"
        self._missing: set[int] = set()
        self._asking: list[int] = []
        self._asking_next: list[int] = []
        self.due_s: float | None = None
        """When to end the round under way at the latest (`time.monotonic`), by `end_round`; None: there is none."""

    def join(self, pid: int, line: socket.socket) -> None:
        """A worker is ready to answer. The line is now ours to close."""
        line.setblocking(False)
        self._workers[pid] = _Worker(line)
        self._selector.register(line, selectors.EVENT_READ, partial(self._serve, pid))

    def leave(self, pid: int) -> None:
        """It has ended, if it had joined at all: what it counted stays."""
        worker = self._workers.pop(pid, None)
        if worker is None:
            return
        self._selector.unregister(worker.line)
        worker.line.close()
        parts = [from_json(json.loads(said)) for said in (self._departed, worker.last)]
        self._departed = to_json(without_gauges(FAMILIES, merged(FAMILIES, parts)))
        self._answered(pid)

    def count(self, figures: Figures) -> None:
        """What the supervisor itself has counted, besides what the workers have."""
        parts = [from_json(json.loads(self._departed)), figures]
        self._departed = to_json(without_gauges(FAMILIES, merged(FAMILIES, parts)))

    def end_round(self) -> None:
        """Give those who asked what has come, and begin the round that others wait for."""
        self.due_s = None
        now = [worker.last for pid, worker in self._workers.items() if pid not in self._missing]
        last = [self._departed, *(self._workers[pid].last for pid in self._missing)]
        everybody = b'{"now":[%b],"last":[%b]}' % (b",".join(now), b",".join(last))
        asking, self._asking = self._asking, []
        self._missing.clear()
        for pid in asking:
            if pid in self._workers:
                self._send(self._workers[pid], message(ALL, everybody))
        if self._asking_next:
            self._begin_round()

    def _begin_round(self) -> None:
        self._asking, self._asking_next = self._asking_next, []
        self._missing = set(self._workers)
        self.due_s = time.monotonic() + ROUND_S
        for worker in self._workers.values():
            if not worker.is_asked:  # else it still owes its last answer, and that will do
                worker.is_asked = True
                self._send(worker, message(ASK))

    def _serve(self, pid: int) -> None:
        """Something can be read from this worker's line, or written to it."""
        worker = self._workers.get(pid)
        if worker is None:
            return  # it has just ended
        self._send(worker, b"")
        try:
            data = worker.line.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.leave(pid)
        for kind, content in worker.messages.feed(data):
            if kind == FIGURES:
                worker.last = content
                worker.is_asked = False
                self._answered(pid)
            elif kind == GATHER:
                self._asking_next.append(pid)
                if self.due_s is None:
                    self._begin_round()

    def _answered(self, pid: int) -> None:
        if self.due_s is not None:
            self._missing.discard(pid)
            if not self._missing:
                self.end_round()

    def _send(self, worker: _Worker, data: bytes) -> None:
        """Now, or as soon as its line takes more."""
        worker.unsent += data
        if worker.unsent:
            try:
                del worker.unsent[: worker.line.send(worker.unsent)]
            except BlockingIOError:
                pass
            except OSError:  # nobody reads it any more
                worker.unsent.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        key = self._selector.get_key(worker.line)
        if key.events != events:
            self._selector.modify(worker.line, events, key.data)
