"""A port that accepts connections, and that leaves nobody behind when it stops.

Linux resets what waits in a listening socket's queue when that is closed, though another process listens on the port.
So before it is closed no handshake may begin at it any more, and its queue is emptied.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import ssl
import struct
import sys
from typing import Final, cast

from aiohttp import web

from proxy.downstream.server import ClientRunner, ClientServer
from proxy.ports import CannotListen, Port

BACKLOG: Final = 4096
HANDSHAKE_S: Final = 0.2
"""How long TLS takes with most clients: while it is under way nothing shows that somebody is connected."""
HANDSHAKE_WITHIN_S: Final = 1.0
"""How long TLS may take with those who were in the queue, before a drain goes on without waiting for them."""

_SO_ATTACH_FILTER: Final = 26
_NO_SYN: Final = (  # classic BPF over the TCP header: what has SYN without ACK is dropped, and sent again in a second
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # a lone SYN?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)


class Listener:
    """Serves a port with `runner`, which is set up. The owner's duty: `stop`, or the runner's `cleanup`."""

    def __init__(self, port: Port, runner: ClientRunner, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._runner = runner
        self._tls = tls
        self._sites: list[web.SockSite] = []

    @property
    def server(self) -> ClientServer:
        """Whom the connections are given to."""
        return cast("ClientServer", self._runner.server)

    async def start(self) -> None:
        """Accept connections. Raises `CannotListen`."""
        for each in self._port.sockets:
            try:
                site = web.SockSite(self._runner, each, ssl_context=self._tls, backlog=BACKLOG)
                await site.start()
            except OSError as error:
                raise CannotListen(self._port.setting, self._port.address) from error
            self._sites.append(site)

    async def stop(self) -> None:
        """Accept nobody any more. Who is connected by now, as far as a client can tell, is served. The queue of a
        passed socket stays: it is for whoever else has that."""
        left = [] if self._port.passed else [one for each in self._port.sockets for one in _empty(each)]
        for site in self._sites:
            await site.stop()
        self._sites.clear()
        if left:
            await asyncio.wait([asyncio.ensure_future(self._serve(each)) for each in left], timeout=HANDSHAKE_WITHIN_S)
        if self._tls is not None:
            await asyncio.sleep(HANDSHAKE_S)

    async def _serve(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self.server, accepted, ssl=self._tls, ssl_handshake_timeout=None if self._tls is None else 10.0
            )
        except OSError:  # it has gone, or could not agree on TLS
            accepted.close()


def _empty(listening: socket.socket) -> list[socket.socket]:
    """All connections in its queue; there are no new ones from now on, where the system knows how to."""
    _refuse_handshakes(listening)
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = listening.accept()
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.ECONNABORTED:
                continue
            return accepted  # nobody is left; or no descriptor
        connection.setblocking(False)
        accepted.append(connection)


def _refuse_handshakes(listening: socket.socket) -> None:
    """Begin no handshake at this socket any more; those under way are finished."""
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    steps = ctypes.create_string_buffer(program)
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_NO_SYN), ctypes.addressof(steps)))
