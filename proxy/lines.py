"""What the supervisor and a worker say to each other over a line, a pair of sockets: a URL once, numbers of signals,
and with SIGHUP what came of reading the configuration."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxy.reload import Reload

MOST_AT_ONCE = 16


def say(line: socket.socket, said: bytes) -> None:
    """To whoever is at the other end; nobody may be, which `hear` tells."""
    with suppress(OSError):
        line.send(said)


def hear(line: socket.socket) -> bytes:
    """What has come; nothing: the other end is gone."""
    try:
        return line.recv(4096)
    except ConnectionError:  # gone, with something unheard
        return b""


def hear_orders(line: socket.socket) -> tuple[bytes, list[Reload]]:
    """As `hear`, with what was in the parcels that came with it."""
    try:
        numbers, descriptors, _, _ = socket.recv_fds(line, 4096, MOST_AT_ONCE)
    except ConnectionError:
        return b"", []
    return numbers, [_unpacked(each) for each in descriptors]


@contextmanager
def parcel(reload: Reload) -> Iterator[int]:
    """A descriptor to send: of any size, and nobody waits for who reads it. Only processes of ours ever see it, and no
    disk, where the system can do without."""
    descriptor = os.memfd_create("reload") if hasattr(os, "memfd_create") else _unlinked()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            pickle.dump(reload, file)
        yield descriptor
    finally:
        os.close(descriptor)


def _unlinked() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _unpacked(descriptor: int) -> Reload:
    """Many read it through one open file: none of them moves its position."""
    with open(descriptor, "rb") as file:
        unpacked = pickle.loads(os.pread(descriptor, os.fstat(file.fileno()).st_size, 0))
    assert isinstance(unpacked, Reload)
    return unpacked
