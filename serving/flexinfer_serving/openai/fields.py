"""Which fields of a request reach an engine: an allow-list per endpoint, and a check for each.

forwarded   the OpenAI fields below, each after its check; `model` becomes the Model's name, and `max_tokens` /
            `max_completion_tokens` become one `max_tokens`, bounded, with a default
checked     OpenAI fields that no engine here does, at the values that mean "not wanted": modalities ["text"],
            functions [], function_call "none" or "auto", echo false, suffix "", best_of equal to n. They are not
            forwarded; any other value is 400 `field_not_allowed`, and so are audio, web_search_options,
            dimensions, and logprobs 0 of completions
refused     400: they would change what is computed, so leaving them out would be a wrong answer
            · `template_override`: chat_template, chat_template_kwargs, add_generation_prompt,
              continue_final_message
            · `field_not_allowed`: grammar, grammar_lazy, json_schema, guided_json, guided_regex,
              guided_choice, guided_grammar, structured_outputs, lora, prompt_embeds
dropped     everything else, known (cache_salt, cache_prompt, id_slot, slot_id, n_discard, n_keep, priority,
            extra_args, user, store, metadata, service_tier, …) or not; the names are told in the answer's
            header `x-flexinfer-dropped`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flexinfer.engine import Endpoint
from flexinfer.errors import InvalidInput

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_INPUTS = 2048
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 * 1024
MAX_SCHEMA_BYTES = 64 * 1024
MAX_BIAS = 1024
MAX_SMALL_BYTES = 4096
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# What an engine reads into 32 bits would be another token.
MAX_TOKEN_ID = 2**31 - 1

PAIR = ("best_of", "n")
_TOKEN = re.compile(r"[0-9]{1,10}")

Check = Callable[[str, msgspec.Raw], None]


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: msgspec.Raw = msgspec.Raw(b"null")
    refusal: str | None = None


class _Image(msgspec.Struct):
    url: str


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


_IMAGE = msgspec.json.Decoder(_Image | str)
_MESSAGES = msgspec.json.Decoder(list[_Message])
_PARTS = msgspec.json.Decoder(list[_Part])


def decode(name: str, raw: msgspec.Raw, kind: Any, expected: str) -> Any:
    """Return *raw* as *kind*.

    Raises:
        InvalidInput: with `param` *name*; *expected* says in words what it must be.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(name, f"expected {expected}") from error


def wrong(name: str, what: str, *, code: str = "invalid_value") -> InvalidInput:
    return InvalidInput(f"{name}: {what}", code=code, param=name)


def whole(low: int, high: int) -> Check:
    def check(name: str, raw: msgspec.Raw) -> None:
        expected = f"a whole number from {low} to {high}, or null"
        value = decode(name, raw, int | None, expected)
        if value is not None and not low <= value <= high:
            raise wrong(name, f"expected {expected}, found {str(value)[:32]}")

    return check


def number(low: float, high: float) -> Check:
    def check(name: str, raw: msgspec.Raw) -> None:
        expected = f"a number from {low:g} to {high:g}, or null"
        value = decode(name, raw, float | None, expected)
        if value is not None and not low <= value <= high:
            raise wrong(name, f"expected {expected}, found {value:g}")

    return check


def flag(name: str, raw: msgspec.Raw) -> None:
    decode(name, raw, bool | None, "true, false or null")


def text(limit: int) -> Check:
    def check(name: str, raw: msgspec.Raw) -> None:
        value = decode(name, raw, str | None, "a string or null")
        if value is not None and len(value) > limit:
            raise wrong(name, f"expected at most {limit} characters, found {len(value)}")

    return check


def sized(limit: int, kind: Any, expected: str) -> Check:
    """Bound the bytes of a value whose inside is the engine's to judge, and check its outer kind."""

    def check(name: str, raw: msgspec.Raw) -> None:
        size = len(bytes(raw))
        if size > limit:
            raise wrong(name, f"expected at most {limit} bytes, found {size}")
        decode(name, raw, kind, expected)

    return check


