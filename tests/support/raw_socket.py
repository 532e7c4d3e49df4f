"""A WebSocket client of bytes: upgrades like any other, and then says what it likes, which may be no frame at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from websockets.frames import Frame, Opcode

from tests.support.raw_client import RawClient, get, raw_client
from tests.support.served import PATIENCE_S, Served

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def frame(payload: bytes, opcode: int = Opcode.TEXT, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One frame, with any opcode and any bits."""
    whole = Frame(Opcode.BINARY, payload).serialize(mask=masked)
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + whole[1:]


class RawSocket:
    """An open socket."""

    def __init__(self, client: RawClient) -> None:
        self._client = client

    async def send(self, data: bytes) -> None:
        """As far as the gateway takes it: it may close before all has gone."""
        with suppress(ConnectionError):
            await self._client.send(data)

    async def hear(self, opcode: int) -> bytes:
        """The payload of the next frame of this kind; those before it are thrown away."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                kind, payload = await self._frame()
                if kind == opcode:
                    return payload

    async def close_code(self) -> int:
        """The gateway's, whose connection must end when it is answered."""
        payload = await self.hear(Opcode.CLOSE)
        await self.send(frame(payload, Opcode.CLOSE))
        await self._client.rest()
        return int.from_bytes(payload[:2])

    async def _frame(self) -> tuple[int, bytes]:
        read = self._client.reader.readexactly
        kind, size = await read(2)
        if size >= 126:
            size = int.from_bytes(await read(2 if size == 126 else 8))
        return kind & 0x0F, await read(size)


@asynccontextmanager
async def raw_socket(gateway: Served, target: str, subprotocol: str | None = None) -> AsyncIterator[RawSocket]:
    """An upgraded connection to `target`."""
    offer = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
    async with raw_client(gateway.port) as client:
        await client.send(get(target, *UPGRADE, *offer))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        yield RawSocket(client)
