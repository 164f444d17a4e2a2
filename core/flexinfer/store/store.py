"""The store: an image layout whose bytes are verified, leased and repaired."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flexinfer.artifact import Artifact, Packed, attestation, parse_attestation, unpack
from flexinfer.artifact.mediatypes import filepath_names
from flexinfer.artifact.model import MAX_CONFIG_BYTES
from flexinfer.errors import FlexInferError, IntegrityError, NotFound, ResourceExhausted
from flexinfer.oci import (
    BlobWriter,
    Descriptor,
    Digest,
    LayoutTarget,
    Manifest,
    Quarantined,
    digest_of,
    parse_digest,
)
from flexinfer.oci.durable import Errand
from flexinfer.oci.layout import expand
from flexinfer.store import collect, statements
from flexinfer.store.checkout import Checkout, Checkouts
from flexinfer.store.garbage import Sweep
from flexinfer.store.ingest import Progress, ingest
from flexinfer.store.statements import Evidence
from flexinfer.store.verify import StampedBlobs, VerifyFailure, VerifyReport, VerifyResult

# How long to wait for who holds a lock and makes no progress. Hashing 80 GB from a slow disk takes ten minutes.
_WRITER_WAIT_S = 300.0
_VERIFY_WAIT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What hashing every blob found. *missing*: blobs that a manifest points to and that are not there."""

    checked: int
    hashed_bytes: int
    failures: tuple[VerifyFailure, ...]
    missing: tuple[VerifyFailure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was removed: unfinished and quarantined files, their bytes, and folders that nobody leased."""

    files: int
    bytes: int
    checkouts: int


class Store:
    """The content-addressed store at *root*, made if absent. Synchronous; safe for threads and processes.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`: it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = StampedBlobs(root, wait_s=_VERIFY_WAIT_S)
        self._checkouts = Checkouts(self._blobs, wait_s=_VERIFY_WAIT_S)
        self._blobs.on_quarantine = self._checkouts.drop
        self.layout = LayoutTarget(root, blobs=self._blobs)
        self._core = self.layout.core
        self._checkouts.prepare()

    # Bytes in

    def writer(
        self, *, key: str, expected: Digest | None = None, expected_size: int | None = None
    ) -> BlobWriter:
        """Return what writes one blob: a context manager. One writer at a time for a digest, or for a
        *key* where the digest is not known: a second one waits, then finds `done` set."""
        return self._blobs.writer(
            key=key, expected=expected, expected_size=expected_size, wait_s=_WRITER_WAIT_S
        )

    def put_bytes(self, data: bytes) -> Digest:
        """Store *data* and return its digest."""
        return self._blobs.put_bytes(data)

    def ingest_file(
        self, path: Path, *, expected: Digest | None = None, on_progress: Progress | None = None
    ) -> Digest:
        """Store a copy of the file at *path* and return its digest; *on_progress* gets bytes done and all."""
        return ingest(self._blobs, path, expected=expected, on_progress=on_progress)

    def put_artifact(self, packed: Packed) -> Descriptor:
        """Store a manifest and its config, without a name; its layers are there already.

        Raises:
            NotFound: code `blob_missing`: a layer is not.
        """
        self.put_bytes(packed.config_bytes)
        return self._core.put_manifest(packed.manifest_bytes)

    def attest(self, subject: Descriptor, statement_bytes: bytes) -> Descriptor:
        """Store a statement as a referrer of *subject*, and return its manifest.

        Where one is whole that `says_the_same`, nothing is stored and its manifest is returned: builds of the same
        bytes, however many, leave one.

        Raises:
            IntegrityError: as `parse_attestation`.
        """
        packed = attestation(statement_bytes, subject)
        said = parse_attestation(statement_bytes, subject.digest)
        # The very same bytes are stored again: that heals them.
        if self._core.index().known(digest_of(packed.manifest_bytes)) is None:
            same = statements.find_same(self._core, said)
            if same is not None:
                return same
        self.put_bytes(statement_bytes)
        return self.put_artifact(packed)

    # Bytes out

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Say whether the blob is there; *size* None takes any size."""
        return self._blobs.has(digest, size)

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, or would be."""
        return self._blobs.path(digest)

    def open(self, digest: Digest) -> BinaryIO:
        """Return the blob, open for reading.

        Raises:
            NotFound: code `blob_missing`.
        """
        return self._blobs.open(digest)

    def manifest(self, digest: Digest) -> Manifest:
        """Return the manifest with *digest*, its bytes checked. Raises as `Layout.manifest`."""
        return self._core.manifest(digest)

    def artifact(self, digest: Digest) -> Artifact:
        """Return the model that the manifest *digest* describes. Raises as `unpack`."""
        manifest = self.manifest(digest)
        config = self._blobs.read(
            manifest.config.digest,
            max_bytes=MAX_CONFIG_BYTES,
            what="model config",
            code="digest_mismatch",
        )
        return unpack(manifest, config)

    def evidence(self, digest: Digest) -> Evidence:
        """Return the in-toto statements about *digest*, and which of them are damaged.

        Raises:
            ResourceExhausted: as `statements.read_all`.
        """
        return statements.read_all(self._core, digest)

    # Names

    def tag(self, name: str, descriptor: Descriptor) -> None:
        """Let *name* (`<repository>:<tag>`) point to a manifest that is there. Raises as `Target.tag`."""
        self._core.tag(name, descriptor)

    def untag(self, name: str) -> None:
        """Forget *name*; what it pointed to stays.

        Raises:
            NotFound: code `artifact_not_found`.
        """
        self._core.untag(name)

    def resolve(self, name: str) -> Descriptor:
        """Return the manifest called *name*, or with that digest.

        Raises:
            NotFound: code `artifact_not_found`.
        """
        return self._core.resolve(name)

    def find(self, text: str) -> Descriptor:
        """As `resolve`, and takes the first 6 or more digits of a digest.

        Raises:
            NotFound: code `artifact_not_found`.
            InvalidInput: code `reference_ambiguous`.
        """
        digits = text.removeprefix("sha256:")
        is_short = 6 <= len(digits) < 64 and all(one in "0123456789abcdef" for one in digits)
        return expand(self._core, digits) if is_short else self.resolve(text)

    def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        """Return every name with its manifest, sorted by name."""
        return self._core.tags()

    def manifests(self) -> tuple[Descriptor, ...]:
        """Return every manifest, named or not."""
        return self._core.index().manifests()

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is *digest*, sorted by digest."""
        return self._core.referrers(digest, artifact_type)

    # Trust

    def ensure_verified(
        self, digest: Digest, *, force: bool = False, what: str = "store"
    ) -> VerifyResult:
        """Return when the blob's bytes are right: known by its stamp, or, if touched or *force*, by its hash.

        *what*: whose blob it is, for the message.

        Raises:
            NotFound: code `blob_missing`.
            IntegrityError: code `digest_mismatch`; the blob is in quarantine, and in no checkout any more.
        """
        if force:
            return self._blobs.rehash(digest, what=what)
        return self._blobs.verify(digest, what=what)

    def is_stamped(self, digest: Digest) -> bool:
        """Say whether the blob is there and nothing has touched its file since its bytes were right. Hashes nothing."""
        return self._blobs.is_stamped(digest)

    def verify_artifact(self, digest: Digest, *, force: bool = False) -> VerifyReport:
        """Return what is right and what is wrong with the manifest, its blobs, and its evidence."""
        checked: list[VerifyResult] = []
        failures: list[VerifyFailure] = []
        for root in (digest, *(one.digest for one in self._core.referrers(digest))):
            for path, blob in self._parts(root, failures):
                try:
                    checked.append(
                        self.ensure_verified(blob, force=force, what=f"artifact {root}: {path}")
                    )
                except (IntegrityError, NotFound, ResourceExhausted) as error:
                    # A sector that cannot be read says nothing of the blobs behind it.
                    failures.append(VerifyFailure.of(root, path, blob, error))
        return VerifyReport(artifact=digest, checked=tuple(checked), failures=tuple(failures))

    def checkout(self, digest: Digest, *, errand: Errand | None = None) -> Checkout:
        """Return a lease on a read-only folder with the artifact's files under their own names.

        What was touched since it was last hashed is hashed first. Milliseconds where nothing was and nobody else
        hashes it: he is waited for. *errand*: who looks at that, and may give it up.

        Raises:
            NotFound: `artifact_not_found`, `blob_missing`.
            IntegrityError: code `digest_mismatch`, naming artifact, file and digest.
            InvalidInput: as `unpack`.
            Unavailable: code `store_busy`, or as `Errand.check`.
        """
        errand = errand or Errand()
        self.resolve(parse_digest(digest))
        artifact = self.artifact(digest)
        for file in artifact.files:
            self._blobs.verify(file.digest, what=f"artifact {digest}: {file.path}", errand=errand)
        files = {file.path: file.digest for file in artifact.files}
        lease = self._checkouts.lease(digest, files, errand=errand)
        # Tidying is nobody's reason not to start: what cannot be removed now is removed another time.
        with suppress(OSError, FlexInferError):
            self._checkouts.collect(keep=digest)
        return lease

    def scrub(self) -> ScrubReport:
        """Hash every blob; what is wrong goes into quarantine. Nobody who reads is disturbed."""
        failures: list[VerifyFailure] = []
        missing: list[VerifyFailure] = []
        checked = hashed = 0
        names = self._roles()
        for digest in sorted(self._blobs.digests()):
            artifact, path = names.get(digest, ("", "not referenced"))
            try:
                hashed += self.ensure_verified(
                    digest, force=True, what=f"artifact {artifact}: {path}" if artifact else path
                ).hashed_bytes
                checked += 1
            except (IntegrityError, ResourceExhausted) as error:
                failures.append(VerifyFailure.of(artifact, path, digest, error))
            except NotFound:
                continue  # somebody took it away meanwhile
        wrong = {failure.digest for failure in failures}
        for digest, (artifact, path) in sorted(names.items()):
            if digest not in wrong and not self.has(digest):
                words = f"artifact {artifact}: {path}: blob {digest} is missing"
                missing.append(
                    VerifyFailure.of(artifact, path, digest, NotFound(words, code="blob_missing"))
                )
        return ScrubReport(
            checked=checked,
            hashed_bytes=hashed,
            failures=tuple(failures),
            missing=tuple(missing),
        )

    def leased(self) -> frozenset[Digest]:
        """Return the artifacts that somebody has checked out now."""
        return self._checkouts.leased()

    def working(self) -> AbstractContextManager[None]:
        """Hold this from the first byte that is stored to the name that keeps it: nothing is collected meanwhile.

        Who writes for less than a collection's grace time need not.

        Raises:
            Unavailable: code `store_busy`.
        """
        return collect.working(self._core)

    @property
    def is_working(self) -> bool:
        """Whether somebody is `working` now."""
        return collect.is_working(self._core)

    def garbage(self, *, roots: Collection[Digest] = (), grace_s: float) -> Sweep:
        """Return what `collect` would remove now. Raises as it, but for `build_running`."""
        kept = {*roots, *self.leased()}
        return collect.look(self._core, roots=kept, grace_s=grace_s, now_s=time.time())

    def collect(self, *, roots: Collection[Digest] = (), grace_s: float) -> Sweep:
        """Remove the manifests and blobs that no name, lease or *roots* lead to, untouched for *grace_s*.

        Raises:
            Conflict: code `build_running`: somebody is `working`.
            IntegrityError: code `manifest_digest`: a named manifest cannot be read.
        """
        self._checkouts.collect()
        kept = {*roots, *self.leased()}
        return collect.collect(self._core, self._blobs.stamps, roots=kept, grace_s=grace_s)

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Return the bytes that were not what they should be; the newest sixteen are kept."""
        return self._blobs.quarantined()

    def collect_partials(self, max_age_s: float) -> Collected:
        """Remove what nobody has worked on for *max_age_s*, and checkouts that nobody leases."""
        files, freed = self._blobs.remove_old(max_age_s=max_age_s, now_s=time.time())
        return Collected(files=files, bytes=freed, checkouts=self._checkouts.collect())

    def old_partials(self, max_age_s: float) -> Collected:
        """Return what `collect_partials` would remove of files now; it counts no checkouts."""
        old = self._blobs.old(max_age_s=max_age_s, now_s=time.time())
        return Collected(files=len(old), bytes=sum(one.size for one in old), checkouts=0)

    def _parts(self, root: Digest, failures: list[VerifyFailure]) -> Iterable[tuple[str, Digest]]:
        """Return what *root* consists of, itself first; a manifest that cannot be read is a failure."""
        try:
            manifest = self.manifest(root)
        except NotFound as error:
            failures.append(VerifyFailure.of(root, "manifest", root, error))
            return ()
        except FlexInferError:
            return (("manifest", root),)  # hashing it moves it into quarantine
        return (("manifest", root), ("config", manifest.config.digest), *_layers(manifest))

    def _roles(self) -> dict[Digest, tuple[str, str]]:
        """Return for every blob that a manifest points to, whose it is and what it serves as."""
        roles: dict[Digest, tuple[str, str]] = {}
        for descriptor in self.manifests():
            for path, digest in self._parts(descriptor.digest, []):
                roles.setdefault(digest, (descriptor.digest, path))
            roles.setdefault(descriptor.digest, (descriptor.digest, "manifest"))
        return roles


def _layers(manifest: Manifest) -> tuple[tuple[str, Digest], ...]:
    found = []
    for number, layer in enumerate(manifest.layers):
        names = [layer.annotations[key] for key in filepath_names() if key in layer.annotations]
        found.append((names[0] if names else f"layer {number}", layer.digest))
    return tuple(found)
