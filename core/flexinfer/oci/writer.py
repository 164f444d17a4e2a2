"""One blob on its way to its final name.

    partial, locked ──write──► hash as it passes ──commit──► check ► fsync ► rename ► fsync folder

The partial file is its own lock: whoever writes holds the kernel's lock on it. A second writer of the same
key waits, then finds the blob done, or goes on where a dead one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Protocol

from flexinfer.errors import FlexInferError, IntegrityError, ResourceExhausted, Unavailable
from flexinfer.files import disk_error, disk_full, free_bytes, replace_file, sync_folder, write_all
from flexinfer.oci.descriptor import MEDIA_BYTES, Descriptor
from flexinfer.oci.digest import BUFFER_BYTES, Digest, Hasher, check_digest, parse_digest
from flexinfer.oci.durable import is_same_file, lock, wait_for_lock

BLOB_MODE = 0o444
_MAX_TURNS = 1000


class Reject(Protocol):
    def __call__(self, partial: Path, *, expected: Digest, found: Digest) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a writer needs of the folder that it writes to."""

    place: Callable[[Digest], Path]
    guard: Path
    is_good: Callable[[Digest, int], bool]
    is_whole: Callable[[Digest], bool]
    placed: Callable[[Digest, int], None]
    reject: Reject


class BlobWriter:
    """Writes one blob: `with folder.writer(key=…) as w: w.write(…); w.commit()`.

    Leaving without `commit` keeps the partial for the next writer of the same key, which starts at `offset`.
    Not for use by two threads at once.
    """

    def __init__(
        self,
        *,
        commit: Commit,
        folder: Path,
        key: str,
        expected: Digest | None,
        expected_size: int | None,
        wait_s: float,
        what: str = "",
    ) -> None:
        """*what*: what a person calls it; the key by default."""
        self._commit = commit
        self._name = what or key
        self._expected = expected
        self._expected_size = expected_size
        self._wait_s = wait_s
        self._path = folder / partial_name(key, expected)
        self._record = self._path.with_suffix(".done")
        self._held = -1
        self._file = -1
        self._hasher = Hasher()
        self._stored = 0
        self.done: Descriptor | None = None
        # What the source says of the whole size after the writer was made: for messages only.
        self.likely_size: int | None = None

    @property
    def offset(self) -> int:
        """How many bytes are held: the next `write` continues there. The whole size when `done`."""
        return self._stored if self.done is None else self.done.size

    def __enter__(self) -> BlobWriter:
        """Take the place of the only writer of this key, and what an earlier one left.

        Raises:
            Unavailable: code `store_busy`: another writer made no progress for the time allowed.
            ResourceExhausted: code `disk_full` (checked before any byte moves where the size is known).
        """
        try:
            self._take()
            if self.done is None:
                self._resume()
                self._check_room()
        except OSError as error:
            self._close()
            raise self._failed(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*.

        Raises:
            IntegrityError: code `digest_mismatch`: more bytes than there may be; the partial is dropped.
            ResourceExhausted: code `disk_full` or `disk_error`; the partial is dropped.
        """
        self.store(data)
        self.hash(data)

    def store(self, data: bytes | bytearray | memoryview) -> None:
        """One half of `write`, for who stores in one thread and hashes the same pieces in another."""
        if self._expected_size is not None and self._stored + len(data) > self._expected_size:
            self.discard()
            raise IntegrityError(
                f"{self._what}: expected {self._expected_size} bytes, got more",
                code="digest_mismatch",
            )
        try:
            write_all(self._file, data)
        except OSError as error:
            failure = self._failed(error, at_least=len(data))
            self.discard()
            raise failure from error
        self._stored += len(data)

    def hash(self, data: bytes | bytearray | memoryview) -> None:
        """The other half of `write`; the pieces come in the same order."""
        self._hasher.update(data)

    def restart(self) -> None:
        """Begin again at offset 0, because the source cannot continue where the partial ends."""
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        except OSError as error:
            raise self._failed(error) from error
        self._hasher = Hasher()
        self._stored = 0

    def discard(self) -> None:
        """Drop what is held. The writer is closed."""
        if self._held >= 0:
            with suppress(OSError):
                if is_same_file(self._held, self._path):
                    os.unlink(self._path)
        self._close()

    def commit(self) -> Descriptor:
        """Give the blob its final name, durably, and return its digest and size.

        Raises:
            IntegrityError: code `digest_mismatch`; the bytes are in quarantine, the name does not exist.
            ResourceExhausted: code `disk_full` or `disk_error`; the partial is dropped: after a failed
                fsync nobody knows what the disk holds.
        """
        if self.done is not None:
            return self.done
        digest, size = self._hasher.digest, self._hasher.size
        assert size == self._stored, "each piece is stored and hashed"
        self._check(digest, size)
        try:
            self._place(digest, size)
            self.done = Descriptor(media_type=MEDIA_BYTES, digest=digest, size=size)
            if self._expected is None:
                self._leave_record(self.done)
        except OSError as error:
            failure = self._failed(error)
            self.discard()
            raise failure from error
        except ResourceExhausted:
            self.discard()
            raise
        self._close()
        return self.done

    def _check(self, digest: Digest, size: int) -> None:
        try:
            check_digest(
                found=digest, found_size=size,
                expected=self._expected, expected_size=self._expected_size, what=self._what,
            )  # fmt: skip
        except IntegrityError:
            self._commit.reject(self._path, expected=self._expected or digest, found=digest)
            self._close()
            raise

    def _place(self, digest: Digest, size: int) -> None:
        place = self._commit.place(digest)
        os.fchmod(self._file, BLOB_MODE)
        os.utime(self._file, ns=(0, 0))
        os.fsync(self._file)
        with lock(self._commit.guard):
            if self._commit.is_good(digest, size):
                os.unlink(self._path)
            else:
                os.rename(self._path, place)
                self._commit.placed(digest, self._file)
        # Also where another writer was faster: his rename may not be durable yet.
        sync_folder(place.parent)

    def _leave_record(self, done: Descriptor) -> None:
        """Tell who waits on this very file what became of it. It may be lost: then he starts again."""
        about = {
            "digest": done.digest,
            "size": done.size,
            "inode": os.fstat(self._held).st_ino,
        }
        replace_file(
            self._record, json.dumps(about).encode(),
            scratch=self._record.with_suffix(".tmp"), durable=False,
        )  # fmt: skip

    def _take(self) -> None:
        """Lock the partial. Who had to wait first looks whether the work is done."""
        for _ in range(_MAX_TURNS):
            if self._is_placed():
                return
            self._held = os.open(
                self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            waited = wait_for_lock(self._held, path=self._path, exclusive=True, wait_s=self._wait_s)
            if is_same_file(self._held, self._path):
                if not self._is_placed():
                    return
                os.unlink(self._path)  # an empty file, made between the other's rename and our look
            elif waited and self._expected is None:
                self.done = self._read_record(os.fstat(self._held).st_ino)
                if self.done is not None:
                    return
            self._close()
        raise Unavailable(
            f"{self._what}: other writers keep beginning it", code="store_busy", retry_after_s=1
        )

    def _is_placed(self) -> bool:
        if self._expected is None:
            return False
        place = self._commit.place(self._expected)
        with suppress(FileNotFoundError):
            size = os.stat(place, follow_symlinks=False).st_size
            if self._expected_size in (None, size) and self._commit.is_whole(self._expected):
                self.done = Descriptor(media_type=MEDIA_BYTES, digest=self._expected, size=size)
                return True
        return False

    def _read_record(self, inode: int) -> Descriptor | None:
        try:
            about = json.loads(self._record.read_text())
            digest, size = parse_digest(about["digest"]), int(about["size"])
            same = about["inode"] == inode
        except (OSError, ValueError, LookupError, TypeError, FlexInferError):
            return None
        if not same or not self._commit.is_good(digest, size):
            return None
        return Descriptor(media_type=MEDIA_BYTES, digest=digest, size=size)

    def _resume(self) -> None:
        """Open the partial and rebuild the state of the hash by reading it."""
        os.fchmod(self._held, 0o600)  # it is read-only where the earlier writer died in its commit
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        size = os.fstat(self._file).st_size
        if self._expected_size is not None and size > self._expected_size:
            os.ftruncate(self._file, 0)
        while data := os.read(self._file, BUFFER_BYTES):
            self._hasher.update(data)
        self._stored = self._hasher.size

    def _check_room(self) -> None:
        if self._expected_size is None:
            return
        needed = self._expected_size - self.offset
        if needed > free_bytes(self._path.parent):
            raise disk_full(self._path.parent, needed=needed, why=self._name)

    def _failed(self, error: OSError, *, at_least: int | None = None) -> FlexInferError:
        needed = at_least
        whole = self._expected_size if self._expected_size is not None else self.likely_size
        if whole is not None:
            needed = max(whole - self.offset, at_least or 0)
        return disk_error(error, path=self._path, needed=needed, why=self._name)

    @property
    def _what(self) -> str:
        return f"blob {self._name}"

    def _close(self) -> None:
        for descriptor in (self._file, self._held):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._held = -1


def partial_name(key: str, expected: Digest | None) -> str:
    """Return the partial's file name: one per digest where it is known, else one per *key*.

    Without a digest to check the whole against, nothing from before a restart of the machine is taken up:
    what the disk holds of it may be zeros.
    """
    scope = expected if expected is not None else f"boot:{_boot_id()}\0{key}"
    return hashlib.sha256(scope.encode()).hexdigest()[:40] + ".partial"


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process-{os.getpid()}"  # not Linux: nothing is taken up from another process
