"""What routers were told last, and since which generation each replica is known to be draining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flexinfer.fleet import FleetModel, FleetSnapshot


class Publication:
    """The newest fleet. Generations increase over restarts: they begin at the wall clock's milliseconds."""

    def __init__(self, *, first_generation: int) -> None:
        self._snapshot = FleetSnapshot(generation=first_generation)
        self._at_s = 0.0
        self._draining: dict[str, int] = {}
        self._has_published = False

    def publish(self, fleet: Sequence[FleetModel], *, now_s: float) -> FleetSnapshot | None:
        """Return the snapshot to send, under a new generation; None where nothing differs from the last one."""
        models = tuple(fleet)
        last = self._snapshot
        if self._has_published and _timeless(models) == _timeless(last.models):
            return None
        self._has_published = True
        self._snapshot = FleetSnapshot(generation=last.generation + 1, models=models)
        self._at_s = now_s
        draining = {r.id for m in models for r in m.replicas if r.phase == "draining"}
        self._draining = {
            replica: self._draining.get(replica, self._snapshot.generation) for replica in draining
        }
        return self._snapshot

    def current(self, *, now_s: float) -> FleetSnapshot | None:
        """Return what a router that comes now is told; None before the first publication."""
        if not self._has_published:
            return None
        age_s = max(0.0, now_s - self._at_s)
        return replace(
            self._snapshot, models=tuple(_aged(model, age_s) for model in self._snapshot.models)
        )

    @property
    def generation(self) -> int:
        return self._snapshot.generation

    def draining_generation(self, replica: str) -> int | None:
        """Return the first generation that called *replica* draining without a break; None: not published."""
        return self._draining.get(replica)


def _timeless(models: tuple[FleetModel, ...]) -> tuple[FleetModel, ...]:
    """Return *models* without the numbers that change only because time goes on."""
    return tuple(
        model
        if model.failure is None or model.failure.retry_after_s is None
        else replace(model, failure=replace(model.failure, retry_after_s=0.0))
        for model in models
    )


def _aged(model: FleetModel, age_s: float) -> FleetModel:
    failure = model.failure
    if failure is None or failure.retry_after_s is None:
        return model
    left_s = max(0.0, failure.retry_after_s - age_s)
    return replace(model, failure=replace(failure, retry_after_s=left_s))
