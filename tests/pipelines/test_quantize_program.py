"""The quantizer's program, run as it is run: what it writes is what the GGUF specification says it must be."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.formats.gguf import GgufHeader, read_header
from flexinfer_pipelines.quantizers.gguf import Gguf

Quantize = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def quantize(gguf_python: Path, tmp_path: Path) -> Quantize:
    """`quantize(data, type)`: exit code and last line; the result is `out.gguf` in tmp_path."""

    def run(data: bytes | Path, kind: str, output: str = "out.gguf") -> tuple[int, dict[str, Any]]:
        source = data if isinstance(data, Path) else tmp_path / "in.gguf"
        if isinstance(data, bytes):
            source.write_bytes(data)
        argv = [str(gguf_python), "-P", str(Gguf.program), "--input", str(source)]
        argv += ["--output", str(tmp_path / output), "--type", kind]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    return run


def header_of(path: Path) -> GgufHeader:
    with path.open("rb") as stream:
        return read_header(stream, path.stat().st_size)


def matrix(values: list[float], columns: int) -> tuple[tuple[int, ...], int, bytes]:
    return (columns, len(values) // columns), 0, struct.pack(f"<{len(values)}f", *values)


def numbers(seed: int, count: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(0, 1) for _ in range(count)]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_every_type_is_written_whole_and_labelled(
    quantize: Quantize, tiny: bytes, tmp_path: Path, kind: str
) -> None:
    code, said = quantize(tiny, kind)
    assert code == 0
    header = header_of(tmp_path / "out.gguf")
    before = {t.name: t.dims for t in header_of(tmp_path / "in.gguf").tensors}
    assert {t.name: t.dims for t in header.tensors} == before
    assert header.quantization == kind
    assert header.integer("general.quantization_version") == 2
    assert said["result"]["tensors"] == dict(sorted(header.tensor_types.items()))
    by_name = {tensor.name: tensor.type for tensor in header.tensors}
    assert by_name["blk.0.attn_q.weight"] == kind
    assert by_name["blk.0.attn_norm.weight"] == "F32"


def test_q8_0_blocks_are_as_specified(
    quantize: Quantize, make_gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    # ggml's block_q8_0: a half-precision scale, then 32 signed bytes; scale = the largest magnitude / 127.
    values = numbers(3, 4 * 64)
    assert quantize(make_gguf({}, {"w.weight": matrix(values, 64)}), "Q8_0")[0] == 0
    path = tmp_path / "out.gguf"
    header = header_of(path)
    data = path.read_bytes()[header.data_offset :]
    for block in range(8):
        scale = struct.unpack_from("<e", data, block * 34)[0]
        codes = struct.unpack_from("<32b", data, block * 34 + 2)
        wanted = values[block * 32 : block * 32 + 32]
        assert scale == pytest.approx(max(map(abs, wanted)) / 127, rel=1e-3)
        # Half a step, and 127 times what the scale lost when it became a half (2^-11 of it).
        assert all(
            math.isclose(scale * code, value, abs_tol=scale * (0.5 + 127 / 2048))
            for code, value in zip(codes, wanted, strict=True)
        )


def test_rows_that_no_block_divides_become_f16_and_are_counted(
    quantize: Quantize, make_gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    tensors = {
        "odd.weight": matrix(numbers(1, 48 * 3), 48),
        "even.weight": matrix(numbers(2, 96), 32),
    }
    _, said = quantize(make_gguf({}, tensors), "Q4_0")
    types = {tensor.name: tensor.type for tensor in header_of(tmp_path / "out.gguf").tensors}
    assert types == {"odd.weight": "F16", "even.weight": "Q4_0"}
    assert said["result"]["fallbacks"] == 1


def test_the_output_matrix_is_never_coarse(
    quantize: Quantize, tiny: bytes, make_gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    quantize(tiny, "Q4_0")
    types = {tensor.name: tensor.type for tensor in header_of(tmp_path / "out.gguf").tensors}
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q8_0", "Q4_0")
    tied = {"token_embd.weight": matrix(numbers(1, 64), 32)}
    quantize(make_gguf({}, tied), "Q4_0")
    assert header_of(tmp_path / "out.gguf").tensors[0].type == "Q8_0"


def test_routers_positions_and_integers_are_left_alone(
    quantize: Quantize, make_gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    integers = ((32,), 26, struct.pack("<32i", *range(32)))
    tensors = {
        "blk.0.ffn_gate_inp.weight": matrix(numbers(1, 64), 32),
        "position_embd.weight": matrix(numbers(2, 64), 32),
        "ids.weight": integers,
        "x.bias": ((32,), 0, struct.pack("<32f", *numbers(3, 32))),
    }
    quantize(make_gguf({}, tensors), "Q8_0")
    found = [tensor.type for tensor in header_of(tmp_path / "out.gguf").tensors]
    assert found == ["F32", "F32", "I32", "F32"]


def test_tensors_of_the_wanted_type_are_copied_bit_for_bit(
    quantize: Quantize, tiny: bytes, tmp_path: Path
) -> None:
    quantize(tiny, "Q8_0", "first.gguf")
    quantize(tmp_path / "first.gguf", "Q8_0", "second.gguf")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_equal_input_gives_equal_output(quantize: Quantize, tiny: bytes, tmp_path: Path) -> None:
    quantize(tiny, "Q5_1", "first.gguf")
    quantize(tiny, "Q5_1", "second.gguf")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_key_values_are_kept_but_for_how_the_input_was_made(
    quantize: Quantize, make_tiny: Callable[..., bytes], tmp_path: Path
) -> None:
    quantize(make_tiny(**{"quantize.imatrix.file": "x", "my.key": 7}), "Q8_0")
    before, after = header_of(tmp_path / "in.gguf"), header_of(tmp_path / "out.gguf")
    ours = {"general.file_type", "general.quantization_version", "quantize.imatrix.file"}
    kept = [key for key in before.metadata if key not in ours]
    for key in kept:
        is_large = "tokenizer.ggml" in key and "id" not in key and "model" not in key
        if not is_large:  # walked, not kept: their offsets moved
            assert after.metadata[key] == before.metadata[key]
    assert "quantize.imatrix.file" not in after.metadata


@pytest.mark.parametrize(
    ("cut", "code"), [(4, "gguf"), (60, "gguf"), (-100, "gguf")], ids=["head", "keys", "tensor"]
)
def test_a_truncated_file_is_refused_and_leaves_nothing(
    quantize: Quantize, tiny: bytes, tmp_path: Path, cut: int, code: str
) -> None:
    exit_code, said = quantize(tiny[:cut], "Q8_0")
    assert exit_code == 1
    assert said["error"]["code"] == code
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


def test_a_part_of_a_split_model_is_refused(
    quantize: Quantize, make_tiny: Callable[..., bytes]
) -> None:
    _, said = quantize(make_tiny(**{"split.count": 2}), "Q8_0")
    assert said["error"]["code"] == "gguf_split"


def test_the_real_model_fits_its_memory(
    quantize: Quantize, starter_gguf: Path, tmp_path: Path
) -> None:
    code, said = quantize(starter_gguf, "Q8_0")
    assert code == 0
    assert said["result"]["peak_rss_bytes"] < 300 * 1024 * 1024
    assert said["result"]["tensors"] == {"F32": 61, "Q8_0": 211}
    (tmp_path / "out.gguf").unlink()


def test_a_disk_without_room_is_said_with_the_size_of_the_output(
    gguf_python: Path, tiny: bytes, quantize: Quantize, tmp_path: Path
) -> None:
    code, said = quantize(tiny, "Q8_0")
    whole = (tmp_path / "out.gguf").stat().st_size
    assert (code, said["result"]["bytes"]) == (0, whole)
    program = [str(Gguf.program), "--input", str(tmp_path / "in.gguf"), "--type", "Q8_0"]
    limited = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)\n"
        "os.execv(sys.executable, [sys.executable, '-P', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [str(gguf_python), "-c", limited, *program, "--output", str(tmp_path / "small.gguf")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error["code"] == "disk_full"
    assert str(tmp_path / "small.gguf") in error["message"]
    needed = int(error["message"].partition("disk full: ")[2].split()[0])
    assert whole <= needed + 256 <= whole + 1024  # but for the keys of the header that change
    assert not list(tmp_path.glob("small.gguf*"))
