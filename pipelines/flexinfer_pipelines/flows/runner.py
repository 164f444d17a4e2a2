"""Prefect's runner, ended as everything of ours is: by the end of the task that it runs in."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.runner import Runner as PrefectRunner


class Runner(PrefectRunner):
    """Starts the deployment's runs until its task is cancelled, or SIGTERM comes.

    Schedules that a person made stay as they are while it is away.
    """

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit=limit, pause_on_shutdown=False)
        self._task: asyncio.Task[Any] | None = None

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """Run until told to stop."""
        self._task = asyncio.current_task()
        await super().start(run_once, webserver)

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        """Cancel the task. Prefect's own raises SystemExit within the loop and leaves its `stop` unawaited."""
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
