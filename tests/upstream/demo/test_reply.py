import json

from proxy.upstream.demo.conversation import Conversation, Tool, ToolResult
from proxy.upstream.demo.reply import composed
from proxy.upstream.demo.settings import DemoSettings

PROMPT = "Why do rivers meander?"


def test_the_length_set_is_the_number_of_tokens() -> None:
    reply = composed(Conversation(PROMPT), DemoSettings(tokens=37))
    assert (len(reply.tokens), reply.output_tokens, reply.cut) == (37, 37, False)


def test_max_tokens_cuts_and_says_so() -> None:
    free = composed(Conversation(PROMPT), DemoSettings())
    cut = composed(Conversation(PROMPT, max_tokens=5), DemoSettings())
    assert (cut.tokens, cut.cut) == (free.tokens[:5], True)


def test_max_tokens_that_are_enough_cut_nothing() -> None:
    reply = composed(Conversation(PROMPT, max_tokens=9), DemoSettings(tokens=9))
    assert (len(reply.tokens), reply.cut) == (9, False)


def test_a_stop_sequence_ends_the_text_before_it() -> None:
    free = composed(Conversation(PROMPT), DemoSettings()).text
    stopped = composed(Conversation(PROMPT, stops=("nowhere", "meander", "rivers")), DemoSettings()).text
    assert stopped == free[: free.index("rivers")]


def test_another_choice_is_worded_otherwise() -> None:
    first, second = (composed(Conversation(PROMPT), DemoSettings(), index) for index in (0, 1))
    assert first.text != second.text


def test_a_shape_asked_for_is_kept() -> None:
    schema = {"properties": {"river": {"type": "string"}, "km": {"type": "integer"}}, "required": ["river", "km"]}
    reply = composed(Conversation("how long is the Ångerman, 460 km?", json_schema=schema), DemoSettings(tokens=500))
    assert json.loads(reply.text) == {"river": "Ångerman", "km": 460}


def test_calls_have_no_text_and_count_their_fragments() -> None:
    reply = composed(Conversation("use the clock", tools=(Tool("clock", {}),)), DemoSettings(tokens=50))
    assert (reply.text, [call.name for call in reply.calls], reply.output_tokens) == ("", ["clock"], 2)


def test_what_the_tools_said_is_in_the_answer() -> None:
    results = (ToolResult("clock", "half past\nnine"), ToolResult("search", ""), ToolResult("log", "x" * 5000))
    text = composed(Conversation(PROMPT, results=results), DemoSettings()).text
    assert "`clock` answered: half past nine" in text
    assert "`search` answered: nothing" in text
    assert "xxx…" in text
    assert len(text) < 2000
