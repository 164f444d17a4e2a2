"""What a safetensors file says about itself, read with bounds; and the index over its shards.

The JSON header is decoded entry by entry from a window, so that a header of the allowed 100 MB
needs no more memory than the entries that are kept. Rules: safetensors/src/tensor.rs of
huggingface/safetensors, made stricter where noted.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, NoReturn

from flexinfer.errors import InvalidInput
from flexinfer.formats.cursor import Cursor, shown

MAX_HEADER_BYTES = 100_000_000
# Memory: some 300 bytes are kept per tensor, and its name. Upstream has no such bounds.
MAX_TENSORS = 131_072
MAX_NAMES_BYTES = 8 << 20
MAX_METADATA_CHARS = 2 << 20
MAX_ENTRY_CHARS = 64 << 10
MAX_RANK = 32
MAX_ELEMENTS = (1 << 63) - 1

# Bits of one element.
DTYPES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)

_CHUNK_BYTES = 256 << 10
_SPACE = re.compile(r"[ \t\r\n]*")
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor. *begin* and *end* count from the header's `data_offset`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        product = 1
        for dim in self.shape:
            product *= dim
        return product


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """The header; tensors stand in the order of their bytes."""

    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors; packed formats hold several weights in one element."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def dtypes(self) -> Mapping[str, int]:
        """How many tensors have each type, most first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())

    @property
    def main_dtype(self) -> str | None:
        """The type that holds most bytes."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.end - tensor.begin
        return sizes.most_common(1)[0][0] if sizes else None


def read_header(stream: BinaryIO, size: int, *, name: str = "safetensors") -> SafetensorsHeader:
    """Read the header of the file of *size* bytes behind the seekable *stream*.

    *name* is what errors call the file. Grows memory by at most 64 MiB whatever the file says.

    Raises:
        InvalidInput: `safetensors`, naming the file, the tensor, what it claims and what is there.
    """
    length = Cursor(stream, end=size, name=name, code="safetensors").u64("header length")
    data_offset = 8 + length
    cursor = Cursor(stream, end=data_offset, name=name, code="safetensors")
    if length > MAX_HEADER_BYTES:
        cursor.fail(f"claims a header of {length} bytes; expected at most {MAX_HEADER_BYTES}")
    if data_offset > size:
        cursor.fail(f"claims a header of {length} bytes, {size - 8} remain")
    cursor.skip(8, "header length")
    metadata, tensors = _Entries(cursor).read()
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    expected = 0
    for tensor in tensors:
        if tensor.begin != expected:
            problem = "a hole before it" if tensor.begin > expected else "an overlap"
            cursor.fail(
                f"tensor {shown(tensor.name)} begins at {tensor.begin},"
                f" expected {expected}: {problem}"
            )
        expected = tensor.end
    if data_offset + expected != size:
        cursor.fail(f"tensors end at {data_offset + expected}, the file has {size} bytes")
    return SafetensorsHeader(
        metadata=MappingProxyType(metadata), tensors=tuple(tensors), data_offset=data_offset
    )


def check_index(
    name: str, index: object, shards: Mapping[str, SafetensorsHeader]
) -> dict[str, str]:
    """Check the decoded `*.safetensors.index.json` called *name* against its shards.

    *shards* are the headers of the files beside the index, by file name. Returns tensor → shard.

    Raises:
        InvalidInput: `index`, naming the tensor or shard at fault.
    """

    def fail(problem: str) -> NoReturn:
        raise InvalidInput(f"{name}: {problem}", code="index")

    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        fail("expected an object 'weight_map' with at least one tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            fail(f"tensor {shown(tensor)}: expected a file name, got {type(shard).__name__}")
        if not shard or "/" in shard or "\\" in shard or shard in (".", ".."):
            fail(f"shard {shown(shard)} is not a plain file name")
        if shard not in shards:
            fail(f"shard {shown(shard)} missing")
    holders: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        for held in shards[shard].tensors:
            if held.name in holders:
                fail(f"tensor {shown(held.name)} is in {holders[held.name]} and {shard}")
            holders[held.name] = shard
    for tensor, shard in weight_map.items():
        if holders.get(tensor) != shard:
            fail(f"tensor {shown(tensor)} expected in {shard}, found in {holders.get(tensor)}")
    for tensor, shard in holders.items():
        if tensor not in weight_map:
            fail(f"tensor {shown(tensor)} of {shard} is not listed")
    return weight_map


class _Entries:
    """Decodes the header object entry by entry."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._json = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_number)
        self._text = ""
        self._at = 0
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # tensors share a few shapes

    def read(self) -> tuple[dict[str, str], list[TensorInfo]]:
        metadata: dict[str, str] | None = None
        tensors: list[TensorInfo] = []
        names: set[str] = set()
        names_left = MAX_NAMES_BYTES
        self._ensure(MAX_ENTRY_CHARS)
        if self._text[:1] != "{":
            self._cursor.fail("the header does not begin with '{'")
        self._at = 1
        separator = self._next()
        while separator != "}":
            self._ensure(MAX_ENTRY_CHARS)
            key = self._key()
            if key == "__metadata__":
                if metadata is not None:
                    self._cursor.fail("'__metadata__' occurs twice")
                self._ensure(MAX_METADATA_CHARS)
                metadata = self._metadata(self._value(key))
            else:
                if key in names:
                    self._cursor.fail(f"tensor {shown(key)} occurs twice")
                if len(tensors) == MAX_TENSORS:
                    self._cursor.fail(f"has more than {MAX_TENSORS} tensors")
                # Python keeps one byte per ASCII character, up to four for others.
                names_left -= len(key) if key.isascii() else 4 * len(key)
                if names_left < 0:
                    self._cursor.fail(f"names take more than {MAX_NAMES_BYTES} bytes")
                self._ensure(MAX_ENTRY_CHARS)
                names.add(key)
                tensors.append(self._tensor(key, self._value(key)))
            separator = self._next()
            if separator == ",":
                self._at += 1
                if self._next() != '"':
                    self._cursor.fail(f"expected a name after the entry {shown(key)}")
            elif separator != "}":
                self._cursor.fail(f"expected ',' or '}}' after the entry {shown(key)}")
        self._at += 1
        if self._next() != "":
            self._cursor.fail("has text after the header's closing '}'")
        return metadata or {}, tensors

    def _ensure(self, count: int) -> None:
        """Hold at least *count* characters from here, or all that remain."""
        while len(self._text) - self._at < count and self._cursor.remaining:
            size = min(_CHUNK_BYTES, self._cursor.remaining)
            raw = self._cursor.take(size, "header")
            try:
                more = self._utf8.decode(raw, final=not self._cursor.remaining)
            except UnicodeDecodeError as error:
                self._cursor.fail(f"the header is not UTF-8 ({error.reason})")
            self._text = self._text[self._at :] + more
            self._at = 0

    def _next(self) -> str:
        """Pass white space; return the character there, empty at the end of the header."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._cursor.remaining:
                return self._text[self._at : self._at + 1]
            self._ensure(1)

    def _key(self) -> str:
        if self._text[self._at : self._at + 1] != '"':
            self._cursor.fail("expected a tensor's name in quotes")
        key = self._decode("a tensor's name")
        if not isinstance(key, str) or not key:
            self._cursor.fail("has a tensor without a name")
        if self._next() != ":":
            self._cursor.fail(f"expected ':' after {shown(key)}")
        self._at += 1
        self._next()
        return key

    def _value(self, key: str) -> object:
        return self._decode(f"entry {shown(key)}")

    def _decode(self, what: str) -> object:
        try:
            value: object
            value, self._at = self._json.raw_decode(self._text, self._at)
            # JSON can spell lone surrogates, which are no text.
            if isinstance(value, str):
                value.encode()
        except (ValueError, RecursionError) as error:
            self._cursor.fail(f"{what} is not valid JSON, or too long ({_reason(error)})")
        return value

    def _metadata(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            self._cursor.fail("'__metadata__' is not an object")
        for key, text in value.items():
            if not isinstance(text, str):
                self._cursor.fail(f"'__metadata__' {shown(key)} is not a string")
        return value

    def _tensor(self, name: str, value: object) -> TensorInfo:
        what = f"tensor {shown(name)}"
        if not isinstance(value, dict) or value.keys() != _FIELDS:
            self._cursor.fail(f"{what}: expected exactly dtype, shape and data_offsets")
        dtype = value["dtype"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self._cursor.fail(f"{what} has the unknown dtype {shown(str(dtype))}")
        shape = self._naturals(value["shape"], f"{what} shape")
        offsets = self._naturals(value["data_offsets"], f"{what} data_offsets")
        if len(shape) > MAX_RANK:
            self._cursor.fail(f"{what} has {len(shape)} dimensions; expected at most {MAX_RANK}")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            self._cursor.fail(f"{what}: expected data_offsets [begin, end], got {list(offsets)}")
        elements = 1
        for dim in shape:
            elements *= dim or 1
        if elements > MAX_ELEMENTS:
            self._cursor.fail(f"{what} has shape {list(shape)}: elements do not fit 63 bits")
        bits = 0 if 0 in shape else elements * DTYPES[dtype]
        span = offsets[1] - offsets[0]
        if bits % 8 or bits // 8 != span:
            sides = "x".join(str(dim) for dim in shape)
            self._cursor.fail(f"{what} span {span} != shape {sides} {dtype} {bits / 8:g}")
        return TensorInfo(
            name=name,
            dtype=sys.intern(dtype),
            shape=self._shapes.setdefault(shape, shape),
            begin=offsets[0],
            end=offsets[1],
        )

    def _naturals(self, value: object, what: str) -> tuple[int, ...]:
        if not isinstance(value, list):
            self._cursor.fail(f"{what} is not a list")
        for number in value:
            if type(number) is not int or not 0 <= number <= MAX_ELEMENTS:
                self._cursor.fail(f"{what} has {shown(str(number))}; expected 0 to 2**63 - 1")
        return tuple(value)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} occurs twice")
        found[key] = value
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
