"""A client on a raw socket: sends exactly these bytes, and shows exactly what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import h11

from tests.support import resetting

PATIENCE_S = 30.0


@dataclass(slots=True)
class RawAnswer:
    """An answer as an independent HTTP parser reads it. `whole`: it ended as its framing asks."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._unread = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "POST", patience_s: float = PATIENCE_S) -> RawAnswer:
        """The next answer, to its end (or to the connection's); `method` is what was asked with."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "h"), ("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        if self._unread:
            parser.receive_data(self._unread)
            self._unread = b""
        answer, body = RawAnswer(0, {}, b"", whole=False), bytearray()
        try:
            async with asyncio.timeout(patience_s):
                await self._read(parser, answer, body)
        finally:
            answer.body = bytes(body)
        return answer

    async def _read(self, parser: h11.Connection, answer: RawAnswer, body: bytearray) -> None:
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                return
            if event is h11.NEED_DATA:
                parser.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                answer.whole = True
                self._unread = parser.trailing_data[0]
                return
            elif isinstance(event, h11.ConnectionClosed):
                return

    async def rest(self) -> bytes:
        """What still comes until the gateway closes the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return self._unread + await self.reader.read()
            except ConnectionError:
                return self._unread

    def pause(self) -> None:
        """Read no more, and leave what comes in the kernel."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def resume(self) -> None:
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    def leave(self, *, reset: bool = False) -> None:
        """Close the socket: with FIN, or with RST."""
        if reset:
            resetting.reset(self.writer.transport)
        else:
            self.writer.close()


def post(path: str, body: object, *headers: str) -> bytes:
    """A request with a JSON body (bytes are sent as they are)."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(raw)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + raw


def chat(model: str = "m", **members: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, **members}


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


async def ask(port: int, request: bytes, method: str = "POST") -> RawAnswer:
    """The answer to exactly these bytes, on a connection of their own."""
    async with raw_client(port) as client:
        await client.send(request)
        return await client.answer(method)


@asynccontextmanager
async def raw_client(port: int) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
