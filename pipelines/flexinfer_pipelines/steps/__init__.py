"""The steps of a build: plain async functions, each idempotent, over a small context. No Prefect here."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flexinfer.clock import Clock
from flexinfer.places import Home
from flexinfer.settings import Settings
from flexinfer.store import Store

STAGES = ("resolve", "fetch", "inspect", "quantize", "validate", "publish", "warm")


class Progress(Protocol):
    """Who watches a build. Called from the event loop and from threads; must not block."""

    def started(self, stage: str) -> None: ...

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        """*done* of *total* in whatever the stage counts: bytes, measurements. *total* None: not known."""
        ...

    def finished(self, stage: str, note: str = "") -> None: ...


class Unwatched:
    """A `Progress` that nobody looks at."""

    def started(self, stage: str) -> None:
        return

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        return

    def finished(self, stage: str, note: str = "") -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every step may use."""

    home: Home
    settings: Settings
    environ: Mapping[str, str]
    store: Store
    clock: Clock
    chance: random.Random
    progress: Progress

    @property
    def child_nice(self) -> int:
        """How much nicer than us a child must be, for builds to stand behind serving."""
        return max(0, self.settings.build.nice - os.getpriority(os.PRIO_PROCESS, 0))

    @property
    def scratch(self) -> Path:
        """What sources keep between tries."""
        return self.home.work / "sources"
