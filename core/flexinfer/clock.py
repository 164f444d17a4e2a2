"""Time as an argument: what a shell passes to whatever must know how late it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one to measure with, one to show."""

    def now_s(self) -> float:
        """Return monotonic seconds. Only differences mean anything."""
        ...

    def unix_s(self) -> float:
        """Return seconds since the Unix epoch. It may jump; never measure with it."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()
