"""What a GGUF file (version 2 or 3, little-endian) says about itself, read with bounds.

Every count, length and offset is compared with the bytes that are there before anything is
allocated for it. Large arrays (vocabularies) are walked and described, not kept; so are strings
beyond 1 MiB. The limits are stricter than those of the native reader, which comes after this one.
Layout: the GGUF specification in ggml-org/ggml (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

from flexinfer.errors import InvalidInput
from flexinfer.formats import gguf_types as types
from flexinfer.formats.cursor import Cursor
from flexinfer.formats.gguf_metadata import read_metadata
from flexinfer.formats.gguf_tensors import read_tensors
from flexinfer.formats.gguf_types import ArrayInfo, TensorInfo, TextInfo, Value

__all__ = ["ArrayInfo", "GgufHeader", "TensorInfo", "TextInfo", "check_split", "read_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 30
MAX_KEY_VALUES = 65_536
MAX_TENSORS = 1_000_000
DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_CODE = "gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Everything before the tensor data. *trailing_bytes* follow the last tensor's padding."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    trailing_bytes: int

    def text(self, key: str) -> str | None:
        """Return the string at *key*, None where it is absent, of another type or not kept."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return the integer at *key*, None where it is absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str | None:
        return self.text("general.architecture")

    @property
    def name(self) -> str | None:
        return self.text("general.name")

    @property
    def license(self) -> str | None:
        return self.text("general.license")

    @property
    def context_length(self) -> int | None:
        return self.integer(f"{self.architecture}.context_length")

    @property
    def embedding_length(self) -> int | None:
        return self.integer(f"{self.architecture}.embedding_length")

    @property
    def block_count(self) -> int | None:
        return self.integer(f"{self.architecture}.block_count")

    @property
    def pooling_type(self) -> int | None:
        """How token vectors become one; set in embedding and reranking models."""
        return self.integer(f"{self.architecture}.pooling_type")

    @property
    def chat_template(self) -> str | None:
        return self.text("tokenizer.chat_template")

    @property
    def chat_templates(self) -> tuple[tuple[str, str | TextInfo], ...]:
        """Every chat template with its key, the named ones (`tokenizer.chat_template.x`) too."""
        return tuple(
            (key, value)
            for key, value in self.metadata.items()
            if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
            if isinstance(value, (str, TextInfo))
        )

    @property
    def vocabulary_size(self) -> int | None:
        """How many tokens the tokenizer in the file has; None where the file has none."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ArrayInfo):
            return tokens.count
        return len(tokens) if isinstance(tokens, tuple) else None

    @property
    def has_tokenizer(self) -> bool:
        return self.text("tokenizer.ggml.model") is not None and bool(self.vocabulary_size)

    @property
    def parameter_count(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_types(self) -> Mapping[str, int]:
        """How many tensors have each type, most first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())

    @property
    def quantization(self) -> str | None:
        """The file's own label (`general.file_type`), else the type that holds most bytes."""
        known = self._file_type()
        if known is not None:
            return known[0]
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.type] += tensor.size_bytes
        return sizes.most_common(1)[0][0] if sizes else None

    @property
    def fallback_count(self) -> int:
        """How many matrices have rows that the labelled type's block does not divide.

        They were stored in another type. Token embedding and output are left out: recipes choose
        their types by rules of their own.
        """
        known = self._file_type()
        if known is None:
            return 0
        block = types.TYPES_BY_NAME[known[1]].block
        return sum(
            1
            for tensor in self.tensors
            if len(tensor.dims) > 1 and tensor.dims[0] % block
            if tensor.name not in ("token_embd.weight", "output.weight")
        )

    @property
    def split(self) -> tuple[int, int, int | None] | None:
        """(part, parts, tensors in all parts) of a file that is one of several, else None."""
        count = self.integer("split.count")
        number = self.integer("split.no")
        if count is None or number is None:
            return None
        return number, count, self.integer("split.tensors.count")

    def _file_type(self) -> tuple[str, str] | None:
        number = self.integer("general.file_type")
        if number is None:
            return None
        return types.FILE_TYPES.get(number & ~types.FILE_TYPE_GUESSED)


