"""Any protocol the gateway does not know: every event is content, and the answer is complete when its body is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.openai import error_body, failure_body
from proxy.protocols.protocol import RequestFacts, Sighting, StreamProtocol

if TYPE_CHECKING:
    from proxy.errors import GatewayError
    from proxy.protocols.failure import Failure
    from proxy.wire.sse import Event


class BodyWatcher:
    """Sees nothing but content. A stream of it ends early by its body being cut, not by an event."""

    __slots__ = ("complete", "failure", "tokens_in", "tokens_out")
    pattern: tuple[bytes, bytes] | None = None

    def __init__(self, request: RequestFacts) -> None:
        self.complete = True
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.failure: Failure | None = None

    def observe(self, event: Event) -> Sighting:
        return Sighting.CONTENT

    def terminal_error(self, error: GatewayError) -> bytes:
        return b""


UNKNOWN = StreamProtocol("unknown", b": ping\n", BodyWatcher, error_body, failure_body)
