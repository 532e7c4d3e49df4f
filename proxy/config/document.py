"""The file's text as plain data, with the line of every value. Knows YAML, and nothing about the settings.

Values are read as YAML 1.2 reads them: `off`, `yes`, `12:30` and dates are text. Anchors and merge keys work, within
bounds, so that a small file cannot stand for a huge one. `{key: ${NAME}}` works without quotes: while YAML is parsed, a
variable's braces are two private characters that mean nothing to it (and that a file must not have).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from msgspec import Struct

from proxy.config.complaints import Finding, Place

MAX_DEPTH = 32
MAX_VALUES = 100_000

_YAML_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))
_NOT_ALLOWED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\ue001\ufffe\uffff]")
_VARIABLE = re.compile(r"\$\{([^{}\n]*)\}")
_INT = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

# How the parser begins a problem, and what to do about it. Its own words may quote the file, so they are not passed on.
_PROBLEMS = {
    "found character that cannot start": "a tab or one of @ ` % begins a value; use spaces, and quotes around text",
    "found character '\\t'": "indent with spaces, not with tabs",
    "found a tab character": "indent with spaces, not with tabs",
    "found character '": "one of @ ` % begins a value; put quotes around text",
    "mapping values are not allowed": "a colon stands where none can; put quotes around text with a colon in it",
    "could not find expected ':'": 'a "key: value" line has no colon, or a quoted text has no end',
    "did not find expected ',' or": "a list or mapping in brackets has no end, or lacks a comma",
    "expected ',' or": "a list or mapping in brackets has no end, or lacks a comma",
    "found unexpected end of stream": "a quoted text or a bracket has no end",
    "did not find expected key": "the indentation does not fit, or a quoted text goes on after its end",
    "did not find expected '-'": "the indentation of this list does not fit",
    "expected <block end>": "the indentation does not fit",
    "did not find expected node content": "a value is missing",
    "expected the node content": "a value is missing",
    "found undefined tag handle": 'put quotes around text that begins with "!"',
    "did not find expected alphabetic": 'put quotes around text that begins with "*" or "&"',
    "expected alphabetic": 'put quotes around text that begins with "*" or "&"',
    "did not find expected comment": 'put quotes around text that begins with "|" or ">"',
    "expected chomping": 'put quotes around text that begins with "|" or ">"',
    "found unknown escape character": 'a backslash in "..." begins no escape; use single quotes',
}


class Unreadable(Exception):
    """The text is not YAML, or not YAML that a configuration may be. Carries the line, where there is one."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class Document(Struct, frozen=True):
    """`lines` has each value's line by its place, a mapping's member with the line of its key; 1 is the first."""

    data: Any
    lines: dict[Place, int]
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Node:
    """A value as it stands in the text; where an alias names it, the same node stands in several places."""

    line: int
    value: str | int | float | None = None
    items: "list[_Node] | None" = None
    members: "dict[str, tuple[int, _Node]] | None" = None


def parse_document(text: str) -> Document:
    """The one document in `text`; data is None when there is none. Raises Unreadable."""
    if bad := _NOT_ALLOWED.search(text):
        raise Unreadable("has a control character", text.count("\n", 0, bad.start()) + 1)
    sheltered = _VARIABLE.sub("\ue000\\1\ue001", text)
    composer = _Composer(yaml.parse(sheltered, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    try:
        root = composer.compose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        raise Unreadable(_explain(exc.problem or ""), None if mark is None else mark.line + 1) from None
    except yaml.YAMLError:
        raise Unreadable(_explain("")) from None
    unfolding = _Unfolding()
    data = unfolding.plain(root, ()) if root else None
    return Document(data, unfolding.lines, tuple(composer.findings))


def resolve(text: str) -> str | int | float | None:
    """What an unquoted scalar means: null, true, false, a decimal number, else text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass(slots=True)
class _Composer:
    """Parser events to nodes: anchors, merge keys, duplicate keys."""

    events: Iterator[Any]
    findings: list[Finding] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)
    merged: int = 0

    def compose(self) -> _Node | None:
        next(self.events)
        if not isinstance(next(self.events), yaml.DocumentStartEvent):
            return None
        root = self._node(next(self.events), ())
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.DocumentStartEvent):
            raise Unreadable("a second document begins; keep one", _line(event))
        return root

    def _node(self, event: Any, place: Place) -> _Node:
        line = _line(event)
        if len(place) > MAX_DEPTH:
            raise Unreadable("is nested too deeply", line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise Unreadable('an alias names no earlier anchor; put quotes around text that begins with "*"', line)
            return self.anchors[event.anchor]
        if event.tag not in (None, "!", *_YAML_TAGS):
            self.findings.append(Finding(place, 'tags are not used here; put quotes around text that begins with "!"'))
        if isinstance(event, yaml.SequenceStartEvent):
            node = _Node(line, items=self._items(place))
        elif isinstance(event, yaml.MappingStartEvent):
            node = _Node(line, members=self._members(place))
        else:
            node = _Node(line, _scalar(event))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _items(self, place: Place) -> list[_Node]:
        items: list[_Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*place, len(items))))
        return items

    def _members(self, place: Place) -> dict[str, tuple[int, _Node]]:
        own: dict[str, tuple[int, _Node]] = {}
        inherited: dict[str, tuple[int, _Node]] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable("a key must be plain text", line)
            key, is_merge = _bare(event.value), event.value == "<<" and not event.style
            node = self._node(next(self.events), (*place, key))
            if is_merge:
                self._merge(inherited, node, line)
            elif key in own:
                first = own[key][0]
                self.findings.append(Finding((*place, key), f"stands here again, first on line {first}", line=line))
            else:
                own[key] = line, node
        return own | {key: member for key, member in inherited.items() if key not in own}

    def _merge(self, inherited: dict[str, tuple[int, _Node]], node: _Node, line: int) -> None:
        for source in node.items if node.items is not None else [node]:
            if source.members is None:
                raise Unreadable("<< takes a mapping, or a list of them", line)
            self.merged += len(source.members)
            if self.merged > MAX_VALUES:
                raise Unreadable("is too large", line)
            for key, member in source.members.items():
                inherited.setdefault(key, member)


@dataclass(slots=True)
class _Unfolding:
    """Nodes to plain data and lines, aliases copied out."""

    lines: dict[Place, int] = field(default_factory=dict)

    def plain(self, node: _Node, place: Place, line: int | None = None) -> Any:
        self.lines[place] = line or node.line
        if len(self.lines) > MAX_VALUES or len(place) > MAX_DEPTH:
            raise Unreadable("is too large, or nested too deeply, with its aliases written out", node.line)
        if node.items is not None:
            return [self.plain(item, (*place, index)) for index, item in enumerate(node.items)]
        if node.members is not None:
            return {key: self.plain(member, (*place, key), at) for key, (at, member) in node.members.items()}
        return node.value


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(event: Any) -> str | int | float | None:
    is_text = event.style or event.tag in ("!", "tag:yaml.org,2002:str")
    text = _bare(event.value)
    return text if is_text else resolve(text)


def _bare(sheltered: str) -> str:
    return sheltered.replace("\ue000", "${").replace("\ue001", "}")


def _explain(problem: str) -> str:
    for beginning, explanation in _PROBLEMS.items():
        if problem.startswith(beginning):
            return f"is not valid YAML: {explanation}"
    return "is not valid YAML here"
