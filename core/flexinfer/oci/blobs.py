"""A folder of verified blobs, each named by its digest, and what lies beside it: partials and quarantine.

    <root>/blobs/sha256/<hex>             whole, verified, durable, mode 0444, modification time 0
    <root>/.flexinfer/partials/<key>      unfinished; its writer holds the kernel's lock on it
    <root>/quarantine/<hex>.<found hex>   what had a final name, or wanted one, and was not what it said

The modification time of a blob is set to 0 when it gets its name: whoever writes to it later changes that,
even within the same tick of the kernel's clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flexinfer.errors import NotFound, ResourceExhausted
from flexinfer.files import disk_error, make_folders, read_error, sync_folder
from flexinfer.oci.descriptor import Descriptor
from flexinfer.oci.digest import Digest, check_digest, digest_of, hex_of
from flexinfer.oci.durable import try_lock
from flexinfer.oci.target import missing_blob
from flexinfer.oci.writer import BlobWriter, Commit, partial_name

# Evidence, not an archive: the newest is kept, and those before it within these bounds.
MAX_QUARANTINED = 16
MAX_QUARANTINED_BYTES = 8 * 1024**3
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Bytes that are not what they should be."""

    expected: Digest
    found: Digest
    path: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A partial, a record or a file in quarantine. *is_held*: a writer has it open now."""

    path: Path
    size: int
    age_s: float
    is_held: bool


class BlobFolder:
    """Blobs under *root*. Safe for threads and processes: whatever counts is decided under a kernel lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "blobs" / "sha256"
        self.private = root / ".flexinfer"
        self.partials = self.private / "partials"
        self.quarantine = root / "quarantine"
        self.guard = self.private / "commit.lock"  # held while a blob gets or loses its name

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            ResourceExhausted: code `disk_full` or `disk_error`.
        """
        make_folders(self.folder, self.partials, self.quarantine)

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, or would be."""
        return self.folder / hex_of(digest)

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Say whether the blob is there; *size* None takes any size."""
        try:
            found = os.stat(self.path(digest), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return size is None or found.st_size == size

    def open(self, digest: Digest) -> BinaryIO:
        """Return the blob, open for reading.

        Raises:
            NotFound: code `blob_missing`.
            ResourceExhausted: code `disk_error`: the disk or this process's limits refuse.
        """
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise missing_blob(digest, where=str(self.root)) from None
        except OSError as error:
            raise read_error(error, path=self.path(digest)) from error
        return os.fdopen(descriptor, "rb", buffering=0)

    def read(self, digest: Digest, *, max_bytes: int, what: str, code: str) -> bytes:
        """Return the whole of a small blob, checked against its digest.

        Raises:
            NotFound: code `blob_missing`.
            ResourceExhausted: code `blob_too_large`: above *max_bytes*.
            ResourceExhausted: code `disk_error`: the disk or this process's limits refuse.
            IntegrityError: code *code*.
        """
        with self.open(digest) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise ResourceExhausted(
                    f"{what} {digest}: expected at most {max_bytes} bytes, got {size}",
                    code="blob_too_large",
                )
            try:
                data = stream.read(max_bytes + 1)
            except OSError as error:
                raise read_error(error, path=self.path(digest)) from error
        check_digest(
            found=digest_of(data), found_size=len(data),
            expected=digest, expected_size=None, what=f"{what} {digest}", code=code,
        )  # fmt: skip
        return data

    def digests(self) -> Iterator[Digest]:
        """Yield the digest of every blob, in no order."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if len(entry.name) == 64 and _HEX.issuperset(entry.name):
                    yield Digest(f"sha256:{entry.name}")

    def writer(
        self,
        *,
        key: str,
        expected: Digest | None = None,
        expected_size: int | None = None,
        wait_s: float = 60.0,
        what: str = "",
    ) -> BlobWriter:
        """Return what writes one blob; see `BlobWriter`."""
        return BlobWriter(
            commit=Commit(
                place=self.path,
                guard=self.guard,
                is_good=self.is_good,
                is_whole=self.is_whole,
                placed=self.placed,
                reject=self.reject,
            ),
            folder=self.partials,
            key=key,
            expected=expected,
            expected_size=expected_size,
            wait_s=wait_s,
            what=what,
        )

    def put_bytes(self, data: bytes) -> Digest:
        """Store *data* and return its digest; nothing is written where it is there and good."""
        digest = digest_of(data)
        if self.has(digest, len(data)) and self.is_good(digest, len(data)):
            return digest
        key = f"bytes:{digest}"
        with self.writer(key=key, expected=digest, expected_size=len(data)) as writer:
            if writer.done is None:
                writer.restart()
                writer.write(data)
            writer.commit()
        return digest

    def partial_size(self, *, key: str, expected: Digest | None) -> int:
        """Return how many bytes an unfinished writer of *key* left or has written."""
        try:
            return os.stat(self.partials / partial_name(key, expected)).st_size
        except FileNotFoundError:
            return 0

    def remove(self, digest: Digest) -> None:
        """Remove the blob, if it is there. The caller holds `guard`.

        Raises:
            ResourceExhausted: code `disk_error`.
        """
        try:
            os.unlink(self.path(digest))
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(error, path=self.path(digest)) from error

    def is_good(self, digest: Digest, size: int) -> bool:
        """Say whether the blob there may stay when the same bytes come again. Overridden by who knows more."""
        return self.has(digest, size)

    def is_whole(self, digest: Digest) -> bool:
        """Say whether the blob is there and right, before it is written again. May read all of it."""
        return self.has(digest)

    def placed(self, digest: Digest, descriptor: int) -> None:
        """Learn that a verified blob has just got its name; *descriptor* is open on it, and locked."""

    def reject(self, partial: Path, *, expected: Digest, found: Digest) -> None:
        """Move bytes that failed their check into quarantine."""
        self.isolate(partial, expected=expected, found=found)

    def isolate(self, path: Path, *, expected: Digest, found: Digest) -> Path:
        """Move *path* into quarantine, where the newest are kept, and return its new place.

        Raises:
            ResourceExhausted: code `disk_error`.
        """
        place = self.quarantine / f"{hex_of(expected)}.{hex_of(found)}"
        try:
            os.rename(path, place)
            os.utime(place, follow_symlinks=False)
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(error, path=place) from error
        total = 0
        for count, held in enumerate(sorted(self.quarantined(), key=_changed_at, reverse=True), 1):
            total += held.size
            if count > MAX_QUARANTINED or (count > 1 and total > MAX_QUARANTINED_BYTES):
                with suppress(OSError):
                    os.unlink(held.path)
        return place

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Return what is in quarantine, sorted by name."""
        found = []
        with os.scandir(self.quarantine) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                expected, _, actual = entry.name.partition(".")
                with suppress(FileNotFoundError):
                    found.append(
                        Quarantined(
                            expected=Digest(f"sha256:{expected}"),
                            found=Digest(f"sha256:{actual}"),
                            path=Path(entry.path),
                            size=entry.stat(follow_symlinks=False).st_size,
                        )
                    )
        return tuple(found)

    def check_there(self, blobs: tuple[Descriptor, ...], *, what: str) -> None:
        """Raise unless every one of *blobs* is there.

        Raises:
            NotFound: code `blob_missing`.
        """
        for blob in blobs:
            if not self.has(blob.digest, blob.size):
                raise NotFound(
                    f"{what} points to {blob.digest} ({blob.size} bytes), which is not in {self.root}",
                    code="blob_missing",
                )

    def old(self, *, max_age_s: float, now_s: float) -> tuple[Leftover, ...]:
        """Return what `remove_old` would remove now."""
        return choose_old(self._leftovers(now_s), max_age_s=max_age_s)

    def remove_old(self, *, max_age_s: float, now_s: float) -> tuple[int, int]:
        """Remove partials and records that nobody has touched for *max_age_s*; return their count and bytes.

        *now_s*: seconds since the Unix epoch. A partial whose writer lives stays.
        """
        count = freed = 0
        for one in self.old(max_age_s=max_age_s, now_s=now_s):
            held = try_lock(one.path)  # again: somebody may have taken it up since
            if held is None:
                continue
            try:
                with suppress(FileNotFoundError):
                    os.unlink(one.path)
                    count, freed = count + 1, freed + one.size
            finally:
                os.close(held)
        return count, freed

    def _leftovers(self, now_s: float) -> Iterator[Leftover]:
        for folder in (self.partials, self.quarantine):
            for name in sorted(os.listdir(folder)):
                path = folder / name
                with suppress(FileNotFoundError):
                    found = os.stat(path, follow_symlinks=False)
                    held = try_lock(path)
                    if held is not None:
                        os.close(held)
                    yield Leftover(
                        path=path,
                        size=found.st_size,
                        age_s=now_s - found.st_mtime,
                        is_held=held is None,
                    )


def choose_old(leftovers: Iterable[Leftover], *, max_age_s: float) -> tuple[Leftover, ...]:
    """Return those that nobody holds and nobody has touched for *max_age_s*."""
    return tuple(one for one in leftovers if not one.is_held and one.age_s >= max_age_s)


def _changed_at(quarantined: Quarantined) -> int:
    with suppress(FileNotFoundError):
        return os.stat(quarantined.path).st_mtime_ns
    return 0
