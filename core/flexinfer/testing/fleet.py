"""A fleet on a script: publish snapshots, and look at the leases that came back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from flexinfer.fleet import DemandLease, FleetModel, FleetReplica, FleetSnapshot

ENDPOINTS = ("chat/completions", "completions", "embeddings")


def model(name: str = "m", *, replicas: tuple[FleetReplica, ...] = (), **more: Any) -> FleetModel:
    """Return a Model with one slot per replica unless *more* says otherwise."""
    plain: dict[str, Any] = {
        "backend": "plain",
        "endpoints": ENDPOINTS,
        "context_tokens": 4096,
        "slots": 1,
        **more,
    }
    return FleetModel(name=name, replicas=replicas, **plain)


def replica(name: str, url: str = "http://127.0.0.1:9", *, phase: Any = "ready") -> FleetReplica:
    return FleetReplica(id=name, url=url, phase=phase, key=f"key-of-{name}")


class ScriptedFleet:
    """A source, and a sink that keeps every lease."""

    def __init__(self, *models: FleetModel) -> None:
        self.snapshot = FleetSnapshot(generation=1, models=models)
        self.leases: list[DemandLease] = []
        self.leased = asyncio.Event()
        """Set at each lease; clear it to wait for the next one."""
        self._listener: Any = None

    async def run(self, listener: Any) -> None:
        self._listener = listener
        listener.connected(True)
        listener.applied(self.snapshot)
        await asyncio.Event().wait()

    def renew(self, lease: DemandLease) -> None:
        self.leases.append(lease)
        self.leased.set()

    def publish(self, *models: FleetModel) -> None:
        """Publish the whole fleet anew, one generation later."""
        self.snapshot = replace(
            self.snapshot, generation=self.snapshot.generation + 1, models=models
        )
        self._listener.applied(self.snapshot)

    def reconnect(self) -> None:
        self._listener.connected(False)
        self._listener.connected(True)
