"""A target that breaks off, or gives a wrong byte, as often as it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from flexinfer.errors import Unavailable
from flexinfer.oci import Descriptor, Digest, Target
from flexinfer.oci.target import is_manifest


class FlakyTarget:
    """*inner*, whose next reads of blobs go wrong. Manifests always come whole.

    The next *broken_reads* reads fail after *whole_bytes* of what they would give; after them, the next
    *wrong_reads* reads have one bit flipped in their first byte. `offsets` keeps where each read began.
    """

    def __init__(
        self, inner: Target, *, broken_reads: int = 0, whole_bytes: int = 0, wrong_reads: int = 0
    ) -> None:
        self._inner = inner
        self._broken_reads = broken_reads
        self._whole_bytes = whole_bytes
        self._wrong_reads = wrong_reads
        self.offsets: list[int] = []
        self.given_bytes = 0

    async def resolve(self, name: str) -> Descriptor:
        return await self._inner.resolve(name)

    async def read(self, descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[bytes]:
        if is_manifest(descriptor):
            async for chunk in self._inner.read(descriptor, offset=offset):
                yield chunk
            return
        self.offsets.append(offset)
        breaks, flips = self._broken_reads > 0, self._broken_reads == 0 and self._wrong_reads > 0
        self._broken_reads -= breaks
        self._wrong_reads -= flips
        left = self._whole_bytes
        async for chunk in self._inner.read(descriptor, offset=offset):
            if breaks:
                chunk, left = chunk[:left], left - len(chunk)
            if flips and chunk:
                chunk, flips = bytes([chunk[0] ^ 1]) + chunk[1:], False
            self.given_bytes += len(chunk)
            yield chunk
            if breaks and left <= 0:
                raise Unavailable(f"blob {descriptor.digest}: the connection was reset")

    async def exists(self, descriptor: Descriptor) -> bool:
        return await self._inner.exists(descriptor)

    async def written(self, descriptor: Descriptor) -> int:
        return await self._inner.written(descriptor)

    async def write(
        self, descriptor: Descriptor, chunks: AsyncIterable[bytes], *, offset: int = 0
    ) -> None:
        await self._inner.write(descriptor, chunks, offset=offset)

    async def tag(self, descriptor: Descriptor, name: str) -> None:
        await self._inner.tag(descriptor, name)

    async def referrers(
        self, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        return await self._inner.referrers(digest, artifact_type)

    async def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        return await self._inner.tags()
