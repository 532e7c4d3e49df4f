"""Runs one prompt through /stream/v1/toolchain and shows its stages as they come: watch.py PROMPT [URL]."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

PROMPT = 'Use time_in for "Europe/Berlin", please.'
GATEWAY = "http://127.0.0.1:8080"


def events(prompt: str, gateway: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stage's events, as kind and data."""
    body = {
        "stage_id": "example",
        "model_container": "calendar",
        "user_prompt": prompt,
        "synthesis": True,
    }
    request = urllib.request.Request(
        f"{gateway}/stream/v1/toolchain", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    kind = ""
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


def show(kind: str, data: dict[str, Any]) -> None:
    """One event: text as it flows, everything else as a line of its own."""
    match kind:
        case "chat_completion_chunk" | "tool_completion_chunk":
            chunk = data.get("chunk") or data["tool_results"]
            for choice in chunk["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
        case "tool_summary":
            summary = data["tool_summary"]
            print(f"\n--- round {summary['round']}")
            for call in summary["calls"]:
                outcome = "failed: " if call["is_error"] else ""
                arguments = json.dumps(call["arguments"], ensure_ascii=False)
                print(f"    {call['name']}({arguments}) = {outcome}{call['result']}  [{call['duration_ms']} ms]")
            print("---")
        case _:
            print(f"\n--- {kind} {data.get('error', '')}")


def main(prompt: str = PROMPT, gateway: str = GATEWAY) -> None:
    try:
        for kind, data in events(prompt, gateway):
            show(kind, data)
    except urllib.error.HTTPError as refusal:
        sys.exit(f"{refusal.code}: {json.load(refusal)['detail']}")
    except urllib.error.URLError as error:
        sys.exit(f"{gateway}: {error.reason}; is the gateway running?")


if __name__ == "__main__":
    main(*sys.argv[1:])
