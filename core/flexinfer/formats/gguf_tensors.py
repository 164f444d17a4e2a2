"""The tensor table of a GGUF header: shapes, types and offsets, each checked against the others."""

from __future__ import annotations

import struct

from flexinfer.formats import gguf_types as types
from flexinfer.formats.cursor import Cursor, shown
from flexinfer.formats.gguf_types import TensorInfo

MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ELEMENTS = (1 << 63) - 1
# Some 75 bytes describe a tensor, so this is room for a hundred thousand; it bounds memory.
MAX_TABLE_BYTES = 8 << 20

_U32 = struct.Struct("<I")


def read_tensors(cursor: Cursor, count: int, alignment: int) -> tuple[tuple[TensorInfo, ...], int]:
    """Return the tensors in file order and the end of the last one, from the data's begin."""
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # most tensors share a few shapes
    begin = cursor.offset
    expected = end = 0
    for index in range(count):
        tensor = _read_tensor(cursor, index, shapes)
        if cursor.offset - begin > MAX_TABLE_BYTES:
            cursor.fail(f"the tensor table takes more than {MAX_TABLE_BYTES} bytes")
        what = f"tensor {shown(tensor.name)}"
        if tensor.name in names:
            cursor.fail(f"{what} occurs twice")
        if tensor.offset % alignment:
            cursor.fail(f"{what} has offset {tensor.offset}; expected a multiple of {alignment}")
        if tensor.offset != expected:
            cursor.fail(f"{what} has offset {tensor.offset}, expected {expected}")
        names.add(tensor.name)
        end = tensor.offset + tensor.size_bytes
        expected = -(-end // alignment) * alignment
        tensors.append(tensor)
    return tuple(tensors), end


def _read_tensor(
    cursor: Cursor, index: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> TensorInfo:
    length = cursor.u64(f"tensor {index} name length")
    if not 1 <= length <= MAX_NAME_BYTES:
        cursor.fail(f"tensor {index} name claims {length} bytes; expected 1 to {MAX_NAME_BYTES}")
    name = cursor.text(length, f"tensor {index} name")
    what = f"tensor {shown(name)}"
    rank = cursor.unpack(_U32, f"{what} dimension count")
    if not 1 <= rank <= MAX_DIMENSIONS:
        cursor.fail(f"{what} has {rank} dimensions; expected 1 to {MAX_DIMENSIONS}")
    dims: tuple[int, ...] = struct.unpack(f"<{rank}q", cursor.take(8 * rank, f"{what} shape"))
    elements = 1
    for dim in dims:
        if dim < 0:
            cursor.fail(f"{what} has the dimension {dim}; expected 0 or more")
        # A zero does not hide the overflow that the other factors make in a native reader.
        elements *= dim or 1
    if elements > MAX_ELEMENTS:
        cursor.fail(f"{what} has shape {dims}: {elements} elements do not fit 63 bits")
    number = cursor.unpack(_U32, f"{what} type")
    kind = types.GGML_TYPES.get(number)
    if kind is None:
        removed = types.REMOVED_TYPES.get(number)
        known = f"the removed type {number} ({removed})" if removed else f"unknown type {number}"
        cursor.fail(f"{what} has the {known}")
    if dims[0] % kind.block:
        cursor.fail(f"{what} has rows of {dims[0]}; {kind.name} needs a multiple of {kind.block}")
    size = 0 if 0 in dims else elements // kind.block * kind.size
    offset = cursor.u64(f"{what} offset")
    dims = shapes.setdefault(dims, dims)
    return TensorInfo(name=name, dims=dims, type=kind.name, offset=offset, size_bytes=size)
