"""A forward reader over a file's header that knows where the bytes end.

Nothing is allocated for a length that the file claims before that length was compared with the
bytes that are there. At most one chunk is held.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NoReturn

from flexinfer.errors import InvalidInput

_CHUNK_BYTES = 256 * 1024
_U64 = struct.Struct("<Q")


def shown(name: str) -> str:
    """Return *name* as errors show it: quoted, ASCII only, cut at 80 characters."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


class Cursor:
    """Reads `[0, end)` of *stream*; *code* and *name* go into the errors that it raises."""

    def __init__(self, stream: BinaryIO, *, end: int, name: str, code: str) -> None:
        self._stream = stream
        self._end = end
        self._name = name
        self._code = code
        self._base = 0  # where the buffer begins in the file
        self._buffer = b""
        self._position = 0  # of the next byte, within the buffer

    @property
    def offset(self) -> int:
        return self._base + self._position

    @property
    def remaining(self) -> int:
        return self._end - self.offset

    def fail(self, problem: str) -> NoReturn:
        raise InvalidInput(f"{self._name}: {problem}", code=self._code)

    def need(self, size: int, what: str) -> None:
        """Refuse unless *size* more bytes are there."""
        if size > self.remaining:
            self.fail(f"{what} needs {size} bytes at offset {self.offset}, {self.remaining} remain")

    def take(self, size: int, what: str) -> bytes:
        """Return the next *size* bytes; the caller has bounded *size*."""
        self.need(size, what)
        if self._position + size > len(self._buffer):
            self._fill(self.offset, max(size, _CHUNK_BYTES))
            if size > len(self._buffer):
                self.fail(f"{what}: the file ended at {self._base + len(self._buffer)} while read")
        start = self._position
        self._position = start + size
        return self._buffer[start : start + size]

    def text(self, size: int, what: str) -> str:
        """Return the next *size* bytes, which must be UTF-8; the caller has bounded *size*."""
        try:
            return self.take(size, what).decode()
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8 at byte {error.start}")

    def unpack(self, layout: struct.Struct, what: str) -> int:
        """Return the one integer that *layout* describes."""
        number: int = layout.unpack(self.take(layout.size, what))[0]
        return number

    def u64(self, what: str) -> int:
        return self.unpack(_U64, what)

    def skip(self, size: int, what: str) -> None:
        self.need(size, what)
        self._position += size  # past the buffer's end is fine: the next read fills from there

    def skip_strings(self, count: int, what: str, *, max_bytes: int) -> None:
        """Pass *count* strings, each a 64-bit length and that many bytes."""
        read = _U64.unpack_from
        done = 0
        while done < count:
            if self._position + _U64.size > len(self._buffer):
                self.need(_U64.size, f"{what} element {done}")
                self._fill(self.offset, _CHUNK_BYTES)
                if len(self._buffer) < _U64.size:
                    self.fail(f"{what} element {done}: the file ended while it was read")
            buffer, position = self._buffer, self._position
            last = len(buffer) - _U64.size
            length = 0
            while done < count and position <= last:
                length = read(buffer, position)[0]
                position += _U64.size + length
                done += 1
            if position > len(buffer):  # the last string goes on past the buffer
                start = self._base + position - length
                if length > max_bytes or start + length > self._end:
                    self.fail(
                        f"{what} element {done - 1} claims {length} bytes,"
                        f" {self._end - start} remain and {max_bytes} are allowed"
                    )
            self._position = position

    def _fill(self, offset: int, size: int) -> None:
        self._stream.seek(offset)
        wanted = min(size, self._end - offset)
        parts = []
        while wanted > 0:
            part = self._stream.read(wanted)
            if not part:
                break
            parts.append(part)
            wanted -= len(part)
        self._buffer = b"".join(parts)
        self._base = offset
        self._position = 0
