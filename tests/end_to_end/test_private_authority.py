"""A replica whose certificate only SSL_CERT_FILE vouches for: what the start does to save time does not touch that."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support.gateway import running_file
from tests.support.tls import certificate

LONG_PROMPT = "word " * 40_000  # one that is sent in pieces
ANSWER = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}


async def answer(request: web.Request) -> web.Response:
    assert (await request.json())["messages"] == [LONG_PROMPT]
    return web.json_response(ANSWER)


@pytest.mark.parametrize("vouched_for", [True, False])
async def test_a_replica_is_trusted_by_what_the_environment_names(vouched_for: bool, tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own, key)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        file = tmp_path / "routes.yaml"
        file.write_text(f"routes: {{m: 'https://127.0.0.1:{runner.addresses[0][1]}'}}\n", encoding="utf-8")
        trust = {"SSL_CERT_FILE": str(own)} if vouched_for else {}
        async with running_file(file, tmp_path, **trust) as gateway, aiohttp.ClientSession() as client:
            async with client.post(
                f"{gateway.url}/v1/chat/completions", json={"model": "m", "messages": [LONG_PROMPT]}
            ) as told:
                body = await told.json()
        assert (told.status, body) == (200, ANSWER) if vouched_for else told.status == 502
    finally:
        await runner.cleanup()
