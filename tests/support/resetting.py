"""A connection that ends with RST: closing it, or aborting its transport, alone would send FIN."""

from __future__ import annotations

import asyncio
import socket
import struct

_AT_ONCE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.WriteTransport) -> None:
    """Drop the connection; what the other side has not read yet is lost."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


def leave_at_once(client: socket.socket) -> None:
    """The same of a socket, after which the system remembers nothing of the connection."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    client.close()
