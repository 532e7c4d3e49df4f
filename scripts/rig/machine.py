"""The machine a run happens on: what to say of it, and which core does what.

With two cores or more, the model server and the clients share the first and the program under test has the second to
itself; what one costs is then never hidden in what the other does.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
RIG_CORE = CORES[0]
PROGRAM_CORE = CORES[1] if len(CORES) > 1 else None


def describe() -> dict[str, str | int | bool]:
    """Facts for a report; no name of a host, no path."""
    return {
        "cores": len(CORES),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores_apart": PROGRAM_CORE is not None,
    }


def open_files() -> int:
    """Allow this process, and those it starts, as many open files as the system permits; how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@contextmanager
def programs_core() -> Iterator[None]:
    """What is started in this block runs on the core of the program under test."""
    with _on({PROGRAM_CORE} if PROGRAM_CORE is not None else set(CORES)):
        yield


@contextmanager
def rigs_core() -> Iterator[None]:
    """This process, and what it starts in this block, runs on the core of the model server and the clients."""
    with _on({RIG_CORE} if PROGRAM_CORE is not None else set(CORES)):
        yield


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
