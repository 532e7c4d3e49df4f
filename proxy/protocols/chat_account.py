"""Chat completions and completions that broke off: how the rest is asked for, and what of it goes on.

By prefill (vLLM, SGLang) the text so far is the last assistant message, or stands behind the prompt. Neither is done
where the rest would not fit: a grammar begins anew, a thought has no place in a message. Tool calls, and answers of
several choices, are not continued at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.protocols.account import Account, Prefill, around_text, half_stop, with_members
from proxy.protocols.event_data import compact, decoded
from proxy.protocols.openai import several_choices
from proxy.protocols.splice import DIFFERENT, Differs, Spent, Splice, reworded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.request import RequestBody
    from proxy.wire.sse import Event

CHAT_TEXTS: Final = ("content", "reasoning_content", "reasoning")
COMPLETION_TEXTS: Final = ("text",)
NAMES: Final = ("id", "created", "model")
"""By these a client knows the chunks of one answer."""
_LIMITS: Final = (("max_tokens", 1), ("max_completion_tokens", 1), ("min_tokens", 0))
# What makes an answer follow a grammar, under the names servers have for it: that would begin anew behind a prefill.
_GRAMMARS: Final = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "regex",
    "ebnf",
)

Json = dict[str, object]


class ChatAccount(Account):
    """The account of one choice's chunks."""

    __slots__ = ("_names",)

    def __init__(self, body: RequestBody) -> None:
        super().__init__(body)
        self._names: Json | None = None

    def _look(self, event: Event) -> None:
        chunk = decoded(event.data)
        if chunk is None:
            return
        if chunk.get("error") or event.type == b"error":
            self.failure = event
            return
        if self._names is None:
            self._names = {name: chunk[name] for name in NAMES if name in chunk}
        said = [one for choice in choices_of(chunk) for one in self._choice(choice)]
        if len(said) == 1:
            self._learn(event.data, said[0])

    def _choice(self, choice: Json) -> Iterator[str]:
        """Its texts. What it says in another way, or to an end, cannot be continued."""
        for name, value in spoken(choice):
            if name in CHAT_TEXTS + COMPLETION_TEXTS and isinstance(value, str):
                self._said(name, value)
                yield value
            else:
                self._give_up()
        if choice.get("index") or choice.get("finish_reason"):
            self._give_up()

    def _prefill(self) -> Prefill | None:
        [channel, *others] = self._channels or ["none"]
        if others or channel not in ("content", "text") or self._follows_a_grammar():
            return None
        text = self.text(channel)
        behind = half_stop(text, self.body.value("stop"))
        if channel == "text" and (not isinstance(self.body.value("prompt"), str) or self._echoes()):
            return None
        return Prefill(text.removesuffix(behind), behind) if text != behind else None

    def _follows_a_grammar(self) -> bool:
        form, choice = self.body.value("response_format"), self.body.value("tool_choice")
        shaped = isinstance(form, dict) and form.get("type") != "text"
        forced = isinstance(choice, dict) or choice == "required"
        return shaped or forced or any(self.body.value(name) for name in _GRAMMARS)

    def _echoes(self) -> bool:
        return bool(self.body.value("echo") or self.body.value("suffix"))

    def _prefilled(self, prefill: Prefill) -> RequestBody:
        changes = self._less_used(*_LIMITS)
        prompt = self.body.value("prompt")
        if isinstance(prompt, str):
            return with_members(self.body, {**changes, "prompt": prompt + prefill.text})
        messages = _continued(self.body.value("messages"), prefill.text, self.body.value("continue_final_message"))
        going_on = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
        return with_members(self.body, {**changes, **going_on})

    def _splice(self, told: dict[str, str], spent: Spent, *, is_prefill: bool = False, lenient: bool = False) -> Splice:
        return ChatSplice(told, spent, self._names or {}, is_prefill=is_prefill, lenient=lenient)


class ChatSplice(Splice):
    """Chunks under the first answer's names."""

    __slots__ = ("_names",)

    def __init__(
        self,
        told: Mapping[str, str],
        spent: Spent,
        names: Mapping[str, object],
        *,
        is_prefill: bool = False,
        lenient: bool = False,
    ) -> None:
        super().__init__(told, spent, is_prefill=is_prefill, lenient=lenient)
        self._names = names

    def _take(self, event: Event, found: Json) -> list[Event]:
        choices = choices_of(found)
        new = [self._choice(choice) for choice in choices]
        usage = found.get("usage")
        if not any(new) and (choices or not usage):
            return []  # a role, or what the client has
        self._require_all()
        self._add_spent(usage, ("prompt_tokens", "total_tokens"), ("completion_tokens", "total_tokens"))
        found.update(self._names)
        data = compact(found)
        self._learn_from(event.data, data, choices)
        return [reworded(data, event.type)]

    def _choice(self, choice: Json) -> bool:
        """Take out of it what the client has. Whether there is more in it."""
        if choice.get("index"):
            raise Differs(DIFFERENT)
        delta = choice.get("delta")
        holder = delta if isinstance(delta, dict) else choice
        more = bool(choice.get("finish_reason"))
        for name, value in [*spoken(choice)]:
            new = value
            if name in CHAT_TEXTS + COMPLETION_TEXTS and isinstance(value, str):
                new = holder[name] = self._new_text(name, value)
                if new != value and choice.get("logprobs"):
                    choice["logprobs"] = None  # of tokens that the client has
            more = more or bool(new)
        if isinstance(delta, dict):
            delta.pop("role", None)
        return more

    def _learn_from(self, before: bytes, after: bytes, choices: list[Json]) -> None:
        said = [value for choice in choices for _, value in spoken(choice)]
        if len(said) == 1 and isinstance(said[0], str):
            self._learn(around_text(before, said[0]), around_text(after, said[0]))


def choices_of(chunk: Mapping[str, object]) -> list[Json]:
    listed = chunk.get("choices")
    return [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []


def spoken(choice: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """What a choice's chunk says, under its names: texts, and whatever else a delta has but its role."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        yield from ((name, value) for name, value in delta.items() if value and name != "role")
    elif choice.get("text"):
        yield "text", choice["text"]


def _continued(messages: object, text: str, is_continuation: object) -> list[object]:
    """The messages with the text so far at their end; where the client itself had the model go on from its last
    message, in that."""
    said: list[object] = [*messages] if isinstance(messages, list) else []
    last = said[-1] if said else None
    if is_continuation and isinstance(last, dict) and isinstance(last.get("content"), str):
        return [*said[:-1], {**last, "content": last["content"] + text}]
    return [*said, {"role": "assistant", "content": text}]


def chat_account(body: RequestBody) -> Account | None:
    """The account of a stream that can be continued; of several choices, none."""
    return None if several_choices(body) else ChatAccount(body)
