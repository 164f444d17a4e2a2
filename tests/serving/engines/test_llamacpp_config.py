from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.engine import Endpoint, EngineArtifact, Limits, Resources
from flexinfer.errors import InvalidInput
from flexinfer_serving.engines.llamacpp import LlamaCpp

MODEL = EngineArtifact(
    digest="sha256:" + "a" * 64,
    format="gguf",
    quantization="Q8_0",
    architecture="llama",
    files=("smol.gguf", "README.md"),
    size_bytes=144_810_848,
    context_length=8192,
    has_chat_template=True,
)
MACHINE = Resources(threads=3, memory_bytes=8 << 30)
engine = LlamaCpp()


def option(name: str, config: dict[str, Any], artifact: EngineArtifact = MODEL) -> str:
    argv = engine.launch(config, artifact, MACHINE).argv
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"contextTokns": 4096}, "did you mean 'contextTokens'?"),
        ({"CONTEXTTOKENS": 4096}, "did you mean 'contextTokens'?"),
        ({"chatTemplate": "x"}, "unknown key (known: contextTokens, "),
        ({"contextTokens": 127}, "from 128 to 1048576, found 127"),
        ({"contextTokens": "4096"}, "found '4096'"),
        ({"contextTokens": 4096.0}, "found 4096.0"),
        ({"slots": 0}, "from 1 to 64, found 0"),
        ({"slots": True}, "found True"),
        ({"threads": 257}, "from 1 to 256"),
        ({"embeddings": "yes"}, "expected true or false, found 'yes'"),
        ({"batchTokens": None}, "found None"),
        ({"cacheRamMiB": -1}, "from 0 to 65536"),
        ({"contextTokens": 1048576, "slots": 8}, "contextTokens × slots is 8388608"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(config: dict[str, Any], words: str) -> None:
    (problem,) = engine.problems(config)
    assert words in problem.message


def test_all_bad_keys_are_told_at_once() -> None:
    assert [p.key for p in engine.problems({"slots": 0, "x": 1, "threads": 1})] == ["slots", "x"]


def test_a_launch_with_a_bad_config_is_refused_by_its_first_key() -> None:
    with pytest.raises(InvalidInput, match="slots: expected") as refused:
        engine.launch({"slots": 0}, MODEL, MACHINE)
    assert (refused.value.code, refused.value.param) == ("config_invalid", "slots")


def test_one_request_may_use_4096_tokens_unless_told_otherwise() -> None:
    assert engine.limits({}, MODEL) == Limits(context_tokens=4096, slots=4)
    assert engine.limits({"contextTokens": 512, "slots": 2}) == Limits(context_tokens=512, slots=2)


def test_a_model_trained_for_less_gets_what_it_was_trained_for() -> None:
    short = replace(MODEL, context_length=2048)
    assert engine.limits({}, short).context_tokens == 2048
    assert option("--context-tokens", {}, short) == "2048"


def test_a_context_beyond_the_trained_one_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidInput, match=r"contextTokens is 8193.*trained for 8192") as refused:
        engine.launch({"contextTokens": 8193}, MODEL, MACHINE)
    assert refused.value.code == "context_too_long"


def test_a_model_that_does_not_say_what_it_was_trained_for_gets_what_is_asked() -> None:
    silent = replace(MODEL, context_length=0)
    assert option("--context-tokens", {"contextTokens": 32768}, silent) == "32768"


def test_an_embedding_may_be_as_long_as_the_context_up_to_the_largest_batch() -> None:
    assert option("--batch-tokens", {}) == "4096"
    assert option("--batch-tokens", {"embeddings": False}) == "512"
    assert option("--batch-tokens", {"batchTokens": 1024}) == "1024"
    wide = replace(MODEL, context_length=131072)
    assert option("--batch-tokens", {"contextTokens": 65536}, wide) == "8192"


def test_a_batch_is_never_larger_than_the_context() -> None:
    assert option("--batch-tokens", {"contextTokens": 256, "embeddings": False}) == "256"


def test_threads_are_what_the_machine_gives_unless_the_config_says_so() -> None:
    assert option("--threads", {}) == "3"
    assert option("--threads", {"threads": 1}) == "1"


def test_without_a_chat_template_there_is_no_chat() -> None:
    plain = replace(MODEL, has_chat_template=False)
    assert engine.endpoints({}, plain) == {Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS}
    assert engine.endpoints({"embeddings": False}, MODEL) == {Endpoint.COMPLETIONS, Endpoint.CHAT}


def test_an_encoder_only_embeds_and_pools_as_it_was_trained() -> None:
    encoder = replace(MODEL, architecture="nomic-bert", context_length=512)
    assert engine.endpoints({}, encoder) == {Endpoint.EMBEDDINGS}
    assert option("--pooling", {}, encoder) == "model"
    assert option("--pooling", {}) == "mean"
    assert "--pooling" not in engine.launch({"embeddings": False}, MODEL, MACHINE).argv


def test_of_a_model_in_parts_the_first_is_loaded() -> None:
    parts = tuple(f"big-0000{n}-of-00003.gguf" for n in (2, 1, 3))
    assert option("--model", {}, replace(MODEL, files=parts)).endswith("/big-00001-of-00003.gguf")


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("README.md",),
        ("a.gguf", "b.gguf"),
        ("a-00001-of-00003.gguf", "a-00002-of-00003.gguf"),
        ("a-00001-of-00002.gguf", "b-00002-of-00002.gguf"),
        ("{secret:engine-key}.gguf",),
    ],
)
def test_files_that_are_not_one_model_are_refused(files: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as refused:
        engine.launch({}, replace(MODEL, files=files), MACHINE)
    assert refused.value.code == "backend_unsupported"


KEYS = st.sampled_from(
    ["contextTokens", "slots", "threads", "batchTokens", "cacheRamMiB", "embeddings", "other"]
)
VALUES = st.none() | st.booleans() | st.integers(-10, 3_000_000) | st.floats() | st.text(max_size=5)


@given(st.dictionaries(KEYS, VALUES))
def test_a_config_without_problems_launches_within_its_limits(config: dict[str, Any]) -> None:
    if engine.problems(config):
        return
    silent = replace(MODEL, context_length=0)
    limits = engine.limits(config, silent)
    argv = engine.launch(config, silent, MACHINE).argv
    assert argv[argv.index("--context-tokens") + 1] == str(limits.context_tokens)
    assert argv[argv.index("--slots") + 1] == str(limits.slots)
    assert 32 <= int(argv[argv.index("--batch-tokens") + 1]) <= limits.context_tokens
    assert int(argv[argv.index("--threads") + 1]) >= 1
