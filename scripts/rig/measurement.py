"""One peer, started: made ready, then measured by one scenario after the other."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.rig.clients import Clients, Seen, run_clients
from scripts.rig.machine import programs_core
from scripts.rig.memory import nothing, watch
from scripts.rig.model_server import MODEL, ModelServer
from scripts.rig.peer import Peer, Place, program_path
from scripts.rig.places import kept, log_of
from scripts.rig.program import Program
from scripts.rig.scenarios import Scenario

ASK_AGAIN_S = 0.005
ONE_ANSWER_S = 10.0
WARM_UP = (Clients(8, 0.5, 50), Clients(8, 0.2))
SETTLED_SHARE = 0.03
"""Of its core: a program that uses less than this is at rest."""
SETTLE_LOOK_S = 0.3
SETTLE_WITHIN_S = 20.0


class NotReady(Exception):
    """A peer gave no answer in time, or ended."""


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that answers on `port`. `program` is None where the clients ask the model server itself."""

    peer: Peer
    port: int
    program: Program | None
    model_server: ModelServer
    start_s: float

    def measure(self, scenario: Scenario) -> tuple[dict[str, float], dict[str, int]]:
        """The scenario's values, and what was wrong by kind."""
        assert scenario.clients is not None
        self._come_to_rest()
        self.model_server.answer_with(scenario.upstream)
        with ExitStack() as watching:
            watched = watching.enter_context(watch(self.program, scenario)) if self.program is not None else nothing
            cpu_s, rig_cpu_s = self._cpu_s(), self.model_server.cpu_s()
            began = time.monotonic()
            seen = self._ask(scenario.clients)
            lasted_s = time.monotonic() - began
            cpu_s, rig_cpu_s = self._cpu_s() - cpu_s, self.model_server.cpu_s() - rig_cpu_s + seen.cpu_s
        values = _seen_values(seen, scenario.clients)
        values["rig_busy"] = rig_cpu_s / lasted_s
        if self.program is not None:
            values["busy"] = cpu_s / lasted_s
            units = seen.events if scenario.clients.events else seen.right
            if units:
                values["cpu_us"] = cpu_s * 1e6 / units
        values |= watched()
        return values, seen.kinds

    def warm_up(self) -> None:
        """Let it meet what it will be measured with."""
        for clients in WARM_UP:
            if clients.events or self.peer.websocket is None:
                self.model_server.answer_with({"events": clients.events})
                self._ask(clients)

    def _ask(self, clients: Clients) -> Seen:
        peer = self.peer
        return run_clients(clients, self.port, headers=peer.headers, websocket=peer.websocket, mux=peer.mux)

    def _cpu_s(self) -> float:
        return self.program.cpu_s() if self.program is not None else 0.0

    def _come_to_rest(self) -> None:
        """Neither its start nor what an earlier scenario left it with is this one's cost."""
        deadline = time.monotonic() + SETTLE_WITHIN_S
        while self.program is not None and time.monotonic() < deadline:
            before = self.program.cpu_s()
            time.sleep(SETTLE_LOOK_S)
            if self.program.cpu_s() - before < SETTLED_SHARE * SETTLE_LOOK_S:
                return


@contextmanager
def running(peer: Peer, model_server: ModelServer) -> Iterator[Running]:
    """Start it, wait for its first answer, end it with the block. Raises `NotReady`."""
    if peer.command is None:
        yield Running(peer, model_server.port, None, model_server, 0.0)
        return
    with TemporaryDirectory(prefix=peer.name, dir=kept("running"), ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder), _free_port(), _free_port(), model_server.port)
        command = list(peer.command(place))
        command[0] = program_path(command[0]) or command[0]
        began = time.monotonic()
        with programs_core():
            program = Program(
                command, folder=peer.started_in or place.folder, log=log_of(peer.name), variables=peer.variables
            )
        with program:
            start_s = _first_answer_s(peer, place.port, program, began)
            yield Running(peer, place.port, program, model_server, start_s)


def _first_answer_s(peer: Peer, port: int, program: Program, began: float) -> float:
    """Ask until it answers; the seconds since it was started."""
    said = "nothing"
    while time.monotonic() - began < peer.ready_within_s:
        if not program.runs:
            raise NotReady("it ended at once")
        with suppress(OSError, http.client.HTTPException):
            status = _ask_once(peer, port)
            if status == 200:
                return time.monotonic() - began
            said = f"status {status}"
        time.sleep(ASK_AGAIN_S)
    raise NotReady(f"no answer within {peer.ready_within_s:g} s; the last one was {said}")


def _ask_once(peer: Peer, port: int) -> int:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}]})
    headers = {"Content-Type": "application/json"} | dict(header.split(": ", 1) for header in peer.headers)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ONE_ANSWER_S)
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _seen_values(seen: Seen, clients: Clients) -> dict[str, float]:
    values: dict[str, float] = {"right": seen.right, "wrong": seen.wrong, "cut": seen.cut}
    if clients.idle:
        return values | {"open": seen.open}
    values["per_s"] = (seen.events if clients.events else seen.right) / seen.seconds
    times = seen.event_us if clients.events else seen.answer_us
    values |= {f"{quantile}_us": time_us for quantile, time_us in times.items()}
    return values | {f"first_{quantile}_us": time_us for quantile, time_us in seen.first_us.items()}
