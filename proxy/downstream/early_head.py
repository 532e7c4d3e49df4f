"""The head of an event stream, sent before the upstream has said anything: when it is silent for so long that an
intermediary might take the connection for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proxy.downstream.streamed import StreamedAnswer
from proxy.errors import GatewayError
from proxy.relay import Answer

T = TypeVar("T")


class EarlyHead:
    """Begins `make(None)` after `after_s` seconds, unless it is settled or forgotten before."""

    def __init__(self, make: Callable[[Answer | None], StreamedAnswer], after_s: float) -> None:
        self._make = make
        self._response: StreamedAnswer | None = None
        self._timer = asyncio.get_running_loop().call_later(after_s, self._begin)

    async def cover(self, opening: Awaitable[T]) -> tuple[StreamedAnswer | None, T | GatewayError]:
        """Wait for what is being opened: it, or the error that is to be told in the response that has begun.

        Raises the error where none has begun.
        """
        try:
            opened = await opening
        except GatewayError as error:
            begun = self.settle()
            if begun is None:
                raise
            return begun, error
        except BaseException:
            self.forget()
            raise
        return self.settle(), opened

    def settle(self) -> StreamedAnswer | None:
        """Wait no more: the response that has begun, or None."""
        self._timer.cancel()
        return self._response

    def forget(self) -> None:
        """The client has left and nobody will settle it: let go of what runs."""
        self._timer.cancel()
        if self._response is not None:
            self._response.close()

    def _begin(self) -> None:
        response = self._make(None)
        try:
            response.begin()
        except ConnectionError:  # the client has just left; whoever waits for the answer is told by itself
            return
        self._response = response
        response.keep_alive()
