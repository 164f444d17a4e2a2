"""Log files of children: read on from where one stopped, look at the end, keep them small.

The child appends to its log by itself (O_APPEND), so the log goes on when we crash, and goes on from what an
earlier start left there: where a start's own lines begin is remembered. Nobody can rotate a file that another
process holds open; so a log that grew too large is copied aside, its last part only, and emptied in place. A
few lines that arrive between the two steps are lost: only then, and only under a flood.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from flexinfer.process.lines import LineSplitter, decode

_READ_BYTES = 1024 * 1024
_TAIL_BYTES = 256 * 1024
_KEPT_BYTES = 4 * 1024 * 1024
_FINGERPRINT_BYTES = 64


class LogReader:
    """Lines of a growing log, each once.

    A log that was emptied meanwhile is read from its new start. One call reads at most 1 MiB and thus
    costs about a millisecond; `is_behind` says that there was more.
    """

    def __init__(
        self, path: Path, *, at_end: bool = False, last_bytes: int = 0, from_bytes: int = 0
    ) -> None:
        """Begin at the start of *path*, or at its present end: what was written before is not given.

        *last_bytes*: begin so far before the end, at the first whole line there; `is_cut` says that there was more.
        *from_bytes*: begin so far after the start; at the start of a log that is shorter, so was emptied meanwhile.
        """
        self.path = path
        self.is_behind = False
        self.is_cut = False
        self._offset = 0
        self._before = (
            b""  # the last bytes in front of the offset: another text there means a new file
        )
        self._splitter = LineSplitter()
        if at_end or last_bytes:
            self._skip(last_bytes)
        elif from_bytes:
            self._skip_to(from_bytes)

    def read(self) -> tuple[str, ...]:
        """Return the lines completed since the last call; none while there is no file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ()
        try:
            if not self._is_same(descriptor):
                self._offset, self._before, self._splitter = 0, b"", LineSplitter()
            data = os.pread(descriptor, _READ_BYTES, self._offset)
        finally:
            os.close(descriptor)
        self._offset += len(data)
        self._before = (self._before + data)[-_FINGERPRINT_BYTES:]
        self.is_behind = len(data) == _READ_BYTES
        return self._splitter.feed(data)

    def _is_same(self, descriptor: int) -> bool:
        start = self._offset - len(self._before)
        return os.pread(descriptor, len(self._before), start) == self._before

    def _skip(self, last_bytes: int) -> None:
        try:
            with self.path.open("rb") as file:
                start = max(0, file.seek(0, os.SEEK_END) - last_bytes)
                if last_bytes and start:
                    # On to the end of the line that is cut here; one without an end is shown from its middle.
                    self.is_cut = True
                    file.seek(start - 1)
                    start += file.read(last_bytes + 1).find(b"\n")
        except FileNotFoundError:
            return
        self._skip_to(start)

    def _skip_to(self, start: int) -> None:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < start:
                    return
                file.seek(max(0, start - _FINGERPRINT_BYTES))
                self._before = file.read(min(start, _FINGERPRINT_BYTES))
        except FileNotFoundError:
            return
        self._offset = start


def tail(
    path: Path, lines: int, *, start: int = 0, aside_bytes: int = _TAIL_BYTES
) -> tuple[str, ...]:
    """Return the last *lines* of a log, oldest first, at most 256 KiB of them; none if there is no log.

    *start*: how much of its beginning does not count, unless it was emptied meanwhile. A log that was just emptied
    is continued backwards into the last *aside_bytes* of `<path>.1`.
    """
    data = _last_bytes(path, start=start)
    if data.count(b"\n") < lines and len(data) < _TAIL_BYTES and aside_bytes:
        before = _last_bytes(aside(path))
        if aside_bytes < len(before):
            before = before[-aside_bytes:]
            before = before[before.find(b"\n") + 1 :]
        data = before + data
    ended = data[-_TAIL_BYTES:].split(b"\n")
    if not ended[-1]:
        ended.pop()
    return tuple(decode(line) for line in deque(ended, maxlen=max(0, lines)))


def aside(path: Path) -> Path:
    """Return where the last part of a log goes when the log is emptied."""
    return path.with_name(path.name + ".1")


def keep_small(path: Path, *, max_bytes: int) -> int | None:
    """Return the size of the log; if it is above *max_bytes*, empty it, its last part copied aside: None.

    At most a quarter of *max_bytes* and at most 4 MiB are copied, from the first whole line on. Without
    room for the copy the log is emptied all the same: a full disk is when it matters most.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(descriptor).st_size
        if size <= max_bytes:
            return size
        kept = min(max_bytes // 4, _KEPT_BYTES, size)
        data = os.pread(descriptor, kept, size - kept)
        try:
            _put_aside(path, data[data.find(b"\n") + 1 :])
        except OSError:
            aside(path).unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)
        return None
    finally:
        os.close(descriptor)


def _put_aside(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(aside(path), flags, 0o600), "wb") as file:
        file.write(data)


def _last_bytes(path: Path, *, start: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES, start if start <= size else 0))
            return file.read(_TAIL_BYTES)
    except FileNotFoundError:
        return b""
