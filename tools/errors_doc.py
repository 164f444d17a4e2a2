"""Write docs/errors.md from the errors that the source makes; `--check` only tells whether it is current."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexinfer import errors
from flexinfer.errors import FlexInferError, Unavailable
from flexinfer_serving.dispatch import KINDS
from flexinfer_serving.openai.errors import answer

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "errors.md"
ROOTS = ("core", "pipelines", "serving", "operator")
SHOWN = 3
"""Messages shown of one code; the rest is counted."""
# What carries a code without being an exception: the places of code and message among its arguments.
FAILURES = {"Failure": (0, 1), "Cause": (0, 1), "_known": (1, 2)}
REFUSALS = {"EngineError": (1, 2)}
_HEAD = """\
# Errors

Every error has a code that never changes its meaning, the same at the command line (`error[code]: message`), in the
API (`error.code`), in the conditions of a Model and in the log. A code belongs to one class, and the class says what
to do: *again* is whether the same request may succeed later, *HTTP* what the router answers where the error reaches a
client (status and OpenAI's `type`), *exit* what a command ends with. Words in braces stand for what a message names.
Codes that an engine, a registry or another program chose itself are passed on and not listed. Written by
`tools/errors_doc.py`.

## Codes

| code | class | again | HTTP | exit | message |
|---|---|---|---|---|---|
"""
_FAILURES = """
## Why a Model is not served

The router says 503 `model_failed` and names one of these, as `flexinfer model describe` does; the errors above may
stand there too.

| code | message |
|---|---|
"""
_ENGINES = """
## What an engine refused

In OpenAI's words, with the status that the engine plug-in gives it.

| code | HTTP | message |
|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One place where an error is made."""

    code: str
    maker: str
    message: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Helper:
    """A function that makes an error of the code that it is given."""

    kind: str
    parameters: tuple[str, ...]
    message: str
    default: str = ""


class Source:
    """The modules of the source roots, and what they make."""

    def __init__(self, modules: Mapping[str, tuple[str, str]]) -> None:
        """*modules*: place and text of each, by dotted name."""
        self._places = {name: place for name, (place, _) in modules.items()}
        self._trees = {name: ast.parse(text) for name, (_, text) in modules.items()}
        self._constants = {name: dict(_constants(tree)) for name, tree in self._trees.items()}
        self._calls = [
            (name, call, scope)
            for name, tree in self._trees.items()
            for call, scope in _walk(tree, {})
        ]
        """Every call with its module, and the texts that the variables around it hold."""
        self.kinds = self._kinds()
        self._known = {name: self._visible(name) for name in self._trees}
        self._hidden = {pair for tree in self._trees.values() for pair in _hidden(tree)}
        self._helpers = {
            (name, function.name): helper
            for name, tree in self._trees.items()
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            if (helper := self._helper(name, function)) is not None
        }

    def errors(self) -> Iterator[Made]:
        """Yield every error made with a code that is written down."""
        for name, call, scope in self._calls:
            called = _called(call)
            if called in self._known[name]:
                codes = self._codes(name, _argument(call, "code"))
                if _argument(call, "code") is None:
                    codes = (_class(called, self.kinds).default_code,)
                message = _template(_argument(call, "message", 0), scope)
                yield from self._each(name, call, codes, called, message)
            elif called == "Refuse":
                message = _template(_argument(call, "message"), scope)
                for code in self._codes(name, _argument(call, "code")):
                    maker = KINDS.get(code, Unavailable).__name__
                    yield from self._each(name, call, (code,), maker, message)
            elif (helper := self._found(name, called)) and (helper.kind, call) not in self._hidden:
                given = _given(call, helper.parameters)
                codes = self._codes(name, given.get("code"))
                if "code" not in given:
                    codes = (helper.default,) if helper.default else ()
                message = helper.message
                for parameter, value in given.items():
                    message = message.replace(f"{{{parameter}}}", _template(value, scope))
                yield from self._each(name, call, codes, helper.kind, message)

    def others(self, table: Mapping[str, tuple[int, int]]) -> Iterator[Made]:
        """Yield every code that what *table* names carries; `maker` is the HTTP status where one is written down."""
        for name, call, scope in self._calls:
            if _called(call) in table:
                code, message = table[_called(call)]
                status = _argument(call, "status")
                maker = str(status.value) if isinstance(status, ast.Constant) else "the engine's"
                shown = _template(_argument(call, "message", message), scope)
                codes = self._codes(name, _argument(call, "code", code))
                yield from self._each(name, call, codes, maker, shown)

    def _each(
        self, name: str, call: ast.Call, codes: Iterable[str], maker: str, message: str
    ) -> Iterator[Made]:
        place = f"{self._places[name]}:{call.lineno}"
        yield from (Made(code=c, maker=maker, message=message, place=place) for c in codes)

    def _kinds(self) -> dict[str, str]:
        """Return the error classes and the module of each."""
        found = {"FlexInferError": "flexinfer.errors"}
        classes = [
            (name, node)
            for name, tree in self._trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        ]
        for _ in range(4):  # the depth of the tree
            for name, node in classes:
                if any(isinstance(base, ast.Name) and base.id in found for base in node.bases):
                    found[node.name] = name
        return found

    def _visible(self, module: str) -> frozenset[str]:
        """Return the error classes that *module* defines or imports: another's class may have the same name."""
        imported = {
            one.name
            for node in ast.walk(self._trees[module])
            if isinstance(node, ast.ImportFrom)
            for one in node.names
            if self.kinds.get(one.name) == node.module
        }
        return frozenset(imported | {n for n, where in self.kinds.items() if where == module})

    def _helper(self, name: str, function: ast.FunctionDef) -> _Helper | None:
        plain = [one.arg for one in function.args.args]
        named = [one.arg for one in function.args.kwonlyargs]
        if "code" not in plain + named:
            return None
        for call, scope in _walk(function, {}):
            code = _argument(call, "code")
            if (
                _called(call) in self._known[name]
                and isinstance(code, ast.Name)
                and code.id == "code"
            ):
                defaults = dict(zip(named, function.args.kw_defaults, strict=True))
                first = len(plain) - len(function.args.defaults)
                defaults |= dict(zip(plain[first:], function.args.defaults, strict=True))
                return _Helper(
                    kind=_called(call),
                    parameters=tuple(one for one in plain if one not in ("self", "cls")),
                    message=_template(_argument(call, "message", 0), scope),
                    default=next(iter(self._codes(name, defaults.get("code"))), ""),
                )
        return None

    def _found(self, module: str, called: str) -> _Helper | None:
        """Return the helper of that name: the module's own, else a public one elsewhere."""
        own = self._helpers.get((module, called))
        if own is not None or called.startswith("_"):
            return own
        return next((h for (_, name), h in self._helpers.items() if name == called), None)

    def _codes(self, module: str, value: ast.expr | None) -> tuple[str, ...]:
        match value:
            case ast.Constant(value=str(code)):
                return (code,)
            case ast.Name(id=name) if name in self._constants[module]:
                return (self._constants[module][name],)
            case ast.IfExp(body=body, orelse=other):
                return self._codes(module, body) + self._codes(module, other)
            case _:
                return ()


def read() -> Source:
    """Return the source of this clone."""
    return Source(
        {
            ".".join(file.relative_to(ROOT / root).with_suffix("").parts): (
                str(file.relative_to(ROOT)),
                file.read_text("utf-8"),
            )
            for root in ROOTS
            for file in sorted((ROOT / root).rglob("*.py"))
        }
    )


def classes_of(source: Source) -> dict[str, dict[str, list[str]]]:
    """Return the public classes of each code, with the places."""
    found: dict[str, dict[str, list[str]]] = {}
    for made in source.errors():
        kind = _public(_class(made.maker, source.kinds)).__name__
        found.setdefault(made.code, {}).setdefault(kind, []).append(made.place)
    return found


def page() -> str:
    """Return the page."""
    source = read()
    rows = [_HEAD]
    messages = _messages(source.errors())
    for code, kinds in sorted(classes_of(source).items()):
        kind = min(kinds)
        cells = (f"`{code}`", f"`{kind}`", *_meaning(kind, code), messages[code])
        rows.append(f"| {' | '.join(cells)} |\n")
    rows.append(_FAILURES)
    failures = _messages(source.others(FAILURES))
    rows += [f"| `{code}` | {shown} |\n" for code, shown in sorted(failures.items())]
    rows.append(_ENGINES)
    refusals = list(source.others(REFUSALS))
    for code, shown in sorted(_messages(refusals).items()):
        status = ", ".join(sorted({made.maker for made in refusals if made.code == code}))
        rows.append(f"| `{code}` | {status} | {shown} |\n")
    return "".join(rows)


def _meaning(kind: str, code: str) -> tuple[str, str, str]:
    """Return what class and code say of an error: tried again, HTTP, exit code."""
    found: type[FlexInferError] = getattr(errors, kind)
    error = type(kind, (found,), {"__init__": FlexInferError.__init__})("", code=code)
    told = answer(error)
    again = "yes" if found.retryable else "no"
    return again, f"{told.status} `{told.type}`", str(found.exit_code)


def _messages(made: Iterable[Made]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for one in made:
        found.setdefault(one.code, set()).add(one.message)
    return {code: _shown(messages) for code, messages in found.items()}


def _shown(messages: set[str]) -> str:
    told = sorted(one for one in messages if re.sub(r"\{[^}]*\}", "", one)) or sorted(
        messages - {""}
    )
    more = f"<br>… and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "<br>".join(_cell(one) for one in told[:SHOWN]) + more or "–"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _public(kind: type[FlexInferError]) -> type[FlexInferError]:
    """Return the class of the one tree that *kind* is."""
    return next(one for one in kind.__mro__ if one.__module__ == errors.__name__)


def _class(name: str, kinds: Mapping[str, str]) -> type[FlexInferError]:
    found = getattr(importlib.import_module(kinds[name]), name)
    assert isinstance(found, type) and issubclass(found, FlexInferError)
    return found


# Reading the source -----------------------------------------------------------------------------------------


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))):
                yield name, value


