"""What the built-in model answers, before any protocol words it: the tokens of a text, or tool calls; how it
ends and what it counts as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.upstream.demo.answer import encoded
from proxy.upstream.demo.arguments import Material, arguments_for
from proxy.upstream.demo.calls import ToolCall, calls_for
from proxy.upstream.demo.prose import shortened, tokens_of, written

if TYPE_CHECKING:
    from proxy.upstream.demo.conversation import Conversation, ToolResult
    from proxy.upstream.demo.settings import DemoSettings

RESULT_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Reply:
    """Either `tokens` (joined: the text) or `calls`. `cut`: the request's `max_tokens` ended it early."""

    tokens: tuple[str, ...]
    calls: tuple[ToolCall, ...] = ()
    cut: bool = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens as the streams carry them: text pieces, or for each call its name and its argument fragments."""
        return len(self.tokens) + sum(1 + len(call.fragments) for call in self.calls)


def composed(conversation: Conversation, settings: DemoSettings, index: int = 0) -> Reply:
    """The answer to a conversation; another `index` gives another wording, for a request that wants several choices."""
    calls = calls_for(conversation)
    if calls:
        return Reply((), calls)
    tokens = _text(conversation, settings, index)
    most = conversation.max_tokens
    if most is not None and len(tokens) > most:
        return Reply(tuple(tokens[:most]), cut=True)
    return Reply(tuple(tokens))


def _text(conversation: Conversation, settings: DemoSettings, index: int) -> list[str]:
    if conversation.json_schema is not None:
        values = arguments_for(conversation.json_schema, Material(conversation.prompt))
        return tokens_of(encoded(values).decode())
    seed = f"{index}:{conversation.prompt}"
    tokens = written(conversation.prompt, seed, settings.tokens, _reported(conversation.results))
    return _stopped(tokens, conversation.stops)


def _reported(results: tuple[ToolResult, ...]) -> str:
    """What the tools said, in prose, ready to be gone on from."""
    said = [
        f"`{result.name}` answered: {shortened(' '.join(result.text.split()), RESULT_CHARACTERS) or 'nothing'}"
        for result in results
    ]
    return "\n".join(["I asked, and here is what came back.\n", *said, "\n"]) if said else ""


def _stopped(tokens: list[str], stops: tuple[str, ...]) -> list[str]:
    """The tokens up to the first of the stop sequences."""
    text = "".join(tokens)
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return tokens_of(text[: min(ends)]) if ends else tokens
