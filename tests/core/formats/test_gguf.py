from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexinfer.errors import FlexInferError, InvalidInput
from flexinfer.formats import gguf
from flexinfer.formats.gguf_types import GGML_TYPES

MIB = 1 << 20


def read(raw: bytes, size: int | None = None) -> gguf.GgufHeader:
    return gguf.read_header(io.BytesIO(raw), len(raw) if size is None else size, name="m.gguf")


def refusal(raw: bytes, size: int | None = None) -> str:
    with pytest.raises(InvalidInput) as refused:
        read(raw, size)
    assert refused.value.code == "gguf"
    return refused.value.message


# --- what a valid file says


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_read_the_same(build: Any, version: int) -> None:
    header = read(build.small_gguf(version=version))
    assert header.version == version
    assert (header.architecture, header.name, header.license) == ("llama", "Tiny", "mit")
    assert (header.context_length, header.embedding_length) == (128, 32)
    assert header.quantization == "Q8_0"
    assert header.has_tokenizer and header.vocabulary_size == 3
    assert header.chat_template is None and header.split is None
    assert header.parameter_count == 4 + 64
    assert header.tensor_types == {"F32": 1, "Q8_0": 1}
    assert [(t.name, t.dims, t.type, t.offset, t.size_bytes) for t in header.tensors] == [
        ("norm.weight", (4,), "F32", 0, 16),
        ("blk.0.attn_q.weight", (32, 2), "Q8_0", 32, 68),
    ]
    assert header.data_offset % 32 == 0 and header.trailing_bytes == 0


def test_the_starter_model_says_what_its_publisher_says(starter_gguf: Path) -> None:
    # Counts from the package's own `gguf-dump`; context and licence from the model card.
    with starter_gguf.open("rb") as stream:
        header = gguf.read_header(stream, starter_gguf.stat().st_size)
    assert len(header.tensors) == 272
    assert header.tensor_types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert (header.architecture, header.context_length, header.license) == (
        "llama",
        8192,
        "apache-2.0",
    )
    assert header.quantization == "Q4_1"
    assert header.vocabulary_size == 49152
    assert header.parameter_count == 134_515_008
    assert header.chat_template is not None and "<|im_start|>" in header.chat_template
    assert isinstance(header.metadata["tokenizer.ggml.tokens"], gguf.ArrayInfo)


def test_every_scalar_type_keeps_its_value(build: Any) -> None:
    values = [
        (build.U8, 255),
        (build.I8, -128),
        (build.U16, 65535),
        (build.I16, -2),
        (build.U32, 1 << 31),
        (build.I32, -3),
        (build.F32, 0.5),
        (build.U64, (1 << 64) - 1),
        (build.I64, -(1 << 63)),
        (build.F64, 1e300),
        (build.STRING, "naïve"),
    ]
    pairs = [build.pair(f"k{kind}", kind, value) for kind, value in values]
    pairs.append(build.pair("yes", build.BOOL, 1))
    header = read(build.gguf(pairs, []))
    assert dict(header.metadata) == {**{f"k{k}": v for k, v in values}, "yes": True}
    assert header.metadata["yes"] is True


def test_small_arrays_are_kept_and_large_ones_described(build: Any) -> None:
    pairs = [
        build.array("small", build.I32, [1, -2, 3]),
        build.array("words", build.STRING, ["x", "yy"]),
        build.array("empty", build.F64, []),
        build.array("large", build.U16, list(range(5000))),
        build.array("vocabulary", build.STRING, ["w" * (n % 7) for n in range(5000)]),
    ]
    metadata = read(build.gguf(pairs, [])).metadata
    assert metadata["small"] == (1, -2, 3)
    assert metadata["words"] == ("x", "yy")
    assert metadata["empty"] == ()
    large, vocabulary = metadata["large"], metadata["vocabulary"]
    assert isinstance(large, gguf.ArrayInfo) and isinstance(vocabulary, gguf.ArrayInfo)
    assert (large.element_type, large.count, large.size_bytes) == ("uint16", 5000, 10000)
    assert (vocabulary.element_type, vocabulary.count) == ("string", 5000)
    assert vocabulary.size_bytes == sum(8 + n % 7 for n in range(5000))


