"""A start whose blob another process hashes, as `artifact verify` and `scrub` do: real processes and locks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flexinfer.fleet import DemandLease
from flexinfer.store import Store
from flexinfer.testing.locks import held_elsewhere
from flexinfer_operator.plan.view import Snapshot
from flexinfer_operator.testing.world import LocalWorld, replicas_of

Play = Callable[..., None]
STALL_S = 0.6


async def weights_of(world: LocalWorld, name: str) -> Path:
    """The blob of Model *name*, once it is bound."""
    status = await world.phase(name, "Idle")
    assert status.artifact is not None
    store = Store(world.home.store)
    artifact = store.artifact(store.resolve(status.artifact.digest).digest)
    return store.path(artifact.files[0].digest)


async def ask(world: LocalWorld, name: str) -> None:
    await world.say(DemandLease(router="r", model=name, waiting=1, ttl_s=60))


async def waiting(world: LocalWorld, name: str) -> None:
    """Return when a start of *name* is seen to wait."""

    def waits(picture: Snapshot) -> bool:
        return any(one.waits_for for one in replicas_of(picture, name))

    await world.until(f"a start of {name} that waits", waits)


def test_a_wait_for_a_verification_is_no_stall_and_is_said(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("big", serverless={"loadStallTimeout": f"{STALL_S * 1000:.0f}ms"})
        weights = await weights_of(world, "big")
        with held_elsewhere(weights):
            await ask(world, "big")

            def is_overdue(picture: Snapshot) -> bool:
                assert [view.crashes for view in picture.models] == [()]
                now = replicas_of(picture, "big")
                return any(one.progress_s - one.created_s > 3 * STALL_S for one in now)

            await world.until("thrice the stall timeout", is_overdue)

            def is_said(picture: Snapshot) -> bool:
                status = picture.models[0].status
                return status is not None and weights.name in status.message

            picture = await world.until("what it waits for", is_said)
            status, told = picture.models[0].status, world.told()
            assert status is not None and told is not None
            assert status.phase == "Loading" and "verification" in status.message
            ready = next(one for one in status.conditions if one.type == "Ready")
            assert ready.message == status.message
            # Who is held for it is not told that it failed: only that it is not up yet, when his own time is over.
            model = told.find("big")
            assert model is not None and model.failure is None
            assert [(one.phase, one.substage) for one in model.replicas] == [
                ("loading", "Verifying")
            ]
        await world.ready("big")
        status = await world.phase("big", "Ready")
        assert status.message == ""
        assert world.cluster.observe().models[0].starts == 1
        # The next start need not wait, so what clients are told of it does not count this wait.
        (engine,) = world.cluster.engines()
        assert engine.phases["verify"] < 3 * STALL_S

    play(scene)


def test_a_wait_that_is_ended_gives_its_place_to_another_model(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("big")
        await world.put("other")
        with held_elsewhere(await weights_of(world, "big")):
            await ask(world, "big")
            await waiting(world, "big")
            await world.remove("big")
            await world.gone("big")
            await ask(world, "other")
            await world.ready("other")

    play(scene, max_loaded=1)
