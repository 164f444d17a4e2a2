"""Make the weights smaller: a `Command` in its own tool environment and process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexinfer.errors import InvalidInput
from flexinfer.formats.ingest import inspect_file
from flexinfer.oci import Digest, parse_digest
from flexinfer.oci.layout_target import in_thread
from flexinfer.toolenv import ToolEnvironment
from flexinfer_pipelines.plan import Plan, output_name
from flexinfer_pipelines.quantizers import QUANTIZERS, Job
from flexinfer_pipelines.runner import run_command
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.inspect import Inspected


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """The new weights, in a folder of the build's own, not yet in the store."""

    folder: Path
    file: str
    digest: Digest
    size: int
    report: Mapping[str, Any]
    """What the program told: tensors by type, fallbacks, CPU seconds, peak memory."""

    def to_tree(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "digest": self.digest,
            "size": self.size,
            "report": dict(self.report),
        }


async def quantize(context: Context, plan: Plan, inspected: Inspected, folder: Path) -> Quantized:
    """Return the new weights, in *folder*.

    Raises:
        InvalidInput, ResourceExhausted, ProcessFailed: as `run_command` and the tool environment.
    """
    store = context.store
    quantizer = QUANTIZERS.get(plan.recipe.format)()
    name = output_name(plan)
    command = quantizer.command(
        Job(
            weights=inspected.weights.digest,
            recipe=plan.recipe,
            output_name=name,
            stall_s=context.settings.build.quantize_stall_s,
        )
    )
    await in_thread(store.ensure_verified, inspected.weights.digest, what=plan.source.uri)

    def installing(line: str) -> None:
        context.progress.moved("quantize", 0, None, line[-80:])

    python = await ToolEnvironment.named(command.tool).ensure_async(
        context.home, on_line=installing
    )

    def moved(done: int, total: int) -> None:
        context.progress.moved("quantize", done, total, plan.recipe.type)

    report = await run_command(
        command,
        name=f"quantize {plan.entry}/{plan.variant}",
        python=python.path,
        inputs={"weights": store.path(inspected.weights.digest)},
        output=folder,
        nice=context.child_nice,
        clock=context.clock,
        on_progress=moved,
    )
    path = folder / name
    await in_thread(inspect_file, path, name)
    os.chmod(path, 0o444)
    return Quantized(
        folder=folder,
        file=name,
        digest=await in_thread(_digest, path),
        size=path.stat().st_size,
        report=report,
    )


def recalled(folder: Path, tree: Mapping[str, Any] | None) -> Quantized | None:
    """Return what an earlier try made, if it is still there and untouched; else None. Blocks for the hash."""
    try:
        if tree is None:
            return None
        found = Quantized(
            folder=folder,
            file=str(tree["file"]),
            digest=parse_digest(str(tree["digest"])),
            size=int(tree["size"]),
            report=dict(tree["report"]),
        )
        path = folder / found.file
        is_same = path.stat().st_size == found.size and _digest(path) == found.digest
        return found if is_same else None
    except (OSError, KeyError, TypeError, ValueError, InvalidInput):
        return None


def _digest(path: Path) -> Digest:
    with path.open("rb") as stream:
        return parse_digest(f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}")
