"""What every `Cluster` keeps. Another implementation is one line in WORLDS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from flexinfer.errors import Conflict
from flexinfer.fleet import DemandLease, FleetModel, FleetReplica
from flexinfer.places import Home
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.plan.action import Drain, Start, Stop, Undrain
from flexinfer_operator.plan.names import replica_name, revision_of
from flexinfer_operator.plan.view import ModelView, ReplicaView, Snapshot
from flexinfer_operator.testing.world import LocalWorld, SimulatedWorld, World, replicas_of

WORLDS: dict[str, Callable[[Home], AbstractAsyncContextManager[World]]] = {
    "simulated": lambda home: SimulatedWorld(),
    "local": lambda home: LocalWorld(home),
}

Scene = Callable[[World], Awaitable[None]]


@pytest.fixture(params=sorted(WORLDS))
def play(request: pytest.FixtureRequest, home: Home) -> Callable[[Scene], None]:
    """Run a scene in a world."""

    def run(scene: Scene) -> None:
        async def whole() -> None:
            async with WORLDS[request.param](home) as world:
                await scene(world)

        asyncio.run(whole())

    return run


def view_of(snapshot: Snapshot, name: str = "tiny") -> ModelView:
    return next(view for view in snapshot.models if view.name == name)


def start_of(snapshot: Snapshot, name: str = "tiny") -> Start:
    view = view_of(snapshot, name)
    revision = revision_of(view)
    return Start(
        model=name,
        replica=replica_name(view, revision),
        revision=revision,
        digest=view.bound.digest,
        why="test",
    )


def fleet_of(*replicas: tuple[str, Any]) -> tuple[FleetModel, ...]:
    return (
        FleetModel(
            name="tiny",
            backend="scripted",
            context_tokens=1,
            slots=1,
            replicas=tuple(FleetReplica(id=one, url="", phase=phase) for one, phase in replicas),
        ),
    )


async def started(world: World) -> ReplicaView:
    """A ready replica of the Model `tiny`."""
    await world.put("tiny")
    return await one_more(world)


async def one_more(world: World) -> ReplicaView:
    """Another ready replica of it."""
    picture = world.cluster.observe()
    start = start_of(picture)
    await world.cluster.apply(start, observed=picture.revision)
    picture = await world.until(
        "ready",
        lambda p: any(
            one.id == start.replica and one.state == "ready" for one in replicas_of(p, "tiny")
        ),
    )
    return next(one for one in replicas_of(picture, "tiny") if one.id == start.replica)


async def stopped(world: World, replica: ReplicaView, *, for_model: str = "") -> str:
    """Drain and stop *replica*; return whom its Model is said to have made room for."""
    revision = world.cluster.observe().revision
    drain = Drain(model="tiny", replica=replica.id, why="test", for_model=for_model)
    await world.cluster.apply(drain, observed=revision)
    stop = Stop(model="tiny", replica=replica.id, why="test")
    await world.cluster.apply(stop, observed=world.cluster.observe().revision)
    picture = await world.until(
        "gone", lambda p: all(one.id != replica.id for one in replicas_of(p, "tiny"))
    )
    return view_of(picture).preempted_by


async def newest(pictures: AsyncIterator[Snapshot]) -> Snapshot:
    async with asyncio.timeout(10):
        return await anext(pictures)


def test_a_watch_gives_the_present_and_then_every_change(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        pictures = world.cluster.watch()
        first = await newest(pictures)
        waiting = asyncio.ensure_future(newest(pictures))
        await asyncio.sleep(0)
        assert not waiting.done()
        await world.put("tiny")
        second = await waiting
        assert second.revision > first.revision
        assert [view.name for view in second.models] == ["tiny"]
        await pictures.aclose()  # type: ignore[attr-defined]  # a generator in every implementation

    play(scene)


def test_a_lease_wakes_the_watch(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        pictures = world.cluster.watch()
        await newest(pictures)
        await world.say(DemandLease(router="r", model="tiny", waiting=3))
        picture = await newest(pictures)
        assert [one.lease.waiting for one in picture.leases] == [3]
        await pictures.aclose()  # type: ignore[attr-defined]

    play(scene)


def test_a_started_replica_comes_to_be_ready_with_its_address(
    play: Callable[[Scene], None],
) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        assert replica.url.startswith("http://127.0.0.1:") and replica.key
        assert replica.ready_s is not None and replica.ready_s >= replica.created_s
        assert replica.key not in repr(replica)

    play(scene)


def test_a_start_done_twice_is_one_replica(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        picture = world.cluster.observe()
        start = start_of(picture)
        await world.cluster.apply(start, observed=picture.revision)
        await world.cluster.apply(start, observed=picture.revision)
        assert len(replicas_of(world.cluster.observe(), "tiny")) == 1
        assert view_of(world.cluster.observe()).starts == 1

    play(scene)


def test_an_action_on_an_old_picture_is_refused(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        picture = world.cluster.observe()
        await world.say(DemandLease(router="r", model="tiny", waiting=1))
        with pytest.raises(Conflict):
            stop = Stop(model="tiny", replica=replica.id, why="test")
            await world.cluster.apply(stop, observed=picture.revision)
        assert replicas_of(world.cluster.observe(), "tiny")[0].state == "ready"

    play(scene)


def test_a_change_of_one_model_refuses_nothing_of_another(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        await world.put("other")
        picture = world.cluster.observe()
        await world.say(DemandLease(router="r", model="other", waiting=1))
        await world.cluster.apply(start_of(picture), observed=picture.revision)

    play(scene)


def test_a_stopped_replica_is_gone(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        revision = world.cluster.observe().revision
        for _ in range(2):
            stop = Stop(model="tiny", replica=replica.id, why="test")
            await world.cluster.apply(stop, observed=revision)
        await world.until("gone", lambda picture: not picture.replicas)
        assert view_of(world.cluster.observe()).crashes == ()

    play(scene)


def test_a_stalled_load_counts_as_a_crash_at_once_and_once(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        stop = Stop(model="tiny", replica=replica.id, why="no progress", failed_as="load_stalled")
        await world.cluster.apply(stop, observed=world.cluster.observe().revision)
        crashes = view_of(world.cluster.observe()).crashes
        assert [one.code for one in crashes] == ["load_stalled"]
        picture = await world.until("gone", lambda picture: not picture.replicas)
        assert view_of(picture).crashes == crashes

    play(scene)


def test_a_model_says_whom_its_last_replica_made_room_for(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny", serverless={"maxReplicas": 3})
        first, second = await one_more(world), await one_more(world)
        assert await stopped(world, first, for_model="other") == "other"
        assert await stopped(world, second) == ""

    play(scene)


def test_a_start_ends_what_the_last_replica_made_room_for(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        assert await stopped(world, await started(world), for_model="other") == "other"
        picture = world.cluster.observe()
        await world.cluster.apply(start_of(picture), observed=picture.revision)
        assert view_of(world.cluster.observe()).preempted_by == ""

    play(scene)


def test_a_drain_counts_from_the_generation_that_says_so(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        revision = world.cluster.observe().revision
        drain = Drain(model="tiny", replica=replica.id, why="test")
        await world.cluster.apply(drain, observed=revision)
        await world.cluster.apply(drain, observed=revision)
        (seen,) = world.cluster.observe().replicas
        assert seen.draining is not None and seen.draining.generation is None
        await world.cluster.publish(fleet_of((replica.id, "draining")))
        (seen,) = world.cluster.observe().replicas
        assert seen.draining is not None
        generation = seen.draining.generation
        assert generation is not None
        await world.cluster.publish(fleet_of((replica.id, "draining"), ("other", "ready")))
        (seen,) = world.cluster.observe().replicas
        assert seen.draining is not None and seen.draining.generation == generation
        undrain = Undrain(model="tiny", replica=replica.id, why="test")
        await world.cluster.apply(undrain, observed=revision)
        assert world.cluster.observe().replicas[0].draining is None

    play(scene)


def test_generations_grow_with_what_is_said_and_only_then(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.cluster.publish(fleet_of(("a", "ready")))
        await world.until("the first", lambda _: world.told() is not None)
        first = world.told()
        assert first is not None
        await world.cluster.publish(fleet_of(("a", "ready")))
        await world.cluster.publish(fleet_of(("a", "draining")))

        def is_newer(_: Snapshot) -> bool:
            told = world.told()
            return told is not None and told.generation > first.generation

        await world.until("the second", is_newer)
        told = world.told()
        assert told is not None and told.generation == first.generation + 1
        assert told.models == fleet_of(("a", "draining"))

    play(scene)


def test_a_recorded_status_is_seen(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        await world.cluster.record({"tiny": ModelStatus(phase="Preempted"), "none": ModelStatus()})
        status = view_of(world.cluster.observe()).status
        assert status is not None and status.phase == "Preempted"

    play(scene)


def test_the_generation_counts_changes_of_the_spec(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        first = view_of(world.cluster.observe()).generation
        await world.put("tiny")
        assert view_of(world.cluster.observe()).generation == first
        await world.put("tiny", aliases=["small"])
        assert view_of(world.cluster.observe()).generation == first + 1

    play(scene)


def test_a_removed_model_is_shown_until_its_last_replica_is_gone(
    play: Callable[[Scene], None],
) -> None:
    async def scene(world: World) -> None:
        replica = await started(world)
        await world.remove("tiny")
        assert view_of(world.cluster.observe()).is_deleted
        stop = Stop(model="tiny", replica=replica.id, why="test")
        await world.cluster.apply(stop, observed=world.cluster.observe().revision)
        await world.until("forgotten", lambda picture: not picture.models)

    play(scene)


def test_a_lease_ends_with_its_time(play: Callable[[Scene], None]) -> None:
    async def scene(world: World) -> None:
        await world.put("tiny")
        await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=0.2))
        picture = await world.until("its end", lambda picture: not picture.leases)
        assert view_of(picture).last_active_s is not None

    play(scene)
