"""The stream routes' protocol: errors are a `detail`, as the system they come from had it.

What streams there are a stage's events (`wire.stages`), around chat completions of the model server's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.event_data import compact
from proxy.protocols.openai import ChatWatcher
from proxy.protocols.protocol import StreamProtocol
from proxy.protocols.stage_request import UnprocessableRequest

if TYPE_CHECKING:
    from proxy.errors import GatewayError
    from proxy.protocols.failure import Failure

PREFIXES = ("/stream/", "/completion/")


def error_body(error: GatewayError, request_id: str) -> bytes:
    """`{"detail":"a sentence"}`; for a body of the wrong shape, a list of what is wrong with it."""
    return compact({"detail": error.problems if isinstance(error, UnprocessableRequest) else error.message})


def failure_body(failure: Failure, request_id: str) -> bytes:
    """The upstream's error in the same form."""
    return compact({"detail": failure.message})


STAGES = StreamProtocol("stages", b": ping\n", ChatWatcher, error_body, failure_body)
