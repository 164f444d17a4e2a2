"""A header that contradicts its own tensors is refused before a native reader sees the file."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.formats.gguf import GgufHeader, TensorInfo
from flexinfer.formats.gguf_rules import MAX_BLOCKS, check_model
from flexinfer.formats.gguf_types import ArrayInfo, Value

WIDTH = 8


def tensor(name: str, *dims: int) -> TensorInfo:
    return TensorInfo(name=name, dims=dims or (WIDTH,), type="F32", offset=0, size_bytes=32)


def header(*tensors: TensorInfo, **pairs: Any) -> GgufHeader:
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 2,
        **{key.replace("__", "."): value for key, value in pairs.items()},
    }
    return GgufHeader(
        version=3, metadata=MappingProxyType(metadata), tensors=tensors,
        alignment=32, data_offset=0, trailing_bytes=0,
    )  # fmt: skip


EMBED = tensor("token_embd.weight", WIDTH, 100)
WHOLE = (EMBED, tensor("blk.0.attn_norm.weight"), tensor("blk.1.attn_norm.weight"))


def test_a_model_that_agrees_with_itself_passes() -> None:
    check_model(header(*WHOLE), "m.gguf")


@pytest.mark.parametrize(
    ("given_header", "said"),
    [
        (header(), "has no tensors"),
        (header(*WHOLE, llama__block_count=(1 << 31) - 1), "block_count' is 2147483647; expected 0 to 512"),
        (header(*WHOLE, llama__context_length=0), "context_length' is 0; expected 1 to"),
        (header(*WHOLE, llama__context_length=1 << 40), "context_length' is 1099511627776"),
        (header(*WHOLE, llama__embedding_length=0), "embedding_length' is 0; expected 1 to"),
        (header(*WHOLE, llama__embedding_length=16), "is 16, token_embd.weight has rows of 8"),
        (header(*WHOLE[1:], llama__embedding_length=16), "is 16; no tensor has that dimension"),
        (header(*WHOLE, llama__block_count=9), "is 9, but no tensor belongs to block 2, 3, 4, 5, 6 and 2 more"),
        (header(*WHOLE[:2]), "no tensor belongs to block 1"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_both_sides(
    given_header: GgufHeader, said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_model(given_header, "m.gguf")
    assert caught.value.code == "gguf"
    assert caught.value.message.startswith("'m.gguf': ")
    assert said in caught.value.message


def test_layers_that_a_converter_may_drop_are_not_missed() -> None:
    check_model(header(*WHOLE, llama__block_count=3, llama__nextn_predict_layers=1), "m.gguf")
    sizes = ArrayInfo(element_type="uint32", count=3, offset=0, size_bytes=12)
    check_model(header(*WHOLE, llama__block_count=3, llama__feed_forward_length=sizes), "m.gguf")


def test_a_part_of_several_need_not_have_everything() -> None:
    part = {"split__no": 0, "split__count": 2}
    check_model(header(llama__embedding_length=WIDTH, **part), "m.gguf")
    check_model(header(*WHOLE[:2], **part), "m.gguf")


@given(
    count=st.integers(-5, 1 << 40),
    width=st.integers(-5, 1 << 40),
    context=st.integers(-5, 1 << 40),
    blocks=st.sets(st.integers(0, 20), max_size=20),
)
def test_whatever_passes_has_a_tensor_for_each_block_and_one_of_that_width(
    count: int, width: int, context: int, blocks: set[int]
) -> None:
    tensors = (EMBED, *(tensor(f"blk.{number}.attn_norm.weight") for number in blocks))
    given_header = header(
        *tensors,
        llama__block_count=count, llama__embedding_length=width, llama__context_length=context,
    )  # fmt: skip
    try:
        check_model(given_header, "m.gguf")
    except InvalidInput as error:
        assert error.code == "gguf"
    else:
        assert set(range(count)) <= blocks and count <= MAX_BLOCKS
        assert width == WIDTH and context > 0
