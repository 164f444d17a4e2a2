"""A code says what happened: it belongs to one class of errors, so that all who see it do the same."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from flexinfer import errors

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {name for name, kind in vars(errors).items() if isinstance(kind, type)}


def test_every_code_that_is_raised_belongs_to_one_class() -> None:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for root in ("core", "pipelines", "operator", "serving"):
        for file in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                    continue
                for keyword in node.keywords:
                    code = keyword.value
                    if keyword.arg != "code" or not isinstance(code, ast.Constant):
                        continue
                    if node.func.id in CLASSES and isinstance(code.value, str):
                        place = f"{file.relative_to(ROOT)}:{node.lineno}"
                        found[code.value][node.func.id] = place
    assert len(found) > 50
    assert {code: classes for code, classes in found.items() if len(classes) > 1} == {}
