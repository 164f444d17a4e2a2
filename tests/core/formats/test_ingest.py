from __future__ import annotations

import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexinfer.errors import FlexInferError, InvalidInput, NotFound, Unavailable
from flexinfer.formats.ingest import inspect_file, inspect_files
from flexinfer.formats.sniff import Kind

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FORBIDDEN = "{{ messages.__class__ }}"


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes | str], Path]:
    def write(content: bytes | str) -> Path:
        path = tmp_path / f"file{len(list(tmp_path.iterdir()))}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def code_of(path: Path, name: str) -> str:
    with pytest.raises(InvalidInput) as refused:
        inspect_file(path, name)
    return refused.value.code


# --- what passes


def test_the_starter_model_passes_with_all_its_facts(starter_gguf: Path) -> None:
    found = inspect_file(starter_gguf, "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert found.kind is Kind.GGUF and found.size_bytes == 98_362_432
    assert (found.architecture, found.license, found.quantization) == (
        "llama",
        "apache-2.0",
        "Q4_1",
    )
    assert (found.context_length, found.embedding_length) == (8192, 576)
    assert found.tensor_types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert found.has_tokenizer and found.has_chat_template and found.warnings == ()


def test_a_whole_safetensors_model_passes(build: Any, put: Any) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "hidden_size": 64,
        "auto_map": {},
    }
    index = {"weight_map": {"x.a": "a.safetensors", "x.b": "a.safetensors"}}
    files = {
        "config.json": put(json.dumps(config)),
        "a.safetensors": put(build.small_safetensors("x.")),
        "model.safetensors.index.json": put(json.dumps(index)),
        "tokenizer.json": put('{"version": "1.0"}'),
        "tokenizer.model": put(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00"),
        "tokenizer_config.json": put(json.dumps({"chat_template": TEMPLATE})),
        "chat_template.jinja": put(TEMPLATE),
        "README.md": put("# A model"),
        "LICENSE": put("MIT License\n"),
        "figure.png": put(b"\x89PNG\r\n\x1a\n" + bytes(20)),
    }
    found = {inspection.name: inspection for inspection in inspect_files(files)}
    assert found.keys() == files.keys()
    assert found["config.json"].architecture == "LlamaForCausalLM"
    assert (found["config.json"].context_length, found["config.json"].embedding_length) == (
        2048,
        64,
    )
    assert found["a.safetensors"].parameter_count == 8
    digests = {t.digest for name in found for t in found[name].templates}
    assert len(digests) == 1 and found["tokenizer_config.json"].has_chat_template


def test_what_is_odd_but_harmless_is_pointed_out(build: Any, put: Any) -> None:
    readme = inspect_file(put("one\ntwo \u202e three"), "README.md")
    assert [(w.code, w.message) for w in readme.warnings] == [
        ("unicode_control", "README.md line 2 has the hidden character U+202E")
    ]
    hidden = inspect_file(put("{{ messages[0].content }}\u200b"), "chat_template.jinja")
    assert [w.code for w in hidden.warnings] == ["unicode_control"]
    longer = inspect_file(put(build.small_gguf() + bytes(100)), "m.gguf")
    assert [w.code for w in longer.warnings] == ["trailing_bytes"]


# --- what is refused, by content and by name


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pytorch_model.bin", "pickle_refused"),
        ("model.pt", "pickle_refused"),
        ("model.ckpt", "pickle_refused"),
        ("data.pkl", "pickle_refused"),
        ("weights", "pickle_refused"),
        ("model.safetensors", "type_mismatch"),
        ("model.gguf", "type_mismatch"),
        ("config.json", "type_mismatch"),
        ("README.md", "type_mismatch"),
        ("tokenizer.model", "type_mismatch"),
        ("array.npy", "type_mismatch"),
    ],
)
def test_a_pickle_is_refused_under_every_name_and_never_loaded(
    put: Any, tmp_path: Path, protocol: int, name: str, code: str
) -> None:
    marker = tmp_path / "marker"
    assert code_of(put(pickle.dumps(Bomb(marker), protocol=protocol)), name) == code
    assert not marker.exists()


