"""The replicas of one Model as its gate counts them: which may be used, what each has in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer_serving.routing import Candidate


@dataclass(slots=True)
class _Replica:
    url: str
    phase: str
    is_suspect: bool = False
    in_flight: int = 0
    last_picked: int = 0

    @property
    def is_usable(self) -> bool:
        return self.phase == "ready" and not self.is_suspect


class Pool:
    """Usable is a replica that is ready and not suspected. One that vanished stays until its requests end."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._picks = 0
        self._slots = 1

    @property
    def usable(self) -> int:
        return sum(replica.is_usable for replica in self._replicas.values())

    @property
    def capacity(self) -> int:
        return self.usable * self._slots

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Return requests at each replica that has any, draining and vanished ones included."""
        return {name: r.in_flight for name, r in self._replicas.items() if r.in_flight}

    def adopt(self, model: FleetModel) -> None:
        """Take the replicas as a new snapshot shows them."""
        self._slots = model.slots
        seen = {replica.id: replica for replica in model.replicas}
        for name, old in tuple(self._replicas.items()):
            if name not in seen:
                old.phase = "gone"
                if not old.in_flight:
                    del self._replicas[name]
        for name, replica in seen.items():
            self._adopt_replica(name, replica)

    def candidates(self) -> list[Candidate]:
        """Return the usable replicas with room."""
        return [
            Candidate(
                replica=name, in_flight=r.in_flight, slots=self._slots, last_picked=r.last_picked
            )
            for name, r in self._replicas.items()
            if r.is_usable and r.in_flight < self._slots
        ]

    def take(self, name: str) -> None:
        """Count one request in flight at *name*."""
        self._picks += 1
        replica = self._replicas[name]
        replica.in_flight += 1
        replica.last_picked = self._picks

    def land(self, name: str) -> None:
        """Count one request out."""
        replica = self._replicas[name]
        replica.in_flight -= 1
        if replica.phase == "gone" and not replica.in_flight:
            del self._replicas[name]

    def suspect(self, name: str) -> None:
        if name in self._replicas:
            self._replicas[name].is_suspect = True

    def trust(self, name: str) -> None:
        if name in self._replicas:
            self._replicas[name].is_suspect = False

    def _adopt_replica(self, name: str, replica: FleetReplica) -> None:
        known = self._replicas.setdefault(name, _Replica(url=replica.url, phase="loading"))
        if known.url != replica.url or (known.phase != "ready" and replica.phase == "ready"):
            known.is_suspect = False  # another process, or the operator has just seen it answer
        known.url = replica.url
        known.phase = replica.phase
