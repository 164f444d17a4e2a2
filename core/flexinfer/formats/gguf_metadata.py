"""The key-value pairs of a GGUF header, read with bounds on each and on what is kept of all."""

from __future__ import annotations

import struct

from flexinfer.formats import gguf_types as types
from flexinfer.formats.cursor import Cursor, shown
from flexinfer.formats.gguf_types import ArrayInfo, Scalar, TextInfo, Value

MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 64 << 20
MAX_ARRAY_ELEMENTS = 64 << 20
# Strings are walked one by one; real vocabularies with merges have below one million.
MAX_STRING_ELEMENTS = 16 << 20
# What is kept, so that no header makes this process grow by more than 64 MiB.
MAX_KEYS_BYTES = 2 << 20
_KEPT_BYTES = 4 << 20
_KEPT_STRING_BYTES = 1 << 20
_KEPT_ARRAY_ELEMENTS = 512

_U32 = struct.Struct("<I")


def read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    """Read *count* pairs; the cursor stands at the first. Raises what the cursor raises."""
    return _Metadata(cursor).read(count)


class _Metadata:
    """Reads key-value pairs; holds what may still be kept."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._keys_left = MAX_KEYS_BYTES
        self._kept_left = _KEPT_BYTES
        self._strings_left = MAX_STRING_ELEMENTS

    def read(self, count: int) -> dict[str, Value]:
        pairs: dict[str, Value] = {}
        for index in range(count):
            key = self._key(index)
            if key in pairs:
                self._cursor.fail(f"kv {shown(key)} occurs twice")
            what = f"kv {shown(key)}"
            kind = self._cursor.unpack(_U32, f"{what} type")
            pairs[key] = self._array(what) if kind == types.ARRAY else self._scalar(kind, what)
        return pairs

    def _key(self, index: int) -> str:
        cursor = self._cursor
        length = cursor.u64(f"key {index} length")
        if not 1 <= length <= MAX_KEY_BYTES:
            cursor.fail(f"key {index} claims {length} bytes; expected 1 to {MAX_KEY_BYTES}")
        self._keys_left -= length
        if self._keys_left < 0:
            cursor.fail(f"key {index}: keys take more than {MAX_KEYS_BYTES} bytes")
        return cursor.text(length, f"key {index}")

    def _scalar(self, kind: int, what: str) -> Value:
        if kind == types.STRING:
            return self._string(what)
        return self._number(kind, what)

    def _number(self, kind: int, what: str) -> Scalar:
        if kind not in types.SCALARS:
            self._cursor.fail(f"{what} has the unknown value type {kind}")
        layout = types.SCALARS[kind][1]
        number: int | float = layout.unpack(self._cursor.take(layout.size, what))[0]
        if kind != types.BOOL:
            return number
        if number not in (0, 1):
            self._cursor.fail(f"{what} is a bool with the value {number}; expected 0 or 1")
        return bool(number)

    def _string(self, what: str) -> str | TextInfo:
        cursor = self._cursor
        length = cursor.u64(f"{what} length")
        if length > MAX_STRING_BYTES:
            cursor.fail(f"{what} claims {length} bytes; expected at most {MAX_STRING_BYTES}")
        cursor.need(length, what)
        if length > min(_KEPT_STRING_BYTES, self._kept_left):
            info = TextInfo(offset=cursor.offset, size_bytes=length)
            cursor.skip(length, what)
            return info
        self._kept_left -= length
        return cursor.text(length, what)

    def _array(self, what: str) -> tuple[Scalar, ...] | ArrayInfo:
        cursor = self._cursor
        kind = cursor.unpack(_U32, f"{what} element type")
        count = cursor.u64(f"{what} count")
        if kind == types.ARRAY:
            cursor.fail(f"{what} is an array of arrays; expected one level")
        if kind != types.STRING and kind not in types.SCALARS:
            cursor.fail(f"{what} has the unknown element type {kind}")
        least = 8 if kind == types.STRING else types.SCALARS[kind][1].size
        if count > MAX_ARRAY_ELEMENTS:
            cursor.fail(
                f"{what} claims {count} elements, {cursor.remaining} bytes remain"
                f" and {MAX_ARRAY_ELEMENTS} elements are allowed"
            )
        if count * least > cursor.remaining:
            cursor.fail(f"{what} claims {count} elements, {cursor.remaining} bytes remain")
        start = cursor.offset
        if kind == types.STRING:
            return self._strings(what, count)
        size = count * least
        # Kept elements cost a reference each, so small ones are counted as eight bytes.
        cost = 8 * count
        if count <= _KEPT_ARRAY_ELEMENTS and cost <= self._kept_left:
            self._kept_left -= cost
            return tuple(self._number(kind, what) for _ in range(count))
        cursor.skip(size, what)
        name = types.SCALARS[kind][0]
        return ArrayInfo(element_type=name, count=count, offset=start, size_bytes=size)

    def _strings(self, what: str, count: int) -> tuple[Scalar, ...] | ArrayInfo:
        cursor = self._cursor
        self._strings_left -= count
        if self._strings_left < 0:
            cursor.fail(f"{what}: arrays have more than {MAX_STRING_ELEMENTS} strings")
        start = cursor.offset
        cost = 64 * count
        if count <= _KEPT_ARRAY_ELEMENTS and cost <= self._kept_left:
            self._kept_left -= cost
            kept = tuple(self._string(f"{what}[{index}]") for index in range(count))
            if all(isinstance(text, str) for text in kept):
                return tuple(text for text in kept if isinstance(text, str))
        else:
            cursor.skip_strings(count, what, max_bytes=MAX_STRING_BYTES)
        size = cursor.offset - start
        return ArrayInfo(element_type="string", count=count, offset=start, size_bytes=size)
