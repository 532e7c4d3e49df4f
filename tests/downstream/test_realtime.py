"""Realtime: an independent client, the gateway, and a model server of an independent library, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from proxy.downstream import client_socket
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import EndState
from tests.support.cable import laid_cable
from tests.support.raw_client import RawClient, get, raw_client
from tests.support.realtime_server import echo, realtime_server
from tests.support.served import one_route, served
from tests.support.upstream import scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from websockets.asyncio.server import ServerConnection

    from tests.support.realtime_server import Play, RealtimeServer
    from tests.support.served import Served
    from tests.support.upstream import Peer

URL = "/v1/realtime?model=m"
CANARY = "sk-canary-0002"
KEYS = "auth: {keys: [{name: web, key: sk-web, models: [m]}]}\n"


@asynccontextmanager
async def house(
    tmp_path: Path,
    *settings: str,
    play: Play = echo,
    selects: str | None = None,
    queue: int = 16,
    server: str = "port: 0",
    more: str = "",
) -> AsyncIterator[tuple[Served, RealtimeServer]]:
    """A gateway in front of one model server that plays `play`."""
    async with realtime_server(play, selects=selects, queue=queue) as upstream:
        async with served(more + one_route(upstream.url, *settings, server=server), tmp_path) as gateway:
            yield gateway, upstream


def dial(gateway: Served, url: str = URL, **options: Any) -> websockets.connect:
    return websockets.connect(
        gateway.ws_url + url, max_size=None, close_timeout=1, ping_interval=None, compression=None, **options
    )


async def refused(gateway: Served, url: str = URL, **options: Any) -> tuple[int, dict[str, str], bytes]:
    """The answer to an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as raised:
        await dial(gateway, url, **options)
    response = raised.value.response
    return response.status_code, {name.lower(): value for name, value in response.headers.items()}, bytes(response.body)


async def end_of(client: websockets.ClientConnection) -> tuple[int | None, str | None]:
    """How the gateway closes; what comes before is thrown away."""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.recv()
        await client.wait_closed()
    return client.close_code, client.close_reason


# ---- messages ----

MESSAGES: dict[str, str | bytes] = {
    "text": '{"type":"session.update"}',
    "text beyond ASCII": "grüße 🌊",
    "text of two lines": "a\r\nb",
    "no text": "",
    "binary": b"\x00\xff",
    "binary that could be text": b"text",
    "no binary": b"",
    "a large text": "é" * 100_000,
    "a large binary": b"\x01" * 3_000_000,
}


@pytest.mark.parametrize("case", MESSAGES)
async def test_a_message_keeps_its_kind_and_its_bytes_both_ways(case: str, tmp_path: Path) -> None:
    sent = MESSAGES[case]
    heard: list[str | bytes] = []

    async def play(connection: ServerConnection) -> None:
        async for message in connection:
            heard.append(message)
            await connection.send(message)

    async with house(tmp_path, play=play) as (gateway, _), dial(gateway) as client:
        for _ in range(2):
            await client.send(sent)
            got = await asyncio.wait_for(client.recv(), 10)
            assert (type(got), got) == (type(sent), sent)
    assert heard == [sent, sent]
    assert [type(message) for message in heard] == [type(sent)] * 2


