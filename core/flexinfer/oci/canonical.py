"""JSON with one byte form for one value, and a reader that refuses what two readers could read differently."""

from __future__ import annotations

import json
from typing import Any

from flexinfer.errors import InvalidInput


def canonical_json(value: Any) -> bytes:
    """Return *value* as UTF-8 JSON: keys sorted, no spaces, no trailing newline, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def parse_object(
    data: bytes, *, what: str, code: str, too_large: str, max_bytes: int
) -> dict[str, Any]:
    """Return the JSON object in *data*; *what* names it in messages.

    Raises:
        InvalidInput: code *too_large*: above *max_bytes*. Code *code*: not UTF-8, not JSON, nested too deep, a key that
            occurs twice, a number that JSON has not (NaN), or anything else than an object.
    """
    if len(data) > max_bytes:
        raise InvalidInput(
            f"{what}: expected at most {max_bytes} bytes, got {len(data)}",
            code=too_large,
        )
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput(f"{what}: expected a JSON object: {reason}", code=code) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what}: expected a JSON object, got {type(value).__name__}", code=code)
    return value


def text_map(value: Any, *, what: str, code: str, too_large: str, max_bytes: int) -> dict[str, str]:
    """Return *value* as a map of strings to strings whose keys and values fit *max_bytes*; None is empty.

    Raises:
        InvalidInput: code *too_large*: above *max_bytes*. Code *code*: anything else than such a map.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{what}: expected an object, got {type(value).__name__}", code=code)
    size = 0
    for key, text in value.items():
        if not isinstance(text, str):
            raise InvalidInput(
                f"{what}: {key!r}: expected a string, got {type(text).__name__}", code=code
            )
        try:
            size += len(key.encode()) + len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{what}: {key!r}: not valid Unicode", code=code) from error
    if size > max_bytes:
        raise InvalidInput(
            f"{what}: expected at most {max_bytes} bytes, got {size}",
            code=too_large,
        )
    return dict(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r} occurs twice")
            seen.add(key)
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
