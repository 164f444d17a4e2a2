"""What the blobs say of themselves where the index is lost: which of them are manifests, and of what."""

from __future__ import annotations

from collections.abc import Iterator

from flexinfer.errors import IntegrityError, InvalidInput
from flexinfer.oci.blobs import BlobFolder
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.digest import Digest, hex_of
from flexinfer.oci.index import Index
from flexinfer.oci.layout import Layout
from flexinfer.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from flexinfer.store_names import recovered_reference


def rebuild_index(layout: Layout) -> tuple[tuple[str, Descriptor], ...] | None:
    """Make the missing index of *layout* anew and return the names in it; None: it is not missing.

    The old names are lost. What refers to nothing else is called `recovered:<16 hex>`, so that no collection takes
    it; evidence stays with its subject.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`: also where one blob cannot be read; no index is made.
        Unavailable: code `store_busy`.
    """
    index = layout.restore(lambda: Index.of(_entries(layout.blobs)))
    return None if index is None else index.tags()


def _entries(blobs: BlobFolder) -> Iterator[tuple[Descriptor, Digest | None, str]]:
    for digest in sorted(blobs.digests()):
        data = _small_object(blobs, digest)
        if data is None:
            continue
        try:
            manifest = Manifest.parse(data)
        except InvalidInput:
            continue  # a config, a statement, a tokenizer
        subject = manifest.subject.digest if manifest.subject is not None else None
        name = recovered_reference(hex_of(digest)) if subject is None else ""
        yield manifest.describe(data), subject, name


def _small_object(blobs: BlobFolder, digest: Digest) -> bytes | None:
    """Return the blob's bytes if they could be a manifest and are what their name says."""
    path = blobs.path(digest)
    with blobs.open(digest) as stream:
        if stream.read(1) != b"{" or path.stat().st_size > MAX_MANIFEST_BYTES:
            return None
    try:
        return blobs.read(
            digest, max_bytes=MAX_MANIFEST_BYTES, what="manifest", code="manifest_digest"
        )
    except IntegrityError:
        return None  # a scrub moves it into quarantine
