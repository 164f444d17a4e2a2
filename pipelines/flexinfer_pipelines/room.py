"""Room on the disk: refused before a build starts where there is none, and named as the cause where it ran out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexinfer.errors import FlexInferError, ProcessFailed, Unavailable
from flexinfer.files import disk_error, disk_full, free_bytes, is_full, write_all
from flexinfer.places import Home

# Prefect's database with its journal, the build's log and records. What the files need, the store knows.
LEAST_BYTES = 32 * 1024 * 1024
# With less than this left, a child that failed without a reason of its own failed for want of room.
_NOTHING_BYTES = 256 * 1024
_WHY = "the records of the run, before any file of the model"


def check_room(home: Home) -> None:
    """Refuse a build that cannot even write down that it runs.

    Raises:
        ResourceExhausted: code `disk_full`.
    """
    if free_bytes(home.root) < LEAST_BYTES:
        raise disk_full(home.root, needed=LEAST_BYTES, why=_WHY)


@contextmanager
def disk_full_is_said(home: Home) -> Iterator[None]:
    """Raise what a full disk has made fail as that: a library's error, or a child's that ended without a word.

    Raises:
        ResourceExhausted: code `disk_full`.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_error(
            error, path=Path(str(error.filename or home.root)), needed=LEAST_BYTES
        ) from error
    except Exception as error:
        may_be = not isinstance(error, FlexInferError) or isinstance(
            error, ProcessFailed | Unavailable
        )
        if not may_be or free_bytes(home.root) >= _NOTHING_BYTES:
            raise
        raise disk_full(home.root, needed=LEAST_BYTES, why=_WHY) from error


class LogFile:
    """A text stream to the file *path*, opened when it is first written to and emptied there above *max_bytes*.

    A build does not fail for its log: where the disk takes no more of it, it ends and standard error says so.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = -1
        self._has_failed = False

    def write(self, text: str) -> int:
        if not self._has_failed:
            try:
                if self._file < 0:
                    self._file = self._open()
                write_all(self._file, text.encode("utf-8", "replace"))
            except OSError as error:
                self._has_failed = True
                print(f"{self._path}: ends here ({error.strerror})", file=sys.stderr)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._has_failed = True

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        if os.fstat(file).st_size >= self._max_bytes:
            os.ftruncate(file, 0)
        return file
