"""A build from beginning to end: the steps in order, each under a name, resumed where an earlier try stopped."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from flexinfer.errors import Conflict, IntegrityError, Unavailable
from flexinfer.log import get_logger
from flexinfer.oci.layout_target import in_thread
from flexinfer.process import SingleInstance
from flexinfer.resources.entry import CatalogEntry, Variant
from flexinfer.store_names import BUILD_PREFIX, build_name
from flexinfer.units import format_bytes
from flexinfer_pipelines.built import Built, describe, find_built, name_again
from flexinfer_pipelines.journal import Journal
from flexinfer_pipelines.plan import Plan, build_key, identified
from flexinfer_pipelines.sources import Source
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.fetch import Fetched, fetch, kept
from flexinfer_pipelines.steps.inspect import inspect
from flexinfer_pipelines.steps.publish import publish
from flexinfer_pipelines.steps.quantize import Quantized, quantize
from flexinfer_pipelines.steps.quantize import recalled as quantized_before
from flexinfer_pipelines.steps.resolve import recalled, remember_file, resolve, source_for
from flexinfer_pipelines.steps.validate import validate
from flexinfer_pipelines.steps.warm import warm

log = get_logger(__name__)
T = TypeVar("T")
# Another process builds the same: longer than any build that still moves.
_WAIT_S = 6 * 3600.0
_LOOK_EVERY_S = 0.5
# What nobody came back for in a week is not resumed any more.
_STALE_S = 7 * 86400.0


class Stage(Protocol):
    """Runs one step under its name: plainly, or as a task of a flow."""

    async def __call__(self, name: str, work: Callable[[], Awaitable[T]]) -> T: ...


async def build(
    context: Context,
    entry: CatalogEntry,
    variant: Variant,
    stage: Stage,
    *,
    rebuild: bool = False,
) -> Built:
    """Build *variant* of *entry*, or find it built. The same key is built by one process at a time.

    *rebuild*: make and measure it again although it is there.

    Raises:
        FlexInferError: what a step raises; nothing is published then.
    """
    source = source_for(context, entry.spec.source.parsed())
    try:
        async with _working(context):
            plan = await stage("resolve", lambda: _plan(context, entry, variant, source, rebuild))
            key = build_key(plan)
            files: tuple[Fetched, ...] | None = None
            if key is None:  # what a local file is, only its bytes say
                files = await stage("fetch", lambda: fetch(context, plan, source))
                plan = identified(plan, {file.path: file.digest for file in files})
                remember_file(context, plan)
                key = build_key(plan)
            if key is None:
                raise IntegrityError(
                    f"{plan.source.uri}: a file has no identity", code="source_unpinned"
                )
            async with _turn(context, plan, key):
                found = await in_thread(find_built, context.store, plan, key, variant.checks)
                if found is not None and not rebuild:
                    await in_thread(name_again, context.store, found)
                    return found
                if files is None:
                    files = await stage("fetch", lambda: fetch(context, plan, source))
                return await _make(context, plan, key, variant, files, stage, rebuild)
    finally:
        await source.close()


async def _plan(
    context: Context, entry: CatalogEntry, variant: Variant, source: Source, rebuild: bool
) -> Plan:
    # Asking again tells nothing new about bytes that are pinned, as long as they are all here.
    remembered = None if rebuild else recalled(context, entry, variant)
    if remembered is not None and await in_thread(kept, context.store, remembered) is not None:
        return remembered
    return await resolve(context, entry, variant, source)


async def _make(
    context: Context,
    plan: Plan,
    key: str,
    variant: Variant,
    files: tuple[Fetched, ...],
    stage: Stage,
    rebuild: bool,
) -> Built:
    folder = work_folder(context.home.work, key)
    journal = Journal(folder, key)
    if rebuild:
        journal.forget("quantize")
    inspected = await stage("inspect", lambda: inspect(context, plan, files))
    # Until it has a name: what a collection must leave to the next try.
    journal.write("fetch", {"digests": [inspected.base.digest, *(file.digest for file in files)]})
    quantized: Quantized | None = None
    if not plan.is_copy:

        async def weights() -> Quantized:
            before = await in_thread(quantized_before, folder / "output", journal.read("quantize"))
            if before is not None:
                return before
            made = await quantize(context, plan, inspected, folder / "output")
            journal.write("quantize", made.to_tree())
            return made

        quantized = await stage("quantize", weights)
    result = await stage(
        "validate",
        lambda: validate(context, plan, variant.checks, inspected, quantized, folder),
    )
    manifest = await stage(
        "publish", lambda: publish(context, plan, key, inspected, quantized, result)
    )
    await stage("warm", lambda: warm(context, manifest.digest))
    built = describe(context.store, plan, manifest, variant.checks, is_new=True)
    if built is None:
        raise IntegrityError(
            f"{plan.reference}: its evidence is not in the store", code="evidence_invalid"
        )
    journal.remove()
    log.info(
        "artifact_built",
        reference=built.reference,
        digest=built.digest,
        human=f"built {built.reference} ({built.quantization}, {format_bytes(built.size_bytes)})",
    )
    return built


@asynccontextmanager
async def _working(context: Context) -> AsyncIterator[None]:
    """Nothing is collected while the build has bytes in the store that have no name yet."""
    held = context.store.working()
    await in_thread(held.__enter__)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


@asynccontextmanager
async def _turn(context: Context, plan: Plan, key: str) -> AsyncIterator[None]:
    """Wait until no other process builds *key*, then hold its place."""
    path = context.home.build_lock(key)
    about = {"what": f"build {plan.entry}/{plan.variant}"}
    until = context.clock.now_s() + _WAIT_S
    told = False
    while True:
        try:
            lock = await in_thread(SingleInstance.acquire, path, about)
            break
        except Conflict as error:
            if context.clock.now_s() > until:
                raise Unavailable(
                    f"{error.message}; waited {_WAIT_S / 3600:.0f} h", code="build_busy"
                ) from error
            if not told:
                told = True
                log.info("build_waited", holder=error.message)
                context.progress.moved("resolve", 0, None, f"waiting: {error.message}")
            await asyncio.sleep(_LOOK_EVERY_S)
    with lock:
        remove_stale(context.home.work, now_s=context.clock.unix_s())
        yield


def work_folder(work: Path, key: str) -> Path:
    """Return where the build of *key* keeps what it has made so far."""
    return work / build_name(key)


def remove_stale(work: Path, *, now_s: float) -> None:
    """Remove what builds left that nobody resumed for a week."""
    for path in (*work.glob(f"{BUILD_PREFIX}*"), *(work / "sources").glob("wheel-*")):
        try:
            if now_s - path.stat().st_mtime < _STALE_S:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            log.warning("work_kept", path=str(path), error=error.strerror)
