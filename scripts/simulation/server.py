"""A simulated model server: it serves what it is given at once, all the slower the more that is.

It computes a prompt, gives the first token, then the others. Up to `slots` streams run at full speed; more share
what there is, as in a batch that is full. Blocks of prompts it has computed before cost nothing.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from scripts.simulation.world import Action, World

BLOCK_S = 0.04
"""Computing a block of a prompt, at full speed."""
CACHED_BLOCKS = 600


class Health(enum.Enum):
    WELL = enum.auto()
    ERRORS = enum.auto()
    """Answers 503 at once."""
    STALLS = enum.auto()
    """Takes a request and says nothing."""


@dataclass(slots=True, eq=False)
class Job:
    """One request at a server: the work of its prompt and of its whole answer, in seconds at full speed."""

    prompt_s: float
    total_s: float
    on_first: Action
    on_end: Action
    begun_at: float = 0.0
    """By the server's own clock, which runs slower the more it has to do."""
    spoken: bool = False


@dataclass(eq=False)
class Server:
    """`speed` is 1 for an ordinary one. `refused` counts what it answered with 503."""

    world: World
    speed: float = 1.0
    slots: int = 8
    health: Health = Health.WELL
    served: int = 0
    refused: int = 0
    most_at_once: int = 0
    _jobs: list[tuple[float, int, Job]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _clock: float = 0.0
    _looked_at: float = 0.0
    _plan: int = 0
    _cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def begin(self, blocks: Sequence[int], unhashed_s: float, answer_s: float, first: Action, end: Action) -> float:
        """Serve a request of these prompt blocks (and some work more). The share of the blocks that was cached."""
        self._move_clock()
        warm = self._computed(blocks)
        prompt_s = unhashed_s + BLOCK_S * (len(blocks) - warm)
        job = Job(prompt_s, prompt_s + answer_s, first, end, self._clock)
        heapq.heappush(self._jobs, (self._clock + prompt_s, next(self._order), job))
        self.served += 1
        self.most_at_once = max(self.most_at_once, len(self._jobs))
        self._plan_next()
        return warm / len(blocks) if blocks else 0.0

    def forget(self) -> None:
        """It has been started anew: nothing is cached."""
        self._cache.clear()

    def _computed(self, blocks: Sequence[int]) -> int:
        """How many blocks of this beginning are cached; all of them are from now on."""
        warm = next((number for number, block in enumerate(blocks) if block not in self._cache), len(blocks))
        for block in blocks:
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > CACHED_BLOCKS:
            self._cache.popitem(last=False)
        return warm

    def _rate(self) -> float:
        return self.speed * min(1.0, self.slots / max(1, len(self._jobs)))

    def _move_clock(self) -> None:
        self._clock += (self.world.now - self._looked_at) * self._rate()
        self._looked_at = self.world.now

    def _plan_next(self) -> None:
        self._plan += 1
        if self._jobs:
            plan = self._plan
            self.world.after((self._jobs[0][0] - self._clock) / self._rate(), lambda: self._go_on(plan))

    def _go_on(self, plan: int) -> None:
        if plan != self._plan:
            return  # something came in between, and was planned for
        self._move_clock()
        _, _, job = heapq.heappop(self._jobs)
        if job.spoken:
            job.on_end()
        else:
            job.spoken = True
            heapq.heappush(self._jobs, (job.begun_at + job.total_s, next(self._order), job))
            job.on_first()
        self._plan_next()
