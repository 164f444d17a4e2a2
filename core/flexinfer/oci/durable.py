"""Files that survive a crash: kernel locks, writes that are whole or absent, errors with numbers in them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexinfer.errors import FlexInferError, ResourceExhausted, Unavailable
from flexinfer.units import format_bytes

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# How often a waiter looks again, in seconds: flock has no time limit of its own.
_POLL_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# How often a lock file may be replaced under a waiter before it says so.
_MAX_REPLACED = 1000


def disk_error(error: OSError, *, path: Path, needed: int | None = None) -> FlexInferError:
    """Return the error to raise for *error*, which happened on writing *path*; *needed* is in bytes."""
    if error.errno in _FULL:
        need = (
            f"{format_bytes(needed)} ({needed} bytes) needed" if needed is not None else "no room"
        )
        return ResourceExhausted(
            f"{path}: disk full: {need}, {format_bytes(free_bytes(path))} free ({error.strerror})",
            code="disk_full",
        )
    return ResourceExhausted(f"{path}: cannot write: {error.strerror or error}", code="disk_error")


def read_error(error: OSError, *, path: Path) -> FlexInferError:
    """Return the error to raise for *error*, which happened on reading *path*."""
    return ResourceExhausted(f"{path}: cannot read: {error.strerror or error}", code="disk_error")


def free_bytes(path: Path) -> int:
    """Return how many bytes we may still write where *path* is, or would be."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize
    return 0


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*: the kernel may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def make_folders(*folders: Path) -> None:
    """Make *folders*, and their parents, where they are absent.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, path=folder) from error


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, scratch: Path, mode: int = 0o644) -> None:
    """Let *path* hold *data*, whole or not at all, durably.

    *scratch*: the temporary name, in the same filesystem. The caller holds a lock that makes it his own.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`; *path* is as it was.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(scratch, flags, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(scratch, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(scratch)
        raise disk_error(error, path=path, needed=len(data)) from error


@contextmanager
def lock(path: Path, *, exclusive: bool = True, wait_s: float = 60.0) -> Iterator[int]:
    """Hold the kernel's lock on the file *path*, made if absent; yield its descriptor.

    A dead holder's lock is free at once. Who holds the lock exclusively may unlink the file.

    Raises:
        Unavailable: code `store_busy`: somebody holds it for longer than *wait_s*.
    """
    descriptor = take_lock(path, exclusive=exclusive, wait_s=wait_s)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(path: Path, *, exclusive: bool = True, wait_s: float = 60.0) -> int:
    """As `lock`; the lock lives until the descriptor that this returns is closed."""
    for _ in range(_MAX_REPLACED):
        try:
            descriptor = os.open(
                path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise disk_error(error, path=path) from error
        try:
            wait_for_lock(descriptor, path=path, exclusive=exclusive, wait_s=wait_s)
            if is_same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder unlinked it: lock the file that has the name now
    raise Unavailable(
        f"{path}: the lock was replaced too often", code="store_busy", retry_after_s=1
    )


def try_lock(path: Path) -> int | None:
    """Return a descriptor that locks *path* exclusively, or None: it is not there, or somebody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_same_file(descriptor, path):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def wait_for_lock(descriptor: int, *, path: Path, exclusive: bool, wait_s: float) -> bool:
    """Lock *descriptor*; return whether somebody else held it before.

    The limit counts from the last moment at which the file grew: who waits for a long download waits for
    as long as it moves.

    Raises:
        Unavailable: code `store_busy`.
    """
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    size = -1
    deadline = 0.0
    tries = 0
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return tries > 0
        except BlockingIOError:
            pass
        now = time.monotonic()
        grown = os.fstat(descriptor).st_size
        if grown != size:
            size, deadline = grown, now + wait_s
        if now >= deadline:
            raise Unavailable(
                f"{path}: another process holds the lock and has made no progress for {wait_s:.0f} s",
                code="store_busy",
                retry_after_s=wait_s,
            )
        time.sleep(min(_POLL_S[min(tries, len(_POLL_S) - 1)], max(deadline - now, 0.0)))
        tries += 1


def is_same_file(descriptor: int, path: Path) -> bool:
    """Say whether *path* still names the open file."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def remove_tree(folder: Path) -> None:
    """Remove *folder* and what is in it, read-only folders included; what is gone already is no error."""
    for parent, _, _ in os.walk(folder):
        with suppress(OSError):
            os.chmod(parent, 0o700)
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(parent, name))
        for name in folders:
            inner = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                if os.path.islink(inner):
                    os.unlink(inner)
                else:
                    os.rmdir(inner)
    with suppress(FileNotFoundError):
        os.rmdir(folder)
