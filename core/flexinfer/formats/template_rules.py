"""What a chat template may contain: an allow-list over Jinja's syntax tree.

Everything that is not listed is refused, so a construct that nobody thought of is refused too.
The lists hold what the published templates of the common model families use.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Set
from functools import cache

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flexinfer.formats.cursor import shown
from flexinfer.formats.render_child import environment

MAX_SOURCE_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_LOOP_DEPTH = 6
# The largest published template known has below two thousand elements and four thousand tokens.
MAX_NODES = 20_000
MAX_TOKENS = 50_000  # counted before parsing, which takes ten times as long

FUNCTIONS = frozenset({"dict", "namespace", "raise_exception", "range", "strftime_now"})
# `append`, `pop` and the like change a list: the sandbox refuses them when they are reached.
METHODS = frozenset(
    "append capitalize count cycle endswith find format get index insert isalnum isalpha isdigit"
    " items join keys lower lstrip partition pop removeprefix removesuffix replace rfind rpartition"
    " rsplit rstrip split splitlines startswith strip title update upper values".split()
)
FILTERS = frozenset(
    "abs batch capitalize count d default dictsort e escape first float from_json groupby indent"
    " int items join last length list lower map max min reject rejectattr replace reverse round"
    " safe select selectattr slice sort string sum title tojson trim unique upper wordcount".split()
)
TESTS = frozenset(
    "!= < <= == > >= boolean defined divisibleby eq equalto even false float ge greaterthan gt in"
    " integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string true"
    " undefined upper".split()
)
_NODES = frozenset(
    getattr(nodes, name)
    for name in (
        "Template Output TemplateData Name NSRef Const List Tuple Dict Pair Keyword Operand"
        " If For Macro CallBlock FilterBlock With Assign AssignBlock Scope Break Continue ExprStmt"
        " Call Filter Test Getattr Getitem Slice Compare CondExpr Concat"
        " Add Sub Mul Div FloorDiv Mod And Or Not Neg Pos"
    ).split()
)
# Filters whose first argument names an attribute, a filter or a test.
_BY_ATTRIBUTE = frozenset({"groupby", "selectattr", "rejectattr"})
_BY_TEST = frozenset({"select", "reject"})
_DUNDER = re.compile(r"^__|__\w+__")


class Fault(Exception):
    """Why a template is refused, and the line (from 1) where; 0 is the template as a whole."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


def check_tree(source: str) -> None:
    """Parse *source* and walk all of it. Nothing of it runs.

    Raises:
        Fault: the first thing that is not allowed.
    """
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise Fault(0, f"has {size} bytes; expected at most {MAX_SOURCE_BYTES}")
    try:
        for count, _ in enumerate(_environment().lex(source)):
            if count == MAX_TOKENS:
                raise Fault(0, f"has more than {MAX_TOKENS} tokens")
        tree = _environment().parse(source)
    except TemplateSyntaxError as error:
        raise Fault(error.lineno, f"is not valid Jinja: {error.message}") from error
    except RecursionError as error:
        raise Fault(0, "is nested too deeply to parse") from error
    except (ValueError, OverflowError) as error:  # a number or string literal that cannot be
        raise Fault(0, f"has a literal that cannot be read: {str(error)[:200]}") from error
    checked = list(_bounded(tree))
    macros = {node.name for node in checked if isinstance(node, nodes.Macro)}
    known = FUNCTIONS | macros | {"caller", "loop"}
    for node in checked:
        _check_node(node, known)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    return environment()