async def test_what_the_model_server_says_first_is_heard_first(tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        await connection.send('{"type":"session.created"}')
        await echo(connection)

    async with house(tmp_path, play=play) as (gateway, _), dial(gateway) as client:
        await client.send("x")
        assert [await client.recv(), await client.recv()] == ['{"type":"session.created"}', "x"]


async def test_a_message_in_fragments_arrives_whole(tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(iter([message[:1], message[1:3], message[3:]]))

    async with house(tmp_path, play=play) as (gateway, _), dial(gateway) as client:
        await client.send(iter(["on", "e tw", "o"]))
        assert await client.recv() == "one two"


async def test_both_sides_speak_at_once_and_each_in_order(tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        async def talk() -> None:
            for number in range(500):
                await connection.send(str(number))

        talking = asyncio.ensure_future(talk())
        heard = [await connection.recv() for _ in range(500)]
        await talking
        await connection.send(json.dumps(heard))

    async with house(tmp_path, play=play) as (gateway, _), dial(gateway) as client:
        for number in range(500):
            await client.send(str(number))
        heard = [await client.recv() for _ in range(500)]
        assert heard == [str(number) for number in range(500)] == json.loads(await client.recv())


@pytest.mark.parametrize("side", ["client", "server"])
async def test_pings_are_answered_on_each_leg_and_go_no_further(side: str, tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream), dial(gateway) as client:
        await client.send("x")
        await client.recv()
        end: Any = client if side == "client" else upstream.sockets[0]
        await asyncio.wait_for(await end.ping(b"there?"), 5)
        await client.send("y")
        assert await client.recv() == "y"


# ---- who, and where ----


async def test_the_upgrade_goes_to_the_replica_under_its_own_name_with_its_own_key(tmp_path: Path) -> None:
    settings = f"replicas: [{{url: 'URL', api_key: {CANARY}, headers: {{X-Team: search}}}}]"
    async with realtime_server() as upstream:
        text = one_route(upstream.url, "model: org/voice").replace(
            f"replicas: ['{upstream.url}']", settings.replace("URL", upstream.url + "/api/v1")
        )
        async with served(KEYS + text, tmp_path) as gateway:
            headers = {"Authorization": "Bearer sk-web", "OpenAI-Beta": "realtime=v1", "Cookie": "c", "X-Mine": "1"}
            async with dial(gateway, "/v1/realtime?x=%20&model=m&y", additional_headers=headers):
                pass
    [request] = upstream.requests
    assert request.path == "/api/v1/realtime?x=%20&model=org%2Fvoice&y"
    sent = {name.lower(): value for name, value in request.headers.raw_items()}
    assert sent["authorization"] == f"Bearer {CANARY}"
    assert {name: sent.get(name) for name in ("openai-beta", "x-mine", "x-team", "cookie", "origin")} == {
        "openai-beta": "realtime=v1",
        "x-mine": "1",
        "x-team": "search",
        "cookie": None,
        "origin": None,
    }
    assert sent["x-forwarded-for"] == "127.0.0.1"
    assert "sec-websocket-extensions" not in sent
    assert "sk-web" not in str(sent)


@pytest.mark.parametrize(
    "entry", ["openai-insecure-api-key.sk-web", "bearer.b64url." + base64.urlsafe_b64encode(b"sk-web").decode()]
)
async def test_a_key_among_the_subprotocols_lets_in_and_is_seen_by_nobody(entry: str, tmp_path: Path) -> None:
    async with house(tmp_path, more=KEYS) as (gateway, upstream):
        async with dial(gateway, subprotocols=["realtime", entry, "openai-beta.realtime-v1"]) as client:
            assert client.subprotocol == "realtime"
        assert (await gateway.record()).key == "web"
        assert "sk-web" not in str(upstream.requests[0].headers)
        assert entry not in str(upstream.requests[0].headers)
        assert upstream.requests[0].headers["Sec-WebSocket-Protocol"] == "realtime, openai-beta.realtime-v1"


async def test_passthrough_gives_the_replica_the_clients_key_however_it_came(tmp_path: Path) -> None:
    async with house(tmp_path, "auth: passthrough") as (gateway, upstream):
        for options in (
            {"additional_headers": {"Authorization": f"Bearer {CANARY}"}},
            {"subprotocols": ["realtime", f"openai-insecure-api-key.{CANARY}"]},
        ):
            async with dial(gateway, **options):
                pass
    assert [request.headers["Authorization"] for request in upstream.requests] == [f"Bearer {CANARY}"] * 2


async def test_a_key_that_would_be_more_than_a_header_is_refused(tmp_path: Path) -> None:
    entry = "bearer.b64url." + base64.urlsafe_b64encode(b"x\r\nX-Team: evil").decode().rstrip("=")
    async with house(tmp_path, "auth: passthrough") as (gateway, upstream):
        assert (await refused(gateway, subprotocols=["realtime", entry]))[0] == 400
    assert upstream.requests == []


async def test_a_ticket_lets_in_once_and_stays_here(tmp_path: Path) -> None:
    async with house(tmp_path, more=KEYS) as (gateway, upstream):
        async with raw_client(gateway.port) as raw:
            await raw.send(get("/v1/ws/tickets", "Authorization: Bearer sk-web", "Content-Length: 0", method="POST"))
            ticket = json.loads((await raw.answer()).body)["ticket"]
        async with dial(gateway, f"{URL}&ticket={ticket}"):
            pass
        assert (await refused(gateway, f"{URL}&ticket={ticket}"))[0] == 401
    assert [request.path for request in upstream.requests] == ["/v1/realtime?model=m"]


async def test_a_header_of_any_bytes_crosses(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream), raw_client(gateway.port) as raw:
        await raw.send(PLAIN_UPGRADE.replace(b"Host:", b"X-Team: \xff\xe9\r\nHost:"))
        assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert upstream.requests[0].headers["X-Team"].encode("latin-1") == b"\xff\xe9"


CHOICES: dict[str, tuple[list[str], str | None, str | None]] = {
    "none offered": ([], None, None),
    "realtime, and the server selects none": (["v2", "realtime"], None, "realtime"),
    "another, and the server selects none": (["v2"], None, None),
    "the server's choice counts": (["realtime", "v2"], "v2", "v2"),
}


@pytest.mark.parametrize("case", CHOICES)
async def test_the_subprotocol_is_the_model_servers_choice(case: str, tmp_path: Path) -> None:
    offered, selects, told = CHOICES[case]
    async with house(tmp_path, selects=selects) as (gateway, _):
        async with dial(gateway, subprotocols=offered or None) as client:
            assert client.subprotocol == told
            await client.send("x")
            assert await client.recv() == "x"


async def test_the_answer_says_whose_it_is_and_agrees_to_no_extension(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream):
        async with websockets.connect(
            gateway.ws_url + URL, compression="deflate", additional_headers={"x-request-id": "mine"}
        ) as client:
            assert client.response is not None
            said = client.response.headers
    named = {name: said[name] for name in said if name.lower().startswith("x-")}
    assert named == {
        "x-request-id": "mine",
        "x-penstock-source": "upstream",
        "x-penstock-route": "m",
        "x-penstock-replica": "0",
        "x-penstock-attempts": "1",
    }
    assert "Sec-WebSocket-Extensions" not in said
    assert upstream.requests[0].headers["x-request-id"] == "mine"


# ---- refusals ----

OURS: dict[str, tuple[str, dict[str, str], int, str]] = {
    "no model": ("/v1/realtime", {}, 400, "missing_model"),
    "an empty model": ("/v1/realtime?model=", {}, 400, "missing_model"),
    "two models": ("/v1/realtime?model=m&model=m", {}, 400, "invalid_request"),
    "an unknown model": (f"/v1/realtime?model={CANARY}", {}, 404, "model_not_found"),
    "no key": (URL, {"Authorization": ""}, 401, "invalid_api_key"),
    "another model than the key's": ("/v1/realtime?model=other", {}, 403, "model_not_allowed"),
    "a foreign page": (URL, {"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
    "a foreign host": (URL, {"Host": "evil.example"}, 403, "host_not_allowed"),
    "the built-in model": ("/v1/realtime?model=demo", {}, 501, "not_implemented"),
}


@pytest.mark.parametrize("case", OURS)
async def test_what_the_gateway_refuses_never_reaches_a_model_server(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    url, headers, status, code = OURS[case]
    keys = KEYS.replace("[m]", "[m, demo, sk-*]")
    async with realtime_server() as upstream:
        routes = one_route(upstream.url) + f"  other: '{upstream.url}'\n  demo: demo://\n"
        async with served(keys + routes, tmp_path) as gateway:
            lines = {"Host": "127.0.0.1", "Authorization": "Bearer sk-web", **headers}
            request = UPGRADE.replace(b"{url}", url.encode()).replace(
                b"{headers}", "\r\n".join(f"{name}: {value}" for name, value in lines.items()).encode()
            )
            async with raw_client(gateway.port) as raw:
                await raw.send(request)
                answered = await raw.answer("GET")
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (status, code)
    assert upstream.requests == []
    assert CANARY not in answered.body.decode() + quiet_log.text + repr(gateway.records)


UPGRADE = (
    b"GET {url} HTTP/1.1\r\n{headers}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PLAIN_UPGRADE = UPGRADE.replace(b"{url}", URL.encode()).replace(b"{headers}", b"Host: 127.0.0.1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Version: 13", b"Version: 12"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ="),
        (b"Key: ", b"Kee: "),
        (b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"),
    ],
    ids=["version", "short key", "no key", "a body"],
)
async def test_a_handshake_that_is_none_is_refused_before_anybody_is_dialled(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    async with house(tmp_path) as (gateway, upstream), raw_client(gateway.port) as raw:
        await raw.send(PLAIN_UPGRADE.replace(old, new))
        answered = await raw.answer("GET")
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (400, "invalid_request")
    assert upstream.requests == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_the_model_servers_refusal_is_the_answer_with_its_body_and_without_its_key(
    status: int, tmp_path: Path
) -> None:
    async with realtime_server() as upstream:
        body = b'{"error":{"message":"key ' + CANARY.encode() + b'"}}'
        upstream.refuses = (status, {"Content-Type": "application/json", "Retry-After": "9", "Server": "s"}, body)
        replica = f"replicas: [{{url: '{upstream.url}', api_key: {CANARY}}}]"
        routes = one_route(upstream.url, "retry: {attempts: 1}").replace(f"replicas: ['{upstream.url}']", replica)
        async with served(routes, tmp_path) as gateway:
            got, headers, said = await refused(gateway)
            record = await gateway.record()
    assert (got, said) == (status, b'{"error":{"message":"key ***"}}')
    assert (headers["content-type"], headers["retry-after"], headers["server"]) == ("application/json", "9", "penstock")
    assert (headers["x-penstock-source"], headers["x-penstock-route"]) == ("upstream", "m")
    ended = EndState.UPSTREAM_REJECTED if status < 500 else EndState.UPSTREAM_ERROR
    assert (record.status, record.end_state, record.dialect) == (status, ended, "realtime")
    assert [attempt.outcome for attempt in record.attempted] == [Outcome.STATUS]


async def test_a_model_server_that_is_not_there_is_a_502_and_one_that_is_silent_a_504(tmp_path: Path) -> None:
    async with realtime_server() as gone:
        pass
    async with served(one_route(gone.url, "retry: {attempts: 1}"), tmp_path) as gateway:
        status, _, body = await refused(gateway)
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    settings = ("timeouts: {first_token: 50ms}", "retry: {attempts: 1}")
    async with scripted_upstream(silent) as upstream, served(one_route(upstream.url, *settings), tmp_path) as gateway:
        status, _, body = await refused(gateway)
        assert (status, json.loads(body)["error"]["code"]) == (504, "first_token_timeout")


async def silent(peer: Peer) -> None:
    """Takes an upgrade, and says nothing."""
    await peer.request()
    await peer.closed()


# ---- the end ----

PASSING = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4429, 4999)


@pytest.mark.parametrize("code", PASSING)
async def test_a_close_of_the_client_passes_with_its_reason(code: int, tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream):
        async with dial(gateway) as client:
            await client.send("x")
            await client.recv()
            await client.close(code, "grüße")
            assert client.close_code == code
        assert await upstream.closed() == (code, "grüße")
        record = await gateway.record()
    assert (record.status, record.end_state) == (101, EndState.COMPLETED)


@pytest.mark.parametrize("code", PASSING)
async def test_a_close_of_the_model_server_passes_with_its_reason(code: int, tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close(code, "grüße")

    async with house(tmp_path, play=play) as (gateway, upstream):
        async with dial(gateway) as client:
            assert await client.recv() == "last"
            assert await end_of(client) == (code, "grüße")
        assert (await upstream.closed())[0] == code
        record = await gateway.record()
    failed = 1002 <= code <= 1014
    assert record.end_state is (EndState.UPSTREAM_ERROR if failed else EndState.COMPLETED)


async def test_a_close_while_the_other_side_talks_is_still_heard(tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(4003, "enough")

    async with house(tmp_path, play=play) as (gateway, _), dial(gateway) as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2000):
                await client.send(b"x" * 10_000)
        assert await end_of(client) == (4003, "enough")


async def hello(raw: RawClient) -> None:
    """Upgrade on a raw socket, and see that the model server is there."""
    await raw.send(PLAIN_UPGRADE)
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    await raw.send(Frame(Opcode.TEXT, b"x").serialize(mask=True))
    assert await raw.reader.readexactly(3) == b"\x81\x01x"


ODD_CLOSES: dict[str, tuple[bytes, bytes, int]] = {
    "without a code": (b"", (1000).to_bytes(2), 1000),
    "a code that means no frame came": ((1006).to_bytes(2), (1002).to_bytes(2), 1001),
    "a code for nobody": ((1004).to_bytes(2), (1002).to_bytes(2), 1001),
    "a code past all": ((5000).to_bytes(2), (1002).to_bytes(2), 1001),
    "half a code": (b"\x03", (1002).to_bytes(2), 1001),
    "a reason that is not UTF-8": ((1000).to_bytes(2) + b"\xff", (1007).to_bytes(2), 1001),
}


@pytest.mark.parametrize("case", ODD_CLOSES)
async def test_an_odd_close_of_the_client_is_answered_and_the_model_server_told(case: str, tmp_path: Path) -> None:
    sent, answered, told = ODD_CLOSES[case]
    async with house(tmp_path) as (gateway, upstream), raw_client(gateway.port) as raw:
        await hello(raw)
        await raw.send(b"\x88" + bytes([0x80 | len(sent)]) + b"\x00" * 4 + sent)
        assert (await raw.rest())[2:] == answered
        assert (await upstream.closed())[0] == told


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_that_vanishes_is_1001_to_the_model_server_at_once(reset: bool, tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream), raw_client(gateway.port) as raw:
        await hello(raw)
        left = asyncio.get_running_loop().time()
        raw.leave(reset=reset)
        assert await upstream.closed() == (1001, "client_closed")
        assert asyncio.get_running_loop().time() - left < 0.1
        record = await gateway.record()
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_a_model_server_that_vanishes_is_1011_to_the_client(tmp_path: Path) -> None:
    async with realtime_server() as upstream, laid_cable(upstream.url) as cable:
        async with served(one_route(cable.url), tmp_path) as gateway, dial(gateway) as client:
            await client.send("x")
            await client.recv()
            await cable.cut()
            assert await end_of(client) == (1011, "upstream_truncated")
            record = await gateway.record()
    assert (record.status, record.end_state) == (101, EndState.UPSTREAM_TRUNCATED)
    assert [attempt.outcome for attempt in record.attempted] == [Outcome.TRUNCATED]


async def test_a_client_that_leaves_while_the_model_server_is_dialled_takes_that_with_it(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def waiting(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        gone.set()

    async with scripted_upstream(waiting) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as raw:
            await raw.send(PLAIN_UPGRADE)
            await asked.wait()
            raw.leave(reset=True)
            await asyncio.wait_for(gone.wait(), 5)
            assert (await gateway.record()).end_state is EndState.CLIENT_CLOSED


# ---- what breaks the rules ----

BROKEN: dict[str, tuple[bytes, int]] = {
    "unmasked": (Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002),
    "a reserved bit": (b"\xc1\x80\x00\x00\x00\x00", 1002),
    "no UTF-8": (Frame(Opcode.TEXT, b"\xff").serialize(mask=True), 1007),
    "too large": (Frame(Opcode.BINARY, b"x" * 1001).serialize(mask=True), 1009),
    "too large in fragments": (
        Frame(Opcode.BINARY, b"x" * 600, fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, b"x" * 401).serialize(mask=True),
        1009,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_client_that_breaks_the_protocol_is_told_so_and_the_model_server_that_it_is_gone(
    case: str, tmp_path: Path
) -> None:
    data, code = BROKEN[case]
    async with house(tmp_path, server="port: 0\nmax_body: 1000") as (gateway, upstream):
        async with raw_client(gateway.port) as raw:
            await hello(raw)
            await raw.send(data)
            assert (await raw.rest())[2:4] == code.to_bytes(2)
        assert (await upstream.closed())[0] == 1001


@pytest.mark.parametrize("size", [1000, 1001])
async def test_both_sides_have_the_same_limit(size: int, tmp_path: Path) -> None:
    async def play(connection: ServerConnection) -> None:
        message = await connection.recv()
        await connection.send(b"x" * len(message) if size == 1000 else b"x" * size)
        await connection.recv()

    async with house(tmp_path, play=play, server="port: 0\nmax_body: 1000") as (gateway, upstream):
        async with dial(gateway) as client:
            await client.send(b"x" * 1000)
            if size == 1000:
                assert await client.recv() == b"x" * 1000
            else:
                assert await end_of(client) == (1011, "upstream_invalid")
                assert (await upstream.closed())[0] == 1009


# ---- bounded ----

HALF_MIB = b"x" * (1 << 19)
HELD_BYTES = 8 * len(HALF_MIB)
"""By the gateway, the client and the model server together, which are all in this process; the kernel has more."""


@contextlib.contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """How much memory is held now that was not before, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


async def settled(count: Callable[[], int]) -> int:
    """The count, once it has not changed for a while."""
    before, same = -1, 0
    async with asyncio.timeout(20):
        while same < 10:
            await asyncio.sleep(0.02)
            same = same + 1 if count() == before else 0
            before = count()
    return before


async def test_a_client_that_does_not_read_stops_the_model_server_and_loses_nothing(tmp_path: Path) -> None:
    sent = 0

    async def play(connection: ServerConnection) -> None:
        nonlocal sent
        for _ in range(200):
            await connection.send(HALF_MIB)
            sent += 1

    async with house(tmp_path, play=play) as (gateway, _), raw_client(gateway.port) as raw:
        with counting() as held:
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await raw.send(PLAIN_UPGRADE)
            assert await settled(lambda: sent) < 200
            assert held() < HELD_BYTES
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await raw.reader.readuntil(b"\r\n\r\n")
        for _ in range(200):
            await raw.reader.readexactly(10 + len(HALF_MIB))
        assert sent == 200


async def test_a_model_server_that_does_not_read_stops_the_client_and_loses_nothing(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    heard = sent = 0

    async def play(connection: ServerConnection) -> None:
        nonlocal heard
        await go_on.wait()
        async for message in connection:
            assert message == HALF_MIB
            heard += 1

    async with house(tmp_path, play=play, queue=1) as (gateway, _), dial(gateway) as client:

        async def talk() -> None:
            nonlocal sent
            for _ in range(200):
                await client.send(HALF_MIB)
                sent += 1

        talking = asyncio.ensure_future(talk())
        try:
            with counting() as held:
                assert await settled(lambda: sent) < 200
                assert held() < HELD_BYTES
        finally:
            go_on.set()
        await asyncio.wait_for(talking, 20)
        async with asyncio.timeout(20):
            while heard < 200:
                await asyncio.sleep(0.01)


async def test_a_client_that_stays_stopped_is_dropped_and_the_model_server_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "STALLED_S", 0.1)

    async def play(connection: ServerConnection) -> None:
        for _ in range(1000):
            await connection.send(HALF_MIB)

    async with house(tmp_path, play=play) as (gateway, upstream), raw_client(gateway.port) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(PLAIN_UPGRADE)
        record = await gateway.record()
        assert record.end_state is EndState.CLIENT_CLOSED
        await upstream.sockets[0].wait_closed()


# ---- the house ----


async def test_a_drain_lets_a_conversation_end(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, _):
        async with dial(gateway) as client:
            await client.send("x")
            await client.recv()
            draining = asyncio.ensure_future(gateway.gateway.drain())
            await asyncio.sleep(0)
            await client.send("still here")
            assert await client.recv() == "still here"
            assert not draining.done()
        await asyncio.wait_for(draining, 5)
        assert (await gateway.record()).end_state is EndState.COMPLETED


async def test_a_drains_deadline_closes_both_sides(tmp_path: Path) -> None:
    async with house(tmp_path, server="port: 0\ndrain: 50ms") as (gateway, upstream), dial(gateway) as client:
        await client.send("x")
        await client.recv()
        draining = asyncio.ensure_future(gateway.gateway.drain())
        assert await end_of(client) == (1012, "draining")
        assert await upstream.closed() == (1001, "draining")
        await asyncio.wait_for(draining, 5)
        assert (await gateway.record()).end_state is EndState.DRAINED


async def test_a_draining_gateway_dials_nobody(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, upstream), raw_client(gateway.port) as raw:
        await raw.send(get("/v1/models"))
        await raw.answer("GET")
        await gateway.gateway.drain()
        await raw.send(PLAIN_UPGRADE)
        answered = await raw.answer("GET")
        assert (answered.status, json.loads(answered.body)["error"]["code"]) == (503, "draining")
        assert upstream.requests == []


async def test_an_old_session_is_asked_to_come_back(tmp_path: Path) -> None:
    async with (
        house(tmp_path, server="port: 0\nwebsocket: {age: 50ms}") as (gateway, upstream),
        dial(gateway) as client,
    ):
        await client.send("x")
        await client.recv()
        assert await end_of(client) == (1012, "age")
        assert await upstream.closed() == (1001, "age")
        assert (await gateway.record()).end_state is EndState.COMPLETED


async def test_the_record_counts_what_passed(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, _):
        async with dial(gateway) as client:
            for message in ("12345", b"123"):
                await client.send(message)
                await client.recv()
        record = await gateway.record()
    assert (record.route, record.model, record.path, record.transport) == ("m", "m", "/v1/realtime", "ws")
    assert (record.dialect, record.events, record.bytes_in, record.bytes_out) == ("realtime", 2, 8, 8 + 2 * 2)
    assert [attempt.outcome for attempt in record.attempted] == [Outcome.OK]
    assert not record.is_session


async def test_open_sessions_are_counted(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, _):
        async with dial(gateway) as client:
            await client.send("x")
            await client.recv()
            shown = gateway.gateway.figures()
            assert shown["penstock_websocket_sessions"][("realtime",)] == [1]
            assert shown["penstock_streams_in_flight"][("m",)] == [1]
        await gateway.record()
        assert gateway.gateway.figures()["penstock_websocket_sessions"][("realtime",)] == [0]
