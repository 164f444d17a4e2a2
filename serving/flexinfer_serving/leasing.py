"""Tell the operator of one Model's demand, when `demand.Schedule` says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flexinfer.clock import Clock
from flexinfer.fleet import DemandLease
from flexinfer_serving.demand import Load, Schedule
from flexinfer_serving.fleet import DemandSink


class Lessor:
    """Builds leases with *lease*, sends each when it is due, and says so with *told*."""

    def __init__(
        self,
        sink: DemandSink,
        *,
        ttl_s: float,
        clock: Clock,
        lease: Callable[[float], DemandLease],
        arrivals: Callable[[], int],
        draining: Callable[[], frozenset[str]],
        told: Callable[[], None],
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._lease = lease
        self._arrivals = arrivals
        self._draining = draining
        self._told = told
        self._schedule = Schedule(ttl_s=ttl_s)
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Send a lease if one is due, and set the timer for the next."""
        now_s = self._clock.now_s()
        lease = self._lease(now_s)
        load = Load(
            waiting=lease.waiting,
            in_flight=lease.in_flight,
            generation=lease.generation,
            arrivals=self._arrivals(),
            suspects=lease.suspects,
        )
        draining = self._draining()
        due_s = self._schedule.due_s(load, draining, now_s=now_s)
        if due_s is not None and due_s <= now_s:
            self._sink.renew(lease)
            self._told()
            self._schedule.sent(load, now_s=now_s)
            due_s = self._schedule.due_s(load, draining, now_s=now_s)
        self.stop()
        if due_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due_s - now_s), self.look)

    def start_over(self) -> None:
        """The operator is new: tell it of everything that is busy."""
        self._schedule.forget()
        self.look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
