"""YAML text as a tree that knows where each value stands.

Only what a resource needs is accepted: one document of mappings with text keys, lists, text, numbers, booleans
and null. What YAML 1.1 and 1.2 read differently (`no`, `010`, `1:30`, `2024-01-01`) is refused with the advice to
quote it, so that a file means the same here and on a cluster. Everything is bounded: bytes, nodes after aliases
are expanded, depth. Nothing is ever constructed from a tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

MAX_BYTES = 1024 * 1024
MAX_NODES = 20_000
MAX_ALIASES = 100
MAX_DEPTH = 32

# A longer plain value is text; it also keeps the patterns below from running long.
_LONGEST_NUMBER = 100

Scalar = str | int | float | bool | None

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_AMBIGUOUS = (
    (re.compile(r"(?i:yes|no|on|off)"), "true or false to some readers"),
    (re.compile(r"[-+]?0[0-9_]+"), "an octal number to some readers"),
    (re.compile(r"[-+]?0(?:x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)"), "a number that is not decimal"),
    (re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"), "a number to base 60"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?"), "a date to some readers"),
    (re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?"), "a number to some readers"),
    (re.compile(r"[-+]?[1-9][0-9]{18,}"), "a number of more than 18 digits"),
)


class Misplaced(ValueError):
    """What a validator raises of a value further inside: *place* leads from its own to that one."""

    def __init__(self, message: str, place: tuple[str | int, ...]) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a text; both count from 1."""

    line: int
    column: int