def test_strings_across_chunk_borders_are_walked_whole(build: Any) -> None:
    words = ["w" * n for n in (70_000, 0, 300_000, 5, 262_136, 262_144, 1)] * 100
    raw = build.gguf([build.array("v", build.STRING, words), build.pair("after", build.U8, 7)], [])
    assert read(raw).metadata["after"] == 7


def test_a_string_too_long_to_keep_is_described(build: Any) -> None:
    raw = build.gguf([build.pair("s", build.STRING, "x" * (MIB + 1))], [])
    text = read(raw).metadata["s"]
    assert isinstance(text, gguf.TextInfo)
    assert raw[text.offset : text.offset + 2] == b"xx" and text.size_bytes == MIB + 1


def test_an_own_alignment_is_followed(build: Any) -> None:
    pairs = [build.pair("general.alignment", build.U32, 256)]
    tensors = [build.tensor("a", [4], 0, 0), build.tensor("b", [4], 0, 256)]
    header = read(build.gguf(pairs, tensors, data=256 + 16, alignment=256))
    assert header.alignment == 256 and header.data_offset % 256 == 0


def test_bytes_after_the_last_tensor_are_counted(build: Any) -> None:
    raw = build.small_gguf()
    padding = -len(raw) % 32
    assert read(raw + bytes(padding)).trailing_bytes == 0
    assert read(raw + bytes(padding + 5)).trailing_bytes == 5


def test_an_empty_dimension_makes_an_empty_tensor(build: Any) -> None:
    tensors = [build.tensor("none", [0, 8], 0, 0), build.tensor("b", [4], 0, 0)]
    header = read(build.gguf([], tensors, data=16))
    assert [tensor.size_bytes for tensor in header.tensors] == [0, 16]


def test_without_a_file_type_the_heaviest_type_is_the_label(build: Any) -> None:
    tensors = [
        build.tensor("a", [4], 0, 0),
        build.tensor("b", [4], 0, 32),
        build.tensor("c", [256, 4], 12, 64),
    ]
    assert read(build.gguf([], tensors, data=64 + 4 * 144)).quantization == "Q4_K"


