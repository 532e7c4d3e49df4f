"""Reading a request's body, within its limits of size and time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from proxy.downstream.known_body import KnownBody
from proxy.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedEncoding


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, and how many seconds it may pause (None: for ever)."""

    max_bytes: int
    pause_s: float | None


async def read_body(request: web.Request, limits: BodyLimits) -> bytes:
    """The whole body. Raises `BodyTooLarge`, `UnsupportedEncoding`, `RequestTimeout` or `InvalidRequest`."""
    max_bytes, pause_s = limits.max_bytes, limits.pause_s
    if isinstance(request.content, KnownBody):  # with a known head: nothing it says was refused
        return await _whole(request.content, pause_s)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding("Send the body uncompressed: compressed requests are not taken.")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    content = request.content
    pieces: list[bytes] = []
    size = 0
    try:
        whole = False
        while not whole:
            whole = content.is_eof()
            if whole:
                piece = content.read_nowait()
            else:
                async with asyncio.timeout(pause_s):
                    piece = await content.readany()
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise _too_large(max_bytes)
    except TimeoutError:
        raise _late() from None
    except RequestPayloadError:
        raise InvalidRequest("The body's framing is broken.") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _whole(body: KnownBody, pause_s: float | None) -> bytes:
    try:
        return await body.whole(pause_s)
    except TimeoutError:
        raise _late() from None


def _late() -> RequestTimeout:
    return RequestTimeout("The body did not come in time.")


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {max_bytes} bytes (server.max_body).")
