"""The rounds of a toolchain: which request comes next, which calls are to be run, and when it is over.

    Ask ──► answered ──► Run ──► returned ──► Ask …      as long as the model calls tools, `max_rounds` at the most
                 └─────────────────┴────────► Ask(synthesis=True), where one is wanted
                                   └────────► Over

Nothing here is sent or run: the owner does what a step says, and tells what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.toolchain.calls import Call, JsonObject, Said
    from proxy.toolchain.results import CallResult

_ABOUT_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")


class Ask(Struct, frozen=True):
    """Send this request; then `answered`, or `synthesised`."""

    body: JsonObject
    synthesis: bool = False


class Run(Struct, frozen=True):
    """Run these calls at once; then `returned`."""

    calls: tuple[Call, ...]


class Over(Struct, frozen=True):
    """Nothing more. `cut`: the model would have gone on, `max_rounds` ended it."""

    cut: bool = False


Step = Ask | Run | Over


class Rounds:
    """One request's rounds. `number` counts them from 1; `calls` counts what was to be run in all.

    `base` is the request without its tools; `synthesis` has the members that the synthesis pass changes in it (None:
    there is none).
    """

    __slots__ = ("_base", "_functions", "_max_rounds", "_messages", "_said", "_synthesis", "calls", "number")

    def __init__(
        self,
        base: Mapping[str, object],
        functions: Sequence[JsonObject],
        *,
        max_rounds: int,
        synthesis: Mapping[str, object] | None = None,
    ) -> None:
        self._base = dict(base)
        self._functions = functions
        self._max_rounds = max_rounds
        self._synthesis = synthesis
        messages = base.get("messages")
        self._messages: list[object] = list(messages) if isinstance(messages, list) else []
        self._said: Said | None = None
        self.number = 1
        self.calls = 0

    def first(self) -> Ask:
        return Ask(self._body(self._base))

    def answered(self, said: Said) -> Step:
        """The model has answered the last `Ask`."""
        if not said.calls:
            return self._closing(cut=False)
        self._said = said
        self.calls += len(said.calls)
        return Run(said.calls)

    def returned(self, results: Sequence[CallResult]) -> Step:
        """The calls of the last `Run` have come back, in any order."""
        assert self._said is not None
        self._messages = [*self._messages, self._said.message, *(result.message for result in results)]
        if self.number == self._max_rounds:
            return self._closing(cut=True)
        self.number += 1
        # A choice that forces a call is the client's for its first answer; kept up, the model could never speak.
        again = {name: value for name, value in self._base.items() if name != "tool_choice"}
        return Ask(self._body(again))

    def synthesised(self) -> Over:
        """The synthesis pass is done."""
        return Over()

    def _body(self, base: Mapping[str, object]) -> JsonObject:
        body = {**base, "messages": self._messages}
        return {**body, "tools": self._functions} if self._functions else body

    def _closing(self, *, cut: bool) -> Step:
        """The synthesis starts from what the tools said, not from the model's own last words: many servers will not go
        on after an assistant's message."""
        if self._synthesis is None:
            return Over(cut)
        base = {name: value for name, value in self._base.items() if name not in _ABOUT_TOOLS}
        return Ask({**base, **self._synthesis, "messages": self._messages}, synthesis=True)
