"""Files that are not whole, or have numbers in them that are none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.formats.gguf import read_header
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import Subject
from flexinfer_pipelines.validators.structure import Structure, _measure

Gguf = Callable[..., bytes]
Q8_0, F32, F16 = 8, 0, 1


def q8(scale: float, code: int = 1, blocks: int = 4) -> tuple[tuple[int, ...], int, bytes]:
    block = struct.pack("<e32b", scale, *[code] * 32)
    return (32, blocks), Q8_0, block * blocks


def f32(value: float, count: int = 128) -> tuple[tuple[int, ...], int, bytes]:
    return (32, count // 32), F32, struct.pack(f"<{count}f", *[value] * count)


@pytest.fixture
def judged(tmp_path: Path, make_gguf: Gguf) -> Callable[..., tuple[Any, Any]]:
    """`judged(candidate's tensors, base's tensors)`: measurements and verdict."""

    def subject(name: str, tensors: Any) -> Subject:
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(make_gguf({"general.architecture": "llama"}, tensors))
        with path.open("rb") as stream:
            header = read_header(stream, path.stat().st_size)
        return Subject(
            folder=tmp_path,
            file=path.name,
            digest=name,
            header=header,
            size_bytes=path.stat().st_size,
        )

    def run(candidate: Any, base: Any) -> tuple[Any, Any]:
        found = _measure(subject("candidate", candidate), subject("base", base))
        return found, Structure().judge(found, Validate())

    return run


def test_a_whole_file_passes(judged: Any) -> None:
    found, verdict = judged({"a.weight": q8(0.5)}, {"a.weight": f32(0.5)})
    assert verdict.passes
    assert found["structure.tensors"] == 1
    assert found["structure.quantization"] == "Q8_0"


@pytest.mark.parametrize(
    ("candidate", "wrong"),
    [
        ({}, "structure.missingTensors"),
        ({"a.weight": q8(0.5), "b.weight": q8(0.5)}, "structure.extraTensors"),
        ({"a.weight": q8(0.5, blocks=3)}, "structure.changedShapes"),
        ({"a.weight": q8(float("nan"))}, "structure.notFinite"),
        ({"a.weight": q8(float("inf"))}, "structure.notFinite"),
        ({"a.weight": f32(float("nan"))}, "structure.notFinite"),
        ({"a.weight": q8(0.0)}, "structure.zeroTensors"),
    ],
)
def test_what_is_wrong_is_named(judged: Any, candidate: Any, wrong: str) -> None:
    tensors = candidate or {"other.weight": q8(0.5)}
    found, verdict = judged(tensors, {"a.weight": f32(0.5)})
    assert found[wrong] > 0
    assert any(sentence.startswith(wrong) for sentence in verdict.failures)


def test_zeros_that_the_base_has_too_are_no_fault(judged: Any) -> None:
    _, verdict = judged({"a.weight": q8(0.0)}, {"a.weight": f32(0.0)})
    assert verdict.passes


def test_a_nan_in_the_second_scale_is_found(judged: Any) -> None:
    q4_1 = ((32, 4), 3, struct.pack("<ee16B", 0.5, float("nan"), *[1] * 16) * 4)
    found, _ = judged({"a.weight": q4_1}, {"a.weight": f32(0.5)})
    assert found["structure.notFinite"] == 4
