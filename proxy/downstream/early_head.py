"""The head of an event stream, sent before the upstream has said anything: when it is silent for so long that an
intermediary might take the connection for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from proxy.downstream.streamed import StreamedAnswer
from proxy.relay import Answer


class EarlyHead:
    """Begins `make(None)` after `after_s` seconds (None: never), unless it is settled or forgotten before."""

    def __init__(
        self, make: Callable[[Answer | None], StreamedAnswer], request: web.Request, after_s: float | None
    ) -> None:
        self._make = make
        self._request = request
        self._response: StreamedAnswer | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = None if after_s is None else self._loop.call_later(after_s, self._begin)

    async def settle(self) -> StreamedAnswer | None:
        """Wait no more: the response that has begun, or None."""
        self._stop()
        if self._beginning is not None:
            await self._beginning
        return self._response

    def forget(self) -> None:
        """The client has left and nobody will settle it: let go of what runs."""
        self._stop()
        if self._beginning is not None:
            self._beginning.cancel()
        if self._response is not None:
            self._response.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._response = self._make(None)
        self._beginning = self._loop.create_task(self._begin_response(self._response))

    async def _begin_response(self, response: StreamedAnswer) -> None:
        try:
            await response.begin(self._request)
        except ConnectionError:  # the client has just left; whoever waits for the answer is told by itself
            self._response = None
        else:
            response.keep_alive()
