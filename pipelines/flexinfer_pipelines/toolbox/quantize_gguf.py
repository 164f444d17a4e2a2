"""Write a GGUF file again with another tensor type. Runs by path where `gguf` and `numpy` are installed.

    python quantize_gguf.py --input in.gguf --output out.gguf --type Q8_0

Decisions, tensor by tensor:

1. one dimension: F32, as the engine wants its norms and biases;
2. no matrix of weights (positions, routers, convolutions, integers): copied, dequantized if it was quantized;
3. the output matrix, which is the token embedding where there is no other: at least Q8_0, because every token's
   probability hangs on it (llama.cpp does so too);
4. already of the type that it gets: copied;
5. rows that the type's block does not divide: F16, counted as a fallback;
6. everything else: dequantized and quantized in pieces of about a million elements.

Nothing is ever held whole: header and key-values are copied as bytes, tensors stream through one buffer. Equal
input gives equal output, byte for byte. Progress and result are JSON lines on standard output; a problem is
`{"error": {"code", "message"}}` and exit code 1. The output appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple, NoReturn

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

# Type wanted → number for `general.file_type`.
TARGETS = {
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q5_1": LlamaFileType.MOSTLY_Q5_1,
}
# What llama.cpp leaves alone because its kernels read it as float, or because little bytes carry much (names
# of its tensors, from gguf-py's constants).
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight",
    "shortconv.conv.weight", "attn_rel_b.weight", "time_mix_", "altup", "laurel", "per_layer_model_proj",
)  # fmt: skip
FLOATS = frozenset({Kind.F32, Kind.F16, Kind.BF16})
COARSE = frozenset({Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1})
INTEGERS = frozenset({Kind.I8, Kind.I16, Kind.I32, Kind.I64, Kind.F64})
# One million elements are 4 MiB of float32; the package's quantizers hold some eight copies of it.
PIECE_ELEMENTS = 1 << 20
# Groups of this length let the package work on 16 of them at once, within a core's cache.
GROUP_ELEMENTS = 4096
REPORT_EVERY_S = 0.2
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAX_HEADER = 1 << 30


class Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tensor(NamedTuple):
    name: bytes
    dims: tuple[int, ...]
    """The row length first."""
    kind: Kind
    offset: int


class Header(NamedTuple):
    pairs: list[tuple[bytes, bytes]]
    """Key → type and value, as the bytes of the file."""
    tensors: list[Tensor]
    alignment: int
    data_offset: int


class Reader:
    """Reads a header front to back, with bounds."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = min(size, MAX_HEADER)

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise Refused("gguf", f"the header claims {count} bytes, {self._left} remain")
        data = self._stream.read(count)
        if len(data) != count:
            raise Refused("gguf", "the file ends within its header")
        self._left -= count
        return data

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def value(self) -> bytes:
        """Return a value with its type in front, as bytes."""
        kind = self.take(4)
        return kind + self._rest(int.from_bytes(kind, "little"), depth=0)

    def _rest(self, kind: int, *, depth: int) -> bytes:
        if kind in SIZES:
            return self.take(SIZES[kind])
        if kind == STRING:
            length = self.take(8)
            return length + self.take(int.from_bytes(length, "little"))
        if kind != ARRAY or depth > 0:
            raise Refused("gguf", f"a value has the type {kind}")
        head = self.take(12)
        inner, count = struct.unpack("<IQ", head)
        if inner in SIZES:
            return head + self.take(SIZES[inner] * count)
        if count > self._left:
            raise Refused("gguf", f"an array claims {count} elements, {self._left} bytes remain")
        return head + b"".join(self._rest(inner, depth=1) for _ in range(count))


