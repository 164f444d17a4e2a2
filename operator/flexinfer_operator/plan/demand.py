"""What all routers together want of one Model, from the leases that have not ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexinfer_operator.plan.view import LeaseView, ReplicaView, RouterView


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    waiting: int = 0
    oldest_wait_s: float = 0.0
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Requests per replica, over all routers."""

    @property
    def total(self) -> int:
        return self.waiting + sum(self.in_flight.values())

    @property
    def is_busy(self) -> bool:
        return self.total > 0


def sum_leases(leases: Sequence[LeaseView], *, now_s: float) -> Demand:
    """Return the sum of one Model's leases. A router that is silent counts with its last word until its lease ends."""
    waiting, oldest = 0, 0.0
    in_flight: dict[str, int] = {}
    for view in leases:
        if view.expires_s <= now_s:
            continue
        lease = view.lease
        waiting += max(0, lease.waiting)
        if lease.waiting > 0:
            oldest = max(oldest, lease.oldest_wait_s + (now_s - view.arrived_s))
        for replica, count in lease.in_flight.items():
            if count > 0:
                in_flight[replica] = in_flight.get(replica, 0) + count
    return Demand(waiting=waiting, oldest_wait_s=oldest, in_flight=in_flight)


def is_acknowledged(
    replica: ReplicaView,
    leases: Sequence[LeaseView],
    routers: Sequence[RouterView],
    *,
    now_s: float,
) -> bool:
    """Return whether no router will send anything to a draining *replica* any more, and none has anything there.

    *leases* are those of its Model. A connected router that holds no lease of it must have applied the
    generation too: it may have chosen the replica just before.
    """
    if replica.draining is None or replica.draining.generation is None:
        return False
    wanted = replica.draining.generation
    live = [view for view in leases if view.expires_s > now_s]
    if any(view.lease.in_flight.get(replica.id, 0) > 0 for view in live):
        return False
    if any(view.lease.generation < wanted for view in live):
        return False
    return all(router.generation >= wanted for router in routers)
