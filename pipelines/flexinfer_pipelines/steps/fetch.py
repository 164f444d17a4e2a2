"""Bring the source's files into the store: what is there already is not moved, what stopped goes on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from flexinfer.errors import IntegrityError, NotFound
from flexinfer.log import get_logger
from flexinfer.net.download import SourceChanged
from flexinfer.oci import BlobWriter, Digest, parse_digest
from flexinfer.oci.layout_target import in_thread
from flexinfer.store import Store
from flexinfer_pipelines.plan import Plan, source_reference
from flexinfer_pipelines.sources import Moved, Resolved, Source, SourceFile
from flexinfer_pipelines.steps import Context, Progress

log = get_logger(__name__)
# The first try, and one more from byte 0 where the bytes were not what they must be.
_TRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file of the source, in the store."""

    path: str
    digest: Digest
    size: int


async def fetch(context: Context, plan: Plan, source: Source) -> tuple[Fetched, ...]:
    """Return every file of *plan*, in the store, its bytes verified.

    Raises:
        IntegrityError: code `source_digest`: twice other bytes than the source promised.
        NotFound, Unauthorized, TransferError: as the source.
    """
    here = await in_thread(kept, context.store, plan)
    if here is not None:
        return here
    found: list[Fetched] = []
    tally = _Tally(context.progress, plan.files)
    for file in plan.files:
        one = await fetch_file(context, plan.source, source, file, partial(tally.moved, file.path))
        tally.ended(file.path, one.size if one is not None else 0)
        if one is not None:
            found.append(one)
    await source.finish(plan.source)
    return tuple(found)


def kept(store: Store, plan: Plan) -> tuple[Fetched, ...] | None:
    """Return the files of *plan* if an earlier build left all of them, whole; else None. Blocks.

    What is there but touched is hashed; a blob that turns out wrong goes into quarantine and is fetched anew.
    """
    if any(not file.identity for file in plan.weights):
        return None  # a name that does not say which bytes it is
    try:
        artifact = store.artifact(store.resolve(source_reference(plan)).digest)
        files = {file.path: file for file in artifact.files}
        found = []
        for file in plan.files:
            if file.path not in files and file.is_optional:
                continue
            one = files[file.path]
            store.ensure_verified(one.digest, what=f"source {plan.source.identity}: {one.path}")
            found.append(Fetched(path=one.path, digest=one.digest, size=one.size))
        return tuple(found)
    except (NotFound, IntegrityError, KeyError):
        return None


async def fetch_file(
    context: Context, resolved: Resolved, source: Source, file: SourceFile, moved: Moved
) -> Fetched | None:
    """Return one file of *resolved*, in the store; None for an optional one that is not there. Raises as `fetch`."""
    what = f"{resolved.uri}: {file.path}"
    expected = parse_digest(file.digest) if file.digest.startswith("sha256:") else None
    local = source.local_path(resolved, file)
    if local is not None:
        digest = await in_thread(
            context.store.ingest_file, local, expected=expected, on_progress=moved
        )
        return Fetched(
            path=file.path, digest=digest, size=context.store.path(digest).stat().st_size
        )
    for attempt in range(1, _TRIES + 1):
        writer = context.store.writer(
            key=f"{resolved.identity}!{file.inner or file.path}",
            expected=expected,
            expected_size=file.size,
        )

        def heard(done: int, total: int | None, writer: BlobWriter = writer) -> None:
            writer.likely_size = total if total is not None else writer.likely_size
            moved(done, total)

        try:
            await in_thread(writer.__enter__)
            if writer.done is None:
                await _pour(resolved, source, file, writer, heard)
            done = await in_thread(writer.commit)
            return Fetched(path=file.path, digest=done.digest, size=done.size)
        except NotFound:
            if file.is_optional:
                await in_thread(writer.discard)
                return None
            raise
        except (SourceChanged, IntegrityError) as error:
            await in_thread(writer.discard)
            log.warning("fetch_restarted", file=file.path, code=error.code, attempt=attempt)
            if attempt == _TRIES:
                raise IntegrityError(
                    f"{what}: {error.message} (tried {_TRIES} times; nothing was kept)",
                    code="source_digest" if error.code == "digest_mismatch" else error.code,
                ) from error
        finally:
            writer.__exit__(None, None, None)
    raise AssertionError("each try returns or raises")


async def _pour(
    resolved: Resolved, source: Source, file: SourceFile, writer: BlobWriter, moved: Moved
) -> None:
    """Stream the file into *writer*: the next piece is made while the last one is hashed and written."""
    blob = _GitBlob(file)
    # Without a sha256 to check the whole against, nothing of an earlier try is trusted.
    if writer.offset and not file.digest.startswith("sha256:"):
        await in_thread(writer.restart)
    held = writer.offset
    pending: asyncio.Future[None] | None = None
    stream = source.open(resolved, file, offset=held, moved=moved)
    try:
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if pending is not None:
                    await pending
                pending = asyncio.ensure_future(in_thread(_take, writer, blob, chunk))
                held += len(chunk)
                moved(held, file.size)
            if pending is not None:
                await pending
                pending = None
    finally:
        if pending is not None:
            await asyncio.wait([pending])
            pending.exception()
    blob.check(f"{resolved.uri}: {file.path}")


def _take(writer: BlobWriter, blob: _GitBlob, chunk: bytes) -> None:
    writer.write(chunk)
    blob.update(chunk)


class _Tally:
    """Progress over all files, one after another: what is done of what is known to come."""

    def __init__(self, progress: Progress, files: Sequence[SourceFile]) -> None:
        self._progress = progress
        self._sizes = {file.path: file.size or 0 for file in files}
        self._ended = 0

    def moved(self, path: str, done: int, total: int | None) -> None:
        if total is not None:
            self._sizes[path] = total
        self._sizes[path] = max(self._sizes[path], done)
        self._progress.moved("fetch", self._ended + done, sum(self._sizes.values()) or None, path)

    def ended(self, path: str, size: int) -> None:
        self._ended += size
        self._sizes[path] = size
        self._progress.moved("fetch", self._ended, sum(self._sizes.values()) or None, path)


class _GitBlob:
    """The id that git gives a file: what a hub knows of files that are not in large-file storage."""

    def __init__(self, file: SourceFile) -> None:
        kind, _, self._expected = file.digest.partition(":")
        self._hasher = (
            hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
            if kind == "git-sha1"
            else None
        )

    def update(self, data: bytes) -> None:
        if self._hasher is not None:
            self._hasher.update(data)

    def check(self, what: str) -> None:
        if self._hasher is not None and self._hasher.hexdigest() != self._expected:
            raise IntegrityError(
                f"{what}: git blob id {self._hasher.hexdigest()}, the source says {self._expected}",
                code="source_digest",
            )