def read_header(stream: BinaryIO, size: int) -> Header:
    reader = Reader(stream, size)
    if reader.take(4) != b"GGUF" or reader.u32() not in (2, 3):
        raise Refused("gguf", "expected a GGUF file of version 2 or 3")
    tensor_count, pair_count = reader.u64(), reader.u64()
    if tensor_count > 1_000_000 or pair_count > 65_536:
        raise Refused("gguf", f"{tensor_count} tensors and {pair_count} keys are claimed")
    pairs = [(reader.take(reader.u64()), reader.value()) for _ in range(pair_count)]
    tensors = []
    for _ in range(tensor_count):
        name = reader.take(reader.u64())
        dims = tuple(reader.u64() for _ in range(reader.u32()))
        number = reader.u32()
        try:
            kind = Kind(number)
        except ValueError:
            raise Refused("gguf", f"tensor {name!r} has the unknown type {number}") from None
        tensors.append(Tensor(name, dims, kind, reader.u64()))
    alignment = 32
    for key, value in pairs:
        if key == b"general.alignment" and len(value) == 8:
            alignment = int.from_bytes(value[4:], "little")
        if key == b"split.count" and int.from_bytes(value[4:], "little") > 1:
            raise Refused("gguf_split", "the file is one part of several; merge them first")
    if alignment <= 0 or alignment & (alignment - 1):
        raise Refused("gguf", f"alignment {alignment}: expected a power of two")
    return Header(pairs, tensors, alignment, padded(stream.tell(), alignment))


def targets_of(tensors: list[Tensor], wanted: Kind) -> list[tuple[Kind, bool]]:
    """Return the type to write each tensor in, and whether that is a fallback."""
    names = {tensor.name for tensor in tensors}
    output = b"output.weight" if b"output.weight" in names else b"token_embd.weight"
    finer = Kind.Q8_0 if wanted in COARSE else wanted
    return [target_of(t, finer if t.name == output else wanted) for t in tensors]


def target_of(tensor: Tensor, wanted: Kind) -> tuple[Kind, bool]:
    """Return the type to write *tensor* in (the decisions 1, 2, 4 to 6), and whether that is a fallback."""
    if tensor.kind in INTEGERS:
        return tensor.kind, False
    if len(tensor.dims) < 2:
        return Kind.F32, False
    name = tensor.name.decode("utf-8", "replace")
    if not name.endswith(".weight") or any(part in name for part in KEPT):
        return (tensor.kind if tensor.kind in FLOATS else Kind.F32), False
    if tensor.dims[0] % gguf.GGML_QUANT_SIZES[wanted][0]:
        return Kind.F16, True
    return wanted, False


