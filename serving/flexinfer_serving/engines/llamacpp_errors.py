"""llama.cpp's refusals in the terms of OpenAI's API.

Its own words reach a client only where they name the client's mistake, cleaned and cut; what tells of flags,
paths or its insides does not. Statuses 5xx that are the client's mistake become 400.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flexinfer.engine import Endpoint, EngineError
from flexinfer.printable import one_line

MAX_MESSAGE_CHARACTERS = 300
MAX_BODY_BYTES = 64 * 1024

_PARAM = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
}
_TOO_LARGE = re.compile(
    r"input \((\d{1,12}) tokens\) is too large to process.*batch size: (\d{1,12})"
)
_TOO_LONG = re.compile(
    r"request \((\d{1,12}) tokens\) exceeds the available context size \((\d{1,12})"
)
_FIELD = re.compile(r"Field '(\w{1,64})': ")
_MEDIA = re.compile(r"(image|audio|video) input is not supported")
_UNPARSED = re.compile(r"Failed to parse (messages|tools): ([\w '\-]{1,80})")
# `[json.exception.type_error.302] `, what it read last, and everything that looks like a path or a dump.
_NOISE = re.compile(
    r"\[json\.exception[^\]]{0,80}\]\s*|;? ?last read: .*|(?:/[\w.\-]+){2,}|\s*- hint:.*|[{\[].*"
)
_SPACE = re.compile(r"\s+")


def error(status: int, body: bytes, endpoint: Endpoint | None) -> EngineError:
    """Return what a client is told for an answer with *status* ≥ 400 to a request at *endpoint*."""
    fields = _fields(body)
    words = fields.get("message")
    message = words if isinstance(words, str) else ""
    known = _known_mistake(fields, message, endpoint)
    if known is not None:
        return known
    if status == 503:
        return EngineError(
            status=503, code="model_loading", type="server_error", message="The model is loading."
        )
    if status == 501:
        return EngineError(
            status=404,
            code="unsupported_endpoint",
            message="The engine of this model does not offer this.",
        )
    if status in (400, 413, 422):
        return _mistake(message, status=413 if status == 413 else 400)
    return EngineError(
        status=502,
        code="upstream_error",
        type="server_error",
        message=f"The engine failed on this request (its status was {status}).",
    )


def _known_mistake(
    fields: dict[str, Any], message: str, endpoint: Endpoint | None
) -> EngineError | None:
    too_long = _TOO_LONG.search(message)
    if too_long or fields.get("type") == "exceed_context_size_error":
        used, limit = fields.get("n_prompt_tokens"), fields.get("n_ctx")
        if too_long:
            used, limit = too_long.groups()
        return _context(_PARAM[endpoint or Endpoint.CHAT], _count(used), _count(limit))
    if too_large := _TOO_LARGE.search(message):
        return _context("input", int(too_large[1]), int(too_large[2]))
    if media := _MEDIA.search(message):
        return EngineError(
            status=400,
            code="unsupported_content",
            message=f"This model takes text only, and the request has {media[1]} content.",
            param="messages",
        )
    if unparsed := _UNPARSED.search(message):
        return EngineError(
            status=400,
            code="invalid_request",
            message=f"The {unparsed[1]} of the request are malformed: {unparsed[2].strip()}.",
            param=unparsed[1],
        )
    if message.startswith("Unknown reasoning format"):
        return EngineError(
            status=400,
            code="invalid_request",
            message="The reasoning_format of the request is not known.",
            param="reasoning_format",
        )
    return None


def _context(param: str, used: int | None, limit: int | None) -> EngineError:
    asked = "more than that" if used is None else f"{used} tokens"
    allowed = "" if limit is None else f" of {limit} tokens"
    return EngineError(
        status=400,
        code="context_length_exceeded",
        message=(
            f"This model's maximum context length{allowed} is exceeded: your {param} resulted in "
            f"{asked}. Shorten the {param}."
        ),
        param=param,
    )


def _mistake(message: str, *, status: int) -> EngineError:
    field = _FIELD.search(message)
    cleaned = _SPACE.sub(" ", one_line(_NOISE.sub("", message))).strip(" .;:,")
    if len(cleaned) > MAX_MESSAGE_CHARACTERS:
        cleaned = cleaned[:MAX_MESSAGE_CHARACTERS] + "…"
    return EngineError(
        status=status,
        code="request_too_large" if status == 413 else "invalid_request",
        message=f"{cleaned}." if cleaned else "The engine refused the request as malformed.",
        param=field[1] if field else None,
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(body[:MAX_BODY_BYTES])
    except (ValueError, RecursionError):
        return {}
    found = tree.get("error") if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}


def _count(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
