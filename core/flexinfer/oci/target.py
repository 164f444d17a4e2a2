"""Where artifacts are kept: one protocol for memory, an image layout and a registry."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

from flexinfer.errors import InvalidInput, NotFound
from flexinfer.oci.descriptor import MEDIA_MANIFEST, Descriptor
from flexinfer.oci.digest import Digest


class Target(Protocol):
    """A place for blobs, manifests and names.

    Every implementation passes `tests/core/oci/test_target_contract.py`. A blob or a manifest that is
    there is whole and verified. A manifest is there only after all that it points to. Only `tag` gives a
    name, and a name never points to something that is not there.
    """

    async def resolve(self, name: str) -> Descriptor:
        """Return the manifest called *name*: `<repository>:<tag>`, or a digest.

        Raises:
            NotFound: code `artifact_not_found`.
        """
        ...

    def read(self, descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes from *offset* on, in bounded chunks. The reader checks them.

        Raises (at the first step):
            NotFound: code `blob_missing`.
            InvalidInput: code `offset_out_of_range`: negative, or beyond the end.
        """
        ...

    async def exists(self, descriptor: Descriptor) -> bool:
        """Say whether the bytes are there, whole."""
        ...

    async def written(self, descriptor: Descriptor) -> int:
        """Return how many leading bytes of an unfinished `write` are held; 0 where the target cannot resume."""
        ...

    async def write(
        self, descriptor: Descriptor, chunks: AsyncIterable[bytes], *, offset: int = 0
    ) -> None:
        """Store the bytes of *descriptor*; *chunks* start at *offset*, which is at most `written`.

        Bytes already there are left as they are and *chunks* is not read. When *chunks* fails, what came
        is kept for a later `write` where the target can.

        Raises:
            IntegrityError: code `digest_mismatch`: nothing becomes visible, nothing is kept.
            NotFound: code `blob_missing`: a manifest points to a blob that is not there.
            Conflict: code `offset_gone`: less than *offset* is held; ask `written` again.
            ResourceExhausted: code `disk_full`.
        """
        ...

    async def tag(self, descriptor: Descriptor, name: str) -> None:
        """Let *name* point to the manifest *descriptor*, atomically: the only thing that makes one visible.

        Raises:
            NotFound: the manifest (`artifact_not_found`) or one of its blobs (`blob_missing`) is not there.
            InvalidInput: code `reference_format`.
        """
        ...

    async def referrers(
        self, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        """Return the manifests whose `subject` is *digest*, sorted by digest; none is no error."""
        ...

    async def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        """Return every name with its manifest, sorted by name."""
        ...


def is_manifest(descriptor: Descriptor) -> bool:
    """Say whether *descriptor* points to a manifest, by its media type."""
    return descriptor.media_type == MEDIA_MANIFEST


def missing_blob(digest: Digest, *, where: str) -> NotFound:
    """Return the error for bytes that are not there."""
    return NotFound(f"blob {digest} is not in {where}", code="blob_missing")


def missing_artifact(name: str, *, where: str) -> NotFound:
    """Return the error for a name that points to nothing."""
    return NotFound(f"no artifact {name!r} in {where}", code="artifact_not_found")


def check_offset(offset: int, descriptor: Descriptor) -> None:
    """Refuse to read from outside the blob.

    Raises:
        InvalidInput: code `offset_out_of_range`.
    """
    if not 0 <= offset <= descriptor.size:
        raise InvalidInput(
            f"blob {descriptor.digest}: offset {offset}: expected 0 to {descriptor.size}",
            code="offset_out_of_range",
        )
