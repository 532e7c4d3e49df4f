"""Clients that ask again and again, each time on a new connection, and that count what they did not get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.raw_client import ask, chat, post


@dataclass(slots=True)
class Tally:
    """`failures` are words for each request that was not answered whole with 200; `answered` counts those that were."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def further(self, count: int) -> None:
        """Wait until so many more were answered."""
        goal = self.answered + count
        async with asyncio.timeout(30):
            while self.answered < goal and not self.failures:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def asking(port: int, clients: int, model: str = "m") -> AsyncIterator[Tally]:
    """Ask for streams of `model` until the block ends; what is under way then is waited for."""
    tally = Tally()
    over = asyncio.Event()

    async def go_on() -> None:
        while not over.is_set():
            try:
                answer = await ask(port, post("/v1/chat/completions", chat(model)))
            except OSError as error:
                tally.failures.append(type(error).__name__)
                continue
            if answer.status == 200 and answer.whole and answer.body.endswith(b"data: [DONE]\n\n"):
                tally.answered += 1
            else:
                tally.failures.append(f"{answer.status}, whole: {answer.whole}, {answer.body[-200:]!r}")

    tasks = [asyncio.create_task(go_on()) for _ in range(clients)]
    try:
        yield tally
    finally:
        over.set()
        await asyncio.gather(*tasks)
