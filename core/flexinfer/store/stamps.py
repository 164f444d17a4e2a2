"""Verification stamps: what a blob's file looked like when its bytes were last hashed and right.

One small file for each blob, replaced atomically. A stamp that is lost or damaged costs one more hash; a
stamp is never believed for a file that differs from it. The kernel's lock on the blob's own file guards its
stamp, so a dead process never blocks anyone.

A hard link, made or removed, changes a file's ctime. Who links through `link` and `unlink` renews the stamp
under the lock, if it was right before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flexinfer.errors import IntegrityError, NotFound, ResourceExhausted, Unavailable
from flexinfer.files import read_error, replace_file
from flexinfer.oci.digest import BUFFER_BYTES, Digest, Hasher, hex_of
from flexinfer.oci.durable import Errand, is_same_file, wait_for_lock
from flexinfer.oci.target import missing_blob

_MAX_TURNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Which file, and when it last changed."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )

    def to_list(self) -> list[int]:
        return [self.inode, self.size, self.mtime_ns, self.ctime_ns]

    @classmethod
    def parse(cls, value: object) -> Stamp | None:
        """Return the stamp in *value*, or None where it is anything else."""
        if not isinstance(value, list) or len(value) != 4:
            return None
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            return None
        return cls(inode=value[0], size=value[1], mtime_ns=value[2], ctime_ns=value[3])

    def is_same_content(self, other: Stamp) -> bool:
        """Say whether only the ctime differs, as after linking."""
        return (self.inode, self.size, self.mtime_ns) == (other.inode, other.size, other.mtime_ns)


class Stamps:
    """The stamps in *folder*, of blobs at `place(digest)`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: Digest) -> Stamp | None:
        """Return the stamp of the last good hash, or None."""
        try:
            return Stamp.parse(json.loads((self._folder / hex_of(digest)).read_bytes()))
        except (OSError, ValueError):
            return None

    def put(self, digest: Digest, stamp: Stamp) -> None:
        """Record a good hash. The caller holds the blob's lock."""
        path = self._folder / hex_of(digest)
        data = json.dumps(stamp.to_list()).encode()
        # A stamp that cannot be written, or is lost, costs a hash later, nothing else.
        with suppress(ResourceExhausted):
            replace_file(path, data, scratch=path.with_suffix(".tmp"), durable=False)

    def drop(self, digest: Digest) -> None:
        """Forget the stamp."""
        with suppress(OSError):
            os.unlink(self._folder / hex_of(digest))

    def holds(self, digest: Digest, found: os.stat_result) -> bool:
        """Say whether the file that looks like *found* is the one whose bytes were right."""
        return self.get(digest) == Stamp.of(found)

    def link(
        self,
        digest: Digest,
        blob: Path,
        place: Path,
        *,
        wait_s: float,
        errand: Errand | None = None,
    ) -> bool:
        """Link *blob* to *place*; return False, and link nothing, where its stamp does not hold.

        Raises:
            OSError: the file system refuses.
            NotFound: code `blob_missing`.
            Unavailable: as `locked_blob`.
        """
        with locked_blob(digest, blob, wait_s=wait_s, errand=errand) as file:
            before = os.fstat(file)
            if not self.holds(digest, before):
                return False
            os.link(blob, place)
            self._renew(digest, file, before)
            return True

    def unlink(
        self,
        digest: Digest,
        blob: Path,
        place: Path,
        *,
        wait_s: float,
        errand: Errand | None = None,
    ) -> None:
        """Remove *place*, a link to *blob* or not; what is gone already is no error."""
        try:
            with locked_blob(digest, blob, wait_s=wait_s, errand=errand) as file:
                before = os.fstat(file)
                with suppress(FileNotFoundError):
                    os.unlink(place)
                    if self.holds(digest, before):
                        self._renew(digest, file, before)
        except NotFound:
            with suppress(FileNotFoundError):
                os.unlink(place)

    def _renew(self, digest: Digest, file: int, before: os.stat_result) -> None:
        after = Stamp.of(os.fstat(file))
        if after.is_same_content(Stamp.of(before)):
            self.put(digest, after)


@contextmanager
def locked_blob(
    digest: Digest, blob: Path, *, wait_s: float, errand: Errand | None = None
) -> Iterator[int]:
    """Hold the kernel's lock on the file that is *blob* now; yield its descriptor, open for reading.

    Raises:
        NotFound: code `blob_missing`.
        Unavailable: code `store_busy`: whoever holds it does so for longer than *wait_s*;
            or as `Errand.check`.
    """
    # A link and its stamp are made in no time: who holds the lock for long is hashing.
    what = f"somebody else's verification of blob {digest}"
    for _ in range(_MAX_TURNS):
        try:
            file = os.open(blob, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise missing_blob(digest, where=str(blob.parent)) from None
        except OSError as error:
            raise read_error(error, path=blob) from error
        try:
            wait_for_lock(file, path=blob, exclusive=True, wait_s=wait_s, errand=errand, what=what)
            if is_same_file(file, blob):
                yield file
                return
        finally:
            os.close(file)
    raise Unavailable(f"{blob}: it is replaced again and again", code="store_busy")


def hash_file(file: int, *, path: Path, errand: Errand) -> Hasher:
    """Return the hash of the whole open file, read in bounded pieces from its start.

    Raises:
        ResourceExhausted: code `disk_error`: the disk cannot read it.
        Unavailable: as `Errand.check`.
    """
    hasher = Hasher()
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    try:
        while count := os.preadv(file, [buffer], hasher.size):
            hasher.update(view[:count])
            errand.check()
    except OSError as error:
        raise read_error(error, path=path) from error
    return hasher


AGAIN = "`flexinfer build ENTRY/VARIANT` makes it again, and where a Model asks for it the operator does"


def mismatch(digest: Digest, hasher: Hasher, *, what: str) -> IntegrityError:
    """Return the error for stored bytes that are not what their name says."""
    return IntegrityError(
        f"{what}: blob {digest} has the digest {hasher.digest} ({hasher.size} bytes); "
        f"it was moved to quarantine; {AGAIN}",
        code="digest_mismatch",
    )
