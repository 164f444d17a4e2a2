"""Verification of stored blobs: by stamp where nothing has touched the file, by hash otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flexinfer.errors import (
    FlexInferError,
    IntegrityError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from flexinfer.files import make_folders
from flexinfer.oci import BlobFolder, Digest, Hasher
from flexinfer.oci.durable import Errand, is_same_file, lock
from flexinfer.store.stamps import AGAIN, Stamp, Stamps, hash_file, locked_blob, mismatch

# How often a file may change under the hash before that is called a fault.
_MAX_TURNS = 5
# A link and the stamp after it take far less; who holds the lock for longer is hashing.
_LINK_WAIT_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """A blob whose bytes are right. *hashed_bytes*: 0 where its stamp was enough."""

    digest: Digest
    size: int
    hashed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFailure:
    """A blob that is missing or wrong. *path*: which file of the artifact it is, else what it serves as."""

    artifact: str
    path: str
    digest: Digest
    code: str
    message: str

    @classmethod
    def of(cls, artifact: str, path: str, digest: Digest, error: FlexInferError) -> VerifyFailure:
        return cls(
            artifact=artifact, path=path, digest=digest, code=error.code, message=error.message
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found in one artifact."""

    artifact: Digest
    checked: tuple[VerifyResult, ...]
    failures: tuple[VerifyFailure, ...]

    @property
    def hashed_bytes(self) -> int:
        return sum(result.hashed_bytes for result in self.checked)


class StampedBlobs(BlobFolder):
    """A folder of blobs that remembers which of them were hashed and right, and when."""

    def __init__(self, root: Path, *, wait_s: float) -> None:
        super().__init__(root)
        self.stamps = Stamps(self.private / "stamps")
        self._wait_s = wait_s
        self.on_quarantine: Callable[[os.stat_result], None] = _nothing

    def prepare(self) -> None:
        super().prepare()
        make_folders(self.private / "stamps")

    def is_good(self, digest: Digest, size: int) -> bool:
        """Say whether the blob is there and its stamp holds: otherwise the same bytes may replace it."""
        try:
            found = os.stat(self.path(digest), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_size == size and self.stamps.holds(digest, found)

    def is_stamped(self, digest: Digest) -> bool:
        """Say whether the blob is there and its stamp holds; while somebody hashes it, that it does not."""
        path = self.path(digest)
        with suppress(OSError):
            if self.stamps.holds(digest, os.stat(path, follow_symlinks=False)):
                return True
            # Somebody may have linked it, and not stamped it yet: who holds the lock sees no half of that.
            with suppress(NotFound, Unavailable, ResourceExhausted):
                with locked_blob(digest, path, wait_s=_LINK_WAIT_S) as file:
                    return self.stamps.holds(digest, os.fstat(file))
        return False

    def is_whole(self, digest: Digest) -> bool:
        """Say whether the blob is there and right: hashed, if its stamp does not hold."""
        try:
            self.verify(digest, what="store")
        except (NotFound, IntegrityError):
            return False
        return True

    def placed(self, digest: Digest, descriptor: int) -> None:
        self.stamps.put(digest, Stamp.of(os.fstat(descriptor)))

    def verify(self, digest: Digest, *, what: str, errand: Errand | None = None) -> VerifyResult:
        """Return at once where the stamp holds; hash otherwise.

        Raises:
            NotFound: code `blob_missing`.
            IntegrityError: code `digest_mismatch`; the blob is in quarantine. *what* begins the message.
            Unavailable: as `locked_blob`.
        """
        with suppress(FileNotFoundError):
            found = os.stat(self.path(digest), follow_symlinks=False)
            if self.stamps.holds(digest, found):
                return VerifyResult(digest=digest, size=found.st_size, hashed_bytes=0)
        return self._hash(digest, what=what, believe=True, errand=errand or Errand())

    def rehash(self, digest: Digest, *, what: str) -> VerifyResult:
        """Hash the blob, whatever its stamp says. Raises as `verify`."""
        return self._hash(digest, what=what, believe=False, errand=Errand())

    def _hash(self, digest: Digest, *, what: str, believe: bool, errand: Errand) -> VerifyResult:
        """Hash under the blob's lock; who waited for another's hash believes it where he may."""
        path = self.path(digest)
        if not os.path.lexists(path):
            raise NotFound(f"{what}: blob {digest} is missing; {AGAIN}", code="blob_missing")
        if not path.is_file() or path.is_symlink():
            self._put_aside(digest, path)
            raise IntegrityError(
                f"{what}: blob {digest}: {path} was a link or a folder, not a file; {AGAIN}",
                code="digest_mismatch",
            )
        with locked_blob(digest, path, wait_s=self._wait_s, errand=errand) as file:
            before = os.fstat(file)
            if believe and self.stamps.holds(digest, before):
                return VerifyResult(digest=digest, size=before.st_size, hashed_bytes=0)
            for _ in range(_MAX_TURNS):
                before = os.fstat(file)
                hasher = hash_file(file, path=path, errand=errand)
                if hasher.digest != digest:
                    self._quarantine(digest, file, hasher.digest)
                    raise mismatch(digest, hasher, what=what)
                stamp = Stamp.of(os.fstat(file))
                if stamp == Stamp.of(before):
                    self.stamps.put(digest, stamp)
                    return VerifyResult(digest=digest, size=hasher.size, hashed_bytes=hasher.size)
        raise IntegrityError(
            f"{what}: blob {digest}: somebody keeps writing to {path}", code="digest_mismatch"
        )

    def _put_aside(self, digest: Digest, path: Path) -> None:
        """Put what is no file into quarantine; nothing of it is read."""
        with lock(self.guard, wait_s=self._wait_s):
            self.stamps.drop(digest)
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                self.isolate(path, expected=digest, found=Hasher().digest)

    def _quarantine(self, digest: Digest, file: int, found: Digest) -> None:
        """Take the name from the file that was hashed, and let others drop their links to it."""
        with lock(self.guard, wait_s=self._wait_s):
            self.stamps.drop(digest)
            if is_same_file(file, self.path(digest)):
                self.isolate(self.path(digest), expected=digest, found=found)
            self.on_quarantine(os.fstat(file))


def _nothing(found: os.stat_result) -> None:
    return None
