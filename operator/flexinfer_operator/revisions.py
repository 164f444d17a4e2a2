"""The numbers of a cluster's pictures: which is the newest, and at which one each Model changed last."""

from __future__ import annotations

import asyncio

from flexinfer.errors import Conflict


class Revisions:
    """Increasing, from 1. For one event loop."""

    def __init__(self) -> None:
        self.newest = 1
        self._changed: dict[str, int] = {}
        self._wake = asyncio.Event()

    def bump(self) -> None:
        """Something changed that no action about a Model can be in conflict with."""
        self.newest += 1
        self._wake.set()

    def touch(self, model: str) -> None:
        """A Model changed: an action that was planned before this is out of date."""
        self.bump()
        self._changed[model] = self.newest

    def forget(self, model: str) -> None:
        self._changed.pop(model, None)

    def check(self, model: str, *, observed: int) -> None:
        """Do nothing where *model* is as it was at *observed*.

        Raises:
            Conflict: it changed since.
        """
        changed = self._changed.get(model, 0)
        if changed > observed:
            raise Conflict(f"Model {model} changed at revision {changed}, after {observed}")

    async def newer_than(self, seen: int) -> None:
        """Return when there is a newer revision than *seen*."""
        while self.newest == seen:
            self._wake.clear()
            await self._wake.wait()
