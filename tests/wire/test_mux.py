"""What a client may say: read as it is meant, or refused with words that help and repeat nothing."""

from __future__ import annotations

import json

import pytest

from proxy.wire.mux import (
    DEFAULT_WINDOW,
    LONGEST_REWRITTEN,
    MOST_RESUMED,
    Ack,
    Auth,
    BadMessage,
    Cancel,
    Init,
    Message,
    Ping,
    Pong,
    Resume,
    Resuming,
    Start,
    parse_message,
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"type":"init","v":1}', Init()),
        ('{"v":1,"type":"init"}', Init()),
        (
            '{"type":"init","v":1,"auth":{"bearer":"sk-1"},"features":["ack","colour"],'
            '"resume":[{"rid":"r1","stream":"s_1","after":41}]}',
            Init(auth=Auth("sk-1"), features=("ack", "colour"), resume=(Resuming("r1", "s_1", 41),)),
        ),
        ('{"type":"cancel","rid":"r1"}', Cancel("r1")),
        ('{"type":"resume","rid":"a.B_-9","stream":"s_1"}', Resume("a.B_-9", "s_1", 0)),
        ('{"type":"ack","rid":"r1","seq":57}', Ack("r1", 57)),
        ('{"type":"ping","t":1.5}', Ping(1.5)),
        ('{"type":"ping","t":"now"}', Ping("now")),
        ('{"type":"ping"}', Ping()),
        ('{"type":"pong","t":1}', Pong()),
        (' {"type":"cancel","rid":"r1","colour":["red"]}\n', Cancel("r1")),
        ('{"rid":"r1","type":"cancel","rid":"r2"}', Cancel("r2")),
    ],
)
def test_a_message_is_read(text: str, meant: Message) -> None:
    assert parse_message(text) == meant


BODY = '{"model" : "chat", "temperature": 1.0, "messages":[{"content":"ü \\u2028 \\ud83d\\ude00"}]}'


def test_a_body_stays_as_it_was_written() -> None:
    message = parse_message(f'{{"type":"start","rid":"r1","path":"/v1/chat/completions","body":{BODY},"window":7}}')
    assert isinstance(message, Start)
    assert bytes(message.body) == BODY.encode()
    assert (message.rid, message.path, message.resumable, message.window) == ("r1", "/v1/chat/completions", False, 7)


def test_the_window_has_a_default() -> None:
    message = parse_message('{"type":"start","rid":"r1","path":"/v1/x","body":{},"resumable":true}')
    assert isinstance(message, Start)
    assert (message.window, message.resumable) == (DEFAULT_WINDOW, True)


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00"])
def test_a_prompt_cut_within_a_character_is_still_a_prompt(half: str) -> None:
    message = parse_message(f'{{"type":"start","rid":"r1","path":"/v1/x","body":{{"model":"m","prompt":"x{half}"}}}}')
    assert isinstance(message, Start)
    assert json.loads(bytes(message.body)) == {"model": "m", "prompt": "x" + json.loads(f'"{half}"')}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type":"secret"}', "a `type`: init, start"),
        ('{"rid":"r1"}', "`type`"),
        ('{"type":5}', "`type`"),
        ('{"type":"cancel"}', "`rid`"),
        ('{"type":"cancel","rid":7}', "rid: Expected `str`"),
        ('{"type":"cancel","rid":""}', "rid"),
        ('{"type":"cancel","rid":"secret rid"}', "rid"),
        ('{"type":"cancel","rid":"r1\\n"}', "rid"),
        ('{"type":"cancel","rid":"' + "r" * 65 + '"}', "rid"),
        ('{"type":"start","rid":"r1","path":"/v1/x"}', "`body`"),
        ('{"type":"start","rid":"r1","body":{}}', "`path`"),
        ('{"type":"start","rid":"r1","path":"/v1/x","body":{},"window":0}', "window"),
        ('{"type":"start","rid":"r1","path":"/v1/x","body":{},"resumable":1}', "resumable"),
        ('{"type":"start","rid":"r1","path":"/v1/x","body":{"secret":"\\ud83d"},"window":0}', "window"),
        ('{"type":"resume","rid":"r1","stream":"s","after":-1}', "after"),
        ('{"type":"ack","rid":"r1","seq":1.5}', "seq"),
        ('{"type":"init","v":2}', "v"),
        ('{"type":"init","auth":"secret"}', "auth"),
        ('{"type":"init","resume":[{"rid":"r1"}]}', "resume[0]"),
        ('{"type":"ping","t":{}}', "t: Expected"),
        ('{"type":"ping","t":"' + "secret" * 100 + '"}', "t: Expected"),
        ("", "one JSON object"),
        ("secret", "one JSON object"),
        ('{"type":"ping"}{}', "one JSON object"),
        ('{"type":"ping","secret":NaN}', "one JSON object"),
        ('[{"type":"ping"}]', "object"),
        ('{"type":"start","rid":"r","path":"","body":' + "[" * 100_000 + "]" * 100_000 + "}", "deeply"),
        ('{"type":"start","rid":"r","path":"","body":{"secret":"\\ud83d"}', "one JSON object"),
        ('{"type":"start","rid":"r","path":"","body":{"secret":"\\ud83d","x":NaN}}', "one JSON object"),
    ],
)
def test_any_other_is_refused_and_not_repeated(text: str, words: str) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_message(text)
    assert words in refused.value.message
    assert "secret" not in refused.value.message
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("text", "rid"),
    [
        ('{"type":"start","rid":"r1"}', "r1"),
        ('{"type":"nothing","rid":"r2"}', "r2"),
        ('{"type":"start","rid":"not one"}', None),
        ('{"type":"start"}', None),
        ('{"rid":"r1"', None),
    ],
)
def test_a_refusal_knows_what_it_is_about_where_that_can_be_told(text: str, rid: str | None) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_message(text)
    assert refused.value.rid == rid


def test_a_credential_does_not_print() -> None:
    assert "sk-1" not in repr(parse_message('{"type":"init","auth":{"bearer":"sk-1"}}'))


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00"])
def test_what_would_take_long_to_read_is_refused(half: str) -> None:
    body = f'{{"model":"m","prompt":"{half}{"x" * LONGEST_REWRITTEN}"}}'
    with pytest.raises(BadMessage) as refused:
        parse_message(f'{{"type":"start","rid":"r1","path":"/v1/x","body":{body}}}')
    assert "half a surrogate pair" in refused.value.message


@pytest.mark.parametrize(
    "init",
    [
        {"resume": [{"rid": "r1", "stream": "s_x"}] * (MOST_RESUMED + 1)},
        {"features": ["ack"] * 33},
    ],
)
def test_an_init_is_no_longer_than_anybody_needs(init: dict[str, object]) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_message(json.dumps({"type": "init", **init}))
    assert next(iter(init)) in refused.value.message
