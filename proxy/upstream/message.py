"""What a replica is sent: the client's request under the replica's own name of the model, with the replica's own
credentials. Which replica that is, dispatch decides."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.request import ProxyRequest, RequestBody
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.wire.headers import Header, request_head, towards_upstream
from proxy.wire.json_members import Piece

REQUEST_ID = "x-request-id"
MOST_HEADS = 16
"""So many heads are kept for a client that sends the same headers again and again."""
COPIED_BYTES = 64 * 1024
"""A body as long as this is sent in pieces: copying a megabyte into fresh memory takes as long as sending it."""
JSON_BODY: Header = ("Content-Type", "application/json")


def upstream_message(
    request: ProxyRequest, route: Route, replica: Replica, *, asks_for_usage: bool
) -> bytes | list[Piece]:
    """The request as this replica gets it: its own name of the model, its own credentials, nothing it need not know.
    In pieces, where it is long."""
    body = request.body
    changes = _changes(body, route, asks_for_usage=asks_for_usage)
    if len(body.raw) < COPIED_BYTES:
        whole = body.replaced(changes) if changes else body.raw
        return _start(request, route, replica, len(whole)) + whole
    pieces = body.pieces(changes)
    return [_start(request, route, replica, sum(map(len, pieces))), *pieces]


def probing_message(replica: Replica, path: str) -> bytes:
    """A GET of `path`, with nothing but the replica's own headers."""
    headers = [("Host", replica.origin.authority), *replica.headers, ("Accept-Encoding", "identity")]
    return request_head("GET", replica.target(path, ""), headers)


def _start(request: ProxyRequest, route: Route, replica: Replica, length: int) -> bytes:
    """What stands before a body of this length."""
    head, names_request = _head(request, route, replica)
    name = b"" if names_request else b"x-request-id: %b\r\n" % request.request_id.encode()
    return b"%b%bContent-Length: %d\r\n\r\n" % (head, name, length)


def _head(request: ProxyRequest, route: Route, replica: Replica) -> tuple[bytes, bool]:
    """The lines that stay the same as long as the client's do, without the empty one; whether one of them is the
    replica's own x-request-id."""
    target = replica.target(request.path, request.query)
    kept = request.crossing.get((replica, target))
    if kept is None:
        crossing = _crossing(request, route, replica)
        head = request_head("POST", target, crossing).removesuffix(b"\r\n")
        kept = head, any(name.lower() == REQUEST_ID for name, _ in crossing)
        if len(request.crossing) < MOST_HEADS:
            request.crossing[replica, target] = kept
    return kept


def _changes(body: RequestBody, route: Route, *, asks_for_usage: bool) -> dict[str, object]:
    changes: dict[str, object] = {}
    if route.upstream_model != body.model:
        changes["model"] = route.upstream_model
    if asks_for_usage:
        changes["stream_options"] = body.object_with("stream_options", {"include_usage": True})
    return changes


def _crossing(request: ProxyRequest, route: Route, replica: Replica) -> list[Header]:
    own = {name.lower() for name, _ in replica.headers}
    passed = [*towards_upstream(request.headers, keep_credentials=route.passthrough), *request.forwarded]
    if not _says_json(passed):
        passed = [*(header for header in passed if header[0].lower() != "content-type"), JSON_BODY]
    return [
        ("Host", replica.origin.authority),
        *(header for header in passed if header[0].lower() not in own),
        *(header for header in replica.headers if header[0].lower() != "accept-encoding"),
        ("Accept-Encoding", "identity"),
    ]


def _says_json(headers: Sequence[Header]) -> bool:
    """A WebSocket's upgrade has no content type, and curl sends a form's; the body is known to be JSON by now."""
    return any(name.lower() == "content-type" and "json" in value.lower() for name, value in headers)
