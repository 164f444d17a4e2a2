"""The loop on this machine, with engines that are real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.clock import SystemClock
from flexinfer.fleet import DemandLease, FleetModel
from flexinfer.places import Home
from flexinfer.process import Record, is_alive, procfs
from flexinfer_operator.plan.view import ReplicaView, Snapshot
from flexinfer_operator.testing.world import LocalWorld, replicas_of

Play = Callable[..., None]


def lease(world: LocalWorld, waiting: int = 0, **fields: Any) -> DemandLease:
    told = world.told()
    generation = 0 if told is None else told.generation
    return DemandLease(
        router="r", model="tiny", waiting=waiting, **{"generation": generation, **fields}
    )


async def woken(world: LocalWorld, **spec: Any) -> ReplicaView:
    await world.put("tiny", **spec)
    await world.say(lease(world, 1))
    (replica,) = await world.ready("tiny")
    return replica


async def told(world: LocalWorld, what: str, holds: Callable[[FleetModel], bool]) -> FleetModel:
    """What the router is told of `tiny`, once it *holds*."""

    def model() -> FleetModel | None:
        snapshot = world.told()
        models = () if snapshot is None else snapshot.models
        return next((one for one in models if one.name == "tiny"), None)

    def is_told(_: object) -> bool:
        found = model()
        return found is not None and holds(found)

    await world.until(what, is_told)
    found = model()
    assert found is not None
    return found


def get(replica: ReplicaView, path: str, key: str) -> int:
    request = urllib.request.Request(replica.url + path, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def record_of(home: Home, replica: ReplicaView) -> Record:
    record = Record.read(home.replica_records / f"{replica.id}.json")
    assert record is not None
    return record


def test_the_first_request_starts_one_engine_that_only_its_key_opens(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        await world.phase("tiny", "Idle")
        assert world.cluster.observe().replicas == ()
        await asyncio.gather(*(world.say(lease(world, waiting=n)) for n in (20,)))
        (replica,) = await world.ready("tiny")
        model = await told(world, "ready", lambda m: m.phase == "Ready")
        assert [(one.id, one.phase) for one in model.replicas] == [(replica.id, "ready")]
        assert model.replicas[0].key == replica.key and len(replica.key) >= 32
        for key, status in ((replica.key, 200), ("wrong", 401)):
            assert await asyncio.to_thread(get, replica, "/v1/models", key) == status
        record = record_of(world.home, replica)
        secret = Path(record.extra["key_path"])
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert replica.key not in record.to_json()
        with open(f"/proc/{record.pid}/cmdline", "rb") as file:
            assert replica.key.encode() not in file.read()

    play(scene)


def test_a_burst_of_leases_starts_one_engine(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", serverless={"maxReplicas": 4})
        for waiting in range(1, 21):
            await world.say(lease(world, waiting))
        await world.ready("tiny")
        view = next(view for view in world.cluster.observe().models if view.name == "tiny")
        assert view.starts == 1

    play(scene)


def test_an_idle_engine_is_gone_with_its_port_key_and_record(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        replica = await woken(world, serverless={"idleTimeout": "200ms"})
        record = record_of(world.home, replica)
        await world.say(lease(world, idle_s=0.0))
        await told(world, "draining", lambda m: any(r.phase == "draining" for r in m.replicas))
        assert is_alive(record)
        await world.say(lease(world, idle_s=1.0))
        await world.gone("tiny")
        await world.phase("tiny", "Idle")
        assert not is_alive(record)
        assert not Path(record.extra["key_path"]).exists()
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(get, replica, "/health", "")
        await world.say(lease(world, 1))
        await world.ready("tiny")

    play(scene)


def test_a_router_that_vanishes_holds_nothing_for_long(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        replica = await woken(world, serverless={"idleTimeout": "200ms"})
        await world.say(lease(world, in_flight={replica.id: 1}, ttl_s=100))
        await world.leave()
        await world.gone("tiny")

    play(scene)


def test_a_crash_during_the_load_is_told_with_its_cause_and_tried_again(
    play: Play, tmp_path: Path
) -> None:
    trigger = tmp_path / "crash"
    trigger.touch()

    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", config={"crashWhile": str(trigger)})
        await world.say(lease(world, 1))
        model = await told(world, "a failure", lambda m: m.failure is not None)
        assert model.failure is not None and model.failure.code == "out_of_memory"
        assert model.failure.retry_after_s is not None
        status = await world.phase("tiny", "Failed")
        assert "no memory" in status.message
        trigger.unlink()
        await world.say(lease(world, 1, ttl_s=60))
        await world.ready("tiny")

    play(scene)


def test_an_engine_that_dies_in_its_load_again_and_again_says_how_where_and_what_it_points_to(
    play: Play, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()

    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", config={"holdWhile": str(hold)})
        await world.say(lease(world, 1, ttl_s=100))
        seen: set[str] = set()
        for _ in range(3):

            def is_loading(picture: Snapshot) -> bool:
                return any(
                    r.id not in seen and r.substage == "LoadingWeights"
                    for r in replicas_of(picture, "tiny")
                )

            picture = await world.until("a load", is_loading)
            (one,) = [r for r in replicas_of(picture, "tiny") if r.id not in seen]
            seen.add(one.id)
            os.kill(record_of(world.home, one).pid, signal.SIGABRT)
            await world.until("its end", lambda p: not replicas_of(p, "tiny"))
        model = await told(
            world, "the cause", lambda m: m.failure is not None and "3 starts" in m.failure.message
        )
        failure = model.failure
        assert failure is not None and failure.code == "engine_crashed"
        assert "exit code -6, during its load (LoadingWeights)" in failure.message
        assert "artifact verify" in failure.message and "started again after 4 s" in failure.message
        status = await world.phase("tiny", "Failed")
        assert "its last line: flexinfer: loading weights of 40 bytes" in status.message
        # A client hears no log.
        assert "weights of" not in failure.message

    play(scene)


def test_an_engine_killed_while_it_serves_is_replaced_for_those_who_wait(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        first = await woken(world)
        os.kill(record_of(world.home, first).pid, 9)
        crashes = await world.until("the crash", lambda p: bool(p.models[0].crashes))
        assert crashes.models[0].crashes[0].message.endswith("exit code -9, while it served")
        await world.until(
            "another", lambda p: [r.id for r in replicas_of(p, "tiny")] not in ([], [first.id])
        )
        await world.say(lease(world, 1, ttl_s=60))
        (second,) = await world.ready("tiny")
        assert second.id != first.id and second.key != first.key

    play(scene)


def test_a_load_that_stands_still_is_ended(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        spec = {"config": {"stall": True}, "serverless": {"loadStallTimeout": "700ms"}}
        await world.put("tiny", **spec)
        await world.say(lease(world, 1, ttl_s=100))
        model = await told(world, "a failure", lambda m: m.failure is not None)
        assert model.failure is not None and model.failure.code == "load_stalled"
        assert "LoadingWeights" in model.failure.message
        view = next(view for view in world.cluster.observe().models if view.name == "tiny")
        assert view.starts == 1

    play(scene)


def test_the_substage_of_a_load_is_shown(play: Play, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()

    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", config={"holdWhile": str(hold)})
        await world.say(lease(world, 1, ttl_s=60))
        await told(
            world, "a stage", lambda m: [r.substage for r in m.replicas] == ["LoadingWeights"]
        )
        status = await world.phase("tiny", "Loading")
        assert status.loading_substage in ("Initializing", "LoadingWeights", "")
        hold.unlink()
        await world.ready("tiny")

    play(scene)


def test_an_engine_that_ignores_sigterm_is_killed_with_what_it_started(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        replica = await woken(
            world,
            config={"ignoreTerm": True, "forks": True},
            serverless={"idleTimeout": "100ms"},
        )
        record = record_of(world.home, replica)
        group = os.getpgid(record.pid)
        await world.say(lease(world, idle_s=5.0))
        await told(world, "draining", lambda m: any(r.phase == "draining" for r in m.replicas))
        await world.say(lease(world, idle_s=5.0))
        await world.gone("tiny")
        left = procfs.members(group, mark=record.mark, since=record.start_ticks)
        assert [one for one in left if one.is_running] == []

    play(scene, grace_s=0.3)


def test_a_new_revision_follows_an_old_one_without_a_gap(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        first = await woken(world, config={"slots": 2})
        await world.say(lease(world, in_flight={first.id: 1}, ttl_s=60))
        await world.put("tiny", config={"slots": 8})
        ready = await world.ready("tiny", 2)
        second = next(one for one in ready if one.id != first.id)
        model = await told(
            world, "the drain", lambda m: {r.phase for r in m.replicas} >= {"draining"}
        )
        assert model.slots == 8
        await world.say(lease(world, in_flight={second.id: 1}))
        (left,) = await world.ready("tiny")
        assert left.id == second.id

    play(scene)


def test_a_full_machine_swaps(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await woken(world)
        await world.say(lease(world, idle_s=0.0))
        await world.put("other")
        other = DemandLease(router="r", model="other", waiting=1, generation=0, ttl_s=60)
        await world.say(other)
        await told(world, "draining", lambda m: any(r.phase == "draining" for r in m.replicas))
        await world.say(lease(world, idle_s=0.0))
        await world.ready("other")
        assert not replicas_of(world.cluster.observe(), "tiny")

    play(scene, max_loaded=1)


def test_a_deleted_model_leaves_nothing(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        replica = await woken(world)
        record = record_of(world.home, replica)
        await world.say(lease(world, idle_s=0.0))
        await world.remove("tiny")
        await told(world, "the draining", lambda m: all(r.phase == "draining" for r in m.replicas))
        await world.say(lease(world, idle_s=0.0))
        await world.until("forgotten", lambda picture: not picture.models)
        assert not is_alive(record)

    play(scene)


def test_starts_are_measured_and_their_estimate_is_told(play: Play, home: Home) -> None:
    async def scene(world: LocalWorld) -> None:
        clock = SystemClock()
        begun_s = clock.now_s()
        await woken(world, config={"loadSeconds": 0.05})
        model = await told(world, "an estimate", lambda m: m.cold_start.samples == 1)
        lasted_s = clock.now_s() - begun_s
        assert 0.05 <= model.cold_start.p50_s <= model.cold_start.p95_s <= lasted_s
        (replica,) = await world.ready("tiny")
        await world.say(lease(world, first_token_s={replica.id: 0.25, "unknown": 9.0}))

        def is_shown(picture: Snapshot) -> bool:
            status = picture.models[0].status
            shown = None if status is None else status.cold_start
            return shown is not None and shown.phases.first_token == 0.25

        await world.until("the first token", is_shown)

    play(scene)

    async def again(world: LocalWorld) -> None:
        await world.phase("tiny", "Idle")
        await told(world, "the estimate", lambda m: m.cold_start.samples == 1)

    play(again)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 30])
def test_an_engine_stopped_at_any_moment_of_its_start_is_gone(play: Play, steps: int) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", serverless={"minReplicas": 1})
        await world.until("a start", lambda p: bool(replicas_of(p, "tiny")))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        await world.remove("tiny")
        async with asyncio.timeout(15):
            await world.until("forgotten", lambda picture: not picture.models)

    play(scene)


def test_closing_ends_every_engine(play: Play, home: Home) -> None:
    found: list[Record] = []

    async def scene(world: LocalWorld) -> None:
        found.append(record_of(world.home, await woken(world, config={"ignoreTerm": True})))

    play(scene, grace_s=0.3)
    assert not is_alive(found[0])
    assert [*(home.replica_records).glob("*.json")] == []
    assert [*(home.replica_records / "secrets").iterdir()] == []
