"""Reading a request: what passes, what is refused with which words, and what an engine gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexinfer.engine import Endpoint
from flexinfer.errors import InvalidInput
from flexinfer_serving.openai.fields import FIELDS, REFUSED
from flexinfer_serving.openai.request import OpenAIRequest, TokenLimits, read, read_object

LIMITS = TokenLimits(default=100, maximum=1000)
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**more: Any) -> OpenAIRequest:
    body = {"model": "m", "messages": MESSAGES, **more}
    return read(Endpoint.CHAT, json.dumps(body).encode(), limits=LIMITS)


def forwarded(request: OpenAIRequest, *, context_tokens: int = 4096) -> dict[str, Any]:
    body = request.body(model="real-name", context_tokens=context_tokens, limits=LIMITS)
    found: dict[str, Any] = json.loads(body)
    return found


def refusal_of(endpoint: Endpoint, body: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read(endpoint, body, limits=LIMITS)
    return caught.value


def refusal(**more: Any) -> InvalidInput:
    body = {"model": "m", "messages": MESSAGES, **more}
    return refusal_of(Endpoint.CHAT, json.dumps(body).encode())


def test_the_engine_gets_the_models_name_and_not_the_alias() -> None:
    assert forwarded(chat())["model"] == "real-name"


def test_a_request_without_max_tokens_gets_the_default() -> None:
    assert forwarded(chat())["max_tokens"] == 100


def test_the_default_is_bounded_by_the_context() -> None:
    assert forwarded(chat(), context_tokens=50)["max_tokens"] == 50


def test_the_newer_spelling_of_max_tokens_counts_and_only_one_is_sent() -> None:
    found = forwarded(chat(max_tokens=5, max_completion_tokens=7))
    assert found["max_tokens"] == 7
    assert "max_completion_tokens" not in found


def test_an_embedding_gets_no_max_tokens() -> None:
    request = read(Endpoint.EMBEDDINGS, b'{"model":"m","input":"x"}', limits=LIMITS)
    assert "max_tokens" not in forwarded(request)


def test_values_reach_the_engine_as_the_client_wrote_them() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\u00e9 1.0"}],"temperature":0.70}'
    request = read(Endpoint.CHAT, body, limits=LIMITS)
    sent = request.body(model="m", context_tokens=10, limits=LIMITS)
    assert b'[{"role":"user","content":"\\u00e9 1.0"}]' in sent
    assert b'"temperature":0.70' in sent


@pytest.mark.parametrize(
    "name",
    [
        "cache_salt",
        "n_discard",
        "id_slot",
        "priority",
        "extra_args",
        "cache_prompt",
        "user",
        "top_k",
        "min_p",
        "repeat_penalty",
        "temprature",
    ],
)
def test_fields_of_an_engine_are_dropped_and_named(name: str) -> None:
    request = chat(**{name: 1})
    assert name not in forwarded(request)
    assert request.dropped == (name,)


@pytest.mark.parametrize("name", ["chat_template", "chat_template_kwargs", "add_generation_prompt"])
def test_a_template_of_the_callers_is_refused(name: str) -> None:
    error = refusal(**{name: "{{ x }}"})
    assert (error.code, error.param) == ("template_override", name)


@pytest.mark.parametrize(
    "name", ["grammar", "lora", "guided_regex", "prompt_embeds", "json_schema"]
)
def test_what_would_change_the_computation_is_refused(name: str) -> None:
    error = refusal(**{name: "x"})
    assert (error.code, error.param) == ("field_not_allowed", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 10000), ("n", 0), ("n", -1), ("n", 1.5), ("n", "1"), ("n", True),
        ("max_tokens", 10**9), ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 1.5), ("max_tokens", "9"),
        ("max_completion_tokens", 10**9), ("top_logprobs", 10**6), ("logprobs", 5),
        ("temperature", "0.5"), ("temperature", 3), ("temperature", -1), ("temperature", True),
        ("top_p", 2), ("stop", ["x"] * 17), ("stop", [""]), ("stop", "x" * 257), ("stop", [1]),
        ("stream", "yes"), ("stream", 1), ("logit_bias", [1]), ("tools", {}), ("tools", [{}] * 129),
        ("seed", 2**64), ("response_format", "json"), ("messages", []), ("messages", "hi"),
        ("messages", [1]), ("messages", [{"content": "x"}]), ("model", ""), ("model", 1), ("model", "x" * 300),
        ("tools", [{"schema": "x" * 300_000}]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_field(name: str, value: Any) -> None:
    assert refusal(**{name: value}).param == name


@pytest.mark.parametrize("role", ["alien", "", "User", "x" * 9999])
def test_a_role_that_nobody_has_is_refused_by_its_place(role: str) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": role, "content": "hi"}]
    error = refusal(messages=said)
    assert (error.code, error.param) == ("invalid_value", "messages[1].role")
    assert len(error.message) < 200


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_every_role_of_the_api_passes(role: str) -> None:
    assert chat(messages=[{"role": role, "content": "hi"}]).model == "m"


@pytest.mark.parametrize("name", ["n", "temperature", "max_tokens", "stop", "stream", "tools"])
def test_null_is_as_good_as_absent(name: str) -> None:
    assert chat(**{name: None}).model == "m"


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": "x", "best_of": 9}, "best_of"),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": "x", "logprobs": 6}, "logprobs"),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": []}, "prompt"),
        (Endpoint.COMPLETIONS, {"model": "m"}, "prompt"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": ""}, "input"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": ["a", ""]}, "input"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": ["a", 1]}, "input"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": ["a"] * 2049}, "input"),
        (Endpoint.EMBEDDINGS, {"input": "x"}, "model"),
        (Endpoint.CHAT, {"model": "m"}, "messages"),
    ],
)
def test_each_endpoint_has_its_own_fields(endpoint: Endpoint, body: Any, param: str) -> None:
    assert refusal_of(endpoint, json.dumps(body).encode()).param == param


CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
PROMPT = {"model": "m", "prompt": "x"}
INPUT = {"model": "m", "input": "x"}


@pytest.mark.parametrize(
    ("endpoint", "body", "name", "value"),
    [
        (Endpoint.CHAT, CHAT, "functions", [{"name": "f"}]),
        (Endpoint.CHAT, CHAT, "function_call", {"name": "f"}),
        (Endpoint.CHAT, CHAT, "modalities", ["text", "audio"]),
        (Endpoint.CHAT, CHAT, "audio", {"voice": "x"}),
        (Endpoint.CHAT, CHAT, "web_search_options", {}),
        (Endpoint.COMPLETIONS, PROMPT, "echo", True),
        (Endpoint.COMPLETIONS, PROMPT, "suffix", "x"),
        (Endpoint.COMPLETIONS, PROMPT, "best_of", 2),
        (Endpoint.COMPLETIONS, {**PROMPT, "n": 3}, "best_of", 4),
        (Endpoint.COMPLETIONS, PROMPT, "logprobs", 0),
        (Endpoint.EMBEDDINGS, INPUT, "dimensions", 3),
    ],
)  # fmt: skip
def test_what_no_engine_here_does_is_refused_by_name(
    endpoint: Endpoint, body: dict[str, Any], name: str, value: Any
) -> None:
    error = refusal_of(endpoint, json.dumps({**body, name: value}).encode())
    assert (error.code, error.param) == ("field_not_allowed", name)


@pytest.mark.parametrize(
    ("endpoint", "body", "name", "value"),
    [
        (Endpoint.CHAT, CHAT, "functions", []),
        (Endpoint.CHAT, CHAT, "function_call", "none"),
        (Endpoint.CHAT, CHAT, "modalities", ["text"]),
        (Endpoint.CHAT, CHAT, "audio", None),
        (Endpoint.COMPLETIONS, PROMPT, "echo", False),
        (Endpoint.COMPLETIONS, PROMPT, "suffix", ""),
        (Endpoint.COMPLETIONS, PROMPT, "best_of", 1),
        (Endpoint.COMPLETIONS, {**PROMPT, "n": 3}, "best_of", 3),
        (Endpoint.EMBEDDINGS, INPUT, "dimensions", None),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_let_go_and_not_told(
    endpoint: Endpoint, body: dict[str, Any], name: str, value: Any
) -> None:
    request = read(endpoint, json.dumps({**body, name: value}).encode(), limits=LIMITS)
    assert name not in forwarded(request)
    assert request.dropped == ()


TOO_LARGE = (2**31, 2**32 + 1, 2**64, 10**40, -1, -(2**32))


@pytest.mark.parametrize("token", TOO_LARGE)
def test_a_token_that_an_engine_would_take_for_another_is_refused(token: int) -> None:
    for value in ([token], [1, token], [[1], [2, token]]):
        for endpoint, name in ((Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")):
            error = refusal_of(endpoint, json.dumps({"model": "m", name: value}).encode())
            assert error.param == name
    assert refusal(logit_bias={str(token): -1}).param == "logit_bias"


@pytest.mark.parametrize("token", ["word", "", " 1", "1.0", "\u0661", "+1"])
def test_a_bias_is_for_a_token_number(token: str) -> None:
    assert refusal(logit_bias={token: -1}).param == "logit_bias"


def test_the_largest_token_number_passes() -> None:
    body = json.dumps({"model": "m", "prompt": [[0, 2**31 - 1]]}).encode()
    assert forwarded(read(Endpoint.COMPLETIONS, body, limits=LIMITS))["prompt"] == [[0, 2**31 - 1]]
    assert chat(logit_bias={"0": 1, str(2**31 - 1): -1}).model == "m"


@pytest.mark.parametrize("value", ["", "float32", "x" * 999])
def test_an_unknown_encoding_is_refused(value: str) -> None:
    body = json.dumps({**INPUT, "encoding_format": value}).encode()
    assert refusal_of(Endpoint.EMBEDDINGS, body).param == "encoding_format"


@pytest.mark.parametrize("value", ["x", ["a", "b"], [1, 2], [[1], [2]]])
def test_texts_and_tokens_embed(value: Any) -> None:
    body = json.dumps({"model": "m", "input": value}).encode()
    assert forwarded(read(Endpoint.EMBEDDINGS, body, limits=LIMITS))["input"] == value


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"{", b"{}x", b'{"model":NaN}', b'{"model":"m","messages":Infinity}',
        b"\xef\xbb\xbf{}", '{"model":"m"}'.encode("utf-16"), b'{"model":"\xff"}', b"{'a':1}",
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\x00"}]}',
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"a":' + b'{"b":' * 70 + b"1" + b"}" * 70 + b"}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(200)) + b"}",
        b'{"a":[' + b",".join([b"[]"] * 200_000) + b"]}",
    ],
    ids=range(19),
)  # fmt: skip
def test_what_is_not_a_plain_json_object_is_refused(body: bytes) -> None:
    assert refusal_of(Endpoint.CHAT, body).code == "invalid_json"


def test_a_whole_surrogate_pair_passes() -> None:
    assert chat(messages=[{"role": "user", "content": "\U0001f600"}]).model == "m"


def test_brackets_in_strings_are_not_depth() -> None:
    assert chat(messages=[{"role": "user", "content": '[{"\\' * 500}]).model == "m"


def test_sixty_four_levels_pass() -> None:
    assert read_object(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")


def test_of_a_key_that_comes_twice_the_last_counts_for_us_and_for_the_engine() -> None:
    body = b'{"model":"a","model":"b","n":9999,"n":1,"messages":[{"role":"user","content":"x"}]}'
    request = read(Endpoint.CHAT, body, limits=LIMITS)
    assert request.model == "b"
    assert request.body(model="b", context_tokens=9, limits=LIMITS).count(b'"n"') == 1


def test_an_escaped_key_is_the_same_key() -> None:
    error = refusal_of(Endpoint.CHAT, b'{"model":"m","messages":[],"chat\\u005ftemplate":"x"}')
    assert error.code == "template_override"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "file:///etc/passwd", "https://example.org/a.png", "gopher://x"]
)
def test_an_image_address_is_never_fetched(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    assert refusal(messages=[{"role": "user", "content": [part]}]).code == "image_url_not_allowed"


def test_image_data_passes() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert chat(messages=[{"role": "user", "content": [part]}]).model == "m"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
_NAMES = st.sampled_from(
    ["n", "stop", "tools", "temperature", "messages", "model", "max_tokens", "chat_template", "x"]
)


@settings(max_examples=80, deadline=None)
@given(tree=st.dictionaries(_NAMES | st.text(max_size=8), _JSON, max_size=8))
def test_any_object_is_read_or_refused_and_what_is_sent_holds_only_allowed_fields(
    tree: dict[str, Any],
) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, **tree}).encode()
    try:
        request = read(Endpoint.CHAT, body, limits=LIMITS)
    except InvalidInput as error:
        assert error.code
        return
    sent = forwarded(request)
    assert sent.keys() <= {*request.values, "model", "max_tokens"}
    assert 1 <= sent["max_tokens"] <= LIMITS.maximum
    for name in request.values:
        assert sent[name] == tree.get(name, MESSAGES)


def test_the_page_has_every_field() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text("utf-8")
    table = page.partition("## What becomes of a connection")[0]
    told = set(re.findall(r"`([a-z_]+)`", table))
    known = {"model", *REFUSED, *(name for names in FIELDS.values() for name in names)}
    assert known <= told, known - told
