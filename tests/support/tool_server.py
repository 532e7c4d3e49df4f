"""A real MCP server, made with the official library, as a program of its own: over stdio, or over streamable HTTP.

`python tool_server.py` speaks stdio; `python tool_server.py http PORT` prints its URL and serves there. What it is
told to note goes to the file that the variable NOTES names.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.types import CallToolResult

PIXEL = b"\x89PNG\r\n\x1a\n not much of a picture"
server = FastMCP("workbench", log_level="WARNING")


def note(text: str) -> None:
    if path := os.environ.get("NOTES"):
        with Path(path).open("a", encoding="utf-8") as notes:
            notes.write(f"{text}\n")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def echo(text: str) -> str:
    """Say it again."""
    note(f"echo {text}")
    return text


@server.tool()
def given(value: Any = "nothing") -> str:
    """Tell which value came."""
    return repr(value)


@server.tool()
def weather(city: str) -> dict[str, Any]:
    """Tell the weather, as JSON and text."""
    return {"city": city, "degrees": 21}


@server.tool()
def structured() -> CallToolResult:
    """Give structured content and no text."""
    return CallToolResult(content=[], structuredContent={"degrees": 21})


@server.tool()
def picture() -> Any:
    """Give a picture with a word about it."""
    return ["a picture:", Image(data=PIXEL, format="png")]


@server.tool()
def fail(why: str = "no reason") -> str:
    """Fail."""
    raise ValueError(why)


@server.tool()
async def wait() -> str:
    """Never answer; note when it is cancelled."""
    note("waiting")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return "never"


@server.tool()
def big(characters: int) -> str:
    """Give a long text."""
    return "x" * characters


@server.tool()
def variable(name: str) -> str:
    """Tell a variable of the environment."""
    return os.environ.get(name, "unset")


@server.tool()
def crash() -> str:
    """End the whole program."""
    os._exit(3)


@server.tool()
async def learn(context: Context[Any, Any, Any]) -> str:
    """Offer one tool more, and say so."""
    server.add_tool(lambda: "new", name="learned", description="A tool that was not there before.")
    await context.session.send_tool_list_changed()
    return "done"


def serve_http(port: int) -> None:
    import uvicorn

    listening = socket.create_server(("127.0.0.1", port))
    host, port = listening.getsockname()
    print(f"http://{host}:{port}/mcp", flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        serve_http(int(sys.argv[2]))
    else:
        server.run("stdio")
