"""What routers said last, and until when it holds. No socket and no clock: callers say what time it is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from flexinfer.fleet import DemandLease
from flexinfer_operator.plan.view import LeaseView, RouterView

# More than any fleet has. With what is kept of names beside them, it bounds what a router that invents names can fill.
MAX_LEASES = 10_000
# A lease may not outlive its router for longer than this, whatever it asks for; `operator.lease_ttl_s` ends there too.
MAX_TTL_S = 120.0


@dataclass(slots=True, kw_only=True)
class _Connection:
    generation: int = 0
    models: set[tuple[str, str]] = field(default_factory=set)
    name: str = ""


class LeaseBook:
    """Leases by router and Model, the routers that are connected, and when each Model and replica was last used.

    models, replicas: those that exist, whenever they are asked. A lease may name others, which a router knew a moment
    ago or invents: nothing outlives it then.
    """

    def __init__(
        self,
        *,
        models: Container[str],
        replicas: Container[str],
        max_ttl_s: float = MAX_TTL_S,
    ) -> None:
        self._models, self._replicas = models, replicas
        self._max_ttl_s = max_ttl_s
        self._leases: dict[tuple[str, str], LeaseView] = {}
        self._connections: dict[int, _Connection] = {}
        self._model_active_s: dict[str, float] = {}
        self._replica_active_s: dict[str, float] = {}

    def connected(self, connection: int) -> None:
        """Count a router that has said nothing yet."""
        self._connections[connection] = _Connection()

    def disconnected(self, connection: int, *, now_s: float, grace_s: float) -> tuple[str, ...]:
        """Let its leases end after *grace_s*, unless it comes back; return their Models."""
        gone = self._connections.pop(connection, None)
        if gone is None:
            return ()
        elsewhere = {key for other in self._connections.values() for key in other.models}
        for key in gone.models - elsewhere:
            view = self._leases.get(key)
            if view is not None:
                self._leases[key] = replace(view, expires_s=min(view.expires_s, now_s + grace_s))
        return tuple(model for _, model in gone.models)

    def take(self, connection: int, lease: DemandLease, *, now_s: float) -> bool:
        """Note *lease*; return whether it says anything new (beyond that time went on)."""
        key = (lease.router, lease.model)
        before = self._leases.get(key)
        if before is None and len(self._leases) >= MAX_LEASES:
            return False
        ttl_s = min(max(lease.ttl_s, 0.0), self._max_ttl_s)
        self._leases[key] = LeaseView(lease=lease, arrived_s=now_s, expires_s=now_s + ttl_s)
        self._note_activity(self._leases[key], now_s)
        here = self._connections.setdefault(connection, _Connection())
        is_newer = lease.generation > here.generation
        here.generation = max(here.generation, lease.generation)
        here.name = lease.router
        here.models.add(key)
        return before is None or is_newer or _says(before.lease) != _says(lease)

    def expire(self, now_s: float) -> tuple[str, ...]:
        """Drop what has ended; return the Models whose demand changed by it."""
        ended = [key for key, view in self._leases.items() if view.expires_s <= now_s]
        for key in ended:
            view = self._leases.pop(key)
            if view.lease.is_busy:
                self._note_model(view.lease.model, view.expires_s)
        for connection in self._connections.values() if ended else ():
            connection.models.difference_update(ended)
        return tuple({model for _, model in ended})

    def leases(self) -> tuple[LeaseView, ...]:
        return tuple(self._leases.values())

    def routers(self) -> tuple[RouterView, ...]:
        return tuple(
            RouterView(name=one.name, generation=one.generation)
            for one in self._connections.values()
        )

    def model_active_s(self, model: str) -> float | None:
        """Return when a request for *model* was last known to be there; None: never."""
        return self._model_active_s.get(model)

    def replica_active_s(self, replica: str) -> float | None:
        """Return when a request was last known to be in flight at *replica*; None: never."""
        return self._replica_active_s.get(replica)

    def forget_replica(self, replica: str) -> None:
        self._replica_active_s.pop(replica, None)

    def forget_model(self, model: str) -> None:
        """Drop the leases and the memory of a Model that is gone."""
        self._model_active_s.pop(model, None)
        for key in [key for key in self._leases if key[1] == model]:
            del self._leases[key]
            for connection in self._connections.values():
                connection.models.discard(key)

    def _note_activity(self, view: LeaseView, now_s: float) -> None:
        lease = view.lease
        if lease.is_busy:
            self._note_model(lease.model, now_s)
        elif lease.idle_s is not None:
            self._note_model(lease.model, now_s - max(lease.idle_s, 0.0))
        for replica, count in lease.in_flight.items():
            if count > 0 and replica in self._replicas:
                self._replica_active_s[replica] = now_s

    def _note_model(self, model: str, active_s: float) -> None:
        if model in self._models:
            before_s = self._model_active_s.get(model, active_s)
            self._model_active_s[model] = max(before_s, active_s)


def _says(lease: DemandLease) -> tuple[object, ...]:
    in_flight = {replica: count for replica, count in lease.in_flight.items() if count > 0}
    return (lease.waiting, in_flight)
