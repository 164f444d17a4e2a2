"""Kernel locks on files, which a dead holder gives back at once, and folders removed with all that is in them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexinfer.errors import Unavailable
from flexinfer.files import disk_error

# How often a waiter looks again, in seconds: flock has no time limit of its own.
_POLL_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# How often a lock file may be replaced under a waiter before it says so.
_MAX_REPLACED = 1000


class Errand:
    """Long work of one thread, as other threads see it: what it waits for now; and they may give it up."""

    def __init__(self) -> None:
        self.waits_for = ""
        """Somebody else's work, in words; empty while it waits for nobody."""
        self.waited_s = 0.0
        """For how long it has waited for others, the wait of this moment aside."""
        self._is_given_up = False

    def give_up(self) -> None:
        """Let it end soon: at its next `check`."""
        self._is_given_up = True

    def check(self) -> None:
        """Go on, unless it was given up.

        Raises:
            Unavailable: code `given_up`.
        """
        if self._is_given_up:
            raise Unavailable("nobody wants the result any more", code="given_up")


@contextmanager
def lock(
    path: Path,
    *,
    exclusive: bool = True,
    wait_s: float = 60.0,
    errand: Errand | None = None,
    what: str = "",
) -> Iterator[int]:
    """Hold the kernel's lock on the file *path*, made if absent; yield its descriptor.

    A dead holder's lock is free at once. Who holds the lock exclusively may unlink the file.

    errand, what: as of `wait_for_lock`.

    Raises:
        Unavailable: code `store_busy`: somebody holds it for longer than *wait_s*; or as `Errand.check`.
    """
    descriptor = take_lock(path, exclusive=exclusive, wait_s=wait_s, errand=errand, what=what)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(
    path: Path,
    *,
    exclusive: bool = True,
    wait_s: float = 60.0,
    errand: Errand | None = None,
    what: str = "",
) -> int:
    """As `lock`; the lock lives until the descriptor that this returns is closed."""
    for _ in range(_MAX_REPLACED):
        try:
            descriptor = os.open(
                path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise disk_error(error, path=path) from error
        try:
            wait_for_lock(
                descriptor, path=path, exclusive=exclusive, wait_s=wait_s, errand=errand, what=what
            )
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


def wait_for_lock(
    descriptor: int,
    *,
    path: Path,
    exclusive: bool,
    wait_s: float,
    errand: Errand | None = None,
    what: str = "",
) -> bool:
    """Lock *descriptor*; return whether somebody else held it before.

    The limit counts from the last moment at which the file grew: who waits for a long download waits for
    as long as it moves.

    errand: who looks at the wait, and may end it; it sees that it is for *what*, or for the file's lock.

    Raises:
        Unavailable: code `store_busy`, or as `Errand.check`.
    """
    errand = errand or Errand()
    began = time.monotonic()
    try:
        return _wait(descriptor, path, exclusive, wait_s, errand, what or f"the lock on {path}")
    finally:
        errand.waits_for = ""
        errand.waited_s += time.monotonic() - began


def _wait(
    descriptor: int, path: Path, exclusive: bool, wait_s: float, errand: Errand, what: str
) -> bool:
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    size = -1
    deadline = 0.0
    tries = 0
    while True:
        errand.check()
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return tries > 0
        except BlockingIOError:
            errand.waits_for = what
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
