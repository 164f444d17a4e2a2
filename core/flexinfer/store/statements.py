"""What a layout's statements say of an artifact, and which one says already what another would say."""

from __future__ import annotations

from contextlib import suppress

from flexinfer.artifact import Statement, parse_attestation
from flexinfer.artifact.attestation import MAX_STATEMENT_BYTES, says_the_same
from flexinfer.artifact.mediatypes import MEDIA_IN_TOTO
from flexinfer.errors import FlexInferError
from flexinfer.oci import Descriptor, Digest, Layout


def read_all(layout: Layout, digest: Digest) -> tuple[tuple[Descriptor, Statement], ...]:
    """Return the statements about *digest*, each with the manifest that attaches it.

    Raises:
        NotFound, IntegrityError: one is not there, is not what it says, or is bound to another digest.
    """
    return tuple(
        (descriptor, said)
        for descriptor in layout.referrers(digest, MEDIA_IN_TOTO)
        for said in _read(layout, descriptor, digest)
    )


def find_same(layout: Layout, said: Statement) -> Descriptor | None:
    """Return the manifest of a statement that says the same as *said*, if it is readable and its blobs are there."""
    for descriptor in layout.referrers(said.digest, MEDIA_IN_TOTO):
        with suppress(FlexInferError):
            known = _read(layout, descriptor, said.digest)
            layout.blobs.check_there(layout.manifest(descriptor.digest).blobs, what="statement")
            if any(says_the_same(one, said) for one in known):
                return descriptor
    return None


def _read(layout: Layout, attached: Descriptor, digest: Digest) -> tuple[Statement, ...]:
    found = []
    for layer in layout.manifest(attached.digest).layers:
        if layer.media_type == MEDIA_IN_TOTO:
            data = layout.blobs.read(
                layer.digest,
                max_bytes=MAX_STATEMENT_BYTES,
                what="statement",
                code="digest_mismatch",
            )
            found.append(parse_attestation(data, digest))
    return tuple(found)
