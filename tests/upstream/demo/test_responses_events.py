import json
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import strangers, streamed, timed, whole

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "river-7b", "input": "Why do rivers meander?"}
CALLING: dict[str, Any] = {
    "input": "use the tools",
    "tools": [{"type": "function", "name": "clock"}, {"type": "function", "name": "tide_table"}],
}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def events(body: dict[str, Any], settings: DemoSettings | None = None) -> list[Any]:
    """The events as the official types, strictly; their types as they are in the data."""
    found = []
    for data in streamed(PATH, body, settings or DemoSettings()):
        found.append(EVENT.validate_json(data, strict=True))
        assert found[-1].type == json.loads(data)["type"]
        assert not strangers(found[-1])
    return found


def test_a_text_is_told_by_the_whole_official_sequence() -> None:
    assert [event.type.removeprefix("response.") for event in events(ASKED, DemoSettings(tokens=3))] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_events_are_numbered_without_holes() -> None:
    assert [event.sequence_number for event in events(ASKED)] == list(range(len(events(ASKED))))


def test_deltas_joined_are_the_text_that_is_told_done() -> None:
    found = events(ASKED)
    text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    (done,) = (event.text for event in found if event.type == "response.output_text.done")
    (part,) = (event.part.text for event in found if event.type == "response.content_part.done")
    assert text == done == part == found[-1].response.output_text


def test_the_last_event_holds_the_response_as_it_would_come_whole() -> None:
    assert json.loads(streamed(PATH, ASKED)[-1])["response"] == whole(PATH, ASKED)


def test_a_limit_ends_with_incomplete() -> None:
    last = events({**ASKED, "max_output_tokens": 2})[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")


def test_calls_are_told_one_after_another_by_fragments() -> None:
    found = events(CALLING)
    assert [event.type.removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        *["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"] * 2,
        "completed",
    ]
    assert [item.name for item in found[-1].response.output] == ["clock", "tide_table"]


def test_every_event_of_an_item_carries_its_id_and_place() -> None:
    found = [event for event in events(CALLING) if event.type.startswith("response.function_call_arguments")]
    items = [event.item for event in events(CALLING) if event.type == "response.output_item.added"]
    assert [(event.item_id, event.output_index) for event in found[::2]] == [
        (item.id, n) for n, item in enumerate(items)
    ]
    assert len({item.call_id for item in items}) == 2


def test_deltas_come_at_their_pace() -> None:
    told = timed(PATH, ASKED, DemoSettings(tokens=3, interval_s=0.5, first_s=2.0))
    assert [delay_s for delay_s, _ in told if delay_s] == [2.0, 0.5, 0.5]
