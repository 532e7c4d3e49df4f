"""Prompts that begin alike have chains that begin alike."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.request import RequestBody
from proxy.routing.prompt_blocks import BLOCK_BYTES, MOST_BLOCKS, block_hashes


def chain(**members: object) -> list[int]:
    return block_hashes(RequestBody.parse(json.dumps({"model": "m", **members}).encode()))


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def common(one: list[int], other: list[int]) -> int:
    return sum(1 for left, right in zip(one, other, strict=False) if left == right)


def test_a_short_prompt_has_none() -> None:
    assert chain(messages=chat("hello")) == []
    assert chain() == []


def test_there_is_one_for_each_whole_block() -> None:
    assert len(chain(prompt="x" * (3 * BLOCK_BYTES))) == 3
    assert len(chain(prompt="x" * (3 * BLOCK_BYTES - 10))) == 2


def test_the_next_turn_goes_on_where_the_last_one_ended() -> None:
    one = chat("a" * 5000, "b" * 5000)
    first, second = chain(messages=one), chain(messages=[*one, *chat("c" * 5000)])
    assert second[: len(first)] == first
    assert len(second) > len(first)


def test_another_beginning_is_another_chain_to_its_end() -> None:
    assert common(chain(messages=chat("a" * 5000)), chain(messages=chat("b" + "a" * 4999))) == 0


def test_the_same_system_prompt_is_the_same_beginning() -> None:
    one, other = chain(messages=chat("s" * 8192, "one " * 2000)), chain(messages=chat("s" * 8192, "two " * 2000))
    assert common(one, other) == 8


def test_the_order_of_members_in_the_body_does_not_matter() -> None:
    tools, messages = [{"name": "t" * 2000}], chat("m" * 3000)
    assert chain(tools=tools, messages=messages) == chain(messages=messages, tools=tools)


def test_other_settings_do_not_matter() -> None:
    messages = chat("m" * 3000)
    assert chain(messages=messages, temperature=0.1, stream=True) == chain(seed=7, messages=messages)


def test_tools_and_system_come_before_the_messages() -> None:
    messages = chat("m" * 3000)
    assert common(chain(tools=["x" * 2000], messages=messages), chain(tools=["y" * 2000], messages=messages)) == 0
    assert common(chain(system="s" * 4096, messages=messages), chain(system="s" * 4096, messages=chat("n"))) >= 3


def test_every_endpoints_prompt_counts() -> None:
    for member in ("prompt", "input", "instructions", "system"):
        assert len(chain(**{member: "x" * 2048})) == 2


def test_a_huge_prompt_costs_no_more_than_its_beginning() -> None:
    assert len(chain(prompt="x" * (BLOCK_BYTES * MOST_BLOCKS * 3))) == MOST_BLOCKS
    assert len(chain(system="s" * 300_000, prompt="x" * 300_000)) == MOST_BLOCKS


def test_a_repeated_block_is_not_the_same_as_before() -> None:
    assert len(set(chain(prompt="x" * (20 * BLOCK_BYTES)))) == 20


@given(st.text(min_size=1), st.integers(100, 3000), st.text())
def test_appending_never_changes_what_was_there(text: str, times: int, more: str) -> None:
    first = chain(messages=chat(text * times))
    assert chain(messages=chat(text * times, more * times))[: len(first)] == first
