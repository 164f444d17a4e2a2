"""Whether what a GGUF header says of its model agrees with the tensors that are there. Pure.

Limits and where they come from, all of llama.cpp, the native reader that comes after us: 512 layers
(`LLAMA_MAX_LAYERS` in src/llama-hparams.h); a position is a 32-bit signed number (`llama_pos` in include/llama.h),
so no context is longer than that.
"""

from __future__ import annotations

import re

from flexinfer.errors import InvalidInput
from flexinfer.formats.cursor import shown
from flexinfer.formats.gguf import GgufHeader

MAX_BLOCKS = 512
MAX_CONTEXT = (1 << 31) - 1
_CODE = "gguf"
# `blk.7.attn_q.weight`, `enc.blk.7.…`, `convnext.7.…`: the first number is the block's.
_BLOCK = re.compile(r"(?:^|\.)(\d{1,9})\.")
_MAX_NAMED = 5


def check_model(header: GgufHeader, name: str) -> None:
    """Refuse a file that cannot be the model that it says it is. Keys that are absent are the engine's matter.

    Raises:
        InvalidInput: code `gguf`, naming the file, the key, what it says and what is there.
    """
    is_part = header.split is not None and header.split[1] > 1
    if not header.tensors and not is_part:
        raise InvalidInput(f"{shown(name)}: has no tensors; expected a model's weights", code=_CODE)
    architecture = header.architecture
    _check_range(header.context_length, 1, MAX_CONTEXT, f"{architecture}.context_length", name)
    _check_range(header.embedding_length, 1, MAX_CONTEXT, f"{architecture}.embedding_length", name)
    _check_range(header.block_count, 0, MAX_BLOCKS, f"{architecture}.block_count", name)
    if not is_part:  # the other parts have the rest
        _check_embedding(header, name)
        _check_blocks(header, name)


def _check_range(value: int | None, least: int, most: int, key: str, name: str) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidInput(
            f"{shown(name)}: {shown(key)} is {value}; expected {least} to {most}", code=_CODE
        )


def _check_embedding(header: GgufHeader, name: str) -> None:
    width = header.embedding_length
    if width is None:
        return
    key = shown(f"{header.architecture}.embedding_length")
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and tensor.dims[0] != width:
            raise InvalidInput(
                f"{shown(name)}: {key} is {width}, token_embd.weight has rows of {tensor.dims[0]}",
                code=_CODE,
            )
    if not any(width in tensor.dims for tensor in header.tensors):
        raise InvalidInput(
            f"{shown(name)}: {key} is {width}; no tensor has that dimension", code=_CODE
        )


def _check_blocks(header: GgufHeader, name: str) -> None:
    """Every block has a tensor, but for the extra layers that predict further tokens: converters may drop those."""
    count = header.block_count
    # Where each layer has sizes of its own (an array), one may have none at all.
    keys = (
        f"{header.architecture}.{key}" for key in ("feed_forward_length", "attention.head_count")
    )
    if not count or any(key in header.metadata and header.integer(key) is None for key in keys):
        return
    extra = header.integer(f"{header.architecture}.nextn_predict_layers") or 0
    found = {int(match[1]) for t in header.tensors if (match := _BLOCK.search(t.name)) is not None}
    missing = [number for number in range(count - max(0, extra)) if number not in found]
    if missing:
        numbers = ", ".join(str(number) for number in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise InvalidInput(
            f"{shown(name)}: {shown(f'{header.architecture}.block_count')} is {count}, "
            f"but no tensor belongs to block {numbers}{more}",
            code=_CODE,
        )
