"""Several rounds' completions as the one answer of a client that lets the gateway run the tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.event_data import compact, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.toolchain.calls import JsonObject

CUT = "length"
"""How an answer finishes whose model would have called more tools."""


def merged(completions: Sequence[bytes], *, cut: bool) -> bytes:
    """The last of the rounds' answers (`completions`, at least one), with the sum of their usage.

    `cut`: it still calls tools, and nobody will run them: they are left out.
    """
    rounds = [decoded(completion) or {} for completion in completions]
    last = rounds[-1]
    usage = summed(usage for each in rounds if isinstance(usage := each.get("usage"), dict))
    if usage:
        last["usage"] = usage
    choices = last.get("choices")
    for choice in choices if cut and isinstance(choices, list) else []:
        choice["finish_reason"] = CUT
        choice["message"].pop("tool_calls", None)
    return compact(last)


def summed(usages: Iterable[JsonObject]) -> JsonObject:
    """Token counts added up, those in nested details too."""
    total: JsonObject = {}
    for usage in usages:
        for name, value in usage.items():
            before = total.get(name)
            if isinstance(value, dict):
                total[name] = summed([before if isinstance(before, dict) else {}, value])
            elif isinstance(value, int | float) and isinstance(before, int | float):
                total[name] = before + value
            elif value is not None or name not in total:
                total[name] = value
    return total
