"""Whether the file is whole: the tensors of the base, in their shapes, with finite numbers in them."""

from __future__ import annotations

import array
import asyncio
import math
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from flexinfer.formats.gguf import GgufHeader, TensorInfo, read_header
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import Measurements, Subject, Validator, Verdict

if TYPE_CHECKING:
    from flexinfer_pipelines.validators.bench import Bench

# Where in a block of each type its half-precision scales are: (bytes of a block, offsets of the scales).
_SCALES = {
    "Q8_0": (34, (0,)), "Q4_0": (18, (0,)), "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)), "Q5_1": (24, (0, 2)),
}  # fmt: skip
_FLOATS = {"F32": "f", "F16": "e"}
# Enough of each tensor to meet any systematic mistake, read at even distances.
_BLOCKS_PER_TENSOR = 256


class Structure(Validator):
    """Reads the output with our own bounded parser and samples its numbers. Needs no engine."""

    name: ClassVar[str] = "structure"
    order: ClassVar[int] = 0

    def is_asked(self, checks: Validate, *, is_copy: bool) -> bool:
        return True

    async def measure(self, bench: Bench, candidate: Subject, base: Subject) -> Measurements:
        return await asyncio.to_thread(_measure, candidate, base)

    def judge(self, measurements: Measurements, checks: Validate) -> Verdict:
        failures = []
        for name, found in measurements.items():
            if name in _WANTED_ZERO and found != 0:
                failures.append(f"{name} is {found}, wanted 0{_WANTED_ZERO[name]}")
        return Verdict(failures=tuple(failures), thresholds=dict.fromkeys(_WANTED_ZERO, 0.0))


_WANTED_ZERO = {
    "structure.missingTensors": ": tensors of the base that are not there",
    "structure.extraTensors": ": tensors that the base does not have",
    "structure.changedShapes": ": tensors of another shape than the base's",
    "structure.notFinite": ": sampled numbers that are NaN or infinite",
    "structure.zeroTensors": ": tensors that are zero where the base's are not",
}


def _measure(candidate: Subject, base: Subject) -> Measurements:
    with candidate.path.open("rb") as stream:
        header = read_header(stream, candidate.size_bytes, name=candidate.file)
        shapes = {tensor.name: tensor.dims for tensor in header.tensors}
        wanted = {tensor.name: tensor.dims for tensor in base.header.tensors}
        bad, zero = _sampled(stream, header)
    if zero:
        with base.path.open("rb") as stream:
            zero -= _sampled(stream, base.header)[1]
    common = shapes.keys() & wanted.keys()
    return {
        "structure.tensors": len(shapes),
        "structure.quantization": header.quantization or "unknown",
        "structure.fallbacks": header.fallback_count,
        "structure.missingTensors": len(wanted.keys() - shapes.keys()),
        "structure.extraTensors": len(shapes.keys() - wanted.keys()),
        "structure.changedShapes": sum(shapes[name] != wanted[name] for name in common),
        "structure.notFinite": bad,
        "structure.zeroTensors": len(zero),
    }


def _sampled(stream: BinaryIO, header: GgufHeader) -> tuple[int, set[str]]:
    """Return how many sampled numbers are not finite, and which tensors have none but zeros among theirs."""
    bad = 0
    zero = set()
    for tensor in header.tensors:
        seen = is_some = False
        for number in _numbers(stream, tensor, header.data_offset + tensor.offset):
            seen = True
            bad += not math.isfinite(number)
            is_some = is_some or number != 0.0
        if seen and not is_some:
            zero.add(tensor.name)
    return bad, zero


def _numbers(stream: BinaryIO, tensor: TensorInfo, start: int) -> Iterator[float]:
    """Yield sampled scales or elements of a tensor; nothing for a type that we do not take apart."""
    if tensor.type in _SCALES:
        size, offsets = _SCALES[tensor.type]
    elif tensor.type in _FLOATS or tensor.type == "BF16":
        size, offsets = (4 if tensor.type == "F32" else 2), (0,)
    else:
        return
    blocks = tensor.size_bytes // size
    run = 16  # neighbours are read together: a seek for each would take most of the time
    stride = max(run, blocks * run // _BLOCKS_PER_TENSOR)
    for first in range(0, blocks, stride):
        count = min(run, blocks - first)
        stream.seek(start + first * size)
        data = stream.read(count * size)
        for at in range(0, len(data) - size + 1, size):
            for offset in offsets:
                yield _number(data, at + offset, tensor.type)


def _number(data: bytes, at: int, kind: str) -> float:
    if kind == "F32":
        return float(struct.unpack_from("<f", data, at)[0])
    if kind == "BF16":
        return float(array.array("f", b"\0\0" + data[at : at + 2])[0])
    return float(struct.unpack_from("<e", data, at)[0])
