"""A peer: the streaming proxy that one would write with aiohttp in an afternoon. naive.py PORT UPSTREAM

It has no routes, deadlines, limits or errors of its own, and takes bytes as they come; what the gateway costs beyond it
is what those cost.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length"}
CLIENT = web.AppKey("client", aiohttp.ClientSession)


def passed_on(headers: aiohttp.typedefs.LooseHeaders) -> dict[str, str]:
    return {name: value for name, value in dict(headers).items() if name.lower() not in NOT_PASSED_ON}


def proxy(upstream: str) -> web.Application:
    async def client(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            app[CLIENT] = session
            yield

    async def pass_on(request: web.Request) -> web.StreamResponse:
        asked = request.app[CLIENT].request(
            request.method,
            upstream + request.path_qs,
            headers=passed_on(request.headers),
            data=await request.read(),
        )
        async with asked as answer:
            response = web.StreamResponse(status=answer.status, headers=passed_on(answer.headers))
            response.content_length = answer.content_length
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(client)
    app.router.add_route("*", "/{path:.*}", pass_on)
    return app


if __name__ == "__main__":
    web.run_app(
        proxy(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        backlog=4096,
        loop=uvloop.new_event_loop(),
    )
