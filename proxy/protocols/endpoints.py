"""Which protocol is spoken at which path, and which answers can be continued where they broke off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.anthropic import ANTHROPIC
from proxy.protocols.chat_account import chat_account
from proxy.protocols.messages_account import MessagesAccount
from proxy.protocols.openai import OPENAI
from proxy.protocols.responses import RESPONSES
from proxy.protocols.stages import PREFIXES, STAGES
from proxy.protocols.unknown import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.protocols.account import Account
    from proxy.protocols.protocol import StreamProtocol
    from proxy.request import RequestBody

_SPOKEN = {
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/responses": RESPONSES,
    "/v1/messages": ANTHROPIC,
}
_ACCOUNTS: dict[str, Callable[[RequestBody], Account | None]] = {
    "/v1/chat/completions": chat_account,
    "/v1/completions": chat_account,
    "/v1/messages": MessagesAccount,
}


def for_path(path: str) -> StreamProtocol:
    """The protocol of an endpoint, given its path without a query; UNKNOWN for any other."""
    spoken = _SPOKEN.get(path)
    if spoken is None:
        return STAGES if path.startswith(PREFIXES) else UNKNOWN
    return spoken


def account_for(path: str, body: RequestBody) -> Account | None:
    """Who keeps account of the stream that answers this request; None where it could not be continued anyway."""
    opened = _ACCOUNTS.get(path)
    return opened(body) if opened is not None and body.stream else None
