"""The words all protocols share: what an event turned out to be, who watches a stream, how an error is worded.

Which protocol is spoken where is in `endpoints`; what each one looks like, in its own file.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.errors import GatewayError
    from proxy.protocols.failure import Failure
    from proxy.wire.sse import Event


class Sighting(enum.Enum):
    """What one event means to its stream. PREAMBLE is only said before the first CONTENT."""

    PREAMBLE = "preamble"
    """Part of the answer, but nothing of what the model says yet."""
    CONTENT = "content"
    """What the model says, or that it is done saying it; and after the first of these, every ordinary event."""
    USAGE = "usage"
    """Nothing but token counts, for a client that asked for them."""
    WITHHELD = "withheld"
    """Nothing but token counts that only the gateway asked for: not passed on."""
    PING = "ping"
    """A sign of life, and nothing more."""
    ERROR = "error"
    """The upstream gave up; `failure` says how. Nothing more need come."""
    END = "end"
    """The protocol's last event; nothing of meaning follows."""
    MALFORMED = "malformed"
    """No JSON object: by its first and last byte, or, where somebody had to look closer, by all of them."""


class Watcher(Protocol):
    """Looks at one stream's events as they go by. One for each exchange: a retry gets a new one.

    `complete`: the protocol's own end was seen. A chat's `finish_reason` is one, though usage and `[DONE]` may follow.
    `tokens_in`, `tokens_out`: from the last usage seen, None until then.
    `failure`: set by the first ERROR.
    `pattern`: how the data of the last ordinary event begins and ends around its text, if that can be told. One that
    has the same around a text of its own, in which nothing is quoted and no line ends, is CONTENT, and need not be
    observed.
    """

    complete: bool
    tokens_in: int | None
    tokens_out: int | None
    failure: Failure | None

    @property
    def pattern(self) -> tuple[bytes, bytes] | None: ...

    def observe(self, event: Event) -> Sighting:
        """Say what this event is. Called once for every event, in order; keeps no event's `raw`."""
        ...

    def terminal_error(self, error: GatewayError) -> bytes:
        """The one event that ends this stream early, as bytes on the wire; b"" where the body is cut instead."""
        ...


class RequestFacts(Protocol):
    """What a protocol may want to know of the request: `RequestBody` has it."""

    @property
    def stream(self) -> bool: ...

    def value(self, name: str, default: object = None) -> object: ...

    def opening(self, name: str) -> bytes: ...


def _never(request: RequestFacts) -> bool:
    return False


class StreamProtocol(Struct, frozen=True):
    """How one protocol streams and complains.

    `keepalive` is sent after silence. `error_body(error, request_id)` and `failure_body(failure, request_id)` are the
    JSON answers to a request that failed before anything was sent: the gateway's own error, and the upstream's.
    `asks_for_usage(request)`: this stream tells its token counts only where `stream_options` asks for them, and the
    client does not; so the gateway does, and its watcher withholds the answer.
    """

    name: str
    keepalive: bytes
    watcher: Callable[[RequestFacts], Watcher]
    error_body: Callable[[GatewayError, str], bytes]
    failure_body: Callable[[Failure, str], bytes]
    asks_for_usage: Callable[[RequestFacts], bool] = _never
