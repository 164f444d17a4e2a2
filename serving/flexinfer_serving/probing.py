"""Ask replicas that failed us until they answer again: one task each, with growing pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer.log import get_logger

log = get_logger(__name__)

Probe = Callable[[FleetModel, FleetReplica], Coroutine[None, None, bool]]

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Prober:
    """The suspected replicas of one Model."""

    def __init__(
        self,
        probe: Probe,
        *,
        current: Callable[[], FleetModel],
        trusted: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._current = current
        self._trusted = trusted
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, FleetReplica] = {}

    def start(self, replica: FleetReplica) -> None:
        """Ask *replica* until it answers or is another one. Nothing happens if it is being asked already."""
        if replica.id in self._tasks or not self._is_same(replica):
            return
        log.warning("replica_suspected", model=self._current().name, replica=replica.id)
        task = asyncio.get_running_loop().create_task(self._ask(replica))
        self._tasks[replica.id] = task
        self._asked[replica.id] = replica
        task.add_done_callback(lambda ended: self._forget(replica.id, ended))

    @property
    def suspects(self) -> tuple[str, ...]:
        """Return the ids of the replicas that are asked, and have not answered yet."""
        return tuple(sorted(name for name, one in self._asked.items() if self._is_same(one)))

    def stop(self) -> None:
        for task in tuple(self._tasks.values()):
            task.cancel()

    async def _ask(self, replica: FleetReplica) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            if not self._is_same(replica):
                return
            if await self._probe(self._current(), replica):
                break
        log.info("replica_trusted", model=self._current().name, replica=replica.id)
        # Before it is told: it is no suspect any more.
        self._tasks.pop(replica.id, None)
        self._asked.pop(replica.id, None)
        self._trusted(replica.id)

    def _forget(self, replica: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(replica) is task:
            del self._tasks[replica], self._asked[replica]

    def _is_same(self, replica: FleetReplica) -> bool:
        return any(
            one.id == replica.id and one.url == replica.url for one in self._current().replicas
        )
