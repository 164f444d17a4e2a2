"""When a router speaks to the operator: a pure schedule for one Model's lease.

At once when waiting begins, when a replica is suspected, when a draining one is free, and when a new generation was
applied; other changes at most once a CHANGE_S; unchanged, but busy, well before the lease ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHANGE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a lease says, but for ages."""

    waiting: int
    in_flight: Mapping[str, int]
    generation: int
    arrivals: int
    """All that ever came: what came and went between two leases was activity too."""
    suspects: tuple[str, ...] = ()

    @property
    def is_busy(self) -> bool:
        return self.waiting > 0 or bool(self.in_flight)


class Schedule:
    def __init__(self, *, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._sent: Load | None = None
        self._sent_s = 0.0

    def due_s(self, load: Load, draining: frozenset[str], *, now_s: float) -> float | None:
        """Return when *load* must be sent: now or earlier means at once, None means not at all."""
        sent = self._sent
        if sent is None:
            return now_s if load.is_busy or draining or load.suspects else None
        if load.waiting and not sent.waiting:
            return now_s
        if set(load.suspects) - set(sent.suspects):
            return now_s
        if load.generation != sent.generation:
            is_alive = now_s < self._sent_s + self._ttl_s
            if load.is_busy or draining or is_alive:
                return now_s
        if any(sent.in_flight.get(name) and not load.in_flight.get(name) for name in draining):
            return now_s
        if (load.waiting, load.in_flight, load.arrivals, load.suspects) != (
            sent.waiting,
            sent.in_flight,
            sent.arrivals,
            sent.suspects,
        ):
            return self._sent_s + CHANGE_S
        return self._sent_s + self._ttl_s / 3 if load.is_busy else None

    def sent(self, load: Load, *, now_s: float) -> None:
        self._sent = load
        self._sent_s = now_s

    def forget(self) -> None:
        """The other side is new and knows nothing of what was sent."""
        self._sent = None
