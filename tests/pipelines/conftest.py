"""What the pipelines' tests share: a real but tiny llama model, a home with the tool environments, a context."""

from __future__ import annotations

import random
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flexinfer.clock import SystemClock
from flexinfer.places import Home
from flexinfer.resources.entry import CatalogEntry
from flexinfer.settings import BuildSection, Settings
from flexinfer.store import Store
from flexinfer.toolenv import ToolEnvironment
from flexinfer_pipelines.steps import Context

T = TypeVar("T")
F32, F16 = 0, 1
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
# Hidden, feed-forward, layers, heads, heads of keys and values, vocabulary.
HIDDEN, FEED, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 96, 2, 4, 2, 288


def gguf_bytes(
    pairs: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]
) -> bytes:
    """Return a GGUF file (version 3). Tensors: name → (dims, the row length first; type number; data)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)))
    for key, value in pairs.items():
        out += _text(key) + _value(value)
    offset = 0
    for name, (dims, kind, data) in tensors.items():
        out += _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        offset += -(-len(data) // 32) * 32
    out += b"\0" * (-len(out) % 32)
    for _, _, data in tensors.values():
        out += data + b"\0" * (-len(data) % 32)
    return bytes(out)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<IB", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list() if isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(one) for one in value)
        case list() if isinstance(value[0], float):
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
        case list():
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    raise TypeError(value)


def floats(chance: random.Random, count: int, scale: float) -> bytes:
    return struct.pack(f"<{count}f", *(chance.gauss(0.0, scale) for _ in range(count)))


def tiny_model(*, seed: int = 1, **pairs: Any) -> bytes:
    """Return a llama model of 100,000 random F32 weights, with a tokenizer of bytes and a chat template."""
    chance = random.Random(seed)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    tokens += [f"▁w{n}" for n in range(VOCABULARY - len(tokens))]
    kinds = [2, 3, 3, *([6] * 256), *([1] * (VOCABULARY - 259))]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.file_type": 0,
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
        **pairs,
    }
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = {}

    def matrix(name: str, columns: int, rows: int) -> None:
        data = floats(chance, columns * rows, 1.5 / columns**0.5)
        tensors[f"{name}.weight"] = ((columns, rows), F32, data)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = ((HIDDEN,), F32, struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))

    matrix("token_embd", HIDDEN, VOCABULARY)
    for layer in range(LAYERS):
        here = f"blk.{layer}"
        norm(f"{here}.attn_norm")
        matrix(f"{here}.attn_q", HIDDEN, HIDDEN)
        matrix(f"{here}.attn_k", HIDDEN, HIDDEN * KV_HEADS // HEADS)
        matrix(f"{here}.attn_v", HIDDEN, HIDDEN * KV_HEADS // HEADS)
        matrix(f"{here}.attn_output", HIDDEN, HIDDEN)
        norm(f"{here}.ffn_norm")
        matrix(f"{here}.ffn_gate", HIDDEN, FEED)
        matrix(f"{here}.ffn_up", HIDDEN, FEED)
        matrix(f"{here}.ffn_down", FEED, HIDDEN)
    norm("output_norm")
    matrix("output", HIDDEN, VOCABULARY)
    return gguf_bytes(metadata, tensors)


@pytest.fixture(scope="session")
def tiny() -> bytes:
    """A llama model that a real engine loads in no time."""
    return tiny_model()


@pytest.fixture
def tiny_file(tiny: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.F32.gguf"
    path.write_bytes(tiny)
    return path


@pytest.fixture
def make_gguf() -> Callable[..., bytes]:
    """`gguf_bytes`, and `tiny_model` as its attribute's call: for files that are wrong on purpose."""
    return gguf_bytes


@pytest.fixture
def make_tiny() -> Callable[..., bytes]:
    return tiny_model


@pytest.fixture(scope="session")
def gguf_python(downloads: Path) -> Path:
    """The interpreter of the quantizer's tool environment, installed once per machine."""
    shared = Home(downloads / "home").prepare()
    return ToolEnvironment.named("gguf").ensure(shared, on_line=print).path


@pytest.fixture
def tooled_home(tmp_path: Path, downloads: Path, gguf_python: Path, engine_python: Path) -> Home:
    """A home of its own, with the tool environments that are there already."""
    root = tmp_path / "home"
    root.mkdir()
    (root / "tools").symlink_to(downloads / "home" / "tools")
    return Home(root).prepare()


@dataclass
class Watch:
    """A `Progress` that remembers."""

    stages: list[str] = field(default_factory=list)
    moves: list[tuple[str, float, float | None]] = field(default_factory=list)

    def started(self, stage: str) -> None:
        self.stages.append(stage)

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self.moves.append((stage, done, total))

    def finished(self, stage: str, note: str = "") -> None:
        return

    async def stage(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """A `Stage` without Prefect."""
        self.started(name)
        return await work()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def make_context(watch: Watch) -> Callable[..., Context]:
    """`make_context(home, environ={}, **build_settings)`."""

    def make(home: Home, environ: Mapping[str, str] | None = None, **build: Any) -> Context:
        return Context(
            home=home,
            settings=Settings(build=BuildSection(**{"nice": 0, **build})),
            environ=dict(environ or {}),
            store=Store(home.store),
            clock=SystemClock(),
            chance=random.Random(1),
            progress=watch,
        )

    return make


@pytest.fixture
def make_entry() -> Callable[..., CatalogEntry]:
    """`make_entry(uri, variants=[…], license=…, allow=…)`."""

    def make(
        uri: str,
        *variants: Mapping[str, Any],
        license: str = "Apache-2.0",
        allow: tuple[str, ...] = (),
    ) -> CatalogEntry:
        default = {"name": "q8-0", "quantize": {"format": "gguf", "type": "Q8_0"}}
        return CatalogEntry.model_validate(
            {
                "metadata": {"name": "tiny"},
                "spec": {
                    "source": {"uri": uri, "allow": allow},
                    "license": {"expression": license},
                    "publish": {"repository": "tiny"},
                    "variants": list(variants) or [default],
                },
            }
        )

    return make
