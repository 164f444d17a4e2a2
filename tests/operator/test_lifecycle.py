"""The plan as a specification: what one Model's replicas do, demand by demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flexinfer.artifact import evidence as measured
from flexinfer.fleet import Failure
from flexinfer.resources.model import Condition
from flexinfer_operator.plan.action import Build, Drain, Start, Stop, Undrain
from flexinfer_operator.plan.lifecycle import plan
from flexinfer_operator.plan.view import EngineFacts, Policy
from flexinfer_operator.testing.drive import Drive, make_model, run_now
from flexinfer_operator.testing.simulated import CACHED


def condition(drive: Drive, kind: str, model: str = "tiny") -> Condition:
    conditions: tuple[Condition, ...] = drive.cluster.status(model).conditions
    return next(one for one in conditions if one.type == kind)


# Wake


def test_a_model_nobody_asks_for_has_no_replica(drive: Drive) -> None:
    drive.cluster.put(make_model())
    assert drive.settle() == ()
    assert drive.cluster.status("tiny").phase == "Idle"
    assert condition(drive, "Ready").reason == "WaitingForActivation"


def test_the_first_waiting_request_starts_one_replica(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.settle()
    drive.want(20)
    started = drive.settle()
    assert [type(one) for one in started] == [Start]
    assert drive.cluster.status("tiny").phase == "Loading"
    assert condition(drive, "Loaded").reason == "StartingBackend"


def test_more_requests_during_the_load_start_nothing_more(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 4}))
    drive.want(1)
    drive.settle()
    drive.want(50, oldest_wait_s=30)
    drive.want(50, router="r2", oldest_wait_s=30)
    assert drive.settle() == ()


def test_the_same_picture_names_the_same_replica(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    picture = drive.cluster.observe()
    first, second = (drive.kinds(plan(picture, drive.clock.now_s()).actions) for _ in range(2))
    assert first == second and [kind for kind, _ in first] == ["Start"]


def test_a_load_whose_waiters_left_is_finished_and_then_idles_out(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"idleTimeout": "30s"}))
    drive.want(1)
    drive.settle()
    drive.want(0, idle_s=0)
    assert drive.after(40) == ()
    drive.cluster.ready(drive.only().id)
    assert drive.settle() == ()
    assert [type(one) for one in drive.after(30)] == [Drain]
    drive.want(0, idle_s=70)
    assert [type(one) for one in drive.settle()] == [Stop]


# Idle


def test_an_idle_replica_is_drained_then_stopped(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"idleTimeout": "60s"}))
    replica = drive.woken()
    drive.want(0, idle_s=0)
    assert drive.after(59) == ()
    assert drive.again_s == pytest.approx(1, abs=0.01)
    assert [type(one) for one in drive.after(1)] == [Drain]
    drive.want(0, idle_s=60)
    assert [type(one) for one in drive.settle()] == [Stop]
    drive.cluster.ended(replica.id)
    drive.settle()
    assert drive.cluster.status("tiny").phase == "Idle"


def test_a_request_in_flight_keeps_it_however_long(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"idleTimeout": "60s"}))
    replica = drive.woken()
    for _ in range(100):
        drive.want(0, in_flight={replica.id: 1})
        assert drive.after(9) == ()


def test_a_silent_router_counts_as_busy_until_its_lease_ends(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"idleTimeout": "5s"}))
    replica = drive.woken()
    drive.want(0, in_flight={replica.id: 1}, ttl_s=30)
    assert drive.after(29) == ()
    assert drive.after(1) == ()
    assert [type(one) for one in drive.after(5)] == [Drain]


def test_a_jump_of_the_wall_clock_stops_nothing(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.woken()
    drive.clock.jump(7200)
    assert drive.settle() == ()
    drive.clock.jump(-14400)
    assert drive.settle() == ()


@pytest.mark.parametrize(
    "serverless", [{"minReplicas": 1}, {"enabled": False}], ids=["minReplicas", "disabled"]
)
def test_a_standing_replica_starts_unasked_and_stays(drive: Drive, serverless: Any) -> None:
    drive.cluster.put(make_model(serverless={**serverless, "idleTimeout": "1s"}))
    assert [type(one) for one in drive.settle()] == [Start]
    drive.cluster.ready(drive.only().id)
    assert drive.after(1000) == ()


# Draining


def drained(drive: Drive) -> Any:
    """A replica that is published as draining while a second router has not acknowledged it."""
    drive.cluster.put(make_model(serverless={"idleTimeout": "60s"}))
    replica = drive.woken()
    drive.want(0, idle_s=0, ttl_s=500)
    drive.want(0, router="r2", ttl_s=500)
    assert [type(one) for one in drive.after(60)] == [Drain]
    assert [one.phase for one in drive.told().replicas] == ["draining"]
    return replica


def test_it_is_stopped_only_when_every_router_has_acknowledged(drive: Drive) -> None:
    drained(drive)
    drive.want(0, idle_s=60, ttl_s=500)
    assert drive.settle() == ()
    drive.want(0, router="r2", ttl_s=500)
    assert [type(one) for one in drive.settle()] == [Stop]


def test_an_acknowledgement_with_one_in_flight_there_stops_nothing(drive: Drive) -> None:
    replica = drained(drive)
    drive.want(0, idle_s=60, ttl_s=500)
    drive.want(0, router="r2", in_flight={replica.id: 1}, ttl_s=500)
    assert drive.settle() == ()
    drive.want(0, router="r2", idle_s=0, ttl_s=500)
    assert [type(one) for one in drive.settle()] == [Stop]


def test_a_connected_router_without_a_lease_must_acknowledge_too(drive: Drive) -> None:
    drained(drive)
    drive.cluster.book.connected(77)
    drive.want(0, idle_s=60, ttl_s=500)
    drive.want(0, router="r2", ttl_s=500)
    assert drive.settle() == ()


def test_a_drain_ends_at_its_timeout(drive: Drive) -> None:
    drained(drive)
    assert drive.after(29) == ()
    assert [type(one) for one in drive.after(1)] == [Stop]


def test_a_request_before_the_stop_takes_the_replica_back(drive: Drive) -> None:
    replica = drained(drive)
    drive.want(1, ttl_s=500)
    assert [type(one) for one in drive.settle()] == [Undrain]
    assert [one.phase for one in drive.told().replicas] == ["ready"]
    assert drive.only().id == replica.id


def test_one_request_takes_one_of_two_replicas_back(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 2, "idleTimeout": "60s"}))
    first = drive.woken()
    drive.clock.advance(5)
    drive.want(3, in_flight={first.id: 4}, oldest_wait_s=2)
    drive.settle()
    drive.cluster.ready(next(one.id for one in drive.replicas() if one.id != first.id))
    drive.want(0, idle_s=0, ttl_s=500)
    drive.want(0, router="r2", ttl_s=500)
    assert [kind for kind, _ in drive.kinds(drive.after(60))] == ["Drain", "Drain"]
    drive.want(1, ttl_s=500)
    assert [type(one) for one in drive.settle()] == [Undrain]


def test_a_stop_planned_before_a_request_came_is_refused(drive: Drive) -> None:
    drained(drive)
    drive.want(0, idle_s=60, ttl_s=500)
    drive.want(0, router="r2", ttl_s=500)
    picture = drive.cluster.observe()
    drive.want(1, ttl_s=500)
    run_now(drive.loop.turn(picture))
    assert drive.only().state == "ready"
    assert [type(one) for one in drive.settle()] == [Undrain]


def test_a_request_after_the_stop_starts_another_replica(drive: Drive) -> None:
    replica = drained(drive)
    drive.after(30)
    drive.want(1, ttl_s=500)
    (start,) = drive.settle()
    assert isinstance(start, Start)
    assert start.replica != replica.id


# Scale


def test_waiting_behind_a_full_replica_starts_a_second_one(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 2}))
    first = drive.woken()
    drive.clock.advance(5)
    drive.want(3, in_flight={first.id: 4}, oldest_wait_s=0.2)
    assert drive.settle() == ()
    assert [type(one) for one in drive.after(0.8)] == [Start]
    drive.cluster.ready(next(one.id for one in drive.replicas() if one.id != first.id))
    drive.want(30, in_flight={first.id: 4}, oldest_wait_s=9)
    assert drive.after(5) == ()


def test_the_second_replica_goes_first_when_it_is_idle(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 2, "idleTimeout": "60s"}))
    first = drive.woken()
    drive.clock.advance(5)
    drive.want(3, in_flight={first.id: 4}, oldest_wait_s=2)
    drive.settle()
    second = next(one.id for one in drive.replicas() if one.id != first.id)
    drive.cluster.ready(second)
    for _ in range(7):
        drive.want(0, in_flight={first.id: 1})
        drive.after(9)
    drive.want(0, in_flight={first.id: 1})
    drive.settle()
    assert [one.id for one in drive.replicas() if one.state == "stopping"] == [second]


# Failures


def test_a_crash_is_told_to_those_who_wait_and_tried_again_later(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.crash(drive.only().id)
    assert drive.settle() == ()
    failure = drive.told().failure
    assert failure is not None and failure.code == "engine_crashed"
    assert failure.retry_after_s == pytest.approx(1.0)
    assert drive.cluster.status("tiny").phase == "Failed"
    assert [type(one) for one in drive.after(1)] == [Start]


def test_crashes_in_a_row_wait_longer_up_to_a_cap(drive: Drive) -> None:
    drive.cluster.put(make_model())
    waits = []
    for _ in range(9):
        drive.want(1, ttl_s=100)
        drive.settle()
        drive.cluster.crash(drive.only().id)
        drive.settle()
        waits.append(drive.failure().retry_after_s or 0)
        drive.clock.advance(waits[-1])
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_after_the_wait_nothing_starts_unless_somebody_asks(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.crash(drive.only().id)
    drive.want(0, idle_s=0)
    drive.settle()
    assert drive.after(2) == ()
    assert drive.told().failure is None


def test_a_ready_replica_ends_the_series(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"minReplicas": 1}))
    for _ in range(4):
        drive.settle()
        drive.cluster.crash(drive.only().id)
        drive.settle()
        drive.clock.advance(drive.failure().retry_after_s or 0)
    drive.settle()
    drive.cluster.ready(drive.only().id)
    drive.settle()
    assert drive.told().failure is None
    drive.clock.advance(61)
    crashed = drive.only().id
    drive.cluster.crash(crashed)
    drive.settle()
    assert drive.told().failure is None  # it served: nobody is refused
    assert drive.only().id != crashed


def test_one_that_crashes_whenever_it_serves_waits_longer_each_time(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"minReplicas": 1}))
    waits = []
    for _ in range(4):
        drive.settle()
        drive.cluster.ready(drive.only().id)
        drive.settle()
        drive.clock.advance(5)
        drive.cluster.crash(drive.only().id)
        drive.settle()
        failure = drive.told().failure
        waits.append(0.0 if failure is None else failure.retry_after_s)
        drive.clock.advance(waits[-1] or 0)
    assert waits == pytest.approx([0.0, 2.0, 4.0, 8.0])


def test_a_load_that_stands_still_is_failed(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"loadStallTimeout": "20s"}))
    drive.want(1, ttl_s=100)
    drive.settle()
    for _ in range(10):
        drive.clock.advance(19)
        drive.cluster.progress(drive.only().id)
        drive.want(1, ttl_s=100)
        assert drive.settle() == ()
    (stop,) = drive.after(20)
    assert isinstance(stop, Stop) and stop.failed_as == "load_stalled"
    drive.cluster.ended(stop.replica)
    drive.settle()
    assert drive.failure().code == "load_stalled"


# The gate


def test_config_that_the_engine_refuses_fails_the_model(drive: Drive) -> None:
    facts = EngineFacts(problems=("config.contxt: unknown key; did you mean 'contextTokens'?",))
    drive.cluster.put(make_model(), engine=facts)
    drive.want(1)
    assert drive.settle() == ()
    valid = condition(drive, "ConfigValid")
    assert (valid.status, valid.reason) == ("False", "ConfigInvalid")
    assert "contextTokens" in valid.message
    assert drive.failure().code == "config_invalid"


def test_a_source_that_names_nothing_fails_the_model(drive: Drive) -> None:
    fault = Failure(code="entry_not_found", message="no entry 'tiny'; did you mean 'tony'?")
    drive.cluster.put(make_model(), bound=replace(CACHED, fault=fault, digest="", is_cached=False))
    assert drive.settle() == ()
    assert drive.cluster.status("tiny").phase == "Failed"
    assert drive.told().failure == fault


def test_a_format_that_the_engine_does_not_load_is_refused(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=replace(CACHED, format="safetensors"))
    drive.want(1)
    assert drive.settle() == ()
    assert condition(drive, "Schedulable").reason == "BackendUnsupported"
    assert drive.cluster.status("tiny").phase == "Failed"


def test_hardware_that_is_not_here_leaves_the_model_pending(drive: Drive) -> None:
    drive.cluster.put(make_model(gpu={"vendor": "nvidia"}))
    drive.want(1)
    assert drive.settle() == ()
    assert condition(drive, "Schedulable").reason == "NoMatchingNodes"
    assert drive.cluster.status("tiny").phase == "Pending"


def evidence(same_top: float, result: Any = "PASSED") -> measured.TestResult:
    return measured.TestResult(
        result=result, passed=("smoke",), failed=(), measurements={measured.SAME_TOP: same_top}
    )


@pytest.mark.parametrize(
    ("found", "is_open"),
    [
        ((), False),
        ((evidence(0.89),), False),
        ((evidence(float("nan")),), False),
        ((evidence(0.99, "FAILED"),), False),
        ((evidence(0.90),), True),
    ],
)
def test_nothing_starts_without_the_evidence_asked_for(
    drive: Drive, found: Any, is_open: bool
) -> None:
    model = make_model(quality={"require": "attestation", "minSameTop": 0.9})
    drive.cluster.put(model, bound=replace(CACHED, evidence=found))
    drive.want(1)
    assert [type(one) for one in drive.settle()] == ([Start] if is_open else [])
    assert (condition(drive, "Verified").status == "True") is is_open


def test_while_a_newer_artifact_is_refused_the_one_that_answers_is_shown(drive: Drive) -> None:
    quality = {"require": "attestation", "minSameTop": 0.9}
    old = replace(CACHED, evidence=(evidence(0.99),), quantization="Q8_0")
    drive.cluster.put(make_model(quality=quality), bound=old)
    drive.woken()
    new = replace(old, digest="sha256:" + "2" * 64, evidence=(evidence(0.5),), quantization="Q4_0")
    drive.cluster.put(make_model(quality=quality), bound=new)
    assert drive.settle() == ()
    status = drive.cluster.status("tiny")
    assert status.phase == "Ready"
    assert status.artifact is not None and status.artifact.digest == old.digest
    assert status.message.startswith("the older revision serves on; of the newer one: sha256:222")
    assert (drive.told().artifact_digest, drive.told().quantization) == (old.digest, "Q8_0")
    drive.cluster.put(make_model(quality=quality), bound=replace(new, evidence=(evidence(0.95),)))
    drive.settle()
    drive.cluster.ready(next(r.id for r in drive.replicas() if r.digest == new.digest))
    drive.settle()
    assert (drive.told().artifact_digest, drive.told().quantization) == (new.digest, "Q4_0")


def test_a_stricter_policy_drains_what_no_longer_passes(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.woken()
    drive.want(0, idle_s=0)
    drive.cluster.put(make_model(quality={"minSameTop": 0.9}))
    assert [type(one) for one in drive.settle()] == [Drain]
    drive.want(0, idle_s=0)
    assert [type(one) for one in drive.settle()] == [Stop]


def test_an_alias_of_another_model_is_dropped_and_said(drive: Drive) -> None:
    drive.cluster.put(make_model("a", aliases=["chat", "one"]))
    drive.cluster.put(make_model("b", aliases=["chat", "a"]))
    drive.want(1, model="b")
    assert [one.model for one in drive.settle()] == ["b"]
    valid = condition(drive, "ConfigValid", "b")
    assert (valid.status, valid.reason) == ("False", "AliasConflict")
    assert drive.told("a").aliases == ("chat", "one")
    assert drive.told("b").aliases == ()
    assert "alias 'chat' is taken by Model 'a'" in drive.cluster.status("b").message
    assert drive.cluster.status("a").message == ""


def test_a_refused_edit_is_shown_and_the_old_state_serves(drive: Drive) -> None:
    drive.cluster.put(make_model(), edit_fault="models/tiny.yaml:3:5: unknown key 'sorce'")
    drive.want(1)
    assert [type(one) for one in drive.settle()] == [Start]
    assert condition(drive, "ConfigValid").reason == "EditRefused"


# Builds

ABSENT = replace(CACHED, digest="", is_cached=False)
DAMAGED = replace(CACHED, is_cached=False, damage="layer sha256:12… is not what its digest says")


def test_what_is_not_built_is_built_once_at_a_time(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=ABSENT)
    assert [type(one) for one in drive.settle()] == [Build]
    drive.want(1)
    assert drive.settle() == ()
    assert drive.cluster.status("tiny").phase == "Pending"
    assert condition(drive, "Cached").reason == "CacheNotReady"
    drive.cluster.built("tiny")
    assert [type(one) for one in drive.settle()] == [Start]


def test_a_build_that_fails_is_tried_again_ever_later_and_not_for_ever(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=ABSENT)
    waits = []
    for _ in range(6):
        assert [type(one) for one in drive.settle()] == [Build]
        drive.cluster.built("tiny", failure="no network")
        drive.settle()
        if drive.again_s is not None:
            waits.append(drive.again_s)
            drive.clock.advance(drive.again_s or 0)
    assert waits == pytest.approx([15, 60, 240, 600, 600])
    assert drive.cluster.status("tiny").phase == "Failed"
    assert "no network" in drive.failure().message
    assert drive.after(100_000) == ()


def test_a_build_that_failed_keeps_nobody_waiting_and_is_tried_again(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=ABSENT)
    drive.want(1, ttl_s=1000)
    assert [type(one) for one in drive.settle()] == [Build]
    assert drive.told().failure is None  # they are held: it may be there soon
    assert drive.told().waits_for == "its build"
    drive.cluster.built("tiny", failure="connect_failed: no network", detail="log: /h/build.log")
    drive.settle()
    failure = drive.failure()
    assert failure.code == "build_failed" and failure.retry_after_s == pytest.approx(15)
    assert "connect_failed: no network; it is built again 15 s after that" in failure.message
    assert "/h/" not in failure.message
    status = drive.cluster.status("tiny")
    assert status.phase == "Failed"
    assert "connect_failed: no network (log: /h/build.log)" in condition(drive, "Cached").message
    assert drive.told().waits_for == ""
    assert [type(one) for one in drive.after(15)] == [Build]
    assert drive.told().failure is None
    assert "connect_failed" in drive.cluster.status("tiny").message
    drive.cluster.built("tiny")
    drive.settle()
    assert (drive.told().failure, drive.told().waits_for) == (None, "")


def test_a_build_that_fails_in_passing_is_tried_for_ever(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=ABSENT)
    for _ in range(20):
        assert [type(one) for one in drive.settle()] == [Build]
        drive.cluster.built("tiny", failure="no network", is_passing=True)
        drive.settle()
        assert drive.again_s is not None and drive.again_s <= 600
        drive.clock.advance(drive.again_s)


def test_damaged_bytes_are_fetched_again_once_and_never_started(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=DAMAGED)
    drive.want(1, ttl_s=100)
    assert [type(one) for one in drive.settle()] == [Build]
    drive.cluster.built("tiny", failure="still 4096 bytes short", is_wrong=True)
    assert drive.after(10_000) == ()
    assert drive.failure().code == "digest_mismatch"


def test_damaged_bytes_that_nobody_could_fetch_again_are_asked_for_again(drive: Drive) -> None:
    drive.cluster.put(make_model(), bound=DAMAGED)
    drive.want(1, ttl_s=100)
    assert [type(one) for one in drive.settle()] == [Build]
    drive.cluster.built("tiny", failure="Prefect's server went away")
    drive.settle()
    assert drive.failure().code == "build_failed"
    assert [type(one) for one in drive.after(15)] == [Build]


def test_a_replica_on_damaged_bytes_is_drained(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.woken()
    drive.cluster.put(make_model(), bound=DAMAGED)
    assert [kind for kind, _ in drive.kinds(drive.settle())] == ["Drain", "Build"]


# Change and removal


def test_a_new_revision_is_ready_before_the_old_one_is_drained(drive: Drive) -> None:
    drive.cluster.put(make_model(config={"slots": 2}))
    old = drive.woken()
    drive.cluster.put(make_model(config={"slots": 4}))
    assert [type(one) for one in drive.settle()] == [Start]
    new = next(one.id for one in drive.replicas() if one.id != old.id)
    drive.cluster.ready(new)
    drive.want(0, in_flight={old.id: 1})
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]
    drive.want(0, in_flight={new: 1})
    assert drive.kinds(drive.settle()) == [("Stop", old.id)]
    drive.cluster.ended(old.id)
    assert drive.settle() == ()


def test_without_room_for_two_the_old_revision_goes_first(
    make_drive: Callable[[Policy], Drive],
) -> None:
    drive = make_drive(Policy(max_loaded=1))
    drive.cluster.put(make_model(config={"slots": 2}))
    old = drive.woken()
    drive.want(0, idle_s=0)
    drive.settle()
    drive.cluster.put(make_model(config={"slots": 4}))
    assert [type(one) for one in drive.settle()] == [Drain]
    drive.want(1)
    assert [type(one) for one in drive.settle()] == [Stop]
    drive.cluster.ended(old.id)
    assert [type(one) for one in drive.settle()] == [Start]


def test_a_new_revision_that_fails_never_ends_the_old_one(drive: Drive) -> None:
    drive.cluster.put(make_model(config={"slots": 2}))
    old = drive.woken()
    drive.cluster.put(make_model(config={"slots": 4}))
    for _ in range(5):
        drive.want(0, in_flight={old.id: 1}, ttl_s=1000)
        drive.settle()
        drive.cluster.crash(next(one.id for one in drive.replicas() if one.id != old.id))
        drive.settle()
        assert drive.told().failure is None
        drive.clock.advance(drive.again_s or 0)
    assert [one.draining for one in drive.replicas() if one.id == old.id] == [None]


def test_what_only_the_operator_reads_replaces_nothing(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.woken()
    drive.cluster.put(make_model(serverless={"idleTimeout": "9m"}, aliases=["x"]))
    assert drive.settle() == ()
    assert drive.told().aliases == ("x",)


def test_a_load_of_an_old_revision_is_given_up(drive: Drive) -> None:
    drive.cluster.put(make_model(config={"slots": 2}))
    drive.want(1)
    drive.settle()
    drive.cluster.put(make_model(config={"slots": 4}))
    assert [type(one) for one in drive.settle()] == [Stop, Start]


def test_a_deleted_model_is_drained_refused_and_forgotten(drive: Drive) -> None:
    drive.cluster.put(make_model())
    replica = drive.woken()
    drive.cluster.remove("tiny")
    assert [type(one) for one in drive.settle()] == [Drain]
    assert drive.told().is_deleted
    drive.want(0, idle_s=0)
    assert [type(one) for one in drive.settle()] == [Stop]
    drive.cluster.ended(replica.id)
    drive.settle()
    fleet = drive.cluster.fleet
    assert fleet is not None and fleet.models == ()


def test_a_long_answer_of_a_deleted_model_goes_on_while_nobody_waits_for_the_place(
    drive: Drive,
) -> None:
    drive.cluster.put(make_model())
    replica = drive.woken()
    drive.want(0, in_flight={replica.id: 1}, ttl_s=5000)
    drive.cluster.remove("tiny")
    assert [type(one) for one in drive.settle()] == [Drain]
    for _ in range(9):
        drive.want(0, in_flight={replica.id: 1}, ttl_s=100)
        assert drive.after(60) == ()
    drive.want(0, in_flight={replica.id: 1}, ttl_s=100)
    assert [type(one) for one in drive.after(60)] == [Stop]


def test_a_long_answer_of_an_old_revision_goes_on_until_somebody_waits_for_the_place(
    make_drive: Callable[[Policy], Drive],
) -> None:
    drive = make_drive(Policy(max_loaded=2))
    drive.cluster.put(make_model(config={"slots": 2}))
    old = drive.woken()
    drive.cluster.put(make_model(config={"slots": 4}))
    drive.settle()
    new = next(one.id for one in drive.replicas() if one.id != old.id)
    drive.cluster.ready(new)
    drive.want(0, in_flight={old.id: 1, new: 1}, ttl_s=5000)
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]
    drive.want(0, in_flight={old.id: 1, new: 1}, ttl_s=5000)
    assert drive.after(100) == ()
    drive.cluster.put(make_model("other"))
    drive.want(1, model="other", ttl_s=5000)
    assert ("Stop", old.id) in drive.kinds(drive.settle())


def test_a_model_deleted_while_it_loads_is_stopped_at_once(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.remove("tiny")
    assert [type(one) for one in drive.settle()] == [Stop]


def test_only_equal_deaths_of_loads_point_to_the_artifact(drive: Drive) -> None:
    drive.cluster.put(make_model("tiny"))

    def dies(message: str) -> str:
        drive.want(1)
        drive.after(60)
        drive.want(1)
        drive.settle()
        drive.cluster.crash(drive.only().id, message=message)
        drive.settle()
        return drive.failure().message

    for _ in range(2):
        assert "starts ended" not in dies("abort")
    assert "the last 3 starts ended like this" in dies("abort")
    assert "starts ended" not in dies("something else")
    for _ in range(2):
        last = dies("abort")
    assert "starts ended" not in last
    assert "the last 3 starts" in dies("abort")