def size_of(dims: tuple[int, ...], kind: Kind) -> int:
    """Return the bytes that a tensor of that shape and type takes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    elements = 1
    for dim in dims:
        elements *= dim
    if dims and dims[0] % block:
        raise Refused(
            "gguf", f"rows of {dims[0]} elements; {kind.name} needs a multiple of {block}"
        )
    return int(elements // block * size)


def padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


def write_header(stream: BinaryIO, header: Header, kinds: list[Kind], wanted: str) -> None:
    changed = {
        b"general.file_type": int(TARGETS[wanted]),
        b"general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    # `quantize.*` describes how the input was made.
    pairs = [(k, v) for k, v in header.pairs if not k.startswith(b"quantize.")]
    pairs = [(k, number(changed.pop(k)) if k in changed else v) for k, v in pairs]
    pairs += [(key, number(value)) for key, value in sorted(changed.items())]
    stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(pairs)))
    for key, value in pairs:
        stream.write(struct.pack("<Q", len(key)) + key + value)
    offset = 0
    for tensor, kind in zip(header.tensors, kinds, strict=True):
        shape = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        stream.write(struct.pack("<Q", len(tensor.name)) + tensor.name + shape)
        stream.write(struct.pack("<IQ", kind, offset))
        offset += padded(size_of(tensor.dims, kind), header.alignment)
    stream.write(b"\0" * (padded(stream.tell(), header.alignment) - stream.tell()))


def number(value: int) -> bytes:
    return struct.pack("<II", UINT32, value)


def convert(source: BinaryIO, sink: BinaryIO, tensor: Tensor, kind: Kind, report: Report) -> None:
    """Stream one tensor from *source* to *sink*. Its padding is the caller's."""
    left = size_of(tensor.dims, tensor.kind)
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    # Pieces end where a block of either type ends: 256 elements hold a whole number of every block.
    piece_bytes = max(PIECE_ELEMENTS // block * size, size)
    buffer = bytearray(min(piece_bytes, left))
    while left:
        view = memoryview(buffer)[: min(piece_bytes, left)]
        if source.readinto(view) != len(view):  # type: ignore[attr-defined]  # a file opened raw
            raise Refused("gguf", f"the file ends within tensor {tensor.name!r}")
        left -= len(view)
        sink.write(view if kind == tensor.kind else requantized(view, tensor.kind, kind))
        report.moved(len(view))


def requantized(data: memoryview, old: Kind, new: Kind) -> Any:
    """Return *data* in the type *new*: whole blocks of both types, in a row."""
    block, size = gguf.GGML_QUANT_SIZES[old]
    rows = np.frombuffer(data, dtype=np.uint8).reshape(
        grouped(len(data) // size * block, block, size)
    )
    with np.errstate(over="ignore"):
        floats = gguf.dequantize(rows, old).reshape(-1)
        if new == Kind.F32:
            return np.ascontiguousarray(floats, dtype="<f4")
        step = gguf.GGML_QUANT_SIZES[new][0]
        return gguf.quantize(floats.reshape(grouped(floats.size, step, step)), new)


def grouped(elements: int, block: int, size: int) -> tuple[int, int]:
    """Return a shape of long rows for that many elements, in units of *size* for each *block*."""
    for length in (GROUP_ELEMENTS, 2048, 1024, 512, 256):
        if elements % length == 0 and length % block == 0:
            return elements // length, length // block * size
    return 1, elements // block * size


class Report:
    """Progress as JSON lines, at most five a second."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._told = 0.0

    def moved(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told >= REPORT_EVERY_S or self._done == self._total:
            self._told = now
            tell({"done": self._done, "total": self._total})


def tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def quantize(source_path: str, output_path: str, wanted: str) -> dict[str, Any]:
    """Write *output_path* and return what was done."""
    partial = f"{output_path}.partial"
    with open(source_path, "rb", buffering=1 << 20) as source:
        size = os.fstat(source.fileno()).st_size
        header = read_header(source, size)
        decided = targets_of(header.tensors, Kind[wanted])
        kinds = [kind for kind, _ in decided]
        report = Report(sum(size_of(t.dims, t.kind) for t in header.tensors))
        needed = header.data_offset + sum(
            padded(size_of(t.dims, kind), header.alignment)
            for t, kind in zip(header.tensors, kinds, strict=True)
        )
        check_room(output_path, needed)
        with (
            full_disk_said(output_path, needed),
            removed_on_failure(partial),
            open(partial, "wb", buffering=1 << 20) as sink,
        ):
            write_header(sink, header, kinds, wanted)
            for tensor, kind in zip(header.tensors, kinds, strict=True):
                source.seek(header.data_offset + tensor.offset)
                convert(source, sink, tensor, kind, report)
                here = sink.tell()
                sink.write(b"\0" * (padded(here, header.alignment) - here))
            sink.flush()
            os.fsync(sink.fileno())
            written = sink.tell()
    os.rename(partial, output_path)
    folder = os.open(os.path.dirname(os.path.abspath(output_path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return {
        "tensors": dict(sorted(Counter(kind.name for kind in kinds).items())),
        "fallbacks": sum(is_fallback for _, is_fallback in decided),
        "bytes": written,
        "cpu_s": round(time.process_time(), 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def check_room(path: str, needed: int) -> None:
    found = os.statvfs(os.path.dirname(os.path.abspath(path)))
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise Refused("disk_full", f"{path}: disk full: {needed} bytes needed, {free} bytes free")


@contextmanager
def full_disk_said(path: str, needed: int) -> Iterator[None]:
    """Say how large the output would have been; nothing of it is left by then."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        problem = f"{path}: disk full: {needed} bytes needed ({error.strerror})"
        raise Refused("disk_full", problem) from error


@contextmanager
def removed_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(path)
        raise


def end_with_parent() -> None:
    """End when who started us is gone: the reading end of its pipe, if it gave us one, tells."""
    lifeline = os.environ.pop("FLEXINFER_LIFELINE", "")
    if lifeline:

        def watch() -> None:
            os.read(int(lifeline), 1)
            os.killpg(0, signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()


def peak_rss_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def fail(code: str, message: str) -> NoReturn:
    tell({"error": {"code": code, "message": message}})
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--type", required=True, choices=sorted(TARGETS))
    asked = parser.parse_args()
    end_with_parent()
    try:
        tell({"result": quantize(asked.input, asked.output, asked.type)})
    except Refused as error:
        fail(error.code, str(error))
    except NotImplementedError as error:
        fail("quantizer_unsupported", f"the input has a type that cannot be read: {error}")
    except OSError as error:
        code = "disk_full" if error.errno in FULL else "io_error"
        fail(code, f"{error.filename or asked.output}: {error.strerror}")


if __name__ == "__main__":
    main()
