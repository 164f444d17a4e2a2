"""One Model's replicas at their edges: scale-up after a start, an idle old revision, what crashes leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flexinfer.fleet import Failure
from flexinfer_operator.plan.action import Start
from flexinfer_operator.plan.view import Bound, Policy, ReplicaView, Silence
from flexinfer_operator.testing.drive import Drive, make_model

ALWAYS_ON = pytest.mark.parametrize(
    "serverless", [{"minReplicas": 1}, {"enabled": False}], ids=["minReplicas", "disabled"]
)


def put(drive: Drive, serverless: Any, *, slots: int, name: str = "tiny") -> None:
    model = make_model(name, config={"slots": slots}, serverless=serverless)
    drive.cluster.put(model)


def long_idle(drive: Drive, serverless: Any) -> ReplicaView:
    """Return the ready replica, an hour without a request, of a Model that is always on. A router is there."""
    put(drive, serverless, slots=2)
    drive.settle()
    drive.cluster.ready(drive.only().id)
    drive.settle()
    drive.want(0, ttl_s=1e6)
    assert drive.after(3600) == ()
    return drive.only()


def heard(drive: Drive) -> list[tuple[str, str]]:
    """Let the router apply what was published; return what was done."""
    drive.want(0, idle_s=3600, ttl_s=1e6)
    return drive.kinds(drive.settle())


def crashed(drive: Drive, *, served_s: float = 0.0) -> str:
    """Start a replica, let it serve for that long, crash it; return what those who wait are told."""
    drive.want(1, ttl_s=10_000)
    drive.settle()
    replica = drive.only().id
    if served_s:
        drive.cluster.ready(replica)
        drive.settle()
        drive.clock.advance(served_s)
    drive.cluster.crash(replica, message="abort")
    drive.settle()
    said = drive.told().failure
    drive.clock.advance(0.0 if said is None else said.retry_after_s or 0.0)
    return "" if said is None else said.message


def test_requests_that_waited_for_the_start_are_given_a_moment_at_the_new_replica(
    drive: Drive,
) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 4}))
    drive.want(50, oldest_wait_s=30, ttl_s=100)
    drive.settle()
    drive.cluster.ready(drive.only().id)
    assert drive.settle() == ()
    assert drive.after(0.9) == ()
    assert [type(one) for one in drive.after(0.1)] == [Start]


def test_an_old_revision_that_nobody_uses_any_more_is_followed_by_none(drive: Drive) -> None:
    drive.cluster.put(make_model(config={"slots": 2}, serverless={"idleTimeout": "60s"}))
    old = drive.woken()
    drive.want(0, idle_s=0, ttl_s=1000)
    drive.clock.advance(61)
    drive.cluster.put(make_model(config={"slots": 4}, serverless={"idleTimeout": "60s"}))
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]


def test_a_standing_replica_that_crashed_is_started_again_by_itself(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"minReplicas": 1}))
    drive.settle()
    drive.cluster.crash(drive.only().id)
    drive.settle()
    assert drive.again_s == pytest.approx(1.0)
    assert [type(one) for one in drive.after(drive.again_s or 0)] == [Start]


def test_the_failure_of_a_model_nobody_waits_for_ends_by_itself(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.crash(drive.only().id)
    drive.want(0, idle_s=0)
    drive.settle()
    assert drive.told().failure is not None
    assert drive.again_s == pytest.approx(1.0)
    drive.after(drive.again_s or 0)
    assert drive.told().failure is None


def test_a_crash_of_long_ago_makes_no_start_wait_longer(drive: Drive) -> None:
    drive.cluster.put(make_model())
    waits = []
    for _ in range(3):
        drive.want(1)
        drive.settle()
        drive.cluster.crash(drive.only().id)
        drive.settle()
        waits.append(drive.failure().retry_after_s)
        drive.after(601)
    assert waits == pytest.approx([1.0, 1.0, 1.0])


def test_ends_of_engines_that_served_do_not_point_to_the_artifact(drive: Drive) -> None:
    drive.cluster.put(make_model())
    said = [crashed(drive, served_s=5) for _ in range(4)]
    assert said[-1] and not any("starts ended" in one for one in said)
    assert "starts ended" not in crashed(drive)
    assert "starts ended" not in crashed(drive)
    assert "the last 3 starts" in crashed(drive)


@ALWAYS_ON
def test_an_idle_replica_that_is_always_on_serves_until_its_follower_is_ready(
    drive: Drive, serverless: Any
) -> None:
    old = long_idle(drive, serverless)
    put(drive, serverless, slots=4)
    ((_, new),) = drive.kinds(drive.settle())
    assert heard(drive) == []
    assert [one.phase for one in drive.told().replicas if one.id == old.id] == ["ready"]
    drive.cluster.ready(new)
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]
    assert heard(drive) == [("Stop", old.id)]


@ALWAYS_ON
def test_an_idle_replica_that_is_always_on_serves_on_when_its_follower_crashes(
    drive: Drive, serverless: Any
) -> None:
    old = long_idle(drive, serverless)
    put(drive, serverless, slots=4)
    for _ in range(4):
        drive.settle()
        heard(drive)
        drive.cluster.crash(next(one.id for one in drive.replicas() if one.id != old.id))
        drive.settle()
        assert drive.told().failure is None
        assert drive.cluster.status("tiny").phase == "Ready"
        drive.clock.advance(drive.again_s or 0)
    assert drive.replicas()[0].state == "ready"


@ALWAYS_ON
def test_with_room_for_one_an_idle_old_revision_makes_room_for_the_new(
    make_drive: Callable[[Policy], Drive], serverless: Any
) -> None:
    drive = make_drive(Policy(max_loaded=1))
    old = long_idle(drive, serverless)
    put(drive, serverless, slots=4)
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]
    assert heard(drive) == [("Stop", old.id)]
    drive.cluster.ended(old.id)
    ((kind, new),) = drive.kinds(drive.settle())
    assert kind == "Start"
    drive.cluster.ready(new)
    assert drive.settle() == ()
    assert [(one.id, one.phase) for one in drive.told().replicas] == [(new, "ready")]


def test_a_second_edit_waits_for_the_place_of_the_load_that_it_gave_up(
    make_drive: Callable[[Policy], Drive],
) -> None:
    drive = make_drive(Policy(max_loaded=2))
    old = long_idle(drive, {"minReplicas": 1})
    put(drive, {"minReplicas": 1}, slots=4)
    ((_, first),) = drive.kinds(drive.settle())
    put(drive, {"minReplicas": 1}, slots=8)
    assert drive.kinds(drive.settle()) == [("Stop", first)]
    drive.cluster.ended(first)
    assert [type(one) for one in drive.settle()] == [Start]
    assert drive.replicas()[0] == old


def test_a_revision_that_failed_does_not_get_the_place_of_the_one_that_serves(
    make_drive: Callable[[Policy], Drive],
) -> None:
    drive = make_drive(Policy(max_loaded=2))
    old = long_idle(drive, {"minReplicas": 1})
    put(drive, {"minReplicas": 1}, slots=4)
    ((_, new),) = drive.kinds(drive.settle())
    drive.cluster.crash(new)
    put(drive, {}, slots=4, name="other")
    drive.want(1, model="other", ttl_s=1e6)
    other = drive.settle()[-1]
    assert isinstance(other, Start) and other.model == "other"
    drive.cluster.ready(other.replica)
    drive.want(0, model="other", in_flight={other.replica: 1}, ttl_s=1e6)
    assert drive.after(100) == ()
    assert drive.only() == old
    drive.cluster.crash(other.replica)  # there is room again
    assert [one.model for one in drive.settle() if isinstance(one, Start)] == ["tiny"]


def test_an_idle_replica_is_not_let_go_for_one_that_does_not_answer(drive: Drive) -> None:
    serverless = {"minReplicas": 1, "maxReplicas": 2}
    first = long_idle(drive, serverless)
    drive.want(9, in_flight={first.id: 2}, oldest_wait_s=5, ttl_s=1e6)
    drive.settle()
    second = next(one.id for one in drive.replicas() if one.id != first.id)
    drive.cluster.ready(second)
    drive.cluster.unanswered(second, Silence(tries=1, still_tries=1, lasted_s=3))
    drive.want(0, ttl_s=1e6)
    assert drive.kinds(drive.after(3600)) == [("Drain", second)]


UNKNOWN = pytest.mark.parametrize(
    "bound",
    [
        Bound(unreadable=Failure(code="store_busy", message="index.lock is held")),
        Bound(fault=Failure(code="entry_not_found", message="no entry 'tiny'")),
    ],
    ids=["unreadable", "fault"],
)


@UNKNOWN
def test_a_load_goes_on_while_nobody_can_say_what_its_source_is(drive: Drive, bound: Bound) -> None:
    drive.cluster.put(make_model())
    drive.want(1, ttl_s=1000)
    drive.settle()
    loading = drive.only()
    drive.cluster.put(make_model(), bound=bound)
    assert drive.settle() == ()
    drive.cluster.ready(loading.id)
    assert drive.settle() == ()
    drive.cluster.put(make_model())
    assert drive.settle() == ()
    assert drive.only().id == loading.id


@UNKNOWN
def test_two_revisions_are_left_as_they_are_while_nobody_can_say_which_is_new(
    drive: Drive, bound: Bound
) -> None:
    serverless = {"minReplicas": 1, "idleTimeout": "9h"}
    old = long_idle(drive, serverless)
    put(drive, serverless, slots=4)
    ((_, new),) = drive.kinds(drive.settle())
    edited = make_model(config={"slots": 4}, serverless=serverless)
    drive.cluster.put(edited, bound=bound)
    drive.cluster.ready(new)
    assert drive.settle() == ()
    drive.cluster.put(edited)
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]


@UNKNOWN
def test_a_load_whose_model_is_deleted_is_ended_whatever_its_source(
    drive: Drive, bound: Bound
) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.put(make_model(), bound=bound)
    drive.cluster.remove("tiny")
    assert [kind for kind, _ in drive.kinds(drive.settle())] == ["Stop"]
