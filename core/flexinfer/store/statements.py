"""What a layout's statements say of an artifact, and which one says already what another would say."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from flexinfer.artifact import Statement, parse_attestation
from flexinfer.artifact.attestation import MAX_STATEMENT_BYTES, says_the_same
from flexinfer.artifact.mediatypes import MEDIA_IN_TOTO
from flexinfer.errors import FlexInferError
from flexinfer.oci import Descriptor, Digest, Layout
from flexinfer.store.collect import is_gone
from flexinfer.store.verify import VerifyFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is said of an artifact. *statements*: each with the manifest that attaches it.

    *damaged*: the statements, or their manifests, that are not there, are not what they say, or are bound to another
    digest. They take nothing from the others: of evidence, any one counts.
    """

    statements: tuple[tuple[Descriptor, Statement], ...]
    damaged: tuple[VerifyFailure, ...]


def read_all(layout: Layout, digest: Digest) -> Evidence:
    """Return what the statements about *digest* say, and which of them are damaged.

    Raises:
        ResourceExhausted: code `disk_error`: the disk or this process's limits refuse.
    """
    statements: list[tuple[Descriptor, Statement]] = []
    damaged: list[VerifyFailure] = []

    def failed(attached: Descriptor, path: str, blob: Digest, error: FlexInferError) -> None:
        if not is_gone(error):
            raise error
        damaged.append(VerifyFailure.of(attached.digest, path, blob, error))

    for attached in layout.referrers(digest, MEDIA_IN_TOTO):
        try:
            layers = _layers(layout, attached)
        except FlexInferError as error:
            failed(attached, "manifest", attached.digest, error)
            continue
        for layer in layers:
            try:
                statements.append((attached, _read(layout, layer, digest)))
            except FlexInferError as error:
                failed(attached, "statement", layer, error)
    return Evidence(statements=tuple(statements), damaged=tuple(damaged))


def find_same(layout: Layout, said: Statement) -> Descriptor | None:
    """Return the manifest of a statement that says the same as *said*, if it is readable and its blobs are there."""
    for descriptor in layout.referrers(said.digest, MEDIA_IN_TOTO):
        with suppress(FlexInferError):
            known = [_read(layout, layer, said.digest) for layer in _layers(layout, descriptor)]
            layout.blobs.check_there(layout.manifest(descriptor.digest).blobs, what="statement")
            if any(says_the_same(one, said) for one in known):
                return descriptor
    return None


def _layers(layout: Layout, attached: Descriptor) -> tuple[Digest, ...]:
    layers = layout.manifest(attached.digest).layers
    return tuple(layer.digest for layer in layers if layer.media_type == MEDIA_IN_TOTO)


def _read(layout: Layout, layer: Digest, digest: Digest) -> Statement:
    data = layout.blobs.read(
        layer, max_bytes=MAX_STATEMENT_BYTES, what="statement", code="digest_mismatch"
    )
    return parse_attestation(data, digest)
