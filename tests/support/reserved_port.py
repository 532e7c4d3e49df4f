"""A free loopback port that stays ours while what serves on it is started, killed and started again."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def reserved_port() -> Iterator[int]:
    """Bound and not listening: the kernel gives it to nobody, refuses connections to it, and lets a server that sets
    SO_REUSEADDR (as asyncio, uvicorn, nginx and haproxy do) bind it too."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port
