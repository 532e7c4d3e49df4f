"""The ports that are listened on: bound here, kept for several processes, or passed by a service manager.

Accepting connections on them is `listener`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from msgspec import Struct

from proxy.config.addresses import Address, is_loopback
from proxy.config.model import Config

ADMIN = "admin"
"""What a passed socket is called that stands for `admin.listen`."""

Passed = Sequence[tuple[str, socket.socket]]
"""Sockets that somebody passed, with what they are called."""


class CannotListen(Exception):
    """A port cannot be had. `setting` is the part of the file that asks for it; `__cause__` is the `OSError`."""

    def __init__(self, setting: str, address: Address) -> None:
        super().__init__(f"{setting}: cannot listen on {address}")
        self.setting = setting
        self.address = address


class Port(Struct, frozen=True):
    """Sockets bound to `address`, which has the real port. They do not listen yet, unless they were `passed`: then
    other processes may have the same ones. The owner's duty: `close`, or give them to a `Listener`."""

    setting: str
    address: Address
    sockets: tuple[socket.socket, ...]
    passed: bool = False

    def again(self) -> Port:
        """The same port for another process, with sockets of its own; passed ones are shared. Raises `CannotListen`."""
        return self if self.passed else bind(self.setting, self.address, join=True)

    def close(self) -> None:
        close(self.sockets)


class Ports(Struct, frozen=True):
    """The main port and, where it has one of its own, the operators'."""

    main: Port
    admin: Port | None = None

    def again(self) -> Ports:
        """As `Port.again`, of both."""
        main = self.main.again()
        try:
            return Ports(main, None if self.admin is None else self.admin.again())
        except CannotListen:
            main.close()
            raise

    def close_kept(self) -> None:
        """What is of no use to a process that has its own now; passed sockets are its own too."""
        for port in (self.main, self.admin):
            if port is not None and not port.passed:
                port.close()

    def close(self) -> None:
        self.main.close()
        if self.admin is not None:
            self.admin.close()


def addresses(passed: Passed) -> tuple[Address | None, Address | None]:
    """Where the passed sockets listen, the main ones and the operators'. Of several that one counts which most can
    reach: what may be served there is decided by it."""
    found: dict[bool, list[Address]] = {True: [], False: []}
    for name, each in passed:
        found[name == ADMIN].append(Address(*each.getsockname()[:2]))
    main, admin = (sorted(found[is_admin], key=lambda where: is_loopback(where.host)) for is_admin in (False, True))
    return main[0] if main else None, admin[0] if admin else None


def open_ports(config: Config, passed: Passed = (), *, join: bool = False) -> Ports:
    """The configuration's ports. `join`: others may listen on them, who let others join. Raises `CannotListen`."""
    main = tuple(each for name, each in passed if name != ADMIN)
    admin = tuple(each for name, each in passed if name == ADMIN)
    listen, address = config.admin.listen, Address(config.server.host, config.server.port)
    first = Port("server", address, main, passed=True) if main else bind("server", address, join=join)
    if listen is None:
        return Ports(first)
    try:
        second = Port("admin.listen", listen, admin, passed=True) if admin else bind("admin.listen", listen, join=join)
    except CannotListen:
        first.close()
        raise
    return Ports(first, second)


def bind(setting: str, address: Address, *, join: bool) -> Port:
    """A port of our own. A name may stand for several addresses; they get the same port. Raises `CannotListen`."""
    host, port = address
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((family, where[0]) for family, _, _, _, where in found):
            if port and not join:
                _bound(family, str(place), port, shared=False).close()
            bound.append(_bound(family, str(place), port, shared=True))
            port = bound[0].getsockname()[1]
    except OSError as error:
        close(bound)
        raise CannotListen(setting, address) from error
    return Port(setting, Address(host, port), tuple(bound))


def close(sockets: Iterable[socket.socket]) -> None:
    """Let go of them; those that listen leave their queues to be reset, unless another process has them too."""
    for each in sockets:
        each.close()


def _bound(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket on this port. One that is not `shared` shows whether somebody listens there already: with SO_REUSEPORT
    the kernel would deal a second penstock of the same user half of the connections."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