def read_header(stream: BinaryIO, size: int, *, name: str = "gguf") -> GgufHeader:
    """Read the header of the file of *size* bytes behind the seekable *stream*.

    *name* is what errors call the file. Grows memory by at most 64 MiB whatever the file says.

    Raises:
        InvalidInput: `gguf`, naming the file, the field, what it claims and what is there.
    """
    cursor = Cursor(stream, end=min(size, MAX_HEADER_BYTES), name=name, code=_CODE)
    if cursor.take(4, "magic") != MAGIC:
        cursor.fail("does not begin with the magic 'GGUF'")
    version = cursor.unpack(_U32, "version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            cursor.fail("is a big-endian file; expected little-endian")
        cursor.fail(f"version {version}; expected 2 or 3")
    tensor_count = cursor.u64("tensor count")
    pair_count = cursor.u64("key count")
    # 8 length + 1 name + 4 dims + 8 dim + 4 type + 8 offset; 8 length + 1 key + 4 type + 1 value.
    _check_count(cursor, "tensors", tensor_count, MAX_TENSORS, 33)
    _check_count(cursor, "key-value pairs", pair_count, MAX_KEY_VALUES, 14)
    metadata = read_metadata(cursor, pair_count)
    alignment = _alignment(cursor, metadata)
    tensors, data_size = read_tensors(cursor, tensor_count, alignment)
    data_offset = -(-cursor.offset // alignment) * alignment
    end = data_offset + data_size if tensors else cursor.offset
    if end > size:
        cursor.fail(f"tensor data ends at {end}, the file has {size} bytes")
    return GgufHeader(
        version=version,
        metadata=MappingProxyType(metadata),
        tensors=tensors,
        alignment=alignment,
        data_offset=data_offset,
        trailing_bytes=max(0, size - -(-end // alignment) * alignment),
    )


def check_split(parts: Sequence[tuple[str, GgufHeader]]) -> None:
    """Check that *parts* (file name and header of each) are one whole model.

    Raises:
        InvalidInput: `gguf_split`, naming the part that is missing, doubled or of another model.
    """
    seen: dict[int, str] = {}
    tensors: dict[str, str] = {}
    expected: tuple[int, int | None] | None = None
    architecture: tuple[str, str] | None = None
    for name, header in parts:
        split = header.split
        if split is None:
            raise _split_error(f"{name} lacks split.no and split.count")
        number, count, total = split
        expected = expected or (count, total)
        if (count, total) != expected:
            raise _split_error(
                f"{name} says {count} parts and {total} tensors, another part says"
                f" {expected[0]} and {expected[1]}"
            )
        if not 0 <= number < count:
            raise _split_error(f"{name} is part {number} of {count}; expected 0 to {count - 1}")
        if number in seen:
            raise _split_error(f"{name} and {seen[number]} are both part {number}")
        seen[number] = name
        if header.architecture is not None:
            architecture = architecture or (header.architecture, name)
            if header.architecture != architecture[0]:
                raise _split_error(
                    f"{name} is {header.architecture}, {architecture[1]} is {architecture[0]}"
                )
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise _split_error(f"tensor {tensor.name} is in {tensors[tensor.name]} and {name}")
            tensors[tensor.name] = name
    if expected is None:
        raise _split_error("no parts were given")
    count, total = expected
    if len(seen) != count:
        missing = next(number for number in range(count) if number not in seen)
        raise _split_error(f"part {missing} of {count} is missing ({len(seen)} are there)")
    if total is not None and total != len(tensors):
        raise _split_error(f"expected {total} tensors in all parts, got {len(tensors)}")


def _check_count(cursor: Cursor, what: str, count: int, limit: int, least: int) -> None:
    if count > limit:
        cursor.fail(f"claims {count} {what}; expected at most {limit}")
    if count * least > cursor.remaining:
        cursor.fail(f"claims {count} {what}, {cursor.remaining} bytes remain")


def _alignment(cursor: Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool):
        cursor.fail("general.alignment is not an integer")
    if value <= 0 or value & (value - 1):
        cursor.fail(f"general.alignment is {value}; expected a power of two")
    return value


def _split_error(problem: str) -> InvalidInput:
    return InvalidInput(f"split model: {problem}", code="gguf_split")
