"""What came of one attempt at a replica, in the words of the metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    UpstreamError,
    UpstreamIdle,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)


class Outcome(StrEnum):
    """The metrics' `outcome` of an attempt (http.md, "Metrics and log")."""

    OK = "ok"  # an answer, and nothing wrong with it as far as anybody wanted it
    REFUSED = "refused"  # no connection: refused, not found, TLS failed
    RESET = "reset"  # the connection was lost before an answer came
    TIMEOUT = "timeout"  # to connect, to the first token, between events, in all
    STATUS = "status"  # an answer with an error's status
    ERROR_EVENT = "error_event"  # an error told under status 200
    TRUNCATED = "truncated"  # an answer that stopped before its end
    INVALID = "invalid"  # no HTTP, or no answer that may be passed on


class Attempt(NamedTuple):
    """`replica` is its index in the route."""

    route: str
    replica: int
    outcome: Outcome


_OUTCOMES: Final = (
    (FirstTokenTimeout, Outcome.TIMEOUT),
    (UpstreamIdle, Outcome.TIMEOUT),
    (UpstreamTimeout, Outcome.TIMEOUT),
    (UpstreamTruncated, Outcome.TRUNCATED),
    (UpstreamUnreachable, Outcome.RESET),
    (UpstreamError, Outcome.INVALID),
)


def outcome_of(error: GatewayError, *, connected: bool) -> Outcome:
    """What an attempt came to that `error` ended; `connected`: it had a connection by then.

    An error that is not the upstream's (a drain's end, say) says nothing against the replica.
    """
    if isinstance(error, UpstreamUnreachable) and not connected:
        return _connecting(error.__cause__)
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.OK)


def _connecting(cause: BaseException | None) -> Outcome:
    if isinstance(cause, TimeoutError):
        return Outcome.TIMEOUT
    return Outcome.RESET if isinstance(cause, ConnectionResetError) else Outcome.REFUSED
