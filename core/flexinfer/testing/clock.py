"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """Both clocks start at *start_s* and move only when told. See `flexinfer.clock.Clock`."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = start_s
        self._unix_offset_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def unix_s(self) -> float:
        return self._now_s + self._unix_offset_s

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass on both clocks."""
        self._now_s += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as an administrator or NTP does."""
        self._unix_offset_s += seconds
