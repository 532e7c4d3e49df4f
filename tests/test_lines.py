"""The line between the supervisor and a worker: numbers, and parcels of any size that nobody waits for."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from proxy.config.loader import load
from proxy.config.model import Config
from proxy.lines import hear, hear_orders, parcel, say
from proxy.reload import Reload

HANG_UP = bytes([signal.SIGHUP])


def send(line: socket.socket, reload: Reload) -> None:
    with parcel(reload) as descriptor:
        socket.send_fds(line, [HANG_UP], [descriptor])


def test_what_is_said_is_heard_and_an_end_too() -> None:
    one, other = socket.socketpair()
    with other:
        say(one, b"http://127.0.0.1:1")
        assert hear(other) == b"http://127.0.0.1:1"
        one.close()
        assert hear(other) == b""
        assert hear_orders(other) == (b"", [])
        say(other, b"into the void")


def test_a_parcel_arrives_whole_at_everybody_it_is_sent_to(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    routes = "".join(f"  route-{number}: http://gpu-{number}:8000\n" for number in range(3000))
    file.write_text(f"auth: {{keys: [{{name: web, key: sk-secret}}]}}\nroutes:\n{routes}")
    reload = Reload(load(file, {}), 12.5, ("a",), ("server.port",))
    pairs = [socket.socketpair() for _ in range(3)]
    with parcel(reload) as descriptor:
        for line, _ in pairs:
            socket.send_fds(line, [HANG_UP], [descriptor])
    before = len(os.listdir("/proc/self/fd"))
    for line, far in pairs:
        with line, far:
            assert hear_orders(far) == (HANG_UP, [reload])
    assert len(os.listdir("/proc/self/fd")) == before - 6  # nothing is left open


def test_several_orders_arrive_in_their_order() -> None:
    one, other = socket.socketpair()
    first, second = (Reload(Config.model_validate({"routes": {name: "demo://"}}), 0.0) for name in "ab")
    with one, other:
        send(one, first)
        send(one, second)
        say(one, bytes([signal.SIGTERM]))
        heard = [hear_orders(other) for _ in range(2)]
        other.setblocking(False)
        numbers = b"".join(numbers for numbers, _ in heard)
        if numbers != HANG_UP * 2 + bytes([signal.SIGTERM]):
            heard.append(hear_orders(other))
    assert b"".join(numbers for numbers, _ in heard) == HANG_UP * 2 + bytes([signal.SIGTERM])
    assert [reload for _, reloads in heard for reload in reloads] == [first, second]
