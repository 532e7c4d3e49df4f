"""What is wrong with a file and where: findings while it is read, complaints for the operator.

No message repeats a value, whether of the file or of a variable: it may be a secret. Names of routes, tools and keys do
appear.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

Place = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_/:-]+", re.ASCII)


class Finding(NamedTuple):
    """Something wrong at a place of the file. `shown` is the place to print, where that is another one; `line` is
    given only where the place has none of its own."""

    at: Place
    message: str
    shown: Place | None = None
    line: int | None = None


class Complaint(Struct, frozen=True):
    """One thing the operator has to put right. Prints as `routes.yaml:14: routes.chat.replicas[1].url: ...`."""

    file: str
    line: int | None
    place: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.place}: {self.message}" if self.place else f"{where}: {self.message}"


class ConfigError(Exception):
    """The file cannot be used. `complaints` are all of them, in the file's order; str has one a line."""

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = tuple(complaints)


def spell(place: Place) -> str:
    """`routes.chat.replicas[1].url`; a key with other characters in it is quoted: `routes["gpt-4.1"].model`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step[:80], ensure_ascii=not step.isprintable())}]"
    return text


def complain(file: str, findings: Sequence[Finding], lines: Mapping[Place, int]) -> tuple[Complaint, ...]:
    """Findings as complaints, in the order of their lines, each once.

    A place that the file does not have (something missing, a member that a short form stands for) is told as the
    nearest one around it that it has.
    """
    complaints = {
        Complaint(
            file,
            finding.line if finding.line is not None else lines.get(_known(finding.at, lines)),
            spell(_known(finding.at if finding.shown is None else finding.shown, lines)),
            finding.message,
        ): None
        for finding in findings
    }
    return tuple(sorted(complaints, key=lambda complaint: complaint.line or 0))


def _known(place: Place, lines: Mapping[Place, int]) -> Place:
    while place and place not in lines:
        place = place[:-1]
    return place
