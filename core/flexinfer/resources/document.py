"""From YAML text to a resource; what is wrong is named by file, line and column, with the nearest known key.

Values are taken as a cluster would take them: keys by their published names only, and no conversion between
types. Pure: text in, value out.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flexinfer.errors import InvalidInput
from flexinfer.resources import patterns
from flexinfer.resources.located import START, Mark, Misplaced, Node, Problem, compose, find
from flexinfer.resources.model import Part
from flexinfer.spelling import nearest

MAX_PROBLEMS = 20

P = TypeVar("P", bound=Part)
Path = tuple[str | int, ...]

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
# What is said of a limit, and where its number is.
_BOUNDS = {
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_short": ("at least", "min_length"),
    "string_too_long": ("at most", "max_length"),
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_NOUNS = {"variants": ("variant", "variants"), "aliases": ("alias", "aliases")}


class DocumentInvalid(InvalidInput):
    """A file that is not what it must be. The message has one line for each of the first problems."""

    default_code = "document_invalid"

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        ordered = sorted(problems, key=lambda problem: problem.mark)
        lines = [problem.at(file) for problem in ordered[:MAX_PROBLEMS]]
        left_out = len(ordered) - MAX_PROBLEMS
        if left_out > 0:
            lines.append(f"{file}: and {left_out} more problems")
        super().__init__("\n".join(lines))
        self.file = file
        self.problems = tuple(ordered[:MAX_PROBLEMS])
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Generic[P]):
    """A resource and the text that it came from."""

    value: P
    file: str
    root: Node

    def problem(self, path: Path, message: str) -> Problem:
        """Return *message* at the value that *path* leads to (`("spec", "variants", 0, "name")`)."""
        _, node = find(self.root, path)
        return Problem(node.mark, message)


def parse_document(kind: type[P], text: str, file: str) -> P:
    """Return the resource that *text* holds. *file* is only named.

    Raises:
        DocumentInvalid: code `document_invalid`; all problems, at most MAX_PROBLEMS of them.
    """
    return parse_located(kind, text, file).value


def parse_located(kind: type[P], text: str, file: str) -> Document[P]:
    """Return the resource that *text* holds, with the places of its values, for checks beyond the schema.

    Raises:
        DocumentInvalid: as `parse_document`.
    """
    root, found = compose(text)
    if root is None:
        raise DocumentInvalid(file, found)
    problems = [*found, *_header_problems(kind, root)]
    if problems and len(problems) > len(found):
        raise DocumentInvalid(file, problems)  # of another kind: its keys say nothing
    try:
        # JSON's strict mode is a cluster's: lists become tuples, and nothing else is converted.
        value = kind.model_validate_json(
            json.dumps(root.plain()), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        taken = {problem.mark for problem in problems}
        for detail in error.errors(include_url=False):
            if _is_counted_without_bad_items(detail):
                continue
            problem = _problem(kind, root, detail)
            if problem.mark not in taken:  # one cause, one line
                problems.append(problem)
        raise DocumentInvalid(file, problems) from None
    if problems:
        raise DocumentInvalid(file, problems)
    return Document(value=value, file=file, root=root)


def _header_problems(kind: type[Part], root: Node) -> Iterator[Problem]:
    """Yield what says that this is not a document of *kind* at all."""
    if not isinstance(root.value, dict):
        yield Problem(root.mark, f"expected a mapping, found {_described(root.plain())}")
        return
    for key, field in _fields(kind).items():
        if key not in ("apiVersion", "kind"):
            continue
        (wanted,) = get_args(field)
        if key not in root.value:
            message = f"missing key {key!r}: expected {key}: {wanted}"
            close = nearest(key, root.value)
            yield Problem(START if not root.value else root.mark, message + close)
        elif (found := root.value[key].node.plain()) != wanted:
            hint = nearest(found, [wanted]) if isinstance(found, str) else ""
            message = f"expected {key} {wanted}, found {_described(found)}{hint}"
            yield Problem(root.value[key].node.mark, message)


def _problem(kind: type[Part], root: Node, detail: ErrorDetails) -> Problem:
    loc: Path = tuple(step for step in detail["loc"] if step != "[key]")
    match detail["type"]:
        case "extra_forbidden":
            mark, _ = find(root, loc)
            return Problem(mark, _unknown(kind, loc))
        case "missing":
            mark, _ = find(root, loc[:-1])
            return Problem(mark, f"missing key {str(loc[-1])!r}")
        case "literal_error" | "enum":
            return Problem(_value_mark(root, loc), _not_listed(kind, loc, detail["input"]))
        case "value_error":
            raised = detail["ctx"]["error"]
            within = raised.place if isinstance(raised, Misplaced) else ()
            return Problem(_value_mark(root, (*loc, *within)), str(raised))
        case "string_pattern_mismatch":
            pattern = detail["ctx"]["pattern"]
            meaning = patterns.MEANINGS.get(pattern, f"text that matches {pattern}")
            message = f"expected {meaning}, found {_described(detail['input'])}"
            return Problem(_value_mark(root, loc), message)
        case name if name in _BOUNDS:
            bound, key = _BOUNDS[name]
            message = f"expected {bound} {_counted(name, loc, detail['ctx'][key])}"
            return Problem(
                _value_mark(root, loc), f"{message}, found {_amount(name, detail['input'])}"
            )
        case name if name in _EXPECTED:
            message = f"expected {_EXPECTED[name]}, found {_described(detail['input'])}"
            if name == "string_type" and isinstance(detail["input"], (bool, int, float)):
                message += ": quote it"
            return Problem(_value_mark(root, loc), message)
        case _:
            said = detail["msg"][:1].lower() + detail["msg"][1:]
            message = f"{said}, found {_described(detail['input'])}"
            return Problem(_value_mark(root, loc), message)


def _is_counted_without_bad_items(detail: ErrorDetails) -> bool:
    """Return whether pydantic finds a list too short only because it left out the items that it refuses."""
    found = detail["input"]
    return (
        detail["type"] == "too_short"
        and isinstance(found, (list, tuple, dict))
        and len(found) >= detail["ctx"]["min_length"]
    )


def _counted(name: str, loc: Path, limit: float) -> str:
    """Return *limit* with the noun of what it counts: `1 variant`, `64 aliases`."""
    if name.startswith("string"):
        return f"{limit} character{'s' * (limit != 1)}"
    if not name.startswith("too"):
        return f"{limit:g}"
    nouns = _NOUNS.get(str(loc[-1]) if loc else "", ("item", "items"))
    return f"{limit} {nouns[limit != 1]}"


def _amount(name: str, found: object) -> str:
    """Return how many there are where it is the number that is wrong, else the value."""
    if name.startswith("too") and isinstance(found, (list, tuple, dict)):
        return str(len(found) or "none")
    return _described(found)


def _value_mark(root: Node, loc: Path) -> Mark:
    return find(root, loc)[1].mark


def _unknown(kind: type[Part], loc: Path) -> str:
    key = str(loc[-1])
    message = f"unknown key {_described(key)}"
    known = _fields(_type_at(kind, loc[:-1]))
    if close := nearest(key, known):
        return message + close
    # The right name in the wrong place is the second most frequent slip.
    for path, part in _parts(kind):
        if key in _fields(part) and path:
            return f"{message}; it belongs in {'.'.join(path)}"
    return f"{message} (known: {', '.join(known)})"


def _not_listed(kind: type[Part], loc: Path, found: object) -> str:
    listed_type = _type_at(kind, loc)
    if isinstance(listed_type, type) and issubclass(listed_type, Enum):
        options = [str(option.value) for option in listed_type]
    else:
        options = [str(option) for option in get_args(listed_type)]
    listed = ", ".join(options)
    one_of = f"one of {listed}" if len(options) > 1 else listed
    hint = nearest(found, options) if isinstance(found, str) else ""
    return f"expected {one_of}, found {_described(found)}{hint}"


def _described(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str():
            return repr(value if len(value) <= 80 else value[:77] + "…")
        case _:
            return str(value)


def _fields(part: object) -> Mapping[str, Any]:
    """Return the published keys of a part and their types; nothing for what is not a part."""
    if not (isinstance(part, type) and issubclass(part, Part)):
        return {}
    return {f.alias or name: f.annotation for name, f in part.model_fields.items()}


def _type_at(kind: object, path: Iterable[str | int]) -> object:
    """Return the type of the value at *path*; None where the path leaves the schema."""
    here: object = kind
    for step in path:
        here = _item_type(here) if isinstance(step, int) else _fields(here).get(step)
        here = _without_none(here)
    return here


def _item_type(listed: object) -> object:
    arguments = get_args(listed)
    return arguments[0] if get_origin(listed) is tuple and arguments else None


def _without_none(annotation: object) -> object:
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [a for a in get_args(annotation) if a is not type(None)]
        return kept[0] if len(kept) == 1 else annotation
    return annotation


def _parts(kind: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every part below *kind* with the keys that lead to it, lists passed through."""
    yield path, kind
    for key, annotation in _fields(kind).items():
        inner = _without_none(annotation)
        inner = _item_type(inner) if get_origin(inner) is tuple else inner
        if get_origin(inner) is not Literal and _fields(inner):
            yield from _parts(inner, (*path, key))