def _walk(
    node: ast.AST, scope: Mapping[str, ast.expr]
) -> Iterator[tuple[ast.Call, Mapping[str, ast.expr]]]:
    """Yield the calls under *node*, each with the texts that the variables around it hold."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        scope = {**scope, **dict(_texts(node))}
    if isinstance(node, ast.Call):
        yield node, scope
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, scope)


def _texts(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=(ast.JoinedStr() | ast.Constant(value=str())) as value,
            ):
                yield name, value


def _hidden(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield what is made under a `try` that makes another error of it, with the name of the class caught."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        for handler in node.handlers:
            inside = [one for step in handler.body for one in ast.walk(step)]
            is_passed_on = any(
                (isinstance(one, ast.Raise) and one.exc is None)
                or (isinstance(one, ast.Attribute) and one.attr == "code")
                for one in inside
            )
            if isinstance(handler.type, ast.Name) and not is_passed_on:
                yield from ((handler.type.id, one) for step in node.body for one in ast.walk(step))


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _argument(call: ast.Call, name: str, place: int | None = None) -> ast.expr | None:
    named = next((one.value for one in call.keywords if one.arg == name), None)
    if named is None and place is not None and len(call.args) > place:
        return call.args[place]
    return named


def _given(call: ast.Call, parameters: tuple[str, ...]) -> dict[str, ast.expr]:
    found = dict(zip(parameters, call.args, strict=False))
    return found | {one.arg: one.value for one in call.keywords if one.arg is not None}


def _template(value: ast.expr | None, scope: Mapping[str, ast.expr]) -> str:
    """Return a message with `{name}` where it is filled in."""
    match value:
        case None:
            return ""
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part, scope) for part in parts)
        case ast.FormattedValue(value=inner):
            return _template(inner, {})
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left, scope) + _template(right, scope)
        case ast.Name(id=name) if name in scope:
            return _template(scope[name], {})
        case _:
            return f"{{{_last(value) or 'text'}}}"


def _last(node: ast.expr) -> str:
    """Return the name that says best what *node* is; empty where there is none."""
    match node:
        case ast.Attribute(attr="__name__"):
            return "class"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case (
            ast.Call(func=ast.Attribute(attr="join"), args=[inner])
            | ast.Call(func=ast.Name(id="sorted" | "repr" | "str"), args=[inner])
        ):
            return _last(inner)
        case ast.Call(func=ast.Name(id="len"), args=[inner]):
            return f"number of {_last(inner)}"
        case ast.Call(func=function):
            return _last(function)
        case ast.Subscript(value=inner) | ast.Starred(value=inner) | ast.Await(value=inner):
            return _last(inner)
        case ast.BinOp(left=left):
            return _last(left)
        case _:
            return ""


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0
            if FILE.exists() and FILE.read_text("utf-8") == page()
            else "docs/errors.md is not current: run tools/errors_doc.py"
        )
    FILE.write_text(page(), "utf-8")
