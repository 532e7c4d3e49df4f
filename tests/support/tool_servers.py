"""Tool servers as routes.yaml would name them: the programs of this folder, and what they note."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.config.model import Tool

HERE = Path(__file__).parent
EVERYTHING = HERE.parent / "node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
PATIENCE_S = 30.0


def program(*command: str | Path, timeout: str = "20s", **env: str) -> Tool:
    """A server that is started with this command."""
    return Tool.model_validate({"mcp": {"command": [str(each) for each in command], "env": env}, "timeout": timeout})


def quick(*words: str, timeout: str = "20s", **env: str) -> Tool:
    """See quick_tools.py."""
    return program(sys.executable, "-S", HERE / "quick_tools.py", *words, timeout=timeout, **env)


def official(timeout: str = "20s", **env: str) -> Tool:
    """See tool_server.py; over stdio."""
    return program(sys.executable, HERE / "tool_server.py", timeout=timeout, **env)


def everything() -> Tool:
    """The reference server of the protocol's authors."""
    node = shutil.which("node")
    if node is None or not EVERYTHING.exists():
        pytest.fail("no node, or no npm packages here: run scripts/install node", pytrace=False)
    return program(node, EVERYTHING, "stdio")


def with_quick_tools(routes_yaml: str, *words: str, timeout: str = "20s") -> str:
    """This configuration with the tool server `bench`, see quick_tools.py, that its routes may name."""
    command = [sys.executable, "-S", str(HERE / "quick_tools.py"), *words]
    return f"{routes_yaml}tools:\n  bench: {{mcp: {{command: {json.dumps(command)}}}, timeout: {timeout}}}\n"


def at(url: str, timeout: str = "20s", **headers: str) -> Tool:
    """A server at an address."""
    return Tool.model_validate({"mcp": {"url": url, "headers": headers}, "timeout": timeout})


@dataclass(slots=True)
class HttpServer:
    """tool_server.py over HTTP: killed, it can be started again at the same port."""

    url: str
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def restart(self) -> None:
        self.url, self.process = await _start_http(self.url.split(":")[2].partition("/")[0])


@asynccontextmanager
async def http_server() -> AsyncIterator[HttpServer]:
    server = HttpServer(*await _start_http("0"))
    try:
        yield server
    finally:
        if server.process.returncode is None:
            await server.kill()


async def _start_http(port: str) -> tuple[str, asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "tool_server.py"), "http", port, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await process.stdout.readline()).decode().strip(), process


async def noted(notes: Path, line: str, times: int = 1) -> None:
    """Wait until a server has noted this line so often."""
    async with asyncio.timeout(PATIENCE_S):
        while not notes.exists() or notes.read_text().splitlines().count(line) < times:
            await asyncio.sleep(0.005)
