"""How far a build is, in a small file of the home: what `flexinfer status` shows from another terminal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flexinfer.errors import ResourceExhausted
from flexinfer.places import Home
from flexinfer.process import Record, own_record
from flexinfer_pipelines.steps import Progress

_EVERY_S = 1.0


@contextmanager
def recorded(
    target: str, home: Home, progress: Progress, *, now_s: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Give a `Progress` that tells *progress*, and the file as well, which is gone in the end.

    After a crash the file stays; its process is not alive then, and nobody believes it.
    """
    told = _Recorded(target, home, progress, now_s)
    try:
        yield told
    finally:
        told.remove()


class _Recorded:
    def __init__(
        self, target: str, home: Home, inner: Progress, now_s: Callable[[], float]
    ) -> None:
        self._target = target
        self._path = home.build_records / f"{os.getpid()}.json"
        self._inner = inner
        self._now_s = now_s
        self._written_s = -_EVERY_S
        self._guard = threading.Lock()  # steps tell from threads
        self._write(stage="")

    def started(self, stage: str) -> None:
        self._inner.started(stage)
        self._write(stage=stage)

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self._inner.moved(stage, done, total, note)
        if self._now_s() - self._written_s >= _EVERY_S:
            self._write(stage=stage, share=min(done / total, 1.0) if total else None)

    def finished(self, stage: str, note: str = "") -> None:
        self._inner.finished(stage, note)

    def remove(self) -> None:
        with self._guard, suppress(OSError):
            self._path.unlink()

    def _write(self, *, stage: str, share: float | None = None) -> None:
        extra = {"target": self._target, "stage": stage}
        if share is not None:
            extra["share"] = f"{share:.3f}"
        record: Record = own_record("build", extra=extra)
        # A full disk is the steps' to report: they name what they need.
        with self._guard, suppress(OSError, ResourceExhausted):
            self._written_s = self._now_s()
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            record.write(self._path)