def test_a_checkpoint_named_safetensors_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(
        InvalidInput, match=r"'weights.safetensors' begins with a ZIP header"
    ) as one:
        inspect_file(path, "weights.safetensors")
    assert one.value.code == "type_mismatch"
    assert code_of(path, "pytorch_model.bin") == "pickle_refused"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"\x7fELF" + bytes(60), "model.gguf", "type_mismatch"),
        (b"\x7fELF" + bytes(60), "LICENSE", "type_mismatch"),
        (b"#!/bin/sh\nrm -rf /", "README.md", "type_mismatch"),
        (b"MZ" + bytes(60), "x", "type_mismatch"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "model.safetensors", "type_mismatch"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "model.h5", "type_mismatch"),
        (b"\x1f\x8b" + bytes(60), "model.tar.gz", "type_mismatch"),
        (b"PK\x03\x04" + bytes(60), "model.zip", "type_mismatch"),
        (b"\x00\x01\x02\x03" * 20, "weights.dat", "type_mismatch"),
        (b"", "model.gguf", "type_mismatch"),
        (b"", "config.json", "type_mismatch"),
        (b"plain", "config.json", "type_mismatch"),
        (b'{"a": 1}', "model.safetensors", "type_mismatch"),
        (b"anything", "pytorch_model.bin", "pickle_refused"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O', }", "x.npy", "type_mismatch"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O', }", "x.dat", "pickle_refused"),
        (b"print(1)", "modeling_x.py", "remote_code"),
        (b"print(1)", "sub/MODELING.PY", "remote_code"),
        (b"echo", "run.sh", "remote_code"),
        (b"\x7fELF", "kernel.so", "remote_code"),
        (b"{", "config.json", "config"),
        (b'{"a": 1, "a": 2}', "config.json", "config"),
        (b'{"a": 1} x', "config.json", "config"),
        (b"[" * 100_000, "config.json", "config"),
        (b'{"a": ' + b"9" * 5000 + b"}", "config.json", "config"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "config.json", "config"),
        (b'{"a": "\xff"}' + b" " * 9000, "tokenizer.json", "type_mismatch"),
        (b'{"a": "' + b"x" * 9000 + b'\xff"}', "tokenizer.json", "config"),
        (b"{{ messages.__class__ }}", "chat_template.jinja", "template"),
        (b"{{ messages.__class__ }}", "additional_chat_templates/tools.jinja", "template"),
        (b"x" * (300 << 10), "chat_template.jinja", "template"),
        (b"x" * 9000 + b"\xff", "chat_template.jinja", "template"),
        (b"x", "../x", "path_unsafe"),
        (b"x", "a\\b.json", "path_unsafe"),
    ],
)
def test_what_is_not_what_its_name_promises_is_refused(
    put: Any, content: bytes, name: str, code: str
) -> None:
    assert code_of(put(content), name) == code


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "a/preprocessor_config.json"]
)
@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling_x.Model"}},
        {"text_config": {"deep": [{"auto_map": {"AutoConfig": "o/r--x.Config"}}]}},
        {"custom_pipelines": {"x": {"impl": "pipeline.Pipe"}}},
    ],
)
def test_a_config_that_names_code_is_refused_at_any_depth(put: Any, name: str, config: Any) -> None:
    assert code_of(put(json.dumps(config)), name) == "remote_code"


def test_the_first_of_two_doubled_keys_cannot_hide_code(put: Any) -> None:
    raw = '{"auto_map": {"AutoModel": "x.M"}, "auto_map": {}}'
    assert code_of(put(raw), "config.json") == "remote_code"
    assert code_of(put('{"\\u0061uto_map": {"AutoModel": "x.M"}}'), "config.json") == "remote_code"


@pytest.mark.parametrize(
    "value",
    [
        FORBIDDEN,
        [{"name": "default", "template": "ok"}, {"name": "tool_use", "template": FORBIDDEN}],
        {"default": FORBIDDEN},
        [1],
        [{"name": "default"}],
        7,
    ],
)
def test_a_template_inside_a_config_is_held_to_the_same_rules(put: Any, value: Any) -> None:
    path = put(json.dumps({"chat_template": value}))
    assert code_of(path, "tokenizer_config.json") == "template"


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
def test_a_template_inside_a_gguf_is_held_to_the_same_rules(build: Any, put: Any, key: str) -> None:
    path = put(build.small_gguf(build.pair(key, build.STRING, FORBIDDEN)))
    assert code_of(path, "m.gguf") == "template"


