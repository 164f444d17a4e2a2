"""Bytes of model files, written here with `struct` so that reader and writer share no code."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LAYOUT = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32: "<f",
    BOOL: "<B",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}


class Build:
    """Writes GGUF and safetensors files, valid ones and every kind of broken one."""

    U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)

    def text(self, value: str | bytes, *, length: int | None = None) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(raw) if length is None else length) + raw

    def value(self, kind: int, value: Any) -> bytes:
        return self.text(value) if kind == STRING else struct.pack(_LAYOUT[kind], value)

    def pair(self, key: str | bytes, kind: int, value: Any) -> bytes:
        return self.text(key) + struct.pack("<I", kind) + self.value(kind, value)

    def array(self, key: str, kind: int, values: list[Any], *, count: int | None = None) -> bytes:
        head = self.text(key) + struct.pack(
            "<IIQ", ARRAY, kind, len(values) if count is None else count
        )
        return head + b"".join(self.value(kind, value) for value in values)

    def tensor(
        self, name: str | bytes, dims: list[int], kind: int, offset: int, *, rank: int | None = None
    ) -> bytes:
        shape = struct.pack("<I", len(dims) if rank is None else rank)
        shape += b"".join(struct.pack("<q", dim) for dim in dims)
        return self.text(name) + shape + struct.pack("<IQ", kind, offset)

    def gguf(
        self,
        pairs: list[bytes],
        tensors: list[bytes],
        *,
        data: int = 0,
        version: int = 3,
        pair_count: int | None = None,
        tensor_count: int | None = None,
        alignment: int = 32,
    ) -> bytes:
        head = b"GGUF" + struct.pack(
            "<IQQ",
            version,
            len(tensors) if tensor_count is None else tensor_count,
            len(pairs) if pair_count is None else pair_count,
        )
        head += b"".join(pairs) + b"".join(tensors)
        return head + bytes(-len(head) % alignment) + bytes(data)

    def small_gguf(self, *extra: bytes, version: int = 3, architecture: str = "llama") -> bytes:
        """A whole model of two tensors: F32 [4] and Q8_0 [32, 2]."""
        pairs = [
            self.pair("general.architecture", STRING, architecture),
            self.pair("general.name", STRING, "Tiny"),
            self.pair("general.license", STRING, "mit"),
            self.pair("general.file_type", U32, 7),
            self.pair(f"{architecture}.context_length", U32, 128),
            self.pair(f"{architecture}.embedding_length", U32, 32),
            self.pair("tokenizer.ggml.model", STRING, "gpt2"),
            self.array("tokenizer.ggml.tokens", STRING, ["a", "b", "é"]),
            *extra,
        ]
        tensors = [
            self.tensor("norm.weight", [4], 0, 0),
            self.tensor("blk.0.attn_q.weight", [32, 2], 8, 32),
        ]
        return self.gguf(pairs, tensors, data=32 + 2 * 34, version=version)

    def safetensors(
        self, header: Any, *, data: int = 0, length: int | None = None, raw: bytes | None = None
    ) -> bytes:
        text = json.dumps(header).encode() if raw is None else raw
        return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)

    def small_safetensors(self, prefix: str = "") -> bytes:
        header = {
            "__metadata__": {"format": "pt"},
            f"{prefix}b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [16, 24]},
            f"{prefix}a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        }
        return self.safetensors(header, data=24)


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()
