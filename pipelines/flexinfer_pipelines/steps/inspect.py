"""The ingest gate: files by content, bounded parsers, template rules, licence; then the source's own artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexinfer.artifact import ANNOTATION_SOURCE, FileEntry, ModelConfig, pack
from flexinfer.errors import InvalidInput
from flexinfer.formats.gguf import GgufHeader
from flexinfer.formats.ingest import inspect_files
from flexinfer.formats.inspection import Inspection
from flexinfer.launching import ANNOTATION_CHAT_TEMPLATE, ANNOTATION_CONTEXT_LENGTH
from flexinfer.log import get_logger
from flexinfer.oci import Descriptor
from flexinfer.oci.layout_target import in_thread
from flexinfer_pipelines.license import covers
from flexinfer_pipelines.plan import Plan, source_reference
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.fetch import Fetched

log = get_logger(__name__)
_ENCODER_POOLINGS = frozenset({1, 2, 3})
_UNITS = ((1_000_000_000_000, "T"), (1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """The source's files, passed, and the artifact that keeps them."""

    files: tuple[Fetched, ...]
    weights: Fetched
    header: GgufHeader
    base: Descriptor
    """The manifest of the source's artifact."""


async def inspect(context: Context, plan: Plan, files: Sequence[Fetched]) -> Inspected:
    """Return *files* when every rule lets them pass.

    Raises:
        InvalidInput: the rule's code; `license` where the file itself states another licence than the entry.
    """
    store = context.store
    found = await in_thread(inspect_files, {file.path: store.path(file.digest) for file in files})
    by_name = {one.name: one for one in found}
    for one in found:
        for warned in one.warnings:
            log.warning("file_warned", file=one.name, code=warned.code, message=warned.message)
    weights = next(file for file in files if file.path == plan.weights[0].path)
    inspection = by_name[weights.path]
    _check_license(plan, inspection)
    header = inspection.header
    if not isinstance(header, GgufHeader):
        raise InvalidInput(
            f"{plan.source.uri}: {weights.path}: expected a GGUF file, found {inspection.kind.value}",
            code="type_mismatch",
        )
    packed = pack(
        [FileEntry(path=f.path, digest=f.digest, size=f.size) for f in files],
        model_config(plan, header, quantization=header.quantization or ""),
        {ANNOTATION_SOURCE: plan.source.identity, **notes_of(header)},
    )
    base = await in_thread(store.put_artifact, packed)
    if not plan.is_copy:
        # A copy's own artifact keeps the same files; every other variant starts from these.
        await in_thread(store.tag, source_reference(plan), base)
    return Inspected(files=tuple(files), weights=weights, header=header, base=base)


def model_config(plan: Plan, header: GgufHeader, *, quantization: str) -> ModelConfig:
    """Return what ModelPack says of a model with *header*."""
    embeds = header.pooling_type in _ENCODER_POOLINGS
    return ModelConfig(
        architecture=header.architecture or "",
        family=header.architecture or "",
        name=plan.entry,
        title=header.name or "",
        format="gguf",
        quantization=quantization,
        param_size=_size(header.parameter_count),
        licenses=(plan.license,) if plan.license != "NOASSERTION" else (),
        source_url=plan.source.url,
        revision=plan.source.revision,
        created_at=plan.source.created_at,
        capabilities={"inputTypes": ["text"], "outputTypes": ["embedding" if embeds else "text"]},
    )


def notes_of(header: GgufHeader) -> dict[str, str]:
    """Return the annotations that an engine is chosen and sized by."""
    return {
        ANNOTATION_CONTEXT_LENGTH: str(header.context_length or 0),
        ANNOTATION_CHAT_TEMPLATE: "true" if header.chat_templates else "false",
    }


def _check_license(plan: Plan, inspection: Inspection) -> None:
    stated = inspection.license or ""
    if not covers(plan.license, stated):
        raise InvalidInput(
            f"entry {plan.entry}: license is {plan.license!r}, {inspection.name} itself states {stated!r}",
            code="license",
            param="license.expression",
        )


def _size(count: int) -> str:
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)
