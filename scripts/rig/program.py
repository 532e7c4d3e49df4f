"""A started program with all its children: what it has used, and its end.

Counted by the kernel: CPU from /proc/*/stat, memory from /proc/*/smaps_rollup, in which a page that several processes
share counts once. Only what was started here is ever ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
STOP_WITHIN_S = 5.0
FORGET_PEAK = b"5"  # proc_pid_clear_refs(5)
# What would change a program under test: byte code that is not kept, our own settings, a proxy between it and us.
_NOT_INHERITED = ("PYTHON", "PENSTOCK_")


class Program:
    """Runs until the block ends. `log` gets all it says, unless `says` asks for its standard output."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        variables: Mapping[str, str] | None = None,
        says: bool = False,
    ) -> None:
        with log.open("wb") as log_file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**inherited(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says else log_file,
                stderr=log_file,
                start_new_session=True,  # so that its whole group, and nothing else, can be ended
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def first_line(self) -> str:
        """The first line it says, or "" if it ended without a word."""
        assert self._process.stdout is not None
        line: bytes = self._process.stdout.readline()
        return line.decode().strip()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def cpu_s(self) -> float:
        """User and system time of the tree, in seconds, with that of children that have ended."""
        return sum(_ticks(pid) for pid in self._tree()) / TICKS_A_SECOND

    def memory_bytes(self) -> int:
        """What the tree holds in memory now, a shared page counted once (PSS)."""
        return sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in self._tree()) * 1024

    def forget_peak(self) -> None:
        """From now on `peak_bytes` counts anew."""
        for pid in self._tree():
            (PROC / str(pid) / "clear_refs").write_bytes(FORGET_PEAK)

    def peak_bytes(self) -> int:
        """The most the tree has held since it started, or since `forget_peak`: the sum of each process's own peak."""
        return sum(_kilobytes(pid, "status", "VmHWM:") for pid in self._tree()) * 1024

    def stop(self) -> None:
        """Ask it to end, then end its group."""
        if self.runs:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_WITHIN_S)
        _end_group(self._process.pid)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _tree(self) -> list[int]:
        children = _children()
        found = []
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += children.get(pid, [])
        return found


def inherited() -> dict[str, str]:
    """This process's variables, less those that would change what is measured."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_INHERITED) and not name.lower().endswith("_proxy")
    }


def _end_group(group: int) -> None:
    """Whatever is left of the group: a leader's number is not given away while a member lives."""
    deadline = time.monotonic() + STOP_WITHIN_S
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    return children


def _stat(pid: int) -> list[str]:
    """The fields after the program's name (proc_pid_stat(5)), the third one first; none when it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _ticks(pid: int) -> int:
    return sum(int(field) for field in _stat(pid)[11:15])


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = (PROC / str(pid) / file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
