"""The library is loaded when it is needed, and then says nothing of what goes through it."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest

from proxy.toolchain.catalogue import Place
from proxy.toolchain.library import LibraryMissing, find_library
from proxy.toolchain.servers import ToolServers
from tests.support.tool_servers import official, quick


def test_its_folder_is_found_or_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_library().endswith("mcp")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LibraryMissing, match=r'pip install "penstock\[mcp\]"'):
        find_library()


def test_the_room_is_entered_without_the_library() -> None:
    """In a process of its own: here it may be loaded already."""
    rooms = "proxy.toolchain.servers, proxy.toolchain.run, proxy.toolchain.collected"
    code = f"import sys, {rooms}; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_arguments_and_results_are_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    both = ToolServers({"a": official(), "b": quick("garbage")})
    await both.offer(["a", "b"])
    for place in (Place("a", "echo"), Place("b", "echo")):
        await both.call(place, {"text": "canary-in-a-call"})
    await both.call(Place("a", "fail"), {"why": "canary-in-a-call"})
    await both.call(Place("a", "add"), {"a": "canary-in-a-call", "b": 1})
    await both.close()
    # What a server itself writes to its standard error is its own.
    ours = [record.getMessage() for record in caplog.records if not record.getMessage().startswith('tool server "a"')]
    assert not [line for line in ours if "canary-in-a-call" in line]