def test_rows_that_the_block_does_not_divide_count_as_fallbacks(build: Any) -> None:
    # SmolLM2-135M as Q4_K_M: hidden size 576 is no multiple of 256; its converter reports that
    # 180 of 272 tensors fall back.
    shapes = {
        "attn_q": [576, 576],
        "attn_k": [576, 192],
        "attn_v": [576, 192],
        "attn_output": [576, 576],
        "ffn_gate": [576, 1536],
        "ffn_up": [576, 1536],
        "ffn_down": [1536, 576],
        "attn_norm": [576],
        "ffn_norm": [576],
    }
    layers = [(f"blk.{n}.{name}.weight", dims) for n in range(30) for name, dims in shapes.items()]
    layers += [("token_embd.weight", [576, 49152]), ("output_norm.weight", [576])]
    tensors, offset = [], 0
    for name, dims in layers:
        elements = dims[0] * (dims[1] if len(dims) > 1 else 1)
        tensors.append(build.tensor(name, dims, 30, offset))
        offset += -(-elements * 2 // 32) * 32
    head = build.gguf([build.pair("general.file_type", build.U32, 15)], tensors)
    header = read(head, size=len(head) + offset)
    assert len(header.tensors) == 272 and header.quantization == "Q4_K_M"
    assert header.fallback_count == 180


def test_block_sizes_give_the_published_bits_per_weight() -> None:
    # From the tables of llama.cpp's quantization README and of the k-quants and i-quants papers.
    published = {
        "F32": 32,
        "BF16": 16,
        "Q8_0": 8.5,
        "Q4_0": 4.5,
        "Q4_1": 5,
        "Q5_0": 5.5,
        "Q5_1": 6,
        "Q2_K": 2.625,
        "Q3_K": 3.4375,
        "Q4_K": 4.5,
        "Q5_K": 5.5,
        "Q6_K": 6.5625,
        "IQ1_S": 1.5625,
        "IQ1_M": 1.75,
        "IQ2_XXS": 2.0625,
        "IQ2_XS": 2.3125,
        "IQ2_S": 2.5625,
        "IQ3_XXS": 3.0625,
        "IQ3_S": 3.4375,
        "IQ4_NL": 4.5,
        "IQ4_XS": 4.25,
        "TQ1_0": 1.6875,
        "TQ2_0": 2.0625,
        "MXFP4": 4.25,
        "NVFP4": 4.5,
    }
    bits = {kind.name: 8 * kind.size / kind.block for kind in GGML_TYPES.values()}
    assert {name: bits[name] for name in published} == published


# --- hostile files


Case = Callable[[Any], bytes]
HUGE = (1 << 63) + 5

HOSTILE: dict[str, tuple[Case, str]] = {
    "empty": (lambda b: b"", "magic"),
    "three bytes": (lambda b: b"GGU", "magic"),
    "wrong magic": (lambda b: b"GGML" + bytes(60), "magic"),
    "only magic": (lambda b: b"GGUF", "version"),
    "version 0": (lambda b: b.gguf([], [], version=0), "big-endian"),
    "version 1": (lambda b: b.gguf([], [], version=1), "version 1"),
    "version 4": (lambda b: b.gguf([], [], version=4), "version 4"),
    "big-endian": (lambda b: b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "cut after the version": (lambda b: b"GGUF" + struct.pack("<I", 3), "tensor count"),
    "cut in the counts": (lambda b: b"GGUF" + struct.pack("<IQI", 3, 0, 0), "key count"),
    "2^63 tensors": (lambda b: b.gguf([], [], tensor_count=HUGE), "tensors"),
    "2^63 pairs": (lambda b: b.gguf([], [], pair_count=HUGE), "pairs"),
    "1000001 tensors": (lambda b: b.gguf([], [], tensor_count=1_000_001), "at most 1000000"),
    "65537 pairs": (lambda b: b.gguf([], [], pair_count=65_537), "at most 65536"),
    "allowed tensors, no bytes": (lambda b: b.gguf([], [], tensor_count=999_999), "remain"),
    "allowed pairs, no bytes": (lambda b: b.gguf([], [], pair_count=65_536), "remain"),
    "one pair too many": (
        lambda b: b.gguf([b.pair("a", b.U8, 1)], [], pair_count=2, data=16),
        "key 1",
    ),
    "key of no bytes": (lambda b: b.gguf([b.pair("", b.U8, 1)], [], data=64), "key 0 claims 0"),
    "key of 2^63": (
        lambda b: b.gguf([b.text("a", length=HUGE) + bytes(32)], []),
        "key 0 claims",
    ),
    "key of 65536": (lambda b: b.gguf([b.pair("k" * 65_536, b.U8, 1)], []), "expected 1 to 65535"),
    "key past the end": (lambda b: b.gguf([b.text("a", length=5000) + bytes(32)], []), "remain"),
    "key not UTF-8": (lambda b: b.gguf([b.pair(b"\xff\xfe", b.U8, 1)], []), "UTF-8"),
    "key twice": (
        lambda b: b.gguf([b.pair("a", b.U8, 1), b.pair("a", b.U16, 2)], []),
        "occurs twice",
    ),
    "value type 13": (
        lambda b: b.gguf([b.text("a") + struct.pack("<I", 13) + bytes(16)], []),
        "value type 13",
    ),
    "value type 2^32-1": (
        lambda b: b.gguf([b.text("a") + struct.pack("<I", 0xFFFFFFFF) + bytes(16)], []),
        "value type",
    ),
    "value cut": (
        lambda b: b.gguf([b.text("abcdefgh") + struct.pack("<I", 12)], [], alignment=1)[:-1],
        "type",
    ),
    "bool of 2": (lambda b: b.gguf([b.pair("a", b.BOOL, 2)], [], data=32), "bool"),
    "string of 2^63": (
        lambda b: b.gguf([b.text("a") + struct.pack("<I", 8) + b.text("x", length=HUGE)], []),
        "claims",
    ),
    "string above 64 MiB": (
        lambda b: b.gguf([b.text("a") + struct.pack("<I", 8) + b.text("", length=65 << 20)], []),
        "at most 67108864",
    ),
    "string past the end": (
        lambda b: b.gguf([b.text("a") + struct.pack("<I", 8) + b.text("x", length=1 << 20)], []),
        "remain",
    ),
    "string not UTF-8": (lambda b: b.gguf([b.pair("a", b.STRING, b"\x80")], []), "UTF-8"),
    "array of 2^63 bytes": (
        lambda b: b.gguf([b.array("a", b.U8, [], count=HUGE)], [], data=64),
        "elements",
    ),
    "array of 9e15 strings": (
        lambda b: b.gguf([b.array("t", b.STRING, [], count=9 * 10**15)], [], data=64),
        "claims 9000000000000000 elements",
    ),
    "array size overflows 64 bits": (
        lambda b: b.gguf([b.array("a", b.U64, [], count=1 << 61)], [], data=64),
        "elements",
    ),
    "array past the end": (
        lambda b: b.gguf([b.array("a", b.U32, [1, 2], count=2000)], [], data=64),
        "claims 2000 elements",
    ),
    "string array past the end": (
        lambda b: b.gguf([b.array("a", b.STRING, ["x"] * 600, count=620)], []),
        "element 602 needs 8 bytes",
    ),
    "string in an array past the end": (
        lambda b: b.gguf(
            [b.array("a", b.STRING, ["x"] * 600, count=601) + b.text("y", length=1 << 40)], []
        ),
        "element 600 claims",
    ),
    "string in an array of 2^64-1": (
        lambda b: b.gguf(
            [b.array("a", b.STRING, ["x"] * 600, count=601) + b.text("", length=(1 << 64) - 1)],
            [],
            data=600,
        ),
        "element 600 claims",
    ),
    "nested array": (
        lambda b: b.gguf([b.array("a", b.ARRAY, [], count=1)], [], data=64),
        "array of arrays",
    ),
    "array of an unknown type": (
        lambda b: b.gguf([b.array("a", 77, [], count=1)], [], data=64),
        "element type 77",
    ),
    "alignment 0": (
        lambda b: b.gguf([b.pair("general.alignment", b.U32, 0)], [], data=64),
        "power of two",
    ),
    "alignment 24": (
        lambda b: b.gguf([b.pair("general.alignment", b.U32, 24)], [], data=64),
        "power of two",
    ),
    "alignment negative": (
        lambda b: b.gguf([b.pair("general.alignment", b.I32, -32)], [], data=64),
        "power of two",
    ),
    "alignment a string": (
        lambda b: b.gguf([b.pair("general.alignment", b.STRING, "32")], [], data=64),
        "not an integer",
    ),
    "alignment true": (
        lambda b: b.gguf([b.pair("general.alignment", b.BOOL, 1)], [], data=64),
        "not an integer",
    ),
    "alignment beyond the file": (
        lambda b: b.gguf(
            [b.pair("general.alignment", b.U32, 1 << 31)], [b.tensor("a", [4], 0, 0)], data=64
        ),
        "the file has",
    ),
    "tensor name of no bytes": (
        lambda b: b.gguf([], [b.tensor("", [4], 0, 0)], data=64),
        "name claims 0",
    ),
    "tensor name of 64": (
        lambda b: b.gguf([], [b.tensor("n" * 64, [4], 0, 0)], data=64),
        "expected 1 to 63",
    ),
    "tensor name of 2^63": (
        lambda b: b.gguf([], [b.text("n", length=HUGE) + bytes(40)], data=64),
        "name claims",
    ),
    "tensor name not UTF-8": (
        lambda b: b.gguf([], [b.tensor(b"\xc3\x28", [4], 0, 0)], data=64),
        "UTF-8",
    ),
    "tensor twice": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 0), b.tensor("a", [4], 0, 32)], data=64),
        "occurs twice",
    ),
    "no dimensions": (
        lambda b: b.gguf([], [b.tensor("a", [], 0, 0)], data=64),
        "0 dimensions",
    ),
    "five dimensions": (
        lambda b: b.gguf([], [b.tensor("a", [1] * 5, 0, 0)], data=64),
        "5 dimensions",
    ),
    "2^32-1 dimensions": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 0, rank=0xFFFFFFFF)], data=64),
        "dimensions",
    ),
    "negative dimension": (
        lambda b: b.gguf([], [b.tensor("a", [-4], 0, 0)], data=64),
        "dimension -4",
    ),
    "product of 2^63": (
        lambda b: b.gguf([], [b.tensor("a", [1 << 32, 1 << 31], 0, 0)], data=64),
        "63 bits",
    ),
    "product that wraps to 4": (
        lambda b: b.gguf([], [b.tensor("a", [(1 << 62) + 1, 4], 0, 0)], data=64),
        "63 bits",
    ),
    "overflow behind a zero": (
        lambda b: b.gguf([], [b.tensor("a", [1 << 62, 1 << 62, 0], 0, 0)], data=64),
        "63 bits",
    ),
    "tensor type 43": (
        lambda b: b.gguf([], [b.tensor("a", [4], 43, 0)], data=64),
        "unknown type 43",
    ),
    "tensor type 2^32-1": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0xFFFFFFFF, 0)], data=64),
        "unknown type",
    ),
    "removed tensor type": (
        lambda b: b.gguf([], [b.tensor("a", [32], 31, 0)], data=64),
        "Q4_0_4_4",
    ),
    "row no multiple of the block": (
        lambda b: b.gguf([], [b.tensor("a", [576, 2], 12, 0)], data=4096),
        "multiple of 256",
    ),
    "offset misaligned": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 4)], data=64),
        "multiple of 32",
    ),
    "offset 2^63": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 1 << 63)], data=64),
        "expected 0",
    ),
    "first tensor not at 0": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 32)], data=64),
        "expected 0",
    ),
    "overlapping tensors": (
        lambda b: b.gguf([], [b.tensor("a", [64], 0, 0), b.tensor("b", [64], 0, 32)], data=600),
        "expected 256",
    ),
    "the same bytes twice": (
        lambda b: b.gguf([], [b.tensor("a", [64], 0, 0), b.tensor("b", [64], 0, 0)], data=600),
        "expected 256",
    ),
    "hole between tensors": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 0), b.tensor("b", [4], 0, 64)], data=128),
        "expected 32",
    ),
    "tensors out of order": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 32), b.tensor("b", [4], 0, 0)], data=64),
        "expected 0",
    ),
    "data past the end": (
        lambda b: b.gguf([], [b.tensor("a", [400], 0, 0)], data=1599),
        "the file has",
    ),
    "no data at all": (lambda b: b.gguf([], [b.tensor("a", [4], 0, 0)]), "the file has"),
    "tensor cut": (
        lambda b: b.gguf([], [b.tensor("a", [4], 0, 0)[:-3]], alignment=1),
        "remain",
    ),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_a_hostile_file_is_refused_by_name_and_reason(build: Any, case: str) -> None:
    make, reason = HOSTILE[case]
    message = refusal(make(build))
    assert message.startswith("m.gguf: ")
    assert reason in message


