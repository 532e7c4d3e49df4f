"""The simulated model server: started once for a run, told before each scenario how to answer."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlencode

from scripts.rig.machine import rigs_core
from scripts.rig.native_programs import native_program
from scripts.rig.places import kept, log_of
from scripts.rig.program import Program

MODEL = "sim-model"
PATIENCE_S = 5.0


class ModelServer:
    """Answers on 127.0.0.1:`port`."""

    def __init__(self, program: Program, port: int) -> None:
        self.port = port
        self._program = program

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        return self._program.cpu_s()

    def answer_with(self, settings: Mapping[str, int]) -> None:
        """How it answers from now on: `events`, `interval_us` (0: as fast as possible), `first_us`, `event_bytes`."""
        every = {"events": 1, "interval_us": 0, "first_us": 0, "event_bytes": 0, **settings}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", f"/run?{urlencode(every)}")
            json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def model_server() -> Iterator[ModelServer]:
    command = [str(native_program("upstream"))]
    with rigs_core():
        program = Program(command, folder=kept(), log=log_of("model_server"), says=True)
    with program:
        yield ModelServer(program, int(program.first_line()))
