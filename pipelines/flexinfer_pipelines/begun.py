"""A column of rich's progress that is empty for what has not begun: nothing spins that does not run."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task
from rich.text import Text


class Begun(ProgressColumn):
    """Shows *inner* of a task that has begun, of another one *otherwise*, formatted with its `task`."""

    def __init__(self, inner: ProgressColumn, otherwise: str = "") -> None:
        self._inner = inner
        self._otherwise = otherwise
        super().__init__(table_column=inner.get_table_column().copy())

    def render(self, task: Task) -> Text:
        """Return what the column shows of *task*."""
        if task.started:
            return self._inner(task)  # type: ignore[return-value]  # any renderable does
        return Text(self._otherwise.format(task=task), style="dim")
