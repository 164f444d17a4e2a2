"""The ledger as the event loop sees it: what is known is in memory, what is written waits for one thread.

Writes of one Model's state replace one another while they wait, so the queue is as long as there are Models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexinfer.clock import Clock
from flexinfer.resources.model import Condition
from flexinfer_operator.local.ledger import ColdStartRecord, KnownModel, Ledger, machine_name
from flexinfer_operator.plan.status import instant
from flexinfer_operator.plan.view import ColdStarts


class Desk:
    """See the module. For one event loop."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None
        self._models: dict[str, KnownModel] = {}
        self._estimates: dict[str, ColdStarts] = {}
        self._waiting: dict[str, KnownModel | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read what is remembered. Raises as `Ledger`."""
        loop = asyncio.get_running_loop()
        ledger = await loop.run_in_executor(
            self._thread, lambda: Ledger(self._path, machine=machine_name())
        )
        self._ledger = ledger
        self._models = await loop.run_in_executor(self._thread, ledger.models)
        self._estimates = await loop.run_in_executor(self._thread, ledger.estimates)

    async def close(self) -> None:
        """Write what waits, and close the database."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ledger is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._ledger.close)
            self._ledger = None
        self._thread.shutdown(wait=True)

    def known(self, name: str) -> KnownModel | None:
        return self._models.get(name)

    def estimate(self, digest: str) -> ColdStarts | None:
        """Return what starts of *digest* took here; None: there was none."""
        return self._estimates.get(digest)

    def save(self, name: str, known: KnownModel) -> None:
        self._models[name] = known
        self._write(name, known)

    def forget(self, name: str) -> None:
        self._models.pop(name, None)
        self._write(name, None)

    def stopped(self, name: str) -> None:
        """Let the status say that nothing runs: the operator has ended its engines."""
        known = self._models.get(name)
        if known is None or known.status is None or known.status.phase not in ("Ready", "Loading"):
            return
        stamp = instant(self._clock.unix_s())
        conditions = tuple(
            Condition(
                type=one.type,
                status="False",
                reason="OperatorStopped",
                last_transition_time=stamp,
            )
            if one.type in ("Loaded", "Ready")
            else one
            for one in known.status.conditions
        )
        status = known.status.model_copy(
            update={
                "phase": "Idle",
                "replicas": 0,
                "conditions": conditions,
                "loading_substage": "",
                "loading_progress_at": "",
            }
        )
        self.save(name, replace(known, status=status))

    def add(self, start: ColdStartRecord, *, then: Callable[[str], None]) -> None:
        """Remember one start; *then* is told its digest when the estimate is new."""
        self._run(self._measured(start.digest, lambda ledger: ledger.add(start), then))

    def first_token(
        self, replica: str, digest: str, seconds: float, *, then: Callable[[str], None]
    ) -> None:
        """Add to the start of *replica* what a router measured; *then* is told as in `add`."""
        self._run(
            self._measured(
                digest, lambda ledger: ledger.first_token(replica, digest, seconds), then
            )
        )

    async def _measured(
        self,
        digest: str,
        write: Callable[[Ledger], ColdStarts],
        then: Callable[[str], None],
    ) -> None:
        if self._ledger is not None:
            loop = asyncio.get_running_loop()
            estimate = await loop.run_in_executor(self._thread, write, self._ledger)
            self._estimates[digest] = estimate
            then(digest)

    def _write(self, name: str, known: KnownModel | None) -> None:
        is_under_way = bool(self._waiting)
        self._waiting[name] = known
        if not is_under_way:
            self._run(self._written())

    async def _written(self) -> None:
        while self._waiting and self._ledger is not None:
            # What comes while these are written waits for the next round.
            batch = dict(self._waiting)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._ledger.save_all, batch)
            for name, known in batch.items():
                if self._waiting.get(name) is known:
                    del self._waiting[name]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
