"""The pages a browser opens: the playground at `/` and its files under `/playground/`; the client at `/client.js`.

Files are read from the package once, at start; every served path is an entry of the router made from a file's own
name, so no request can name any other file. What the pages call (`/v1/models`, `/v1/ws`) belongs to other rooms.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from aiohttp import web
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
}

# Everything from here, nothing inline, and no way to turn text into markup (trusted types): an answer that found a way
# into the document could still not run. In CSP level 3 'self' covers the WebSocket of the same host and port too.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

PAGE_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

CLIENT_FILES: Final = ("client.js", "client.d.ts")
"""Served at the root, for any page: those of other origins import it as CORS lets them."""


class Page(Struct, frozen=True):
    """One file as it is served: its bytes, its content type and its strong entity tag (without quotes)."""

    body: bytes
    content_type: str
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> Page:
        """Raises `KeyError` for a file name whose kind is not in `CONTENT_TYPES`."""
        return cls(body, CONTENT_TYPES[PurePosixPath(name).suffix], hashlib.sha256(body).hexdigest()[:32])

    async def answer(self, request: web.Request) -> web.Response:
        """200 with the file, or 304 when the browser holds this version. The server drops the body of a HEAD."""
        response = web.Response(headers={**PAGE_HEADERS, "ETag": f'"{self.etag}"'})
        if any(tag.value in (self.etag, "*") for tag in request.if_none_match or ()):
            response.set_status(304)
            return response
        response.headers["Content-Type"] = self.content_type
        response.body = self.body
        return response


def read_pages(folder: Traversable) -> Iterator[tuple[str, Page]]:
    """Path and page of each file directly in `folder`, which is served under its own name.

    `index.html` is the root page `/`. Files of a kind that is not served (a note) are left out.
    """
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.is_file() and PurePosixPath(file.name).suffix in CONTENT_TYPES:
            path = "/" if file.name == "index.html" else f"/{folder.name}/{file.name}"
            yield path, Page.of(file.name, file.read_bytes())


def add_pages(router: web.UrlDispatcher) -> None:
    """Adds GET and HEAD of these files. They ask for no key: the page itself does, for what it calls."""
    web_files = files("proxy") / "web"
    client = ((f"/{name}", Page.of(name, (web_files / name).read_bytes())) for name in CLIENT_FILES)
    for path, page in (*read_pages(web_files / "playground"), *client):
        router.add_get(path, page.answer)
