"""One holder of a name on this machine, by a lock that the kernel frees however its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from flexinfer.errors import Conflict, InvalidInput, ResourceExhausted
from flexinfer.files import disk_error

_MAX_BYTES = 64 * 1024
# Somebody may only be looking (`holder`), or hold it and not have said who it is: both take microseconds.
_TRIES = 10
_STEP_S = 0.02
_LOOKS = 10
_LOOK_PAUSE_S = 0.001


class SingleInstance:
    """The lock on a file, held until `release` or the end of this process.

    The file holds who has it, as JSON, and stays when the lock is gone: its presence means nothing. A process
    that is forked without exec holds the lock as well.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `acquire`."""
        self.path = path
        self._started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path, about: Mapping[str, object]) -> SingleInstance:
        """Take the lock and write *about* into it: `what`, `address`; `pid` and `started` are added.

        Raises:
            ResourceExhausted: code `disk_full` or `disk_error`.
            Conflict: code `already_running`; the message names what holds it, its pid and address.
            InvalidInput: code `home_not_writable`; the file cannot be made.
        """
        for _ in range(_TRIES):
            descriptor = _open(path)
            if _lock(descriptor) and _is_at(path, descriptor):
                instance = cls(path, descriptor)
                try:
                    instance.update(about)
                except ResourceExhausted:
                    os.close(descriptor)
                    raise
                return instance
            holder = _read(descriptor)
            os.close(descriptor)
            time.sleep(_STEP_S)
        raise _conflict(path, holder)

    def update(self, about: Mapping[str, object]) -> None:
        """Write anew who holds it, for example once the address is known.

        Raises:
            ResourceExhausted: code `disk_full` or `disk_error`; the lock is held all the same.
        """
        if self._descriptor is None:
            raise RuntimeError(f"{self.path}: the lock was released")
        fields = {"pid": os.getpid(), "started": self._started, **about}
        data = json.dumps(fields, sort_keys=True).encode()
        try:
            written = 0
            while written < len(data):  # a disk that is nearly full takes a part, and then says why
                written += os.pwrite(self._descriptor, data[written:], written)
            os.ftruncate(self._descriptor, len(data))
        except OSError as error:
            raise disk_error(error, path=self.path, needed=len(data)) from error

    def release(self) -> None:
        """Free the lock. Twice is once."""
        if self._descriptor is None:
            return
        # Emptied, never removed: who opened it a moment ago would lock a file that nobody else sees. A disk that
        # cannot even do that leaves an old text in a file that is free: its presence means nothing.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> SingleInstance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def holder(path: Path) -> dict[str, object] | None:
    """Return what the present holder of *path* said of itself; None if nobody holds it.

    An empty answer: somebody does and has not said who.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot make the lock file: {error.strerror}", code="home_not_writable"
        ) from error


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the file that was locked still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, object]:
    for _ in range(_LOOKS):
        data = os.pread(descriptor, _MAX_BYTES, 0)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            if not data:
                break
            time.sleep(_LOOK_PAUSE_S)  # half of an old text and half of a new one
        else:
            return found if isinstance(found, dict) else {}
    return {}


def _conflict(path: Path, holder: Mapping[str, object]) -> Conflict:
    if not holder:
        return Conflict(f"{path} is held by another process", code="already_running")
    what = holder.get("what") or path.stem
    at = f" at {holder['address']}" if holder.get("address") else ""
    since = f" since {holder['started']}" if holder.get("started") else ""
    return Conflict(
        f"{what} is already running{at} (pid {holder.get('pid', 'unknown')}{since})",
        code="already_running",
    )
