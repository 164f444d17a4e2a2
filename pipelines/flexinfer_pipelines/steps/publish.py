"""Make it visible: layers, then the manifest, then the evidence, then the names. Names move last."""

from __future__ import annotations

from flexinfer.artifact import (
    ANNOTATION_BASE,
    ANNOTATION_BUILD_KEY,
    ANNOTATION_SOURCE,
    PREDICATE_TEST_RESULT,
    FileEntry,
    pack,
    statement,
)
from flexinfer.artifact.evidence import TestResult
from flexinfer.formats.gguf import read_header
from flexinfer.oci import Descriptor
from flexinfer.oci.layout_target import in_thread
from flexinfer_pipelines.plan import Plan, build_reference
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.inspect import Inspected, model_config, notes_of
from flexinfer_pipelines.steps.quantize import Quantized


async def publish(
    context: Context,
    plan: Plan,
    key: str,
    inspected: Inspected,
    quantized: Quantized | None,
    result: TestResult,
) -> Descriptor:
    """Return the artifact's manifest, in the store, under its names, with its evidence attached.

    Raises:
        IntegrityError: the weights are not those that were validated. ResourceExhausted: code `disk_full`.
    """
    return await in_thread(_publish, context, plan, key, inspected, quantized, result)


def _publish(
    context: Context,
    plan: Plan,
    key: str,
    inspected: Inspected,
    quantized: Quantized | None,
    result: TestResult,
) -> Descriptor:
    store = context.store
    weights = FileEntry(
        path=inspected.weights.path, digest=inspected.weights.digest, size=inspected.weights.size
    )
    header = inspected.header
    if quantized is not None:
        path = quantized.folder / quantized.file
        store.ingest_file(
            path,
            expected=quantized.digest,
            on_progress=lambda done, total: context.progress.moved(
                "publish", done, total, quantized.file
            ),
        )
        weights = FileEntry(path=quantized.file, digest=quantized.digest, size=quantized.size)
        with store.open(quantized.digest) as stream:
            header = read_header(stream, quantized.size, name=quantized.file)
    documents = [
        FileEntry(path=file.path, digest=file.digest, size=file.size)
        for file in inspected.files
        if file.path != inspected.weights.path
    ]
    packed = pack(
        [weights, *documents],
        model_config(plan, header, quantization=header.quantization or plan.recipe.type),
        {
            ANNOTATION_SOURCE: plan.source.identity,
            ANNOTATION_BUILD_KEY: key,
            ANNOTATION_BASE: inspected.weights.digest,
            **notes_of(header),
        },
    )
    manifest = store.put_artifact(packed)
    store.attest(
        manifest,
        statement(plan.reference, manifest.digest, PREDICATE_TEST_RESULT, result.to_predicate()),
    )
    store.tag(build_reference(plan, key), manifest)
    store.tag(plan.reference, manifest)
    return manifest
