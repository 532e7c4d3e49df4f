"""The gateway's command, counting what it holds whenever it is told to (SIGUSR1): its tasks, its objects, its memory.

Run as `python -m tests.support.census serve ...`; the product itself knows nothing of it. Each count is a line of JSON
on standard output, made after a full garbage collection and after what malloc keeps for later has gone back.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from proxy.__main__ import main
from tests.support.open_files import allow_many_files

if TYPE_CHECKING:
    from tests.support.gateway import RunningGateway

COUNTED_WITHIN_S = 20.0
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True, slots=True)
class Census:
    """`objects` are those that the garbage collector knows, `kinds` how many there are of each class. `blocks` are all
    small pieces of memory that Python has given out, `malloc_kib` what others have; `resident_kib` is what the system
    has lent for all that, and for what is between."""

    tasks: int
    objects: int
    kinds: Counter[str]
    blocks: int
    malloc_kib: int
    resident_kib: int

    def more_than(self, before: Census) -> str:
        """What grew most since."""
        grown = self.kinds - before.kinds
        return ", ".join(f"{count} {kind}" for kind, count in grown.most_common(12))


async def count(gateway: RunningGateway) -> Census:
    """What this gateway, started with `module="tests.support.census"`, holds now."""
    assert gateway.process.stdout is not None
    gateway.process.send_signal(signal.SIGUSR1)
    async with asyncio.timeout(COUNTED_WITHIN_S):
        told: dict[str, Any] = json.loads(await gateway.process.stdout.readline())
    told["kinds"] = Counter(told["kinds"])
    return Census(**told, resident_kib=resident_kib(gateway.process.pid))


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _tell(signal_number: int, frame: object) -> None:
    gc.collect()
    _libc.malloc_trim(0)
    blocks, malloc_kib = sys.getallocatedblocks(), _in_use_by_malloc() // 1024
    known = gc.get_objects()
    kinds = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in known)
    told = {"tasks": len(asyncio.all_tasks()), "objects": len(known), "blocks": blocks, "malloc_kib": malloc_kib}
    print(json.dumps({**told, "kinds": dict(kinds.most_common(300))}), flush=True)


class _MallocFigures(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _MallocFigures


def _in_use_by_malloc() -> int:
    figures = _libc.mallinfo2()
    return int(figures.uordblks + figures.hblkhd)


if __name__ == "__main__":
    allow_many_files()
    signal.signal(signal.SIGUSR1, _tell)
    sys.exit(main(sys.argv[1:]))
