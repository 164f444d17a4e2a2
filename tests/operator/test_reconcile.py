"""The loop around the plan: conflicts, failures, and that it never waits for an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from flexinfer.clock import SystemClock
from flexinfer.errors import ResourceExhausted
from flexinfer.fleet import DemandLease, FleetModel
from flexinfer.testing.clock import FakeClock
from flexinfer_operator.plan.action import Action, Start
from flexinfer_operator.reconcile import Reconciler
from flexinfer_operator.testing.drive import Drive, make_model, run_now
from flexinfer_operator.testing.simulated import SimulatedCluster


class Troubled(SimulatedCluster):
    """Raises what `trouble` says, before an action is applied."""

    def __init__(self, clock: SystemClock | FakeClock) -> None:
        super().__init__(clock)
        self.trouble: Callable[[Action], None] = lambda action: None
        self.tries: list[str] = []
        self.breaks = 0

    async def apply(self, action: Action, *, observed: int) -> None:
        self.tries.append(action.model)
        self.trouble(action)
        await super().apply(action, observed=observed)

    async def publish(self, fleet: Sequence[FleetModel]) -> None:
        if self.breaks:
            self.breaks -= 1
            raise ZeroDivisionError
        await super().publish(fleet)


def wanted(cluster: SimulatedCluster, *names: str) -> None:
    for name in names:
        cluster.put(make_model(name))
        cluster.lease(DemandLease(router="r", model=name, waiting=1, ttl_s=1000))


def test_one_models_failure_leaves_the_others_alone_and_is_tried_ever_later() -> None:
    clock = FakeClock()
    cluster = Troubled(clock)
    loop = Reconciler(cluster, clock)
    wanted(cluster, "bad", "good")

    def trouble(action: Action) -> None:
        if action.model == "bad":
            raise ResourceExhausted("no port", code="no_free_port")

    cluster.trouble = trouble
    waits = []
    for _ in range(5):
        again_s = run_now(loop.turn(cluster.observe()))
        assert again_s is not None
        waits.append(again_s)
        clock.advance(again_s)
    assert [one.model for one in cluster.replicas] == ["good"]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]
    cluster.trouble = lambda action: None
    run_now(loop.turn(cluster.observe()))
    assert sorted(one.model for one in cluster.replicas) == ["bad", "good"]


def test_a_conflict_is_planned_again_at_once_from_the_newer_picture() -> None:
    drive = Drive()
    wanted(drive.cluster, "tiny")
    old = drive.cluster.observe()
    drive.want(2)
    again_s = run_now(drive.loop.turn(old))
    assert drive.replicas() == () and again_s is not None and again_s < 0.1
    assert [type(one) for one in drive.turn()] == [Start]


def test_the_loop_wakes_by_itself_and_ends_when_it_is_told() -> None:
    async def scene() -> list[str]:
        clock = SystemClock()
        cluster = SimulatedCluster(clock)
        loop = asyncio.create_task(Reconciler(cluster, clock).run())
        await asyncio.sleep(0)
        wanted(cluster, "tiny")
        async with asyncio.timeout(10):
            while not cluster.replicas:
                await asyncio.sleep(0.001)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return [one.model for one in cluster.replicas]

    assert asyncio.run(scene()) == ["tiny"]


def test_a_turn_that_breaks_does_not_end_the_loop() -> None:
    async def scene() -> None:
        clock = SystemClock()
        cluster = Troubled(clock)
        cluster.breaks = 1
        wanted(cluster, "tiny")
        loop = asyncio.create_task(Reconciler(cluster, clock).run())
        async with asyncio.timeout(10):
            while cluster.fleet is None:
                await asyncio.sleep(0.001)
        assert not loop.done()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)

    asyncio.run(scene())
