"""Removing what nobody needs: looks, decides, and deletes under the locks of who writes.

    work.lock     shared: a build, from its first byte to its name; exclusive: a collection
    index.lock    held from the look to the last deletion: no name appears in between

The index forgets a manifest, durably, before any of its bytes goes. Killed in between, a collection leaves bytes that
nothing refers to, which the next one finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexinfer.errors import Conflict, FlexInferError, IntegrityError, InvalidInput, Unavailable
from flexinfer.oci import Digest, Layout
from flexinfer.oci.durable import lock, try_lock
from flexinfer.oci.index import Index
from flexinfer.store.garbage import StoredBlob, StoredManifest, Sweep, find_garbage
from flexinfer.store.stamps import Stamps

# Longer than any collection holds the lock: it hashes nothing but manifests.
_WORK_WAIT_S = 300.0
_GONE = frozenset({"blob_missing", "blob_too_large"})


def work_lock(layout: Layout) -> Path:
    return layout.blobs.private / "work.lock"


@contextmanager
def working(layout: Layout) -> Iterator[None]:
    """Keep collections away while bytes are there that have no name yet.

    Raises:
        Unavailable: code `store_busy`.
    """
    with lock(work_lock(layout), exclusive=False, wait_s=_WORK_WAIT_S):
        yield


def is_working(layout: Layout) -> bool:
    """Say whether somebody holds `working` now."""
    held = try_lock(work_lock(layout))
    if held is None:
        return work_lock(layout).exists()
    os.close(held)
    return False


def look(layout: Layout, *, roots: Collection[Digest], grace_s: float, now_s: float) -> Sweep:
    """Return what a collection would remove now. *now_s*: seconds since the Unix epoch.

    Raises:
        IntegrityError: code `manifest_digest`, ResourceExhausted: code `disk_error`: as `collect`.
    """
    return _planned(layout, layout.index(), roots=roots, grace_s=grace_s, now_s=now_s)


def collect(layout: Layout, stamps: Stamps, *, roots: Collection[Digest], grace_s: float) -> Sweep:
    """Remove what no name, no root and no fresh touch keeps; return what went.

    Raises:
        Conflict: code `build_running`: somebody writes what has no name yet.
        IntegrityError: code `manifest_digest`: a named manifest is gone or wrong, so nobody knows what it needs.
        ResourceExhausted: code `disk_error`: a manifest, named or not, cannot be read now; nothing was removed.
    """
    try:
        with lock(work_lock(layout), wait_s=0.0):
            return layout.sweep(
                lambda index: _planned(
                    layout, index, roots=roots, grace_s=grace_s, now_s=time.time()
                ),
                stamps.drop,
            )
    except Unavailable as error:
        raise Conflict(
            f"{layout.root}: a build is running, and has bytes there that have no name yet; "
            "nothing was removed, try again when it has ended",
            code="build_running",
        ) from error


def _planned(
    layout: Layout, index: Index, *, roots: Collection[Digest], grace_s: float, now_s: float
) -> Sweep:
    named = {descriptor.digest: name for name, descriptor in index.tags()}
    manifests = {
        one.digest: _read(layout, one.digest, named.get(one.digest, ""))
        for one in index.manifests()
    }
    return find_garbage(manifests, _blobs(layout, now_s), roots={*roots, *named}, grace_s=grace_s)


def _read(layout: Layout, digest: Digest, name: str) -> StoredManifest:
    try:
        found = layout.manifest(digest)
    except FlexInferError as error:
        if not is_gone(error):
            raise  # it may be read the next time: evidence has no name that would keep it
        if name:
            raise IntegrityError(
                f"{name}: {error.message}; what it needs is not known, so nothing is removed: "
                f"build it again, or flexinfer artifact rm {name}",
                code="manifest_digest",
            ) from error
        return StoredManifest(blobs=frozenset())
    return StoredManifest(
        blobs=frozenset(blob.digest for blob in found.blobs),
        subject=found.subject.digest if found.subject is not None else None,
    )


def is_gone(error: FlexInferError) -> bool:
    """Say whether it tells of a manifest that is not there or not itself; all else tells of the machine."""
    return isinstance(error, IntegrityError | InvalidInput) or error.code in _GONE


def _blobs(layout: Layout, now_s: float) -> dict[Digest, StoredBlob]:
    """Return every blob. Its age counts from when its name, its links or its mode last changed: mtime is always 0."""
    found: dict[Digest, StoredBlob] = {}
    for digest in layout.blobs.digests():
        with suppress(FileNotFoundError):
            stat = os.stat(layout.blobs.path(digest), follow_symlinks=False)
            found[digest] = StoredBlob(size=stat.st_size, age_s=max(0.0, now_s - stat.st_ctime))
    return found
