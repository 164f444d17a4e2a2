"""GGUF from GGUF, without a compiler: the `gguf` package in its own tool environment."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from flexinfer_pipelines.command import Command
from flexinfer_pipelines.quantizers import Job, Quantizer

_MEMORY_BYTES = 300 * 1024 * 1024


class Gguf(Quantizer):
    """Block types that need no importance matrix, and the two half-precision ones."""

    name: ClassVar[str] = "gguf"
    tool: ClassVar[str] = "gguf"
    program: ClassVar[Path] = Path(__file__).parent.parent / "toolbox" / "quantize_gguf.py"
    types: ClassVar[tuple[str, ...]] = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16")
    inputs: ClassVar[tuple[str, ...]] = (".gguf",)

    def command(self, job: Job) -> Command:
        return Command(
            tool=self.tool,
            lock=job.recipe.lock,
            program=self.program,
            argv=(
                "{python}", "-P", "{program}",
                "--input", "{input:weights}",
                "--output", "{output}/" + job.output_name,
                "--type", job.recipe.type,
            ),
            inputs={"weights": job.weights},
            outputs=(job.output_name,),
            memory_bytes=_MEMORY_BYTES,
            stall_s=job.stall_s,
        )  # fmt: skip
