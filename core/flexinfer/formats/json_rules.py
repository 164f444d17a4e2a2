"""The rules for JSON files of a model: no remote code; where chat templates are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NoReturn

from flexinfer.errors import InvalidInput
from flexinfer.formats.cursor import shown

# A configuration file. Vocabularies (tokenizer.json) may be larger: they are never decoded here.
MAX_JSON_BYTES = 4 << 20
MAX_INDEX_BYTES = 32 << 20
# Keys by which loaders find Python code to import from the model's own repository.
_CODE_KEYS = frozenset({"auto_map", "custom_pipelines"})
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})


def is_vocabulary(path: str) -> bool:
    return path.rsplit("/", 1)[-1] in _VOCABULARIES


def is_index(path: str) -> bool:
    return path.endswith(".safetensors.index.json")


def limit_for(path: str) -> int:
    """Return how many bytes a JSON file that is decoded may have."""
    return MAX_INDEX_BYTES if is_index(path) else MAX_JSON_BYTES


def parse(name: str, raw: bytes) -> object:
    """Decode *raw*, refusing remote code in any object, doubled keys and text after the end.

    Raises:
        InvalidInput: `config`: not JSON; `remote_code`: an object names code to import.
    """

    def check_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in _CODE_KEYS and value:
                _refuse_code(name, key, value)
            if key in found:
                raise ValueError(f"the key {shown(key)} occurs twice in one object")
            found[key] = value
        return found

    try:
        parsed: object = json.loads(raw, object_pairs_hook=check_object)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:160]
        raise InvalidInput(f"{name}: expected JSON: {reason}", code="config") from error
    return parsed


def find_templates(name: str, parsed: object) -> Iterator[tuple[str, str]]:
    """Yield name and source of each chat template in a decoded tokenizer or processor config.

    Raises:
        InvalidInput: `template`: the field is neither text nor a list of named texts.
    """
    value = parsed.get("chat_template") if isinstance(parsed, dict) else None
    if value is None:
        return
    if isinstance(value, str):
        yield f"{name} chat_template", value
        return
    entries: list[tuple[object, object]]
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = [
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            for entry in value
        ]
    else:
        entries = [(None, None)]
    for label, source in entries:
        if not isinstance(label, str) or not isinstance(source, str):
            raise InvalidInput(
                f"{name}: chat_template: expected text or a list of name and template",
                code="template",
            )
        yield f"{name} chat_template {shown(label)}", source


def find_facts(name: str, parsed: object) -> dict[str, str | int]:
    """Return what a model's `config.json` tells, by the names of the inspection's fields."""
    if name.rsplit("/", 1)[-1] != "config.json" or not isinstance(parsed, dict):
        return {}
    architectures = parsed.get("architectures")
    quantized = parsed.get("quantization_config")
    told = {
        "architecture": architectures[0]
        if isinstance(architectures, list) and architectures
        else parsed.get("model_type"),
        "context_length": parsed.get("max_position_embeddings"),
        "embedding_length": parsed.get("hidden_size"),
        "quantization": quantized.get("quant_method") if isinstance(quantized, dict) else None,
    }
    numbers = ("context_length", "embedding_length")
    return {
        field: value
        for field, value in told.items()
        if type(value) is (int if field in numbers else str)
    }


def _refuse_code(name: str, key: str, value: object) -> NoReturn:
    raise InvalidInput(
        f"{name} {key} -> {shown(str(value))}: code from a model's repository is not run;"
        " use a model whose architecture the engine has itself",
        code="remote_code",
    )
