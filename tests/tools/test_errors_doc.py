"""The page of errors is what the source says, and a code means one thing."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "errors_doc.py"
ERRORS = """
class FlexInferError(Exception): ...
class InvalidInput(FlexInferError): ...
class NotFound(FlexInferError): ...
"""
IMPORT = "from flexinfer.errors import InvalidInput, NotFound\n"
HELPER = "def bad(what, *, code='d'):\n    return NotFound(f'm: {what}', code=code)\n"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


def made(tool: dict[str, Any], text: str) -> list[tuple[str, str, str]]:
    """Return code, maker and message of what *text* makes."""
    modules = {"flexinfer.errors": ("errors.py", ERRORS), "one": ("one.py", IMPORT + text)}
    return [(one.code, one.maker, one.message) for one in tool["Source"](modules).errors()]


def test_the_page_is_current(tool: dict[str, Any]) -> None:
    is_current = tool["FILE"].read_text("utf-8") == tool["page"]()
    assert is_current, "run tools/errors_doc.py"


def test_each_code_has_one_class(tool: dict[str, Any]) -> None:
    found = tool["classes_of"](tool["read"]())
    assert len(found) > 150
    assert {code: kinds for code, kinds in found.items() if len(kinds) > 1} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("InvalidInput('a b', code='x')", ("x", "InvalidInput", "a b")),
        ("InvalidInput(f'{a.b}: {len(c)} of {n:d}', code='x')", ("x", "InvalidInput", "{b}: {number of c} of {n}")),
        ("_C = 'x'\nraise NotFound('a', code=_C)", ("x", "NotFound", "a")),
        ("raise NotFound('a')", ("not_found", "NotFound", "a")),
        ("def f():\n    what = f'no {a}'\n    raise NotFound(what, code='x')", ("x", "NotFound", "no {a}")),
        (HELPER + "bad('y', code='x')", ("x", "NotFound", "m: y")),
        (HELPER + "bad('y')", ("d", "NotFound", "m: y")),
        ("Refuse(code='model_overloaded', message=f'{a} busy')", ("model_overloaded", "Overloaded", "{a} busy")),
    ],
)  # fmt: skip
def test_an_error_is_found_however_its_code_and_message_are_written(
    tool: dict[str, Any], text: str, expected: tuple[str, str, str]
) -> None:
    assert expected in made(tool, text)


def test_a_code_of_two_classes_is_found(tool: dict[str, Any]) -> None:
    text = f"{IMPORT}InvalidInput('a', code='x')\nNotFound('a', code='x')"
    modules = {"flexinfer.errors": ("errors.py", ERRORS), "one": ("one.py", text)}
    found = tool["classes_of"](tool["Source"](modules))
    assert found == {"x": {"InvalidInput": ["one.py:2"], "NotFound": ["one.py:3"]}}


def test_what_is_caught_and_told_anew_is_not_counted(tool: dict[str, Any]) -> None:
    caught = "try:\n    bad('y', code='x')\nexcept NotFound as error:\n    "
    again = "raise InvalidInput('z', code='x')"
    assert made(tool, f"{HELPER}{caught}{again}") == [("x", "InvalidInput", "z")]
    assert ("x", "NotFound", "m: y") in made(tool, f"{HELPER}{caught}raise")


def test_a_class_that_only_has_an_errors_name_makes_none(tool: dict[str, Any]) -> None:
    modules = {
        "flexinfer.errors": ("errors.py", ERRORS),
        "one": ("one.py", "class NotFound: ...\nNotFound('a', code='x')"),
    }
    assert list(tool["Source"](modules).errors()) == []
