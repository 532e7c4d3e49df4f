"""An answer's head: its headers by name."""

from __future__ import annotations

from proxy.upstream.answer_head import AnswerHead


def test_the_first_value_of_a_header_is_found_whatever_its_case() -> None:
    head = AnswerHead(200, (("X-A", "1"), ("x-a", "2"), ("Retry-After", "3")))
    assert (head.get("x-a"), head.get("retry-after"), head.get("x-b")) == ("1", "3", None)
