"""What comes of an attempt, told from the error that ended it."""

from __future__ import annotations

import pytest

from proxy import errors
from proxy.telemetry.attempt import Outcome, outcome_of


def caused(cause: BaseException) -> errors.UpstreamUnreachable:
    error = errors.UpstreamUnreachable("no connection")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (caused(ConnectionRefusedError()), Outcome.REFUSED),
        (caused(OSError("Multiple exceptions: [Errno 111] …")), Outcome.REFUSED),
        (errors.UpstreamUnreachable("closed as soon as it was made"), Outcome.REFUSED),
        (caused(TimeoutError()), Outcome.TIMEOUT),
        (caused(ConnectionResetError()), Outcome.RESET),
    ],
)
def test_an_attempt_that_got_no_connection(error: errors.GatewayError, outcome: Outcome) -> None:
    assert outcome_of(error, connected=False) is outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.UpstreamUnreachable("closed before an answer"), Outcome.RESET),
        (errors.StaleConnection("closed before an answer"), Outcome.RESET),
        (errors.FirstTokenTimeout("silent"), Outcome.TIMEOUT),
        (errors.UpstreamIdle("silent"), Outcome.TIMEOUT),
        (errors.UpstreamTimeout("too long"), Outcome.TIMEOUT),
        (errors.UpstreamTruncated("cut"), Outcome.TRUNCATED),
        (errors.UpstreamInvalid("garbage"), Outcome.INVALID),
        (errors.UpstreamError("something else"), Outcome.INVALID),
        (errors.Unavailable("shutting down", code="draining"), Outcome.OK),
        (errors.InternalError("ours"), Outcome.OK),
    ],
)
def test_an_attempt_that_had_one(error: errors.GatewayError, outcome: Outcome) -> None:
    assert outcome_of(error, connected=True) is outcome


def test_every_error_of_an_upstream_speaks_against_it() -> None:
    waiting = [errors.UpstreamError]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        unsaid = kind.__new__(kind)  # each has an __init__ of its own
        assert Outcome.OK not in {outcome_of(unsaid, connected=connected) for connected in (True, False)}


def test_the_outcomes_are_the_contracts() -> None:
    said = "ok refused reset timeout status error_event truncated invalid"
    assert [str(outcome) for outcome in Outcome] == said.split()
