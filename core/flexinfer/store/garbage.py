"""What of a store nobody needs: a pure decision over what is there.

Kept is what a root leads to: the names, what somebody leases, what a build in progress has noted. From a manifest to
its blobs and its subject; from a subject to the manifests that refer to it (its evidence). And whatever was touched
within the grace time: who writes puts the bytes there before the name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flexinfer.oci import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A manifest that the index knows. *blobs*: its config and layers."""

    blobs: frozenset[Digest]
    subject: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """A blob that is there, a manifest's own bytes included."""

    size: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What may go: *manifests* from the index first, then *blobs* from the disk; *bytes* that the blobs hold."""

    manifests: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()
    bytes: int = 0


def find_garbage(
    manifests: Mapping[Digest, StoredManifest],
    blobs: Mapping[Digest, StoredBlob],
    *,
    roots: Collection[Digest],
    grace_s: float,
) -> Sweep:
    """Return what no root leads to and nobody has touched for *grace_s*, sorted by digest."""
    referring: dict[Digest, list[Digest]] = {}
    for digest, manifest in manifests.items():
        if manifest.subject is not None:
            referring.setdefault(manifest.subject, []).append(digest)
    young = {digest for digest, blob in blobs.items() if blob.age_s < grace_s}
    kept: set[Digest] = set()
    waiting = [*roots, *young]
    while waiting:
        digest = waiting.pop()
        if digest in kept:
            continue
        kept.add(digest)
        waiting += referring.get(digest, ())
        found = manifests.get(digest)
        if found is not None:
            waiting += found.blobs
            if found.subject is not None:
                waiting.append(found.subject)
    gone = sorted(blobs.keys() - kept)
    return Sweep(
        manifests=tuple(sorted(manifests.keys() - kept)),
        blobs=tuple(gone),
        bytes=sum(blobs[digest].size for digest in gone),
    )
