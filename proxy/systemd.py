"""What a service manager is told (systemd's `sd_notify`), and the listening sockets that it passes (`LISTEN_FDS`).

What is read from the environment is taken out of it: programs that are started here must not take it for theirs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from msgspec import Struct

from proxy.ports import Passed

FIRST_DESCRIPTOR: Final = 3

Environ = MutableMapping[str, str]


class NotSockets(Exception):
    """What was passed cannot be served. The text says why."""


class NotifySocket(Struct, frozen=True):
    """Where a service manager hears how we are: `address` of its datagram socket (None: nobody wants to know), and how
    often it wants a sign of life. Nobody waits for it, and it may be gone."""

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environ: Environ) -> NotifySocket:
        """The one that this environment names."""
        address = environ.pop("NOTIFY_SOCKET", "")
        period = environ.pop("WATCHDOG_USEC", "")
        is_ours = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(period) / 1e6 if is_ours and period.isdecimal() and int(period) > 0 else None
        return cls(address if address[:1] in ("/", "@") else None, watchdog_s)

    @property
    def alive_every_s(self) -> float | None:
        """When to say `alive` again, half of what it waits for; None: never."""
        return None if self.watchdog_s is None or self.address is None else self.watchdog_s / 2

    def ready(self, status: str) -> None:
        """Clients are served, from the start or after a reload."""
        self._tell("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=finishing what is open")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def _tell(self, *said: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
            telling.setblocking(False)
            telling.sendto("\n".join(said).encode(), address)


def passed_sockets(environ: Environ) -> Passed:
    """The sockets that were passed to this process, with their names. Raises `NotSockets`."""
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    names += [""] * (int(count) - len(names))
    return [(names[number], _listening(FIRST_DESCRIPTOR + number)) for number in range(int(count))]


def _listening(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
        listens = bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        raise NotSockets(f"descriptor {descriptor} was passed to be listened on, but is no socket") from error
    if not listens or passed.family not in (socket.AF_INET, socket.AF_INET6):
        raise NotSockets(f"descriptor {descriptor} was passed to be listened on, but is no listening TCP socket")
    passed.setblocking(False)
    return passed


def _line(text: str) -> str:
    return " ".join(text.split())
