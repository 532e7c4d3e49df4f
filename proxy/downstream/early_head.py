"""The head of an event stream, sent before the upstream has said anything: when it is silent for so long that an
intermediary might take the connection for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.downstream.streamed import StreamedAnswer
from proxy.relay import Answer


class EarlyHead:
    """Begins `make(None)` after `after_s` seconds, unless it is settled or forgotten before."""

    def __init__(self, make: Callable[[Answer | None], StreamedAnswer], after_s: float) -> None:
        self._make = make
        self._response: StreamedAnswer | None = None
        self._timer = asyncio.get_running_loop().call_later(after_s, self._begin)

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
