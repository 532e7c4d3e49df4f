"""A scripted model server on a raw socket: what it answers, byte by byte and when, is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.resetting import reset

OK_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK_EVENTS_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def content(text: str) -> bytes:
    """A chat chunk that says `text`."""
    return event(
        b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
        % text.encode()
    )


ROLE = event(
    b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
)
STOP = event(b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
DONE = event(b"[DONE]")


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    """A whole answer with a JSON body."""
    lines = [b"HTTP/1.1 %d Status" % status, b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


@dataclass(slots=True)
class Received:
    """One request as its bytes came."""

    head: bytes
    body: bytes

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    def header(self, name: str) -> str | None:
        values = self.headers(name)
        return values[0] if values else None

    def headers(self, name: str) -> list[str]:
        lines = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip().decode() for key, _, value in lines if key.decode().lower() == name.lower()]


class Peer:
    """One connection as the script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: ScriptedUpstream) -> None:
        self._reader = reader
        self._writer = writer
        self._upstream = upstream

    async def request(self) -> Received:
        """The next request, whole; `asyncio.IncompleteReadError` when the client has closed."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        received = Received(head, b"")
        received.body = await self._reader.readexactly(int(received.header("content-length") or 0))
        self._upstream.requests.append(received)
        return received

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a write (and, loop turn by loop turn, mostly a packet) of its own."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Wait until the gateway has closed its side; what it still sends is thrown away."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        reset(self._writer.transport)

    async def close(self) -> None:
        self._writer.close()


Script = Callable[[Peer], Awaitable[None]]


@dataclass(slots=True)
class ScriptedUpstream:
    """`url` to put into routes.yaml; `requests` in the order they came; `connections` counts what was accepted."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0


@asynccontextmanager
async def scripted_upstream(
    script: Script, address: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[ScriptedUpstream]:
    """Serve with `script`, called once a connection; the connection is closed when it returns."""
    upstream = ScriptedUpstream()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer, upstream))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway has gone, or the test is over
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, *address, backlog=1024, limit=1 << 20)
    host, port = server.sockets[0].getsockname()[:2]
    upstream.url = f"http://{host}:{port}"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(*pieces: bytes) -> Script:
    """A script that answers every request on a connection with these pieces."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)

    return script


def answering_once(*pieces: bytes) -> Script:
    """As `answering`, and closes after the first."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return script


def saying(*pieces: bytes, end: str = "end") -> Script:
    """A script that answers the first request with these pieces, and then ends the connection, resets it, or stalls."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if end == "reset":
            for _ in range(5 * len(pieces)):
                await asyncio.sleep(0)  # a reset takes with it what the gateway has not read yet
            peer.reset()
        elif end == "stall":
            await peer.closed()

    return script
