"""Ready engines that give no answer any more: whose fault it is, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flexinfer.fleet import DemandLease
from flexinfer.process import Record, is_alive
from flexinfer_operator.local.hearing import Hearing, Pace
from flexinfer_operator.plan import health
from flexinfer_operator.plan.action import Start, Stop
from flexinfer_operator.plan.view import Policy, ReplicaView, Silence, Snapshot
from flexinfer_operator.testing.drive import Drive, make_model
from flexinfer_operator.testing.world import LocalWorld, replicas_of
from flexinfer_serving.fleet.local import LocalFleet
from flexinfer_serving.testing import running, until

POLICY = Policy()
PACE = Pace()
QUICK = Pace(every_s=600.0, again_s=0.02, timeout_s=0.3, quick_s=0.05)


def silence(tries: int, still: int, lasted_s: float = 5.0) -> Silence:
    return Silence(tries=tries, still_tries=still, lasted_s=lasted_s)


def replica(found: Silence | None) -> ReplicaView:
    return ReplicaView(
        id="r", model="m", revision="v", digest="d", state="ready", created_s=0, progress_s=0,
        silence=found,
    )  # fmt: skip


# The decision


@pytest.fixture
def drive() -> Drive:
    made = Drive()
    made.cluster.put(make_model("tiny", serverless={"maxReplicas": 2}))
    return made


def test_an_engine_that_neither_answers_nor_moves_is_replaced_at_the_third_probe(
    drive: Drive,
) -> None:
    first = drive.woken()
    for tries in (1, 2):
        drive.cluster.unanswered(first.id, silence(tries, tries))
        assert drive.after(1) == ()
    drive.want(1, in_flight={first.id: 1})
    drive.settle()
    drive.cluster.unanswered(first.id, silence(3, 3))
    stop, *rest = drive.settle()
    assert isinstance(stop, Stop) and (stop.replica, stop.failed_as) == (
        first.id,
        "engine_unresponsive",
    )
    assert "3 health probes in 5 s" in stop.why
    (start,) = rest
    assert isinstance(start, Start) and start.replica != first.id


def test_routers_are_not_told_to_use_a_silent_engine(drive: Drive) -> None:
    first = drive.woken()
    drive.cluster.unanswered(first.id, silence(1, 1))
    drive.settle()
    assert [(r.phase, r.substage) for r in drive.told().replicas] == [("loading", "Unresponsive")]
    status = drive.cluster.status("tiny")
    ready = next(one for one in status.conditions if one.type == "Ready")
    assert (ready.status, ready.reason, status.replicas) == ("Unknown", "EngineUnresponsive", 0)
    assert "unanswered" in status.message
    drive.cluster.unanswered(first.id, None)
    drive.settle()
    assert [r.phase for r in drive.told().replicas] == ["ready"]
    assert drive.cluster.status("tiny").message == ""


def test_a_busy_engine_is_given_longer_but_not_for_ever(drive: Drive) -> None:
    first = drive.woken()
    drive.cluster.unanswered(first.id, silence(20, 0, POLICY.unanswered_busy_s - 1))
    assert drive.settle() == ()
    assert [r.phase for r in drive.told().replicas] == ["ready"]
    drive.cluster.unanswered(first.id, silence(21, 0, POLICY.unanswered_busy_s))
    assert drive.kinds(drive.settle())[0] == ("Stop", first.id)


def test_engines_that_freeze_in_turn_are_started_with_a_growing_pause(drive: Drive) -> None:
    first = drive.woken()
    waits = []
    for _ in range(3):
        drive.after(1)
        drive.cluster.unanswered(drive.only().id, silence(3, 3))
        drive.want(1)
        drive.settle()
        drive.cluster.ended(next(r.id for r in drive.replicas() if r.state == "stopping"))
        drive.settle()
        waits.append(0.0 if drive.replicas() else drive.failure().retry_after_s)
        if waits[-1]:
            assert drive.failure().code == "engine_unresponsive"
            assert drive.cluster.status("tiny").phase == "Failed"
            drive.after(float(waits[-1]))
        drive.cluster.ready(drive.only().id)
        drive.settle()
    assert first.id and waits == [0.0, 2.0, 4.0]


def test_a_draining_engine_that_froze_is_not_waited_for(drive: Drive) -> None:
    first = drive.woken()
    drive.cluster.remove("tiny")
    assert drive.kinds(drive.settle()) == [("Drain", first.id)]
    drive.cluster.unanswered(first.id, silence(3, 3))
    assert drive.kinds(drive.settle()) == [("Stop", first.id)]


def test_an_old_revision_serves_while_the_new_one_is_silent(drive: Drive) -> None:
    first = drive.woken()
    drive.cluster.put(make_model("tiny", config={"slots": 8}, serverless={"maxReplicas": 2}))
    drive.settle()
    second = next(one for one in drive.replicas() if one.id != first.id)
    drive.cluster.ready(second.id)
    drive.cluster.unanswered(second.id, silence(1, 1))
    assert drive.settle() == ()
    drive.cluster.unanswered(second.id, None)
    assert drive.kinds(drive.settle()) == [("Drain", first.id)]


probes = st.lists(
    st.tuples(
        st.sampled_from(["answers", "still", "moves", "gap"]), st.floats(0, 6), st.floats(0.1, 10)
    ),
    max_size=60,
)


@given(probes)
def test_only_probes_in_a_row_that_could_be_asked_replace_an_engine(
    history: list[tuple[str, float, float]],
) -> None:
    hearing, now_s = Hearing(pace=PACE), 0.0
    row: list[tuple[str, float, float]] = []
    for kind, took_s, paused_s in history:
        hearing.paused(planned_s=paused_s, took_s=paused_s)
        began_s = now_s + paused_s
        now_s = began_s + took_s
        if kind == "answers":
            hearing.answered()
            row = []
        elif kind == "gap":
            now_s = began_s + 1000.0
            hearing.unanswered(began_s=began_s, ended_s=now_s, moved=False)
            row = []
        else:
            hearing.unanswered(began_s=began_s, ended_s=now_s, moved=kind == "moves")
            row.append((kind, began_s, now_s))
        still = 0
        for past, _, _ in reversed(row):
            if past == "moves":
                break
            still += 1
        lasted_s = row[-1][2] - row[0][1] if row else 0.0
        must_go = len(row) >= 3 and (still >= 3 or lasted_s >= POLICY.unanswered_busy_s)
        assert bool(health.fault(replica(hearing.silence), POLICY)) == must_go
        assert health.is_silent(replica(hearing.silence)) == (still > 0)


def test_a_gap_between_two_looks_of_ours_forgets_what_was_counted() -> None:
    hearing = Hearing(pace=PACE)
    for _ in range(2):
        hearing.unanswered(began_s=0, ended_s=3, moved=False)
    hearing.paused(planned_s=1, took_s=1.5)
    assert hearing.silence == silence(2, 2, 3)
    hearing.paused(planned_s=1, took_s=60)
    assert hearing.silence is None and hearing.pause_s() == PACE.every_s


# Real processes


Play = Callable[..., None]


async def woken(world: LocalWorld, **spec: Any) -> tuple[ReplicaView, Record]:
    await world.put("tiny", **spec)
    await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=100))
    (found,) = await world.ready("tiny")
    record = Record.read(world.home.replica_records / f"{found.id}.json")
    assert record is not None
    return found, record


async def suspect(world: LocalWorld, *names: str) -> None:
    await world.say(DemandLease(router="r", model="tiny", waiting=1, suspects=names, ttl_s=100))


def silence_of(picture: Snapshot, name: str) -> Silence | None:
    return next((r.silence for r in picture.replicas if r.id == name), None)


def phases(world: LocalWorld) -> list[tuple[str, str]]:
    fleet = world.told()
    model = None if fleet is None else fleet.find("tiny")
    return [] if model is None else [(r.id, r.phase) for r in model.replicas]


@pytest.mark.parametrize("is_deaf", [False, True], ids=["willing", "deaf to SIGTERM"])
def test_a_frozen_engine_is_replaced_when_a_router_suspects_it(play: Play, is_deaf: bool) -> None:
    async def scene(world: LocalWorld) -> None:
        first, record = await woken(world, config={"ignoreTerm": is_deaf})
        os.kill(record.pid, signal.SIGSTOP)
        await suspect(world, first.id)
        with capture_logs() as logs:
            await world.until("told", lambda _: (first.id, "ready") not in phases(world))
            await world.until(
                "another",
                lambda p: any(r.state == "ready" and r.id != first.id for r in p.replicas),
            )
        await world.until("the end", lambda _: not is_alive(record))
        (second,) = await world.ready("tiny")
        await world.until("the news", lambda _: phases(world) == [(second.id, "ready")])
        (said,) = [one for one in logs if one["event"] == "replica_given_up"]
        assert said["code"] == "engine_unresponsive"
        assert said["human"].startswith("tiny: the engine left 3 health probes")
        await world.say(DemandLease(router="r", model="tiny", ttl_s=100))
        world.cluster.kill()
        await world.gone("tiny")

    # A whole minute of grace: a frozen engine must not use it.
    play(scene, pace=QUICK, grace_s=60.0)


def test_a_frozen_engine_is_found_without_any_router(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        first, record = await woken(world, serverless={"minReplicas": 1})
        os.kill(record.pid, signal.SIGSTOP)
        await world.until(
            "another", lambda p: any(r.state == "ready" and r.id != first.id for r in p.replicas)
        )

    play(scene, pace=Pace(every_s=0.05, again_s=0.02, timeout_s=0.3, quick_s=0.05))


@pytest.mark.parametrize("finds", ["operator", "router"])
def test_requests_at_a_frozen_engine_and_after_it_are_answered(play: Play, finds: str) -> None:
    """A real router before the operator, and real processes behind it."""

    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        fleet = LocalFleet(world.cluster.socket)
        async with running(fleet, sink=fleet) as router:
            await until(lambda: (s := router.router.dispatcher.snapshot) and s.find("tiny"))
            first = (await router.chat(model="tiny")).json()["pid"]
            os.kill(first, signal.SIGSTOP)
            asked = asyncio.ensure_future(router.chat(model="tiny"))
            await until(lambda: router.router.dispatcher.in_flight == {"tiny": 1})
            if finds == "router":
                # What a connection that broke before would have made of it.
                dispatcher = router.router.dispatcher
                (entry,) = dispatcher._entries.values()
                dispatcher.suspect(entry, entry.model.replicas[0])
            answers = [await asked, await router.chat(model="tiny")]
            assert [one.status_code for one in answers] == [200, 200]
            assert first not in [one.json()["pid"] for one in answers]

    every_s = 0.05 if finds == "operator" else 600.0
    play(scene, pace=Pace(every_s=every_s, again_s=0.02, timeout_s=0.3, quick_s=0.05))


def test_an_engine_that_was_only_stopped_for_a_moment_goes_on(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        first, record = await woken(world)
        os.kill(record.pid, signal.SIGSTOP)
        await suspect(world, first.id)
        await world.until("silence", lambda p: silence_of(p, first.id) is not None)
        os.kill(record.pid, signal.SIGCONT)
        await world.until("an answer", lambda p: silence_of(p, first.id) is None)
        await world.until("the news", lambda _: phases(world) == [(first.id, "ready")])
        assert [r.id for r in replicas_of(world.cluster.observe(), "tiny")] == [first.id]

    play(scene, pace=Pace(every_s=600.0, again_s=0.02, timeout_s=1.5, quick_s=0.05))


def test_an_engine_that_computes_and_cannot_answer_stays(play: Play, tmp_path: Path) -> None:
    busy = tmp_path / "busy"

    async def scene(world: LocalWorld) -> None:
        first, _ = await woken(world, config={"busyWhile": str(busy)})
        busy.touch()
        await suspect(world, first.id)

        def is_busy(picture: Snapshot) -> bool:
            found = silence_of(picture, first.id)
            return found is not None and found.tries > 3 and found.still_tries == 0

        await world.until("busy", is_busy)
        busy.unlink()
        await world.until("an answer", lambda p: silence_of(p, first.id) is None)
        assert [r.id for r in replicas_of(world.cluster.observe(), "tiny")] == [first.id]

    play(scene, pace=Pace(every_s=600.0, again_s=0.02, timeout_s=1.0, quick_s=0.05))


def test_when_we_did_not_run_ourselves_an_engine_is_not_blamed(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        first, record = await woken(world)
        os.kill(record.pid, signal.SIGSTOP)
        (one,) = world.cluster.engines()
        for _ in range(4):
            await suspect(world, first.id)
            await world.until("a probe", lambda _: not one.suspected.is_set())
            await suspect(world)
        assert silence_of(world.cluster.observe(), first.id) is None
        os.kill(record.pid, signal.SIGCONT)

    # Every pause and every probe counts as one that took far too long.
    late = Pace(every_s=600.0, again_s=0.02, timeout_s=0.05, quick_s=0.02, gap_s=-1e6)
    play(scene, pace=late)
