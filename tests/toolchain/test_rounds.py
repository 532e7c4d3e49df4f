"""Asking for a round's answer, and going from round to round."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from proxy.errors import UpstreamError, UpstreamInvalid
from proxy.protocols.failure import Failure
from proxy.streams.stream import Stream
from proxy.toolchain.calls import Call, Said
from proxy.toolchain.catalogue import Catalogue, Listed, Place
from proxy.toolchain.loop import Ask, Over, Rounds
from proxy.toolchain.results import CallResult, Outcome
from proxy.toolchain.rounds import Exchanges, RoundAnswer, RoundRefused, go_through, refusal
from proxy.toolchain.toolbox import Toolbox


@dataclass(slots=True, eq=False)
class Given:
    """An answer as the relay gives it."""

    status: int = 200
    body: bytes | None = b"{}"
    events: bool = False
    failure: Failure | None = None
    stream: Stream = field(default_factory=Stream)


def exchanges(answer: Given, sent: list[bytes], closed: list[RoundAnswer]) -> Exchanges:
    async def open(body: bytes) -> RoundAnswer:
        sent.append(body)
        return answer

    return Exchanges(open, closed.append)


async def test_a_request_is_sent_as_json_and_its_answer_handed_over() -> None:
    sent: list[bytes] = []
    closed: list[RoundAnswer] = []
    answer = Given()
    there = exchanges(answer, sent, closed)
    assert await there.ask(Ask({"model": "m", "messages": ["Grüße \ud800"]})) is answer
    assert json.loads(sent[0]) == {"model": "m", "messages": ["Grüße \ud800"]}
    assert sent[0].isascii()
    assert not closed
    there.close(answer)
    assert closed == [answer]


@pytest.mark.parametrize(
    "answer",
    [Given(400), Given(503), Given(200, failure=Failure(429, {"message": "slow down"}))],
    ids=["refused", "failed", "failed under status 200"],
)
async def test_a_refusal_is_raised_with_its_answer(answer: Given) -> None:
    with pytest.raises(RoundRefused) as refused:
        await exchanges(answer, [], []).ask(Ask({}))
    assert refused.value.answer is answer


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Given(400, b'{"error":{"message":"bad role"}}'), UpstreamError, "bad role"),
        (Given(400, b'{"error":"bad role"}'), UpstreamError, "bad role"),
        (Given(200, b"", failure=Failure(None, {"message": "out of memory"})), UpstreamError, "out of memory"),
        (Given(500, b"<html>"), UpstreamInvalid, "The model server answered with status 500 to the tools' results."),
        (Given(500, None), UpstreamInvalid, "The model server answered with status 500 to the tools' results."),
    ],
)
def test_a_later_refusal_is_told_in_the_upstreams_words(answer: Given, kind: type[UpstreamError], message: str) -> None:
    error = refusal(answer)
    assert type(error) is kind
    assert error.message == message


class Tools:
    """Runs any tool, at once."""

    async def call(self, place: Place, arguments: dict[str, object]) -> Outcome:
        return Outcome(place.tool)


async def test_the_rounds_go_on_as_the_loop_says() -> None:
    catalogue = Catalogue({Place("clock", "now"): Listed("now", "", {})})
    rounds = Rounds({"messages": []}, catalogue.functions, max_rounds=8, synthesis={})
    asked: list[Ask] = []
    told: list[tuple[int, list[str]]] = []
    answers = [Said({"role": "assistant"}, (Call("a", "now", ""),)), Said({}), Said({"role": "assistant"})]

    async def ask(step: Ask) -> Said:
        asked.append(step)
        return answers[len(asked) - 1]

    def summarised(number: int, results: list[CallResult]) -> None:
        told.append((number, [result.outcome.text for result in results]))

    toolbox = Toolbox(catalogue, Tools(), parallel=8)
    assert await go_through(rounds, ask, toolbox, summarised) == Over()
    assert told == [(1, ["now"])]
    assert [step.synthesis for step in asked] == [False, False, True]
