"""Folders with an artifact's real file names, shared by who leases them, read-only.

    <store>/checkouts/<digest12>/…                  hard links to verified blobs, or copies where links cannot be
    <store>/.flexinfer/checkouts/<digest12>.lock    a lease is a shared kernel lock on this
    <store>/.flexinfer/checkouts/<digest12>.build   who fills the folder holds this, and a lease
    <store>/.flexinfer/checkouts/<digest12>.json    which blob each file is; the stamps of copies

A lease dies with its process. A folder that nobody leases is removed when somebody checks out another one.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from flexinfer.errors import FlexInferError, IntegrityError, Unavailable
from flexinfer.files import disk_error, make_folders, read_error, replace_file
from flexinfer.oci import Digest, hex_of, parse_digest
from flexinfer.oci.durable import Errand, lock, remove_tree, take_lock
from flexinfer.oci.writer import BLOB_MODE
from flexinfer.store.stamps import Stamp, hash_file
from flexinfer.store.verify import StampedBlobs

# What a file system says that has no hard links, or not here.
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)
_NO_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})
_COPY_BYTES = 64 << 20
_MAX_TURNS = 5
_FOLDER_MODE = 0o555
# Nobody waits for the hash of 80 GB only to tidy up.
_REMOVE_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    blob: Digest
    copy: Stamp | None  # None: a hard link, which has the blob's own stamp


class Checkout:
    """A leased folder. `with` it, or `close` it."""

    def __init__(self, *, digest: Digest, path: Path, lease: int) -> None:
        self.digest = digest
        self.path = path
        self._lease = lease

    @property
    def lease_fd(self) -> int:
        """The lease itself: a child process that inherits this descriptor holds the lease too."""
        return self._lease

    def close(self) -> None:
        """Give the lease back; the folder may be gone at once."""
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1

    def __enter__(self) -> Checkout:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Checkouts:
    """The checkouts of one store. Callers have verified the blobs."""

    def __init__(self, blobs: StampedBlobs, *, wait_s: float) -> None:
        self._blobs = blobs
        self._wait_s = wait_s
        self._folder = blobs.root / "checkouts"
        self._private = blobs.private / "checkouts"

    def prepare(self) -> None:
        """Make the folders. Raises as `BlobFolder.prepare`."""
        make_folders(self._folder, self._private)

    def lease(self, digest: Digest, files: Mapping[str, Digest], *, errand: Errand) -> Checkout:
        """Return a lease on the folder that has *files* (path → blob), filled if it is not there whole.

        Raises:
            NotFound: code `blob_missing`.
            ResourceExhausted: code `disk_full` or `disk_error`.
            Unavailable: code `store_busy`, or as `Errand.check`.
        """
        name = hex_of(digest)[:12]
        held = take_lock(
            self._private / f"{name}.lock",
            exclusive=False,
            wait_s=self._wait_s,
            errand=errand,
            what=f"the removal of an old folder of artifact {digest}",
        )
        try:
            folder = self._folder / name
            if not self._is_whole(digest, files):
                with lock(
                    self._private / f"{name}.build",
                    wait_s=self._wait_s,
                    errand=errand,
                    what=f"somebody else, who fills the folder of artifact {digest}",
                ):
                    if not self._is_whole(digest, files):
                        self._fill(digest, files, errand)
            return Checkout(digest=digest, path=folder, lease=held)
        except OSError as error:
            os.close(held)
            raise disk_error(error, path=self._folder / name) from error
        except BaseException:
            os.close(held)
            raise

    def collect(self, *, keep: Digest | None = None) -> int:
        """Remove the folders that nobody leases, but not that of *keep*; return how many went."""
        kept = hex_of(keep)[:12] if keep is not None else None
        removed = 0
        for name in sorted(os.listdir(self._folder)):
            stem = name.partition(".")[0]
            if name == kept:
                continue
            try:
                with lock(self._private / f"{stem}.lock", wait_s=0):
                    self._remove(name)
                    if name == stem:
                        for suffix in ("json", "build", "lock"):
                            with suppress(FileNotFoundError):
                                os.unlink(self._private / f"{stem}.{suffix}")
                removed += 1
            except Unavailable:
                continue  # leased, or one of its blobs is being hashed: another time
        return removed

    def leased(self) -> frozenset[Digest]:
        """Return the digests of which somebody holds a lease."""
        found = set()
        for path in self._private.glob("*.lock"):
            try:
                with lock(path, wait_s=0):
                    continue
            except Unavailable:
                known = self._read(path.stem)
                if known is not None:
                    found.add(known[0])
        return frozenset(found)

    def drop(self, found: os.stat_result) -> None:
        """Remove every link to the file *found* from every checkout."""
        if found.st_nlink < 2:  # the one that is left is in quarantine
            return
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(parent, name)
                with suppress(FileNotFoundError):
                    here = os.lstat(path)
                    if (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino):
                        mode = os.stat(parent).st_mode
                        os.chmod(parent, 0o700)
                        os.unlink(path)
                        os.chmod(parent, mode & 0o777)

    def _is_whole(self, digest: Digest, files: Mapping[str, Digest]) -> bool:
        """Say whether the folder has these files, each a link to the blob or its untouched copy, and no other."""
        name = hex_of(digest)[:12]
        known = self._read(name)
        if known is None or known[0] != digest or set(known[1]) != set(files):
            return False
        folder = self._folder / name
        for path, blob in files.items():
            try:
                here = os.lstat(folder / path)
                if not self._is_right(known[1][path], blob, here):
                    return False
            except FileNotFoundError:
                return False
        return sum(len(names) for _, _, names in os.walk(folder)) == len(files)

    def _is_right(self, file: _File, blob: Digest, here: os.stat_result) -> bool:
        if file.blob != blob:
            return False
        if file.copy is not None:
            return file.copy == Stamp.of(here)
        stored = os.lstat(self._blobs.path(blob))
        return (here.st_dev, here.st_ino) == (stored.st_dev, stored.st_ino)

    def _fill(self, digest: Digest, files: Mapping[str, Digest], errand: Errand) -> None:
        """Make the folder under another name, then give it its own."""
        name = hex_of(digest)[:12]
        folder = self._folder / name
        scratch = self._folder / f"{name}.{secrets.token_hex(4)}"
        if folder.exists():
            self._remove(name, wait_s=self._wait_s, errand=errand)
        try:
            made: dict[str, _File] = {}
            for path, blob in files.items():
                place = scratch / path
                place.parent.mkdir(parents=True, exist_ok=True)
                made[path] = _File(blob=blob, copy=self._place(blob, place, errand))
            for parent, _, _ in os.walk(scratch):
                os.chmod(parent, _FOLDER_MODE)
            self._write(name, digest, made)
            os.rename(scratch, folder)
        except BaseException:
            remove_tree(scratch)
            raise

    def _place(self, blob: Digest, place: Path, errand: Errand) -> Stamp | None:
        """Put the blob at *place*: None for a link, the stamp of a copy."""
        source = self._blobs.path(blob)
        for _ in range(_MAX_TURNS):
            try:
                if self._blobs.stamps.link(blob, source, place, wait_s=self._wait_s, errand=errand):
                    return None
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                return copy_verified(source, place, blob, errand=errand)
            self._blobs.verify(blob, what=f"checkout of {place.name}", errand=errand)
        raise Unavailable(f"{source}: it changes again and again", code="store_busy")

    def _remove(
        self, name: str, *, wait_s: float = _REMOVE_WAIT_S, errand: Errand | None = None
    ) -> None:
        """Remove a folder: its links one by one, so that the blobs' stamps stay right."""
        folder = self._folder / name
        known = self._read(name.partition(".")[0])
        for parent, _, _ in os.walk(folder):
            with suppress(OSError):
                os.chmod(parent, 0o700)
        for path, file in (known[1] if known is not None else {}).items():
            if file.copy is None:
                source = self._blobs.path(file.blob)
                self._blobs.stamps.unlink(
                    file.blob, source, folder / path, wait_s=wait_s, errand=errand
                )
        remove_tree(folder)

    def _read(self, name: str) -> tuple[Digest, dict[str, _File]] | None:
        """Return whose folder it is and what its files are, or None where that is not known.

        Raises:
            ResourceExhausted: code `disk_error`: it cannot be read now: a lease is not taken for none.
        """
        try:
            about = json.loads((self._private / f"{name}.json").read_bytes())
            return parse_digest(about["digest"]), {
                path: _File(blob=parse_digest(one["blob"]), copy=Stamp.parse(one["copy"]))
                for path, one in about["files"].items()
            }
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return None
            raise read_error(error, path=self._private / f"{name}.json") from error
        except (ValueError, LookupError, TypeError, AttributeError, FlexInferError):
            return None

    def _write(self, name: str, digest: Digest, files: Mapping[str, _File]) -> None:
        about: dict[str, Any] = {
            "digest": digest,
            "files": {
                path: {"blob": file.blob, "copy": file.copy.to_list() if file.copy else None}
                for path, file in files.items()
            },
        }
        replace_file(
            self._private / f"{name}.json", json.dumps(about).encode(),
            scratch=self._private / f"{name}.tmp", durable=False,
        )  # fmt: skip


def copy_verified(
    source: Path, place: Path, digest: Digest, *, errand: Errand | None = None
) -> Stamp:
    """Copy a blob, sharing its bytes where the file system can, and hash the copy; return its stamp.

    Raises:
        IntegrityError: code `digest_mismatch`; no copy is left.
        Unavailable: as `Errand.check`; half a copy may be left.
    """
    errand = errand or Errand()
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writing = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy(reading, writing, errand)
            hasher = hash_file(writing, path=place, errand=errand)
            if hasher.digest != digest:
                os.unlink(place)
                raise IntegrityError(
                    f"{place}: expected {digest}, got {hasher.digest}", code="digest_mismatch"
                )
            os.fchmod(writing, BLOB_MODE)
            os.utime(writing, ns=(0, 0))
            return Stamp.of(os.fstat(writing))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy(reading: int, writing: int, errand: Errand) -> None:
    try:
        while os.copy_file_range(reading, writing, _COPY_BYTES):
            errand.check()
        return
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    with os.fdopen(os.dup(reading), "rb") as source, os.fdopen(os.dup(writing), "wb") as target:
        while data := source.read(1 << 20):
            target.write(data)
            errand.check()