def test_a_gguf_template_too_long_to_keep_is_refused(build: Any, put: Any) -> None:
    long = build.pair("tokenizer.chat_template", build.STRING, "x" * (2 << 20))
    assert code_of(put(build.small_gguf(long)), "m.gguf") == "template"


def test_broken_weights_are_refused_by_their_own_codes(build: Any, put: Any) -> None:
    assert code_of(put(build.small_gguf()[:-1]), "m.gguf") == "gguf"
    assert code_of(put(build.small_safetensors() + b"x"), "m.safetensors") == "safetensors"
    assert code_of(put(build.small_gguf()), "m.safetensors") == "type_mismatch"
    assert code_of(put(build.small_gguf()), "pytorch_model.bin") == "type_mismatch"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo, server = tmp_path / "fifo", socket.socket(socket.AF_UNIX)
    os.mkfifo(fifo)
    with server:
        server.bind(str(tmp_path / "socket"))
        assert code_of(fifo, "m.gguf") == "type_mismatch"
        assert code_of(tmp_path, "m.gguf") == "type_mismatch"
        with pytest.raises(Unavailable) as unavailable:
            inspect_file(tmp_path / "socket", "m.gguf")
        assert unavailable.value.code == "file_unreadable"
    with pytest.raises(NotFound) as missing:
        inspect_file(tmp_path / "none", "m.gguf")
    assert missing.value.code == "file_not_found"


# --- across files


def refusal(files: dict[str, Path]) -> str:
    with pytest.raises(InvalidInput) as refused:
        inspect_files(files)
    return refused.value.code


def split_part(build: Any, number: int, count: int) -> bytes:
    pairs = [
        build.pair("split.no", build.U16, number),
        build.pair("split.count", build.U16, count),
        build.pair("split.tensors.count", build.I32, count),
    ]
    return bytes(build.gguf(pairs, [build.tensor(f"t{number}", [4], 0, 0)], data=16))


def test_a_split_model_must_be_whole(build: Any, put: Any) -> None:
    files = {f"q4/m-0000{n + 1}-of-00002.gguf": put(split_part(build, n, 2)) for n in range(2)}
    assert len(inspect_files(files)) == 2
    other = {f"q8/m-0000{n + 1}-of-00002.gguf": path for n, path in enumerate(files.values())}
    assert len(inspect_files(files | other)) == 4
    files.popitem()
    assert refusal(files) == "gguf_split"


def test_an_index_must_agree_with_the_shards_beside_it(build: Any, put: Any) -> None:
    index = put(json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}))
    shard = put(build.small_safetensors())
    name = "model.safetensors.index.json"
    assert len(inspect_files({name: index, "1.safetensors": shard})) == 2
    assert refusal({name: index}) == "index"
    assert refusal({name: index, "sub/1.safetensors": shard}) == "index"
    assert refusal({name: put("[]"), "1.safetensors": shard}) == "index"


def test_names_that_collide_are_refused_before_any_file_is_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal({"Config.json": gone, "config.json": gone}) == "path_collision"
    assert refusal({"a": gone, "a/b": gone}) == "path_collision"
    assert refusal({"ok": gone, "../x": gone}) == "path_unsafe"
    assert refusal({f"{n}": gone for n in range(10_001)}) == "invalid_input"


# --- property


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["", "GGUF", "{", "[", "\x80\x04", "PK\x03\x04", "\x93NUMPY", '{"a":', "c"]),
    st.binary(max_size=60),
    st.sampled_from(
        [
            "m.gguf",
            "m.safetensors",
            "config.json",
            "tokenizer.json",
            "x.bin",
            "README.md",
            "x",
            "a.npy",
        ]
    ),
)
def test_any_content_under_any_name_is_passed_or_refused_by_the_typed_error(
    tmp_path: Path, head: str, body: bytes, name: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(head.encode("latin-1") + body)
    try:
        found = inspect_file(path, name)
    except FlexInferError as refused:
        assert refused.code in {
            "gguf",
            "safetensors",
            "type_mismatch",
            "pickle_refused",
            "config",
            "remote_code",
        }
        return
    assert found.size_bytes == len(head) + len(body)