START = Mark(1, 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of a text."""

    mark: Mark
    message: str

    def at(self, file: str) -> str:
        """Return `file:line:column: message`."""
        return f"{file}:{self.mark.line}:{self.mark.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it starts. `size` counts it and all below it, aliases expanded."""

    mark: Mark
    value: Scalar | dict[str, Member] | list[Node]
    size: int = 1

    def plain(self) -> Any:
        """Return the value in Python's own types."""
        if isinstance(self.value, dict):
            return {key: member.node.plain() for key, member in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Member:
    """A value of a mapping, and where its key starts."""

    mark: Mark
    node: Node


def compose(text: str) -> tuple[Node | None, tuple[Problem, ...]]:
    """Return the tree of *text* and what is wrong with it; no tree where it cannot be read to its end."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return None, (Problem(START, f"expected at most {MAX_BYTES} bytes of YAML"),)
    reader = _Reader(text)
    try:
        root = reader.document()
    except _Refused as refused:
        return None, (*reader.problems, refused.problem)
    except yaml.MarkedYAMLError as error:
        return None, (*reader.problems, _syntax_problem(error, text))
    except yaml.reader.ReaderError as error:
        mark = _mark_of_index(text, error.position)
        return None, (*reader.problems, Problem(mark, "a character that YAML does not allow"))
    except UnicodeEncodeError as error:
        mark = _mark_of_index(text, error.start)
        return None, (*reader.problems, Problem(mark, "a character that is not Unicode text"))
    return root, tuple(reader.problems)


def find(root: Node, path: tuple[str | int, ...]) -> tuple[Mark, Node]:
    """Return the key's (or item's) place and the value at *path*, or of its nearest ancestor that is there."""
    mark, node = root.mark, root
    for step in path:
        if isinstance(node.value, dict) and step in node.value:
            member = node.value[str(step)]
            mark, node = member.mark, member.node
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.mark
        else:
            break
    return mark, node


class _Refused(Exception):
    def __init__(self, mark: Mark, message: str) -> None:
        self.problem = Problem(mark, message)


class _Reader:
    """One pass over the parser's events."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events: Iterator[Event] = yaml.parse(text, Loader=loader)
        self._anchors: dict[str, Node | None] = {}
        self._aliases = 0
        self._nodes = 0

    def document(self) -> Node:
        root: Node | None = None
        for event in self._events:
            match event:
                case DocumentStartEvent() if root is not None:
                    raise _Refused(_mark(event), "expected one document, found another '---'")
                case StreamStartEvent() | DocumentStartEvent() | DocumentEndEvent():
                    continue
                case StreamEndEvent():
                    break
                case _:
                    root = self._node(event, depth=0)
        if root is None:
            raise _Refused(START, "expected a document, found an empty file")
        return root

    def _node(self, event: Event, *, depth: int) -> Node:
        mark = _mark(event)
        if depth > MAX_DEPTH:
            raise _Refused(mark, f"expected at most {MAX_DEPTH} levels")
        if isinstance(event, AliasEvent):
            return self._alias(event)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = None  # known, but not to be used inside itself
        self._count(1, mark)
        match event:
            case ScalarEvent():
                node = Node(mark, self._scalar(event))
            case MappingStartEvent():
                self._refuse_tag(event)
                node = self._mapping(mark, depth)
            case SequenceStartEvent():
                self._refuse_tag(event)
                items = [self._node(item, depth=depth + 1) for item in self._until_end()]
                node = Node(mark, items, 1 + sum(item.size for item in items))
            case _:
                raise AssertionError(f"the parser gave {event!r} where a value begins")
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> Node:
        mark = _mark(event)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise _Refused(mark, f"expected at most {MAX_ALIASES} aliases")
        if event.anchor not in self._anchors:
            raise _Refused(mark, f"alias *{event.anchor} has no anchor before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise _Refused(mark, f"alias *{event.anchor} stands inside its own anchor")
        self._count(node.size, mark)
        return node

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _Refused(mark, f"expected at most {MAX_NODES} values, aliases expanded")

    def _until_end(self) -> Iterator[Event]:
        for event in self._events:
            if isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                return
            yield event

    def _mapping(self, mark: Mark, depth: int) -> Node:
        members: dict[str, Member] = {}
        size = 1
        events = self._until_end()
        for event in events:
            key = self._key(event, depth)
            node = self._node(next(events), depth=depth + 1)
            size += node.size
            if key is None:
                continue
            if key in members:
                first = members[key].mark.line
                self._add(_mark(event), f"key {_shown(key)} is there twice, first in line {first}")
                continue
            members[key] = Member(_mark(event), node)
        return Node(mark, members, size)

    def _key(self, event: Event, depth: int) -> str | None:
        """Return the key; None where it was refused."""
        mark = _mark(event)
        if not isinstance(event, ScalarEvent):
            self._node(event, depth=depth + 1)
            self._add(mark, "expected a key of plain text")
            return None
        self._count(1, mark)
        before = len(self.problems)
        key = self._scalar(event)
        if event.value == "<<" and event.style in (None, ""):
            self._add(mark, "merge keys (<<) are not accepted: write the values out")
        elif not isinstance(key, str):
            self._add(mark, f"key {_shown(event.value)} is not text: quote it")
        return key if isinstance(key, str) and len(self.problems) == before else None

    def _scalar(self, event: ScalarEvent) -> Scalar:
        mark, text = _mark(event), event.value
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            self._add(mark, "a character that is not Unicode text")
            return ""
        if event.tag == "!" or event.tag == "tag:yaml.org,2002:str":
            return str(text)
        self._refuse_tag(event)
        if event.style not in (None, ""):
            return str(text)
        if len(text) > _LONGEST_NUMBER:
            return str(text)
        for pattern, meaning in _AMBIGUOUS:
            if pattern.fullmatch(text):
                self._add(mark, f"{_shown(text)} is {meaning}: quote it, or write it another way")
                return str(text)
        if _NOT_FINITE.fullmatch(text):
            self._add(mark, f"expected a finite number, found {text}")
            return 0.0
        return self._resolved(mark, text)

    def _resolved(self, mark: Mark, text: str) -> Scalar:
        match text:
            case "" | "~" | "null" | "Null" | "NULL":
                return None
            case "true" | "True" | "TRUE":
                return True
            case "false" | "False" | "FALSE":
                return False
        if _INT.fullmatch(text):
            return int(text)
        # A plain 1e-3 is text to YAML 1.1 and a number to everyone else.
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            self._add(mark, f"{_shown(text)} is too large a number: quote it if it is text")
        return text

    def _refuse_tag(self, event: Event) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Refused(_mark(event), f"tags are not accepted, found {_shown(tag)}")

    def _add(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, message))


def _mark(event: Event) -> Mark:
    found = event.start_mark
    return START if found is None else Mark(found.line + 1, found.column + 1)


def _mark_of_index(text: str, index: int) -> Mark:
    before = text[:index]
    return Mark(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    found = error.problem_mark or error.context_mark
    mark = START if found is None else Mark(found.line + 1, found.column + 1)
    lines = text.splitlines()
    line = lines[mark.line - 1] if mark.line <= len(lines) else ""
    what = error.problem or "not YAML"
    if "\t" in line[: max(mark.column, len(line) - len(line.lstrip()))]:
        what = "a tab indents this line: use spaces"
    elif error.context:
        what = f"{what} ({error.context})"
    return Problem(mark, f"not YAML: {what}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
