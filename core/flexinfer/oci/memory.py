"""A `Target` in memory: for tests, and for artifacts that are made and used in one process."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from flexinfer.errors import Conflict, IntegrityError
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.digest import BUFFER_BYTES, Digest, Verifier, parse_digest
from flexinfer.oci.layout_target import read_manifest
from flexinfer.oci.manifest import Manifest
from flexinfer.oci.reference import Reference
from flexinfer.oci.target import check_offset, is_manifest, missing_artifact, missing_blob

_WHERE = "memory"


class MemoryTarget:
    """Blobs in a dictionary. Not for bytes that do not fit into memory."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}
        self._partials: dict[Digest, bytearray] = {}
        self._manifests: dict[Digest, tuple[Descriptor, Manifest]] = {}
        self._tags: dict[str, Digest] = {}

    async def resolve(self, name: str) -> Descriptor:
        named = "@" not in name and not name.startswith("sha256:")
        digest = self._tags.get(name) if named else parse_digest(name.rpartition("@")[2])
        if digest is None or digest not in self._manifests:
            raise missing_artifact(name, where=_WHERE)
        return self._manifests[digest][0]

    async def read(self, descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[bytes]:
        check_offset(offset, descriptor)
        data = self._blobs.get(descriptor.digest)
        if data is None:
            raise missing_blob(descriptor.digest, where=_WHERE)
        for at in range(offset, len(data), BUFFER_BYTES):
            yield data[at : at + BUFFER_BYTES]

    async def exists(self, descriptor: Descriptor) -> bool:
        data = self._blobs.get(descriptor.digest)
        return data is not None and len(data) == descriptor.size

    async def written(self, descriptor: Descriptor) -> int:
        return len(self._partials.get(descriptor.digest, b""))

    async def write(
        self, descriptor: Descriptor, chunks: AsyncIterable[bytes], *, offset: int = 0
    ) -> None:
        if await self.exists(descriptor):
            return
        if is_manifest(descriptor):
            self._enter(descriptor, await read_manifest(descriptor, chunks))
            return
        held = self._partials.get(descriptor.digest, bytearray())
        if offset > len(held):
            raise Conflict(
                f"write from offset {offset}: only {len(held)} bytes are held", code="offset_gone"
            )
        data = held[:offset]
        self._partials[descriptor.digest] = data
        verifier = Verifier(expected=descriptor.digest, size=descriptor.size)
        try:
            verifier.update(data)
            async for chunk in chunks:
                verifier.update(chunk)
                data += chunk
            verifier.finish()
        except IntegrityError:
            del self._partials[descriptor.digest]
            raise
        del self._partials[descriptor.digest]
        self._blobs[descriptor.digest] = bytes(data)

    async def tag(self, descriptor: Descriptor, name: str) -> None:
        checked = Reference.parse(name).name
        if descriptor.digest not in self._manifests:
            raise missing_artifact(descriptor.digest, where=_WHERE)
        self._tags[checked] = descriptor.digest

    async def referrers(
        self, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        parse_digest(digest)
        found = [
            descriptor
            for descriptor, manifest in self._manifests.values()
            if manifest.subject is not None
            and manifest.subject.digest == digest
            and artifact_type in (None, descriptor.artifact_type)
        ]
        return tuple(sorted(found, key=lambda descriptor: descriptor.digest))

    async def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        return tuple((name, self._manifests[self._tags[name]][0]) for name in sorted(self._tags))

    def _enter(self, descriptor: Descriptor, data: bytes) -> None:
        manifest = Manifest.parse(data)
        for blob in manifest.blobs:
            held = self._blobs.get(blob.digest)
            if held is None or len(held) != blob.size:
                raise missing_blob(blob.digest, where=_WHERE)
        self._blobs[descriptor.digest] = data
        self._manifests[descriptor.digest] = (manifest.describe(data), manifest)
