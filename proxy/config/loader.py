"""Reads the configuration file: text to data, variables, settings, and every complaint on the way.

Each step is a room of its own (`document`, `variables`, `model`, `consistency`); here they stand in a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proxy.config.complaints import Complaint, ConfigError, Finding, Place, complain
from proxy.config.consistency import problems
from proxy.config.document import Document, Unreadable, parse_document
from proxy.config.model import Config
from proxy.config.variables import expand
from proxy.config.wording import findings as in_words

__all__ = ["Complaint", "ConfigError", "load", "shipped"]

MAX_FILE_BYTES = 4 << 20


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration in the file, with variables from `environ`. Raises ConfigError with all complaints."""
    file = str(path)
    try:
        document = _read(path)
    except Unreadable as exc:
        raise ConfigError([Complaint(file, exc.line, "", exc.message)]) from None
    data, unset = expand(document.data, environ)
    found = [*document.findings, *unset]
    config = _validate(data, path.parent, found, [finding.at for finding in found if finding.line is None])
    if found or config is None:
        raise ConfigError(complain(file, found, document.lines))
    return config


def shipped() -> Path:
    """The configuration that comes with the program and runs as it is."""
    return Path(__file__).parent.with_name("routes.yaml")


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise Unreadable("is a directory; name the file in it") from None
    except OSError as exc:
        raise Unreadable(f"cannot be read: {exc.strerror}") from None
    except ValueError:  # a path with a null character
        raise Unreadable("cannot be read: this is no path") from None
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable("is too large")
    try:
        document = parse_document(content.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise Unreadable("is not UTF-8 text", content.count(b"\n", 0, exc.start) + 1) from None
    if document.data is None:
        raise Unreadable("is empty; `routes:` with `echo: demo://` under it would do")
    if not isinstance(document.data, dict):
        raise Unreadable("must be a mapping with keys such as routes and server", 1)
    return document


def _validate(data: dict[str, Any], folder: Path, found: list[Finding], told: list[Place]) -> Config | None:
    """The settings, and into `found` what is wrong with them beyond the places already told.

    What pydantic refuses is taken out and the rest looked at again, so that one bad value does not hide what the
    settings say about each other. A finding that only comes from taking something out is not told.
    """
    taken_out: set[Place] = set()
    while True:
        try:
            config = Config.model_validate(data, context={"folder": folder})
            break
        except ValidationError as exc:
            new = in_words(exc, Config)
        found += [finding for finding in new if not any(_related(finding.at, place) for place in told)]
        told = told + [finding.at for finding in new]
        if not (members := _take_out(data, [finding.at for finding in new])):
            return None
        taken_out |= members
    for problem in problems(config):
        is_spoilt = any(problem.rests_on[: len(member)] == member for member in taken_out)
        if not is_spoilt and not any(_related(place, problem.at) for place in told):
            found.append(Finding(problem.at, problem.message))
    return config


def _take_out(data: dict[str, Any], places: list[Place]) -> set[Place]:
    """Takes away the innermost mapping members around the places, and says which. Lists go whole, so that the places
    of their items stay true; a route stays as an empty one, because others may name it."""
    members = {member for place in places if (member := _innermost(data, place))}
    for member in sorted(members, key=len, reverse=True):
        here: Any = data
        for step in member[:-1]:
            here = here[step]
        is_route = len(member) == 2 and member[0] == "routes"
        if is_route and here[member[-1]] not in (None, {}):
            here[member[-1]] = {}
        else:
            del here[member[-1]]
    return members


def _innermost(data: dict[str, Any], place: Place) -> Place:
    here: Any = data
    for depth, step in enumerate(place):
        if not isinstance(here, dict) or step not in here:
            return place[:depth]
        here = here[step]
    return place


def _related(place: Place, other: Place) -> bool:
    """Whether one is the other or around it."""
    shorter = min(len(place), len(other))
    return place[:shorter] == other[:shorter]
