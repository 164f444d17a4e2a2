from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flexinfer.artifact import PREDICATE_TEST_RESULT, FileEntry, ModelConfig, pack, statement
from flexinfer.oci import Descriptor, Digest
from flexinfer.store import Store

WEIGHTS = bytes(range(256)) * 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A small artifact in a store: two files, one test result, one name."""

    store: Store
    manifest: Descriptor
    weights: Digest
    name: str


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def publish() -> Callable[..., Published]:
    def make(store: Store, *, name: str = "smol:q8-0", weights: bytes = WEIGHTS) -> Published:
        digest = store.put_bytes(weights)
        licence = store.put_bytes(b"Apache")
        files = [
            FileEntry(path="model.gguf", digest=digest, size=len(weights)),
            FileEntry(path="docs/LICENSE", digest=licence, size=6),
        ]
        config = ModelConfig(name="smol", architecture="llama", format="gguf", quantization="Q8_0")
        found = store.put_artifact(pack(files, config, {"ai.flexinfer.source": "pypi://x==1/y"}))
        result = {"result": "PASSED", "passedTests": ["smoke"], "failedTests": []}
        store.attest(found, statement("smol", found.digest, PREDICATE_TEST_RESULT, result))
        store.tag(name, found)
        return Published(store=store, manifest=found, weights=digest, name=name)

    return make


@pytest.fixture
def published(store: Store, publish: Callable[..., Published]) -> Published:
    return publish(store)


@pytest.fixture
def flip() -> Callable[[Path], None]:
    """Flip one bit in place, as a failing disk does: through the file's mode, its size unchanged."""

    def flip_one(path: Path) -> None:
        mode = path.stat().st_mode
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.seek(5)
            byte = stream.read(1)[0]
            stream.seek(5)
            stream.write(bytes([byte ^ 1]))
        path.chmod(mode & 0o777)

    return flip_one
