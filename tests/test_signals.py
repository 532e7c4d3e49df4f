"""Signals as bytes, in this very process."""

from __future__ import annotations

import os
import selectors
import signal
import threading
from collections.abc import Iterator

import pytest

from proxy.signals import SignalLine

NUMBERS = (signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def test_a_signal_that_is_attended_is_a_byte_and_ends_nobody() -> None:
    line = SignalLine(NUMBERS)
    with line.attended(), selectors.DefaultSelector() as selector:
        selector.register(line.socket, selectors.EVENT_READ)
        assert selector.select(0) == []
        for number in NUMBERS:
            os.kill(os.getpid(), number)
        assert selector.select(5) != []
        assert sorted(line.numbers()) == sorted(NUMBERS)
    assert signal.set_wakeup_fd(-1) == -1


def test_one_that_is_held_back_comes_afterwards() -> None:
    line = SignalLine(NUMBERS)
    with line.attended(), selectors.DefaultSelector() as selector:
        selector.register(line.socket, selectors.EVENT_READ)
        with line.held_back():
            signal.pthread_kill(threading.get_ident(), signal.SIGHUP)  # the runner has other threads
            assert selector.select(0) == []
        assert selector.select(5) != []
        assert line.numbers() == bytes([signal.SIGHUP])


def test_a_new_process_leaves_the_line_to_its_parent() -> None:
    line = SignalLine(NUMBERS)
    with line.attended():
        with line.held_back():
            pid = os.fork()
            if pid == 0:
                line.leave()
                signal.signal(signal.SIGHUP, lambda *_: os._exit(7))
                os.kill(os.getpid(), signal.SIGHUP)
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        os.kill(os.getpid(), signal.SIGUSR1)
        assert line.numbers() == bytes([signal.SIGUSR1])
