"""What a balancer may want to know of a request. Nothing is looked up before it is asked for: most never ask."""

from __future__ import annotations

from typing import Literal

from proxy.request import ProxyRequest
from proxy.routing.prompt_blocks import block_hashes

SESSION_HEADER = "x-penstock-session"
By = Literal["session", "key", "user", "header"]


class RequestFacts:
    """One request, and the name of the key it came with (None where no keys are asked for)."""

    __slots__ = ("_blocks", "_request", "key")

    def __init__(self, request: ProxyRequest, key: str | None) -> None:
        self._request = request
        self.key = key
        self._blocks: list[int] | None = None

    def identity(self, by: By, header: str | None = None) -> str | None:
        """What a sticky request keeps to its replica by; None when it has nothing of the kind.

        `session`: the client's own word in `x-penstock-session`, else its user, else its key. The others: that, or else
        the key.
        """
        own: str | None = None
        if by == "session":
            own = self._header(SESSION_HEADER) or self._user()
        elif by == "user":
            own = self._user()
        elif by == "header" and header is not None:
            own = self._header(header)
        return own or self.key

    def prompt_blocks(self) -> list[int]:
        """See `block_hashes`; computed once."""
        if self._blocks is None:
            self._blocks = block_hashes(self._request.body)
        return self._blocks

    def _header(self, name: str) -> str | None:
        wanted = name.lower()
        return next((value for header, value in self._request.headers if header.lower() == wanted and value), None)

    def _user(self) -> str | None:
        """The end user, as each protocol names one: `user`, its successor `safety_identifier`, `metadata.user_id`."""
        body = self._request.body
        metadata = body.value("metadata")
        inner = metadata.get("user_id") if isinstance(metadata, dict) else None
        named = (body.value("user"), body.value("safety_identifier"), inner)
        return next((value for value in named if isinstance(value, str) and value), None)
