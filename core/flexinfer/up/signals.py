"""How `up` is told to end: by the user, by the system, by a terminal that closes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """While it lasts, the first signal asks to stop and the second kills."""

    def __init__(self, stop: asyncio.Event, kill: Callable[[], None]) -> None:
        self._stop = stop
        self._kill = kill

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _NUMBERS:
            loop.add_signal_handler(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in _NUMBERS:
            loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._kill()
        self._stop.set()
