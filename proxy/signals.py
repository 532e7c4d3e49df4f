"""Signals for a process without an event loop: each a byte on a socket, to be waited for among other things."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from proxy.lines import hear


class SignalLine:
    """Where these signals arrive while they are attended. `socket` can be read when one has."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self.socket, self._told = socket.socketpair()
        self._told.setblocking(False)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """They interrupt nothing, and end nobody. To be entered in the main thread; then the line is closed."""
        with self.socket, self._told:
            signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            for number in self._numbers:
                signal.signal(number, _nothing)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)

    def numbers(self) -> bytes:
        """Those that have come."""
        return hear(self.socket)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """For a fork: a process that has just begun must not take its parent's signals for its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def leave(self) -> None:
        """In the new process: what comes from now on is its own."""
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        self.socket.close()
        self._told.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler, for being woken. (An ignored signal would stay ignored in the programs that a worker starts.)"""
