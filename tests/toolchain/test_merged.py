"""Several rounds' completions as one answer."""

from __future__ import annotations

import json
from typing import Any

from proxy.toolchain.merged import merged, summed


def completion(usage: dict[str, Any] | None = None, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "choices": [choice], **({"usage": usage} if usage else {})}).encode()


CALLS = [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}]


def test_the_last_answer_has_the_usage_of_all() -> None:
    rounds = [
        completion({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, content=None, tool_calls=CALLS),
        completion({"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}, content="noon"),
    ]
    answer = json.loads(merged(rounds, cut=False))
    assert answer["usage"] == {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}
    assert answer["choices"][0]["message"]["content"] == "noon"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_calls_that_nobody_runs_are_left_out() -> None:
    answer = json.loads(merged([completion(content="hm", tool_calls=CALLS)], cut=True))
    assert answer["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "hm"},
        "finish_reason": "length",
    }
    assert "usage" not in answer


def test_usage_is_summed_in_its_details_too() -> None:
    usages: list[dict[str, object]] = [
        {"a": 1, "details": {"cached": 2}, "tier": None},
        {"a": 2, "details": {"cached": 3, "audio": 1}, "tier": "x", "new": 4},
        {},
    ]
    assert summed(usages) == {"a": 3, "details": {"cached": 5, "audio": 1}, "tier": "x", "new": 4}
