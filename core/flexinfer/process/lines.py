"""Bytes to lines, in bounded memory, however the bytes arrive."""

from __future__ import annotations

MAX_LINE_BYTES = 64 * 1024


class LineSplitter:
    """Cut a stream into lines: fed pieces of any size, the lines are the same.

    A line ends with a newline. Of a line that was rewritten with carriage returns, as progress bars do,
    the last state counts. What a line has beyond `max_line_bytes` is dropped. Bytes that are not UTF-8
    become U+FFFD.
    """

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> tuple[str, ...]:
        """Return the lines that *data* completes."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._add(piece)
            lines.append(self._take())
        self._add(rest)
        return tuple(lines)

    def finish(self) -> tuple[str, ...]:
        """Return the last line if the stream ended without a newline."""
        return (self._take(),) if self._pending else ()

    def _add(self, piece: bytes) -> None:
        self._pending += piece[: self._max_line_bytes - len(self._pending)]

    def _take(self) -> str:
        line = bytes(self._pending)
        self._pending.clear()
        return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


def decode(line: bytes) -> str:
    """Return *line*, which has no newline, as `LineSplitter` would."""
    return line[:MAX_LINE_BYTES].rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
