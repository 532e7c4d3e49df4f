"""A round's calls: run side by side, never ended by one that fails."""

from __future__ import annotations

import asyncio

import pytest

from proxy.toolchain.calls import Call
from proxy.toolchain.catalogue import Catalogue, Listed, Place
from proxy.toolchain.results import Outcome
from proxy.toolchain.servers import ToolServers
from proxy.toolchain.toolbox import Toolbox
from tests.support.memory_line import turns
from tests.support.tool_servers import quick


class Bench:
    """Runs tools that answer when they are let to; `running` and `most` count those at once."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.most = 0
        self.cancelled = 0

    async def call(self, place: Place, arguments: dict[str, object]) -> Outcome:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return Outcome(f"{place.server}.{place.tool} {arguments}")


CATALOGUE = Catalogue({Place("clock", "now"): Listed("now", "", {}), Place("clock", "zones"): Listed("zones", "", {})})


def calls(*texts: str, name: str = "now") -> list[Call]:
    return [Call(f"id{number}", name, text) for number, text in enumerate(texts)]


async def test_calls_run_at_once_but_only_so_many() -> None:
    bench = Bench()
    running = asyncio.create_task(Toolbox(CATALOGUE, bench, parallel=3).run(calls(*["{}"] * 8)))
    await turns()
    assert bench.running == 3
    bench.gate.set()
    results = await running
    assert bench.most == 3
    assert [result.call.id for result in results] == [f"id{number}" for number in range(8)]
    assert all(result.outcome == Outcome("clock.now {}") for result in results)
    assert all(result.duration_ms >= 0 for result in results)


async def test_a_made_up_name_is_told_which_there_are() -> None:
    (result,) = await Toolbox(CATALOGUE, Bench(), parallel=8).run(calls("{}", name="then" * 100))
    assert result.outcome.is_error
    assert result.outcome.text.endswith('"; there are: now, zones')
    assert len(result.outcome.text) < 300


async def test_a_call_where_no_tools_are_is_told_so() -> None:
    (result,) = await Toolbox(Catalogue({}), Bench(), parallel=8).run(calls("{}"))
    assert result.outcome.text == 'there is no tool "now"; there are: none'


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "7" * 1000])
async def test_arguments_that_are_no_object_are_an_error_result(text: str) -> None:
    (result,) = await Toolbox(CATALOGUE, Bench(), parallel=8).run(calls(text))
    assert result.outcome.is_error
    assert result.outcome.text.startswith("the arguments are not a JSON object: " + text[:10])
    assert len(result.outcome.text) < 300


async def test_a_cancelled_round_cancels_its_calls() -> None:
    bench = Bench()
    running = asyncio.create_task(Toolbox(CATALOGUE, bench, parallel=8).run(calls("{}", "{}")))
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (bench.cancelled, bench.running) == (2, 0)


async def test_a_failing_call_and_a_hanging_one_do_not_keep_the_others() -> None:
    servers = ToolServers({"bench": quick(timeout="200ms")})
    try:
        toolbox = Toolbox(await servers.offer(["bench"]), servers, parallel=8)
        asked = [Call(name, name, '{"text":"x"}') for name in ("fail", "hold", "refuse", "echo")]
        results = await toolbox.run(asked)
    finally:
        await servers.close()
    assert [(result.call.name, result.outcome.is_error) for result in results] == [
        ("fail", True),
        ("hold", True),
        ("refuse", True),
        ("echo", False),
    ]
    assert results[1].outcome.text == 'tool server "bench" did not answer within 0.2 s'
    assert 200 <= results[1].duration_ms < 5000
