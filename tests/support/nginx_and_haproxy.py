"""nginx and haproxy as processes of their own, on a free port each, with configurations as docs/behind-a-proxy.md has
them: addresses are filled in, and what keeps them out of the system's folders."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.reserved_port import reserved_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    Running = Callable[[str, Path], AbstractAsyncContextManager["OtherProxy"]]

DOCUMENT = Path(__file__).parents[2] / "docs" / "behind-a-proxy.md"
PATIENCE_S = 20.0

NGINX = """\
{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{sections}
}}
"""


@dataclass(frozen=True, slots=True)
class OtherProxy:
    """`port` is the one that it listens on."""

    port: int
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reload(self) -> None:
        """nginx: new workers at once; the old ones finish what they have."""
        self.process.send_signal(signal.SIGHUP)


def documented(language: str, number: int = 0) -> str:
    """The `number`th block of this language in the document."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return blocks[number]


def served_by(sections: str, url: str) -> str:
    """The configuration with this server, a URL's, in place of the one it names."""
    replaced, count = re.subn(r"(server (?:\w+ )?)127\.0\.0\.1:\d+", rf"\g<1>{urlsplit(url).netloc}", sections)
    assert count == 1, sections
    return replaced


@asynccontextmanager
async def running_nginx(sections: str, folder: Path) -> AsyncIterator[OtherProxy]:
    """Run nginx with these sections of `http`, in which it listens on port 80."""
    user = "user root;\n" if os.geteuid() == 0 else ""  # its workers must get into the test's folder
    with reserved_port() as port:
        sections = _listening(sections, r"listen 80;", f"listen 127.0.0.1:{port};")
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX.format(user=user, folder=folder, sections=sections))
        command = (_found("nginx"), "-p", str(folder), "-c", str(configuration))
        async with _running(command, port, folder / "nginx.said") as proxy:
            yield proxy


@asynccontextmanager
async def running_haproxy(sections: str, folder: Path) -> AsyncIterator[OtherProxy]:
    """Run haproxy with these sections, in which it binds port 80."""
    with reserved_port() as port:
        configuration = folder / "haproxy.cfg"
        configuration.write_text(_listening(sections, r"bind :80\b", f"bind 127.0.0.1:{port}"))
        command = (_found("haproxy"), "-db", "-f", str(configuration))
        async with _running(command, port, folder / "haproxy.said") as proxy:
            yield proxy


def _listening(sections: str, pattern: str, instead: str) -> str:
    replaced, count = re.subn(pattern, instead, sections)
    assert count == 1, sections
    return replaced


def _found(program: str) -> str:
    """Debian keeps both where a user's PATH does not look."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/sbin"]
    found = [path for folder in folders if (path := Path(folder) / program).exists()]
    assert found, f"no {program} here: run scripts/install programs"
    return str(found[0])


@asynccontextmanager
async def _running(command: tuple[str, ...], port: int, said: Path) -> AsyncIterator[OtherProxy]:
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        await _listens(process, port, said)
        yield OtherProxy(port, process)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int, said: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert process.returncode is None, said.read_text()
            with suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)
