"""What a service manager hears, on a real datagram socket, and what it passes, as real descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.systemd import NotifySocket, passed_sockets


@pytest.fixture(params=["path", "abstract"])
def hearing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The manager's socket, and what it is called in the environment."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        if sys.platform != "linux":
            pytest.skip("Linux alone has abstract sockets")
        name = f"@penstock-test-{os.getpid()}-{time.monotonic_ns()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as heard:
        heard.bind(name.replace("@", "\0", 1))
        heard.settimeout(5)
        yield heard, name


def test_it_hears_each_turn_of_our_life(hearing: tuple[socket.socket, str]) -> None:
    heard, name = hearing
    environ = {"NOTIFY_SOCKET": name, "HOME": "/"}
    notify = NotifySocket.of(environ)
    assert environ == {"HOME": "/"}
    notify.ready("serving on\nhttp://127.0.0.1:1")
    before = time.monotonic_ns() // 1000
    notify.reloading()
    notify.stopping()
    notify.alive()
    said = [heard.recv(4096).decode().split("\n") for _ in range(4)]
    assert said[0] == ["READY=1", "STATUS=serving on http://127.0.0.1:1"]
    assert said[1][0] == "RELOADING=1"
    assert before <= int(said[1][1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert said[2][0] == "STOPPING=1"
    assert said[3] == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "@penstock-test-nobody"])
def test_where_nobody_hears_nothing_happens(address: str) -> None:
    notify = NotifySocket.of({"NOTIFY_SOCKET": address} if address else {})
    notify.ready("")
    notify.stopping()


@pytest.mark.parametrize(
    ("environ", "every_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_told_twice_in_its_time_if_it_is_ours(environ: dict[str, str], every_s: float | None) -> None:
    assert NotifySocket.of({"NOTIFY_SOCKET": "/n", **environ}).alive_every_s == every_s
    assert NotifySocket.of(dict(environ)).alive_every_s is None  # where to?


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "me"}],
)
def test_what_was_passed_to_somebody_else_is_not_ours(environ: dict[str, str]) -> None:
    own = {name: str(os.getpid()) if value == "me" else value for name, value in environ.items()}
    assert passed_sockets(own) == ()
    assert own == {}


TELL = """
import os, sys
from proxy.systemd import NotSockets, passed_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    for name, each in passed_sockets(os.environ):
        print(name, each.getsockname()[1], os.get_inheritable(each.fileno()), each.getblocking())
except NotSockets as error:
    print(error)
print(sorted(name for name in os.environ if name.startswith("LISTEN")))
"""


def told(descriptors: list[int], **environ: str) -> list[str]:
    """What a process says that was started with these as its descriptors 3, 4, …"""
    moved = " ".join(f"{3 + index}<&{descriptor}" for index, descriptor in enumerate(descriptors))
    command = ["/bin/bash", "-c", f'exec "$0" -c "$1" {moved}', sys.executable, TELL]
    done = subprocess.run(
        command,
        pass_fds=descriptors,
        env={**os.environ, "LISTEN_FDS": str(len(descriptors)), **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def beyond_those(listening: socket.socket) -> int:
    """A copy of its descriptor that is not among those it becomes."""
    import fcntl

    return fcntl.fcntl(listening.fileno(), fcntl.F_DUPFD, 20)


def test_passed_sockets_come_with_their_names_and_go_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        descriptors = [beyond_those(one), beyond_those(two)]
        try:
            first, second, left = told(descriptors, LISTEN_FDNAMES="admin:web")
            unnamed = told(descriptors)[0]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        assert first == f"admin {one.getsockname()[1]} False False"
        assert second == f"web {two.getsockname()[1]} False False"
        assert unnamed == f" {one.getsockname()[1]} False False"
    assert left == "[]"


def test_what_cannot_be_listened_on_is_refused(tmp_path: Path) -> None:
    cases = {
        "no socket": os.open(tmp_path, os.O_RDONLY),
        "no listening TCP socket": socket.socket().detach(),
    }
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "local"))
    local.listen()
    for why, descriptor in [*cases.items(), ("no listening TCP socket", local.detach())]:
        listening = socket.socket(fileno=descriptor) if why.endswith("TCP socket") else None
        moved = os.dup(descriptor) if listening is None else beyond_those(listening)
        try:
            assert told([moved])[0] == f"descriptor 3 was passed to be listened on, but is {why}"
        finally:
            os.close(moved)
            if listening is None:
                os.close(descriptor)
            else:
                listening.close()
