"""A process's life, from its first line to its exit code. Signals go to real processes."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import websockets

from tests.support.gateway import running_file, running_gateway
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from tests.support.gateway import RunningGateway

DEMO = "routes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"
MEMBERS = (
    "ts level event request_id trace_id method path route model replica transport dialect key status end_state "
    "attempts queue_ms ttft_ms duration_ms events bytes_in bytes_out tokens_in tokens_out tokens_estimated"
)


class Held:
    """An upstream that says one thing and goes on when it may."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("one")))
        await self.go_on.wait()
        await peer.send(chunk(STOP + DONE), LAST_CHUNK)


def port(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


async def stopped(gateway: RunningGateway) -> int:
    """The exit code, which has to come soon; the log is checked for tracebacks on the way."""
    code = await asyncio.wait_for(gateway.process.wait(), 5)
    for word in ("Traceback", "never retrieved", "Warning", "unclosed"):
        assert word not in gateway.log()
    return code


async def refused(number: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", number)
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was in the queue when that closed
        return True
    writer.close()
    return False


async def test_sigterm_under_an_open_stream_drains(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path) as gateway,
        raw_client(port(gateway)) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(content("one"))
        gateway.process.terminate()
        async with asyncio.timeout(2):
            while not await refused(port(gateway)):
                await asyncio.sleep(0.005)
        assert gateway.process.returncode is None
        held.go_on.set()
        assert (await client.rest()).endswith(chunk(STOP + DONE) + LAST_CHUNK)
        assert await stopped(gateway) == 0


async def test_the_drains_deadline_is_a_terminal_error_and_exit_0(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url, server="drain: 100ms"), tmp_path, "--log-format", "json") as gateway,
        raw_client(port(gateway)) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(content("one"))
        gateway.process.terminate()
        rest = await client.rest()
        assert b'"code":"draining"' in rest
        assert rest.endswith(b"\r\n0\r\n\r\n")
        assert await stopped(gateway) == 0
        [line] = [json.loads(line) for line in gateway.log().splitlines()]
        assert (line["status"], line["end_state"], line["level"]) == (200, "drained", "warning")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_stops_at_once(second: signal.Signals, tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path) as gateway,
        raw_client(port(gateway)) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(content("one"))
        gateway.process.terminate()
        async with asyncio.timeout(2):
            while not await refused(port(gateway)):
                await asyncio.sleep(0.005)
        gateway.process.send_signal(second)
        assert await stopped(gateway) == 130
        assert not (await client.rest()).endswith(LAST_CHUNK)
        assert "client_closed" in gateway.log()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
async def test_a_long_prompt_is_copied_into_memory_that_is_there(tmp_path: Path) -> None:
    prompt = json.dumps(chat(messages=[{"role": "user", "content": "word " * 200_000}]))
    async with running_gateway(DEMO, tmp_path) as gateway, websockets.connect(f"{gateway.ws_url}/v1/ws") as session:

        async def asked(times: int) -> int:
            """How many new pages so many prompts take."""
            before = _page_faults(gateway.process.pid)
            for _ in range(times):
                await session.send(prompt)
                while await session.recv() != "[DONE]":
                    pass
            return _page_faults(gateway.process.pid) - before

        await asked(4)
        assert await asked(8) < 8 * 100, "a megabyte has 256 pages"


def _page_faults(pid: int) -> int:
    """Without those that the disk was asked for."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[7])


async def test_sigint_is_130_and_sigterm_0_when_nothing_runs(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        async with running_gateway(DEMO, tmp_path) as gateway:
            gateway.process.send_signal(number)
            assert await stopped(gateway) == code


async def test_a_json_line_has_exactly_its_members_in_their_order(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--log-format", "json") as gateway:
        assert (await ask(port(gateway), post("/v1/chat/completions", chat()))).whole
        assert (await ask(port(gateway), get("/nothing"), "GET")).status == 404
        assert (await ask(port(gateway), b"garbage\r\n\r\n")).status == 400
        gateway.process.terminate()
        assert await stopped(gateway) == 0
        stream, nothing, malformed = (json.loads(line) for line in gateway.log().splitlines())
    assert list(stream) == list(nothing) == MEMBERS.split()
    assert (stream["event"], stream["status"], stream["end_state"]) == ("request", 200, "completed")
    assert (stream["route"], stream["model"], stream["transport"], stream["level"]) == ("m", "m", "sse", "info")
    assert (nothing["status"], nothing["end_state"], nothing["route"]) == (404, "rejected", "unknown")
    assert (malformed["event"], malformed["level"]) == ("log", "info")
    assert "garbage" not in gateway.log()


async def test_a_log_level_leaves_the_quieter_lines_out(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--log-level", "warning") as gateway:
        assert (await ask(port(gateway), post("/v1/chat/completions", chat()))).whole
        gateway.process.terminate()
        assert await stopped(gateway) == 0
        assert gateway.log() == ""


async def command(tmp_path: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the whole program, which ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | environ,
    )
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("setting", ["--port", "admin.listen"])
async def test_a_port_in_use_is_one_clear_complaint(setting: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        admin = f"admin: {{listen: '127.0.0.1:{number}'}}\n" if setting == "admin.listen" else ""
        (tmp_path / "routes.yaml").write_text(DEMO + admin)
        own = str(number) if setting == "--port" else "0"
        code, out, err = await command(tmp_path, "serve", "-c", str(tmp_path / "routes.yaml"), "--port", own)
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    said = f"port {number} on 127.0.0.1 is in use: stop the other program, or choose another with {setting}"
    assert line.endswith(said)


async def test_tls_files_that_do_not_belong_together_are_one_clear_complaint(tmp_path: Path) -> None:
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text("no PEM file")
    tls = "server: {port: 0, tls: {certificate: a.pem, key: b.pem}}\n"
    (tmp_path / "routes.yaml").write_text(tls + DEMO)
    code, out, err = await command(tmp_path, "serve", "-c", str(tmp_path / "routes.yaml"))
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert "server.tls" in line


async def test_all_descriptors_that_may_be_had_are_taken(tmp_path: Path) -> None:
    configuration = tmp_path / "routes.yaml"
    configuration.write_text(DEMO)
    few = running_file(configuration, tmp_path, module="tests.support.few_files", FEWER_FILES="64", MOST_FILES="512")
    async with few as gateway:
        limits = Path(f"/proc/{gateway.process.pid}/limits").read_text()
    [files] = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert files[3:5] == ["512", "512"]
