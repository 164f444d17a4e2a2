# ruff: noqa: E501  (log lines stay whole)
"""Last words of real runs of xllamacpp 2026.10.11549, provoked by what the test's name says; paths shortened."""

from __future__ import annotations

import pytest

from flexinfer.engine import Substage
from flexinfer_serving.engines.llamacpp import LlamaCpp

START = ("flexinfer: initializing", "flexinfer: loading weights")
END = (
    "flexinfer: server did not start: RuntimeError: Failed to init server, please check the input params.",
)

PORT_TAKEN = (
    "0.00.004.714 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18355",
    "0.00.004.866 E srv          init: exiting due to HTTP server error",
)
CUT_IN_THE_WEIGHTS = (
    "0.00.045.160 E llama_model_load: error loading model: tensor 'blk.11.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
    "0.00.045.187 E llama_model_load_from_file_impl: failed to load model",
    "0.00.045.196 E cmn  common_init_: failed to load model '/m/trunc.gguf'",
    "0.00.045.200 E srv    load_model: failed to load model, '/m/trunc.gguf'",
    "0.00.045.993 E srv          init: exiting due to model loading error",
)
CUT_IN_THE_HEADER = (
    "0.00.006.665 E gguf_init_from_reader: failed to read key-value pairs",
    "0.00.006.841 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m/trunc2.gguf",
)
RANDOM_BYTES = (
    "0.00.006.321 E gguf_init_from_reader: invalid magic characters: ''??)', expected 'GGUF'",
    "0.00.006.504 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m/rand.gguf",
)
EMPTY_FILE = (
    "0.00.006.409 E gguf_init_from_reader: failed to read magic",
    "0.00.006.579 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m/empty.gguf",
)
HOSTILE_COUNT = (
    "0.00.006.249 E gguf_init_from_reader: number of tensors is 9223372036854775807 but must be in [0, 53624256028225440]",
    "0.00.006.276 E gguf_init_from_reader: failed to read header",
)
ONE_LAYER_TOO_MANY = (
    "0.00.324.186 E llama_model_load: error loading model: check_tensor_dims: tensor 'blk.30.attn_norm.weight' not found",
)
NO_FILE = (
    "0.00.006.455 E gguf_init_from_file: failed to open GGUF file '/m/nofile.gguf' (No such file or directory)",
    "0.00.006.664 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m/nofile.gguf",
)
OTHER_ARCHITECTURE = (
    "0.00.092.761 E llama_model_load: error loading model: unknown model architecture: 'llamx'",
)
OTHER_TOKENIZER = (
    "0.00.105.678 E llama_model_load: error loading model: error loading model vocabulary: unknown tokenizer: 'gptx'",
)
BAD_TEMPLATE = (
    "0.00.788.688 E common_chat_templates_init: error: Unknown statement: fxr",
    "0.00.788.696 E common_chat_templates_init: failed to initialize chat template",
    "0.00.788.722 E srv          init: init: chat template parsing error: std::exception",
)
# The three under `ulimit -v`, with ever more of it.
NO_MEMORY_FOR_A_THREAD = (
    "terminate called after throwing an instance of 'std::system_error'",
    "  what():  Resource temporarily unavailable",
)
NO_MEMORY_FOR_THE_WEIGHTS = (
    "0.00.446.210 E llama_model_load: error loading model: mmap failed: Cannot allocate memory",
)
NO_MEMORY_FOR_THE_CACHE = (
    "0.00.395.663 E ggml_aligned_malloc: insufficient memory (attempted to allocate 360.00 MB)",
    "0.00.395.676 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 377487360",
    "0.00.395.943 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
)
NO_PACKAGE = ("flexinfer: cannot import xllamacpp: No module named 'xllamacpp'",)
# Not of a real run: the loader's words for a system without OpenMP's library.
NO_LIBRARY = (
    "flexinfer: cannot import xllamacpp: libgomp.so.1: cannot open shared object file: No such file or directory",
)

engine = LlamaCpp()


@pytest.mark.parametrize(
    ("lines", "exit_code", "code", "words", "retryable"),
    [
        (PORT_TAKEN, 4, "port_taken", "port 18355", True),
        (CUT_IN_THE_WEIGHTS, 4, "model_corrupt", "ends before tensor blk.11.ffn_up.weight", False),
        (CUT_IN_THE_HEADER, 4, "model_corrupt", "damaged", False),
        (RANDOM_BYTES, 4, "model_corrupt", "is no GGUF", False),
        (EMPTY_FILE, 4, "model_corrupt", "is no GGUF", False),
        (HOSTILE_COUNT, 4, "model_corrupt", "damaged", False),
        (ONE_LAYER_TOO_MANY, 4, "model_corrupt", "no tensor blk.30.attn_norm.weight", False),
        (NO_FILE, 4, "model_missing", "cannot be opened", False),
        (OTHER_ARCHITECTURE, 4, "architecture_unsupported", "architecture llamx", False),
        (OTHER_TOKENIZER, 4, "architecture_unsupported", "tokenizer gptx", False),
        (BAD_TEMPLATE, 4, "template", "chat template", False),
        (NO_MEMORY_FOR_A_THREAD, -6, "out_of_memory", "not enough memory", True),
        (NO_MEMORY_FOR_THE_WEIGHTS, 4, "out_of_memory", "not enough memory", True),
        (NO_MEMORY_FOR_THE_CACHE, 4, "out_of_memory", "360.00 MB could not be had", True),
        (NO_PACKAGE, 3, "engine_missing", "not in its tool environment", False),
        (NO_LIBRARY, 3, "engine_missing", "system library libgomp.so.1", False),
        ((), 127, "engine_missing", "could not be run", False),
        ((), -11, "engine_killed", "SIGSEGV", True),
        ((), -7, "engine_killed", "SIGBUS on a read past the end", True),
        ((), -4, "cpu_unsupported", "instruction", False),
        ((), -63, "engine_killed", "signal 63", True),
        ((), 1, "engine_failed", "exit code 1", True),
        ((), None, "engine_failed", "unknown reason", True),
    ],
)
def test_the_last_words_tell_the_cause(
    lines: tuple[str, ...], exit_code: int | None, code: str, words: str, retryable: bool
) -> None:
    cause = engine.cause((*START, *lines, *END), exit_code)
    assert (cause.code, cause.retryable) == (code, retryable)
    assert words in cause.message


def test_a_cause_tells_no_path() -> None:
    for lines in (CUT_IN_THE_WEIGHTS, CUT_IN_THE_HEADER, NO_FILE, RANDOM_BYTES):
        assert "/" not in engine.cause((*START, *lines, *END), 4).message


def test_words_of_an_earlier_start_in_the_same_log_do_not_count() -> None:
    lines = (*START, *PORT_TAKEN, *END, *START, "flexinfer: serving on http://127.0.0.1:1")
    assert engine.cause(lines, -9).code == "engine_killed"


def test_the_stages_of_a_load_are_told_by_the_starter_script() -> None:
    lines = (*START, "flexinfer: serving on http://127.0.0.1:18081", PORT_TAKEN[0])
    assert [engine.substage(line) for line in lines] == [
        Substage.INITIALIZING,
        Substage.LOADING_WEIGHTS,
        Substage.HEALTH_CHECK_PENDING,
        None,
    ]
