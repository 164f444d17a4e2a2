"""An OCI image layout on disk: blobs, manifests, and one index that changes atomically.

<root>/oci-layout, index.json    what image-spec 1.1 says; any tool may read it at any time
<root>/.flexinfer/index.lock     who changes the index holds the kernel's lock on this
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from flexinfer.errors import IntegrityError, InvalidInput
from flexinfer.files import read_error, replace_file
from flexinfer.oci.blobs import BlobFolder
from flexinfer.oci.canonical import canonical_json
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.digest import Digest, hex_of, parse_digest
from flexinfer.oci.durable import lock
from flexinfer.oci.index import MAX_INDEX_BYTES, Index
from flexinfer.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from flexinfer.oci.reference import Reference
from flexinfer.oci.target import is_manifest, missing_artifact

_LAYOUT = canonical_json({"imageLayoutVersion": "1.0.0"})
# What is remembered of manifests that others entered: 200 bytes each.
_MAX_CACHED_SUBJECTS = 20_000


class Doomed(Protocol):
    """What `Layout.sweep` removes."""

    @property
    def manifests(self) -> tuple[Digest, ...]: ...

    @property
    def blobs(self) -> tuple[Digest, ...]: ...


S = TypeVar("S", bound=Doomed)


class Layout:
    """The synchronous core of a layout. Safe for threads and processes."""

    def __init__(self, root: Path, *, blobs: BlobFolder | None = None) -> None:
        self.root = root
        self.blobs = blobs if blobs is not None else BlobFolder(root)
        self._index_path = root / "index.json"
        self._marker = root / "oci-layout"
        self._scratch = self.blobs.private / "index.tmp"
        self._cached: tuple[tuple[int, int, int, int], Index] | None = None
        self._subjects: OrderedDict[Digest, Digest | None] = OrderedDict()
        self._subjects_lock = Lock()

    def prepare(self) -> None:
        """Make an empty layout, or leave the one that is there.

        Raises:
            IntegrityError: code `index_missing`.
            ResourceExhausted: code `disk_full` or `disk_error`.
        """
        self.blobs.prepare()
        if self._marker.exists() and self._index_path.exists():
            return
        with self._locked():
            # The marker last: killed in between, this leaves no layout that seems to have lost its index.
            if not self._index_path.exists():
                if self._is_begun():
                    raise self._index_missing()
                self._write(None, Index.empty())
            if not self._marker.exists():
                replace_file(self._marker, _LAYOUT, scratch=self._scratch)

    def index(self) -> Index:
        """Return the index as it is now. Cheap: it is parsed again only when the file is another one.

        Raises:
            IntegrityError: code `index_missing`: bytes are there, and nothing says what they are called.
            InvalidInput: as `Index.parse`.
            ResourceExhausted: code `disk_error`.
        """
        try:
            return self._read_index()
        except FileNotFoundError:
            if self._is_begun():
                raise self._index_missing() from None
            return Index.empty()
        except OSError as error:
            raise read_error(error, path=self._index_path) from error

    def _read_index(self) -> Index:
        found = os.stat(self._index_path)
        cached = self._cached
        if cached is not None and cached[0] == _stamp(found):
            return cached[1]
        with open(self._index_path, "rb") as stream:
            stamp = _stamp(os.fstat(stream.fileno()))
            index = Index.parse(stream.read(MAX_INDEX_BYTES + 1))
        self._cached = (stamp, index)
        return index

    def restore(self, make: Callable[[], Index]) -> Index | None:
        """Write what *make* returns as the index that is missing; None, and nothing is made, where it is not.

        Raises:
            Unavailable: code `store_busy`.
            ResourceExhausted: code `disk_full` or `disk_error`; no index is made.
        """
        self.blobs.prepare()
        with self._locked():
            if self._index_path.exists():
                return None
            made = make()
            self._write(None, made)
        self.prepare()
        return made

    def change(self, decide: Callable[[Index], Index]) -> None:
        """Replace the index by what *decide* makes of it, under the lock; the same index is not written.

        Raises:
            Unavailable: code `store_busy`.
            ResourceExhausted: code `disk_full` or `disk_error`; the index is as it was.
        """
        with self._locked():
            before = self.index()
            self._write(before, decide(before))

    def sweep(self, decide: Callable[[Index], S], forget: Callable[[Digest], None]) -> S:
        """Remove what *decide* names, under the lock: manifests from the index, durably, then blobs; return it.

        *forget* hears of each blob before it goes.

        Raises:
            Unavailable: code `store_busy`.
            ResourceExhausted: code `disk_full` or `disk_error`: what was removed until then stays so.
        """
        with self._locked():
            before = after = self.index()
            doomed = decide(before)
            for digest in doomed.manifests:
                after = after.without_manifest(digest)
            self._write(before, after)
            with lock(self.blobs.guard):
                for digest in doomed.blobs:
                    forget(digest)
                    self.blobs.remove(digest)
            return doomed

    def resolve(self, name: str) -> Descriptor:
        """Return the manifest called *name*: `<repository>:<tag>`, `…@<digest>`, or a digest.

        Raises:
            NotFound: code `artifact_not_found`.
            InvalidInput: code `digest_format`.
        """
        index = self.index()
        if "@" in name or name.startswith("sha256:"):
            found = index.known(parse_digest(name.rpartition("@")[2]))
        else:
            found = index.named(name)
        if found is None:
            raise missing_artifact(name, where=str(self.root))
        return found

    def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        """Return every name with its manifest, sorted by name."""
        return self.index().tags()

    def tag(self, name: str, descriptor: Descriptor) -> None:
        """As `Target.tag`."""
        checked = Reference.parse(name).name

        def decide(index: Index) -> Index:
            if index.known(descriptor.digest) is None:
                raise missing_artifact(descriptor.digest, where=str(self.root))
            self.blobs.check_there(
                (self.manifest(descriptor.digest)).blobs, what=f"manifest {descriptor.digest}"
            )
            return index.with_tag(checked, descriptor.digest)

        self.change(decide)

    def untag(self, name: str) -> None:
        """Forget *name*; the manifest stays and is found by its digest.

        Raises:
            NotFound: code `artifact_not_found`.
        """

        def decide(index: Index) -> Index:
            if index.named(name) is None:
                raise missing_artifact(name, where=str(self.root))
            return index.without_tag(name)

        self.change(decide)

    def manifest(self, digest: Digest) -> Manifest:
        """Return the manifest with *digest*, its bytes checked.

        Raises:
            NotFound: code `blob_missing`.
            IntegrityError: code `manifest_digest`.
            InvalidInput: as `Manifest.parse`.
        """
        data = self.blobs.read(
            digest, max_bytes=MAX_MANIFEST_BYTES, what="manifest", code="manifest_digest"
        )
        return Manifest.parse(data)

    def put_manifest(self, data: bytes) -> Descriptor:
        """Store a manifest, without a name, after checking that all it points to is there.

        Raises:
            NotFound: code `blob_missing`.
            InvalidInput: as `Manifest.parse`.
        """
        manifest = Manifest.parse(data)
        descriptor = manifest.describe(data)
        self.blobs.check_there(manifest.blobs, what=f"manifest {descriptor.digest}")
        self.blobs.put_bytes(data)
        self.enter(descriptor, manifest)
        return descriptor

    def enter(self, descriptor: Descriptor, manifest: Manifest) -> None:
        """Let the index know a manifest whose bytes are stored."""
        subject = manifest.subject.digest if manifest.subject is not None else None
        if self.index().known(descriptor.digest) is None:

            def decide(index: Index) -> Index:
                # Again, under the lock: a collection may have taken what had no manifest.
                self.blobs.check_there(manifest.blobs, what=f"manifest {descriptor.digest}")
                return index.with_manifest(descriptor, subject=subject)

            self.change(decide)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is *digest*, sorted by digest.

        Raises:
            InvalidInput: code `digest_format`, or an entry that another tool wrote is no manifest.
        """
        referring, unsaid = self.index().referrers(parse_digest(digest))
        found = [*referring, *(d for d in unsaid if self._subject(d) == digest)]
        kept = [d for d in found if artifact_type is None or d.artifact_type == artifact_type]
        return tuple(sorted(kept, key=lambda descriptor: descriptor.digest))

    def _subject(self, descriptor: Descriptor) -> Digest | None:
        """Return the subject of a manifest that another tool entered; each is read once."""
        if not is_manifest(descriptor):
            return None
        with self._subjects_lock:
            if descriptor.digest in self._subjects:
                return self._subjects[descriptor.digest]
        manifest = self.manifest(descriptor.digest)
        subject = manifest.subject.digest if manifest.subject is not None else None
        with self._subjects_lock:
            self._subjects[descriptor.digest] = subject
            while len(self._subjects) > _MAX_CACHED_SUBJECTS:
                self._subjects.popitem(last=False)
        return subject

    def _is_begun(self) -> bool:
        """Say whether an index must be there: a layout is whole, or somebody stored bytes."""
        return self._marker.exists() or any(self.blobs.digests())

    def _index_missing(self) -> IntegrityError:
        return IntegrityError(
            f"{self._index_path} is missing, and with it the names of all that is stored beside it; nothing is "
            "changed: put the file back, or run flexinfer artifact scrub --rebuild-index",
            code="index_missing",
        )

    def _write(self, before: Index | None, after: Index) -> None:
        """Replace the index. The caller holds the lock."""
        if after is not before:
            replace_file(self._index_path, after.to_bytes(), scratch=self._scratch)
            # Nobody else writes while we hold the lock, so what lies there is what we know.
            self._cached = (_stamp(os.stat(self._index_path)), after)

    def _locked(self) -> AbstractContextManager[int]:
        return lock(self.blobs.private / "index.lock")


def expand(layout: Layout, prefix: str) -> Descriptor:
    """Return the one manifest whose digest begins with the hex digits *prefix*, with or without `sha256:`.

    Raises:
        NotFound: code `artifact_not_found`.
        InvalidInput: code `reference_ambiguous`.
    """
    digits = prefix.removeprefix("sha256:")
    found = [d for d in layout.index().manifests() if hex_of(d.digest).startswith(digits)]
    if len(found) > 1:
        raise InvalidInput(
            f"{prefix!r} could be any of {len(found)} artifacts; give more digits",
            code="reference_ambiguous",
        )
    if not found:
        raise missing_artifact(prefix, where=str(layout.root))
    return found[0]


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
