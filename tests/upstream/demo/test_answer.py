import json

from proxy.upstream.demo.answer import Refusal, encoded, event, paced
from proxy.upstream.demo.settings import DemoSettings


def test_json_is_compact_utf8() -> None:
    assert encoded({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert encoded("a\ud83d") == b'"a?"'


def test_an_event_has_one_blank_line_and_a_name_where_it_is_given() -> None:
    assert event(b"{}") == b"data: {}\n\n"
    assert event(b"{}", "ping") == b"event: ping\ndata: {}\n\n"


def test_only_tokens_take_time_and_what_precedes_the_first_comes_with_it() -> None:
    beats = [(False, b"role"), (True, b"one"), (True, b"two"), (False, b"end"), (True, b"three"), (False, b"done")]
    delays = [(piece, delay_s) for delay_s, piece in paced(beats, DemoSettings(interval_s=0.5, first_s=3.0))]
    assert delays == [(b"role", 3.0), (b"one", 0.0), (b"two", 0.5), (b"end", 0.0), (b"three", 0.5), (b"done", 0.0)]


def test_events_are_made_only_when_they_are_asked_for() -> None:
    made = []
    pieces = paced(((True, made.append(n) or b"x") for n in range(3)), DemoSettings())  # type: ignore[func-returns-value]
    next(pieces)
    assert made == [0]


def test_a_refusal_is_worded_as_openai_words_it() -> None:
    said = Refusal(400, "No.", param="n").openai()
    assert (said.status, json.loads(said.body)) == (
        400,
        {"error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": None}},
    )


def test_a_refusal_is_worded_as_anthropic_words_it() -> None:
    kinds = [json.loads(Refusal(status, "No.").anthropic().body)["error"]["type"] for status in (400, 404)]
    assert kinds == ["invalid_request_error", "not_found_error"]
