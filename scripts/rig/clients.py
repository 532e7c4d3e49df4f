"""Clients of a program under test: who they are, and what they saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.rig.machine import rigs_core
from scripts.rig.native_programs import native_program

OVERTIME_S = 30.0


@dataclass(frozen=True, slots=True)
class Clients:
    """`connections` clients, a request at a time each, until `requests` are answered or `seconds` are over.

    `events` are those of each stream; 0 asks for whole answers. `idle` ones connect and ask for nothing.
    """

    connections: int
    seconds: float
    events: int = 0
    requests: int | None = None
    ramp_ms: int = 0
    prompt_bytes: int = 0
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """Times are in microseconds by the name of their quantile (p50, p90, p99, max); none where nothing came."""

    seconds: float
    right: int
    wrong: int
    cut: int
    open: int
    upgraded: int
    events: int
    cpu_s: float
    event_us: dict[str, float]
    first_us: dict[str, float]
    answer_us: dict[str, float]
    kinds: dict[str, int]
    """What was wrong, and how often."""


def run_clients(
    clients: Clients, port: int, *, headers: Sequence[str] = (), websocket: str | None = None, mux: int = 0
) -> Seen:
    """Let them loose on 127.0.0.1:`port`, and wait for them. With `mux`, so many of them share a WebSocket."""
    command = [str(native_program("loadgen")), "--port", str(port), *_options(clients)]
    for header in headers:
        command += ["--header", header]
    if websocket is not None:
        command += ["--websocket", websocket, "--mux", str(mux)]
    with rigs_core():
        finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=clients.seconds + OVERTIME_S)
    said: dict[str, Any] = json.loads(finished.stdout)
    return Seen(**{name: said[name] for name in Seen.__slots__})


def _options(clients: Clients) -> list[str]:
    given: dict[str, object] = {
        "--connections": clients.connections,
        "--seconds": clients.seconds,
        "--events": clients.events,
        "--ramp-ms": clients.ramp_ms,
        "--prompt-bytes": clients.prompt_bytes,
        "--idle": int(clients.idle),
    }
    if clients.requests is not None:
        given["--requests"] = clients.requests
    return [str(part) for option in given.items() for part in option]