def _bounded(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Yield every node, as long as the tree keeps within the limits."""
    for count, (node, depth, loops) in enumerate(_walk(tree)):
        if count == MAX_NODES:
            raise Fault(node.lineno, f"has more than {MAX_NODES} elements")
        if depth > MAX_DEPTH:
            raise Fault(node.lineno, f"is nested deeper than {MAX_DEPTH}")
        if loops > MAX_LOOP_DEPTH:
            raise Fault(node.lineno, f"nests loops deeper than {MAX_LOOP_DEPTH}")
        yield node


def _walk(tree: nodes.Node) -> Iterator[tuple[nodes.Node, int, int]]:
    """Yield every node with its depth and the loops around it, without recursion."""
    waiting: list[tuple[nodes.Node, int, int]] = [(tree, 1, 0)]
    while waiting:
        node, depth, loops = waiting.pop()
        yield node, depth, loops
        inner_loops = loops + isinstance(node, nodes.For)
        for child in node.iter_child_nodes():
            # `a + b + c` is a chain, not a nest, although its tree leans to the left.
            chained = isinstance(node, nodes.BinExpr) and child is node.left
            same = chained and type(child) is type(node)
            waiting.append((child, depth if same else depth + 1, inner_loops))


def _check_node(node: nodes.Node, functions: Set[str]) -> None:
    if type(node) not in _NODES:
        raise Fault(node.lineno, f"uses {type(node).__name__.lower()}, which is not allowed")
    match node:
        case nodes.Name():
            _check_name(node.lineno, node.name)
        case nodes.NSRef():
            _check_name(node.lineno, node.name)
            _check_member(node.lineno, node.attr)
        case nodes.Getattr():
            _check_member(node.lineno, node.attr)
        case nodes.Getitem():
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                _check_member(node.lineno, node.arg.value)
        case nodes.Const():
            if isinstance(node.value, str) and _DUNDER.search(node.value):
                raise Fault(node.lineno, f"has the string {shown(node.value)}")
        case nodes.Macro():
            _check_name(node.lineno, node.name)
        case nodes.Call():
            _check_call(node, functions)
        case nodes.Filter():
            _check_filter(node)
        case nodes.Test():
            if node.name not in TESTS:
                raise Fault(node.lineno, f"uses the test {shown(node.name)}")
        case _:
            pass


def _check_name(line: int, name: str) -> None:
    if name.startswith("__") or name == "self":
        raise Fault(line, f"uses the name {shown(name)}")


def _check_member(line: int, name: str) -> None:
    if name.startswith("_"):
        raise Fault(line, f'accesses "{name[:80]}"')


def _check_call(node: nodes.Call, functions: Set[str]) -> None:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise Fault(node.lineno, "calls with * or ** arguments")
    match node.node:
        case nodes.Name(name=name):
            if name not in functions:
                raise Fault(node.lineno, f"calls {shown(name)}")
        case nodes.Getattr(attr=attr):
            if attr not in METHODS:
                raise Fault(node.lineno, f"calls the method {shown(attr)}")
            if attr == "format":
                _check_format(node)
        case other:
            raise Fault(node.lineno, f"calls the result of a {type(other).__name__.lower()}")


def _check_format(node: nodes.Call) -> None:
    """Allow `'…{}…'.format(x)` on a literal whose fields reach into nothing."""
    receiver = node.node.node if isinstance(node.node, nodes.Getattr) else None
    if not isinstance(receiver, nodes.Const) or not isinstance(receiver.value, str):
        raise Fault(node.lineno, "formats with a text that is not a literal")
    try:
        fields = list(string.Formatter().parse(receiver.value))
    except ValueError as error:
        raise Fault(node.lineno, f"has a bad format: {error}") from error
    for _, field, layout, _ in fields:
        if field and not (field.isdecimal() or (field.isidentifier() and field[0] != "_")):
            raise Fault(node.lineno, f"formats with the field {shown(field)}")
        if layout:
            raise Fault(node.lineno, f"formats with the layout {shown(layout)}")


def _check_filter(node: nodes.Filter) -> None:
    if node.name not in FILTERS:
        raise Fault(node.lineno, f"uses the filter {shown(node.name)}")
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise Fault(node.lineno, "calls a filter with * or ** arguments")
    for keyword in node.kwargs:
        if keyword.key == "attribute":
            _check_attribute(node, keyword.value)
    if node.name in _BY_ATTRIBUTE and node.args:
        _check_attribute(node, node.args[0])
        if node.name != "groupby" and len(node.args) > 1:
            _check_named(node, node.args[1], TESTS, "test")
    if node.name in _BY_TEST and node.args:
        _check_named(node, node.args[0], TESTS, "test")
    if node.name == "map" and node.args:
        _check_named(node, node.args[0], FILTERS - {"map"}, "filter")
    # Their attribute can also be given by position.
    for name, position in (
        ("sort", 2),
        ("unique", 1),
        ("min", 1),
        ("max", 1),
        ("sum", 0),
        ("join", 1),
    ):
        if node.name == name and len(node.args) > position:
            _check_attribute(node, node.args[position])


def _check_attribute(node: nodes.Filter, value: nodes.Expr) -> None:
    if not isinstance(value, nodes.Const) or not isinstance(value.value, (str, int)):
        raise Fault(node.lineno, f"gives {node.name} an attribute that is not a literal")
    for part in re.split(r"[.,]", str(value.value)):
        _check_member(node.lineno, part.strip())


def _check_named(node: nodes.Filter, value: nodes.Expr, allowed: frozenset[str], what: str) -> None:
    name = value.value if isinstance(value, nodes.Const) else None
    if name not in allowed:
        raise Fault(node.lineno, f"gives {node.name} the {what} {shown(str(name))}")
