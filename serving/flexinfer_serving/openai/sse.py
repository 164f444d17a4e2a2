"""Server-sent events: cut a stream at event boundaries without changing a byte, and write our own events.

Bytes leave `Framer` only when the event that they belong to is complete. So when an engine breaks off in the
middle of one, a client never sees half of it, and what we add stands on its own.
"""

from __future__ import annotations

import re

from flexinfer.errors import IntegrityError
from flexinfer_serving.openai.errors import Answer

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 1024 * 1024

# A blank line: two line ends of any kind. Atomic, so that CR LF is never read as two.
_BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\] *(?=[\r\n])")
_ERROR = re.compile(rb"(?:\A|[\r\n])(?:event: ?error[\r\n]|data: ?\{\s*\"error\"\s*:)")


class Framer:
    """Bytes of an engine's stream in, whole events out."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._tail = b""
        self._max = max_event_bytes
        self.is_done = False
        """`[DONE]` has passed."""
        self.has_failed = False
        """The engine itself has sent an error event."""

    def feed(self, data: bytes) -> bytes:
        """Return the complete events up to now, exactly as they came.

        Raises:
            IntegrityError: code `upstream_invalid`: an event is larger than the limit.
        """
        buffer = self._tail + data if self._tail else data
        cut = _cut(buffer, len(self._tail))
        self._tail = buffer[cut:]
        if len(self._tail) > self._max:
            raise IntegrityError(
                f"the engine sent an event of more than {self._max} bytes", code="upstream_invalid"
            )
        events = buffer[:cut]
        if b"[DONE]" in events and _DONE.search(events):
            self.is_done = True
        if b"error" in events and _ERROR.search(events):
            self.has_failed = True
        return events

    def rest(self) -> bytes:
        """Return what is left at a clean end: line ends, or comments, never a part of an event with data."""
        tail, self._tail = self._tail, b""
        is_harmless = all(not line or line.startswith(b":") for line in re.split(rb"[\r\n]", tail))
        return tail if is_harmless else b""


def comment(text: str) -> bytes:
    """Return a comment, which every reader of events skips."""
    return b": " + re.sub(r"[\r\n]+", " ", text).encode() + b"\n\n"


def error_event(answer: Answer) -> bytes:
    """Return the event that ends a failed stream. No `[DONE]` follows it."""
    return b"data: " + answer.body() + b"\n\n"


def _cut(buffer: bytes, old: int) -> int:
    """Return where the last complete event ends; *old* bytes were searched before."""
    if buffer.endswith(b"\n\n"):
        return len(buffer)
    end = 0
    for match in _BOUNDARY.finditer(buffer, max(0, old - 3)):
        end = match.end()
    return end
