"""What every answer over HTTP has in common: its headers, and how an error is said in the endpoint's own protocol."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from aiohttp import web
from multidict import CIMultiDict

from proxy.errors import GatewayError
from proxy.protocols import endpoints
from proxy.relay import Answer
from proxy.telemetry.record import UNKNOWN, RequestRecord
from proxy.wire.headers import towards_client

STREAM_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)

CLOSING_CODES = frozenset(
    {"draining", "upgrade_required", "invalid_request", "body_too_large", "unsupported_encoding", "request_timeout"}
)
"""After these the connection is closed: what follows on it may be the rest of a body as well as another request."""


def error_response(error: GatewayError, path: str, record: RequestRecord) -> web.Response:
    """The gateway's own error as a whole answer, worded in the protocol of `path`."""
    response = web.Response(
        status=error.status,
        body=endpoints.for_path(path).error_body(error, record.request_id),
        content_type="application/json",
        headers=_names(record, "gateway"),
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(ceil(error.retry_after_s))
    if error.code in CLOSING_CODES:
        response.force_close()
    return response


def whole_response(answer: Answer, path: str, record: RequestRecord) -> web.Response:
    """An upstream's answer in one piece, as it came; a failure told under status 200 gets its own status and words."""
    assert answer.body is not None
    headers = _passed(answer.headers, record)
    body = answer.body
    if answer.failure is not None:
        headers["Content-Type"] = "application/json"
        body = endpoints.for_path(path).failure_body(answer.failure, record.request_id)
    record.bytes_out = len(body)
    return web.Response(status=answer.status, body=body, headers=headers)


def stream_headers(answer: Answer | None, record: RequestRecord) -> CIMultiDict[str]:
    """The head of an answer that flows: event stream, or bytes of the upstream's own content type.

    Without an answer: an event stream that is begun before the upstream has said anything.
    """
    headers = _passed(answer.headers if answer is not None else (), record)
    if answer is None or answer.events:
        headers.update(STREAM_HEADERS)
    return headers


def _passed(upstream: Iterable[tuple[str, str]], record: RequestRecord) -> CIMultiDict[str]:
    headers = CIMultiDict(towards_client(list(upstream)))
    headers.update(_names(record, "upstream"))
    return headers


def _names(record: RequestRecord, source: str) -> dict[str, str]:
    """Who says this: the gateway or an upstream, by which route and replica, after how many attempts."""
    names = {"x-request-id": record.request_id, "x-penstock-source": source}
    if record.route != UNKNOWN:
        names["x-penstock-route"] = record.route
    if record.replica is not None:
        names["x-penstock-replica"] = str(record.replica)
        names["x-penstock-attempts"] = str(record.attempts)
    return names
