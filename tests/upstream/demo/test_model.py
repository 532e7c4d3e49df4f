import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from proxy.upstream.demo.answer import Stamp, Streamed, Whole
from proxy.upstream.demo.model import ENDPOINTS, answer
from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import SETTINGS, STAMP, ModelTransport

POSTS = [path for path, methods in ENDPOINTS.items() if "POST" in methods]


def body_of(method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    said = answer(method, path, body, SETTINGS, STAMP)
    assert isinstance(said, Whole)
    return said.status, json.loads(said.body)


def test_it_lists_itself() -> None:
    status, told = body_of("GET", "/v1/models")
    assert (status, [model["id"] for model in told["data"]]) == (200, ["demo"])


def test_it_is_in_good_health() -> None:
    assert body_of("GET", "/health") == (200, {"status": "ok"})


def test_elsewhere_is_nothing() -> None:
    status, told = body_of("POST", "/v1/audio/speech", b"{}")
    assert (status, told["error"]["code"]) == (404, "not_found")


def test_another_method_is_not_allowed() -> None:
    status, told = body_of("GET", "/v1/chat/completions")
    assert (status, told["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model":1}', b"[" * 10_000])
def test_a_body_of_another_shape_is_a_bad_request(path: str, body: bytes) -> None:
    status, told = body_of("POST", path, body)
    assert status == 400
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["message"]


def test_a_refusal_repeats_nothing_of_the_body() -> None:
    _, told = body_of("POST", "/v1/chat/completions", b'{"messages":[{"role":"user","content":{"k":"sk-secret"}}]}')
    assert "sk-secret" not in json.dumps(told)


def test_two_answers_to_the_same_request_differ_only_in_their_stamp() -> None:
    body = b'{"messages":[{"role":"user","content":"hi"}]}'
    texts = []
    for nonce in ("a" * 32, "b" * 32):
        said = answer("POST", "/v1/chat/completions", body, SETTINGS, Stamp(nonce, 1))
        assert isinstance(said, Whole)
        texts.append(said.body.decode().replace(nonce, ""))
    assert texts[0] == texts[1]


def test_a_whole_answer_takes_as_long_as_its_tokens_would() -> None:
    settings = DemoSettings(tokens=5, interval_s=0.5, first_s=1.0)
    said = answer("POST", "/v1/chat/completions", b'{"messages":[{"role":"user"}]}', settings, STAMP)
    assert isinstance(said, Whole)
    assert said.delay_s == 3.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "role", "name", "function", "id"]), inner)
    ),
    max_leaves=8,
)
MEMBERS = [
    *("messages", "input", "prompt", "system", "tools", "tool_choice", "stream", "stream_options", "n", "max_tokens"),
    *("stop", "stop_sequences", "response_format", "text", "dimensions", "encoding_format", "metadata"),
]
SPOKEN = [{"role": "user", "content": "use the tools, \ud83d!"}]


@settings(derandomize=True, database=None, deadline=None)
@given(st.sampled_from(POSTS), st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=4))
def test_whatever_is_asked_is_answered(path: str, members: dict[str, Any]) -> None:
    body = {"messages": SPOKEN, "input": "x", "prompt": "x", "max_tokens": 9, **members}
    said = answer("POST", path, json.dumps(body).encode(), SETTINGS, STAMP)
    if isinstance(said, Streamed):
        assert list(said.pieces)
    else:
        assert said.status in (200, 400)
        assert json.loads(said.body)


# The official clients, speaking to the model itself.


class Weather(BaseModel):
    city: str
    days: int


@pytest.fixture
def openai_client() -> openai.OpenAI:
    http = httpx2.Client(transport=ModelTransport())
    return openai.OpenAI(base_url="http://demo/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture
def anthropic_client() -> anthropic.Anthropic:
    http = httpx2.Client(transport=ModelTransport())
    return anthropic.Anthropic(base_url="http://demo", api_key="none", http_client=http, max_retries=0)


def test_openai_accumulates_a_chat_stream(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="demo", messages=[{"role": "user", "content": "Hello, river"}]
    ) as stream:
        told = stream.get_final_completion()
    assert "“Hello, river”" in (told.choices[0].message.content or "")
    assert told.choices[0].finish_reason == "stop"


def test_openai_parses_a_structured_answer(openai_client: openai.OpenAI) -> None:
    told = openai_client.chat.completions.parse(
        model="demo", messages=[{"role": "user", "content": "4 days in Åre"}], response_format=Weather
    )
    assert told.choices[0].message.parsed == Weather(city="Åre", days=4)


def test_openai_accumulates_streamed_tool_calls(openai_client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="get_weather"), openai.pydantic_function_tool(Weather)]
    with openai_client.chat.completions.stream(
        model="demo", tools=tools, messages=[{"role": "user", "content": "use the tools for Åre and 3 days in Umeå"}]
    ) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [
        Weather(city="Åre", days=3),
        Weather(city="Umeå", days=1),
    ]


def test_openai_accumulates_a_responses_stream(openai_client: openai.OpenAI) -> None:
    with openai_client.responses.stream(model="demo", input="Hello, river") as stream:
        told = stream.get_final_response()
    assert "“Hello, river”" in told.output_text


def test_openai_reads_completions_embeddings_and_models(openai_client: openai.OpenAI) -> None:
    pieces = openai_client.completions.create(model="demo", prompt="Hello, river", stream=True)
    assert "“Hello, river”" in "".join(piece.choices[0].text for piece in pieces)
    vectors = openai_client.embeddings.create(model="demo", input=["one", "two"], dimensions=16).data
    assert [len(one.embedding) for one in vectors] == [16, 16]
    assert [model.id for model in openai_client.models.list()] == ["demo"]


def test_openai_raises_its_own_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.chat.completions.create(model="demo", messages=[])
    assert raised.value.param == "messages"


def test_anthropic_accumulates_a_stream(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="demo", max_tokens=500, messages=[{"role": "user", "content": "Hello, river"}]
    ) as stream:
        assert "“Hello, river”" in stream.get_final_text()


def test_anthropic_accumulates_streamed_tool_uses(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="demo",
        max_tokens=500,
        tools=[{"name": "get_weather", "input_schema": Weather.model_json_schema()}],
        messages=[{"role": "user", "content": "get_weather for Åre, 3 days"}],
    ) as stream:
        (block,) = stream.get_final_message().content
    assert block.type == "tool_use"
    assert block.input == {"city": "Åre", "days": 3}


def test_anthropic_raises_its_own_errors_and_counts_tokens(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError):
        anthropic_client.messages.create(model="demo", max_tokens=5, messages=[])
    counted = anthropic_client.messages.count_tokens(model="demo", messages=[{"role": "user", "content": "four"}])
    assert counted.input_tokens == 5
