"""Copy an artifact from one target to another: blobs, then the manifest, then what refers to it, then the name.

Each step is idempotent, so a copy that was broken off is simply done again: what is there is not moved,
and a blob goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Literal, TypeVar

from flexinfer.errors import Conflict, FlexInferError, IntegrityError, InvalidInput, TransferError
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.layout_target import read_manifest
from flexinfer.oci.manifest import Manifest
from flexinfer.oci.reference import Reference
from flexinfer.oci.target import Target, is_manifest

# What a transfer may cost: a referrer of a referrer is a signature of an attestation, and no more.
MAX_DEPTH = 4
MAX_REFERRERS = 256
MAX_ATTEMPTS = 3
_PARALLEL = 3
_MAX_PAUSE_S = 30.0

Progress = Callable[[Descriptor, int], None]
T = TypeVar("T")


async def copy(
    source: Target,
    target: Target,
    name: str,
    *,
    to: str | None = None,
    on_progress: Progress | None = None,
    pause_s: float = 0.2,
) -> Descriptor:
    """Copy what *name* points to, with its referrers, and return the manifest's descriptor.

    *to*: the name at the target, else *name*; a digest without *to* stays without a name.
    *on_progress*: called with a blob and how many of its bytes are at the target.
    *pause_s*: how long to wait before the second attempt at a blob; each later wait is doubled.

    Raises:
        TransferError: bytes did not move, and `side` says where; each blob was tried three times.
        IntegrityError: code `digest_mismatch`: a blob came wrong three times.
        NotFound, InvalidInput, ResourceExhausted, Unauthorized: trying again is useless.
    """
    found = await _at("source", source.resolve(name))
    wanted = to if to is not None else _name_of(name)
    job = _Copy(source, target, on_progress, pause_s)
    await job.manifest(found, depth=0)
    if wanted is not None:
        await _at("target", target.tag(found, wanted))
    return found


class _Copy:
    def __init__(
        self, source: Target, target: Target, on_progress: Progress | None, pause_s: float
    ) -> None:
        self._source = source
        self._target = target
        self._on_progress = on_progress
        self._pause_s = pause_s
        self._places = asyncio.Semaphore(_PARALLEL)
        self._referrers = 0

    async def manifest(self, descriptor: Descriptor, *, depth: int) -> None:
        """Copy a manifest: first what it points to, then itself, then what refers to it."""
        if not is_manifest(descriptor):
            raise InvalidInput(
                f"{descriptor.digest}: media type {descriptor.media_type} is not an artifact's manifest",
                code="media_type_unsupported",
            )
        data = await read_manifest(descriptor, _from_source(self._source.read(descriptor)))
        try:
            async with asyncio.TaskGroup() as group:
                for blob in Manifest.parse(data).blobs:
                    group.create_task(self._blob(blob))
        except* FlexInferError as failures:
            raise _first(failures) from None
        await _at("target", self._target.write(descriptor, _once(data)))
        await self._follow(descriptor, depth)

    async def _follow(self, descriptor: Descriptor, depth: int) -> None:
        referrers = await _at("source", self._source.referrers(descriptor.digest))
        self._referrers += len(referrers)
        if self._referrers > MAX_REFERRERS or (referrers and depth >= MAX_DEPTH):
            raise InvalidInput(
                f"{descriptor.digest}: expected at most {MAX_REFERRERS} referrers, {MAX_DEPTH} deep",
                code="too_many_referrers",
            )
        for referrer in referrers:
            await self.manifest(referrer, depth=depth + 1)

    async def _blob(self, blob: Descriptor) -> None:
        async with self._places:
            if await _at("target", self._target.exists(blob)):
                self._report(blob, blob.size)
                return
            for attempt in range(MAX_ATTEMPTS):
                try:
                    await self._move(blob)
                    return
                except (TransferError, Conflict, IntegrityError) as error:
                    if attempt == MAX_ATTEMPTS - 1:
                        raise
                    asked = error.retry_after_s or self._pause_s * 2**attempt
                    await asyncio.sleep(min(asked, _MAX_PAUSE_S))

    async def _move(self, blob: Descriptor) -> None:
        held = await _at("target", self._target.written(blob))
        offset = held if held <= blob.size else 0
        chunks = _from_source(self._source.read(blob, offset=offset))
        await _at(
            "target", self._target.write(blob, self._counted(blob, chunks, offset), offset=offset)
        )

    async def _counted(
        self, blob: Descriptor, chunks: AsyncIterable[bytes], offset: int
    ) -> AsyncIterator[bytes]:
        moved = offset
        self._report(blob, moved)
        async for chunk in chunks:
            yield chunk
            moved += len(chunk)
            self._report(blob, moved)

    def _report(self, blob: Descriptor, moved: int) -> None:
        if self._on_progress is not None:
            self._on_progress(blob, moved)


async def _from_source(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except (OSError, FlexInferError) as error:
            raise _sided(error, "source") from error
        yield chunk


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _at(side: Literal["source", "target"], step: Awaitable[T]) -> T:
    try:
        return await step
    except (OSError, FlexInferError) as error:
        raise _sided(error, side) from error


def _sided(error: Exception, side: Literal["source", "target"]) -> Exception:
    """Return what to raise for *error*: a verdict stays what it is, a failed move gets its side."""
    if isinstance(error, FlexInferError):
        if isinstance(error, (TransferError, Conflict)) or not error.retryable:
            return error
        return TransferError(
            f"{side}: {error.message}",
            side=side,
            code=error.code,
            retry_after_s=error.retry_after_s,
        )
    return TransferError(f"{side}: {error}", side=side)


def _first(group: BaseExceptionGroup[FlexInferError]) -> FlexInferError:
    """Return the first failure: the others are of blobs that were stopped because of it, or alike."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FlexInferError)
    return error


def _name_of(name: str) -> str | None:
    if name.startswith("sha256:"):
        return None
    reference = Reference.parse(name)
    return reference.name if reference.tag is not None else None
