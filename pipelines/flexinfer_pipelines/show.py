"""A build on the terminal: bars where there is one, plain lines where there is not, nothing where it shall be quiet."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from flexinfer.printable import escaped
from flexinfer.units import format_bytes, format_duration
from flexinfer_pipelines.steps import STAGES, Progress, Unwatched

if TYPE_CHECKING:
    from rich.console import Console

_NOT_NEEDED = "not needed"
_WIDE = 100
_BYTES = frozenset({"fetch", "quantize", "publish"})


def progress_for(*, quiet: bool) -> tuple[Progress, AbstractContextManager[Any]]:
    """Return who watches a build, and what must be entered while it does."""
    if quiet:
        return Unwatched(), nullcontext()
    if sys.stderr.isatty():
        bars = Bars()
        return bars, bars.display
    return Lines(), nullcontext()


class Lines:
    """One line when a stage ends, to standard error."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._last: dict[str, str] = {}
        self._note = ""
        self._order = _Order()

    def started(self, stage: str) -> None:
        for skipped in self._order.skipped_by(stage):
            self._say(f"{skipped:<9}  –  {_NOT_NEEDED}")
        self._since[stage] = time.monotonic()

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        if stage in self._since:
            self._last[stage] = _amount(stage, done)
        elif note and note != self._note:
            self._note = note
            self._say(note)

    def finished(self, stage: str, note: str = "") -> None:
        spent = format_duration(time.monotonic() - self._since.get(stage, time.monotonic()))
        parts = (f"{stage:<9}", spent, self._last.get(stage, ""), note)
        self._say("  ".join(part for part in parts if part))

    def _say(self, line: str) -> None:
        print(escaped(line), file=sys.stderr, flush=True)


class Bars:
    """A bar for each stage, drawn by rich in its own thread."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from flexinfer_pipelines.begun import Begun

        console = console or Console(stderr=True)
        wide = console.width >= _WIDE
        self.display = Progress(
            Begun(SpinnerColumn(finished_text="✓")),
            TextColumn("{task.description:<9}"),
            Begun(BarColumn(bar_width=30 if wide else 12), otherwise="{task.fields[skipped]}"),
            Begun(TextColumn("{task.percentage:>4.0f}%")),
            TextColumn("{task.fields[amount]:>20}"),
            Begun(TimeElapsedColumn()),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            refresh_per_second=8,
        )
        self._tasks = {
            stage: self.display.add_task(
                stage, total=None, start=False, amount="", note="", skipped=""
            )
            for stage in STAGES
        }
        self._order = _Order()

    def started(self, stage: str) -> None:
        for skipped in self._order.skipped_by(stage):
            self.display.update(self._tasks[skipped], skipped=f"–  {_NOT_NEEDED}")
        self.display.start_task(self._tasks[stage])

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        amount = _amount(stage, done, total)
        self.display.update(
            self._tasks[stage], completed=done, total=total, amount=amount, note=note[:40]
        )

    def finished(self, stage: str, note: str = "") -> None:
        self.display.update(self._tasks[stage], completed=1, total=1, note=note)


class _Order:
    """Which stages a build passes over."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def skipped_by(self, stage: str) -> tuple[str, ...]:
        """Return the stages before *stage*, which begins, that have not begun and never will; each once."""
        passed = STAGES[: STAGES.index(stage) + 1] if stage in STAGES else ()
        skipped = tuple(one for one in passed if one not in self._seen and one != stage)
        self._seen.update(passed)
        return skipped


def _amount(stage: str, done: float, total: float | None = None) -> str:
    if stage in _BYTES:
        of = f" of {format_bytes(int(total))}" if total else ""
        return f"{format_bytes(int(done))}{of}" if done else ""
    return f"{int(done)} of {int(total)}" if total else ""
