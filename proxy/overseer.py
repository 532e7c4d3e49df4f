"""Who started a process that serves, as that sees it: what it was given, what it is ordered, what it exits with."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import Final, Protocol

from proxy.app import Gateway, Gather
from proxy.ports import Passed
from proxy.reload import Reload
from proxy.systemd import NotifySocket

DONE: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 130
CANNOT_GO_ON: Final = 0
"""Ordered instead of a signal's number by a process that must be replaced."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What a shell or a service manager started us with: who is told how we are, the sockets that were passed, and
    whether other processes are to share the ports (`joins`)."""

    notify: NotifySocket = field(default_factory=NotifySocket)
    passed: Passed = ()
    joins: bool = False


class StopOrders:
    """To be made in a running loop: `first` asks to drain, `second` to stop at once; each is done with a signal's
    number, or with `CANNOT_GO_ON`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()

    def give(self, number: int) -> None:
        """The next order; what comes after the second changes nothing."""
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return


class Overseer(Protocol):
    """Who started this process. `gather` gives the figures of all processes that listen on its ports, if there are
    others."""

    @property
    def gather(self) -> Gather | None: ...

    async def attend(self, orders: StopOrders, gateway: Gateway) -> None:
        """Called once, before anybody is served: from here on, give the orders as they come, and `gateway` what comes
        of reading the configuration again."""

    def ready(self, url: str) -> None:
        """Called when clients are served."""

    def stopping(self) -> None:
        """Called when a drain begins, or where it never came to serving anybody: nothing is to be reloaded any more."""


def exit_code(first: int, *, hurried: bool) -> int:
    """Of a stop that the signal `first` asked for; `hurried`: another one cut its drain short."""
    if first == CANNOT_GO_ON:
        return FAILED
    return INTERRUPTED if hurried or first == signal.SIGINT else DONE


def say_ready(url: str) -> None:
    """The first line on standard output."""
    print(f"penstock listening on {url}", flush=True)


def status(url: str, reload: Reload) -> str:
    """A line about how we are, for a service manager."""
    if reload.complaints:
        return f"serving on {url}; the configuration was not taken up: {reload.complaints[0]}"
    return f"serving on {url}"
