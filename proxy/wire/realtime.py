"""What the gateway must know of the Realtime dialect, whose messages pass as they are: its URL, its subprotocol, and
what a close on one side is on the other."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote_plus

from proxy.errors import InvalidRequest

PATH: Final = "/v1/realtime"
SUBPROTOCOL: Final = "realtime"
"""Selected where the model server selects none: a browser that offered some fails without."""
OURS: Final = frozenset({"ticket"})
"""Members of the query that are for the gateway."""
OK, GOING_AWAY, BREAKS_RULES, FAILED, RESTARTS = 1000, 1001, 1002, 1011, 1012
CLIENT_CLOSED: Final = "client_closed"
"""The reason a model server is given when a client is gone without a word."""


def model_of(query: str) -> str:
    """The model that an upgrade's raw query names. Raises InvalidRequest."""
    named = [value for name, value in _members(query) if name == "model"]
    if len(named) > 1:
        raise InvalidRequest("`model` is there twice: give one.", param="model")
    if not named or not named[0]:
        message = f"The URL has no model: give the name of a route, {PATH}?model=<name>."
        raise InvalidRequest(message, code="missing_model", param="model")
    return named[0]


def upstream_query(query: str, model: str) -> str:
    """The same query with this model, and without what is for the gateway; the other members as they were written."""
    written = (part for part in query.split("&") if _name(part) not in OURS)
    return "&".join(f"model={quote(model, safe='')}" if _name(part) == "model" else part for part in written)


def passes(code: int) -> bool:
    """Whether a close code of one side is told to the other."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def passed_close(code: int | None, reason: str) -> tuple[int, str]:
    """What the other side is told of a close; one without a code, or with one that means nothing, is the usual end."""
    return (code, reason) if code is not None and passes(code) else (OK, "")


def is_failure(code: int) -> bool:
    """Whether a model server that closes with it has failed, as far as anybody knows who does not know the model."""
    return 1002 <= code <= 1014


def selection(selected: str | None, offered: tuple[str, ...]) -> str | None:
    """The subprotocol the client is told; `selected` is the model server's choice."""
    return SUBPROTOCOL if selected is None and SUBPROTOCOL in offered else selected


def _members(query: str) -> list[tuple[str, str]]:
    return [(_name(part), unquote_plus(part.partition("=")[2])) for part in query.split("&")]


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0])
