"""The control loop: picture → plan → actions, over and over, and never waiting for an engine.

One Model's trouble is its own: an action that fails is logged and held back for a while, the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flexinfer.clock import Clock
from flexinfer.errors import Conflict, FlexInferError
from flexinfer.log import get_logger
from flexinfer_operator.cluster import Cluster
from flexinfer_operator.plan.action import Action
from flexinfer_operator.plan.lifecycle import plan
from flexinfer_operator.plan.view import Snapshot

log = get_logger(__name__)

# How long a Model's actions rest after one of them failed: doubled each time, up to the second.
_HOLD_S = 0.5
_HOLD_CAP_S = 30.0
# After a conflict the next picture is planned at once; should conflicts go on, they are given time.
_CONFLICT_S = 0.01
_CONFLICT_CAP_S = 1.0
_AFTER_BREAK_S = 1.0


class Reconciler:
    """Keeps *cluster* as its Models want it, until `run` is cancelled."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock
        self._held: dict[str, tuple[float, int]] = {}
        self._conflicts = 0
        self._why: dict[str, str] = {}

    async def run(self) -> None:
        pictures = self._cluster.watch()
        coming: asyncio.Future[Snapshot] | None = None
        try:
            again_s: float | None = 0.0
            while True:
                if coming is None:
                    coming = asyncio.ensure_future(_next(pictures))
                done, _ = await asyncio.wait({coming}, timeout=again_s)
                if done:
                    picture = coming.result()
                    coming = None
                else:
                    picture = self._cluster.observe()
                again_s = await self._turned(picture)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            closing = getattr(pictures, "aclose", None)
            if closing is not None:
                await closing()

    async def _turned(self, picture: Snapshot) -> float | None:
        """Take a turn; one that breaks is logged, and tried again from a newer picture."""
        try:
            return await self.turn(picture)
        except Exception as error:
            log.error("turn_failed", exc_info=error)
            return _AFTER_BREAK_S

    async def turn(self, snapshot: Snapshot) -> float | None:
        """Plan once and do what the plan says; return in how many seconds to look again, None: on a change."""
        now_s = self._clock.now_s()
        made = plan(snapshot, now_s)
        waits = [] if made.again_after_s is None else [made.again_after_s]
        has_conflict = False
        for action in made.actions:
            held_s = self._held.get(action.model, (0.0, 0))[0] - now_s
            if held_s > 0:
                waits.append(held_s)
                continue
            try:
                await self._cluster.apply(action, observed=snapshot.revision)
            except Conflict as error:
                has_conflict = True
                log.debug("action_conflicted", model=action.model, error=error.message)
            except Exception as error:
                waits.append(self._hold(action, error, now_s))
            else:
                self._held.pop(action.model, None)
        self._conflicts = self._conflicts + 1 if has_conflict else 0
        if has_conflict:
            waits.append(min(_CONFLICT_S * 2.0 ** min(self._conflicts, 16), _CONFLICT_CAP_S))
        await self._cluster.publish(made.fleet)
        await self._cluster.record(made.statuses)
        self._why = dict(made.why)
        return min(waits, default=None)

    def _hold(self, action: Action, error: Exception, now_s: float) -> float:
        times = self._held.get(action.model, (0.0, 0))[1]
        hold_s = min(_HOLD_S * 2.0 ** min(times, 16), _HOLD_CAP_S)
        self._held[action.model] = (now_s + hold_s, times + 1)
        fields = {"model": action.model, "action": type(action).__name__, "held_s": hold_s}
        if isinstance(error, FlexInferError):
            log.warning("action_failed", **fields, code=error.code, error=error.message)
        else:
            log.error("action_failed", **fields, exc_info=error)
        return hold_s

    @property
    def why(self) -> dict[str, str]:
        """Return one sentence for each Model: what decided in the last turn."""
        return dict(self._why)


async def _next(pictures: AsyncIterator[Snapshot]) -> Snapshot:
    return await anext(pictures)
