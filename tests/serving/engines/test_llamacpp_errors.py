"""Refusals of real requests to xllamacpp 2026.10.11549; the comment says what was asked."""

from __future__ import annotations

import json

import pytest

from flexinfer.engine import Endpoint
from flexinfer_serving.engines.llamacpp import LlamaCpp

engine = LlamaCpp()


def body(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


TOO_LONG = body(
    "request (6031 tokens) exceeds the available context size (4096 tokens), try increasing it",
    code=400, type="exceed_context_size_error", n_prompt_tokens=6031, n_ctx=4096,
)  # fmt: skip
TOO_LARGE = body(
    "input (5001 tokens) is too large to process. increase the physical batch size (current batch size: 4096)",
    code=500, type="server_error",
)  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "answer", "status", "param", "used"),
    [
        (Endpoint.CHAT, TOO_LONG, 400, "messages", "6031"),
        (Endpoint.COMPLETIONS, TOO_LONG, 400, "prompt", "6031"),
        (None, TOO_LONG, 400, "messages", "6031"),
        (Endpoint.EMBEDDINGS, TOO_LARGE, 500, "input", "5001"),
    ],
)
def test_what_is_longer_than_the_context_is_the_clients_mistake_with_both_numbers(
    endpoint: Endpoint | None, answer: bytes, status: int, param: str, used: str
) -> None:
    error = engine.error(status, answer, endpoint)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
    assert error.type == "invalid_request_error"
    assert "4096 tokens" in error.message
    assert f"{used} tokens" in error.message
    assert "batch" not in error.message


@pytest.mark.parametrize(
    ("status", "message", "code", "param", "told"),
    [
        # temperature "hot"
        (400, "Field 'temperature': [json.exception.type_error.302] type must be number, but is string",
         "invalid_request", "temperature", "Field 'temperature': type must be number, but is string."),
        # n 9 of 4 slots
        (400, "Field 'n': Value must be between 1 <= value <= 4, but got 9",
         "invalid_request", "n", "Field 'n': Value must be between 1 <= value <= 4, but got 9."),
        # an unfinished body
        (400, "[json.exception.parse_error.101] parse error at line 1, column 52: syntax error while parsing "
         "value - invalid string: missing closing quote; last read: '\"SECRETPROMPT'",
         "invalid_request", None,
         "parse error at line 1, column 52: syntax error while parsing value - invalid string: missing closing quote."),
        # a message without a role: 500 of the engine
        (500, "Failed to parse messages: Missing 'role' in message: {\"content\":\"SECRETPROMPT\"}",
         "invalid_request", "messages", "The messages of the request are malformed: Missing 'role' in message."),
        # tools that are a string
        (500, "Failed to parse tools: Expected 'tools' to be an array, got \"x\"; tools = \"x\"",
         "invalid_request", "tools", "The tools of the request are malformed: Expected 'tools' to be an array."),
        # a picture
        (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
         "unsupported_content", "messages", "This model takes text only, and the request has image content."),
        (500, "Unknown reasoning format: zz",
         "invalid_request", "reasoning_format", "The reasoning_format of the request is not known."),
        # a pattern of a hundred thousand items
        (400, "Failed to initialize samplers: failed to parse grammar",
         "invalid_request", None, "Failed to initialize samplers: failed to parse grammar."),
        # "messages": nothing
        (400, "", "invalid_request", None, "The engine refused the request as malformed."),
    ],
)  # fmt: skip
def test_the_clients_mistake_is_400_and_quotes_nothing(
    status: int, message: str, code: str, param: str | None, told: str
) -> None:
    error = engine.error(status, body(message))
    assert (error.status, error.code, error.param, error.message) == (400, code, param, told)


@pytest.mark.parametrize("status", [401, 404, 500, 502, 599])
def test_the_engines_own_fault_is_502_and_tells_nothing_of_its_insides(status: int) -> None:
    error = engine.error(status, body("segfault at /opt/engine/lib.so: key sk-123"))
    assert (error.status, error.code, error.type) == (502, "upstream_error", "server_error")
    assert "opt" not in error.message
    assert "sk-123" not in error.message


def test_paths_are_left_out() -> None:
    error = engine.error(400, body("cannot read /home/somebody/models/x.gguf now"))
    assert error.message == "cannot read now."


def test_an_engine_that_loads_says_so() -> None:
    error = engine.error(503, body("Loading model", code=503, type="unavailable_error"))
    assert (error.status, error.code) == (503, "model_loading")


def test_what_the_engine_was_not_started_for_is_no_endpoint() -> None:
    answer = body("This server does not support embeddings. Start it with `--embeddings`", code=501)
    assert engine.error(501, answer).code == "unsupported_endpoint"


def test_a_message_of_any_length_is_cut() -> None:
    assert len(engine.error(400, body("a" * 60_000)).message) < 400


def test_a_number_of_any_length_is_no_number() -> None:
    digits = "9" * 5000
    answer = body(f"request ({digits} tokens) exceeds the available context size (4096 tokens)")
    assert engine.error(400, answer).code == "invalid_request"