def stops(name: str, raw: msgspec.Raw) -> None:
    value = decode(name, raw, str | list[str] | None, "a string or a list of strings")
    found = [value] if isinstance(value, str) else value or []
    if len(found) > MAX_STOPS:
        raise wrong(name, f"expected at most {MAX_STOPS} sequences, found {len(found)}")
    if any(not one or len(one) > MAX_STOP_CHARS for one in found):
        raise wrong(name, f"expected sequences of 1 to {MAX_STOP_CHARS} characters")


def tools(name: str, raw: msgspec.Raw) -> None:
    sized(MAX_TOOLS_BYTES, list[dict[str, msgspec.Raw]] | None, "a list of objects")(name, raw)
    count = len(decode(name, raw, list[msgspec.Raw] | None, "a list") or ())
    if count > MAX_TOOLS:
        raise wrong(name, f"expected at most {MAX_TOOLS} tools, found {count}")


def bias(name: str, raw: msgspec.Raw) -> None:
    value = decode(name, raw, dict[str, float] | None, "an object of token → number") or {}
    if len(value) > MAX_BIAS:
        raise wrong(name, f"expected at most {MAX_BIAS} entries, found {len(value)}")
    for token in value:
        if not _TOKEN.fullmatch(token) or int(token) > MAX_TOKEN_ID:
            expected = f"expected token numbers from 0 to {MAX_TOKEN_ID}"
            raise wrong(name, f"{expected}, found {token[:32]!r}")


def only(expected: str, *allowed: Any) -> Check:
    """Allow values that ask for nothing; *expected* says in words which."""

    def check(name: str, raw: msgspec.Raw) -> None:
        if decode(name, raw, Any, "JSON") not in (None, *allowed):
            raise wrong(name, f"is not served; expected {expected}", code="field_not_allowed")

    return check


def completion_logprobs(name: str, raw: msgspec.Raw) -> None:
    whole(0, MAX_COMPLETION_LOGPROBS)(name, raw)
    if bytes(raw) == b"0":
        expected = f"expected 1 to {MAX_COMPLETION_LOGPROBS}, or null"
        raise wrong(name, f"0 is not served; {expected}", code="field_not_allowed")


def encoding(name: str, raw: msgspec.Raw) -> None:
    value = decode(name, raw, str | None, "float or base64")
    if value not in (None, "float", "base64"):
        raise wrong(name, f"expected float or base64, found {value[:32]!r}")


def check_best_of(values: Mapping[str, msgspec.Raw]) -> None:
    """Refuse a choice among more answers than are returned: no engine here makes it."""
    best_of, n = (decode(k, values[k], int | None, "") if k in values else None for k in PAIR)
    if best_of is not None and best_of != (n or 1):
        raise wrong(
            "best_of", f"is served only where it equals n, here {n or 1}", code="field_not_allowed"
        )


def prompt(name: str, raw: msgspec.Raw) -> None:
    """Texts or tokens: one, or a list of them."""
    kind = str | list[str | int | list[int]]
    value = decode(name, raw, kind, "a string, a list of strings, or lists of token numbers")
    if not value:
        raise wrong(name, "expected something, found nothing")
    if isinstance(value, str):
        return
    if len({type(one) for one in value}) > 1:
        raise wrong(name, "expected entries of one kind")
    if not isinstance(value[0], int) and len(value) > MAX_INPUTS:
        raise wrong(name, f"expected at most {MAX_INPUTS} entries, found {len(value)}")
    if any(one in ("", []) for one in value):
        raise wrong(name, "expected no empty entries")
    for one in value:
        tokens = one if isinstance(one, list) else [one] if isinstance(one, int) else []
        if tokens and not (min(tokens) >= 0 and max(tokens) <= MAX_TOKEN_ID):
            bad = next(token for token in tokens if not 0 <= token <= MAX_TOKEN_ID)
            expected = f"expected token numbers from 0 to {MAX_TOKEN_ID}"
            raise wrong(name, f"{expected}, found {str(bad)[:32]}")