def test_a_file_that_is_shorter_than_it_was_said_to_be_is_refused(build: Any) -> None:
    raw = build.small_gguf()
    for cut in range(0, len(raw) - 132, 7):
        with pytest.raises(InvalidInput, match=r"ended|remain|begin"):
            read(raw[:cut], size=len(raw))


def test_hostile_names_cannot_write_to_the_terminal(build: Any) -> None:
    raw = build.gguf([], [build.tensor("\x1b[2J\nfake", [4], 99, 0)], data=64)
    assert "\x1b" not in refusal(raw) and "\n" not in refusal(raw)


# --- memory


def heavy_pairs(build: Any) -> bytes:
    return bytes(
        build.gguf([build.pair(f"{n:030}", build.F64, n + 0.5) for n in range(65_536)], [])
    )


def heavy_tensors(build: Any) -> bytes:
    count = 220_000
    tail = struct.pack("<IqIQ", 1, 0, 0, 0)
    head = b"".join(struct.pack("<Q", 5) + f"{n:05x}".encode() + tail for n in range(count))
    return bytes(build.gguf([], [head], tensor_count=count))


def heavy_strings(build: Any) -> bytes:
    text = "😀" + "x" * (MIB - 8)
    return bytes(build.gguf([build.pair(f"k{n}", build.STRING, text) for n in range(40)], []))


