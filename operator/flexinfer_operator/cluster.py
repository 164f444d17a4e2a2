"""The seam between the loop and a world: one protocol, for processes on a machine and for pods.

An implementation keeps a picture of the world and says when it changed; it decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from flexinfer.fleet import FleetModel
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.plan.action import Action
from flexinfer_operator.plan.view import Snapshot


class Cluster(Protocol):
    def observe(self) -> Snapshot:
        """Return the newest picture. Cheap: nothing is asked of anyone."""
        ...

    def watch(self) -> AsyncIterator[Snapshot]:
        """Yield the newest picture now and after every change, as soon as it happens.

        Pictures in between may be left out; the last one never is. Revisions increase.
        """
        ...

    async def apply(self, action: Action, *, observed: int) -> None:
        """Get *action* under way; return without waiting for what it leads to. Twice is once.

        *observed* is the revision that it was planned on.

        Raises:
            Conflict: what the action is about changed after *observed*: look and plan again.
        """
        ...

    async def publish(self, fleet: Sequence[FleetModel]) -> None:
        """Tell every router; under a new generation where it differs from what they were told last."""
        ...

    async def record(self, statuses: Mapping[str, ModelStatus]) -> None:
        """Make statuses visible. Those that are as they were cost nothing."""
        ...
