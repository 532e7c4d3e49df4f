"""Which protocol is spoken at which path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.anthropic import ANTHROPIC
from proxy.protocols.openai import OPENAI
from proxy.protocols.responses import RESPONSES
from proxy.protocols.stages import PREFIXES, STAGES
from proxy.protocols.unknown import UNKNOWN

if TYPE_CHECKING:
    from proxy.protocols.protocol import StreamProtocol

_SPOKEN = {
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/responses": RESPONSES,
    "/v1/messages": ANTHROPIC,
}


def for_path(path: str) -> StreamProtocol:
    """The protocol of an endpoint, given its path without a query; UNKNOWN for any other."""
    spoken = _SPOKEN.get(path)
    if spoken is None:
        return STAGES if path.startswith(PREFIXES) else UNKNOWN
    return spoken
