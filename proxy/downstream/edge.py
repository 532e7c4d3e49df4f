"""The outermost edge of every request: it gets its record, its errors get words, its line is written at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.downstream.answering import error_response
from proxy.downstream.gate import Gate
from proxy.errors import (
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UpgradeRequired,
)
from proxy.telemetry.record import CLIENT_LEFT, EndState, RequestRecord, end_state_of
from proxy.wire.headers import new_request_id, request_id

RECORD = web.RequestKey("record", RequestRecord)
UNLOGGED = frozenset({"/healthz", "/readyz"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
logger = logging.getLogger("penstock")


def edge(gate: Gate, upgradable: Container[str], publish: Callable[[RequestRecord], None]) -> Middleware:
    """The middleware. `upgradable` are the paths that speak WebSocket; `publish` is called once for each request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        now = asyncio.get_running_loop().time
        record = RequestRecord(
            request_id(request.headers.get("x-request-id"), new_request_id), request.method, request.path, now()
        )
        request[RECORD] = record
        try:
            if request.path not in UNLOGGED:
                gate.check_room(request)
            gate.check_host(request)
            if "Upgrade" in request.headers and _asks_for_websocket(request) and request.path not in upgradable:
                raise UpgradeRequired("This path does not speak WebSocket.")
            response = await handler(request)
            if record.status is None:
                record.status = response.status
                record.bytes_out = _body_bytes(response)
            if record.end_state is None and not record.goes_on:
                record.finish(end_state_of(response.status), now())
        except ConnectionError:  # the client's: an upstream's has got a name of ours where it arose
            record.finish(EndState.CLIENT_CLOSED, now())
            response = web.Response(status=CLIENT_LEFT)  # for nobody
        except asyncio.CancelledError:
            if not record.goes_on:
                record.finish(EndState.CLIENT_CLOSED, now())
            raise
        except Exception as error:
            named = _named(error)
            if isinstance(named, InternalError):
                logger.exception("request %s failed", record.request_id)
            record.status = named.status
            record.finish(end_state_of(named), now())
            response = error_response(named, request.path, record)
            record.bytes_out = _body_bytes(response)
            if isinstance(error, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = error.headers["Allow"]
            if request.writer.output_size > 0:  # the answer has begun: only the connection's end can tell the client
                request.protocol.force_close()
        finally:
            if request.path not in UNLOGGED and not record.goes_on:
                publish(record)
        return response

    return middleware


def _body_bytes(response: web.StreamResponse) -> int:
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0


def _asks_for_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def _named(error: Exception) -> GatewayError:
    """The error as one of ours; aiohttp's own texts may repeat what the client sent."""
    match error:
        case GatewayError():
            return error
        case web.HTTPNotFound():
            return NotFound("There is nothing at this path.")
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed("This path does not take that method.")
        case web.HTTPRequestEntityTooLarge():
            return BodyTooLarge("The body is too large.")
        case web.HTTPForbidden():  # aiohttp-cors, of a preflight
            return Forbidden("Pages of this origin may not do this; see cors.origins.", code="origin_not_allowed")
        case web.HTTPException() if error.status < 500:
            return InvalidRequest("The request is not valid.")
        case _:
            return InternalError("The gateway failed; its log says why.")


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer says which request it is to, and nothing of the software behind it (`on_response_prepare`)."""
    record = request.get(RECORD)
    if record is not None:
        response.headers.setdefault("x-request-id", record.request_id)
        response.headers.setdefault("x-penstock-source", "gateway")
    response.headers["Server"] = "penstock"