def heavy_arrays(build: Any) -> bytes:
    values = [0.5] * 512
    return bytes(build.gguf([build.array(f"k{n}", build.F32, values) for n in range(4000)], []))


GROWTH = """
import re, sys
from pathlib import Path
from flexinfer.errors import InvalidInput
from flexinfer.formats import gguf
def peak():  # not ru_maxrss, which begins at the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
before = peak()
path = Path(sys.argv[1])
with path.open("rb") as stream:
    try:
        kept = gguf.read_header(stream, path.stat().st_size)
    except InvalidInput as refused:
        assert "table takes more" in refused.message, refused.message
print(peak() - before)
"""


@pytest.mark.parametrize("make", [heavy_pairs, heavy_tensors, heavy_strings, heavy_arrays])
def test_the_largest_allowed_headers_grow_a_process_by_less_than_64_mib(
    build: Any, make: Callable[[Any], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(make(build))
    command = [sys.executable, "-c", GROWTH, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(ran.stdout) < 64 * 1024


# --- split models


def part(build: Any, number: int, count: int = 2, total: int = 2, **about: Any) -> gguf.GgufHeader:
    pairs = [
        build.pair("split.no", build.U16, number),
        build.pair("split.count", build.U16, count),
        build.pair("split.tensors.count", build.I32, total),
    ]
    if architecture := about.get("architecture", "llama" if number == 0 else None):
        pairs.append(build.pair("general.architecture", build.STRING, architecture))
    name = about.get("tensor", f"t{number}")
    return read(build.gguf(pairs, [build.tensor(name, [4], 0, 0)], data=16))


def test_a_whole_split_model_passes(build: Any) -> None:
    gguf.check_split([("b", part(build, 1)), ("a", part(build, 0))])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda b: [part(b, 0)], "part 1 of 2 is missing"),
        (lambda b: [part(b, 0), part(b, 0, tensor="x")], "both part 0"),
        (lambda b: [part(b, 0), part(b, 2)], "expected 0 to 1"),
        (lambda b: [part(b, 0), part(b, 1, count=3)], "says 3 parts"),
        (lambda b: [part(b, 0), part(b, 1, total=9)], "9 tensors"),
        (lambda b: [part(b, 0, total=3), part(b, 1, total=3)], "expected 3 tensors"),
        (lambda b: [part(b, 0), part(b, 1, architecture="qwen2")], "is qwen2"),
        (lambda b: [part(b, 0), part(b, 1, tensor="t0")], "tensor t0 is in"),
        (lambda b: [part(b, 0), read(b.small_gguf())], "lacks split.no"),
        (lambda b: [], "no parts"),
    ],
)
def test_parts_that_are_not_one_model_are_refused(
    build: Any, make: Callable[[Any], list[gguf.GgufHeader]], reason: str
) -> None:
    parts = [(f"p{n}.gguf", header) for n, header in enumerate(make(build))]
    with pytest.raises(InvalidInput, match=reason) as refused:
        gguf.check_split(parts)
    assert refused.value.code == "gguf_split"


