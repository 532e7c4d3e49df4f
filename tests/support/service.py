"""The gateway as a service manager starts it: told where to say how it is, and given sockets to listen on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from tests.support.gateway import RunningGateway, _ready, _stop

HEARD_WITHIN_S = 60.0


class Manager:
    """A datagram socket that hears how a service is: `said` is everything so far, a dictionary a message."""

    def __init__(self, listening: socket.socket, name: str) -> None:
        self._socket = listening
        self.name = name
        self.said: list[dict[str, str]] = []

    async def hears(self, **assignments: str) -> dict[str, str]:
        """Wait for a message that says this, past what was waited for before; it whole."""
        async with asyncio.timeout(HEARD_WITHIN_S):
            while True:
                message = (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode()
                said = dict(line.split("=", 1) for line in message.split("\n"))
                self.said.append(said)
                if assignments.items() <= said.items():
                    return said


@contextmanager
def manager(tmp_path: Path) -> Iterator[Manager]:
    """One that is there until the block ends."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield Manager(listening, str(tmp_path / "notify"))


@asynccontextmanager
async def service(
    configuration: Path, *args: str, sockets: dict[str, socket.socket] | None = None, **env: str
) -> AsyncIterator[RunningGateway]:
    """Run `penstock serve` with these variables, and with these sockets passed to it by name, until the block ends."""
    given = sockets or {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    if given:
        env |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(given)}
    log_file = configuration.with_name(f"gateway-{len(list(configuration.parent.iterdir()))}.log")
    descriptors = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 20) for each in given.values()]
    moves = " ".join(f"{3 + index}<&{descriptor}" for index, descriptor in enumerate(descriptors))
    start = f'export LISTEN_PID=$$; exec "$0" -m proxy serve -c "$@" {moves}'
    try:
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *("/bin/bash", "-c", start, sys.executable, str(configuration), *args),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                pass_fds=descriptors,
                env={**kept, **env},
            )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    try:
        yield RunningGateway(await _ready(process, log_file), process, log_file)
    finally:
        await _stop(process)
