"""An image layout as a `Target`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from flexinfer.errors import Conflict, Unavailable
from flexinfer.oci.blobs import BlobFolder
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.digest import BUFFER_BYTES, Digest, check_digest, digest_of
from flexinfer.oci.layout import Layout
from flexinfer.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from flexinfer.oci.target import check_offset, is_manifest
from flexinfer.oci.writer import BlobWriter

P = ParamSpec("P")
T = TypeVar("T")

# How long another writer of the same blob may stand still, and how often we look.
_STALL_S = 60.0
_POLL_S = 0.02


class LayoutTarget:
    """The layout at *root*, made if absent. Files are read and written in threads, in bounded pieces."""

    def __init__(self, root: Path, *, blobs: BlobFolder | None = None) -> None:
        self.core = Layout(root, blobs=blobs)
        self.core.prepare()

    async def resolve(self, name: str) -> Descriptor:
        return self.core.resolve(name)

    async def read(self, descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[bytes]:
        check_offset(offset, descriptor)
        with self.core.blobs.open(descriptor.digest) as stream:
            file = stream.fileno()
            at = offset
            while data := await in_thread(os.pread, file, BUFFER_BYTES, at):
                at += len(data)
                yield data

    async def exists(self, descriptor: Descriptor) -> bool:
        if not self.core.blobs.has(descriptor.digest, descriptor.size):
            return False
        return not is_manifest(descriptor) or self.core.index().known(descriptor.digest) is not None

    async def written(self, descriptor: Descriptor) -> int:
        if is_manifest(descriptor):
            return 0
        return self.core.blobs.partial_size(key=descriptor.digest, expected=descriptor.digest)

    async def write(
        self, descriptor: Descriptor, chunks: AsyncIterable[bytes], *, offset: int = 0
    ) -> None:
        if await self.exists(descriptor):
            return
        if is_manifest(descriptor):
            data = await read_manifest(descriptor, chunks)
            await in_thread(self.core.put_manifest, data)
            return
        writer = await self._begin(descriptor)
        try:
            if writer.done is None:
                await _fill(writer, chunks, offset)
            await in_thread(writer.commit)
        finally:
            writer.__exit__(None, None, None)

    async def _begin(self, descriptor: Descriptor) -> BlobWriter:
        """Return the entered writer; waits for another one for as long as that one makes progress."""
        moved, deadline = -1, 0.0
        while True:
            writer = self.core.blobs.writer(
                key=descriptor.digest,
                expected=descriptor.digest,
                expected_size=descriptor.size,
                wait_s=0,
            )
            try:
                await in_thread(writer.__enter__)
                return writer
            except Unavailable:
                held, now = await self.written(descriptor), time.monotonic()
                if held != moved:
                    moved, deadline = held, now + _STALL_S
                if now >= deadline:
                    raise
                await asyncio.sleep(_POLL_S)

    async def tag(self, descriptor: Descriptor, name: str) -> None:
        await in_thread(self.core.tag, name, descriptor)

    async def referrers(
        self, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        return await in_thread(self.core.referrers, digest, artifact_type)

    async def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        return self.core.tags()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what *call* returns, run in a thread; also when cancelled, not before the call has ended.

    Else the caller would close a file that the thread still writes to.
    """
    task = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # seen, so that nobody reports it as lost
        raise asyncio.CancelledError
    return task.result()


async def read_manifest(descriptor: Descriptor, chunks: AsyncIterable[bytes]) -> bytes:
    """Return the bytes of a manifest from *chunks*, checked and bounded.

    Raises:
        IntegrityError: code `manifest_digest`.
        InvalidInput: as `Manifest.parse`.
    """
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > MAX_MANIFEST_BYTES:
            break
    Manifest.parse(bytes(data), content_type=descriptor.media_type)
    check_digest(
        found=digest_of(data), found_size=len(data),
        expected=descriptor.digest, expected_size=descriptor.size,
        what=f"manifest {descriptor.digest}", code="manifest_digest",
    )  # fmt: skip
    return bytes(data)


async def _fill(writer: BlobWriter, chunks: AsyncIterable[bytes], offset: int) -> None:
    if offset > writer.offset:
        raise Conflict(
            f"write from offset {offset}: only {writer.offset} bytes are held", code="offset_gone"
        )
    skip = writer.offset - offset
    if offset == 0 and skip:
        writer.restart()
        skip = 0
    async for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        await in_thread(writer.write, memoryview(chunk)[skip:])
        skip = 0
