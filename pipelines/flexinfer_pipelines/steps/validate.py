"""Measure the result against its base, with real engines, and judge: good enough, or a refusal with the numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from flexinfer.artifact.evidence import BaseEvidence, TestResult
from flexinfer.errors import ProcessFailed, QualityError
from flexinfer.formats.gguf import read_header
from flexinfer.log import get_logger
from flexinfer.oci.layout_target import in_thread
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.plan import Plan
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.inspect import Inspected
from flexinfer_pipelines.steps.quantize import Quantized
from flexinfer_pipelines.validators import Number, Subject
from flexinfer_pipelines.validators.bench import Bench
from flexinfer_pipelines.validators.judging import validators

log = get_logger(__name__)


async def validate(
    context: Context,
    plan: Plan,
    checks: Validate,
    inspected: Inspected,
    quantized: Quantized | None,
    folder: Path,
) -> TestResult:
    """Return the evidence of a result that is good enough. *quantized* None: the source's bytes as they are.

    Raises:
        QualityError: code `quality`: what was measured and what was wanted, for each threshold that was missed.
        ProcessFailed: an engine could not be asked; code `validation_timeout`: it took too long in all.
    """
    with ExitStack() as leases:
        held = leases.enter_context(await in_thread(context.store.checkout, inspected.base.digest))
        base = Subject(
            folder=held.path,
            file=inspected.weights.path,
            digest=inspected.weights.digest,
            header=inspected.header,
            size_bytes=inspected.weights.size,
        )
        candidate = base if quantized is None else await in_thread(_subject, quantized)
        bench = Bench(
            home=context.home,
            folder=folder / "engine",
            clock=context.clock,
            nice=context.child_nice,
            on_line=lambda line: context.progress.moved("validate", 0, None, line[-80:]),
        )
        async with bench:
            async with _bounded(plan, context.settings.build.validate_timeout_s):
                result = await _measure(context, plan, checks, bench, candidate, base)
    _report(plan, result)
    return result


@asynccontextmanager
async def _bounded(plan: Plan, limit_s: float) -> AsyncIterator[None]:
    """End what takes too long in all: one who answers slowly for ever would keep the build's place for ever."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ProcessFailed(
            f"{plan.entry}/{plan.variant}: its validation is not done after {limit_s:g} s "
            "(FLEXINFER_BUILD__VALIDATE_TIMEOUT_S)",
            code="validation_timeout",
        ) from error


async def _measure(
    context: Context,
    plan: Plan,
    checks: Validate,
    bench: Bench,
    candidate: Subject,
    base: Subject,
) -> TestResult:
    asked = validators(checks, is_copy=plan.is_copy)
    measurements: dict[str, Number] = {}
    thresholds: dict[str, float] = {}
    passed: list[str] = []
    failed: list[str] = []
    sentences: list[str] = []
    for number, validator in enumerate(asked):
        context.progress.moved("validate", number, len(asked), validator.name)
        measured = await validator.measure(bench, candidate, base)
        verdict = validator.judge(measured, checks)
        measurements |= measured
        thresholds |= verdict.thresholds
        (passed if verdict.passes else failed).append(validator.name)
        sentences += verdict.failures
        if validator.order == 0 and not verdict.passes:
            break  # a file that is not whole is not given to an engine
    context.progress.moved("validate", len(asked), len(asked), "")
    result = TestResult(
        result="FAILED" if failed else "PASSED",
        passed=tuple(passed),
        failed=tuple(failed),
        measurements=measurements,
        thresholds=thresholds,
        base=BaseEvidence(
            digest=base.digest, quantization=base.quantization, source=plan.source.identity
        ),
        engine=bench.engine_version,
        configuration=_configuration(plan),
    )
    if failed:
        raise Failed(plan, result, sentences)
    return result


class Failed(QualityError):
    """A result that is not good enough; `result` holds all the numbers."""

    def __init__(self, plan: Plan, result: TestResult, sentences: list[str]) -> None:
        super().__init__(
            f"{plan.entry}/{plan.variant} is not published: {'; '.join(sentences)}", code="quality"
        )
        self.result = result


def _configuration(plan: Plan) -> tuple[Mapping[str, object], ...]:
    recipe = plan.recipe
    if not recipe.tool:
        return ()
    return (
        {
            "name": f"requirements/tools/{recipe.tool}.txt",
            "digest": {"sha256": recipe.lock},
            "annotations": {"recipe": f"{recipe.format} {recipe.type or recipe.scheme}"},
        },
        {"name": f"quantizer {recipe.format}", "digest": {"sha256": recipe.program}},
    )


def _subject(quantized: Quantized) -> Subject:
    path = quantized.folder / quantized.file
    with path.open("rb") as stream:
        header = read_header(stream, quantized.size, name=quantized.file)
    return Subject(
        folder=quantized.folder,
        file=quantized.file,
        digest=quantized.digest,
        header=header,
        size_bytes=quantized.size,
    )


def _report(plan: Plan, result: TestResult) -> None:
    log.info(
        "artifact_validated",
        entry=plan.entry,
        variant=plan.variant,
        **{name.replace(".", "_"): value for name, value in result.measurements.items()},
    )
