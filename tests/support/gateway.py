"""The real gateway as a process of its own, on a free port, with a configuration written for the test."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

READY = "penstock listening on "
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """`url` such as http://127.0.0.1:40123; `process` to be signalled; `log()` what it wrote to standard error."""

    url: str
    process: asyncio.subprocess.Process
    log_file: Path

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")


@asynccontextmanager
async def running_gateway(
    routes_yaml: str, tmp_path: Path, *args: str, module: str = "proxy"
) -> AsyncIterator[RunningGateway]:
    """Run `penstock serve --port 0` on this configuration until the block ends; then SIGTERM, at last SIGKILL.
    `module` is what Python runs as the command."""
    configuration = tmp_path / "routes.yaml"
    configuration.write_text(routes_yaml, encoding="utf-8")
    async with running_file(configuration, tmp_path, *args, module=module) as gateway:
        yield gateway


@asynccontextmanager
async def running_file(
    configuration: Path, tmp_path: Path, *args: str, module: str = "proxy", **env: str
) -> AsyncIterator[RunningGateway]:
    """The same with a file that is there already, and these variables besides the environment's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    log_file = tmp_path / "gateway.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "serve", "-c", str(configuration), "--port", "0", *args),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**kept, **env},
        )
    try:
        yield RunningGateway(await _ready(process, log_file), process, log_file)
    finally:
        await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log_file: Path) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(READY_WITHIN_S):
        line = (await process.stdout.readline()).decode()
    assert line.startswith(READY), f"the gateway did not start: {line}{log_file.read_text(encoding='utf-8')}"
    return line.removeprefix(READY).strip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
