"""Chat completions and completions, as vendors stream them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ModelNotFound, UpstreamTruncated
from proxy.protocols import OPENAI, Failure, Sighting, Watcher
from proxy.protocols.openai import several_choices
from proxy.request import RequestBody
from tests.support.watching import play, see, watch

CHUNK = '{"id":"c1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":%s,"finish_reason":%s}]}'


def chunk(text: str) -> str:
    return CHUNK % (json.dumps({"content": text}), "null")


def committed() -> Watcher:
    """A watcher that has seen content, and an ordinary event to compare with."""
    watcher = watch(OPENAI)
    assert [see(watcher, chunk("a")), see(watcher, chunk("b"))] == [Sighting.CONTENT, Sighting.CONTENT]
    return watcher


# ---- whole streams ----


ASKED = {"stream_options": {"include_usage": True}}
"""A request whose client wants the usage chunk."""


def test_openai_with_usage() -> None:
    watcher = watch(OPENAI, **ASKED)
    play(
        watcher,
        """
        preamble | | {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},
            "logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x1"}
        content | | {"id":"c","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,
            "finish_reason":null}],"usage":null,"obfuscation":"Zq"}
        content | | {"id":"c","choices":[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}],
            "usage":null,"obfuscation":"p"}
        """,
    )
    assert not watcher.complete
    play(watcher, 'content | | {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}')
    assert watcher.complete
    assert (watcher.tokens_in, watcher.tokens_out) == (None, None)
    play(
        watcher,
        """
        usage | | {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}
        end | | [DONE]
        """,
    )
    assert (watcher.tokens_in, watcher.tokens_out) == (9, 2)
    assert watcher.failure is None


def test_usage_that_the_client_did_not_ask_for_is_counted_and_withheld() -> None:
    watcher = watch(OPENAI)
    play(
        watcher,
        """
        preamble | | {"id":"c","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}
        content | | {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}],"usage":null}
        content | | {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}
        withheld | | {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}
        end | | [DONE]
        """,
    )
    assert (watcher.tokens_in, watcher.tokens_out) == (9, 2)


def test_usage_beside_choices_is_never_withheld() -> None:
    watcher = committed()
    play(
        watcher,
        """
        content | | {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}
        content | | {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,
            "completion_tokens":2}}
        """,
    )


@pytest.mark.parametrize(
    ("members", "asks"),
    [
        ({}, True),
        ({"stream_options": None}, True),
        ({"stream_options": {}}, True),
        ({"stream_options": {"include_obfuscation": False}}, True),
        ({"stream_options": {"include_usage": False}}, True),
        ({"stream_options": {"include_usage": None}}, True),
        ({"stream_options": {"include_usage": True}}, False),
        ({"stream_options": {"include_usage": "yes"}}, False),
        ({"stream_options": {"include_usage": 0}}, False),
        ({"stream_options": []}, False),
        ({"stream_options": "usage"}, False),
        ({"stream_options": False}, False),
        ({"stream": False}, False),
        ({"stream": None}, False),
    ],
)
def test_the_gateway_asks_where_the_client_could_and_did_not(members: dict[str, object], asks: bool) -> None:
    body = RequestBody.parse(json.dumps({"model": "chat", "stream": True, **members}).encode())
    assert OPENAI.asks_for_usage(body) is asks
    usage = '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    assert see(OPENAI.watcher(body), usage) is (Sighting.WITHHELD if asks else Sighting.USAGE)


def test_transformers_ends_with_a_finish_reason_and_usage_and_no_marker() -> None:
    watcher = watch(OPENAI)
    play(
        watcher,
        """
        preamble | | {"id":"r", "choices":[{"delta":{"role":"assistant"}, "index":0}], "model":"dir@main"}
        content | | {"id":"r", "choices":[{"delta":{"content":"hi"}, "index":0}], "model":"dir@main"}
        content | | {"id":"r", "choices":[{"delta":{}, "finish_reason": "length", "index":0}],
            "usage": {"prompt_tokens": 4, "completion_tokens": 1}}
        """,
    )
    assert watcher.complete
    assert (watcher.tokens_in, watcher.tokens_out) == (4, 1)


def test_completions() -> None:
    watcher = watch(OPENAI, prompt="once")
    play(
        watcher,
        """
        preamble | | {"id":"t","object":"text_completion","choices":[{"index":0,"text":"","logprobs":null,
            "finish_reason":null}]}
        content | | {"id":"t","object":"text_completion","choices":[{"index":0,"text":" upon","logprobs":null,
            "finish_reason":null}]}
        content | | {"id":"t","object":"text_completion","choices":[{"index":0,"text":"","logprobs":null,
            "finish_reason":"length"}]}
        end | | [DONE]
        """,
    )
    assert watcher.complete


def test_azure_begins_without_choices() -> None:
    play(
        watch(OPENAI),
        """
        preamble | | {"choices":[],"created":0,"id":"","model":"","object":"",
            "prompt_filter_results":[{"prompt_index":0}]}
        preamble | | {"choices":[{"delta":{"content":"","role":"assistant"},"finish_reason":null,"index":0}],"id":"c"}
        content | | {"choices":[{"delta":{"content":"hi"},"finish_reason":null,"index":0}],"id":"c"}
        content | | {"choices":[],"created":0,"id":"","model":"","object":""}
        """,
    )


def test_vllm_counts_in_every_chunk_when_asked_to() -> None:
    watcher = watch(OPENAI)
    play(
        watcher,
        """
        preamble | | {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":5,
            "total_tokens":5,"completion_tokens":0}}
        content | | {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"total_tokens":6,
            "completion_tokens":1}}
        content | | {"choices":[{"index":0,"delta":{"content":"b"}}],"usage":{"prompt_tokens":5,"total_tokens":7,
            "completion_tokens":2}}
        """,
    )
    assert (watcher.tokens_in, watcher.tokens_out) == (5, 2)


def test_an_answer_in_one_chunk() -> None:
    watcher = watch(OPENAI)
    play(watcher, 'content | | {"choices":[{"index":0,"delta":{"content":"all of it"},"finish_reason":"stop"}]}')
    assert watcher.complete
    play(watcher, 'content | | {"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":3}}')
    assert watcher.complete
    assert watcher.tokens_out == 3


def test_a_marker_alone_completes() -> None:
    watcher = watch(OPENAI)
    play(watcher, "end | | [DONE]")
    assert watcher.complete


# ---- where content begins ----


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"content": "", "reasoning": "hm"},
        {"content": None, "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
        {"refusal": "no"},
        {"audio": {"id": "a"}},
    ],
)
def test_whatever_the_model_says_is_content(delta: dict[str, object]) -> None:
    assert see(watch(OPENAI), CHUNK % (json.dumps(delta), "null")) is Sighting.CONTENT


@pytest.mark.parametrize("delta", [{}, {"role": "assistant"}, {"content": ""}, {"content": None, "tool_calls": []}])
def test_a_role_alone_is_preamble(delta: dict[str, object]) -> None:
    assert see(watch(OPENAI), CHUNK % (json.dumps(delta), "null")) is Sighting.PREAMBLE


@pytest.mark.parametrize(
    "data",
    ['{"choices":null}', '{"choices":{}}', '{"choices":[null,1]}', '{"choices":[{"delta":[]}]}', "{}", '{"usage":7}'],
)
def test_an_unheard_of_shape_is_preamble_and_no_crash(data: str) -> None:
    watcher = watch(OPENAI)
    assert see(watcher, data) in (Sighting.PREAMBLE, Sighting.WITHHELD)
    assert (watcher.complete, watcher.tokens_in) == (False, None)


# ---- what is only text ----


@pytest.mark.parametrize(
    "text",
    [
        "[DONE]",
        "data: [DONE]\n\n",
        '"finish_reason":"stop"',
        '{"error":{"message":"x"}}',
        '"usage":{"prompt_tokens":99,"completion_tokens":99}',
        "finish_reason",
        "error",
        "usage",
        'say "hi"',
        "\\",
        '\\"',
        '","finish_reason":"stop","x":"',
    ],
)
def test_what_is_said_is_not_what_happens(text: str) -> None:
    watcher = committed()
    for said in (text, "b", text):
        assert see(watcher, chunk(said)) is Sighting.CONTENT
        assert see(watcher, json.dumps(json.loads(chunk(said)), indent=1)) is Sighting.CONTENT
    assert (watcher.complete, watcher.failure, watcher.tokens_in) == (False, None, None)


def test_a_finish_is_seen_behind_text_that_names_one() -> None:
    watcher = committed()
    assert (
        see(watcher, '{"choices":[{"finish_reason":"stop","delta":{"content":"finish_reason"}}]}') is Sighting.CONTENT
    )
    assert watcher.complete


def test_a_finish_is_seen_between_others_that_are_none() -> None:
    watcher = committed()
    see(watcher, '{"choices":[{"finish_reason":null},{"finish_reason": "stop"},{"finish_reason":null}]}')
    assert watcher.complete


# Each differs from an ordinary event, seen just before, in one place only.
LIKE_ORDINARY = '{"x_err":null,"choices":[{"delta":{"content":"a"},"finish_reason":null}],"x_usa":{"prompt_tokens":1}}'


def test_an_error_is_seen_in_an_event_of_the_shape_of_others() -> None:
    watcher = committed()
    assert [see(watcher, LIKE_ORDINARY), see(watcher, LIKE_ORDINARY)] == [Sighting.CONTENT, Sighting.CONTENT]
    assert see(watcher, LIKE_ORDINARY.replace('"x_err":null', '"error":true')) is Sighting.ERROR


def test_usage_is_seen_in_an_event_of_the_shape_of_others() -> None:
    watcher = committed()
    assert [see(watcher, LIKE_ORDINARY), see(watcher, LIKE_ORDINARY)] == [Sighting.CONTENT, Sighting.CONTENT]
    see(watcher, LIKE_ORDINARY.replace('"x_usa"', '"usage"'))
    assert watcher.tokens_in == 1


def test_a_finish_is_seen_between_the_head_and_the_tail_of_others() -> None:
    watcher = committed()
    assert [see(watcher, LIKE_ORDINARY), see(watcher, LIKE_ORDINARY)] == [Sighting.CONTENT, Sighting.CONTENT]
    see(watcher, LIKE_ORDINARY.replace('"a"', '"a"},"finish_reason":"stop"},{"delta":{"content":"b"'))
    assert watcher.complete


def test_an_ordinary_event_named_error_is_an_error() -> None:
    watcher = committed()
    assert see(watcher, chunk("c"), "error") is Sighting.ERROR


def test_a_native_finish_reason_is_none() -> None:
    watcher = committed()
    see(watcher, '{"choices":[{"delta":{"content":"a"},"native_finish_reason":"x","finish_reason":""}],"error":null}')
    assert not watcher.complete


# ---- several choices ----


TWO = """
    preamble | | {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}
    preamble | | {"choices":[{"index":1,"delta":{"role":"assistant"},"finish_reason":null}]}
    content | | {"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}
    content | | {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}
    content | | {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}
"""


def test_one_finish_of_two_is_not_the_end() -> None:
    watcher = watch(OPENAI, n=2)
    play(watcher, TWO)
    assert not watcher.complete
    play(watcher, 'content | | {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}')
    assert watcher.complete


def test_a_choice_that_begins_late_reopens_the_answer() -> None:
    watcher = watch(OPENAI, n=2)
    play(watcher, 'content | | {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}')
    assert watcher.complete
    play(watcher, 'content | | {"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}')
    assert not watcher.complete


def test_a_server_that_ignores_n_still_completes() -> None:
    watcher = watch(OPENAI, n=3)
    play(watcher, 'content | | {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}')
    assert watcher.complete


@pytest.mark.parametrize(
    ("written", "several"),
    [
        ('"a"', False),
        ('"[\\"a\\",\\"b\\"]"', False),
        ("null", False),
        ("[ 1,2]", False),
        ("[-1,2]", False),
        ("[" + " " * 100 + "1,2]", False),
        ("[]", False),
        ("[\n ]", False),
        ('[\n"a"]', False),
        ('[ "a" , "b"]', True),
        ("[\t[1,2],[3]]", True),
        ("[" + " " * 100 + '"a","b"]', True),
    ],
)
def test_several_prompts_are_told_by_how_they_are_written(written: str, several: bool) -> None:
    body = RequestBody.parse(b'{"model":"m","prompt":%b}' % written.encode())
    assert several_choices(body) is several


def test_a_long_prompt_is_not_decoded_to_tell_that_it_is_one() -> None:
    decoded = []

    class Watched(RequestBody):
        def value(self, name: str, default: object = None) -> object:
            decoded.append(name)
            return super().value(name, default)

    for written in (b'"' + b"word " * 10_000 + b'"', b"[" + b"12345," * 10_000 + b"0]"):
        assert not several_choices(Watched.parse(b'{"model":"m","prompt":%b}' % written))
    assert "prompt" not in decoded


@pytest.mark.parametrize(
    ("prompt", "several"), [(["a", "b"], True), ([[1], [2]], True), (["a"], False), ([1, 2], False)]
)
def test_several_prompts_are_several_choices(prompt: list[object], several: bool) -> None:
    watcher = watch(OPENAI, prompt=prompt)
    play(
        watcher,
        """
        content | | {"choices":[{"index":0,"text":"a","finish_reason":null}]}
        content | | {"choices":[{"index":1,"text":"b","finish_reason":null}]}
        content | | {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}
        """,
    )
    assert watcher.complete is not several


# ---- errors ----


@pytest.mark.parametrize("start", [watch, None])
def test_an_error_object_is_an_error_at_any_time(start: Any) -> None:
    watcher = watch(OPENAI) if start else committed()
    error = {"message": "Too many tokens", "type": "BadRequestError", "param": None, "code": 400}
    assert see(watcher, json.dumps({"error": error})) is Sighting.ERROR
    assert watcher.failure == Failure(400, error)
    assert not watcher.complete


def test_openrouter_puts_its_error_beside_the_choices() -> None:
    watcher = committed()
    play(
        watcher,
        """
        error | | {"id":"g","error":{"code":502,"message":"Provider disconnected"},"choices":[{"index":0,
            "delta":{"content":""},"finish_reason":"error"}]}
        end | | [DONE]
        """,
    )
    assert watcher.failure == Failure(502, {"code": 502, "message": "Provider disconnected"})


@pytest.mark.parametrize("begun", [False, True])
def test_an_event_named_error_is_one(begun: bool) -> None:
    watcher = committed() if begun else watch(OPENAI)
    assert see(watcher, '{"message":"overloaded","status_code":503}', "error") is Sighting.ERROR
    assert watcher.failure is not None
    assert (watcher.failure.status, watcher.failure.message) == (503, "overloaded")


def test_other_event_names_mean_nothing() -> None:
    watcher = committed()
    assert see(watcher, chunk("c"), "message") is Sighting.CONTENT
    assert see(watcher, chunk("c"), "ping") is Sighting.CONTENT


@pytest.mark.parametrize("empty", ["null", "false", "{}", '""', "0"])
def test_an_error_that_says_nothing_is_none(empty: str) -> None:
    for watcher in (watch(OPENAI), committed()):
        assert see(watcher, chunk("a")[:-1] + f',"error":{empty}}}') is Sighting.CONTENT
        assert watcher.failure is None


# ---- malformed ----


@pytest.mark.parametrize(
    "data", ["", "x", "{", "}", '{"choices":[', '[{"choices":[]}]', '"text"', "null", "DONE", "[DONE"]
)
def test_what_cannot_be_an_object_is_malformed(data: str) -> None:
    for watcher in (watch(OPENAI), committed(), watch(OPENAI, n=2)):
        assert see(watcher, data) is Sighting.MALFORMED
        assert not watcher.complete


def test_blanks_around_an_object_or_the_marker_do_no_harm() -> None:
    watcher = committed()
    assert see(watcher, f"  {chunk('a')} \t") is Sighting.CONTENT
    assert see(watcher, "  [DONE] ") is Sighting.END


def test_bytes_that_are_not_utf8_are_still_content() -> None:
    data = chunk("a").encode().replace(b'"a"', b'"\xff\xc3"')
    assert see(watch(OPENAI), data) is Sighting.CONTENT
    assert see(committed(), data) is Sighting.CONTENT


def test_what_only_looks_like_an_object_is_malformed_where_it_is_decoded() -> None:
    assert see(watch(OPENAI), "{not json}") is Sighting.MALFORMED
    assert see(committed(), '{"error":}') is Sighting.MALFORMED


# ---- what is cheap is also right ----


TEXTS = st.lists(
    st.sampled_from(
        ['"', "\\", ":", "null", "error", "usage", "finish_reason", '"error":{', "{", "}", ",", "a", " ", "é"]
    ),
    max_size=5,
).map("".join)
PLAIN: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda text, key: {"choices": [{"index": 0, "delta": {key: text}, "finish_reason": None}]},
    TEXTS,
    st.sampled_from(["content", "content", "content", "reasoning", "tool"]),
)
ODD: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "finish_reason": "stop", "delta": {"content": "finish_reason"}}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": None, "error": None},
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "error": "broken"},
        {"error": {"message": "a", "code": 500}},
    ]
)


def plainly(chunks: list[dict[str, Any]]) -> tuple[list[Sighting], bool]:
    """What a watcher should say, decided from the objects alone."""
    seen: list[Sighting] = []
    content = complete = False
    for part in chunks:
        for choice in part.get("choices", []):
            complete = complete or (not part.get("error") and bool(choice.get("finish_reason")))
            said = any(choice["delta"].get(key) for key in ("content", "reasoning"))
            content = content or (not part.get("error") and (complete or said))
        if part.get("error"):
            seen.append(Sighting.ERROR)
        elif part.get("usage") and not part["choices"]:
            seen.append(Sighting.USAGE)
        else:
            seen.append(Sighting.CONTENT if content else Sighting.PREAMBLE)
    return seen, complete


@settings(deadline=None)
@given(st.lists(PLAIN | PLAIN | PLAIN | ODD, max_size=12), st.booleans(), st.booleans())
def test_searching_bytes_sees_what_decoding_every_event_sees(
    chunks: list[dict[str, Any]], spaced: bool, ascii: bool
) -> None:
    watcher = watch(OPENAI, **ASKED)
    separators = (", ", ": ") if spaced else (",", ":")
    written = [json.dumps(part, separators=separators, ensure_ascii=ascii) for part in chunks]
    assert ([see(watcher, data) for data in written], watcher.complete) == plainly(chunks)


# ---- how errors are worded ----


def test_the_terminal_error_is_one_data_event() -> None:
    wire = committed().terminal_error(UpstreamTruncated("The answer stopped."))
    assert wire == (
        b'data: {"error":{"message":"The answer stopped.","type":"upstream_error","param":null,'
        b'"code":"upstream_truncated"}}\n\n'
    )


def test_a_refusal_has_openais_shape() -> None:
    error = ModelNotFound("No such model.", param="model")
    assert json.loads(OPENAI.error_body(error, "req_1")) == {
        "error": {
            "message": "No such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_a_failure_keeps_the_upstreams_error_object() -> None:
    assert OPENAI.failure_body(Failure(500, {"message": "é", "extra": [1]}), "req_1") == (
        b'{"error":{"message":"\\u00e9","extra":[1]}}'
    )


def test_keepalive_is_a_comment_without_a_blank_line() -> None:
    assert OPENAI.keepalive == b": ping\n"
