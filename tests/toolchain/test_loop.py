"""The rounds: what comes after an answer, and what the next request says."""

from __future__ import annotations

from typing import Any

from proxy.toolchain.calls import Call, Said
from proxy.toolchain.loop import Ask, Over, Rounds, Run
from proxy.toolchain.results import CallResult, Outcome, failed

USER = {"role": "user", "content": "What time is it?"}
BASE: dict[str, Any] = {"model": "m", "messages": [USER], "temperature": 0, "stream": True}
FUNCTIONS: list[dict[str, object]] = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
CALL = Call("a", "now", "{}")
CALLING = Said({"role": "assistant", "content": None, "tool_calls": ["…"]}, (CALL,))
TEXT = Said({})
RESULT = CallResult(CALL, Outcome("noon"), 1.0)


def rounds(base: dict[str, Any] = BASE, **settings: Any) -> Rounds:
    return Rounds(base, FUNCTIONS, **{"max_rounds": 8, **settings})


def test_the_first_request_offers_the_tools() -> None:
    assert rounds().first() == Ask({**BASE, "tools": FUNCTIONS})


def test_without_tools_it_is_an_ordinary_request() -> None:
    assert Rounds(BASE, [], max_rounds=8).first() == Ask(BASE)


def test_an_answer_without_calls_ends_it() -> None:
    assert rounds().answered(TEXT) == Over(cut=False)


def test_calls_are_run_and_their_results_go_into_the_next_request() -> None:
    turn = rounds()
    assert turn.answered(CALLING) == Run((CALL,))
    step = turn.returned([RESULT])
    assert isinstance(step, Ask)
    assert step.body["messages"] == [
        USER,
        CALLING.message,
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
    ]
    assert step.body["tools"] == FUNCTIONS
    assert (turn.number, turn.calls) == (2, 1)
    assert BASE["messages"] == [USER]


def test_a_failure_is_a_result_like_any_other() -> None:
    turn = rounds()
    turn.answered(CALLING)
    step = turn.returned([CallResult(CALL, failed("no clock"), 1.0)])
    assert isinstance(step, Ask)
    messages = step.body["messages"]
    assert isinstance(messages, list)
    assert messages[-1]["content"] == "Error: no clock"


def test_messages_grow_round_by_round() -> None:
    turn = rounds()
    for expected in (3, 5, 7):
        turn.answered(CALLING)
        step = turn.returned([RESULT])
        assert isinstance(step, Ask)
        messages = step.body["messages"]
        assert isinstance(messages, list)
        assert len(messages) == expected
    assert turn.answered(TEXT) == Over(cut=False)
    assert turn.number == 4


def test_after_the_last_round_nothing_more_is_asked() -> None:
    turn = rounds(max_rounds=2)
    turn.answered(CALLING)
    assert isinstance(turn.returned([RESULT]), Ask)
    assert turn.answered(CALLING) == Run((CALL,))
    assert turn.returned([RESULT]) == Over(cut=True)
    assert turn.number == 2


def test_a_forced_choice_is_for_the_first_answer_only() -> None:
    turn = rounds({**BASE, "tool_choice": "required"})
    assert turn.first().body["tool_choice"] == "required"
    turn.answered(CALLING)
    step = turn.returned([RESULT])
    assert isinstance(step, Ask)
    assert "tool_choice" not in step.body


def test_the_synthesis_has_no_tools_and_its_own_numbers() -> None:
    turn = rounds({**BASE, "tool_choice": "auto"}, synthesis={"temperature": 0.9, "max_tokens": 50})
    turn.answered(CALLING)
    asked = turn.returned([RESULT])
    assert isinstance(asked, Ask)
    step = turn.answered(TEXT)
    assert step == Ask(
        {**BASE, "temperature": 0.9, "max_tokens": 50, "messages": asked.body["messages"]}, synthesis=True
    )
    assert turn.synthesised() == Over(cut=False)


def test_the_synthesis_comes_after_the_last_round_too() -> None:
    turn = rounds(max_rounds=1, synthesis={})
    turn.answered(CALLING)
    step = turn.returned([RESULT])
    assert isinstance(step, Ask)
    assert step.synthesis
    assert "tools" not in step.body


def test_the_synthesis_comes_where_no_tool_was_called_too() -> None:
    assert rounds(synthesis={}).answered(TEXT) == Ask(BASE, synthesis=True)
