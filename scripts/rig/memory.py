"""What a program holds in memory while a scenario runs: with all connections open, or at its worst moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scripts.rig.program import Program
from scripts.rig.scenarios import Scenario, Watched

LOOK_S = 0.25


def nothing() -> dict[str, float]:
    """Nothing was looked at."""
    return {}


@contextmanager
def watch(program: Program, scenario: Scenario) -> Iterator[Callable[[], dict[str, float]]]:
    """What was seen of the program's memory, once the block has ended."""
    match scenario.watched:
        case Watched.MEMORY:
            assert scenario.clients is not None
            with _memory(program, scenario.clients.connections) as seen:
                yield seen
        case Watched.PEAK:
            program.forget_peak()
            before = program.peak_bytes()
            yield lambda: {"peak_bytes": program.peak_bytes() - before}
        case _:
            yield nothing


@contextmanager
def _memory(program: Program, connections: int) -> Iterator[Callable[[], dict[str, float]]]:
    before = program.memory_bytes()
    most = before
    over = threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(LOOK_S):
            most = max(most, program.memory_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield lambda: {"memory_bytes": most, "connection_bytes": (most - before) / connections}
    finally:
        over.set()
        looking.join()