# --- properties

FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FAST
@given(body=st.binary(max_size=400), version=st.sampled_from([2, 3]))
def test_random_bytes_raise_only_the_typed_error(body: bytes, version: int) -> None:
    try:
        read(b"GGUF" + struct.pack("<I", version) + body)
    except FlexInferError as refused:
        assert refused.code == "gguf"


@FAST
@given(data=st.data())
def test_a_changed_header_is_read_or_refused_and_never_lies(
    build: Any, data: st.DataObject
) -> None:
    raw = bytearray(build.small_gguf())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(raw) - 101))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=1),
                st.sampled_from(
                    [struct.pack("<Q", n) for n in (0, 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1)]
                ),
            )
        )
        raw[at : at + len(patch)] = patch
    size = data.draw(st.integers(0, len(raw) + 50))
    try:
        header = read(bytes(raw[:size]))
    except FlexInferError as refused:
        assert refused.code == "gguf"
        return
    for tensor in header.tensors:
        assert header.data_offset + tensor.offset + tensor.size_bytes <= size
        assert tensor.offset % header.alignment == 0


@FAST
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([(0, 1, 4), (8, 32, 34)])),
        max_size=8,
    ),
    st.sampled_from([1, 8, 32, 64]),
)
def test_what_is_written_is_read_back(
    build: Any, shapes: list[tuple[int, int, tuple[int, int, int]]], alignment: int
) -> None:
    tensors, expected, offset = [], [], 0
    for index, (rows, blocks, (kind, block, size)) in enumerate(shapes):
        dims = [block * blocks, rows]
        tensors.append(build.tensor(f"t{index}", dims, kind, offset))
        expected.append((f"t{index}", tuple(dims), offset, rows * blocks * size))
        offset += -(-rows * blocks * size // alignment) * alignment
    pairs = [build.pair("general.alignment", build.U32, alignment)]
    header = read(build.gguf(pairs, tensors, data=offset, alignment=alignment))
    assert [(t.name, t.dims, t.offset, t.size_bytes) for t in header.tensors] == expected
