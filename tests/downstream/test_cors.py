"""CORS as a page meets it: a real application, asked the way browsers ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import hdrs, web

from proxy.access.origins import OriginPolicy
from proxy.downstream.cors import EXPOSED_HEADERS, PREFLIGHT_MAX_AGE_S, setup_cors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import ClientResponse
    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient

    Client = TestClient[web.Request, web.Application]

APP = "https://app.example.com"
DEV = "http://localhost:5173"
BELOW = "https://a.b.example.org"
STRANGER = "https://evil.test"
LISTED = OriginPolicy([APP, "http://localhost:*", "https://*.example.org"], loopback_bind=False)


async def answer(request: web.Request) -> web.Response:
    return web.json_response({"method": request.method}, headers={"x-request-id": "req_1"})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Vary": "Accept-Encoding"})
    await response.prepare(request)
    await response.write(b"data: {}\n\n")
    return response


async def forbidden(_: web.Request) -> web.Response:
    raise web.HTTPForbidden(text="no")


async def broken(_: web.Request) -> web.Response:
    raise RuntimeError("broken")


async def socket(request: web.Request) -> web.WebSocketResponse:
    session = web.WebSocketResponse()
    await session.prepare(request)
    await session.close()
    return session


@web.middleware
async def in_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answers of a middleware's own, as the gateway's error answers are."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        return web.json_response({"error": exc.reason}, status=exc.status)
    except RuntimeError:
        return web.json_response({"error": "internal_error"}, status=500)


def application(current_policy: Callable[[], OriginPolicy]) -> web.Application:
    app = web.Application(middlewares=[in_json])
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/v1/{path:.+}", answer)
    app.router.add_get("/stream", stream)
    app.router.add_get("/streams/{id}", answer)
    app.router.add_delete("/streams/{id}", answer)
    app.router.add_get("/forbidden", forbidden)
    app.router.add_get("/broken", broken)
    app.router.add_get("/ws", socket)
    setup_cors(app, current_policy)
    return app


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(application(lambda: LISTED))


async def preflight(client: Client, path: str, origin: str, method: str = "POST", headers: str = "") -> ClientResponse:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return await client.options(path, headers=asked | ({"Access-Control-Request-Headers": headers} if headers else {}))


def cors_headers(response: ClientResponse) -> list[tuple[str, str]]:
    return [(name, value) for name, value in response.headers.items() if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("origin", [APP, DEV, "http://localhost:3000", BELOW])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/anything/else"])
async def test_a_listed_page_may_send_what_it_asks_to_send(client: Client, origin: str, path: str) -> None:
    response = await preflight(client, path, origin, headers="authorization, content-type, x-stainless-os")
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert response.headers["Access-Control-Allow-Methods"] == "POST"
    allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
    assert allowed == {"authorization", "content-type", "x-stainless-os"}
    assert response.headers["Access-Control-Max-Age"] == str(PREFLIGHT_MAX_AGE_S)
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Access-Control-Expose-Headers" not in response.headers  # it is the answer's


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_the_gateways_methods_may_be_asked_for(client: Client, method: str) -> None:
    assert (await preflight(client, "/streams/s_1", APP, method)).status == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "CONNECT"])
async def test_other_methods_may_not(client: Client, method: str) -> None:
    assert (await preflight(client, "/streams/s_1", APP, method)).status == 403


@pytest.mark.parametrize("origin", [STRANGER, "null", "*", "https://example.org", "https://localhost:5173", "http://"])
async def test_a_preflight_of_another_page_is_refused_without_a_word_on_cors(client: Client, origin: str) -> None:
    response = await preflight(client, "/v1/chat/completions", origin)
    assert response.status == 403
    assert cors_headers(response) == []


@pytest.mark.parametrize("origin", [APP, DEV, BELOW])
async def test_a_listed_page_may_read_the_answer_and_our_headers(client: Client, origin: str) -> None:
    response = await client.post("/v1/chat/completions", headers={"Origin": origin})
    assert response.status == 200
    assert sorted(name for name, _ in cors_headers(response)) == [
        "Access-Control-Allow-Origin",
        "Access-Control-Expose-Headers",
    ]
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert set(response.headers["Access-Control-Expose-Headers"].split(",")) == set(EXPOSED_HEADERS)
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", [STRANGER, "null"])
@pytest.mark.parametrize("path", ["/stream", "/streams/s_1", "/forbidden", "/broken", "/nowhere"])
async def test_another_page_may_read_nothing(client: Client, origin: str, path: str) -> None:
    response = await client.get(path, headers={"Origin": origin})
    assert cors_headers(response) == []
    assert "Origin" in response.headers.getall("Vary")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/forbidden", 403),
        ("GET", "/broken", 500),
        ("GET", "/nowhere", 404),
        ("OPTIONS", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/stream", 405),
        ("GET", "/ws", 400),
    ],
)
async def test_a_listed_page_may_read_what_went_wrong(client: Client, method: str, path: str, status: int) -> None:
    response = await client.request(method, path, headers={"Origin": DEV})
    assert response.status == status
    assert sorted(cors_headers(response))[0] == ("Access-Control-Allow-Origin", DEV)
    assert set(response.headers["Access-Control-Expose-Headers"].split(",")) == set(EXPOSED_HEADERS)
    assert len(response.headers.getall(hdrs.ACCESS_CONTROL_ALLOW_ORIGIN)) == 1


async def test_a_stream_carries_the_headers_and_keeps_its_vary(client: Client) -> None:
    response = await client.get("/stream", headers={"Origin": DEV})
    assert await response.text() == "data: {}\n\n"
    assert response.headers["Access-Control-Allow-Origin"] == DEV
    assert response.headers.getall("Vary") == ["Accept-Encoding", "Origin"]


async def test_a_request_of_no_page_gets_no_cors_headers(client: Client) -> None:
    response = await client.get("/streams/s_1")
    assert cors_headers(response) == []
    assert response.headers["Vary"] == "Origin"


async def test_a_websocket_upgrade_goes_through(client: Client) -> None:
    async with client.ws_connect("/ws", headers={"Origin": DEV}) as session:
        assert (await session.receive()).type.name == "CLOSE"


async def test_with_no_listed_origin_no_page_is_told_anything(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(application(lambda: OriginPolicy([], loopback_bind=True)))
    assert (await preflight(client, "/v1/chat/completions", DEV)).status == 403
    response = await client.post("/v1/chat/completions", headers={"Origin": DEV})
    assert response.status == 200
    assert cors_headers(response) == []
    assert "Vary" not in response.headers


async def test_an_exchanged_policy_counts_from_the_next_request(aiohttp_client: AiohttpClient) -> None:
    policies = [LISTED]
    client = await aiohttp_client(application(lambda: policies[-1]))
    assert (await preflight(client, "/v1/chat/completions", STRANGER)).status == 403
    policies.append(OriginPolicy([STRANGER], loopback_bind=False))
    assert (await preflight(client, "/v1/chat/completions", STRANGER)).status == 200
    assert cors_headers(await client.get("/nowhere", headers={"Origin": APP})) == []


@pytest.mark.parametrize("method", ["*", "OPTIONS"])
def test_an_endpoint_that_answers_preflights_itself_is_refused_at_start(method: str) -> None:
    app = web.Application()
    app.router.add_route(method, "/v1/{path:.+}", answer)
    with pytest.raises(ValueError, match="already has"):
        setup_cors(app, lambda: LISTED)
