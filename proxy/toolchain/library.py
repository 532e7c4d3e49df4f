"""The `mcp` library: whether it is there, and how it is loaded.

It is an extra, and takes half a second: nothing is loaded before a route has tools.
"""

from __future__ import annotations

import importlib.util
import logging
from os.path import dirname

_LIBRARY = "mcp"
_TALKATIVE = ("mcp", "client", "httpx", "httpcore")
"""Loggers of the library and of what it stands on: they would show addresses, headers, arguments and results."""


class LibraryMissing(Exception):
    """Routes name tools, and what runs them is not installed."""

    def __init__(self) -> None:
        super().__init__('a route has tools, and what runs them is not installed: pip install "penstock[mcp]"')


def load_library() -> None:
    """To be called where nobody waits for it. Raises `LibraryMissing`."""
    folder = find_library()
    importlib.import_module("proxy.toolchain.server")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    root = logging.getLogger()
    if not any(isinstance(each, _Silence) for each in root.filters):
        root.addFilter(_Silence(folder))


def find_library() -> str:
    """Its folder; nothing is loaded. Raises `LibraryMissing`."""
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise LibraryMissing
    return dirname(found.origin)


class _Silence(logging.Filter):
    """The library also speaks to the root logger itself, and quotes messages there."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(self._folder)
