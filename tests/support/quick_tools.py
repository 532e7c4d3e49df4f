"""An MCP server without the library, so that it starts in a few hundredths of a second: one that can also misbehave.

`python quick_tools.py WORD…` speaks stdio; words, in any order:

    once=FILE      die at a call if FILE is not there yet, and make it
    deaf           never answer
    silent-calls   answer everything but calls
    garbage        print a line that is no message before each answer
    dies=CODE      say a line on standard error and end at once
    stubborn       ignore the end of the input and SIGTERM
    notes=FILE     append a line to FILE for each start, call, cancellation and end
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

WORDS = dict(word.partition("=")[::2] for word in sys.argv[1:])
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
NAMES = ["echo", "fail", "hold", "refuse", "big"]
HELD: list[Any] = []


def note(text: str) -> None:
    if path := WORDS.get("notes"):
        with Path(path).open("a", encoding="utf-8") as notes:
            notes.write(f"{text}\n")


def send(message: dict[str, Any]) -> None:
    if "garbage" in WORDS:
        print("Loading the tools ... {done}")
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def answer(id: Any, result: dict[str, Any]) -> None:
    send({"id": id, "result": result})


def initialize(id: Any, params: dict[str, Any]) -> None:
    version = params["protocolVersion"]
    capabilities = {"tools": {"listChanged": True}}
    info = {"name": "quick", "version": "1"}
    answer(id, {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info})


def list_tools(id: Any, params: dict[str, Any]) -> None:
    """One tool a page, to have pages."""
    at = int(params.get("cursor") or 0)
    page: dict[str, Any] = {"tools": [{"name": NAMES[at], "inputSchema": SCHEMA}]}
    if at + 1 < len(NAMES):
        page["nextCursor"] = str(at + 1)
    answer(id, page)


def call(id: Any, params: dict[str, Any]) -> None:
    name, arguments = params["name"], params.get("arguments") or {}
    text = arguments.get("text", "")
    note(f"{name} {text}".strip())
    if (mark := WORDS.get("once")) and not Path(mark).exists():
        Path(mark).touch()
        os._exit(9)
    match name:
        case _ if "silent-calls" in WORDS:
            return
        case "hold":
            HELD.append(id)
        case "refuse":
            send({"id": id, "error": {"code": -32602, "message": f"refused: {text}"}})
        case "big":
            answer(id, {"content": [{"type": "text", "text": "x" * int(text)}]})
        case "learn":
            NAMES.append(text)
            send({"method": "notifications/tools/list_changed"})
            answer(id, {"content": []})
        case _:
            answer(id, {"content": [{"type": "text", "text": text}], "isError": name == "fail"})


def cancelled(id: Any, params: dict[str, Any]) -> None:
    note("cancelled" if params["requestId"] in HELD else "cancelled something else")


HANDLERS = {
    "initialize": initialize,
    "tools/list": list_tools,
    "tools/call": call,
    "notifications/cancelled": cancelled,
}


def main() -> None:
    note("start")
    if code := WORDS.get("dies"):
        print(f"cannot go on, my key is {os.environ.get('KEY', 'none')}", file=sys.stderr)
        sys.exit(int(code))
    if "stubborn" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        if "deaf" not in WORDS and (handle := HANDLERS.get(message["method"])):
            handle(message.get("id"), message.get("params") or {})
    note("end")
    while "stubborn" in WORDS:
        time.sleep(1)


if __name__ == "__main__":
    main()
