"""Read a request's body: bounded, checked, and put together again from the fields that may pass.

Values are never decoded further than their check needs; they reach the engine as the client wrote them. A key
that appears twice counts once, the last one: the engine sees only that one, so nobody is fooled by which wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from flexinfer.engine import Endpoint
from flexinfer.errors import InvalidInput
from flexinfer_serving.openai import fields

MAX_DEPTH = 64
MAX_KEYS = 128
# What bounds the cost of measuring the depth; a large tool list has some thousands.
MAX_BRACKETS = 2 * 131072
MAX_MODEL_CHARS = 256
_MAX_DROPPED = 8

_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_SQUARE = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    default: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIRequest:
    """A request that passed its checks."""

    endpoint: Endpoint
    model: str
    """As the client named it: a name or an alias."""
    is_stream: bool
    dropped: tuple[str, ...]
    """Names of fields that do not reach the engine, at most a few."""
    values: Mapping[str, msgspec.Raw]
    max_tokens: int | None
    """What the client asked for; None where it did not, or where nothing is generated."""

    def body(self, *, model: str, context_tokens: int, limits: TokenLimits) -> bytes:
        """Return what the engine gets."""
        found = dict(self.values)
        found["model"] = msgspec.Raw(msgspec.json.encode(model))
        if self.endpoint is not Endpoint.EMBEDDINGS:
            wanted = limits.default if self.max_tokens is None else self.max_tokens
            bounded = min(wanted, context_tokens) if context_tokens > 0 else wanted
            found["max_tokens"] = msgspec.Raw(str(bounded).encode())
        return msgspec.json.encode(found)


def read(endpoint: Endpoint, body: bytes, *, limits: TokenLimits) -> OpenAIRequest:
    """Return the request in *body*.

    Raises:
        InvalidInput: `param` names the field at fault.
    """
    tree = read_object(body)
    model = model_of(tree)
    for name, code in fields.REFUSED.items():
        if name in tree and bytes(tree[name]) not in (b"null", b"{}"):
            raise fields.wrong(name, "may not be set by a request", code=code)
    required = fields.REQUIRED[endpoint]
    if required not in tree:
        raise fields.wrong(required, "is required", code="missing_field")
    known = fields.FIELDS[endpoint]
    values: dict[str, msgspec.Raw] = {}
    dropped: list[str] = []
    for name, raw in tree.items():
        check = known.get(name)
        if check is not None:
            check(name, raw)
            values[name] = raw
        elif name != "model" and name not in fields.REFUSED:
            dropped.append(name if _PLAIN_NAME.fullmatch(name) else "?")
    fields.check_best_of(values)
    for name in fields.CHECKED & values.keys():
        del values[name]
    stream = values.get("stream")
    return OpenAIRequest(
        endpoint=endpoint,
        model=model,
        is_stream=stream is not None and bytes(stream) == b"true",
        dropped=tuple(dropped[:_MAX_DROPPED]),
        max_tokens=_max_tokens(values, limits),
        values=values,
    )


def read_object(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a JSON object: strict UTF-8 without a mark, no NaN, at most MAX_DEPTH deep.

    Raises:
        InvalidInput: code `invalid_json`.
    """
    try:
        body.decode("utf-8")
        tree = _TOP.decode(body)
        if _SURROGATE.search(body):
            msgspec.json.decode(body)  # decodes every string: half a surrogate pair is refused
    except UnicodeDecodeError as error:
        raise _not_json(f"expected UTF-8, byte {error.start} is not") from error
    except RecursionError as error:
        raise _not_json(f"nested more than {MAX_DEPTH} deep") from error
    except msgspec.ValidationError as error:
        raise _not_json("expected an object") from error
    except msgspec.DecodeError as error:
        raise _not_json(f"not JSON: {error}") from error
    if len(tree) > MAX_KEYS:
        raise _not_json(f"expected at most {MAX_KEYS} fields, found {len(tree)}")
    if _is_too_deep(body):
        raise _not_json(f"nested more than {MAX_DEPTH} deep")
    return tree


def model_of(tree: Mapping[str, msgspec.Raw]) -> str:
    """Return the Model that a request names.

    Raises:
        InvalidInput: absent, no string, empty or too long.
    """
    if "model" not in tree:
        raise fields.wrong("model", "is required", code="missing_field")
    model: str = fields.decode("model", tree["model"], str, "a string")
    if not 1 <= len(model) <= MAX_MODEL_CHARS:
        raise fields.wrong("model", f"expected 1 to {MAX_MODEL_CHARS} characters")
    return model


def _max_tokens(values: dict[str, msgspec.Raw], limits: TokenLimits) -> int | None:
    """Take both spellings out of *values* and return the one that counts: the newer."""
    found: int | None = None
    for name in ("max_tokens", "max_completion_tokens"):
        raw = values.pop(name, None)
        value: int | None = None if raw is None else msgspec.json.decode(raw, type=int | None)
        if value is None:
            continue
        if value > limits.maximum:
            raise fields.wrong(name, f"expected at most {limits.maximum}, found {value}")
        found = value
    return found


def _is_too_deep(body: bytes) -> bool:
    """Return whether valid JSON nests deeper than MAX_DEPTH.

    1. As many opening brackets as the limit or fewer, also counting those in strings: it cannot.
    2. Else without strings and all but brackets, each pass removes the innermost level.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", body).translate(_SQUARE, _NOT_BRACKETS)
    if len(brackets) > MAX_BRACKETS:
        raise _not_json(f"expected at most {MAX_BRACKETS // 2} arrays and objects")
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _not_json(what: str) -> InvalidInput:
    return InvalidInput(f"body: {what}", code="invalid_json")
