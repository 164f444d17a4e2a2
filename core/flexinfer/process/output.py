"""Where a child's words go: a file that is kept small, or a pipe that is read line by line."""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flexinfer.process import logfile
from flexinfer.process.lines import LineSplitter

_SHORTEST_LOOK_S = 0.05
_LONGEST_LOOK_S = 2.0
_PIPE_READ_BYTES = 64 * 1024
_DRAIN_READS = 64
_REMEMBERED_LINES = 200
_REMEMBERED_CHARACTERS = 4096


class Output(Protocol):
    """What a child has said."""

    start: int
    """How much of its log is of earlier starts."""

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last *lines*, oldest first."""
        ...

    def close(self) -> None:
        """Take what is still there, then let go. Twice is once."""
        ...


class FileOutput:
    """A log that the child appends to by itself. With a running loop it is kept small."""

    def __init__(self, path: Path, *, max_bytes: int, start: int = 0) -> None:
        """*start*: how long the log was when this child began."""
        self.start = start
        self._path = path
        self._max_bytes = max_bytes
        self._aside_bytes = 0
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def keep_small(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the size from now on, more often while the log grows fast."""
        self._look(loop, _SHORTEST_LOOK_S)

    def tail(self, lines: int) -> tuple[str, ...]:
        return logfile.tail(self._path, lines, start=self.start, aside_bytes=self._aside_bytes)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop, elapsed_s: float) -> None:
        try:
            size = logfile.keep_small(self._path, max_bytes=self._max_bytes)
        except (
            OSError
        ):  # a disk that is full or read-only now: the log is bounded again once it is not
            self._timer = loop.call_later(_LONGEST_LOOK_S, self._look, loop, _LONGEST_LOOK_S)
            return
        if size is None:
            # So many at least of the bytes that are aside now are its own.
            self._aside_bytes = max(0, self._max_bytes + 1 - self.start)
            self.start = size = 0
        grown = max(0, size - self._size)
        self._size = size
        delay_s = next_look_s(self._max_bytes - size, grown=grown, elapsed_s=elapsed_s)
        self._timer = loop.call_later(delay_s, self._look, loop, delay_s)


def next_look_s(room: int, *, grown: int, elapsed_s: float) -> float:
    """Return how soon to look at a log again that grew by *grown* bytes and has *room* left.

    Half the time after which it would be full, at most twice as long as the last time, within 50 ms and 2 s.
    """
    full_in_s = max(0, room) * elapsed_s / grown if grown > 0 else math.inf
    return max(min(full_in_s / 2, elapsed_s * 2, _LONGEST_LOOK_S), _SHORTEST_LOOK_S)


class PipeOutput:
    """A pipe read in the event loop; the last lines are remembered, each is told to `on_line`."""

    def __init__(
        self,
        descriptor: int,
        loop: asyncio.AbstractEventLoop,
        on_line: Callable[[str], None] | None,
    ) -> None:
        """Own *descriptor*, the reading end, from now on."""
        self.start = 0
        self._descriptor: int | None = descriptor
        self._loop = loop
        self._on_line = on_line
        self._splitter = LineSplitter()
        self._remembered: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self._read)

    def tail(self, lines: int) -> tuple[str, ...]:
        return tuple(self._remembered)[-lines:] if lines > 0 else ()

    def close(self) -> None:
        # Bounded: a process that left the group may hold the other end and go on writing.
        for _ in range(_DRAIN_READS):
            if not self._read():
                break
        self._let_go()

    def _read(self) -> bool:
        """Take what is there, and return whether there may be more."""
        if self._descriptor is None:
            return False
        try:
            data = os.read(self._descriptor, _PIPE_READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._let_go()
            return False
        self._tell(self._splitter.feed(data))
        return True

    def _let_go(self) -> None:
        if self._descriptor is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        self._tell(self._splitter.finish())

    def _tell(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            self._remembered.append(line[:_REMEMBERED_CHARACTERS])
            if self._on_line is None:
                continue
            try:
                self._on_line(line)
            except Exception as error:
                # A listener's bug must not make the child block on a full pipe: it is told to the loop's
                # handler, as for any callback, and the reading goes on.
                context = {"message": "on_line raised", "exception": error}
                self._loop.call_exception_handler(context)
