"""Where the rig keeps things: its sources in the checkout, all else in a folder that git does not look at."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SOURCES = CHECKOUT / "scripts" / "rig"
CACHE = CHECKOUT / ".cache" / "bench"
PAGE = CHECKOUT / "docs" / "performance.md"
PLOT = CHECKOUT / "docs" / "performance.svg"


def kept(*names: str) -> Path:
    """A folder below the cache, made if it is not there."""
    folder = CACHE.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(folder: str) -> Path:
    """A peer's virtual environment, whether it is there or not."""
    return CACHE / "environments" / folder


def log_of(program: str) -> Path:
    """What a program said when it last ran."""
    return kept("logs") / f"{program}.log"
