"""The JSON schema of what people write, for editors: `catalogs/schema.json`.

python -m flexinfer.resources.schema PATH            write it
python -m flexinfer.resources.schema --check PATH    exit 1 if the file is not what would be written
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from flexinfer.resources import entry, model
from flexinfer.resources.entry import CatalogEntry
from flexinfer.resources.model import Model


class _Untitled(GenerateJsonSchema):
    """Without the titles that repeat each key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, Any]:
    """Return one schema (draft 2020-12) that a CatalogEntry or a Model file satisfies."""
    _, found = models_json_schema(
        [(CatalogEntry, "validation"), (Model, "validation")], schema_generator=_Untitled
    )
    definitions: dict[str, Any] = found["$defs"]
    for module in (model, entry):
        _describe(definitions, module)
    for kind in (CatalogEntry.__name__, Model.__name__):
        # They have defaults for code that makes one; a file must say what it is.
        definitions[kind]["required"] = ["apiVersion", "kind", *definitions[kind]["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A CatalogEntry or a Model of FlexInfer",
        "anyOf": [{"$ref": "#/$defs/CatalogEntry"}, {"$ref": "#/$defs/Model"}],
        "$defs": dict(sorted(definitions.items())),
    }


def _describe(definitions: dict[str, Any], module: ModuleType) -> None:
    """Take over what stands below a field in the source: reading it here keeps imports fast."""
    for part in ast.parse(inspect.getsource(module)).body:
        kind = getattr(module, part.name, None) if isinstance(part, ast.ClassDef) else None
        if not isinstance(part, ast.ClassDef) or part.name not in definitions:
            continue
        assert isinstance(kind, type) and issubclass(kind, model.Part)
        for field, note in pairwise(part.body):
            match field, note:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    key = kind.model_fields[name].alias or name
                    properties = definitions[part.name]["properties"]
                    properties[key] = {"description": text, **properties[key]}


def schema_text() -> str:
    """Return the text of `catalogs/schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write or check the file that *arguments* name; return the exit code."""
    match arguments:
        case ["--check", path]:
            file = Path(path)
            if file.is_file() and file.read_text("utf-8") == schema_text():
                return 0
            print(
                f"{file} is not current: run python -m flexinfer.resources.schema {file}",
                file=sys.stderr,
            )
            return 1
        case [path] if not path.startswith("-"):
            Path(path).write_text(schema_text(), "utf-8")
            return 0
        case _:
            print("usage: python -m flexinfer.resources.schema [--check] PATH", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
