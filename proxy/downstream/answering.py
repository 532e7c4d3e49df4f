"""What every answer over HTTP has in common: its headers, and how an error is said in the endpoint's own protocol."""

from __future__ import annotations

from math import ceil

from aiohttp import hdrs, web
from multidict import CIMultiDict

from proxy.errors import GatewayError, Unauthorized
from proxy.protocols import endpoints
from proxy.relay import Answer
from proxy.telemetry.record import UNKNOWN, RequestRecord
from proxy.wire.headers import Header, towards_client

STREAM_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)
JSON_BODY = ("Content-Type", "application/json")
UNKNOWN_BODY = ("Content-Type", "application/octet-stream")

CLOSING_CODES = frozenset(
    {
        "draining",
        "overloaded",
        "upgrade_required",
        "invalid_request",
        "body_too_large",
        "unsupported_encoding",
        "request_timeout",
    }
)
"""After these the connection is closed: what follows on it may be the rest of a body as well as another request."""


def error_response(error: GatewayError, path: str, record: RequestRecord) -> web.Response:
    """The gateway's own error as a whole answer, worded in the protocol of `path`."""
    response = web.Response(
        status=error.status,
        body=endpoints.for_path(path).error_body(error, record.request_id),
        content_type="application/json",
        headers=dict(names(record, "gateway")),
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        response.headers["x-should-retry"] = "false"  # Claude Code would try the same key for ever
    if error.code in CLOSING_CODES:
        response.force_close()
    return response


def whole_answer(answer: Answer, path: str, record: RequestRecord) -> tuple[list[Header], bytes]:
    """An upstream's answer in one piece, as it came; a failure told under status 200 gets words of its own."""
    assert answer.body is not None
    headers = towards_client(answer.headers)
    body = answer.body
    if answer.failure is not None:
        headers = _with(headers, JSON_BODY)
        body = endpoints.for_path(path).failure_body(answer.failure, record.request_id)
    elif body and not _says_type(headers):
        headers.append(UNKNOWN_BODY)
    return headers + names(record, "upstream"), body


def stream_headers(answer: Answer | None, record: RequestRecord) -> list[Header]:
    """The head of an answer that flows: event stream, or bytes of the upstream's own content type.

    Without an answer: an event stream that is begun before the upstream has said anything.
    """
    headers = towards_client(answer.headers) if answer is not None else []
    if answer is None or answer.events:
        headers = _with(headers, *STREAM_HEADERS)
    elif not _says_type(headers):
        headers.append(UNKNOWN_BODY)
    return headers + names(record, "upstream")


def _says_type(headers: list[Header]) -> bool:
    return hdrs.CONTENT_TYPE in CIMultiDict(headers)


def _with(headers: list[Header], *ours: Header) -> list[Header]:
    """`headers` with ours in the place of any of their names."""
    replaced = {name.lower() for name, _ in ours}
    return [header for header in headers if header[0].lower() not in replaced] + [*ours]


def names(record: RequestRecord, source: str) -> list[Header]:
    """Who says this: the gateway or an upstream, by which route and replica, after how many attempts."""
    names = [("x-request-id", record.request_id), ("x-penstock-source", source)]
    if record.route != UNKNOWN:
        names.append(("x-penstock-route", record.route))
    if record.replica is not None:
        names.append(("x-penstock-replica", str(record.replica)))
        names.append(("x-penstock-attempts", str(record.attempts)))
    return names
