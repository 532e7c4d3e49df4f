"""A request under way in any dialect, whose client can stop reading in the middle of it, or leave, in every way there
is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, cast

import websockets
from websockets.frames import Frame, Opcode

from tests.support.clients import Seen, read_answer
from tests.support.dialects import PATIENCE_S, Dialect, Place, connected, heard
from tests.support.raw_client import RawClient, raw_client
from tests.support.resetting import reset
from tests.support.served import Served

OVER_HTTP = ("FIN", "RST")
OVER_SOCKET = ("Close", "FIN", "RST", "cancel")


def ways(dialect: Dialect) -> tuple[str, ...]:
    """How this dialect's client can leave."""
    return OVER_SOCKET if dialect.is_socket else OVER_HTTP


class Asked(Protocol):
    """One request, on a connection of its own."""

    async def hear(self, text: str) -> None:
        """Wait until this content has come."""

    async def leave(self, way: str) -> None:
        """End it in one of the dialect's `ways`."""

    def stop_reading(self) -> None:
        """From now on what comes is left in the kernel."""

    def read_slowly(self, turn_bytes: int) -> None:
        """From now on take no more than so much in a turn of the loop."""

    async def read_on(self) -> Seen:
        """Read again, to the end of the answer."""


@asynccontextmanager
async def asked(
    gateway: Served | Place, dialect: Dialect, model: str = "m", *, half: bool = False
) -> AsyncIterator[Asked]:
    """A request that has been sent, or, with `half`, has not been sent to its end."""
    if dialect.is_socket:
        async with connected(gateway, dialect) as socket:
            whole = Frame(Opcode.TEXT, dialect.message(model).encode()).serialize(mask=True)
            socket.transport.write(whole[: len(whole) // 2] if half else whole)
            yield _OverSocket(socket, dialect)
    else:
        async with raw_client(gateway.port) as client:
            request = dialect.request(model)
            await client.send(request[:-5] if half else request)
            yield _OverHttp(client, dialect)


class _OverHttp:
    def __init__(self, client: RawClient, dialect: Dialect) -> None:
        self._client = client
        self._dialect = dialect
        self._transport = cast("asyncio.Transport", client.writer.transport)

    async def hear(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._client.reader.readuntil(text.encode())

    async def leave(self, way: str) -> None:
        self._client.leave(reset=way == "RST")

    def stop_reading(self) -> None:
        self._transport.pause_reading()

    def read_slowly(self, turn_bytes: int) -> None:
        _read_slowly(self._transport, turn_bytes)

    async def read_on(self) -> Seen:
        self._transport.resume_reading()
        return read_answer(await self._client.answer(), self._dialect.read)


class _OverSocket:
    def __init__(self, socket: websockets.ClientConnection, dialect: Dialect) -> None:
        self._socket = socket
        self._dialect = dialect

    async def hear(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert text in (await heard(self._socket, self._dialect, said=1)).said

    async def leave(self, way: str) -> None:
        match way:
            case "Close":
                await self._socket.close()
            case "FIN":
                self._socket.transport.close()
            case "RST":
                reset(self._socket.transport)
            case _:
                await self._socket.send(self._dialect.cancel)
                await (await self._socket.ping())  # the socket lives

    def stop_reading(self) -> None:
        self._socket.transport.pause_reading()

    def read_slowly(self, turn_bytes: int) -> None:
        _read_slowly(self._socket.transport, turn_bytes)

    async def read_on(self) -> Seen:
        self._socket.transport.resume_reading()
        async with asyncio.timeout(PATIENCE_S):
            return await heard(self._socket, self._dialect)


def _read_slowly(transport: asyncio.Transport, turn_bytes: int) -> None:
    transport.max_size = turn_bytes  # type: ignore[attr-defined]  # of one `recv`; there is one a turn