def messages(name: str, raw: msgspec.Raw) -> None:
    """Shape, count, roles, and that nothing in them makes an engine fetch an address."""
    try:
        found = _MESSAGES.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(name, "expected a list of objects with a role and content") from error
    if not 1 <= len(found) <= MAX_MESSAGES:
        raise wrong(name, f"expected 1 to {MAX_MESSAGES} messages, found {len(found)}")
    for index, message in enumerate(found):
        if message.role not in ROLES:
            expected = f"expected one of {', '.join(ROLES)}"
            raise wrong(f"{name}[{index}].role", f"{expected}; found {message.role[:32]!r}")
        _content(f"{name}[{index}].content", message.content)


def _content(name: str, raw: msgspec.Raw) -> None:
    start = bytes(raw[:1]) if not isinstance(raw, msgspec.Raw) else bytes(raw).lstrip()[:1]
    if start in (b'"', b"n"):
        return
    try:
        parts = _PARTS.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(name, "expected a string, null, or a list of parts with a type") from error
    for part in parts:
        if part.type not in ("text", "refusal", "image_url"):
            raise wrong(
                name, f"part type {part.type[:32]!r} is not served", code="field_not_allowed"
            )
        if part.type == "image_url":
            _image(name, part.image_url)


def _image(name: str, raw: msgspec.Raw) -> None:
    try:
        image = _IMAGE.decode(raw)
    except msgspec.DecodeError as error:
        raise wrong(name, "image_url: expected an object with a url") from error
    url = image if isinstance(image, str) else image.url
    if not url.startswith("data:"):
        raise wrong(
            name, "image_url: only data: URLs, nothing is fetched", code="image_url_not_allowed"
        )


_SAMPLING: dict[str, Check] = {
    "frequency_penalty": number(-2, 2),
    "logit_bias": bias,
    "max_tokens": whole(1, 2**31 - 1),
    "n": whole(1, MAX_CHOICES),
    "presence_penalty": number(-2, 2),
    "seed": whole(-(2**63), 2**63 - 1),
    "stop": stops,
    "stream": flag,
    "stream_options": sized(MAX_SMALL_BYTES, dict[str, msgspec.Raw] | None, "an object"),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
}
_SCHEMA = sized(MAX_SCHEMA_BYTES, dict[str, msgspec.Raw] | None, "an object")
_CHOICE = sized(MAX_SMALL_BYTES, str | dict[str, msgspec.Raw] | None, "a string or an object")

FIELDS: Mapping[Endpoint, Mapping[str, Check]] = {
    Endpoint.CHAT: {
        **_SAMPLING,
        "audio": only("null"),
        "function_call": only("none or auto, as there are no functions", "none", "auto"),
        "functions": only("none; use tools", []),
        "logprobs": flag,
        "max_completion_tokens": whole(1, 2**31 - 1),
        "messages": messages,
        "modalities": only('["text"]', ["text"]),
        "parallel_tool_calls": flag,
        "reasoning_effort": text(32),
        "response_format": _SCHEMA,
        "tool_choice": _CHOICE,
        "tools": tools,
        "top_logprobs": whole(0, MAX_TOP_LOGPROBS),
        "web_search_options": only("null"),
    },
    Endpoint.COMPLETIONS: {
        **_SAMPLING,
        "best_of": whole(1, MAX_CHOICES),
        "echo": only("false", False),
        "logprobs": completion_logprobs,
        "prompt": prompt,
        "suffix": only("an empty one", ""),
    },
    Endpoint.EMBEDDINGS: {
        "dimensions": only("the model's own, by leaving it out"),
        "encoding_format": encoding,
        "input": prompt,
    },
}
# Checked, and then of no more use: at the values that are allowed they ask for nothing.
CHECKED = frozenset(
    {
        "audio",
        "best_of",
        "dimensions",
        "echo",
        "function_call",
        "functions",
        "modalities",
        "suffix",
        "web_search_options",
    }
)
REQUIRED: Mapping[Endpoint, str] = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
}
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "add_generation_prompt",
            "chat_template",
            "chat_template_kwargs",
            "continue_final_message",
        ),
        "template_override",
    ),
    **dict.fromkeys(
        (
            "grammar",
            "grammar_lazy",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "json_schema",
            "lora",
            "prompt_embeds",
            "structured_outputs",
        ),
        "field_not_allowed",
    ),
}
